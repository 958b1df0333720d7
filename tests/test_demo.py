"""`onnxgrow demo`: what it shows is true, fast, and leaves nothing behind unless asked."""

from __future__ import annotations

import json
import re
import tempfile
import time

import numpy as np
import pytest
from click.testing import CliRunner

from onnxgrow.commands import main
from onnxgrow.demo import nats_per_byte
from tests.test_cli import MODELS, run

TRAINED = json.loads((MODELS / "training.json").read_text())["models"]


def test_it_explains_each_step_and_ends_where_it_began():
    start = time.perf_counter()
    code, out, err = run("demo")
    assert (code, err) == (0, "") and time.perf_counter() - start < 20
    commands = re.findall(r"^   \$ onnxgrow (\S+)", out, re.M)
    assert commands == ["inspect", "expand", "validate", "expand"]
    before, after = (float(n) for n in re.findall(r"^   tiny-llama\S*\.onnx +(\d\.\d+)$", out, re.M))
    assert before == pytest.approx(TRAINED["tiny-llama"]["loss"]["sample"], abs=2e-5) and abs(before - after) < 1e-6
    assert "equal on " in out and "certificate: exact" in out
    assert "layers: 4 -> 6" in out and "hidden: 96 -> 144" in out and "(944,880 new, 0 of them dead)" in out


def test_the_printed_commands_do_what_the_demo_shows(tmp_path, monkeypatch):
    code, out, _ = run("demo", "--keep", tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    kept = {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir()}
    assert code == 0 and sorted(kept) == ["tiny-llama-h144-l6.onnx", "tiny-llama.onnx"]
    assert f"The files are in {tmp_path / 'kept'}." in out
    assert kept["tiny-llama.onnx"] == (MODELS / "tiny-llama.onnx").read_bytes()
    inspect, expand, validate = re.findall(r"^   \$ onnxgrow (.*)$", out, re.M)[:3]
    assert all(f"   {line}" in out for line in run(*inspect.split())[1].splitlines())
    assert run(*validate.split())[0] == 0
    assert run(*expand.split(), "--force")[0] == 0
    assert (tmp_path / "kept" / "tiny-llama-h144-l6.onnx").read_bytes() == kept["tiny-llama-h144-l6.onnx"]


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("demo")[0] == 0 and not list(tmp_path.iterdir())


def test_as_a_document():
    code, out, err = run("demo", "--json")
    doc = json.loads(out)
    assert (code, err) == (0, "")
    assert list(doc) == ["onnxgrow", "command", "model", "output", "architecture", "plan", "validation", "loss"]
    assert doc["validation"]["equal"] is True and doc["output"] is None
    assert abs(doc["loss"]["before"] - doc["loss"]["after"]) < 1e-6


def test_it_fails_where_growth_fails(monkeypatch):
    from onnxgrow import demo

    monkeypatch.setattr(demo, "nats_per_byte", lambda *_: 0.0)
    monkeypatch.setattr("onnxgrow.model.Plan.tolerance", lambda *_: 1e-12)
    assert CliRunner().invoke(main, ["demo"]).exit_code == 1


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
