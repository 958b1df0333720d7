"""The comparison can fail: whatever one breaks on purpose in a plan is caught, by the tests' own comparison and by onnxgrow's validation.

A mutant is a plan in which one fill, repair, share, position, epsilon or shape constant of one tensor or node is wrong. Mutants that
survive would be promises that the plan makes for nothing, so the few that compute the same function are listed with their reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxgrow.decide
from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.errors import GraphError, NotEqualError
from onnxgrow.model import Model
from onnxgrow.plan import Plan
from onnxgrow.recipe import Recipe
from onnxgrow.repairs import Edits
from tests import growing, zoo
from tests.growing import Case
from tests.zoo_models import SPECS

EPSILON = 0.2  # large enough to be seen: at 1e-5 a wrong epsilon hides below the rounding of fp32
KEY_BIAS = "added to every key it moves all scores of a query alike, which softmax does not see"
SAME_FUNCTION = {  # what is broken: why nothing changes
    r"(self\.key|k_proj|k_lin|attn\.k)\.bias axis 0: (swapped|zero is free)": KEY_BIAS,
    r"(c_attn|query_key_value|in_proj_?)\.?bias axis 0: zero is free": KEY_BIAS,
}

Mutant = tuple[str, Callable[[], object]]  # what is broken, and a context in which it is


# --- breaking one thing ----------------------------------------------------------------------------------------------


def mutants(plan: Plan) -> Iterator[Mutant]:
    """Every way to break one thing about a plan."""
    recipes = plan.decisions.applied.recipes
    for name, recipe in list(recipes.items()):
        for what, broken in broken_recipes(recipe):
            yield f"{name} {what}", lambda name=name, broken=broken: other_recipe(recipes, name, broken)
    nodes = plan.model.roles.structure.graph.by_index
    for index, changed in plan.decisions.edits.attributes.items():
        for attribute in changed:
            yield f"{nodes[index].label} {attribute}: as before", lambda index=index, a=attribute: old_attribute(plan, index, a)
    for index, slot in plan.decisions.edits.constants:
        yield f"{nodes[index].label} input {slot}: as before", lambda index=index, slot=slot: old_constant(plan, index, slot)


def broken_recipes(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    def along(axis: int, m: AxisMap, **more) -> Recipe:
        return replace(recipe, axes=(*recipe.axes[:axis], m, *recipe.axes[axis + 1 :]), **more)

    for axis, m in enumerate(recipe.axes):
        if (m.fill == Fill.ZERO).any():
            yield f"axis {axis}: zero is free", along(axis, refilled(m, Fill.ZERO, Fill.FREE), free="random", given=None)
        if (m.fill == Fill.MEAN).any():
            yield f"axis {axis}: mean is zero", along(axis, refilled(m, Fill.MEAN, Fill.ZERO))
        if m.share:
            yield f"axis {axis}: shares are whole", along(axis, replace(m, share=False))
        if m.old > 1 and not m.is_identity:
            yield f"axis {axis}: swapped", along(axis, swapped(m))
    if recipe.is_scaled:
        yield "not repaired", replace(recipe, scale=1.0, shift=0.0)


def refilled(m: AxisMap, old: Fill, new: Fill) -> AxisMap:
    return replace(m, fill=np.where(m.fill == old, new, m.fill))


def swapped(m: AxisMap) -> AxisMap:
    """The first two old entries change places."""
    source, kept = m.source.copy(), np.flatnonzero(m.fill == Fill.OLD)
    a, b = kept[0], kept[np.flatnonzero(source[kept] != source[kept[0]])[0]]
    source[a], source[b] = source[b], source[a]
    return replace(m, source=source)


@contextmanager
def other_recipe(recipes: dict[str, Recipe], name: str, broken: Recipe):
    good, recipes[name] = recipes[name], broken
    yield
    recipes[name] = good


@contextmanager
def other_proto(plan: Plan):
    """The grown proto, to be broken."""
    good = onnx.ModelProto()
    good.CopyFrom(plan.decisions.applied.proto)
    yield plan.decisions.applied.proto
    plan.decisions.applied.proto.CopyFrom(good)


def node_in(proto: onnx.ModelProto, plan: Plan, index: int) -> onnx.NodeProto:
    wanted = plan.model.roles.structure.graph.by_index[index].outputs[0]
    return next(n for n in proto.graph.node if n.output[0] == wanted)


@contextmanager
def old_attribute(plan: Plan, index: int, name: str):
    with other_proto(plan) as proto:
        node, old = node_in(proto, plan, index), plan.model.roles.structure.graph.by_index[index].attrs.get(name, 1e-5)
        node.attribute.remove(next(a for a in node.attribute if a.name == name))
        node.attribute.append(helper.make_attribute(name, old))
        yield


@contextmanager
def old_constant(plan: Plan, index: int, slot: int):
    """This use reads the constant of the source again; where the plan only keeps it from following a size, a third number."""
    s, kept = plan.model.roles.structure, plan.decisions.edits.constants[index, slot]
    value = np.asarray(s.walk.value(s.graph.by_index[index], slot))
    if np.array_equal(value, kept):
        value = np.asarray(value * 1.5 if value.dtype.kind == "f" else value + 1, value.dtype)
    with other_proto(plan) as proto:
        node_in(proto, plan, index).input[slot] = "as before"
        proto.graph.initializer.append(numpy_helper.from_array(value, "as before"))
        yield


# --- sources ---------------------------------------------------------------------------------------------------------


def loud(case: Case, folder: Path) -> Path:
    """The export with epsilons that matter."""
    roles, model = growing.opened(case.path).roles, onnx.load(case.path)
    held = {t.name: t for t in model.graph.initializer}
    made = {n.output[0]: n for n in model.graph.node if n.op_type == "Constant"}
    for n in model.graph.node:
        for a in n.attribute:
            if a.name == "epsilon":
                a.f = EPSILON
    for norm in roles.norms:
        holder, slot = norm.eps
        name = model.graph.node[holder.index].input[slot]
        value = numpy_helper.from_array(np.full_like(roles.structure.walk.value(holder, slot), EPSILON), name)
        held[name].CopyFrom(value) if name in held else made[name].attribute[0].t.CopyFrom(value)
    onnx.save(model, folder / "loud.onnx")
    return folder / "loud.onnx"


def attended(name: str, exporter: str) -> Case:
    """By dynamo as the export usually is, else with sdpa where there is one."""
    if exporter == "dynamo":
        return growing.exported_by(name, exporter)
    return Case(name, exporter, "eager" if zoo.known_failure(name, exporter, "sdpa") else "sdpa")


def differs(plan: Plan, case: Case, folder: Path) -> bool:
    """Does the plan's file compute another function, or none at all?"""
    try:
        return not growing.difference(plan, growing.written(plan, folder), case) <= growing.TOLERANCE
    except Exception:  # whatever ONNX Runtime raises on a graph that does not fit
        return True


