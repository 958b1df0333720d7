"""What became of each weight: equal, changed and where, grown with which region old and which new, another type, added or removed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from . import regions as record
from .errors import FileError
from .graphdiff import GraphPair
from .tensordiff import Gap, Held, Regions, compare_regions, gap_between

FEW = 4


@dataclass(frozen=True)
class WeightChange:
    """One weight that is not the same in both files.

    Attributes:
        change: added | removed | changed | type | grown | shape. `grown`: some axes differ in size; `shape`: so much differs that nothing was compared.
        a, b: its name in either file; from, to: `float32[96, 96]`.
        gap: entries compared one by one, of the whole tensor or of the old block.
        new, zero: entries that only the larger one has, and how many of them are zero; None where nothing grew.
        known: the old block is the one that the record of the growth names; else the first entries of each axis were taken for it.
        values: all entries in either file, where they are at most FEW.
    """

    change: str
    a: str | None
    b: str | None
    before: str | None
    after: str | None
    gap: Gap | None = None
    new: int | None = None
    zero: int | None = None
    known: bool | None = None
    values: tuple[list, list] | None = None

    def to_json(self) -> dict:
        """As a document (docs/json.md)."""
        gap = self.gap
        return {"change": self.change, "a": self.a, "b": self.b, "from": self.before, "to": self.after,
                "compared": gap and gap.entries, "differ": gap and gap.differ, "largest": None if gap is None or gap.largest == float("inf") else gap.largest,
                "factor": gap and gap.factor, "within": gap and gap.within, "new": self.new, "zero": self.zero, "recorded": self.known,
                "values": self.values and {"from": self.values[0], "to": self.values[1]}}


@dataclass
class Records:
    """The records of old regions that either file has, if any."""

    a: record.Regions | None
    b: record.Regions | None

    @classmethod
    def read(cls, a, b) -> Records:
        """Of two models; one that is damaged counts as none."""
        def found(proto):
            try:
                return record.read_regions(proto)
            except FileError:
                return None
        return cls(found(a), found(b))

    def masks(self, a: tuple[str, Held], b: tuple[str, Held]) -> tuple[list[np.ndarray], list[np.ndarray], bool] | None:
        """bool [size] for each axis of both tensors, True in the block that both have; whether a record says so. None where ranks differ."""
        (mine, x), (theirs, y) = a, b
        if len(x.shape) != len(y.shape):
            return None
        for regions, name, held, other in ((self.b, theirs, y, x), (self.a, mine, x, y)):
            old = _recorded(regions, name, held)
            if old is not None and tuple(int(m.sum()) for m in old) == other.shape:
                whole = [np.ones(n, bool) for n in other.shape]
                return (whole, old, True) if held is y else (old, whole, True)
        both = [min(pair) for pair in zip(x.shape, y.shape)]
        return [np.arange(n) < k for n, k in zip(x.shape, both)], [np.arange(n) < k for n, k in zip(y.shape, both)], False


def _recorded(regions: record.Regions | None, name: str, held: Held) -> list[np.ndarray] | None:
    if regions is None or name not in regions.tensors or regions.is_grown(name):
        return None
    try:
        return regions.axes(name, held.shape)
    except FileError:
        return None


def weight_changes(pair: GraphPair, records: Records) -> tuple[list[WeightChange], int]:
    """What differs in the weights of two graphs, and how many are the same."""
    out, equal = [], 0
    for mine, theirs in pair.weights:
        found = _compare(pair, mine, theirs, records)
        equal += found is None
        out += [] if found is None else [found]
    return out, equal


def _values(held: Held) -> list:
    """All entries as JSON holds them."""
    found = [x for block in held.blocks() for x in block.tolist()]
    return [x if isinstance(x, (int, float)) and isfinite(x) else str(x) for x in found]


def said(held: Held) -> str:
    """`float32[96, 96]`."""
    return f"{held.kind}[{', '.join(map(str, held.shape))}]"


def _compare(pair: GraphPair, mine: str | None, theirs: str | None, records: Records) -> WeightChange | None:
    a, b = pair.mine.get(mine), pair.theirs.get(theirs)
    names = [None if n is None else pair.where + n for n in (mine, theirs)]
    if a is None or b is None:
        return WeightChange("added" if a is None else "removed", *names, a and said(a), b and said(b))
    shown = (*names, said(a), said(b))
    words = {a.kind, b.kind} & {"string"}
    if a.shape == b.shape and (a.dtype == b.dtype or not words):
        gap = gap_between(a, b)
        if a.dtype != b.dtype:
            return WeightChange("type", *shown, gap)
        values = tuple(_values(x) for x in (a, b)) if a.entries <= FEW else None
        return WeightChange("changed", *shown, gap, values=values) if gap.differ else None
    masks = records.masks((mine, a), (theirs, b)) if not words and a.dtype == b.dtype else None
    if masks is None:
        return WeightChange("shape", *shown)
    found: Regions = compare_regions(a, b, *masks[:2])
    return WeightChange("grown", *shown, found.old, found.new, found.zero, masks[2])
