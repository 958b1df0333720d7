"""Explicit zero gates: y = x + gate · f(x) with a trainable scalar, the only depth method that adds nodes (ReZero, arXiv 2003.04887)."""

from __future__ import annotations

import onnx
from onnx import helper

from .inserted import Silence
from .instances import Instance, Names
from .weights import Weights


def add_gates(names: Names, weights: Weights, instance: Instance, entering: str, silence: Silence, nodes: list[onnx.NodeProto],
              dtype: int) -> list[onnx.NodeProto]:
    """Gate a new block; rewires `nodes` in place and returns the nodes to add. Nothing where the method needs no gates.

    Args:
        entering: the stream tensor that the block reads.
        dtype: element type of the stream, as in TensorProto.
    """
    scope = names.scope(instance) if instance.position in silence.gates or instance.position in silence.wrapped else ""
    out: list[onnx.NodeProto] = []
    for i, (index, slot) in enumerate(silence.gates.get(instance.position, [])):
        made = instance.names[names.graph.by_index[index].outputs[0]]
        add = next(n for n in nodes if made in n.output)
        gate, gated = weights.gate(names.fresh(f"{scope}.gate_{i}", False), dtype), names.fresh(f"{scope}.gated_{i}", False)
        out.append(helper.make_node("Mul", [add.input[slot], gate], [gated], gated))
        add.input[slot] = gated
    return out + (_wrap(names, weights, instance.leaves, entering, scope, nodes, dtype) if instance.position in silence.wrapped else [])


def _wrap(names: Names, weights: Weights, leaves: str, entering: str, scope: str, nodes: list[onnx.NodeProto], dtype: int) -> list[onnx.NodeProto]:
    """y = x + gate · (block(x) - x), for blocks whose norms stand on the stream."""
    inner, change, gated, gate = (names.fresh(f"{scope}.{what}", False) for what in ("inner", "change", "gated", "gate"))
    for n in nodes:
        n.input[:] = [inner if name == leaves else name for name in n.input]
        n.output[:] = [inner if name == leaves else name for name in n.output]
    weights.gate(gate, dtype)
    return [helper.make_node("Sub", [inner, entering], [change], change), helper.make_node("Mul", [change, gate], [gated], gated),
            helper.make_node("Add", [entering, gated], [leaves], f"{scope}.add")]
