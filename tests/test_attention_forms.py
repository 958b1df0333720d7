"""Forms of com.microsoft::Attention that no CPU kernel runs: refused each with its reason; when ONNX Runtime learns one, this says so."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.errors import GraphError
from onnxgrow.model import Model

BATCH, LENGTH, HIDDEN, HEADS = 2, 5, 24, 2
CACHE = [2, BATCH, HEADS, 8, HIDDEN // HEADS]
FORMS = {  # inputs behind the bias, with their sizes; attributes; what the refusal says, and its next step
    "rotary": ({}, dict(do_rotary=1, unidirectional=1), "do_rotary", "MultiHeadAttention and RotaryEmbedding"),
    "shared cache": ({"": None, "past": CACHE, " ": None, "held": [1]}, dict(past_present_share_buffer=1, unidirectional=1), "past_present_share_buffer", "without a shared buffer"),
    "square mask": ({"mask": [BATCH, 1, 8, 8]}, {}, "square mask", "attention_bias"),
}


def model_of(form: str) -> onnx.ModelProto:
    more, attrs, *_ = FORMS[form]
    rng = np.random.default_rng(0)
    kinds = {"x": TensorProto.FLOAT, "past": TensorProto.FLOAT, "held": TensorProto.INT32, "mask": TensorProto.INT32}
    sizes = {"x": [BATCH, LENGTH, HIDDEN], **{n: s for n, s in more.items() if n.strip()}}
    outputs = {"y": [BATCH, LENGTH, HIDDEN], **({"present": CACHE} if "past" in more else {})}
    node = helper.make_node("Attention", ["x", "w", "b", *(n.strip() for n in more)], list(outputs), "attention", domain="com.microsoft", num_heads=HEADS, **attrs)
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype("f"), n) for n, s in (("w", (HIDDEN, 3 * HIDDEN)), ("b", (3 * HIDDEN,)))]
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info(n, kinds[n], s) for n, s in sizes.items()],
                              [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9)


@pytest.mark.parametrize("form", FORMS)
def test_what_no_kernel_runs_is_refused_by_name(form, tmp_path):
    model = model_of(form)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GraphError, match=FORMS[form][2]) as refusal:
        Model(tmp_path / "model.onnx")
    assert refusal.value.node == "attention" and FORMS[form][3] in refusal.value.hint
    feeds = {"x": np.ones((BATCH, LENGTH, HIDDEN), "f"), "past": np.zeros(CACHE, "f"), "held": np.array([3], np.int32), "mask": np.ones((BATCH, 1, 8, 8), np.int32)}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="not supported in Attention CPU|4D mask in attention cpu|past_sequence_length tensor must be of one element"):
        session.run(None, {n.name: feeds[n.name] for n in session.get_inputs()})


def test_group_query_attention_knows_padding_on_the_right_only():
    """`seqlens_k` says how many words of a row count, from its first one: what pads a row on the left is read as words (docs/fused.md)."""
    rng, size, kv = np.random.default_rng(1), 16, 1
    names = {"q": [1, None, HEADS * size], "k": [1, None, kv * size], "v": [1, None, kv * size]}
    node = helper.make_node("GroupQueryAttention", [*names, "", "", "seqlens", "total"], ["y", "pk", "pv"], domain="com.microsoft", num_heads=HEADS, kv_num_heads=kv)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in names.items()]
    inputs += [helper.make_tensor_value_info("seqlens", TensorProto.INT32, [1]), helper.make_tensor_value_info("total", TensorProto.INT32, [1])]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in node.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def attended(parts: dict, count: int) -> np.ndarray:
        length = parts["q"].shape[1]
        return session.run(["y"], parts | {"seqlens": np.array([count - 1], np.int32), "total": np.array([length], np.int32)})[0]

    words = {n: rng.standard_normal((1, 3, s[2])).astype("f") for n, s in names.items()}
    noise = {n: rng.standard_normal((1, 2, s[2])).astype("f") for n, s in names.items()}
    alone = attended(words, 3)
    right = attended({n: np.concatenate([words[n], noise[n]], 1) for n in names}, 3)
    left = attended({n: np.concatenate([noise[n], words[n]], 1) for n in names}, 3)
    np.testing.assert_allclose(right[:, :3], alone, atol=1e-6)
    assert np.abs(left[:, 2:] - alone).max() > 0.01
