"""Random transformers, each from one seed: composed of the spellings in tests/random_layers.py, grown, and compared in ONNX Runtime.

    python -m tests.random_graphs --seeds 0:20000 --growths 1 --keep found.jsonl   totals, refusals by reason, every WRONG, CRASH and FAR with its seed;
                                                                                   another run goes on where it stopped
    python -m tests.random_graphs --seeds 17 --save /tmp/seed17.onnx   one graph, what was drawn, and each growth

Nothing of onnxgrow's own validation is used.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace as Drawn

import numpy as np
import onnx
from onnx import TensorProto

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from onnxgrow.plan import Plan
from onnxgrow.understood import Unforeseen
from tests import growing
from tests import random_layers as parts
from tests.growing import Feeds
from tests.random_layers import MS, REACH, Builder

TOLERANCE = 3e-5  # relative, for exact certificates: weights here are not small, and scores sharp
NEAR = 4.0  # outputs of a near growth per unit of its bound, which is on the statistics of one norm; beyond, it is called FAR
LEAST = {"layers": 1e-3}  # bounds below which the rest of the graph may add more than they say; 0.1 for widths, where several norms add up
PER_SEED = 3
FUSED = ("ms-attention", "multi-head", "group-query", "onnx-3d", "onnx-4d")


# --- what a graph is made of -------------------------------------------------------------------------------------------------------


def draw(seed: int, **fixed) -> Drawn:
    """The choices behind one graph; `fixed` overrides some of them."""
    rng = np.random.default_rng([seed, 1])
    pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
    maybe = lambda share: bool(rng.random() < share)  # noqa: E731
    o = Drawn(seed=seed, layers=pick(1, 1, 2, 2, 2, 3), heads=pick(1, 2, 2, 3, 4), form=pick("plain", "plain", "plain", "merged", "einsum", *FUSED))
    o.head_dim = pick(2, 4, 4, 6, 8) if o.form != "group-query" else pick(8, 16)
    o.kv = o.heads
    if o.form in ("plain", "merged", "group-query", "onnx-3d", "onnx-4d") and maybe(0.4):
        o.kv = pick(*[k for k in range(1, o.heads + 1) if o.heads % k == 0])
    o.hidden = pick(o.heads * o.head_dim, o.heads * o.head_dim, pick(6, 8, 9, 12, 16))
    o.ffn = pick(2 * o.hidden, 4 * o.hidden, o.hidden, pick(7, 10, 15, 20))
    o.opset = 23 if o.form.startswith("onnx") else pick(14, 17, 18, 20, 23)
    kinds = ["layer-spelled", "rms-spelled", "simplified", *["layer"] * (o.opset >= 17), *["layer"] * (o.opset >= 17), *["rms"] * (o.opset >= 23)]
    o.norm, o.place = pick(*kinds), pick("before", "before", "before", "after", "around")
    o.skip = o.place in ("before", "after") and o.norm in ("layer", "simplified") and maybe(0.3)  # residual and norm as one operator
    o.spelling, o.gain, o.offset, o.one_gain, o.eps = int(rng.integers(5)), maybe(0.8), maybe(0.8), maybe(0.15), pick(1e-5, 1e-6, 1e-3)
    o.last_norm = o.place != "after" and maybe(0.9)
    o.mlp = pick("plain", "plain", "gated", "fused")
    o.act = pick("erf", "tanh", "gelu", "relu", "fast", "quick", "biasgelu", "biasfast") if o.mlp == "plain" else pick("silu", "silu", "gelu", "tanh")
    o.linear, o.transposed, o.bias = pick("matmul", "matmul", "gemm"), maybe(0.5), pick(True, True, False, "zero")
    o.qkv, o.cut = pick("separate", "fused"), pick("split", "slice")
    o.reshape, o.back = pick("numbers", "inferred", "length", "shape"), pick("numbers", "inferred", "length", "shape")
    o.scale = pick("constant", "constant", "each", "early", "run-time", "none") if o.form in ("plain", "merged", "einsum") else pick("constant", "none")
    if o.form == "einsum" and o.scale == "run-time":
        o.scale = "constant"
    o.mask = pick("none", "padding", "fed", "stored", "causal")
    plain = o.form in ("plain", "merged", "einsum")
    o.head_norm = pick("rms-spelled", "layer" if o.opset >= 17 else "layer-spelled", "simplified") if plain and maybe(0.15) else ""
    rotary = (o.form in ("plain", "merged") and o.head_dim % 2 == 0 and maybe(0.4)) or (o.form == "group-query" and o.head_dim == 16 and maybe(0.6))
    o.rotary, o.tables = pick("halves", "whole") if rotary else "", pick("stored", "computed")
    o.softcap = o.form in ("plain", "merged", "einsum", "group-query", "onnx-3d", "onnx-4d") and maybe(0.1)
    o.lora = pick(0, 0, 0, 0, 2, 3) if o.form != "ms-attention" else 0
    o.cache = o.form not in ("einsum", "ms-attention") and maybe(0.25)
    o.source, o.positions = pick("ids", "ids", "ids", "features", "raw"), maybe(0.4)
    o.vocab = pick(11, 13, 17, o.hidden)
    o.head = pick("none", "untied", "tied", "pooled") if o.source == "ids" else pick("none", "untied", "pooled")
    o.share, o.fixed = maybe(0.5), pick(0, 0, 0, 0, o.hidden, o.heads) if not o.cache else 0  # a length that the export wrote down
    o.fixed = o.fixed if 1 < o.fixed <= REACH else 0
    o.mixed = maybe(0.15)  # layers that are not spelled alike
    vars(o).update(fixed)
    o.kv = o.heads if vars(o).get("stacked") else o.kv
    return o


def build(o: Drawn) -> onnx.ModelProto:
    """The graph of some choices."""
    b = Builder(np.random.default_rng([o.seed, 2]), o.opset, o.share)
    length = o.fixed or "length"
    x, table = entrance(b, o, length)
    env = parts.surroundings(b, x, o)
    norm = partial(parts.norm, b, n=o.hidden, kind=o.norm, o=o)
    made = (parts.parallel,) if vars(o).get("parallel") else (parts.attention, lambda b, x, env, o, layer: parts.feed_forward(b, x, o))
    branches = [partial(f, b, env=env, o=o, layer=layer) for layer in range(o.layers) for f in made]
    x = fused_residuals(b, x, branches, norm, o) if o.skip else residuals(b, x, branches, norm, o)
    if o.last_norm:
        x = norm(x=x)
    x = way_out(b, x, table, o)
    for k, v in enumerate(b.inputs):
        b.inputs[k] = (v[0], v[1], [length if s == "length" else s for s in v[2]])
    ends = {"none": ["batch", length, o.hidden], "pooled": ["batch", 3]}.get(o.head, ["batch", length, o.vocab])
    b.nodes.append(onnx.helper.make_node("Identity", [x], ["y"]))
    b.outputs.insert(0, ("y", TensorProto.FLOAT, ends))
    model = parts.finish(b, f"seed {o.seed}")
    return parts.in_constants(model) if vars(o).get("constants") else model


def entrance(b: Builder, o: Drawn, length) -> tuple[str, str]:
    """The stream before the first layer, and the name of the embedding."""
    table = ""
    if o.source == "ids":
        b.inputs.append(("input_ids", TensorProto.INT64, ["batch", length]))
        table = b.hold(b.rng.standard_normal((o.vocab, o.hidden)).astype("f"), "embedding")
        ids = b.op("Clip", "input_ids", b.whole(0), b.whole(o.vocab - 1)) if vars(o).get("clipped") else "input_ids"
        x = b.op("Gather", table, ids, axis=0)
    else:
        width = o.hidden if o.source == "raw" else 5
        b.inputs.append(("x", TensorProto.FLOAT, ["batch", length, width]))
        x = b.linear("x", 5, o.hidden, o) if o.source == "features" else "x"
    if o.positions:
        rows = b.hold(parts.waves(o.fixed or REACH, o.hidden) if vars(o).get("waves") else b.rng.standard_normal((o.fixed or REACH, o.hidden)).astype("f"), "positions")
        if vars(o).get("clipped") and not o.fixed:
            rows = b.op("Gather", rows, b.op("Min", b.op("Range", b.whole(0), b.scalar(x, 1), b.whole(1)), b.whole(REACH - 1)), axis=0)
        elif not o.fixed:
            rows = b.op("Gather", rows, b.op("Range", b.whole(0), b.scalar(x, 1), b.whole(1)), axis=0) if o.share else b.slice(rows, 0, b.size(x, 1), 0)
        x = b.op("Add", x, rows)
    return x, table


def residuals(b: Builder, x: str, branches: list, norm, o: Drawn) -> str:
    for k, branch in enumerate(branches):
        b.spell(o.seed + (k if o.mixed else k % (len(branches) // o.layers)))
        y = branch(x=norm(x=x) if o.place != "after" else x)
        y = norm(x=y) if o.place == "around" else y
        y = b.op("Mul", y, b.vector(o.hidden, 0.5, 0.2)) if vars(o).get("layer_scale") else y
        x = b.op("Add", *((x, y) if b.toss() else (y, x)))
        x = norm(x=x) if o.place == "after" else x
    return x


def fused_residuals(b: Builder, x: str, branches: list, norm, o: Drawn) -> str:
    """Each sum with the norm behind it as one operator."""
    kind = "SkipLayerNormalization" if o.norm == "layer" else "SkipSimplifiedLayerNormalization"
    inner, stream = (norm(x=x), x) if o.place == "before" else (x, x)
    for k, branch in enumerate(branches):
        b.spell(o.seed + (k if o.mixed else k % 2))
        y = branch(x=inner)
        gains = [b.vector(o.hidden, 1.0, 0.3)] + [b.vector(o.hidden)] * (o.norm == "layer")
        bias = [b.vector(o.hidden)] * b.toss()
        if o.place == "before":
            inner, _, _, stream = b.op(kind, y, stream, *gains, *bias, domain=MS, epsilon=o.eps, outputs=4)
            b.nodes[-1].output[1] = b.nodes[-1].output[2] = ""
        else:
            inner = stream = b.op(kind, y, stream, *gains, *bias, domain=MS, epsilon=o.eps)
    return inner


def way_out(b: Builder, x: str, table: str, o: Drawn) -> str:
    if o.head == "tied":
        return b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0]))
    if o.head == "untied":
        return b.linear(x, o.hidden, o.vocab, o)
    if o.head == "pooled":
        first = b.op("Gather", x, b.whole(0), axis=1)
        pooled = b.op("Tanh", b.op("Gemm", first, b.weight(o.hidden, o.hidden), b.vector(o.hidden)))
        if vars(o).get("second"):  # another map of hidden's size, whose entries share out a whole: it stays where the first one follows
            shares = b.op("Softmax", b.op("Gemm", first, b.weight(o.hidden, o.hidden), b.vector(o.hidden)), axis=-1)
            return b.op("Add", *(b.op("Gemm", made, b.weight(o.hidden, 3), b.vector(3)) for made in (pooled, shares)))
        return b.op("Gemm", pooled, b.weight(o.hidden, 3), b.vector(3))
    return x


# --- feeds and growths -------------------------------------------------------------------------------------------------------------


def feeds_of(o: Drawn, model: onnx.ModelProto) -> list[Feeds]:
    """Two batches and lengths (one length where the graph has only one), padding in masks, caches filled and empty."""
    rng = np.random.default_rng([o.seed, 3])
    lengths = (o.fixed, o.fixed) if o.fixed else (7, 4)
    if o.form == "group-query" and o.cache:
        sizes = [(1, 3, 2), (3, 1, 4)]  # the operator takes several words behind a cache for one row only
    else:
        sizes = [(2, lengths[0], 0), (3, lengths[1], 5 if o.cache else 0)]
    return [one_feed(o, model, rng, *size) for size in sizes]


def one_feed(o: Drawn, model, rng, batch: int, length: int, past: int) -> Feeds:
    sizes = {"batch": batch, "length": length, "past": past, "total": length + past}
    feeds = {}
    for v in model.graph.input:
        shape = [sizes.get(d.dim_param, d.dim_value) for d in v.type.tensor_type.shape.dim]
        if v.name == "input_ids":
            feeds[v.name] = rng.integers(0, o.vocab, shape)
        elif v.name == "attention_mask":
            feeds[v.name] = np.ones(shape, np.int64)
            if o.form != "group-query":
                feeds[v.name][1:, -(length // 2):] = 0
        else:
            feeds[v.name] = rng.standard_normal(shape).astype("f")
    return feeds


def growths(o: Drawn) -> dict[str, dict]:
    """Every growth that is asked of a graph, by name."""
    rng = np.random.default_rng([o.seed, 4])
    step = 16 if o.form == "group-query" and o.rotary else 8 if o.form == "group-query" else 2 if o.rotary else int(rng.integers(1, 4))
    group = o.heads // o.kv
    heads = {} if o.heads == 1 else dict(heads=o.heads + 1) if o.kv in (1, o.heads) else dict(heads=group * (o.kv + 1), kv_heads=o.kv + 1)
    more = int(rng.integers(1, 8))
    out = {"hidden": dict(hidden=o.hidden + more, only_hidden=True), "double": dict(hidden=2 * o.hidden, only_hidden=True), "family": dict(hidden=2 * o.hidden),
           "ffn": dict(ffn=o.ffn + more), "heads": heads, "head_dim": dict(head_dim=o.head_dim + step), "together": dict(hidden=o.hidden + more, only_hidden=True, ffn=o.ffn + 3, head_dim=o.head_dim + step) | heads}  # fmt: skip
    if not heads:  # an axis of one entry is none
        del out["heads"]
    if 1 < o.kv < o.heads:
        out["kv_heads"] = dict(kv_heads=o.heads)
    if o.layers > 1:
        out["layers"] = dict(layers=o.layers + 1)
        out["deeper"] = dict(layers=o.layers + 1, hidden=2 * o.hidden, only_hidden=True, ffn=o.ffn + 1)
    return out


def some(o: Drawn, count: int) -> list[str]:
    names = list(growths(o))
    rng = np.random.default_rng([o.seed, 5])
    return [names[i] for i in rng.permutation(len(names))[:count]]


# --- one seed ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of one growth: exact, near, refused, WRONG or CRASH; or of a graph that ONNX Runtime or onnxgrow did not take."""

    seed: int
    growth: str
    kind: str
    error: float = 0.0
    reason: str = ""


