"""Growth keeps the function: every model, exporter, attention and growth, measured in ONNX Runtime without onnxgrow's own validation.

By default each model runs in one export with a sixth of its growths, each of them in many models; all others are `slow`.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from onnxgrow.errors import MethodError, OnnxgrowError
from onnxgrow.model import Model
from tests import growing, zoo
from tests.growing import Case
from tests.zoo_models import SPECS, VOCAB

USUAL = {str(growing.usual(name)) for name in SPECS}
EVERY = [(case, label) for seed in (0, 1) for case in growing.every_case(seed) for label in growing.growths(case.name)]
OTHER_FORMS = [
    Case("bert-mlm", "torchscript", opset=13), Case("gpt2", "torchscript", opset=13), Case("llama", "torchscript", opset=13),
    Case("qwen3-past", "torchscript", opset=14), Case("t5-encoder", "torchscript", opset=14), Case("vit", "torchscript", opset=14),
    Case("gemma", "torchscript", opset=20), Case("torch-encoder-prenorm", "torchscript", opset=20), Case("mpnet", "torchscript", opset=20),
    Case("phi", "dynamo", opset=20), Case("opt-past", "dynamo", opset=20), Case("clip-text", "dynamo", opset=20),
    Case("bert-mlm", "torchscript", static=True), Case("llama-past", "dynamo", static=True), Case("gpt2", "dynamo", static=True),
    Case("vit", "torchscript", static=True), Case("bert-mlm", "torchscript", external=True), Case("llama-past", "dynamo", external=True),
]  # fmt: skip
LONG = {"clip-text-dynamo-eager-op20", "llama-past-dynamo-eager-static"}  # of each form one export by dynamo is enough where time matters
STATIC = [Case(name, exporter, static=True) for name in SPECS for exporter in zoo.EXPORTERS]
OPSETS = [Case(name, exporter, opset=opset) for name in SPECS for exporter, opset in
          (("torchscript", 13), ("torchscript", 14), ("torchscript", 20), ("dynamo", 20))
          if not zoo.known_failure(name, exporter, "eager", opset)]  # fmt: skip


def check(case: Case, plan, folder, kind: str, seed: int = 0, record=lambda name, value: None) -> None:
    """Write a plan's file; its certificate, the function and the file must be what they should."""
    assert plan.certificate.kind == kind, plan.certificate
    path = growing.written(plan, folder)
    error = growing.difference(plan, path, case, seed)
    record("error", error)
    if kind == "exact":
        assert error <= growing.TOLERANCE
    elif kind == "near":
        assert growing.TOLERANCE < error <= growing.NEAR
        assert plan.certificate.reasons and 0 < plan.certificate.bound < np.inf
    else:
        assert error > growing.DIFFERS
    growing.check_sound(path, growing.grown_feeds(plan, growing.feeds_of(case, seed)[-1]))


def marks(case: Case, label: str) -> list:
    bug = growing.known_bug(case, label)
    short = str(case) in USUAL and growing.in_turn(case.name, label, growing.growths(case.name), share=6)
    return [pytest.mark.slow] * (not short) + ([pytest.mark.xfail(reason=bug, strict=True, raises=OnnxgrowError)] if bug else [])


@pytest.mark.parametrize(("case", "label"), [pytest.param(case, label, id=f"{case}-{label}", marks=marks(case, label)) for case, label in EVERY])
def test_every_growth_of_every_model(case, label, tmp_path, record_property):
    check(case, growing.plan_of(case, label, case.seed), tmp_path, growing.promised(case.name, label), case.seed, record_property)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (i % 9 > 0)) for i, name in enumerate(SPECS)])
def test_the_second_seed(name, tmp_path):
    """Other random numbers in the free parts: another file, the same function."""
    case = growing.usual(name)
    for label in ("hidden-double", "heads"):
        plans = [growing.plan_of(case, label, seed) for seed in (0, 1)]
        check(case, plans[1], tmp_path, "exact", seed=1)
        assert growing.written(plans[1], tmp_path).read_bytes() != growing.written(plans[0], tmp_path, "other.onnx").read_bytes()


