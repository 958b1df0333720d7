"""Position maps: where each old index of an axis lands, and what the new indices hold, from the extent and the solutions."""

from __future__ import annotations

import numpy as np

from .axismap import AxisMap, Fill
from .errors import MethodError
from .flow import Flow
from .solve import Solution
from .standin import StandIns
from .structure import Structure
from .target import Target
from .ties import Dim, find, summands
from .words import Words

FILLS = {"zero": Fill.ZERO, "mean": Fill.MEAN, "free": Fill.FREE, "drawn": Fill.DRAWN}
Part = tuple[np.ndarray, np.ndarray]  # source, fill


class Mapper:
    """Makes the AxisMap of any axis of any tensor.

    A product's map is the outer combination of its factors' maps, a sum's their concatenation; so each old block keeps its place
    among its neighbours (heads stay whole, rotary halves grow each at its own end).
    """

    def __init__(self, s: Structure, target: Target, flow: Flow, solutions: dict[Dim, Solution], forced: str | None = None,
                 woken: set[int] = frozenset(), stand_ins: dict[Dim, StandIns] | None = None,
                 copied: set[tuple[str, Dim]] = frozenset(), words: Words | None = None):
        self.s, self.target, self.flow, self.solutions, self.forced, self.woken = s, target, flow, solutions, forced, woken
        self.stand_ins, self.copied, self.words = stand_ins or {}, copied, words or Words()
        self.repeats = True  # tables of sines repeat old columns; False while it is open whether they can go on by their own rule

    def fill(self, slot: tuple[str, int, int], d: Dim) -> str:
        """zero | mean | copy | free | drawn, for one leaf of one axis."""
        words = self.words.fill(slot[0], d)
        if self.forced:
            return words or self.forced
        c = self.flow.find(self.flow.id(slot, d))
        if c in self.woken:
            return "free"
        if (slot[0], d) in self.copied:
            return "copy"
        return self.solutions[d].need.get(c, "copy" if c in self.solutions[d].shares else words or "free")

    def axis(self, tensor: str, axis: int, unread: str = "free") -> AxisMap:
        """The map of one axis; `unread` is what free entries hold (a graph input's are zero)."""
        d = self.s.dims[tensor][axis]
        slots = iter(range(len(self.s.leaves(d))))
        source, fill = self._part(d, tensor, axis, slots, unread)
        share = any(c is not None and leaf in self.solutions and c in self.solutions[leaf].shares
                    for c, leaf in zip(self.flow.axis_classes(tensor, axis), self.s.leaves(d)))
        return AxisMap(d.size, self.target.size(d), source, fill, share, *self._mixes(tensor, axis, d, source, fill), self.words.draw(tensor))

    def _mixes(self, tensor: str, axis: int, d: Dim, source: np.ndarray, fill: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """Weighted means for an axis that is one dim with stand-ins, or of which one factor or part has means of its own."""
        found = self.stand_ins.get(find(d))
        mixes = found.mixes.get(self.flow.axis_classes(tensor, axis)[0]) if found else None
        if mixes is None and (fill == Fill.MEAN).any() and len(self.s.leaves(d)) > 1:
            return self._lines(tensor, axis, d, source)
        if mixes is None:
            return None, None
        pattern = np.zeros(len(source), np.int64)
        pattern[source < 0] = found.patterns
        return mixes, pattern

    def _lines(self, tensor: str, axis: int, d: Dim, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means along one leaf of an axis: over the old entries that share the place in all others."""
        slots = iter(range(len(self.s.leaves(d))))
        line = self._line(d, tensor, axis, slots)
        old = np.flatnonzero(source >= 0)
        mixes = np.zeros((line.max() + 1, d.size))
        mixes[line[old], source[old]] = 1
        mixes[~mixes.any(axis=1)] = 1  # a line without old entries is read by nobody
        return mixes / mixes.sum(axis=1, keepdims=True), line

    def _line(self, d: Dim, tensor: str, axis: int, slots) -> np.ndarray:
        """Which line each new index is on: the leaves that hold means are left out."""
        d = find(d)
        if d.form is None:
            new = np.arange(self.target.size(d))
            slot = tensor, axis, next(slots)
            return new * 0 if d in self.target.sizes and d not in self.target.regroup and self.fill(slot, d) == "mean" else new
        parts = [self._line(p, tensor, axis, slots) for p in d.form[1]]
        out = parts[0]
        for p in parts[1:]:
            out = np.r_[out, p + out.max() + 1] if d.form[0] == "+" else (out[:, None] * (p.max() + 1) + p).ravel()
        return out

    def grows(self, tensor: str) -> bool:
        return any(leaf in self.target.sizes for d in self.s.dims[tensor] for leaf in self.s.leaves(d))

    def wakes(self, tensor: str) -> bool:
        """Does a part of this weight get noise instead of a zero that could never learn?"""
        return bool(self.woken) and any(c in self.woken for i in range(len(self.s.dims[tensor])) for c in self.flow.axis_classes(tensor, i))

    def _part(self, d: Dim, tensor: str, axis: int, slots, unread: str) -> Part:
        d = find(d)
        if d.form is None:
            return self._leaf(d, (tensor, axis, next(slots)), unread)
        kind, parts = d.form
        if kind == "+":
            return self._sum([(p, self._part(p, tensor, axis, slots, unread)) for p in parts])
        return self._product(_flat(parts), tensor, axis, slots, unread)

    def _leaf(self, d: Dim, slot: tuple[str, int, int], unread: str) -> Part:
        new = self.target.sizes.get(d, d.size)
        if d in self.target.regroup:
            factor, _ = self.target.regroup[d]
            return np.arange(new) // factor, np.zeros(new, np.uint8)
        if new == d.size:
            return np.arange(new), np.zeros(new, np.uint8)
        if new < d.size and slot[0] in self.s.graph.weights:
            raise MethodError("the query heads of a group do not stand side by side in this weight, so that the group cannot be cut",
                              node=self.s.graph.users[slot[0]][0][0].label, hint="ask for more heads and kv heads at once: --heads and --kv-heads")
        if new < d.size:
            return np.arange(new), np.zeros(new, np.uint8)  # of an activation, which nobody maps
        kind = self.fill(slot, d)
        if kind == "copy" or (kind == "free" and self._turns(slot, d)):
            return np.arange(new) % d.size, np.zeros(new, np.uint8)
        code = FILLS[unread if kind == "free" and d not in self.words.dims else kind]
        return np.r_[np.arange(d.size), np.full(new - d.size, -1)], np.r_[np.zeros(d.size, np.uint8), np.full(new - d.size, code, np.uint8)]

    def _turns(self, slot: tuple[str, int, int], d: Dim) -> bool:
        """Free entries of a table of sines and cosines repeat old frequencies: others would be no rotation."""
        return self.repeats and self.forced is None and self.flow.find(self.flow.id(slot, d)) in self.flow.turning

    def _sum(self, parts: list[tuple[Dim, Part]]) -> Part:
        sources, start = [], 0
        for p, (source, _) in parts:
            sources.append(np.where(source >= 0, source + start, -1))
            start += p.size
        return np.concatenate(sources), np.concatenate([fill for _, (_, fill) in parts])

    def _product(self, parts: list[Dim], tensor: str, axis: int, slots, unread: str) -> Part:
        source, fill = np.zeros(1, np.int64), np.zeros(1, np.uint8)
        k = 0
        while k < len(parts):
            p = parts[k]
            beside = summands(parts[k + 1]) if p in self.target.regroup and k + 1 < len(parts) else []
            if beside and find(self.target.regroup[p][1]) in map(find, beside):
                inner = self._regrouped(p, beside)
                for _ in range(1 + len(beside)):
                    next(slots)
                size, k = p.size * parts[k + 1].size, k + 2
            else:
                inner = self._part(p, tensor, axis, slots, unread)
                size, k = p.size, k + 1
            joint = source[:, None] * size + inner[0][None, :]
            source = np.where((source[:, None] < 0) | (inner[0][None, :] < 0), -1, joint).ravel()
            fill = np.maximum(fill[:, None], inner[1][None, :]).ravel()
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


def _flat(parts: list[Dim]) -> list[Dim]:
    out: list[Dim] = []
    for p in map(find, parts):
        out += _flat(p.form[1]) if p.form and p.form[0] == "*" else [p]
    return out
