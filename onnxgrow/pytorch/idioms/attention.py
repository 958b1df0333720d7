"""Attention as F.scaled_dot_product_attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...graph import Node
from ..build import number
from ..forms import permuted
from ..sizes import is_constant
from ..steps import PLUS, Step
from .registry import idiom

if TYPE_CHECKING:
    from ..lower import Lowering


@dataclass(frozen=True)
class Mask:
    """What happens to the scores on the way to the Softmax: `tensor` is added, or where it holds ("where") or does not ("unless") they become `fill`."""

    kind: str
    tensor: str
    fill: float = 0.0

    def form(self, place: int) -> str:
        """Text of the additive mask; the tensor is input number `place` of the step."""
        if self.kind == "add":
            return f"{{{place}:{PLUS}}}"
        values = (number(self.fill), "0.0")[:: 1 if self.kind == "where" else -1]
        return f"torch.where({{{place}}}, {values[0]}, {values[1]})"


@idiom("MatMul")
def attention(c: Lowering, node: Node) -> Step | None:
    """softmax(scale q k' + mask) v as scaled_dot_product_attention."""
    found = c.attention.get(node.outputs[0])
    if found is None or c.behind_guards(node.inputs[0]) != found.softmax.outputs[0]:
        return None
    last = found.softmax.attrs.get("axis", -1) in (-1, len(c.shape(found.softmax.outputs[0])) - 1)
    inside = _on_the_scores(c, found.softmax.inputs[0], found.scores)
    (query, by), (key, by_key) = c.scaled(found.scores.inputs[0]), c.scaled(found.scores.inputs[1])
    flipped = c.transposed(key)
    if not last or inside is None or flipped is None:
        return None
    (key, by_inner), perm = c.scaled(flipped[0]), flipped[1]
    shape, value = c.shape(query), c.resolve(node.inputs[1])
    lead = {shape[:-2], tuple(c.shape(key)[p] for p in perm[:-2]), c.shape(value)[:-2]}  # keys that are shared by heads without being repeated stay as they are
    if len(lead) > 1 or not is_constant(shape[-1]):
        return None
    scale, masks = inside
    scale *= by * by_key * by_inner * shape[-1][0] ** 0.5  # 1 where it is what PyTorch takes by itself
    return _write(c, node, found.scores, (query, key, value), permuted(perm), scale / shape[-1][0] ** 0.5 if abs(scale - 1) > 1e-6 else None, masks)


def _on_the_scores(c: Lowering, logits: str, scores: Node) -> tuple[float, list[Mask]] | None:
    """From the Softmax back to the product: the factor, and the masks on the way. None where anything else happens."""
    masks, scale, tensor = [], 1.0, c.resolve(logits)
    while (node := c.maker(tensor)) is not None and node.index != scores.index:
        if node.op == "Cast":
            tensor = c.resolve(node.inputs[0])
            continue
        inner, by = c.scaled(tensor)
        if inner != tensor:
            tensor, scale = inner, scale * by
            continue
        leads = [i for i, t in enumerate(node.inputs) if t and c.leads_to(t, scores)]
        if len(leads) != 1 or scale != 1.0:  # a mask below the factor would be scaled as well
            return None
        mask = _mask_of(c, node, leads[0])
        if mask is None:
            return None
        masks.append(mask)
        tensor = c.resolve(node.inputs[leads[0]])
    return (scale, masks) if node is not None else None


def _mask_of(c: Lowering, node: Node, slot: int) -> Mask | None:
    """The mask that a node puts on the scores, which come in at `slot`."""
    if node.op == "Add":
        return Mask("add", node.inputs[1 - slot])
    fill = c.sizes.constant(node.inputs[3 - slot]) if node.op == "Where" and slot else None
    if fill is None or fill.size != 1 or not fill.ravel()[0] <= -1e8:  # so far below any score that adding it is as good as putting it
        return None
    return Mask("where" if slot == 2 else "unless", node.inputs[0], fill.ravel()[0])


def _write(c: Lowering, node: Node, scores: Node, operands: tuple[str, str, str], turn: str, scale: float | None, masks: list[Mask]) -> Step:
    inputs = [c.resolve(t) for t in operands]
    for t, word in zip(inputs, ("query", "key", "value")):
        c.keep.add(t)
        c.words.setdefault(t, word)
    more = ""
    if len(masks) == 1 and c.is_causal(masks[0]):
        more = ", is_causal=True"
    elif masks:
        more = f", attn_mask={' + '.join(m.form(3 + k) for k, m in enumerate(masks))}"
        inputs += [c.resolve(m.tensor) for m in masks]
    more += f", scale={number(np.float32(scale))}" if scale is not None else ""
    if c.dropout_behind(node.inputs[0]):
        more += ", dropout_p=self.attention_dropout if self.training else 0.0"
    return Step(f"F.scaled_dot_product_attention({{0}}, {{1}}{turn}, {{2}}{more})", inputs, list(node.outputs), node.index,
                scope=c.common_scope(scores, node), word="mixed")


@idiom("Reshape")
def swapped_axes(c: Lowering, node: Node) -> Step | None:
    """The last two axes change places behind a detour through fewer axes."""
    found = c.swapped(node.outputs[0])
    return c.function("{0:9}.transpose(-2, -1)", [found], node) if found else None