def forms(cases: list[Case], labels: tuple[str, ...]) -> list:
    """Parameters; known bugs are marked."""
    bugs = {(case, label): growing.known_bug(case, label) for case in cases for label in labels if label in growing.growths(case.name)}
    return [pytest.param(*key, id=f"{key[0]}-{key[1]}", marks=[pytest.mark.xfail(reason=bug, strict=True)] if bug else []) for key, bug in bugs.items()]


@pytest.mark.parametrize(("case", "label"), [pytest.param(*p.values, id=p.id, marks=[*p.marks, *[pytest.mark.slow] * ((OTHER_FORMS.index(p.values[0]) + k) % 3 > 0 or str(p.values[0]) in LONG)])
                                             for k, label in enumerate(("hidden-only", "head_dim", "together")) for p in forms(OTHER_FORMS, (label,))])
def test_other_opsets_static_axes_and_external_data(case, label, tmp_path):
    check(case, growing.plan_of(case, label), tmp_path, growing.promised(case.name, label))
    assert (tmp_path / "grown.onnx.data").exists() == case.external


@pytest.mark.slow
@pytest.mark.parametrize(("case", "label"), forms([*STATIC, *OPSETS], growing.MATRIX))
def test_every_opset_and_static_axes(case, label, tmp_path):
    check(case, growing.plan_of(case, label), tmp_path, growing.promised(case.name, label))


def random_sizes(name: str, rng: np.random.Generator) -> dict:
    """Any sizes of several roles at once."""
    sizes, tags = SPECS[name].sizes, SPECS[name].tags
    heads, kv, step = sizes["heads"], sizes["kv_heads"], 2 if "rotary" in tags else 1
    out = {"hidden": int(rng.integers(sizes["hidden"], 80)), "ffn": int(rng.integers(sizes["ffn"], 150)),
           "head_dim": sizes["head_dim"] + step * int(rng.integers(0, 6))}  # fmt: skip
    more = int(rng.integers(0, 3))
    if 1 < kv < heads:
        group = heads // kv + int(rng.integers(0, 3))
        out |= {"kv_heads": kv + more, "heads": group * (kv + more)}
    else:
        out["heads"] = heads + more
    picked = {key: size for key, size in out.items() if rng.random() < 0.7}
    if ("heads" in picked) != ("kv_heads" in picked):
        picked |= {key: out[key] for key in ("heads", "kv_heads") if key in out}
    return picked | {"only_hidden": True, "seed": int(rng.integers(1000))}


@pytest.mark.parametrize(("name", "draw"), [pytest.param(name, draw, marks=pytest.mark.slow if draw or i % 3 else [])
                                            for i, name in enumerate(SPECS) for draw in range(12)])  # fmt: skip
def test_several_sizes_at_once(name, draw, tmp_path):
    case, rng = growing.usual(name), np.random.default_rng([list(SPECS).index(name), draw])
    sizes = random_sizes(name, rng)
    hidden = sizes.get("hidden", 32)
    near = name in growing.POST_NORM and hidden % 32
    check(case, growing.opened(case.path).plan(**sizes), tmp_path, "near" if near else "exact")


@pytest.mark.parametrize("label", ["hidden-only", "hidden-double", "together"])
@pytest.mark.parametrize("name", ["bert-mlm", "llama-past", "vit", "gpt2"])
def test_the_function_is_the_same_without_optimisations(name, label, tmp_path):
    case = growing.usual(name)
    plan = growing.plan_of(case, label)
    error = growing.difference(plan, growing.written(plan, tmp_path), case, optimised=False)
    assert error <= (growing.NEAR if plan.certificate.kind == "near" else growing.TOLERANCE)


TIED = ("hidden-only", "hidden-double", "copy-hidden", "together", "naive-hidden")


