"""A quantized graph as the float graph that it stands for: the step before a growth that needs numbers between two quantized ones.

Weights become exactly what the runtime makes of them, (q − zero point) · scale; the rounding of activations is left out. Large weights are
computed block by block into a temporary file, which lives as long as the Source that refers to it.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from .errors import GraphError
from .external import TensorRef
from .graph import attributes_of, free_name
from .packed import Quantized, fill, unpacked_rows
from .source import Source

MOVES = {"Gather", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Slice", "Flatten", "Expand", "Split", "Concat", "MaxPool"}
EVERY = [(0, 1, 2), (3, 4, 5)]
LINEAR = {  # operator -> its float form, (data, scale, zero point) of each operand, attributes that go on
    "QLinearMatMul": ("MatMul", EVERY, ()), "QLinearAdd": ("Add", EVERY, ()), "QLinearMul": ("Mul", EVERY, ()),
    "QGemm": ("Gemm", EVERY, ("alpha", "transA", "transB")), "QLinearSigmoid": ("Sigmoid", EVERY[:1], ()),
    "QLinearLeakyRelu": ("LeakyRelu", EVERY[:1], ("alpha",)), "QLinearSoftmax": ("Softmax", EVERY[:1], ("axis",)),
    "QLinearConv": ("Conv", EVERY, ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")),
}
INTEGER = {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
OPERATORS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits", "GatherBlockQuantized", "QAttention", "QLinearConcat",
             *LINEAR, *INTEGER}
FIRST = "turn the model into float first (--dequantize)"
FLOAT_MODEL = "export the float model, and grow that"


def is_quantized(source: Source) -> bool:
    return any(n.op_type in OPERATORS or n.op_type.startswith("Q") and n.domain == "com.microsoft" for n in source.proto.graph.node)


def advice(source: Source, otherwise: str) -> str:
    """The next step where something cannot grow: a quantized graph may in float."""
    return f"{FIRST}, or {otherwise}" if is_quantized(source) else otherwise


def dequantize(source: Source) -> Source:
    """The float graph; the source itself where nothing in it is quantized.

    Raises:
        GraphError: an operator is quantized in a way that has no float form here; the message names it.
    """
    if not is_quantized(source):
        return source
    return _Rewriter(source).run()


@dataclass
class _Rewriter:
    """One pass over the nodes, which are in order; values by their names."""

    source: Source
    proto: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    names: dict[str, str] = field(default_factory=dict)  # a value that is gone -> the one that stands for it
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[tuple, str] = field(default_factory=dict)  # how a quantized initializer is read -> its float form

    def __post_init__(self):
        self.proto.CopyFrom(self.source.proto)
        graph = self.proto.graph
        self.held = {t.name: t for t in graph.initializer}
        self.constants = {n.output[0]: n for n in graph.node if n.op_type == "Constant"}
        self.makers = {o: n for n in graph.node for o in n.output}
        self.users = defaultdict(list)
        for node in graph.node:
            for slot, name in enumerate(node.input):
                self.users[name].append((node, slot))
        self.outputs = {v.name for v in graph.output}
        self.taken = {*self.held, *self.makers, *(v.name for v in graph.input)}
        self.skipped: set[str] = set()  # by first output
        self.folder = tempfile.TemporaryDirectory(prefix="onnxgrow-float-")
        self.refs: dict[str, TensorRef] = {}

    def run(self) -> Source:
        graph = self.proto.graph
        used = {i for n in graph.node for i in n.input}
        for node in list(graph.node):
            if node.output[0] not in self.skipped:
                self._node(node)
        for node in self.nodes:
            node.input[:] = [self._now(i) for i in node.input]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._alive(self.nodes))
        now = {i for n in graph.node for i in n.input} | self.outputs
        for tensor in [t for t in graph.initializer if t.name in used and t.name not in now]:
            graph.initializer.remove(tensor)
        left = {t.name for t in graph.initializer}
        tensors = {name: ref for name, ref in {**self.source.tensors, **self.refs}.items() if name in left}
        return replace(self.source, proto=self.proto, tensors=tensors, temporary=self.folder)

    def _now(self, name: str) -> str:
        while name in self.names:
            name = self.names[name]
        return name

    def _alive(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Without those whose results nobody reads any more."""
        needed, kept = set(self.outputs), []
        for node in reversed(nodes):
            if any(o in needed for o in node.output):
                needed |= {*node.input, *self._captured(node)}
                kept.append(node)
        return kept[::-1]

    def _captured(self, node: onnx.NodeProto) -> set[str]:
        bodies = [g for a in node.attribute for g in [*([a.g] if a.HasField("g") else []), *a.graphs]]
        return {i for g in bodies for n in g.node for i in (*n.input, *self._captured(n))} | {v.name for g in bodies for v in g.output}

    # --- node by node ------------------------------------------------------------------------------------------------

    def _node(self, node: onnx.NodeProto) -> None:
        op = node.op_type
        if op == "QuantizeLinear":
            self._stand_in(node, node.input[0])
        elif op == "DequantizeLinear":
            self._dequantize(node)
        elif op == "DynamicQuantizeLinear":
            self.names[node.output[0]] = node.input[0]
        elif op == "MatMulInteger":
            self._integer(node)
        elif op == "MatMulIntegerToFloat":
            self._product(node, self._data(node, 0, 2, 4), self._data(node, 1, 3, 5), _at(node, 6))
        elif op == "DynamicQuantizeMatMul":
            self._product(node, node.input[0], self._data(node, 1, 2, 3), _at(node, 4))
        elif op == "MatMulNBits":
            self._nbits(node)
        elif op == "GatherBlockQuantized":
            self._gather_blocks(node)
        elif op == "QAttention":
            self._attention(node)
        elif op == "QLinearConcat":
            parts = [self._data(node, i, i + 1, i + 2) for i in range(2, len(node.input), 3)]
            self._make("Concat", parts, node, axis=attributes_of(node)["axis"])
        elif op in LINEAR:
            self._linear(node)
        elif node.domain == "com.microsoft" and op.startswith("Q") and op not in ("QuickGelu", "QMoE"):
            raise GraphError(f"{op} has no float form here", node=node.name or node.output[0], hint=FLOAT_MODEL)
        else:
            self.nodes.append(node)

    def _stand_in(self, node: onnx.NodeProto, name: str) -> None:
        """`name` takes the place of the only result of a node."""
        if node.output[0] in self.outputs:
            if self.makers[node.output[0]].op_type == "QuantizeLinear":
                self.nodes.append(node)  # what the caller gets stays quantized
            else:
                self.nodes.append(helper.make_node("Identity", [name], [node.output[0]], node.name))
        else:
            self.names[node.output[0]] = name

    def _make(self, op: str, inputs: list[str], like: onnx.NodeProto, output: str | None = None, domain: str = "", **attributes) -> None:
        made = helper.make_node(op, inputs, [output or like.output[0]], like.name, domain=domain, **attributes)
        made.metadata_props.extend(like.metadata_props)
        self.nodes.append(made)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        attributes, x = attributes_of(node), node.input[0]
        root = self._root(x)
        if self._is_constant(x):
            made = self._weight(node, 0, 1, 2, attributes.get("axis", 1), attributes.get("block_size", 0), name=node.output[0])
            if made != node.output[0]:
                self._stand_in(node, made)
        elif self._is_constant(root):
            self._table(node, root, 0, 1, 2, attributes.get("axis", 1))
            self._stand_in(node, x)
        elif root in self.makers and self.makers[root].op_type in (*LINEAR, "QuantizeLinear", "QLinearConcat"):
            self._stand_in(node, x)
        else:
            self.nodes.append(node)  # of what is fed as whole numbers

    def _table(self, node: onnx.NodeProto, root: str, x: int, scale: int, zero: int, axis: int) -> None:
        """Rows of a quantized table: the table becomes floats, whoever moves them."""
        made = self._weight(node, x, scale, zero, axis, held=root)
        if self.names.setdefault(root, made) != made:
            raise GraphError("one quantized table is read with two scales", node=node.name or node.output[0], hint=FLOAT_MODEL)

    def _root(self, name: str) -> str:
        """Where a quantized value comes from, through nodes that move it."""
        while (node := self.makers.get(name)) is not None and node.op_type in MOVES:
            name = node.input[0]
        return name

    def _integer(self, node: onnx.NodeProto) -> None:
        """MatMulInteger -> Cast -> Mul by both scales, as quantize_dynamic writes it."""
        cast = self._only(node.output[0], "Cast")
        scaled = cast and self._only(cast.output[0], "Mul")
        factor = scaled and self.makers.get(next(i for i in scaled.input if i != cast.output[0]))
        quantizer = self.makers.get(node.input[0])
        if factor is None or factor.op_type != "Mul" or quantizer is None or quantizer.op_type != "DynamicQuantizeLinear":
            raise GraphError("a product of whole numbers is not scaled in a way that is understood", node=node.name or node.output[0],
                             hint=FLOAT_MODEL)
        own = [i for i in factor.input if i != quantizer.output[1]]
        if len(own) != 1 or not self._is_constant(node.input[1]) or not self._is_constant(own[0]):
            raise GraphError("a product of whole numbers has no weight with a scale of its own", node=node.name or node.output[0],
                             hint=FLOAT_MODEL)
        made = self._float(node, node.input[1], own[0], _at(node, 3), axis=-1, block=0)
        self.skipped |= {cast.output[0], scaled.output[0]}
        self._make("MatMul", [node.input[0], made], node, output=scaled.output[0])

    def _only(self, name: str, op: str) -> onnx.NodeProto | None:
        users = self.users[name]
        return users[0][0] if len(users) == 1 and users[0][0].op_type == op and name not in self.outputs else None

    def _product(self, node: onnx.NodeProto, a: str, b: str, bias: str | None) -> None:
        if not bias:
            self._make("MatMul", [a, b], node)
            return
        inner = free_name(f"{node.output[0]}_product", self.taken)
        self._make("MatMul", [a, b], node, output=inner)
        self.nodes.append(helper.make_node("Add", [inner, bias], [node.output[0]], f"{node.name}_bias"))

    def _linear(self, node: onnx.NodeProto) -> None:
        op, operands, keep = LINEAR[node.op_type]
        attributes = {k: v for k, v in attributes_of(node).items() if k in keep}
        channel = 0 if op == "Conv" or attributes.get("transB") else -1
        inputs = [self._data(node, *slots, channel=channel) for slots in operands]
        third = {"QGemm": 6, "QLinearConv": 8}.get(node.op_type)
        if third and _at(node, third):
            inputs.append(self._bias(node, third))
        if op == "Softmax" and attributes_of(node).get("opset", 13) < 13:
            raise GraphError("QLinearSoftmax of an old opset", node=node.name or node.output[0], hint="quantize the model with opset 13 or later")
        self._make(op, inputs, node, **attributes)

    def _data(self, node: onnx.NodeProto, slot: int, scale: int, zero: int, channel: int = -1) -> str:
        """An operand: the value itself, or a quantized weight in float."""
        name = node.input[slot]
        if self._is_constant(name):
            return self._weight(node, slot, scale, zero, channel)
        if self._is_constant(root := self._root(name)):
            self._table(node, root, slot, scale, zero, channel)
        return name

    def _bias(self, node: onnx.NodeProto, slot: int) -> str:
        """A bias of whole numbers, in steps of both scales."""
        scales = [np.asarray(self._array(node.input[i]), np.float32) for i in (1, 4)]
        name = node.input[slot]
        made = free_name(f"{name}_float", self.taken, never=True)
        return self._write(made, Quantized(self._int_ref(name), (scales[0] * scales[1]).astype(np.float32), None, 0, 0), TensorProto.FLOAT)

    def _attention(self, node: onnx.NodeProto) -> None:
        """(input, weight, bias, input scale, weight scale, mask, input zero point, weight zero point, past)."""
        weight = self._float(node, node.input[1], node.input[4], _at(node, 7), axis=-1, block=0)
        inputs = [node.input[0], weight, node.input[2], _at(node, 5) or "", _at(node, 8) or ""]
        while not inputs[-1]:
            inputs.pop()
        keep = {k: v for k, v in attributes_of(node).items() if k in ("num_heads", "unidirectional", "mask_filter_value", "do_rotary", "past_present_share_buffer")}
        made = helper.make_node("Attention", inputs, list(node.output), node.name, domain="com.microsoft", **keep)
        self.nodes.append(made)

    def _nbits(self, node: onnx.NodeProto) -> None:
        """A · Wᵀ with W [N, K] in blocks of `block_size` along K."""
        a = attributes_of(node)
        if _at(node, 4):
            raise GraphError("the columns of a packed weight are in another order (g_idx)", node=node.name or node.output[0],
                             hint=FLOAT_MODEL)
        shape, bits = (a["N"], a["K"]), a.get("bits", 4)
        made = self._blocks(node, 1, 2, 3, shape, bits, a["block_size"], axis=1, turned=True)
        self._product(node, node.input[0], made, _at(node, 5))

    def _gather_blocks(self, node: onnx.NodeProto) -> None:
        """Rows of a packed table: (data, indices, scales, zero points)."""
        a = attributes_of(node)
        tensor = self.held.get(node.input[0])
        bits = a.get("bits", 4)
        packed = tensor is not None and tensor.data_type == TensorProto.UINT8
        if tensor is None or a.get("gather_axis", 0) != 0 or a.get("quantize_axis", 1) % len(tensor.dims) != len(tensor.dims) - 1 or len(tensor.dims) != 2:
            raise GraphError("a packed table is read along another axis than its first", node=node.name or node.output[0],
                             hint=FLOAT_MODEL)
        if packed:
            shape = (tensor.dims[0], tensor.dims[1] * 8 // bits)
            made = self._blocks(node, 0, 2, 3, shape, bits, a.get("block_size", 128), axis=1)
        else:
            made = self._float(node, node.input[0], node.input[2], _at(node, 3), axis=1, block=a.get("block_size", 128))
        self._make("Gather", [made, node.input[1]], node, axis=0)

    # --- weights -----------------------------------------------------------------------------------------------------

    def _is_constant(self, name: str) -> bool:
        return name in self.held or name in self.constants

    def _array(self, name: str) -> np.ndarray:
        from .graph import constant_array

        return constant_array(self.constants[name]) if name in self.constants else self.source.array(name)

    def _int_ref(self, name: str):
        """A TensorRef, or the small tensor in memory."""
        return self.source.tensors.get(name) if name in self.source.tensors else self._array(name)

    def _weight(self, node: onnx.NodeProto, x: int, scale: int, zero: int, axis: int, block: int = 0, held: str | None = None, name: str | None = None) -> str:
        return self._float(node, held or node.input[x], node.input[scale], _at(node, zero), axis, block, name)

    def _float(self, node: onnx.NodeProto, held: str, scale: str, zero: str | None, axis: int, block: int, name: str | None = None) -> str:
        """The float form of a quantized initializer; the same one for the same reading, so that tied weights stay tied."""
        for number in (scale, zero):
            if number and not self._is_constant(number):
                raise GraphError("the scale of a quantized weight is computed", node=node.name or node.output[0], hint=FLOAT_MODEL)
        scales = self._array(scale)
        key = held, scale, zero, axis if scales.size > 1 else 0, block
        if key not in self.weights:
            kind = helper.np_dtype_to_tensor_dtype(scales.dtype)
            zeros = np.asarray(self._array(zero)).astype(np.int32) if zero else None
            made = name if name and name not in self.outputs else free_name(f"{held}_float", self.taken, never=True)
            self.weights[key] = self._write(made, Quantized(self._int_ref(held), scales, zeros, axis, block), kind)
        return self.weights[key]

    def _blocks(self, node: onnx.NodeProto, data: int, scale: int, zero: int, shape: tuple[int, int], bits: int, block: int, axis: int,
                turned: bool = False) -> str:
        """A weight packed into bytes by com.microsoft's operators: rows of blocks, the first of two numbers in the low half of a byte."""
        rows, columns = shape
        count = -(-columns // block)
        scales = np.asarray(self._array(node.input[scale])).reshape(rows, count)
        zeros = np.full((rows, count), 2 ** (bits - 1), np.float32)
        if _at(node, zero):
            held = np.asarray(self._array(_at(node, zero)))
            if held.dtype == np.uint8:
                held = unpacked_rows(held.reshape(rows, -1), bits)[:, :count]
            zeros = held.reshape(rows, count).astype(np.float32)
        key = node.input[data], node.input[scale], _at(node, zero), axis, block, turned
        if key not in self.weights:
            made = free_name(f"{node.input[data]}_float", self.taken, never=True)
            ref = self._int_ref(node.input[data])
            self.weights[key] = self._write(made, Quantized(ref, scales, zeros, axis, block, bits, shape, turned), helper.np_dtype_to_tensor_dtype(scales.dtype))
        return self.weights[key]

    def _write(self, name: str, weight: Quantized, kind: int) -> str:
        """Compute a weight into a file of its own."""
        shape, dtype = weight.shape, helper.tensor_dtype_to_np_dtype(kind)
        file = Path(self.folder.name) / f"{len(self.refs)}.bin"
        fill(weight, file, dtype)
        self.proto.graph.initializer.add(name=name, data_type=kind, dims=shape)
        self.refs[name] = TensorRef(file, 0, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, kind, shape)
        self.taken.add(name)
        return name


def _at(node: onnx.NodeProto, slot: int) -> str | None:
    return node.input[slot] if slot < len(node.input) and node.input[slot] else None
