"""Graphs in float16, bfloat16, float64 and mixtures of them: what grows, what is promised, and that a wrong growth is still seen."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.errors import NotEqualError
from onnxgrow.feeds import cases
from onnxgrow.graph import build
from onnxgrow.model import Model
from onnxgrow.precision import in_float32
from onnxgrow.pytorch.folder import export, load_folder
from onnxgrow.recipe import Recipe
from onnxgrow.repairs import _smaller
from onnxgrow.rulebook import load_builtin
from onnxgrow.runtime import open_session
from onnxgrow.source import open_source
from onnxgrow.structure import tie
from onnxgrow.tolerance import FP32, NATIVE, WEIGHTS, precision
from tests import growing
from tests.typed import by_converter, by_torch
from tests.zoo_models import SPECS

GROWTHS = ("hidden-only", "ffn", "heads", "head_dim", "kv_heads", "layers")
ISLANDS = ("LayerNormalization", "Softmax", "Pow", "ReduceMean", "Sqrt", "Reciprocal")
KINDS = {
    "float16": lambda name: by_torch(name, "float16"),
    "bfloat16": lambda name: by_torch(name, "bfloat16"),
    "float64": lambda name: by_torch(name, "float64"),
    "converted": by_converter,
    "converted, float32 outside": lambda name: by_converter(name, keep_io=True),
    "converted, torchscript": lambda name: by_converter(name, "torchscript"),
    "islands of float32": lambda name: by_converter(name, islands=ISLANDS),
}
ROUNDING = {"float64": None, "bfloat16": "bfloat16"}


def growth(name: str, label: str, kind: str) -> dict:
    if label != "layers":
        return growing.growths(name).get(label, {})
    clamped = (name, kind) == ("t5", "float16")  # transformers clamps the stream of a T5 in float16, which is no sum any more
    return {"layers": 3, "depth_method": "gate" if clamped else "identity"}


QUICK = {("gpt2", "float64"), ("gpt2", "converted, float32 outside"), ("llama", "float16"), ("llama", "bfloat16"), ("llama", "islands of float32")}
EVERY = [(name, kind) for name in ("gpt2", "llama", "t5", "vit", "gemma2", "qwen3") for kind in KINDS]


@pytest.mark.parametrize(("name", "kind"), [pytest.param(*each, marks=[pytest.mark.slow] * (each not in QUICK)) for each in EVERY])
def test_every_growth_is_exact_up_to_the_type(name, kind, tmp_path):
    model = Model(KINDS[kind](name))
    for label in GROWTHS if name != "gemma2" else GROWTHS[:-1]:
        asked = growth(name, label, kind)
        if not asked:
            continue
        plan = model.plan(**asked)
        report = plan.write(tmp_path / f"{label}.onnx").report
        assert plan.certificate.kind == "exact" and plan.certificate.rounding == ROUNDING.get(kind, "float16"), label
        assert report.equal and report.top1 in (None, 1.0) or report.top1 > 0.97, label
        assert bool(report.replaced) == (kind == "bfloat16" or (kind == "float64" and name == "vit"))  # no Conv in float64 on the CPU
        if label == "ffn":
            assert report.max_rel == 0


def test_of_nodes_that_go_nothing_stays_written_down(tmp_path):
    """Heads that were repeated are not repeated any more: the constants of that go, and what was noted of them."""
    onnx.shape_inference.infer_shapes_path(by_converter("llama", "torchscript", keep_io=True), tmp_path / "noted.onnx")
    plan = Model(tmp_path / "noted.onnx").plan(kv_heads=4)
    graph = onnx.load(growing.written(plan, tmp_path)).graph
    made = {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer} | {v.name for v in graph.input}
    assert graph.value_info and len(graph.node) < len(plan.model.opened.proto.graph.node) and made.issuperset(v.name for v in graph.value_info)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "islands of float32"])
@pytest.mark.parametrize("label", ["naive-hidden", "naive-ffn"])
def test_a_naive_growth_is_no_rounding(kind, label, tmp_path):
    plan = Model(KINDS[kind]("llama")).plan(**growing.growths("llama")[label])
    report = plan.write(tmp_path / "naive.onnx").report
    assert plan.certificate.kind == str(plan.certificate) == "not preserved"
    assert not report.equal and report.max_rel > 5 * report.tolerance


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_one_gain_that_is_not_repaired_is_seen(kind, tmp_path):
    """32 to 64 without the factor of one norm: the logits are off by a half."""
    model = Model(KINDS[kind]("llama"))
    plan = model.plan(hidden=64, only_hidden=True)
    file = plan.write(tmp_path / "grown.onnx", validate=False).path
    wrong = onnx.load(file)
    for tensor in wrong.graph.initializer:
        if tensor.name.endswith("model.norm.weight"):
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values.astype(np.float32) * 2**0.5).astype(values.dtype), tensor.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert plan.compare(file).equal and not plan.compare(tmp_path / "wrong.onnx").equal


def test_the_certificate_names_the_type():
    words = {kind: str(Model(KINDS[kind]("gpt2")).plan(ffn=101).certificate) for kind in ("float16", "bfloat16", "float64", "islands of float32")}
    assert words == {"float16": "exact up to rounding in float16", "bfloat16": "exact up to rounding in bfloat16", "float64": "exact",
                     "islands of float32": "exact up to rounding in float16"}
    untouched = Model(KINDS["float16"]("gpt2")).plan(hidden=32)
    assert str(untouched.certificate) == "exact"
    document = Model(KINDS["bfloat16"]("gpt2")).plan(ffn=101).to_json()["certificate"]
    assert document["kind"] == "exact" and document["rounding"] == "bfloat16"


def test_a_float64_graph_with_float32_inside_has_the_tolerance_of_float32():
    """transformers computes RMSNorm and rotary tables in float32 whatever the model's type."""
    pure, mixed = (precision(Model(by_torch(*case)).roles.structure) for case in (("gpt2", "float64"), ("llama", "float64", "torchscript")))
    assert pure.tolerance() == NATIVE[TensorProto.DOUBLE] < 1e-9
    assert mixed.values == TensorProto.FLOAT and mixed.tolerance() == FP32


