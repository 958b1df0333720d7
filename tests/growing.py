"""Grow a model of the zoo, run both sides in ONNX Runtime, and measure: what the tests of growth share.

Nothing here uses onnxgrow's own validation. Feeds, position maps and comparison are written down once more, so that an error there
and an error here would have to agree.

    python -m tests.growing --table docs/exactness.md [--only llama ...]      the whole matrix, as a table of measured errors
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, shape_inference

from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from onnxgrow.plan import Plan
from tests import zoo
from tests.zoo_models import HIDDEN, SPECS, VOCAB

TOLERANCE = 1e-5  # relative, for exact certificates in fp32
NEAR = 0.3  # what a near growth may differ by
DIFFERS = 1e-3  # what must count as another function
ROUNDING = 4.0  # an exact growth may differ by so many times what the source itself does when its weights move by half a unit in the last place
HALF_UNITS = {TensorProto.FLOAT: 2.0**-24, TensorProto.FLOAT16: 2.0**-11}

POST_NORM = {"bert-mlm", "bert-cls", "distilbert", "roberta", "mpnet", "torch-encoder-postnorm", "clip-vision", "bart",
             "bart-decoder"}  # a norm feeds the stream
ORDER = ("hidden-only", "hidden-family", "hidden-double", "ffn", "heads", "heads-per-kv", "kv_heads", "head_dim", "together",
         "copy-hidden", "copy-ffn", "copy-heads", "copy-head_dim", "naive-hidden", "naive-ffn")
MATRIX = ("hidden-only", "hidden-family", "ffn", "heads", "kv_heads", "head_dim")  # what the issue asks of every model

Feeds = dict[str, np.ndarray]


# --- cases and growths -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One export of the zoo."""

    name: str
    exporter: str = "dynamo"
    attn: str = "eager"
    opset: int | None = None
    static: bool = False
    external: bool = False
    seed: int = 0

    @property
    def path(self) -> Path:
        return zoo.export(self.name, self.exporter, self.attn, self.opset, self.static, self.seed, self.external)

    def __str__(self) -> str:
        extras = [f"op{self.opset}"] * bool(self.opset) + ["static"] * self.static + ["data"] * self.external + [f"seed{self.seed}"] * (self.seed > 0)
        return "-".join([self.name, self.exporter, self.attn, *extras])


def every_case(seed: int = 0) -> list[Case]:
    """Every model of the zoo by both exporters, with both attentions where they work."""
    return [Case(*case, seed=seed) for case in zoo.cases()]


EXPORTS = [("torchscript", "eager"), ("dynamo", "sdpa"), ("torchscript", "sdpa"), ("dynamo", "eager")]
LONG = {"gemma2", "clip-text", "phi", "falcon", "bert-cls", "mistral", "qwen2"}  # by dynamo only where time does not matter: an export takes up to half a minute


def usual(name: str) -> Case:
    """The export of a model that runs by default: its neighbours in the zoo take the other exporter and attention."""
    at = list(SPECS).index(name)
    exports = [export for export in (*EXPORTS[at % 4 :], *EXPORTS) if not (name in LONG and export[0] == "dynamo")]
    return next(Case(name, *export) for export in exports if not zoo.known_failure(name, *export))


def exported_by(name: str, exporter: str) -> Case:
    """A model by this exporter, with the attention that it usually has: an export by dynamo takes many seconds, so that tests share few of them."""
    return Case(name, exporter, usual(name).attn)


def in_turn(name: str, label: str, labels: Iterable[str], share: int) -> bool:
    """Is it this model's turn to try this growth in the short run? One growth in `share`, another one for each neighbour in the zoo."""
    return (list(SPECS).index(name) + list(labels).index(label)) % share == 0


