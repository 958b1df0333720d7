"""Make every size a number.

Each symbolic input dimension is bound to a prime of its own, then the nodes are walked once in order: shape arithmetic is
folded (`fold`), the rest is asked of ONNX's own inference, one node at a time. Operators that ONNX does not know bring a shape
function in their rule. The same walk runs again after the plan, at the new sizes: that is the proof of section 6 of the design.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError, infer_node_outputs

from .errors import GraphError
from .fold import BOUNDS, LONGEST, fold
from .graph import PARTS_OPSET, Graph, Node
from .unfolding import body_of

PRIMES = (3, 7, 5, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
LARGER_PRIMES = ((3, 211, 223, 227, 229, 233, 239, 241, 251), (3, 16001, 16007, 16033, 16057, 16061, 16063))
Shape = tuple[int, ...]
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


@dataclass
class Symbols:
    """Symbolic input dimensions: the number that stands for each, and those that turned out to be sums of others.

    `sums["total"] == ("past", "sequence")` means that the graph only runs where total = past + sequence; `pinned["batch"] == (2, node)`
    that it only runs where batch is 2: at that node other sizes do not fit.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    sums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pinned: dict[str, tuple[int, Node]] = field(default_factory=dict)

    def bind(self, value: onnx.ValueInfoProto) -> Shape:
        dims = value.type.tensor_type.shape.dim
        return tuple(self.sizes[symbol_of(value, i)] if not d.HasField("dim_value") else d.dim_value for i, d in enumerate(dims))

    def resolve(self, sizes: dict[str, int]) -> dict[str, int]:
        """Sizes of all symbols, given those of the free ones."""
        def size(name: str) -> int:
            return self.pinned[name][0] if name in self.pinned else sum(size(p) for p in self.sums[name]) if name in self.sums else sizes[name]
        return {name: size(name) for name in self.sizes}

    @property
    def free(self) -> list[str]:
        return [name for name in self.sizes if name not in self.sums and name not in self.pinned]


class Mismatch(Exception):
    """Two sizes meet that should be one: either the graph is wrong or two symbols are related."""

    def __init__(self, pairs: list[tuple[int, int]], node: Node, reason: str, held: Iterable[int] = ()):
        super().__init__(reason)
        self.pairs, self.node, self.held = pairs, node, list(dict.fromkeys(held))


def symbol_of(value: onnx.ValueInfoProto, axis: int) -> str:
    """The name of a symbolic dimension; an unnamed one is called after its input and axis."""
    d = value.type.tensor_type.shape.dim[axis]
    return d.dim_param if d.dim_param else f"{value.name}.{axis}"


def bind_symbols(graph: Graph, primes: tuple[int, ...] = PRIMES) -> Symbols:
    symbols = Symbols()
    primes = iter(primes)
    for value in graph.inputs:
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise GraphError(f"the input {value.name!r} has no tensor shape", hint="export the model with typed inputs of known rank")
        for i, d in enumerate(value.type.tensor_type.shape.dim):
            if not d.HasField("dim_value"):
                name = symbol_of(value, i)
                if name not in symbols.sizes:
                    symbols.sizes[name] = next(primes, 0) or 2 * max(symbols.sizes.values()) + 1
    return symbols


def first_walk(graph: Graph, registry) -> tuple[Walk, Symbols]:
    """Walk at the source's sizes; where two bound symbols must be related (total = past + sequence), learn how and start again.

    Sound that is cut into frames must be longer than a word: where the first primes do not fit, larger ones are tried.
    """
    try:
        return _walk_at(graph, registry, PRIMES)
    except GraphError as problem:
        for primes in LARGER_PRIMES if bind_symbols(graph).sizes else ():
            try:
                return _walk_at(graph, registry, primes)
            except GraphError:
                continue
        raise problem


def _walk_at(graph: Graph, registry, primes: tuple[int, ...]) -> tuple[Walk, Symbols]:
    symbols = bind_symbols(graph, primes)
    _propose_total(graph, symbols)
    for _ in range(2 * len(symbols.sizes) + 1):
        try:
            return walk(graph, {v.name: symbols.bind(v) for v in graph.inputs}, registry), symbols
        except Mismatch as problem:
            if not _relate(symbols, problem.pairs) and not _pin(graph, symbols, problem, registry):
                raise GraphError(f"sizes do not fit: {problem}", node=problem.node.label, hint="check that the model runs in ONNX Runtime") from problem
            symbols.sizes = symbols.resolve(symbols.sizes)
    raise GraphError("the symbolic input sizes contradict each other", hint="export with named dynamic axes")


def _pin(graph: Graph, symbols: Symbols, problem: Mismatch, registry) -> bool:
    """A size that the export wrote down, though the input's axis is symbolic: found by trying what the failing node holds."""
    place = {n.index: i for i, n in enumerate(graph.nodes)}

    def reached(pins: dict[str, int]) -> int:
        trial = Symbols(dict(symbols.sizes), symbols.sums, symbols.pinned | {name: (size, problem.node) for name, size in pins.items()})
        trial.sizes = trial.resolve(trial.sizes)
        try:
            walk(graph, {v.name: trial.bind(v) for v in graph.inputs}, registry)
        except Mismatch as later:
            return place[later.node.index]
        return len(place)

    tried = list(_pins(symbols, problem))
    best = max(tried, key=reached, default={})
    if not best or reached(best) <= place[problem.node.index]:
        return False
    symbols.pinned |= {name: (size, problem.node) for name, size in best.items()}
    return True


