"""More layers: growths of the zoo in depth, and their comparison in ONNX Runtime, which the tests and the table of docs/depth.md share.

What the grown graph's caches are called is worked out here from the order of its blocks alone.

    python -m tests.deepening --table docs/depth.md [--only llama ...]
"""

from __future__ import annotations

import argparse
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from onnxgrow.plan import Plan
from tests import growing, zoo
from tests.growing import POST_NORM, Case, Feeds, Measured
from tests.zoo_models import HIDDEN, SPECS

CACHE = re.compile(r"(past|present|cross)_(key|value)_(\d+)")
PERIOD = {"gemma2": 2, "gemma2-past": 2}  # layers of alternating kinds
STACKS = {"t5": {"encoder_layers": 2, "decoder_layers": 3}, "bart": {"encoder_layers": 2, "decoder_layers": 3}}
NO_NORM_IN_FRONT = {"torch-encoder-postnorm"}  # norms after the branches, and none on the embeddings
ORDER = ("one-more", "half-more", "double", "end", "start", "after-first", "gate", "random", "wide", "wide-end", "wide-gate", "wide-double", "stack")


def stacks(name: str) -> dict[str, int]:
    """Layers of each stack of a model."""
    return STACKS.get(name, {"layers": SPECS[name].sizes["layers"]})


def growths(name: str) -> dict[str, dict]:
    """Growths of one model by label: arguments of `Model.plan`."""
    period, old = PERIOD.get(name, 1), stacks(name)
    more = {s: n + period for s, n in old.items()}
    half = {s: n + -(-n // (2 * period)) * period for s, n in old.items()}
    double = {s: 2 * n for s, n in old.items()}
    wide = {"hidden": 2 * HIDDEN, "ffn": 101} if name in POST_NORM else {"hidden": 48, "ffn": 101}
    out = {
        "one-more": more, "double": double,
        "end": double | {"placement": "end"}, "start": more | {"placement": "start"}, "after-first": more | {"placement": f"after:{period - 1}"},
        "gate": half | {"depth_method": "gate"}, "random": more | {"block_init": "random", "placement": "stack"},
        "wide": half | wide, "wide-end": more | wide | {"placement": "end"}, "wide-gate": half | wide | {"depth_method": "gate"},
        "wide-double": double | wide, "stack": double | {"depth_method": "stack", "placement": "stack"},
    }
    if half != more:
        out["half-more"] = half
    if name in NO_NORM_IN_FRONT:
        out["start"]["depth_method"] = "gate"
    return {label: out[label] for label in ORDER if label in out}


def layer_sources(plan: Plan) -> list[tuple[int, bool]]:
    """For each layer of the grown stack that has caches: the layer of the source that it is or starts from, and whether it is new."""
    if len(plan.deeper.places) > 1:
        return []
    (name, places), = plan.deeper.places.items()
    period = plan.model.stacks[0].period
    return [(p.block * period + inner, p.new) for p in places for inner in range(period)]


def twin(plan: Plan, name: str) -> tuple[str, bool]:
    """The source's name of an input or output of the grown graph, and whether it belongs to a new layer."""
    found = CACHE.fullmatch(name)
    if not found:
        return name, False
    layer, new = layer_sources(plan)[int(found[3])]
    return f"{found[1]}_{found[2]}_{layer}", new


def difference(plan: Plan, grown: Path, case: Case, seed: int = 0) -> float:
    """As `growing.difference`; the caches of new layers hold noise, and what comes out of them is not compared."""
    runner, noise, worst = growing.session(grown), np.random.default_rng(seed), 0.0
    asked = [o.name for o in runner.get_outputs() if not twin(plan, o.name)[1]]
    for feeds, wanted in zip(growing.feeds_of(case, seed), growing.source_outputs(case.path, case, seed), strict=True):
        for name, got in zip(asked, runner.run(asked, fed(plan, runner, feeds, noise)), strict=True):
            old = wanted[twin(plan, name)[0]]
            want, defined = growing.spread(old, growing.map_of(plan, name))
            if got.shape != want.shape or not np.isfinite(got[defined]).all():
                return float("inf")
            worst = max(worst, float(np.abs(got - want)[defined].max() / np.abs(old).max()))
    assert len(asked) == len(growing.source_outputs(case.path, case, seed)[0]), "an output is lost"
    return worst


def fed(plan: Plan, runner, feeds: Feeds, noise: np.random.Generator) -> Feeds:
    """Inputs of the source as the deeper graph takes them."""
    out = {}
    for name in (i.name for i in runner.get_inputs()):
        source, new = twin(plan, name)
        out[name] = growing.spread(feeds[source], growing.map_of(plan, name), noise)[0]
        if new:
            out[name] = noise.standard_normal(out[name].shape).astype(out[name].dtype)
    return out


def sound_feeds(plan: Plan, path: Path, case: Case, seed: int = 0) -> Feeds:
    return fed(plan, growing.session(path), growing.feeds_of(case, seed)[-1], np.random.default_rng(seed))


def names_of(path: Path) -> set[str]:
    """Everything in a file that has a name."""
    graph = onnx.load(path, load_external_data=False).graph
    return {t.name for t in graph.initializer} | {n.name for n in graph.node} | {o for n in graph.node for o in n.output} | {v.name for v in graph.input}


def measure(case: Case, label: str) -> Measured:
    """Plan, write, check and compare one growth; whatever goes wrong is a line of the table."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            plan = growing.opened(case.path).plan(**growths(case.name)[label])
            path = growing.written(plan, Path(folder))
            error = difference(plan, path, case)
            growing.check_sound(path, sound_feeds(plan, path, case))
        return Measured(case, label, plan.certificate.kind, error)
    except (AssertionError, Exception) as error:  # noqa: BLE001
        return Measured(case, label, "failed", None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def measure_case(case: Case) -> list[Measured]:
    return [measure(case, label) for label in growths(case.name)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.deepening", description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="write the table into this page")
    parser.add_argument("--only", nargs="*", default=list(SPECS), help="names of models")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    cases = [Case(*case) for case in zoo.cases() if case[0] in args.only]
    with ProcessPoolExecutor(args.jobs) as pool:
        results = [r for found in pool.map(partial(measure_case), cases) for r in found]
    text = growing.table(results, ORDER)
    exact = [r for r in results if r.kind == "exact"]
    text += f"\n\n{len(results)} growths of {len(cases)} exports: {len(exact)} exact, the largest difference {max(r.error for r in exact):.1e}; "
    text += f"{sum(r.kind == 'near' for r in results)} near, {sum(r.kind == 'not preserved' for r in results)} not preserved, {sum(r.error is None for r in results)} failed.\n"
    print(text)
    for r in results:
        if r.error is None or (r.kind == "exact" and r.error > growing.TOLERANCE):
            print(r.case, r.label, r.kind, r.error, r.problem)
    if args.table:
        page = args.table.read_text().partition("<!-- measured -->")[0]
        args.table.write_text(f"{page}<!-- measured -->\n\n{text}")


if __name__ == "__main__":
    main()