def check(seed: int, count: int = PER_SEED, only: list[str] | None = None, **fixed) -> list[Verdict]:
    """Growths of one graph; `fixed` as in `draw`."""
    o = draw(seed, **fixed)
    model = build(o)
    data, feeds = model.SerializeToString(), feeds_of(o, model)
    try:
        runner = growing.session(data, optimised=False)
        names = [v.name for v in runner.get_outputs()]
        wanted = [dict(zip(names, runner.run(names, feed), strict=True)) for feed in feeds]
    except Exception as error:  # noqa: BLE001
        return [Verdict(seed, "source", "no graph", reason=first_line(error))]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "source.onnx"
        path.write_bytes(data)
        try:
            opened = Model(path)
        except Exception as error:  # noqa: BLE001
            return [verdict_of(seed, "open", error)]
        return [grow(seed, label, opened, growths(o)[label], feeds, wanted, Path(folder)) for label in only or some(o, count)]


def grow(seed: int, label: str, opened: Model, request: dict, feeds: list[Feeds], wanted: list[dict], folder: Path) -> Verdict:
    try:
        plan = opened.plan(**request, seed=seed)
        grown = growing.written(plan, folder)
        error = difference(plan, grown, feeds, wanted)
    except Exception as problem:  # noqa: BLE001
        return verdict_of(seed, label, problem)
    kind, bound = plan.certificate.kind, plan.certificate.bound
    if kind == "exact":
        good, else_ = error <= TOLERANCE or error <= growing.ROUNDING * growing.rounding(opened.path, feeds, wanted), "WRONG"
    else:
        good, else_ = bound is not None and error <= NEAR * max(bound, LEAST.get(label, 0.125)), "FAR" if kind == "near" and bound is not None else "WRONG"
    return Verdict(seed, label, kind if good else else_, error, "" if good else f"{kind}, off by {error:.1e}, bound {bound}")


