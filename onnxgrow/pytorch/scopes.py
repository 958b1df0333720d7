"""Where a node stands in the tree of modules that the exporter saw (`onnxgrow.modules`).

Where an optimiser has dropped that, the blocks that are found in the graph give the outline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property

from ..blocks import Stack
from ..graph import Node
from ..modules import scope_of
from ..roles import Roles
from ..structure import Structure
from .steps import Scope

CALL = "pkg.torch.onnx.fx_node"
BIAS = re.compile(r"%p_\w*bias\b")
PADDING = re.compile(r"aten\.embedding\.default\]\(args = \(%\w+, %\w+, (\d+)")


class Scopes:
    """The scope of every node, and the class that the framework had there.

    Attributes:
        classes: scope -> class name without its module, where known.
    """

    def __init__(self, roles: Roles, stacks: list[Stack]):
        self.s: Structure = roles.structure
        self.classes: dict[Scope, str] = {}
        self._found = {n.index: scope_of(n.proto, self.classes) for n in self.s.graph.nodes}
        known = [x for x in self._found.values() if x]
        if len(known) < len(self._found) // 4:
            self._found = self._from_stacks(stacks)
        self._fill_in()

    def of(self, node: Node) -> Scope:
        return self._found[node.index] or ()

    @cached_property
    def all(self) -> set[Scope]:
        """Every scope, and those around it."""
        return {x[:i] for x in self._found.values() if x for i in range(len(x) + 1)}

    def _from_stacks(self, stacks: list[Stack]) -> dict[int, Scope | None]:
        out: dict[int, Scope | None] = {n.index: () for n in self.s.graph.nodes}
        for stack in stacks:
            for k, block in enumerate(stack.blocks):
                out |= {i: (stack.name, str(k)) for i in block.nodes}
                self.classes[stack.name, str(k)] = "".join(w.capitalize() for w in stack.name.split("_")).removesuffix("s")
        return out

    def _fill_in(self) -> None:
        """A node without a scope belongs to what is around both those who make what it reads and those who use what it makes."""
        graph, known = self.s.graph, dict(self._found)
        for node in graph.nodes:
            if known[node.index] is None:
                makers = [self._found[graph.makers[t].index] for t in node.inputs if t in graph.makers]
                users = [known[u.index] for o in node.outputs for u, _ in graph.users.get(o, ())]
                around = [x for x in (*makers, *users) if x is not None]
                self._found[node.index] = tuple(x[0] for x in while_equal(zip(*around))) if around else ()


def while_equal(columns: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Columns up to the first one with different entries."""
    for column in columns:
        if len(set(column)) > 1:
            return
        yield column


def had_bias(node: Node) -> bool:
    """Did the framework's call behind a node have a bias? dynamo drops those that are all zero, and leaves the call in the metadata."""
    return bool(BIAS.search(_call(node)))


def padding_row(node: Node) -> int | None:
    """The row of an embedding that gets no gradient, where the framework's call says it."""
    found = PADDING.search(_call(node))
    return int(found[1]) if found else None


def _call(node: Node) -> str:
    return next((p.value for p in node.proto.metadata_props if p.key == CALL), "")
