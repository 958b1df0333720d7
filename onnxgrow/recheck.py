"""A written file looked at once more before it counts: what running it would not show.

Outputs say nothing of sizes that are written down and wrong, which only other tools read, nor of new entries that nobody reads yet: these
must be random, or the new parts would move alike for ever. Both are read off the file, not off the recipes that made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import shape_inference

from .axismap import Fill
from .errors import GraphError
from .graph import names_read
from .roles import FLOATS
from .source import Source

if TYPE_CHECKING:
    from .plan import Plan

BUG = "report this as a bug, with the plan"
LOOKED = 4096  # new slices of a weight that are looked at, from the first on
MANY = 16  # whole numbers in a constant that is compared
WIDE = 32  # entries of such a slice along the other axis, less where there are several
FEW = 16  # with fewer numbers than that, two random slices of a coarse type could be equal by chance
SMALL = 1e-4  # a deviation that was asked for and is smaller may round to zeros

Sizes = list[int | str | None]  # of an axis: its size, what an input calls it, or neither


def recheck(plan: Plan, held: Source) -> None:
    """Refuse a file whose written-down sizes are wrong where the source's were right, or whose new parts could not learn apart.

    Raises:
        GraphError: with the tensor.
    """
    _check_sizes(held.proto, plan.model.opened.proto)
    _check_read(held.proto, plan)
    if plan.deeper and plan.model.plain is plan.model.opened:
        _check_copies(held.proto, plan.deeper.copies)
    _check_zeros(plan, held)
    for tensor, axis, new, old in _unread(plan, held):
        problem = "hold nothing but zeros" if not new.any(axis=1).all() else "are alike" if _meet(new, old) else None
        if problem:
            raise GraphError(f"new entries that nobody reads yet {problem}, so that they could not learn", node=tensor, axis=axis, hint=BUG)


def _meet(new: np.ndarray, old: np.ndarray) -> bool:
    """Is one of the new rows another one of them, or an old one?"""
    old = np.unique(old, axis=0)
    return len(np.unique(np.vstack([old, new]), axis=0)) < len(old) + len(new)


# --- sizes that are written down -------------------------------------------------------------------------------------


def _check_sizes(proto: onnx.ModelProto, before: onnx.ModelProto) -> None:
    wrong = _wrong_sizes(proto)
    known = _wrong_sizes(before) if wrong else {}  # exporters write wrong ones, too
    for name, problem in wrong.items():
        if name not in known:
            raise GraphError(f"what is written down of a tensor does not fit: {problem}", node=name or None, hint=BUG)


def _wrong_sizes(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensor -> how its written-down shape differs from the one that follows from its node, as far as ONNX can tell; "" where it does not say which."""
    graph = proto.graph
    made = {o for n in graph.node for o in n.output} | {v.name for v in graph.input} | {t.name for t in graph.initializer}
    wrong = {v.name: "no node makes it" for v in graph.value_info if v.name not in made}
    told, bare = _shapes(graph), onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = {t.name: list(t.dims) for t in graph.initializer}
    try:
        found = _shapes(shape_inference.infer_shapes(bare, data_prop=True).graph) | found
        # where a size cannot be inferred from the weights alone, what is written down must fit together
        shape_inference.infer_shapes(proto, strict_mode=True)
    except (shape_inference.InferenceError, onnx.checker.ValidationError) as error:  # the latter of functions that call themselves
        wrong[""] = " ".join(str(error).split())[:200]
    return wrong | {name: f"its shape is {_words(found[name])}, not {_words(told[name])}" for name in told if name in found and not _agree(told[name], found[name])}


def _shapes(graph: onnx.GraphProto) -> dict[str, Sizes]:
    fed = {d.dim_param for v in graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}  # other names may be any size
    values = [v for v in (*graph.input, *graph.value_info, *graph.output) if v.type.tensor_type.HasField("shape")]
    return {v.name: [d.dim_value if d.HasField("dim_value") else d.dim_param if d.dim_param in fed else None for d in v.type.tensor_type.shape.dim] for v in values}


def _agree(a: Sizes, b: Sizes) -> bool:
    """May both be true? Two names may be of one size; a name and a number are not."""
    return len(a) == len(b) and all(x is None or y is None or x == y or type(x) is type(y) is str for x, y in zip(a, b))


def _words(sizes: Sizes) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in sizes)}]"


# --- what nobody reads at all ----------------------------------------------------------------------------------------


def _check_read(proto: onnx.ModelProto, plan: Plan) -> None:
    """A weight that a node reads in the source is read in the file too: one of a new layer, which is silent, could be lost unseen."""
    before, after = map(names_read, (plan.model.opened.proto.graph, proto.graph))
    if plan.deeper:
        before |= plan.deeper.fresh
    for name in {t.name for t in proto.graph.initializer} - after:
        if name in before or (name in plan.recipes and plan.recipes[name].origin in before):
            raise GraphError("no node of the written file reads this weight", node=name, hint=BUG)


# --- new layers ------------------------------------------------------------------------------------------------------


def _check_copies(proto: onnx.ModelProto, copies: list[dict[str, str]]) -> None:
    """A new block is silent, so that outputs say nothing of what it computes: its nodes must be those of the block that it is a copy of, and read one another alike.

    Args:
        copies: of each new block, first output of each node -> that of the old node.
    """
    makers = {o: n for n in proto.graph.node for o in n.output}
    held = {o: _number(a.t) for o, n in makers.items() for a in n.attribute if n.op_type == "Constant" and a.name == "value"}
    numbers = {t.name: _number(t) for t in proto.graph.initializer} | held
    for copied in copies:
        _check_copy(makers, numbers, copied)


