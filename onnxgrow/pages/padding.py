"""What each entry of a grown weight is: kinds counted exactly, and drawn as a map.

A weight is a table of rows and columns (columns: its last axis longer than 1; rows: all axes before it). An entry's kind follows from those
of its place along every axis; where axes disagree the later of `KINDS` wins, as in the writer. Of copies of one old entry the first counts as old,
as in the record of regions, so as many entries are old as the source has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from ..axismap import AxisMap, Fill
from ..plan import Plan
from ..recipe import Recipe
from ..roles import FLOATS

KINDS = ("old", "copy", "free", "drawn", "mean", "zero", "set")
WORDS = {
    "old": "old: an entry of the source, scaled where a repair says so",
    "copy": "copy: an old entry again, or its further shares",
    "free": "free: nobody reads it yet, so it may hold anything",
    "drawn": "drawn: as old rows look, with noise",
    "mean": "mean: the mean of old entries",
    "zero": "zero",
    "set": "set: one number by construction, so that what is inserted changes nothing",
}
CODES = {Fill.FREE: 2, Fill.DRAWN: 3, Fill.MEAN: 4, Fill.ZERO: 5}
FINEST = 64  # runs along a side of a picture; what has more is drawn in as many bands


@dataclass(frozen=True)
class Grown:
    """One float initializer of the grown model that is not simply the source's.

    Attributes:
        name: in the grown file.
        old_shape: None for what holds nothing of the source's own: a weight of an inserted block, a new scalar.
        counts: kind -> entries; in sum the entries of the tensor.
        repair: what old entries are multiplied by, and what is added; None where they are as they were.
        holds: what FREE entries hold: random, zero, gain, continue, given.
        axes: uint8 [size] for each axis, the place in KINDS of each index.
    """

    name: str
    old_shape: tuple[int, ...] | None
    new_shape: tuple[int, ...]
    counts: dict[str, int]
    repair: tuple[float, float] | None
    holds: str | None
    axes: tuple[np.ndarray, ...]

    @property
    def size(self) -> int:
        return prod(self.new_shape)

    @property
    def look(self) -> tuple:
        """Weights with the same one are drawn alike but for their sizes: the kinds along each axis, and whether anything is old."""
        return tuple(tuple(np.unique(a).tolist()) for a in self.axes), self.old_shape is None

    def kinds(self) -> dict[str, int]:
        """The kinds that occur, with their numbers of entries."""
        return {k: n for k, n in self.counts.items() if n}


def axis_codes(axis: AxisMap) -> np.ndarray:
    """uint8 [new], the place in KINDS of each index of an axis."""
    codes = np.zeros(axis.new, np.uint8)
    for fill, code in CODES.items():
        codes[axis.fill == fill] = code
    kept = np.flatnonzero(axis.fill == Fill.OLD)
    _, first = np.unique(axis.source[kept], return_index=True)
    codes[np.delete(kept, first)] = KINDS.index("copy")
    return codes


def count(axes: tuple[np.ndarray, ...]) -> dict[str, int]:
    """How many entries of a tensor have each kind, from the codes of its axes; the greatest code of an entry's places is its own."""
    below = [prod(int((a <= code).sum()) for a in axes) for code in range(len(KINDS))]
    return {kind: below[i] - (below[i - 1] if i else 0) for i, kind in enumerate(KINDS)}


def grown_weights(plan: Plan) -> Iterator[Grown]:
    """Every float initializer of the grown model that a recipe makes, or that no source has, in the file's order."""
    base = _bases(plan)
    for t in plan.decisions.proto.graph.initializer:
        recipe = plan.recipes.get(t.name)
        origin = (recipe.origin or t.name) if recipe else t.name
        start = base.get(origin, 0)
        if t.data_type not in FLOATS or (recipe is None and not start and t.name not in plan.decisions.applied.added):
            continue
        yield _grown(t.name, tuple(t.dims), recipe, start or KINDS.index("set") * (recipe is None))


def _grown(name: str, shape: tuple[int, ...], recipe: Recipe | None, start: int) -> Grown:
    """`start`: what its entries are where a weight of the source would be old."""
    axes = tuple(map(axis_codes, recipe.axes)) if recipe else tuple(np.zeros(n, np.uint8) for n in shape)
    axes = tuple(np.where(a <= start, start, a).astype(np.uint8) for a in axes) or (np.full(1, start, np.uint8),)
    repair = (recipe.scale, recipe.shift) if recipe and recipe.is_scaled and not start else None
    counts = count(axes)
    old = None if start else tuple(recipe.old_shape)
    return Grown(name, old, shape, counts, repair, recipe.free if recipe and counts["free"] else None, axes)


def _bases(plan: Plan) -> dict[str, int]:
    """What stands where the source of a tensor was old, for weights that are none of the source's: by name in the deeper graph."""
    if plan.deeper is None:
        return {}
    filled = {name: KINDS.index("set" if value else "zero") for name, value in plan.source.constant.items()}
    return dict.fromkeys(plan.deeper.fresh, KINDS.index("copy")) | filled


@dataclass(frozen=True)
class Picture:
    """A map of a weight: kind -> rectangles (x, y, width, height) in a box of this size; `exact` where every run is drawn in its place."""

    width: float
    height: float
    areas: dict[str, list[tuple[float, float, float, float]]]
    exact: bool


def picture(weight: Grown, longest: float = 220) -> Picture:
    """Draw a weight: its rows downwards, its columns to the right, no side shorter than an eighth of the longer one."""
    rows, columns = _table(weight.axes)
    size = max(len(rows), len(columns))
    width, height = (max(longest * n / size, longest / 8) for n in (len(columns), len(rows)))
    (tall, row_kinds, exact), (wide, column_kinds, also) = _bands(rows, height), _bands(columns, width)
    areas: dict[str, list] = {}
    for k, code in enumerate(row_kinds):
        merged = np.maximum(column_kinds, code)
        starts = np.flatnonzero(np.r_[True, np.diff(merged) != 0])
        for first, stop in zip(starts, [*starts[1:], len(merged)]):
            box = (wide[first], tall[k], wide[stop] - wide[first], tall[k + 1] - tall[k])
            areas.setdefault(KINDS[merged[first]], []).append(tuple(round(float(v), 2) for v in box))
    return Picture(round(width, 2), round(height, 2), areas, exact and also)


def _table(axes: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Codes of rows and columns."""
    long = list(axes)
    while len(long) > 1 and len(long[-1]) == 1:
        last = long.pop()
        long[-1] = np.maximum(long[-1], last[0])
    rows = np.zeros(1, np.uint8)
    for axis in long[:-1]:
        rows = np.maximum.outer(rows, axis).ravel()
    return rows, long[-1]


def _bands(codes: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray, bool]:
    """Edges on a side of this length, the code between them, and whether these are the runs themselves."""
    starts = np.flatnonzero(np.r_[True, np.diff(codes.astype(np.int16)) != 0])
    if len(starts) <= FINEST:
        return np.r_[starts, len(codes)] * length / len(codes), codes[starts], True
    edges = np.linspace(0, len(codes), FINEST + 1).astype(int)
    usual = [np.bincount(codes[a:b]).argmax() for a, b in zip(edges, edges[1:])]
    return edges * length / len(codes), np.array(usual, np.uint8), False
