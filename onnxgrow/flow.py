"""How grown parts flow: slots, the classes that must hold the same, and the relations between classes.

A slot is one leaf of one axis of one tensor, in one cell (see `cells`): (tensor id, axis, position among the leaves, cell).
Operators that move or add values put slots into one class; all others leave a relation between classes. What the classes may hold is decided in `solve`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from .cells import Cell, Cells, Choice, choices
from .graph import Node
from .idioms import Norm
from .lines import Occurrence, parse
from .roles import FLOATS, NORM_KINDS, Roles, static_tensors
from .structure import SIZES, NodeTies, Structure
from .ties import Dim, find

MOVES = {"Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Tile", "Slice", "Split", "Gather", "GatherElements"}
Slot = tuple[str, int, int, Cell]


@dataclass(frozen=True)
class Relation:
    """One operator's claim about the grown part along one dim: `kind` is a treatment of `rulebook.TREATMENTS` or "given"."""

    kind: str
    node: Node
    ins: tuple[int, ...]
    outs: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()  # input slots of the node that `ins` stand for
    partial: bool = False  # the axis has other factors or parts beside the dim


@dataclass
class Flow:
    """Classes and relations of all grown dims of a structure."""

    structure: Structure
    grown: frozenset[Dim]
    static: set[str]
    routed: frozenset[int] = frozenset()  # nodes that see new experts only as a router's lowest scores
    ids: dict[Slot, int] = field(default_factory=dict)
    parent: list[int] = field(default_factory=list)
    dim: list[Dim] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)

    def id(self, slot: Slot, d: Dim) -> int:
        if slot not in self.ids:
            self.ids[slot] = self.fresh(d)
        return self.ids[slot]

    def fresh(self, d: Dim) -> int:
        self.parent.append(len(self.parent))
        self.dim.append(d)
        return len(self.parent) - 1

    def find(self, c: int) -> int:
        while self.parent[c] != c:
            self.parent[c] = self.parent[self.parent[c]]
            c = self.parent[c]
        return c

    def join(self, *classes: int) -> None:
        for c in classes[1:]:
            self.parent[self.find(c)] = self.find(classes[0])

    @cached_property
    def weight_classes(self) -> set[int]:
        """Classes in which only weights stand, or what is made from weights alone. Ask only when all joins are made."""
        moving = {self.find(c) for (tensor, *_), c in self.ids.items() if tensor not in self.static}
        return {self.find(c) for c in self.ids.values()} - moving

    @cached_property
    def cells(self) -> Cells:
        return Cells(self.structure, self.grown, self.static)

    @cached_property
    def fed(self) -> set[int]:
        """Classes in which something stands that is fed, and no weight. Ask only when all joins are made."""
        inputs, weights = {v.name for v in self.structure.graph.inputs}, self.structure.graph.weights
        of = {kind: {self.find(c) for (t, *_), c in self.ids.items() if t in names} for kind, names in (("fed", inputs), ("weights", weights))}
        return of["fed"] - of["weights"]

    @cached_property
    def turning(self) -> set[int]:
        """Classes of the columns of tables that turn positions. Ask only when all joins are made."""
        s = self.structure
        tables = [t for t in s.graph.weights if t in s.dims and is_turning(s, self.static, t)]
        return {c for t in tables for c in self.classes(t, len(s.dims[t]) - 1)}

    def axis_classes(self, tensor: str, axis: int) -> list[dict[Cell, int]]:
        """For each leaf of an axis the class of each cell; empty where the leaf does not grow."""
        leaves = self.structure.axis_leaves(tensor, axis)
        return [{cell: self.find(self.id((tensor, axis, k, cell), leaf)) for cell in self.cells.of(tensor, axis, k)} if leaf in self.grown else {}
                for k, leaf in enumerate(leaves)]

    def classes(self, tensor: str, axis: int) -> list[int]:
        """Every class along an axis."""
        return [c for cells in self.axis_classes(tensor, axis) for c in cells.values()]

    @cached_property
    def one_fill(self) -> list[tuple[int, ...]]:
        """Classes that must be filled alike since one map of an axis says it for all of them.

        The map of an axis can tell cells apart by a factor that is major to the leaf; by other axes it cannot. Ask only when all joins are made.
        """
        out = []
        for tensor in (*self.structure.graph.weights, *(v.name for v in self.structure.graph.inputs), *self.structure.graph.outputs):
            for axis in range(len(self.structure.dims.get(tensor, ()))):
                for k, cells in enumerate(self.axis_classes(tensor, axis)):
                    alike = defaultdict(list)
                    for cell, c in cells.items():
                        alike[tuple(part for part in cell if part[0] == axis and part[1] < k)].append(c)
                    out += [tuple(found) for found in alike.values() if len(set(found)) > 1]
        return out


def build_flow(roles: Roles, grown: set[Dim]) -> Flow:
    """Put every operator's treatment of the grown dims into classes and relations."""
    s = roles.structure
    flow = Flow(s, frozenset(grown), static_tensors(s), frozenset(i for m in roles.mixtures for i in m.routed))
    covered = {i for norm in roles.norms for i in norm.nodes}
    for norm in roles.norms:
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
                flow.relations.append(Relation(norm.kind if axis == last else "f(0)!=0", norm.anchor, (c,), (y,), partial=len(classes) > 1))


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
    at_end = k == count - 1 and ties.rule.treatment(name) in ("rows", "put") and find(ties.names[name]).form[0] == "+" if count > 1 else True
    return not at_end


def is_turning(s: Structure, static: set[str], table: str) -> bool:
    """A table whose looked-up entries are used as factors of activations, entry by entry, and for nothing else."""
    if sum(d.size > 1 for d in s.dims[table]) < 2 or s.graph.weight_type(table) not in FLOATS:
        return False
    waiting, factors = [table], 0
    while waiting:
        tensor = waiting.pop()
        for node, slot in s.graph.users.get(tensor, []):
            if node.index not in s.read or node.op in SIZES:
                continue
            if node.op in MOVES and slot == 0:
                waiting += node.outputs
            elif node.op == "Mul" and node.inputs[1 - slot] not in static and find(s.dims[node.inputs[1 - slot]][-1]) is find(s.dims[tensor][-1]):
                factors += 1
            else:
                return False
    return factors > 0


def _places(flow: Flow, node: Node, ties: NodeTies, choice: Choice | None) -> dict:
    """(name, leaf) -> ({input slot: class}, [output classes]), at one choice of cells; without one all cells are joined."""
    s, places = flow.structure, defaultdict(lambda: ({}, []))
    for o in ties.occurrences:
        tensor = (node.outputs if o.output else node.inputs)[o.slot]
        at = 0
        for name in o.names:
            for k, leaf in enumerate(s.leaves(ties.names[name])):
                if leaf in flow.grown and (choice is None or choice.has(o.output, o.slot)):
                    c = _class_at(flow, tensor, o, at + k, leaf, choice)
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