def same_function(what: str) -> bool:
    return any(re.search(pattern, what) for pattern in SAME_FUNCTION)


# --- the tests' own comparison ---------------------------------------------------------------------------------------

USUAL = [("gpt2", "dynamo", "hidden-only"), ("gpt2", "torchscript", "head_dim"), ("llama", "dynamo", "hidden-only"), ("llama", "torchscript", "kv_heads"),
         ("llama-past", "torchscript", "heads"), ("bert-mlm", "torchscript", "hidden-double"), ("t5-encoder", "torchscript", "hidden-only"),
         ("vit", "dynamo", "hidden-only"), ("gemma", "torchscript", "head_dim"), ("opt", "dynamo", "ffn"), ("qwen3", "dynamo", "heads-per-kv")]  # fmt: skip
OTHERS = [(name, ("dynamo", "torchscript")[k % 2], label) for k, name in enumerate(SPECS)
          for label in ("hidden-double" if name in growing.POST_NORM else "hidden-only", "heads", "kv_heads", "head_dim", "copy-ffn")
          if label in growing.growths(name)]  # fmt: skip
EVERY = [*USUAL, *(key for key in OTHERS if key not in USUAL)]


SHARE = 4  # the short run tries one mutant in so many, of each export other ones


@pytest.mark.parametrize("share", [SHARE, pytest.param(1, marks=pytest.mark.slow, id="all")])
@pytest.mark.parametrize(("name", "exporter", "label"), [pytest.param(*key, marks=[] if key in USUAL else pytest.mark.slow) for key in EVERY])
def test_every_mutant_is_another_function(name, exporter, label, share, tmp_path):
    case = attended(name, exporter)
    case = growing.Edited(case, loud(case, tmp_path))
    plan = Model(case.path).plan(**growing.growths(name)[label])
    assert plan.certificate.kind == "exact" and not differs(plan, case, tmp_path)
    found = list(mutants(plan))
    survivors = []
    for what, broken in found[EVERY.index((name, exporter, label)) % share :: share]:
        with broken():
            if not differs(plan, case, tmp_path):
                survivors.append(what)
    assert len(found) >= 6 and [what for what in survivors if not same_function(what)] == []
    assert not differs(plan, case, tmp_path), "and afterwards all is well again"


