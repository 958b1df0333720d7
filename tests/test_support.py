"""A fixed slice of the table of docs/support.md, of architectures that the zoo does not have."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from onnxgrow.model import Model
from tests import growing, support, support_exports
from tests.support import Found
from tests.support_exports import Variant
from tests.support_models import SUPPORT
from tests.support_page import cell, page
from tests.zoo_models import SPECS

SLICE = {  # model: growths that cannot be exact there
    "albert": {"hidden": "near"},  # norms after the branch
    "deberta-v2": {"hidden": "near", "layers": "near"},
    "xlnet": {"hidden": "near"},
    "bloom": {"hidden": "near"},  # and a norm behind the embeddings
    "phi3": {},
    "qwen3-moe": {},
    "wav2vec2-stable": {},
    "swinv2": {"hidden": "near"},
    "segformer": {"hidden": "near"},
}


@pytest.mark.parametrize("name", SLICE)
def test_a_slice_of_the_table(name):
    found = support.cells(Variant(name, "torchscript"))
    several = Variant(name).spec.tags & {"staged", "towers"}  # a result for each of their sizes
    assert several or len(found) == len({f.growth for f in found}), "one result for each growth"
    assert {f.growth for f in found} == set(support.applicable(Variant(name)))
    assert {f.growth: f.kind for f in found if f.kind != "exact"} == SLICE[name], found


@pytest.mark.slow
@pytest.mark.parametrize("v", support_exports.variants("plain"), ids=str)
def test_nothing_is_wrong_and_nothing_crashes(v):
    assert not [f for f in support.cells(v) if f.kind in ("wrong", "crash")]


# --- the harness itself -----------------------------------------------------------------------------------------------


def test_the_table_has_at_least_45_architectures_that_the_zoo_has_not():
    assert len(SUPPORT) >= 45 and not set(SUPPORT) & set(SPECS)


def test_a_wrong_growth_is_called_wrong(monkeypatch):
    """One weight of the grown file is changed by a thousandth."""
    written = growing.written

    def spoilt(plan, folder, *args):
        path = written(plan, folder, *args)
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.001, weight.name))
        onnx.save(model, path)
        return path

    monkeypatch.setattr(growing, "written", spoilt)
    assert {f.kind for f in support.cells(Variant("xlm-roberta", "torchscript")) if f.growth in ("ffn", "heads")} == {"wrong"}


def test_an_error_that_is_not_ours_is_a_crash(monkeypatch):
    def broken(self, **request):
        raise KeyError("oops")

    monkeypatch.setattr(support.Model, "plan", broken)
    assert {f.kind for f in support.cells(Variant("xlm-roberta", "torchscript"))} == {"crash"}


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(support, "cells", lambda v: tried.append(v) or [Found(v.name, str(v), "ffn", "exact", 0.0)])
    monkeypatch.setattr(support, "ProcessPoolExecutor", Here)
    kept, todo = tmp_path / "results.jsonl", [Variant("albert"), Variant("bloom")]
    first, both = list(support.run(todo[:1], 1, kept)), list(support.run(todo, 1, kept))
    assert tried == todo and both == [*first, Found("bloom", str(todo[1]), "ffn", "exact", 0.0)]
    assert len([json.loads(line) for line in kept.read_text().splitlines()]) == 2


class Here:
    """A pool of this process."""

    def __init__(self, jobs: int):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    map = staticmethod(map)


def test_a_cell_shows_the_worst():
    exact, near = Found("m", "m/a", "ffn", "exact", 1e-7), Found("m", "m/b", "ffn", "near", 2e-3)
    refused, wrong = Found("m", "m/c", "ffn", "refused", None, "no | room"), Found("m", "m/d", "ffn", "wrong", 0.5, "certificate exact")
    assert cell([]) == "–" and cell([exact]) == "exact" and cell([near]) == "near 2e-03"
    assert cell([exact, exact, refused]) == "refused (1; 2 exact)" and cell([exact, wrong]) == "WRONG (1; 1 exact)"
    text = page([exact, near, refused, wrong], Path("support.md"), "plain", 9)
    assert "**50.0 % exact or near.**" in text and "no / room | 1 | m: ffn" in text and "4 of 9" in text and "m/d ffn: wrong" in text


def test_a_layer_that_ends_inside_a_fused_operator():
    """The parts of it that are left stand alone, and nothing of how they were found out about stays on them."""
    v = Variant("clip-vision", "torchscript", form="optimizer")
    found = support.measure(v, Model(support_exports.export(v)), "layers", dict(layers=3))
    assert (found.kind, found.reason) == ("exact", "")
