"""What changes from step to step of a Loop or Scan: found by walking its first step, then one in general."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from .errors import GraphError
from .graph import WITHIN, Graph, attributes_of, graphs_in, mark_of, outer_names
from .shapes import Walk
from .shapes import walk as walk_at
from .symbols import Mismatch, Symbols

BODY, AROUND = "body", "loop"  # places: what was inside, and what is there for the analysis only
Key = str  # the first output of a Loop or Scan, under the name that it has in the main graph


@dataclass
class Facts:
    """What is known of a loop: how lengths and counters change per step, by number of the carried value. `first`: look at the first step."""

    first: bool = True
    lengths: dict[int, dict[int, int]] = field(default_factory=dict)
    counters: dict[int, dict | None] = field(default_factory=dict)
    counted: bool = False  # is the number of steps known from sizes?


def learn(ends: Iterable[onnx.NodeProto], walk: Walk, facts: dict[Key, Facts]) -> dict[Key, Facts | None]:
    """What one walk shows of each loop beyond what was supposed; None for one whose steps differ in a way that nothing describes."""
    out: dict[Key, Facts | None] = {}
    for end in ends:
        attrs = attributes_of(end)
        key, n, skip = attrs["key"], attrs["carried"], 1 + attrs["counters"]
        trip, going, _, *rest = end.input[skip:]
        states, nexts, before = rest[:n], rest[n : 2 * n], facts[key]
        now = Facts(False, counted=_all(walk.values.get(trip)) and (not going or _all(walk.values.get(going))))
        for k, (state, then) in enumerate(zip(states, nexts)):
            a, b = walk.shapes.get(state), walk.shapes.get(then)
            if a is not None and b is not None:
                if len(a) != len(b) or any(y < x for x, y in zip(a, b)):
                    out[key] = None
                    break
                now.lengths |= {k: {i: y - x for i, (x, y) in enumerate(zip(a, b)) if x != y}} if a != b else {}
            now.counters[k] = _change(walk, state, then) if before.first or before.counters.get(k) is not None else None
        else:
            if before.first or before != now:
                out[key] = now
    return out


def _change(walk: Walk, state: str, then: str) -> dict | None:
    """By what number the entries of a whole number change, where it is known before and after."""
    a, b = walk.values.get(state), walk.values.get(then)
    if a is None or b is None or a.shape != b.shape or a.dtype.kind != "i" or a.size > 64:
        return None
    by = (b.astype(np.int64) - a).ravel()
    return {"by": by.tolist(), "shape": list(a.shape), "kind": helper.np_dtype_to_tensor_dtype(a.dtype)}


def _all(value: np.ndarray | None) -> bool:
    """Is a number known, and above zero?"""
    return value is not None and bool((value > 0).all())


def in_steps(g: onnx.GraphProto) -> set[str]:
    """What depends on the number of the step, or on what is carried: a condition on it may be another at another step."""
    out = {v.name for v in g.input if mark_of(v, WITHIN).endswith(f"\t{AROUND}\t")}
    size = -1
    while size < len(out):
        size = len(out)
        for n in g.node:
            within = mark_of(n, WITHIN).endswith(f"\t{AROUND}\t") and n.op_type != "Constant"
            if within or out & {*n.input, *(name for sub in graphs_in(n) for name in outer_names(sub))}:
                out.update(o for o in n.output if o)
    return out


def moves(graph: Graph, walk: Walk, symbols: Symbols, registry, key: Key) -> bool:
    """Can the number of steps be another one, all else being equal?"""
    steps = next(v.name for v in graph.inputs if mark_of(v, WITHIN) == f"{key}\t{AROUND}\t")
    if steps in symbols.pinned:
        return False
    other = Symbols(symbols.resolve(symbols.sizes | {steps: symbols.sizes[steps] + 1}), symbols.sums, symbols.pinned)
    try:
        again = walk_at(graph, {v.name: other.bind(v) for v in graph.inputs}, registry)
    except (Mismatch, GraphError):
        return False
    return again.shapes.keys() == walk.shapes.keys()
