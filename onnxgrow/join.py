"""Several graphs of one model as one, and apart again: so that one plan, one proof and one run hold for all of them.

In the joined graph every tensor is called after its member (`decoder:logits`), and what one graph hands to another goes through an Identity
that bears the name of the input. Weights that two graphs hold alike are one parameter: `encoder:` or `decoder:` and the name that they have
in the first of them. Outputs of each graph stay outputs. `split` takes a grown joined graph apart, with the names that each file had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import onnx
from onnx import helper

from .alike import alike
from .errors import FileError
from .graph import free_name, graphs_in, outer_names, rename
from .members import AGAIN, FILES, Member, links
from .provenance import RECORD
from .source import Source

NEXT = "next_"  # in front of symbols of what is fed behind the first words: how many these are is another matter


@dataclass(frozen=True)
class Joined:
    """The joined graph, and what everything in it is called in its member.

    Attributes:
        names: member -> name in its source -> name in the joined graph.
        links: input of a member -> what it takes, both by their names in the joined graph.
    """

    source: Source
    members: list[Member]
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


# --- together ---------------------------------------------------------------------------------------------------------


def join(members: list[Member], by_content: bool = True) -> Joined:
    """One graph of several.

    Raises:
        FileError: they do not belong together.
    """
    weights, handed = alike(members, by_content), links(members)
    names = {m.name: {**{n: f"{m.name}:{n}" for n in _tensors(m.graph)}, **weights[m.name]} for m in members}
    joined = Joined(_bare(members), members, names, {names[a][x]: names[b][y] for (a, x), (b, y) in handed.items()})
    done: set[str] = set()
    for m in members:
        _add(joined, m, {name for member, name in handed if member == m.name}, done)
    return joined


def _bare(members: list[Member]) -> Source:
    """The joined source, its graph still empty."""
    proto, versions = onnx.ModelProto(), {}
    proto.CopyFrom(members[0].source.proto)
    for part in ("node", "initializer", "input", "output", "value_info", "sparse_initializer", "quantization_annotation"):
        del getattr(proto.graph, part)[:]
    for part in ("opset_import", "functions", "training_info", "metadata_props"):
        del getattr(proto, part)[:]
    for m in members:
        for o in m.source.proto.opset_import:
            if versions.setdefault(o.domain, o.version) != o.version:
                raise FileError(f"{FILES[m.name]} has version {o.version} of the operator set {o.domain or 'ai.onnx'}, another graph of the model {versions[o.domain]}", hint=AGAIN)
        known = {(f.domain, f.name) for f in proto.functions}
        proto.functions.extend(f for f in m.source.proto.functions if (f.domain, f.name) not in known)
    proto.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    proto.ir_version = max(m.source.proto.ir_version for m in members)
    proto.metadata_props.extend(p for p in members[0].source.proto.metadata_props if p.key == RECORD)
    sources = [m.source for m in members]
    data = {f"{m.name}/{location}": file for m in members for location, file in m.source.data.items()}
    return Source(sources[0].path, proto, {}, data, {}, None, {file: who for s in sources for file, who in s.seen.items()})


def _tensors(g: onnx.GraphProto) -> Iterator[str]:
    """Every name of a tensor in a graph; those inside of bodies aside."""
    yield from (v.name for v in (*g.input, *g.output, *g.value_info))
    for n in g.node:
        yield from (name for name in (*n.input, *n.output) if name)
        yield from (name for body in graphs_in(n) for name in outer_names(body))


def _add(joined: Joined, m: Member, taken: set[str], done: set[str]) -> None:
    """Put one member into the joined graph. `taken`: inputs that another one gives; `done`: weights that are there."""
    out, names, source = joined.source.proto.graph, joined.names[m.name], joined.source
    for t in m.graph.initializer:
        name = names[t.name]
        if name not in done:
            done.add(name)
            out.initializer.append(t)
            out.initializer[-1].name = name
            source.tensors.update({name: m.source.tensors[t.name]} if t.name in m.source.tensors else {})
            source.constant.update({name: m.source.constant[t.name]} if t.name in m.source.constant else {})
    for value in m.fed:
        part = out.value_info if value.name in taken else out.input
        part.append(value)
        part[-1].name = names[value.name]
        if value.name in taken:
            out.node.append(helper.make_node("Identity", [joined.links[names[value.name]]], [names[value.name]], name=names[value.name]))
            _unsaid(part[-1])
        elif m.name != m.kin:
            for d in (d for d in list(part[-1].type.tensor_type.shape.dim)[1:] if d.dim_param):
                d.dim_param = NEXT + d.dim_param
    for n in m.graph.node:
        out.node.append(n)
        rename(out.node[-1], names)
        out.node[-1].name = n.name and f"{m.name}:{n.name}"
    for part in ("output", "value_info"):
        known = {v.name for v in getattr(out, part)}
        for value in (v for v in getattr(m.graph, part) if names[v.name] not in known):
            getattr(out, part).append(value)
            getattr(out, part)[-1].name = names[value.name]
            _unsaid(getattr(out, part)[-1])


def _unsaid(value: onnx.ValueInfoProto) -> None:
    """Forget the names of symbolic sizes, which mean another size in each graph: ONNX Runtime takes those of one name for equal."""
    for d in value.type.tensor_type.shape.dim:
        if d.HasField("dim_param"):
            d.Clear()


# --- apart ------------------------------------------------------------------------------------------------------------


def split(joined: Joined, proto: onnx.ModelProto, m: Member, called: dict[str, str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A member's own graph out of a joined one that was edited, and what each of its weights is called in both: {own: joined}.

    Args:
        called: joined name of a weight -> its name in the member's file; new ones are entered.
    """
    base, names, prefix = m.graph, joined.names[m.name], f"{m.name}:"
    weights = {names[t.name] for t in base.initializer}
    back = {j: n for n, j in names.items() if j not in weights}
    taken = {*back.values(), *called.values()}
    out = onnx.ModelProto()
    out.CopyFrom(m.source.proto)
    for part in ("node", "initializer", "input", "output", "value_info"):
        del getattr(out.graph, part)[:]

    def own(name: str) -> str:
        if name not in back:
            back[name] = called.get(name) or free_name(name.partition(":")[2] or name, taken)
        return back[name]

    nodes = _nodes_of(joined, proto.graph, m)
    for n in nodes:
        inner = {name for body in graphs_in(n) for name in outer_names(body)}
        out.graph.node.append(n)
        rename(out.graph.node[-1], {name: own(name) for name in {*n.input, *n.output, *inner} if name})
        out.graph.node[-1].name = n.name.removeprefix(prefix)
    used, read = set(_read_by(nodes)), set(_read_by(base.node))
    held = {t.name: t for t in proto.graph.initializer}
    old = [names[t.name] for t in base.initializer if names[t.name] in held and (names[t.name] in used or t.name not in read)]
    order = dict.fromkeys([*old, *(name for name in held if name in used)])
    for name in order:
        out.graph.initializer.append(held[name])
        out.graph.initializer[-1].name = called.setdefault(name, own(name))
    _values(out.graph, base, proto.graph, names, own)
    return out, {own(name): name for name in order}


