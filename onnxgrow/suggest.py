"""Growth plans of a size that was asked for, in the family's proportions: wider, deeper, both, and whole multiples where only these are exact.

Sizes are searched on counts (`costs`), which need no plan; what is listed was really planned, and its numbers are those of the plan.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import gcd, lcm, log

from .costs import Cost, Scene, scene, usual_scene
from .deepen import deepen
from .errors import OnnxgrowError, SizeError
from .external import tensor_bytes
from .graph import build
from .model import Model, Plan
from .request import Depth, Request
from .roles import find_roles
from .structure import tie
from .target import Target, resolve
from .widths import Width

UNITS = ("parameters", "flops", "memory")
STEP = 64  # what matrix units like widths to be a multiple of
CLOSE = 0.05  # a width that is a multiple of STEP may miss the goal by this much
DEEPEST = 8  # times the layers of today: beyond that a model is all depth


@dataclass(frozen=True)
class Goal:
    """What was asked for.

    Args:
        kind: parameters | flops (of a forward pass, per token) | memory (bytes of a training step).
        length: of the sequences that are counted; None takes the usual one.
        batch: sequences in a training step; precision: mixed | fp32, for memory.
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


@dataclass(frozen=True)
class Suggestion:
    """One plan: its sizes by role or stack (old, new), what it costs, and whether it keeps the function.

    Attributes:
        name: wider | deeper | both | multiple.
        certificate: exact | near | refused; `reasons` those of the certificate, or of the refusal with its next step.
        cost, file_bytes: of the grown model; None where it was refused.
        command: what carries it out.
    """

    name: str
    sizes: dict[str, tuple[int, int]]
    certificate: str
    reasons: tuple[str, ...]
    command: str
    cost: Cost | None = None
    file_bytes: int | None = None

    def to_json(self, goal: Goal) -> dict:
        sizes = {n: {"old": old, "new": new} for n, (old, new) in self.sizes.items()}
        return {"name": self.name, "sizes": sizes, "certificate": self.certificate, "reasons": list(self.reasons), "command": self.command,
                **costs_json(self.cost, self.file_bytes, goal)}


