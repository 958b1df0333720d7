"""Meanings that the graph spreads over many nodes, or writes in another layout: recognised from the last node backwards.

Each function looks at one node and returns the step that stands for it and what leads to it, or None. What it covers is left out because
nobody asks for it any more; where somebody does, it stays. They are tried in the order of these imports.
"""

from . import linear, norms, activations, attention  # noqa: I001 (the order counts)
from .registry import IDIOMS

__all__ = ["IDIOMS", "activations", "attention", "linear", "norms"]
