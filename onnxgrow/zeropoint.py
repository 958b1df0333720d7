"""What zero is in a tensor of quantized numbers."""

from __future__ import annotations

import numpy as np

from .dequantize import FIRST
from .errors import MethodError
from .graph import Graph, Node
from .packed import BITS

READ = {("DequantizeLinear", 0): 2, ("MatMulInteger", 0): 2, ("MatMulInteger", 1): 3}  # (operator, slot of the numbers) -> slot of their zero point
OWN = {("DequantizeLinear", 2), ("QuantizeLinear", 2), ("MatMulInteger", 2), ("MatMulInteger", 3)}
MOVES = {"Gather", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten"}


def zero_point(graph: Graph, tensor: str) -> int | None:
    """The zero point of a weight of quantized numbers, or that it is one itself; None for plain numbers.

    Raises:
        MethodError: entries have zero points of their own, or several numbers share a byte in a way that cannot be grown.
    """
    found: set[int] = set()

    def visit(node: Node, slot: int, at: str) -> bool:
        if (node.op, slot) in READ:
            other = READ[node.op, slot]
            found.update(_values(graph, node, other) if other < len(node.inputs) and node.inputs[other] else {0})
        elif (node.op, slot) in OWN:
            found.update(_values(graph, node, slot))
        elif (node.op, slot) == ("MatMulNBits", 1):
            found.add({8: 0x80, 4: 0x88, 2: 0xAA}[node.attrs.get("bits", 4)])
        return node.op in MOVES and slot == 0

    graph.spread([tensor], visit)
    if not found:
        return None
    node = graph.users[tensor][0][0]
    if len(found) > 1:
        raise MethodError(f"the zero points of {graph.weights[tensor]!r} differ from entry to entry, and new ones would have none", node=node.label, hint=FIRST)
    if tensor in graph.weights and graph.weight_type(tensor) in BITS:
        raise MethodError(f"{graph.weights[tensor]!r} has several numbers in a byte", node=node.label, hint=FIRST)
    return found.pop()


def _values(graph: Graph, node: Node, slot: int) -> set[int]:
    tensor = node.inputs[slot]
    if tensor not in graph.weights:
        raise MethodError("a zero point is computed", node=node.label, hint=FIRST)
    return {int(v) for v in np.unique(np.asarray(graph.array(tensor)).astype(np.int64))}