@pytest.mark.parametrize(("label", "name"), [pytest.param(label, name, marks=[] if growing.in_turn(name, label, TIED, share=3) else pytest.mark.slow)
                                             for label in TIED for name in SPECS if "tied" in SPECS[name].tags])
def test_a_tied_embedding_stays_tied(name, label, tmp_path):
    """One matrix serves as embedding and as head: it grows once, under its own name, and both go on using it."""
    case = growing.tied(growing.usual(name), tmp_path)
    model = Model(case.path)
    if growing.promised(name, label) == "near":  # the width of the head's own layer is hidden too, and no gelu can make a mean
        with pytest.raises(MethodError, match="cannot be mean.*\n.*ask for a whole multiple"):
            model.plan(**growing.growths(name)[label])
        return
    check(case, model.plan(**growing.growths(name)[label]), tmp_path, growing.promised(name, label))
    assert uses(tmp_path / "grown.onnx") == uses(case.path)


def uses(path) -> dict[str, int]:
    """How often each initializer with an axis over the vocabulary is used."""
    graph = onnx.load(path).graph
    inputs = [name for node in graph.node for name in node.input]
    return {t.name: inputs.count(t.name) for t in graph.initializer if VOCAB in t.dims and len(t.dims) == 2}


def test_the_tied_embeddings_are_tied(tmp_path):
    assert uses(growing.tied(Case("gpt2"), tmp_path).path) == {"model.lm_head.weight": 2}


@pytest.mark.parametrize("label", ["hidden-only", "hidden-double", "together"])
@pytest.mark.parametrize("name", ["bert-mlm", "gpt2", "vit", "torch-encoder-postnorm"])
def test_vectors_that_the_exporter_merged(name, label, tmp_path):
    """Fresh gains are all one, and so one initializer; each use still grows as it would alone."""
    errors = []
    for merged in (False, True):
        case = growing.equal_vectors(Case(name, "torchscript"), tmp_path, merged)
        plan = Model(case.path).plan(**growing.growths(name)[label])
        errors.append(growing.difference(plan, growing.written(plan, tmp_path), case))
    assert errors[1] == pytest.approx(errors[0], rel=1e-3, abs=growing.TOLERANCE)
    assert plan.certificate.kind == "near" or max(errors) <= growing.TOLERANCE