@dataclass
class Suggestions:
    """All plans for one goal, beside the model as it is."""

    model: Model
    goal: Goal
    now: Cost
    now_bytes: int
    length: int | None
    plans: list[Suggestion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict:
        """As a document (docs/json.md)."""
        asked = asdict(self.goal) | {"length": self.length}
        return {"model": str(self.model.path), "goal": asked, "now": costs_json(self.now, self.now_bytes, self.goal),
                "suggestions": [p.to_json(self.goal) for p in self.plans], "notes": self.notes}


def costs_json(cost: Cost | None, file_bytes: int | None, goal: Goal) -> dict:
    memory = {p: cost.memory(p, goal.batch) for p in ("mixed", "fp32")} if cost else None
    return {"parameters": cost and cost.parameters, "flops_per_token": cost and cost.per_token, "tokens": cost and cost.tokens,
            "file_bytes": file_bytes, "training_memory": memory}


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

    def step(self, coarse: bool) -> int:
        return lcm(self.fine(self.main), STEP) if coarse else self.fine(self.main)

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


def suggest(model: Model, goal: Goal, options: tuple[str, ...] = ()) -> Suggestions:
    """Plans of about the size asked for.

    Args:
        options: words that the commands carry along (`--rules FILE`, `--dequantize`).
    Raises:
        SizeError: the model is as large already, or does not run at the length asked for.
    """
    family = Family(model, goal)
    now = family.scene.cost()
    if goal.of(now) >= goal.value:
        raise SizeError(f"the model has {goal.of(now):,} {UNIT[goal.kind]} already, and {goal.value:,} are asked for", hint="ask for more: models only grow")
    found = Suggestions(model, goal, now, _file_bytes(Plan(model, Request())), family.scene.length)
    for name, hidden, layers in _shapes(family, found.notes):
        plan = _carried_out(family, name, hidden, layers, options)
        if plan.sizes and _fits(goal, plan) and all(plan.sizes != other.sizes for other in found.plans):
            found.plans.append(plan)
    if not found.plans:
        found.notes.append(f"nothing fits: the smallest step takes more than {goal.value:,} {UNIT[goal.kind]}")
    if found.plans and all(p.certificate != "exact" for p in found.plans if p.name != "deeper"):
        found.plans += _multiples(family, options, found)
    return found


UNIT = {"parameters": "parameters", "flops": "FLOPs per token", "memory": "bytes of training memory"}


def _fits(goal: Goal, plan: Suggestion) -> bool:
    """Memory is a limit; other sizes are what to come near to."""
    return goal.kind != "memory" or plan.cost is None or goal.of(plan.cost) <= goal.value


def _shapes(family: Family, notes: list[str]) -> Iterator[tuple[str, int, dict[str, int]]]:
    """(name, hidden, layers by stack) of each way to the goal."""
    now = family.layers(1)
    hidden = best_hidden(family, now)
    yield "wider", hidden, now
    notes += [family.shallow] if family.shallow and not now else []
    if not now:
        return
    factor = _factor(lambda r: family.goal.of(family.cost(_near(family, r), family.layers(r))), family.goal.value)
    both = family.layers(factor)
    if both != now:
        yield "both", best_hidden(family, both), both
    factor = _factor(lambda r: family.goal.of(family.cost(family.hidden, family.layers(r))), family.goal.value)
    deep = max(_around(family, factor), key=lambda layers: -family.goal.miss(family.cost(family.hidden, layers)))
    if factor > DEEPEST:
        notes.append(f"deeper: layers alone would have to become {sum(deep.values()):,}, {factor:.0f} times as many; not listed")
    elif deep != now:
        yield "deeper", family.hidden, deep


def _multiples(family: Family, options: tuple[str, ...], found: Suggestions) -> list[Suggestion]:
    """Where no other width is exact: whole multiples of the hidden size, which copies can fill, with layers to make up the rest."""
    now, times = family.layers(1), 1
    limit = family.goal.value * (1 + CLOSE * (family.goal.kind != "memory"))
    while family.goal.of(family.cost(family.hidden * (times + 1), now)) <= limit:
        times += 1
    if times < 2:
        return []
    hidden = times * family.hidden
    factor = _factor(lambda r: family.goal.of(family.cost(hidden, family.layers(r))), family.goal.value) if now else 1
    layers = min(_around(family, factor), key=lambda many: family.goal.miss(family.cost(hidden, many)))
    plan = _carried_out(family, "multiple", hidden, layers, options)
    return [plan] if all(plan.sizes != other.sizes for other in found.plans) else []


def _around(family: Family, factor: float) -> list[dict[str, int]]:
    """Numbers of layers at a factor, and one period less and more."""
    step = max((s.period / s.layers for s in family.model.stacks), default=1)
    return [family.layers(max(1, f)) for f in (factor - step, factor, factor + step)]


def _near(family: Family, factor: float) -> int:
    step = family.step(False)
    return max(family.hidden, round(family.hidden * factor / step) * step)


def _factor(size: Callable[[float], int], wanted: int) -> float:
    """The factor at which a growing size reaches what is wanted, by halving."""
    low, high = 1.0, 2.0
    while size(high) < wanted and high < 1e6:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    return (low + high) / 2


def best_hidden(family: Family, layers: dict[str, int]) -> int:
    """The hidden size that comes nearest at some numbers of layers: a multiple of 64 where that is close enough."""
    found = {}
    for coarse in (True, False):
        step = family.step(coarse)
        factor = _factor(lambda r: family.goal.of(family.cost(max(family.hidden, round(family.hidden * r / step) * step), layers)), family.goal.value)
        middle = round(family.hidden * factor / step) * step
        tried = {max(family.hidden, middle + k * step) for k in (-1, 0, 1)} | {family.hidden}
        found[coarse] = min(((family.goal.miss(family.cost(h, layers)), h) for h in tried))
    return found[True][1] if found[True][0] <= max(CLOSE, found[False][0]) else found[False][1]


def _carried_out(family: Family, name: str, hidden: int, layers: dict[str, int], options: tuple[str, ...]) -> Suggestion:
    """Plan it, and say what comes of it."""
    stacks = {s.name: s.layers for s in family.model.stacks}
    asked = family.widths(hidden) | {n: count for n, count in layers.items() if count != stacks[n]}
    sizes = {n: (family.roles.size(n) or stacks[n], new) for n, new in asked.items()}
    needed = _needed(family, asked)
    said = _command(family, needed, options)
    try:
        plan = family.model.plan(set=needed)
        cost = family.scene.like(plan.roles, family.model.registry).cost(plan.decisions.target)
        return Suggestion(name, plan.sizes, plan.certificate.kind, plan.certificate.reasons, said, cost, _file_bytes(plan))
    except OnnxgrowError as problem:
        where = f" (node {problem.node!r})" if problem.node else ""
        return Suggestion(name, sizes, "refused", (f"{problem.what}{where}", *([problem.hint] if problem.hint else [])), said)


def _file_bytes(plan: Plan) -> int:
    """Bytes of the grown file and its external data."""
    proto = plan.proto()
    here = {t.name for t in proto.graph.initializer if t.HasField("raw_data") or not t.dims}
    return proto.ByteSize() + sum(tensor_bytes(t) for t in proto.graph.initializer if t.name not in here)


def _command(family: Family, sizes: dict[str, int], options: tuple[str, ...]) -> str:
    """`onnxgrow expand ...` with these sizes."""
    short = ("hidden", "heads", "kv_heads", "ffn", "layers", "encoder_layers", "decoder_layers")
    words = ["onnxgrow", "expand", str(family.model.path)]
    for name, size in sizes.items():
        words += [f"--{name.replace('_', '-')}", str(size)] if name in short else ["--set", f"{name}={size}"]
    return shlex.join([*words, *options])


def _needed(family: Family, asked: dict[str, int]) -> dict[str, int]:
    """Sizes that must be said: those that the family's coupling does not give by itself."""
    hidden = {n: size for n, size in asked.items() if n.endswith("hidden")}
    try:
        follows = resolve(family.roles, Request(dict(hidden))).roles if hidden else {}
    except SizeError:
        follows = {}
    return {n: size for n, size in asked.items() if n in hidden or follows.get(n) != size}
