"""The graph as the analysis sees it: nodes in order, who makes a tensor, who uses it, and which uses share a weight.

Exporters merge equal vectors, so one `[hidden]` tensor may serve as a bias here and as a norm gain there. Sharing a vector
says nothing about the architecture, so each use of a vector becomes a tensor of its own (`name@node.slot`). A shared matrix
is real tying and stays one tensor. The source proto is never changed here.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import GraphError
from .source import Source

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
SIZES = {"Shape", "Size"}  # operators that look at a size and at no value
PART = "onnxgrow.part"  # metadata of a node that stands for a part of another one (see `unfold`)
WHOLE = "onnxgrow.whole"  # metadata of the part that gives the first output: the other one, and the shapes of its inputs
WITHIN = "onnxgrow.within"  # metadata of what was inside a node: which node, which of its bodies, and the condition (see `subgraphs`)
HOLDER = "onnxgrow.holder"  # metadata of what stands for a node with bodies: the node itself
MARKS = {PART, WHOLE, WITHIN, HOLDER}
PARTS_OPSET = 23  # whose meaning such nodes have, whatever the model's own opset: Split, Squeeze and the reductions take operands


@dataclass
class Node:
    """One operator. `inputs` and `outputs` are tensor ids ('' where an optional one is absent)."""

    index: int
    proto: onnx.NodeProto
    inputs: list[str]
    version: int

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def domain(self) -> str:
        return "" if self.proto.domain == "ai.onnx" else self.proto.domain

    @property
    def label(self) -> str:
        return self.proto.name or f"{self.op} -> {self.proto.output[0] if self.proto.output else '?'}"

    @cached_property
    def outputs(self) -> list[str]:
        return list(self.proto.output)

    @cached_property
    def attrs(self) -> dict:
        """Attributes as Python values; strings decoded."""
        return attributes_of(self.proto)

    @cached_property
    def signature(self) -> tuple:
        """All that the shapes of its outputs depend on beside its inputs: two nodes with one signature are the same function."""
        attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in self.proto.attribute))
        return self.domain, self.op, self.version, attributes, tuple(map(bool, self.inputs)), tuple(map(bool, self.outputs))

    def with_attributes(self, changed: dict) -> Node:
        """This node with some attributes replaced; the source proto stays as it is."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self.proto)
        set_attributes(proto, changed)
        return Node(self.index, proto, self.inputs, self.version)

    @cached_property
    def branch(self) -> tuple[str, bool] | None:
        """The condition under which this node of an If runs, and the value that it needs."""
        mark = next((p.value for p in reversed(self.proto.metadata_props) if p.key == WITHIN), "")
        _, key, condition = mark.split("\t") if mark else ("", "", "")
        return (condition, key == "then_branch") if condition else None

    @cached_property
    def captured(self) -> list[str]:
        """Names that subgraphs of this node (If, Loop, Scan) use and do not make themselves."""
        return [name for g in graphs_in(self.proto) for name in outer_names(g)]