def test_activations_count_too():
    """float32 weights behind Casts into a float16 graph: what flows is float16."""
    model = onnx.load(by_converter("gpt2"))
    nodes = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and len(tensor.dims) == 2:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), f"{name}_wide"))
            nodes.append(onnx.helper.make_node("Cast", [f"{name}_wide"], [name], f"narrow_{name}", to=TensorProto.FLOAT16))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and len(tensor.dims) == 1:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), f"{name}_wide"))
            nodes.append(onnx.helper.make_node("Cast", [f"{name}_wide"], [name], f"narrow_{name}", to=TensorProto.FLOAT16))
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    source = open_source(by_converter("gpt2"))
    found = precision(tie(build(type(source)(source.path, model, {}, {})), load_builtin()))
    assert found.weights == TensorProto.FLOAT and found.values == TensorProto.FLOAT16 and found.tolerance() == NATIVE[TensorProto.FLOAT16]


# --- what the runtime lacks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [pytest.param(name, kind, marks=[] if (name, kind) in (("llama", "bfloat16"), ("vit", "float64")) else pytest.mark.slow)
                                            for name, kind in (("gpt2", "bfloat16"), ("llama", "bfloat16"), ("vit", "bfloat16"), ("vit", "float64"), ("bert-mlm", "float64"))])
