"""From tensors to a verified ONNX file of a flow estimator."""
