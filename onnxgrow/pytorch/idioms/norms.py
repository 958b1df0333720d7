"""LayerNorm and RMSNorm, as one operator or spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...graph import Node
from ..build import number
from ..steps import Layer, Ref, Size, Step
from .registry import idiom

if TYPE_CHECKING:
    from ..lower import Lowering


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
        if made and gain and made.norm:
            kind, x, eps = made.norm
            step = norm_of(c, kind, c.behind_casts(x), gain, None, eps, node)
            step.norm = (kind, x, eps)
            return step
    return None


@idiom("Add")
def norm_bias(c: Lowering, node: Node) -> Step | None:
    for slot in (0, 1):
        made, bias = c.made_by(node.inputs[slot]), c.vector(node.inputs[1 - slot])
        if made and bias and made.norm and made.layer and made.layer.kind == "LayerNorm":
            kind, x, eps = made.norm
            return norm_of(c, kind, c.behind_casts(x), made.layer.refs["weight"], bias, eps, node)
    return None
