"""Vocabularies: the tables whose rows the graph's ids name, and the heads that say as many words.

Everything is read off the structure. Tables whose rows are added up belong to one stream of tokens, and one of them holds its words. Names of
weights and inputs only tell positions and token types from words where nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from .errors import SizeError
from .graph import Node
from .structure import Structure
from .ties import Dim, find

if TYPE_CHECKING:
    from .roles import Roles

MOVES = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Clip"}
STREAM = {"Add", "Sum", "Mul", "Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Dropout"}
OTHERS = ("pos", "type", "segment")  # inputs so named count no words
CORNER = 16  # entries of a matrix along each axis that are compared to know a copy


@dataclass(frozen=True)
class Table:
    """Rows that are looked up by number.

    Attributes:
        found: the rows that are looked up, a tensor.
        weight: the table, a tensor.
        rows, width: the dims of its axes.
        source: the graph input that names them, None where indices are computed.
        wide: as wide as the residual stream.
    """

    found: str
    weight: str
    rows: Dim
    width: Dim
    source: str | None
    wide: bool

    @property
    def name(self) -> str:
        """A name for a table beside the vocabulary."""
        label = f"{self.weight} {self.source or ''}".lower()
        if "type" in label or "segment" in label:
            return "token_types"
        return "positions" if not self.source or "pos" in label else f"table.{self.source}"


def find_tables(s: Structure, hidden: set[Dim], static: set[str]) -> list[Table]:
    """Tables of two axes that are looked up by what is fed, or by anything where they are as wide as the stream."""
    out = []
    for node in s.graph.nodes:
        table, ids, axis = _lookup(s, node)
        if table in static and s.walk.shapes.get(table) and len(s.dims[table]) == 2:
            rows, width = s.dims[table][axis], s.dims[table][1 - axis]
            wide = bool(set(s.leaves(width)) & hidden)
            if ids not in static or wide:
                out.append(Table(node.outputs[0], table, find(rows), find(width), ids_of(s, ids), wide))
    return out


def _lookup(s: Structure, node: Node) -> tuple[str, str, int]:
    """(table, indices, axis of the rows) of a Gather, or of a product of one-hot numbers with a table; empty names where a node is neither."""
    if node.op == "Gather":
        return node.inputs[0], node.inputs[1], node.attrs.get("axis", 0)
    made = s.graph.makers.get(node.inputs[0]) if node.op == "MatMul" else None
    while made is not None and made.op in ("Cast", "Reshape", "Identity"):
        made = s.graph.makers.get(made.inputs[0])
    return (node.inputs[1], made.inputs[0], 0) if made is not None and made.op == "OneHot" else ("", "", 0)


def ids_of(s: Structure, tensor: str) -> str | None:
    """The graph input that a tensor of indices is, through operators that move values, limit them or count negative ones from the end."""
    inputs = {v.name for v in s.graph.inputs}
    while tensor not in inputs:
        node = s.graph.makers.get(tensor)
        if node is None:
            return None
        if node.op == "Where":
            found = {ids_of(s, _shifted(s, t)) for t in node.inputs[1:3] if t not in s.walk.values}
            return found.pop() if len(found) == 1 else None
        if node.op in ("Min", "Max", "Mod"):
            moving = [t for t in node.inputs if t not in s.walk.values]
            tensor = moving[0] if len(moving) == 1 else ""
        elif node.op in MOVES:
            tensor = node.inputs[0]
        else:
            return None
    return tensor


def _shifted(s: Structure, tensor: str) -> str:
    """What a constant was added to: ids that count from the end."""
    node = s.graph.makers.get(tensor)
    moving = [t for t in node.inputs if t not in s.walk.values] if node is not None and node.op == "Add" else []
    return moving[0] if len(moving) == 1 else tensor


@dataclass(frozen=True)
class Vocabularies:
    """Names for the rows of all tables of a model."""

    roles: Roles
    tables: list[Table]

    def named(self) -> Iterator[tuple[str, Dim]]:
        """(role, dim). Vocabularies of unequal sizes are also known by the inputs that they are for."""
        words = self.words
        apart = len({t.rows.size for t in words}) > 1
        for t in words:
            for d in (t.rows, *self.heads(t)):
                yield "vocab", d
                if apart:
                    yield f"table.{t.source}", d
        if words:
            yield from ((t.name, t.rows) for t in self.tables if t.wide and t.rows not in {w.rows for w in words})

    @cached_property
    def words(self) -> list[Table]:
        """The vocabulary of each stream of tokens, the largest first."""
        fed = [t for t in self.tables if t.source]
        inner = {leaf for d, _, _ in self.roles.norm_axes for leaf in self._leaves(d)}
        inner |= {leaf for lin in self.roles.linears for leaf in self._leaves(lin.reads)} | self.roles.leaves_of("hidden")
        likely = [t for t in fed if t.name.startswith("table.") and set(self._leaves(t.width)) & inner]
        likely = likely or [t for t in fed if not any(word in t.source.lower() for word in OTHERS)]
        best = [max(stream, key=self._rank) for stream in self._streams(likely)]
        return list({t.rows: t for t in sorted(best, key=self._rank, reverse=True)}.values())

    def heads(self, table: Table) -> list[Dim]:
        """Dims of outputs that say as many words as the table has: one entry for each token, or a copy of the table in the head.

        Another output of that size by accident, the labels of a classifier or hidden states, is none.
        """
        s, found = self.roles.structure, []
        inner = self.roles.leaves_of("hidden", "heads", "head_dim", "v_head_dim", "ffn")
        ids = s.walk.shapes[table.source]
        for o in s.graph.outputs:
            shape = s.walk.shapes.get(o) or ()
            for axis, d in enumerate(s.dims.get(o, ())):
                for leaf in self._leaves(d):
                    counts = leaf.size == table.rows.size and leaf in self.roles.weight_leaves - inner and not s.runtime[o][axis]
                    each = prod(shape) == prod(ids) * leaf.size or len(shape) == len(ids) + 1
                    if counts and (each or self._holds_copy(table, leaf)):
                        found.append(leaf)
        return found

    def _holds_copy(self, table: Table, words: Dim) -> bool:
        graph, held = self.roles.structure.graph, table.weight
        heads = [lin.weight for lin in self.roles.linears if words in lin.writes and lin.weight in graph.weights]
        return held in graph.weights and any(is_copy(graph.array(held), graph.array(head)) for head in heads)

    def _rank(self, t: Table) -> tuple:
        """How much a table looks like the words: its rows are an output's, a head has as many, it is no other by name, its size."""
        s = self.roles.structure
        said = {leaf for o in s.graph.outputs for d in s.dims.get(o, ()) for leaf in self._leaves(d)}
        return bool(said & set(self._leaves(t.rows))), bool(self.heads(t)), t.name.startswith("table."), t.rows.size

    def _streams(self, tables: list[Table]) -> list[list[Table]]:
        """Tables whose rows are added up, together."""
        groups: list[tuple[set[str], list[Table]]] = []
        for t in tables:
            reached, members = self._reach(t), [t]
            for group in [g for g in groups if g[0] & reached]:
                groups.remove(group)
                reached, members = reached | group[0], group[1] + members
            groups.append((reached, members))
        return [members for _, members in groups]

    def _reach(self, t: Table) -> set[str]:
        """Tensors that the looked-up rows are part of as a sum."""
        graph, waiting = self.roles.structure.graph, [t.found]
        seen = set(waiting)
        while waiting:
            for node, _ in graph.users.get(waiting.pop(), ()):
                if node.op in STREAM and node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    waiting.append(node.outputs[0])
        return seen

    def _leaves(self, d: Dim) -> tuple[Dim, ...]:
        return self.roles.structure.leaves(d)


