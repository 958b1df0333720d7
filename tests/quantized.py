"""Exports of the zoo quantized by ONNX Runtime's own tools, in every format that these write; files are kept beside those of the zoo."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import zoo
from tests.typed import kept
from tests.zoo_models import SPECS

FORMATS = ("weights", "weights-asymmetric", "weights-channel", "static", "static-channel", "dynamic", "dynamic-channel", "dynamic-uint8", "dynamic-saturating", "qoperator",
           "nbits-4", "nbits-8", "blocked-4")


def quantized(name: str, form: str, exporter: str = "dynamo") -> Path:
    """A model of the zoo in one of FORMATS."""
    def make(path: Path) -> None:
        source = zoo.export(name, exporter)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            try:
                _write(name, source, form, path)
            finally:
                logging.disable(logging.NOTSET)
    return kept("-".join([name, exporter, "quantized", form]), make)


def _write(name: str, source: Path, form: str, path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    kind, _, more = form.partition("-")
    if kind == "weights":
        onnx.save(weights_only(onnx.load(source), per_channel=more == "channel", symmetric=more != "asymmetric"), path)
    elif kind == "dynamic":
        signed = more != "uint8"  # uint8 times int8 saturates on CPUs without VNNI, unless weights have 7 bits
        quantize_dynamic(source, path, per_channel=more == "channel", weight_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                         reduce_range=signed and more != "saturating")
    elif kind in ("static", "qoperator"):
        where = QuantFormat.QDQ if kind == "static" else QuantFormat.QOperator
        quantize_static(source, path, _Calibration(name), quant_format=where, per_channel=more == "channel")
    else:
        model = onnx.load(source)
        form = QuantFormat.QDQ if kind == "blocked" else QuantFormat.QOperator
        if kind == "blocked":
            next(o for o in model.opset_import if not o.domain).version = 21
        blocks = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer", reason="this onnxruntime writes no weights in blocks")
        made = blocks.MatMulNBitsQuantizer(model, bits=int(more), block_size=16, is_symmetric=True, quant_format=form)
        made.process()
        onnx.save(made.model.model, path)


def aligned(folder: Path, form: str) -> Path:
    """A model whose sizes are whole blocks, packed: Llama with ffn 96 and heads of 16."""
    from onnxgrow.model import Model

    Model(zoo.export("llama", "dynamo")).plan(ffn=96, head_dim=16).write(folder / "float.onnx", validate=False)
    logging.disable(logging.INFO)
    try:
        _write("llama", folder / "float.onnx", form, folder / "packed.onnx")
    finally:
        logging.disable(logging.NOTSET)
    return folder / "packed.onnx"


class _Calibration:
    """Inputs for quantize_static."""

    def __init__(self, name: str):
        self.left = [{n: x.numpy() for n, x in SPECS[name].example(2, 9, seed).items()} for seed in range(2)]

    def get_next(self):
        return self.left.pop() if self.left else None


def weights_only(model: onnx.ModelProto, per_channel: bool = False, symmetric: bool = True) -> onnx.ModelProto:
    """Every float matrix as int8 (uint8 where not symmetric) behind DequantizeLinear, activations in float: what compressors of weights write."""
    held = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2 and min(t.dims) > 1}
    nodes = []
    for name, tensor in held.items():
        x = numpy_helper.to_array(tensor)
        axis = 1 if any(n.op_type == "MatMul" and n.input[1] == name for n in model.graph.node) else 0
        low, high = (x.min(axis=1 - axis), x.max(axis=1 - axis)) if per_channel else (x.min(), x.max())
        if symmetric:
            scale, zero, kind, ends = np.maximum(-low, high) / 127, 0 * low, np.int8, (-127, 127)
        else:
            scale, kind, ends = (high - low) / 255, np.uint8, (0, 255)
            zero = np.rint(-low / scale)
        wide = [np.expand_dims(v, 1 - axis) if per_channel else v for v in (scale, zero)]
        q = np.clip(np.rint(x / wide[0]) + wide[1], *ends).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(q, f"{name}_q"))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_scale"))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero).astype(kind), f"{name}_zero"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], [name], f"{name}_dequantize", axis=axis))
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
