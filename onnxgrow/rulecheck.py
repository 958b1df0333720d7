"""Is a rule true? What the planner believes because of it is tried in ONNX Runtime, on models of one node.

Each dim of the node grows, once at its end and once inside (as a factor of a product does), and every input that has it gets
every fill in turn. The solver says what follows for the output, the runtime says what comes true. A claim that does not hold
makes a rule wrong; a truth that nobody claims only makes it poorer than it could be.

    from onnxgrow.rulecheck import check_rule
    for problem in check_rule("Gelu"):
        print(problem)
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from .errors import UsageError
from .graph import build
from .operators import EXAMPLES, Example
from .rulebook import Registry, load_builtin
from .rulegrowth import Growth, Problem
from .rulerun import runner
from .structure import Structure, tie
from .ties import Dim, leaves, product, unify


def check_rule(op: str, domain: str = "", examples: Iterable[Example] | None = None, registry: Registry | None = None) -> list[Problem]:
    """Everything that is wrong with the rule for an operator, tried on these examples, or on those of `operators.EXAMPLES`."""
    registry = registry or load_builtin()
    examples = list(examples or (e for e in EXAMPLES if (e.op, e.domain) == (op, domain)))
    if not examples:
        raise UsageError(f"no example of the operator {op} to try its rule on", hint="give some, made with onnxgrow.operators.example")
    return [p for e in examples for p in check_example(e, registry)]


def check_example(e: Example, registry: Registry, held: Counter | None = None) -> Iterator[Problem]:
    """Problems with the rule of one example; `held` takes how many claims came true, by (dim on the rule's line, its treatment).

    Raises:
        UsageError: nothing can run the example.
    """
    before = first_run(e)
    for at in itertools.count():
        for even in (False, True):
            rounds = []
            for inside in (False, True):
                s = tie(build(e), registry)
                if wrong := _made_shape(s, before):
                    yield Problem("wrong", e, "", "", wrong)
                    return
                if s.blocked:
                    yield Problem("refused", e, "", "", s.blocked[0][1])
                    return
                part = next(itertools.islice(_growing(s, e), at, None), None)
                if part is None:
                    return
                if inside and part.size > 2 and part.size % 2 == 0:
                    whole, part = part, Dim(part.size // 2)
                    unify(whole, product([Dim(2), part]))
                new = 2 * part.size if even else part.size + 3
                growth = Growth(e, before, s, registry, part, new)
                rounds.append(list(growth.problems()))
                if held is not None and s.nodes:
                    held[growth.name, growth.treatment] += growth.held
            yield from (p for found in rounds for p in found if p.kind in ("wrong", "refused"))
            yield from (p for p in rounds[0] if p.kind == "loose" or p.kind == "missing" and p in rounds[1])


def first_run(e: Example) -> dict[str, np.ndarray]:
    """What the example itself gives. UsageError where neither ONNX Runtime nor its reference can run it."""
    try:
        return runner(e.proto, e.reference)(e.feeds)
    except Exception as objection:
        why = " ".join(str(objection).split())[:200]
        if e.reference is not None:
            raise UsageError(f"the reference of {e} fails on its own example: {type(objection).__name__}: {why}",
                             hint="it is called with the arrays of all inputs, and the attributes by name") from objection
        if not type(objection).__module__.startswith("onnxruntime"):
            raise
        raise UsageError(f"ONNX Runtime cannot run {e}: {why}",
                         hint="correct the example, or give it a reference= that computes the operator in numpy (docs/rules.md)") from objection


def _made_shape(s: Structure, before: dict[str, np.ndarray]) -> str | None:
    """A shape function that says something else than what is made."""
    said = {t: s.walk.shapes.get(t) for t in before}
    t = next((t for t, shape in said.items() if shape is not None and shape != before[t].shape), None)
    return t and f"the shape function says {list(said[t])} for {t}, and it is {list(before[t].shape)}"


def _growing(s: Structure, e: Example) -> Iterator[Dim]:
    """Atomic dims of what goes in and out; one that a constant has as well is another example's business."""
    fixed = {leaf for t in s.graph.weights for d in s.dims[t] for leaf in leaves(d)}
    tensors = [t for t in [*e.feeds, *s.graph.outputs] if t in s.dims and t not in s.walk.values]
    found = dict.fromkeys(leaf for t in tensors for d in s.dims[t] for leaf in leaves(d))
    yield from (d for d in found if d.size > 1 and d not in fixed)
