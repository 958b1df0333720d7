"""Where each byte of a target goes, decided before any is written.

Two forms: embedded, one protobuf file written field by field so that no weight is ever part of a message in memory; and
external, a small .onnx beside `<name>.data`. Offsets of external tensors of a page or more are multiples of 4096, so
that they can be memory-mapped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto

from . import wire
from .axismap import AxisMap
from .errors import FileError
from .external import TensorRef, tensor_bytes
from .recipe import Recipe
from .source import Source

EMBEDDED_LIMIT = (1 << 31) - (1 << 20)  # protobuf ends at 2 GiB
PAGE, SMALL = 4096, 64  # alignment of external tensors, bytes: of a page or more, and of less
VALUES = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True)
class Weight:
    """A streamed tensor: `length` bytes from byte `offset` of the weight file, `ref` by `recipe` (None: copied)."""

    ref: TensorRef
    recipe: Recipe | None
    offset: int
    length: int


@dataclass(frozen=True)
class Layout:
    """The files of a target, by name. `headers` are (file name, offset, bytes); all weights go into `weight_file`."""

    headers: list[tuple[str, int, bytes]]
    weights: list[Weight]
    weight_file: str
    sizes: dict[str, int]  # of each file, the graph last


def lay_out(
    source: Source, proto: onnx.ModelProto, recipes: dict[str, Recipe], name: str, external: bool | None
) -> Layout:
    """The layout of `proto` as the file `name`; `external` None: as the source, or where one file is too small."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    weights: dict[str, Weight] = {}
    for tensor in model.graph.initializer:
        weight = _weight(source, tensor, recipes.get(tensor.name))
        if weight:
            weights[tensor.name] = weight
    size = sum(weight.length for weight in weights.values()) + model.ByteSize() + 64 * len(weights)
    if external is False and size > EMBEDDED_LIMIT:
        raise FileError(f"{size} bytes do not fit into one ONNX file", node=name, hint="allow external data")
    if weights and (external or (external is None and (source.external or size > EMBEDDED_LIMIT))):
        return _external(model, weights, name)
    return _embedded(model, weights, name)


def _weight(source: Source, tensor: TensorProto, recipe: Recipe | None) -> Weight | None:
    """How a tensor is streamed, at offset 0; None where it is inline, with its values in `tensor`."""
    origin = recipe.origin or recipe.name if recipe else tensor.name
    if recipe and (tuple(tensor.dims) != tuple(recipe.new_shape) or tensor.data_type != recipe.dtype):
        raise ValueError(f"{tensor.name}: the recipe makes {recipe.new_shape}, the graph says {tuple(tensor.dims)}")
    ref = source.tensors.get(origin)
    streamed = ref is not None and (recipe is not None or not any(getattr(tensor, field) for field in VALUES))
    if streamed or recipe:
        for field in (*VALUES, "external_data", "data_location"):
            tensor.ClearField(field)
    if not streamed:
        if recipe:
            tensor.raw_data = b"".join(block.tobytes() for _, block in recipe.blocks(source.array(origin)))
        return None
    if recipe is None and tuple(tensor.dims) != ref.shape:
        raise ValueError(f"{tensor.name}: {ref.shape} becomes {tuple(tensor.dims)} without a recipe")
    copied = ref.in_file and (recipe is None or recipe.is_copy)
    return Weight(ref, None if copied else recipe or _as_it_is(tensor), 0, tensor_bytes(tensor))


def inlined(source: Source, tensor: TensorProto, recipe: Recipe | None) -> TensorProto:
    """A copy of a tensor with its values in it."""
    out = TensorProto()
    out.CopyFrom(tensor)
    if recipe is None and any(getattr(tensor, field) for field in VALUES):
        return out
    for field in (*VALUES, "external_data", "data_location"):
        out.ClearField(field)
    recipe = recipe or _as_it_is(tensor)
    out.raw_data = b"".join(block.tobytes() for _, block in recipe.blocks(source.array(recipe.origin or recipe.name)))
    return out


def _as_it_is(tensor: TensorProto) -> Recipe:
    return Recipe(tensor.name, tensor.data_type, tuple(tensor.dims), tuple(tensor.dims), tuple(AxisMap.identity(n) for n in tensor.dims))


def _external(model: onnx.ModelProto, weights: dict[str, Weight], name: str) -> Layout:
    """A graph file that points into `<name>.data`."""
    data, end, placed = f"{name}.data", 0, []
    for tensor in model.graph.initializer:
        weight = weights.get(tensor.name)
        if not weight:
            continue
        align = PAGE if weight.length >= PAGE else SMALL
        offset = -(-end // align) * align
        end = offset + weight.length
        placed.append(replace(weight, offset=offset))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", data), ("offset", offset), ("length", weight.length)):
            tensor.external_data.add(key=key, value=str(value))
    graph = model.SerializeToString()
    return Layout([(name, 0, graph)], placed, data, {data: end, name: len(graph)})


def _embedded(model: onnx.ModelProto, weights: dict[str, Weight], name: str) -> Layout:
    """One file: the model's fields, the graph's fields, then the initializers, each with its weight behind it."""
    pieces: list[tuple[bytes, Weight | None]] = []
    for tensor in model.graph.initializer:
        weight, fields = weights.get(tensor.name), tensor.SerializeToString()
        fields += wire.head(wire.RAW_DATA, weight.length) if weight else b""
        pieces.append((wire.head(wire.INITIALIZER, len(fields) + (weight.length if weight else 0)) + fields, weight))
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    length = len(graph) + sum(len(head) + (weight.length if weight else 0) for head, weight in pieces)
    pieces.insert(0, (model.SerializeToString() + wire.head(wire.GRAPH, length) + graph, None))

    headers, placed, at = [], [], 0
    for head, weight in pieces:
        headers.append((name, at, head))
        at += len(head)
        if weight:
            placed.append(replace(weight, offset=at))
            at += weight.length
    return Layout(headers, placed, name, {name: at})