def _nodes_of(joined: Joined, g: onnx.GraphProto, m: Member) -> list[onnx.NodeProto]:
    """The nodes behind a member's outputs, and all else that is called after it."""
    makers = {o: i for i, n in enumerate(g.node) for o in n.output}
    waiting, found = [joined.names[m.name][v.name] for v in m.graph.output], set()
    for i, n in enumerate(g.node):
        waiting += [o for o in n.output if o.startswith(f"{m.name}:")]
    while waiting:
        name = waiting.pop()
        i = makers.get(name)
        if i is not None and i not in found and name not in joined.links:
            found.add(i)
            waiting += _read_by([g.node[i]])
    return [g.node[i] for i in sorted(found)]


def _read_by(nodes) -> list[str]:
    """What nodes read, also in bodies."""
    return [name for n in nodes for name in (*n.input, *(x for body in graphs_in(n) for x in outer_names(body))) if name]


def _values(out: onnx.GraphProto, base: onnx.GraphProto, g: onnx.GraphProto, names: dict[str, str], own: Callable[[str], str]) -> None:
    """Inputs, outputs and what is written down between them, with the sizes of now."""
    now = {v.name: v for v in (*g.value_info, *g.input, *g.output)}
    for part in ("input", "output", "value_info"):
        for value in getattr(base, part):
            grown = now.get(names[value.name])
            if grown is None and part == "value_info":
                continue
            getattr(out, part).append(value)
            getattr(out, part)[-1].name = own(names[value.name])
            for d, size in zip(getattr(out, part)[-1].type.tensor_type.shape.dim, grown.type.tensor_type.shape.dim if grown else ()):
                if d.HasField("dim_value") and size.HasField("dim_value"):
                    d.dim_value = size.dim_value


def written_from(planned: Source, opened: Source, weights: dict[str, str]) -> Source:
    """Where the weights of a split member come from, by both of their names; files and the like are the member's own."""
    own = {name: planned.tensors[was] for name, was in weights.items() if was in planned.tensors}
    return replace(opened, proto=planned.proto, tensors=planned.tensors | own, constant=planned.constant)
