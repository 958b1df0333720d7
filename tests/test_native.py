"""A grown graph has the nodes of a native one, wired alike, and ONNX Runtime fuses both alike. Times: `python -m benchmarks.native`."""

from __future__ import annotations

import onnx
import pytest

from benchmarks import native
from benchmarks.native import DOUBLE, MODELS, Sizes
from tests import growing
from tests.growing import Case
from tests.zoo_models import FFN, HEADS, HIDDEN, LAYERS

SMALL = Sizes(LAYERS, HIDDEN, HEADS, FFN)


def export(name: str, exporter: str, sizes: Sizes, folder):
    return native.export(name, exporter, "eager", sizes, folder / f"{sizes.layers}-{sizes.hidden}.onnx", {})


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_a_grown_graph_is_like_a_native_one(name, exporter, tmp_path):
    """Deeper alone, and deeper and wider at once, against one native export: what its sizes are does not show in nodes or fusions."""
    new = SMALL.times(1.5, 2 if name in DOUBLE else 1.5)
    theirs = native.views(export(name, exporter, new, tmp_path), name, new, tmp_path)
    model = growing.opened(Case(name, exporter).path)
    for sizes in (SMALL.times(1.5, 1), new):
        plan = model.plan(**native.growth(SMALL, sizes))
        ours = native.views(growing.written(plan, tmp_path), name, sizes, tmp_path)
        assert plan.certificate.kind == "exact"
        assert {view: native.difference(ours[view], theirs[view]) for view in ours} == dict.fromkeys(ours, "")
    assert native.fused(ours["transformers tool"]) >= 2 * new.layers  # a norm of each branch at least


@pytest.mark.parametrize(("name", "more"), [("llama", {"Mul": 2}), ("bert-mlm", {"Sub": 1, "Mul": 1, "Add": 1})])
def test_gates_add_their_nodes_and_no_others(name, more, tmp_path):
    """Per new block: a product for each branch, or three nodes around a block whose norms come after the branch."""
    model = growing.opened(Case(name, "dynamo").path)
    identity, gated = (native.operators(model.plan(layers=LAYERS + 1, depth_method=method).proto()) for method in ("identity", "gate"))
    assert gated - identity == more and not identity - gated


def test_a_repair_inside_a_norm_would_be_seen(tmp_path):
    """One product more behind a mean of squares, as a careless repair would put it, and a norm is fused no longer."""
    path = Case("llama", "torchscript").path
    whole = native.fused(native.operators(native.optimised(path, tmp_path)))
    model = onnx.load(path)
    mean = next(n for n in model.graph.node if n.op_type == "ReduceMean")
    model.graph.initializer.append(onnx.helper.make_tensor("repair", onnx.TensorProto.FLOAT, [], [1.5]))
    model.graph.node.insert(list(model.graph.node).index(mean) + 1, onnx.helper.make_node("Mul", ["whole", "repair"], [mean.output[0]]))
    mean.output[0] = "whole"
    onnx.save(model, tmp_path / "careless.onnx")
    assert native.fused(native.operators(native.optimised(tmp_path / "careless.onnx", tmp_path))) == whole - 1
