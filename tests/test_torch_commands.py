"""`onnxgrow export`, `onnxgrow import-weights` and `onnxgrow expand --torch`, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from safetensors.numpy import load_file, save_file

from onnxgrow.atomic import OR_FORCE
from onnxgrow.pytorch import load_folder
from tests.test_cli import folder, run  # noqa: F401 (a fixture)


def test_export_and_back(folder):  # noqa: F811
    code, out, err = run("export", "model.onnx")
    assert (code, err) == (0, "") and "wrote model_pt" in out and "equal to ONNX Runtime in 5 cases" in out
    assert "437,088 parameters" in out and "the graph has 437,100: 12 in buffers, which are not trained (inv_freq)" in out
    code, out, err = run("import-weights", "model.onnx", "model_pt/model.safetensors")
    assert code == 0 and "wrote model-trained.onnx" in out and "equal to the trained module" in out
    assert err == "warning: these are the weights that model.onnx already has, nothing was trained: train.py writes trained.safetensors\n"
    assert run("validate", "model.onnx", "model-trained.onnx")[0] == 0


def test_weights_that_nobody_trained_are_told(folder):  # noqa: F811
    assert run("export", "model.onnx", "--no-validate")[0] == 0
    stored = load_file("model_pt/model.safetensors")
    name = sorted(stored)[-1]
    save_file(stored | {name: stored[name] + 0.01}, "model_pt/trained.safetensors")
    _, _, err = run("import-weights", "model.onnx", "model_pt/model.safetensors", "--no-validate")
    assert err.endswith("did you mean model_pt/trained.safetensors?\n") and err.count("\n") == 1
    code, out, err = run("import-weights", "model.onnx", "model_pt/model.safetensors", "--no-validate", "--force", "--json")
    assert code == 0 and json.loads(out)["agreement"] is None and err == ""  # the document stays as it is
    assert run("import-weights", "model.onnx", "model_pt/trained.safetensors", "--no-validate", "--force")[2] == ""


def test_grow_and_export_in_one_command(folder):  # noqa: F811
    code, out, err = run("expand", "model.onnx", "--hidden", 144, "--torch", "grown_pt")
    assert (code, err) == (0, "") and "wrote model-h144.onnx" in out and "wrote grown_pt" in out
    assert json.loads((folder / "grown_pt" / "config.json").read_text())["sizes"]["hidden"] == 144
    assert sum(p.numel() for p in load_folder("grown_pt").parameters()) > 900_000


def test_as_a_document(folder):  # noqa: F811
    code, out, _ = run("expand", "model.onnx", "--ffn", 300, "--torch", "grown_pt", "--json")
    document = json.loads(out)
    assert code == 0 and document["torch"]["output"] == "grown_pt" and document["torch"]["agreement"]["max_rel"] < 1e-5


REFUSED = [
    (("expand", "model.onnx", "--ffn", 300, "--torch", "x", "--plan"), 2, "--plan writes nothing"),
    (("export", "model.onnx", "--like", "x"), 2, "--like gives a Hugging Face folder"),
    (("export", "model.onnx", "--format", "hf", "--force"), 2, "--force is for --format torch"),
    (("export", "model.onnx", "-o", "no/where"), 1, "there is no folder"),
    (("export", "model.onnx", "-o", "there"), 1, "there exists"),
    (("expand", "model.onnx", "--ffn", 300, "--torch", "there"), 1, "there exists"),
    (("import-weights", "model.onnx", "missing.safetensors"), 1, "cannot read"),
    (("export", "missing.onnx"), 1, "missing.onnx"),
]


@pytest.mark.parametrize("command, code, words", REFUSED, ids=[str(c[0][:4]) for c in REFUSED])
def test_one_clear_message(folder, command, code, words):  # noqa: F811
    (folder / "there").mkdir()
    before = sorted(p.name for p in folder.iterdir())
    found, _, err = run(*command)
    assert found == code and words in err and "next:" in err and "Traceback" not in err
    assert sorted(p.name for p in folder.iterdir()) == before


def test_force_replaces_only_what_an_export_made(folder):  # noqa: F811
    assert run("export", "model.onnx", "-o", "pt", "--no-validate")[0] == 0
    assert run("export", "model.onnx", "-o", "pt", "--no-validate")[0] == 1
    assert run("export", "model.onnx", "-o", "pt", "--no-validate", "--force")[0] == 0
    (folder / "mine").mkdir()
    assert run("export", "model.onnx", "-o", "mine", "--force")[0] == 1


def test_a_missing_text_is_said_and_no_traceback(folder):  # noqa: F811
    assert run("export", "model.onnx", "-o", "pt", "--no-validate")[0] == 0
    done = subprocess.run([sys.executable, "pt/train.py", "--text", "none.txt"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("error: --text: there is no file none.txt\n") and "Traceback" not in done.stderr


def test_a_folder_that_exists_is_refused_in_the_words_of_every_command(folder):  # noqa: F811
    assert run("export", "model.onnx", "-o", "pt", "--no-validate")[0] == 0
    for command in (["export", "model.onnx", "-o", "pt"], ["expand", "model.onnx", "--ffn", 300, "--torch", "pt"]):
        assert OR_FORCE in run(*command)[2]
