"""One thing about a growth broken at random, just before it is written: what tests/corrupted.py tries.

A corruption changes the parts from which a file is made (recipes, graph, references to weights, maps of what is fed and given) and says
what it did, or does nothing where the growth has no such thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.external import Filled, TensorRef
from onnxgrow.plan import Plan
from onnxgrow.recipe import Recipe

FACTORS = (-1.0, 0.0, 0.5, 0.9, 1.1, 2.0)


@dataclass
class Parts:
    """What a file is made of: copies, so that the plan stays as it was."""

    recipes: dict[str, Recipe]
    proto: onnx.ModelProto
    tensors: dict[str, TensorRef]
    inputs: dict[str, tuple[AxisMap, ...]]
    outputs: dict[str, tuple[AxisMap, ...]]

    @classmethod
    def of(cls, plan: Plan) -> Parts:
        """Those of a plan, before anything is broken."""
        d, proto = plan.decisions, onnx.ModelProto()
        proto.CopyFrom(plan.proto())
        return cls(dict(plan.recipes), proto, dict(plan.source.tensors), dict(d.inputs), dict(d.outputs))


Random = np.random.Generator
Corruption = Callable[[Parts, Random], str | None]


def pick(rng: Random, items):
    """One of several; None of none."""
    items = list(items)
    return items[rng.integers(len(items))] if items else None


def _recipe(parts: Parts, rng: Random, fits: Callable[[Recipe], bool]) -> tuple[str, Recipe] | None:
    return pick(rng, [(name, r) for name, r in parts.recipes.items() if fits(r)])


def _axis(rng: Random, axes: tuple[AxisMap, ...]) -> int | None:
    return pick(rng, [k for k, m in enumerate(axes) if not m.is_identity])


def _with(axes: tuple[AxisMap, ...], k: int, m: AxisMap) -> tuple[AxisMap, ...]:
    return (*axes[:k], m, *axes[k + 1 :])


# --- fills, repairs and maps of weights ------------------------------------------------------------------------------


def fill(parts: Parts, rng: Random) -> str | None:
    """New entries of a weight hold something else: all of one fill along an axis, or a single one of them."""
    found = _recipe(parts, rng, lambda r: any((m.fill != Fill.OLD).any() for m in r.axes))
    if found is None:
        return None
    name, recipe = found
    k = pick(rng, [k for k, m in enumerate(recipe.axes) if (m.fill != Fill.OLD).any()])
    m = recipe.axes[k]
    old = pick(rng, np.unique(m.fill[m.fill != Fill.OLD]))
    where = np.flatnonzero(m.fill == old)
    where = where if rng.random() < 0.5 else where[[rng.integers(len(where))]]
    kinds = [Fill.ZERO, Fill.FREE, Fill.OLD, *[Fill.MEAN] * bool(recipe.is_float and (m.fill == Fill.OLD).any())]
    new = pick(rng, [x for x in kinds if x != old])
    codes, source = m.fill.copy(), m.source.copy()
    codes[where] = new
    source[where] = rng.integers(m.old, size=len(where)) if new == Fill.OLD else -1
    more = {} if recipe.given is None else {"free": "random", "given": None}
    parts.recipes[name] = replace(recipe, axes=_with(recipe.axes, k, replace(m, fill=codes, source=source, mixes=None, pattern=None)), **more)
    return f"{name} axis {k}: {len(where)} of {Fill(old).name} are {Fill(new).name}"


def free(parts: Parts, rng: Random) -> str | None:
    """What nobody reads yet holds something else: zeros, or means."""
    found = _recipe(parts, rng, lambda r: r.is_float and any((m.fill == Fill.FREE).any() for m in r.axes))
    if found is None:
        return None
    name, recipe = found
    new = pick(rng, [dict(free=kind, given=None) for kind in ("random", "zero", "gain") if kind != recipe.free] + [dict(std=0.0)])
    parts.recipes[name] = replace(recipe, **new)
    return f"{name}: free is {new}"


def repair(parts: Parts, rng: Random) -> str | None:
    """A repair is left out, or another one."""
    found = _recipe(parts, rng, lambda r: r.is_float and (r.is_scaled or any(m.share for m in r.axes) or rng.random() < 0.2))
    if found is None:
        return None
    name, recipe = found
    if any(m.share for m in recipe.axes) and rng.random() < 0.7:
        parts.recipes[name] = replace(recipe, axes=tuple(replace(m, share=False) for m in recipe.axes))
        return f"{name}: shares are whole"
    scale = pick(rng, {1.0, 1 / recipe.scale, recipe.scale**2, recipe.scale * 1.01, -recipe.scale} - {recipe.scale})
    parts.recipes[name] = replace(recipe, scale=scale)
    return f"{name}: scale {recipe.scale:.4g} is {scale:.4g}"


def order(parts: Parts, rng: Random) -> str | None:
    """Old entries of a weight land elsewhere: two change places, all move by one, or one is taken twice."""
    found = _recipe(parts, rng, lambda r: any(m.old > 1 for m in r.axes))
    if found is None:
        return None
    name, recipe = found
    k = pick(rng, [k for k, m in enumerate(recipe.axes) if m.old > 1])
    m, what = _moved(recipe.axes[k], rng)
    parts.recipes[name] = replace(recipe, axes=_with(recipe.axes, k, m))
    return f"{name} axis {k}: {what}"


def _moved(m: AxisMap, rng: Random) -> tuple[AxisMap, str]:
    source, kept = m.source.copy(), np.flatnonzero(m.fill == Fill.OLD)
    way = pick(rng, ["swapped", "rolled", "doubled", "placed"])
    a, b = rng.choice(kept, 2, replace=False) if len(kept) > 1 else (kept[0], kept[0])
    if way == "swapped":
        source[a], source[b] = source[b], source[a]
    elif way == "rolled":
        source[kept] = np.roll(source[kept], 1)
    elif way == "doubled":
        source[a] = source[b]
    else:  # an old and a new entry change places
        new = np.flatnonzero(m.fill != Fill.OLD)
        b = rng.choice(new) if len(new) else b
        codes = m.fill.copy()
        for x in (source, codes):
            x[a], x[b] = x[b], x[a]
        return replace(m, source=source, fill=codes), f"{a} and {b} change places"
    return replace(m, source=source), f"{way} at {a}, {b}"


def length(parts: Parts, rng: Random) -> str | None:
    """A weight is made one longer than the graph says."""
    found = _recipe(parts, rng, lambda r: bool(r.axes))
    if found is None:
        return None
    name, recipe = found
    k = int(rng.integers(len(recipe.axes)))
    m = recipe.axes[k]
    m = AxisMap(m.old, m.new + 1, np.r_[m.source, -1], np.r_[m.fill, Fill.ZERO], m.share)
    axes, graph_too = _with(recipe.axes, k, m), rng.random() < 0.5
    parts.recipes[name] = replace(recipe, axes=axes, new_shape=tuple(a.new for a in axes), free="zero", given=None)
    if graph_too:
        next(t for t in parts.proto.graph.initializer if t.name == name).dims[k] += 1
    return f"{name} axis {k}: one longer{', in the graph too' if graph_too else ''}"


# --- the graph -------------------------------------------------------------------------------------------------------


def constant(parts: Parts, rng: Random) -> str | None:
    """One element of a number that stands in the graph is another one."""
    graph = parts.proto.graph
    held = [t for t in graph.initializer if t.raw_data and t.name not in parts.recipes]
    held += [a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    tensor = pick(rng, [t for t in held if 0 < numpy_helper.to_array(t).size <= 64 and t.data_type != TensorProto.STRING])
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor).copy()
    place = int(rng.integers(values.size))
    before = values.flat[place]
    if values.dtype == bool:
        values.flat[place] = not before
    else:
        values.flat[place] = before + pick(rng, [-1, 1]) if values.dtype.kind in "iu" else before * pick(rng, FACTORS) if before else 0.1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return f"constant {tensor.name!r}[{place}]: {before} is {values.flat[place]}"


def attribute(parts: Parts, rng: Random) -> str | None:
    """A number in an attribute is another one."""
    kinds = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT)
    found = [(n, a) for n in parts.proto.graph.node for a in n.attribute if a.type in kinds and (a.type != AttributeProto.INTS or a.ints)]
    if not found:
        return None
    node, a = pick(rng, found)
    if a.type == AttributeProto.FLOAT:
        before, a.f = a.f, a.f * pick(rng, FACTORS) if a.f else 0.1
        return f"{node.name} {a.name}: {before} is {a.f}"
    if a.type == AttributeProto.INT:
        before, a.i = a.i, a.i + pick(rng, [-1, 1])
        return f"{node.name} {a.name}: {before} is {a.i}"
    before, k = list(a.ints), int(rng.integers(len(a.ints)))
    a.ints[k] += pick(rng, [-1, 1])
    return f"{node.name} {a.name}: {before} is {list(a.ints)}"


def shape(parts: Parts, rng: Random) -> str | None:
    """A size that is written down is off by one: of a weight, an input, an output, or a tensor on the way."""
    graph = parts.proto.graph
    if rng.random() < 0.3:
        tensor = pick(rng, [t for t in graph.initializer if t.dims])
        k = int(rng.integers(len(tensor.dims)))
        tensor.dims[k] += pick(rng, [-1, 1])
        return f"initializer {tensor.name!r} axis {k} is {tensor.dims[k]}"
    values = [(v, d) for v in (*graph.input, *graph.output, *graph.value_info) for d in v.type.tensor_type.shape.dim if d.HasField("dim_value") and d.dim_value > 1]
    if not values:
        return None
    value, dim = pick(rng, values)
    dim.dim_value += pick(rng, [-1, 1])
    return f"value {value.name!r}: a size is {dim.dim_value}"


def wiring(parts: Parts, rng: Random) -> str | None:
    """A node reads another weight of the same shape, its inputs the other way round, or what its neighbour reads."""
    graph = parts.proto.graph
    held = {t.name: (tuple(t.dims), t.data_type) for t in graph.initializer}
    if rng.random() < 0.5:
        uses = [(n, i, x) for n in graph.node for i, x in enumerate(n.input) if x in held and held[x][0]]
        node, slot, name = pick(rng, uses)
        other = pick(rng, [x for x in held if x != name and held[x] == held[name]])
        if other is None:
            return None
        node.input[slot] = other
        return f"{node.name} reads {other!r} in the place of {name!r}"
    node = pick(rng, [n for n in graph.node if len(n.input) > 1 and n.input[0] != n.input[1] and n.input[1]])
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return f"{node.name} ({node.op_type}): inputs change places"


def untied(parts: Parts, rng: Random) -> str | None:
    """One reader of a shared weight gets a copy of its own, which another seed fills."""
    uses: dict[str, list] = {}
    for n in parts.proto.graph.node:
        for i, x in enumerate(n.input):
            uses.setdefault(x, []).append((n, i))
    found = _recipe(parts, rng, lambda r: len(uses.get(r.name, ())) > 1)
    if found is None:
        return None
    name, recipe = found
    node, slot = pick(rng, uses[name])
    twin = f"{name}.untied"
    parts.recipes[twin] = replace(recipe, name=twin, origin=recipe.origin or name)
    tensor = parts.proto.graph.initializer.add(name=twin, data_type=recipe.dtype)
    tensor.dims[:] = recipe.new_shape
    node.input[slot] = twin
    return f"{node.name} reads a copy of {name!r}"


def removed(parts: Parts, rng: Random) -> str | None:
    """A node is left out: its readers read its first input."""
    graph = parts.proto.graph
    given = {v.name for v in graph.output}
    node = pick(rng, [n for n in graph.node if n.input and n.input[0] and n.output[0] not in given])
    for n in graph.node:
        n.input[:] = [node.input[0] if x == node.output[0] else x for x in n.input]
    graph.node.remove(node)
    return f"{node.name} ({node.op_type}) is left out"


# --- blocks, and what is fed and given -------------------------------------------------------------------------------


def block(parts: Parts, rng: Random) -> str | None:
    """A weight of an inserted block is no longer zero or one, or is another one of its shape."""
    filled = [name for name, ref in parts.tensors.items() if isinstance(ref, Filled)]
    if filled and rng.random() < 0.6:
        name = pick(rng, filled)
        value = parts.tensors[name].value + pick(rng, [0.1, 1.0, -1.0])
        parts.tensors[name] = replace(parts.tensors[name], value=value)
        return f"{name}: filled with {value}"
    name = pick(rng, parts.tensors)
    other = pick(rng, [x for x, ref in parts.tensors.items() if x != name and ref.shape == parts.tensors[name].shape and ref.dtype == parts.tensors[name].dtype])
    if other is None:
        return None
    parts.tensors[name] = parts.tensors[other]
    return f"{name} is made from {other}"


def ends(parts: Parts, rng: Random) -> str | None:
    """The map of an input or output is another one: what is fed and compared lands elsewhere."""
    found = [(maps, name, k) for maps in (parts.inputs, parts.outputs) for name, axes in maps.items() for k, m in enumerate(axes) if not m.is_identity]
    if not found:
        return None
    maps, name, k = pick(rng, found)
    m, what = _moved(maps[name][k], rng)
    maps[name] = _with(maps[name], k, m)
    return f"map of {name!r} axis {k}: {what}"


KINDS: tuple[Corruption, ...] = (fill, fill, free, repair, order, order, length, constant, constant, attribute, shape, wiring, untied, removed, block, ends)
