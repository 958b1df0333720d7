"""Inputs mean what the graph says, cover what they should, and ONNX Runtime runs on them as it would without us."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow import runtime
from onnxgrow.errors import FileError, GraphError, OnnxgrowError, UsageError
from onnxgrow.feeds import cases, make_feeds
from onnxgrow.inputs import index_range, is_additive, is_cache, is_mask, is_position, symbol_kinds
from onnxgrow.model import Model
from onnxgrow.plan import _unequal_hint
from onnxgrow.runtime import CPU, open_session, pick_provider
from tests import zoo

TINY = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (int32[rows, tokens] input_ids, int64[rows, tokens] position_ids, uint8[rows, tokens] segments, bool[rows, tokens] mask,
      float[rows, 1, 1, tokens] bias_mask, float[rows, tokens] keep_mask, float16[rows, tokens, 8] extra, int64[rows, 2] flags, bool last)
    => (float[rows, tokens, 11] logits)
{
    two = Constant <value_int = 2> ()
    split = Constant <value_ints = [0, 0, 2, 4]> ()
    merge = Constant <value_ints = [0, 0, 8]> ()
    middle = Constant <value_ints = [1, 2]> ()
    end = Constant <value_ints = [2]> ()
    one = Constant <value_float = 1.0> ()
    never = Constant <value_float = -1e30> ()
    words = Gather (word_table, input_ids)
    moved = Add (position_ids, two)
    places = Gather (place_table, moved)
    wide = Cast <to = 7> (segments)
    kinds = Gather (kind_table, wide)
    a = Add (words, places)
    b = Add (a, kinds)
    more = Cast <to = 1> (extra)
    e = Add (b, more)
    q1 = MatMul (e, wq)
    k1 = MatMul (e, wk)
    v1 = MatMul (e, wv)
    q2 = Reshape (q1, split)
    k2 = Reshape (k1, split)
    v2 = Reshape (v1, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q2)
    k = Transpose <perm = [0, 2, 3, 1]> (k2)
    v = Transpose <perm = [0, 2, 1, 3]> (v2)
    raw = MatMul (q, k)
    shown = Unsqueeze (mask, middle)
    masked = Where (shown, raw, never)
    scores = Add (masked, bias_mask)
    p = Softmax (scores)
    c1 = MatMul (p, v)
    c2 = Transpose <perm = [0, 2, 1, 3]> (c1)
    c = Reshape (c2, merge)
    o = MatMul (c, wo)
    lost = Sub (one, keep_mask)
    lost2 = Unsqueeze (lost, end)
    o2 = Add (o, lost2)
    y = Add (e, o2)
    logits = MatMul (y, head)
}
"""
TABLES = {"word_table": (11, 8), "place_table": (9, 8), "kind_table": (3, 8), "wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8), "head": (8, 11)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Model:
    """One layer with an input of every kind."""
    model, rng = onnx.parser.parse_model(TINY), np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in TABLES.items()]
    model.graph.initializer.extend(weights)
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(model, path)
    return Model(path)


def structure_of(model: Model):
    return model.roles.structure


def opened(name: str, exporter: str = "dynamo", attn: str = "eager", **options) -> Model:
    return Model(zoo.export(name, exporter, attn, **options))


# --- what inputs mean ------------------------------------------------------------------------------------------------


def test_kinds_of_inputs(tiny):
    s = structure_of(tiny)
    inputs = {v.name: v for v in s.graph.inputs}
    assert [n for n, v in inputs.items() if is_mask(s, v)] == ["mask", "bias_mask", "keep_mask", "flags"]
    assert [n for n, v in inputs.items() if is_additive(s, v)] == ["bias_mask", "extra"]
    assert [n for n, v in inputs.items() if is_position(s, tiny.roles, v)] == ["position_ids"]
    assert {n: found[0] for n in inputs if (found := index_range(s, n))} == {"input_ids": 11, "position_ids": 7, "segments": 3}
    assert not any(is_cache(s, v) for v in inputs.values())
    assert symbol_kinds(s) == {"rows": "batch", "tokens": "length"}


def test_arrays_for_every_kind_of_input(tiny):
    feeds = make_feeds(structure_of(tiny), tiny.roles, {"rows": 3, "tokens": 7}, seed=1, padding="left")
    shapes = {v.name: x.shape for v, x in zip(structure_of(tiny).graph.inputs, feeds.values(), strict=True)}
    assert shapes == dict.fromkeys(("input_ids", "position_ids", "segments", "mask", "keep_mask"), (3, 7)) | {
        "bias_mask": (3, 1, 1, 7), "extra": (3, 7, 8), "flags": (3, 2), "last": ()}
    assert [str(x.dtype) for x in feeds.values()] == ["int32", "int64", "uint8", "bool", "float32", "float32", "float16", "int64", "bool"]
    assert set(feeds["input_ids"].ravel()) == set(range(11)) and set(feeds["segments"].ravel()) == {0, 1, 2}
    assert feeds["position_ids"].tolist() == [list(range(7))] * 3
    assert feeds["mask"].sum(1).tolist() == [7, 4, 1] and feeds["mask"][:, -1].all()
    assert (feeds["keep_mask"] == feeds["mask"]).all()
    assert ((feeds["bias_mask"][:, 0, 0] == 0) == feeds["mask"]).all() and feeds["bias_mask"].min() < -1e38
    assert 0.5 < feeds["extra"].astype(np.float32).std() < 1.5


