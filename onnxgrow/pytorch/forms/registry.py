"""Which function writes an operator, and the entry to all of them."""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto

from ...dequantize import OPERATORS as QUANTIZED
from ...errors import GraphError
from ..build import Build

OPERATORS: dict[str, Callable[[Build], None]] = {}
DTYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64",
          TensorProto.INT64: "int64", TensorProto.INT32: "int32", TensorProto.INT16: "int16", TensorProto.INT8: "int8",
          TensorProto.UINT8: "uint8", TensorProto.BOOL: "bool"}  # fmt: skip
WORDS = {"Cos": "cos", "Sin": "sin", "Softmax": "weights", "And": "mask", "Or": "mask", "Not": "mask", "Range": "positions", "Sigmoid": "gate"}

LOOP = "a loop (Loop or Scan)"
BODIES = dict.fromkeys(("Carried", "ScanSlice", "LoopEnd", "Loop", "Scan"), LOOP) | {n: f"the search {n}" for n in ("BeamSearch", "GreedySearch", "Sampling")}
DECODER_ALONE = "export the decoder alone, one step of it, and write the loop or the search around it in PyTorch"


def operator(*names: str, domain: str = ""):
    """Enter the function that writes these operators: of ONNX's own domain, or of the one that stands around bodies."""
    def enter(function):
        OPERATORS.update(dict.fromkeys((f"{domain}::{name}" if domain else name for name in names), function))
        return function
    return enter


def dtype(b: Build, kind: int) -> str:
    """PyTorch's name of an element type; refused where it has none."""
    if kind not in DTYPES:
        b.refuse(f"the element type {TensorProto.DataType.Name(kind)} has no PyTorch form")
    return DTYPES[kind]


def write(b: Build) -> None:
    """Fill in the form of a node. GraphError where its operator has none."""
    name = f"{b.node.domain}::{b.node.op}" if b.node.domain else b.node.op
    function = OPERATORS.get(name)
    if function is None:
        if b.node.op in BODIES:
            raise GraphError(f"{BODIES[b.node.op]} has no PyTorch form", node=b.node.label, hint=DECODER_ALONE)
        raise GraphError(f"the operator {name} has no PyTorch form", node=b.node.label,
                         hint="write the float model first: onnxgrow expand --dequantize" if b.node.op in QUANTIZED else
                         "export the model in plain operators, before ONNX Runtime's optimiser fuses them")
    b.word = WORDS.get(b.node.op, b.word)
    function(b)
