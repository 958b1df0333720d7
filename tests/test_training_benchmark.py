"""A miniature of `benchmarks/training.py` runs, and it refuses to time what computes or trains something else."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks import training, training_contestants  # noqa: E402
from benchmarks.native import Sizes  # noqa: E402

MINI = training.Scale(Sizes(layers=2, hidden=32, heads=4, ffn=64), vocab=100, batch=2, length=8)


@pytest.fixture(scope="module")
def rows():
    return list(training.measure_model("gpt2", MINI, ["eager", "eager, padded"], ["torchscript"], rounds=2))


def test_the_exported_module_is_raced_against_the_native_one(rows):
    native, again, own, *_ = (row for row in rows if row.run == "eager")
    assert (native.module, again.module, own.module) == ("native", "native again", "onnxgrow, torchscript")
    assert native.processor == (1, 1) and len(own.processor) == len(own.wall) == 2
    assert own.trains == native.trains == "all" and own.loss == pytest.approx(native.loss, rel=training.TOLERANCE)
    assert own.lines.endswith(" lines") and int(own.lines.split()[0]) > 100


def test_the_page_names_every_row_and_what_was_measured(rows):
    text = training.page(rows, MINI, 2)
    assert all(f"| {' | '.join(row.cells())} |" in text for row in rows)
    assert "2 layers, hidden 32" in text and f"torch {torch.__version__}" in text


@pytest.mark.parametrize("damage", [lambda p: p.add_(0.1), lambda p: p.requires_grad_(False)], ids=["another function", "one gain not trained"])
def test_what_computes_or_trains_something_else_is_not_timed(damage, monkeypatch):
    def damaged(path):
        module, lines = honest(path)
        with torch.no_grad():
            damage(module.transformer.ln_f.weight)
        return module, lines

    honest = training_contestants.ours
    monkeypatch.setattr(training_contestants, "ours", damaged)
    with pytest.raises(training_contestants.DiffersError, match="gpt2, eager, onnxgrow, torchscript: the loss at step"):
        list(training.measure_model("gpt2", MINI, ["eager"], ["torchscript"], rounds=2))


def test_what_a_converter_says_and_leaves_untrained_stands_in_the_table(monkeypatch):
    def frozen(path):
        module, lines = training_contestants.ours(path)
        module.transformer.wte.weight.requires_grad_(False)
        return module, lines

    def refuses(path):
        raise NotImplementedError("no Gather | here")

    monkeypatch.setattr(training_contestants, "OTHERS", {"json": frozen, "csv": refuses})  # names of modules that are installed
    rows = {row.module: row for row in training.measure_model("gpt2", MINI, ["eager"], ["torchscript"], rounds=2)}
    assert 0 < float(rows["json, torchscript"].trains.rstrip("%")) < 100
    assert rows["csv, torchscript"].cells()[3] == "NotImplementedError: no Gather / here"


def test_without_a_compiler_compiled_runs_are_left_out_with_the_reason(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (row,) = training.measure_model("gpt2", MINI, ["compiled"], ["torchscript"], rounds=2)
    assert "needs a C++ compiler" in row.said