def _pins(symbols: Symbols, problem: Mismatch) -> Iterator[dict[str, int]]:
    """Likely sizes of symbols: what stands beside them, together and one by one; then any number that the node holds, for one or two of them."""
    by_size = {symbols.sizes[name]: name for name in reversed(symbols.free)}
    beside = {by_size[u]: v for pair in problem.pairs for u, v in (pair, pair[::-1]) if u in by_size and v not in by_size}
    yield from [beside, *({name: size} for name, size in beside.items())] if beside else []
    for count in (1, 2):
        for names in combinations(symbols.free[:4], count):
            yield from (dict(zip(names, sizes)) for sizes in product(problem.held[:6], repeat=count))


def _propose_total(graph: Graph, symbols: Symbols) -> None:
    """A mask over past and present: the second axis of a 2-D input that is neither the sequence nor the past is their sum.

    Graphs that gather from the mask do not show this in any shape, they only fail when they run.
    """
    def axis(rank: int, position: int) -> list[str]:
        dims = [(v, v.type.tensor_type.shape.dim) for v in graph.inputs]
        return [symbol_of(v, position) for v, d in dims if len(d) == rank and not d[position].HasField("dim_value")]
    past, flat = axis(4, 2), axis(2, 1)
    if past and len(set(flat)) == 2 and not set(past) & set(flat):  # the mask of another cache counts for itself
        sequence, whole = dict.fromkeys(flat)
        symbols.sums[whole] = (past[0], sequence)
        symbols.sizes = symbols.resolve(symbols.sizes)


def _relate(symbols: Symbols, pairs: list[tuple[int, int]]) -> bool:
    for u, v in pairs:
        if _relate_sums(symbols, u, v):
            return True
        for mine, other in ((u, v), (v, u)):
            name = next((s for s in reversed(symbols.free) if symbols.sizes[s] == mine), None)
            if name is None:
                continue
            before = symbols.free[: symbols.free.index(name)]
            rest = before + [s for s in symbols.free if s != name and s not in before]
            for count in (1, 2):
                for group in combinations(rest, count):
                    if sum(symbols.sizes[s] for s in group) == other:
                        symbols.sums[name] = group
                        symbols.sizes[name] = other
                        return True
    return False


def _relate_sums(symbols: Symbols, u: int, v: int) -> bool:
    """past + sequence meets past' + sequence: the two pasts are one."""
    def sums(size: int) -> list[set[str]]:
        return [{a, b} for a, b in combinations(symbols.free, 2) if symbols.sizes[a] + symbols.sizes[b] == size]
    for left in sums(u):
        for right in sums(v):
            if len(left & right) == 1:
                (keep,), (name,) = left - right, right - left
                symbols.sums[name], symbols.sizes[name] = (keep,), symbols.sizes[keep]
                return True
    return False


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
    for tensor in graph.weights:
        w.shapes[tensor] = (weight_shapes or {}).get(tensor, graph.weight_shape(tensor))
        w.types[tensor] = graph.weight_type(tensor)
        if _is_small_number(w.types[tensor], graph.weight_shape(tensor)) and w.shapes[tensor] == graph.weight_shape(tensor):
            w.values[tensor] = graph.array(tensor)
    opsets = list(graph.source.proto.opset_import)
    for node in graph.nodes:
        if node.branch and _is_other(w, *node.branch):
            w.shapes.update(dict.fromkeys(node.outputs))
            continue
        if fix is not None:
            fix(node, w)
        if attributes and node.index in attributes:
            node = node.with_attributes(attributes[node.index])
        _visit(node, w, opsets, registry, graph)
    return w


def _is_other(w: Walk, condition: str, needed: bool) -> bool:
    """Is a condition known, and another one than a branch needs?"""
    value = w.values.get(condition)
    return value is not None and bool(value.ravel()[0]) != needed


def revisit(node: Node, w: Walk, graph: Graph, registry) -> None:
    """Evaluate one node again after an override of one of its inputs."""
    _visit(node, w, list(graph.source.proto.opset_import), registry, graph)


def _is_small_number(kind: int, shape: Shape) -> bool:
    if kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16):
        return int(np.prod(shape)) == 1
    return kind in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL) and int(np.prod(shape)) <= 4096


