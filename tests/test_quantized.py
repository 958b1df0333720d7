"""Quantized graphs: what grows as it is, what grows in float, and what is refused; files come from ONNX Runtime's own tools."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.dequantize import FIRST, OPERATORS, dequantize, is_quantized
from onnxgrow.errors import GraphError, MethodError, OnnxgrowError, SizeError
from onnxgrow.feeds import cases
from onnxgrow.model import Model
from onnxgrow.packed import Quantized, fill, unpacked_rows
from onnxgrow.plan import DEQUANTIZED
from onnxgrow.recipe import Recipe
from onnxgrow.runtime import open_session
from onnxgrow.source import open_source
from tests import growing, zoo
from tests.quantized import FORMATS, aligned, quantized

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "bert-mlm", "qwen3", "t5-encoder")]
EXACT = {  # what grows as it is, in a model with RMSNorm
    "weights": ("hidden-only", "ffn", "heads", "kv_heads", "head_dim", "layers"),
    "weights-asymmetric": ("hidden-only", "ffn", "heads", "kv_heads", "head_dim", "layers"),
    "weights-channel": ("hidden-only", "ffn", "heads", "kv_heads", "head_dim", "layers"),
    "static": ("ffn", "heads", "kv_heads", "head_dim"),
    "static-channel": ("ffn", "heads", "kv_heads", "head_dim"),
    "dynamic": ("hidden-only", "ffn", "heads", "kv_heads", "head_dim", "layers"),
    "dynamic-channel": ("hidden-only", "ffn", "heads", "kv_heads", "head_dim", "layers"),
    "dynamic-uint8": ("hidden-only", "ffn", "heads", "kv_heads", "head_dim", "layers"),
    "nbits-4": ("hidden-double", "heads", "layers"),
    "nbits-8": ("hidden-double", "heads", "layers"),
}
REFUSED = {  # why, and at which kind of node
    ("static", "hidden-only"): "cannot be mean",
    ("blocked-4", "heads"): "nothing can be appended along this axis of DequantizeLinear",
    ("blocked-4", "layers"): "several numbers in a byte",
    ("nbits-4", "head_dim"): "nothing can be appended along this axis of MatMulNBits",
    ("weights", "copy-hidden"): "copies meet copies",
    ("dynamic", "copy-hidden"): "holds whole numbers, which cannot be shared out",
}


def asked(name: str, label: str) -> dict:
    return {"layers": 3} if label == "layers" else growing.growths(name)[label]


def answers(model: Path, feeds: dict) -> dict:
    return open_session(model).run(feeds)


def gap(a: dict, b: dict) -> float:
    return max(float(np.abs(a[k] - b[k]).max() / np.abs(a[k]).max()) for k in a)


# --- as it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [pytest.param(f, marks=[pytest.mark.slow] * (f in ("weights", "static-channel", "dynamic-channel", "nbits-8"))) for f in EXACT])
def test_zero_is_the_zero_point(form, tmp_path):
    """Every growth that needs no more than zeros, compared by a session of our own as well."""
    model = Model(quantized("llama", form))
    feeds = cases(model.roles.structure, model.roles)[0].feeds
    before = answers(model.path, feeds)
    for label in EXACT[form]:
        plan = model.plan(**asked("llama", label))
        result = plan.write(tmp_path / f"{label}.onnx")
        assert plan.certificate.kind == "exact" and result.report.equal, label
        assert gap(before, answers(result.path, feeds)) <= 2e-6, label
        assert {n.op_type for n in onnx.load(result.path).graph.node} == {n.op_type for n in onnx.load(model.path).graph.node}


@pytest.mark.parametrize("form", ["nbits-4", "nbits-8"])
def test_whole_blocks_are_appended(form, tmp_path):
    model = Model(aligned(tmp_path, form))
    assert (model.architecture.ffn, model.architecture.head_dim) == (96, 16)
    for k, sizes in enumerate([{"ffn": 112}, {"hidden": 48, "only_hidden": True}, {"heads": 6}, {"heads": 8, "kv_heads": 2}, {"kv_heads": 4}, {"layers": 3}]):
        plan = model.plan(**sizes)
        grown = plan.write(tmp_path / f"{k}.onnx")
        assert plan.certificate.kind == "exact" and grown.report.max_rel <= 2e-6, sizes
        for node in onnx.load(grown.path).graph.node:
            if node.op_type == "MatMulNBits":
                assert {a.name: a.i for a in node.attribute}["K"] in (32, 48, 64, 96, 112, 128)
    with pytest.raises(SizeError, match="no multiple of 16"):
        model.plan(ffn=100)


@pytest.mark.parametrize(("form", "label"), REFUSED)
def test_what_needs_more_is_refused_with_the_next_step(form, label):
    with pytest.raises(MethodError, match=REFUSED[form, label]) as refusal:
        Model(quantized("llama", form)).plan(**asked("llama", label))
    assert refusal.value.hint.startswith(FIRST) and refusal.value.node


def test_an_operator_without_a_rule_names_the_next_step():
    with pytest.raises(GraphError, match="no rule for the operator com.microsoft::QLinearAdd") as refusal:
        Model(quantized("llama", "qoperator"))
    assert refusal.value.hint == FIRST


def test_whole_blocks_only():
    with pytest.raises(SizeError, match="45 is no multiple of 16") as refusal:
        Model(quantized("llama", "nbits-4")).plan(hidden=45, only_hidden=True)
    assert "32 or 48" in refusal.value.hint


def test_a_mean_cannot_be_held_between_two_steps():
    with pytest.raises(MethodError, match="new entries behind DequantizeLinear cannot be mean"):
        Model(quantized("gpt2", "weights")).plan(hidden=45, only_hidden=True)


def test_zero_points_that_differ_are_refused(tmp_path):
    model = onnx.load(quantized("llama", "weights-channel"))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_zero"):
            values = np.arange(np.prod(tensor.dims), dtype=np.int8)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(MethodError, match="differ from entry to entry") as refusal:
        Model(tmp_path / "model.onnx").plan(ffn=101)
    assert refusal.value.hint == FIRST


def test_heads_are_read_off_quantized_weights():
    float_model = Model(zoo.export("llama", "dynamo")).architecture
    for form in ("weights", "static", "dynamic", "nbits-4"):
        found = Model(quantized("llama", form)).architecture
        names = ("hidden", "heads", "kv_heads", "head_dim", "layers") + ("ffn",) * (not form.startswith("nbits"))
        assert [getattr(found, n) for n in names] == [getattr(float_model, n) for n in names], form


def test_a_measured_range_wants_zeros(tmp_path):
    """Random new columns before a DynamicQuantizeLinear would widen its range: the plan must not fill them so, and it shows if one does."""
    plan = Model(quantized("llama", "dynamic")).plan(ffn=101)
    path = plan.write(tmp_path / "grown.onnx").path
    grown = onnx.load(path)
    name = next(n for n, r in plan.recipes.items() if r.new_shape == (32, 101))
    tensor = next(t for t in grown.graph.initializer if t.name == name)
    values = np.array(numpy_helper.to_array(tensor))
    assert not values[:, 72:].any()  # its zero point is 0
    for tensor in grown.graph.initializer:
        if list(tensor.dims) == [32, 101]:
            values = np.array(numpy_helper.to_array(tensor))
            values[:, 72:] = 63
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(grown, tmp_path / "wrong.onnx")
    assert not plan.compare(tmp_path / "wrong.onnx").equal


def test_a_naive_growth_of_a_quantized_model_is_seen(tmp_path):
    report = Model(quantized("llama", "dynamic")).plan(hidden=48, only_hidden=True, method="naive").write(tmp_path / "naive.onnx").report
    assert not report.equal and report.max_rel > 5 * report.tolerance


def test_random_numbers_lie_around_the_zero_point():
    old = np.random.default_rng(0).integers(100, 160, (64, 64)).astype(np.uint8)
    free = AxisMap(64, 96, np.r_[np.arange(64), np.full(32, -1)], np.r_[np.full(64, Fill.OLD), np.full(32, Fill.FREE)])
    zero = AxisMap(64, 80, np.r_[np.arange(64), np.full(16, -1)], np.r_[np.full(64, Fill.OLD), np.full(16, Fill.ZERO)])
    recipe = Recipe("w", TensorProto.UINT8, (64, 64), (80, 96), (zero, free), zero=130)
    new = recipe.evaluate(old)
    assert np.array_equal(new[:64, :64], old) and (new[64:] == 130).all()
    assert abs(new[:64, 64:].mean() - 130) < 2 and abs(new[:64, 64:].std() - old.std()) < 2
    for size in (1, 500, 1 << 20):
        assert b"".join(b.tobytes() for _, b in recipe.blocks(old, size)) == new.tobytes()


# --- in float --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["llama", *SLOW])
def test_the_float_form(name, form):
    """Weights as the runtime reads them: the same outputs where activations are not rounded, close to the float original elsewhere."""
    path = quantized(name, form)
    original = Model(zoo.export(name, "dynamo"))
    feeds = cases(original.roles.structure, original.roles)[0].feeds
    source = dequantize(open_source(path))
    assert not {n.op_type for n in source.proto.graph.node} & OPERATORS
    found = answers(source, feeds)
    if form.startswith(("weights", "nbits", "blocked")):
        assert gap(answers(path, feeds), found) <= 1e-6
    if not form.endswith("-4"):  # four bits of random weights are another function; weights of 7 bits are off by a fifth
        assert gap(answers(original.path, feeds), found) < 0.25


@pytest.mark.parametrize("form", ["static", "dynamic", "qoperator", "blocked-4", *(pytest.param(f, marks=pytest.mark.slow) for f in ("nbits-4", "weights-asymmetric"))])
@pytest.mark.parametrize("label", ["hidden-only", "layers"])
def test_the_float_form_grows(form, label, tmp_path):
    model = Model(quantized("llama", form), dequantize=True)
    plan = model.plan(**asked("llama", label))
    report = plan.write(tmp_path / "grown.onnx").report
    assert plan.certificate.kind == "exact" and report.equal and report.tolerance == 1e-5
    assert plan.certificate.reasons[0] == DEQUANTIZED
    assert report.dequantized is not None and any("the quantized file itself differs" in line for line in report.lines())
    rounds = form in ("static", "dynamic", "qoperator")
    assert (report.dequantized > 1e-3) == rounds


def test_tied_weights_stay_tied():
    source = dequantize(open_source(quantized("bert-mlm", "weights")))
    original = open_source(zoo.export("bert-mlm", "dynamo"))
    def large(s):
        return sorted(tuple(t.dims) for t in s.proto.graph.initializer if len(t.dims) == 2)
    assert large(source) == large(original)


def test_a_float_model_is_left_alone():
    source = open_source(zoo.export("llama", "dynamo"))
    assert not is_quantized(source) and dequantize(source) is source
    assert not Model(zoo.export("llama", "dynamo"), dequantize=True).dequantized


def test_without_a_growth_the_float_form_is_written(tmp_path):
    """Not a copy of the quantized file."""
    Model(quantized("llama", "static"), dequantize=True).plan(hidden=32).write(tmp_path / "float.onnx")
    assert not is_quantized(open_source(tmp_path / "float.onnx")) and Model(tmp_path / "float.onnx").architecture.heads == 4


def test_the_source_is_never_changed(tmp_path, snapshot):
    path = tmp_path / "model.onnx"
    path.write_bytes(quantized("llama", "nbits-4").read_bytes())
    before = snapshot(tmp_path)
    Model(path, dequantize=True).plan(heads=6).write(tmp_path / "grown.onnx")
    assert {n: v for n, v in snapshot(tmp_path).items() if n == "model.onnx"} == before
    with pytest.raises(OnnxgrowError):
        Model(path, dequantize=True).plan(heads=6).write(path, overwrite=True)


def test_the_temporary_weights_go_with_the_model():
    model = Model(quantized("llama", "weights"), dequantize=True)
    folder = Path(model.source.temporary.name)
    assert any(folder.iterdir())
    del model
    import gc

    gc.collect()
    assert not folder.exists()


def test_external_data(tmp_path):
    model = onnx.load(quantized("llama", "blocked-4"))
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    grown = Model(tmp_path / "model.onnx", dequantize=True).plan(ffn=101).write(tmp_path / "grown.onnx")
    assert grown.report.equal


def test_attention_of_onnx_runtime(tmp_path):
    """QAttention becomes Attention: the weight in float, mask and past where they belong."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-60, 60, (32, 96)).astype(np.int8)
    numbers = {"w": weight, "b": rng.standard_normal(96).astype(np.float32), "ws": np.float32(0.01), "wz": np.int8(0)}
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "quantizer"),
             helper.make_node("QAttention", ["q", "w", "b", "s", "ws", "mask", "z", "wz"], ["y"], "attention", domain="com.microsoft", num_heads=4)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "t", 32]),
                                           helper.make_tensor_value_info("mask", TensorProto.INT32, ["b"])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "t", 32])],
                              [numpy_helper.from_array(np.asarray(v), n) for n, v in numbers.items()])
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]), tmp_path / "q.onnx")
    feeds = {"x": rng.standard_normal((2, 5, 32)).astype(np.float32), "mask": np.array([5, 3], np.int32)}
    source = dequantize(open_source(tmp_path / "q.onnx"))
    assert [n.op_type for n in source.proto.graph.node] == ["Attention"]
    a, b = (open_session(m).run(feeds)["y"] for m in (tmp_path / "q.onnx", source))
    assert np.abs(a[:, :3] - b[:, :3]).max() < 0.05 * np.abs(a).max()


