"""Back to PyTorch: readable modules, weights as safetensors, and the way back into the ONNX file."""
