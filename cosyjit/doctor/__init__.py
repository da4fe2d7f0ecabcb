"""What a report of a problem should hold: versions, the machine, the store, and the servers that would be asked."""
