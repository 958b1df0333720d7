"""What `inspect` says about the models of the zoo is so, and what growth needs to know of a structure is found."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxgrow.errors import MethodError
from onnxgrow.model import Model
from tests import growing, zoo
from tests.growing import Case
from tests.zoo_models import SPECS

FACTS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions")
AROUND = {"gemma2", "gemma2-past"}
AFTER = growing.POST_NORM - {"clip-vision"}  # it has one norm more, in front of the first block


@pytest.mark.parametrize("name", SPECS)
def test_the_architecture_is_what_the_model_is(name):
    spec, found = SPECS[name], growing.opened(growing.usual(name).path).architecture
    facts = [fact for fact in FACTS if fact in spec.sizes and not (fact == "layers" and spec.tags & {"both", "cross"})]
    assert {fact: getattr(found, fact) for fact in facts} == {fact: spec.sizes[fact] for fact in facts}
    assert found.norm == ("rms norm" if "rms" in spec.tags else "layer norm")
    assert found.norm_place == ("around" if name in AROUND else "after" if name in AFTER else "before")
    assert (found.rotary, found.gated) == ("rotary" in spec.tags, "gated" in spec.tags)


@pytest.mark.parametrize(("name", "exporter"), [(name, exporter) for name in ("t5", "bart", "t5-decoder", "bart-decoder") for exporter in zoo.EXPORTERS])
def test_attention_to_an_encoder_is_found(name, exporter):
    """Two stacks of 2 and 3 layers, or the second one alone: its layers attend twice."""
    path = growing.exported_by(name, exporter).path
    roles = growing.opened(path).roles
    decoder = name.endswith("-decoder")
    assert len(roles.attention) == (6 if decoder else 8)
    assert len(roles.roles["ffn"].instances) == (3 if decoder else 5)
    assert roles.size("heads") == 4 and not any(d.refused for d in growing.opened(path).architecture.dims)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_a_shared_embedding_is_one_matrix_in_both_stacks(exporter, tmp_path):
    case = growing.exported_by("t5", exporter)
    plan = growing.plan_of(case, "hidden-only")
    grown = onnx.load(growing.written(plan, tmp_path))
    tables = [[t for t in model.graph.initializer if set(t.dims) == {99, width}] for model, width in ((onnx.load(case.path), 32), (grown, 45))]
    assert len(tables[0]) == len(tables[1]) and {t.name for t in tables[0]} == {t.name for t in tables[1]}


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_new_columns_of_a_table_of_sines_are_one_rotation(exporter, tmp_path):
    """Sine and cosine of a new pair belong to one angle, of the next frequency."""
    plan = growing.plan_of(Case("gptj", exporter), "head_dim")
    graph = onnx.load(growing.written(plan, tmp_path)).graph
    held = [*graph.initializer, *(a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute)]
    tables = [onnx.numpy_helper.to_array(t) for t in held if list(t.dims)[-2:] == [40, 6]]
    assert tables
    for table in tables:
        sin, cos = np.split(table.reshape(40, -1), 2, axis=1)
        assert sin.shape[1] == 3 and np.allclose(sin**2 + cos**2, 1)
        turns = np.arange(40) * np.arcsin(sin[1, 2])
        assert 0 < sin[1, 2] < sin[1, 1] and np.allclose(sin[:, 2], np.sin(turns), atol=1e-6) and np.allclose(cos[:, 2], np.cos(turns), atol=1e-6)


def test_a_group_that_no_weight_keeps_together_is_not_cut(tmp_path, monkeypatch):
    """Keys and values would be repeated, and the queries not go along: no exact plan may come of that."""
    case = Case("falcon-kv2", "torchscript")
    from onnxgrow import maps

    monkeypatch.setattr(maps, "summands", lambda d: [])  # as if the group stood elsewhere
    with pytest.raises(MethodError, match="side by side.*\n.*--heads"):
        Model(case.path).plan(kv_heads=4)
