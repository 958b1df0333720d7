"""Which nodes of two graphs are the same ones, whatever they are called, and what differs between them.

Nodes are matched along the graph: by what they read, which carries a match forward through any change of names; where that finds nothing, by their
own name. What a file calls a weight (an initializer or a Constant node) is matched with it, by name or by the place where it is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper

from .graph import constant_array
from .tensordiff import Held


@dataclass(frozen=True)
class NodeChange:
    """One difference between nodes.

    Attributes:
        change: added | removed | operator | attribute | input | output | doc | metadata.
        a, b: labels of the node in either graph, None where it has none there.
        what: name of the attribute, index of the input, key of the metadata; before, after: what stands there.
    """

    change: str
    a: str | None
    b: str | None
    what: str | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Rename:
    """kind: node | tensor | weight | input | output."""

    kind: str
    a: str
    b: str


@dataclass
class GraphPair:
    """Two graphs beside each other.

    Attributes:
        where: path of the node and attribute that holds them, empty for the main graph.
        weights: (name in a, name in b) of each weight, None where one side has none; `changes` and `renames` what differs in nodes.
    """

    a: onnx.GraphProto
    b: onnx.GraphProto
    mine: dict[str, Held]
    theirs: dict[str, Held]
    where: str = ""
    same: dict[str, str] = field(default_factory=dict)  # tensor of a -> tensor of b
    nodes: list[tuple[NodeProto | None, NodeProto | None]] = field(default_factory=list)
    changes: list[NodeChange] = field(default_factory=list)
    renames: list[Rename] = field(default_factory=list)
    inner: list[GraphPair] = field(default_factory=list)

    @property
    def weights(self) -> Iterator[tuple[str | None, str | None]]:
        taken = set()
        for name in self.mine:
            other = self.same.get(name, name)
            other = other if other in self.theirs else None
            taken.add(other)
            yield name, other
        yield from ((None, name) for name in self.theirs if name not in taken)


def weights_of(graph: onnx.GraphProto, source=None) -> dict[str, Held]:
    """Initializers and Constant nodes by name."""
    out = {t.name: Held.of(t, source) for t in graph.initializer}
    for node in graph.node:
        if is_constant(node):
            attribute = node.attribute[0]
            tensor = attribute.t if attribute.name == "value" else onnx.numpy_helper.from_array(constant_array(node))
            out[node.output[0]] = Held.of(tensor)
    return out


def is_constant(node: NodeProto) -> bool:
    """A Constant node with numbers; one that holds text or a sparse tensor is compared as a node."""
    plain = ("value", "value_int", "value_ints", "value_float", "value_floats")
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx") and len(node.attribute) == 1 and node.attribute[0].name in plain


def pair_graphs(a: onnx.GraphProto, b: onnx.GraphProto, mine: dict[str, Held], theirs: dict[str, Held],
                seeds: Mapping[str, str] | None = None, where: str = "", outer: Mapping[str, str] | None = None) -> GraphPair:
    """Match and compare two graphs.

    Args:
        mine, theirs: their weights by name.
        seeds: tensor of a -> tensor of b, where that is known (a growth that renamed layers).
        outer: the same for tensors of the graph around them.
    """
    pair = GraphPair(a, b, mine, theirs, where, dict(outer or {}) | dict(seeds or {}))
    _match_values(pair, a.input, b.input)
    _Matcher(pair, dict(seeds or {})).run()
    for x, y in pair.nodes:
        _compare_nodes(pair, x, y)
    _rename(pair)
    return pair


def _match_values(pair: GraphPair, mine, theirs) -> None:
    """Inputs by name, those left by their place."""
    names, others = [v.name for v in mine], [v.name for v in theirs]
    left = [n for n in names if n not in others and n not in pair.mine], [n for n in others if n not in names and n not in pair.theirs]
    pair.same.update({n: n for n in names if n in others} | (dict(zip(*left)) if len(left[0]) == len(left[1]) else {}))


class _Matcher:
    """Walks the nodes of a in order and looks for each one's partner."""

    def __init__(self, pair: GraphPair, seeds: dict[str, str]):
        self.pair, self.seeds = pair, seeds
        self.waiting = [n for n in pair.b.node if not is_constant(n)]
        self.free = {id(n) for n in self.waiting}
        self.named = {n.name: n for n in self.waiting if n.name}
        self.maker = {o: n for n in self.waiting for o in n.output if o}
        self.reading: dict[tuple, list[NodeProto]] = defaultdict(list)
        for node in self.waiting:
            self.reading[self._key(node, map(self._code, node.input))].append(node)

    def run(self) -> None:
        for node in self.pair.a.node:
            if is_constant(node):
                continue
            other = self._partner(node)
            self.pair.nodes.append((node, other))
            if other is not None:
                self.free.discard(id(other))
                self._carry(node, other)
        self.pair.nodes += [(None, n) for n in self.waiting if id(n) in self.free]

    @staticmethod
    def _key(node: NodeProto, read: Iterable) -> tuple:
        """Operator and what it reads."""
        return "" if node.domain == "ai.onnx" else node.domain, node.op_type, tuple(read)

    def _code(self, tensor: str) -> str | tuple:
        """A tensor of b by its name; a weight that only b has by its type and shape."""
        held = self.pair.theirs.get(tensor)
        return tensor if held is None or tensor in self.pair.mine else (held.dtype, held.shape)

    def _translated(self, tensor: str) -> str | tuple:
        """A tensor of a as `_code` would name its partner."""
        held = self.pair.mine.get(tensor)
        alone = held is not None and tensor not in self.pair.theirs and tensor not in self.pair.same
        return (held.dtype, held.shape) if alone else self._code(self.pair.same.get(tensor, tensor))

    def _partner(self, node: NodeProto) -> NodeProto | None:
        """What is known to be its partner, else what reads the same, else what has its name or makes what it makes."""
        known = [self.maker.get(self.seeds[o]) for o in node.output if o in self.seeds]
        same = sorted(self.reading.get(self._key(node, map(self._translated, node.input)), ()),
                      key=lambda n: (n.name != node.name, list(n.output) != list(node.output), list(n.attribute) != list(node.attribute)))
        found = [*known, *same, self.named.get(node.name), *(self.maker.get(o) for o in node.output)]
        return next((n for n in found if n is not None and n.op_type == node.op_type and id(n) in self.free), None)

    def _carry(self, node: NodeProto, other: NodeProto) -> None:
        """Results of two that are one are one, and so are weights that they read at one place, where no name says otherwise."""
        pair = self.pair
        pair.same.update({x: y for x, y in zip(node.output, other.output) if x and y})
        for x, y in zip(node.input, other.input):
            if x in pair.mine and y in pair.theirs and x not in pair.same and x not in pair.theirs and y not in pair.mine:
                pair.same[x] = y


