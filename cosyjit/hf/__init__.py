"""From tensors and a tokenizer to a verified folder in the layout of Hugging Face."""