def growths(name: str) -> dict[str, dict]:
    """Growths of one model by label: arguments of `Model.plan`. Sizes are small, and no multiples unless that is the point."""
    spec = SPECS[name]
    hidden, heads, kv, size = (spec.sizes[key] for key in ("hidden", "heads", "kv_heads", "head_dim"))
    grouped = 1 < kv < heads
    more = {"heads": heads // kv * (kv + 1) if grouped else heads + 1}
    wider = size + (4 if "rotary" in spec.tags else 3)  # rotary halves grow in pairs
    out = {
        "hidden-only": dict(hidden=45, only_hidden=True),
        "hidden-family": dict(hidden=48),
        "hidden-double": dict(hidden=2 * hidden),
        "ffn": dict(ffn=101),
        "heads": more,
        "head_dim": dict(head_dim=wider),
        "together": dict(hidden=50, only_hidden=True, ffn=81, head_dim=wider) | more,
        "copy-hidden": dict(hidden=2 * hidden, only_hidden=True, method="copy"),
        "copy-ffn": dict(ffn=101, method="copy"),
        "copy-heads": dict(heads=2 * heads, method="copy"),
        "copy-head_dim": dict(head_dim=2 * size, method="copy"),
        "naive-hidden": dict(hidden=48, method="naive"),
        "naive-ffn": dict(ffn=101, method="naive", init_std=0.2),
    }
    if grouped:
        out["heads-per-kv"] = dict(heads=2 * heads, kv_heads=kv)
        out["kv_heads"] = dict(kv_heads=heads)
    return {label: out[label] for label in ORDER if label in out}


def promised(name: str, label: str) -> str:
    """The certificate that a growth of the zoo must get."""
    if label.startswith("naive"):
        return "not preserved"
    return "near" if name in POST_NORM and label in ("hidden-only", "hidden-family", "together") else "exact"


class Edited(Case):
    """A case whose file is another one, so that comparisons run against that."""

    def __init__(self, case: Case, file: Path):
        super().__init__(case.name, case.exporter, case.attn)
        object.__setattr__(self, "file", file)

    @property
    def path(self) -> Path:
        return self.file


def known_bug(case: Case, label: str) -> str | None:
    """What onnxgrow cannot do yet though it should: the reason, or None."""
    return None


def tied(case: Case, folder: Path) -> Case:
    """The export with its embedding tied as other exporters write it: PyTorch's fold the transposed head into a copy of the matrix."""
    model = onnx.load(case.path)
    tables = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if VOCAB in t.dims and len(t.dims) == 2}
    table, head = next((a, b) for a, b in itertools.permutations(tables, 2) if len(tables[a]) == VOCAB and np.array_equal(tables[a].T, tables[b]))
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == head))
    model.graph.node.insert(0, helper.make_node("Transpose", [table], [head], f"tie.{head}", perm=[1, 0]))
    onnx.save(model, folder / "tied.onnx")
    return Edited(case, folder / "tied.onnx")


def equal_vectors(case: Case, folder: Path, merged: bool) -> Case:
    """The export with all gains of its norms equal, and all offsets and biases over hidden; `merged`: as one initializer each."""
    model = onnx.load(case.path)
    held = {t.name: t for t in model.graph.initializer}
    uses = [(n, i, n.op_type == "LayerNormalization" and i == 1) for n in model.graph.node for i, name in enumerate(n.input)
            if name in held and list(held[name].dims) == [HIDDEN] and held[name].data_type == TensorProto.FLOAT]  # fmt: skip
    first = {is_gain: next(n.input[i] for n, i, kind in uses if kind == is_gain) for is_gain in (True, False)}
    for n, i, is_gain in uses:
        if merged:
            n.input[i] = first[is_gain]
        else:
            held[n.input[i]].raw_data = held[first[is_gain]].raw_data
    _drop_unused(model)
    onnx.save(model, folder / f"equal-{merged}.onnx")
    return Edited(case, folder / f"equal-{merged}.onnx")


