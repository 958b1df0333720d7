"""Layers that are steps of a Loop or Scan, with their weights stacked along an axis, and why there can be no more of them here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import SizeError
from .graph import Node
from .loopsteps import in_steps
from .structure import Structure
from .ties import Dim, find

if TYPE_CHECKING:
    from .roles import Roles

STACKED = "stacked_layers"
REASON = "the layers are steps of one loop that takes their weights apart, and a new step would need new entries that change nothing in every one of them"
UNROLL = "export with the layers written out one by one (without a scan over layers), or grow hidden, ffn or heads"
OUTSIDE = "grow the decoder as a model of its own, with caches as inputs and outputs, and put it into the loop again"


def name_stacked(roles: Roles) -> None:
    """Give a role to the axes along which layers are stacked; they can be looked at, not grown."""
    s = roles.structure
    if not any(n.op == "LoopEnd" for n in s.graph.nodes):
        return
    found = list(_taken_apart(s))
    layers = {d.size for d, node, tensor in found if len(s.dims[tensor]) > 2}  # a linear map of each layer
    for d, node, _ in found:
        if d.size in layers and d not in (roles.roles[STACKED].instances if STACKED in roles.roles else ()):
            roles.add(STACKED, d)
            s.blocked.append((d, REASON, node))


def _taken_apart(s: Structure) -> Iterator[tuple[Dim, Node, str]]:
    """(dim, node, weight) wherever each step of a loop takes one entry of a weight, and all are taken."""
    steps = in_steps(s.graph.source.proto.graph)
    trips = {s.walk.shapes[n.inputs[1]][0] for n in s.graph.nodes if n.op == "LoopEnd" and s.walk.shapes.get(n.inputs[1]) and not any(s.runtime[n.inputs[1]])}
    for node in s.graph.nodes:
        tensor = node.inputs[0] if node.inputs else ""
        if tensor not in s.graph.weights or not s.dims.get(tensor):
            continue
        d = find(s.dims[tensor][node.attrs.get("axis", 0)])
        one = node.op == "Gather" and node.inputs[1] in steps and s.walk.shapes.get(node.inputs[1]) in ((), (1,))
        if node.op == "ScanSlice" or (one and d.size in trips):
            yield d, node, tensor


def why_no_layers(roles: Roles, blocks: set[int]) -> SizeError | None:
    """Why layers in a loop cannot become more; None where no loop is the reason. `blocks` are the nodes of all layers that were found."""
    s = roles.structure
    frozen = None if blocks else next(((d, reason, node) for d, reason, node in s.blocked if reason == REASON), None)
    if frozen:
        return SizeError(f"the {frozen[0].size} layers cannot become more: {REASON}", node=frozen[2].label, axis=frozen[2].attrs.get("axis", 0), hint=UNROLL)
    for node in s.graph.nodes:
        if node.op != "Carried" or node.domain != "onnxgrow" or not roles.caches(node.outputs):
            continue
        if not blocks or any(n.index in blocks for n, _ in s.graph.users.get(node.outputs[0], ())):
            return SizeError("the layers cannot become more: the loop carries keys and values of each layer, and a new one would need states of its own",
                             node=node.label, hint=OUTSIDE)
    return None
