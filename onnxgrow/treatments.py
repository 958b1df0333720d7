"""How operators treat grown dims: the classes that they join, and the relations that they leave.

At a node that keeps cells apart each choice of parts is treated by itself; at any other node the cells of a slot become one class.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

from .cells import Choice, choices, cuts_inside
from .flow import Flow, Relation
from .graph import Node
from .idioms import Norm
from .lines import Occurrence, parse
from .roles import NORM_KINDS, Roles
from .structure import NodeTies
from .ties import Dim, find


def build_flow(roles: Roles, grown: set[Dim]) -> Flow:
    """Put every operator's treatment of the grown dims into classes and relations."""
    s = roles.structure
    flow = Flow(s, frozenset(grown), roles.static, frozenset(i for m in roles.mixtures for i in m.routed))
    covered = {i for norm in (*roles.norms, *roles.halves) for i in norm.nodes}
    for norm in (*roles.norms, *roles.halves):
        for axis in range(len(s.dims[norm.x])):
            _add_norm(flow, norm, axis)
    touches = {d: bool(grown & set(s.leaves(d))) for ties in s.nodes.values() for d in ties.names.values()}
    for node in s.graph.nodes:
        ties = s.nodes.get(node.index)
        if ties is not None and node.index in s.read and node.index not in covered and any(touches[d] for d in ties.names.values()):
            _add_node(flow, node, ties)
    _empty_tails(roles, flow)
    return flow


def _add_norm(flow: Flow, norm: Norm, axis: int) -> None:
    """The bare norm; cells that lie along its own axis are mixed."""
    last = len(flow.structure.dims[norm.x]) - 1
    classes = flow.axis_classes(norm.x, axis)
    for before, after in zip(classes, flow.axis_classes(norm.y, axis)):
        for (here, c), (there, y) in itertools.product(before.items(), after.items()):
            if not {part for part in {*here} ^ {*there} if part[0] != last}:
                if norm.kind == "length":  # zero stays zero; along the axis itself nothing else keeps the length
                    flow.relations += [Relation("f(0)=0", norm.anchor, (c,), (y,)), *[Relation("sum", norm.anchor, (c,))] * (axis == last)]
                elif axis == last and norm.gain:
                    _affine_norm(flow, norm, c, y, len(classes) > 1)
                else:
                    flow.relations.append(Relation(norm.kind if axis == last else "f(0)!=0", norm.anchor, (c,), (y,), partial=len(classes) > 1))


def _affine_norm(flow: Flow, norm: Norm, x: int, y: int, partial: bool) -> None:
    """A norm with its gain and offset is the bare norm, a product and a sum."""
    made, scaled = flow.fresh(flow.dim[x]), flow.fresh(flow.dim[x])
    flow.relations.append(Relation(norm.kind, norm.anchor, (x,), (made,), partial=partial))
    along = [[c for c in flow.classes(n.inputs[slot], len(flow.structure.dims[n.inputs[slot]]) - 1) if flow.dim[c] is flow.dim[x]]
             for n, slot in filter(None, (norm.gain, norm.offset))]
    node, slot = norm.gain
    flow.join(*along[0])
    flow.relations.append(Relation("mul", node, (made, along[0][0]), (scaled,), (1 - slot, slot)))
    flow.join(scaled, y, *(c for found in along[1:] for c in found))


def _empty_tails(roles: Roles, flow: Flow) -> None:
    """What tokens give to further experts of a list is zero: these are not chosen."""
    tails = {c for c, d in enumerate(flow.dim) if d in roles.tails}
    for c in sorted({flow.find(c) for c in tails}):
        flow.relations.append(Relation("sum", roles.mixtures[0].topk, (c,)))


def _add_node(flow: Flow, node: Node, ties: NodeTies) -> None:
    data = [i for i, pattern in enumerate(parse(ties.rule.line).inputs) if pattern != ("_",)]
    several, treatment = choices(flow.cells, node, ties), ties.rule.treatment
    passes = [_places(flow, node, ties, choice) for choice in several] if several is not None else []
    inputs = {(place, *sorted(ins)) for places in passes for place, (ins, _) in places.items() if treatment(place[0]) != "keep"}
    if not passes or len(inputs) > len({place for place, *_ in inputs}):  # a part that meets nothing on the other side
        passes = [_places(flow, node, ties, None)]
    seen = set()
    for places in passes:
        for (name, k), (ins, outs) in places.items():
            key = name, k, tuple(ins.items()), tuple(outs)
            if key not in seen:
                _treat(flow, node, treatment(name), ins, outs, data, _is_partial(flow, ties, name, k))
            seen.add(key)