def difference(plan: Plan, grown: Path, feeds: list[Feeds], wanted: list[dict]) -> float:
    """Largest difference of any output, relative to its largest value, over all feeds; as in `growing.difference`.

    Caches of new layers hold noise, and what comes out of them is not compared.
    """
    runner, noise, worst = growing.session(grown.read_bytes(), optimised=False), np.random.default_rng(0), 0.0
    twins, given = plan.twins, [v.name for v in runner.get_outputs()]
    if not twins.outputs.keys() <= set(given) or sorted(twins.outputs.values()) != sorted(wanted[0]):
        return float("inf")
    for feed, want in zip(feeds, wanted, strict=True):
        fed = {name: growing.spread(feed[old], growing.map_of(plan, name), noise)[0] for name, old in twins.inputs.items()}
        fresh = {name for name in fed if (out := name.replace("past_", "present_")) in given and out not in twins.outputs}
        fed |= {name: noise.standard_normal(fed[name].shape).astype("f") for name in fresh}
        for name, got in zip(twins.outputs, runner.run(list(twins.outputs), fed), strict=True):
            old = want[twins.outputs[name]]
            new, defined = growing.spread(old, growing.map_of(plan, name))
            if got.shape != new.shape or not np.isfinite(got[defined]).all():
                return float("inf")
            worst = max(worst, float(np.abs(got - new)[defined].max() / np.abs(old).max()))
    return worst