def label(node: NodeProto, where: str = "") -> str:
    return where + (node.name or f"{node.op_type} -> {node.output[0] if node.output else '?'}")


def _compare_nodes(pair: GraphPair, x: NodeProto | None, y: NodeProto | None) -> None:
    if x is None or y is None:
        node, change = (y, "added") if x is None else (x, "removed")
        said = label(node, pair.where)
        pair.changes.append(NodeChange(change, said if y is None else None, said if x is None else None, node.op_type))
        return
    a, b = label(x, pair.where), label(y, pair.where)

    def differs(change: str, what: str | None, before: object, after: object) -> None:
        if before != after:
            shown = [None if v is None else str(v) for v in (before, after)]
            pair.changes.append(NodeChange(change, a, b, what, *shown))

    differs("operator", "domain", "" if x.domain == "ai.onnx" else x.domain, "" if y.domain == "ai.onnx" else y.domain)
    _compare_attributes(pair, x, y, differs)
    for i in range(max(len(x.input), len(y.input))):
        before, after = (n.input[i] if i < len(n.input) else "" for n in (x, y))
        if pair.same.get(before, before) != after:
            differs("input", str(i), before, after or "nothing")
    differs("output", "count", len(x.output), len(y.output))
    differs("doc", None, x.doc_string, y.doc_string)
    mine, theirs = ({p.key: p.value for p in n.metadata_props} for n in (x, y))
    for key in dict.fromkeys([*mine, *theirs]):
        differs("metadata", key, mine.get(key), theirs.get(key))


def _compare_attributes(pair: GraphPair, x: NodeProto, y: NodeProto, differs) -> None:
    mine, theirs = ({v.name: v for v in n.attribute} for n in (x, y))
    for name in dict.fromkeys([*mine, *theirs]):
        p, q = mine.get(name), theirs.get(name)
        if p is not None and q is not None and p.type == q.type and p.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            bodies = ([p.g], [q.g]) if p.type == AttributeProto.GRAPH else (p.graphs, q.graphs)
            for i, (g, h) in enumerate(zip(*bodies)):
                where = f"{label(x, pair.where)}/{name}{f'[{i}]' if p.type == AttributeProto.GRAPHS else ''}/"
                pair.inner.append(pair_graphs(g, h, weights_of(g), weights_of(h), where=where, outer=pair.same))
            differs("attribute", name, f"{len(bodies[0])} graphs", f"{len(bodies[1])} graphs")
        elif p is None or q is None or _plain(p) != _plain(q):
            before, after = shown(p), shown(q)
            differs("attribute", name, before, after if after != before else f"{after} (other values)")


def _plain(attribute: AttributeProto) -> object:
    """An attribute so that equal ones are equal however they are stored."""
    if attribute.type == AttributeProto.TENSOR:
        held = Held.of(attribute.t)
        return held.dtype, held.shape, tuple(b.tobytes() if b.dtype.kind != "O" else tuple(b) for b in held.blocks())
    copy = AttributeProto()
    copy.CopyFrom(attribute)
    copy.ClearField("doc_string")
    return copy.SerializeToString(deterministic=True)


def shown(attribute: AttributeProto | None) -> str | None:
    """An attribute in a few words."""
    if attribute is None:
        return None
    if attribute.ref_attr_name:
        return f"attribute {attribute.ref_attr_name} of the function"
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        held = Held.of(value)
        few = f" {next(held.blocks(), []).tolist()}" if 0 < held.entries <= 8 else ""
        return f"{held.kind}{list(held.shape)}{few}"
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
        return str(list(value))
    return AttributeProto.AttributeType.Name(attribute.type).lower()


def _rename(pair: GraphPair) -> None:
    """Names that differ between what is the same."""
    for x, y in pair.nodes:
        if x is not None and y is not None:
            if x.name != y.name:
                pair.renames.append(Rename("node", label(x, pair.where), label(y, pair.where)))
            pair.renames += [Rename("tensor", pair.where + s, pair.where + t) for s, t in zip(x.output, y.output) if s != t]
    weights = [(s, t) for s, t in pair.weights if s and t and s != t]
    pair.renames += [Rename("weight", pair.where + s, pair.where + t) for s, t in weights]
    inputs = [v.name for v in pair.a.input if v.name not in pair.mine]
    pair.renames += [Rename("input", pair.where + n, pair.where + pair.same[n]) for n in inputs if pair.same.get(n, n) != n]
