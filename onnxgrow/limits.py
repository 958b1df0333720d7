"""Between what two numbers a tensor stays, where the graph alone says so: `where(any(isinf(x)), 64504, 65504)` is above zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .graph import Graph

MOVES = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Slice", "Gather", "ReduceMax", "ReduceMin"}
FLAGS = {"IsInf", "IsNaN", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Not", "Xor"}
DEEPEST = 16  # steps back; what bounds a clamp is made nearby


def limits(graph: Graph, known: Callable[[str], np.ndarray | None], tensor: str, steps: int = DEEPEST) -> tuple[float, float] | None:
    """(smallest, largest) that a tensor can hold, or None where that depends on what is fed or on weights of more than one entry.

    `known(tensor)` gives numbers that are the same at every size that is fed: `4 - length` has no sign of its own.
    """
    value = known(tensor)
    if value is not None:
        return (float(np.min(value)), float(np.max(value))) if value.size else None
    maker = graph.makers.get(tensor)
    if maker is None or not steps:
        return None
    back = lambda slot: limits(graph, known, maker.inputs[slot], steps - 1)  # noqa: E731
    if maker.op in FLAGS:
        return 0.0, 1.0
    if maker.op in MOVES:
        return back(0)
    if maker.op == "Neg":
        found = back(0)
        return found and (-found[1], -found[0])
    if maker.op == "Where":
        one, other = back(1), back(2)
        return one and other and (min(one[0], other[0]), max(one[1], other[1]))
    return None
