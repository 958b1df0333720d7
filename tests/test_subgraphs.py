"""Graphs inside of nodes: an If with two decoders as merged exports have it, an If over sizes, and a search of ONNX Runtime with a decoder as its body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow import load
from onnxgrow.errors import OnnxgrowError
from tests import zoo
from tests.zoo_models import SPECS, VOCAB

LAYERS, HEADS, SIZE = (SPECS["gpt2-past"].sizes[n] for n in ("layers", "heads", "head_dim"))
CACHES = [f"{kind}_{i}" for i in range(LAYERS) for kind in ("past_key", "past_value")]


def run(path: Path, feeds: dict) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, ["CPUExecutionProvider"]).run(None, feeds)


def decoder() -> onnx.ModelProto:
    return onnx.load(zoo.export("gpt2-past", "torchscript"))


def named(nodes, prefix: str, keep: set[str]) -> list[onnx.NodeProto]:
    """Copies of nodes with names of their own."""
    out = []
    for n in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        copy.name = prefix + n.name
        for names in (copy.input, copy.output):
            names[:] = [i if i in keep or not i else prefix + i for i in names]
        out.append(copy)
    return out


def merged(path: Path, inside: bool) -> Path:
    """One file for the first step and all others: `use_cache` chooses; weights are in the branches or outside of them."""
    model, graph = decoder(), decoder().graph
    held = {t.name for t in graph.initializer}
    fed = {v.name for v in graph.input}
    empty = helper.make_node("ConstantOfShape", ["no_words"], ["empty"], value=numpy_helper.from_array(np.zeros(1, np.float32)))
    rows = [helper.make_node("Shape", ["input_ids"], ["ids_shape"]), helper.make_node("Gather", ["ids_shape", "zero"], ["rows"]),
            helper.make_node("Concat", ["rows", "rest"], ["no_words"], axis=0), empty]
    numbers = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("zero", [0]), ("rest", [HEADS, 0, SIZE]))]
    first = named(graph.node, "first/", held | fed)
    for n in first:
        n.input[:] = ["empty" if i in CACHES else i for i in n.input]
    branches = {}
    for key, nodes, prefix in (("then_branch", named(graph.node, "next/", held | fed), "next/"), ("else_branch", [*rows, *first], "first/")):
        outputs = [helper.make_empty_tensor_value_info(prefix + o.name) for o in graph.output]
        for o in outputs:
            o.type.tensor_type.elem_type = TensorProto.FLOAT
        own = [*graph.initializer] * inside + numbers * (key == "else_branch")
        branches[key] = helper.make_graph(nodes, key, [], outputs, own)
    whole = helper.make_node("If", ["use_cache"], [o.name for o in graph.output], "choice", **branches)
    inputs = [*graph.input, helper.make_tensor_value_info("use_cache", TensorProto.BOOL, [1])]
    made = helper.make_graph([whole], "merged", inputs, graph.output, [] if inside else graph.initializer)
    out = helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(out)
    onnx.save(out, path)
    return path


def feeds(rng, batch: int, length: int, past: int, heads: int = HEADS, size: int = SIZE, layers: int = LAYERS, old: dict | None = None) -> dict:
    """Inputs of the decoder; a grown one takes the old caches in the corner of its own."""
    out = {"input_ids": rng.integers(0, VOCAB, (batch, length)), "attention_mask": np.ones((batch, past + length), np.int64)}
    out["attention_mask"][0, : past // 2] = 0
    return out | {n: rng.standard_normal((batch, HEADS, past, SIZE)).astype(np.float32) for n in CACHES}


def widened(cache: np.ndarray, heads: int, size: int) -> np.ndarray:
    return np.pad(cache, ((0, 0), (0, heads - cache.shape[1]), (0, 0), (0, size - cache.shape[3])))


GROWTHS = {"hidden": dict(hidden=45, only_hidden=True), "family": dict(hidden=48), "heads": dict(heads=HEADS + 1), "head_dim": dict(head_dim=SIZE + 3),
           "ffn": dict(ffn=101), "vocab": dict(vocab=VOCAB + 5)}


@pytest.mark.parametrize(("label", "inside"), [pytest.param(label, inside, marks=[pytest.mark.slow] * ((k + inside) % 3 > 0))
                                               for k, label in enumerate(GROWTHS) for inside in (False, True)])
def test_both_branches_of_a_merged_decoder_grow(tmp_path, label, inside):
    source = merged(tmp_path / "merged.onnx", inside)
    plan = load(source).plan(**GROWTHS[label])
    plan.write(tmp_path / "grown.onnx", validate=False)
    grown = onnx.load(tmp_path / "grown.onnx")
    onnx.checker.check_model(grown, full_check=True)
    assert [n.op_type for n in grown.graph.node] == ["If"] and plan.certificate.kind == "exact"
    caches = next(v for v in grown.graph.input if v.name == CACHES[0]).type.tensor_type.shape.dim
    heads, size = caches[1].dim_value, caches[3].dim_value
    rng = np.random.default_rng(0)
    for batch, length, past, use in ((2, 3, 4, True), (3, 7, 0, False), (1, 1, 9, True)):
        fed = feeds(rng, batch, length, past) | {"use_cache": np.array([use])}
        wide = {n: widened(x, heads, size) if n in CACHES else x for n, x in fed.items()}
        logits, *presents = run(source, fed)
        found, *others = run(tmp_path / "grown.onnx", wide)
        assert np.abs(found[..., :VOCAB] - logits).max() <= 1e-5 * np.abs(logits).max()
        for a, b in zip(presents, others):
            assert np.abs(b[:, :HEADS, :, :SIZE] - a).max() <= 1e-5 * np.abs(a).max()


def test_weights_that_both_branches_hold_are_one_weight(tmp_path):
    model = load(merged(tmp_path / "merged.onnx", inside=True))
    assert model.parameters == load(zoo.export("gpt2-past", "torchscript")).parameters


def test_validation_takes_both_branches(tmp_path):
    plan = load(merged(tmp_path / "merged.onnx", inside=False)).plan(hidden=48)
    report = plan.write(tmp_path / "grown.onnx").report
    assert report.equal and {bool(value) for case in report.cases for name, value in case.sizes.items() if name == "use_cache"} <= {True, False}


def test_a_merged_decoder_gets_deeper_or_says_why_not(tmp_path):
    source = merged(tmp_path / "merged.onnx", inside=False)
    try:
        plan = load(source).plan(layers=LAYERS + 1)
    except OnnxgrowError as refusal:
        assert "If" in str(refusal) or "stack" in str(refusal) or "layers" in str(refusal)
        return
    assert plan.write(tmp_path / "deep.onnx").report.equal


def searched(path: Path, op: str) -> Path:
    """The decoder as the body of a search, with the inputs and outputs that ONNX Runtime wants of it."""
    model, graph = decoder(), decoder().graph
    inner = {v.name for v in (*graph.input, *graph.output)}
    held = {t.name for t in graph.initializer}
    nodes = named(graph.node, "body/", held)
    before = [helper.make_node("Cast", [n], [f"body/{n}"], to=TensorProto.INT64) for n in ("input_ids", "attention_mask")]
    after = [helper.make_node("Identity", ["body/logits"], ["logits"])]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT32, ["batch", axis]) for n, axis in
              (("input_ids", "sequence"), ("position_ids", "sequence"), ("attention_mask", "total"))]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB])]
    for i in range(LAYERS):
        before.append(helper.make_node("Split", [f"past_{i}"], [f"k_{i}", f"v_{i}"], axis=0))
        before += [helper.make_node("Squeeze", [f"{x}_{i}", "zero"], [f"body/past_{kind}_{i}"]) for x, kind in (("k", "key"), ("v", "value"))]
        after += [helper.make_node("Unsqueeze", [f"body/present_{kind}_{i}", "zero"], [f"new_{x}_{i}"]) for x, kind in (("k", "key"), ("v", "value"))]
        after.append(helper.make_node("Concat", [f"new_k_{i}", f"new_v_{i}"], [f"present_{i}"], axis=0))
        inputs.append(helper.make_tensor_value_info(f"past_{i}", TensorProto.FLOAT, [2, "batch", HEADS, "past", SIZE]))
        outputs.append(helper.make_tensor_value_info(f"present_{i}", TensorProto.FLOAT, [2, "batch", HEADS, "total", SIZE]))
    assert inner
    body = helper.make_graph([*before, *nodes, *after], "decoder", inputs, outputs, [*graph.initializer, numpy_helper.from_array(np.array([0]), "zero")])
    slots = {"BeamSearch": ["input_ids", "max_length", "min_length", "num_beams", "num_return_sequences", "length_penalty"], "GreedySearch": ["input_ids", "max_length", "min_length"]}[op]
    fed = [helper.make_tensor_value_info(n, TensorProto.FLOAT if "penalty" in n else TensorProto.INT32, ["batch", "sequence"] if n == "input_ids" else [1])
           for n in slots]
    node = helper.make_node(op, slots, ["sequences"], "search", domain="com.microsoft", decoder=body, eos_token_id=VOCAB - 1, pad_token_id=VOCAB - 1, model_type=0)
    last = helper.make_tensor_value_info("sequences", TensorProto.INT32, ["batch", *["beams"] * (op == "BeamSearch"), "length"])
    opsets = [*model.opset_import, helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "search", fed, [last]), opset_imports=opsets, ir_version=model.ir_version), path)
    return path


@pytest.mark.parametrize(("label", "op"), [("family", "GreedySearch"), ("layers", "BeamSearch"), *(pytest.param(label, op, marks=pytest.mark.slow) for label, op in (
    ("hidden", "GreedySearch"), ("hidden", "BeamSearch"), ("head_dim", "BeamSearch"), ("family", "BeamSearch"), ("layers", "GreedySearch")))])
def test_a_search_finds_the_same_words_with_its_decoder_grown(tmp_path, label, op):
    source = searched(tmp_path / "search.onnx", op)
    plan = load(source).plan(**({"layers": LAYERS + 1} if label == "layers" else GROWTHS[label]))
    result = plan.write(tmp_path / "grown.onnx")
    assert result.report.equal and result.report.cases
    body = next(a.g for a in onnx.load(result.path).graph.node[0].attribute if a.name == "decoder")
    assert [v.name for v in body.input][:3] == ["input_ids", "position_ids", "attention_mask"]
    assert len(body.input) == 3 + LAYERS + (label == "layers")
    rng = np.random.default_rng(1)
    for batch, length in ((2, 5), (3, 2)):
        fed = {"input_ids": rng.integers(0, VOCAB - 1, (batch, length)).astype(np.int32), "max_length": np.array([16], np.int32),
               "min_length": np.array([12], np.int32)}
        fed |= {"num_beams": np.array([3], np.int32), "num_return_sequences": np.array([2], np.int32),
                "length_penalty": np.array([1.2], np.float32)} if op == "BeamSearch" else {}
        (wanted,), (found,) = run(source, fed), run(result.path, fed)
        assert wanted.shape[-1] >= 12 and np.array_equal(wanted, found)
