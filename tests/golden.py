"""What growths come to, kept in tests/golden.json: a change of a plan that nobody meant is seen at once, and one that was meant is shown by its diff.

That a growth is right is tested elsewhere, in ONNX Runtime and PyTorch; here it is only the same as before. So these tests see in seconds what
others see in minutes or by chance: a fill that moves, a repair that goes to another place, an epsilon, a name.

    python -m tests.golden --write          after a change that is meant

Sources are made by code in the repository, never by an exporter. Of each weight that is another than before one number is kept, its product with fixed ones; numbers are
compared with a tolerance, since additions may come in another order on another machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from onnxgrow.plan import Plan
from tests import loop_models, random_graphs, test_fused_experts

KEPT = Path(__file__).with_name("golden.json")
MODELS = Path(__file__).parents[1] / "onnxgrow" / "models"
SEEDS, EACH = range(60), 3  # of tests/random_graphs.py, and growths of each
FEW = range(100, 106)  # of the same, with choices that are rarely drawn
FIXED = {
    "fromone": dict(from_one=True), "nogain": dict(gain=False, norm="layer-spelled", offset=True), "nogainrms": dict(gain=False, norm="rms-spelled"), "behind": dict(place="after", norm="layer-spelled"),
    "around": dict(place="around"), "onegain": dict(one_gain=True), "lora": dict(form="plain", lora=2), "mixed": dict(mixed=True), "headnorm": dict(form="plain", head_norm="rms-spelled"),
    "folded": dict(folded=True, norm="layer-spelled"), "tied": dict(source="ids", head="tied", gain=False), "looped": dict(form="plain", cache=True),
    "parallel": dict(form="plain", parallel=True, act="silu"), "length": dict(form="plain", head_norm="length"), "constants": dict(constants=True, share=True),
    "layerscale": dict(layer_scale=True, norm="layer", place="before", skip=False, form="plain", opset=18), "layerscalespelled": dict(layer_scale=True, norm="layer-spelled", place="before", skip=False),
    "stackedparallel": dict(form="plain", parallel=True, stacked="before", act="silu"), "divided": dict(divided=True, norm="layer-spelled"), "dividedrms": dict(divided=True, norm="rms-spelled"),
    "fromtwo": dict(from_two=True), "second": dict(source="ids", head="pooled", second=True),
    "foldedafter": dict(folded=True, norm="layer-spelled", place="after", skip=False), "before": dict(form="plain", stacked="before"), "inside": dict(form="plain", stacked="inside"), "between": dict(form="merged", stacked="between"),
    "even": dict(place="after", skip=False, even=True), "words": dict(source="ids", positions=True, clipped=True, cache=False, fixed=0),
    "waves": dict(source="ids", positions=True, waves=True, clipped=True, cache=False, fixed=0, head="untied"),
}  # fmt: skip
RARE = [  # refused, for one reason or another, or nearly so
    ("random-327", "head_dim pad"), ("random-327", "head_dim copy"), ("random-306", "hidden copy"), ("random-305", "double pad"), ("random-318", "kv_heads copy"), ("tied-301", "double copy"),
    ("parallel-300", "head_dim copy"), ("before-304", "head_dim copy"), ("between-305", "head_dim pad"), ("second-300", "family"), ("second-301", "family"),
    ("random-340", "twice copy"), ("foldedafter-300", "hidden"), ("foldedafter-308", "hidden"), ("behind-300", "hidden"), ("behind-308", "hidden"),
]
TWICE = range(320, 330)  # seeds whose heads get twice as long by copies
LENGTHS = {"twice": lambda o: dict(head_dim=2 * o.head_dim), "vocab": lambda o: dict(vocab=o.vocab + 5), "multiple": lambda o: dict(vocab=o.vocab + 1, pad_vocab_to=8), "positions": lambda _: dict(positions=31)}
WAYS = {"pad": dict(method="pad"), "copy": dict(method="copy"), "naive": dict(method="naive"), "wake": dict(wake=0.02), "noise": dict(init_std=0.1, seed=5), "zeros": dict(init_std=0.0)}
ASKED = range(200, 236)  # seeds that grow in one of these ways
CLOSE = 2e-5  # of a projection, per length of the weight
CARRIED: dict[str, dict[str, dict]] = {  # model of the package -> growths
    "tiny-llama": {"layers": dict(layers=6), "gate": dict(layers=6, depth_method="gate", placement="end"), "random": dict(layers=5, block_init="random", placement="after:1"), "vocab": dict(vocab=300),
                   "drawn": dict(vocab=300, vocab_init="random"), "zero": dict(vocab=300, vocab_init="zero"), "copy": dict(ffn=480, method="copy"), "naive": dict(hidden=144, method="naive"),
                   "stack": dict(layers=6, depth_method="stack"), "wide": dict(hidden=144, ffn=300, heads=8), "seed": dict(ffn=300, seed=7, init_std=0.1), "odd": dict(hidden=97, only_hidden=True),
                   "longer groups": dict(heads=12, kv_heads=4)},
    "tiny-gpt": {"layers": dict(layers=6, placement="start"), "positions": dict(positions=160), "hidden": dict(hidden=104, only_hidden=True), "twice": dict(hidden=192), "copy": dict(hidden=192, method="copy"),
                 "head_dim": dict(head_dim=40), "wake": dict(hidden=112, wake=0.01), "vocab": dict(vocab=300, pad_vocab_to=64), "all": dict(hidden=112, ffn=401, layers=5, positions=140)},
}  # fmt: skip
LOOPS: dict[str, tuple[Callable[[Path], Path], dict]] = {
    "scan of layers": (lambda p: loop_models.over_layers(p, 4), dict(hidden=24)), "loop of layers": (lambda p: loop_models.over_layers(p, 4, rms=True, loop=True), dict(hidden=24)),
    "scan over time": (loop_models.over_time, dict(hidden=24)), "scan over heads": (lambda p: loop_models.over_heads(p, True, 0), dict(hidden=24)),
}


@cache
def cases() -> list[tuple[str, str]]:
    """(source, growth) of all that is kept."""
    random = [(f"random-{seed}", label) for seed in SEEDS for label in random_graphs.some(random_graphs.draw(seed), EACH)]
    experts = [(f"experts-{kind}", growth) for kind in test_fused_experts.KINDS for growth in test_fused_experts.GROWTHS]
    random += [(f"{kind}-{seed}", label) for kind in FIXED for seed in FEW for label in random_graphs.some(random_graphs.draw(seed, **FIXED[kind]), 2)]
    random += [(f"{kind}-{seed}", label) for kind in ("words", "waves") for seed in FEW for label in LENGTHS if label != "twice"]
    ways = [(seed, label, [*WAYS][(seed + 3 * k) % len(WAYS)]) for seed in ASKED for k, label in enumerate(random_graphs.some(random_graphs.draw(seed), 2))]
    random += [(f"random-{seed}", f"{label} {way}") for seed, label, way in ways]
    random += [*RARE, *((f"random-{seed}", "twice copy") for seed in TWICE)]
    return [*random, *((name, label) for name, growths in CARRIED.items() for label in growths), *experts, *((f"loop-{name}", "hidden") for name in LOOPS)]


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Of the sources; gone with the process."""
    return tempfile.TemporaryDirectory(prefix="onnxgrow-golden-")