def shared_layers(case: Case, folder: Path) -> Case:
    """The export with the matrices of its first layer in the second one too, as in ALBERT."""
    model = onnx.load(case.path)
    held = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims}
    order = list(dict.fromkeys(name for n in model.graph.node for name in n.input if name in held))
    shapes = [tuple(held[name].dims) for name in order]
    length, start = max((k, s) for k in range(4, len(order) // 2 + 1) for s in range(len(order) - 2 * k + 1) if shapes[s : s + k] == shapes[s + k : s + 2 * k])
    same = {order[start + length + k]: order[start + k] for k in range(length) if len(shapes[start + k]) > 1}
    for n in model.graph.node:
        n.input[:] = [same.get(name, name) for name in n.input]
    _drop_unused(model)
    onnx.save(model, folder / "shared.onnx")
    return Edited(case, folder / "shared.onnx")


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for n in model.graph.node for name in n.input}
    for t in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(t)


@lru_cache(maxsize=16)
def opened(path: Path) -> Model:
    return Model(path)


def plan_of(case: Case, label: str, seed: int = 0, **more) -> Plan:
    return opened(case.path).plan(**{"seed": seed} | growths(case.name)[label] | more)


# --- feeds -----------------------------------------------------------------------------------------------------------


def feeds_of(case: Case, seed: int = 0) -> list[Feeds]:
    """Inputs of several batch sizes and lengths, the exported one last; masks with padding, past empty and filled.

    Together they hold every id of the vocabulary.
    """
    spec = SPECS[case.name]
    if case.static:
        whole = arrays(spec.example(15, 7, seed))
        return [{name: x[row : row + 3] for name, x in whole.items()} for row in range(0, 15, 3)]
    if "cross" in spec.tags:
        return [arrays(spec.example(*size, seed)) for size in [(6, 17), (1, 2), (3, 7)]]
    if "past" in spec.tags:
        sizes = [(6, 17), (1, 2), (3, 7)]
        return [without_past(arrays(spec.example(4, 9, seed))), *(arrays(spec.example(*size, seed)) for size in sizes)]
    fixed = case.exporter == "torchscript" and case.name.startswith("torch-encoder")  # its length is a Python number
    sizes = [(15, 7), (2, 7), (3, 7)] if fixed else [(4, 25), (1, 2), (5, 11), (3, 7)]
    return [arrays(spec.example(*size, seed)) for size in sizes]


def arrays(tensors: dict) -> Feeds:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def without_past(feeds: Feeds) -> Feeds:
    """The first call of a decoder: no cached positions yet; rows are padded at their beginning."""
    length = feeds["input_ids"].shape[1]
    mask = np.ones_like(feeds["input_ids"])
    for row in range(1, len(mask)):
        mask[row, : min(row, length - 1)] = 0
    return {name: mask if name == "attention_mask" else x[:, :, :0] if name.startswith("past") else x for name, x in feeds.items()}


# --- running and comparing -------------------------------------------------------------------------------------------


def session(model: Path | bytes, optimised: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"])


@lru_cache(maxsize=8)
def source_outputs(path: Path, case: Case, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """What the source says to each of the feeds; all of it finite."""
    runner = session(path)
    names = [output.name for output in runner.get_outputs()]
    out = [dict(zip(names, runner.run(names, feeds), strict=True)) for feeds in feeds_of(case, seed)]
    assert all(np.isfinite(values).all() for outputs in out for values in outputs.values()), "the source itself is not finite"
    return out


def map_of(plan: Plan, tensor: str) -> tuple[AxisMap, ...]:
    """The map of each axis; what nobody may read is marked FREE."""
    return tuple(plan.decisions.mapper.axis(tensor, i) for i in range(len(plan.roles.structure.dims[tensor])))


def spread(x: np.ndarray, maps: tuple[AxisMap, ...], noise: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A tensor of the source as the grown graph must have it, and where it is defined (FREE is not, and holds noise).

    What is free along one axis is not defined, whatever the others say: a norm of each head makes no zero in a new head of noise.
    """
    defined = np.ones(x.shape, bool)
    for axis, m in enumerate(maps):
        if m.is_identity or m.old != x.shape[axis]:  # sizes that depend on what is fed are other ones here, and never grow
            assert m.is_identity
            continue
        along = [-1 if k == axis else 1 for k in range(x.ndim)]
        old, mean = (np.reshape(m.fill == code, along) for code in (Fill.OLD, Fill.MEAN))
        weights = np.full((m.new, m.old), 1 / m.old) if m.mixes is None else m.mixes[m.pattern]
        means = np.moveaxis(np.tensordot(x.astype(np.float64), weights, (axis, 1)), -1, axis) if mean.any() else 0
        x = np.where(old, x.take(m.source.clip(0), axis), np.where(mean, means, 0)).astype(x.dtype)
        defined = defined.take(m.source.clip(0), axis) & (m.fill != Fill.FREE).reshape(along)
    if noise is not None and not defined.all():
        x = np.where(defined, x, noise.standard_normal(x.shape)).astype(x.dtype)
    return x, defined


def difference(plan: Plan, grown: Path, case: Case, seed: int = 0, optimised: bool = True) -> float:
    """Largest difference of any output over all feeds, relative to the largest value of that output.

    Outputs go through the plan's maps: old entries, copies, zeros and means must all be where the plan says. Inputs hold noise
    where the plan says that nobody reads.
    """
    runner, noise, worst = session(grown, optimised), np.random.default_rng(seed), 0.0
    inputs = {name: map_of(plan, name) for name in plan.decisions.inputs}
    outputs = {name: map_of(plan, name) for name in plan.decisions.outputs}
    for feeds, wanted in zip(feeds_of(case, seed), source_outputs(case.path, case, seed), strict=True):
        fed = {name: spread(x, inputs[name], noise)[0] for name, x in feeds.items()}
        for name, got in zip(wanted, runner.run(list(wanted), fed), strict=True):
            want, defined = spread(wanted[name], outputs[name])
            if got.shape != want.shape or not np.isfinite(got[defined]).all():
                return float("inf")
            worst = max(worst, float(np.abs(got - want)[defined].max() / np.abs(wanted[name]).max()))
    return worst


def written(plan: Plan, folder: Path, name: str = "grown.onnx", **options) -> Path:
    """The plan's file, written without onnxgrow's validation."""
    return plan.write(folder / name, validate=False, overwrite=True, **options).path


# --- soundness of a file ---------------------------------------------------------------------------------------------


def check_sound(path: Path, feeds: Feeds) -> None:
    """The full checker, strict inference, and sizes that are written down against those that ONNX Runtime really makes."""
    onnx.checker.check_model(str(path), full_check=True)
    stale = [*stale_by_inference(path), *stale_by_running(path, feeds)]
    assert not stale, f"stale sizes: {stale}"


def declared(graph: onnx.GraphProto) -> dict[str, list[int | None]]:
    """Every tensor whose shape is written down: sizes, None where an axis is dynamic."""
    values = [v for v in (*graph.input, *graph.value_info, *graph.output) if v.type.tensor_type.HasField("shape")]
    return {v.name: [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim] for v in values}


def stale_by_inference(path: Path) -> list[str]:
    """Declared sizes that strict shape inference with data propagation contradicts, or that belong to no tensor."""
    model = onnx.load(path)
    known, held = declared(model.graph), {t.name: list(t.dims) for t in model.graph.initializer}
    made = {o for n in model.graph.node for o in n.output} | {v.name for v in model.graph.input} | held.keys()
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = declared(shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph) | held
    lost = [f"{name}: made by no node" for name in known if name not in made]
    return lost + [f"{name}: {known[name]}, inferred {found[name]}" for name in known if name in found and not agree(known[name], found[name])]


def stale_by_running(path: Path, feeds: Feeds) -> list[str]:
    """Declared sizes that are not those of the tensor at run time."""
    model = onnx.load(path)
    known = declared(model.graph)
    made = {o for n in model.graph.node for o in n.output}
    names = [name for name in known if name in made]
    outputs = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    del model.graph.output[:]
    model.graph.output.extend(outputs[name] for name in names)
    values = session(model.SerializeToString(), optimised=False).run(names, feeds)
    return [f"{name}: {known[name]}, really {list(x.shape)}" for name, x in zip(names, values, strict=True) if not agree(known[name], list(x.shape))]


def agree(a: list[int | None], b: list[int | None]) -> bool:
    return len(a) == len(b) and all(p == q or p is None or q is None for p, q in zip(a, b, strict=True))


# --- new parameters --------------------------------------------------------------------------------------------------


def new_regions(plan: Plan) -> dict[str, np.ndarray]:
    """Initializer -> True where an entry is new: appended, or a copy after the first. Float tensors that grow only."""
    return {name: ~kept_region(r.axes) for name, r in plan.decisions.applied.recipes.items()
            if helper.tensor_dtype_to_np_dtype(r.dtype).kind == "f" and tuple(r.new_shape) != tuple(r.old_shape)}


def kept_region(axes: tuple[AxisMap, ...]) -> np.ndarray:
    """True where the first copy of an old entry lies, on every axis."""
    kept = np.ones((), bool)
    for m in axes:
        first = np.zeros(m.new, bool)
        old = np.flatnonzero(m.fill == Fill.OLD)
        first[old[np.unique(m.source[old], return_index=True)[1]]] = True
        kept = kept[..., None] & first
    return kept


# --- the whole matrix as a table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One growth of one export."""

    case: Case
    label: str
    kind: str
    error: float | None
    problem: str = ""


def measure(case: Case, label: str, seed: int = 0) -> Measured:
    """Plan, write, check and compare one growth."""
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(case, label, seed)
        path = written(plan, Path(folder))
        error = difference(plan, path, case, seed)
        check_sound(path, grown_feeds(plan, feeds_of(case, seed)[-1]))
    return Measured(case, label, plan.certificate.kind, error)


def rounding(path: Path, feeds: list[Feeds], wanted: list[dict], draws: int = 8) -> float:
    """How far the source's own outputs move, relative to their largest values, when each weight is rounded another way."""
    model, worst = onnx.load(path), 0.0
    for k in range(draws):
        noise, moved = np.random.default_rng(k), onnx.ModelProto()
        moved.CopyFrom(model)
        for t in moved.graph.initializer:
            if t.data_type in HALF_UNITS:
                x = numpy_helper.to_array(t)
                t.CopyFrom(numpy_helper.from_array((x * (1 + HALF_UNITS[t.data_type] * noise.standard_normal(x.shape))).astype(x.dtype), t.name))
        runner = session(moved.SerializeToString(), optimised=False)
        for feed, want in zip(feeds, wanted, strict=True):
            worst = max(worst, *(float(np.abs(got - x).max() / np.abs(x).max()) for x, got in zip(want.values(), runner.run(list(want), feed), strict=True)))
    return worst


def grown_feeds(plan: Plan, feeds: Feeds, noise: np.random.Generator | None = None) -> Feeds:
    """Inputs of the source as the grown graph takes them; zeros, or noise, where nobody reads."""
    return {name: spread(x, map_of(plan, name), noise)[0] for name, x in feeds.items()}


def measure_case(case: Case) -> list[Measured]:
    """All growths of one export; whatever goes wrong is a line of the table."""
    out = []
    for label in growths(case.name):
        try:
            out.append(measure(case, label, case.seed))
        except (OnnxgrowError, AssertionError, Exception) as error:  # noqa: BLE001
            out.append(Measured(case, label, "failed", None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
    return out


def table(results: list[Measured], order: tuple[str, ...] = ORDER) -> str:
    """Model by growth: certificate, where it is not exact, and the worst error of all exports and seeds."""
    cells: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for r in results:
        cells[r.case.name, r.label].append(r)
    labels = [label for label in order if any(key[1] == label for key in cells)]
    lines = [f"| model | {' | '.join(labels)} |", f"|---|{'---|' * len(labels)}"]
    for name in dict.fromkeys(r.case.name for r in results):
        lines.append(f"| {name} | {' | '.join(cell(cells.get((name, label), [])) for label in labels)} |")
    return "\n".join(lines)


def cell(results: list[Measured]) -> str:
    if not results:
        return "–"
    failed = [r for r in results if r.error is None]
    kinds = sorted({r.kind for r in results} - {"exact", "failed"})
    worst = max((r.error for r in results if r.error is not None), default=float("nan"))
    return " ".join([*kinds, f"{worst:.0e}", *[f"({len(failed)} failed)"] * bool(failed)])


def document(results: list[Measured], seconds: float) -> str:
    exact = [r.error for r in results if r.kind == "exact" and r.error is not None]
    near = [r.error for r in results if r.kind == "near" and r.error is not None]
    failed = [f"- {r.case} {r.label}: {r.problem}" for r in results if r.error is None]
    growth_lines = [f"- `{label}`: " + ", ".join(f"{k}={v}" for k, v in growths("llama")[label].items()) for label in growths("llama")]
    return "\n".join([
        "# Measured exactness", "",
        "Written by `python -m tests.growing --table docs/exactness.md`; do not edit. Each cell is the largest difference between a source",
        "and its grown model in ONNX Runtime (CPU, fp32, default optimisations), relative to the largest value of the output: the worst of both exporters,",
        f"both attentions, two seeds of the weights and of the growth, and {len(feeds_of(Case('llama')))} feeds of other batch sizes and lengths. The certificate stands in front where it is not `exact`.", "",
        f"{len(results)} growths of {len({str(r.case) for r in results})} exports in {seconds / 60:.0f} minutes: {len(exact)} exact, the worst at {max(exact, default=0):.1e}; "
        f"{len(near)} near, the worst at {max(near, default=0):.1e}; {len(failed)} failed.", "",
        table(results), "", *(["## Failures", "", *failed, ""] if failed else []),
        "## The growths", "", "As for Llama (hidden 32, 4 heads over 2 kv heads of 8, ffn 72); other models alike, in their own sizes.", "", *growth_lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.growing", description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--only", nargs="*", default=list(SPECS), help="names of models")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    cases = [case for seed in range(args.seeds) for case in every_case(seed) if case.name in args.only]
    start, results = time.time(), []
    with ProcessPoolExecutor(args.jobs) as pool:
        for case, found in zip(cases, pool.map(measure_case, cases), strict=True):
            results += found
            bad = [f"{r.label}: {r.problem or f'{r.error:.1e}'}" for r in found if r.error is None or (r.kind == "exact" and not r.error <= TOLERANCE)]
            print(f"{case!s:45} {len(found)} growths {'; '.join(bad)}", flush=True)
    args.table.write_text(document(results, time.time() - start))


if __name__ == "__main__":
    main()
