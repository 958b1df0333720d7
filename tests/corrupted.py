"""Wrong growth is impossible to miss: plans broken at random, and what stands between them and a file with a name.

Each corruption of tests/corruptions.py goes through the whole of `Plan.write`. What is refused was caught, by a check before anything runs or
by validation. What gets its name is looked at by what onnxgrow does not use: the comparison of tests/growing.py with other inputs, noise
where nobody may read and optimisations on, the checker and strict shape inference, and PyTorch's gradients. It is harmless where all of
these say what they say of the unbroken growth, and missed otherwise.

    python -m tests.corrupted --count 1000 --table docs/reliability/plans.md
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

from onnxgrow.errors import GraphError, NotEqualError
from onnxgrow.plan import Plan
from tests import deepening, growing
from tests.corruptions import KINDS, Corruption, Parts
from tests.torch_runner import TorchModel

SUBJECTS: dict[str, tuple[str, str | dict]] = {  # what grows: a model of the zoo, and the label of a growth or its sizes
    "hidden": ("gpt2", "hidden-only"), "all sizes": ("llama", "together"), "head_dim": ("llama-past", "head_dim"), "copies": ("bert-mlm", "hidden-double"),
    "family": ("t5-encoder", "hidden-family"), "kv_heads": ("qwen3", "kv_heads"), "gains from one": ("gemma", "hidden-only"), "ffn": ("vit", "ffn"),
    "heads": ("opt", "heads"), "grouped": ("mistral", "heads-per-kv"), "partly rotary": ("phi", "head_dim"), "copied units": ("gpt-neox", "copy-ffn"),
    "layers": ("llama", "one-more"), "layers and sizes": ("gpt2", "wide"), "two stacks": ("t5", "one-more"), "gates": ("bert-mlm", "gate"),
    "random layers": ("gpt2", "random"), "words": ("llama-past", dict(vocab=131)), "words and hidden": ("gpt2", dict(vocab=131, hidden=48)),
    "experts": ("moe-batched", dict(experts=6)), "listed experts": ("moe-listed", dict(experts=6, hidden=45, only_hidden=True)),
    "positions": ("gpt2", dict(positions=57)),
}  # fmt: skip
STEPS, RATE = 3, 1e-2
SEEDS = (0, 1)  # of the judge's feeds
LOST = 0.01  # share of what had a gradient that may lose it by chance: a unit of a ReLU that other numbers silence


@dataclass(frozen=True)
class Training:
    """What a few steps show: which entries got a gradient, and how many slices of each weight along each axis differ afterwards."""

    alive: dict[str, int]
    distinct: dict[tuple[str, int], int]
    parameters: int


class Subject:
    """One growth, and what its unbroken file is."""

    def __init__(self, label: str, folder: Path):
        self.label, self.folder = label, folder
        name, growth = SUBJECTS[label]
        self.case = growing.usual(name)
        known = growing.growths(name) | deepening.growths(name)
        self.plan: Plan = growing.opened(self.case.path).plan(**(known[growth] if isinstance(growth, str) else growth))
        assert self.plan.certificate.kind == "exact", label
        self.whole = self.plan.write(folder / f"{label}.onnx", provider="cpu", threads=1).path

    @cached_property
    def bytes(self) -> bytes:
        return self.whole.read_bytes()

    @cached_property
    def training(self) -> Training:
        return self.train(self.whole)

    def difference(self, path: Path) -> float:
        measured = deepening.difference if self.plan.deeper else growing.difference
        return max(measured(self.plan, path, self.case, seed) for seed in SEEDS)

    def feeds(self, path: Path) -> growing.Feeds:
        if self.plan.deeper:
            return deepening.sound_feeds(self.plan, path, self.case)
        return growing.grown_feeds(self.plan, growing.feeds_of(self.case)[-1])

    def train(self, path: Path) -> Training:
        """Adam towards random targets."""
        held = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        gates = [name for name, x in held.items() if x.shape == () and "gate" in name and x.dtype.kind == "f"]
        model, feeds = TorchModel(path, scalars=gates), self.feeds(path)
        alive = {name: torch.zeros(x.shape, dtype=torch.bool) for name, x in model.parameters.items()}
        optimizer, first, target = torch.optim.Adam(model.parameters.values(), RATE), model.graph.output[0].name, None
        for _ in range(STEPS):
            said = model(**feeds)[first]
            target = torch.randn(said.shape, generator=torch.Generator().manual_seed(0)) if target is None else target
            optimizer.zero_grad()
            F.mse_loss(said, target).backward()
            for name, x in model.parameters.items():
                alive[name] |= x.grad != 0 if x.grad is not None else False
            optimizer.step()
        values = {name: x.detach().numpy() for name, x in model.parameters.items()}
        distinct = {(name, k): len(np.unique(np.moveaxis(x, k, 0).reshape(x.shape[k], -1), axis=0)) for name, x in values.items() if x.ndim > 1 for k in range(x.ndim)}
        return Training({name: int(x.sum()) for name, x in alive.items()}, distinct, sum(x.size for x in held.values() if x.dtype.kind == "f"))

    def judge(self, path: Path) -> str | None:
        """What is wrong with a file that got its name; None where nothing is."""
        try:
            error = self.difference(path)
            growing.check_sound(path, self.feeds(path))
        except Exception as problem:  # noqa: BLE001 -- whatever a checker, or ONNX Runtime's optimiser, raises
            return f"not sound: {' '.join(str(problem).split())[:120]}"
        if not error <= growing.TOLERANCE:
            return f"another function, by {error:.1g}"
        old, new = self.training, self.train(path)
        if new.parameters != old.parameters:
            return f"{new.parameters} parameters in the place of {old.parameters}"
        lost = [name for name, count in old.alive.items() if new.alive.get(name, 0) < (1 - LOST) * count - 2]
        alike = [key for key, count in old.distinct.items() if new.distinct.get(key, 0) < count]
        return f"no gradient: {lost[:3]}" if lost else f"alike: {alike[:3]}" if alike else None


@dataclass(frozen=True)
class Found:
    """What became of one corruption: static, validation, harmless or missed; and how it was seen, or what is wrong."""

    growth: str
    kind: str
    what: str
    verdict: str
    how: str


def broken(plan: Plan, parts: Parts) -> Plan:
    """The plan as it would be written with these parts."""
    out = copy.copy(plan)
    out.__dict__["recipes"], out.proto = parts.recipes, lambda: parts.proto
    out.source = replace(plan.source, tensors=parts.tensors)
    out.decisions = copy.copy(plan.decisions)
    out.decisions.inputs, out.decisions.outputs = parts.inputs, parts.outputs
    return out


def attempt(subject: Subject, kind: Corruption, seed: tuple[int, ...]) -> Found | None:
    """Break one thing, and write; None where this growth has no such thing, or where the file comes out as it was."""
    parts, target = Parts.of(subject.plan), subject.folder / "broken.onnx"
    target.unlink(missing_ok=True)
    what = kind.__name__

    def found(verdict: str, how: str) -> Found:
        return Found(subject.label, kind.__name__, what, verdict, how)

    try:
        what = kind(parts, np.random.default_rng(seed))
        if what is None:
            return None
        broken(subject.plan, parts).write(target, provider="cpu", threads=1)
    except NotEqualError as error:
        return found("validation", error.what)
    except GraphError as error:
        return found("validation" if "ONNX Runtime does not open" in error.what or "does not run" in error.what else "static", error.what)
    except Exception as error:  # noqa: BLE001 -- a check inside of the program; whatever it is, no file has a name
        return found("static", f"{type(error).__name__}: {error}")
    finally:
        left = {p.name for p in subject.folder.iterdir()} - {subject.whole.name, target.name}
        assert not any(name.startswith(".onnxgrow") for name in left), left
    if target.read_bytes() == subject.bytes:
        return found("harmless", "the file is the right one, byte for byte") if what.startswith("map of") else None
    wrong = subject.judge(target)
    return found("missed", wrong) if wrong else found("harmless", "all of the judge's measures are those of the right file")


def tried(count: int, seed: int = 0, labels: tuple[str, ...] = tuple(SUBJECTS), kept: Path | None = None, end: float = float("inf")) -> Iterator[Found]:
    """So many corruptions, spread evenly over growths and kinds; those of an earlier run, in the file `kept`, first, and no new one after `end`.

    The same seed tries the same ones, in any order and number of runs.
    """
    known = {tuple(d.pop("place")): d for d in map(json.loads, kept.read_text().splitlines())} if kept and kept.exists() else {}
    subjects: dict[str, Subject] = {}
    share = {label: (count * (at + 1)) // len(labels) - (count * at) // len(labels) for at, label in enumerate(labels)}
    with tempfile.TemporaryDirectory() as folder, open(kept or os.devnull, "a") as file:
        for turn in range(20 * count):
            for label in labels:
                if not share[label]:
                    continue
                at = list(SUBJECTS).index(label)
                place = (seed, at, turn)
                if place not in known:
                    if time.time() > end:
                        return
                    if label not in subjects:
                        (Path(folder) / str(at)).mkdir()
                        subjects[label] = Subject(label, Path(folder) / str(at))
                    found = attempt(subjects[label], KINDS[(at + turn) % len(KINDS)], place)
                    known[place] = asdict(found) if found else {}
                    file.write(json.dumps(known[place] | {"place": place}) + "\n")
                    file.flush()
                if known[place]:
                    share[label] -= 1
                    yield Found(**known[place])


# --- the page --------------------------------------------------------------------------------------------------------

VERDICTS = ("static", "validation", "harmless", "missed")


def counted(found: list[Found], by: str) -> str:
    rows: dict[str, Counter] = defaultdict(Counter)
    for f in found:
        rows[getattr(f, by)][f.verdict] += 1
    lines = [f"| {by} | tried | {' | '.join(VERDICTS)} |", "|---|" + "---|" * (len(VERDICTS) + 1)]
    lines += [f"| {row} | {sum(c.values())} | {' | '.join(str(c[v]) for v in VERDICTS)} |" for row, c in rows.items()]
    total = Counter(f.verdict for f in found)
    return "\n".join([*lines, f"| **all** | {len(found)} | {' | '.join(str(total[v]) for v in VERDICTS)} |"])


def section(found: list[Found], seconds: float) -> str:
    """What stands behind the mark in the page."""
    quiet = [f"| {f.growth} | `{f.what}` | {f.how} |".replace("\n", " ") for f in found if f.verdict in ("missed", "harmless") and "byte for byte" not in f.how]
    return "\n".join([f"{len(found)} corruptions of {len({f.growth for f in found})} growths in {seconds / 60:.0f} minutes.", "",
                      counted(found, "kind"), "", counted(found, "growth"), "", "## What was not refused", "",
                      "| growth | what was broken | what the judge says |", "|---|---|---|", *quiet, ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.corrupted", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), help="labels of growths")
    parser.add_argument("--kept", type=Path, help="results, one a line: a later run goes on from there")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after that")
    parser.add_argument("--table", type=Path, help="write the tables into this page, behind its mark")
    args = parser.parse_args()
    start, found = time.time(), []
    for f in tried(args.count, args.seed, tuple(args.only), args.kept, start + 60 * args.minutes):
        found.append(f)
        if f.verdict in ("missed", "harmless"):
            print(f"{len(found):5} {f.verdict:10} {f.growth}: {f.what}: {f.how}", flush=True)
    text = section(found, time.time() - start)
    print(text[: text.index("## What")])
    if args.table:
        args.table.write_text(args.table.read_text().partition("<!-- measured -->")[0] + f"<!-- measured -->\n\n{text}")
    sys.exit(any(f.verdict == "missed" for f in found))


if __name__ == "__main__":
    main()
