"""More experts: the same function, the same choices, and new experts that wait until their scores are raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.errors import GraphError, SizeError
from onnxgrow.experts import LOW
from onnxgrow.mixture import RISING
from onnxgrow.model import Model
from tests import growing
from tests.growing import Case
from tests.moe import Way, exported
from tests.torch_runner import TorchModel, live_fraction
from tests.zoo_sizes import CHOSEN, EXPERTS, FFN, HIDDEN, LAYERS

ZOO = [Case(name, exporter, "sdpa") for name in ("moe-batched", "moe-listed") for exporter in ("dynamo", "torchscript")]
WAYS = [Way("before", True), Way("whole"), Way("whole", True), Way("after"), Way("after", True), Way("sigmoid"), Way("sigmoid", True), Way("corrected"),
        Way("before", False, "einsum"), Way("before", False, "onehot"), Way("after", False, "fetched"), Way("before", True, "fetched"),
        Way("before", False, "equal"), Way("after", True, "equal"), Way("before", False, "gather"), Way("corrected", True, "gather")]  # fmt: skip
BY_DYNAMO = [Way("after"), Way("before", False, "equal"), Way("before", False, "onehot")]  # in the short run: an export takes many seconds
GROWTHS = [dict(experts=6), dict(experts=8), dict(experts=7, hidden=45, only_hidden=True, ffn=81), dict(hidden=64, experts=8, heads=6)]
WIDTHS = [dict(hidden=45, only_hidden=True), dict(hidden=48), dict(ffn=101), dict(heads=5, head_dim=11)]


def slow_unless(usual: bool):
    return () if usual else pytest.mark.slow


def every_case(growths: list[dict]) -> list:
    """Both mixtures of the zoo by both exporters, other ways by one of them unless slow tests run."""
    zoo = [pytest.param(lambda c=c: c, g, id=f"{c}-{told(g)}") for c in ZOO for g in growths]
    return zoo + [pytest.param(lambda w=w, e=e: exported(w, e), g, id=f"{w}-{e}-{told(g)}", marks=slow_unless(e == ("dynamo" if w in BY_DYNAMO else "torchscript") and g == growths[i % len(growths)]))
                  for i, w in enumerate(WAYS) for e in ("torchscript", "dynamo") for g in growths]


def told(growth: dict) -> str:
    return "-".join(f"{k}{v}" for k, v in growth.items())


def mixture_of(case: Case) -> Model:
    return growing.opened(case.path)


@pytest.mark.parametrize(("case", "growth"), every_case(GROWTHS))
def test_more_experts_are_the_same_function(case, growth, tmp_path):
    case = case()
    plan = mixture_of(case).plan(**growth)
    path = growing.written(plan, tmp_path)
    assert plan.certificate.kind == "exact" and plan.dead_parameters == 0
    assert growing.difference(plan, path, case) <= growing.TOLERANCE
    growing.check_sound(path, growing.grown_feeds(plan, growing.feeds_of(case)[-1]))


@pytest.mark.parametrize(("case", "growth"), every_case(WIDTHS))
def test_width_grows_in_a_mixture(case, growth, tmp_path):
    case = case()
    plan = mixture_of(case).plan(**growth)
    path = growing.written(plan, tmp_path)
    assert plan.certificate.kind == "exact" and plan.dead_parameters == 0 and plan.asleep_parameters == 0
    assert growing.difference(plan, path, case) <= growing.TOLERANCE
    assert not plan.certificate.reasons


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case.exporter == "dynamo")) for case in ZOO], ids=str)
def test_static_exports_and_other_seeds(case, tmp_path):
    case = Case(case.name, case.exporter, "sdpa", static=True, seed=1)
    plan = mixture_of(case).plan(experts=6, seed=5)
    assert growing.difference(plan, growing.written(plan, tmp_path), case) <= growing.TOLERANCE


# Routing


def run_with(path: Path, names: list[str], feeds: growing.Feeds) -> list[np.ndarray]:
    """Tensors inside a graph."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(names, feeds)


