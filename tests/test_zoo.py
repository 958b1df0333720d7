"""The zoo says what PyTorch says, and so does the interpreter that the gradient tests stand on."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests import zoo
from tests.torch_runner import TorchModel, live_fraction

HANDFUL = {
    ("bert-mlm", "torchscript", "eager"),
    ("gpt2", "dynamo", "eager"),
    ("llama-past", "torchscript", "sdpa"),
    ("t5-encoder", "torchscript", "eager"),
    ("torch-encoder-postnorm", "torchscript", "sdpa"),
    ("qwen3", "dynamo", "sdpa"),
    ("vit", "torchscript", "sdpa"),
}
OPSETS = [("torchscript", 13), ("torchscript", 14), ("torchscript", 20), ("dynamo", 20), ("dynamo", 23)]
OTHERS = [(name, exporter, "eager", opset) for name in zoo.SPECS for exporter, opset in OPSETS]

every_export = pytest.mark.parametrize(
    ("name", "exporter", "attn"),
    [pytest.param(*case, marks=[] if case in HANDFUL else pytest.mark.slow) for case in zoo.cases()],
)


def runner_difference(name: str, exporter: str, attn: str, opset: int | None = None) -> float:
    """Largest relative difference between the interpreter and ONNX Runtime."""
    opset, spec = opset or zoo.DEFAULT_OPSET[exporter], zoo.SPECS[name]
    path = zoo.export(name, exporter, attn, opset)
    inputs = {key: value.numpy() for key, value in spec.example(*zoo.other_sizes(spec, exporter, opset, False)).items()}
    expected = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(list(spec.outputs), inputs)
    with torch.no_grad():
        actual = TorchModel(path)(**inputs)
    return max(zoo.relative(actual[key].numpy(), want) for key, want in zip(spec.outputs, expected, strict=True))


@every_export
def test_an_export_computes_what_pytorch_computes(name, exporter, attn):
    assert zoo.check_export(name, exporter, attn) < 1e-5


@every_export
def test_the_interpreter_computes_what_onnx_runtime_computes(name, exporter, attn):
    assert runner_difference(name, exporter, attn) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in OTHERS if not zoo.known_failure(*case)], ids=str)
def test_other_opsets(case):
    assert zoo.check_export(*case) < 1e-5
    assert runner_difference(*case) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ("mpnet", "dynamo", "sdpa"),
        ("bert-mlm", "torchscript", "sdpa", 13),
        ("torch-encoder-prenorm", "torchscript", "eager", 13),
        ("torch-encoder-prenorm", "dynamo", "eager", 23),
    ],
    ids=str,
)
def test_known_failures_still_fail(case):
    assert zoo.known_failure(*case)
    with pytest.raises(Exception, match=r"sdpa|scaled_dot_product_attention"):
        zoo.check_export(*case)


def test_static_external_and_reseeded_exports_are_files_of_their_own():
    plain = zoo.export("bert-mlm", "torchscript")
    static = zoo.export("bert-mlm", "torchscript", static=True)
    external = zoo.export("bert-mlm", "torchscript", external=True)
    assert all(dim.dim_value for dim in onnx.load(static).graph.input[0].type.tensor_type.shape.dim)
    assert external.stat().st_size + external.with_name(f"{external.name}.data").stat().st_size > 100_000
    assert plain.read_bytes() != zoo.export("bert-mlm", "torchscript", seed=1).read_bytes()
    for options in ({"static": True}, {"external": True}, {"seed": 1}):
        assert zoo.check_export("bert-mlm", "torchscript", **options) < 1e-5


@pytest.mark.parametrize("name", zoo.SPECS)
def test_every_parameter_is_random_and_the_sizes_are_true(name):
    spec = zoo.SPECS[name]
    parameters = dict(spec.build().named_parameters())
    for parameter in parameters.values():
        assert parameter.unique().numel() > 0.99 * parameter.numel()
        assert not torch.isin(parameter.detach(), torch.tensor([0.0, 1.0])).any()
    shapes = {dim for parameter in parameters.values() for dim in parameter.shape}
    assert shapes >= {spec.sizes[key] for key in ("hidden", "ffn", "vocab", "positions") if key in spec.sizes}
    assert shapes & {spec.sizes["heads"] * spec.sizes["head_dim"] * parts for parts in (1, 3)}


def two_layers(path, dead: bool):
    """y = tanh(x w1) w2, with the weights around the last two hidden units zero: in w2 only, or in both."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(3, 5)).astype("f"), random.normal(size=(5, 4)).astype("f")
    second[3:] = 0
    first[:, 3:] *= not dead
    nodes = [("MatMul", "x w1", "h"), ("Tanh", "h", "t"), ("MatMul", "t w2", "y")]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs.split(), [output]) for kind, inputs, output in nodes],
        "two-layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2")],
    )
    onnx.save(helper.make_model(graph), path)
    regions = {"w1": np.zeros((3, 5), bool), "w2": np.zeros((5, 4), bool)}
    regions["w1"][:, 3:] = regions["w2"][3:] = True
    return path, regions, {"x": random.normal(size=(8, 3)).astype("f")}


@pytest.mark.parametrize(("dead", "fraction"), [(False, 1.0), (True, 0.0)])
def test_live_fraction_tells_living_weights_from_dead_ones(tmp_path, dead, fraction):
    assert live_fraction(*two_layers(tmp_path / "two.onnx", dead)) == {"w1": fraction, "w2": fraction}


def test_unknown_operators_are_refused_by_name(tmp_path):
    path, _, inputs = two_layers(tmp_path / "two.onnx", dead=False)
    model = onnx.load(path)
    model.graph.node[1].op_type = "Asin"
    onnx.save(model, path)
    with pytest.raises(NotImplementedError, match="Asin"):
        TorchModel(path)(**inputs)
