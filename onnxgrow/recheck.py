"""A written file looked at once more before it counts: what running it would not show.

Outputs say nothing of sizes that are written down and wrong, which only other tools read, nor of new entries that nobody reads yet: these
must be random, or the new parts would move alike for ever. Both are read off the file, not off the recipes that made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import shape_inference

from .axismap import Fill
from .errors import GraphError
from .recipe import sample_std
from .roles import FLOATS
from .source import Source, open_source

if TYPE_CHECKING:
    from .model import Plan

BUG = "report this as a bug, with the plan"
LOOKED = 4096  # new slices of a weight that are looked at, from the first on
WIDE = 32  # entries of such a slice along each other axis
FEW = 4  # with fewer numbers than that, two random slices could be equal by chance

Sizes = list[int | None]


def recheck(plan: Plan, written: Path) -> None:
    """Refuse a file whose written-down sizes are wrong where the source's were right, or whose new parts could not learn apart.

    Raises:
        GraphError: with the tensor.
    """
    held = open_source(written)
    _check_sizes(held.proto, plan.model.opened.proto)
    for tensor, axis, slices in _unread(plan, held):
        problem = "hold nothing but zeros" if not slices.any(axis=1).all() else "are alike" if len(np.unique(slices, axis=0)) < len(slices) else None
        if problem:
            raise GraphError(f"new entries that nobody reads yet {problem}, so that they could not learn", node=tensor, axis=axis, hint=BUG)


# --- sizes that are written down -------------------------------------------------------------------------------------


def _check_sizes(proto: onnx.ModelProto, before: onnx.ModelProto) -> None:
    wrong = _wrong_sizes(proto)
    known = _wrong_sizes(before) if wrong else {}
    for name, problem in wrong.items():
        if name not in known:
            raise GraphError(f"what is written down of a tensor does not fit: {problem}", node=name, hint=BUG)


def _wrong_sizes(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensor -> how its written-down shape differs from the one that follows from its node, as far as ONNX can tell."""
    graph = proto.graph
    made = {o for n in graph.node for o in n.output} | {v.name for v in graph.input} | {t.name for t in graph.initializer}
    lost = {v.name: "no node makes it" for v in graph.value_info if v.name not in made}
    told, bare = _shapes(graph), onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    found = _shapes(shape_inference.infer_shapes(bare, data_prop=True).graph) | {t.name: list(t.dims) for t in graph.initializer}
    return lost | {name: f"its shape is {_words(found[name])}, not {_words(told[name])}" for name in told if name in found and not _agree(told[name], found[name])}


def _shapes(graph: onnx.GraphProto) -> dict[str, Sizes]:
    values = [v for v in (*graph.input, *graph.value_info, *graph.output) if v.type.tensor_type.HasField("shape")]
    return {v.name: [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim] for v in values}


def _agree(a: Sizes, b: Sizes) -> bool:
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in zip(a, b))


def _words(sizes: Sizes) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in sizes)}]"


# --- what nobody reads yet -------------------------------------------------------------------------------------------


def _unread(plan: Plan, held: Source) -> Iterator[tuple[str, int, np.ndarray]]:
    """(weight, axis, [new slices, numbers of each]) of what the solutions leave free, where it must be random; read off the file."""
    d, graph = plan.decisions, plan.roles.structure.graph
    if plan.request.method == "naive" or plan.request.init_std == 0:
        return
    for tensor, recipe in d.recipes.items():
        name, origin = d.applied.names.get(tensor), graph.weights[tensor]
        matrix = recipe.dtype in FLOATS and sum(n > 1 for n in recipe.old_shape) > 1
        ref = held.tensors.get(name) if matrix and origin not in graph.source.constant else None
        if ref is None or ref.shape != recipe.new_shape or not sample_std(graph.array(origin).reshape(-1)):
            continue
        maps = [d.mapper.axis(tensor, i) for i in range(len(recipe.axes))]
        for axis, m in enumerate(maps):
            places = [np.flatnonzero(m.fill == Fill.FREE)[:LOOKED] if k == axis else np.flatnonzero(other.fill == Fill.OLD)[:WIDE] for k, other in enumerate(maps)]
            count = len(places[axis])
            if count and prod(map(len, places)) >= FEW * count:
                yield name, axis, np.moveaxis(ref.array()[np.ix_(*places)], axis, 0).reshape(count, -1).astype(np.float32)