@pytest.mark.parametrize("label", ["hidden-only", "hidden-family", "ffn", "heads", "kv_heads", "head_dim", "together", "copy-hidden"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_layers_that_share_their_matrices(name, label, tmp_path):
    if label in growing.growths(name):
        case = growing.shared_layers(Case(name, "torchscript"), tmp_path)
        check(case, Model(case.path).plan(**growing.growths(name)[label]), tmp_path, "exact")
        assert len(onnx.load(tmp_path / "grown.onnx").graph.initializer) <= len(onnx.load(case.path).graph.initializer) + 6


def test_growing_twice_is_growing(tmp_path):
    """A grown file is a source like any other."""
    case = Case("llama", "torchscript")
    first = growing.written(growing.plan_of(case, "together"), tmp_path, "first.onnx")
    again = Model(first).plan(hidden=64, only_hidden=True, ffn=99, heads=9, kv_heads=3)
    second = growing.written(again, tmp_path, "second.onnx")
    assert again.certificate.kind == "exact"
    for feeds in growing.feeds_of(case):
        want, got = (growing.session(path).run(None, feeds)[0] for path in (case.path, second))
        assert np.abs(want - got).max() <= growing.TOLERANCE * np.abs(want).max()


# --- the helpers are to be trusted too -------------------------------------------------------------------------------


def test_every_model_of_the_zoo_has_its_row():
    assert {case.name for case, _ in EVERY} == set(SPECS)
    wanted = {"hidden-only", "hidden-family", "ffn", "heads", "head_dim"}
    assert all(wanted <= growing.growths(name).keys() for name in SPECS)
    assert "kv_heads" in growing.growths("llama") and "kv_heads" not in growing.growths("gpt2")
    assert {str(case) for case, _ in EVERY if case.seed == 0} == {str(Case(*case)) for case in zoo.cases()}


@pytest.mark.parametrize("case", [Case("bert-cls"), Case("llama-past"), Case("torch-encoder-prenorm", "torchscript"), Case("gpt2", static=True)],
                         ids=str)  # fmt: skip
def test_feeds_hold_every_id_padding_and_an_empty_past(case):
    feeds = growing.feeds_of(case)
    assert len({feed["input_ids"].shape for feed in feeds}) == (1 if case.static else len(feeds))
    assert set(np.concatenate([feed["input_ids"].ravel() for feed in feeds])) == set(range(VOCAB))
    masks = [feed["attention_mask"] for feed in feeds]
    assert all(mask.any(axis=1).all() for mask in masks) and sum((mask == 0).any() for mask in masks) >= 2
    if "past" in SPECS[case.name].tags:
        assert sorted({feed["past_key_0"].shape[2] for feed in feeds})[0] == 0
        assert all(feed["attention_mask"].shape[1] == feed["input_ids"].shape[1] + feed["past_key_0"].shape[2] for feed in feeds)


@pytest.mark.parametrize("spoil", ["a weight", "a tensor", "an output", "nobody"])
def test_stale_sizes_are_seen(spoil, tmp_path):
    plan = growing.plan_of(Case("gpt2", "dynamo"), "ffn")
    feeds = growing.feeds_of(Case("gpt2", "dynamo"))[-1]
    path = growing.written(plan, tmp_path)
    growing.check_sound(path, feeds)
    model = onnx.load(path)
    held = {t.name for t in model.graph.initializer}
    wide = [v for v in model.graph.value_info if growing.declared(model.graph)[v.name][-1:] == [101] and (v.name in held) == (spoil == "a weight")]
    stale = model.graph.output[0] if spoil == "an output" else wide[0]
    if spoil == "nobody":
        stale.name = "nobody"
    else:
        stale.type.tensor_type.shape.dim[-1].dim_value = 72
    onnx.save(model, path)
    assert any(stale.name in line for line in growing.stale_by_inference(path))
    if spoil in ("a tensor", "an output"):
        assert any(stale.name in line for line in growing.stale_by_running(path, feeds))


@pytest.mark.parametrize(("kv_heads", "heads"), [(4, 12), (4, 4), (6, 18)])
def test_groups_of_query_heads_are_cut_and_get_longer_at_once(kv_heads, heads, tmp_path):
    case = growing.usual("llama")
    plan = growing.opened(case.path).plan(heads=heads, kv_heads=kv_heads)
    assert plan.certificate.kind == "exact"
    assert growing.difference(plan, growing.written(plan, tmp_path), case, 0) <= growing.TOLERANCE


def test_what_is_spread_over_new_places():
    """The comparison's own reading of maps, by hand: old, copies, mean, zero and free."""
    from onnxgrow.axismap import AxisMap, Fill

    m = AxisMap(2, 6, [1, 0, 1, -1, -1, -1], [Fill.OLD, Fill.OLD, Fill.OLD, Fill.MEAN, Fill.ZERO, Fill.FREE])
    x, defined = growing.spread(np.array([[1.0, 3.0], [5.0, 7.0]]), (AxisMap.identity(2), m))
    assert x[:, :5].tolist() == [[3, 1, 3, 2, 0], [7, 5, 7, 6, 0]] and defined[0].tolist() == [True] * 5 + [False]
    noisy, _ = growing.spread(np.ones((2, 2)), (AxisMap.identity(2), m), np.random.default_rng(0))
    assert noisy[0, 5] != 0 and (noisy[:, :3] == 1).all()


def test_every_pair_of_exports_is_among_the_usual_ones():
    found = {(case.exporter, case.attn) for case in map(growing.usual, SPECS)}
    assert found == set(itertools.product(zoo.EXPORTERS, zoo.ATTENTIONS))
