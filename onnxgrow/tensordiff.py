"""Two tensors entry by entry, in blocks: how many entries differ, where and by how much, and what became of the old block of a grown one.

Nothing here holds more than a block of a tensor that lies in a file. Entries are equal when their bits are: a NaN equals itself, 0.0 is not -0.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, isfinite, prod

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .external import TensorRef
from .mapped import reading
from .source import Source

BLOCK = 1 << 20  # entries
CONSTANT = 1e-5  # spread of ratios that still counts as one factor: rounding of float32, and of sums of shares
PACKED = {TensorProto.INT4: 4, TensorProto.UINT4: 4} | {getattr(TensorProto, n): b for n, b in (("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2)) if hasattr(TensorProto, n)}


@dataclass(frozen=True)
class Held:
    """A tensor of a file: its type and shape, and where its entries are."""

    dtype: int
    shape: tuple[int, ...]
    at: TensorRef | TensorProto

    @classmethod
    def of(cls, tensor: TensorProto, source: Source | None = None) -> Held:
        """An initializer, or any tensor that stands in the model itself."""
        ref = source.tensors.get(tensor.name) if source is not None else None
        return cls(tensor.data_type, tuple(tensor.dims), ref or tensor)

    @property
    def entries(self) -> int:
        return prod(self.shape)

    @property
    def kind(self) -> str:
        """`float32`: the element type by its usual name."""
        return "string" if self.dtype == TensorProto.STRING else kind_name(self.dtype)

    def blocks(self) -> Iterator[np.ndarray]:
        """All entries in order, [at most BLOCK] at a time; types below one byte as one byte each."""
        if isinstance(self.at, TensorRef):
            yield from _read(self.at)
        else:
            whole = _inline(self.at)
            yield from (whole[i : i + BLOCK] for i in range(0, len(whole), BLOCK))


def kind_name(dtype: int) -> str:
    try:
        return helper.tensor_dtype_to_np_dtype(dtype).name
    except (KeyError, TypeError):
        return f"type {dtype}"


def _inline(tensor: TensorProto) -> np.ndarray:
    if tensor.data_type == TensorProto.STRING:
        return np.array(list(tensor.string_data), dtype=object)
    array = np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(-1)
    bits = PACKED.get(tensor.data_type)
    return array if bits is None else array.view(np.uint8) & ((1 << bits) - 1)


def _read(ref: TensorRef) -> Iterator[np.ndarray]:
    bits = PACKED.get(ref.dtype)
    dtype = np.dtype(np.uint8) if bits else helper.tensor_dtype_to_np_dtype(ref.dtype)
    step, left = BLOCK * (bits or 8 * dtype.itemsize) // 8, prod(ref.shape)
    with reading(ref.file), open(ref.file, "rb") as file:
        file.seek(ref.offset)
        for start in range(0, ref.length, step):
            block = np.frombuffer(file.read(min(step, ref.length - start)), dtype)
            if bits:
                shifts = np.arange(0, 8, bits, dtype=np.uint8)
                block = (block[:, None] >> shifts & ((1 << bits) - 1)).reshape(-1)[:left]
            left -= len(block)
            yield block


@dataclass
class Gap:
    """What a comparison of equally many entries found; `add` one block after the other.

    Attributes:
        differ: entries whose bits differ; largest: the largest difference between numbers, infinite where only one of them is finite.
        low, high: the first and last index of what differs along each axis, where the shape is known.
    """

    shape: tuple[int, ...] | None = None
    entries: int = 0
    differ: int = 0
    largest: float = 0.0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    _ratios: list[float] = field(default_factory=lambda: [inf, -inf])  # smallest and largest of b / a

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Compare two [n] blocks; of two types the second one counts."""
        x = a if a.dtype == b.dtype else a.astype(b.dtype)
        where = np.flatnonzero(_bits(x) != _bits(b))
        if len(where):
            self.differ += len(where)
            self._where(where + self.entries)
        if b.dtype.kind != "O" and (len(where) or a.dtype != b.dtype):
            self._measure(a, b)
        self.entries += len(b)

    def _where(self, index: np.ndarray) -> None:
        if self.shape:
            at = np.stack(np.unravel_index(index, self.shape))
            low, high = at.min(axis=1), at.max(axis=1)
            self.low = low if self.low is None else np.minimum(self.low, low)
            self.high = high if self.high is None else np.maximum(self.high, high)

    def _measure(self, a: np.ndarray, b: np.ndarray) -> None:
        x, y = _numbers(a), _numbers(b)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            gap = np.abs(x - y)
            gap[(x == y) | (np.isnan(x) & np.isnan(y))] = 0
            self.largest = max(self.largest, float(np.nan_to_num(gap, nan=inf, posinf=inf).max(initial=0)))
            ratio = (y / x)[(x != 0) | (y != 0)]
        if len(ratio):
            real = np.nan_to_num(ratio.real, nan=inf, posinf=inf)
            self._ratios = [min(self._ratios[0], float(real.min())), max(self._ratios[1], float(real.max()))]

    @property
    def factor(self) -> float | None:
        """The one number by which all entries were multiplied, None where there is none; 1 is no factor."""
        low, high = self._ratios
        middle = (low + high) / 2
        found = self.differ and isfinite(middle) and middle and high - low <= CONSTANT * abs(middle)
        return middle if found and abs(middle - 1) > CONSTANT else None

    @property
    def within(self) -> list[list[int]] | None:
        """[first, last] index of what differs, along each axis."""
        return None if self.low is None else [[int(i), int(j)] for i, j in zip(self.low, self.high)]


