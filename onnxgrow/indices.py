"""Where the indices of a look-up come from: do they count positions, and what keeps them inside their table?

Followed backwards, from the look-up to a Range, a sum of ones, a stored 0, 1, 2 ... or a graph input. Only operators that move or
shift positions are followed; any other makes the indices something else, such as the buckets of relative positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from .graph import SIZES, Node
from .structure import Structure

MOVES = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Expand", "Flatten", "Tile", "Gather", "GatherElements", "GatherND"}
BOUNDS = {"Min", "Clip", "Mod", "Where", "ArgMax", "ArgMin", "TopK", "NonZero"}  # one of these keeps an unknown index inside its table

LONGEST_WAY = 256  # nodes


@dataclass
class Indices:
    """What a tensor of indices is.

    Attributes:
        kind: "position" counts tokens; "fed" is the graph input `name`; "fixed" never leaves the stored values; "other" is made by `node`.
        limits: (node, input slot, value) of constants that the indices are clipped to.
        bounded: for "other", whether something on the way limits them.
    """

    kind: str
    name: str | None = None
    node: Node | None = None
    limits: list[tuple[Node, int, int]] = field(default_factory=list)
    bounded: bool = False


def find_indices(s: Structure, tensor: str) -> Indices:
    """Trace a tensor of indices back to what it counts."""
    trace = _Trace(s)
    kind = trace.kind(tensor)
    out = Indices({"one": "fixed"}.get(kind, kind), trace.fed, trace.lost, trace.limits)
    out.bounded = kind == "other" and trace.meets_bound(tensor)
    return out


class _Trace:
    """One walk backwards. Kinds: position, fed, fixed, other, and "one" for a single number."""

    def __init__(self, s: Structure):
        self.s, self.limits = s, []
        self.lost: Node | None = None
        self.fed: str | None = None

    def kind(self, tensor: str) -> str:
        s = self.s
        if tensor in s.graph.weights:
            return self._stored(tensor)
        node = s.graph.makers.get(tensor)
        if node is None:
            self.fed = tensor
            return "fed"
        if tensor in s.fixed_values:
            return "fixed"
        if prod(s.walk.shapes.get(tensor) or (2,)) == 1:
            return "one"
        return self._made(node)

    def _stored(self, tensor: str) -> str:
        if prod(self.s.graph.weight_shape(tensor)) == 1:
            return "one"
        return "position" if is_count(self.s.graph.array(tensor)) else "fixed"

    def _made(self, node: Node) -> str:
        if node.op in ("Range", "CumSum"):
            return "position"
        if node.op in SIZES:
            return "one"
        if node.op in MOVES:
            return self.kind(node.inputs[0])
        if node.op in ("Clip", "Min", "Max"):
            return self._clipped(node)
        if node.op in ("Add", "Sub", "Mul", "Where", "Concat"):
            return self._joined(node, [self.kind(t) for t in node.inputs[node.op == "Where" :]])
        return self._lose(node)

    def _lose(self, node: Node) -> str:
        self.lost = self.lost or node
        return "other"

    def _clipped(self, node: Node) -> str:
        kinds = [self.kind(t) for t in node.inputs if t]
        for slot, tensor in enumerate(node.inputs):
            value = self.s.walk.value(node, slot) if tensor and (tensor in self.s.fixed_values or tensor in self.s.graph.weights) else None
            if value is not None and value.size == 1 and node.op != "Max" and (node.op, slot) != ("Clip", 1):
                self.limits.append((node, slot, int(value.ravel()[0])))
        found = [k for k in kinds if k != "one"]
        return found[0] if len(found) == 1 else self._lose(node)

    def _joined(self, node: Node, kinds: list[str]) -> str:
        counting = [k for k in kinds if k in ("position", "fed")]
        if node.op == "Mul" and counting.count("position") == 1:  # positions times a mask
            return "position"
        if "other" in kinds:
            return "other"
        if len(counting) > 1 and node.op in ("Sub", "Mul"):
            return self._lose(node)
        return "position" if "position" in counting else counting[0] if counting else "fixed"

    def meets_bound(self, tensor: str) -> bool:
        """Does any operator on the way back limit values? Sizes and single numbers are not followed."""
        waiting, seen = [tensor], set()
        while waiting:
            t = waiting.pop()
            node = self.s.graph.makers.get(t)
            if node is None or node.index in seen or len(seen) > LONGEST_WAY or prod(self.s.walk.shapes.get(t) or (2,)) == 1:
                continue
            seen.add(node.index)
            if node.op in BOUNDS:
                return True
            waiting += [t for t in node.inputs[: 1 if node.op in MOVES else None] if t]
        return False


def is_count(values: np.ndarray) -> bool:
    """Whole numbers that go up one by one along one axis: stored positions."""
    if values.dtype.kind not in "iu" or values.size < 2:
        return False
    return any(n > 1 and (np.diff(values, axis=axis) == 1).all() for axis, n in enumerate(values.shape))
