"""Where a model directory comes from: the user's disk, or ModelScope."""
