"""Random numbers that depend on (seed, tensor name, position) only, at the speed of copying.

All tensors read one table of standard normals. Row r of a tensor, or its r-th run of 65536 columns where rows are
longer, reads the window that starts at (base + r * stride) mod the table's length. Base and stride are a hash of seed
and name; the stride is odd and the table's length a power of two, so no two of the first million rows share a window,
and it is at least the window's length, so neighbouring rows do not overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

TABLE = (
    1 << 20
)  # entries, 4 MB of float32: fits in cache, and matrices of many more have the spectrum of independent ones
WINDOW = 1 << 16  # columns read from one start


@lru_cache(maxsize=1)
def normals(seed: int) -> np.ndarray:
    """float32 [TABLE + WINDOW] standard normals, the first WINDOW again at the end so that windows need not wrap."""
    table = np.empty(TABLE + WINDOW, np.float32)
    np.random.Generator(np.random.Philox(seed)).standard_normal(dtype=np.float32, out=table[:TABLE])
    table[TABLE:] = table[:WINDOW]
    return table


class Noise:
    """Standard normals for every position of one tensor, seen as [rows, columns]."""

    def __init__(self, seed: int, name: str, columns: int):
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
        window = max(1, min(columns, WINDOW))
        self.windows = -(-max(1, columns) // WINDOW)  # in one row
        self.base = int.from_bytes(digest[:8], "little") % TABLE
        self.stride = (window + int.from_bytes(digest[8:], "little") % window) | 1
        self.seed = seed

    @property
    def table(self) -> np.ndarray:
        return normals(self.seed)  # made when the first number is needed

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float32 [r, c]: the normals at the given positions, `rows` [r] and `columns` [c]. The definition."""
        start = (self.base + (rows[:, None] * self.windows + columns // WINDOW) * self.stride) % TABLE
        return self.table[start + columns % WINDOW]

    def pieces(
        self, table: np.ndarray, row: int, rows: int, first: int, last: int
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """The same for rows `row .. row + rows` and columns `first .. last`, as views into `table` or a function of it.

        Yields (rows, columns, view of that shape), slices relative to `row` and `first`: one view covers all rows whose
        windows follow each other in the table, since their starts are equally spaced.
        """
        size = table.itemsize
        step = self.windows * self.stride % TABLE
        for left in range(first - first % WINDOW, last, WINDOW):
            start, stop = max(first, left), min(last, left + WINDOW)
            at = row
            while at < row + rows:
                origin = (self.base + (at * self.windows + left // WINDOW) * self.stride) % TABLE
                count = min(row + rows - at, -(-(TABLE - origin) // step) if step else rows)
                shape, offset = (count, stop - start), size * (origin + start - left)
                view = np.ndarray(shape, table.dtype, table, offset, (size * step, size))
                yield slice(at - row, at - row + count), slice(start - first, stop - first), view
                at += count
