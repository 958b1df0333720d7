"""Are two parts of a graph the same but for their weights? Each is spelled in a canonical order; equal words are equal graphs.

The order starts at the tensor that leaves and walks back through the inputs, then out to what else derives from it. Weights of the
part itself are spelled by type and shape, what is shared with others by name. Shape arithmetic is spelled by the numbers that come out
of it: exporters compute a length in the first layer and use it again in the others. A sum of several is one letter, and summands and
factors have an order of their own: where the last layer is fused with the norm behind it, its sum is written another way.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import onnx

from .graph import Node
from .roles import FLOATS
from .structure import Structure

SAME = {"SimplifiedLayerNormalization": ("RMSNormalization", 23)}  # other names of an operator, and the version of it: ONNX Runtime's of opsets that lack it
COMMUTES = {"Add", "Mul", "And", "Or"}
FROM_FRONT = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax", "LogSoftmax", "Gather", "Concat", "Split", "GatherElements"}  # their axis is one of the input's


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
    inputs, summed = _in_order(s, nodes, enters, users)
    last = graph.makers.get(_behind_idle(s, leaves))
    if last is not None:  # else nothing in it changes what enters
        _visit(s, last, inputs, order)
    reached = list(order)
    for index in reached:  # what else derives from it, caches that come out: the list grows on the way
        for tensor in graph.by_index[index].outputs:
            for user, _ in sorted(graph.users.get(tensor, []), key=lambda use: (use[0].op, use[1], use[0].index)):
                if user.index in inputs and user.index not in order:
                    _visit(s, user, inputs, order)
                    reached += list(order)[len(reached) :]
    lost = sorted(inputs.keys() - order.keys())
    order |= {i: len(order) + k for k, i in enumerate(lost)}
    word = tuple(_letter(s, graph.by_index[i], inputs[i], order, enters, users) for i in order)
    return Spelling((*order, *(inner for i in order for inner in summed.get(i, ()))), word)


def _in_order(s: Structure, nodes: frozenset[int], enters: str, users: dict[str, int]) -> tuple[dict[int, list[str]], dict[int, list[int]]]:
    """The inputs of each node, and the sums that are nothing but a summand of another one.

    The inputs of a sum are all its summands; where a node commutes, they come in the order of hashes of all that they are made of.
    """
    graph = s.graph
    inputs: dict[int, list[str]] = {}
    summed: dict[int, list[int]] = {}
    digests: dict[int, str] = {}
    inner = {i for i in nodes if graph.by_index[i].op == "Add" and _is_summand(graph.users.get(graph.by_index[i].outputs[0], []), nodes)}
    for node in sorted((graph.by_index[i] for i in nodes - inner), key=lambda n: graph.place[n.index]):
        found, summed[node.index] = _summands(s, node, inner) if node.op == "Add" else (node.inputs, [])
        inputs[node.index] = sorted(found, key=lambda t: repr(_input(s, t, digests, enters, users))) if node.op in COMMUTES else found
        text = repr(_letter(s, node, inputs[node.index], digests, enters, users))
        digests[node.index] = hashlib.sha1(text.encode()).hexdigest()
    return inputs, summed


def _is_summand(uses: list[tuple[Node, int]], nodes: frozenset[int]) -> bool:
    return len(uses) == 1 and uses[0][0].op == "Add" and uses[0][0].index in nodes


def _summands(s: Structure, node: Node, inner: set[int]) -> tuple[list[str], list[int]]:
    """What a sum is made of, and the sums in it."""
    found, sums, waiting = [], [], list(node.inputs)
    while waiting:
        tensor = waiting.pop(0)
        maker = s.graph.makers.get(tensor)
        if maker is not None and maker.index in inner:
            sums.append(maker.index)
            waiting += maker.inputs
        else:
            found.append(tensor)
    return found, sums


def name_of(node: Node) -> str:
    return SAME.get(node.op, (node.op,))[0]


def _visit(s: Structure, start: Node, inputs: dict[int, list[str]], order: dict[int, int]) -> None:
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node.index in order or node.index not in inputs:
            continue
        order[node.index] = len(order)
        tensors = [_behind_idle(s, t) for t in reversed(inputs[node.index])]
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


def _letter(s: Structure, node: Node, inputs: list[str], order: dict[int, int | str], enters: str, users: dict[str, int]) -> tuple:
    shape = _becomes(s, node)
    return (name_of(node), node.domain, _attributes(s, node), len(node.outputs), shape,
            tuple(_input(s, t, order, enters, users) for t in (inputs[:1] if shape else inputs)))


def _attributes(s: Structure, node: Node) -> tuple[bytes, ...]:
    """Attributes as they act: one that is left out has its default, an axis counts from the front, and a shape without zeros is read in one way."""
    held = {a.name: a for a in node.proto.attribute}
    op, version = SAME.get(node.op, (node.op, node.version))
    if onnx.defs.has(op, version, node.domain):
        schema = onnx.defs.get_schema(op, version, node.domain)
        held = {n: a.default_value for n, a in schema.attributes.items() if a.default_value.name} | held
    shape = s.walk.shapes.get(node.inputs[0]) if node.inputs else None
    if node.op in FROM_FRONT and shape and "axis" in held:
        held["axis"] = onnx.helper.make_attribute("axis", held["axis"].i % len(shape))
    if _becomes(s, node):
        held.pop("allowzero", None)
    return tuple(sorted(a.SerializeToString(deterministic=True) for a in held.values()))


def _becomes(s: Structure, node: Node) -> tuple[int, ...] | None:
    """The shape that a Reshape makes, where it is known: `0` and `-1` in its operand are two ways to say it."""
    shape = s.walk.shapes.get(node.outputs[0]) if node.op == "Reshape" else None
    return shape if shape and all(shape) else None


def _input(s: Structure, tensor: str, order: dict[int, int | str], enters: str, users: dict[str, int]) -> tuple:
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