def test_the_float32_form_computes_what_pytorch_does(name, kind):
    """Source and grown model run in one form: a wrong form would hide in the comparison of both."""
    spec, session = SPECS[name], open_session(by_torch(name, kind))
    example = spec.example()
    with torch.no_grad():
        exact = spec.build().to(torch.bfloat16).double() if kind == "bfloat16" else spec.build().double()  # weights as in the file
        (wanted,) = [exact(*[x.to(next(exact.parameters()).dtype) if x.is_floating_point() else x for x in example.values()])]
    wanted = (wanted[0] if isinstance(wanted, tuple) else wanted).double().numpy()
    narrow = {"bfloat16": ml_dtypes.bfloat16, "float64": np.float64}[kind]
    feeds = {n: x.numpy().astype(narrow) if x.is_floating_point() else x.numpy() for n, x in example.items()}
    got = session.run(feeds)[spec.outputs[0]]
    assert session.replaced and got.dtype == np.float32
    assert np.abs(got - wanted).max() <= (5e-3 if kind == "bfloat16" else 1e-5) * np.abs(wanted).max()


def test_the_report_says_what_was_computed(tmp_path):
    report = Model(by_torch("gpt2", "bfloat16", "torchscript")).plan(heads=5).write(tmp_path / "grown.onnx").report
    assert "Could not find an implementation" in report.replaced and report.tolerance == WEIGHTS[TensorProto.BFLOAT16]
    (line,) = [line for line in report.lines() if "computed in float32" in line]
    assert line.startswith("  computed in float32, weights as stored: the CPU cannot run the source in its own types")
    assert report.to_json()["replaced"] == report.replaced


def test_the_first_difference_is_found_in_float32_too(tmp_path):
    plan = Model(by_torch("gpt2", "bfloat16", "torchscript")).plan(ffn=101)
    model = onnx.load(plan.write(tmp_path / "grown.onnx", validate=False).path)
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [101, 32] and not numpy_helper.to_array(t)[-1].any())
    values = np.array(numpy_helper.to_array(tensor))
    values[-1, 3] = 100  # a shift of a whole row would be gone behind the next norm
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    report = plan.compare(tmp_path / "wrong.onnx")
    assert not report.equal and tensor.name in report.first_difference


def test_numbers_stay_finite_in_float32():
    node = onnx.helper.make_node("Constant", [], ["m"], value=numpy_helper.from_array(np.array([np.finfo(np.float64).min, -np.inf])))
    graph = onnx.helper.make_graph([node], "g", [], [onnx.helper.make_tensor_value_info("m", TensorProto.DOUBLE, [2])])
    held = numpy_helper.to_array(in_float32(onnx.helper.make_model(graph)).graph.node[0].attribute[0].t)
    assert held.dtype == np.float32 and np.isfinite(held[0]) and held[1] == -np.inf


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_epsilon_shrinks_and_never_becomes_zero(dtype):
    for eps in (1e-5, 1e-6, 6e-8):
        held = np.array(eps, dtype)
        new = _smaller(held, 32 / 200)
        assert new.dtype == dtype and (new > 0) == (held > 0)
        assert abs(float(new) - float(held) * 0.16) <= max(2.0**-24, float(held) * 2.0**-8)