def test_the_source_runs_on_what_is_made(tiny):
    made, session = cases(structure_of(tiny), tiny.roles), open_session(tiny.path)
    assert [case.label for case in made] == ["rows 3, tokens 7, padded right", "rows 1, tokens 5", "rows 1, tokens 1", "rows 3, tokens 7, padded left",
                                               "rows 3, tokens 7, last off"]
    assert all(np.isfinite(session.run(case.feeds)["logits"]).all() for case in made)


def test_an_input_of_words_is_refused(tiny, tmp_path):
    proto = onnx.load(tiny.path)
    proto.graph.input.append(helper.make_tensor_value_info("name", TensorProto.STRING, ["rows"]))
    onnx.save(proto, tmp_path / "named.onnx")
    model = Model(tmp_path / "named.onnx")
    with pytest.raises(GraphError, match="the input 'name' is of type STRING"):
        cases(structure_of(model), model.roles)


# --- the cases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["opt", "roberta", "gpt2", "llama", "t5-encoder", "clip-text"])
def test_cases_of_text(name):
    """All run: lengths stay inside position tables, which OPT and RoBERTa enter with an offset. All words come."""
    model = opened(name, "torchscript")
    made, session = cases(structure_of(model), model.roles), open_session(model.path)
    for case in made:
        assert all(np.isfinite(x).all() for x in session.run(case.feeds).values())
    assert {int(i) for case in made for i in case.feeds["input_ids"].ravel()} == set(range(99))
    sizes = [tuple(case.sizes.values()) for case in made]
    assert {1, 3} <= {batch for batch, _ in sizes} and min(n for _, n in sizes) == 1 and max(n for _, n in sizes) > 30
    masks = [case.feeds["attention_mask"] for case in made]
    assert all((m.sum(1) > 0).all() for m in masks)
    assert any((m[:, 0] == 0).any() for m in masks) and any((m[:, -1] == 0).any() for m in masks)


def test_cases_with_a_past():
    model = opened("gpt2-past", "torchscript")
    made, session = cases(structure_of(model), model.roles), open_session(model.path)
    for case in made:
        session.run(case.feeds)
        past, new = case.feeds["past_key_0"].shape[2], case.feeds["input_ids"].shape[1]
        assert case.feeds["attention_mask"].shape[1] == past + new == case.sizes["total"]
    assert {case.sizes["past"] for case in made} >= {0, 37} and any(case.sizes["sequence"] == 1 for case in made)


def test_a_static_export_has_its_own_size_only():
    model = opened("bert-mlm", "torchscript", static=True)
    made = cases(structure_of(model), model.roles)
    assert [case.label for case in made] == ["the exported size, padded right", "the exported size, padded left", "the exported size",
                                               "the exported size, padded right, draw 2", "the exported size, padded right, draw 3"]
    assert all(case.feeds["input_ids"].shape == (3, 7) for case in made)
    images = opened("vit", "torchscript", static=True)
    assert [case.label for case in cases(structure_of(images), images.roles)] == ["the exported size", "the exported size, draw 2", "the exported size, draw 3"]


def test_a_middling_vocabulary_gets_a_case_of_its_own(tiny, tmp_path):
    proto = onnx.load(tiny.path)
    for name, shape in (("word_table", (700, 8)), ("place_table", (9, 8))):
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(proto, tmp_path / "wordy.onnx")
    model = Model(tmp_path / "wordy.onnx")
    last = next(case for case in cases(structure_of(model), model.roles) if case.label == "rows 100, tokens 7")
    assert set(last.feeds["input_ids"].ravel()) == set(range(700))


def test_dimensions_without_names_go_by_their_kind(tmp_path):
    proto = onnx.load(zoo.export("bert-mlm", "torchscript", "sdpa"))
    for value in (*proto.graph.input, *proto.graph.output):
        for d in value.type.tensor_type.shape.dim:
            d.ClearField("dim_param")
    onnx.save(proto, tmp_path / "unnamed.onnx")
    model = Model(tmp_path / "unnamed.onnx")
    made, session = cases(structure_of(model), model.roles), open_session(model.path)
    assert [case.label for case in made][1:] == ["batch 1, length 5", "batch 1, length 1", "batch 3, length 38, padded left"]
    assert all(session.run(case.feeds) for case in made)


