"""Operators that stand for many, as the plain ones they are made of, and back.

A fused operator keeps sizes where no axis shows them: heads in an attribute, a scale that follows head_dim. Instead of teaching every stage
about every such operator, the analysis sees the plain nodes that the operator's unfolding writes (`unfolding.Body`), and the plan is made on
those. Before the grown graph is written each group of plain nodes is folded: the operator comes back, with its attributes read off the
group's constants, if and only if it then unfolds into exactly this group. So a fold can fail, but it cannot be wrong.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from .errors import GraphError
from .graph import PART, PARTS_OPSET, WHOLE, Graph, Node, attributes_of, build, free_name, set_attributes
from .ordering import sort_nodes
from .rulebook import Registry
from .shapes import Walk, first_walk
from .source import Source
from .unfolding import Body, body_of

SAME_SINCE_7 = {"Add", "Sub", "Mul", "Div", "MatMul", "Identity", "Transpose", "Concat", "Gather", "Sigmoid", "Tanh", "LayerNormalization", "Reshape"}
RENAMED = {"RMSNormalization": "SimplifiedLayerNormalization"}  # what ONNX Runtime calls the same in any opset


def unfold(source: Source, registry: Registry) -> Source:
    """The same model in plain operators; the source itself where there is nothing to unfold.

    Raises:
        GraphError: an operator has a form that its unfolding does not read.
    """
    if not any(registry.unfolding(n.domain, n.op_type) for n in source.proto.graph.node):
        return source
    graph = build(source)
    walk, _ = first_walk(graph, registry)
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    del proto.graph.node[:]
    nodes = graph.by_index
    for index, n in enumerate(source.proto.graph.node):
        proto.graph.node.extend(_parts(nodes[index], walk, registry) if index in nodes and registry.unfolding(n.domain, n.op_type) else [n])
    return replace(source, proto=proto)


def body_at(node: Node, walk: Walk, registry: Registry) -> Body:
    """The body of a node of a walked graph."""
    shapes = [walk.shapes.get(t) if t else None for t in node.inputs]
    return body_of(registry.unfolding(node.domain, node.op), node.proto, shapes, [walk.types.get(t) for t in node.inputs])


def _parts(node: Node, walk: Walk, registry: Registry) -> list[onnx.NodeProto]:
    body = body_at(node, walk, registry)
    whole = {"node": base64.b64encode(node.proto.SerializeToString()).decode(), "shapes": body.shapes, "types": body.types}
    for number, part in enumerate(body.nodes):
        part.metadata_props.extend(node.proto.metadata_props)
        part.metadata_props.add(key=PART, value=f"{number} {body.prefix}")
        if body.prefix in part.output:
            part.metadata_props.add(key=WHOLE, value=json.dumps(whole))
    return body.nodes


@dataclass(frozen=True)
class Root:
    """An operator as it was: the node, the shapes and types of its inputs, and steps that it is to take whether they are needed or not."""

    node: onnx.NodeProto
    shapes: list
    types: list
    function: Callable
    steps: frozenset[str] = frozenset()

    @classmethod
    def read(cls, text: str, registry: Registry) -> Root:
        held = json.loads(text)
        node = onnx.NodeProto.FromString(base64.b64decode(held["node"]))
        shapes = [None if s is None else tuple(s) for s in held["shapes"]]
        return cls(node, shapes, held["types"], registry.unfolding(node.domain, node.op_type))

    def body(self) -> Body:
        return body_of(self.function, self.node, self.shapes, self.types, apart=True, steps=self.steps)


# --- back --------------------------------------------------------------------------------------------------------------------------


def fold(source: Source, registry: Registry) -> onnx.ModelProto:
    """The model of `source` with every group of parts as the operator it came from.

    Raises:
        GraphError: an operator cannot hold what its parts have become.
    """
    parts = Parts(source.proto.graph)
    if not parts.number:
        return source.proto
    graph = build(source)
    folder = Folder(graph, first_walk(graph, registry)[0], registry, parts)
    at = {max(group.values()): folder.folded(root, group) for root, group in folder.groups()}
    keyed = [((i,), at.get(i) or folder.alone(i)) for i in range(len(source.proto.graph.node)) if i in at or i not in folder.covered]
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    del proto.graph.node[:]
    proto.graph.node.extend(sort_nodes(keyed))
    used = {name for n in proto.graph.node for name in n.input} | {v.name for v in proto.graph.output}
    lost = {name for i in parts.number for name in parts.nodes[i].input} - used
    for t in [t for t in proto.graph.initializer if t.name in lost]:  # numbers that went back into attributes
        proto.graph.initializer.remove(t)
    return proto


class Parts:
    """Which nodes of a graph are parts, and the wiring between them."""

    def __init__(self, graph: onnx.GraphProto):
        self.nodes = graph.node
        marks = [{p.key: p.value for p in n.metadata_props} for n in graph.node]
        self.number = {i: int(m[PART].split()[0]) for i, m in enumerate(marks) if PART in m}
        self.named: dict[str, list[int]] = defaultdict(list)  # mark -> nodes: one, but for copied layers
        for i in self.number:
            self.named[marks[i][PART]].append(i)
        self.origin = {i: marks[i][PART].split(" ", 1)[1] for i in self.number}
        self.whole = {i: m[WHOLE] for i, m in enumerate(marks) if WHOLE in m}
        self.maker = {o: i for i in self.number for o in graph.node[i].output if o}
        self.users: dict[str, list[int]] = defaultdict(list)
        for i in self.number:
            for name in graph.node[i].input:
                self.users[name].append(i)

    def group(self, root: int, body: Body, start: int) -> dict[int, int]:
        """Part number -> node, of the parts wired to a root as the body says: nothing else tells copied layers apart.

        A part that shares nothing but an input with the others is found by its mark. Where a copied layer begins inside an operator, some
        parts are missing: those of the original are wired to others.
        """
        out, waiting = {start: root}, [start]
        made_by_parts = {a for n in body.nodes if n.op_type != "Constant" for a in n.output if a}

        def fits(other: int, index: int) -> bool:
            known = {a: b for number, i in out.items() for a, b in self._wires(body.nodes[number], i)}
            return all(known.get(a, b) == b for a, b in self._wires(body.nodes[other], index) if a in made_by_parts)

        while waiting:
            number = waiting.pop()
            node, wanted = self.nodes[out[number]], body.nodes[number]
            for a, b in zip(wanted.input, node.input):
                for other, made in enumerate(body.nodes):
                    if a in made.output and other not in out and self.number.get(self.maker.get(b, -1)) == other:
                        out[other] = self.maker[b]
                        waiting.append(other)
            for a, b in zip(wanted.output, node.output):
                for other, using in enumerate(body.nodes):
                    found = [i for i in self.users.get(b, []) if self.number[i] == other and fits(other, i)] if a in using.input and other not in out else []
                    if found:
                        out[other] = found[0]
                        waiting.append(other)
            for other in range(len(body.nodes)) if not waiting else ():
                marked = self.named.get(f"{other} {self.origin[root]}", ())
                if other not in out and len(marked) == 1 and fits(other, marked[0]):
                    out[other] = marked[0]
                    waiting.append(other)
        return out

    def _wires(self, wanted: onnx.NodeProto, index: int) -> Iterator[tuple[str, str]]:
        """Tensors of a part: (name in the body, name in the graph)."""
        yield from zip((*wanted.input, *wanted.output), (*self.nodes[index].input, *self.nodes[index].output))


@dataclass
class Folder:
    """Folds the groups of one graph."""

    graph: Graph
    walk: Walk
    registry: Registry
    parts: Parts
    covered: set[int] = field(default_factory=set)  # nodes that are in a group

    @cached_property
    def taken(self) -> set[str]:
        """Names of nodes."""
        return {n.name for i, n in enumerate(self.parts.nodes) if i not in self.parts.number}

    def groups(self) -> Iterator[tuple[Root, dict[int, int]]]:
        for i, held in self.parts.whole.items():
            root = Root.read(held, self.registry)
            body = root.body()
            start = next(k for k, n in enumerate(body.nodes) if body.prefix in n.output)
            group = self.parts.group(i, body, start)
            if self._is_cut(body, group):
                continue
            self.covered.update(group.values())
            yield root, group

    def _is_cut(self, body: Body, group: dict[int, int]) -> bool:
        """Has an operator lost a part, as where a copied layer ends inside it, while all that is left can stand alone?"""
        lost = any(n.op_type != "Constant" and k not in group for k, n in enumerate(body.nodes))
        return lost and all(n.op_type in SAME_SINCE_7 | RENAMED.keys() | {"Constant"} for n in body.nodes)

    def alone(self, index: int) -> onnx.NodeProto:
        """A node that is no part, or a part whose operator went away: it stays what it is, if the model's opset knows that."""
        node = onnx.NodeProto()
        node.CopyFrom(self.parts.nodes[index])
        if index in self.parts.number:
            for p in [p for p in node.metadata_props if p.key in (PART, WHOLE)]:
                node.metadata_props.remove(p)
            opset = max((o.version for o in self.graph.source.proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
            node.op_type = RENAMED.get(node.op_type, node.op_type) if opset < PARTS_OPSET else node.op_type
            if node.op_type not in SAME_SINCE_7 | set(RENAMED.values()) and opset < PARTS_OPSET:
                raise GraphError(f"a part of a fused operator ({node.op_type}) would have to stand alone, and opset {opset} spells it otherwise", node=node.name,
                                 hint="grow another dim, or export the model with plain operators")
            node.name = free_name(node.name, self.taken)
        return node

    def folded(self, root: Root, group: dict[int, int]) -> onnx.NodeProto:
        """The operator that stands for a group.

        Raises:
            GraphError: with whatever attributes, it would unfold into something else.
        """
        old, parts = root.node, {number: self.parts.nodes[i] for number, i in group.items()}
        node = onnx.NodeProto()
        node.CopyFrom(old)
        node.input[:] = [i and f"input {k}" for k, i in enumerate(old.input)]  # one name may have served two of them
        names, tags = self._aligned(parts, replace(root, node=node).body())
        node.input[:] = [i and names.get(f"input {k}", i) for k, i in enumerate(old.input)]
        node.output[:] = [o and names.get(o, o) for o in old.output]
        node.name = old.name and free_name(parts[max(parts)].name.rsplit("/", 1)[0], self.taken)
        shapes = [self.walk.shapes.get(self.graph.alias.get(i, i)) if i else None for i in node.input]
        grown, why = replace(root, node=node, shapes=shapes, steps=frozenset(root.body().steps)), ""
        for chosen in ({a.name for a in old.attribute} & set(tags), set(tags)):  # what was left to a default stays so where that still gives the same
            set_attributes(node, {name: tags[name] for name in chosen})
            why = self._differs(parts, grown.body())
            if not why:
                return node
        raise GraphError(f"{old.op_type} cannot hold what it would have to become: {why}", node=old.name or old.output[0],
                         hint="grow another dim, or export the model with plain operators")

    def _aligned(self, group: dict[int, onnx.NodeProto], template: Body) -> tuple[dict[str, str], dict[str, object]]:
        """Names of the operator's inputs and outputs now, and what its attributes must say now."""
        names: dict[str, str] = {}
        for number, wanted in enumerate(template.nodes):
            have = group.get(number)
            if have is not None:
                names |= {a: b for a, b in zip((*wanted.input, *wanted.output), (*have.input, *have.output)) if a}
        tags: dict[str, object] = {}
        for tag in template.tags:
            value = self._tagged(group, template, tag, names)
            if tag.element is None:
                tags[tag.name] = value
            else:
                whole = tags.setdefault(tag.name, list(template.attrs.get(tag.name) or []))
                whole.extend([0] * (tag.element + 1 - len(whole)))
                whole[tag.element] = value
        return names, tags

    def _tagged(self, group: dict[int, onnx.NodeProto], template: Body, tag, names: dict[str, str]):
        if tag.tensor not in template.nodes[tag.part].output:
            return attributes_of(group[tag.part])[tag.tensor]
        value = self._constant(names.get(tag.tensor, tag.tensor))
        number = (value if value is not None else _value(template.nodes[tag.part])).ravel()[tag.at]
        return int(number) if number.dtype.kind == "i" else float(number)

    def _constant(self, name: str) -> np.ndarray | None:
        name = self.graph.alias.get(name, name)
        return self.graph.array(name) if name in self.graph.weights else None

    def _differs(self, group: dict[int, onnx.NodeProto], template: Body) -> str:
        """Why the operator does not unfold into the group; '' where it does."""
        mine = {o for n in template.nodes for o in n.output} - set(template.node.output)
        names: dict[str, str] = {}
        values = {n.output[0]: _value(n) for n in template.nodes if n.op_type == "Constant"}
        for number, wanted in enumerate(template.nodes):
            have = group.get(number)
            if wanted.op_type == "Constant":
                continue
            if have is None:
                return f"its part {wanted.op_type} is gone"
            if (have.op_type, have.domain, len(have.input)) != (wanted.op_type, wanted.domain, len(wanted.input)):
                return f"it has {wanted.op_type} where the grown graph has {have.op_type}"
            if attributes_of(have) != attributes_of(wanted):
                return f"{wanted.op_type} would need other attributes"
            for a, b in zip(wanted.input, have.input):
                if a in values:
                    now = self._constant(b)
                    if now is None or now.shape != values[a].shape or not np.array_equal(now, values[a]):
                        return f"{wanted.op_type} would need {'another operand' if now is None else now.tolist()} in place of {values[a].tolist()}"
                elif b != (names.get(a) if a in mine else a):
                    return f"{wanted.op_type} would take something else"
            if any(a != b for a, b in zip(wanted.output, have.output) if a and a not in mine):
                return f"{wanted.op_type} would make something else"
            names |= dict(zip(wanted.output, have.output))
        return ""


def _value(constant: onnx.NodeProto) -> np.ndarray:
    return numpy_helper.to_array(constant.attribute[0].t)
