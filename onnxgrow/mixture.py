"""Mixtures of experts, found from the graph: a TopK over scores that a linear map wrote, and every axis that its indices name.

The scores are followed back from the TopK to the map through steps that keep their order (a softmax, a sigmoid, an offset). The indices
are followed on to the axes on which they name entries: those of the experts' weights, or of the weights that a token gives to experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .graph import Node
from .structure import Structure
from .ties import Dim, find, summands

MOVES = {"Cast", "Identity", "Dropout", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Flatten", "Expand", "Split", "Slice", "Gather"}
LEAST = 0.1  # the factor that may be left of a low score
RISING = {"Sigmoid", "Softplus", "Sqrt", "Tanh"}  # what is lower before is not higher afterwards
NAMED = {"ScatterElements": 0, "Scatter": 0, "GatherElements": 0, "Gather": 0}  # operators whose indices name entries along `axis`


@dataclass(frozen=True)
class Scores:
    """How scores come from a router's map.

    Attributes:
        root: the linear map.
        logits: what it wrote.
        offsets: (node, slot) of vectors that are added on the way, from the map on.
        first: whether the first of them meets the map's own result, before anything that is not linear.
        nodes: indices of the nodes on the way that see all experts: the softmax.
    """

    root: Node
    logits: str
    offsets: tuple[tuple[Node, int], ...]
    first: bool
    nodes: frozenset[int]


@dataclass(frozen=True)
class Mixture:
    """One router with its experts.

    Attributes:
        topk: the node that chooses.
        scores: where its scores come from.
        dim: the axis of the scores.
        named: dims on which the chosen indices name entries: weights of the experts, or those that a token gives to them.
        numbers: tensors that derive from the indices or name experts by their place, for experts that are a list.
        routed: nodes that see new experts only as the lowest scores, or as numbers that were not chosen.
        counts: weight tensor ids that hold 0, 1, 2 ..., with which the indices are compared.
        problem: why experts cannot be added, or None.
    """

    topk: Node
    scores: Scores
    dim: Dim
    named: tuple[Dim, ...]
    numbers: frozenset[str]
    routed: frozenset[int]
    counts: tuple[str, ...] = ()
    problem: str | None = None


def find_mixtures(s: Structure, static: set[str], maps: dict[int, str]) -> list[Mixture]:
    """Every TopK whose scores come from one of the linear maps (node index -> weight)."""
    found = []
    for node in s.graph.nodes:
        dims = s.dims.get(node.inputs[0]) if node.op == "TopK" else None
        scores = follow_back(s, static, maps, node.inputs[0]) if dims and node.attrs.get("largest", 1) else None
        if isinstance(scores, Scores):
            found.append(_mixture(s, static, maps, node, scores, find(dims[node.attrs.get("axis", -1)])))
    return found


def _mixture(s: Structure, static: set[str], maps: dict[int, str], topk: Node, scores: Scores, dim: Dim) -> Mixture:
    named, numbers = follow_indices(s, topk.outputs[1], dim.size)
    compared = [(n, slot) for t in numbers for n, slot in s.graph.users.get(t, []) if n.op == "Equal" and _counted(s, n, slot) is not None]
    routed, problem = {topk.index, *(n.index for n, _ in compared)}, None
    counts = tuple(n.inputs[1 - slot] for n, slot in compared if n.inputs[1 - slot] in s.graph.weights)
    for node in s.graph.nodes:  # every softmax over these scores, also beside the way to the TopK
        dims = s.dims.get(node.inputs[0]) if node.op == "Softmax" and node.index in s.nodes else None
        if dims and find(dims[node.attrs.get("axis", -1)]) is dim:
            other = follow_back(s, static, maps, node.inputs[0])
            if isinstance(other, Scores) and other.root is scores.root:
                routed.add(node.index)
    if dim.form is not None:
        problem = "its experts come in groups"
    return Mixture(topk, scores, dim, tuple(named), frozenset(numbers), frozenset(routed), counts, problem)


def follow_back(s: Structure, static: set[str], maps: dict[int, str], tensor: str) -> Scores | Node | None:
    """From scores to the linear map they come from; the node that stops the way, None where no node makes them."""
    offsets: list[tuple[Node, int]] = []
    nodes: set[int] = set()
    first, scale = False, 1.0
    while True:
        node = s.graph.makers.get(tensor)
        if node is None:
            return None
        if node.index in maps:
            offset = node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2]
            found = [(node, 2)] if offset else []
            return Scores(node, node.outputs[0], tuple(found + offsets[::-1]), bool(offset) or first, frozenset(nodes))
        if node.op == "Softmax" or node.op in RISING:
            nodes |= {node.index} if node.op == "Softmax" else set()
            first, tensor = False, node.inputs[0]
        elif node.op == "Add" and any(t in static for t in node.inputs):
            slot = 0 if node.inputs[0] in static else 1
            offsets.append((node, slot))
            first, tensor = True, node.inputs[1 - slot]
        elif node.op in ("Cast", "Identity", "Dropout", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Flatten"):
            tensor = node.inputs[0]
        elif node.op in ("Mul", "Div") and (slot := _positive(s, node)) is not None:
            factor = float(s.walk.value(node, slot).ravel()[0])
            scale *= factor if node.op == "Mul" else 1 / factor
            if scale < LEAST:
                return node
            tensor = node.inputs[1 - slot]
        else:
            return node


def _positive(s: Structure, node: Node) -> int | None:
    """The slot of a factor or divisor that is one positive number."""
    for slot in (1,) if node.op == "Div" else (0, 1):
        value = s.walk.value(node, slot)
        if value is not None and value.size == 1 and float(value.ravel()[0]) > 0:
            return slot
    return None


def follow_indices(s: Structure, indices: str, size: int) -> tuple[list[Dim], set[str]]:
    """Dims on which indices name entries, and all tensors that carry these numbers or what they select."""
    named: list[Dim] = []

    def visit(node: Node, slot: int, _: str) -> bool:
        moves = node.op in MOVES and slot == 0
        if not moves and (d := _named_by(s, node, slot)) is not None and d.size == size and not any(d is x for x in named):
            named.append(d)
        return moves
    carriers = s.graph.spread([indices], visit)
    return named, carriers


def _named_by(s: Structure, node: Node, slot: int) -> Dim | None:
    """The dim on which an operator finds entries by the numbers in one of its inputs."""
    axis = node.attrs.get("axis", -1 if node.op == "OneHot" else 0)
    if node.op in NAMED and slot == 1:
        dims = s.dims.get(node.inputs[0])
    elif node.op == "OneHot" and slot == 0:
        dims = s.dims.get(node.outputs[0])
    elif node.op == "GatherND" and slot == 1 and not node.attrs.get("batch_dims", 0) and s.walk.shapes[node.inputs[1]][-1] == 1:
        dims, axis = s.dims.get(node.inputs[0]), 0
    elif node.op == "Equal":
        return _counted(s, node, slot)
    else:
        return None
    return find(dims[axis]) if dims else None


def _counted(s: Structure, node: Node, slot: int) -> Dim | None:
    """The axis of 0, 1, 2 ... with which numbers are compared."""
    value = s.walk.value(node, 1 - slot)
    value = s.graph.array(node.inputs[1 - slot]) if value is None and node.inputs[1 - slot] in s.graph.weights else value
    dims = s.dims.get(node.inputs[1 - slot])
    if value is None or not dims or value.size < 2 or not np.array_equal(value.ravel(), np.arange(value.size)):
        return None
    return next((find(d) for d in dims if d.size == value.size), None)


def is_list(d: Dim) -> bool:
    """Is an axis cut into single entries, one for each expert of a list?"""
    d = find(d)
    return d.form is not None and d.form[0] == "+" and all(p.size <= 1 for p in summands(d))


def name_experts(roles) -> None:
    """Give `roles` its mixtures and, where it has some, the role `experts`: axes of scores, and those that chosen indices name."""
    s = roles.structure
    taken = {leaf for r in roles.roles.values() for d in r.instances for leaf in s.leaves(d)}
    for m in find_mixtures(s, roles.static, {lin.node.index: lin.weight for lin in roles.linears}):
        if m.dim in taken or not (m.named or _compared(s, m)):
            continue
        roles.mixtures.append(m)
        for d in dict.fromkeys((m.dim, *m.named)):
            if is_list(d):
                roles.tails += [t for t in [_tail(s, d)] if t not in roles.tails]
            else:
                roles.add("experts", d)


def _compared(s: Structure, m: Mixture) -> bool:
    """Are the chosen indices compared with every number, one by one?"""
    found = {int(v.ravel()[0]) for t in m.numbers for n, slot in s.graph.users.get(t, []) if n.op == "Equal"
             and (v := s.walk.value(n, 1 - slot)) is not None and v.size == 1}
    return found >= set(range(m.dim.size))


def _tail(s: Structure, d: Dim) -> Dim:
    """An axis that is cut into single entries can grow behind the last one: by a part that has no entries yet."""
    parts = find(d).form[1]
    if find(parts[-1]).size:
        parts.append(Dim(0))
        s.leaf_cache.clear()
    return find(parts[-1])
