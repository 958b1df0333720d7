"""How one grown tensor is computed from the old one: a record, and its specification.

A Recipe holds an AxisMap for each axis: for each new index, the old index it comes from and a Fill code.
`Recipe.evaluate` is the specification in plain numpy, on the whole tensor. `Recipe.blocks` (stream.py) gives the same
bytes in O(block) memory, whatever the block size. Both see the tensor as a table [rows, columns]: columns are the last
axis longer than 1, rows all the axes before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
from ml_dtypes import finfo, iinfo
from onnx import helper

from .axismap import AxisMap, Fill
from .noise import Noise

__all__ = ["AxisMap", "Fill", "Recipe"]

ALIKE_STD = 0.02  # what random entries get where all old ones are the same: at zero they could never learn
LEAST_STEPS = 4  # of the type's least number: a smaller deviation would round to zeros
MOST_NORMAL = 8.0  # deviations; the largest of a million normals is about 5
CHUNK = 1 << 18  # elements; sums and samples go in steps of this size, so that they do not depend on the block size


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the tensor `name` is made. Its bytes depend on this record and the old values only.

    OLD entries are scale * old + shift, in float64, rounded once; with scale 1 and shift 0 the bytes are copied.

    Args:
        name: name in the target; key of the random numbers, with `seed`.
        dtype: as in onnx.TensorProto.
        old_shape, new_shape: sizes before and after, one AxisMap in `axes` for each.
        std: standard deviation of random entries; None: that of the old entries after scaling, estimated from a sample.
        free: what FREE entries hold: "random"; "zero"; "gain", the mean of the OLD values; "continue", for tensors with
            one axis longer than 1: the geometric or arithmetic sequence of the old values goes on, or else as "gain".
            Integers get "zero" where "random".
        origin: name of the initializer in the source, where it is another one.
        zero: the zero point of quantized numbers: ZERO entries hold it, FREE ones scatter around it; None for plain numbers.
        odd: gets the name of the weight while it is written, where old entries that are changed hold NaN or infinity.
        given: with free "given", the values of the FREE entries in order (for tensors with one axis longer than 1).
    """

    name: str
    dtype: int
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    axes: tuple[AxisMap, ...]
    scale: float = 1.0
    shift: float = 0.0
    std: float | None = None
    free: str = "random"
    seed: int = 0
    origin: str | None = None
    given: np.ndarray | None = None
    zero: int | None = None
    odd: list[str] = field(default_factory=list)

    def __post_init__(self):
        shapes = tuple(axis.old for axis in self.axes), tuple(axis.new for axis in self.axes)
        if shapes != (tuple(self.old_shape), tuple(self.new_shape)):
            raise ValueError(
                f"{self.name}: axes map {shapes[0]} to {shapes[1]}, not {self.old_shape} to {self.new_shape}"
            )
        if sum(axis.share for axis in self.axes) > 1:
            raise ValueError(f"{self.name}: only one axis can be shared out")
        if sum((axis.fill == Fill.DRAWN).any() for axis in self.axes) > 1:
            raise ValueError(f"{self.name}: only one axis can be drawn")
        if self.free not in ("random", "zero", "gain", "continue", "given"):
            raise ValueError(f"{self.name}: unknown free fill {self.free!r}")
        missing = np.count_nonzero(self.table[1].fill == Fill.FREE)
        if self.free == "given" and not (self.is_line and np.shape(self.given) == (missing,)):
            raise ValueError(f"{self.name}: {missing} values must be given, for a tensor with one axis longer than 1")
        means = any(((axis.fill == Fill.MEAN) | (axis.fill == Fill.DRAWN)).any() for axis in self.axes)
        if not self.is_float and (
            means or self.is_scaled or any(axis.share for axis in self.axes) or self.free == "gain"
        ):
            raise ValueError(f"{self.name}: {self.numpy_dtype} can be copied and padded only")

    @cached_property
    def numpy_dtype(self) -> np.dtype:
        return helper.tensor_dtype_to_np_dtype(self.dtype)

    @property
    def is_float(self) -> bool:
        return "float" in self.numpy_dtype.name

    @property
    def is_scaled(self) -> bool:
        return self.scale != 1.0 or self.shift != 0.0

    @property
    def is_copy(self) -> bool:
        """The result is the source, byte for byte."""
        return not self.is_scaled and all(axis.is_identity for axis in self.axes)

    @property
    def nbytes(self) -> int:
        return prod(self.new_shape) * self.numpy_dtype.itemsize

    @cached_property
    def table(self) -> tuple[tuple[AxisMap, ...], AxisMap]:
        """The axes that make up the rows, and the one of the columns."""
        axes = list(self.axes)
        while axes and axes[-1].old == axes[-1].new == 1 and axes[-1].is_identity:
            axes.pop()
        return (tuple(axes[:-1]), axes[-1]) if axes else ((), AxisMap.identity(1))

    @property
    def is_line(self) -> bool:
        """Whether only one axis is longer than 1, before and after: the columns of the table."""
        return prod(axis.old * axis.new for axis in self.table[0]) == 1

    @cached_property
    def drawn(self) -> int | None:
        """Which axis of the table, rows first, has DRAWN entries."""
        axes = (*self.table[0], self.table[1])
        return next((k for k, axis in enumerate(axes) if (axis.fill == Fill.DRAWN).any()), None)

    @cached_property
    def _draw_places(self) -> tuple[np.ndarray, np.ndarray]:
        """[places] twice, of all indices on the axes that are not drawn: which place's noise is taken, and over how many it is shared out."""
        first, count = np.zeros(1, np.int64), np.ones(1)
        for k, axis in enumerate((*self.table[0], self.table[1])):
            if k != self.drawn:
                mine, copies = axis.firsts
                first = (first[:, None] * axis.new + mine).ravel()
                count = (count[:, None] * (copies if axis.share else np.ones(axis.new))).ravel()
        return first, count

    def draw(self, base: np.ndarray, index: np.ndarray, places: np.ndarray) -> np.ndarray:
        """DRAWN entries [i, p] at indices [i] of their axis and places [p] or [i, p] on the others, from means that broadcast to them."""
        wanted = (*self.table[0], self.table[1])[self.drawn].draw
        first, count = self._draw_places
        normals = Noise(self.seed, wanted.key, len(first)).at(index, first[places])
        return (base * wanted.mean + normals * wanted.std / count[places]).astype(self.numpy_dtype)

    def noise(self) -> Noise:
        return Noise(self.seed, self.name, self.table[1].new)

    def scaled(self, old: np.ndarray) -> np.ndarray:
        """float64 scale * old + shift, not rounded yet."""
        return old.astype(np.float64) * self.scale + self.shift

    @property
    def is_random(self) -> bool:
        return self.free == "random" and (self.is_float or self.zero is not None)

    @property
    def zero_value(self) -> int:
        return self.zero or 0

    def random(self, normals: np.ndarray, std: float) -> np.ndarray:
        """FREE entries from float32 normals."""
        if not self.is_float:
            ends = iinfo(self.numpy_dtype)
            return np.clip(np.rint(normals * np.float32(std)) + self.zero, ends.min, ends.max).astype(self.numpy_dtype)
        return (normals * np.float32(std)).astype(self.numpy_dtype)

    def random_std(self, old: np.ndarray) -> float:
        """Standard deviation of FREE entries where they are random: of old ones that are all alike none can be taken, and no draw may overflow."""
        if self.std is not None:
            return self.std
        std = abs(self.scale) * sample_std(old.reshape(-1))
        if not self.is_float:
            return std or ALIKE_STD
        kind = finfo(self.numpy_dtype)
        return min(std, float(kind.max) / MOST_NORMAL) if std > LEAST_STEPS * float(kind.smallest_subnormal) else ALIKE_STD

    def free_value(self, old: np.ndarray) -> np.ndarray:
        """What FREE entries hold where they are not random: one value [], or their values in order [n]."""
        flat, value = old.reshape(-1), np.float64(self.zero_value)
        if self.free == "given":
            value = self.given
        if self.free == "gain" or (self.free == "continue" and self.is_float):
            sums, counts = zip(*(_finite_sum(flat[at : at + CHUNK].astype(np.float64)) for at in range(0, flat.size, CHUNK)))
            value = sum(sums) / max(1, sum(counts)) * self.scale + self.shift
        if self.free == "continue" and self.is_line:
            missing = np.count_nonzero(self.table[1].fill == Fill.FREE)
            digits = 2 * float(finfo(self.numpy_dtype).eps) if self.is_float else 0.0
            value = continuation(self.scaled(flat), missing, otherwise=value, tolerance=max(1e-4, digits))
        return np.asarray(value if self.is_float else np.rint(value)).astype(self.numpy_dtype)

    def evaluate(self, old: np.ndarray) -> np.ndarray:
        """The grown tensor [*new_shape] from the old one [*old_shape], in one piece. The specification of `blocks`."""
        axes = (*self.table[0], self.table[1])
        shape = [axis.new for axis in axes]
        new = old.reshape([axis.old for axis in axes])
        for k, axis in enumerate(axes):
            new = new.take(axis.source.clip(0), axis=k)
        new = self.scaled(new) if self.is_scaled else new
        normals = self.noise().at(np.arange(prod(shape[:-1])), np.arange(shape[-1])).reshape(shape)  # of every position
        for k, axis in enumerate(axes):
            new = _shared(new, normals, k, axis, self.numpy_dtype) if axis.share else new
        new = np.ascontiguousarray(new.astype(self.numpy_dtype))

        fill = np.zeros(shape, np.uint8)
        for k, axis in enumerate(axes):
            fill = np.maximum(fill, axis.fill.reshape([-1 if j == k else 1 for j in range(len(axes))]))
        free = fill == Fill.FREE
        new[free] = self.random(normals[free], self.random_std(old)) if self.is_random else self.free_value(old)
        if self.drawn is not None:
            _fill_drawn(new, self)
        for k in reversed(range(len(axes))):
            _fill_means(new, k, axes[k])
        new[fill == Fill.ZERO] = self.zero_value
        return new.reshape(self.new_shape)

    def blocks(self, old: np.ndarray, block_bytes: int = 1 << 22) -> Iterator[tuple[int, np.ndarray]]:
        """The bytes of `evaluate(old)` in pieces (byte offset, [rows, columns]) of at most `block_bytes` or one row."""
        from .stream import Stream  # it builds on this file

        stream = Stream(self, old)
        step = max(1, block_bytes // max(1, stream.row_bytes))
        for row in range(0, stream.rows, step):
            out = np.empty((min(step, stream.rows - row), stream.columns), self.numpy_dtype)
            stream.fill(np.arange(row, row + len(out)), out)
            yield row * stream.row_bytes, out


def fraction(normals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """float64 share of an old entry for all but the last of its `copies` (2 or more): in sum below 1."""
    return (1 + np.clip(normals.astype(np.float64) / 4, -0.5, 0.5) / np.maximum(copies - 1, 1)) / copies


def _shared(new: np.ndarray, normals: np.ndarray, k: int, axis: AxisMap, dtype: np.dtype) -> np.ndarray:
    """Share entries out along axis `k`: the last copy gets what the rounded others leave. Returns values of `dtype`."""
    whole, normals = np.moveaxis(new, k, 0).astype(np.float64), np.moveaxis(normals, k, 0)
    parts = whole.astype(dtype)
    for group in axis.groups():
        rest = whole[group[0]]
        finite = np.isfinite(rest)  # infinity less infinity would be no number
        for index in group[:-1]:
            parts[index] = (whole[index] * fraction(normals[index], np.int64(len(group)))).astype(dtype)
            with np.errstate(invalid="ignore"):
                rest = np.where(finite, rest - parts[index].astype(np.float64), rest)
        parts[group[-1]] = rest.astype(dtype)
    return np.moveaxis(parts, 0, k)


def _fill_means(new: np.ndarray, k: int, axis: AxisMap) -> None:
    """Put the means over the OLD positions of axis `k` at its MEAN positions."""
    kind, weights = axis.means
    if not len(weights):
        return
    mean = np.flatnonzero(axis.fill == Fill.MEAN)
    _put(new, k, mean, _means(new, k, axis, weights).astype(new.dtype)[kind[mean]])


def _fill_drawn(new: np.ndarray, recipe: Recipe) -> None:
    """Put means and noise at DRAWN positions. Means along other axes are taken later, of these entries too."""
    k = recipe.drawn
    axis = (*recipe.table[0], recipe.table[1])[k]
    index = np.flatnonzero(axis.fill == Fill.DRAWN)
    base = _means(new, k, axis, plain_mean(axis))
    _put(new, k, index, recipe.draw(base, index, np.arange(base.shape[1])))


def plain_mean(axis: AxisMap) -> np.ndarray:
    """float64 [1, OLD positions]: the weights of the mean that DRAWN entries start from."""
    old = np.count_nonzero(axis.fill == Fill.OLD)
    return np.full((1, old), 1 / old)


def _put(new: np.ndarray, k: int, index: np.ndarray, values: np.ndarray) -> None:
    """Values [index, places on the other axes] go to these indices of axis `k`."""
    lines = np.moveaxis(new, k, 0)
    lines[index] = values.reshape(len(index), *lines.shape[1:])


def _means(new: np.ndarray, k: int, axis: AxisMap, weights: np.ndarray) -> np.ndarray:
    """float64 [means, places on the other axes] over the OLD positions of axis `k`, by weights [means, OLD positions]."""
    old = np.flatnonzero(axis.fill == Fill.OLD)
    if k == new.ndim - 1:
        return column_means(new[..., old].reshape(-1, len(old)), weights).T
    lines = new.reshape(prod(new.shape[:k]), axis.new, -1, new.shape[-1])  # [before, k, between, columns]
    step, means = mean_rows(new.shape[-1]), np.empty((len(weights), lines.shape[0], *lines.shape[2:]))
    for before, between in np.ndindex(lines.shape[0], lines.shape[2]):
        line = lines[before, :, between]
        means[:, before, between] = row_means((line[old[at : at + step]] for at in range(0, len(old), step)), weights)
    return means.reshape(len(weights), -1)


def column_means(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [rows, means] of [rows, columns], by weights [means, columns].

    Entries that are not finite are left out, so that they do not spread: what was finite weighs more instead.
    einsum sums in one order for any number of rows; matmul does not, and the last bits would depend on the block size.
    """
    table = np.array(table, np.float64, order="C")
    means = np.stack([np.einsum("rc,c->r", table, row) for row in weights], axis=1)
    if not np.isfinite(means).all():
        finite = np.isfinite(table)
        table, kept = np.where(finite, table, 0), finite.astype(np.float64)
        parts = ((np.einsum("rc,c->r", table, row), np.einsum("rc,c->r", kept, row)) for row in weights)
        means = np.where(np.isfinite(means), means, np.stack([_restored(*part) for part in parts], axis=1))
    return means


def mean_rows(columns: int) -> int:
    """How many rows `row_means` takes at a time: fixed by the shape, since the order of a sum decides its last bits."""
    return max(1, CHUNK // max(1, columns))


def row_means(chunks: Iterator[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """float64 [means, columns] of rows in chunks [mean_rows(columns), columns], by weights [means, rows in all]; entries that are not finite are left out."""
    total, lost, at = 0.0, 0.0, 0
    for chunk in chunks:
        part, here = np.array(chunk, np.float64, order="C"), weights[:, at : at + len(chunk)]
        added = np.stack([np.einsum("rc,r->c", part, row) for row in here])
        if not np.isfinite(added).all():
            odd = ~np.isfinite(part)
            added = np.stack([np.einsum("rc,r->c", np.where(odd, 0, part), row) for row in here])
            lost = lost + np.stack([np.einsum("rc,r->c", odd.astype(np.float64), row) for row in here])
        total = total + added
        at += len(chunk)
    return total if np.ndim(lost) == 0 else np.where(lost == 0, total, _restored(total, 1 - lost))


def _restored(mean: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The mean of finite entries from their weighted sum, and what their weights sum to; zero where next to nothing is left."""
    return np.divide(mean, kept, out=np.zeros_like(mean), where=np.abs(kept) > 1e-6)


def _finite_sum(values: np.ndarray) -> tuple[float, int]:
    """Sum and number of the finite entries of float64 [n]: NaN and infinity stay where they are."""
    total = values.sum()
    if np.isfinite(total):
        return total, values.size
    kept = values[np.isfinite(values)]
    return kept.sum(), kept.size


def sample_std(flat: np.ndarray) -> float:
    """Standard deviation of the finite entries of [n], from 256 evenly spaced runs of 1024: few pages of a file."""
    run = 1024
    if flat.size > 256 * run:
        flat = np.concatenate([flat[at : at + run] for at in np.linspace(0, flat.size - run, 256).astype(np.int64)])
    values = flat.astype(np.float64)
    values = values[np.isfinite(values)]
    return float(values.std()) if values.size else 0.0


def continuation(values: np.ndarray, count: int, otherwise: float, tolerance: float = 1e-4) -> np.ndarray | float:
    """The next `count` entries of a geometric, or else arithmetic, sequence float64 [n] (to a relative tolerance), or `otherwise`."""
    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return otherwise
    first, last, steps = values[0], values[-1], np.arange(1 - n, count + 1)  # the last old entry is step 0
    if first * last > 0:
        sequence = last * (last / first) ** (steps / (n - 1))
        if np.allclose(sequence[:n], values, rtol=tolerance, atol=0):
            return sequence[n:]
    sequence = last + (last - first) / (n - 1) * steps
    return sequence[n:] if np.allclose(sequence[:n], values, rtol=0, atol=tolerance * np.abs(values).max()) else otherwise
