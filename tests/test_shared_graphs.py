"""The graphs by other projects: inspect is right on each, and no growth is wrong."""

from __future__ import annotations

import pytest

from tests import shared_graphs
from tests.shared_graphs import FOLDER, KNOWN, LABELS, found, growths, opened, tried

pytestmark = pytest.mark.skipif(FOLDER is None, reason="the graphs of other projects (../shared/models) are not on this machine")

REFUSED = {  # for a reason that a reader of the graph would agree with
    ("deeploy_cct2_128_op20", "hidden"): "new entries behind MaxPool cannot be mean",  # a max of means is no mean
    ("deeploy_cct2_128_op20", "layers"): "a norm stands on the stream inside a block",
    ("ort_bert_toy", "hidden"): "new entries behind Mul cannot be mean",  # GELU and a norm stand before a head that is tied to the words
    ("mlagents_sorter", "hidden"): "new entries behind Mul cannot be mean",  # the stream starts with x · sigmoid(x)
    ("silero_vad_micro", "hidden"): "new entries behind Relu cannot be mean",  # the stream starts with a Relu
}
SLOW = {"jax_flat_dyn", "ort_tfbert_keras2onnx", "silero_vad_micro", "ort_tinygpt2_beam", "deeploy_cct2_128_op20", "genai_tinygpt2_fp32"}


def named() -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in KNOWN]


@pytest.mark.parametrize("name", named())
def test_inspect_says_what_a_reader_finds(name):
    known = KNOWN[name]
    assert found(opened(name)) == {"layers": known.layers, "hidden": known.hidden, "heads": known.heads, "ffn": known.ffn, "vocab": known.vocab}


@pytest.mark.parametrize("name", named())
def test_every_growth_is_right_or_refused_with_a_reason(name):
    for label in LABELS:
        if label in growths(opened(name)):
            cell, reason = tried(name, label), REFUSED.get((name, label))
            assert (cell.kind == "refused") == (reason is not None), (label, cell)
            assert reason is None or reason in cell.reason


def test_all_graphs_that_lie_there_are_known():
    assert {file.stem for file in FOLDER.glob("*.onnx")} == set(shared_graphs.KNOWN)
