"""How far rounding may take two graphs apart that compute the same function: one rule, by the least exact type in the graph.

What counts is what values pass through on their way to an output: weights (a repaired gain, a mean, a share is rounded once, to the type
of its weight) and activations (rounded at every node). Numbers that are folded, masks that are whole numbers and sizes do not count.
Where the numbers come from: docs/types.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from .structure import Structure

FP32 = 1e-5
STEPPED = 2e-2  # behind a rounding to 8 bits, which may fall to either side of a half
NATIVE = {TensorProto.DOUBLE: 1e-10, TensorProto.FLOAT: FP32, TensorProto.FLOAT16: 2e-2, TensorProto.BFLOAT16: 1e-1}
WEIGHTS = {TensorProto.DOUBLE: FP32, TensorProto.FLOAT: FP32, TensorProto.FLOAT16: 8e-3, TensorProto.BFLOAT16: 5e-2}  # computed in float32
NAMES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear"}


@dataclass(frozen=True)
class Precision:
    """The float types of a graph (onnx.TensorProto): the least exact one of its weights, and of all its values; and whether values are quantized on the way."""

    weights: int
    values: int
    quantized: bool = False

    @property
    def rounding(self) -> str | None:
        """What "exact" is up to, where that is coarser than float32; None for float32 and float64."""
        return NAMES.get(self.values, "int8" if self.quantized else None)

    def tolerance(self, in_float32: bool = False) -> float:
        """Largest difference, relative to the largest value of an output, that counts as equal.

        `in_float32`: both sides are computed in float32, and only weights are as exact as the file has them.
        """
        return max(WEIGHTS[self.weights] if in_float32 else NATIVE[self.values], STEPPED if self.quantized else 0)


def precision(s: Structure) -> Precision:
    """The types that values of a graph have on their way to its outputs."""
    weights, values, quantized = set(), set(), False
    for node in s.graph.nodes:
        if node.index not in s.read:
            continue
        quantized |= node.op in QUANTIZERS
        for tensor in node.inputs:
            kind = s.walk.types.get(tensor)
            if kind in NATIVE and tensor not in s.walk.values:
                (weights if tensor in s.graph.weights else values).add(kind)
        values |= {s.walk.types.get(t) for t in node.outputs if t not in s.walk.values}
    weights &= NATIVE.keys()
    return Precision(_coarsest(weights), _coarsest(weights | values), quantized)


def _coarsest(kinds: set[int | None]) -> int:
    return max((k for k in kinds if k in NATIVE), key=NATIVE.get, default=TensorProto.FLOAT)
