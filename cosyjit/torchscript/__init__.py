"""From tensors to a verified TorchScript zip."""