@pytest.mark.parametrize("case", [*ZOO[:3], Way("after"), Way("sigmoid"), Way("whole", True), Way("corrected", True, "gather")], ids=str)
def test_the_same_experts_are_chosen(case, tmp_path):
    case = case if isinstance(case, Case) else exported(case)
    plan = mixture_of(case).plan(experts=8)
    path = growing.written(plan, tmp_path)
    chosen = [n.output[1] for n in onnx.load(case.path).graph.node if n.op_type == "TopK"]
    assert len(chosen) == LAYERS
    for feeds in growing.feeds_of(case):
        for old, new in zip(run_with(case.path, chosen, feeds), run_with(path, chosen, feeds), strict=True):
            assert np.array_equal(old, new) and new.shape[-1] == CHOSEN


@pytest.mark.parametrize("op", sorted(RISING))
def test_rising_operators_keep_low_scores_low(op):
    x = np.r_[np.float32(LOW), np.linspace(0 if op == "Sqrt" else -90, 90, 99, dtype=np.float32)]
    if op == "Sqrt":
        x[0] = 0  # what Softplus makes of it
    node = helper.make_node(op, ["x"], ["y"])
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [100]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", io[:1], io[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (y,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert (y[0] <= y).all() and np.isfinite(y).all()


# What new experts hold


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_the_count_of_new_parameters_is_true(case, tmp_path):
    plan = mixture_of(case).plan(experts=6)
    old, new = (sum(p.numel() for p in TorchModel(path, lambda name, value: value.ndim > 4).parameters.values())
                for path in (case.path, growing.written(plan, tmp_path)))  # fmt: skip
    assert plan.new_parameters == new - old
    assert plan.asleep_parameters == plan.new_parameters - LAYERS * EXPERTS  # an offset of zero for each old expert learns at once


def test_new_experts_start_as_old_ones_with_routes_of_their_own(tmp_path):
    case = ZOO[0]
    path = growing.written(mixture_of(case).plan(experts=6), tmp_path)
    grown = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    up = grown["experts.0.up"]
    assert np.array_equal(up[4:], up[:2])
    (router,) = [w for n, w in grown.items() if w.shape == (HIDDEN, 6) and n == plan_router(case, 0)]
    assert np.linalg.matrix_rank(router) == 6
    (offset,) = [w for n, w in grown.items() if n.startswith("linear_4_offset")]
    assert offset.tolist() == [0, 0, 0, 0, LOW, LOW]


@pytest.mark.parametrize("way", [Way("after", False, "fetched"), Way("before", False, "einsum")], ids=str)
def test_no_new_expert_is_silent(way, tmp_path):
    """Once one is chosen it does what the old one does: no part of it is zero."""
    case = exported(way)
    path = growing.written(mixture_of(case).plan(experts=8), tmp_path)
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    experts = [w for w in held.values() if w.shape in ((8, HIDDEN, FFN), (8, 1, FFN), (8, FFN, HIDDEN))]
    assert len(experts) == 3 * LAYERS and all(np.array_equal(w[4:], w[:4]) for w in experts)


def plan_router(case: Case, layer: int) -> str:
    roles = mixture_of(case).roles
    return roles.structure.graph.weights[roles.mixtures[layer].scores.root.inputs[1]]


def test_listed_experts_get_names_that_count_on(tmp_path):
    case = Case("moe-listed", "torchscript", "eager")
    model = onnx.load(growing.written(mixture_of(case).plan(experts=6, ffn=80), tmp_path))
    held = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert held["experts.0.up.5.bias"] == (80,) and held["experts.1.down.4.bias"] == (HIDDEN,)
    assert sum(n.op_type == "MatMul" for n in model.graph.node) == sum(n.op_type == "MatMul" for n in onnx.load(case.path).graph.node) + 2 * 2 * 3


