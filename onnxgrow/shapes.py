"""Make every size a number.

Each symbolic input dimension is bound to a prime of its own, then the nodes are walked once in order: shape arithmetic is
folded (`fold`), the rest is asked of ONNX's own inference, one node at a time. Operators that ONNX does not know bring a shape
function in their rule. The same walk runs again after the plan, at the new sizes: that is the proof of section 6 of the design.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, combinations
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.shape_inference import InferenceError

from .errors import GraphError
from .fold import BOUNDS, LONGEST, fold
from .graph import PARTS_OPSET, Graph, Node
from .inference import infer
from .symbols import LARGER_PRIMES, PRIMES, Mismatch, Shape, Symbols, bind_symbols, likely_pins, propose_total, relate
from .unfolding import body_of

MOST_ENTRIES, PER_WEIGHT = 1 << 27, 16  # of one tensor at the sizes of the analysis: so many, or so many for each weight of the model

PARTS_OF_ONE = 60  # nodes that a fused operator costs as much as
MOST_VISITS = 12_000  # nodes walked in search of sizes that an export wrote down: seconds

Overrides = dict[tuple[int, int], np.ndarray]


@dataclass
class Walk:
    """What one walk found: shape (None where not traceable), element type and folded value of each tensor id."""

    shapes: dict[str, Shape | None] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    overrides: Overrides = field(default_factory=dict)

    def value(self, node: Node, slot: int) -> np.ndarray | None:
        """The number an input slot holds, private constants of this use first."""
        if (node.index, slot) in self.overrides:
            return self.overrides[node.index, slot]
        return self.values.get(node.inputs[slot]) if slot < len(node.inputs) else None

    def shape(self, node: Node, slot: int) -> Shape | None:
        if (node.index, slot) in self.overrides:
            return tuple(self.overrides[node.index, slot].shape)
        return self.shapes.get(node.inputs[slot])


class Trials:
    """How far trials of sizes may still walk, in nodes: a graph that does not fit at all must be told so in seconds. `place`: of each node."""

    def __init__(self, graph: Graph, registry):
        self.left, self.place = MOST_VISITS, {n.index: i for i, n in enumerate(graph.nodes)}
        costs = [PARTS_OF_ONE if registry.unfolding(n.domain, n.op) else 1 for n in graph.nodes]
        self.cost = [0, *accumulate(costs)]  # of the nodes before each place


def first_walk(graph: Graph, registry) -> tuple[Walk, Symbols]:
    """Walk at the source's sizes; where two bound symbols must be related (total = past + sequence), learn how and start again.

    Sound that is cut into frames must be longer than a word: where the first primes do not fit, larger ones are tried.
    """
    trials = Trials(graph, registry)
    try:
        return _walk_at(graph, registry, PRIMES, trials)
    except GraphError as problem:
        for primes in LARGER_PRIMES if bind_symbols(graph).sizes else ():
            try:
                return _walk_at(graph, registry, primes, trials)
            except GraphError:
                continue
        raise problem


def _walk_at(graph: Graph, registry, primes: tuple[int, ...], trials: Trials) -> tuple[Walk, Symbols]:
    symbols = bind_symbols(graph, primes)
    propose_total(graph, symbols)
    while True:  # each round relates or fixes one of the free symbols
        try:
            found = walk(graph, {v.name: symbols.bind(v) for v in graph.inputs}, registry)
            return _within_reason(graph, _without_needless_pins(graph, symbols, registry, primes) or found), symbols
        except Mismatch as problem:
            if not relate(symbols, problem.pairs) and not _pin(graph, symbols, problem, registry, trials):
                raise GraphError(f"sizes do not fit: {problem}", node=problem.node.label, hint="check that the model runs in ONNX Runtime") from problem
            symbols.sizes = symbols.resolve(symbols.sizes)


def _within_reason(graph: Graph, found: Walk) -> Walk:
    """GraphError for a graph that makes very much out of very little: running it would take all memory there is."""
    held = sum(prod(graph.weight_shape(t)) for t in graph.weights)
    for tensor, shape in found.shapes.items():
        if shape and tensor not in graph.weights and prod(shape) > max(MOST_ENTRIES, PER_WEIGHT * held):
            maker = graph.makers.get(tensor)
            raise GraphError(f"{tensor!r} would have {prod(shape)} entries ({' x '.join(map(str, shape))}), in a model of {held} weights", node=maker.label if maker else tensor,
                             hint="check the sizes of its inputs, and the constants that this one is computed from")
    return found


def _pin(graph: Graph, symbols: Symbols, problem: Mismatch, registry, trials: Trials) -> bool:
    """A size that the export wrote down, though the input's axis is symbolic: found by trying what the failing node holds."""
    place = trials.place

    def reached(pins: dict[str, int]) -> int:
        trial = Symbols(dict(symbols.sizes), symbols.sums, symbols.pinned | {name: (size, problem.node) for name, size in pins.items()})
        trial.sizes = trial.resolve(trial.sizes)
        try:
            walk(graph, {v.name: trial.bind(v) for v in graph.inputs}, registry)
        except Mismatch as later:
            return place[later.node.index]
        return len(place)

    best, far = {}, place[problem.node.index]
    for pins in likely_pins(symbols, problem):
        if trials.left <= 0:
            break
        got = reached(pins)
        trials.left -= trials.cost[got]
        best, far = (pins, got) if got > far else (best, far)
    if not best:
        return False
    symbols.pinned |= {name: (size, problem.node) for name, size in best.items()}
    return True


