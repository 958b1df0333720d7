"""Attention as F.scaled_dot_product_attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...graph import Node
from ..build import number
from ..sizes import is_constant
from ..steps import Step
from .registry import idiom

if TYPE_CHECKING:
    from ..lower import Lowering


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


@idiom("Reshape")
def swapped_axes(c: Lowering, node: Node) -> Step | None:
    """The last two axes change places behind a detour through fewer axes."""
    found = c.swapped(node.outputs[0])
    return c.function("{0:9}.transpose(-2, -1)", [found], node) if found else None
