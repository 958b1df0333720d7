"""Graphs inside of nodes (If, Loop, Scan, and the searches of ONNX Runtime), spread out for the analysis (and back: `gather`).

The nodes of a body move into the main graph, marked with the place that they came from, and so do its weights. Of an If both branches are
spread and meet again in a node `Either`; where its condition is a matter of sizes that are known, only the branch that is taken. The body of
a search becomes a graph beside the others, with inputs and outputs of its own, since the search calls it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import onnx
from onnx import AttributeProto

from .errors import GraphError
from .graph import HOLDER, WITHIN, attributes_of, build, free_name, mark_of, outer_names, rename
from .loops import Parts, Scaffold, bare, is_loop, key_of
from .loopsteps import BODY, Facts, Key, in_steps, learn, moves
from .rejoin import seal
from .rulebook import Registry
from .shapes import first_walk
from .source import Source

SEARCHES = {"BeamSearch", "GreedySearch", "Sampling"}
HARMLESS = {"Identity", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Constant", "Flatten"}  # hold no size that could grow
ROUNDS = 8  # walks until what changes from step to step is known
BRANCHES = ("then_branch", "else_branch")


def spread(source: Source, registry: Registry) -> Source:
    """The same model without graphs inside of nodes, as far as they can be followed; the source itself where there are none.

    Raises:
        GraphError: a body of a kind that cannot be followed.
    """
    facts: dict[Key, Facts | None] = {}
    for _ in range(ROUNDS):
        try:
            out = _spread_levels(source, registry, facts)
            found = _learn(out, registry, facts)
        except GraphError:  # what nobody can walk stays as it is
            found = {key: None for key, known in facts.items() if known}
            if not found:
                raise
        if not found:
            return seal(out)
        facts |= found
    return seal(_spread_levels(source, registry, facts | dict.fromkeys(found)))


def _spread_levels(source: Source, registry: Registry, facts: dict[Key, Facts | None]) -> Source:
    """What is outermost first, until nothing is left; loops about which `facts` has None stay."""
    while any(_is_if(n) or _is_search(n) or (is_loop(n) and facts.get(key_of(n), ()) is not None) for n in source.proto.graph.node):
        both = _Spreader(source.proto, facts).spread()
        if any(p.key == HOLDER for n in both.graph.node if n.op_type == "Either" for p in n.metadata_props):
            walk, _ = first_walk(build(replace(source, proto=both)), registry)
            stepping = in_steps(both.graph)
            known = {name: bool(v.ravel()[0]) for name, v in walk.values.items() if v.dtype == bool and v.size == 1 and name not in stepping}
            both = _Spreader(source.proto, facts, known).spread()
        source = replace(source, proto=both)
    return source


def _learn(source: Source, registry: Registry, facts: dict[Key, Facts | None]) -> dict[Key, Facts | None]:
    """What a walk shows of the loops that was not known yet; of one at which it fails, that it must stay as it is."""
    ends = [n for n in source.proto.graph.node if n.op_type == "LoopEnd" and n.domain == "onnxgrow"]
    if not ends:
        return {}
    graph, keys = build(source), {attributes_of(end)["key"]: end for end in ends}
    try:
        walk, symbols = first_walk(graph, registry)
        found = learn(ends, walk, facts)
        return found or {key: None for key, end in keys.items() if not moves(graph, walk, symbols, registry, key)}
    except GraphError as problem:
        places = [mark_of(n, WITHIN).split("\t")[0] for n in source.proto.graph.node if n.name and n.name == problem.node]
        blamed = [key for key in places if key in keys] or list(keys)
        return dict.fromkeys(blamed)


def _is_if(n: onnx.NodeProto) -> bool:
    return n.op_type == "If" and n.domain in ("", "ai.onnx")


def _is_search(n: onnx.NodeProto) -> bool:
    return n.op_type in SEARCHES and n.domain == "com.microsoft" and any(a.type == AttributeProto.GRAPH for a in n.attribute)


@dataclass
class _Spreader:
    """Spreads the outermost bodies of a model. `known`: conditions that are a matter of sizes."""

    before: onnx.ModelProto
    facts: dict[Key, Facts | None]
    known: dict[str, bool] = field(default_factory=dict)

    def spread(self) -> onnx.ModelProto:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(self.before)
        del self.proto.graph.node[:]
        graph = self.before.graph
        self.taken = {t.name for t in graph.initializer} | {v.name for v in graph.input} | {o for n in graph.node for o in n.output}
        self.weights = {t.name: (t, t.name) for t in graph.initializer}  # own name -> weight, and its name here
        self.outer = {t.name for t in graph.initializer}
        for n in graph.node:
            kind = self._if if _is_if(n) else self._search if _is_search(n) else self._loop if is_loop(n) else lambda n: [n]
            self.proto.graph.node.extend(kind(n))
        return self.proto

    def _loop(self, n: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        facts = self.facts.setdefault(key_of(n), Facts())
        if facts is None:
            yield n
            return
        parts = Parts(n)
        around = Scaffold(parts, self._names(parts.body), facts, self.taken)
        self.proto.graph.input.append(around.input())
        self.proto.graph.value_info.extend(around.values(self.proto.graph))
        yield from around.before()
        yield from self._body(parts.body, around.names, f"{around.key}\t{BODY}\t")
        yield from around.end(_held(bare(n)))

    def _if(self, n: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        bodies, held, cond = attributes_of(n), n.output[0], n.input[0]
        live = [k for k in BRANCHES if cond not in self.known or self.known[cond] == (k == BRANCHES[0])]
        dead = next((bodies[k] for k in BRANCHES if k not in live), None)
        if dead is not None and any(x.op_type not in HARMLESS for x in dead.node):
            live, dead = list(BRANCHES), None
        gives = []
        for key in live:
            names = self._names(bodies[key])
            yield from self._body(bodies[key], names, f"{held}\t{key}\t{cond}")
            gives.append([names.get(o.name, o.name) for o in bodies[key].output])
        for k, output in enumerate(n.output):
            either = onnx.helper.make_node("Either", [cond, *(g[k] for g in gives), *(outer_names(dead) if dead else ())], [output],
                                           name=f"{n.name or held}{f'.{k}' * bool(k)}", domain="onnxgrow", live=len(gives))
            either.metadata_props.extend(n.metadata_props)
            either.metadata_props.add(key=HOLDER, value=_held(n) if not k else "")
            yield either

    def _search(self, n: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        bodies = {a.name: a.g for a in n.attribute if a.type == AttributeProto.GRAPH}
        if len(bodies) > 1:
            raise GraphError(f"{n.op_type} calls {' and '.join(bodies)}, between which states pass unseen", node=n.name or n.output[0],
                             hint="grow the models that it was made from, and join them again")
        for key, body in bodies.items():
            names, place = self._names(body), f"{n.output[0]}\t{key}\t"
            yield from self._body(body, names, place)
            for values, part in ((body.input, self.proto.graph.input), (body.output, self.proto.graph.output)):
                for value in values:
                    part.append(value)
                    part[-1].name = names.get(value.name, value.name)
                    part[-1].metadata_props.add(key=WITHIN, value=place + value.name * (part[-1].name != value.name))
        holder = onnx.NodeProto()
        holder.CopyFrom(n)
        for a in [a for a in holder.attribute if a.type == AttributeProto.GRAPH]:
            holder.attribute.remove(a)
        holder.metadata_props.add(key=HOLDER, value=_held(n))
        yield holder

    def _names(self, body: onnx.GraphProto) -> dict[str, str]:
        """New names for what a body makes or holds, where an old one is used elsewhere; equal weights of one name are one weight."""
        names: dict[str, str] = {}
        for t in body.initializer:
            found, name = self.weights.get(t.name, (None, t.name))
            if found != t:
                name = free_name(t.name, self.taken)
                self.proto.graph.initializer.append(t)
                self.proto.graph.initializer[-1].name = name
                self.weights.setdefault(t.name, (t, name))
            names |= {t.name: name} if name not in self.outer else {}
        for name in [*(v.name for v in body.input), *(o for n in body.node for o in n.output if o)]:
            names[name] = free_name(name, self.taken)
        return names

    def _body(self, body: onnx.GraphProto, names: dict[str, str], place: str) -> Iterator[onnx.NodeProto]:
        for n in body.node:
            out = onnx.NodeProto()
            out.CopyFrom(n)
            rename(out, names)
            out.metadata_props.add(key=WITHIN, value=place)
            yield out


def _held(n: onnx.NodeProto) -> str:
    return base64.b64encode(n.SerializeToString()).decode()
