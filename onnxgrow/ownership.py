"""What belongs to one part of a graph alone, and what several parts share."""

from __future__ import annotations

from .graph import SIZES, Graph
from .roles import Roles
from .structure import Structure


def own_everything(roles: Roles, parts: list[frozenset[int]], states: set[str]) -> list[frozenset[int]]:
    """Add to each part the nodes that only it uses, and those that only derive from it: shape arithmetic, caches that come out.

    Args:
        parts: node indices of each.
        states: tensors between the parts, which belong to none.
    """
    graph, owner = roles.structure.graph, {i: k for k, part in enumerate(parts) for i in part}
    core, sizing, single = set(owner), graph.measuring, own_kind(roles) if len(parts) == 1 else None
    caches = roles.caches(graph.outputs)
    ends = _ends(graph, caches)
    for node in graph.nodes:  # what comes out beside the stream
        makers = {owner[graph.makers[t].index] for t in node.inputs if t in graph.makers and graph.makers[t].index in owner and t not in states}
        if node.index not in owner and len(makers) == 1 and node.op not in SIZES:
            owner[node.index] = makers.pop()
    for node in reversed(graph.nodes):  # a tail that anything else uses is no tail; a node that one block uses is its own
        uses = [n for o in node.outputs for n, _ in graph.users.get(o, []) if n.index not in ends]
        users = {owner.get(n.index) for n in uses if n.index not in sizing} or {owner.get(n.index) for n in uses}
        outside = any((o in graph.outputs and o not in caches) or o in states for o in node.outputs)
        if node.index in core:
            continue
        if node.index in owner and users - {owner[node.index]}:
            del owner[node.index]
        alone = len(users) == 1 and None not in users and (single is None or node.index in single)
        if node.index not in owner and alone and not outside:
            owner[node.index] = users.pop()
    for node in (n for n in graph.nodes if n.index in ends and n.index not in owner):  # keys of other states, which a block reads and hands out
        makers = {owner.get(graph.makers[t].index) for t in node.inputs if t in graph.makers and graph.makers[t].index not in sizing}
        if len(makers) == 1 and None not in makers:
            owner[node.index] = makers.pop()
    return [frozenset(i for i, k in owner.items() if k == j) for j in range(len(parts))]


def _ends(graph: Graph, caches: set[str]) -> set[int]:
    """Nodes that only lead to a cache that comes out; who measures it does not count."""
    out: set[int] = set()
    for node in reversed(graph.nodes):
        uses = [n.index for o in node.outputs for n, _ in graph.users.get(o, []) if n.index not in graph.measuring]
        given = {o for o in node.outputs if o in graph.outputs}
        if all(i in out for i in uses) and given <= caches and (uses or given) and node.index not in graph.measuring:
            out.add(node.index)
    return out


def own_kind(roles: Roles) -> set[int]:
    """Nodes that are of one layer even where there is only one: linear maps of states from elsewhere, moved weights, caches, sizes."""
    s, static, linear = roles.structure, roles.static, {lin.node.index for lin in roles.linears}
    caches, out = roles.caches(v.name for v in s.graph.inputs), set()
    for node in s.graph.nodes:
        mapped = node.index in linear or any(t in caches for t in node.inputs)
        sized = all(o in s.walk.values for o in node.outputs if o)
        if mapped or sized or all(t in static or not t for t in node.inputs):
            out.add(node.index)
            caches = caches | (set(node.outputs) if mapped else set())
    return out


def user_counts(s: Structure, parts: list[frozenset[int]]) -> dict[str, int]:
    """By how many parts each weight or input is used; users outside count as one more."""
    owner = {i: k for k, part in enumerate(parts) for i in part}
    out: dict[str, set] = {}
    for node in s.graph.nodes:
        for t in node.inputs:
            if node.index not in s.graph.measuring or t in s.graph.weights:
                out.setdefault(s.graph.weights.get(t, t), set()).add(owner.get(node.index))
    return {t: len(found) for t, found in out.items()}
