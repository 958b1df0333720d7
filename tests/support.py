"""Which architectures grow: every model of the zoo and of tests/support_models.py, by exporter, attention and form of the graph, in every size.

    python -m tests.support --table docs/support.md [--only NAME ...] [--part quick|forms|crossed|plain|all]

Source and grown model run in ONNX Runtime; nothing of onnxgrow's own validation is used. Results are kept as JSON lines beside the exports, one
file for each state of the program, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from onnxgrow.plan import Plan
from tests import deepening, growing, shared_graphs
from tests.growing import Feeds
from tests.support_exports import NoExport, Variant, cache, export, path_of, variants
from tests.support_page import GROWTHS, page
from tests.zoo_models import SPECS

ROOT = Path(__file__).parents[1]
TOLERANCE = {"float16": 2e-2}

# --- one growth ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A cell of one variant: exact, near, refused, wrong or crash."""

    name: str
    variant: str
    growth: str
    kind: str
    error: float | None = None
    reason: str = ""


def growths(v: Variant, roles) -> dict[str, list[dict]]:
    """What is asked of `Model.plan`, by the column of the table. Several requests where a model has several independent sizes of a kind."""
    sizes, tags = v.spec.sizes, v.spec.tags
    heads, kv, size = sizes["heads"], sizes["kv_heads"], sizes["head_dim"]
    out = {"ffn": [dict(ffn=sizes["ffn"] + 29)], "hidden": [dict(hidden=2 * sizes["hidden"] if "multiples" in tags else sizes["hidden"] + 13, only_hidden=True)],
           "heads": [dict(heads=heads // kv * (kv + 1) if 1 < kv < heads else heads + 1)],
           "head_dim": [dict(head_dim=size + (4 if "rotary" in tags else 3))],
           "layers": [dict(layers=sizes["layers"] + sizes.get("period", 1))]}
    if v.name in SPECS:
        out["layers"] = [deepening.growths(v.name)["one-more"]]
    if 1 < kv < heads:
        out["kv_heads"] = [dict(kv_heads=heads)]
    if tags & {"staged", "towers"}:
        out |= {label: _each(roles, label) for label in ("hidden", "heads", "head_dim", "ffn")}
    return {label: out[label] for label in GROWTHS if label in out}


def _each(roles, label: str) -> list[dict]:
    """Every size of a kind by the name that the program has for it: one request each."""
    names = [n for n in roles.roles if n == label or n.endswith(f".{label}")] or [label]
    more = {"hidden": 13, "heads": 1, "head_dim": 3, "ffn": 29}[label]
    return [dict(set={n: (roles.size(n) or 0) + more}) | (dict(only_hidden=True) if label == "hidden" else {}) for n in names]


@lru_cache(maxsize=2)
def feeds_of(v: Variant) -> list[Feeds]:
    """Feeds of several batches and lengths, as far as the source runs at them; the sizes of the export are always among them."""
    if v.name in SPECS and "past" in v.spec.tags and "cross" not in v.spec.tags:
        first = [growing.without_past(growing.arrays(v.spec.example(4, 9, 0)))]
    else:
        first = []
    sizes = [(4, 25), (1, 2), (5, 11), (3, 7)] if not v.spec.tags & {"cross", "past"} else [(6, 17), (1, 2), (3, 7)]
    runner, out = growing.session(export(v)), []
    for feeds in first + [growing.arrays(v.spec.example(*size, 0)) for size in sizes]:
        with contextlib.suppress(Exception):
            runner.run(None, feeds)
            out.append(feeds)
    assert out, "the source runs at no size"
    return out


@lru_cache(maxsize=2)
def wanted_of(v: Variant) -> list[dict[str, np.ndarray]]:
    runner = growing.session(export(v))
    names = [o.name for o in runner.get_outputs()]
    return [dict(zip(names, runner.run(names, feeds), strict=True)) for feeds in feeds_of(v)]


def difference(plan: Plan, grown: Path, v: Variant) -> float:
    """Largest difference of any output over all feeds, relative to the largest value of that output."""
    runner, noise, worst = growing.session(grown), np.random.default_rng(0), 0.0
    twin = (lambda name: deepening.twin(plan, name)) if plan.deeper else (lambda name: (name, False))
    asked = [o.name for o in runner.get_outputs() if not twin(o.name)[1]]
    for feeds, wanted in zip(feeds_of(v), wanted_of(v), strict=True):
        fed = deepening.fed(plan, runner, feeds, noise) if plan.deeper else growing.grown_feeds(plan, feeds, noise)
        for name, got in zip(asked, runner.run(asked, fed), strict=True):
            old = wanted[twin(name)[0]]
            want, defined = growing.spread(old, growing.map_of(plan, name))
            if got.shape != want.shape or not np.isfinite(got[defined]).all():
                return float("inf")
            worst = max(worst, float(np.abs(got.astype(np.float64) - want)[defined].max() / np.abs(old).max()))
    assert len(asked) == len(wanted_of(v)[0]), "an output is lost"
    return worst


def measure(v: Variant, opened: Model, label: str, request: dict) -> Found:
    try:
        plan = opened.plan(**request)
    except OnnxgrowError as error:
        return Found(v.name, str(v), label, "refused", None, shortened(error))
    with tempfile.TemporaryDirectory() as folder:
        grown = growing.written(plan, Path(folder))
        error = difference(plan, grown, v)
    kind = plan.certificate.kind
    limit = {"exact": TOLERANCE.get(v.form, growing.TOLERANCE), "near": growing.NEAR}.get(kind, 0)
    if kind == "exact" and error > limit:  # a router, say, that was undecided between two experts
        limit = growing.ROUNDING * growing.rounding(export(v), feeds_of(v), wanted_of(v))
    return Found(v.name, str(v), label, kind if error <= limit else "wrong", error, "" if error <= limit else f"certificate {kind}")


def shortened(error: OnnxgrowError) -> str:
    """The reason without the node."""
    return " ".join(error.what.split())[:240]


def cells(v: Variant) -> list[Found]:
    """All growths of one variant."""
    try:
        path = export(v)
    except NoExport as error:
        return [Found(v.name, str(v), "", "no export", None, str(error))]
    try:
        opened = Model(path)
    except OnnxgrowError as error:
        return [Found(v.name, str(v), label, "refused", None, shortened(error)) for label in applicable(v)]
    except Exception as error:  # noqa: BLE001 -- a crash is a result here
        return [Found(v.name, str(v), label, "crash", None, crash(error)) for label in applicable(v)]
    out = []
    for label, requests in growths(v, opened.roles).items():
        for request in requests:
            try:
                out.append(measure(v, opened, label, request))
            except Exception as error:  # noqa: BLE001
                out.append(Found(v.name, str(v), label, "crash", None, crash(error)))
    return out


def applicable(v: Variant) -> list[str]:
    return [g for g in GROWTHS if g != "kv_heads" or 1 < v.spec.sizes["kv_heads"] < v.spec.sizes["heads"]]


def crash(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# --- all of them -----------------------------------------------------------------------------------------------------


def state_of_program() -> str:
    files = [*sorted((ROOT / "onnxgrow").rglob("*.py")), *sorted((ROOT / "rules").glob("*.py")), *sorted((ROOT / "tests").glob("support*.py"))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def run(todo: list[Variant], jobs: int, kept: Path, end: float = float("inf")) -> Iterator[Found]:
    """Results of all variants, those of an earlier run first; no new one is begun after `end`."""
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    names, seen = {str(v) for v in todo}, {d["variant"] for d in done}
    yield from (Found(**d) for d in done if d["variant"] in names)
    rest = [v for v in todo if str(v) not in seen]
    with kept.open("a") as file:
        for start in range(0, len(rest), 4 * jobs):
            if time.time() > end:
                break
            for v, found in _together(rest[start : start + 4 * jobs], jobs):
                file.writelines(json.dumps(asdict(f)) + "\n" for f in found)
                file.flush()
                print(f"{v!s:48} {' '.join(f'{f.growth}:{f.kind}' for f in found)}", flush=True)
                yield from found


def _together(some: list[Variant], jobs: int) -> list[tuple[Variant, list[Found]]]:
    """Several at once; where a process dies of one of them, each in a process of its own."""
    try:
        with ProcessPoolExecutor(jobs) as pool:
            return list(zip(some, pool.map(cells, some), strict=True))
    except BrokenProcessPool:
        return [(v, _alone(v)) for v in some]


def _alone(v: Variant) -> list[Found]:
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(cells, v).result()
        except BrokenProcessPool:  # ONNX Runtime ends with a fault
            grown = bool([*cache().glob(path_of(v, "*").name)])
            return [Found(v.name, str(v), "", "crash" if grown else "no export", None, f"the process died {'while it was grown' if grown else 'when the export was loaded'}")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support", description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--part", choices=("quick", "forms", "crossed", "plain", "all"), default="quick")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after that; another run goes on")
    args = parser.parse_args()
    start, todo = time.time(), variants(args.part, args.only)
    found = list(run(todo, args.jobs, cache() / f"results-{state_of_program()}.jsonl", start + 60 * args.minutes))
    others = f"\n## Graphs by other projects\n\n{shared_graphs.ABOUT}\n\n{shared_graphs.section()}\n" if shared_graphs.FOLDER and not args.only and args.part != "crossed" else ""
    args.table.write_text(page(found, args.table, args.part, len(todo)) + others)


if __name__ == "__main__":
    main()
