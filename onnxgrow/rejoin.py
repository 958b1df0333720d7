"""What `loops` spread becomes a Loop or Scan again: byte for byte where nothing of it changed, else with a body that holds the grown nodes and weights."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import onnx

from .errors import GraphError
from .graph import HOLDER, WITHIN, attributes_of, mark_of, outer_names, rename, unmarked
from .loops import Parts
from .loopsteps import AROUND, BODY
from .source import Source

Numbers = Callable[[onnx.TensorProto], onnx.TensorProto | None]  # a weight with its numbers; None for one that is grown, when asked of an old one
SEAL = "seal"


def ends_of(g: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes that stand for a Loop or Scan."""
    return (n for n in g.node if n.op_type == "LoopEnd" and n.domain == "onnxgrow")


def seal(source: Source) -> Source:
    """Note at each loop what it looks like, so that one that has not changed is recognised."""
    if not any(ends_of(source.proto.graph)):
        return source
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    sealed = _Content(proto.graph)
    for end in list(ends_of(proto.graph)):
        end.attribute.append(onnx.helper.make_attribute(SEAL, sealed.of(end)))
    return replace(source, proto=proto)


class _Content:
    """What stands in each body, in nested ones too."""

    def __init__(self, g: onnx.GraphProto):
        self.values = {v.name: v for v in g.value_info}
        self.weights = {t.name: t for t in g.initializer}
        self.within: dict[str, list[onnx.NodeProto]] = {}
        for n in g.node:
            if mark_of(n, WITHIN):
                self.within.setdefault(mark_of(n, WITHIN), []).append(n)

    def nodes(self, key: str) -> Iterator[onnx.NodeProto]:
        """All nodes of the bodies of one node; those around it are left out."""
        for place, nodes in self.within.items():
            if place.startswith(f"{key}\t") and not place.endswith(f"\t{AROUND}\t"):
                for n in nodes:
                    yield n
                    if mark_of(n, HOLDER):
                        yield from self.nodes(attributes_of(n).get("key", n.output[0]))

    def moved(self, key: str, end: onnx.NodeProto) -> set[str]:
        """The names that the tensors of these bodies have here."""
        inner = [n for n in self.nodes(key) if n.op_type == "LoopEnd"]
        return {name for n in (end, *inner) for name in json.loads(attributes_of(n)["names"]).values()}

    def of(self, end: onnx.NodeProto) -> str:
        attrs = attributes_of(end)
        seen = hashlib.sha256(repr((list(end.input), list(end.output))).encode())
        for n in self.nodes(attrs["key"]):
            plain = onnx.NodeProto()
            plain.CopyFrom(n)
            for a in [a for a in plain.attribute if a.name == SEAL]:
                plain.attribute.remove(a)
            seen.update(plain.SerializeToString(deterministic=True))
        for name in sorted(self.moved(attrs["key"], end)):
            seen.update(self.values[name].SerializeToString(deterministic=True) if name in self.values else b"")
            seen.update(repr((name, list(self.weights[name].dims))).encode() if name in self.weights else b"")
        return seen.hexdigest()


