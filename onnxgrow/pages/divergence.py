"""How far the grown model is from its source along the depth: the residual stream after each block of both, on the same inputs.

States are exposed as further outputs of both graphs and compared through the maps of their axes, as outputs are. Inserted blocks belong to
the old block before them: only behind the last of them must the state be the source's (a norm after the branch moves into the new block).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from math import isfinite

import numpy as np

from ..blocks import Stack, find_stacks
from ..compare import Difference, aligned, compare, fits, grown_input, over_all, scale_between
from ..feeds import Case
from ..plan import Plan
from ..report import Report
from ..runtime import open_session
from ..source import Source

HIDDEN_STATE = "is no tensor of both files: it lies inside of a fused operator, a function or a body"


@dataclass(frozen=True)
class State:
    """One place of the residual stream.

    Attributes:
        stack: name of the stack of layers.
        layer: the last layer of the source that has run, counted from 0; -1 in front of the first.
        grown_layer: the same in the grown model.
        source, grown: the tensor in either file.
        max_rel, max_abs: the largest difference, relative to the largest value of the state over all inputs, and as it is; None where unmeasured.
        factor: the grown state is the source's times this number, where it is not equal to it but a multiple.
        reason: why it was not measured.
    """

    stack: str
    layer: int
    grown_layer: int
    source: str
    grown: str
    max_rel: float | None = None
    max_abs: float | None = None
    factor: float | None = None
    reason: str | None = None

    def to_json(self) -> dict:
        """A plain dict; what is infinite or NaN becomes None."""
        return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in vars(self).items()}


def places(plan: Plan) -> list[State]:
    """Where source and grown model must have the same state, in order; nothing is run."""
    deep = {s.name: s for s in find_stacks(plan.roles)} if plan.deeper else {s.name: s for s in plan.model.stacks}
    return [state for stack in plan.model.stacks for state in _of_stack(plan, stack, deep.get(stack.name))]


def _of_stack(plan: Plan, stack: Stack, deep: Stack | None) -> list[State]:
    order = plan.deeper.places[stack.name] if plan.deeper else []
    flags = [p.new for p in order] or [False] * len(stack.blocks)
    if deep is None or len(deep.blocks) != len(flags):  # inserted blocks have changed what repeats: places between them are not known
        return []
    leading = next((i for i, new in enumerate(flags) if not new), len(flags))  # new blocks in front of all old ones
    ends = [leading + i for i in range(len(flags) - leading) if i + leading + 1 == len(flags) or not flags[i + leading + 1]]
    first = deep.blocks[leading - 1].leaves if leading else deep.blocks[0].enters
    pairs = [(stack.blocks[0].enters, first, -1, leading - 1)]
    pairs += [(old.leaves, deep.blocks[end].leaves, k, end) for k, (old, end) in enumerate(zip(stack.blocks, ends, strict=True))]
    return [State(stack.name, stack.before + (k + 1) * stack.period - 1, deep.before + (end + 1) * stack.period - 1, source, grown)
            for source, grown, k, end in pairs]


def diverge(plan: Plan, report: Report, tried: list[Case], grown: Source) -> list[State]:
    """Run both models on the inputs of a validation and compare the states.

    Args:
        report: what the validation showed; it says where it ran and in which types.
        tried: the inputs that it ran, with their arrays.
    Raises:
        GraphError: ONNX Runtime refuses a graph with its states as outputs.
    """
    found = places(plan)
    there = [{o for n in s.proto.graph.node for o in n.output} for s in (plan.model.opened, grown)]
    seen = [s for s in found if s.source in there[0] and s.grown in there[1]]
    if seen:
        before = _run(plan.model.opened, report, list(dict.fromkeys(s.source for s in seen)), [c.feeds for c in tried])
        after = _run(grown, report, list(dict.fromkeys(s.grown for s in seen)), [_fed(plan, c.feeds) for c in tried])
    return [_measured(plan, report, s, [a[s.source] for a in before], [b[s.grown] for b in after]) if s in seen else replace(s, reason=HIDDEN_STATE)
            for s in found]


def _fed(plan: Plan, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: grown_input(feeds[twin], plan.decisions.inputs.get(name, ())) for name, twin in plan.twins.inputs.items() if twin in feeds}


def _run(model: Source, report: Report, names: list[str], feeds: list[dict]) -> list[dict[str, np.ndarray]]:
    """The states of one model for each set of inputs; one model is held at a time."""
    session = open_session(model, report.provider, names, replaced=report.replaced)
    return [{name: values[name] for name in names} for values in map(session.run, feeds)]


def _measured(plan: Plan, report: Report, state: State, before: list[np.ndarray], after: list[np.ndarray]) -> State:
    maps = plan.axis_maps(state.grown) or ()
    if maps and not all(fits(a.shape, maps) for a in before):
        return replace(state, reason="has a shape at run time that its map does not fit")
    gaps: list[Difference] = over_all([compare(state.grown, a, b, maps) for a, b in zip(before, after)])
    worst = max(g.max_rel for g in gaps)
    return replace(state, max_rel=worst, max_abs=max(g.max_abs for g in gaps),
                   factor=_factor(before, after, maps, report.tolerance) if worst > report.tolerance else None)


def _factor(before: list[np.ndarray], after: list[np.ndarray], maps, tolerance: float) -> float | None:
    pairs = [aligned(a, b, maps) for a, b in zip(before, after)]
    if any(a.shape != b.shape for a, b in pairs):
        return None
    return scale_between(np.concatenate([a.ravel() for a, _ in pairs]), np.concatenate([b.ravel() for _, b in pairs]), tolerance)


def by_stack(states: list[State]) -> list[tuple[str, list[State]]]:
    """States grouped by the stack that they belong to."""
    return [(name, list(group)) for name, group in groupby(states, lambda s: s.stack)]