@lru_cache(2)
def _opened(source: str) -> tuple[Model, Callable[[str], dict]]:
    """A source, and the request behind the name of a growth."""
    kind, _, name = source.partition("-")
    path = Path(_folder().name) / f"{source}.onnx"
    if kind == "tiny":
        return Model(MODELS / f"{source}.onnx"), CARRIED[source].__getitem__
    if kind == "loop":
        return Model(LOOPS[name][0](path)), lambda _: LOOPS[name][1]
    if kind == "experts":
        onnx.save(test_fused_experts.model_of(name), path)
        return Model(path), test_fused_experts.GROWTHS.__getitem__
    drawn = random_graphs.draw(int(name), **FIXED.get(kind, {}))
    onnx.save(random_graphs.build(drawn), path)
    growths = random_graphs.growths(drawn) | {label: make(drawn) for label, make in LENGTHS.items()}
    return Model(path), lambda growth: growths[(words := growth.split())[0]] | WAYS.get(words[-1], {})


def found(source: str, growth: str) -> dict:
    """What a growth comes to, as it is kept."""
    try:
        model, request = _opened(source)
        plan = model.plan(**request(growth))
        with tempfile.TemporaryDirectory() as folder:
            proto = onnx.load(plan.write(Path(folder) / "grown.onnx", validate=False, threads=1).path)
    except OnnxgrowError as refusal:
        return {"refused": f"{type(refusal).__name__}: {refusal.what}", "node": refusal.node, "hint": refusal.hint}
    certificate = plan.certificate
    old, weights = ({t.name: numpy_helper.to_array(t) for t in p.graph.initializer} for p in (onnx.load(model.path), proto))
    floats = {name: x for name, x in weights.items() if x.dtype.kind == "f" and x.size}
    return {"told": digest([_plain(json.dumps(plan.to_json()))]), "maps": digest(_maps(plan)), "certificate": certificate.kind, "bound": certificate.bound and float(f"{certificate.bound:.3g}"), "parameters": plan.new_parameters, "dead": plan.dead_parameters,
            "nodes": len(proto.graph.node), "graph": digest(_lines(proto.graph, weights.keys() - floats.keys())),
            "record": digest(sorted(_plain(p.value) for p in proto.metadata_props)),
            "weights": {name: [*x.shape, float(f"{projection(x):.6g}")] for name, x in floats.items() if name not in old or not np.array_equal(x, old[name])}}


