"""Loop and Scan: a transformer in their bodies grows, with weights inside or outside; what growth does not touch stays as it is, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxgrow import load
from onnxgrow.errors import OnnxgrowError
from tests import loop_models as models
from tests.loop_models import BOOL, FLOAT, INT, WORDS, node, run, value
from tests.test_subgraphs import widened
from tests.zoo_models import VOCAB

WIDTHS = {"hidden": dict(hidden=45, only_hidden=True), "family": dict(hidden=48), "heads": dict(heads=5), "head_dim": dict(head_dim=11), "ffn": dict(ffn=101)}
CLOSE = 1e-5


def loops(path: Path) -> list[onnx.NodeProto]:
    return [n for n in onnx.load(path).graph.node if n.op_type in ("Loop", "Scan")]


def body_of(path: Path) -> onnx.GraphProto:
    (loop,) = loops(path)
    return next(a.g for a in loop.attribute if a.name == "body")


def assert_same(source: Path, grown: Path, cases: list[dict]) -> None:
    """The same outputs; grown inputs take the old numbers in their corner, grown outputs have them there."""
    model = onnx.load(grown)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert [v.name for v in model.graph.output] == [v.name for v in onnx.load(source).graph.output]
    for fed in cases:
        wide = {n: widened(x, shapes[n][1], shapes[n][3]) if x.ndim == 4 else x for n, x in fed.items()}
        for old, new in zip(run(source, fed), run(grown, wide)):
            new = new[tuple(slice(0, n) for n in old.shape)]
            assert np.array_equal(old, new) if old.dtype.kind == "i" else np.abs(new - old).max() <= CLOSE * np.abs(old).max()


def grow(source: Path, growth: dict) -> Path:
    plan = load(source).plan(**growth)
    assert plan.certificate.kind == "exact" and not plan.dead_parameters
    result = plan.write(source.with_name("grown.onnx"))
    assert result.report.equal and result.report.cases
    return result.path


def some(labels, *fast):
    return [pytest.param(x, marks=[] if x in fast else [pytest.mark.slow]) for x in labels]


# --- what growth does not touch ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    return models.beside(tmp_path_factory.mktemp("beside") / "model.onnx")


def prompts(rng, *sizes, **more) -> list[dict]:
    out = []
    for batch, length in sizes:
        mask = np.ones((batch, length), np.int64)
        mask[0, : length // 3] = 0
        out.append({"input_ids": rng.integers(0, VOCAB, (batch, length)), "attention_mask": mask} | more)
    return out


@pytest.mark.parametrize("label", some([*WIDTHS, "vocab", "layers"], "family", "head_dim", "layers"))
def test_loops_beside_the_transformer_stay_as_they_are(beside, label):
    grown = grow_over(beside, WIDTHS.get(label) or {"vocab": dict(vocab=VOCAB + 5), "layers": dict(layers=3)}[label])
    assert [n.SerializeToString() for n in loops(grown)] == [n.SerializeToString() for n in loops(beside)]
    assert [v.name for v in onnx.load(grown).graph.input] == ["input_ids", "attention_mask"]
    assert_same(beside, grown, prompts(np.random.default_rng(0), (2, 5), (3, 9), (1, 1)))


def grow_over(source: Path, growth: dict) -> Path:
    plan = load(source).plan(**growth)
    assert plan.certificate.kind == "exact"
    return plan.write(source.with_name("grown.onnx"), overwrite=True).path


@pytest.mark.parametrize("growth", [dict(heads=6), dict(head_dim=12)], ids=str)
def test_a_shape_that_a_loop_reads_too_stays_for_the_loop(growth, tmp_path):
    source = models.shared_number(tmp_path / "model.onnx")
    assert_same(source, grow_over(source, growth), [{"ids": np.arange(24).reshape(4, 6) % models.WORDS}])


def test_a_plan_that_changes_nothing_copies_the_file(beside, tmp_path):
    load(beside).plan().write(tmp_path / "copy.onnx")
    assert (tmp_path / "copy.onnx").read_bytes() == beside.read_bytes()
    source = models.cached(tmp_path / "cached.onnx", fed=False)
    load(source).plan().write(tmp_path / "same.onnx")
    assert (tmp_path / "same.onnx").read_bytes() == source.read_bytes()


# --- generation: the weights outside, ids carried ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", some([*WIDTHS, "layers"], "family", "heads", "layers"))
def test_greedy_generation_finds_the_same_words(tmp_path, label):
    source = models.greedy(tmp_path / "model.onnx", values=True)
    grown = grow(source, WIDTHS.get(label) or dict(layers=3))
    assert not body_of(grown).initializer or {t.name for t in body_of(grown).initializer} == {"last", "end", "one"}
    rng = np.random.default_rng(0)
    cases = [fed for sizes, trips in (((2, 5), 4), ((3, 8), 6), ((1, 1), 1)) for fed in prompts(rng, sizes, trips=np.array(trips))]
    assert run(source, cases[0])[0].shape == (2, 9)
    assert_same(source, grown, cases)


def test_words_that_the_model_chooses_itself_keep_the_vocabulary(tmp_path):
    with pytest.raises(OnnxgrowError, match="vocab"):
        load(models.greedy(tmp_path / "model.onnx")).plan(vocab=VOCAB + 5)


# --- generation: the weights inside, keys and values carried -----------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "fed"), [pytest.param(label, fed, marks=[] if (label, fed) in (("family", True), ("head_dim", False)) else [pytest.mark.slow])
                                            for label in WIDTHS for fed in (False, True)])
def test_a_cache_that_a_loop_carries_grows(tmp_path, label, fed):
    source = models.cached(tmp_path / "model.onnx", fed)
    grown = grow(source, WIDTHS[label])
    inside = {t.name: tuple(t.dims) for t in body_of(grown).initializer}
    before = {t.name: tuple(t.dims) for t in body_of(source).initializer}
    assert before.keys() <= inside.keys() and inside != before, "weights that stood in the body still stand there"
    assert len(onnx.load(grown).graph.initializer) <= len(onnx.load(source).graph.initializer) + 2
    cache = next(v for v in body_of(grown).input if v.name == "old_past_key_0").type.tensor_type.shape.dim
    assert (cache[1].dim_value, cache[3].dim_value) == {"heads": (5, 8), "family": (6, 8), "head_dim": (4, 11)}.get(label, (4, 8))
    assert cache[2].WhichOneof("value") is None, "its length is known at run time only"
    rng, cases = np.random.default_rng(1), []
    for batch, past, trips in ((2, 5, 4), (3, 0, 1), (1, 2, 6)):
        past *= fed
        case = {"input_ids": rng.integers(0, VOCAB, (batch, 1)), "trips": np.array(trips)} | ({"attention_mask": np.ones((batch, past + 1), np.int64)} if fed else {})
        cases.append(case | {f"past_{k}_{i}": rng.standard_normal((batch, 4, past, 8)).astype(np.float32) for k in ("key", "value") for i in (0, 1) if fed})
    assert_same(source, grown, cases)


def test_layers_with_a_cache_in_the_loop_are_refused(tmp_path):
    with pytest.raises(OnnxgrowError, match="states of its own.*generate"):
        load(models.cached(tmp_path / "model.onnx", fed=True)).plan(layers=3)


# --- Scan over time -----------------------------------------------------------------------------------------------------------------------


def times(rng, *sizes, axis: int = 0) -> list[dict]:
    return [{"first": rng.integers(0, WORDS, (b, p)), "ids": np.moveaxis(rng.integers(0, WORDS, (t, b, p)), 0, axis)} for t, b, p in sizes]


FORMS = {"plain": {}, "inside": dict(inside=True), "other axes": dict(axis=-1, backwards=True, out_axis=-2), "second axis": dict(axis=1, out_axis=1), "mixed": dict(mixed=True)}


@pytest.mark.parametrize("label", [*WIDTHS, "layers"])
@pytest.mark.parametrize("form", some(FORMS, "plain", "other axes", "mixed"))
def test_a_recurrent_state_of_the_hidden_size_grows(tmp_path, form, label):
    source = models.over_time(tmp_path / "model.onnx", **FORMS[form])
    grown = grow(source, WIDTHS.get(label) or dict(layers=2))
    assert_same(source, grown, times(np.random.default_rng(2), (4, 2, 5), (1, 3, 2), (6, 1, 7), axis=FORMS[form].get("axis", 0)))
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for part in ("input", "output", "value_info") for v in getattr(body_of(grown), part)}
    hidden, heads, size = {"hidden": (45, 3, 8), "family": (48, 6, 8), "heads": (24, 5, 8), "head_dim": (24, 3, 11)}.get(label, (24, 3, 8))
    assert sizes["state"][2] == sizes[body_of(grown).output[0].name][2] == sizes["n1"][2] == hidden and sizes["q2"][2:] == [heads, size]


@pytest.mark.parametrize("rms", [True, False])
def test_what_a_norm_makes_zero_need_not_be_zero_before_the_first_step(tmp_path, rms):
    """The state ends each step behind a norm without gain: its new entries are zero then, but at first they hold what the words say."""
    source = models.normed_state(tmp_path / "model.onnx", rms)
    cases = times(np.random.default_rng(3), (4, 2, 5), (1, 3, 2))
    for growth in (dict(hidden=45, only_hidden=True), dict(hidden=48)):
        try:
            plan = load(source).plan(**growth)
        except OnnxgrowError as refusal:
            assert not rms and "mean" in str(refusal)
            continue
        assert plan.certificate.kind == "exact"
        plan.write(tmp_path / "grown.onnx", validate=False, overwrite=True)
        assert_same(source, tmp_path / "grown.onnx", cases)


# --- layers as steps ------------------------------------------------------------------------------------------------------------------------


STACKS = {"scan": {}, "scan, rms": dict(rms=True), "loop": dict(loop=True), "loop, rms": dict(rms=True, loop=True)}


@pytest.mark.parametrize("label", WIDTHS)
@pytest.mark.parametrize("form", some(STACKS, "scan", "loop, rms"))
def test_stacked_layers_grow_in_width(tmp_path, form, label):
    source = models.over_layers(tmp_path / "model.onnx", 4, **STACKS[form])
    grown = grow(source, WIDTHS[label])
    rng = np.random.default_rng(4)
    assert_same(source, grown, [{"ids": rng.integers(0, WORDS, size)} for size in ((2, 5), (3, 1), (1, 9))])


@pytest.mark.parametrize("form", STACKS)
def test_stacked_layers_are_counted_and_not_made_more(tmp_path, form):
    model = load(models.over_layers(tmp_path / "model.onnx", 4, **STACKS[form]))
    assert model.architecture.layers == 4 and model.architecture.positions is None
    assert next(d for d in model.architecture.dims if d.name == "stacked_layers").refused
    for growth in (dict(layers=5), dict(set={"stacked_layers": 5})):
        with pytest.raises(OnnxgrowError, match="steps of one loop.*node.*axis 0"):
            model.plan(**growth)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("by_slice", [False, True])
def test_an_entry_taken_by_the_number_of_the_step_is_not_always_the_same(tmp_path, by_slice, axis):
    source = models.over_heads(tmp_path / "model.onnx", by_slice, axis)
    cases = [{"ids": np.random.default_rng(5).integers(0, WORDS, size)} for size in ((2, 5), (3, 1))]
    done = 0
    for growth in (dict(heads=5), dict(ffn=50), dict(hidden=45, only_hidden=True)):
        try:
            plan = load(source).plan(**growth)
        except OnnxgrowError as refusal:
            assert "Slice" in str(refusal) and axis == 1
            continue
        plan.write(tmp_path / "grown.onnx", validate=False, overwrite=True)
        assert_same(source, tmp_path / "grown.onnx", cases)
        done += 1
    assert done >= 2


@pytest.mark.parametrize("label", WIDTHS)
def test_a_loop_that_ends_by_a_condition_with_a_choice_inside(tmp_path, label):
    source = models.until(tmp_path / "model.onnx")
    grown, rng = grow(source, WIDTHS[label]), np.random.default_rng(8)
    assert_same(source, grown, [{"ids": rng.integers(0, WORDS, (2, 4)), "limit": np.array(n), "flag": np.array([f])} for n in (1, 3) for f in (True, False)])


# --- what is not understood -----------------------------------------------------------------------------------------------------------------


def test_a_body_that_cannot_be_followed_is_refused_where_it_stands(tmp_path):
    """A state that gets twice as long at each step, and goes through the transformer."""
    rng = np.random.default_rng(6)
    layer = [node("Concat", ["state", "state"], ["x"], axis=1), *models.block("x", "state_next"), node("Identity", ["c"], ["c_next"])]
    body = helper.make_graph(layer, "step", [value("i", INT, []), value("c", BOOL, []), value("state", FLOAT, ["b", None, models.HIDDEN])],
                             [value("c_next", BOOL, []), value("state_next", FLOAT, ["b", None, models.HIDDEN])])
    outer = [n for n in models.block("h0", "h1")]
    nodes = [node("Gather", ["words", "ids"], ["h0"]), *outer, node("Loop", ["trips", "", "h1"], ["last"], "doubling", body=body), node("MatMul", ["last", "head"], ["scores"])]
    source = models.saved(tmp_path / "model.onnx", nodes, [value("ids", INT, ["batch", "places"]), value("trips", INT, [])], [value("scores", FLOAT, ["batch", None, 7])],
                          models.tensors(models.weights(rng) | models.around(rng)) + models.NUMBERS, check=None)
    with pytest.raises(OnnxgrowError, match="Loop.*doubling"):
        load(source).plan(hidden=45, only_hidden=True)


def test_loops_in_loops(tmp_path):
    """Layers as steps of a Scan, inside of a Loop that repeats them."""
    inner = onnx.load(models.over_layers(tmp_path / "layers.onnx", 3))
    scan = next(n for n in inner.graph.node if n.op_type == "Scan")
    scan.input[0] = "h"
    body = helper.make_graph([scan, node("Identity", ["c"], ["c_next"])], "again", [value("i", INT, []), value("c", BOOL, []), value("h", FLOAT, ["b", "p", models.HIDDEN])],
                             [value("c_next", BOOL, []), value("last", FLOAT, ["b", "p", models.HIDDEN])])
    nodes = [inner.graph.node[0], node("Loop", ["trips", "", "h0"], ["again"], "repeat", body=body), *models.renamed(list(inner.graph.node)[2:], {"last": "again"})]
    source = models.saved(tmp_path / "model.onnx", nodes, [*inner.graph.input, value("trips", INT, [])], inner.graph.output, inner.graph.initializer, check=None)
    rng = np.random.default_rng(7)
    cases = [{"ids": rng.integers(0, WORDS, size), "trips": np.array(t)} for size, t in (((2, 5), 3), ((3, 1), 1), ((1, 4), 2))]
    for growth in WIDTHS.values():
        assert_same(source, grow(source, growth), cases)
        source.with_name("grown.onnx").unlink()
