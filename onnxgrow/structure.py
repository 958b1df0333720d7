"""The ties of a whole graph: every axis gets a dim, every node's rule unifies some of them.

A node that cannot be tied (no rule, a rule that does not fit, a shape that only the run knows) freezes the dims around it: they
can be looked at, not grown, and the refusal names the node.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
import onnx

from .dequantize import FIRST
from .dequantize import OPERATORS as QUANTIZED
from .errors import GraphError
from .graph import SIZES, Graph, Node
from .limits import limits
from .lines import Occurrence, apply, parse, parse_tensor
from .rulebook import Op, Registry, Rule
from .shapes import Walk, first_walk, walk
from .symbols import Mismatch, Shape, Symbols
from .ties import Dim, TieError, find, leaves

LONGEST_SHAPE = 8  # entries; longer constants are no sizes
RULE_PROBLEMS = (TieError, ValueError, TypeError, KeyError, IndexError)


@dataclass(frozen=True)
class NodeTies:
    """What a rule made of one node."""

    rule: Rule
    occurrences: list[Occurrence]
    names: dict[str, Dim]


@dataclass
class Structure:
    """A graph with the dims of all its axes.

    Attributes:
        dims: tensor id -> the dim of each axis.
        nodes: node index -> its rule, and who stands where.
        blocked: (dim, reason, node) wherever a tie could not be made.
        runtime: tensor id -> per axis, does the size depend on what is fed?
        repeated: dims that an Expand made by repeating a single entry.
        fixed_values: tensors whose numbers are known and do not depend on what is fed.
        turns: how often tokens are fed, one behind the other: more than once in graphs that were joined (`joint`).
    """

    graph: Graph
    walk: Walk
    symbols: Symbols
    runtime: dict[str, tuple[bool, ...]]
    dims: dict[str, list[Dim]] = field(default_factory=dict)
    nodes: dict[int, NodeTies] = field(default_factory=dict)
    blocked: list[tuple[Dim, str, Node]] = field(default_factory=list)
    repeated: list[Dim] = field(default_factory=list)
    fixed_values: set[str] = field(default_factory=set)
    turns: int = 1

    @cached_property
    def frozen(self) -> dict[Dim, tuple[str, Node]]:
        """Why and where a leaf dim cannot grow. Ask only when all ties are made."""
        return {leaf: (reason, node) for d, reason, node in reversed(self.blocked) for leaf in leaves(d)}

    @cached_property
    def read(self) -> set[int]:
        """Nodes whose values reach an output of the graph; of all others nobody wants more than the shape."""
        out, waiting = set(), list(self.graph.outputs)
        while waiting:
            node = self.graph.makers.get(waiting.pop())
            if node is not None and node.index not in out:
                out.add(node.index)
                waiting += [t for t in (*node.inputs, *node.captured) if t and node.op not in SIZES]
        return out

    @cached_property
    def leaf_cache(self) -> dict[Dim, tuple[Dim, ...]]:
        return {}

    def leaves(self, d: Dim) -> tuple[Dim, ...]:
        """`ties.leaves`, remembered. Ask only when all ties are made."""
        if d not in self.leaf_cache:
            self.leaf_cache[d] = leaves(d)
        return self.leaf_cache[d]

    def axis_leaves(self, tensor: str, axis: int) -> tuple[Dim, ...]:
        dims = self.dims.get(tensor)
        return self.leaves(dims[axis]) if dims else ()


def tie(graph: Graph, registry: Registry) -> Structure:
    """Find shapes, then unify the dims of all axes node by node."""
    w, symbols = first_walk(graph, registry)
    s = Structure(graph, w, symbols, {})
    _compare(s, _second_walk(graph, w, symbols, registry))
    for tensor, shape in w.shapes.items():
        if shape is not None:
            s.dims[tensor] = [Dim(d) for d in shape]
    tables = {t for t in graph.weights if t in w.values and w.values[t].size > LONGEST_SHAPE}
    for node in graph.nodes:
        if not _is_number(node, w, tables):
            _tie_node(s, node, registry)
    return s


def _is_number(node: Node, w: Walk, tables: set[str]) -> bool:
    """Shape arithmetic ties nothing: its results are sizes, not axes. What is made from stored tables (ids, masks) is data; it joins them."""
    if not all(o in w.values for o in node.outputs if o):
        return False
    if node.op != "Shape" and any(t in tables for t in node.inputs):
        tables.update(o for o in node.outputs if o)
        return False
    return True


def _second_walk(graph: Graph, w: Walk, symbols: Symbols, registry: Registry) -> Walk | None:
    """Walk once more with other numbers for the symbols: what changes is known at run time only. None if it runs at one size only."""
    if not symbols.sizes:
        return w

    def moved(names: list[str], step: int = 1) -> Walk:
        other = Symbols(symbols.resolve({name: symbols.sizes[name] + step * (name in names) for name in symbols.free}), symbols.sums, symbols.pinned)
        return walk(graph, {v.name: other.bind(v) for v in graph.inputs}, registry)

    for step in (1, -1):  # a table of positions may end where the first walk did
        with suppress(Mismatch, GraphError):
            return moved(symbols.free, step)
    for name in symbols.free:  # some of them may be free all the same
        try:
            moved([name])
        except Mismatch as problem:
            symbols.pinned[name] = (symbols.sizes[name], problem.node)
        except GraphError:
            return None
    try:
        return moved(symbols.free)
    except (Mismatch, GraphError):
        return None


def _compare(s: Structure, second: Walk | None) -> None:
    """Mark the axes and values that the symbols decide."""
    for t, shape in s.walk.shapes.items():
        if shape is not None:
            other = second.shapes.get(t) if second else None
            same = other is not None and len(other) == len(shape)
            s.runtime[t] = tuple(a != b for a, b in zip(shape, other)) if same else (t not in s.graph.weights,) * len(shape)
    if second:
        s.fixed_values = {t for t, v in s.walk.values.items() if t in second.values and np.array_equal(v, second.values[t])}


def op_of(s: Structure, node: Node) -> Op:
    """The node as its rule sees it."""
    w = s.walk
    shapes: list[Shape | None] = [w.shapes.get(t) if t else None for t in node.inputs]
    outputs = [w.shapes.get(t) if i == 0 or s.graph.wants(t) else None for i, t in enumerate(node.outputs)]
    known = [_number(s, node, i) if t else None for i, t in enumerate(node.inputs)]
    fixed = lambda t: w.values.get(t) if t in s.fixed_values or t in s.graph.weights else None  # noqa: E731
    return Op(node.op, node.version, node.attrs, shapes, outputs, known,
              [s.runtime.get(t, ()) for t in node.inputs], [s.runtime.get(t, ()) for t in node.outputs], node.index in s.read,
              [t in s.fixed_values or t in s.graph.weights for t in node.inputs], lambda slot: limits(s.graph, fixed, node.inputs[slot]))


def _number(s: Structure, node: Node, slot: int) -> np.ndarray | None:
    """A number that is known; also the two floats that say what a OneHot holds, which are no weight."""
    value, tensor = s.walk.value(node, slot), node.inputs[slot]
    if value is None and node.op == "OneHot" and tensor in s.graph.weights and s.graph.weight_shape(tensor) == (2,):
        return s.graph.array(tensor)
    return value


def _tie_node(s: Structure, node: Node, registry: Registry) -> None:
    function = registry.find(node.domain, node.op, node.version)
    if function is None:
        _block(s, node, _no_rule(node))
        return
    op = op_of(s, node)
    lost = _first_lost(s, node)
    if lost is not None:
        _block(s, node, _why_lost(lost, registry), blame=lost)
        return
    torn: list[tuple[list[Dim], str]] = []
    try:
        rule, occurrences, names = _fitting(s, node, op, function(op), torn)
    except RULE_PROBLEMS as problem:
        _block(s, node, f"the rule for {node.op} does not fit: {problem}")
        return
    for dims, problem in torn:  # the other axes are tied as the rule says: pixels of a shifted window stay, its channels can grow
        s.blocked += [(d, f"the rule for {node.op} does not fit: {problem}", node) for d in dims if d.size > 1]
    s.nodes[node.index] = NodeTies(rule, occurrences, names)
    lost = {id(d) for dims, _ in torn for d in dims}
    seen = {n for o in occurrences if not o.output for n in o.names} | {n for n, d in names.items() if id(d) in lost}
    if seen:
        s.repeated += [names[n] for o in occurrences if o.output for n in o.names if n not in seen and names[n].size > 1]


def _fitting(s: Structure, node: Node, op: Op, rule: Rule, torn: list) -> tuple[Rule, list[Occurrence], dict[str, Dim]]:
    """The rule, or a weaker one, and what its line ties."""
    try:
        return rule, *_apply(s, node, op, rule, torn if rule.weaker is None else None)
    except TieError:
        if rule.weaker is None:
            raise
        return _fitting(s, node, op, rule.weaker, torn)


def _apply(s: Structure, node: Node, op: Op, rule: Rule, torn: list):
    line = parse(rule.line)
    dims = [s.dims.get(t, []) for t in node.inputs], [s.dims.get(t, []) for t in node.outputs]
    known = [shape is not None for shape in op.outputs]
    outputs = [shape if ok and t else None for shape, ok, t in zip(op.outputs, known, node.outputs)]
    return apply(line, (op.shapes, outputs), dims, dict(rule.dims), torn)


def _no_rule(node: Node) -> str:
    return f"no rule for the operator {qualified(node)}"


def qualified(node: Node) -> str:
    """`acme::Twist`, or the plain name in ONNX's own domain."""
    return f"{node.domain}::{node.op}" if node.domain else node.op


