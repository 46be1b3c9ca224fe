"""From the PyTorch module to ONNX graphs."""
