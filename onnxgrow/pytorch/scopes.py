"""Where a node stands in the tree of modules that the exporter saw.

Both PyTorch exporters leave it: dynamo in the node's metadata (with the classes), TorchScript in the node's name. Where an optimiser has
dropped it, the blocks that are found in the graph give the outline.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cached_property

from ..blocks import Stack
from ..graph import Node
from ..roles import Roles
from ..structure import Structure
from .identifiers import class_name, is_attribute
from .steps import Scope

SCOPES, CLASSES, CALL = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.fx_node"
BIAS = re.compile(r"%p_\w*bias\b")
PADDING = re.compile(r"aten\.embedding\.default\]\(args = \(%\w+, %\w+, (\d+)")
PATH = re.compile(r"^/(.+)/([^/]+)$")


class Scopes:
    """The scope of every node, and the class that the framework had there.

    Attributes:
        classes: scope -> class name without its module, where known.
    """

    def __init__(self, roles: Roles, stacks: list[Stack]):
        self.s: Structure = roles.structure
        self.classes: dict[Scope, str] = {}
        self._found = {n.index: self._read(n) for n in self.s.graph.nodes}
        lists = {x[:i] for x in self._found.values() if x for i, part in enumerate(x) if part.isdigit()}
        self._found = {index: x if x is None or all(part.isdigit() or x[:i] not in lists for i, part in enumerate(x)) else None for index, x in self._found.items()}
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

    def _read(self, node: Node) -> Scope | None:
        meta = {p.key: p.value for p in node.proto.metadata_props}
        if SCOPES in meta:
            return self._read_dynamo(meta)
        found = PATH.match(node.proto.name)
        return _clean(_torchscript(found[1].split("/"))) if found else None

    def _read_dynamo(self, meta: dict[str, str]) -> Scope | None:
        try:
            scopes, classes = ast.literal_eval(meta[SCOPES]), ast.literal_eval(meta.get(CLASSES, "[]"))
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested beyond what Python parses
            return None
        if not (_is_list(scopes) and _is_list(classes)) or len(scopes) < 2 or scopes[0] != "":
            return None
        for scope, name in zip(scopes[:-1], classes):
            path = _clean(scope.split("."))
            if path is not None and class_name(name.rpartition(".")[2]):
                self.classes.setdefault(path, class_name(name.rpartition(".")[2]))
        return _clean(scopes[-2].split("."))

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


def _is_list(found) -> bool:
    """A list of texts, as the exporter writes it into metadata; what stands there may be anything."""
    return isinstance(found, list) and all(isinstance(x, str) for x in found)


def while_equal(columns: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Columns up to the first one with different entries."""
    for column in columns:
        if len(set(column)) > 1:
            return
        yield column


def _torchscript(parts: list[str]) -> list[str]:
    """`layer.0` is an element of a list; behind `layer` itself, a list that was called, the same name says only which element."""
    out: list[str] = []
    for before, part in zip(["", *parts], parts):
        out += (part.removeprefix(f"{before}.") if before else part).split(".")
    return out


def _clean(parts: list[str]) -> Scope | None:
    """A path of attribute names; None where a part is none (an exporter's own words)."""
    parts = [p for p in parts if p]
    return tuple(parts) if all(is_attribute(p) for p in parts) and not (parts and parts[0].isdigit()) else None


def had_bias(node: Node) -> bool:
    """Did the framework's call behind a node have a bias? dynamo drops those that are all zero, and leaves the call in the metadata."""
    return bool(BIAS.search(_call(node)))


def padding_row(node: Node) -> int | None:
    """The row of an embedding that gets no gradient, where the framework's call says it."""
    found = PADDING.search(_call(node))
    return int(found[1]) if found else None


def _call(node: Node) -> str:
    return next((p.value for p in node.proto.metadata_props if p.key == CALL), "")