def _first_lost(s: Structure, node: Node) -> Node | None:
    """The node at which the shapes were lost that this one would need; None where it has them all."""
    lost = None
    while True:
        missing = next((t for t in node.inputs if t and s.walk.shapes.get(t) is None), None)
        if missing is None or missing not in s.graph.makers:
            return lost if missing is None else node
        node = lost = s.graph.makers[missing]


def _why_lost(node: Node, registry: Registry) -> str:
    if registry.find(node.domain, node.op, node.version) is None:
        return _no_rule(node)
    if registry.shape_function(node) is None and not onnx.defs.has(node.op, node.version, node.domain):
        return f"the rule for {qualified(node)} has no shape function"
    return "a size here is known only when the model runs"


def _block(s: Structure, node: Node, reason: str, blame: Node | None = None) -> None:
    for tensor in [*node.inputs, *node.outputs, *node.captured]:
        s.blocked += [(d, reason, blame or node) for d in s.dims.get(tensor, []) if d.size > 1]


def term_size(text: str, names: dict[str, Dim], size) -> int | None:
    """The number that a term of `Rule.sizes` stands for, given `size(dim)`; None where the element looks after itself."""
    if text in ("_", ""):
        return None
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    (element,) = parse_tensor(text)
    return sign * sum(prod(size(find(names[n])) for n in term) for term in element)


def hint_for(reason: str, node: Node, otherwise: str) -> str:
    """What a user can do about a node that blocks a growth."""
    if node.op in QUANTIZED:
        return FIRST
    can_add = reason.startswith("no rule") or reason.endswith("no shape function")
    return f"add a rule for {qualified(node)} (--rules FILE, see docs/rules.md), or {otherwise}" if can_add else otherwise