def kinds(plan: Plan) -> set[str]:
    return {what.split(": ")[-1] if "input" not in what else "a constant" for what, _ in mutants(plan)} | {
        "not repaired" for what, _ in mutants(plan) if what.endswith("not repaired")}  # fmt: skip


def test_every_kind_of_mutant_occurs():
    """The list above is not empty for a reason that nobody sees."""
    plans = [growing.plan_of(attended(name, exporter), label) for name, exporter, label in USUAL]
    found = set().union(*map(kinds, plans))
    assert {"zero is free", "mean is zero", "shares are whole", "swapped", "as before", "a constant"} <= found
    assert any("not repaired" in what for plan in plans for what, _ in mutants(plan))


# --- onnxgrow's own validation ---------------------------------------------------------------------------------------

CAUGHT = [
    ("gpt2", "hidden-only", r"zero is free"), ("gpt2", "hidden-only", r"mean is zero"), ("gpt2", "hidden-only", r"not repaired"),
    ("gpt2", "hidden-only", r"epsilon: as before"), ("gpt2", "heads", r"input \d: as before"), ("gpt2", "heads", r"c_attn.*swapped"),
    ("bert-mlm", "hidden-double", r"shares are whole"), ("bert-mlm", "ffn", r"zero is free"), ("bert-mlm", "head_dim", r"input \d: as before"),
    ("llama", "hidden-only", r"not repaired"), ("llama", "hidden-only", r"zero is free"), ("llama", "kv_heads", r"swapped"),
    ("llama", "hidden-only", r"input \d: as before"), ("llama-past", "head_dim", r"zero is free"), ("vit", "hidden-only", r"mean is zero"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "label", "pattern"), CAUGHT)
def test_a_broken_plan_is_not_written(name, label, pattern, tmp_path, snapshot):
    """NotEqualError names a tensor, or ONNX Runtime refuses the graph; nothing is left behind either way."""
    (tmp_path / "loud").mkdir()
    source = loud(Case(name, "torchscript", "sdpa"), tmp_path / "loud")
    plan = Model(source).plan(**growing.growths(name)[label])
    what, broken = next((what, broken) for what, broken in mutants(plan) if re.search(pattern, what) and not same_function(what))
    before = snapshot(tmp_path)
    with broken(), pytest.raises((NotEqualError, GraphError)) as error:
        plan.write(tmp_path / "out.onnx", provider="cpu")
    assert error.value.hint, what
    assert error.type is GraphError or "not equal" in str(error.value)
    assert snapshot(tmp_path) == before
    result = plan.write(tmp_path / "out.onnx", provider="cpu")
    assert result.report.equal and result.path.exists()


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_a_growth_without_repairs_is_not_written(name, tmp_path, monkeypatch):
    """The whole step is missing: the certificate still says exact, and validation does not believe it."""
    monkeypatch.setattr(onnxgrow.decide, "repair", lambda *_: Edits())
    plan = Model(Case(name, "torchscript").path).plan(hidden=45, only_hidden=True)
    assert plan.certificate.kind == "exact"
    with pytest.raises(NotEqualError, match="not equal"):
        plan.write(tmp_path / "out.onnx", provider="cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "label", "tensor"), [("llama-past", "head_dim", "past_key_0"), ("llama-past", "kv_heads", "present_value_1"),
                                                      ("t5-encoder", "hidden-only", "states")])  # fmt: skip
def test_a_wrong_map_of_an_input_or_output_is_seen(name, label, tensor, tmp_path):
    """The maps through which both sides are compared are part of what is compared."""
    plan = Model(Case(name, "torchscript").path).plan(**growing.growths(name)[label])
    maps = plan.decisions.inputs if tensor in plan.decisions.inputs else plan.decisions.outputs
    good = maps[tensor]
    axis = max(k for k, m in enumerate(good) if not m.is_identity)
    maps[tensor] = (*good[:axis], swapped(good[axis]), *good[axis + 1 :])
    with pytest.raises(NotEqualError):
        plan.write(tmp_path / "out.onnx", provider="cpu")
    maps[tensor] = good
    assert plan.write(tmp_path / "out.onnx", provider="cpu").report.equal
