"""Numbers that are none or do not fit, and files that are looked at once more: how each message is provoked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

import onnxgrow.plan
from onnxgrow.axismap import Fill
from onnxgrow.model import Model
from onnxgrow.recipe import Recipe
from tests.error_cases import Family, changed, writing
from tests.growing import usual

graph, method = Family("GraphError"), Family("MethodError")


def nothing_but_nan(proto: onnx.GraphProto) -> None:
    """The last gain of a Llama."""
    held = next(t for t in proto.initializer if t.name == "norm.weight")
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) * np.float32(np.nan), held.name))


@graph("the source itself answers … sets of inputs with nothing but NaN or infinity")
def nan(folder, patch):
    changed("tiny-llama", nothing_but_nan)
    return "expand bad.onnx --ffn 500 -o grown.onnx"


@graph("what is written down of a tensor does not fit: …")
def stale(folder, patch):
    plan = Model(folder / "gpt.onnx").plan(ffn=600)
    proto = plan.proto()
    proto.graph.value_info.add(name="nowhere").type.tensor_type.elem_type = 1
    patch.setattr(plan, "proto", lambda: proto)
    return lambda: plan.write("grown.onnx")


@graph("new entries that nobody reads yet …, so that they could not learn")
def asleep(folder, patch):
    plan = Model(folder / "model.onnx").plan(ffn=600)
    patch.setattr(Recipe, "random_std", lambda *_: 0.0)
    assert any((m.fill == Fill.FREE).any() for r in plan.recipes.values() for m in r.axes)
    return lambda: plan.write("grown.onnx")


@graph("a new layer computes something else than the one that it is a copy of …")
def another_block(folder, patch):
    plan = Model(folder / "model.onnx").plan(layers=5)
    proto = plan.proto()
    node = next(n for n in proto.graph.node if n.output and any(n.output[0] in copied for copied in plan.deeper.copies) and n.op_type == "Softmax")
    node.attribute[0].i = 1
    patch.setattr(plan, "proto", lambda: proto)
    return lambda: plan.write("grown.onnx")


@graph("no node of the written file reads this weight")
def unread(folder, patch):
    """In a new layer, which is silent."""
    plan = Model(folder / "model.onnx").plan(layers=5)
    proto, fresh = plan.proto(), plan.deeper.fresh
    node = next(n for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] in fresh)
    old = next(t.name for t in proto.graph.initializer if t.name not in fresh and list(t.dims) == next(list(x.dims) for x in proto.graph.initializer if x.name == node.input[1]))
    node.input[1] = old
    patch.setattr(plan, "proto", lambda: proto)
    return lambda: plan.write("grown.onnx")


@graph("new entries of a new expert, which nobody chooses yet, are not the zeros of the plan")
def sleeping(folder, patch):
    plan = Model(usual("moe-listed").path).plan(experts=6, hidden=45, only_hidden=True)
    old = {t.name for t in plan.model.opened.proto.graph.initializer}
    name, recipe = next((n, r) for n, r in plan.recipes.items() if n not in old and any((m.fill == Fill.ZERO).any() for m in r.axes))
    axes = tuple(replace(m, fill=np.where(m.fill == Fill.ZERO, Fill.FREE, m.fill)) for m in recipe.axes)
    plan.__dict__["recipes"] = plan.recipes | {name: replace(recipe, axes=axes)}
    return lambda: plan.write("grown.onnx")


@method("the repair of … makes …, which … cannot hold")
def overflow(folder, patch):
    """No growth of a float32 model overflows: the type is float16, and the factor is too large."""
    real = onnxgrow.plan.check_repairs

    def larger(plan) -> None:
        recipes = plan.decisions.recipes
        name = next(t for t, r in recipes.items() if r.is_scaled)
        recipes[name] = replace(recipes[name], scale=1e39)
        real(plan)

    patch.setattr(onnxgrow.plan, "check_repairs", larger)
    return writing(folder / "model.onnx", hidden=144)
