"""Orders of a deepened graph: nodes so that every input is made before it is used, inputs and outputs by layer."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator

import onnx

from .graph import graphs_in, outer_names


def sort_nodes(keyed: list[tuple[tuple, onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """Topological order that keeps to the keys wherever it can."""
    keyed = sorted(keyed, key=lambda pair: pair[0])
    maker = {o: i for i, (_, n) in enumerate(keyed) for o in n.output if o}
    waits, users = [0] * len(keyed), defaultdict(list)
    for i, (_, n) in enumerate(keyed):
        for j in {maker[name] for name in _reads(n) if name in maker}:
            waits[i] += 1
            users[j].append(i)
    ready = [i for i, count in enumerate(waits) if not count]
    out = []
    while ready:
        i = heapq.heappop(ready)
        out.append(keyed[i][1])
        for j in users[i]:
            waits[j] -= 1
            if not waits[j]:
                heapq.heappush(ready, j)
    if len(out) < len(keyed):
        raise RuntimeError("a cycle among the nodes of the deepened graph")
    return out


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for g in graphs_in(node):
        yield from outer_names(g)


def in_layer_order(values: list[onnx.ValueInfoProto], owner: dict[str, tuple[str, int]], instances: dict[str, list]) -> Iterator[tuple]:
    """Each value with None, or, where a block owns it, once with every instance of that block.

    Values that follow one another by rising block number (k0 v0 k1 v1, or k0 k1 and then v0 v1) keep their pattern.
    """
    at = 0
    while at < len(values):
        mine = owner.get(values[at].name)
        if mine is None:
            yield values[at], None
            at += 1
            continue
        by_block: dict[int, list[onnx.ValueInfoProto]] = defaultdict(list)
        stack, last = mine
        while at < len(values) and (now := owner.get(values[at].name)) and now[0] == stack and now[1] >= last:
            last = now[1]
            by_block[last].append(values[at])
            at += 1
        for instance in instances[stack]:
            yield from ((value, instance) for value in by_block.get(instance.block, []))