@pytest.mark.slow
def test_a_token_of_zeros_survives_a_tiny_epsilon(tmp_path):
    """6e-8 is the least float16: a quarter of it would be zero, and 0/0 no number."""
    model = onnx.load(by_torch("t5", "float16"))
    changed = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size == 1 and values.dtype.kind == "f" and 0 < float(values.ravel()[0]) < 1e-5:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, 6e-8), tensor.name))
            changed += 1
        if list(tensor.dims) == [SPECS["t5"].sizes["vocab"], 32]:
            table = np.array(values)
            table[7] = 0
            tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))
    assert changed
    onnx.save(model, tmp_path / "t5.onnx")
    report = Model(tmp_path / "t5.onnx").plan(hidden=200, only_hidden=True).write(tmp_path / "grown.onnx").report
    assert report.equal


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_repairs_are_rounded_once(dtype):
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    old = np.random.default_rng(0).standard_normal(32).astype(kind)
    m = AxisMap(32, 45, np.r_[np.arange(32), np.full(13, -1)], np.r_[np.full(32, Fill.OLD), np.full(13, Fill.ZERO)])
    factor = (32 / 45) ** 0.5
    new = Recipe("g", dtype, (32,), (45,), (m,), scale=factor).evaluate(old)
    wanted = (old.astype(np.float64) * factor).astype(kind)
    assert new.dtype == kind and np.array_equal(new[:32], wanted) and not new[32:].any()


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_frequencies_go_on_in_half_precision(dtype):
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    old = (10000.0 ** -(np.arange(8) / 8)).astype(kind)
    m = AxisMap(8, 10, np.r_[np.arange(8), -1, -1], np.r_[np.full(8, Fill.OLD), [Fill.FREE] * 2])
    new = Recipe("f", dtype, (8,), (10,), (m,), free="continue").evaluate(old).astype(np.float64)
    assert np.allclose(new, 10000.0 ** -(np.arange(10) / 8), rtol=0.03)


@pytest.mark.parametrize("kind", ["converted", "islands of float32"])
def test_after_branch_norms_behind_casts_take_stand_ins_and_layers(kind, tmp_path):
    """The gains that a near growth and a new layer must change lie behind Casts."""
    model = Model(KINDS[kind]("bert-mlm"))
    near = model.plan(hidden=45, only_hidden=True)
    report = near.write(tmp_path / "near.onnx").report
    assert near.certificate.kind == "near" and near.certificate.bound is not None and report.max_rel < 0.06
    deeper = model.plan(layers=3)
    assert deeper.write(tmp_path / "deep.onnx").report.max_rel < 5e-3 and deeper.certificate.kind == "exact"


def test_masks_of_half_precision_are_finite(tmp_path):
    model = Model(by_converter("torch-encoder-prenorm"))
    for case in cases(model.roles.structure, model.roles):
        for x in case.feeds.values():
            assert x.dtype != np.float16 or np.isfinite(x).all()
    assert model.plan(heads=5).write(tmp_path / "grown.onnx").report.equal


def test_a_table_of_positions_goes_on_in_float16(tmp_path):
    """A mask of -65504 keeps its triangle."""
    model = Model(by_converter("gpt2", "torchscript"))
    plan = model.plan(positions=model.architecture.positions + 8)
    assert plan.certificate.kind == "exact" and plan.write(tmp_path / "longer.onnx").report.equal


# --- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("llama", "float16"), ("vit", "float64"), *[pytest.param(*each, marks=pytest.mark.slow)
                                            for each in (("gpt2", "bfloat16"), ("llama", "float64"), ("vit", "bfloat16"))]])
def test_the_pytorch_export_agrees(name, kind, tmp_path):
    """Parameters are float32 to train in, with the values of the file; those of float64 stay float64."""
    Model(by_torch(name, kind)).plan(hidden=48, only_hidden=True).write(tmp_path / "grown.onnx", validate=False)
    done = export(Model(tmp_path / "grown.onnx"), tmp_path / "pt")
    module = load_folder(tmp_path / "pt")
    wanted = torch.float64 if kind == "float64" else torch.float32
    assert {p.dtype for p in module.parameters()} == {wanted}
    assert done.agreement.max_rel < (1e-2 if kind != "float64" else 1e-5)


def test_another_function_in_half_precision_is_refused(tmp_path):
    """`write` leaves nothing behind when a float16 model comes out wrong."""
    plan = Model(by_torch("llama", "float16")).plan(hidden=64, only_hidden=True)
    for tensor, recipe in list(plan.recipes.items()):
        if recipe.scale != 1:
            plan.recipes[tensor] = replace(recipe, scale=1.0)
    with pytest.raises(NotEqualError):
        plan.write(tmp_path / "grown.onnx")
    assert not list(tmp_path.iterdir())
