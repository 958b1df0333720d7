"""How grown parts flow: slots, the classes that must hold the same, and the relations between classes.

A slot is one leaf of one axis of one tensor: (tensor id, axis, position among the leaves). Operators that move or add values put
slots into one class; all others leave a relation between classes. What the classes may hold is decided in `solve`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from .graph import SIZES, Node
from .lines import parse
from .roles import FLOATS, NORM_KINDS, Roles
from .structure import NodeTies, Structure
from .ties import Dim, find

MOVES = {"Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Tile", "Slice", "Split", "Gather", "GatherElements"}
Slot = tuple[str, int, int]


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
        moving = {self.find(c) for (tensor, _, _), c in self.ids.items() if tensor not in self.static}
        return {self.find(c) for c in self.ids.values()} - moving

    @cached_property
    def fed(self) -> set[int]:
        """Classes in which something stands that is fed, and no weight. Ask only when all joins are made."""
        inputs, weights = {v.name for v in self.structure.graph.inputs}, self.structure.graph.weights
        of = {kind: {self.find(c) for (t, _, _), c in self.ids.items() if t in names} for kind, names in (("fed", inputs), ("weights", weights))}
        return of["fed"] - of["weights"]

    @cached_property
    def turning(self) -> set[int]:
        """Classes of the columns of tables that turn positions. Ask only when all joins are made."""
        s = self.structure
        tables = [t for t in s.graph.weights if t in s.dims and is_turning(s, self.static, t)]
        return {c for t in tables for c in self.axis_classes(t, len(s.dims[t]) - 1) if c is not None}

    def axis_classes(self, tensor: str, axis: int) -> list[int | None]:
        """The class of each leaf of an axis, None where the leaf does not grow."""
        leaves = self.structure.axis_leaves(tensor, axis)
        return [self.find(self.id((tensor, axis, k), leaf)) if leaf in self.grown else None for k, leaf in enumerate(leaves)]


def build_flow(roles: Roles, grown: set[Dim]) -> Flow:
    """Put every operator's treatment of the grown dims into classes and relations."""
    s = roles.structure
    flow = Flow(s, frozenset(grown), roles.static, frozenset(i for m in roles.mixtures for i in m.routed))
    covered = {i for norm in roles.norms for i in norm.nodes}
    for norm in roles.norms:
        for axis in range(len(s.dims[norm.x])):
            last = axis == len(s.dims[norm.x]) - 1
            classes = flow.axis_classes(norm.x, axis)
            for c, y in zip(classes, flow.axis_classes(norm.y, axis)):
                if c is not None:
                    flow.relations.append(Relation(norm.kind if last else "f(0)!=0", norm.anchor, (c,), (y,), partial=len(classes) > 1))
    touches = {d: bool(grown & set(s.leaves(d))) for ties in s.nodes.values() for d in ties.names.values()}
    for node in s.graph.nodes:
        ties = s.nodes.get(node.index)
        if ties is not None and node.index in s.read and node.index not in covered and any(touches[d] for d in ties.names.values()):
            _add_node(flow, node, ties)
    _empty_tails(roles, flow)
    return flow


def _empty_tails(roles: Roles, flow: Flow) -> None:
    """What tokens give to further experts of a list is zero: these are not chosen."""
    tails = {c for c, d in enumerate(flow.dim) if d in roles.tails}
    for c in sorted({flow.find(c) for c in tails}):
        flow.relations.append(Relation("sum", roles.mixtures[0].topk, (c,)))


def _add_node(flow: Flow, node: Node, ties: NodeTies) -> None:
    data = [i for i, pattern in enumerate(parse(ties.rule.line).inputs) if pattern != ("_",)]
    for (name, k), (ins, outs) in _places(flow, node, ties).items():
        kind, leaves = ties.rule.treatment(name), flow.structure.leaves(ties.names[name])
        last = k == len(leaves) - 1 and kind in ("rows", "put") and find(ties.names[name]).form[0] == "+" if len(leaves) > 1 else True
        _treat(flow, node, kind, ins, outs, data, not last)


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


def _places(flow: Flow, node: Node, ties: NodeTies) -> dict:
    """(name, leaf) -> ({input slot: class}, [output classes])."""
    s, places = flow.structure, defaultdict(lambda: ({}, []))
    for o in ties.occurrences:
        tensor = (node.outputs if o.output else node.inputs)[o.slot]
        at = 0
        for name in o.names:
            for k, leaf in enumerate(s.leaves(ties.names[name])):
                if leaf in flow.grown:
                    c = flow.id((tensor, o.axis, at + k), leaf)
                    ins, outs = places[name, k]
                    if o.output:
                        outs.append(c)
                    elif o.slot in ins:
                        flow.join(ins[o.slot], c)
                    else:
                        ins[o.slot] = c
            at += len(s.leaves(ties.names[name]))
    return places


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
