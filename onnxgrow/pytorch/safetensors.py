"""Write a .safetensors file tensor by tensor, so that memory does not grow with the model.

The library's own writer takes all tensors at once. The format is a length, a JSON header and the bytes in its order
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ..mapped import ready

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
BLOCK = 1 << 23  # bytes written at a time


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: shape, the format's name of its type, and a function that maps its values."""

    shape: tuple[int, ...]
    type: str
    array: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * BYTES[self.type]


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], progress: Callable[[int, int], None] | None = None) -> None:
    """Write a new file; its bytes depend on the tensors alone. `progress` is called with (bytes of tensors written, bytes in all)."""
    header, at = {"__metadata__": metadata}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": t.type, "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            for block in _blocks(t.array()):
                file.write(block)
                done += len(block)
                if progress:
                    progress(done, at)
        file.flush()
        os.fsync(file.fileno())


def _blocks(array: np.ndarray) -> Iterator[bytes]:
    """The values in row-major order, some rows at a time: a transposed view is turned piece by piece."""
    if array.ndim == 0:
        yield array.tobytes()
        return
    ready(array.T)  # where it is turned; otherwise piece by piece
    rows = max(1, BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        ready(array[start : start + rows])
        yield np.ascontiguousarray(array[start : start + rows]).tobytes()
