"""Where each index of a grown axis comes from, and what the new ones hold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np


class Fill(IntEnum):
    """What a new entry holds. Where two axes disagree about one entry, the greater code wins."""

    OLD = 0  # the entry at the source index; several new indices with one source are copies
    FREE = 1  # anything: see Recipe.free
    DRAWN = 2  # a mean and noise: see Draw
    MEAN = 3  # the mean, along this axis, of the entries at OLD positions
    ZERO = 4


@dataclass(frozen=True)
class Draw:
    """What DRAWN entries hold: as a new row of a table should look beside the old ones.

    The noise depends on the seed, `key`, the index along this axis and the place on the others only, so a matrix and its transposed
    copy draw the same numbers. Where another axis holds copies, so does the noise; where it holds shares, the noise is shared out.

    Args:
        mean: start from the mean, along this axis, of the entries at OLD positions; else from zero.
        std: standard deviation of the noise that is added.
        key: name of the random numbers.
    """

    mean: bool
    std: float
    key: str


@dataclass(frozen=True, eq=False)
class AxisMap:
    """Where each index of a grown axis comes from.

    Args:
        old, new: length of the axis before and after.
        source: int64 [new], the old index, -1 where there is none.
        fill: uint8 [new], Fill codes.
        share: the entries with one source are shares of it that sum to it (for an axis that is contracted with copies):
            unequal and positive fractions, different for each element, so that the copies can separate. A single copy
            is the entry itself.
        mixes, pattern: weighted means. float64 [n, old], rows of weights that sum to 1; int64 [new], the row that
            each MEAN index takes. None: the plain mean.
        draw: what DRAWN indices hold, where there are any.
    """

    old: int
    new: int
    source: np.ndarray
    fill: np.ndarray
    share: bool = False
    mixes: np.ndarray | None = None
    pattern: np.ndarray | None = None
    draw: Draw | None = None

    def __post_init__(self):
        object.__setattr__(self, "old", int(self.old))
        object.__setattr__(self, "new", int(self.new))
        object.__setattr__(self, "source", np.ascontiguousarray(self.source, np.int64))
        object.__setattr__(self, "fill", np.ascontiguousarray(self.fill, np.uint8))
        if self.source.shape != (self.new,) or self.fill.shape != (self.new,):
            raise ValueError(f"source {self.source.shape} and fill {self.fill.shape} must both be [{self.new}]")
        kept = self.source[self.fill == Fill.OLD]
        if kept.size and not (0 <= kept.min() and kept.max() < self.old):
            raise ValueError(f"an OLD entry has a source outside 0..{self.old - 1}")
        if self.fill.size and self.fill.max() > Fill.ZERO:
            raise ValueError("unknown fill code")
        if not kept.size and ((self.fill == Fill.MEAN) | (self.fill == Fill.DRAWN)).any():
            raise ValueError("a mean needs OLD entries")
        if self.draw is None and (self.fill == Fill.DRAWN).any():
            raise ValueError("a DRAWN entry needs a Draw")
        if self.mixes is not None and (self.mixes.shape[1:] != (self.old,) or np.shape(self.pattern) != (self.new,)):
            raise ValueError(f"mixes {self.mixes.shape} and pattern must be [n, {self.old}] and [{self.new}]")

    @classmethod
    def identity(cls, n: int) -> AxisMap:
        """An axis that does not grow."""
        return cls(n, n, np.arange(n), np.zeros(n))

    @classmethod
    def append(cls, old: int, new: int, fill: Fill, draw: Draw | None = None) -> AxisMap:
        """An axis whose new entries, all of one fill, follow the old ones."""
        source, code = np.r_[np.arange(old), np.full(new - old, -1)], np.r_[np.zeros(old), np.full(new - old, fill)]
        return cls(old, new, source, code, draw=draw)

    @cached_property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Which mean each index takes, int64 [new], -1 for none, and their weights, float64 [means, OLD positions]."""
        mean, old = np.flatnonzero(self.fill == Fill.MEAN), np.flatnonzero(self.fill == Fill.OLD)
        kind = np.full(self.new, -1)
        if self.mixes is None:
            kind[mean] = 0
            return kind, np.full((min(1, len(mean)), len(old)), 1 / max(1, len(old)))
        used, kind[mean] = np.unique(self.pattern[mean], return_inverse=True)
        return kind, np.ascontiguousarray(self.mixes[used][:, self.source[old]], np.float64)

    @cached_property
    def is_identity(self) -> bool:
        """Does the axis stay as it is?"""
        return self.old == self.new and not self.fill.any() and bool((self.source == np.arange(self.new)).all())

    @cached_property
    def firsts(self) -> tuple[np.ndarray, np.ndarray]:
        """The first index with the same source, and how many have it, int64 [new] each; what is not OLD stands for itself."""
        first, count = np.arange(self.new), np.ones(self.new, np.int64)
        for group in self.groups():
            first[group], count[group] = group[0], len(group)
        return first, count

    def segments(self) -> list[tuple[int, int, int]]:
        """The longest runs of OLD entries with consecutive sources, as (new start, old start, length)."""
        found = runs(np.arange(self.new), self.source, self.fill)
        return [(start, source, stop - start) for start, stop, fill, source in found if fill == Fill.OLD]

    def groups(self) -> list[np.ndarray]:
        """The OLD indices with one source, in order, for each source that is used."""
        kept = np.flatnonzero(self.fill == Fill.OLD)
        kept = kept[np.argsort(self.source[kept], kind="stable")]
        return np.split(kept, np.flatnonzero(np.diff(self.source[kept])) + 1) if len(kept) else []


def runs(index: np.ndarray, source: np.ndarray, fill: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Cut [n] entries into the longest runs of one fill and consecutive indices, OLD ones with consecutive sources too.

    Returns (start, stop, fill, first source) for each.
    """
    if not len(fill):
        return []
    broken = (
        (np.diff(index) != 1) | (np.diff(fill.astype(np.int8)) != 0) | ((fill[1:] == Fill.OLD) & (np.diff(source) != 1))
    )
    starts = np.r_[0, np.flatnonzero(broken) + 1]
    stops = np.r_[starts[1:], len(fill)]
    return list(zip(starts.tolist(), stops.tolist(), fill[starts].tolist(), source[starts].tolist(), strict=True))
