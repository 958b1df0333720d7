"""A soak: many growths of random sizes on random models in a row in one process, and what they leave behind.

Each growth opens a model, plans, writes and validates; every few it is exported to PyTorch too, or refused. After each one the process is
looked at from outside, through /proc: resident memory, descriptors, threads, and what lies in its folder for temporary files.

    python -m tests.soak --growths 300 --table docs/reliability/soak.md
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from tests import growing
from tests.zoo_models import SPECS

CARRIED = Path(__file__).parents[1] / "onnxgrow" / "models" / "tiny-llama.onnx"
EXPORT_EVERY = 10
WARM = 1 / 3  # of the growths: until then libraries are imported, and allocators fill their arenas
PAGE = os.sysconf("SC_PAGE_SIZE")
MB = 2**20
TYPICAL = 0.05  # MB per growth: what the resident memory may rise by, noise of the allocator included


@dataclass(frozen=True)
class State:
    """The process after a growth: resident memory in bytes, open descriptors, threads, and names in the temporary folder."""

    memory: int
    descriptors: int
    threads: int
    left: int


@dataclass(frozen=True)
class Growth:
    """One turn: what was asked of which model, what became of it, and the process afterwards."""

    model: str
    sizes: dict[str, int]
    verdict: str
    state: State


def look(folder: Path) -> State:
    """The process as it is now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return State(pages * PAGE, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), len(os.listdir(folder)))


def sources() -> dict[str, Path]:
    """The zoo's models as they are exported by default, and the one that the package carries."""
    return {"tiny-llama": CARRIED} | {name: growing.usual(name).path for name in SPECS}


def sizes(model: Model, rng: np.random.Generator) -> dict[str, int]:
    """One to three sizes, up to two and a half times as large."""
    roles = model.roles
    here = [n for n in ("hidden", "heads", "head_dim", "ffn", "vocab", "positions", "experts") if roles.size(n)]
    chosen = rng.choice(here, min(len(here), int(rng.integers(1, 4))), replace=False)
    out = {str(n): int(rng.integers(roles.size(n) + 1, 5 * roles.size(n) // 2 + 2)) for n in chosen}
    if rng.random() < 0.3:
        out |= {s.name: s.before + s.after + s.period * (len(s.blocks) + int(rng.integers(1, 3))) for s in model.stacks}
    return out


def grow(name: str, path: Path, folder: Path, rng: np.random.Generator, exported: bool) -> tuple[dict[str, int], str]:
    """One growth; its sizes, and what became of it."""
    model = Model(path)
    asked = sizes(model, rng)
    try:
        plan = model.plan(**asked, seed=int(rng.integers(1 << 30)))
        result = plan.write(folder / "grown.onnx", provider="cpu", overwrite=True)
        assert result.report.equal or plan.certificate.kind == "near", (name, asked)
        if not exported:
            return asked, plan.certificate.kind
        from onnxgrow.pytorch import export

        export(Model(result.path), folder / "torch")
        return asked, "exported"
    except OnnxgrowError as error:
        assert error.hint, error
        return asked, "refused"
    finally:
        shutil.rmtree(folder / "torch", ignore_errors=True)


def soak(count: int, seed: int = 0) -> Iterator[Growth]:
    """So many growths, one after the other, in this process."""
    rng, models, before = np.random.default_rng(seed), sources(), tempfile.tempdir
    with tempfile.TemporaryDirectory() as outer:
        folder, tempfile.tempdir = Path(outer) / "models", str(Path(outer) / "temporary")
        for path in (folder, Path(tempfile.tempdir)):
            path.mkdir()
        try:
            for turn in range(count):
                name = str(rng.choice(list(models)))
                asked, verdict = grow(name, models[name], folder, rng, turn % EXPORT_EVERY == EXPORT_EVERY - 1)
                assert {p.name for p in folder.iterdir()} <= {"grown.onnx"}, "something is left beside the target"
                yield Growth(name, asked, verdict, look(Path(tempfile.tempdir)))
        finally:
            tempfile.tempdir = before


def slope(values: list[float]) -> float:
    """Of the line of least squares, per step."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


def section(found: list[Growth], seconds: float) -> str:
    """What stands behind the mark in the page."""
    warm = found[int(len(found) * WARM) :]
    memory = [g.state.memory / MB for g in found]
    late = memory[-len(warm) :]
    verdicts = Counter(g.verdict for g in found)
    rows = [("resident memory, MB", memory[0], late[0], max(late), late[-1]),
            *((what, *(getattr(found[k].state, key) for k in (0, -len(warm))), max(getattr(g.state, key) for g in warm), getattr(found[-1].state, key))
              for what, key in (("descriptors", "descriptors"), ("threads", "threads"), ("temporary files", "left")))]
    steps = [k * (len(found) - 1) // 10 for k in range(11)]
    return "\n".join([
        f"{len(found)} growths of {len({g.model for g in found})} models in {seconds / 60:.0f} minutes: " + ", ".join(f"{n} {v}" for v, n in verdicts.most_common()) + ".", "",
        f"After the first {len(found) - len(warm)} growths resident memory rises by {slope(late) * 1024:.1f} KB for each growth.", "",
        "| | after the first | warm | largest since | at the end |", "|---|---|---|---|---|",
        *(f"| {what} | {' | '.join(f'{x:.0f}' for x in numbers)} |" for what, *numbers in rows), "",
        "| growth | " + " | ".join(str(k + 1) for k in steps) + " |", "|---|" + "---|" * len(steps),
        "| MB | " + " | ".join(f"{memory[k]:.0f}" for k in steps) + " |", ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--growths", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="write the numbers into this page, behind its mark")
    args = parser.parse_args()
    start, found = time.time(), []
    for g in soak(args.growths, args.seed):
        found.append(g)
        s = g.state
        print(f"{len(found):4} {g.model:24} {g.verdict:10} {s.memory / MB:7.1f} MB {s.descriptors} descriptors {s.threads} threads {s.left} files  {g.sizes}", flush=True)
    text = section(found, time.time() - start)
    print(text)
    if args.table:
        args.table.write_text(args.table.read_text().partition("<!-- measured -->")[0] + f"<!-- measured -->\n\n{text}")


if __name__ == "__main__":
    main()
