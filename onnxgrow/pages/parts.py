"""Where the parameters are: each weight under the part of a transformer that its axes name."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ..architecture import is_parameter
from ..model import Plan
from ..roles import Roles
from .padding import KINDS, Grown

PARTS = {  # by the roles that a weight's axes have; the first that fits
    "experts": ("experts", "expert_ffn"),
    "words": ("vocab",),
    "positions": ("positions",),
    "feed-forward": ("ffn",),
    "attention": ("heads", "kv_heads", "head_dim", "v_head_dim"),
    "norms and offsets": ("hidden",),
}
OTHER = "other"


@dataclass
class Part:
    """Parameters of one part: of the source, of the grown model, and how many of these are of each kind."""

    name: str
    old: int = 0
    new: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


def part_of(roles: Roles, tensor: str) -> str:
    """The part of a transformer that a weight belongs to, by the names of the sizes along its axes."""
    s = roles.structure
    dims = s.dims.get(tensor, ())
    leaves = {leaf for axis in range(len(dims)) for leaf in s.axis_leaves(tensor, axis)}
    for name, found in PARTS.items():
        if leaves & roles.leaves_of(*found):
            single = sum(d.size > 1 for d in dims) <= 1
            return name if name != "norms and offsets" or single else "other maps"
    return OTHER


def by_part(plan: Plan, weights: list[Grown]) -> list[Part]:
    """Parts in the order of PARTS; in sum the parameters of source and grown model, each tensor of a file counted once.

    Args:
        weights: those that a growth makes (`grown_weights`); any other initializer is the source's as it is.
    """
    parts: dict[str, Part] = {}
    for name, (part, size) in _parameters(plan.model.roles).items():
        parts.setdefault(part, Part(part)).old += size
    grown, named = {w.name: w for w in weights}, _parameters(plan.roles)
    for t in plan.decisions.proto.graph.initializer:
        weight, recipe = grown.get(t.name), plan.recipes.get(t.name)
        origin = (recipe.origin or t.name) if recipe else t.name
        if not (is_parameter(t.data_type, tuple(t.dims)) and (origin in named or t.name in plan.decisions.applied.added)):
            continue
        part = parts.setdefault(named[origin][0] if origin in named else OTHER, Part(named.get(origin, (OTHER,))[0]))
        part.new += prod(t.dims)
        for kind, number in (weight.counts if weight else {"old": prod(t.dims)}).items():
            part.kinds[kind] += number
    order = [*PARTS, "other maps", OTHER]
    return sorted(parts.values(), key=lambda p: order.index(p.name))


def _parameters(roles: Roles) -> dict[str, tuple[str, int]]:
    """Initializer -> its part and number of parameters, as `count_parameters` counts."""
    graph, out = roles.structure.graph, {}
    for tensor, name in graph.weights.items():
        shape = graph.weight_shape(tensor)
        if graph.users.get(tensor) and is_parameter(graph.weight_type(tensor), shape):
            out[name] = (part_of(roles, tensor), prod(shape))
    return out


def places(plan: Plan) -> dict[str, tuple[str, str]]:
    """Initializer of the grown model -> its part, and the node that reads it first."""
    graph = plan.roles.structure.graph
    named = {name: (part_of(plan.roles, tensor), graph.users[tensor][0][0].label) for tensor, name in reversed(graph.weights.items()) if graph.users.get(tensor)}
    return {t.name: named.get((plan.recipes[t.name].origin or t.name) if t.name in plan.recipes else t.name, (OTHER, "")) for t in plan.decisions.proto.graph.initializer}
