"""Meanings that the graph spreads over many nodes, or writes in another layout: recognised from the last node backwards.

Each function looks at one node and returns the step that stands for it and what leads to it, or None. What it covers is left out
because nobody asks for it any more; where somebody does, it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from ..graph import Node
from .build import number
from .lower import Lowering
from .scopes import had_bias, padding_row
from .sizes import Numbers, is_constant
from .steps import Layer, Ref, Size, Step

IDIOMS: dict[str, list[Callable[[Lowering, Node], Step | None]]] = {}


def idiom(*operators: str):
    def enter(function):
        for name in operators:
            IDIOMS.setdefault(name, []).append(function)
        return function
    return enter


# --- linear maps ------------------------------------------------------------------------------------------------------


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


# --- norms ------------------------------------------------------------------------------------------------------------


def norm_of(c: Lowering, kind: str, x: str, gain: Ref, bias: Ref | None, eps: float, node: Node) -> Step:
    refs = {"weight": gain} | ({"bias": bias} if bias else {})
    name, more = ("LayerNorm", "" if bias else ", bias=False") if kind == "layer norm" else ("RMSNorm", "")
    return c.layer_step(Layer(name, f"{{s[0]}}, eps={number(np.float32(eps))}{more}", (c.dims(gain.tensor)[-1],), refs), [x], node, "normed")


@idiom("LayerNormalization")
def fused_layer_norm(c: Lowering, node: Node) -> Step | None:
    gain, bias = c.vector(node.inputs[1]), c.vector(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    last = node.attrs.get("axis", -1) in (-1, len(c.shape(node.inputs[0])) - 1)
    if not gain or not last or (len(node.inputs) > 2 and node.inputs[2] and not bias):
        return None
    return norm_of(c, "layer norm", node.inputs[0], gain, bias, node.attrs.get("epsilon", 1e-5), node)


@idiom("RMSNormalization", "SimplifiedLayerNormalization")
def fused_rms_norm(c: Lowering, node: Node) -> Step | None:
    gain = c.vector(node.inputs[1])
    last = node.attrs.get("axis", -1) in (-1, len(c.shape(node.inputs[0])) - 1)
    return norm_of(c, "rms norm", node.inputs[0], gain, None, node.attrs.get("epsilon", 1e-5), node) if gain and last else None


@idiom("Mul", "Div")
def bare_norm(c: Lowering, node: Node) -> Step | None:
    """The end of a norm that is spelled out, before its gain."""
    norm = c.norms.get(node.outputs[0])
    if norm is None:
        return None
    eps = c.walk.value(*norm.eps) if norm.eps else np.float32(0)
    if eps is None:
        return None
    size = Size(c.shape(norm.x)[-1], c.dim(norm.x, -1))
    name = "layer_norm" if norm.kind == "layer norm" else "rms_norm"
    step = Step(f"F.{name}({{0}}, ({{s[0]}},), eps={number(np.float32(eps.ravel()[0]))})", [c.resolve(norm.x)], list(node.outputs), node.index,
                sizes=[size], word="normed")
    step.norm = (norm.kind, norm.x, float(np.float32(eps.ravel()[0])))
    return step


@idiom("Mul")
def norm_gain(c: Lowering, node: Node) -> Step | None:
    for slot in (0, 1):
        made, gain = c.made_by(c.behind_casts(node.inputs[slot])), c.vector(node.inputs[1 - slot])
        if made and gain and getattr(made, "norm", None):
            kind, x, eps = made.norm
            step = norm_of(c, kind, c.behind_casts(x), gain, None, eps, node)
            step.norm = (kind, x, eps)
            return step
    return None


@idiom("Add")
def norm_bias(c: Lowering, node: Node) -> Step | None:
    for slot in (0, 1):
        made, bias = c.made_by(node.inputs[slot]), c.vector(node.inputs[1 - slot])
        if made and bias and made.layer and getattr(made, "norm", None) and made.layer.kind == "LayerNorm":
            kind, x, eps = made.norm
            return norm_of(c, kind, c.behind_casts(x), made.layer.refs["weight"], bias, eps, node)
    return None


@idiom("Reshape")
def swapped_axes(c: Lowering, node: Node) -> Step | None:
    """The last two axes change places behind a detour through fewer axes."""
    found = c.swapped(node.outputs[0])
    return c.function("{0:9}.transpose(-2, -1)", [found], node) if found else None


# --- activations ------------------------------------------------------------------------------------------------------


@idiom("Mul")
def gelu(c: Lowering, node: Node) -> Step | None:
    """0.5 x (1 + erf(x/√2)), and with tanh(√(2/π) (x + 0.044715 x³)), whatever order the factors stand in."""
    factors, scale = c.factors(node)
    if len(factors) != 2 or abs(scale - 0.5) > 1e-6:
        return None
    for x, other in (factors, factors[::-1]):
        inner = c.plus(other, 1.0)
        made = c.maker(inner) if inner else None
        if made is None or made.op not in ("Erf", "Tanh"):
            continue
        argument, by = c.scaled(made.inputs[0])
        if made.op == "Erf" and argument == c.resolve(x) and abs(by - 0.5**0.5) < 1e-6:
            return c.function("F.gelu({0})", [x], node)
        if made.op == "Tanh" and abs(by - (2 / np.pi) ** 0.5) < 1e-6 and c.is_cubic(argument, x):
            return c.function('F.gelu({0}, approximate="tanh")', [x], node)
    return None


@idiom("Mul")
def silu(c: Lowering, node: Node) -> Step | None:
    """x sigmoid(x), and the quick GELU x sigmoid(1.702 x) as it stands."""
    for x, other in (node.inputs, node.inputs[::-1]):
        made = c.maker(other)
        if made is not None and made.op == "Sigmoid" and c.resolve(made.inputs[0]) == c.resolve(x):
            return c.function("F.silu({0})", [x], node)
    return None


# --- attention --------------------------------------------------------------------------------------------------------


@idiom("MatMul")
def attention(c: Lowering, node: Node) -> Step | None:
    """softmax(scale q k' + mask) v as scaled_dot_product_attention."""
    found = c.attention.get(node.outputs[0])
    if found is None or c.behind_guards(node.inputs[0]) != found.softmax.outputs[0]:
        return None
    if found.softmax.attrs.get("axis", -1) not in (-1, len(c.shape(found.softmax.outputs[0])) - 1):
        return None
    inside = _scores(c, found.softmax.inputs[0], found.scores)
    if inside is None:
        return None
    scale, masks = inside
    (query, by), (key, by2) = c.scaled(found.scores.inputs[0]), c.scaled(found.scores.inputs[1])
    flipped = c.transposed(key)
    if flipped is None:
        return None
    (inner, by3), perm = c.scaled(flipped[0]), flipped[1]
    key, value, scale = (inner, c.permutation(inner, perm)), c.resolve(node.inputs[1]), scale * by * by2 * by3
    shapes = c.shape(query), tuple(c.shape(inner)[p] for p in perm), c.shape(value)
    if not (shapes[0][:-2] == shapes[1][:-2] == shapes[2][:-2]) or shapes[0][-1] != shapes[1][-1] or not is_constant(shapes[0][-1]):
        return None
    return _write_attention(c, node, found, query, key, value, shapes, scale, masks)


def _scores(c: Lowering, logits: str, scores: Node) -> tuple[float, list[tuple]] | None:
    """From the Softmax back to the product: the factor, and what is added or filled in on the way."""
    masks, scale, tensor = [], 1.0, c.resolve(logits)
    while True:
        node = c.maker(tensor)
        if node is None:
            return None
        if node.index == scores.index:
            return scale, masks
        if node.op == "Cast":
            tensor = c.resolve(node.inputs[0])
        elif node.op in ("Mul", "Div"):
            tensor, by = c.scaled(tensor)
            if tensor == node.outputs[0] or masks and masks[-1] is None:
                return None
            if c.maker(tensor) is node:
                return None
            scale *= by
        elif node.op == "Add" and scale == 1.0:
            leads = [t for t in node.inputs if c.leads_to(t, scores)]
            if len(leads) != 1:
                return None
            masks.append(("add", node.inputs[1 - node.inputs.index(leads[0])]))
            tensor = c.resolve(leads[0])
        elif node.op == "Where" and scale == 1.0:
            kept = next((i for i in (1, 2) if c.leads_to(node.inputs[i], scores)), None)
            fill = c.sizes.constant(node.inputs[3 - kept]) if kept else None
            if fill is None or fill.size != 1 or not fill.ravel()[0] <= -1e8:
                return None
            masks.append(("where" if kept == 2 else "unless", node.inputs[0], fill.ravel()[0]))
            tensor = c.resolve(node.inputs[kept])
        else:
            return None


def _write_attention(c: Lowering, node: Node, found, query: str, key: tuple, value: str, shapes: tuple, scale: float, masks: list) -> Step:
    inputs, sizes = [c.resolve(query), c.resolve(key[0]), value], []
    for t, word in zip(inputs, ("query", "key", "value")):
        c.keep.add(t)
        c.words.setdefault(t, word)
    parts = []
    causal = len(masks) == 1 and c.is_causal(masks[0])
    for mask in [] if causal else masks:
        inputs.append(c.resolve(mask[1]))
        place = len(inputs) - 1
        if mask[0] == "add":
            parts.append(f"{{{place}:6}}")
        else:
            zero, fill = ("0.0", number(mask[2]))
            parts.append(f"torch.where({{{place}}}, {fill}, {zero})" if mask[0] == "where" else f"torch.where({{{place}}}, {zero}, {fill})")
    more = ", is_causal=True" if causal else f", attn_mask={' + '.join(parts)}" if parts else ""
    head_dim = shapes[0][-1][0]
    if abs(scale * head_dim**0.5 - 1) > 1e-6:
        more += f", scale={number(np.float32(scale))}"
    if c.dropout_behind(node.inputs[0]):
        more += ", dropout_p=self.attention_dropout if self.training else 0.0"
    scope = c.common_scope(found.scores, node)
    return Step(f"F.scaled_dot_product_attention({{0}}, {{1}}{key[1]}, {{2}}{more})", inputs, list(node.outputs), node.index, scope=scope,
                sizes=sizes, word="mixed")