class Rejoiner:
    """Makes loops whole. `grown` says of the name of a weight whether it has other numbers than in the file that was read, and of what it was made."""

    def __init__(self, proto: onnx.ModelProto, numbers: Numbers, origins: dict[str, str]):
        self.numbers, self.origins = numbers, origins
        self.brought: set[str] = set()  # weights that stood in bodies, by the names that they have outside
        self.values: set[str] = set()  # sizes that were written down there
        for end in ends_of(proto.graph):
            self.brought |= {*json.loads(attributes_of(end)["names"]).values()} & {t.name for t in proto.graph.initializer}
            self.values |= {*json.loads(attributes_of(end)["values"])}

    def unchanged(self, before: onnx.ModelProto) -> onnx.ModelProto:
        """Loops of which nothing changed are what they were; nothing of what was spread of them is left."""
        content, done, same = _Content(before.graph), set(), {}
        for end in ends_of(before.graph):
            attrs = attributes_of(end)
            if content.of(end) == attrs.get(SEAL) and not content.moved(attrs["key"], end) & self.origins.keys():
                same[attrs["key"]] = end
        inner = {attributes_of(n)["key"] for key in same for n in content.nodes(key) if n.op_type == "LoopEnd"}
        outer = {key: end for key, end in same.items() if key not in inner}
        for key in outer:
            done |= {id(n) for n in content.nodes(key)} | {id(n) for k in {key, *inner} for n in content.within.get(f"{k}\t{AROUND}\t", ())}
        return self._restored(before, outer, done, content) if outer else before

    def _restored(self, before: onnx.ModelProto, outer: dict[str, onnx.NodeProto], done: set[int], content: _Content) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(before)
        del proto.graph.node[:]
        for n in before.graph.node:
            if id(n) in done:
                continue
            key = attributes_of(n)["key"] if n.op_type == "LoopEnd" and n.domain == "onnxgrow" else None
            proto.graph.node.append(self._as_it_was(n, content.within[f"{key}\t{AROUND}\t"], proto.graph) if key in outer else n)
        return proto

    def _as_it_was(self, end: onnx.NodeProto, around: list[onnx.NodeProto], g: onnx.GraphProto) -> onnx.NodeProto:
        out = onnx.NodeProto.FromString(base64.b64decode(mark_of(end, HOLDER)))
        parts, names = Parts(out), json.loads(attributes_of(end)["names"])
        self._outside(parts, end, around)
        self._weights(parts.body, names, g, set())
        return self._marked(out, end)

    @staticmethod
    def _marked(out: onnx.NodeProto, end: onnx.NodeProto) -> onnx.NodeProto:
        del out.metadata_props[:]
        out.metadata_props.extend(unmarked(end, HOLDER).metadata_props)
        return out

    @staticmethod
    def _outside(parts: Parts, end: onnx.NodeProto, around: list[onnx.NodeProto]) -> None:
        """Inputs and outputs of the node itself."""
        attrs, makers = attributes_of(end), {n.output[0]: n for n in around}
        n, skip = attrs["carried"], 1 + attrs["counters"]
        lost = [name for name in end.input[skip + 3 : skip + 3 + n] if name not in makers]
        if lost:
            raise GraphError("what a loop starts with can no longer be told", node=end.name, hint="grow another dim")
        states = [makers[name].input[0] for name in end.input[skip + 3 : skip + 3 + n]]
        sliced = [n.input[0] for n in around if n.op_type == "ScanSlice"]
        own = [*states, *sliced] if parts.scan else [end.input[skip], end.input[skip + 1], *states]
        parts.node.input[:] = own[: len(parts.node.input)]
        parts.node.output[:] = [now if old else "" for old, now in zip(parts.node.output, end.output)]

    def _weights(self, body: onnx.GraphProto, names: dict[str, str], g: onnx.GraphProto, read: set[str]) -> None:
        """The weights that a body holds, and those that it reads and that were made of them."""
        there = {t.name: t for t in g.initializer}
        order = [(t.name, names.get(t.name, t.name)) for t in body.initializer]
        kept = [(own, there[name]) for own, name in order if name in there]
        del body.initializer[:]
        for own, t in kept:
            body.initializer.append(self.numbers(t))
            body.initializer[-1].name = own
        mine = {name for _, name in order}
        for name in sorted(read):
            if name in there and name not in mine and self.origins.get(name) in mine:
                body.initializer.append(self.numbers(there[name]))
                self.brought.add(name)

    def whole(self, out: onnx.NodeProto, end: onnx.NodeProto, inside: dict[str, list[onnx.NodeProto]], proto: onnx.ModelProto) -> onnx.NodeProto:
        """The node with its body as it is now.

        Raises:
            GraphError: something reads what is there for the analysis only.
        """
        attrs = attributes_of(end)
        key, names = attrs["key"], json.loads(attrs["names"])
        around, nodes = inside[f"{key}\t{AROUND}\t"], inside.get(f"{key}\t{BODY}\t", [])
        parts, back = Parts(out), {now: own for own, now in names.items()}
        self._outside(parts, end, around)
        body = parts.body
        old = {o for x in body.node for o in x.output}
        for n in nodes:
            rename(n, back)
        del body.node[:]
        body.node.extend(nodes)
        n, skip = attrs["carried"], 1 + attrs["counters"]
        given = [back.get(name, name) for name in (*end.input[skip + 2 : skip + 3] * (not parts.scan), *end.input[skip + 3 + n :])]
        self._values(body, names, proto.graph, given)
        for value in [v for v in body.value_info if v.name in old - {o for x in nodes for o in x.output}]:
            body.value_info.remove(value)
        self._weights(body, names, proto.graph, {name for x in nodes for name in x.input})
        lost = {o for x in around for o in x.output} & {*outer_names(body)}
        if lost:
            raise GraphError(f"a grown body would need {sorted(lost)[0]!r}, which only the analysis has", node=end.name, hint="grow another dim")
        return self._marked(out, end)

    @staticmethod
    def _values(body: onnx.GraphProto, names: dict[str, str], g: onnx.GraphProto, given: list[str]) -> None:
        """Types and sizes of the inputs and outputs of a body and of what lies between follow."""
        now = {v.name: v for v in g.value_info}
        for value in (*body.input, *body.value_info, *body.output):
            found = now.get(names.get(value.name, value.name))
            if found is not None and names.get(value.name):
                value.type.CopyFrom(found.type)
        for value, name in zip(body.output, given):
            value.name = name

    def clear(self, proto: onnx.ModelProto) -> None:
        """Remove what came from bodies and is used there only: weights, and sizes that are written down."""
        g = proto.graph
        used = {name for n in g.node for name in n.input} | {v.name for v in g.output}
        used |= {name for n in g.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH for name in outer_names(a.g)}
        for t in [t for t in g.initializer if t.name in self.brought and t.name not in used]:
            g.initializer.remove(t)
        made = {name for n in g.node for name in n.output}
        for v in [v for v in g.value_info if v.name in self.values or v.name not in made]:
            g.value_info.remove(v)
        for v in [v for v in g.input if mark_of(v, WITHIN).endswith(f"\t{AROUND}\t")]:
            g.input.remove(v)
