"""Sizes that are written down in the graph: operands and attributes that must say the new number.

The walk is repeated at the new sizes. Where a node's rule says what an operand should hold and the value that arrives is another,
the wanted element is traced back to the constant it came from, and *this use* of the constant gets a private value; elements
that the run computes from shapes look after themselves. Then the walk is repeated once more: every tensor must come out with
the size that its extent predicts. That proves the graph before a weight is written. The same at other, larger sizes of what is fed:
`batch·heads // 4` is right by chance for five heads and a batch of 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from .errors import GraphError
from .fold import is_float, slice_arguments
from .graph import SIZES, Graph, Node
from .repairs import Edits
from .rulebook import Registry
from .shapes import Walk, revisit, walk
from .structure import Structure, term_size
from .symbols import Mismatch, Symbols
from .target import Target
from .ties import Dim, find

LARGER = (211, 223, 227, 229, 233, 239, 241, 251, 257, 263)  # sizes of what is fed, for a second look
LAYOUT = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Expand"}


def predicted(s: Structure, target: Target | Elsewhere, tensor: str) -> tuple[int, ...]:
    return tuple(target.size(d) for d in s.dims[tensor])


@dataclass
class Elsewhere:
    """The new size of any dim where something of another size is fed; `sizes` are those of the atomic dims there."""

    target: Target
    sizes: dict[Dim, int]

    def size(self, d: Dim) -> int:
        d = find(d)
        if d.form is None:
            return self.target.sizes.get(d, self.sizes.get(d, d.size))
        parts = [self.size(p) for p in d.form[1]]
        return prod(parts) if d.form[0] == "*" else sum(parts)


class TwoSizes(GraphError):
    """One number would have to be two: `place` is the node that reads it."""

    def __init__(self, what: str, place: Node, hint: str):
        super().__init__(what, node=place.label, hint=hint)
        self.place = place


@dataclass
class Fixer:
    """Collects private constants during one walk at the new sizes."""

    s: Structure
    target: Target | Elsewhere
    edits: Edits
    registry: Registry
    changed: bool = False
    notes: list[str] = field(default_factory=list)
    claims: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def __call__(self, node: Node, w: Walk) -> None:
        ties = self.s.nodes.get(node.index)
        if ties is not None:
            for t in node.inputs:
                if t in w.values and t in self.s.graph.makers and t in self.s.dims and w.shapes[t] != predicted(self.s, self.target, t):
                    self._stretch(self.s.graph.makers[t], predicted(self.s, self.target, t), w)
            for where, terms in ties.rule.sizes.items():
                wanted = [term_size(t, ties.names, self.target.size) for t in terms]
                if isinstance(where, str):
                    self._attribute(node, where, wanted)
                else:
                    self._operand(node, where, wanted, w)
        if isinstance(self.target, Target):
            self._pin_scalars(node, w)

    def _stretch(self, maker: Node, wanted: tuple[int, ...], w: Walk) -> None:
        """Known numbers (indices, say) that were repeated along an axis which grows are repeated as often as it needs."""
        if maker.op in ("Cast", "Identity") and maker.inputs[0] in self.s.graph.makers:
            self._stretch(self.s.graph.makers[maker.inputs[0]], wanted, w)
        elif maker.op in ("Expand", "Tile"):
            operand = w.value(maker, 1).ravel()
            for i, want in enumerate(wanted[len(wanted) - operand.size:]):
                if want != operand[i] > 1 and w.shapes[maker.outputs[0]][i - operand.size] == operand[i]:  # a single entry was repeated
                    self._set(maker, 1, i, want, w)
        revisit(maker, w, self.s.graph, self.registry)

    def _attribute(self, node: Node, name: str, wanted: list) -> None:
        old = node.attrs.get(name)
        listed = isinstance(old, (list, tuple))
        new = [o if v is None else v for o, v in zip(old if listed else [old], wanted)]
        if new != (list(old) if listed else [old]):
            self.edits.attributes.setdefault(node.index, {})[name] = new if listed else new[0]

    def _operand(self, node: Node, slot: int, wanted: list, w: Walk) -> None:
        value = w.value(node, slot)
        if value is None:
            return
        for i, v in enumerate(wanted):
            if v is not None and int(value.ravel()[i]) != v:
                lost = self._set(node, slot, i, v, w)
                if lost is not None:
                    raise GraphError(f"{node.op} needs a size of {v} here, and it is computed in a way that cannot be traced", node=lost.label,
                                     hint="re-export with constant folding, or grow another dim")
                value = w.value(node, slot)

    def _set(self, node: Node, slot: int, index: int, wanted: int, w: Walk) -> Node | None:
        """Make element `index` of an input of a node be `wanted`, at the constant it came from.

        A number that never changes at run time becomes a constant of this use, wherever it was computed from.
        Returns None, or the node at which the trace ended without success.
        """
        tensor = node.inputs[slot]
        maker = self.s.graph.makers.get(tensor)
        if maker is not None and tensor not in self.s.fixed_values and not self._constant(tensor):
            step = self._origin(maker, index, wanted, w, maker.outputs.index(tensor))
            lost = maker if step is None else self._set(*step, w)
            if lost is None:
                revisit(maker, w, self.s.graph, self.registry)
            return lost
        if self.claims.setdefault((node.index, slot, index), wanted) != wanted:
            raise TwoSizes(f"a size here would have to be {self.claims[node.index, slot, index]} and {wanted}", node, "grow the two dims by the same factor")
        value = w.value(node, slot).copy()
        value.reshape(-1)[index] = wanted
        self.edits.constants[node.index, slot] = w.overrides[node.index, slot] = value
        self.changed = True
        return None

    def _constant(self, tensor: str) -> bool:
        """Made from constants alone, not from sizes of what is fed or of a grown tensor."""
        waiting = [tensor]
        while waiting:
            t = waiting.pop()
            if t in self.s.graph.weights:
                continue
            maker = self.s.graph.makers.get(t)
            if maker is None or maker.op in SIZES:
                return False
            waiting += [i for i in maker.inputs if i]
        return True

    def _origin(self, maker: Node, index: int, wanted: int, w: Walk, output: int):
        """One step back: (node, slot, element, wanted) that makes the element come out right."""
        if maker.op in LAYOUT:
            return maker, 0, index if maker.op != "Expand" else 0, wanted
        if maker.op == "Concat":
            for slot, t in enumerate(maker.inputs):
                size = int(np.prod(w.shape(maker, slot)))
                if index < size:
                    return maker, slot, index, wanted
                index -= size
        if maker.op == "Gather":
            return maker, 0, int(w.value(maker, 1).ravel()[index]) % w.shape(maker, 0)[0], wanted
        if maker.op == "Slice":
            values = [w.value(maker, i) for i in range(len(maker.inputs))]
            _, start, _, step = slice_arguments(maker, values, 1)[0]
            return maker, 0, start % w.shape(maker, 0)[0] + index * step if start < 0 else start + index * step, wanted
        if maker.op == "Split":
            before = sum(int(w.shapes[o][0]) for o in maker.outputs[:output])
            return maker, 0, before + index, wanted
        if maker.op == "Where":
            condition = np.broadcast_to(w.value(maker, 0), w.shapes[maker.outputs[output]]).ravel()[index]
            slot = 1 if condition else 2
            return maker, slot, index if w.value(maker, slot).size > 1 else 0, wanted
        if maker.op in ("Mul", "Div", "Add", "Sub"):
            return self._solve(maker, index, wanted, w)
        return None

    def _solve(self, maker: Node, index: int, wanted: int, w: Walk):
        """A constant meets a computed size: find the constant that gives the wanted result."""
        a, b = (w.value(maker, i) for i in (0, 1))
        pick = lambda v: int(v.ravel()[index if v.size > 1 else 0])  # noqa: E731
        for slot in (1, 0):
            if not self._constant(maker.inputs[slot]):
                continue
            other = pick((b, a)[slot])
            new = {("Mul", 0): wanted // max(other, 1), ("Mul", 1): wanted // max(other, 1), ("Div", 1): other // max(wanted, 1),
                   ("Div", 0): wanted * other, ("Add", 0): wanted - other, ("Add", 1): wanted - other,
                   ("Sub", 0): wanted + other, ("Sub", 1): other - wanted}[maker.op, slot]
            left, right = (new, other) if slot == 0 else (other, new)
            if {"Mul": left * right, "Div": left // max(right, 1), "Add": left + right, "Sub": left - right}[maker.op] == wanted:
                return maker, slot, index if (a, b)[slot].size > 1 else 0, new
        return None

    def _pin_scalars(self, node: Node, w: Walk) -> None:
        """A number that the graph computes from a size (1/√d) and that meets data keeps its old value."""
        if all(o in w.values for o in node.outputs if o):
            return
        for slot, t in enumerate(node.inputs):
            old, new = self.s.walk.values.get(t), w.value(node, slot)
            if old is None or new is None or not is_float(old.dtype) or old.shape != new.shape:
                continue
            if (node.index, slot) not in self.edits.constants and not np.array_equal(old, new) and t in self.s.graph.makers:
                self.edits.constants[node.index, slot] = w.overrides[node.index, slot] = old
                self.notes.append(f"{node.label}: {float(new.ravel()[0]):.6g} would follow the new size; kept at {float(old.ravel()[0]):.6g}")
                self.changed = True


def fix_constants(s: Structure, target: Target, edits: Edits, registry: Registry) -> Walk:
    """Find every private constant and attribute that the new sizes need, then prove the shapes of all tensors.

    Raises:
        GraphError: a size cannot be traced, or a tensor comes out with another size than its extent predicts.
    """
    fixer = Fixer(s, target, edits, registry)
    w = _settle(fixer)
    fixer.target = _elsewhere(s, target, registry)
    if fixer.target is not None:
        _settle(fixer)
        fixer.target = target
        w = _settle(fixer)
    edits.reasons += fixer.notes
    _prove(s, target, w, s.graph)
    return w


def _settle(fixer: Fixer) -> Walk:
    """Walk until no constant has to change any more."""
    s, edits, graph = fixer.s, fixer.edits, fixer.s.graph
    inputs = {v.name: predicted(s, fixer.target, v.name) for v in graph.inputs}
    weights = {t: predicted(s, fixer.target, t) for t in graph.weights}
    try:
        for _ in range(4):
            fixer.changed = False
            w = walk(graph, inputs, fixer.registry, weights, edits.constants, fixer, edits.attributes)
            if not fixer.changed:
                break
    except Mismatch as problem:
        raise GraphError(f"at the new sizes the graph does not fit: {problem}", node=problem.node.label,
                         hint="please report this graph; growing one dim at a time may work") from problem
    return w


def _elsewhere(s: Structure, target: Target, registry: Registry) -> Elsewhere | None:
    """Sizes of all dims where larger sizes are fed; None if the source does not run at them, or not as its ties say."""
    if not s.symbols.sizes:
        return None
    larger = iter(LARGER)
    other = Symbols(s.symbols.resolve({name: next(larger, 0) or 269 + 2 * i for i, name in enumerate(s.symbols.free)}), s.symbols.sums)
    try:
        w = walk(s.graph, {v.name: other.bind(v) for v in s.graph.inputs}, registry)
        sizes = {find(d): n for t, dims in s.dims.items() for d, n in zip(dims, w.shapes.get(t) or ()) if find(d).form is None}
        source = Fixer(s, Elsewhere(Target(), sizes), Edits(), registry)
        _prove(s, source.target, _settle(source), s.graph)
    except (Mismatch, GraphError):
        return None
    return None if source.edits.constants or source.edits.attributes else Elsewhere(target, sizes)


def _prove(s: Structure, target: Target | Elsewhere, w: Walk, graph: Graph) -> None:
    for node in graph.nodes:
        for t in node.outputs:
            if t in s.dims and t not in s.walk.values and w.shapes.get(t) != predicted(s, target, t):
                raise GraphError(f"the tensor {t!r} would be {w.shapes.get(t)} at the new sizes, its extent says {predicted(s, target, t)}",
                                 node=node.label, hint="a size is written down in a place that no rule knows; please report this graph")
