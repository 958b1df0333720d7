"""Which new parameters can learn: gradient is followed through the relations for a few steps, symbolically.

A class is alive when gradient reaches its new entries. A contraction passes gradient to one side only where the other is not zero;
once weights have moved, zeros are zeros no more, and the next step reaches further. What three steps do not reach is dead
(zero meets zero for ever).
"""

from __future__ import annotations

from collections import defaultdict

from .flow import Flow, Relation
from .roles import NORM_KINDS
from .solve import Solution
from .ties import Dim

STEPS = 3


def dead_classes(flow: Flow, solutions: dict[Dim, Solution], caches: set[str]) -> set[int]:
    """Classes that hold weights and get no gradient in three steps; `caches` are outputs that no loss looks at."""
    graph = flow.structure.graph
    members: dict[int, set[str]] = defaultdict(set)
    for (tensor, *_), c in flow.ids.items():
        members[flow.find(c)].add(tensor)
    weights = {c for c, tensors in members.items() if tensors & graph.weights.keys()}
    ends = {c for c, tensors in members.items() if tensors & set(graph.outputs) - caches}
    zero = {c for s in solutions.values() for c, fill in s.need.items() if fill == "zero"}
    zero -= {flow.find(c) for r in flow.relations if r.kind == "one hot" for c in r.outs}  # new numbers will be fed in training
    nonzero = {c for c in members if c not in zero}
    moved: set[int] = set()
    alive: set[int] = set()
    for _ in range(STEPS):
        nonzero |= moved
        _spread_values(flow, nonzero, moved)
        reached = _gradient(flow, nonzero, ends)
        alive |= reached
        moved |= reached & weights
    return weights - alive


def _spread_values(flow: Flow, nonzero: set[int], moved: set[int]) -> None:
    """After a step: what is made from something that moved is no longer zero."""
    changed = True
    while changed:
        changed = False
        for r in flow.relations:
            ins = {flow.find(c) for c in r.ins}
            if (ins <= nonzero and ins & moved) if r.kind == "mul" else ins & moved:
                for c in map(flow.find, r.outs):
                    if c not in moved:
                        moved.add(c)
                        nonzero.add(c)
                        changed = True


def _gradient(flow: Flow, nonzero: set[int], ends: set[int]) -> set[int]:
    """Classes that gradient reaches in one backward pass."""
    reached, changed = set(ends), True
    while changed:
        changed = False
        for r in flow.relations:
            for c in _passes(flow, r, nonzero, reached) - reached:
                reached.add(c)
                changed = True
    return reached


def _passes(flow: Flow, r: Relation, nonzero: set[int], reached: set[int]) -> set[int]:
    ins, outs = [flow.find(c) for c in r.ins], {flow.find(c) for c in r.outs}
    if r.kind in ("contract", "mul"):
        open_end = r.kind == "contract" or bool(outs & reached)
        return {c for i, c in enumerate(ins) if open_end and all(o in nonzero for k, o in enumerate(ins) if k != i)}
    if r.kind in ("sum", "mean", "rows"):
        return set(ins)
    if r.kind in ("f(0)=0", "f(0)!=0", "shift", "select", "copies only", "scaled", "range", "centre", *NORM_KINDS):
        return set(ins) if outs & reached else set()
    return set()
