"""Sizes that exporters computed once because they were equal: where a growth makes them differ, each use gets a computation of its own.

`[batch, 16]` may be the shape of hidden states here and of the inner states of a feed-forward part there. The constant in it can be made private
per use of the constant (`constants`), but not where a whole Concat is shared; then its node is copied, one for each use, and the copies that
turned out equal after all are one again in the grown file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import onnx

from .graph import Graph, Node, free_name
from .ordering import sort_nodes
from .source import Source


@dataclass
class Unshared:
    """A source with copies of some nodes. `copies`: output of a copy -> output of the node that it was copied from."""

    source: Source
    copies: dict[str, str] = field(default_factory=dict)


def branching(graph: Graph, node: Node) -> Node | None:
    """The first node from `node` on whose result several use; None where none is."""
    while True:
        tensor = node.outputs[0]
        users = graph.users.get(tensor, [])
        if len(users) != 1 or tensor in graph.outputs:
            return node if len(users) > 1 and tensor not in graph.outputs and len(node.outputs) == 1 else None
        node = users[0][0]


def unshare(before: Unshared, graph: Graph, node: Node) -> Unshared:
    """Copy a node, once for each use of its result but the first."""
    proto = onnx.ModelProto()
    proto.CopyFrom(before.source.proto)
    taken = {o for n in proto.graph.node for o in n.output} | {n.name for n in proto.graph.node} | {t.name for t in proto.graph.initializer}
    old, copies = proto.graph.node[node.index], dict(before.copies)
    for user, slot in graph.users[node.outputs[0]][1:]:
        copy = proto.graph.node.add()  # at the end, so that the numbers of nodes hold; nodes need no order before they are written
        copy.CopyFrom(old)
        copy.name, copy.output[0] = free_name(old.name, taken, never=True), free_name(old.output[0], taken, never=True)
        proto.graph.node[user.index].input[slot] = copy.output[0]
        copies[copy.output[0]] = old.output[0]
    return Unshared(replace(before.source, proto=proto), copies)


def share(proto: onnx.ModelProto, copies: dict[str, str]) -> None:
    """Make nodes that compute the same one again, if they are copies of one, and put the others where they are needed."""
    while (same := _same(proto, copies)) is not None:
        mine, first = same
        for n in proto.graph.node:
            n.input[:] = [first if i == mine.output[0] else i for i in n.input]
        proto.graph.node.remove(mine)
    if copies:
        nodes = [((i,), n) for i, n in enumerate(proto.graph.node)]
        ordered = sort_nodes([(key, onnx.NodeProto.FromString(n.SerializeToString())) for key, n in nodes])
        del proto.graph.node[:]
        proto.graph.node.extend(ordered)


def _same(proto: onnx.ModelProto, copies: dict[str, str]) -> tuple[onnx.NodeProto, str] | None:
    """A copy, and what is computed already of what it reads; None where there is none."""
    found: dict[tuple, str] = {}
    family = {*copies, *copies.values()}
    members = [n for n in proto.graph.node if n.output and n.output[0] in family]
    for n in sorted(members, key=lambda n: n.output[0] in copies):  # what was there before comes first
        origin = n.output[0]
        while origin in copies:
            origin = copies[origin]
        first = found.setdefault((origin, *n.input, *(a.SerializeToString() for a in n.attribute)), n.output[0])
        if first != n.output[0]:
            return n, first
    return None
