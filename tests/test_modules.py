"""Weights whose names say nothing are shown with the module that reads them, wherever a person reads of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

from onnxgrow.modules import is_anonymous, modules_of, with_module
from onnxgrow.pytorch import parameters_of
from tests import zoo
from tests.test_cli import run
from tests.test_terminal import seen

LLAMA = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn", "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_every_nameless_matrix_has_its_module(exporter):
    graph = onnx.load(zoo.export("llama", exporter)).graph
    found = {name: path.removeprefix("model.") for name, path in modules_of(graph).items()}
    wanted = {f"model.layers.{layer}.{part}.{name}" for layer in range(2) for name, part in LLAMA.items()}
    matrices = {path for t in graph.initializer if len(t.dims) == 2 and (path := found.get(t.name))}
    assert matrices >= wanted and matrices <= wanted | {"lm_head"} and not any(not is_anonymous(name) for name in found)


def test_modules_are_those_of_the_framework():
    """What is written as val_219 is the transposed weight of the very module that is named."""
    path = zoo.export("llama")
    graph, torch_model = onnx.load(path).graph, zoo.SPECS["llama"].build(0, "eager")
    state = {name: value.detach().numpy() for name, value in torch_model.named_parameters()}
    checked = 0
    for tensor in graph.initializer:
        module = modules_of(graph).get(tensor.name)
        if module and len(tensor.dims) == 2 and f"{module}.weight" in state:
            assert (onnx.numpy_helper.to_array(tensor) == state[f"{module}.weight"].T).all(), module
            checked += 1
    assert checked >= 14


def test_people_see_the_module(tmp_path, monkeypatch):
    """In plans, differences and reports, also of new layers, which got names and modules of their own."""
    monkeypatch.chdir(tmp_path)
    source, shown = zoo.export("llama"), r"\(model\.model\.layers\.2\.mlp\.gate_proj\)"
    out = run("expand", source, "--layers", 3, "--ffn", 99, "--plan")[1]
    assert re.search(rf"  val_\d+_1 {shown}: \[32, 72\] -> \[32, 99\]", out) and re.search(r"  val_\d+_1 \(model\.model\.layers\.2\.mlp\.down_proj\) = 0", out)
    assert run("expand", source, "--layers", 3, "--ffn", 99, "-o", "grown.onnx")[0] == 0
    out = run("diff", source, "grown.onnx", "--all")[1]
    assert re.search(rf"val_\d+_1 {shown}\s+float32\[32, 99\]: only in", out) and "(model.model.layers.1.mlp.down_proj)" in out
    assert run("report", source, "grown.onnx", "-o", "r.html")[0] == 0
    assert re.search(r"<code>val_\d+(_1)? \(model\.model\.layers\.\d\.mlp\.\w+\)</code>", Path("r.html").read_text())
    names = [r["name"] for r in json.loads(run("expand", source, "--ffn", 99, "--plan", "--json")[1])["plan"]["initializers"]]
    assert names and not any("(" in name for name in names)


def test_inspect_says_which_weight_a_dim_is_of():
    path = zoo.export("bert-mlm")
    dim = next(d for d in json.loads(run("inspect", path, "--json")[1])["architecture"]["dims"] if d["name"].startswith("val_"))
    assert dim["module"] == "model.cls.predictions.transform.dense"
    assert f"{dim['name']}   32  in {dim['module']}" in run("inspect", path)[1]
    assert dim["module"] in "".join(line[17:50].strip() for line in seen("inspect", 80, path).splitlines() if ": " not in line)


def test_names_of_models_are_left_alone():
    assert with_module("layers.0.weight", {}) == "layers.0.weight"
    assert [is_anonymous(n) for n in ("val_8", "val_8_1", "onnx::MatMul_9", "layers.0.val", "value_8_x", "h.0.attn.c_attn.weight")] == [True] * 3 + [False] * 3


def test_an_export_names_new_layers_by_their_modules(tmp_path):
    """A nameless weight of a new layer is as nameless as that which it came from."""
    from onnxgrow import load

    grown = load(zoo.export("llama")).plan(layers=3).write(tmp_path / "grown.onnx", validate=False).path
    names = set(parameters_of(load(grown)))
    assert not any("val_" in name for name in names) and any(re.search(r"layers\.2\.mlp\.gate_proj\.weight", n) for n in names), names
