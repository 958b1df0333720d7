"""Cells: parts of a sum that one grown dim serves together, and that the graph takes apart.

One projection may make queries, keys and values as `(1 + 1 + 1)·heads·head_dim`: a product whose major factor is a sum. Its
head_dim is one leaf, and yet new entries of keys are zero while those of queries are free. So a slot has a class for each part
of such a sum, its *cells*. A sum tells cells apart only if a weight has it beside the grown leaf, and something computed from
what is fed has both, too. Everywhere else a slot has a single cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod

from .graph import Node
from .lines import Occurrence
from .structure import NodeTies, Structure
from .ties import Dim, factors, find, summands

Place = tuple  # (name, leaf of the name's dim), or one that no name of the rule covers
Cell = tuple[tuple[int, int, int], ...]  # the chosen parts: (axis, first leaf of the sum, part)
APART = {"keep", "add", "mul", "divide", "shift", "select", "f(0)=0", "f(0)!=0", "copies only", "scaled", "ignore"}  # treatments that mix no entries
MOST = 64  # combinations of parts at one node; beyond, cells are joined


@dataclass(frozen=True)
class Sum:
    """A factor of an axis that is a sum: where its parts begin, as leaves of that axis."""

    axis: int
    starts: tuple[int, ...]
    parts: tuple[Dim, ...]


@dataclass
class Cells:
    """Which cells each slot has."""

    s: Structure
    grown: frozenset[Dim]
    static: set[str]
    cache: dict[tuple[str, int, int], tuple[Sum, ...]] = field(default_factory=dict)

    def sums(self, tensor: str, axis: int, k: int) -> tuple[Sum, ...]:
        """The sums that tell the cells of a slot apart."""
        if (tensor, axis, k) not in self.cache:
            d = find(self.s.axis_leaves(tensor, axis)[k])
            parts = self.parts.get(d, ())
            found = self._beside(tensor, axis, k) if parts else ()
            self.cache[tensor, axis, k] = tuple(x for x in found if all(p in parts for p in x.parts))
        return self.cache[tensor, axis, k]

    def of(self, tensor: str, axis: int, k: int) -> list[Cell]:
        """All cells of a slot; a single empty one is the rule."""
        sums = self.sums(tensor, axis, k)
        return [tuple((x.axis, x.starts[0], i) for x, i in zip(sums, chosen)) for chosen in product(*(range(len(x.parts)) for x in sums))]

    def across(self, tensor: str) -> list[Sum]:
        """The sums that tell cells of a slot on another axis apart."""
        found = {x for axis in range(len(self.s.dims[tensor])) for k, d in enumerate(self.s.axis_leaves(tensor, axis)) if d in self.grown
                 for x in self.sums(tensor, axis, k) if x.axis != axis}
        return sorted(found, key=lambda x: (x.axis, x.starts))

    @cached_property
    def parts(self) -> dict[Dim, set[Dim]]:
        """grown leaf -> the parts of all sums that tell its cells apart."""
        weights = self._met(self.s.graph.weights, self.grown, _can_differ)
        moving = self._met(self.s.dims.keys() - self.static, set(weights)) if weights else {}
        return {d: {p for parts in found & moving.get(d, set()) for p in parts} for d, found in weights.items()}

    def _met(self, tensors: Iterable[str], leaves: Set[Dim], keep=lambda *_: True) -> dict[Dim, set[tuple[Dim, ...]]]:
        """leaf -> the sums of distinct parts that stand beside it."""
        out: dict[Dim, set] = defaultdict(set)
        for t in tensors:
            for axis in range(len(self.s.dims.get(t, ()))):
                for k, leaf in enumerate(self.s.axis_leaves(t, axis)):
                    if leaf in leaves:
                        out[leaf] |= {x.parts for x in self._beside(t, axis, k) if len(set(x.parts)) == len(x.parts) and keep(x, axis, k)}
        return {leaf: found for leaf, found in out.items() if found}

    def _beside(self, tensor: str, axis: int, k: int) -> tuple[Sum, ...]:
        dims = self.s.dims[tensor]
        other = [x for a, d in enumerate(dims) if a != axis for x in self._factors(d, a, 0)]
        return tuple(other + list(self._along(dims[axis], axis, 0, k)))

    def _factors(self, d: Dim, axis: int, at: int) -> Iterator[Sum]:
        for f in factors(d):
            if len(summands(f)) > 1:
                yield self._sum(f, axis, at)
            at += len(self.s.leaves(f))

    def _sum(self, d: Dim, axis: int, at: int) -> Sum:
        starts = []
        for part in summands(d):
            starts.append(at)
            at += len(self.s.leaves(part))
        return Sum(axis, tuple(starts), tuple(summands(d)))

    def _along(self, d: Dim, axis: int, at: int, k: int) -> Iterator[Sum]:
        """Sums along the same axis that are factors beside leaf k."""
        for f in factors(d):
            size = len(self.s.leaves(f))
            if not at <= k < at + size:
                yield from self._factors(f, axis, at)
            elif len(summands(f)) > 1:
                x = self._sum(f, axis, at)
                start, part = next((start, part) for start, part in zip(x.starts[::-1], x.parts[::-1]) if start <= k)
                yield from self._along(part, axis, start, k)
            at += size


def _can_differ(x: Sum, axis: int, k: int) -> bool:
    """In a weight: a sum that is major to the leaf along its axis, or a stack along another axis."""
    return x.starts[0] < k if x.axis == axis else all(p.size == 1 for p in x.parts)


def choices(cells: Cells, node: Node, ties: NodeTies) -> Iterator["Choice"] | None:
    """One choice of parts after the other, those left out whose values do not pass; None if the node mixes what the cells tell apart."""
    if any(cuts_inside(cells.s, node, ties, o) for o in ties.occurrences):
        return None
    uses = _uses(cells, node, ties)
    if uses is None:
        return iter([Choice({}, frozenset())])
    variables: list[set[Place]] = []
    for use in uses.values():
        for alternatives in use.sums.values():
            met = [v for v in variables if v & set(alternatives)]
            variables = [v for v in variables if v not in met] + [set(alternatives).union(*met)]
    named = {name for v in variables for name, _ in v if name is not None}
    if any(ties.rule.treatment(name) not in APART for name in named) or prod(map(len, variables)) > MOST:
        return None
    for use in uses.values():
        use.variables = [v for v in variables if v & use.places]
        if any(v & set(parts) and v & use.places - set(parts) for v in use.variables for parts in use.sums.values()):
            return None
    passing = (sorted((p for p in v if p[0] is None or ties.rule.treatment(p[0]) != "ignore"), key=str) for v in variables)
    return (Choice(uses, frozenset(chosen)) for chosen in product(*passing))


def cuts_inside(s: Structure, node: Node, ties: NodeTies, o: Occurrence) -> bool:
    """Does a sum of products stand on an axis that is a product of a sum, so that its inner factors have one slot there for all parts?"""
    tensor = (node.outputs if o.output else node.inputs)[o.slot]
    return s.axis_leaves(tensor, o.axis) != tuple(leaf for name in o.names for leaf in s.leaves(ties.names[name]))


@dataclass
class Use:
    """One tensor at a node: the places of its leaves, and for each of its sums the places where the parts begin."""

    places: set[Place] = field(default_factory=set)
    sums: dict[tuple[int, int], tuple[Place, ...]] = field(default_factory=dict)
    variables: list[set[Place]] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """One part of each sum at a node."""

    uses: dict[tuple[bool, int], Use]
    chosen: frozenset[Place]

    def has(self, output: bool, slot: int) -> bool:
        """Is the tensor at this place made of the chosen parts, or of what has no parts?"""
        use = self.uses.get((output, slot))
        return use is None or all(v & use.places & self.chosen for v in use.variables)

    def cell(self, output: bool, slot: int, sums: tuple[Sum, ...]) -> Cell:
        found = []
        for x in sums:
            alternatives = self.uses[output, slot].sums[x.axis, x.starts[0]]
            found.append((x.axis, x.starts[0], next(i for i, place in enumerate(alternatives) if place in self.chosen)))
        return tuple(found)


def _uses(cells: Cells, node: Node, ties: NodeTies) -> dict[tuple[bool, int], Use] | None:
    """The tensors of a node; None where no slot has several cells."""
    s, at = cells.s, {}
    if not any(cells.parts.values()):
        return None
    for o in ties.occurrences:
        at[o.output, o.slot, o.axis] = [(name, i) for name in o.names for i in range(len(s.leaves(ties.names[name])))]
    uses: dict[tuple[bool, int], Use] = defaultdict(Use)
    for (output, slot, axis), places in at.items():
        tensor, use = (node.outputs if output else node.inputs)[slot], uses[output, slot]
        use.places |= set(places)
        for x in {x for k, leaf in enumerate(s.axis_leaves(tensor, axis)) if leaf in cells.grown for x in cells.sums(tensor, axis, k)}:
            there = at.get((output, slot, x.axis))
            use.sums[x.axis, x.starts[0]] = tuple(there[i] if there else (None, (output, slot, x.axis, i)) for i in x.starts)
    for use in uses.values():
        use.places |= {place for alternatives in use.sums.values() for place in alternatives}
    return uses if any(use.sums for use in uses.values()) else None
