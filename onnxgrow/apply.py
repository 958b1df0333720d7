"""Write the decisions into a copy of the source's graph: only what changes is touched.

Every use of a shared vector decided for itself; here equal decisions meet again, so that a tensor that may stay shared does. What
differs becomes an initializer of its own, named after the one it came from.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper

from .graph import Graph, free_name, names_read, set_attributes
from .recipe import Recipe
from .repairs import Edits
from .structure import Structure
from .target import Target

Use = tuple[int, int]
Variant = Recipe | np.ndarray | None  # how one use wants its constant: grown, another number, or as it is


@dataclass
class Applied:
    """The edited proto, the recipes by the names in it, and what to tell about it."""

    proto: onnx.ModelProto
    recipes: dict[str, Recipe] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # weight tensor id -> the initializer that its recipe makes
    added: dict[str, int] = field(default_factory=dict)  # float initializers that the source has none of -> their entries
    asleep: dict[str, int] = field(default_factory=dict)  # those of new experts: no gradient before they are chosen

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {t.name: t for t in self.proto.graph.initializer}

    @cached_property
    def constants(self) -> dict[str, onnx.NodeProto]:
        """Constant nodes by output: looking for each among all nodes would take most of the planning time."""
        return {n.output[0]: n for n in self.proto.graph.node if n.op_type == "Constant"}

    def fresh(self, like: str) -> str:
        """A name that nothing in the graph has yet: `like` itself where it is free."""
        return free_name(like, self._taken)

    @cached_property
    def _taken(self) -> set[str]:
        graph = self.proto.graph
        taken = {t.name for t in graph.initializer} | {n.name for n in graph.node} | {v.name for v in graph.input}
        return taken | {name for n in graph.node for name in (*n.input, *n.output)}


def apply_edits(s: Structure, target: Target, edits: Edits, recipes: dict[str, Recipe]) -> Applied:
    """`recipes` is by weight tensor id of the analysis; the result's is by initializer name."""
    graph, proto = s.graph, onnx.ModelProto()
    proto.CopyFrom(graph.source.proto)
    out = Applied(proto)
    for index, changed in edits.attributes.items():
        set_attributes(proto.graph.node[index], changed)
    taken = {n for node in proto.graph.node for n in (*node.input, *node.output)} | {t.name for t in proto.graph.initializer}
    for origin, uses in _uses_by_origin(graph, edits).items():
        _apply_origin(graph, out, origin, [(use, _variant(graph, use, edits, recipes)) for use in uses], taken)
    for (index, slot), value in edits.constants.items():
        node = graph.by_index[index]
        if node.inputs[slot] not in graph.weights:
            _rewire(proto, (index, slot), _new_constant(proto, value, f"{node.inputs[slot]}_kept", taken))
    _resize_values(s, target, proto)
    _drop_unused(graph.source.proto, proto)
    return out


def _uses_by_origin(graph: Graph, edits: Edits) -> dict[str, list[Use]]:
    uses = defaultdict(list)
    for tensor, origin in graph.weights.items():
        uses[origin] += [(n.index, slot) for n, slot in graph.users.get(tensor, [])]
    return uses


def _variant(graph: Graph, use: Use, edits: Edits, recipes: dict[str, Recipe]) -> Variant:
    if use in edits.constants:
        return edits.constants[use]
    tensor = graph.by_index[use[0]].inputs[use[1]]
    return edits.tables[tensor].value if tensor in edits.tables else recipes.get(tensor)


def _key(v: Variant):
    if v is None:
        return None
    if isinstance(v, np.ndarray):
        return ("value", v.dtype.str, v.shape, v.tobytes())
    raw = lambda x: None if x is None else x.tobytes()  # noqa: E731
    axes = tuple((raw(a.source), raw(a.fill), a.share, raw(a.mixes), raw(a.pattern), a.draw) for a in v.axes)
    return ("recipe", axes, v.scale, v.shift, v.free, v.std, raw(v.given), v.zero)


