"""Open an ONNX file with its weights left on disk.

`open_source` returns the graph as a ModelProto whose big weights are detached: each becomes a TensorRef (file, offset,
length), whether it was embedded in the .onnx or external, and is memory-mapped when it is asked for. A 1.9 GB file
opens in milliseconds. Where external data may lie: external.py.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, numpy_helper

from . import disk, wire
from .errors import FileError
from .external import AGAIN, DataFolder, TensorRef, check_length, embed
from .mapped import reading
from .regular import open_regular
from .wellformed import check_model

INLINE_BYTES = 1024  # tensors up to this size stay in the header: shape arithmetic needs their values
PLAIN_ATTRIBUTES = [getattr(AttributeProto, kind) for kind in ("INT", "INTS", "FLOAT", "FLOATS", "STRING", "STRINGS")]
EXPORT = "export the model first, for example with torch.onnx.export"
FOREIGN = {  # how other files start: what they are, and what to do
    b"PK\x03\x04": ("a zip archive, perhaps a PyTorch checkpoint", EXPORT),
    **{bytes([0x80, protocol]): ("a Python pickle", EXPORT) for protocol in (2, 3, 4, 5)},
    b"version https://git-lfs": ("a Git LFS pointer, not the model itself", "run: git lfs pull"),
}


@dataclass(frozen=True)
class Source:
    """A model on disk.

    Args:
        proto: the whole model, but the initializers in `tensors` (by name) are without their data.
        data: the external data files, real path by location as the model names them.
        constant: the one number that an initializer holds everywhere by construction (in inserted blocks), by name.
        temporary: the folder of weights that were computed and lie in no file of the model; it goes when nobody holds it any more.
        seen: which file each one was when it was opened (disk.py).
    """

    path: Path
    proto: onnx.ModelProto
    tensors: dict[str, TensorRef]
    data: dict[str, Path]
    constant: dict[str, float] = field(default_factory=dict)
    temporary: TemporaryDirectory | None = None
    seen: dict[Path, disk.Identity] = field(default_factory=dict)

    @cached_property
    def _inline(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.graph.initializer if tensor.name not in self.tensors}

    @property
    def files(self) -> list[Path]:
        """Every file that is read: the graph, its data, and what else weights come from."""
        return list(dict.fromkeys([self.path, *self.data.values(), *self.seen]))

    @property
    def external(self) -> bool:
        """Whether any tensor lies in a file of its own."""
        return bool(self.data)

    def array(self, name: str) -> np.ndarray:
        """The values of initializer `name`, memory-mapped where they are detached. KeyError when there is none."""
        if name in self.tensors:
            return self.tensors[name].array()
        return numpy_helper.to_array(self._inline[name])  # as many values as its shape says: `wellformed`


def open_source(path: str | os.PathLike) -> Source:
    """Open the model at `path`; FileError when it is missing, not ONNX, truncated, or breaks a read rule."""
    path = Path(path).absolute()
    seen = disk.identities([path])
    proto, spans = _read_header(path)
    tensors: dict[str, TensorRef] = {}
    folder = DataFolder(path)
    names: set[str] = set()
    for tensor, span in zip(proto.graph.initializer, spans, strict=True):
        if tensor.name in names:
            raise FileError(f"{path} has two initializers of one name", node=tensor.name, hint=AGAIN)
        names.add(tensor.name)
        if span is not None:
            check_length(tensor, span.length)
            tensors[tensor.name] = TensorRef(path, *span, tensor.data_type, tuple(tensor.dims))
        elif tensor.data_location == TensorProto.EXTERNAL:
            ref = folder.locate(tensor)
            if ref.length > INLINE_BYTES:
                tensors[tensor.name] = ref
            else:
                embed(tensor, ref)
        elif tensor.HasField("raw_data"):
            check_length(tensor, len(tensor.raw_data))
    for tensor in _nested_tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            embed(tensor, folder.locate(tensor))
    check_model(proto, path, frozenset(tensors))
    return Source(path, proto, tensors, {location: file for location, (file, _) in folder.files.items()},
                  seen=seen | disk.identities([file for file, _ in folder.files.values()]))


def locations(path: Path) -> set[str]:
    """Where the model at `path` says that its external data lies; nothing where it is no model that can be read."""
    try:
        proto, _ = _read_header(path)
    except FileError:
        return set()
    return {entry.value for tensor in (*proto.graph.initializer, *_nested_tensors(proto)) for entry in tensor.external_data if entry.key == "location"}


def _read_header(path: Path) -> tuple[onnx.ModelProto, list[wire.Span | None]]:
    """The model without big weights, and where the weight of each initializer is."""
    descriptor, size = open_regular(path, "model file")
    with reading(path), os.fdopen(descriptor, "rb") as file:
        if size == 0:
            raise FileError(f"{path} is empty", hint=AGAIN)
        start = file.read(64)
        for magic, (what, hint) in FOREIGN.items():
            if start.startswith(magic):
                raise FileError(f"{path} is {what}", hint=hint)
        try:
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
                header, spans = wire.detach(data, INLINE_BYTES)
            proto = onnx.ModelProto.FromString(header)
        except wire.WireError as error:
            cut = start[0] == 0x08  # the first field of an ONNX file is ir_version: this one began well
            what = "is damaged or incomplete" if cut else "is not an ONNX model"
            raise FileError(f"{path} {what}: it {error}", hint=AGAIN) from None
        except DecodeError:
            raise FileError(f"{path} is not an ONNX model, or nested too deep", hint=AGAIN) from None
    if not proto.HasField("graph"):
        raise FileError(f"{path} holds no graph: not an ONNX model, or cut off", hint=AGAIN)
    if not proto.ir_version or (proto.ir_version >= 3 and not proto.opset_import):
        raise FileError(f"{path} names no operator set version: not an ONNX model, or cut off", hint=AGAIN)
    return proto, spans


def _nested_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor but the top-level initializers: in attributes, subgraphs, functions and sparse initializers."""
    graphs, nodes = [proto.graph, *(g for t in proto.training_info for g in (t.initialization, t.algorithm))], [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            yield from () if graph is proto.graph else graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type in PLAIN_ATTRIBUTES:
                    continue
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
                yield from [attribute.t] if attribute.HasField("t") else []
                yield from attribute.tensors
                for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
                    yield from (sparse.values, sparse.indices)
        nodes = []
