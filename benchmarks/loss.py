"""The loss of the two trained models that the repository carries, before and after growth: 2 times in depth, 1.5 times in width.

    python -m benchmarks.loss                          prints the table, about 2 minutes
    python -m benchmarks.loss --write docs/loss.md     also writes the page
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import onnxgrow
from benchmarks.analysis import machine
from onnxgrow.demo import CONTEXT, nats_per_byte

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "onnxgrow" / "models"
NAMES = ("tiny-gpt", "tiny-llama")
LIBRARY = "held out of the library"
EXTRA = {"shakespeare": ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"}  # read where it is there
PLACES, WINDOWS = 8, 32  # so many windows are read at so many places of a long text
DEEP, WIDE = {"layers": 8}, {"hidden": 144}  # heads and ffn follow
KEPT = {
    "layers": DEEP,
    "hidden, heads, ffn": WIDE,
    "all": DEEP | WIDE,
    "all, new layers in front": DEEP | WIDE | {"placement": "start"},
    "all, new layers random": DEEP | WIDE | {"block_init": "random"},
    "all, gates": DEEP | WIDE | {"depth_method": "gate"},
}
BROKEN = {
    "layers, `--depth-method stack`": DEEP | {"depth_method": "stack"},
    "the same, `--placement stack`": DEEP | {"depth_method": "stack", "placement": "stack"},
    "hidden, heads, ffn, `--method naive`": WIDE | {"method": "naive"},
}


def texts() -> dict[str, bytes]:
    """By name: the sample that the models come with, the held-out part of what they were trained on, and what else is there."""
    sys.path.insert(0, str(ROOT / "examples"))
    from train_tiny import stdlib_text

    out = {"sample.txt": (MODELS / "sample.txt").read_bytes(), LIBRARY: stdlib_text()[1]}
    return out | {name: path.read_bytes() for name, path in EXTRA.items() if path.exists()}


def loss(model: Path, text: bytes) -> float:
    """Nats per byte: of a short text from end to end, of a long one at places spread evenly."""
    size = WINDOWS * CONTEXT + 1
    if len(text) <= size:
        return nats_per_byte(model, text)
    starts = np.linspace(0, len(text) - size, PLACES).astype(int)
    return float(np.mean([nats_per_byte(model, text[start : start + size]) for start in starts]))


def grow(source: onnxgrow.Model, growth: dict, folder: Path) -> tuple[onnxgrow.Plan, Path]:
    """A growth that is not validated: the loss is what tells here."""
    plan = source.plan(**growth)
    return plan, plan.write(folder / "grown.onnx", overwrite=True, validate=False).path


def rows(name: str, read: dict[str, bytes]) -> tuple[list[str], float]:
    """The lines of one model, and the largest change of a loss by a growth that promises none."""
    path, worst = MODELS / f"{name}.onnx", 0.0
    source = onnxgrow.load(path)
    before = {text: loss(path, held) for text, held in read.items()}
    out = [line(name, "none", source.architecture.parameters, "", before, before)]
    with tempfile.TemporaryDirectory() as folder:
        for label, growth in (KEPT | BROKEN).items():
            plan, grown = grow(source, growth, Path(folder))
            after = {text: loss(grown, held) for text, held in read.items()}
            out.append(line(name, label, source.architecture.parameters + plan.new_parameters, plan.certificate.kind, before, after))
            print(out[-1], file=sys.stderr, flush=True)
            if label in KEPT:
                worst = max(worst, *(abs(after[text] - before[text]) for text in read))
    return out, worst


def line(name: str, label: str, parameters: int, kind: str, before: dict[str, float], after: dict[str, float]) -> str:
    worst = max(after, key=lambda text: abs(after[text] - before[text]))
    change = f"{after[worst] - before[worst]:+.0e}" if kind == "exact" else f"{after[worst] - before[worst]:+.2f}" if kind else ""
    return " | ".join(["", name, label, f"{parameters:,}", kind, *(f"{value:.6f}" for value in after.values()), change, ""]).strip()


def table() -> tuple[list[str], float]:
    """All lines, and the largest change of a loss by a growth that promises none."""
    read = texts()
    head = ["model", "grown", "parameters", "certificate", *read, "largest change"]
    lines, worst = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"], 0.0
    for name in NAMES:
        found, change = rows(name, read)
        lines, worst = lines + found, max(worst, change)
    return lines, worst


INTRODUCTION = f"""\
# The loss before and after

Written by `python -m benchmarks.loss --write docs/loss.md`; do not edit. The [two trained models](../onnxgrow/models/README.md) that the
repository carries, grown 2 times in depth (4 to 8 layers) and 1.5 times in width (hidden 96 to 144; heads and ffn follow). Losses in nats
per byte, in ONNX Runtime: of the sample from end to end, of longer ones over {PLACES * WINDOWS} windows of {CONTEXT} bytes at {PLACES} places spread evenly.
The models know Python, not Shakespeare; a random guess costs {np.log(256):.2f}.
"""
RESULT = """
Growths that are `exact` change a loss by at most {worst:.0e}: that is rounding. The last three of each model are baselines, shown as what they
are: copies of layers that are not silenced, each behind its original or all behind all others (as G_stack does), and plain zero padding.
They start worse, and nothing is promised for them.
"""


def page(lines: list[str], worst: float) -> str:
    """The whole of docs/loss.md."""
    return "\n".join([INTRODUCTION, *lines, RESULT.format(worst=worst), f"Measured on: {machine()}.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="Markdown page to write")
    arguments = parser.parse_args()
    lines, worst = table()
    print("\n".join([*lines, f"exact growths change the loss by at most {worst:.0e}"]))
    if arguments.write:
        arguments.write.write_text(page(lines, worst), encoding="utf-8")
    return 0 if worst <= 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
