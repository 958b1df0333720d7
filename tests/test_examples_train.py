"""The two trained files that come with onnxgrow are what onnxgrow/models/training.json says, and can be made again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "onnxgrow" / "models"
TRAINING = json.loads((MODELS / "training.json").read_text())
each_model = pytest.mark.parametrize("name", ["tiny-gpt", "tiny-llama"])


def logits(path: Path, ids: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input_ids": ids})[0].astype(np.float64)  # B T V


def matrices(name: str, size: dict) -> Counter:
    """The shapes of all two-dimensional weights, as both exporters store them: input first."""
    L, C, F, T, V = (size[k] for k in ("layers", "hidden", "ffn", "context", "vocab"))
    ND, KD = size["heads"] * size["head_dim"], size["kv_heads"] * size["head_dim"]
    ends = [(V, C), (C, V)]  # embedding and head: the tied one is written twice as well
    if name == "tiny-gpt":
        return Counter(ends + [(T, C)] + L * [(C, ND + 2 * KD), (ND, C), (C, F), (F, C)])
    return Counter(ends + L * [(C, ND), (C, KD), (C, KD), (ND, C), (C, F), (C, F), (F, C)])


@each_model
def test_the_loss_on_the_sample_is_the_one_written_down(name):
    record, text = TRAINING["models"][name], np.frombuffer((MODELS / "sample.txt").read_bytes(), dtype=np.uint8)
    T = record["sizes"]["context"]
    rows = (len(text) - 1) // T
    ids = text[: rows * T].reshape(rows, T).astype(np.int64)  # B T
    targets = text[1 : rows * T + 1].reshape(rows, T)  # B T
    scores = logits(MODELS / record["file"], ids)  # B T V
    right = np.take_along_axis(scores, targets[..., None].astype(np.int64), axis=-1)[..., 0]  # B T
    top = scores.max(axis=-1)
    loss = np.mean(np.log(np.exp(scores - top[..., None]).sum(axis=-1)) + top - right)
    assert loss == pytest.approx(record["loss"]["sample"], abs=1e-5)


@each_model
def test_sizes_in_the_file_are_those_written_down(name):
    record = TRAINING["models"][name]
    path, size = MODELS / record["file"], record["sizes"]
    weights = [i for i in onnx.load(path).graph.initializer if i.data_type == onnx.TensorProto.FLOAT]
    assert Counter(tuple(i.dims) for i in weights if len(i.dims) == 2) == matrices(name, size)
    trained = [i for i in weights if len(i.dims) == 2 or i.name.endswith((".weight", ".bias"))]
    tied = size["vocab"] * size["hidden"] if name == "tiny-gpt" else 0
    assert sum(np.prod(i.dims, dtype=int) for i in trained) - tied == record["parameters"]
    assert path.stat().st_size == record["bytes"] <= 3_000_000


@each_model
def test_any_batch_and_length_runs_and_the_past_does_not_see_the_future(name):
    record = TRAINING["models"][name]
    T = record["sizes"]["context"]
    ids = np.random.default_rng(0).integers(256, size=(3, T))  # B T
    whole = logits(MODELS / record["file"], ids)
    for length in (1, 2, 7, T - 1):
        start = logits(MODELS / record["file"], ids[:2, :length])
        np.testing.assert_allclose(start, whole[:2, :length], atol=1e-4)


def test_no_path_of_the_machine_is_left_in_the_files():
    for record in TRAINING["models"].values():
        data = (MODELS / record["file"]).read_bytes()
        assert b"tiny_models.py" not in data and b"site-packages" not in data


def test_the_table_in_the_readme_is_that_of_the_json():
    text = (MODELS / "README.md").read_text()
    for record in TRAINING["models"].values():
        assert f"| {record['parameters']:,} |" in text
        for loss in record["loss"].values():
            assert f"| {loss:.2f} |" in text


@pytest.mark.slow
def test_training_runs_from_the_command_line(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    command = [sys.executable, ROOT / "examples" / "train_tiny.py", tmp_path, "--quick"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "training.json").read_text())["models"]
    for name, record in made.items():
        assert record["sizes"] == TRAINING["models"][name]["sizes"]
        assert record["parameters"] == TRAINING["models"][name]["parameters"]
        assert record["loss"]["sample"] < np.log(256)  # better than guessing after 20 steps
        assert (tmp_path / record["file"]).is_file()
