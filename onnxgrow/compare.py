"""Source and grown tensors through the maps of their axes: what the grown model is fed, and where its results agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .axismap import AxisMap, Fill

Maps = tuple[AxisMap, ...]


@dataclass(frozen=True)
class Difference:
    """How one output of the grown model differs from the source's.

    Attributes:
        output: its name in the source.
        shape: the source's.
        max_abs: the largest difference; infinite where shapes, or NaN and inf, do not match.
        max_rel: the same, relative to the largest value of the source; for whole numbers and truth values 0 or infinite. A report takes
            the largest value over all its cases: a single similarity may be close to zero.
        mean_rel: mean difference relative to the mean size of the source's values.
        finite: share of the source's values that are neither NaN nor infinite; only those were compared.
        agree, rows: rows along the last axis whose largest entry is the same one, of how many; None where that means nothing.
        largest: the source's largest value.
        new_mean, new_max: share of a softmax along the last axis that its new entries take, over these rows; None where it does not grow.
    """

    output: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    mean_rel: float
    finite: float = 1.0
    agree: int | None = None
    rows: int | None = None
    new_mean: float | None = None
    new_max: float | None = None
    largest: float = 0.0


def fits(shape: tuple[int, ...], maps: Maps) -> bool:
    """Whether maps made at the sizes of the analysis hold for an array of the source, too."""
    return len(shape) == len(maps) and all(m.is_identity or m.old == n for m, n in zip(maps, shape))


def grown_input(x: np.ndarray, maps: Maps) -> np.ndarray:
    """Scatter an input of the source into the grown one's shape: copies are copied, means are means, other new entries zero."""
    for axis, m in enumerate(maps):
        if m.is_identity:
            continue
        kept = np.flatnonzero(m.fill == Fill.OLD)
        old = np.moveaxis(_old(x, axis, m), axis, -1).astype(np.float64)
        grown = np.zeros((*old.shape[:-1], m.new))
        grown[..., kept] = old / np.bincount(m.source[kept])[m.source[kept]] if m.share else old  # shares sum to the old entry
        kind, weights = m.means
        grown[..., kind >= 0] = (old @ weights.T)[..., kind[kind >= 0]]
        x = np.moveaxis(grown, -1, axis).astype(x.dtype)
    return x


def _old(x: np.ndarray, axis: int, m: AxisMap) -> np.ndarray:
    """The entries behind the OLD positions, one that is copied as often as its copies."""
    return np.take(x, m.source[m.fill == Fill.OLD], axis)


def aligned(a: np.ndarray, b: np.ndarray, maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """A tensor of the source beside the entries of the grown one that should equal it; of copies every one."""
    for axis, m in enumerate(maps):
        if not m.is_identity and b.ndim == a.ndim and b.shape[axis] == m.new:
            a, b = _old(a, axis, m), np.take(b, np.flatnonzero(m.fill == Fill.OLD), axis)
    return a, b


def compare(name: str, a: np.ndarray, b: np.ndarray, maps: Maps, rank: bool = False) -> Difference:
    """Compare a source output with the grown one's; `rank` also counts rows with the same largest entry."""
    taken = new_share(b, maps) if rank and a.size else (None, None)
    shape, (a, b) = a.shape, aligned(a, b, maps)
    whole = a.dtype.kind in "iub"
    if a.shape != b.shape:
        return Difference(name, shape, np.inf, np.inf, np.inf)
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    share = float(finite.mean()) if a.size else 1.0
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Difference(name, shape, np.inf, np.inf, np.inf, share)
    x, y = a[finite], b[finite]
    gap = np.nan_to_num(np.abs(x - y), nan=np.inf)
    largest = float(gap.max(initial=0))
    top1 = (*_top1(a, b), *taken) if rank and share == 1 and a.size else (None,) * 4
    size = float(np.abs(x).max(initial=0))
    relative = (np.inf if largest else 0.0) if whole else _ratio(largest, size)
    return Difference(name, shape, largest, relative, _ratio(gap.sum(), np.abs(x).sum()), share, *top1, size)


def over_all(found: list[Difference]) -> list[Difference]:
    """The same differences, relative to the largest value that their output has in any of them."""
    largest: dict[str, float] = {}
    for d in found:
        largest[d.output] = max(d.largest, largest.get(d.output, 0.0))
    return [replace(d, max_rel=_ratio(d.max_abs, largest[d.output])) if 0 < d.max_rel < np.inf else d for d in found]


def _ratio(gap: float, size: float) -> float:
    return float(gap / size) if size else (np.inf if gap else 0.0)


def new_share(grown: np.ndarray, maps: Maps) -> tuple[float | None, float | None]:
    """Mean and greatest share of a softmax along the last axis of an output that its new entries take; (None, None) if it has none."""
    if not maps or maps[-1].is_identity or grown.shape[-1:] != (maps[-1].new,):
        return None, None
    logits = grown.astype(np.float64)
    parts = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share = parts[..., maps[-1].fill != Fill.OLD].sum(axis=-1) / parts.sum(axis=-1)
    return float(share.mean()), float(share.max())


def _top1(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    same = a.argmax(-1) == b.argmax(-1)
    return int(same.sum()), int(same.size)


def scale_between(a: np.ndarray, b: np.ndarray, tolerance: float) -> float | None:
    """The factor c where b = c·a all through (a repaired norm scales its inside); None where there is none."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if a.shape != b.shape or not a.size or not np.isfinite(a).all() or not a.any():
        return None
    factor = float(b @ (a / (a @ a)))
    return factor if np.abs(b - factor * a).max() <= tolerance * np.abs(b).max() else None