def test_what_has_no_float_form_is_named(tmp_path):
    node = helper.make_node("QLinearReduceMean", ["x", "s", "z", "s", "z"], ["y"], "mean", domain="com.microsoft", axes=[1], keepdims=1)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 3])], [helper.make_tensor_value_info("y", TensorProto.UINT8, [2, 1])],
                              [numpy_helper.from_array(np.float32(1), "s"), numpy_helper.from_array(np.uint8(0), "z")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]), tmp_path / "q.onnx")
    with pytest.raises(GraphError, match="QLinearReduceMean has no float form") as refusal:
        Model(tmp_path / "q.onnx", dequantize=True)
    assert refusal.value.node == "mean"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 16), (33, 48)])
def test_packed_rows(bits, shape, tmp_path, monkeypatch):
    """Block by block, with a scale and a zero point for each run of 16: as numpy says."""
    monkeypatch.setattr("onnxgrow.packed.ELEMENTS", 64)
    rng, rows, columns = np.random.default_rng(1), *shape
    q = rng.integers(0, 2**bits, shape).astype(np.uint8)
    per = 8 // bits
    table = sum(q[:, k::per].astype(np.uint16) << (bits * k) for k in range(per)).astype(np.uint8)
    assert np.array_equal(unpacked_rows(table, bits), q)
    scale, zero = rng.random((rows, columns // 16), np.float32), rng.integers(0, 2**bits, (rows, columns // 16)).astype(np.float32)
    wanted = (q - np.repeat(zero, 16, 1)) * np.repeat(scale, 16, 1)
    for turned in (False, True):
        weight = Quantized(table, scale, zero, 1, 16, bits, shape, turned)
        fill(weight, tmp_path / f"{turned}.bin", np.dtype(np.float32))
        assert np.array_equal(np.fromfile(tmp_path / f"{turned}.bin", np.float32).reshape(weight.shape), wanted.T if turned else wanted)


# --- the command line ------------------------------------------------------------------------------------------------


def run(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "cli.py", *map(str, words)], capture_output=True, text=True, cwd=Path(__file__).parents[1])


def test_the_option(tmp_path):
    path, grown = quantized("llama", "blocked-4"), tmp_path / "grown.onnx"
    refused = run("expand", path, "--ffn", 101, "-o", grown)
    assert refused.returncode == 1 and "--dequantize" in refused.stderr and not grown.exists()
    done = run("expand", path, "--ffn", 101, "--dequantize", "-o", grown)
    assert done.returncode == 0, done.stderr
    assert "the function kept is that of the float model" in done.stdout and "the quantized file itself differs from that by" in done.stdout
    checked = run("validate", path, grown, "--dequantize")
    assert checked.returncode == 0 and checked.stdout.startswith("equal on")
    seen = run("inspect", path, "--dequantize")
    assert seen.returncode == 0 and "kv_heads     2" in seen.stdout
