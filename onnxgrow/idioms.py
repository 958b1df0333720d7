"""Meanings that are spread over many nodes: spelled-out norms, and attention around a Softmax.

Matching starts at the operator that cannot be missing (ReduceMean, Softmax) and walks from there; a miss is a value with the
reason and the node, so that the nearest miss can be shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .graph import FLOATS, Node
from .structure import Structure

PASSING = {"Cast", "Identity", "Dropout"}
STEPPED = PASSING | {"QuantizeLinear", "DequantizeLinear"}
SCORE_STEPS = STEPPED | {"Add", "Where", "Mul", "Div", "Sub", "Tanh", "Clip", "Reshape", "Unsqueeze", "Squeeze", "Max", "Expand",
                         "Concat"}  # scores of sinks are appended
WEIGHT_STEPS = STEPPED | {"Expand", "Where", "Mul", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice"}


@dataclass(frozen=True)
class Norm:
    """A norm spelled out in nodes: y = (x − mean) / deviation, or x / rms; gain and offset follow as ordinary nodes unless they are named.

    Attributes:
        kind: "layer norm", "rms norm", "length" or "centre".
        x, y: tensor ids of what goes in and what comes out, normalised along the last axis.
        nodes: indices of the nodes it covers.
        eps: (node, input slot) that holds epsilon, if any.
        anchor: the node that messages name.
        gain, offset: (node, input slot) of those that are part of it: x·(γ·r) + (β − mean·(γ·r)).
    """

    kind: str
    x: str
    y: str
    nodes: frozenset[int]
    eps: tuple[Node, int] | None
    anchor: Node
    gain: tuple[Node, int] | None = None
    offset: tuple[Node, int] | None = None


@dataclass(frozen=True)
class Miss:
    """Why something that looked like an idiom is none."""

    reason: str
    node: Node


@dataclass(frozen=True)
class Attention:
    """softmax(q k) v: the nodes of the two products and the Softmax between them, and the input of the second one that its shares are."""

    scores: Node
    softmax: Node
    context: Node
    shares: int = 0


def find_norms(s: Structure) -> tuple[list[Norm], list[Miss]]:
    """All spelled-out norms, and the near misses."""
    norms, misses = [], []
    for node in s.graph.nodes:
        if node.op == "ReduceMean" and _along_last(s, node):
            found = _norm_at(s, node)
            if isinstance(found, Norm):
                norms.append(found)
            elif found is not None:
                misses.append(found)
    return norms, misses


def find_lengths(s: Structure) -> list[Norm]:
    """Spelled-out x / max(|x|, eps) along the last axis, of kind "length": zeros change no length, and nothing is divided by zero."""
    found = []
    for node in s.graph.nodes:
        if node.op != "ReduceL2" or not _along_last(s, node) or not node.attrs.get("keepdims", 1):
            continue
        covered, step, tensor, turns = {node.index}, _only_user(s, node.outputs[0]), node.outputs[0], []
        while step is not None and step.op == "Transpose" and _keeps_last(step):  # ONNX Runtime measures first and turns both
            covered.add(step.index)
            turns.append(step.attrs["perm"])
            tensor = step.outputs[0]
            step = _only_user(s, tensor)
        if step is None or step.op not in ("Clip", "Max") or not _is_positive(s, step, tensor):
            continue
        while step is not None and step.op in ("Clip", "Max", "Expand"):
            covered.add(step.index)
            tensor = step.outputs[0]
            step = _only_user(s, tensor)
        if step is not None and step.op == "Div" and step.inputs[1] == tensor and _is_turned(s, step.inputs[0], node.inputs[0], turns):
            found.append(Norm("length", step.inputs[0], step.outputs[0], frozenset(covered | {step.index}), None, step))
    return found


def find_centred(s: Structure, norms: list[Norm]) -> list[Norm]:
    """Spelled-out x − mean(x) along the last axis that is no part of a norm, of kind "centre": an RMS norm may follow as an operator of its own."""
    covered, found = {i for n in norms for i in n.nodes}, []
    for node in s.graph.nodes:
        if node.op == "Sub" and node.index not in covered:
            centred, x, nodes = _centred(s, node.outputs[0])
            if centred:
                found.append(Norm("centre", x, node.outputs[0], nodes, None, node))
    return found


def _keeps_last(turn: Node) -> bool:
    return "perm" in turn.attrs and turn.attrs["perm"][-1] == len(turn.attrs["perm"]) - 1


def _is_turned(s: Structure, tensor: str, x: str, turns: list[list[int]]) -> bool:
    """Is a tensor made from x by these Transposes?"""
    for perm in reversed(turns):
        maker = s.graph.makers.get(tensor)
        if maker is None or maker.op != "Transpose" or maker.attrs.get("perm") != perm:
            return False
        tensor = maker.inputs[0]
    return tensor == x


def _is_positive(s: Structure, node: Node, tensor: str) -> bool:
    """Is what bounds a length from below above zero?"""
    bounds = [node.attrs["min"]] if "min" in node.attrs else []
    slots = [1] if node.op == "Clip" else [i for i, t in enumerate(node.inputs) if t != tensor]
    bounds += [v for i in slots if i < len(node.inputs) and (v := s.walk.value(node, i)) is not None]
    return bool(bounds) and all(float(np.min(b)) > 0 for b in bounds)


def find_attention(s: Structure) -> list[Attention]:
    """Every Softmax between two products of activations."""
    found = []
    for node in s.graph.nodes:
        if node.op != "Softmax":
            continue
        scores = _back_to_product(s, node.inputs[0])
        context = _on_to_product(s, node.outputs[0])
        if scores is not None and context is not None:
            found.append(Attention(scores, node, *context))
    return found


def _along_last(s: Structure, node: Node) -> bool:
    shape, axes = s.walk.shapes.get(node.inputs[0]), node.attrs.get("axes")
    if len(node.inputs) > 1 and s.walk.value(node, 1) is not None:
        axes = [int(a) for a in s.walk.value(node, 1).ravel()]
    return shape is not None and axes is not None and [a % len(shape) for a in axes] == [len(shape) - 1]


def _norm_at(s: Structure, mean: Node) -> Norm | Miss | None:
    """Take a ReduceMean for the second moment of a norm and walk both ways; Casts between float types may stand anywhere."""
    covered = {mean.index}
    square = s.graph.makers.get(_before_casts(s, mean.inputs[0], covered))
    x = _squared(s, square)
    if x is None:
        return None  # the first mean of a LayerNorm, or a plain average
    covered.add(square.index)
    step, tensor, eps = *_after_casts(s, mean.outputs[0], covered), None
    if step is not None and step.op == "Add":
        slot = 1 - step.inputs.index(tensor)
        if s.walk.value(step, slot) is None:
            return Miss("what is added to the variance is no constant", step)
        eps = (step, slot)
        covered.add(step.index)
        step, tensor = _after_casts(s, step.outputs[0], covered)
    root = _root(s, step, tensor)
    if root is None:
        return Miss("no square root follows the mean square", step or mean)
    tensor, inverse, nodes = root
    covered |= nodes
    step, tensor = _after_casts(s, tensor, covered)
    if step is not None and step.op == "Reciprocal" or step is not None and _is_one_over(s, step, tensor):
        inverse = not inverse
        covered.add(step.index)
        step, tensor = _after_casts(s, step.outputs[0], covered)
    if step is None or step.op != ("Mul" if inverse else "Div") or (step.op == "Div" and step.inputs[1] != tensor):
        return Miss("the root of the mean square does not divide what was squared", step or mean)
    partner = step.inputs[1 - step.inputs.index(tensor)]
    covered.add(step.index)
    centred, base, nodes = _centred(s, x)
    if centred and partner in s.graph.weights:
        return _affine(s, step, base, covered | nodes, eps, mean)
    other, base2, nodes2 = _centred(s, partner)
    if partner != x and not (centred and other and base == base2):
        casts: set[int] = set()
        base = _before_casts(s, x, casts)
        if centred or other or base != _before_casts(s, partner, casts):
            return Miss("the root of the mean square divides something other than what was squared", step)
        nodes = frozenset(nodes | casts)
    covered |= nodes | nodes2
    leak = _leak(s, covered, step)
    if leak is not None:
        return Miss("a value from inside the norm is used elsewhere", leak)
    return Norm("layer norm" if centred else "rms norm", base, step.outputs[0], frozenset(covered), eps, mean)


def _float_cast(s: Structure, node: Node | None) -> bool:
    return node is not None and node.op == "Cast" and all(s.walk.types.get(t) in FLOATS for t in (*node.inputs, *node.outputs))


def _before_casts(s: Structure, tensor: str, covered: set[int]) -> str:
    """The tensor that Casts between float types made this one from; they join `covered`."""
    while _float_cast(s, node := s.graph.makers.get(tensor)):
        covered.add(node.index)
        tensor = node.inputs[0]
    return tensor


def _after_casts(s: Structure, tensor: str, covered: set[int]) -> tuple[Node | None, str]:
    """The only user of a tensor, Casts between float types passed over, and the tensor that it reads; they join `covered`."""
    while _float_cast(s, step := _only_user(s, tensor)):
        covered.add(step.index)
        tensor = step.outputs[0]
    return step, tensor


def _affine(s: Structure, scale: Node, x: str, covered: set[int], eps: tuple[Node, int] | None, anchor: Node) -> Norm | Miss:
    """x·scale + (β − mean(x)·scale) behind scale = γ·r, as TensorFlow writes a LayerNorm; β may be missing."""
    users = [n for n, _ in s.graph.users.get(scale.outputs[0], [])]
    by_other = {n.inputs[1 - n.inputs.index(scale.outputs[0])]: n for n in users if n.op == "Mul"}
    shifted = next((n for t, n in by_other.items() if t != x and _is_mean(s, t, x)), None)
    if len(users) != 2 or x not in by_other or shifted is None:
        return Miss("gain times the inverse root is no factor of what was squared and of its mean", scale)
    inner, last, offset = _only_user(s, shifted.outputs[0]), _only_user(s, by_other[x].outputs[0]), None
    if inner is not None and inner.op == "Sub" and inner.inputs[1] == shifted.outputs[0] and inner.inputs[0] in s.graph.weights:
        offset, summed = (inner, 0), last is not None and last.op == "Add" and inner.outputs[0] in last.inputs
    else:
        summed = inner is last is not None and last.op == "Sub" and last.inputs == [by_other[x].outputs[0], shifted.outputs[0]]
    if not summed:
        return Miss("offset and mean do not follow", shifted)
    covered |= {n.index for n in (scale, by_other[x], shifted, inner, last)} | {s.graph.makers[t].index for t in by_other if t != x}
    leak = _leak(s, covered, last)
    if leak is not None:
        return Miss("a value from inside the norm is used elsewhere", leak)
    slot = next(i for i, t in enumerate(scale.inputs) if t in s.graph.weights)
    return Norm("layer norm", x, last.outputs[0], frozenset(covered), eps, anchor, (scale, slot), offset)


def _is_mean(s: Structure, tensor: str, x: str) -> bool:
    maker = s.graph.makers.get(tensor)
    return maker is not None and maker.op == "ReduceMean" and maker.inputs[0] == x and _along_last(s, maker)


def _leak(s: Structure, covered: set[int], last: Node) -> Node | None:
    """A node outside that uses a full-width value from inside."""
    for index in covered - {last.index}:
        for t in s.graph.by_index[index].outputs:
            shape = s.walk.shapes.get(t)
            if shape and shape[-1] > 1:
                for user, _ in s.graph.users.get(t, []):
                    if user.index not in covered:
                        return user
    return None


def _squared(s: Structure, node: Node | None) -> str | None:
    if node is None:
        return None
    if node.op == "Mul" and node.inputs[0] == node.inputs[1]:
        return node.inputs[0]
    if node.op == "Pow":
        p = s.walk.value(node, 1)
        return node.inputs[0] if p is not None and p.size == 1 and float(p.ravel()[0]) == 2 else None
    return None


def _centred(s: Structure, x: str) -> tuple[bool, str, frozenset[int]]:
    """Is x = u − mean(u) along the last axis? Then u and the nodes, else x itself."""
    covered: set[int] = set()
    node = s.graph.makers.get(_before_casts(s, x, covered))
    if node is not None and node.op == "Sub":
        mean = s.graph.makers.get(_before_casts(s, node.inputs[1], covered))
        if mean is not None and mean.op == "ReduceMean" and _along_last(s, mean):
            u = node.inputs[0]
            if mean.inputs[0] != u:
                u = _before_casts(s, u, covered)
                if _before_casts(s, mean.inputs[0], covered) != u:
                    return False, x, frozenset()
            return True, u, frozenset({node.index, mean.index, *covered})
    return False, x, frozenset()


def _root(s: Structure, node: Node | None, tensor: str) -> tuple[str, bool, set[int]] | None:
    """The tensor after a square root, whether it is already inverted, and the nodes."""
    if node is None:
        return None
    if node.op == "Sqrt":
        return node.outputs[0], False, {node.index}
    if node.op == "Pow" and node.inputs[0] == tensor:
        p = s.walk.value(node, 1)
        if p is not None and float(p.ravel()[0]) in (0.5, -0.5):
            return node.outputs[0], float(p.ravel()[0]) < 0, {node.index}
    return None


def _is_one_over(s: Structure, node: Node, tensor: str) -> bool:
    one = s.walk.value(node, 0) if node.op == "Div" and node.inputs[1] == tensor else None
    return one is not None and one.size == 1 and float(one.ravel()[0]) == 1


def _only_user(s: Structure, tensor: str) -> Node | None:
    users = s.graph.users.get(tensor, [])
    return users[0][0] if len({n.index for n, _ in users}) == 1 else None


def _is_activation(s: Structure, tensor: str) -> bool:
    """Made when the model runs, or fed (values that a cache keeps)."""
    return tensor not in s.graph.weights and tensor not in s.walk.values


def _back_to_product(s: Structure, tensor: str) -> Node | None:
    """From the logits of a Softmax back to the product of two activations that made them."""
    seen, waiting = set(), [tensor]
    while waiting:
        node = s.graph.makers.get(waiting.pop(0))
        if node is None or node.index in seen:
            continue
        seen.add(node.index)
        if node.op in ("MatMul", "Einsum") and all(_is_activation(s, t) for t in node.inputs):
            return node
        if node.op in SCORE_STEPS:
            waiting += [t for t in node.inputs if t]
    return None


def _on_to_product(s: Structure, tensor: str) -> tuple[Node, int] | None:
    """The product that a Softmax ends in, and the input of it that this is."""
    seen, waiting = set(), [tensor]
    while waiting:
        for node, slot in s.graph.users.get(waiting.pop(0), []):
            if node.index in seen:
                continue
            seen.add(node.index)
            if node.op in ("MatMul", "Einsum") and all(_is_activation(s, t) for t in node.inputs):
                return node, slot
            if node.op in WEIGHT_STEPS:
                waiting += node.outputs
    return None
