"""A model as it would run in float32: for graphs whose operators the runtime lacks in their own type.

ONNX Runtime's CPU has no kernels for most operators in bfloat16, and lacks some in float64. Weights stay as they are in the file, each
behind a Cast; everything that is computed is float32. So source and grown model are compared without the rounding of activations: what is
left is the algebra and the rounding of the weights, and the tolerance is tighter than that of the type itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import graphs_in

FLOAT = TensorProto.FLOAT
REPLACED = {TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE}
KINDS = {"to", "dtype", "output_dtype", "softmax_precision"}  # attributes that name an element type
LEAST, MOST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every other float type is float32; initializers without their data and graph inputs keep theirs, and meet a Cast."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph, names, casts = out.graph, {}, []
    for tensor in graph.initializer:
        if tensor.data_type in REPLACED and tensor.data_location != TensorProto.EXTERNAL:
            tensor.CopyFrom(_converted(tensor))
    held = {t.name for t in graph.initializer}
    kept = {t.name for t in graph.initializer if t.data_type in REPLACED}
    kept |= {v.name for v in graph.input if v.type.tensor_type.elem_type in REPLACED and v.name not in held}
    for name in sorted(kept):
        names[name] = f"{name}/float32"
        casts.append(helper.make_node("Cast", [name], [names[name]], f"{name}/to_float32", to=FLOAT))
    _convert_nodes(graph.node, names)
    for value in [*graph.output, *graph.value_info]:
        if value.name not in names:
            _convert_type(value.type)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for function in out.functions:
        _convert_nodes(function.node, {})
        for value in function.value_info:
            _convert_type(value.type)
    return out


def _convert_nodes(nodes: Iterable[onnx.NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        node.input[:] = [names.get(i, i) for i in node.input]
        for a in node.attribute:
            if a.type == onnx.AttributeProto.INT and a.name in KINDS and a.i in REPLACED:
                a.i = FLOAT
            elif a.type == onnx.AttributeProto.TENSOR and a.t.data_type in REPLACED:
                a.t.CopyFrom(_converted(a.t))
        for body in graphs_in(node):
            _convert_body(body, names)


def _convert_body(body: onnx.GraphProto, names: dict[str, str]) -> None:
    """A subgraph: its own tensors change their type, those from outside their name."""
    for tensor in body.initializer:
        if tensor.data_type in REPLACED:
            tensor.CopyFrom(_converted(tensor))
    _convert_nodes(body.node, names)
    for value in [*body.input, *body.output, *body.value_info]:
        _convert_type(value.type)


def _convert_type(kind: onnx.TypeProto) -> None:
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type in REPLACED:
        kind.tensor_type.elem_type = FLOAT
    for name in ("sequence_type", "optional_type"):
        if kind.HasField(name):
            _convert_type(getattr(kind, name).elem_type)


def _converted(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The same numbers in float32; finite ones stay finite."""
    wide = numpy_helper.to_array(tensor).astype(np.float64)
    return numpy_helper.from_array(np.where(np.isfinite(wide), wide.clip(LEAST, MOST), wide).astype(np.float32), tensor.name)