def _without_needless_pins(graph: Graph, symbols: Symbols, registry, primes: tuple[int, ...]) -> Walk | None:
    """Free every symbol that was fixed together with another one which alone explains what did not fit: the walk then, None where all are needed."""
    found, first = None, bind_symbols(graph, primes).sizes if symbols.pinned else {}
    for name in [*symbols.pinned]:
        trial = Symbols(symbols.sizes | {name: first[name]}, symbols.sums, {k: pin for k, pin in symbols.pinned.items() if k != name})
        trial.sizes = trial.resolve(trial.sizes)
        with suppress(Mismatch, GraphError):
            found = walk(graph, {v.name: trial.bind(v) for v in graph.inputs}, registry)
            symbols.sizes, symbols.pinned = trial.sizes, trial.pinned
    return found


def walk(graph: Graph, input_shapes: dict[str, Shape], registry, weight_shapes: dict[str, Shape] | None = None,
         overrides: Overrides | None = None, fix=None, attributes: dict[int, dict] | None = None) -> Walk:
    """Shapes and folded values of every tensor.

    `weight_shapes` replaces the shapes of grown weights; `overrides` gives single uses of a constant another value;
    `fix(node, walk)` is called before each node is inferred and may add overrides (see `constants`); `attributes` replaces
    attributes of nodes by index, and may be filled by `fix`.
    """
    w = Walk(overrides=dict(overrides or {}))
    for value in graph.inputs:
        w.shapes[value.name] = input_shapes[value.name]
        w.types[value.name] = value.type.tensor_type.elem_type
    for tensor, (shape, kind, number) in graph.stored.items():
        w.shapes[tensor] = (weight_shapes or {}).get(tensor, shape)
        w.types[tensor] = kind
        if number is not None and w.shapes[tensor] == shape:
            w.values[tensor] = number
    for node in graph.nodes:
        if node.branch and _is_other(w, *node.branch):
            w.shapes.update(dict.fromkeys(node.outputs))
            continue
        if fix is not None:
            fix(node, w)
        if attributes and node.index in attributes:
            node = node.with_attributes(attributes[node.index])
        _visit(node, w, registry, graph)
    return w


def _is_other(w: Walk, condition: str, needed: bool) -> bool:
    """Is a condition known, and another one than a branch needs?"""
    value = w.values.get(condition)
    return value is not None and bool(value.ravel()[0]) != needed


def revisit(node: Node, w: Walk, graph: Graph, registry) -> None:
    """Evaluate one node again after an override of one of its inputs."""
    _visit(node, w, registry, graph)


def _visit(node: Node, w: Walk, registry, graph: Graph) -> None:
    if node.op == "Shape" and w.shapes.get(node.inputs[0]) is not None:
        shape = w.shapes[node.inputs[0]]
        _keep(node, w, [np.asarray(shape[node.attrs.get("start", 0): node.attrs.get("end", len(shape))], np.int64)])
        return
    if node.op == "Size" and w.shapes.get(node.inputs[0]) is not None:
        _keep(node, w, [np.asarray(prod(w.shapes[node.inputs[0]]), np.int64)])
        return
    values = [w.value(node, i) if t else None for i, t in enumerate(node.inputs)]
    if node.op in BOUNDS:
        values = [_compared(t, w, graph) if v is None else v for v, t in zip(values, node.inputs)]
    if all(v is not None or not t for v, t in zip(values, node.inputs)) and node.op != "Shape":
        try:
            folded = fold(node, values)
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as problem:  # operands that do not belong together
            raise Mismatch(_candidates(node, w), node, str(problem)) from problem
        if folded is not None:
            _keep(node, w, folded)
            return
    _infer(node, w, values, registry, graph)


def _keep(node: Node, w: Walk, arrays: list[np.ndarray]) -> None:
    for name, a in zip(node.outputs, arrays):
        if name:
            w.shapes[name], w.types[name] = tuple(a.shape), helper.np_dtype_to_tensor_dtype(a.dtype)
            w.values[name] = a


