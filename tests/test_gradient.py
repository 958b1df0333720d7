"""Nothing dead: every new parameter gets a gradient within three optimizer steps, and where that cannot be, the plan names it.

The gradients are PyTorch's, on the grown ONNX graph itself (tests/torch_runner.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxgrow.axismap import Fill
from onnxgrow.model import Model
from tests import growing
from tests.growing import Case
from tests.textgraph import model_of
from tests.torch_runner import TorchModel, live_fraction
from tests.zoo_models import POSITIONS, SPECS

ALIVE = 0.99
RELU = 0.97  # a random unit before a ReLU may be silent for every token that we feed: more of them, and some tolerance
PADDED = ("hidden-only", "hidden-family", "ffn", "heads", "heads-per-kv", "kv_heads", "head_dim", "together")
COPIED = ("hidden-double", "copy-hidden", "copy-ffn", "copy-heads", "copy-head_dim")
USUAL = ("gpt2", "llama", "bert-mlm", "vit", "t5-encoder", "qwen3", "gemma", "opt", "gpt-neox", "phi")
ASLEEP = [("qwen3", "head_dim"), ("qwen3", "together"), ("qwen3-past", "head_dim"), ("qwen3-past", "together")]


def feeds(name: str) -> growing.Feeds:
    """Every id and every position, as far as a model has them."""
    spec, batch = SPECS[name], 64 if name.startswith("opt") or name == "t5" else 4
    if spec.tags & {"past", "cross"}:
        return growing.arrays(spec.example(2 * batch, POSITIONS // 2 - 1, seed=3))
    if name.startswith("torch-encoder"):  # one exporter fixes its length
        return growing.arrays(spec.example(6 * batch, 7, seed=3))
    return growing.arrays(spec.example(batch, POSITIONS - 2 * (name in ("mpnet", "roberta")), seed=3))  # two positions are for padding


def is_unfed(name: str, shape: tuple[int, ...]) -> bool:
    """A table of positions of which these feeds reach some rows only; it is measured in the other models."""
    rows = {POSITIONS, SPECS[name].sizes.get("positions")}
    return bool(rows & {*shape[:-1]}) and (bool(SPECS[name].tags & {"past", "cross"}) or name.startswith("torch-encoder"))


def is_table(plan, name: str) -> bool:
    """Rotary frequencies, which go on as they began: nobody trains them."""
    r = plan.decisions.applied.recipes.get(name)
    return r is not None and r.free == "continue" and any((axis.fill == growing.Fill.FREE).any() for axis in r.axes)


def measure(plan, case: Case, folder) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The new entries of each initializer, and how many of them got no gradient, where any."""
    path = growing.written(plan, folder)
    regions = {name: mask for name, mask in growing.new_regions(plan).items() if not is_table(plan, name) and not is_unfed(case.name, mask.shape)}
    noise = np.random.default_rng(0) if "cross" in SPECS[case.name].tags else None  # what an encoder says is no zero
    live = live_fraction(path, regions, growing.grown_feeds(plan, feeds(case.name), noise), constant=lambda name, _: is_table(plan, name))
    dead = {name: round((1 - live[name]) * mask.sum()) for name, mask in regions.items()}
    return regions, {name: count for name, count in dead.items() if count}


def cases(labels: tuple[str, ...]) -> list:
    """Growths by the default plan, or by copies; those of the usual exports run by default."""
    out = []
    for case in growing.every_case():
        for label in labels:
            if label in growing.growths(case.name) and (case.name, label) not in ASLEEP:
                marks = [] if case.name in USUAL and case == growing.usual(case.name) else [pytest.mark.slow]
                bug = growing.known_bug(case, label)
                marks += [pytest.mark.xfail(reason=bug, strict=True)] if bug else []
                out.append(pytest.param(case, label, id=f"{case}-{label}", marks=marks))
    return out


def check_alive(case: Case, label: str, folder) -> None:
    plan = growing.plan_of(case, label)
    regions, dead = measure(plan, case, folder)
    count = sum(mask.sum() for mask in regions.values())
    assert count > 0 and plan.dead_parameters == 0
    assert sum(dead.values()) <= (1 - (RELU if case.name in ("t5", "opt", "opt-past") else ALIVE)) * count, dead


@pytest.mark.parametrize(("case", "label"), cases(PADDED))
def test_new_parameters_learn(case, label, tmp_path):
    check_alive(case, label, tmp_path)


@pytest.mark.parametrize(("case", "label"), cases(COPIED))
def test_copies_learn(case, label, tmp_path):
    check_alive(case, label, tmp_path)


@pytest.mark.parametrize("label", ["head_dim", "together"])
@pytest.mark.parametrize("name", ["torch-encoder-prenorm", "torch-encoder-postnorm", "falcon", "falcon-kv2"])
def test_packed_projections_learn(name, label, tmp_path):
    """Queries, keys and values lie in one axis as a sum times head_dim: keys are zero in its new entries, queries free."""
    case = growing.usual(name)
    check_alive(case, label, tmp_path)
    plan = growing.plan_of(case, label)
    fills = {tuple(np.unique(axis.fill)) for r in plan.decisions.applied.recipes.values() for axis in r.axes}
    assert (Fill.OLD, Fill.FREE, Fill.ZERO) in fills
    if growing.promised(name, label) == "exact":
        assert plan.certificate.kind == "exact" and growing.difference(plan, tmp_path / "grown.onnx", case) <= growing.TOLERANCE