@dataclass
class Graph:
    """Tensor ids, their makers and users.

    `weights` maps a tensor id to the name it has in the file (an initializer or the output of a Constant node), `constant_nodes` names the
    Constant node behind such a weight, `users` lists (node, input slot) of each tensor id.
    """

    source: Source
    nodes: list[Node]
    weights: dict[str, str]
    constant_nodes: dict[str, onnx.NodeProto]
    makers: dict[str, Node] = field(default_factory=dict)
    users: dict[str, list[tuple[Node, int]]] = field(default_factory=lambda: defaultdict(list))
    alias: dict[str, str] = field(default_factory=dict)  # weights behind Identity -> their own name
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def place(self) -> dict[int, int]:
        """Where a node stands in an order in which makers come before users, by its index in the file."""
        return {n.index: i for i, n in enumerate(self.nodes)}

    @cached_property
    def by_index(self) -> dict[int, Node]:
        return {n.index: n for n in self.nodes}

    @cached_property
    def measuring(self) -> frozenset[int]:
        """Nodes of whose results nothing but sizes is used."""
        out: set[int] = set()
        for node in reversed(self.nodes):
            users = [n for o in node.outputs for n, _ in self.users.get(o, [])]
            if node.op in SIZES or (users and all(n.index in out for n in users) and not set(node.outputs) & set(self.outputs)):
                out.add(node.index)
        return frozenset(out)

    def spread(self, start: Iterable[str], visit: Callable[[Node, int, str], bool]) -> set[str]:
        """Show every use of some tensors to `visit` (node, input slot, tensor), and where that says so, of what the node makes.

        Returns all tensors whose uses were shown.
        """
        seen, waiting = set(), [*start]
        while waiting:
            tensor = waiting.pop()
            if tensor not in seen:
                seen.add(tensor)
                for node, slot in self.users.get(tensor, []):
                    waiting += node.outputs if visit(node, slot, tensor) else ()
        return seen

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Graph inputs that a caller must feed (those that are also initializers are not)."""
        held = {t.name for t in self.source.proto.graph.initializer}
        return [v for v in self.source.proto.graph.input if v.name not in held]

    def wants(self, tensor: str) -> bool:
        """Does anybody use a tensor, in the graph or outside?"""
        return bool(self.users.get(tensor)) or tensor in self.outputs

    @cached_property
    def fed(self) -> list[onnx.ValueInfoProto]:
        """Those of the model itself, and not of a body that it calls."""
        return [v for v in self.inputs if not any(p.key == WITHIN for p in v.metadata_props)]

    @cached_property
    def given(self) -> list[str]:
        """Outputs of the model itself, and not of a body that it calls."""
        return [v.name for v in self.source.proto.graph.output if not any(p.key == WITHIN for p in v.metadata_props)]

    @cached_property
    def outputs(self) -> list[str]:
        return [v.name for v in self.source.proto.graph.output]

    def array(self, tensor: str) -> np.ndarray:
        """The weight behind a tensor id, mapped, not read."""
        name = self.weights[tensor]
        if name not in self.arrays:
            node = self.constant_nodes.get(name)
            self.arrays[name] = constant_array(node) if node is not None else self.source.array(name)
        return self.arrays[name]

    def weight_shape(self, tensor: str) -> tuple[int, ...]:
        name = self.weights[tensor]
        dims = self._initializer_dims.get(name)
        return dims if dims is not None else tuple(self.array(tensor).shape)

    @cached_property
    def stored(self) -> dict[str, tuple[tuple[int, ...], int, np.ndarray | None]]:
        """(shape, data type, the numbers themselves where sizes may be computed from them) of each weight."""
        facts = {t: (self.weight_shape(t), self.weight_type(t)) for t in self.weights}
        return {t: (shape, kind, self.array(t) if _is_small_number(kind, shape) else None) for t, (shape, kind) in facts.items()}

    def weight_type(self, tensor: str) -> int:
        """TensorProto data type."""
        kind = self._initializer_types.get(self.weights[tensor])
        return kind if kind is not None else helper.np_dtype_to_tensor_dtype(self.array(tensor).dtype)

    @cached_property
    def _initializer_dims(self) -> dict[str, tuple[int, ...]]:
        return {t.name: tuple(t.dims) for t in self.source.proto.graph.initializer}

    @cached_property
    def _initializer_types(self) -> dict[str, int]:
        return {t.name: t.data_type for t in self.source.proto.graph.initializer}


def _is_small_number(kind: int, shape: tuple[int, ...]) -> bool:
    if kind in FLOATS:
        return prod(shape) == 1
    return kind in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL) and prod(shape) <= 4096


def build(source: Source) -> Graph:
    """Read nodes in a valid order and give every use of a shared vector a tensor of its own."""
    proto = source.proto.graph
    versions = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in source.proto.opset_import}
    constant_nodes = {n.output[0]: n for n in proto.node if n.op_type == "Constant" and n.domain in ("", "ai.onnx")}
    alias = {t.name: t.name for t in proto.initializer} | {name: name for name in constant_nodes}
    outputs = {v.name for v in proto.output}
    kept = []
    for index, n in _in_order(proto, alias):
        if n.output and n.output[0] in constant_nodes:
            continue
        if n.op_type == "Identity" and n.input[0] in alias and n.output[0] not in outputs:
            alias[n.output[0]] = alias[n.input[0]]  # TorchScript shares weights through Identity
            continue
        kept.append(Node(index, n, [alias.get(i, i) for i in n.input], _version(n, versions)))
    graph = Graph(source, kept, {name: name for name in alias if alias[name] == name}, constant_nodes, alias=alias)
    _separate_vectors(graph)
    for node in graph.nodes:
        graph.makers.update(dict.fromkeys((o for o in node.outputs if o), node))
        for slot, tensor in enumerate(node.inputs):
            if tensor:
                graph.users[tensor].append((node, slot))
    return graph


def _version(n: onnx.NodeProto, versions: dict[str, int]) -> int:
    """The opset whose meaning a node has: its model's, or for a part of an unfolded operator that of all parts."""
    version = versions.get("" if n.domain == "ai.onnx" else n.domain, 1)
    return max(version, PARTS_OPSET) if any(p.key == PART for p in n.metadata_props) else version


def _separate_vectors(graph: Graph) -> None:
    uses: dict[str, list[tuple[Node, int]]] = defaultdict(list)
    for node in graph.nodes:
        for slot, tensor in enumerate(node.inputs):
            if tensor in graph.weights:
                uses[tensor].append((node, slot))
    for name, places in uses.items():
        if len(places) > 1 and sum(d > 1 for d in graph.weight_shape(name)) <= 1:
            for node, slot in places:
                node.inputs[slot] = f"{name}@{node.index}.{slot}"
                graph.weights[node.inputs[slot]] = name


