"""onnxgrow: grow a trained transformer in ONNX form into a larger one that computes the same function."""

__version__ = "0.1.0"
