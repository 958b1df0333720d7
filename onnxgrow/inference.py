"""What ONNX's own inference says of one node, remembered: a plan walks the graph several times, and most nodes meet the same sizes again."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError, infer_node_outputs

from .graph import Node
from .symbols import Shape

REMEMBERED = 1 << 14  # answers
LARGEST = 64  # entries of the operands of a question that is remembered
Made = tuple[tuple[Shape | None, int | None], ...]
Held = tuple[tuple[np.dtype, Shape, bytes] | None, ...]


def infer(node: Node, shapes: list[Shape | None], types: list[int | None], values: list[np.ndarray | None]) -> Made:
    """(shape, element type) of each output; None where it does not follow from the inputs.

    Raises:
        InferenceError: the sizes do not fit.
    """
    held = tuple(None if v is None else (v.dtype, v.shape, v.tobytes()) for v in values)
    ask = _remembered if sum(v.size for v in values if v is not None) <= LARGEST else _remembered.__wrapped__
    return ask(node.signature, tuple(shapes), tuple(types), held)


@lru_cache(REMEMBERED)
def _remembered(signature: tuple, shapes: tuple, types: tuple, held: Held) -> Made:
    """`signature` is that of the node: domain, operator, version, attributes, and which inputs and outputs it has."""
    domain, op, version, attributes, ins, outs = signature
    proto = helper.make_node(op, [f"i{i}" * here for i, here in enumerate(ins)], [f"o{i}" * here for i, here in enumerate(outs)], domain=domain)
    proto.attribute.extend(map(onnx.AttributeProto.FromString, attributes))
    known = {f"i{i}": helper.make_tensor_type_proto(kind, shape) for i, (kind, shape) in enumerate(zip(types, shapes)) if kind and ins[i]}
    data = {f"i{i}": _tensor(*v) for i, v in enumerate(held) if v is not None}
    opsets = [helper.make_opsetid(domain, version)]
    schema = onnx.defs.get_schema(op, version, domain)
    try:
        found = infer_node_outputs(schema, proto, known, data, {}, opsets)
    except ValidationError:  # an exporter wrote the operator in a type that this opset does not know of it: shapes are those of float32
        found = _as_float32(schema, proto, known, data, opsets)
    return tuple(_read(found.get(name)) for name in proto.output)


def _tensor(kind: np.dtype, shape: Shape, content: bytes) -> onnx.TensorProto:
    return numpy_helper.from_array(np.frombuffer(content, kind).reshape(shape))


def _read(kind: onnx.TypeProto | None) -> tuple[Shape | None, int | None]:
    if kind is None or not kind.HasField("tensor_type"):
        return None, None
    dims = kind.tensor_type.shape.dim
    if any(d.dim_value < 0 for d in dims):  # given to the next node, onnx 1.23 may end the process
        raise InferenceError(f"a size of {min(d.dim_value for d in dims)}")
    known = kind.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims)
    return tuple(d.dim_value for d in dims) if known else None, kind.tensor_type.elem_type


def _as_float32(schema, proto: onnx.NodeProto, types: dict[str, onnx.TypeProto], data: dict, opsets) -> dict[str, onnx.TypeProto]:
    """What a node makes of bfloat16, inferred as if it were float32; nothing where that does not fit either."""
    known = {name: kind.tensor_type.elem_type for name, kind in types.items()}
    for name, kind in known.items():
        types[name].tensor_type.elem_type = TensorProto.FLOAT if kind == TensorProto.BFLOAT16 else kind
    wide = {name: numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float32)) if known[name] == TensorProto.BFLOAT16 else t for name, t in data.items()}
    try:
        found = infer_node_outputs(schema, proto, types, wide, {}, opsets)
    except (ValidationError, InferenceError):
        return {}
    for kind in found.values():
        if kind.tensor_type.elem_type == TensorProto.FLOAT:
            kind.tensor_type.elem_type = TensorProto.BFLOAT16
    return found
