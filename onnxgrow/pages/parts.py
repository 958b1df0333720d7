"""Where the parameters went: those of source and grown model by the part of a transformer that they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ..architecture import is_parameter
from ..blocks import find_stacks
from ..parts import KINDS as PARTS
from ..parts import OTHER, kinds_of
from ..plan import Plan
from .padding import KINDS, Grown


@dataclass
class Part:
    """Parameters of one part: of the source, of the grown model, and how many of these are of each kind of entry."""

    name: str
    old: int = 0
    new: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


def by_part(plan: Plan, weights: list[Grown], written: dict[str, str]) -> list[Part]:
    """Parts in the order of PARTS; in sum the parameters of source and grown model, each tensor of a file counted once.

    Args:
        weights: those that a growth makes (`grown_weights`); any other initializer is the source's as it is.
        written: `parts.kinds_of` the grown file, as `inspect` shows them.
    """
    parts = {name: Part(name) for name in PARTS}
    graph = plan.model.roles.structure.graph
    shapes = {name: graph.weight_shape(tensor) for tensor, name in graph.weights.items()}
    for name, kind in kinds_of(plan.model.roles, plan.model.stacks).items():
        parts[kind].old += prod(shapes[name])
    grown, kinds = {w.name: w for w in weights}, _kinds(plan)
    for t in plan.decisions.proto.graph.initializer:
        origin = _origin(plan, t.name)
        if not (is_parameter(t.data_type, tuple(t.dims)) and (origin in kinds or t.name in plan.decisions.applied.added)):
            continue
        part = parts[written.get(t.name) or kinds.get(origin, OTHER)]
        part.new += prod(t.dims)
        for kind, number in (grown[t.name].counts if t.name in grown else {"old": prod(t.dims)}).items():
            part.kinds[kind] += number
    held = {name: plan.roles.structure.graph.weight_shape(tensor) for tensor, name in plan.roles.structure.graph.weights.items()}
    for name in kinds.keys() & plan.decisions.applied.constants.keys():  # weights that are Constant nodes, which no growth has made initializers
        part, size = parts[written.get(name) or kinds[name]], prod(held[name])
        part.new += size
        part.kinds["old"] += size
    return [p for p in parts.values() if p.old or p.new]


def places(plan: Plan) -> dict[str, tuple[str, str]]:
    """Initializer of the grown model -> its part, and the node that reads it first."""
    graph, kinds = plan.roles.structure.graph, _kinds(plan)
    readers = {name: graph.users[tensor][0][0].label for tensor, name in reversed(graph.weights.items()) if graph.users.get(tensor)}
    origins = {t.name: _origin(plan, t.name) for t in plan.decisions.proto.graph.initializer}
    return {name: (kinds.get(origin, OTHER), readers.get(origin, "")) for name, origin in origins.items()}


def _kinds(plan: Plan) -> dict[str, str]:
    """Initializer of the graph in which widths are decided (the source's, or the deeper one) -> its part."""
    return kinds_of(plan.roles, plan.model.stacks if plan.roles is plan.model.roles else find_stacks(plan.roles))


def _origin(plan: Plan, name: str) -> str:
    """The initializer of that graph which an initializer of the grown file was made from."""
    recipe = plan.recipes.get(name)
    return (recipe.origin or name) if recipe else name
