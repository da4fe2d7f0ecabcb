"""From tensors to a verified folder for vLLM."""