def _compared(tensor: str, w: Walk, graph: Graph) -> np.ndarray | None:
    """A list of sizes that was cast to floats, or a stored list of bounds."""
    if tensor in graph.weights:
        shape = graph.weight_shape(tensor)
        return graph.array(tensor) if len(shape) == 1 and shape[0] <= LONGEST else None
    maker = graph.makers.get(tensor)
    value = w.value(maker, 0) if maker is not None and maker.op == "Cast" else None
    return None if value is None or value.ndim != 1 or value.size > LONGEST else value.astype(helper.tensor_dtype_to_np_dtype(maker.attrs["to"]))


def _infer(node: Node, w: Walk, values, registry, graph: Graph) -> None:
    shapes = [w.shape(node, i) if t else None for i, t in enumerate(node.inputs)]
    by_rule = registry.shape_function(node)
    if by_rule is not None and shapes:
        for name, (shape, kind) in zip(node.outputs, by_rule(node, shapes, [w.types.get(t) for t in node.inputs])):
            w.shapes[name], w.types[name] = shape, kind
        return
    unfolding = registry.unfolding(node.domain, node.op)
    if unfolding is not None:
        _visit_parts(node, body_of(unfolding, _by_id(node), shapes, [w.types.get(t) for t in node.inputs]).nodes, w, registry, graph)
        return
    if not onnx.defs.has(node.op, node.version, node.domain) or any(t and not w.types.get(t) for t in node.inputs):
        w.shapes.update(dict.fromkeys(node.outputs))
        return
    try:
        found = infer(node, shapes, [w.types.get(t) for t in node.inputs], values)
    except (InferenceError, ValueError, TypeError, OverflowError) as problem:  # the last three: sizes and types that onnx cannot even be asked about
        raise Mismatch(_candidates(node, w), node, str(problem).split("\n")[0], _held(values, shapes)) from problem
    for name, (shape, kind) in zip(node.outputs, found):
        if name:
            w.shapes[name] = shape
            w.types |= {name: kind} if kind is not None else {}
    made = w.shapes.get(node.outputs[0])
    if node.op == "Reshape" and made is not None and shapes[0] is not None and prod(made) != prod(shapes[0]):
        raise Mismatch(_candidates(node, w), node, f"{list(shapes[0])} cannot be reshaped to {list(made)}", _held(values, shapes))


def _held(values: list, shapes: list) -> list[int]:
    """Sizes that stand at a node: those that an operand lists, then those of its inputs; and one."""
    listed = [int(n) for v in values if v is not None and v.dtype.kind == "i" and v.size <= 8 for n in v.ravel() if n > 0]
    return [*listed, *(n for shape in shapes if shape is not None for n in shape if n > 1), 1]


def _by_id(node: Node) -> onnx.NodeProto:
    """The node with the tensor ids of the analysis as its inputs."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    proto.input[:] = node.inputs
    return proto


def _visit_parts(node: Node, parts: list[onnx.NodeProto], w: Walk, registry, graph: Graph) -> None:
    """Walk the plain nodes that an operator stands for."""
    for part in parts:
        if part.op_type == "Constant":
            _keep(Node(node.index, part, [], PARTS_OPSET), w, [numpy_helper.to_array(part.attribute[0].t)])
        else:
            _visit(Node(node.index, part, list(part.input), max(node.version, PARTS_OPSET)), w, registry, graph)


def _candidates(node: Node, w: Walk) -> list[tuple[int, int]]:
    """Pairs of sizes that differ where two inputs meet, aligned from the right."""
    shapes = [w.shapes[t] for t in node.inputs if t and w.shapes.get(t) is not None]
    if node.op == "MatMul" and len(shapes) == 2 and shapes[0] and len(shapes[1]) > 1:
        a, b = shapes
        return [(a[-1], b[-2])] + [(p, q) for p, q in zip(a[:-2][::-1], b[:-2][::-1]) if p != q and 1 not in (p, q)]
    if node.op == "Reshape" and node.inputs[1] in w.values:
        return [(p, int(q)) for p, q in zip(shapes[0], w.values[node.inputs[1]]) if p != q and q > 1]
    if node.op == "Expand" and node.inputs[1] in w.values:
        shapes = [shapes[0], tuple(int(d) for d in w.values[node.inputs[1]])]
    pairs, free = [], node.attrs["axis"] % max(len(shapes[0]), 1) if node.op == "Concat" and shapes else None
    for a, b in combinations(shapes, 2):
        pairs += [(p, q) for i, (p, q) in enumerate(zip(a[::-1], b[::-1])) if p != q and 1 not in (p, q) and len(a) - 1 - i != free]
    return pairs
