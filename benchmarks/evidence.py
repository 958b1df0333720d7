"""Does growing pay? A small language model is trained, grown and trained on, and compared with everything else that one could do.

    python -m benchmarks.evidence --out results.json                  measures: about 20 minutes on 2 idle cores
    python -m benchmarks.evidence --plot docs/figures/evidence.json   makes docs/evidence.md and its figures again, in a second
    python -m benchmarks.evidence --scale gpu --out results.json      the longer recipe, on CUDA

Text: the sources of Python's standard library, or any file with --text. Every run that starts at the same seed reads the same batches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.analysis import machine
from benchmarks.evidence_report import write
from benchmarks.evidence_training import FAMILIES, Run, Scale, block_parameters, carry_out, text, train_source

# `quick` takes about 20 minutes on 2 cores; `mini` is for the tests
SCALES = {
    "mini": Scale(seeds=1, hidden=16, layers=1, head_dim=8, context=16, batch=2, source_steps=6, steps=4, every=2, held_out=4, peak=3e-2),
    "quick": Scale(seeds=3, hidden=32, layers=2, head_dim=16, context=64, batch=8, source_steps=2000, steps=750, every=50, held_out=128),
    "full": Scale(seeds=3, hidden=64, layers=2, head_dim=16, context=128, batch=16, source_steps=6000, steps=3000, every=100, held_out=512,
                  group=2),
    "gpu": Scale(seeds=3, hidden=256, layers=4, head_dim=64, context=256, batch=64, source_steps=20000, steps=10000, every=250, held_out=1024,
                 group=2, peak=1e-3),
}
LAYERS, HIDDEN = "layers", "hidden"  # twice as many: twice and four times the parameters of the blocks
FACTOR = {LAYERS: 2, HIDDEN: 4}
GROWN = 0.5  # part of the peak that grown models are trained with, unless it is what is asked for
STUDIED = "llama"  # the one whose settings are varied
RATES, STDS = (0.15, 1.0), (0.02, 0.3)  # beside GROWN, and beside the old tensor's own


def runs(scale: Scale, seeds: int) -> list[Run]:
    """Everything that is trained, but for the sources."""
    out, T, deep, wide = [], scale.steps, {"layers": 2 * scale.layers}, {"hidden": 2 * scale.hidden}
    methods = {
        LAYERS: {"exact": deep, "stack": deep | {"depth_method": "stack", "placement": "stack"}},
        HIDDEN: {"exact": wide, "copy": wide | {"method": "copy"}, "naive": wide | {"method": "naive"}},
    }
    for family in FAMILIES:
        for seed in range(seeds):
            for target, found in methods.items():
                out += [Run(family, seed, target, name, "grown", T, GROWN, growth) for name, growth in found.items()]
                larger = {"wider": 1 + (target == HIDDEN), "deeper": 1 + (target == LAYERS)}
                out.append(Run(family, seed, target, "scratch", "scratch", 2 * T, 1.0, larger))
            # as many tokens as the grown models, and as many FLOPs as the largest
            out += [Run(family, seed, "none", "trained on", "source", T * k, GROWN) for k in (1, FACTOR[HIDDEN])]
            if family == STUDIED:
                out.append(Run(family, seed, LAYERS, "exact, random blocks", "grown", T, GROWN, deep | {"block_init": "random"}))
                out += [Run(family, seed, HIDDEN, "exact", "grown", T, rate, wide) for rate in RATES]
                out += [Run(family, seed, HIDDEN, f"exact, std {std:g}", "grown", T, GROWN, wide | {"init_std": std}) for std in STDS]
    return out


def start_worker(device: str, file: Path | None) -> None:
    """One thread for each process: tiny models lose by sharing."""
    global DATA
    torch.set_num_threads(1)
    torch.set_default_device(device)
    DATA = tuple(part.to(device) for part in text(file))


class Here:
    """An executor that does everything at once, in this process: for the tests."""

    def __init__(self, *start):
        self.start, self.threads = start, torch.get_num_threads()

    def __enter__(self) -> Here:
        start_worker(*self.start)
        return self

    def __exit__(self, *_) -> None:
        torch.set_num_threads(self.threads)
        torch.set_default_device(None)  # a default device is a mode of torch functions, which no compiled graph may meet

    def submit(self, function, *arguments) -> Future:
        done: Future = Future()
        done.set_result(function(*arguments))
        return done


def source(*arguments) -> dict:
    return train_source(*arguments, DATA)


def one(*arguments) -> dict:
    return carry_out(*arguments, DATA)


def measure(name: str, seeds: int | None, file: Path | None, workers: int, only: str | None = None,
            save: Callable[[dict], None] = lambda found: None) -> dict:
    """All runs, the longest first; `save` gets what there is so far, each time a run is done."""
    scale, device = SCALES[name], "cuda" if name == "gpu" else "cpu"
    seeds, began = seeds or scale.seeds, time.perf_counter()
    todo = [run for run in runs(scale, seeds) if only in (None, run.family)]
    families = list(dict.fromkeys(run.family for run in todo))
    small = {family: block_parameters(scale.sizes(family), family) for family in families}
    factors = {"none": 1} | FACTOR
    found = {
        "command": f"python -m benchmarks.evidence --scale {name} --seeds {seeds}",
        "machine": machine() + f", torch {torch.__version__}",
        "text": "the standard library's sources, every tenth file held out" if file is None else file.name,
        "scale": asdict(scale) | {"tokens": scale.tokens},
        "grown_rate": GROWN,
        "parameters": {family: {target: small[family] * factor for target, factor in factors.items()} for family in families},
    }
    cost = lambda run: run.steps * FACTOR.get(run.target, 1)  # noqa: E731
    start = device, file
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, start) if workers else Here(*start)
    with tempfile.TemporaryDirectory() as place, pool:
        folder = Path(place)
        sources = [pool.submit(source, family, seed, scale, folder) for family in families for seed in range(seeds)]
        found["sources"] = [future.result() for future in sources]
        done: dict[Run, dict] = {}
        futures = {pool.submit(one, run, scale, folder): run for run in sorted(todo, key=cost, reverse=True)}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            print(f"{len(done)} of {len(todo)}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            found["minutes"], found["runs"] = round((time.perf_counter() - began) / 60, 1), [done[run] for run in todo if run in done]
            save(found)
    return found


def as_lines(found: dict) -> str:
    """JSON with a line for each run."""
    return json.dumps(found, separators=(",", ":")).replace('{"family"', '\n{"family"') + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--seeds", type=int, help="how many (default: 3)")
    parser.add_argument("--text", type=Path, help="any file (default: the standard library's sources)")
    parser.add_argument("--family", choices=FAMILIES, help="one of the two only")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread (default: 2); 0: this one")
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="what was measured (default: results.json)")
    parser.add_argument("--plot", type=Path, metavar="RESULTS", help="measure nothing; make page and figures from such a file")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "evidence.md", help="where --plot writes")
    options = parser.parse_args(arguments)
    if options.plot:
        write(json.loads(options.plot.read_text(encoding="utf-8")), options.page)
        return 0
    save = lambda found: options.out.write_text(as_lines(found), encoding="utf-8")  # noqa: E731
    found = measure(options.scale, options.seeds, options.text, options.workers, options.family, save)
    print(f"wrote {options.out} after {found['minutes']} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