def new_experts(plan) -> dict[str, np.ndarray]:
    """Initializer -> True where an entry belongs to a new expert, as the plan counts them."""
    s, out = plan.model.roles.structure, {}
    graph = plan.decisions.proto.graph
    held = {t.name: tuple(t.dims) for t in graph.initializer}
    for name in plan.decisions.asleep:
        recipe = plan.decisions.applied.recipes.get(name)
        mask = np.zeros(held[name], bool)
        for axis, size in enumerate(held[name]):
            tensor = next((t for t, origin in s.graph.weights.items() if origin == name), None)
            d = s.dims[tensor][axis] if tensor in s.dims else None
            if recipe is not None and tensor is not None and d.size == EXPERTS and size > EXPERTS and d.size != HIDDEN:
                mask |= np.reshape(np.arange(size) >= EXPERTS, [-1 if k == axis else 1 for k in range(mask.ndim)])
        if name not in s.graph.weights.values():  # added: an offset, or the weights of a further expert of a list
            mask |= np.arange(mask.size).reshape(mask.shape) >= (EXPERTS if name.endswith("_offset") else 0)
        out[name] = mask
    return out


def measured_dead(path: Path, regions: dict[str, np.ndarray], plan, case: Case) -> dict[str, int]:
    live = live_fraction(path, regions, growing.grown_feeds(plan, growing.feeds_of(case)[0]))
    return {n: round((1 - live[n]) * mask.sum()) for n, mask in regions.items()}


@pytest.mark.parametrize("case", [*ZOO, Way("after"), Way("whole"), Way("sigmoid", True)], ids=str)
def test_new_experts_are_asleep_as_the_plan_says(case, tmp_path):
    """No gradient reaches a new expert, its column of the router or its offset: what the plan counts is what PyTorch says."""
    case = case if isinstance(case, Case) else exported(case)
    plan = mixture_of(case).plan(experts=6)
    path = growing.written(plan, tmp_path)
    regions = new_experts(plan)
    assert {n: int(mask.sum()) for n, mask in regions.items()} == plan.decisions.asleep
    assert measured_dead(path, regions, plan, case) == plan.decisions.asleep


def raised(path: Path, to: float, folder: Path) -> Path:
    """The grown model with the scores of new experts raised, as docs/experts.md says."""
    model = onnx.load(path)
    for t in model.graph.initializer:
        value = numpy_helper.to_array(t)
        if value.dtype == np.float32 and (value == LOW).any():
            t.CopyFrom(numpy_helper.from_array(np.where(value == LOW, np.float32(to), value), t.name))
    onnx.save(model, folder / "raised.onnx")
    return folder / "raised.onnx"


@pytest.mark.parametrize("case", [ZOO[0], ZOO[3], Way("after"), Way("sigmoid", True)], ids=str)
def test_raising_the_offset_wakes_them(case, tmp_path):
    case = case if isinstance(case, Case) else exported(case)
    plan = mixture_of(case).plan(experts=6)
    path = raised(growing.written(plan, tmp_path), 0.0, tmp_path)
    regions = new_experts(plan)
    assert sum(measured_dead(path, regions, plan, case).values()) < 0.05 * plan.asleep_parameters


def test_a_grown_mixture_grows_again(tmp_path):
    case = Case("moe-batched", "torchscript", "eager")
    first = mixture_of(case).plan(experts=6).write(tmp_path / "six.onnx").path
    plan = Model(first).plan(experts=9, hidden=45, only_hidden=True)
    assert "own offsets" in plan.certificate.reasons[0]
    assert plan.write(tmp_path / "nine.onnx").report.max_rel <= growing.TOLERANCE
    again = mixture_of(case).plan_like(Model(first))
    assert again.sizes == {"experts": (4, 6)} and again.compare(first).equal


# What is refused, and what is said


def test_the_plan_says_what_becomes_of_new_experts():
    model = mixture_of(ZOO[0])
    plan = model.plan(experts=6)
    text = "\n".join(plan.lines())
    assert "experts      4 -> 6" in text and "offsets added to 2 routers" in text and "lower by 10,000" in text
    assert f"asleep: {plan.asleep_parameters:,} entries of new experts" in text
    assert "own offsets" in mixture_of(exported(Way("before", True))).plan(experts=6).certificate.reasons[0]
    assert model.plan(ffn=80).certificate.reasons == () and model.plan(experts=4).new_parameters == 0


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_the_naive_method_does_not_keep_the_function(case, tmp_path):
    plan = mixture_of(case).plan(experts=6, method="naive", init_std=1.0)
    assert plan.certificate.kind == "not preserved" and plan.asleep_parameters == 0
    assert growing.difference(plan, growing.written(plan, tmp_path), case) > growing.DIFFERS


