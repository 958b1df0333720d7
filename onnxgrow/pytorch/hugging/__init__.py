"""`onnxgrow export --format hf`: a graph as a folder that transformers loads, the grown config included."""

from __future__ import annotations

from .write import HfReport, write_hf

__all__ = ["HfReport", "write_hf"]
