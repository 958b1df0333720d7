"""The bytes of a Recipe, any rows at a time, in O(block) memory and at the speed of copying.

`Stream.fill` gives the same bytes as `Recipe.evaluate`, which is the specification; tests/test_recipe.py compares the
two. It cuts rows and columns into runs of one fill, so that most of the work is a few large slice copies for each
block.
"""

from __future__ import annotations

from math import prod

import numpy as np

from .axismap import Fill, runs
from .finite import is_finite
from .mapped import ready
from .recipe import CHUNK, Recipe, column_means, fraction, mean_rows, plain_mean, row_means


class Stream:
    """The result of a recipe on one source tensor, as [rows, columns]. `fill` may be called from several threads."""

    def __init__(self, recipe: Recipe, old: np.ndarray):
        self.recipe, self.dtype = recipe, recipe.numpy_dtype
        self.row_axes, self.axis = recipe.table
        self.rows, self.columns = prod(axis.new for axis in self.row_axes), self.axis.new
        self.row_bytes = self.columns * self.dtype.itemsize
        self.old = old.reshape(prod(axis.old for axis in self.row_axes), self.axis.old)
        self.old_bytes = self.old.view(np.uint8)  # [old rows, bytes]
        self.column_runs = runs(np.arange(self.columns), self.axis.source, self.axis.fill)
        self.columns_of = {code: np.flatnonzero(self.axis.fill == code) for code in Fill}
        self.places = {code: _places(index) for code, index in self.columns_of.items()}
        self.scattered = len(self.column_runs) > max(64, self.columns // 8)
        self.noise = recipe.noise()
        if any((axis.fill == Fill.FREE).any() for axis in recipe.axes):
            self._prepare_free(old)
        self.peers = {
            k: _peers(axis.groups(), axis.new) for k, axis in enumerate((*self.row_axes, self.axis)) if axis.share
        }
        if recipe.drawn is not None and recipe.drawn < len(self.row_axes):  # before other means, which are taken of drawn entries too
            (self.draw_means,) = self._row_means(recipe.drawn, plain_mean(self.row_axes[recipe.drawn]), Fill.DRAWN)
        self.means: dict[int, np.ndarray] = {}  # row axis -> [means, rows without that axis, columns]
        for k in reversed(range(len(self.row_axes))):
            if (self.row_axes[k].fill == Fill.MEAN).any():
                self.means[k] = self._row_means(k, self.row_axes[k].means[1], Fill.MEAN).astype(self.dtype)

    def _prepare_free(self, old: np.ndarray) -> None:
        ready(old)
        if self.recipe.is_random:
            self.std = np.float32(self.recipe.random_std(old))
            self.table = self.noise.table  # made now, before several threads would make it at once
            large = self.rows * self.columns > len(self.table)
            self.scaled_table = self.recipe.random(self.table, self.std) if large else None
        else:
            self.free_row = np.zeros(self.columns, self.dtype)
            value = self.recipe.free_value(old)
            self.free_row[self.columns_of[Fill.FREE] if value.ndim else slice(None)] = value

    def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Write the given rows, int64 [r] in order, to `out` [r, columns]."""
        source, fill = self._row_maps(rows)
        for start, stop, code, first in runs(rows, source, fill):
            if code == Fill.OLD:
                ready(self.old[first : first + stop - start])
            step = max(1, CHUNK // max(1, self.columns)) if self._computes else stop - start
            for at in range(start, stop, step):
                to = min(at + step, stop)
                self._fill_run(rows[at:to], code, first + at - start, out[at:to])
        if self.recipe.is_float and not self.recipe.odd and not is_finite(out):  # the block is in the cache: looking costs little
            self.recipe.odd.append(self.recipe.origin or self.recipe.name)

    @property
    def _computes(self) -> bool:
        """Whether temporary arrays are needed, so that blocks must be cut up."""
        return bool(self.recipe.is_scaled or self.scattered or self.peers or self.recipe.drawn is not None or self.columns_of[Fill.MEAN].size)

    def _row_maps(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source row (where OLD) and fill of each row."""
        source, fill = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.uint8)
        for axis, index in zip(self.row_axes, self._indices(rows), strict=True):
            source = source * axis.old + axis.source[index]
            fill = np.maximum(fill, axis.fill[index])
        return source, fill

    def _indices(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Index of each row along each row axis."""
        return np.unravel_index(rows, [axis.new for axis in self.row_axes]) if self.row_axes else ()

    def _fill_run(self, rows: np.ndarray, code: int, source: int, out: np.ndarray) -> None:
        """Consecutive rows of one fill; OLD ones come from the old rows `source`, `source + 1` and so on."""
        if code == Fill.ZERO:
            out[...] = self.recipe.zero_value
            return
        if code == Fill.MEAN:
            self._copy_means(rows, out)
        elif code == Fill.FREE:
            self._free(rows, 0, self.columns, out)
        elif code == Fill.DRAWN:
            self._draw_rows(rows, out)
        elif self.scattered or self.peers:
            self._gather(rows, source, out)
        else:
            self._copy_runs(rows, source, out)
        if code != Fill.MEAN and self.columns_of[Fill.DRAWN].size:
            index = self.columns_of[Fill.DRAWN]
            drawn = self.recipe.draw(column_means(self._old_columns(out), plain_mean(self.axis)).T, index, rows)
            out[:, index] = drawn.T
        if code != Fill.MEAN and self.places[Fill.MEAN]:
            kind, weights = self.axis.means
            means = column_means(self._old_columns(out), weights).astype(self.dtype)
            for place in self.places[Fill.MEAN]:
                out[:, place] = means[:, kind[place]]
        for place in self.places[Fill.ZERO]:
            out[:, place] = self.recipe.zero_value

    def _old_columns(self, out: np.ndarray) -> np.ndarray:
        """Whole rows [r, columns] without what is new in their columns."""
        old = self.places[Fill.OLD]
        return out[:, old[0] if len(old) == 1 else self.columns_of[Fill.OLD]]

    def _draw_rows(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Rows that are DRAWN along one row axis."""
        k = self.recipe.drawn
        stride = prod(axis.new for axis in self.row_axes[k + 1 :])
        index, without = self._indices(rows)[k], rows // (stride * self.row_axes[k].new) * stride + rows % stride
        out[...] = self.recipe.draw(self.draw_means[without], index, without[:, None] * self.columns + np.arange(self.columns))

    def _copy_runs(self, rows: np.ndarray, source: int, out: np.ndarray) -> None:
        """OLD rows, run by run of columns."""
        size = self.dtype.itemsize
        for start, stop, code, first in self.column_runs:
            if code == Fill.FREE:
                self._free(rows, start, stop, out[:, start:stop])
            elif code == Fill.OLD and self.recipe.is_scaled:
                old = self.old[source : source + len(rows), first : first + stop - start]
                out[:, start:stop] = self.recipe.scaled(old).astype(self.dtype)
            elif code == Fill.OLD:  # as bytes: one memcpy for each row, also where the file does not align the elements
                old = self.old_bytes[source : source + len(rows), first * size : (first + stop - start) * size]
                out.view(np.uint8)[:, start * size : stop * size] = old

    def _gather(self, rows: np.ndarray, source: int, out: np.ndarray) -> None:
        """OLD rows whose columns come from many places, or whose entries are shares."""
        values = self.old[source : source + len(rows)].take(self.axis.source.clip(0), axis=1)
        values = self.recipe.scaled(values) if self.recipe.is_scaled else values
        for k in self.peers:
            values = self._share(rows, values.astype(np.float64), k)
        out[...] = values.astype(self.dtype)
        free = self.columns_of[Fill.FREE]
        if free.size:
            values = np.empty_like(out)
            self._free(rows, 0, self.columns, values)
            out[:, free] = values[:, free]

    def _free(self, rows: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
        """FREE entries of consecutive rows and the columns `start .. stop`."""
        if not self.recipe.is_random:
            out[...] = self.free_row[start:stop]
            return
        if self.scaled_table is not None:  # then copying is all that is left to do
            for r, c, values in self.noise.pieces(self.scaled_table, int(rows[0]), len(rows), start, stop):
                out[r, c] = values
            return
        for r, c, normals in self.noise.pieces(self.table, int(rows[0]), len(rows), start, stop):
            if self.recipe.is_float:
                np.multiply(normals, self.std, out=out[r, c], casting="unsafe")
            else:
                out[r, c] = self.recipe.random(normals, self.std)

    def _share(self, rows: np.ndarray, whole: np.ndarray, k: int) -> np.ndarray:
        """Shares along axis `k` of the old entries float64 [r, columns]; the last copy gets what the others leave."""
        by_row = k < len(self.row_axes)
        normals = self._normals(rows)
        index = self._indices(rows)[k] if by_row else np.arange(self.columns)
        peers = self.peers[k][index]  # [index, copies]
        stride = prod(axis.new for axis in self.row_axes[k + 1 :])
        count, last = (peers >= 0).sum(axis=1), peers.max(axis=1) == index
        count, last = (count[:, None], last[:, None]) if by_row else (count, last)

        def part(normals: np.ndarray) -> np.ndarray:
            return np.where(count > 1, whole * fraction(normals, np.maximum(count, 1)), whole).astype(self.dtype)

        rest, finite = whole, np.isfinite(whole)
        for j in range(peers.shape[1] - 1):
            peer = peers[:, j].clip(0)
            theirs = self._normals(rows + (peer - index) * stride) if by_row else normals.take(peer, axis=1)
            rest = np.subtract(rest, np.where(count > j + 1, part(theirs).astype(np.float64), 0), out=rest.copy(), where=finite)
        return np.where(last, rest.astype(self.dtype), part(normals))

    def _normals(self, rows: np.ndarray) -> np.ndarray:
        """float32 [r, columns] random numbers of any rows."""
        out = np.empty((len(rows), self.columns), np.float32)
        for start, stop, _, _ in runs(rows, rows, np.ones(len(rows), np.uint8)):
            for r, c, normals in self.noise.pieces(self.noise.table, int(rows[start]), stop - start, 0, self.columns):
                out[start:stop][r, c] = normals
        return out

    def _row_means(self, k: int, weights: np.ndarray, code: Fill) -> np.ndarray:
        """Means over the OLD positions of row axis `k`, for its entries of one code: float64 [means, rows without that axis, columns]."""
        sizes, fills = [axis.new for axis in self.row_axes], [axis.fill for axis in self.row_axes]
        stride, step = prod(sizes[k + 1 :]), mean_rows(self.columns)
        old = np.flatnonzero(fills[k] == Fill.OLD) * stride
        out = np.zeros((len(weights), prod(sizes[:k]) * stride, self.columns))
        for at in range(out.shape[1]):
            rows = at // stride * stride * sizes[k] + at % stride + old
            others = [fills[j][index[0]] for j, index in enumerate(self._indices(rows)) if j != k]
            if Fill.ZERO in others or Fill.MEAN in (others[:k] if code == Fill.MEAN else others):
                continue  # never read: zero, or a mean along an axis that counts more
            chunks = (self._rows(rows[i : i + step]) for i in range(0, len(rows), step))
            out[:, at] = row_means(chunks, weights)
        return out

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.columns), self.dtype)
        self.fill(rows, out)
        return out

    def _copy_means(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Rows that are MEAN along some row axis; the first such axis counts, as it is filled last."""
        sizes = [axis.new for axis in self.row_axes]
        todo = np.ones(len(rows), bool)
        for k in sorted(self.means):
            stride = prod(sizes[k + 1 :])
            kind = self.row_axes[k].means[0][self._indices(rows)[k]]
            here = todo & (kind >= 0)
            out[here] = self.means[k][kind[here], rows[here] // (stride * sizes[k]) * stride + rows[here] % stride]
            todo &= ~here


def _places(index: np.ndarray) -> list[slice] | list[np.ndarray]:
    """Indices as slices, where those are few: numpy is ten times faster with them."""
    cuts = np.flatnonzero(np.diff(index) != 1) + 1
    if len(cuts) > max(64, len(index) // 8):
        return [index]
    return [slice(int(part[0]), int(part[-1]) + 1) for part in np.split(index, cuts) if part.size]


def _peers(groups: list[np.ndarray], size: int) -> np.ndarray:
    """int64 [size, most copies]: the indices with the same source as each index, in order, padded with -1."""
    table = np.full((size, max(map(len, groups), default=1)), -1)
    for group in groups:
        table[group, : len(group)] = group
    return table
