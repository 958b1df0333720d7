"""Models whose transformer stands in the body of a Loop or Scan: generation with and without a cache, a recurrent state, a stack of layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests import zoo
from tests.zoo_models import VOCAB

INT, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
value = helper.make_tensor_value_info
node = helper.make_node


def run(path: Path | str, feeds: dict) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, ["CPUExecutionProvider"]).run(None, feeds)


def ints(**arrays) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(v, np.int64), n) for n, v in arrays.items()]


def saved(path: Path, nodes, inputs, outputs, weights, like: onnx.ModelProto | None = None, opset: int = 17, check: bool = True) -> Path:
    opsets, ir = (like.opset_import, like.ir_version) if like is not None else ([helper.make_opsetid("", opset)], 8)
    model = helper.make_model(helper.make_graph(nodes, "main", inputs, outputs, weights), opset_imports=opsets, ir_version=ir)
    onnx.checker.check_model(model, full_check=check)
    onnx.save(model, path)
    return path


def renamed(nodes, names: dict[str, str]) -> list[onnx.NodeProto]:
    out = []
    for n in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        copy.input[:], copy.output[:] = [names.get(i, i) for i in n.input], [names.get(o, o) for o in n.output]
        out.append(copy)
    return out


PICK = [node("Slice", ["logits", "last", "end", "one"], ["at_last"]), node("Squeeze", ["at_last", "one"], ["scores"]),
        node("ArgMax", ["at_last"], ["word"], axis=2, keepdims=0)]


def greedy(path: Path, exporter: str = "torchscript", name: str = "gpt2", values: bool = False) -> Path:
    """Words appended one by one; the weights stand outside of the body. Outputs: ids [batch, sequence + trips], scores [trips, batch, vocab]."""
    model = onnx.load(zoo.export(name, exporter))
    decoder = renamed(model.graph.node, {"input_ids": "ids", "attention_mask": "mask"})
    body_nodes = [*decoder, *PICK, node("Concat", ["ids", "word"], ["ids_next"], axis=1),
                  node("ConstantOfShape", ["word_shape"], ["seen"], value=numpy_helper.from_array(np.ones(1, np.int64))),
                  node("Concat", ["mask", "seen"], ["mask_next"], axis=1), node("Identity", ["cond"], ["cond_next"])]
    body_nodes.insert(len(body_nodes) - 4, node("Shape", ["word"], ["word_shape"]))
    body = helper.make_graph(body_nodes, "step", [value("i", INT, []), value("cond", BOOL, []), value("ids", INT, ["b", None]), value("mask", INT, ["b", None])],
                             [value("cond_next", BOOL, []), value("ids_next", INT, ["b", None]), value("mask_next", INT, ["b", None]),
                              value("scores", FLOAT, ["b", VOCAB])], ints(last=[-1], end=[2**40], one=[1]),
                             value_info=[value("logits", FLOAT, ["b", "s", VOCAB])] * values)
    loop = node("Loop", ["trips", "", "input_ids", "attention_mask"], ["words", "last_mask", "all_scores"], "generate", body=body)
    return saved(path, [loop], [*model.graph.input, value("trips", INT, [])], [value("words", INT, ["batch", "length"]), value("all_scores", FLOAT, ["trips", "batch", VOCAB])],
                 model.graph.initializer, model, check=False)
