"""What the folders of a language model have in common: which tensors they need, how they are written and compared."""