def _apply_origin(graph: Graph, out: Applied, origin: str, uses: list[tuple[Use, Variant]], taken: set[str]) -> None:
    groups: dict = defaultdict(list)
    for use, variant in uses:
        groups[_key(variant)].append((use, variant))
    keeper = None if None in groups else next(iter(groups), None)  # who keeps the name: the unchanged uses, else the first
    for key, members in groups.items():
        variant = members[0][1]
        if key is None:
            continue
        if key == keeper:
            _replace(graph, out, origin, variant)
            name = origin
        else:
            name = _create(graph, out, origin, variant, taken)
            for use, _ in members:
                _rewire(out.proto, use, name)
        if isinstance(variant, Recipe):
            out.names |= {graph.by_index[index].inputs[slot]: name for (index, slot), _ in members}


def _replace(graph: Graph, out: Applied, origin: str, variant: Variant) -> None:
    """Change a constant under its own name."""
    if origin in graph.constant_nodes:
        value = np.asarray(variant if isinstance(variant, np.ndarray) else variant.evaluate(graph.array(origin)))
        (held,) = out.constants[origin].attribute
        if held.name == "value":
            _set_data(held.t, value)
        else:  # value_int and its like hold no more than they say
            del out.constants[origin].attribute[:]
            set_attributes(out.constants[origin], {"value": numpy_helper.from_array(value)})
        return
    tensor = out.initializers[origin]
    if isinstance(variant, np.ndarray):
        _set_data(tensor, variant)
        return
    out.recipes[origin] = replace(variant, name=origin, origin=origin)
    tensor.dims[:] = variant.new_shape


def _set_data(tensor: onnx.TensorProto, value: np.ndarray) -> None:
    """Other numbers in the same tensor: its name, docs, metadata and unknown fields stay."""
    new = numpy_helper.from_array(value)
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data", "external_data", "data_location"):
        tensor.ClearField(name)
    tensor.dims[:], tensor.data_type, tensor.raw_data = new.dims, new.data_type, new.raw_data


def _create(graph: Graph, out: Applied, origin: str, variant: Variant, taken: set[str]) -> str:
    if isinstance(variant, np.ndarray):
        return _new_constant(out.proto, variant, origin, taken)
    name = free_name(origin, taken, never=True)
    if origin in graph.constant_nodes:
        out.proto.graph.initializer.append(numpy_helper.from_array(replace(variant, name=name).evaluate(graph.array(origin)), name))
        return name
    tensor = out.proto.graph.initializer.add(name=name, data_type=variant.dtype)
    tensor.dims[:] = variant.new_shape
    out.recipes[name] = made = replace(variant, name=name, origin=origin)
    if prod(variant.new_shape) == 1:  # single numbers are read again where fused operators are put together
        _set_data(tensor, made.evaluate(graph.array(origin)))
    return name


def _new_constant(proto: onnx.ModelProto, value: np.ndarray, like: str, taken: set[str]) -> str:
    name = free_name(like, taken, never=True)
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
    return name


def _rewire(proto: onnx.ModelProto, use: Use, name: str) -> None:
    proto.graph.node[use[0]].input[use[1]] = name


def _resize_values(s: Structure, target: Target, proto: onnx.ModelProto) -> None:
    """Written-down sizes of inputs, outputs and intermediate tensors follow; symbolic ones stay."""
    held = {t.name: t.dims for t in proto.graph.initializer}
    for value in proto.graph.value_info:
        for axis, size in zip(value.type.tensor_type.shape.dim, held.get(value.name, ())):
            axis.dim_value = size
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        name = s.graph.alias.get(value.name, value.name)
        dims = s.dims.get(name)
        shape = value.type.tensor_type.shape.dim
        if dims is None or len(dims) != len(shape):
            continue
        for d, axis in zip(dims, shape):
            if axis.HasField("dim_value") and target.size(d) != d.size:
                axis.dim_value = target.size(d)


def _drop_unused(before: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    """Remove nodes and initializers that lost their last user, and what is written down of them; what was unused before stays."""
    needed, gone = names_read(before.graph), set()
    while True:
        lost = needed - names_read(proto.graph)
        dead = [n for n in proto.graph.node if n.output and all(not o or o in lost for o in n.output)]
        for n in dead:
            proto.graph.node.remove(n)
            gone.update(n.output)
        if not dead:
            break
    for held, names in ((proto.graph.initializer, lost), (proto.graph.value_info, gone)):
        for item in [i for i in held if i.name in names]:
            held.remove(item)
