"""onnxgrow: grow a trained transformer in ONNX form into a larger one that computes the same function."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Architecture", "Certificate", "Model", "OnnxgrowError", "Plan", "load"]

if TYPE_CHECKING:
    from .architecture import Architecture
    from .certificate import Certificate
    from .errors import OnnxgrowError
    from .model import Model, load
    from .plan import Plan

_HOME = {"Architecture": "architecture", "Certificate": "certificate", "Model": "model", "OnnxgrowError": "errors", "Plan": "plan", "load": "model"}


def __getattr__(name: str):
    """Import the heavy parts when they are asked for."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"onnxgrow.{_HOME[name]}"), name)
    raise AttributeError(f"module 'onnxgrow' has no attribute {name!r}")
