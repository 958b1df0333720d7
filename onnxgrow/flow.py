"""How grown parts flow: slots, the classes that must hold the same, and the relations between classes.

A slot is one leaf of one axis of one tensor, in one cell (see `cells`): (tensor id, axis, position among the leaves, cell).
Operators that move or add values put slots into one class; all others leave a relation between classes (see `treatments`).
What the classes may hold is decided in `solve`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from .cells import Cell, Cells
from .graph import SIZES, Node
from .roles import FLOATS
from .structure import Structure
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
    def held(self) -> set[int]:
        """Classes in which a weight stands, or something that is fed. Ask only when all joins are made."""
        given = {v.name for v in self.structure.graph.inputs} | self.structure.graph.weights.keys()
        return {self.find(c) for (t, *_), c in self.ids.items() if t in given}

    @cached_property
    def turning(self) -> set[int]:
        """Classes of the columns of tables that turn positions. Ask only when all joins are made."""
        s = self.structure
        tables = [t for t in s.graph.weights if t in s.dims and is_turning(s, self.static, t)]
        return {c for t in tables for c in self.classes(t, len(s.dims[t]) - 1)}

    def axis_classes(self, tensor: str, axis: int) -> list[dict[Cell, int]]:
        """For each leaf of an axis the class of each cell; empty where the leaf does not grow."""
        return [{cell: self.find(self.id((tensor, axis, k, cell), leaf)) for cell in self.cells.of(tensor, axis, k) if leaf in self.grown}
                for k, leaf in enumerate(self.structure.axis_leaves(tensor, axis))]

    def classes(self, tensor: str, axis: int) -> list[int]:
        """Every class along an axis."""
        return [c for cells in self.axis_classes(tensor, axis) for c in cells.values()]

    @cached_property
    def one_fill(self) -> list[tuple[int, ...]]:
        """Classes that must be filled alike since one map of an axis says it for all of them.

        The map of an axis can tell cells apart by a factor that is major to the leaf; by other axes it cannot.
        Ask only when all joins are made.
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


def _last(s: Structure, tensor: str) -> Dim | None:
    """The dim of the last axis, where there is one and it is known."""
    dims = s.dims.get(tensor)
    return find(dims[-1]) if dims else None


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
            elif node.op == "Mul" and node.inputs[1 - slot] not in static and _last(s, node.inputs[1 - slot]) is _last(s, tensor) is not None:
                factors += 1
            else:
                return False
    return factors > 0
