"""What `subgraphs` spread, together again: the last step before a file is written."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

import onnx
from onnx import AttributeProto

from .graph import HOLDER, WITHIN, attributes_of, mark_of, outer_names, rename, unmarked
from .layout import inlined
from .ordering import sort_nodes
from .recipe import Recipe
from .rejoin import Rejoiner
from .source import Source
from .subgraphs import BRANCHES


def gather(proto: onnx.ModelProto, source: Source, recipes: Mapping[str, Recipe] = MappingProxyType({})) -> onnx.ModelProto:
    """Put what was spread back into the nodes that it came from; a loop of which nothing changed is what it was.

    Args:
        source: where weights are that `proto` lists without their numbers.
        recipes: how weights are made that have other numbers now, by name.
    """
    if not any(mark_of(n, HOLDER) for n in proto.graph.node):
        return proto
    origins = {name: recipe.origin or name for name, recipe in recipes.items()}
    joiner = Rejoiner(proto, lambda t: inlined(source, t, recipes.get(t.name)), origins)
    proto = joiner.unchanged(proto)
    while any(mark_of(n, HOLDER) for n in proto.graph.node):
        proto = _gathered(proto, joiner)
    joiner.clear(proto)
    return proto


def _gathered(before: onnx.ModelProto, joiner: Rejoiner) -> onnx.ModelProto:
    """One level: the bodies inside of which nothing else is spread."""
    proto = onnx.ModelProto()
    proto.CopyFrom(before)
    places = [mark_of(n, WITHIN) for n in before.graph.node]
    waiting = {place for place, n in zip(places, before.graph.node) if place and mark_of(n, HOLDER)}
    inside: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    eithers, done, keyed = _eithers(before), set(), []
    for place, n in zip(places, before.graph.node):
        if place:
            inside[place].append(unmarked(n, WITHIN))
    for at, n in enumerate(before.graph.node):
        start = f"{attributes_of(n).get('key', n.output[0])}\t" if n.output and mark_of(n, HOLDER) else None
        ready = [p for p in inside if start and p.startswith(start)]
        if start and not waiting & set(ready):
            whole = onnx.NodeProto.FromString(base64.b64decode(mark_of(n, HOLDER)))
            if n.op_type == "LoopEnd":
                now = joiner.whole(whole, n, inside, proto)
            else:
                now = _whole_if(whole, eithers[n.output[0]], inside) if n.op_type == "Either" else _whole_search(whole, n, proto, inside)
            done |= {*ready, start, *(e.output[0] for e in eithers.get(n.output[0], ()))}
            keyed.append(((at,), now))
        else:
            keyed.append(((at,), n))
    del proto.graph.node[:]
    gone = lambda n: mark_of(n, WITHIN) in done and mark_of(n, WITHIN) or (n.op_type == "Either" and n.output[0] in done)  # noqa: E731
    proto.graph.node.extend(sort_nodes([(key, n) for key, n in keyed if not gone(n)]))
    for part in (proto.graph.input, proto.graph.output):
        for v in [v for v in part if any(mark_of(v, WITHIN).startswith(place) for place in done)]:
            part.remove(v)
    return proto


def _eithers(proto: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """First output of an If -> its nodes `Either`, in order; they stand behind one another."""
    out: dict[str, list[onnx.NodeProto]] = {}
    for n in proto.graph.node:
        if n.op_type == "Either" and n.domain == "onnxgrow":
            if mark_of(n, HOLDER):
                now = out.setdefault(n.output[0], [])
            now.append(n)
    return out


def _whole_if(n: onnx.NodeProto, eithers: list[onnx.NodeProto], inside: dict) -> onnx.NodeProto:
    place, live = n.output[0], attributes_of(eithers[0])["live"]
    n.input[0] = eithers[0].input[0]
    chosen = [key for key in BRANCHES if any(p.startswith(f"{place}\t{key}\t") for p in inside)] if live < 2 else BRANCHES
    for a in n.attribute:
        if a.name in chosen:
            slot = 1 + list(chosen).index(a.name)
            _fill(a.g, next((nodes for p, nodes in inside.items() if p.startswith(f"{place}\t{a.name}\t")), []))
            for value, either in zip(a.g.output, eithers):
                value.name = either.input[slot]
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.ClearField("shape")
        elif a.name in BRANCHES:
            now = dict(zip(outer_names(a.g), eithers[0].input[1 + live :]))
            for x in a.g.node:
                rename(x, now)
    n.output[:] = [e.output[0] for e in eithers]
    return n


def _whole_search(n: onnx.NodeProto, holder: onnx.NodeProto, proto: onnx.ModelProto, inside: dict) -> onnx.NodeProto:
    bodies = {a.name: a for a in n.attribute if a.type == AttributeProto.GRAPH}
    out = unmarked(holder, HOLDER)
    for key, attribute in bodies.items():
        place = f"{n.output[0]}\t{key}\t"
        _fill(attribute.g, inside.get(place, []))
        names = {}  # the search knows some by name
        for values, part in ((proto.graph.input, attribute.g.input), (proto.graph.output, attribute.g.output)):
            del part[:]
            for v in values:
                mark = mark_of(v, WITHIN)
                if mark.startswith(place):
                    names |= {v.name: mark[len(place):]} if len(mark) > len(place) else {}
                    part.append(unmarked(v, WITHIN))
                    part[-1].name = names.get(v.name, v.name)
        for x in attribute.g.node:
            rename(x, names)
        out.attribute.append(attribute)
    return out


def _fill(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    for part in ("node", "initializer", "value_info"):
        del getattr(graph, part)[:]
    graph.node.extend(nodes)
