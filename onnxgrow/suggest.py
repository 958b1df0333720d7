"""Growth plans of a size that was asked for, in the family's proportions: wider, deeper, both, and whole multiples where only these are exact.

Sizes are searched on counts (`costs`), which need no plan; what is listed was really planned, and its numbers are those of the plan.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import onnx

from .costs import Cost
from .errors import OnnxgrowError, SizeError
from .external import tensor_bytes
from .family import CLOSE, Family, Goal, around, best_hidden, factor_of, near_width
from .model import Model
from .request import Request
from .target import resolve

UNIT = {"parameters": "parameters", "flops": "FLOPs per token", "memory": "bytes of training memory"}
DEEPEST = 8  # times the layers of today: beyond that a model is all depth


@dataclass(frozen=True)
class Suggestion:
    """One plan, and whether it keeps the function.

    Attributes:
        name: wider | deeper | both | multiple.
        sizes: by role or stack, (old, new).
        certificate: exact | near | refused.
        reasons: those of the certificate, or of the refusal with its next step.
        cost: of the grown model; None where it was refused.
        file_bytes: of its file.
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
        """As part of the document of `Suggestions`."""
        sizes = {n: {"old": old, "new": new} for n, (old, new) in self.sizes.items()}
        return {"name": self.name, "sizes": sizes, "certificate": self.certificate, "reasons": list(self.reasons), "command": self.command,
                **costs_json(self.cost, self.file_bytes, goal)}


@dataclass
class Suggestions:
    """All plans for one goal, beside the model as it is.

    Attributes:
        model: as it is.
        goal: what was asked for.
        now: what the model costs today.
        now_bytes: of its file today.
        length: of the sequences that were counted; None where the model has no length to choose.
        plans: from wider to deeper.
        notes: what could not be listed, and why.
    """

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


def suggest(model: Model, goal: Goal, options: tuple[str, ...] = ()) -> Suggestions:
    """Plans of about the size asked for.

    Args:
        options: words that the commands carry along (`--rules FILE`, `--dequantize`).
    Raises:
        SizeError: the model is as large already, or does not run at the length asked for.
        FileError: it has several graphs.
    """
    model.one_graph("suggest")
    family = Family(model, goal)
    now = family.scene.cost()
    if goal.of(now) >= goal.value:
        raise SizeError(f"the model has {goal.of(now):,} {UNIT[goal.kind]} already, and {goal.value:,} are asked for", hint="ask for more: models only grow")
    found = Suggestions(model, goal, now, _file_bytes(model.opened.proto), family.scene.length)
    for name, hidden, layers in _shapes(family, found.notes):
        plan = _carried_out(family, name, hidden, layers, options)
        if plan.sizes and _fits(goal, plan) and all(plan.sizes != other.sizes for other in found.plans):
            found.plans.append(plan)
    if not found.plans:
        found.notes.append(f"nothing fits: the smallest step takes more than {goal.value:,} {UNIT[goal.kind]}")
    if found.plans and all(p.certificate != "exact" for p in found.plans if p.name != "deeper"):
        found.plans += _multiples(family, options, found)
    return found


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
    factor = factor_of(lambda r: family.goal.of(family.cost(near_width(family, r), family.layers(r))), family.goal.value)
    both = family.layers(factor)
    if both != now:
        yield "both", best_hidden(family, both), both
    factor = factor_of(lambda r: family.goal.of(family.cost(family.hidden, family.layers(r))), family.goal.value)
    deep = max(around(family, factor), key=lambda layers: -family.goal.miss(family.cost(family.hidden, layers)))
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
    factor = factor_of(lambda r: family.goal.of(family.cost(hidden, family.layers(r))), family.goal.value) if now else 1
    layers = min(around(family, factor), key=lambda many: family.goal.miss(family.cost(hidden, many)))
    plan = _carried_out(family, "multiple", hidden, layers, options)
    return [plan] if all(plan.sizes != other.sizes for other in found.plans) else []


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
        return Suggestion(name, plan.sizes, plan.certificate.kind, plan.certificate.reasons, said, cost, _file_bytes(plan.proto()))
    except OnnxgrowError as problem:
        where = f" (node {problem.node!r})" if problem.node else ""
        return Suggestion(name, sizes, "refused", (f"{problem.what}{where}", *([problem.hint] if problem.hint else [])), said)


def _file_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of a file and its external data; big weights may be missing in the model given."""
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
