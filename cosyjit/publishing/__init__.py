"""What a directory shows: publications, switched in one step."""
