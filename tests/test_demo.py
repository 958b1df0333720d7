"""`onnxgrow demo`: what it shows is true, fast, and leaves nothing behind unless asked."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from onnxgrow.commands import main
from onnxgrow.demo import nats_per_byte
from tests.test_cli import MODELS, run

TRAINED = json.loads((MODELS / "training.json").read_text())["models"]


def test_it_explains_each_step_and_goes_round_the_whole_circle():
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    commands = re.findall(r"^   \$ onnxgrow (\S+)", out, re.M)
    assert commands == ["inspect", "expand", "validate", "export", "import-weights", "expand"]
    rows = [[float(x) for x in row] for row in re.findall(r"^ +(\d+) +(\d\.\d+) +(\d\.\d+)$", out, re.M)]
    steps, losses, source = zip(*rows)
    assert steps == (0, 10, 20, 30, 40) and len(set(source)) == 1 and abs(losses[0] - source[0]) < 1e-4
    assert losses[-1] < losses[0] - 0.3  # it learns a new kind of text
    assert "equal to the trained module" in out
    before, after = (float(n) for n in re.findall(r"^   tiny-llama\S*\.onnx +(\d\.\d+)$", out, re.M))
    assert before == pytest.approx(TRAINED["tiny-llama"]["loss"]["sample"], abs=2e-5) and abs(before - after) < 1e-6
    assert "equal on " in out and "certificate: exact" in out and "\\n" not in out
    assert "layers: 4 -> 6" in out and "hidden: 96 -> 144" in out and "(944,880 new, 0 of them dead)" in out


def test_the_printed_commands_do_what_the_demo_shows(tmp_path, monkeypatch):
    code, out, _ = run("demo", "--steps", 2, "--keep", tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    kept = {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir() if p.is_file()}
    assert code == 0 and sorted(kept) == ["tiny-llama-h144-l6.onnx", "tiny-llama.onnx", "trained.onnx"]
    assert f"The files are in {tmp_path / 'kept'}." in out
    assert kept["tiny-llama.onnx"] == (MODELS / "tiny-llama.onnx").read_bytes()
    inspect, expand, validate, export, back = re.findall(r"^   \$ onnxgrow (.*)$", out, re.M)[:5]
    assert all(f"   {line}" in out for line in run(*inspect.split())[1].splitlines())
    assert run(*validate.split())[0] == 0
    assert run(*expand.split(), "--force")[0] == 0
    assert (tmp_path / "kept" / "tiny-llama-h144-l6.onnx").read_bytes() == kept["tiny-llama-h144-l6.onnx"]
    assert run(*back.split(), "--force")[0] == 0 and (tmp_path / "kept" / "trained.onnx").read_bytes() == kept["trained.onnx"]
    code, _, err = run(*export.split(), "--force")
    assert code == 1 and "trained.safetensors, which would be lost" in err
    next(Path().rglob("trained.safetensors")).unlink()
    assert run(*export.split(), "--force")[0] == 0


def test_as_a_document_and_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = run("demo", "--steps", 1, "--json")
    doc = json.loads(out)
    assert (code, err) == (0, "") and not list(tmp_path.iterdir())
    assert list(doc) == ["onnxgrow", "command", "model", "output", "architecture", "plan", "validation", "loss", "training"]
    assert doc["validation"]["equal"] is True and doc["output"] is None
    assert abs(doc["loss"]["before"] - doc["loss"]["after"]) < 1e-6


def test_it_fails_where_growth_fails(monkeypatch):
    from onnxgrow import demo

    monkeypatch.setattr(demo, "nats_per_byte", lambda *_: 0.0)
    monkeypatch.setattr("onnxgrow.tolerance.Precision.tolerance", lambda *_: 1e-12)
    assert CliRunner().invoke(main, ["demo", "--steps", "1"]).exit_code == 1


def test_it_overwrites_nothing(tmp_path):
    (tmp_path / "tiny-llama.onnx").write_text("mine")
    code, _, err = run("demo", "--keep", tmp_path)
    assert code == 1 and "already holds files of the demo" in err and (tmp_path / "tiny-llama.onnx").read_text() == "mine"
    (tmp_path / "file").touch()
    code, _, err = run("demo", "--keep", tmp_path / "file")
    assert code == 1 and err.startswith("error: cannot use the folder ")


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_is_the_one_of_the_training_script(name):
    text = (MODELS / "sample.txt").read_bytes()
    assert nats_per_byte(MODELS / f"{name}.onnx", text) == pytest.approx(TRAINED[name]["loss"]["sample"], abs=2e-5)


def test_the_loss_is_that_of_the_text():
    text = (MODELS / "sample.txt").read_bytes()
    shuffled = bytes(np.random.default_rng(0).permutation(np.frombuffer(text, np.uint8)))
    assert nats_per_byte(MODELS / "tiny-llama.onnx", shuffled) > 3


def test_without_torch_it_says_how_to_get_on(monkeypatch):
    monkeypatch.setattr("onnxgrow.demo.has_torch", lambda: False)
    code, out, _ = run("demo")
    assert code == 0 and "pip install 'onnxgrow[torch]'" in out and "import-weights" not in out
