"""Experts that are a list: each has maps of its own in the graph, is picked out by its number, and is added to a sum.

Every expert reads its weight for each token by its number (a Slice, a Gather, an Equal). What depends on one number only belongs to that
expert, up to the sum in which the experts meet. All must be alike: the same operators, weights of the same shapes, numbers that
go up by one step. Then a further expert is one more of them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from .graph import Node
from .mixture import MOVES, Mixture
from .roles import FLOATS
from .structure import Structure
from .ties import find, leaves

MEETS = ("Add", "Sum")


@dataclass(frozen=True)
class Unlike:
    """Why a list of experts cannot be continued."""

    reason: str
    node: Node


@dataclass
class Part:
    """One node of the body, in every expert, and what its inputs are.

    Attributes:
        inputs: by slot: "shared" (the same in all experts, or made outside), "inner" (made in the body), "weight", or the
            numbers of the first expert and their step from one expert to the next.
    """

    nodes: tuple[Node, ...]
    inputs: dict[int, str | tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class ExpertList:
    """The experts of one mixture: parts in the order of the graph, the tensor each expert gives to the sum, and the sum's name."""

    parts: list[Part]
    gives: tuple[str, ...]
    total: str


def find_taps(s: Structure, m: Mixture) -> dict[int, list[Node]]:
    """Expert number -> nodes that pick it out of what derives from the chosen indices."""
    taps = defaultdict(list)
    named = {id(leaf) for d in (m.dim, *m.named) for leaf in leaves(d)}

    def visit(node: Node, slot: int, tensor: str) -> bool:
        number = _number(s, node, slot, named)
        if number is not None:
            taps[number].append(node)
            return False
        return (node.op in MOVES and slot == 0) or (node.op in ("ScatterElements", "OneHot") and tensor in m.numbers)
    s.graph.spread(m.numbers, visit)
    return dict(taps)


def _number(s: Structure, node: Node, slot: int, named: set[int]) -> int | None:
    """The one expert that a node asks for, or None."""
    def value(i: int):
        found = s.walk.value(node, i) if i < len(node.inputs) else None
        return int(found.ravel()[0]) if found is not None and found.size == 1 else None
    if node.op == "Equal":
        return value(1 - slot)
    dims, made = s.dims.get(node.inputs[0], []), s.walk.shapes.get(node.outputs[0])
    if node.op == "Slice" and slot == 0 and made and value(3) is not None and len(node.inputs) > 2:
        axis = value(3) % len(dims)
        return value(1) if made[axis] == 1 and {id(leaf) for leaf in leaves(dims[axis])} <= named else None
    if node.op == "Gather" and slot == 0 and dims:
        axis = node.attrs.get("axis", 0)
        return value(1) if {id(leaf) for leaf in leaves(dims[axis])} <= named else None
    return None


def find_list(s: Structure, m: Mixture) -> ExpertList | Unlike:
    """The experts of a mixture as a list, or why it cannot be continued."""
    taps, count = find_taps(s, m), m.dim.size
    if sorted(taps) != list(range(count)):
        return Unlike(f"of {count} experts, {len(taps)} are picked by number, in a Slice, a Gather or an Equal", m.topk)
    met = _meet(s, taps)
    if isinstance(met, Unlike):
        return met
    gives, last = met
    if sorted(gives) != list(range(count)):
        return Unlike("not every expert is added to the sum in which they meet", last)
    return _align(s, [gives[e] for e in range(count)], last, {t.index for nodes in taps.values() for t in nodes})


