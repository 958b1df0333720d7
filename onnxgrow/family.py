"""The sizes of one model as a family: heads keep their size, everything else its ratio, and what each member would cost.

Costs are counted on the graph as it is and on one that is a layer deeper; no member is planned here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from math import gcd, lcm, log

from .costs import Cost, Scene, scene, usual_scene
from .deepen import deepen
from .errors import OnnxgrowError
from .graph import build
from .model import Model
from .request import Depth, Request
from .roles import find_roles
from .structure import tie
from .target import Target, resolve
from .widths import Width

STEP = 64  # what matrix units like widths to be a multiple of
UNITS = (STEP, 32, 16, 1)  # of widths, the first one that comes close
CLOSE = 0.1  # how much a width that is a multiple of more may miss the goal by


@dataclass(frozen=True)
class Goal:
    """What was asked for.

    Args:
        kind: parameters | flops (of a forward pass, per token) | memory (bytes of a training step).
        value: how many of them.
        length: of the sequences that are counted; None takes the usual one.
        batch: sequences in a training step, for memory.
        precision: of a training step, for memory: mixed | fp32.
    """

    kind: str
    value: int
    length: int | None = None
    batch: int = 1
    precision: str = "mixed"

    def of(self, cost: Cost) -> int:
        """The number that is to come near the value; for memory, not to exceed it."""
        return {"parameters": lambda: cost.parameters, "flops": lambda: cost.per_token,
                "memory": lambda: cost.memory(self.precision, self.batch)["total"]}[self.kind]()

    def miss(self, cost: Cost) -> float:
        """How far off a size is, as the logarithm of a ratio; infinite where memory does not suffice."""
        have = self.of(cost)
        return float("inf") if self.kind == "memory" and have > self.value else abs(log(have / self.value))


class Family:
    """The sizes of a model as functions of two factors, one for widths and one for depth."""

    def __init__(self, model: Model, goal: Goal):
        self.model, self.goal, self.roles = model, goal, model.roles
        self.scene = scene(self.roles, goal.length, model.registry) if goal.length else usual_scene(self.roles, model.registry)
        self.main = max(self.roles.widths, key=lambda w: w.hidden.size)
        self.costs: dict[tuple, Cost] = {}
        self.shallow: str | None = None  # why no stack grows

    @property
    def hidden(self) -> int:
        return self.main.hidden.size

    @cached_property
    def deeper(self) -> dict[str, tuple[Scene, int]]:
        """For each stack the model with one more period of it, and how many layers that is; a stack that cannot grow is not listed."""
        out = {}
        for stack in self.model.stacks:
            try:
                deep = deepen(self.roles, self.model.stacks, Depth({stack.name: stack.layers + stack.period}))
                roles = find_roles(tie(build(deep.source), self.model.registry))
                out[stack.name] = (self.scene.like(roles, self.model.registry), stack.period)
            except OnnxgrowError as problem:
                self.shallow = f"deeper: {problem.what}"
        return out

    def fine(self, width: Width) -> int:
        """The step of a hidden size that keeps the size of a head, and whole groups of query heads."""
        heads, dim, kv = (self.roles.size(width.role(n)) for n in ("heads", "head_dim", "kv_heads"))
        if heads and dim and heads * dim == width.hidden.size:
            return dim * (heads // kv if kv else 1)
        return gcd(width.hidden.size, STEP)

    def step(self, unit: int = 1) -> int:
        """The step of the main hidden size that is a multiple of a unit, too."""
        return lcm(self.fine(self.main), unit)

    def widths(self, hidden: int) -> dict[str, int]:
        """Sizes by role where the largest hidden size becomes `hidden`: heads keep their size, all else its ratio."""
        out, factor = {}, hidden / self.hidden
        for width in self.roles.widths if hidden != self.hidden else ():
            old, step = width.hidden.size, self.fine(width)
            new = hidden if width is self.main else max(old, round(old * factor / step) * step)
            out[width.role("hidden")] = new
            out |= self._heads(width, new / old) | self._ffn(width, new)
        return {name: size for name, size in out.items() if size != self.roles.size(name)}

    def _heads(self, width: Width, factor: float) -> dict[str, int]:
        at, kv_at = width.role("heads"), width.role("kv_heads")
        heads, kv = self.roles.size(at), self.roles.size(kv_at)
        if not heads:
            return {}
        if not kv:
            return {at: max(heads, round(heads * factor))}
        more = max(kv, round(kv * factor))
        return {at: heads // kv * more, kv_at: more}

    def _ffn(self, width: Width, hidden: int) -> dict[str, int]:
        at, old = width.role("ffn"), width.hidden.size
        ffn = self.roles.size(at)
        if not ffn:
            return {}
        step = gcd(ffn, STEP)
        exact = ffn * hidden // old
        return {at: exact if ffn * hidden % old == 0 else max(ffn, round(ffn * hidden / old / step) * step)}

    def layers(self, factor: float) -> dict[str, int]:
        """Layers by stack, each about `factor` times those of today, in whole periods."""
        out = {}
        for stack in self.model.stacks:
            if stack.name in self.deeper:
                out[stack.name] = stack.layers + max(0, round(stack.layers * (factor - 1) / stack.period)) * stack.period
        return out

    def cost(self, hidden: int, layers: dict[str, int]) -> Cost:
        """What such a model would cost: each more period costs what the first one does."""
        key = hidden, tuple(layers.items())
        if key not in self.costs:
            self.costs[key] = self._cost(hidden, layers)
        return self.costs[key]

    def _cost(self, hidden: int, layers: dict[str, int]) -> Cost:
        sizes = Request(self.widths(hidden))
        total = base = self._count(self.scene, sizes)
        for name, (deep, period) in self.deeper.items() if layers else ():
            more = (layers.get(name, 0) - next(s.layers for s in self.model.stacks if s.name == name)) // period
            if more > 0:
                one = self._count(deep, sizes)
                total = Cost(**{n: v if n == "tokens" else v + more * (getattr(one, n) - getattr(base, n)) for n, v in asdict(total).items()})
        return total

    @staticmethod
    def _count(at: Scene, sizes: Request) -> Cost:
        return at.cost(resolve(at.roles, sizes) if sizes.sizes else Target())


def around(family: Family, factor: float) -> list[dict[str, int]]:
    """Numbers of layers at a factor, and one period less and more."""
    step = max((s.period / s.layers for s in family.model.stacks), default=1)
    return [family.layers(max(1, f)) for f in (factor - step, factor, factor + step)]


def near_width(family: Family, factor: float) -> int:
    """The hidden size of the family nearest to a factor."""
    step = family.step()
    return max(family.hidden, round(family.hidden * factor / step) * step)


def factor_of(size: Callable[[float], int], wanted: int) -> float:
    """The factor at which a growing size reaches what is wanted, by halving."""
    low, high = 1.0, 2.0
    while size(high) < wanted and high < 1e6:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    return (low + high) / 2


def best_hidden(family: Family, layers: dict[str, int]) -> int:
    """The hidden size that comes nearest to the goal at some numbers of layers: a multiple of 64 where one is close enough, else of 32 ..."""
    found = [_nearest(family, layers, unit) for unit in UNITS]
    return next(hidden for miss, hidden in found if miss <= max(CLOSE, found[-1][0]))


def _nearest(family: Family, layers: dict[str, int], unit: int) -> tuple[float, int]:
    """(how far off, hidden size) of the multiple of a unit that comes nearest."""
    step = family.step(unit)
    factor = factor_of(lambda r: family.goal.of(family.cost(max(family.hidden, round(family.hidden * r / step) * step), layers)), family.goal.value)
    middle = round(family.hidden * factor / step) * step
    return min((family.goal.miss(family.cost(h, layers)), h) for h in {family.hidden, *(max(family.hidden, middle + k * step) for k in (-1, 0, 1))})
