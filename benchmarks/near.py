"""How near is near: norm-after-branch encoders grown to a size that is no whole multiple.

    python benchmarks/near.py

For BERT-like encoders of several widths and depths and two spreads of the norm gains (real ones are around 0.1), the relative error of the
last hidden states after growth by half, with the constant mean(β) behind each norm (LEMON's fallback) and with stand-ins carried backwards
through the norms (docs/near.md). Random weights, hidden 1.5 times, everything else untouched.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import onnxgrow
from onnxgrow import decide
from onnxgrow.standin import StandIns

onnxruntime.set_default_logger_severity(4)
torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer has no ONNX form


class Encoder(nn.Module):
    """Post-norm encoder with random gains; ids [batch, sequence] -> hidden states [batch, sequence, hidden]."""

    def __init__(self, hidden: int, layers: int, spread: float):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(100, hidden)
        self.norm = nn.LayerNorm(hidden)
        blocks = [nn.TransformerEncoderLayer(hidden, hidden // 32, 2 * hidden, 0.0, "gelu", batch_first=True) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        for name, p in self.named_parameters():
            if p.ndim == 1:
                nn.init.normal_(p, 1.0 if "norm" in name and "weight" in name else 0.0, spread)

    def forward(self, ids):
        x = self.norm(self.table(ids))
        for block in self.blocks:
            x = block(x)
        return x


def error(path: Path, factor: float, folder: str, carried: bool) -> float:
    """Largest relative difference of the old entries of the output."""
    find = decide.find_stand_ins
    if not carried:
        decide.find_stand_ins = lambda flow, solution, target: StandIns(np.zeros(0, np.int64))
    try:
        model = onnxgrow.load(path)
        grown = Path(folder) / "grown.onnx"
        model.plan(hidden=int(model.architecture.hidden * factor), only_hidden=True).write(grown, validate=False, overwrite=True)
    finally:
        decide.find_stand_ins = find
    ids = np.random.default_rng(0).integers(0, 100, (4, 16))
    a, b = (onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {"ids": ids})[0] for p in (path, grown))
    return float(np.abs(a - b[..., : a.shape[-1]]).max() / np.abs(a).max())


def main() -> None:
    print("| hidden | layers | spread of gains | constant mean(β) | carried stand-ins |\n|---|---|---|---|---|")
    for hidden, layers in ((64, 2), (256, 2), (256, 12), (768, 12)):
        for spread in (0.1, 0.3):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                with torch.no_grad():
                    torch.onnx.export(Encoder(hidden, layers, spread).eval(), (torch.zeros(4, 16, dtype=torch.int64),), str(path), dynamo=False,
                                      input_names=["ids"], opset_version=17)
                print(f"| {hidden} | {layers} | {spread} | {error(path, 1.5, folder, False):.1e} | {error(path, 1.5, folder, True):.1e} |", flush=True)


if __name__ == "__main__":
    main()
