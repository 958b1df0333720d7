"""How many experts: the refusals, and the new size of every axis that counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dequantize import FIRST
from .errors import GraphError, OnnxgrowError, SizeError
from .structure import Structure, qualified

if TYPE_CHECKING:
    from .roles import Roles
    from .target import Target

FUSED = ("QMoE",)  # operators of ONNX Runtime that hold a whole mixture in packed weights, and are not unfolded


def no_experts(s: Structure) -> OnnxgrowError:
    """Why a model has no experts that could grow."""
    fused = next((n for n in s.graph.nodes if n.op in FUSED), None)
    if fused is not None:
        return GraphError(f"the experts are packed inside the fused operator {qualified(fused)}, whose sizes stay as they are", node=fused.label, hint=FIRST)
    topk = next((n for n in s.graph.nodes if n.op == "TopK"), None)
    if topk is not None:
        return GraphError("the scores of this TopK do not come from a linear map, so it is no router of experts that is known", node=topk.label,
                          hint="export the router as a linear map, then a softmax or sigmoid, or none, then TopK")
    return GraphError("the model has no experts: no TopK over the scores of a router is in the graph", hint="to widen its feed-forward part: --ffn")


def set_experts(roles: Roles, target: Target, size: int) -> None:
    """New sizes of all axes that count experts.

    Raises:
        GraphError: a mixture is written in a way that cannot grow.
    """
    old = roles.size("experts")
    for m in roles.mixtures:
        if m.problem:
            raise GraphError(f"experts cannot grow: {m.problem}", node=m.topk.label, hint="grow another dim")
    for d in roles.roles["experts"].instances:
        if d.size != old:
            raise SizeError(f"layers have different numbers of experts: {sorted(roles.roles['experts'].sizes)}", hint="grow another dim: experts of layers that differ in them cannot be added yet")
        target.sizes[d] = size
    for tail in roles.tails:
        target.sizes[tail] = size - old
    target.roles["experts"] = size
