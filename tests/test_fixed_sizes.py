"""Graphs that run at one size only, outputs that are drawn at random, and weights that the graph takes as inputs."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.errors import GraphError
from onnxgrow.inputs import fixed_sizes
from onnxgrow.model import Model
from tests import growing
from tests.test_cli import run
from tests.test_terminal import seen
from tests.textgraph import model_of

HIDDEN, HEADS, HEAD, FFN, VOCAB = 8, 2, 4, 12, 19
ATTENTION = """
x = Gather table ids
n = LayerNormalization x g b
q0 = MatMul n wq
k0 = MatMul n wk
v0 = MatMul n wv
q1 = Reshape q0 heads
k1 = Reshape k0 heads
v1 = Reshape v0 heads
q = Transpose q1
k = Transpose k1
v = Transpose v1
s0 = MatMul q k
s = Mul s0 half
p = Softmax s
c0 = MatMul p v
c1 = Transpose c0
c = Reshape c1 flat
o = MatMul c wo
h = Add x o
m = LayerNormalization h g2 b2
"""
FEED = "u = MatMul m up\nf = Relu u\nd = MatMul f down\ny = Add h d\n"
SHAPES = {"table": (VOCAB, HIDDEN), "g": HIDDEN, "b": HIDDEN, "g2": HIDDEN, "b2": HIDDEN, "up": (HIDDEN, FFN), "down": (FFN, HIDDEN), "head": (HIDDEN, VOCAB)}
SHAPES |= dict.fromkeys(("wq", "wk", "wv"), (HIDDEN, HEADS * HEAD)) | {"wo": (HEADS * HEAD, HIDDEN)}
PERMS = {t: {"perm": [0, 2, 3, 1] if t == "k" else [0, 2, 1, 3]} for t in ("q", "k", "v", "c1")}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: (random.normal(size=shape) + n.startswith("g")).astype("f") for n, shape in SHAPES.items()}


def written(folder: Path, tail: str = "logits = MatMul y head", ids=("batch", "length"), heads=(0, 0, HEADS, HEAD), flat=(0, 0, HEADS * HEAD),
            lines: str = ATTENTION + FEED, fed: tuple[str, ...] = (), outputs: tuple[str, ...] = (), more=None, **attrs) -> Path:
    """The tiny transformer in a file; weights named in `fed` are graph inputs."""
    held = weights() | {"heads": np.array(heads), "flat": np.array(flat), "half": np.float32(0.5)} | (more or {})
    inputs = {"ids": list(ids)} | {n: list(held[n].shape) for n in fed}
    model = model_of(lines + tail, inputs, {n: v for n, v in held.items() if n not in fed}, **PERMS | attrs)
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


GROWN = dict(hidden=13, only_hidden=True, heads=3, head_dim=5, ffn=17)


# --- one size only ----------------------------------------------------------------------------------------------------


def test_a_static_graph_is_compared_at_its_size(tmp_path):
    path = written(tmp_path, ids=(2, 5))
    result = Model(path).plan(**GROWN).write()
    assert result.report.equal and result.report.max_rel < 1e-5
    assert [case.label for case in result.report.cases] == ["the exported size", "the exported size, draw 2", "the exported size, draw 3"]
    assert not result.report.fixed and not result.report.skipped and result.report.only_at == {"batch": [2], "length": [5]}
    assert any("compared at batch 2, length 5 only" in line for line in result.report.lines())


SAID = "runs only at batch 2, length 5: exported with fixed axes (export with dynamic axes to run and validate at other sizes)"


def test_people_and_programs_are_told_of_fixed_axes(tmp_path):
    path = written(tmp_path, ids=(2, 5))
    assert SAID in run("inspect", path)[1].splitlines() and SAID in " ".join(seen("inspect", 80, path).split())
    assert json.loads(run("inspect", path, "--json")[1])["only_at"] == {"batch": [2], "length": [5]}
    assert "compared at batch 2, length 5 only" in run("expand", path, "--ffn", 17)[1]
    assert "compared at batch 2, length 5 only" in seen("expand", 120, path, "--ffn", 18)


@pytest.mark.parametrize(("ids", "shapes", "sizes"), [
    (("batch", "length"), {}, {}), (("batch", 6), {}, {"length": [6]}), ((1, "length"), {}, {"batch": [1]}),
    (("batch", "length"), dict(heads=(2, -1, HEADS, HEAD), flat=(2, -1, HEADS * HEAD)), {"batch": [2]})])
def test_only_what_is_fixed_is_called_fixed(ids, shapes, sizes, tmp_path):
    path = written(tmp_path, ids=ids, **shapes)
    assert json.loads(run("inspect", path, "--json")[1])["only_at"] == sizes
    assert ("runs only at" in run("inspect", path)[1]) == bool(sizes)


@pytest.mark.parametrize(("name", "static", "sizes"), [
    ("bert-mlm", True, {"batch": [3], "length": [7]}), ("bert-mlm", False, {}), ("llama-past", False, {}), ("vit", False, {}), ("bart", False, {})])
def test_fixed_axes_of_real_exports(name, static, sizes):
    """Pixels, tables of positions, heads of a cache and masks that are spread are no fixed axes."""
    assert fixed_sizes(Model(replace(growing.usual(name), static=static).path).roles.structure) == sizes


BAKED = {  # symbolic axes, what the Reshapes hold, the sizes that must be found
    "batch": (("batch", "length"), dict(heads=(2, -1, HEADS, HEAD), flat=(2, -1, HEADS * HEAD)), {"batch": 2}),
    "length": (("batch", "length"), dict(heads=(-1, 6, HEADS, HEAD), flat=(-1, 6, HEADS * HEAD)), {"length": 6}),
    "both": (("batch", "length"), dict(heads=(2, 6, HEADS, HEAD), flat=(2, 6, HEADS * HEAD)), {"batch": 2, "length": 6}),
    "batch beside a fixed length": (("batch", 6), dict(heads=(2, -1, HEADS, HEAD), flat=(2, -1, HEADS * HEAD)), {"batch": 2}),
    "rows of heads": (("batch", "length"), dict(heads=(4, 1, HEADS, HEAD), flat=(4, 1, HEADS * HEAD)), {"batch": 4, "length": 1}),
}


@pytest.mark.parametrize("name", BAKED)
def test_a_size_that_the_export_wrote_down_is_found(name, tmp_path):
    ids, shapes, sizes = BAKED[name]
    model = Model(written(tmp_path, ids=ids, **shapes))
    assert {n: size for n, (size, _) in model.roles.structure.symbols.pinned.items()} == sizes
    assert (model.architecture.hidden, model.architecture.heads, model.architecture.head_dim) == (HIDDEN, HEADS, HEAD)
    report = model.plan(**GROWN).write().report
    assert report.equal and not report.skipped and report.fixed.keys() == sizes.keys()
    assert all(case.sizes.items() >= sizes.items() for case in report.cases) and len(report.cases) > 1
    assert all(any(f"{n}: {size} only, other sizes do not fit at '" in line for line in report.lines()) for n, size in sizes.items())


def test_what_one_size_explains_fixes_no_second_one(tmp_path):
    """TorchScript writes the length of nn.MultiheadAttention down beside a product of batch and heads: any batch runs before and after a growth."""
    layer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    model = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 16), torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)).eval()
    ids = torch.randint(VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (ids,), tmp_path / "model.onnx", dynamo=False, input_names=["ids"], output_names=["y"], dynamic_axes={"ids": {0: "batch", 1: "length"}})
    plan = Model(tmp_path / "model.onnx").plan(hidden=32)
    grown, source = (growing.session(path) for path in (growing.written(plan, tmp_path), tmp_path / "model.onnx"))
    assert fixed_sizes(plan.roles.structure) == {"length": [6]} and plan.sizes["heads"] == (2, 4)
    for batch in (1, 2, 3, 4, 8):
        feeds = {"ids": np.random.default_rng(batch).integers(0, VOCAB, (batch, 6))}
        old, new = source.run(None, feeds)[0], grown.run(None, feeds)[0]
        np.testing.assert_allclose(new[..., :16], old, atol=1e-5)


def test_sizes_that_no_number_reconciles_are_refused(tmp_path):
    with pytest.raises(GraphError, match="sizes do not fit"):
        Model(written(tmp_path, heads=(2, 6, HEADS + 1, HEAD + 3)))


# --- drawn at random --------------------------------------------------------------------------------------------------


def test_a_sample_is_named_and_the_rest_is_compared(tmp_path):
    tail = "l0 = ReduceMean y\nlogits = MatMul l0 head\nword = Multinomial logits\nlater = Cast word"
    path = written(tmp_path, tail, outputs=("logits",), l0={"axes": [1], "keepdims": 0}, word={"sample_size": 4}, later={"to": TensorProto.FLOAT})
    report = Model(path).plan(**GROWN).write().report
    assert report.equal and list(report.ignored) == ["later"] and "drawn at random by Multinomial (node 'word')" in report.ignored["later"]
    assert {d.output for case in report.cases for d in case.outputs} == {"logits"}
    assert any("not compared: later: drawn at random" in line for line in report.lines())


def test_nothing_but_samples_is_refused(tmp_path):
    tail = "l0 = ReduceMean y\nlogits = MatMul l0 head\nword = Multinomial logits"
    path = written(tmp_path, tail, l0={"axes": [1], "keepdims": 0})
    with pytest.raises(GraphError, match="every output is drawn at random"):
        Model(path).plan(ffn=17).write()


@pytest.mark.parametrize(("rate", "training", "named"), [(0.5, True, True), (0.5, False, False), (0.0, True, False)])
def test_dropout_is_random_where_it_drops(rate, training, named, tmp_path):
    tail = "dropped = Dropout y rate training\nlogits = MatMul dropped head"
    path = written(tmp_path, tail, outputs=("y",), more={"rate": np.float32(rate), "training": np.array(training)})
    report = Model(path).plan(heads=3).write().report
    assert report.equal and (list(report.ignored) == ["logits"]) == named


def test_noise_of_a_shape_is_random_and_the_shape_is_not(tmp_path):
    tail = "noise = RandomNormalLike y\nz = Add y noise\nlogits = MatMul z head\nlength = Shape z"
    report = Model(written(tmp_path, tail, outputs=("logits", "y"))).plan(heads=3, ffn=17).write().report
    assert report.equal and list(report.ignored) == ["logits"]


def test_tokens_are_compared_as_whole_numbers(tmp_path):
    """A search gives numbers of words: one that is another word is no small difference."""
    tail = "logits = MatMul y head\nword = ArgMax logits"
    path = written(tmp_path, tail, word={"axis": -1, "keepdims": 0})
    plan = Model(path).plan(heads=3)
    assert plan.write(tmp_path / "good.onnx").report.max_rel == 0
    wrong = onnx.load(tmp_path / "good.onnx")
    head = next(t for t in wrong.graph.initializer if t.name == "head")
    head.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(head), 1, 1), "head"))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    report = plan.compare(tmp_path / "wrong.onnx")
    assert not report.equal and report.max_rel == np.inf


# --- weights that are inputs ------------------------------------------------------------------------------------------


def test_fed_weights_are_named_with_what_to_do(tmp_path, monkeypatch):
    path = written(tmp_path, fed=tuple(SHAPES))
    with pytest.raises(GraphError) as refused:
        Model(path)
    assert "inputs of the graph look like weights: table, g, b, g2, b2, up and 6 more" in str(refused.value)
    command = refused.value.hint.partition('python -c "')[2].rpartition('"')[0]
    monkeypatch.chdir(tmp_path)
    np.savez("weights.npz", **weights())
    exec(command, {})  # the line that the hint gives
    baked = Model("baked.onnx")
    assert [v.name for v in baked.roles.structure.graph.inputs] == ["ids"]
    assert baked.plan(**GROWN).write().report.equal


@pytest.mark.parametrize("fed", [("up", "down"), ("table",), ("g",)])
def test_a_few_fed_weights_are_named_too(fed, tmp_path):
    with pytest.raises(GraphError, match=f"look like weights: {', '.join(fed)};"):
        Model(written(tmp_path, fed=fed))


def test_one_matrix_that_is_fed_may_be_states(tmp_path):
    """Embeddings of labels, say: the model grows, and takes them as before where their size stays."""
    report = Model(written(tmp_path, fed=("head",))).plan(ffn=17, heads=3).write().report
    assert report.equal and report.max_rel < 1e-5


def test_weights_that_can_be_overridden_grow(tmp_path):
    """Initializers that are inputs as well, as every file below IR version 4 has them."""
    path = written(tmp_path)
    model = onnx.load(path)
    for t in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    onnx.save(model, path)
    result = Model(path).plan(**GROWN).write()
    grown = onnx.load(result.path)
    shapes = {t.name: list(t.dims) for t in grown.graph.initializer}
    said = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in grown.graph.input if v.name != "ids"}
    assert result.report.equal and said == {n: shapes[n] for n in said} and len(said) == len(model.graph.input) - 1
    growing.session(result.path)


# --- graphs by others -------------------------------------------------------------------------------------------------

SHARED = next((p / "shared" / "models" for p in Path(__file__).resolve().parents if (p / "shared" / "models").is_dir()), None)


@pytest.mark.skipif(SHARED is None, reason="the graphs of other projects are not here")
@pytest.mark.parametrize(("name", "growths", "random"), [
    ("deeploy_cct2_128_op20", [dict(hidden=256), dict(ffn=150), dict(heads=3), dict(layers=3, depth_method="gate")], 0),
    ("mlagents_sorter", [dict(hidden=256, only_hidden=True), dict(heads=5), dict(head_dim=40)], 1)])
def test_graphs_of_other_projects(name, growths, random, tmp_path):
    model = Model(SHARED / f"{name}.onnx")
    for k, asked in enumerate(growths):
        report = model.plan(**asked).write(tmp_path / f"{k}.onnx").report
        assert report.equal and len(report.ignored) == random and len(report.cases) >= 3


@pytest.mark.skipif(SHARED is None, reason="the graphs of other projects are not here")
@pytest.mark.parametrize(("name", "sizes"), [("genai_tinygpt2_fp32", {}), ("mlagents_sorter", {"length": [20]}), ("ort_whisper_hf_enc", {"batch": [2], "length": [10]}),
                                             ("ezkl_nanogpt", {"length": [64]}), ("vespa_random_encoder", {})])
def test_fixed_axes_of_graphs_of_other_projects(name, sizes):
    """Keys and values side by side in a cache, and masks of actions, are no rows and no tokens."""
    assert fixed_sizes(Model(SHARED / f"{name}.onnx").roles.structure) == sizes