def _check_copy(makers: dict[str, onnx.NodeProto], numbers: dict[str, tuple | None], copied: dict[str, str]) -> None:
    pairs = [(makers[new], makers[old]) for new, old in copied.items() if new in makers and old in makers]  # the others were read by nobody any more
    inside = {x: y for a, b in pairs for x, y in zip(a.output, b.output) if x}
    old = {o for name in copied.values() if name in makers for o in makers[name].output}

    def alike(x: str, y: str) -> bool:
        return numbers.get(x) == numbers.get(y) and (y in _behind(x, makers, inside) if y in old else x not in inside)

    for a, b in pairs:
        same = a.op_type == b.op_type and len(a.input) == len(b.input) and sorted(map(_bytes, a.attribute)) == sorted(map(_bytes, b.attribute))
        if not same or not all(map(alike, a.input, b.input)):
            raise GraphError(f"a new layer computes something else than the one that it is a copy of ({b.name or b.output[0]!r})", node=a.name or a.output[0], hint=BUG)


def _behind(tensor: str, makers: dict[str, onnx.NodeProto], inside: dict[str, str]) -> list[str]:
    """What a tensor of a new block is in the old one; a gate in between, which the old one lacks, passes on what it reads."""
    reads = [tensor] if tensor in inside or tensor not in makers else makers[tensor].input
    return [inside[x] for x in reads if x in inside]


def _number(tensor: onnx.TensorProto) -> tuple | None:
    """What a tensor of a few whole numbers, or of a single one, holds; None of weights, which differ from layer to layer."""
    size = prod(tensor.dims)
    if size > 1 and (tensor.data_type in FLOATS or size > MANY):
        return None
    values = onnx.numpy_helper.to_array(tensor)
    if values.dtype.hasobject:
        return None
    return str(values.dtype), values.shape, values.tobytes()


def _bytes(attribute: onnx.AttributeProto) -> bytes:
    return attribute.SerializeToString(deterministic=True)


# --- what nobody reads yet -------------------------------------------------------------------------------------------


def _unread(plan: Plan, held: Source) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(weight, axis, [new slices, numbers of each], the old slices alike) of what the solutions leave free, where it must be random; read off the file."""
    d, graph, random = plan.decisions, plan.roles.structure.graph, plan.request.method != "naive"
    random &= all(std is None or std > SMALL for std in (plan.request.init_std, plan.request.wake))
    shapes = {t.name: tuple(t.dims) for t in held.proto.graph.initializer}
    for tensor, name in _written(plan):
        recipe, origin = d.recipes[tensor], graph.weights[tensor]
        matrix = random and recipe.dtype in FLOATS and sum(n > 1 for n in recipe.old_shape) > 1
        if plan.model.plain is plan.model.opened and shapes.get(name) not in (None, recipe.new_shape):  # a fused operator may stack what it holds
            raise GraphError(f"what is written down of a tensor does not fit: its shape is {list(shapes[name])}, not {list(recipe.new_shape)}", node=name, hint=BUG)
        if not matrix or origin in graph.source.constant or shapes.get(name) != recipe.new_shape:
            continue
        maps, held_now = [d.mapper.axis(tensor, i) for i in range(len(recipe.axes))], held.array(name)
        for axis, m in enumerate(maps):
            others = [np.flatnonzero(other.fill == Fill.OLD)[: WIDE // max(1, len(maps) - 1)] for other in maps]
            drawn = [Fill.DRAWN] * bool(m.draw and m.draw.std)
            new, old = (np.flatnonzero(np.isin(m.fill, codes))[:LOOKED] for codes in ([Fill.FREE, *drawn], [Fill.OLD]))
            wide = prod(len(x) for k, x in enumerate(others) if k != axis)
            if len(new) and len(old) and wide >= FEW:
                slices = (np.moveaxis(held_now[np.ix_(*(x if k == axis else other for k, other in enumerate(others)))], axis, 0) for x in (new, old))
                yield name, axis, *(x.reshape(len(x), -1).astype(np.float32) for x in slices)


def _check_zeros(plan: Plan, held: Source) -> None:
    """Nobody chooses a new expert yet, so that outputs do not say whether its weights are zero where those of the old ones must be."""
    for tensor, name in _new_experts(plan):
        recipe, weight = plan.recipes[name], held.array(name)
        if plan.request.wake or recipe.shift:
            continue
        for axis in range(weight.ndim):
            zeros = np.flatnonzero(plan.decisions.mapper.axis(tensor, axis).fill == Fill.ZERO)[:LOOKED]
            if (np.take(weight, zeros, axis) != np.asarray(recipe.zero_value, weight.dtype)).any():
                raise GraphError("new entries of a new expert, which nobody chooses yet, are not the zeros of the plan", node=name, axis=axis, hint=BUG)


def _written(plan: Plan) -> Iterator[tuple[str, str]]:
    """(weight tensor id, initializer in the file) of every recipe."""
    yield from plan.decisions.applied.names.items()
    yield from _new_experts(plan)


def _new_experts(plan: Plan) -> Iterator[tuple[str, str]]:
    """(weight tensor id of an old expert, initializer of a new one): in a list each has weights of its own, made like those of the old one."""
    d, graph = plan.decisions, plan.roles.structure.graph
    like = {graph.weights[t]: t for t in d.recipes}
    return ((like[r.origin], name) for name, r in plan.recipes.items() if name not in d.applied.names.values() and r.origin in like)
