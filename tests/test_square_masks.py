"""A mask that is fed as a square, [length, length] or [batch, 1, length, length]: both its axes are the same length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.model import Model
from onnxgrow.runtime import open_session

WORDS, HIDDEN, HEADS, FFN = 23, 12, 3, 20
FORMS = {  # sizes of the mask, and what becomes of it
    "added": (["batch", 1, "length", "length"], "add"), "one for all": (["length", "length"], "add"), "two names": (["batch", 1, "length", "seen"], "add"),
    "bool": (["batch", 1, "length", "length"], "where"), "bool, two names": (["queries", "keys"], "where"), "ones": (["batch", 1, "length", "length"], "ones"),
    "no names": ([None, 1, None, None], "add"), "heads": (["batch", HEADS, "length", "length"], "add"),
}


def saved(path: Path, form: str) -> onnx.ModelProto:
    rng, weights, nodes = np.random.default_rng(3), [], []

    def hold(name, *shape, around=0.0):
        weights.append(numpy_helper.from_array((around + 0.5 * rng.standard_normal(shape)).astype("f"), name))
        return name

    def number(name, value):
        weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(op, *ins, **attrs):
        nodes.append(helper.make_node(op, list(ins), [f"t{len(nodes)}"], f"{op}.{len(nodes)}", **attrs))
        return nodes[-1].output[0]

    sizes, kind = FORMS[form]
    split, merge = number("split", [0, 0, HEADS, HIDDEN // HEADS]), number("merge", [0, 0, HIDDEN])
    low, one, scale = number("low", np.float32(-1e9)), number("one", np.float32(1)), number("scale", np.float32(0.5))
    x = add("Gather", hold("words", WORDS, HIDDEN), "ids")
    for k in range(2):
        n = add("LayerNormalization", x, hold(f"{k}.gain", HIDDEN, around=1.0), hold(f"{k}.offset", HIDDEN))
        q, key, v = (add("Transpose", add("Reshape", add("MatMul", n, hold(f"{k}.{p}", HIDDEN, HIDDEN)), split), perm=perm)
                     for p, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])))
        s = add("Mul", add("MatMul", q, key), scale)
        s = add("Where", "mask", s, low) if kind == "where" else add("Add", s, add("Mul", add("Sub", one, "mask"), low) if kind == "ones" else "mask")
        c = add("MatMul", add("Softmax", s, axis=-1), v)
        x = add("Add", x, add("MatMul", add("Reshape", add("Transpose", c, perm=[0, 2, 1, 3]), merge), hold(f"{k}.out", HIDDEN, HIDDEN)))
        n = add("LayerNormalization", x, hold(f"{k}.gain2", HIDDEN, around=1.0), hold(f"{k}.offset2", HIDDEN))
        x = add("Add", x, add("MatMul", add("Relu", add("MatMul", n, hold(f"{k}.up", HIDDEN, FFN))), hold(f"{k}.down", FFN, HIDDEN)))
    x = add("LayerNormalization", x, hold("gain", HIDDEN, around=1.0), hold("offset", HIDDEN))
    nodes.append(helper.make_node("MatMul", [x, hold("head", HIDDEN, WORDS)], ["logits"], "head"))
    value = helper.make_tensor_value_info
    ids = value("ids", TensorProto.INT64, [None, None] if form == "no names" else ["batch", "length"])
    mask = value("mask", TensorProto.BOOL if kind == "where" else TensorProto.FLOAT, sizes)
    graph = helper.make_graph(nodes, "g", [ids, mask], [value("logits", TensorProto.FLOAT, [None, None, WORDS])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return model


def fed(form: str, batch: int, length: int, heads: int = HEADS) -> dict:
    rng = np.random.default_rng(length)
    sizes, kind = FORMS[form]
    seen = np.tril(np.ones((batch, 1, length, length), bool))
    seen[0, :, :, : length // 3] = False
    seen |= np.eye(length, dtype=bool)
    seen = seen[-1, 0] if len(sizes) == 2 else np.repeat(seen, heads, 1) if sizes[1] == HEADS else seen
    mask = seen if kind == "where" else seen.astype("f") if kind == "ones" else np.where(seen, 0, -1e9).astype("f")
    return {"ids": rng.integers(0, WORDS, (batch, length)), "mask": mask}


@pytest.mark.parametrize("growth", [dict(hidden=17, only_hidden=True), dict(heads=4), dict(ffn=25), dict(layers=3), dict(hidden=24)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_square_mask(form, growth, tmp_path):
    saved(tmp_path / "source.onnx", form)
    plan = Model(tmp_path / "source.onnx").plan(**growth)
    assert plan.certificate.kind == "exact"
    result = plan.write(tmp_path / "grown.onnx")
    assert result.report.equal
    heads = 2 * HEADS if growth == dict(hidden=24) else growth.get("heads", HEADS)
    for batch, length in ((2, 5), (3, 7), (1, 1)):
        before = open_session(tmp_path / "source.onnx").run(fed(form, batch, length))["logits"]
        after = open_session(result.path).run(fed(form, batch, length, heads))["logits"]
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