def _visit(node: Node, w: Walk, opsets, registry, graph: Graph) -> None:
    if node.op == "Shape" and w.shapes.get(node.inputs[0]) is not None:
        shape = w.shapes[node.inputs[0]]
        _keep(node, w, [np.asarray(shape[node.attrs.get("start", 0): node.attrs.get("end", len(shape))], np.int64)])
        return
    if node.op == "Size" and w.shapes.get(node.inputs[0]) is not None:
        _keep(node, w, [np.asarray(int(np.prod(w.shapes[node.inputs[0]])), np.int64)])
        return
    values = [w.value(node, i) if t else None for i, t in enumerate(node.inputs)]
    if node.op in BOUNDS:
        values = [_compared(t, w, graph) if v is None else v for v, t in zip(values, node.inputs)]
    if all(v is not None or not t for v, t in zip(values, node.inputs)) and node.op != "Shape":
        try:
            folded = fold(node, values)
        except (ValueError, IndexError, TypeError) as problem:
            raise Mismatch(_candidates(node, w), node, str(problem)) from problem
        if folded is not None:
            _keep(node, w, folded)
            return
    _infer(node, w, values, opsets, registry, graph)


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


def _infer(node: Node, w: Walk, values, opsets, registry, graph: Graph) -> None:
    shapes = [w.shape(node, i) if t else None for i, t in enumerate(node.inputs)]
    by_rule = registry.shape_function(node)
    if by_rule is not None:
        for name, (shape, kind) in zip(node.outputs, by_rule(node, shapes, [w.types.get(t) for t in node.inputs])):
            w.shapes[name], w.types[name] = shape, kind
        return
    unfolding = registry.unfolding(node.domain, node.op)
    if unfolding is not None:
        _visit_parts(node, body_of(unfolding, _by_id(node), shapes, [w.types.get(t) for t in node.inputs]).nodes, w, opsets, registry, graph)
        return
    if not onnx.defs.has(node.op, node.version, node.domain) or any(t and not w.types.get(t) for t in node.inputs):
        w.shapes.update(dict.fromkeys(node.outputs))
        return
    types, data, proto = {}, {}, node.proto
    if len(set(proto.input)) < len(proto.input):  # one constant in two places, of which a private value may change one
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        proto.input[:] = [f"{i}:{name}" if name else "" for i, name in enumerate(node.proto.input)]
    for i, name in enumerate(proto.input):
        if name and w.types.get(node.inputs[i]):
            types[name] = helper.make_tensor_type_proto(w.types[node.inputs[i]], shapes[i])
        if values[i] is not None:
            data[name] = numpy_helper.from_array(np.asarray(values[i], order="C"))
    try:
        schema = onnx.defs.get_schema(node.op, node.version, node.domain)
        found = infer_node_outputs(schema, proto, types, data, {}, opsets)
    except ValidationError:  # an exporter wrote the operator in a type that this opset does not know of it: shapes are those of float32
        found = _as_float32(schema, proto, types, data, opsets)
    except InferenceError as problem:
        raise Mismatch(_candidates(node, w), node, str(problem).split("\n")[0], _held(values, shapes)) from problem
    for name in node.outputs:
        if name:
            _take(name, found.get(name), w)
    made = w.shapes.get(node.outputs[0])
    if node.op == "Reshape" and made is not None and shapes[0] is not None and np.prod(made) != np.prod(shapes[0]):
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


def _visit_parts(node: Node, parts: list[onnx.NodeProto], w: Walk, opsets, registry, graph: Graph) -> None:
    """Walk the plain nodes that an operator stands for."""
    for part in parts:
        if part.op_type == "Constant":
            _keep(Node(node.index, part, [], PARTS_OPSET), w, [numpy_helper.to_array(part.attribute[0].t)])
        else:
            _visit(Node(node.index, part, list(part.input), max(node.version, PARTS_OPSET)), w, opsets, registry, graph)


def _as_float32(schema, proto: onnx.NodeProto, types: dict[str, onnx.TypeProto], data: dict, opsets) -> dict[str, onnx.TypeProto]:
    """What a node makes of bfloat16, inferred as if it were float32; nothing where that does not fit either."""
    known = {name: kind.tensor_type.elem_type for name, kind in types.items()}
    for name, kind in known.items():
        types[name].tensor_type.elem_type = TensorProto.FLOAT if kind == TensorProto.BFLOAT16 else kind
    wide = {name: numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float32)) if known[name] == TensorProto.BFLOAT16 else t for name, t in data.items()}
    try:
        found = infer_node_outputs(schema, proto, types, wide, {}, opsets)
    except (ValidationError, InferenceError):
        return {}
    for kind in found.values():
        if kind.tensor_type.elem_type == TensorProto.FLOAT:
            kind.tensor_type.elem_type = TensorProto.BFLOAT16
    return found


def _take(name: str, kind: onnx.TypeProto | None, w: Walk) -> None:
    w.shapes[name] = None
    if kind is None or not kind.HasField("tensor_type"):
        return
    w.types[name] = kind.tensor_type.elem_type
    if kind.tensor_type.HasField("shape"):
        dims = kind.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            w.shapes[name] = tuple(d.dim_value for d in dims)


def _candidates(node: Node, w: Walk) -> list[tuple[int, int]]:
    """Pairs of sizes that differ where two inputs meet, aligned from the right."""
    shapes = [w.shapes[t] for t in node.inputs if t and w.shapes.get(t) is not None]
    if node.op == "MatMul" and len(shapes) == 2 and len(shapes[1]) > 1:
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