def _maps(plan: Plan) -> list[str]:
    """Where the entries of every fourth tensor land."""
    tensors = [*plan.roles.structure.dims][::4]
    return [f"{t} {a.new} {digest([str(a.source.tolist()), str(a.fill.tolist())])}" for t in tensors for a in plan.axis_maps(t) if not a.is_identity]


def projection(x: np.ndarray) -> float:
    """A weight times fixed numbers between -0.5 and 0.5, that know nothing of its shape."""
    return float(x.ravel().astype(np.float64) @ ((np.arange(1, x.size + 1) * 0.6180339887498949) % 1 - 0.5))


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _lines(graph: onnx.GraphProto, whole: set[str]) -> list[str]:
    """Nodes, what is fed and given, and whole numbers that are stored; floats in attributes as far as six digits go."""
    nodes = [f"{n.domain}:{n.op_type} {list(n.input)} {list(n.output)} {sorted(map(_attribute, n.attribute))}" for n in graph.node]
    ends = [f"{v.name} {v.type.tensor_type.elem_type} {[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]}" for v in (*graph.input, *graph.output)]
    return nodes + ends + [f"{t.name} {numpy_helper.to_array(t).tolist()}" for t in graph.initializer if t.name in whole]


def _attribute(a: onnx.AttributeProto) -> str:
    if a.type == onnx.AttributeProto.GRAPH:
        return f"{a.name}={_lines(a.g, set())}"
    value = onnx.helper.get_attribute_value(a)
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value).tolist()
    return f"{a.name}={_plain(str(value))}"


def _plain(text: str) -> str:
    """Without what says where, by which version and from which bytes: long hexadecimal words, and floats beyond six digits."""
    text = re.sub(r"[0-9a-f]{32,}", "", text)
    return re.sub(r"-?\d+\.\d+(e[-+]?\d+)?", lambda m: f"{float(m[0]):.6g}", text)


def differences(now: dict, then: dict) -> list[str]:
    """What is not as it was."""
    if now.keys() != then.keys():
        return [f"{now.get('refused', 'grown')}, not {then.get('refused', 'grown')}"]  # nothing else is said of these
    out = [f"{key}: {now[key]}, not {then[key]}" for key in now if key != "weights" and now[key] != then[key]]
    new, old = now.get("weights", {}), then.get("weights", {})
    out += [f"weight {name}: {new.get(name)}, not {old.get(name)}" for name in sorted({*new, *old}) if not _close(new.get(name), old.get(name))]
    return out


def _close(a: list | None, b: list | None) -> bool:
    if a is None or b is None or a[:-1] != b[:-1]:
        return False
    return abs(a[-1] - b[-1]) <= CLOSE * max(1.0, float(np.prod(a[:-1])) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep what growths come to now")
    options = parser.parse_args()
    then = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    now = {f"{source} {growth}": found(source, growth) for source, growth in cases()}
    for name, kept in now.items():
        for line in differences(kept, then.get(name, {})):
            print(f"{name}: {line}")
    if options.write:
        KEPT.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(kept)}" for name, kept in now.items()) + "\n}\n")


if __name__ == "__main__":
    main()