def test_experts_do_not_shrink():
    with pytest.raises(SizeError, match="experts is 4 and cannot shrink to 3"):
        mixture_of(ZOO[0]).plan(experts=3)


def test_copies_of_scores_would_be_chosen_twice():
    """So experts are padded also where copies are asked for, and a note says why."""
    plan = mixture_of(ZOO[0]).plan(experts=8, method="copy")
    assert "experts: padded, since copies do not fit (nothing can be appended along this axis of Softmax)" in plan.decisions.target.notes
    assert plan.certificate.kind == "exact"


def test_a_model_without_experts_says_so():
    with pytest.raises(GraphError, match="no experts: no TopK"):
        mixture_of(growing.usual("gpt2")).plan(experts=8)


def test_a_quantized_mixture_keeps_its_experts(tmp_path):
    model = onnx.load(growing.usual("gpt2").path)
    y = model.graph.output[0].name
    last = next(n for n in model.graph.node if y in n.output)
    last.output[0] = "plain"
    model.graph.node.append(helper.make_node("QMoE", ["plain"], [y], "fused", domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "fused.onnx")
    with pytest.raises(GraphError, match="(?s)packed inside the fused operator com.microsoft::QMoE.*'fused'.*--dequantize"):
        Model(tmp_path / "fused.onnx").plan(experts=8)


def edited(case: Case, folder: Path, change) -> Model:
    model = onnx.load(case.path)
    change(model.graph)
    onnx.save(model, folder / "edited.onnx")
    return Model(folder / "edited.onnx")


def test_experts_that_are_not_alike_are_refused_by_node(tmp_path):
    def change(graph):
        node = [n for n in graph.node if n.op_type == "Sigmoid"][2]
        node.op_type, node.name = "Tanh", "other"
    with pytest.raises(GraphError, match="experts cannot be added: experts are not alike here"):
        edited(ZOO[2], tmp_path, change).plan(experts=6)


def test_the_least_chosen_are_no_choice(tmp_path):
    def change(graph):
        for n in graph.node:
            if n.op_type == "TopK":
                next(a for a in n.attribute if a.name == "largest").i = 0
    with pytest.raises(GraphError, match="scores of this TopK do not come from a linear map"):
        edited(ZOO[0], tmp_path, change).plan(experts=6)


@pytest.mark.parametrize(("factor", "fits"), [(0.5, True), (1e-3, False), (-1.0, False)])
def test_a_temperature_must_leave_low_scores_low(factor, fits, tmp_path):
    def change(graph):
        for k, topk in enumerate([n for n in graph.node if n.op_type == "TopK"]):
            graph.initializer.append(numpy_helper.from_array(np.float32(factor), f"t{k}"))
            at = next(i for i, n in enumerate(graph.node) if topk.input[0] in n.output)
            graph.node.insert(at, helper.make_node("Mul", [graph.node[at].input[0], f"t{k}"], [f"warm{k}"]))
            graph.node[at + 1].input[0] = f"warm{k}"
    model = edited(ZOO[0], tmp_path, change)
    if fits:
        assert model.plan(experts=6).write(tmp_path / "grown.onnx").report.max_rel <= growing.TOLERANCE
    else:
        with pytest.raises(GraphError, match="scores of this TopK do not come from a linear map"):
            model.plan(experts=6)


def test_an_expert_count_is_a_size_like_others():
    model = mixture_of(ZOO[1])
    assert model.roles.size("experts") == EXPERTS and model.roles.size("ffn") == FFN
    info = next(d for d in model.architecture.dims if d.name == "experts")
    assert (info.size, info.refused) == (EXPERTS, None)

