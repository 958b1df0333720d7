"""The evidence: a miniature of the whole measurement runs, and the page shows what the committed file says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from math import inf
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import evidence, evidence_figures, evidence_report  # noqa: E402

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOUND = DOCS / "figures" / "evidence.json"


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> dict:
    """Four steps of everything that is compared, with a Llama-like model: no curve means anything, but all are there."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_bytes(bytes(range(32, 127)) * 20)
    return evidence.measure("mini", 1, text, 0, "llama")


def runs(found: dict, target: str, method: str) -> list[dict]:
    return [run for run in found["runs"] if (run["target"], run["method"]) == (target, method)]


def test_exact_growth_starts_where_the_source_stopped_and_others_do_not(miniature):
    (source,) = miniature["sources"]
    for target, method in (("layers", "exact"), ("hidden", "exact"), ("hidden", "copy"), ("none", "trained on")):
        for run in runs(miniature, target, method):
            assert run["certificate"] == (None if target == "none" else "exact")
            assert run["curve"][0] == [0, pytest.approx(source["loss"], abs=2e-4)]
    for target, method in (("layers", "stack"), ("hidden", "naive")):
        (run,) = runs(miniature, target, method)
        assert run["certificate"] == "not preserved" and abs(run["curve"][0][1] - source["loss"]) > 1e-3


def test_gradient_reaches_the_new_entries_of_exact_growth_and_not_those_of_naive_padding(miniature):
    for target in ("layers", "hidden"):
        live = runs(miniature, target, "exact")[0]["live"]
        assert live["1"] < live["3"] and live["3"] > 0.99
    assert runs(miniature, "hidden", "copy")[0]["live"]["1"] > 0.99
    assert runs(miniature, "hidden", "naive")[0]["live"]["3"] < 0.5


def test_nothing_of_torch_stays_switched(miniature):
    assert torch._C._len_torch_function_stack() == 0  # a default device, which torch.compile(fullgraph=True) refuses


def test_the_new_parameters_are_counted(miniature):
    sizes = miniature["parameters"]["llama"]
    assert sizes["layers"] == 2 * sizes["none"] and sizes["hidden"] == 4 * sizes["none"]
    assert evidence.block_parameters(evidence.SCALES["mini"].sizes("llama", wider=2), "llama") == sizes["hidden"]


def test_a_page_and_figures_come_out(miniature, tmp_path):
    evidence_report.write(miniature, tmp_path / "evidence.md")
    text = (tmp_path / "evidence.md").read_text()
    assert all(label in text for label in evidence_report.ORDER.values()) and "text.txt" in text
    for name in evidence_report.FIGURES:
        ElementTree.parse(tmp_path / "figures" / name)


def test_steps_to_a_loss_lie_on_lines_between_what_was_measured():
    curve = [[0, 2.0], [10, 2.1], [20, 1.9], [30, 1.8]]
    assert evidence_report.crossing(curve, 2.0) == 0
    assert evidence_report.crossing(curve, 1.95) == pytest.approx(17.5)
    assert evidence_report.crossing(curve, 1.7) == inf
    assert evidence_report.spread([1.0, inf, 3.0], "{:.0f}") == "3 (1 to never)" and evidence_report.spread([inf] * 3) == "never"


def test_the_page_and_its_figures_are_those_of_the_committed_measurement():
    found, page = json.loads(FOUND.read_text()), (DOCS / "evidence.md").read_text()
    assert evidence_report.filled(page, found) == page
    assert all(f"<!-- {name} -->" in page for name in evidence_report.blocks(found))
    for name, with_source in evidence_report.FIGURES.items():
        assert (DOCS / "figures" / name).read_text() == evidence_figures.figure(evidence_report.Results(found), with_source)
    assert found["scale"] == {**vars(evidence.SCALES["quick"]), "tokens": evidence.SCALES["quick"].tokens} and len(found["sources"]) == 6
