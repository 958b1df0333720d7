"""What exported code costs in training: forward, loss, backward and a step of AdamW, against the native module of transformers and other converters.

    python -m benchmarks.training                                    prints the table, about 10 minutes
    python -m benchmarks.training --table docs/training-speed.md     also writes the page

The same model takes steps as the native module (sdpa) and as what each converter makes of its two ONNX exports. All get the same data; the loss is
computed outside of them. Nothing is timed before its losses followed those of the native module. The other converters are optional:
`pip install --no-deps onnx2torch onnx2pytorch onnx2fx`; a torchvision that does not import is replaced by an empty one while they load.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from benchmarks.analysis import machine
from benchmarks.training_contestants import (
    EXPORTS,
    OTHERS,
    STEPS,
    TOLERANCE,
    Batch,
    Contestant,
    Scale,
    data,
    field,
    files,
    must_follow,
    others,
    specification,
    trained,
)

MODELS = {"bert-mlm": "BERT-like", "gpt2": "GPT-2-like", "llama": "Llama-like"}
RUNS = ("eager", "eager, padded", "compiled")  # rows of full length, where the native module may leave the mask out, and shorter ones
LIMIT = 1.05


@dataclass(frozen=True)
class Row:
    """A line of the table; `said` is why something was not timed."""

    model: str
    run: str
    module: str
    milliseconds: float = math.nan
    processor: tuple[float, ...] = ()  # ratios to the native module, one for each round
    wall: tuple[float, ...] = ()
    trains: str = ""
    loss: float = math.nan
    lines: str = ""
    said: str = ""

    def cells(self) -> list[str]:
        head = [MODELS[self.model], self.run, self.module]
        if self.said:
            return [*head, self.said, "", "", "", self.lines]
        times = [f"{self.milliseconds:.0f} ms", ""] if self.module == "native" else [spread(self.processor), f"{statistics.median(self.wall):.2f}"]
        return [*head, *times, self.trains, f"{self.loss:.5f}", self.lines]


def spread(ratios: tuple[float, ...]) -> str:
    """Median, with the quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def race(contestants: dict[str, Contestant], batch: Batch, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the processor and of the clock for each step; everyone once in a round, in an order that changes."""
    order, times = list(contestants), {name: [] for name in contestants}
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            start = time.process_time(), time.perf_counter()
            contestants[name].step(batch)
            times[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return times


def ratios(times: dict[str, list[tuple[float, float]]], name: str, clock: int) -> tuple[float, ...]:
    """To the native module, within each round."""
    return tuple(own[clock] / native[clock] for own, native in zip(times[name], times["native"], strict=True))


def measure(name: str, scale: Scale, run: str, native: nn.Module, paths: dict[str, Path], rounds: int) -> list[Row]:
    """All rows of one model in one kind of run."""
    if run == "compiled" and not shutil.which(os.environ.get("CXX", "g++")):
        return [Row(name, run, "all", said="torch.compile needs a C++ compiler, and there is none")]
    torch._dynamo.reset()
    batch, contestants, rows = data(scale, "padded" in run), field(native, paths, run == "compiled"), []
    losses = {who: contestant.losses(batch) for who, contestant in contestants.items()}
    for who in losses:
        must_follow(losses[who], losses["native"], f"{name}, {run}, {who}")
    for who, contestant, found, why in others(losses["native"], paths, batch) if run == "eager" else ():
        if contestant:
            contestants[who], losses[who] = contestant, found
        else:
            rows.append(Row(name, run, who, said=why))
    times = race(contestants, batch, rounds)
    return [Row(name, run, who, 1000 * statistics.median(cpu for cpu, _ in times[who]), ratios(times, who, 0), ratios(times, who, 1),
                trained(contestants["native"], contestant), losses[who][-1], contestant.lines) for who, contestant in contestants.items()] + rows  # fmt: skip


def measure_model(name: str, scale: Scale, runs: list[str], exports: list[str], rounds: int) -> Iterator[Row]:
    """All rows of one model."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = files(name, scale, exports, Path(folder))
        with torch.no_grad():
            native = specification(name, scale).build(0, "sdpa")
        for run in runs:
            yield from measure(name, scale, run, native, paths, rounds)


# --- the table -------------------------------------------------------------------------------------------------------

HEAD = ["model", "run", "module", "processor time, to native", "wall time", "trains", f"loss after {STEPS} steps", "code"]


def table(rows: list[Row]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows))]


def summary(rows: list[Row]) -> str:
    """The slowest of ours, and the noise."""
    median = lambda start: [statistics.median(r.processor) for r in rows if r.module.startswith(start) and r.processor]  # noqa: E731
    own, noise = median("onnxgrow"), median("native again")
    return (f"Over all {len(own)} rows the medians of exported code to native lie between {min(own):.3f} and {max(own):.3f} (asked for: at most {LIMIT}), "
            f"those of native to native between {min(noise):.3f} and {max(noise):.3f}.")


def versions() -> str:
    names = ["torch", "transformers", "onnxscript", *(name for name in OTHERS if importlib.util.find_spec(name))]
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def page(rows: list[Row], scale: Scale, rounds: int) -> str:
    """The whole of docs/training-speed.md."""
    s = scale.sizes
    return "\n".join([f"""\
# Exported code trains as fast as native code

Written by `python -m benchmarks.training --table docs/training-speed.md`; do not edit. A step is forward, cross entropy, backward, AdamW and
`zero_grad`. {s.layers} layers, hidden {s.hidden}, {s.heads} heads, ffn {s.ffn} (Llama-like: {s.heads // 2} kv heads), {scale.vocab:,} words, random \
weights, batch {scale.batch}, length {scale.length},
fp32, one thread, no dropout. Native is the class of transformers with `sdpa`; exports are those of `torch.onnx.export`, dynamo (opset 18) and
TorchScript (opset 17). `padded` has shorter rows; without them the native module leaves its mask out, while exported code keeps it.

Times are ratios to the native module within a round, in which everyone takes one step and the order changes: median and quartiles of {rounds}
rounds. Other jobs ran on both cores, so processor time is the measure and wall time is beside it; *native again* is a second
copy of the native module: the noise. Ours is timed only after {STEPS} steps in which its loss was that of the native module to {TOLERANCE:g}.
""", *table(rows), "", summary(rows), """
- *trains*: the part of the native module's parameters that a gradient reaches, and numbers that are trained though they are none of them
  (constants, second copies of a tied matrix). A step that trains less has less to do. Other converters are timed when their first loss is right.
- *code*: lines of `model.py`, its `load` and helpers for grown parts included; for the converters that make an fx graph the lines it prints;
  for onnx2pytorch, which writes no code, the nodes it walks through.
- onnx2fx makes everything trainable, constants too (`make_trainable`); where its loss is `nan`, it trained exponents. onnx2torch is also given an older
  opset, which it has more converters for.
- The native GPT-2 computes its GELU in pieces, exported code with one `F.gelu`.
""", f"Measured on: {machine()}, {versions()}.", ""])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="Markdown page to write")
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=RUNS)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    rows, scale = [], Scale()
    for name in arguments.only:
        for row in measure_model(name, scale, arguments.runs, list(EXPORTS), arguments.rounds):
            rows.append(row)
            print(table([row])[-1], file=sys.stderr, flush=True)
    print("\n".join([*table(rows), "", summary(rows)]))
    if arguments.table:
        arguments.table.write_text(page(rows, scale, arguments.rounds), encoding="utf-8")
    return 1 if any(statistics.median(r.processor) > LIMIT for r in rows if r.module.startswith("onnxgrow") and r.processor) else 0


if __name__ == "__main__":
    sys.exit(main())