def test_the_seed_decides():
    model = opened("gpt2")
    a, b, c = (make_feeds(structure_of(model), model.roles, {"batch": 2, "sequence": 6}, seed)["input_ids"] for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_a_session_gives_the_bits_of_a_plain_one(external):
    model = opened("gpt2", external=external)
    feeds = cases(structure_of(model), model.roles)[0].feeds
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(model.path, options, ["CPUExecutionProvider"]).run(None, feeds)[0]
    session = open_session(model.path, extra_outputs=["layer_norm"])
    found = session.run(feeds)
    assert session.provider == CPU and list(found) == ["logits", "layer_norm"]
    assert (found["logits"] == plain).all() and found["layer_norm"].shape == (3, 7, 32)


MEMORY = """
import sys, numpy as np
from onnxgrow.runtime import open_session
import onnxruntime
def anonymous(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = anonymous()
open_session(sys.argv[1]).run({"x": np.ones((1, 4096), np.float32)})
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("external", [False, True])
def test_weights_stay_on_disk(external, tmp_path):
    nodes = [helper.make_node("MatMul", [f"x{i}" if i else "x", f"w{i}"], [f"x{i + 1}"]) for i in range(2)]
    weights = [numpy_helper.from_array(np.full((4096, 4096), i, np.float32), f"w{i}") for i in range(2)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4096]) for name in ("x", "x2"))
    graph = helper.make_graph(nodes, "big", [x], [y], weights)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "big.onnx", **(dict(save_as_external_data=True, location="big.data") if external else {}))
    used = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "big.onnx")], capture_output=True, text=True, check=True).stdout
    assert int(used) < 32 * 1024, f"{int(used) // 1024} MiB for a model of 128 MiB"


def test_bfloat16_goes_in_and_comes_out(tmp_path):
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "same.onnx")
    for rows in (2, 0):
        given = np.arange(3 * rows).reshape(rows, 3).astype(ml_dtypes.bfloat16)
        found = open_session(tmp_path / "same.onnx").run({"x": given})["y"]
        assert found.dtype == given.dtype and found.tolist() == given.tolist()


def test_what_onnx_runtime_refuses(tmp_path):
    with pytest.raises(FileError, match="there is no|not ONNX|not an ONNX"):
        open_session(tmp_path / "nothing.onnx")
    x = helper.make_tensor_value_info("x", 1, [2])
    graph = helper.make_graph([helper.make_node("Mystery", ["x"], ["y"])], "odd", [x], [helper.make_tensor_value_info("y", 1, [2])])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "odd.onnx")
    with pytest.raises(GraphError, match=r"(?s)ONNX Runtime does not open the file .*odd.onnx: .*Mystery.*next: .*--no-validate"):
        open_session(tmp_path / "odd.onnx")
    with pytest.raises(GraphError, match="^Required inputs"):
        open_session(zoo.export("gpt2")).run({})


def test_providers():
    assert pick_provider("cpu") == CPU
    with pytest.raises(UsageError, match="no provider 'tpu'.*\n.*one of: cpu, cuda"):
        pick_provider("tpu")
    if pick_provider() == CPU:  # then there is no device, and asking for one must not end on the CPU in silence
        with pytest.raises(OnnxgrowError, match="no CUDA device can be used: .*\n  next: .*provider cpu"):
            pick_provider("cuda")
    else:
        assert pick_provider("cuda") == pick_provider() == "CUDAExecutionProvider"


@pytest.mark.parametrize(("answers", "words"), [
    (None, "there is no NVIDIA driver"), ((100, 0, 1), "NVIDIA's driver finds no device"), ((0, 3, 1), "NVIDIA's driver finds no device"), ((0, 0, 0), "NVIDIA's driver finds no device"),
    ((0, 0, 1), None)])
def test_the_driver_is_asked_for_a_device_before_onnxruntime(answers, words, monkeypatch):
    """onnxruntime-gpu 1.21 ends the process where the libraries of CUDA are installed, as torch brings them, and no device is."""
    class Driver:
        def __init__(self, name):
            if answers is None:
                raise OSError(name)

        def cuInit(self, flags):
            return answers[0]

        def cuDeviceGetCount(self, count):
            count._obj.value = answers[2]
            return answers[1]

    def asked(*_, **__):
        raise RuntimeError("onnxruntime was asked")

    monkeypatch.setattr("ctypes.CDLL", Driver)
    monkeypatch.setattr("onnxruntime.InferenceSession", asked)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert runtime._cuda_problem.__wrapped__() == (words or "onnxruntime was asked")


@pytest.mark.parametrize(("version", "provider", "op", "lost"), [
    ("1.26.0", CPU, "LayerNormalization", True), ("1.27.0", CPU, "LayerNormalization", False), ("1.26.0", "CUDAExecutionProvider", "LayerNormalization", False),
    ("1.9.1", CPU, "SkipLayerNormalization", True), ("2.0", CPU, "LayerNormalization", False), ("1.26rc1", CPU, "LayerNormalization", True), ("1.26.0", CPU, "RMSNormalization", False)])
def test_norms_of_old_versions(version, provider, op, lost, monkeypatch):
    """Before 1.27 they sum one by one, so that entries which are alike all round to one side."""
    monkeypatch.setattr("onnxruntime.__version__", version)
    model = helper.make_model(helper.make_graph([helper.make_node(op, ["x", "g"], ["y"])], "g", [], []))
    assert runtime.norms_lose_digits(model, provider) == lost
    assert ("1.27" in _unequal_hint(SimpleNamespace(proto=model), provider)) == lost


def test_onnxruntime_is_imported_late():
    code = "import sys, onnxgrow.validate; print('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
