"""Validation says equal where two models are, not equal where they are not, and where they part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.compare import Difference, compare, grown_input
from onnxgrow.errors import GraphError, UsageError
from onnxgrow.feeds import cases
from onnxgrow.model import Model
from onnxgrow.plan import Plan
from onnxgrow.report import CaseResult, Report
from onnxgrow.runtime import CPU
from onnxgrow.validate import _Pair, validate
from tests import zoo

GPT2, BERT, LLAMA = ("gpt2", "dynamo", "eager"), ("bert-mlm", "torchscript", "sdpa"), ("llama-past", "torchscript", "eager")
VIT, T5 = ("vit", "torchscript", "eager"), ("t5-encoder", "dynamo", "sdpa")


def planned(case: tuple[str, str, str], **growth) -> Plan:
    return Model(zoo.export(*case)).plan(**growth)


def written(plan: Plan, folder: Path) -> Path:
    return plan.write(folder / "grown.onnx", validate=False).path


def run(plan: Plan, grown: Path, source: Path | None = None, **more):
    s, d = plan.model.roles.structure, plan.decisions
    more = {"tolerance": 1e-5, "provider": "cpu", "axis_map": plan.axis_maps} | more
    return validate(s, plan.model.roles, source or plan.model.path, grown, d.inputs, d.outputs, **more)


def edited(path: Path, edit, name: str = "edited.onnx") -> Path:
    """A copy of the model, in which `edit` changed the graph."""
    model, copy = onnx.load(path), path.with_name(name)
    edit(model.graph)
    onnx.save(model, copy)
    return copy


def shifted(weight: str, index=None):
    """An edit that adds 0.1 to a part of a weight, to its first entry by itself."""
    def edit(graph):
        tensor = next(t for t in graph.initializer if t.name == weight)
        values = numpy_helper.to_array(tensor).copy()
        values[(0,) * values.ndim if index is None else index] += 0.1
        tensor.CopyFrom(numpy_helper.from_array(values, weight))
    return edit


def rewired(tensor: str, *nodes: onnx.NodeProto):
    """An edit after which every reader of a tensor reads what the last of `nodes` makes of it."""
    def edit(graph):
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == tensor:
                    node.input[i] = nodes[-1].output[0]
        for node in reversed(nodes):
            graph.node.insert(0, node)
    return edit


def through(output: str, *nodes: onnx.NodeProto):
    """An edit after which a graph output is what `nodes` make of "quiet", its old value; the rest of the graph still reads that."""
    def edit(graph):
        for node in graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = "quiet" if name == output else name
        graph.node.extend(nodes)
    return edit


def noisy(output: str, seed: int):
    """An edit that adds noise to an output, new in each run."""
    noise = helper.make_node("RandomNormalLike", ["quiet"], ["noise"], seed=float(seed))
    return through(output, noise, helper.make_node("Add", ["quiet", "noise"], [output]))


# --- equal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "growth"), [
    (GPT2, dict(hidden=48)),
    (GPT2, dict(set={"vocab": 111})),
    (BERT, dict(hidden=64, method="copy")),
    (LLAMA, dict(heads=8, kv_heads=4, head_dim=12)),
    (VIT, dict(hidden=45, only_hidden=True)),
    (T5, dict(ffn=101, heads=5)),
])
def test_equal(case, growth, tmp_path):
    plan = planned(case, **growth)
    report = run(plan, written(plan, tmp_path))
    assert report.equal and report.max_rel < 1e-5 and report.first_difference is None
    assert not report.skipped and not report.ignored and len(report.cases) >= 2
    assert report.provider == "CPUExecutionProvider"
    assert report.lines()[0].startswith("equal on CPU")
    assert report.top1 == (None if case == T5 else 1.0)
    assert report.top1_outputs == ([] if case == T5 else ["logits"])


def test_the_past_is_empty_once_and_filled_once(tmp_path):
    plan = planned(LLAMA, ffn=80)
    sizes = [case.sizes for case in run(plan, written(plan, tmp_path)).cases]
    assert any(s["past"] == 0 for s in sizes) and any(s["past"] > 0 and s["sequence"] > 1 for s in sizes)
    assert all(s["total"] == s["past"] + s["sequence"] for s in sizes)


# --- not equal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "growth", "find"), [
    (GPT2, dict(hidden=48), lambda n: n.op_type == "Gemm" and "mlp.c_proj" in n.input[1]),
    (GPT2, dict(hidden=48), lambda n: n.op_type == "LayerNormalization" and "h.1.ln_2" in n.input[1]),
    (LLAMA, dict(hidden=48), lambda n: n.op_type == "Mul" and "post_attention_layernorm.weight" in n.input[0]),
    (LLAMA, dict(head_dim=12), lambda n: "layers.1/self_attn/k_proj/MatMul" in n.name),
    (BERT, dict(hidden=64, method="copy"), lambda n: "layer.1/output/dense/MatMul" in n.name),
    (VIT, dict(hidden=45, only_hidden=True), lambda n: n.op_type == "Expand" and any("cls_token" in i for i in n.input)),
])
def test_a_wrong_weight_is_found(case, growth, find, tmp_path):
    plan = planned(case, **growth)
    grown = written(plan, tmp_path)
    model = onnx.load(grown)
    node = next(n for n in model.graph.node if find(n))
    weight = next(t.name for t in model.graph.initializer if t.name in node.input and np.prod(t.dims) > 4)
    report = run(plan, edited(grown, shifted(weight)))
    assert not report.equal
    assert report.first_difference.startswith(f"{node.output[0]!r}, made by node {node.name!r} ({node.op_type}")
    assert any(line.startswith("  first difference: ") for line in report.lines())


def test_every_row_of_the_vocabulary_counts(tmp_path):
    plan = planned(LLAMA, hidden=48)
    grown = written(plan, tmp_path)
    for word in (0, 57, 98):
        assert not run(plan, edited(grown, shifted("model.model.embed_tokens.weight", (word, 0)))).equal


def test_a_repair_that_is_missing_is_named(tmp_path):
    plan = planned(GPT2, hidden=48, method="naive")
    report = run(plan, written(plan, tmp_path))
    assert not report.equal and report.top1 < 1
    assert "(LayerNormalization with 'model.transformer.h.0.ln_1.weight')" in report.first_difference


def test_a_scale_that_is_missing_is_followed_to_its_origin(tmp_path):
    plan = planned(LLAMA, hidden=48, method="naive")
    found = run(plan, written(plan, tmp_path)).first_difference
    assert "(Softmax)" in found and "before it '/model/model/layers.0/input_layernorm/Mul_1_output_0' is the source's times 1.2247" in found


def test_an_ignored_mask_shows_where_there_is_padding(tmp_path):
    plan = planned(BERT, ffn=80)
    ones = [helper.make_node("Mul", ["attention_mask", "attention_mask"], ["squared"]), helper.make_node("Equal", ["squared", "squared"], ["same"]),
            helper.make_node("Cast", ["same"], ["all_real"], to=onnx.TensorProto.INT64)]
    report = run(plan, edited(written(plan, tmp_path), rewired("attention_mask", *ones)))
    differs = {case.label: case.outputs[0].max_rel > 1e-5 for case in report.cases}
    assert not report.equal and differs == {label: "padded" in label for label in differs} and len(set(differs.values())) == 2


def test_an_ignored_past_shows_where_there_is_one(tmp_path):
    plan = planned(LLAMA, ffn=80)
    zero = helper.make_node("Sub", ["past_value_0", "past_value_0"], ["nothing"])
    report = run(plan, edited(written(plan, tmp_path), rewired("past_value_0", zero)))
    assert {case.sizes["past"] > 0 for case in report.cases if max(d.max_rel for d in case.outputs) > 1e-5} == {True}
    assert any(case.sizes["past"] == 0 for case in report.cases)


def test_copies_that_disagree(tmp_path):
    plan = planned(LLAMA, kv_heads=4)
    assert plan.decisions.outputs["present_key_1"][1].source.tolist() == [0, 0, 1, 1]
    factors = helper.make_node("Constant", [], ["factors"], value=numpy_helper.from_array(np.array([1, 1, 1, 1.1], np.float32).reshape(4, 1, 1)))
    edit = through("present_key_1", factors, helper.make_node("Mul", ["quiet", "factors"], ["present_key_1"]))
    report = run(plan, edited(written(plan, tmp_path), edit))
    assert not report.equal and {d.output for case in report.cases for d in case.outputs if d.max_rel > 1e-5} == {"present_key_1"}


def test_a_grown_model_that_does_not_run(tmp_path):
    plan = planned(GPT2, ffn=80)
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[1000, 1000])
    grown = edited(written(plan, tmp_path), rewired("input_ids", shape, helper.make_node("Reshape", ["input_ids", "shape"], ["square"])))
    with pytest.raises(GraphError, match="the grown model does not run with batch 3, sequence 7.*Reshape"):
        run(plan, grown)


# --- sources that misbehave ------------------------------------------------------------------------------------------


def test_nan_of_the_source_is_named(tmp_path):
    source = tmp_path / "source.onnx"
    model = onnx.load(zoo.export(*GPT2))
    table = next(t for t in model.graph.initializer if list(t.dims) == [99, 32])
    values = numpy_helper.to_array(table).copy()
    values[98] = np.nan  # the last id: every case of two ids or more holds it
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(model, source)
    plan = Model(source).plan(ffn=80)
    report = run(plan, written(plan, tmp_path))
    assert report.equal and "the source gives nothing but NaN or inf" in report.skipped.values()
    assert any("the source gives NaN or inf in" in line for line in report.lines())
    assert {case.label: round(case.outputs[0].finite, 3) for case in report.cases} == {
        "batch 3, sequence 7, padded right": 0.667, "batch 1, sequence 1": 1, "batch 3, sequence 38, padded left": 0.667}


def test_an_output_that_is_random_is_left_out(tmp_path):
    plan = planned(LLAMA, ffn=80)
    grown = edited(written(plan, tmp_path), noisy("logits", 1))
    source = tmp_path / "source.onnx"
    onnx.save(onnx.load(plan.model.path), source)
    report = run(plan, grown, edited(source, noisy("logits", 2), "noisy.onnx"))
    assert report.equal and list(report.ignored) == ["logits"] and "two runs of the source differ by" in report.ignored["logits"]
    assert {d.output for case in report.cases for d in case.outputs} == {name for name in plan.decisions.outputs if name != "logits"}


def test_a_source_that_is_random_throughout(tmp_path):
    plan = planned(GPT2, ffn=80)
    source = tmp_path / "source.onnx"
    onnx.save(onnx.load(plan.model.path), source)
    with pytest.raises(GraphError, match="two runs of the source differ in every output") as error:
        run(plan, edited(written(plan, tmp_path), noisy("logits", 1)), edited(source, noisy("logits", 2), "noisy.onnx"))
    assert "eval mode" in error.value.hint


def test_a_source_that_runs_on_nothing(tmp_path):
    plan = planned(GPT2, ffn=80)
    with pytest.raises(GraphError, match="the source model runs on none of 4 sets of inputs; with batch 3, sequence 7"):
        run(plan, written(plan, tmp_path), zoo.export(*VIT))


def test_a_size_that_the_export_wrote_down_stays_and_the_others_move(tmp_path):
    plan = planned(("torch-encoder-prenorm", "torchscript", "eager"), ffn=80)
    report = run(plan, written(plan, tmp_path))
    assert report.equal and not report.skipped and {case.sizes["sequence"] for case in report.cases} == {7}
    assert {case.sizes["batch"] for case in report.cases} == {1, 3} and "Reshape" in report.fixed["sequence"]


def test_a_size_that_the_source_cannot_run_is_skipped(tmp_path):
    """What no shape shows: more words than a position table has rows, read by ids that are fed."""
    plan = planned(GPT2, ffn=80)
    tried = cases(plan.roles.structure, plan.roles)
    long = replace(tried[0], label="too long", feeds={n: np.repeat(x, 40, 1) for n, x in tried[0].feeds.items()})
    pair = _Pair(zoo.export(*GPT2), written(plan, tmp_path), plan.decisions.inputs, plan.decisions.outputs, plan.twins, CPU)
    answers, skipped = pair.run_source([*tried, long])
    assert list(skipped) == ["too long"] and answers.keys() == {case.label for case in tried}


# --- inputs of the user ----------------------------------------------------------------------------------------------


def some(**changes) -> dict[str, np.ndarray]:
    past = {f"past_{kind}_{layer}": np.ones((2, 2, 4, 8), np.float32) for kind in ("key", "value") for layer in (0, 1)}
    feeds = {"input_ids": np.array([[5, 6, 7], [8, 9, 10]]), "attention_mask": np.ones((2, 7), np.int64)} | past | changes
    return {name: x for name, x in feeds.items() if x is not None}


def test_given_inputs(tmp_path):
    plan = planned(LLAMA, heads=8, head_dim=12)
    report = run(plan, written(plan, tmp_path), feeds=some())
    assert report.equal and [case.label for case in report.cases] == ["the given inputs"]
    assert report.cases[0].sizes == {"batch": 2, "sequence": 3, "total": 7, "past": 4}


@pytest.mark.parametrize(("changes", "message"), [
    (dict(input_ids=None), "there is no array for the input 'input_ids'"),
    (dict(ids=np.ones((2, 3))), "the model has no input 'ids'"),
    (dict(input_ids=np.ones((2, 3), np.int32)), r"'input_ids' is of type int32, the input of type int64\n  next: save it with .astype\('int64'\)"),
    (dict(input_ids=np.ones(3, np.int64)), r"shape \[3\], the input \[batch, sequence\]"),
    (dict(past_key_0=np.ones((2, 2, 4, 9), np.float32)), r"shape \[2, 2, 4, 9\], the input \[batch, 2, past, 8\]"),
    (dict(past_key_1=np.ones((2, 2, 5, 8), np.float32)), r"shape \[2, 2, 5, 8\].*\n.*past = 4"),
    (dict(attention_mask=np.ones((2, 6), np.int64)), r"total is 6, but the graph needs past 4 \+ sequence 3"),
    (dict(input_ids=np.full((2, 3), 99)), "the source model does not run on the given inputs: .*out of data bounds"),
])
def test_given_inputs_that_do_not_fit(changes, message, tmp_path):
    plan = planned(LLAMA, ffn=80)
    with pytest.raises(UsageError, match=message):
        run(plan, plan.model.path, feeds=some(**changes))


# --- the report, and the comparison itself ---------------------------------------------------------------------------


def test_the_report_as_json(tmp_path):
    plan = planned(LLAMA, heads=8)
    document = run(plan, written(plan, tmp_path), seed=3).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == ["equal", "provider", "tolerance", "seed", "max_abs", "max_rel", "top1", "top1_outputs", "new_words", "cases", "skipped", "ignored",
                              "first_difference", "fixed", "only_at", "replaced", "dequantized"]
    assert document["seed"] == 3 and list(document["cases"][0]) == ["label", "sizes", "outputs"]
    assert list(document["cases"][0]["outputs"][0]) == ["output", "shape", "max_abs", "max_rel", "mean_rel", "finite", "agree", "rows",
                                                        "new_mean", "new_max", "largest"]


def test_what_is_infinite_becomes_none():
    odd = Difference("x", (2, 3), np.inf, np.inf, np.inf)
    report = Report(CPU, 1e-5, 0, (CaseResult("a case", {"batch": 2}, (odd,)),), {}, {})
    assert not report.equal and report.lines()[0].startswith("NOT EQUAL on CPU: largest relative difference inf")
    document = report.to_json()
    assert document["max_rel"] is None and json.loads(json.dumps(document, allow_nan=False)) == document
    assert not Report(CPU, 1e-5, 0, (), {}, {}).equal


def test_differences_are_relative_to_the_largest_value():
    a = np.array([[1.0, -4.0], [2.0, 1.0]])
    found = compare("x", a, a + [[0, 0.4], [0, 0]], (), rank=True)
    assert (found.max_abs, found.max_rel, found.mean_rel) == (pytest.approx(0.4), pytest.approx(0.1), pytest.approx(0.4 / 8))
    assert (found.agree, found.rows) == (2, 2)
    assert compare("x", a, a[:1], ()).max_rel == np.inf
    assert compare("x", a, np.where(a == 1, np.nan, a), ()).max_rel == np.inf
    assert compare("x", np.array([100000]), np.array([100001]), ()).max_rel == np.inf
    assert compare("x", np.array([np.inf, np.nan, 1]), np.array([np.inf, np.nan, 1]), ()).max_rel == 0
    assert compare("x", np.array([np.inf, 1]), np.array([-np.inf, 1]), ()).max_rel == np.inf


def test_inputs_are_scattered_through_the_maps():
    x = np.array([[1.0, 3.0]], np.float32)
    rows = AxisMap.identity(1)
    assert grown_input(x, (rows, AxisMap.append(2, 4, Fill.MEAN))).tolist() == [[1, 3, 2, 2]]
    assert grown_input(x, (rows, AxisMap.append(2, 4, Fill.ZERO))).tolist() == [[1, 3, 0, 0]]
    assert grown_input(x, (rows, AxisMap.append(2, 3, Fill.FREE))).tolist() == [[1, 3, 0]]
    copies = AxisMap(2, 4, np.array([0, 1, 0, 1]), np.zeros(4))
    assert grown_input(x, (rows, copies)).tolist() == [[1, 3, 1, 3]]
    assert grown_input(x, (rows, AxisMap(2, 3, np.array([0, 1, 0]), np.zeros(3), share=True))).tolist() == [[0.5, 3, 0.5]]
    moved = AxisMap(2, 4, np.array([0, -1, 1, -1]), np.array([Fill.OLD, Fill.ZERO, Fill.OLD, Fill.ZERO]))
    assert grown_input(x, (rows, moved)).tolist() == [[1, 0, 3, 0]]
    assert compare("x", x, np.array([[1, 9, 3, 9]], np.float32), (rows, moved)).max_rel == 0
    assert compare("x", x, np.array([[1, 3, 1, 2]], np.float32), (rows, copies)).max_abs == 1
