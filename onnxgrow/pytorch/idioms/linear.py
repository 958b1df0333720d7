"""Linear maps, tables that are looked up, and convolutions, as layers of torch.nn."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ...graph import Node
from ..scopes import had_bias, padding_row
from ..sizes import Numbers
from ..steps import Layer, Ref, Step
from .registry import idiom

if TYPE_CHECKING:
    from ..lower import Lowering


def linear_of(c: Lowering, x: str, weight: Ref, bias: Ref | None, node: Node) -> Step:
    """y = x W' + b as nn.Linear; `weight` as the layer holds it, [out, in]."""
    dims = c.dims(weight.tensor)
    out, into = dims[::-1] if weight.transposed else dims
    refs = {"weight": weight} | ({"bias": bias} if bias else {})
    layer = Layer("Linear", "{s[0]}, {s[1]}" + ("" if bias else ", bias=False"), (into, out), refs)
    return c.layer_step(layer, [x], node, "x")


@idiom("MatMul")
def matmul_linear(c: Lowering, node: Node) -> Step | None:
    weight = c.matrix(node.inputs[1])
    return linear_of(c, node.inputs[0], c.weights.ref(weight.tensor, not weight.transposed), _dropped(c, node), node) if weight else None


def _dropped(c: Lowering, node: Node) -> Ref | None:
    """The bias that an optimiser dropped because it was all zero."""
    return Ref(None, size=c.shape(node.outputs[0])[1 if node.op == "Conv" else -1][0], node=node.index) if had_bias(node) else None


@idiom("Add")
def linear_bias(c: Lowering, node: Node) -> Step | None:
    for slot in (0, 1):
        made, bias = c.made_by(node.inputs[slot]), c.vector(node.inputs[1 - slot])
        if made and bias and made.layer and made.layer.kind == "Linear" and not _has_bias(made.layer) and c.only_user(node.inputs[slot], node):
            if c.shape(node.inputs[1 - slot])[-1:] == c.shape(node.outputs[0])[-1:]:
                return linear_of(c, made.inputs[0], made.layer.refs["weight"], bias, node)
    return None


def _has_bias(layer: Layer) -> bool:
    """One that is in the graph; a dropped one is not, and what looks like dropped may just follow as an Add."""
    return "bias" in layer.refs and layer.refs["bias"].tensor is not None


@idiom("Gemm")
def gemm_linear(c: Lowering, node: Node) -> Step | None:
    a = node.attrs
    weight = c.matrix(node.inputs[1])
    if not weight or a.get("transA") or (a.get("alpha", 1.0), a.get("beta", 1.0)) != (1.0, 1.0):
        return None
    turned = weight.transposed ^ (not a.get("transB", 0))
    ref = c.weights.ref(weight.tensor, turned)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = c.vector(node.inputs[2])
        return linear_of(c, node.inputs[0], ref, bias, node) if bias else None
    return linear_of(c, node.inputs[0], ref, _dropped(c, node), node)


@idiom("Reshape")
def linear_between_reshapes(c: Lowering, node: Node) -> Step | None:
    """[B T C] -> [B*T C] -> linear -> [B*T D] -> [B T D]: nn.Linear takes the first shape as it is."""
    made = c.made_by(node.inputs[0])
    if not made or not made.layer or made.layer.kind != "Linear":
        return None
    before = c.maker(made.inputs[0])
    if before is None or before.op != "Reshape":
        return None
    x, y = c.resolve(before.inputs[0]), node.outputs[0]
    shape, out, flat = c.shape(x), c.shape(y), c.shape(made.inputs[0])
    lead = len(out) - 1
    if shape[:lead] != out[:-1] or out[-1] != c.shape(node.inputs[0])[-1] or len(flat) != 2 or _times(shape[lead:]) != flat[-1]:
        return None
    step = c.layer_step(made.layer, [x], node, made.word)
    if len(shape) > len(out):  # heads go into the map side by side
        step.form = f"{{m}}({{0:9}}.flatten({lead}))"
    step.scope = made.scope
    return step


def _times(sizes: tuple[Numbers, ...]) -> Numbers:
    return tuple(prod(n) for n in zip(*sizes))


@idiom("Gather")
def embedding(c: Lowering, node: Node) -> Step | None:
    weight = c.matrix(node.inputs[0])
    if not weight or weight.transposed or node.attrs.get("axis", 0) != 0 or c.sizes.constant(node.inputs[1]) is not None:
        return None
    rows, width = c.dims(weight.tensor)
    row = padding_row(node)
    row = c.weights.zero_row(c.graph, weight.tensor) if row is None else row
    layer = Layer("Embedding", "{s[0]}, {s[1]}" + (f", padding_idx={row}" if row is not None else ""), (rows, width), {"weight": c.weights.ref(weight.tensor)})
    return c.layer_step(layer, [node.inputs[1]], node, "embedded")


@idiom("Conv")
def convolution(c: Lowering, node: Node) -> Step | None:
    weight, a = node.inputs[1], node.attrs
    rank = len(c.shape(weight)) - 2
    if weight not in c.weights.parameters or rank not in (1, 2, 3) or a.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    pads = a.get("pads", [0] * 2 * rank)
    if pads[:rank] != pads[rank:]:
        return None
    out, into, *kernel = c.dims(weight)
    bias = c.vector(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else _dropped(c, node)
    groups = a.get("group", 1)
    text = ("{s[1]}" if groups == 1 else f"{{s[1]}} * {groups}") + ", {s[0]}"
    text += ", (" + ", ".join(f"{{s[{2 + i}]}}" for i in range(rank)) + ("," if rank == 1 else "") + ")"
    for key, name, default in (("strides", "stride", 1), ("pads", "padding", 0), ("dilations", "dilation", 1)):
        values = a.get(key, [default] * rank)[:rank]
        if key == "strides" and values == [k.numbers[0] for k in kernel]:
            text += ", stride=(" + ", ".join(f"{{s[{2 + i}]}}" for i in range(rank)) + ("," if rank == 1 else "") + ")"
        elif set(values) != {default}:
            text += f", {name}={tuple(values) if len(set(values)) > 1 else values[0]}"
    text += f", groups={groups}" * (groups > 1) + ("" if bias else ", bias=False")
    refs = {"weight": Ref(weight)} | ({"bias": bias} if bias else {})
    return c.layer_step(Layer(f"Conv{rank}d", text, (out, into, *kernel), refs), [node.inputs[0]], node, "x")