def stacked(folder: Path, **constants: np.ndarray) -> Path:
    """Attention whose queries, keys and values are made by one matrix, stacked along an axis of their own."""
    lines = """
        x = Gather table i
        qkv = Einsum x stack
        q = Gather qkv zero
        k = Gather qkv one
        v = Gather qkv two
        qh = Transpose q
        kh = Transpose k
        vh = Transpose v
        scores = MatMul qh kh
        scaled = Mul scores scale
        p = Softmax scaled
        o = MatMul p vh
        oh = Transpose o
        flat = Reshape oh shape
        y = MatMul flat out
        z = Add x y
        logits = MatMul z head
    """
    rng = np.random.default_rng(0)
    weights = {n: 0.3 * rng.standard_normal(shape, np.float32) for n, shape in
               {"table": (11, 32), "stack": (32, 3, 4, 8), "out": (32, 32), "head": (32, 11)}.items()}  # fmt: skip
    numbers = dict(zero=np.int64(0), one=np.int64(1), two=np.int64(2), scale=np.float32(8**-0.5), shape=np.array([0, 0, 32]))
    cut, turn = dict(axis=2), dict(perm=[0, 2, 1, 3])
    proto = model_of(lines, {"i": [2, 5]}, weights | numbers | constants, qkv=dict(equation="bse,eghd->bsghd"), q=cut, k=cut, v=cut,
                     qh=turn, kh=dict(perm=[0, 2, 3, 1]), vh=turn, oh=turn)  # fmt: skip
    onnx.save(proto, folder / "stacked.onnx")
    return folder / "stacked.onnx"


@pytest.mark.parametrize(("size", "wake", "dead", "kind"), [(11, 0.0, 2 * 32 * 4 * 3, "exact"), (16, 0.0, 0, "exact"), (11, 1e-3, 0, "near")])
def test_a_stack_that_no_map_can_tell_apart(size, wake, dead, kind, tmp_path):
    """One map along head_dim serves queries, keys and values, so all are zero; at a whole multiple copies wake them, else noise."""
    plan = Model(stacked(tmp_path)).plan(head_dim=size, wake=wake)
    path, ids = growing.written(plan, tmp_path), {"i": np.arange(10).reshape(2, 5)}
    regions = growing.new_regions(plan)
    live = live_fraction(path, regions, ids)
    assert plan.certificate.kind == kind
    assert plan.dead_parameters == dead == sum(round((1 - live[name]) * mask.sum()) for name, mask in regions.items())
    want, got = (growing.session(p).run(None, ids)[0] for p in (tmp_path / "stacked.onnx", path))
    assert np.abs(want - got).max() <= (growing.TOLERANCE if kind == "exact" else 0.01) * np.abs(want).max()


@pytest.mark.parametrize("name", ["llama", "vit", "bert-cls", "qwen3"])
def test_the_count_of_new_parameters_is_true(name, tmp_path):
    """What the plan counts is what the file holds more."""
    case = Case(name, "torchscript", "sdpa")
    for label in growing.growths(name):
        plan = growing.plan_of(case, label)
        old, new = (sum(p.numel() for p in TorchModel(path).parameters.values()) for path in (case.path, growing.written(plan, tmp_path)))
        assert plan.new_parameters == new - old == sum(mask.sum() for mask in growing.new_regions(plan).values()), label


@pytest.mark.parametrize(("name", "label"), ASLEEP)
@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
def test_the_plan_names_exactly_what_is_dead(name, label, exporter, tmp_path):
    """Queries and keys are normed along head_dim, so both sides of new entries are zero: neither ever moves."""
    case = Case(name, exporter)
    plan = growing.plan_of(case, label)
    _, dead = measure(plan, case, tmp_path)
    weights = plan.model.roles.structure.graph.weights
    assert dead and {weights[tensor]: count for tensor, count in plan.decisions.dead.items()} == dead
    assert plan.dead_parameters == sum(dead.values())


@pytest.mark.parametrize("name", ["qwen3", "qwen3-past"])
def test_a_little_noise_wakes_them(name, tmp_path):
    case = Case(name, "torchscript")
    plan = growing.plan_of(case, "head_dim", wake=1e-3)
    _, dead = measure(plan, case, tmp_path)
    assert not dead and plan.dead_parameters == 0 and plan.certificate.kind == "near"
    assert growing.TOLERANCE < growing.difference(plan, tmp_path / "grown.onnx", case) < 0.01


def test_at_a_whole_multiple_copies_wake_them(tmp_path):
    """There copies are exact and alive, so the default plan takes them."""
    case = Case("qwen3", "torchscript", "sdpa")
    plan = growing.opened(case.path).plan(head_dim=20)
    regions, dead = measure(plan, case, tmp_path)
    assert plan.certificate.kind == "exact" and plan.dead_parameters == 0 and not dead and regions
    assert growing.difference(plan, tmp_path / "grown.onnx", case) <= growing.TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_naive_padding_starves(name, tmp_path):
    """The baseline's plain zeros on both sides of a unit never learn: what the measurement must be able to show."""
    case = growing.usual(name)
    plan = growing.opened(case.path).plan(ffn=101, method="naive")
    regions, dead = measure(plan, case, tmp_path)
    assert sum(dead.values()) > 0.4 * sum(mask.sum() for mask in regions.values())


def test_copies_separate(tmp_path):
    """Copies must not stay equal: after a step, an old hidden unit and its copy get different gradients."""
    case = Case("gpt2", "torchscript")
    plan = growing.plan_of(case, "copy-hidden")
    path = growing.written(plan, tmp_path)
    model = TorchModel(path)
    model(**growing.grown_feeds(plan, feeds("gpt2")))["logits"].square().mean().backward()
    table = next(name for name, r in plan.decisions.applied.recipes.items() if tuple(r.old_shape) == (99, 32))
    gradient = model.parameters[table].grad.numpy()
    assert np.abs(gradient[:, :32] - gradient[:, 32:]).max() > 1e-2 * np.abs(gradient).max()
