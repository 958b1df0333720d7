"""Position maps: where each old index of an axis lands, and what the new indices hold, from the extent and the solutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, product
from math import prod

import numpy as np

from .axismap import AxisMap, Fill
from .cells import Cell, Sum
from .errors import MethodError
from .flow import Flow
from .solve import Solution
from .standin import StandIns
from .structure import Structure
from .target import Target
from .ties import Dim, factors, find, summands
from .words import Words

FILLS = {"zero": Fill.ZERO, "mean": Fill.MEAN, "free": Fill.FREE, "drawn": Fill.DRAWN}
Part = tuple[np.ndarray, np.ndarray]  # source, fill


@dataclass(frozen=True)
class At:
    """A place along an axis: its first leaf, the parts of sums that were chosen before it, and what code a class of a dim gets."""

    tensor: str
    axis: int
    leaf: int
    cell: Cell
    code: Callable[[int, Dim], int]

    def behind(self, leaves: int) -> At:
        return replace(self, leaf=self.leaf + leaves)


class Mapper:
    """Makes the AxisMap of any axis of any tensor.

    A product's map is the outer combination of its factors' maps, a sum's their concatenation; so each old block keeps its place
    among its neighbours (heads stay whole, rotary halves grow each at its own end).
    """

    def __init__(self, s: Structure, target: Target, flow: Flow, solutions: dict[Dim, Solution], forced: str | None = None,
                 woken: set[int] = frozenset(), stand_ins: dict[Dim, StandIns] | None = None,
                 copied: set[tuple[str, Dim]] = frozenset(), words: Words | None = None):
        self.s, self.target, self.flow, self.solutions, self.forced = s, target, flow, solutions, forced
        self.woken = woken and woken.union(*(group for group in flow.one_fill if woken & {*group}))
        self.stand_ins, self.copied, self.words = stand_ins or {}, copied, words or Words()
        self.repeats = True  # tables of sines repeat old columns; False while it is open whether they can go on by their own rule

    def class_at(self, tensor: str, axis: int, k: int, chosen: Cell) -> int:
        """The class of one leaf of one axis where these parts of sums are chosen; what is left open makes no difference."""
        parts = {part[:2]: part[2] for part in chosen}
        cell = tuple((x.axis, x.starts[0], parts.get((x.axis, x.starts[0]), 0)) for x in self.flow.cells.sums(tensor, axis, k))
        return self.flow.find(self.flow.id((tensor, axis, k, cell), self.s.axis_leaves(tensor, axis)[k]))

    def fill(self, tensor: str, c: int, d: Dim) -> str:
        """zero | mean | copy | free | drawn, for one class of a dim, where it is an axis of this tensor."""
        words = self.words.fill(tensor, d)
        if self.forced:
            return words or self.forced
        if c in self.woken:
            return "free"
        if (tensor, d) in self.copied:
            return "copy"
        return self.solutions[d].need.get(c, "copy" if c in self.solutions[d].shares else words or "free")

    def axis(self, tensor: str, axis: int, unread: str = "free") -> AxisMap:
        """The map of one axis; `unread` is what free entries hold (a graph input's are zero)."""
        d = self.s.dims[tensor][axis]
        source, fill = self._part(d, At(tensor, axis, 0, (), self._codes(tensor, unread)))
        return AxisMap(d.size, self.target.size(d), source, fill, self._shares(tensor, axis), *self._mixes(tensor, axis, d, source, fill),
                       self.words.draw(tensor))

    def asleep(self, tensor: str, dead: set[int]) -> int:
        """How many new entries of a weight are new in a class that gets no gradient."""
        across = self.flow.cells.across(tensor)
        awake = 0
        for chosen in product(*(range(len(x.parts)) for x in across)):
            cell = tuple((x.axis, x.starts[0], i) for x, i in zip(across, chosen))
            kept = 1
            for axis, d in enumerate(self.s.dims[tensor]):
                _, state = self._part(d, At(tensor, axis, 0, cell, lambda c, _: 2 if c in dead else 1))
                here = [self._within(d, x, i) for x, i in zip(across, chosen) if x.axis == axis]
                kept *= int(np.logical_and.reduce([state < 2, *here]).sum())
            awake += kept
        return prod(self.target.size(d) for d in self.s.dims[tensor]) - awake

    def _within(self, d: Dim, x: Sum, part: int) -> np.ndarray:
        """bool [new], the entries of an axis that belong to one part of a sum among its factors."""
        inner = prod(self.target.size(f) for f, before in zip(factors(d), self._before(factors(d))) if before > x.starts[0])
        bounds = np.cumsum([self.target.size(p) for p in x.parts])
        return np.searchsorted(bounds, np.arange(self.target.size(d)) // inner % bounds[-1], "right") == part

    def _codes(self, tensor: str, unread: str) -> Callable[[int, Dim], int]:
        def code(c: int, d: Dim) -> int:
            kind = self.fill(tensor, c, d)
            return FILLS[unread if kind == "free" and d not in self.words.dims else kind]
        return code

    def _shares(self, tensor: str, axis: int) -> bool:
        """Are copies along an axis shares of the old entry?"""
        for leaf, cells in zip(self.s.axis_leaves(tensor, axis), self.flow.axis_classes(tensor, axis)):
            shared = {c in self.solutions[leaf].shares for c in cells.values()} if leaf in self.solutions else set()
            if len(shared) > 1:
                node = self.s.graph.users[tensor][0][0].label if self.s.graph.users.get(tensor) else None
                raise MethodError("copies of one part of this axis would be shares, those of another not", node=node, hint="use --method pad")
            if True in shared:
                return True
        return False

    def _mixes(self, tensor: str, axis: int, d: Dim, source: np.ndarray, fill: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """Weighted means for an axis that is one dim with stand-ins, or of which one factor or part has means of its own."""
        found = self.stand_ins.get(find(d))
        mixes = found.mixes.get(self.class_at(tensor, axis, 0, ())) if found else None
        if mixes is None and (fill == Fill.MEAN).any() and len(self.s.leaves(d)) > 1:
            return self._lines(tensor, axis, d, source)
        if mixes is None:
            return None, None
        pattern = np.zeros(len(source), np.int64)
        pattern[source < 0] = found.patterns
        return mixes, pattern

    def _lines(self, tensor: str, axis: int, d: Dim, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means along one leaf of an axis: over the old entries that share the place in all others."""
        line = self._line(d, tensor, axis, 0)
        old = np.flatnonzero(source >= 0)
        mixes = np.zeros((line.max() + 1, d.size))
        mixes[line[old], source[old]] = 1
        mixes[~mixes.any(axis=1)] = 1  # a line without old entries is read by nobody
        return mixes / mixes.sum(axis=1, keepdims=True), line

    def _line(self, d: Dim, tensor: str, axis: int, k: int) -> np.ndarray:
        """Which line each new index is on: the leaves that hold means are left out."""
        d = find(d)
        if d.form is None:
            new = np.arange(self.target.size(d))
            if d not in self.target.sizes or d in self.target.regroup:
                return new
            fills = {self.fill(tensor, c, d) for c in self.flow.axis_classes(tensor, axis)[k].values()}
            return new * 0 if "mean" in fills else new
        parts = [self._line(p, tensor, axis, k + before) for p, before in zip(d.form[1], self._before(d.form[1]))]
        out = parts[0]
        for p in parts[1:]:
            out = np.r_[out, p + out.max() + 1] if d.form[0] == "+" else (out[:, None] * (p.max() + 1) + p).ravel()
        return out

    def grows(self, tensor: str) -> bool:
        return any(leaf in self.target.sizes for d in self.s.dims[tensor] for leaf in self.s.leaves(d))

    def wakes(self, tensor: str) -> bool:
        """Does a part of this weight get noise instead of a zero that could never learn?"""
        return bool(self.woken) and any(c in self.woken for i in range(len(self.s.dims[tensor])) for c in self.flow.classes(tensor, i))

    def _before(self, parts: list[Dim]) -> list[int]:
        """How many leaves stand before each part."""
        return [0, *accumulate(len(self.s.leaves(p)) for p in parts)][:len(parts)]

    def _part(self, d: Dim, at: At) -> Part:
        d = find(d)
        if d.form is None:
            return self._leaf(d, at)
        kind, parts = d.form
        if kind == "+":
            return self._sum([(p, self._part(p, at.behind(before))) for p, before in zip(parts, self._before(parts))])
        return self._product(factors(d), at)

    def _leaf(self, d: Dim, at: At) -> Part:
        new = self.target.sizes.get(d, d.size)
        if d in self.target.regroup:
            factor, _ = self.target.regroup[d]
            return np.arange(new) // factor, np.zeros(new, np.uint8)
        if new == d.size:
            return np.arange(new), np.zeros(new, np.uint8)
        if new < d.size and at.tensor in self.s.graph.weights:
            raise MethodError("the query heads of a group do not stand side by side in this weight, so that the group cannot be cut",
                              node=self.s.graph.users[at.tensor][0][0].label, hint="ask for more heads and kv heads at once: --heads and --kv-heads")
        if new < d.size:
            return np.arange(new), np.zeros(new, np.uint8)  # of an activation, which nobody maps
        c = self.class_at(at.tensor, at.axis, at.leaf, at.cell)
        kind = self.fill(at.tensor, c, d)
        if kind == "copy" or (kind == "free" and self._turns(c)):
            return np.arange(new) % d.size, np.zeros(new, np.uint8)
        more = new - d.size
        return np.r_[np.arange(d.size), np.full(more, -1)], np.r_[np.zeros(d.size, np.uint8), np.full(more, at.code(c, d), np.uint8)]

    def _turns(self, c: int) -> bool:
        """Free entries of a table of sines and cosines repeat old frequencies: others would be no rotation."""
        return self.repeats and self.forced is None and c in self.flow.turning

    def _sum(self, parts: list[tuple[Dim, Part]]) -> Part:
        sources, start = [], 0
        for p, (source, _) in parts:
            sources.append(np.where(source >= 0, source + start, -1))
            start += p.size
        return np.concatenate(sources), np.concatenate([fill for _, (_, fill) in parts])

    def _product(self, parts: list[Dim], at: At) -> Part:
        """Every combination of the factors' entries; behind a factor that is a sum, the map of the next one depends on the part."""
        source, fill = np.zeros(1, np.int64), np.zeros(1, np.uint8)
        cells, which = [at.cell], np.zeros(1, np.int64)  # the cell that each entry so far is in
        before, k = self._before(parts), 0
        while k < len(parts):
            p = parts[k]
            beside = summands(parts[k + 1]) if p in self.target.regroup and k + 1 < len(parts) else []
            if beside and find(self.target.regroup[p][1]) in map(find, beside):
                inner = [self._regrouped(p, beside)] * len(cells)
                chosen, count, more = parts[k + 1], self.target.sizes[p], 2
            else:
                inner = [self._part(p, replace(at.behind(before[k]), cell=cell)) for cell in cells]
                chosen, count, more = p, 1, 1
            size = prod(p.size for p in parts[k:k + more])
            sources, fills = np.stack([s for s, _ in inner])[which], np.stack([f for _, f in inner])[which]
            source = np.where((source[:, None] < 0) | (sources < 0), -1, source[:, None] * size + sources).ravel()
            fill = np.maximum(fill[:, None], fills).ravel()
            options = summands(chosen) if len(summands(chosen)) > 1 else [chosen]
            part = np.tile(np.repeat(np.arange(len(options)), [self.target.size(o) for o in options]), count)
            which = (which[:, None] * len(options) + part).ravel()
            start = at.leaf + before[k + more - 1]
            cells = [(*cell, (at.axis, start, i)) for cell in cells for i in range(len(options))] if len(options) > 1 else cells
            k += more
        return source, fill

    def _regrouped(self, kv: Dim, beside: list[Dim]) -> Part:
        """Query heads keep their order; each old group is cut into `factor` new ones, which may get longer at their end.

        `beside` is the group, or the group and what stands with it in each kv head (its key and value), which is repeated.
        """
        factor, group = self.target.regroup[kv]
        group, cut = find(group), group.size // factor
        width, start, columns = sum(p.size for p in beside), 0, []
        i = np.arange(self.target.sizes[kv])[:, None]
        for p in map(find, beside):
            j = np.arange(self.target.size(p))[None, :]
            inside = np.where(j < cut, (i % factor) * cut + j, -1) if p is group else np.where(j < p.size, j + 0 * i, -1)
            columns.append(np.where(inside < 0, -1, (i // factor) * width + start + inside))
            start += p.size
        source = np.hstack(columns).ravel()
        return source, np.where(source < 0, Fill.FREE, Fill.OLD).astype(np.uint8)
