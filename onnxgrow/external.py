"""Tensors that lie in files, and the rules for where external data may lie.

Read rules: known keys only, each once; a relative location without `..`, backslash or NUL, inside the model's own
folder after resolving links; a regular file; offset and length inside it; length = dims x bits. Whatever breaks a rule
is a FileError. They answer CVE-2022-25882, CVE-2024-27318 and their successors, and what onnx itself does not check.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import ClassVar

import numpy as np
from onnx import TensorProto, helper

from .errors import FileError
from .mapped import reading, ready
from .regular import open_regular

AGAIN = "export or download the model again"
KNOWN_KEYS = {"location", "offset", "length", "checksum", "basepath"}  # onnx.external_data_helper.ExternalDataInfo


@dataclass(frozen=True)
class TensorRef:
    """A tensor that lies in a file: `length` bytes from byte `offset`, little endian, `dtype` as in TensorProto."""

    file: Path
    offset: int
    length: int
    dtype: int
    shape: tuple[int, ...]
    in_file: ClassVar[bool] = True  # the bytes of the file are those of the tensor

    def array(self) -> np.ndarray:
        """The tensor, memory-mapped read-only. FileError for types below one byte: numpy cannot index them."""
        dtype = helper.tensor_dtype_to_np_dtype(self.dtype)
        if dtype.itemsize * int(np.prod(self.shape, dtype=np.int64)) != self.length:
            kind = TensorProto.DataType.Name(self.dtype)
            raise FileError(f"{self.file} holds packed {kind} weights", hint="grow the model before quantizing it")
        if self.length == 0:
            return np.empty(self.shape, dtype)
        try:
            with reading(self.file):
                mapped = np.memmap(self.file, np.uint8, "r", self.offset, self.length)
        except ValueError as error:  # it was long enough when the model was opened
            raise FileError(f"{self.file} became shorter while it was read", hint=AGAIN) from error
        return np.asarray(mapped).view(dtype).reshape(self.shape)


@dataclass(frozen=True)
class Filled(TensorRef):
    """A tensor that lies in no file: `value` everywhere."""

    value: float = 0.0
    in_file: ClassVar[bool] = False

    def array(self) -> np.ndarray:
        """The tensor as a view of one row: of the last axis that is longer than 1, and what is behind it."""
        last = max((i for i, n in enumerate(self.shape) if n > 1), default=0)
        row = np.full(self.shape[last:], self.value, helper.tensor_dtype_to_np_dtype(self.dtype))
        return np.broadcast_to(row, self.shape)


@dataclass(frozen=True)
class Converted(TensorRef):
    """A tensor that lies in a file with its two axes swapped, or in another float type: `stored`."""

    stored: TensorRef | None = None
    turned: bool = False
    in_file: ClassVar[bool] = False

    def array(self) -> np.ndarray:
        """The tensor in memory."""
        array = self.stored.array()
        ready(array)
        return np.ascontiguousarray(array.T if self.turned else array, helper.tensor_dtype_to_np_dtype(self.dtype))


def tensor_bytes(tensor: TensorProto) -> int:
    """Size of the tensor as raw_data, in bytes; FileError when its shape or type has none."""
    if any(dim < 0 for dim in tensor.dims):
        raise FileError(f"the shape {list(tensor.dims)} has a negative size", node=tensor.name, hint=AGAIN)
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        dtype = np.dtype(object)
    if dtype.hasobject:  # strings, unknown types
        raise FileError(f"the element type {tensor.data_type} has no raw data", node=tensor.name, hint=AGAIN)
    count = 1
    for dim in tensor.dims:
        count *= dim
    return -(-count * _bits(dtype) // 8)


@lru_cache(64)
def _bits(dtype: np.dtype) -> int:
    """Of one value in a file."""
    few = re.fullmatch(r"u?int([24])|float([46])_.*", dtype.name)
    return int(few[1] or few[2]) if few else 8 * dtype.itemsize


def check_length(tensor: TensorProto, length: int) -> None:
    expected = tensor_bytes(tensor)
    if length != expected:
        what = f"the shape {list(tensor.dims)} needs {expected} bytes of data, the file has {length}"
        raise FileError(what, node=tensor.name, hint=AGAIN)


def _external_error(tensor: TensorProto, problem: str) -> FileError:
    hint = "load and save the model again with onnx"
    return FileError(f"refused external data: {problem}", node=tensor.name, hint=hint)


class DataFolder:
    """Where the external data of one model may lie; checks each file once."""

    def __init__(self, model: Path):
        # A Hugging Face cache links the files of a model into a folder of blobs: the real model's folder counts too.
        self.roots = list(dict.fromkeys([model.parent.resolve(), model.resolve().parent]))
        self.files: dict[str, tuple[Path, int]] = {}  # location -> real path, size

    def locate(self, tensor: TensorProto) -> TensorRef:
        """The TensorRef of an external tensor; FileError where it breaks a read rule."""
        keys = [entry.key for entry in tensor.external_data]
        info = {entry.key: entry.value for entry in tensor.external_data}
        if len(info) < len(keys) or not info.keys() <= KNOWN_KEYS or "location" not in info:
            raise _external_error(tensor, f"keys {keys}: each of {sorted(KNOWN_KEYS)} may come once, location must")
        file, size = self._file(tensor, info["location"])
        if not all(re.fullmatch("[0-9]{1,19}", info.get(key, "0")) for key in ("offset", "length")):
            raise _external_error(tensor, f"offset or length is not a number in {info}")
        offset = int(info.get("offset", "0"))
        length = int(info["length"]) if "length" in info else tensor_bytes(tensor)
        check_length(tensor, length)
        if offset + length > size:
            raise _external_error(tensor, f"it ends at byte {offset + length} of {file}, which has {size}")
        return TensorRef(file, offset, length, tensor.data_type, tuple(tensor.dims))

    def _file(self, tensor: TensorProto, location: str) -> tuple[Path, int]:
        """The real path and the size of a data file."""
        if location not in self.files:
            parts = PureWindowsPath(location)
            if not location or "\\" in location or "\0" in location or parts.anchor or ".." in parts.parts:
                raise _external_error(tensor, f"location {location!r} is not a plain path below the model's folder")
            try:
                places = [root / location for root in self.roots]
                real = next((place for place in places if place.exists()), places[0]).resolve()
            except (OSError, RuntimeError):  # a name too long, a loop of links
                raise _external_error(tensor, f"location {location!r} cannot be resolved") from None
            if not any(real.is_relative_to(root) for root in self.roots):
                raise _external_error(tensor, f"location {location!r} is a link out of the model's folder")
            try:
                descriptor, size = open_regular(real, "external data file")
            except FileError as error:
                raise FileError(error.what, node=tensor.name, hint="put the data file beside the model") from None
            links = os.fstat(descriptor).st_nlink
            os.close(descriptor)
            if links > 1:  # as onnx does: what an archive unpacks may be a file of the user's under another name
                raise _external_error(tensor, f"location {location!r} has another name elsewhere (it is a hard link)")
            self.files[location] = real, size
        return self.files[location]


def embed(tensor: TensorProto, ref: TensorRef) -> None:
    """Read an external tensor into its proto."""
    with reading(ref.file), open(ref.file, "rb") as file:
        file.seek(ref.offset)
        tensor.raw_data = file.read(ref.length)
    if len(tensor.raw_data) < ref.length:
        raise FileError(f"{ref.file} became shorter while it was read", hint=AGAIN)
    del tensor.external_data[:]
    tensor.ClearField("data_location")