def _is_partial(flow: Flow, ties: NodeTies, name: str, k: int) -> bool:
    """Is a leaf only a part of its dim? The last summand is none where entries are found by their number: it grows at the end of the axis."""
    count = len(flow.structure.leaves(ties.names[name]))
    at_end = count > 1 and k == count - 1 and find(ties.names[name]).form[0] == "+"
    return count > 1 and not (at_end and ties.rule.treatment(name) in ("rows", "put"))


def _places(flow: Flow, node: Node, ties: NodeTies, choice: Choice | None) -> dict:
    """(name, leaf) -> ({input slot: class}, [output classes]), at one choice of cells; without one all cells are joined."""
    s, places = flow.structure, defaultdict(lambda: ({}, []))
    for o in ties.occurrences:
        tensor = (node.outputs if o.output else node.inputs)[o.slot]
        at, inside = 0, cuts_inside(s, node, ties, o)
        for name in o.names:
            for k, leaf in enumerate(s.leaves(ties.names[name])):
                if leaf in flow.grown and (choice is None or choice.has(o.output, o.slot)):
                    c = _class_of(flow, tensor, o, leaf) if inside else _class_at(flow, tensor, o, at + k, leaf, choice)
                    ins, outs = places[name, k]
                    if o.output:
                        outs.append(c)
                    elif o.slot in ins:
                        flow.join(ins[o.slot], c)
                    else:
                        ins[o.slot] = c
            at += len(s.leaves(ties.names[name]))
    return places


def _class_at(flow: Flow, tensor: str, o: Occurrence, k: int, leaf: Dim, choice: Choice | None) -> int:
    if choice is not None:
        return flow.id((tensor, o.axis, k, choice.cell(o.output, o.slot, flow.cells.sums(tensor, o.axis, k))), leaf)
    found = [flow.id((tensor, o.axis, k, cell), leaf) for cell in flow.cells.of(tensor, o.axis, k)]
    flow.join(*found)
    return found[0]


def _class_of(flow: Flow, tensor: str, o: Occurrence, leaf: Dim) -> int:
    """The class of a leaf wherever it stands along an axis."""
    places = [k for k, other in enumerate(flow.structure.axis_leaves(tensor, o.axis)) if other is leaf]
    found = [flow.id((tensor, o.axis, k, cell), leaf) for k in places for cell in flow.cells.of(tensor, o.axis, k)]
    flow.join(*found)
    return found[0]


def _treat(flow: Flow, node: Node, kind: str, ins: dict[int, int], outs: list[int], data: list[int], partial: bool) -> None:
    def relate(kind: str, slots) -> None:
        flow.relations.append(Relation(kind, node, tuple(ins[i] for i in slots), tuple(outs), tuple(slots), partial))

    if kind == "ignore" or not (ins or outs):
        return
    if kind in NORM_KINDS:
        _fused_norm(flow, node, kind, ins, outs, partial)
    elif kind == "refuse":
        relate(kind, ins)
    elif not ins:
        relate(kind if kind in ("alike", "zeros", "put", "one hot") else "given", ())
    elif kind == "keep" or (kind == "mul" and len(ins) == 1) or (kind == "add" and len(ins) == len(data)) or (kind == "divide" and 1 not in ins):
        flow.join(*ins.values(), *outs)
    elif kind in ("add", "shift"):
        flow.join(*ins.values())
        relate("shift", list(ins)[:1])
    elif kind == "divide":
        relate("copies only", ins)
    elif kind == "select":
        _select(flow, ins, outs, relate)
    else:
        relate(kind, ins)


def _select(flow: Flow, ins: dict[int, int], outs: list[int], relate) -> None:
    """Where(condition, a, b)."""
    values = [i for i in ins if i != 0]
    if len(values) == 2 and 0 in ins:
        relate("select", ins)
    elif values and 0 in ins:
        relate("f(0)!=0", ins)
    elif len(values) == 2:
        flow.join(*(ins[i] for i in values), *outs)
    elif values:
        relate("shift", values)
    else:
        relate("f(0)!=0", ins)


def _fused_norm(flow: Flow, node: Node, kind: str, ins: dict[int, int], outs: list[int], partial: bool) -> None:
    """A norm operator with gain and offset is the bare norm, a product and a sum."""
    d = flow.dim[ins[0]]
    made = flow.fresh(d)
    flow.relations.append(Relation(kind, node, (ins[0],), (made,), (0,), partial))
    if 1 in ins:
        scaled = flow.fresh(d)
        flow.relations.append(Relation("mul", node, (made, ins[1]), (scaled,), (0, 1)))
        made = scaled
    flow.join(made, *([ins[2]] if 2 in ins else []), *outs)
