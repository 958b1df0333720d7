"""One computed shape that two uses need at two sizes: each use gets a copy, and copies that stayed equal are one again in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxgrow.graph import build
from onnxgrow.model import Model
from onnxgrow.source import open_source
from onnxgrow.unshare import Unshared, branching, share, unshare
from tests.textgraph import graph_of, model_of

WORDS, WIDE = 17, 8
BEGIN = """
    sizes = Shape ids
    shape = Concat sizes eight
    e = Gather words ids
    m = LayerNormalization e gain3 offset3
    q = MatMul m query
    k = MatMul m key
    v = MatMul m value
    kt = Transpose k
    s = MatMul q kt
    p = Softmax s
    c = MatMul p v
    o = MatMul c out
    h = Add e o
    """
MIDDLE = "n = LayerNormalization {0} gain offset\nu = MatMul n up\nflat = Reshape u rows\ninner = Reshape flat shape\na = Relu inner\nd = MatMul a down\n"
END = "x = Add {0} {1}\ny = LayerNormalization x gain2 offset2\nscores = MatMul y head"
OUTER = "flat{0} = Reshape {0} rows\nouter{0} = Reshape flat{0} shape\n"  # hidden states, brought into the shape that they have
FORMS = {  # in which order the Concat is read
    "inside, outside": MIDDLE.format("h") + OUTER.format("d") + END.format("h", "outerd"),
    "outside, inside": OUTER.format("h") + MIDDLE.format("outerh") + END.format("outerh", "d"),
    "inside, outside twice": MIDDLE.format("h") + OUTER.format("d") + OUTER.format("outerd") + END.format("h", "outerouterd"),
    "outside, inside, outside": OUTER.format("h") + MIDDLE.format("outerh") + OUTER.format("d") + END.format("outerh", "outerd"),
}
GROWTHS = {"hidden": dict(hidden=13, only_hidden=True), "ffn": dict(ffn=11), "both": dict(hidden=13, only_hidden=True, ffn=11), "alike": dict(hidden=12, only_hidden=True, ffn=12)}


def saved(path: Path, form: str) -> onnx.ModelProto:
    """Hidden states and the inside of a feed-forward part, both 8 wide, are brought into shape by one Concat."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    numbers = dict(eight=np.array([WIDE]), rows=np.array([-1, WIDE]), words=draw(WORDS, WIDE), gain=1 + draw(WIDE), gain2=1 + draw(WIDE), offset=draw(WIDE),
                   offset2=draw(WIDE), gain3=1 + draw(WIDE), offset3=draw(WIDE), query=draw(WIDE, 6), key=draw(WIDE, 6), value=draw(WIDE, 6), out=draw(6, WIDE), up=draw(WIDE, WIDE), down=draw(WIDE, WIDE), head=draw(WIDE, WORDS))
    model = model_of(BEGIN + FORMS[form], {"ids": ["batch", "length"]}, numbers, shape=dict(axis=0), kt=dict(perm=[0, 2, 1]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "length", WORDS]))
    onnx.save(model, path)
    return model


def scores(model: onnx.ModelProto, ids: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"ids": ids})[0]


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("form", FORMS)
def test_each_use_of_one_shape_grows_by_itself(form, growth, tmp_path):
    source = saved(tmp_path / "source.onnx", form)
    plan = Model(tmp_path / "source.onnx").plan(**GROWTHS[growth])
    assert plan.certificate.kind == "exact"
    plan.write(tmp_path / "grown.onnx")
    grown = onnx.load(tmp_path / "grown.onnx")
    for shape in ((2, 5), (3, 8), (1, 1)):
        ids = np.random.default_rng(shape[1]).integers(0, WORDS, shape)
        before = scores(source, ids)
        np.testing.assert_allclose(scores(grown, ids), before, rtol=0, atol=1e-5 * np.abs(before).max())
    sizes = {t.name: list(t.dims) for t in grown.graph.initializer}
    asked = GROWTHS[growth]
    assert sizes["up"] == [asked.get("hidden", WIDE), asked.get("ffn", WIDE)]
    assert sum(n.op_type == "Concat" for n in grown.graph.node) == (1 if growth == "alike" else 2), "one for each size"