def _in_order(proto: onnx.GraphProto, known: dict[str, str]) -> list[tuple[int, onnx.NodeProto]]:
    """Nodes in an order in which every input is made before it is used; the file's own order where that holds."""
    known = set(known) | {v.name for v in proto.input} | {""} | {s.values.name for s in proto.sparse_initializer}
    makers: dict[str, int] = {}
    for index, n in enumerate(proto.node):
        for o in n.output:
            makers.setdefault(o, index)
    waits, users = [0] * len(proto.node), defaultdict(list)
    for index, n in enumerate(proto.node):
        for i in {*n.input} - known:
            waits[index] += 1
            users[makers.get(i)].append(index)
    ready = [index for index, count in enumerate(waits) if not count]
    ordered: list[tuple[int, onnx.NodeProto]] = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append((index, proto.node[index]))
        for user in users[index]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready, user)
    if len(ordered) < len(proto.node):
        n = proto.node[users[None][0] if users[None] else next(index for index, count in enumerate(waits) if count)]
        lost = next((i for i in n.input if i not in known and i not in makers), n.input[0])
        raise GraphError(f"the input {lost!r} is made by no node, or in a cycle", node=n.name or n.op_type,
                         hint="check the file with onnx.checker")
    return ordered


def free_name(like: str, taken: set[str], never: bool = False) -> str:
    """A name that is not taken yet, and is from now on: `like` itself where it is free, unless `never` that one, else with a number behind it."""
    name, k = like, 0
    while name in taken or (never and not k):
        k += 1
        name = f"{like}_{k}"
    taken.add(name)
    return name


def attributes_of(proto: onnx.NodeProto) -> dict:
    """Attributes as Python values; strings decoded."""
    out = {}
    for a in proto.attribute:
        value = helper.get_attribute_value(a)
        out[a.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return out


def set_attributes(proto: onnx.NodeProto, changed: dict) -> None:
    """Replace attributes of a node; one that is not there yet is added."""
    for name, value in changed.items():
        found = next((a for a in proto.attribute if a.name == name), None)
        found = proto.attribute.add() if found is None else found
        found.CopyFrom(helper.make_attribute(name, value))


def graphs_in(n: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside of a node."""
    for a in n.attribute:
        yield from [a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs


def operators_in(g: onnx.GraphProto) -> set[tuple[str, str]]:
    """(domain, operator) of every node, also of those in bodies."""
    return {(n.domain, n.op_type) for n in g.node}.union(*(operators_in(sub) for n in g.node for sub in graphs_in(n)))


def outer_names(g: onnx.GraphProto) -> list[str]:
    own = {t.name for t in g.initializer} | {v.name for v in g.input} | {o for n in g.node for o in n.output}
    return [name for name in dict.fromkeys(_used(g)) if name and name not in own]


def names_read(g: onnx.GraphProto) -> set[str]:
    """Tensors of a graph that somebody reads: its nodes, the bodies inside them, or whoever asks for the outputs."""
    return set(_used(g))


def _used(g: onnx.GraphProto) -> list[str]:
    used = [i for n in g.node for i in n.input] + [v.name for v in g.output]
    return used + [name for n in g.node for sub in graphs_in(n) for name in outer_names(sub)]


def rename(n: onnx.NodeProto, names: dict[str, str]) -> None:
    """Give the tensors of a node, and the bodies inside it, the new names."""
    n.input[:] = [names.get(i, i) for i in n.input]
    n.output[:] = [names.get(o, o) for o in n.output]
    for g in graphs_in(n):
        own = {o for x in g.node for o in x.output} | {v.name for v in g.input} | {t.name for t in g.initializer}
        for x in g.node:
            rename(x, {k: v for k, v in names.items() if k not in own})
        for o in g.output:
            o.name = o.name if o.name in own else names.get(o.name, o.name)


def mark_of(entry, key: str) -> str:
    """The last mark of a kind: that of the innermost body."""
    return next((p.value for p in reversed(entry.metadata_props) if p.key == key), "")


def unmarked(entry, key: str):
    """A copy without its last mark of a kind."""
    out = type(entry)()
    out.CopyFrom(entry)
    at = max(i for i, p in enumerate(out.metadata_props) if p.key == key)
    del out.metadata_props[at]
    return out


def constant_array(node: onnx.NodeProto) -> np.ndarray:
    """The numbers of a Constant node with one attribute. GraphError where it holds text or a sparse tensor."""
    a = node.attribute[0]
    if a.name == "value":
        return numpy_helper.to_array(a.t)
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if a.name not in kinds:
        raise GraphError(f"a Constant holds {a.name}, which is not a numeric tensor", node=node.name or node.output[0],
                         hint="export the model without text inside, its tokenizer apart from it")
    return np.asarray(helper.get_attribute_value(a), dtype=kinds[a.name])
