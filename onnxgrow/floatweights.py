"""The floats behind quantized weights, computed block by block into files that live as long as the Source that refers to them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from .errors import GraphError
from .external import TensorRef
from .graph import constant_array, free_name
from .packed import Quantized, fill, unpacked_rows
from .source import Source

FLOAT_MODEL = "export the float model, and grow that"


@dataclass
class FloatWeights:
    """The weights of a quantized graph, and those that stand for them in `proto`, which becomes the float graph."""

    source: Source
    proto: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    weights: dict[tuple, str] = field(default_factory=dict)  # how a quantized initializer is read -> its float form

    def __post_init__(self):
        self.proto.CopyFrom(self.source.proto)
        graph = self.proto.graph
        self.held = {t.name: t for t in graph.initializer}
        self.constants = {n.output[0]: n for n in graph.node if n.op_type == "Constant"}
        self.makers = {o: n for n in graph.node for o in n.output}
        self.outputs = {v.name for v in graph.output}
        self.taken = {*self.held, *self.makers, *(v.name for v in graph.input)}
        self.folder = tempfile.TemporaryDirectory(prefix="onnxgrow-float-")
        self.refs: dict[str, TensorRef] = {}

    def is_constant(self, name: str) -> bool:
        return name in self.held or name in self.constants

    def array(self, name: str) -> np.ndarray:
        return constant_array(self.constants[name]) if name in self.constants else self.source.array(name)

    def int_ref(self, name: str):
        """A TensorRef, or the small tensor in memory."""
        return self.source.tensors.get(name) if name in self.source.tensors else self.array(name)

    def weight(self, node: onnx.NodeProto, x: int, scale: int, zero: int, axis: int, block: int = 0, held: str | None = None, name: str | None = None) -> str:
        return self.floats(node, held or node.input[x], node.input[scale], at(node, zero), axis, block, name)

    def floats(self, node: onnx.NodeProto, held: str, scale: str, zero: str | None, axis: int, block: int, name: str | None = None) -> str:
        """The float form of a quantized initializer; the same one for the same reading, so that tied weights stay tied."""
        for number in (scale, zero):
            if number and not self.is_constant(number):
                raise GraphError("the scale of a quantized weight is computed", node=node.name or node.output[0], hint=FLOAT_MODEL)
        scales = self.array(scale)
        key = held, scale, zero, axis if scales.size > 1 else 0, block
        if key not in self.weights:
            kind = helper.np_dtype_to_tensor_dtype(scales.dtype)
            zeros = np.asarray(self.array(zero)).astype(np.int32) if zero else None
            made = name if name and name not in self.outputs else free_name(f"{held}_float", self.taken, never=True)
            self.weights[key] = self.write(made, Quantized(self.int_ref(held), scales, zeros, axis, block), kind)
        return self.weights[key]

    def blocks(self, node: onnx.NodeProto, data: int, scale: int, zero: int, shape: tuple[int, int], bits: int, block: int, axis: int,
               turned: bool = False) -> str:
        """A weight packed into bytes by com.microsoft's operators: rows of blocks, the first of two numbers in the low half of a byte."""
        rows, columns = shape
        count = -(-columns // block)
        scales = np.asarray(self.array(node.input[scale])).reshape(rows, count)
        zeros = np.full((rows, count), 2 ** (bits - 1), np.float32)
        if at(node, zero):
            held = np.asarray(self.array(at(node, zero)))
            if held.dtype == np.uint8:
                held = unpacked_rows(held.reshape(rows, -1), bits)[:, :count]
            zeros = held.reshape(rows, count).astype(np.float32)
        key = node.input[data], node.input[scale], at(node, zero), axis, block, turned
        if key not in self.weights:
            made = free_name(f"{node.input[data]}_float", self.taken, never=True)
            ref = self.int_ref(node.input[data])
            self.weights[key] = self.write(made, Quantized(ref, scales, zeros, axis, block, bits, shape, turned), helper.np_dtype_to_tensor_dtype(scales.dtype))
        return self.weights[key]

    def write(self, name: str, weight: Quantized, kind: int, shape: tuple[int, ...] | None = None) -> str:
        """Compute a weight into a file of its own; `shape` where its rows stand for more than one axis."""
        shape, dtype = shape or weight.shape, helper.tensor_dtype_to_np_dtype(kind)
        file = Path(self.folder.name) / f"{len(self.refs)}.bin"
        fill(weight, file, dtype)
        self.proto.graph.initializer.add(name=name, data_type=kind, dims=shape)
        self.refs[name] = TensorRef(file, 0, prod(shape) * dtype.itemsize, kind, shape)
        self.taken.add(name)
        return name


def at(node: onnx.NodeProto, slot: int) -> str | None:
    """The name of an input; None where it is absent."""
    return node.input[slot] if slot < len(node.input) and node.input[slot] else None
