"""The train.py of an exported folder, run as it is: what a plain export with fixed axes becomes, and text of one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import onnxgrow
from onnxgrow.pytorch import export, import_weights, load_folder

VOCAB, BATCH, LENGTH = 300, 2, 16


class Decoder(nn.Module):
    """Two causal layers, as small as they can be, with words in a position-wise table of 16."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(VOCAB, 32), nn.Embedding(LENGTH, 32)
        self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(4)])
        self.qkv, self.out = (nn.ModuleList([nn.Linear(32, n) for _ in range(2)]) for n in (96, 32))
        self.up = nn.ModuleList([nn.Linear(32, 64) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(64, 32) for _ in range(2)])
        self.head = nn.Linear(32, VOCAB, bias=False)

    def forward(self, input_ids):
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        for i in range(2):
            q, k, v = (y.unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv[i](self.norms[2 * i](x)).chunk(3, -1))
            x = x + self.out[i](nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            x = x + self.down[i](nn.functional.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.head(x)


def exported(folder: Path, dynamo: bool) -> Path:
    """The folder of a decoder that was exported with every axis fixed, which is what torch.onnx.export does unless asked."""
    torch.manual_seed(3)
    torch.onnx.export(Decoder().eval(), (torch.randint(VOCAB, (BATCH, LENGTH)),), folder / "model.onnx", dynamo=dynamo, verbose=False,
                      input_names=["input_ids"], output_names=["logits"])  # fmt: skip
    export(onnxgrow.load(folder / "model.onnx"), folder / "pt")
    return folder / "pt"


@pytest.fixture(scope="module")
def fixed(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("fixed"), dynamo=False)


def train(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "train.py", *options], cwd=folder, capture_output=True, text=True)


def held_out(said: str) -> list[float]:
    return [float(x) for x in re.findall(r"held out +loss (\S+)", said)]


@pytest.mark.parametrize("dynamo", [pytest.param(False, id="torchscript"), pytest.param(True, id="dynamo", marks=pytest.mark.slow)])
def test_a_decoder_with_fixed_axes_trains(dynamo, tmp_path):
    folder = exported(tmp_path, dynamo)
    done = train(folder, "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert len(held_out(done.stdout)) == 2 and "a rise during warm-up is usual" in done.stdout
    assert held_out(done.stdout)[0] == pytest.approx(torch.log(torch.tensor(float(VOCAB))).item(), abs=0.7)  # untrained: as good as a guess
    assert import_weights(onnxgrow.load(tmp_path / "model.onnx"), folder / "trained.safetensors", tmp_path / "back.onnx").max_rel < 1e-5


def test_labels_and_loss_come_from_one_decision(fixed):
    """The loss of the batch is the next-word loss of the logits, counted here once more."""
    code = "from train import *; import torch; b = batch(torch.Generator().manual_seed(1)); torch.save(b, 'batch.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=fixed, check=True)
    fed, module = torch.load(fixed / "batch.pt"), load_folder(fixed)
    found = module(**fed)
    assert fed["input_ids"].shape == (BATCH, LENGTH) and fed["labels"] is not None and torch.equal(fed["labels"], fed["input_ids"])
    wanted = nn.functional.cross_entropy(found["logits"][:, :-1].reshape(-1, VOCAB), fed["input_ids"][:, 1:].reshape(-1))
    assert found["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_text_of_one_s_own_is_learnt(fixed, tmp_path):
    (tmp_path / "mine.txt").write_text("abcdefgh" * 200)
    done = train(fixed, "--text", str(tmp_path / "mine.txt"), "--steps", "40", "--lr", "1e-2", "--out", str(tmp_path / "t.safetensors"))
    before, after = held_out(done.stdout)
    assert done.returncode == 0 and after < 0.3 * before


def test_a_text_that_is_too_short_is_said(fixed, tmp_path):
    (tmp_path / "short.txt").write_text("abc")
    done = train(fixed, "--text", str(tmp_path / "short.txt"))
    assert done.returncode == 1 and "has 3 bytes" in done.stderr and "Traceback" not in done.stderr
