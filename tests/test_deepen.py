"""More layers, the same function: measured in ONNX Runtime for every model, without onnxgrow's own validation; names, caches and refusals."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxgrow.errors import MethodError, SizeError, UsageError
from onnxgrow.model import Model
from tests import deepening, growing, zoo
from tests.growing import Case
from tests.zoo_models import SPECS

USUAL = {str(growing.usual(name)) for name in SPECS}
EVERY = [(Case(*case), label) for case in zoo.cases() for label in deepening.growths(case[0])]
EPS = {"bart", "bart-decoder", "torch-encoder-postnorm"}  # norms after the branch with an epsilon of 1e-5
NEAR = 3e-4  # in front of all others, behind embeddings of small variance; elsewhere it is 3e-6


def promised(name: str, label: str) -> str:
    if label == "stack":
        return "not preserved"
    return "near" if name in EPS and "gate" not in label and not (name in deepening.NO_NORM_IN_FRONT and label == "start") else "exact"


def parameters() -> list:
    return [pytest.param(case, label, id=f"{case}-{label}", marks=[] if _short(case, label) else [pytest.mark.slow]) for case, label in EVERY]


def _short(case: Case, label: str) -> bool:
    """One export of each model, and one or two of its growths."""
    return str(case) in USUAL and growing.in_turn(case.name, label, deepening.growths(case.name), share=12)


@pytest.mark.parametrize(("case", "label"), parameters())
def test_every_depth_of_every_model(case, label, tmp_path, record_property):
    plan = growing.opened(case.path).plan(**deepening.growths(case.name)[label])
    kind = promised(case.name, label)
    assert plan.certificate.kind == kind, plan.certificate
    path = growing.written(plan, tmp_path)
    error = deepening.difference(plan, path, case)
    record_property("error", error)
    limit = {"exact": error <= growing.TOLERANCE, "near": error <= NEAR, "not preserved": error > growing.DIFFERS}
    assert limit[kind], error
    growing.check_sound(path, deepening.sound_feeds(plan, path, case))
    wanted = {s: n for s, n in deepening.growths(case.name)[label].items() if s.endswith("layers")}
    if "gate" not in label and deepening.growths(case.name)[label].get("depth_method") != "gate":  # a gate is a node that old blocks do not have
        assert {s.name: s.layers for s in Model(path).stacks} == wanted


# --- names and caches --------------------------------------------------------------------------------------------------------


def grown_file(case: Case, tmp_path, **request):
    return growing.written(growing.opened(case.path).plan(**request), tmp_path)


@pytest.mark.parametrize(("name", "exporter", "word"), [("llama-past", "torchscript", "layers"), ("gpt2", "torchscript", "h"), ("bert-mlm", "torchscript", "layer"),
                                                        ("t5-encoder", "torchscript", "block"), ("gpt2", "dynamo", "h"), ("gemma2", "torchscript", "layers")])
def test_the_number_in_a_name_is_the_depth(name, exporter, word, tmp_path):
    """The names of a grown file are those of an export that is as deep, wherever the source numbers its layers."""
    case, new = Case(name, exporter), 2 * SPECS[name].sizes["layers"]
    path = grown_file(case, tmp_path, layers=new)
    blocks = {k: {n.replace(f"{word}.{k}.", "#").replace(f"/{word}.{k}/", "#") for n in deepening.names_of(path) if f"{word}.{k}." in n or f"/{word}.{k}/" in n}
              for k in range(new)}
    assert not any(f"{word}.{new}." in n or f"/{word}.{new}/" in n for n in deepening.names_of(path))
    weights = [{n for n in found if n.endswith(("weight", "bias"))} for found in blocks.values()]
    assert all(found for found in blocks.values()) and all({n for n in w if "relative" not in n} == {n for n in weights[-1] if "relative" not in n} for w in weights)


def test_weights_stay_with_their_layer(tmp_path):
    """Old layers keep their weights under the new number, copies have those of their neighbour, last linear maps are zero."""
    case = Case("gpt2", "dynamo")
    old = {t.name: numpy_helper.to_array(t) for t in onnx.load(case.path).graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in onnx.load(grown_file(case, tmp_path, layers=4)).graph.initializer}
    at = "model.transformer.h.{}.{}".format
    for layer, source in enumerate((0, 0, 1, 1)):
        for part in ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "mlp.c_fc.weight", "ln_2.weight"):
            assert np.array_equal(new[at(layer, part)], old[at(source, part)]), (layer, part)
        for part in ("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"):
            wanted = old[at(source, part)] if layer % 2 == 0 else np.zeros_like(old[at(source, part)])
            assert np.array_equal(new[at(layer, part)], wanted), (layer, part)


def test_random_blocks(tmp_path):
    """Noise with the deviation of the matrices that it stands for; what silences a block stays zero; norms are kept."""
    case = Case("gpt2", "dynamo")
    old = {t.name: numpy_helper.to_array(t) for t in onnx.load(case.path).graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in onnx.load(grown_file(case, tmp_path, layers=3, placement="end", block_init="random")).graph.initializer}
    mine, theirs = new["model.transformer.h.2.mlp.c_fc.weight"], old["model.transformer.h.1.mlp.c_fc.weight"]
    assert mine.std() == pytest.approx(theirs.std(), rel=0.1) and abs(np.corrcoef(mine.ravel(), theirs.ravel())[0, 1]) < 0.1
    assert not new["model.transformer.h.2.mlp.c_proj.weight"].any()
    assert np.array_equal(new["model.transformer.h.2.ln_1.weight"], old["model.transformer.h.1.ln_1.weight"])


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
def test_caches_come_for_new_layers_in_order(exporter, tmp_path):
    model = onnx.load(grown_file(Case("llama-past", exporter), tmp_path, layers=5))
    each = [f"{{}}_{kind}_{layer}" for layer in range(5) for kind in ("key", "value")]
    assert [v.name for v in model.graph.input] == ["input_ids", "attention_mask", *(name.format("past") for name in each)]
    assert [v.name for v in model.graph.output] == ["logits", *(name.format("present") for name in each)]


ONCE = [("llama", ("Cos", "Sin"), "start"), ("t5-encoder", ("Log", "Gather"), "start"), ("mpnet", ("Log",), "interleave"), ("t5", ("Log",), "start")]


@pytest.mark.parametrize(("exporter", "name", "ops", "placement"), [pytest.param(exporter, *row, id=f"{exporter}-{row[0]}", marks=[pytest.mark.slow] * ((exporter, row[0]) == ("dynamo", "mpnet")))
                                                                    for exporter in zoo.EXPORTERS for row in ONCE])
def test_what_is_computed_once_stays_computed_once(exporter, name, ops, placement, tmp_path):
    """Mask, rotary tables and relative biases: as many of their nodes as before, wherever new layers go."""
    case = growing.exported_by(name, exporter)
    request = {s: 2 * n for s, n in deepening.stacks(name).items()}
    old, new = (onnx.load(p).graph.node for p in (case.path, grown_file(case, tmp_path, placement=placement, **request)))
    for op in ops:
        tables = [sum(n.op_type == op and (op != "Gather" or "embed" in n.name or "bias" in n.name) for n in nodes) for nodes in (old, new)]
        assert tables[0] == tables[1], op


def test_metadata_scopes_follow(tmp_path):
    """The exporter writes the module of each node into its metadata."""
    model = onnx.load(grown_file(Case("llama", "dynamo"), tmp_path, layers=3))
    key = "pkg.torch.onnx.name_scopes"
    scopes = [p.value for n in model.graph.node for p in n.metadata_props if p.key == key]
    counts = [sum(f"'model.model.layers.{k}'" in s for s in scopes) for k in range(4)]
    assert counts[0] >= counts[1] == counts[2] > 20 and counts[3] == 0  # the first holds what is computed once as well


# --- gates and the record ---------------------------------------------------------------------------------------------------


def test_gates_are_trainable_scalars(tmp_path):
    model = onnx.load(grown_file(Case("llama", "torchscript"), tmp_path, layers=3, depth_method="gate"))
    gates = [t for t in model.graph.initializer if "gate_" in t.name and not t.dims]
    assert [t.name for t in gates] == [f"model.model.layers.2.gate_{i}" for i in (0, 1)]
    assert all(numpy_helper.to_array(t) == 0 and t.data_type == onnx.TensorProto.FLOAT for t in gates)


def test_the_record_leads_back_to_the_plan(tmp_path):
    model = growing.opened(Case("llama", "torchscript").path)
    plan = model.plan(layers=5, placement="after:0", hidden=48)
    again = model.plan_like(Model(growing.written(plan, tmp_path)))
    assert again.request == plan.request and json.dumps(again.to_json()) == json.dumps(plan.to_json())
    assert plan.compare(tmp_path / "grown.onnx").equal


def test_the_same_command_writes_the_same_bytes(tmp_path):
    plans = [Model(Case("llama", "dynamo").path).plan(layers=4, hidden=48, block_init="random") for _ in range(2)]
    assert growing.written(plans[0], tmp_path, "a.onnx").read_bytes() == growing.written(plans[1], tmp_path, "b.onnx").read_bytes()


def test_a_wrong_zero_is_noticed(tmp_path):
    """What the comparison is for: one entry of a silent map that is not zero."""
    case = Case("llama-past", "torchscript")
    plan = growing.opened(case.path).plan(layers=3)
    path = growing.written(plan, tmp_path)
    model = onnx.load(path)
    silent = next(t for t in model.graph.initializer if t.name in plan.source.constant and len(t.dims) == 2)
    values = numpy_helper.to_array(silent).copy()
    values[3, 5] = 1e-2
    silent.CopyFrom(numpy_helper.from_array(values, silent.name))
    onnx.save(model, path)
    assert deepening.difference(plan, path, case) > growing.TOLERANCE and not plan.compare(path).equal


# --- refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "request_", "error", "words"), [
    ("llama", {"layers": 1}, SizeError, "cannot shrink"),
    ("llama", {"decoder_layers": 3}, SizeError, "no stack named 'decoder_layers'"),
    ("gemma2", {"layers": 5}, SizeError, "period of 2.*ask for 6"),
    ("gemma2", {"layers": 6, "placement": "after:0"}, UsageError, "layer 0 is inside one.*name layer 1"),
    ("llama", {"layers": 3, "placement": "after:7"}, UsageError, "no layer 7.*from 0 to 1"),
    ("llama", {"layers": 3, "placement": "after:0,1"}, UsageError, "cannot be shared evenly.*ask for 4"),
    ("llama", {"layers": 3, "placement": "middle"}, UsageError, "no placement 'middle'"),
    ("llama", {"layers": 3, "depth_method": "copy"}, UsageError, "no depth_method 'copy'"),
    ("torch-encoder-postnorm", {"layers": 3, "placement": "start"}, MethodError, "no such norm stands in front.*--placement end"),
])
def test_refusals_say_what_would_work(name, request_, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        growing.opened(Case(name, "torchscript").path).plan(**request_)


def test_the_function_of_the_order_of_flags():
    """One plan: widths and depth do not depend on which was named first."""
    model = growing.opened(Case("llama", "torchscript").path)
    a, b = (model.plan(**dict(items)) for items in (sorted({"layers": 3, "hidden": 48, "ffn": 80}.items()), [("hidden", 48), ("ffn", 80), ("layers", 3)]))
    assert json.dumps(a.to_json(), sort_keys=True) == json.dumps(b.to_json(), sort_keys=True)
