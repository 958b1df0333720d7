"""The two trained models keep their loss on real text when they grow 2 times in depth and 1.5 times in width; the baselines do not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import onnxgrow
from benchmarks import loss
from benchmarks.loss import BROKEN, KEPT, MODELS, NAMES
from onnxgrow.demo import nats_per_byte

TEXT = (MODELS / "sample.txt").read_bytes()


@cache
def loss_of_source(path: Path) -> float:
    return loss.loss(path, TEXT)


@pytest.mark.parametrize(("name", "label"), [pytest.param(name, label, marks=[pytest.mark.slow] * ((i + k) % 2)) for i, name in enumerate(NAMES) for k, label in enumerate(KEPT)])
def test_the_loss_stays(name, label, tmp_path):
    path = MODELS / f"{name}.onnx"
    plan, grown = loss.grow(onnxgrow.load(path), KEPT[label], tmp_path)
    assert plan.certificate.kind == "exact" and plan.new_parameters > 300_000
    assert abs(loss.loss(grown, TEXT) - loss_of_source(path)) <= 1e-6


@pytest.mark.parametrize("label", BROKEN)
@pytest.mark.parametrize("name", NAMES)
def test_baselines_start_worse_and_say_so(name, label, tmp_path):
    """A loss that could not change would show nothing above."""
    path = MODELS / f"{name}.onnx"
    plan, grown = loss.grow(onnxgrow.load(path), BROKEN[label], tmp_path)
    assert plan.certificate.kind == "not preserved" and loss.loss(grown, TEXT) > loss_of_source(path) + 0.1


def test_a_long_text_is_read_at_places_spread_evenly():
    """A text of one piece, over and over, costs what the piece costs."""
    piece = (TEXT * 2)[: loss.WINDOWS * loss.CONTEXT]
    path = MODELS / "tiny-llama.onnx"
    assert loss.loss(path, piece * loss.PLACES + piece[:1]) == pytest.approx(nats_per_byte(path, piece + piece[:1]), abs=0.02)