def _meet(s: Structure, taps: dict[int, list[Node]]) -> tuple[dict[int, str], Node] | Unlike:
    """What each expert gives to the sum, and the node that ends it."""
    owner: dict[str, int] = {}  # tensor -> its expert; -1 where experts have met
    of = {node.index: e for e, nodes in taps.items() for node in nodes}
    gives: dict[int, str] = {}
    last = None
    for node in s.graph.nodes:
        found = {owner[t] for t in node.inputs if t in owner} | ({of[node.index]} if node.index in of else set())
        if len(found) > 1:
            if node.op not in MEETS:
                return Unlike(f"experts meet in {node.op}, and not in a sum", node)
            for t in node.inputs:
                e = owner.get(t, -1)
                if gives.setdefault(e, t) != t and e >= 0:
                    return Unlike(f"expert {e} is added twice", node)
            last = node
            owner[node.outputs[0]] = -1
        elif found and found != {-1}:
            owner |= dict.fromkeys((o for o in node.outputs if o), found.pop())
    gives.pop(-1, None)
    return (gives, last) if last is not None else Unlike("the experts never meet in a sum", next(iter(taps[0])))


def _align(s: Structure, gives: list[str], last: Node, taps: set[int]) -> ExpertList | Unlike:
    """Read all experts side by side, from what they give back to what they share."""
    makers = s.graph.makers
    ops = [makers[t].op for t in gives]
    if ops[0] != ops[1] and ops[0] == "Add":  # the first expert is added to a zero that the sum began with
        gives[0] = next((t for t in makers[gives[0]].inputs if t in makers and makers[t].op == ops[1]), gives[0])
    parts: dict[int, Part] = {}
    waiting = [tuple(makers[t] for t in gives)]
    while waiting:
        nodes = waiting.pop()
        if nodes[0].index in parts:
            continue
        if len({(n.op, n.domain, len(n.inputs), repr(sorted(n.attrs.items(), key=str))) for n in nodes}) > 1:
            return Unlike("experts are not alike here", nodes[0])
        part = parts[nodes[0].index] = Part(nodes)
        for slot in range(len(nodes[0].inputs)):
            kind = _input(s, [n.inputs[slot] for n in nodes])
            if isinstance(kind, str) and kind == "unlike":
                return Unlike(f"input {slot} is not alike in all experts", nodes[0])
            if isinstance(kind, str) and kind == "inner":
                waiting.append(tuple(makers[n.inputs[slot]] for n in nodes))
            part.inputs[slot] = kind
    return ExpertList([parts[i] for i in sorted(parts)], tuple(gives), last.outputs[0])


def _input(s: Structure, tensors: list[str]) -> str | tuple[np.ndarray, np.ndarray]:
    """What one input is, seen in all experts (see `Part`)."""
    graph = s.graph
    if not tensors[0] or len(set(tensors)) == 1 or len({graph.weights.get(t, t) for t in tensors}) == 1:
        return "shared" if len({bool(t) for t in tensors}) == 1 else "unlike"
    if all(t in graph.weights for t in tensors):
        return _constants(s, tensors)
    return "inner" if all(t in graph.makers for t in tensors) else "unlike"


def _constants(s: Structure, tensors: list[str]) -> str | tuple[np.ndarray, np.ndarray]:
    graph = s.graph
    if len({(graph.weight_shape(t), graph.weight_type(t)) for t in tensors}) > 1:
        return "unlike"
    if graph.weight_type(tensors[0]) in FLOATS and np.prod(graph.weight_shape(tensors[0])) > 1:
        return "weight"
    values = [np.asarray(graph.array(t)) for t in tensors]
    if all(np.array_equal(v, values[0]) for v in values):
        return "shared"
    if values[0].dtype.kind not in "iu":
        return "weight"
    step = values[1] - values[0]
    return (values[0], step) if all(np.array_equal(v, values[0] + e * step) for e, v in enumerate(values)) else "unlike"


def is_listed(s: Structure, m: Mixture) -> bool:
    """Is there no weight that holds all experts?"""
    named = {id(leaf) for d in m.named for leaf in leaves(find(d))}
    weights = [t for t in s.graph.weights if len(s.dims.get(t, ())) > 1 and s.graph.weight_type(t) in FLOATS]
    return not any(id(leaf) in named for t in weights for leaf in leaves(s.dims[t][0]))
