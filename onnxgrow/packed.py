"""Numbers of 2, 4 and 8 bits as floats, block by block: (q − zero point) · scale, in the type of the scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from .external import TensorRef
from .mapped import reading

ELEMENTS = 1 << 22  # in one block
BITS = {TensorProto.INT4: (4, True), TensorProto.UINT4: (4, False), **{getattr(TensorProto, n): (2, n == "INT2") for n in ("INT2", "UINT2") if hasattr(TensorProto, n)}}


@dataclass(frozen=True)
class Quantized:
    """A quantized weight and how it is read.

    Args:
        held: where its numbers lie, or the numbers themselves.
        scale, zero: one number, one per entry of `axis`, or [.., blocks along `axis`, ..] with `block` > 0; zero None: 0.
        bits, rows: how bytes are packed and what they hold [rows, columns], for tensors of bytes that are no numbers themselves.
        turned: the result is the transpose.
    """

    held: TensorRef | np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    axis: int
    block: int
    bits: int | None = None
    rows: tuple[int, int] | None = None
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.rows or tuple(self.held.shape)
        return shape[::-1] if self.turned else shape


def fill(weight: Quantized, file: Path, dtype: np.dtype) -> None:
    """Write the floats of a weight, in memory of one block."""
    shape = weight.rows or tuple(weight.held.shape)
    if 0 in shape:
        file.touch()
        return
    out = np.memmap(file, dtype, "w+", shape=weight.shape or (1,))
    if not shape:
        out[...] = _floats(weight, np.asarray(_whole(weight.held)).reshape(1), 0, (1,)).astype(dtype)
        return
    step = max(1, ELEMENTS // max(1, int(np.prod(shape[1:], dtype=np.int64))))
    step = step if step == 1 and shape[0] == 1 else -(-step // 8) * 8  # whole bytes
    for row in range(0, shape[0], step):
        stop = min(row + step, shape[0])
        block = _floats(weight, _numbers(weight, row, stop, shape), row, shape).astype(dtype)
        if weight.turned:
            out[:, row:stop] = block.T
        else:
            out[row:stop] = block
    out.flush()


def _floats(weight: Quantized, q: np.ndarray, row: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of rows `row ..` of a weight of this shape."""
    scale = _spread(weight, np.asarray(weight.scale), row, len(q), shape).astype(np.float32)
    if weight.zero is not None:
        zero = _spread(weight, np.asarray(weight.zero), row, len(q), shape)
        q = q.astype(np.int32) - zero if zero.dtype.kind in "iu" else q.astype(np.float32) - zero
    return q.astype(np.float32) * scale


def _spread(weight: Quantized, values: np.ndarray, row: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Scales or zero points in a shape that broadcasts over the rows `row .. row + count`."""
    if values.size == 1:
        return values.reshape(())
    axis = weight.axis % len(shape)
    if not weight.block:
        whole = values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return whole[row : row + count] if axis == 0 else whole
    if axis == 0:
        return values[np.arange(row, row + count) // weight.block]
    cut = [slice(None)] * len(shape)
    cut[axis] = slice(0, shape[axis])
    return np.repeat(values[row : row + count], weight.block, axis)[tuple(cut)]


def _numbers(weight: Quantized, row: int, stop: int, shape: tuple[int, ...]) -> np.ndarray:
    """The quantized numbers of some rows."""
    held, width = weight.held, int(np.prod(shape[1:], dtype=np.int64))
    if weight.rows:
        table = _whole(held).reshape(shape[0], -1)[row:stop]
        return unpacked_rows(table, weight.bits)[:, : shape[1]]
    if isinstance(held, TensorRef) and held.dtype in BITS:
        bits, signed = BITS[held.dtype]
        first, last = row * width * bits // 8, -(-stop * width * bits // 8)
        with reading(held.file), open(held.file, "rb") as file:
            file.seek(held.offset + first)
            raw = np.frombuffer(file.read(last - first), np.uint8)
        flat = unpacked_rows(raw[None], bits)[0, : (stop - row) * width].astype(np.int8)
        return (np.where(flat >= 1 << (bits - 1), flat - (1 << bits), flat) if signed else flat).reshape(stop - row, *shape[1:])
    return _whole(held)[row:stop].astype(np.int32)


def _whole(held: TensorRef | np.ndarray) -> np.ndarray:
    return held.array() if isinstance(held, TensorRef) else held


def unpacked_rows(table: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [rows, bytes] -> uint8 [rows, numbers], the first in the lowest bits."""
    if bits == 8:
        return table
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((table[..., None] >> shifts) & ((1 << bits) - 1)).reshape(len(table), -1)
