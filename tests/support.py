"""Which architectures grow: every model of the zoo and of tests/support_models.py, by exporter, attention and form of the graph, in every size.

    python -m tests.support --table docs/support.md [--only NAME ...] [--part quick|forms|crossed|plain|all]

Source and grown model run in ONNX Runtime; nothing of onnxgrow's own validation is used. Results are kept as JSON lines beside the exports, one
file for each state of the program, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model, Plan
from tests import deepening, growing, shared_graphs, zoo
from tests.growing import Feeds
from tests.once import made
from tests.support_models import SUPPORT
from tests.support_page import page
from tests.zoo_models import SPECS, Spec

ROOT = Path(__file__).parents[1]
MODELS: dict[str, Spec] = SPECS | SUPPORT
FORMS = ("plain", "opset 23", "basic", "extended", "optimizer", "float16")
GROWTHS = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "layers")
TOLERANCE = {"float16": 2e-2}
OPTIMIZER_TYPES = {"bert": ("bert", "roberta", "electra", "xlm-roberta", "distilbert"), "gpt2": ("gpt2",), "bart": ("bart",), "vit": ("vit", "deit"),
                   "t5": ("t5",), "clip": ("clip-text", "clip-vision"), "phi": ("phi",), "gpt_neox": ("gpt-neox",)}


# --- exports ---------------------------------------------------------------------------------------------------------


class NoExport(Exception):
    """This combination does not exist: an exporter or a converter cannot make it."""


@dataclass(frozen=True)
class Variant:
    """One way to write a model down."""

    name: str
    exporter: str = "dynamo"
    attn: str = "eager"
    form: str = "plain"

    def __str__(self) -> str:
        return "/".join((self.name, self.exporter, self.attn, self.form))

    @property
    def spec(self) -> Spec:
        return MODELS[self.name]


def variants(part: str, only: list[str] | None = None) -> list[Variant]:
    """Those of a part: `quick` takes one plain export of each model, its neighbours take the other exporter and attention; `forms` each form of each
    model, from that export; `crossed` what is left of the models that other tests use too, so that they are tried in every exporter, attention and form;
    `plain` and `all` are of every model. The smaller parts come first, so that a run that is cut short says most."""
    names = [n for n in MODELS if not only or n in only]
    quick = [Variant(n, *_usual(n)) for n in names]
    forms = [Variant(v.name, "dynamo" if form == "opset 23" else v.exporter, v.attn, form) for form in FORMS[1:] for v in quick]
    every = [Variant(*case) for case in product(names, zoo.EXPORTERS, zoo.ATTENTIONS, FORMS)]
    every = [v for v in every if not (v.attn == "sdpa" and "eager" in v.spec.tags or v.form == "opset 23" and v.exporter != "dynamo")]
    parts = {"quick": quick, "forms": quick + forms, "crossed": [v for v in every if v.name in SPECS and v not in quick + forms],
             "plain": quick + [v for v in every if v.form == "plain"], "all": quick + forms + every}
    return list(dict.fromkeys(parts[part]))


def _usual(name: str) -> tuple[str, str]:
    at = list(MODELS).index(name)
    found = [e for e in growing.EXPORTS if not (e[1] == "sdpa" and ("eager" in MODELS[name].tags or zoo.known_failure(name, *e)))]
    return found[at % len(found)]


def cache() -> Path:
    folder = Path(os.environ.get("ONNXGROW_ZOO", tempfile.gettempdir())) / "onnxgrow-support"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@lru_cache(maxsize=None)
def state_of(name: str) -> str:
    """A hash of all that an export depends on: the libraries, the model with its weights, what it is fed, and the modules around it."""
    spec = MODELS[name]
    module, digest = spec.build(), hashlib.sha256()
    for part in (torch.__version__, transformers.__version__, onnx.__version__, ort.__version__, repr(module), repr(spec.axes), repr(spec.outputs), repr(spec.tags)):
        digest.update(part.encode())
    for part in (*module.state_dict().values(), *spec.example().values()):
        digest.update(part.contiguous().view(-1).numpy().tobytes())
    digest.update(repr([m.config.to_json_string() for m in module.modules() if hasattr(m, "config")][:1]).encode())
    for file in ("zoo_modules.py", "zoo_moe.py", "support_inputs.py"):
        digest.update((ROOT / "tests" / file).read_bytes())
    return digest.hexdigest()[:12]


def export(v: Variant) -> Path:
    """The file of a variant, made if it is not there yet.

    Raises:
        NoExport: it cannot be made, or says something else than PyTorch.
    """
    if v.name in SPECS and (reason := zoo.known_failure(v.name, v.exporter, v.attn, 23 if v.form == "opset 23" else None)):
        raise NoExport(reason)
    try:
        state = state_of(v.name)
    except Exception as error:  # whatever a library raises
        raise NoExport(f"{type(error).__name__}: {error}") from error
    path = path_of(v, state)
    failed = path.with_suffix(".failed")
    if failed.exists():
        raise NoExport(failed.read_text())

    def make(fresh: Path) -> None:
        _make(v, fresh)
        _check(v, fresh)

    try:
        return made(path, make)
    except Exception as error:  # whatever an exporter raises
        failed.write_text(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        raise NoExport(failed.read_text()) from error


def path_of(v: Variant, state: str) -> Path:
    return cache() / f"{v.name}-{state}-{v.exporter}-{v.attn}-{v.form.replace(' ', '')}.onnx"


def _make(v: Variant, path: Path) -> None:
    if v.form in ("plain", "opset 23"):
        opset = 23 if v.form == "opset 23" else zoo.DEFAULT_OPSET[v.exporter]
        if v.name in SPECS:
            shutil.copy(zoo.export(v.name, v.exporter, v.attn, opset), path)
            return
        zoo.write(v.spec, path, v.exporter, v.attn, opset, "static" in v.spec.tags, 0)
        return
    plain = export(Variant(v.name, v.exporter, v.attn))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        {"basic": _optimised, "extended": _optimised, "optimizer": _with_optimizer, "float16": _halved}[v.form](v, plain, path)


def _optimised(v: Variant, plain: Path, path: Path) -> None:
    """As ONNX Runtime rewrites it when it loads it."""
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(path)
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if v.form == "basic" else levels.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(plain), options, ["CPUExecutionProvider"])


def _with_optimizer(v: Variant, plain: Path, path: Path) -> None:
    """As the offline optimiser for transformers rewrites the architectures that it knows."""
    from onnxruntime.transformers.optimizer import optimize_model

    kind = next((kind for kind, names in OPTIMIZER_TYPES.items() if any(v.name == n or v.name.startswith(f"{n}-") for n in names)), None)
    if kind is None:
        raise NoExport("ONNX Runtime's optimiser does not know this architecture")
    heads, hidden = v.spec.sizes["heads"], v.spec.sizes["hidden"]
    optimize_model(str(plain), kind, num_heads=heads, hidden_size=hidden, opt_level=0).save_model_to_file(str(path))


def _halved(v: Variant, plain: Path, path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(plain), keep_io_types=True), path)


def _check(v: Variant, path: Path) -> None:
    """The export says what PyTorch says, at the sizes that it saw."""
    inputs = v.spec.example(seed=1)
    with torch.no_grad():
        expected = v.spec.build(0, v.attn)(*inputs.values())
    got = growing.session(path).run(list(v.spec.outputs), growing.arrays(inputs))
    worst = max(zoo.relative(a, b.numpy()) for a, b in zip(got, expected, strict=True))
    if not worst < (5e-2 if v.form == "float16" else 1e-4):
        raise NoExport(f"the export differs from PyTorch by {worst:.0e}")


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
    files = [*sorted((ROOT / "onnxgrow").rglob("*.py")), *sorted((ROOT / "rules").glob("*.py")), ROOT / "tests/support.py"]
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