def verdict_of(seed: int, label: str, error: Exception) -> Verdict:
    kind = "refused" if isinstance(error, OnnxgrowError) and not isinstance(error, Unforeseen) else "CRASH"
    return Verdict(seed, label, kind, reason=error.what if isinstance(error, OnnxgrowError) else first_line(error))


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"


# --- many seeds --------------------------------------------------------------------------------------------------------------------


def report(found: list[Verdict], seconds: float, seeds: int) -> str:
    kinds = Counter(v.kind for v in found)
    lines = [f"{seeds} graphs, {len(found)} growths in {seconds:.0f} s: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())]
    for kind in ("exact", "near"):
        errors = [v.error for v in found if v.kind == kind] or [0.0]
        lines.append(f"{kind}: median {np.median(errors):.1e}, largest {max(errors):.1e}")
    for kind in ("refused", "no graph"):
        reasons = defaultdict(list)
        for v in found:
            if v.kind == kind:
                reasons[re.sub(r"[A-Za-z_]*\d+[\w./]*", "#", v.reason)].append(v)
        lines.append(f"{kind}: {100 * kinds[kind] / max(1, len(found)):.1f} %")
        lines += [f"  {len(vs):6} {reason[:200]} (e.g. {', '.join(f'{v.seed} {v.growth}' for v in vs[:3])})" for reason, vs in
                  sorted(reasons.items(), key=lambda item: -len(item[1]))]  # fmt: skip
    lines += [f"{v.kind} seed {v.seed} {v.growth}: {v.reason}" for v in found if v.kind in ("WRONG", "CRASH", "FAR")]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.random_graphs", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:500", help="FROM:TO, or one seed, with all its growths")
    parser.add_argument("--growths", type=int, default=PER_SEED, help="of each graph")
    parser.add_argument("--keep", type=Path, help="file of JSON lines to which each verdict is added, and whose seeds are not tried again")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--save", type=Path, help="write the graph of one seed here")
    args = parser.parse_args()
    if ":" not in args.seeds:
        o = draw(int(args.seeds))
        print(o)
        if args.save:
            onnx.save(build(o), args.save)
        print(*check(o.seed, 99), sep="\n")
        return
    seeds, start = range(*map(int, args.seeds.split(":"))), time.time()
    found = [Verdict(**json.loads(line)) for line in args.keep.read_text().splitlines()] if args.keep and args.keep.exists() else []
    done = {v.seed for v in found}
    with ProcessPoolExecutor(args.workers) as pool, open(args.keep or os.devnull, "a") as keep:
        for verdicts in pool.map(partial(check, count=args.growths), [seed for seed in seeds if seed not in done], chunksize=4):
            keep.writelines(json.dumps(asdict(v)) + "\n" for v in verdicts)
            keep.flush()
            found += verdicts
    print(report(found, time.time() - start, len(seeds)))


if __name__ == "__main__":
    main()