# --- the steps -------------------------------------------------------------------------------------------------------------------


def plain(lines: str) -> onnx.ModelProto:
    model = model_of(lines, {"x": [2, 3], "i": [1]}, {"k": np.array([3])})
    for n in model.graph.node:
        if n.op_type == "Concat":
            n.attribute.append(onnx.helper.make_attribute("axis", 0))
    return model


def wiring(proto: onnx.ModelProto) -> list[str]:
    return [f"{', '.join(n.output)} = {n.op_type} {' '.join(n.input)}" for n in proto.graph.node]


@pytest.mark.parametrize(("lines", "start", "found"), [
    ("s = Concat i k\nt = Identity s\na = Reshape x t\nb = Expand x t\nc = Add a b", "s", "t"),
    ("s = Concat i k\na = Reshape x s\nb = Identity a", "s", None),
    ("s, t = Split k\na = Reshape x s\nb = Expand x s\nc = Add a b", "s", None),
    ("x2 = Relu x\ns = Shape x2\na = Reshape x s\nb = Expand x s\nc = Sum a b s", "s", "s"),
    ("a = Reshape x k\ns = Shape a\nb = Expand a s\nc = Expand x s", "c", None),
])  # fmt: skip
def test_the_first_result_that_several_read(lines, start, found):
    graph = graph_of(lines, {"x": [2, 3], "i": [1]}, {"k": np.array([3])}, s=dict(axis=0))
    node = branching(graph, graph.makers[start])
    assert (node and node.outputs[0]) == found


def test_a_result_that_is_given_is_not_copied():
    """A caller wants it under its name, and at one size."""
    graph = graph_of("a = Reshape x k\nb = Expand x k\nd = Add a b\ns = Concat i k", {"x": [2, 3], "i": [1]}, {"k": np.array([3])}, s=dict(axis=0))
    assert branching(graph, graph.makers["s"]) is None


def test_every_use_but_the_first_reads_a_copy(tmp_path):
    onnx.save(plain("s = Concat i k\na = Reshape x s\nb = Expand x s\nc = Max a s s"), tmp_path / "model.onnx")
    before = Unshared(open_source(tmp_path / "model.onnx"))
    was = wiring(before.source.proto)
    after = unshare(before, (graph := build(before.source)), graph.makers["s"])
    assert wiring(after.source.proto) == [
        "s = Concat i k", "a = Reshape x s", "b = Expand x s_2", "c = Max a s_4 s_6", "s_2 = Concat i k", "s_4 = Concat i k", "s_6 = Concat i k"]  # fmt: skip
    assert after.copies == {"s_2": "s", "s_4": "s", "s_6": "s"}
    assert len({n.name for n in after.source.proto.graph.node}) == 7
    assert wiring(before.source.proto) == was, "the source stays as it was"


def test_copies_that_compute_the_same_are_one_again():
    """Also through a chain, whose second node is the same only when the first one is; not where inputs or attributes differ."""
    proto = plain("s = Concat i k\nt = Identity s\ns_2 = Concat i k\nt_2 = Identity s_2\ns_3 = Concat k k\ns_4 = Concat k k\na = Max s t t_2 s_3 s_4")
    for n in proto.graph.node:
        if n.op_type == "Concat":
            n.attribute.append(helper.make_attribute("axis", 0))
    share(proto, {"s_2": "s", "s_3": "s", "s_4": "s_3", "t_2": "t"})
    assert wiring(proto) == ["s = Concat i k", "t = Identity s", "s_3 = Concat k k", "a = Max s t t s_3 s_3"]
    proto.graph.node.add().CopyFrom(helper.make_node("Concat", ["i", "k"], ["s_5"], axis=-1))
    share(proto, {"s_3": "s", "s_5": "s"})
    assert wiring(proto)[-1] == "s_5 = Concat i k"