def is_copy(a: np.ndarray, b: np.ndarray) -> bool:
    """Is one matrix the other, or its transpose? Judged by two corners, so that few pages of a file are read."""
    def corners(x: np.ndarray) -> np.ndarray:
        return np.stack([x[:CORNER, :CORNER], x[-CORNER:, -CORNER:]])
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype or min(a.shape) < CORNER:
        return False
    mine = corners(a)
    return bool(mine.any()) and any(x.shape == a.shape and np.array_equal(mine, corners(x)) for x in (b, b.T))

def check_vocabulary(roles: Roles, name: str) -> None:
    """SizeError where there is no vocabulary to grow, or more than one size to start from."""
    if name == "vocab" and name not in roles.roles:
        known = ", ".join(n for n in roles.roles if "[" not in n)
        raise SizeError("this model has no vocabulary: no table is looked up by ids that are fed",
                        hint=f"grow one of: {known}, or another dim that `onnxgrow inspect` lists")
    if name == "vocab" and len(roles.roles[name].sizes) > 1:
        each = {n: r.size for n, r in roles.roles.items() if n.startswith("table.") and set(r.instances) & set(roles.roles["vocab"].instances)}
        raise SizeError(f"this model has vocabularies of different sizes: {', '.join(f'{n} of {size}' for n, size in each.items())}",
                        hint=f"give each its own: {' '.join(f'--set {n}=SIZE' for n in each)}")
