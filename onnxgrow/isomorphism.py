"""Are two parts of a graph the same but for their weights? Each is spelled in a canonical order; equal words are equal graphs.

The order starts at the tensor that leaves and walks back through the inputs, then out to what else derives from it. Weights of the
part itself are spelled by type and shape, what is shared with others by name. Shape arithmetic is spelled by the numbers that come out
of it: exporters compute a length in the first layer and use it again in the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from .graph import Node
from .roles import FLOATS
from .structure import Structure

FROM_FRONT = {"LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Gather", "Concat", "Split", "GatherElements"}  # their axis is one of the input's


@dataclass(frozen=True)
class Spelling:
    """Nodes of a part in canonical order, and the word that they spell."""

    order: tuple[int, ...]
    word: tuple


def spell(s: Structure, nodes: frozenset[int], enters: str, leaves: str, users: dict[str, int]) -> Spelling:
    """Spell a part of a graph.

    Args:
        nodes: indices of its nodes, between the tensors `enters` and `leaves`.
        users: how many parts use a weight or input, by name.
    """
    graph = s.graph
    order: dict[int, int] = {}
    letters = nodes - graph.measuring
    nodes = frozenset(i for i in letters if not all(o in s.walk.values for o in graph.by_index[i].outputs if o) and not is_idle(s, graph.by_index[i]))
    _visit(s, graph.makers[_behind_idle(s, leaves)], nodes, order)
    reached = list(order)
    for index in reached:  # what else derives from it, caches that come out: the list grows on the way
        for tensor in graph.by_index[index].outputs:
            for user, _ in sorted(graph.users.get(tensor, []), key=lambda use: (use[0].op, use[1], use[0].index)):
                if user.index in nodes and user.index not in order:
                    _visit(s, user, nodes, order)
                    reached += list(order)[len(reached) :]
    lost = sorted(nodes - order.keys())
    order |= {i: len(order) + k for k, i in enumerate(lost)}
    word = tuple(_letter(s, graph.by_index[i], order, enters, users) for i in order)
    return Spelling(tuple(order), word)


def _visit(s: Structure, start: Node, nodes: frozenset[int], order: dict[int, int]) -> None:
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node.index in order or node.index not in nodes:
            continue
        order[node.index] = len(order)
        tensors = [_behind_idle(s, t) for t in reversed(node.inputs)]
        waiting += [s.graph.makers[t] for t in tensors if t in s.graph.makers]


def is_idle(s: Structure, node: Node) -> bool:
    """A node whose output is its input: exporters leave a Cast to the type that a tensor has in the first layer only."""
    casts = node.op == "Cast" and s.walk.types.get(node.inputs[0]) == node.attrs["to"]
    return casts or node.op == "Identity" or (node.op == "Concat" and len(node.inputs) == 1)


def _behind_idle(s: Structure, tensor: str) -> str:
    """The tensor itself, or the one that nodes without effect hand on as it."""
    while tensor in s.graph.makers and is_idle(s, s.graph.makers[tensor]):
        tensor = s.graph.makers[tensor].inputs[0]
    return tensor


def _letter(s: Structure, node: Node, order: dict[int, int], enters: str, users: dict[str, int]) -> tuple:
    return (node.op, node.domain, _attributes(s, node), len(node.outputs),
            tuple(_input(s, t, order, enters, users) for t in node.inputs))


def _attributes(s: Structure, node: Node) -> tuple[bytes, ...]:
    """Attributes as they act: one that is left out has its default, an axis counts from the front, and a shape without zeros is read in one way."""
    held = {a.name: a for a in node.proto.attribute}
    if onnx.defs.has(node.op, node.version, node.domain):
        schema = onnx.defs.get_schema(node.op, node.version, node.domain)
        held = {n: a.default_value for n, a in schema.attributes.items() if a.default_value.name} | held
    shape = s.walk.shapes.get(node.inputs[0]) if node.inputs else None
    if node.op in FROM_FRONT and shape and "axis" in held:
        held["axis"] = onnx.helper.make_attribute("axis", held["axis"].i % len(shape))
    number = s.walk.value(node, 1) if node.op == "Reshape" and len(node.inputs) > 1 else None
    if number is not None and number.all():
        held.pop("allowzero", None)
    return tuple(sorted(a.SerializeToString(deterministic=True) for a in held.values()))


def _input(s: Structure, tensor: str, order: dict[int, int], enters: str, users: dict[str, int]) -> tuple:
    graph, walk = s.graph, s.walk
    tensor = tensor if tensor == enters else _behind_idle(s, tensor)
    maker = graph.makers.get(tensor)
    if tensor == enters:
        return ("stream",)
    if tensor in graph.weights:
        return _weight(s, tensor, users)
    if tensor in walk.values:
        return ("number", walk.values[tensor].shape, walk.values[tensor].tobytes())
    if maker is not None and maker.index in order:
        return (order[maker.index], maker.outputs.index(tensor))
    if maker is None and users.get(tensor, 1) == 1:
        return ("input", walk.shapes.get(tensor))
    return ("shared", tensor)


def _weight(s: Structure, tensor: str, users: dict[str, int]) -> tuple:
    """A weight of its own by type and shape; a table that several parts read by name."""
    name, shape, kind = s.graph.weights[tensor], s.graph.weight_shape(tensor), s.graph.weight_type(tensor)
    if kind not in FLOATS and tensor in s.walk.values:
        return ("number", shape, s.walk.values[tensor].tobytes())
    shared = users.get(name, 1) > 1
    if shared and (kind not in FLOATS or sum(n > 1 for n in shape) > 1 or is_frequency(s, tensor)):
        return ("shared", name)
    return ("weight", kind, shape)


def is_frequency(s: Structure, tensor: str) -> bool:
    """Does a vector end in a sine or cosine after a few steps (rotary positions)?"""
    reached = {tensor}
    for _ in range(10):
        found = [n for t in reached for n, _ in s.graph.users.get(t, [])]
        if len(found) > 16:  # activations spread out, frequencies do not
            return False
        if any(n.op in ("Sin", "Cos") for n in found):
            return True
        steps = ("Cast", "Unsqueeze", "Expand", "Reshape", "Transpose", "MatMul", "Mul", "Concat", "Identity")
        reached = {o for n in found if n.op in steps for o in n.outputs}
    return False
