"""Where a model directory comes from: the user's disk, ModelScope, or Hugging Face."""