def _numbers(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _bits(x: np.ndarray) -> np.ndarray:
    size = x.dtype.itemsize
    if x.dtype.kind in "Ob" or size not in (1, 2, 4, 8):
        return x
    return x.view(f"u{size}")


def gap_between(a: Held, b: Held) -> Gap:
    """Two tensors of one shape; entries of another type are first brought to that of `b`."""
    gap = Gap(a.shape)
    if a.at == b.at and isinstance(a.at, TensorRef):
        gap.entries = a.entries
        return gap
    for x, y in zip(a.blocks(), b.blocks(), strict=True):
        gap.add(x, y)
    return gap


@dataclass(frozen=True)
class Regions:
    """A tensor that grew (or shrank): the entries that both have, and those that only the larger one has.

    Attributes:
        old: the shared block, entry by entry; new, zero: entries that only one has, and how many of these are zero.
    """

    old: Gap
    new: int
    zero: int


def compare_regions(a: Held, b: Held, mine: list[np.ndarray], theirs: list[np.ndarray]) -> Regions:
    """Entries of `a` where all its masks (bool, one per axis) hold beside those of `b`, in order; what is left of both is new.

    Raises:
        ValueError: the masks do not choose equally many entries.
    """
    if [m.sum() for m in mine] != [m.sum() for m in theirs]:
        raise ValueError("the blocks have different shapes")
    gap, rest = Gap(tuple(int(m.sum()) for m in mine)), [0, 0]
    left, right = _Chosen(a, mine, rest), _Chosen(b, theirs, rest)
    while len(y := right.next()):
        gap.add(left.take(len(y)), y)
    left.drain()
    return Regions(gap, *rest)


class _Chosen:
    """The entries of a tensor where masks hold, block by block; counts the others, and the zeros among them, in `rest`."""

    def __init__(self, held: Held, masks: list[np.ndarray], rest: list[int]):
        self.blocks, self.shape, self.masks, self.rest = held.blocks(), held.shape, masks, rest
        self.at, self.waiting, self.over = 0, np.empty(0), False

    def next(self) -> np.ndarray:
        """The chosen entries of the next block that has some; empty at the end."""
        for block in self.blocks:
            chosen = self._mask(len(block))
            others = block[~chosen]
            self.rest[0] += len(others)
            self.rest[1] += int((_numbers(others) == 0).sum()) if others.dtype.kind != "O" else 0
            if chosen.any():
                return block[chosen]
        return np.empty(0)

    def _mask(self, count: int) -> np.ndarray:
        """Which of the next entries are chosen: lines along the last axis by the masks of the others, times the mask of that axis."""
        width = self.shape[-1]
        first, behind = self.at // width, -(-(self.at + count) // width)
        index, stride, lines = np.arange(first, behind), 1, np.ones(behind - first, bool)
        for size, mask in zip(reversed(self.shape[:-1]), reversed(self.masks[:-1])):
            if not mask.all():
                lines &= mask[index // stride % size]
            stride *= size
        start = self.at - first * width
        self.at += count
        return (lines[:, None] & self.masks[-1]).reshape(-1)[start : start + count]

    def take(self, count: int) -> np.ndarray:
        """The next `count` chosen entries."""
        parts = [self.waiting] if len(self.waiting) else []
        have = len(self.waiting)
        while have < count:
            parts.append(self.next())
            have += len(parts[-1])
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self.waiting = whole[count:]
        return whole[:count]

    def drain(self) -> None:
        while len(self.next()):
            pass
