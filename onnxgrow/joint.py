"""A model in several graphs, read as one: joined for the analysis and the proof (`join`), and each by itself where blocks are found.

More layers come first, in each graph by itself; then the deeper graphs are joined, and all widths are decided in one plan (`jointplan`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx

from .blocks import Block, Stack
from .deepen import Deepened, deepen
from .errors import FileError, GraphError, UsageError
from .folders import graphs_of
from .gather import gather
from .graph import rename
from .inline import inline
from .join import Joined, join
from .members import FILES, MERGED, Member
from .merged import branches, twin_weights
from .model import Model
from .placement import Place, wanted_layers
from .request import Depth, Request
from .source import Source, open_source
from .subgraphs import spread
from .understood import understood
from .unfold import fold, unfold

TURNS = 2  # how often tokens are fed, one behind the other: a decoder goes on from what another one has kept
ORDER = [name for name in FILES if name != MERGED]


@dataclass(frozen=True)
class File:
    """A file of the folder, and the members that it holds.

    Args:
        weights: by member, joined name of a weight -> its name in this file.
    """

    name: str
    source: Source
    weights: dict[str, dict[str, str]]


@dataclass(frozen=True)
class JointlyDeepened(Deepened):
    """Deeper graphs, joined."""

    joined: Joined | None = None


class JointModel(Model):
    """A model in several graphs. `roles`, sizes and dims are those of all of them together.

    Args:
        path: a folder with an encoder and its decoders.
        rules: files with rules for operators that onnxgrow does not know (they are Python code and are run).
    Raises:
        FileError: the graphs do not belong together.
        UsageError: `dequantize` was asked for.
    """

    def __init__(self, path: str | os.PathLike, rules: tuple[str, ...] = (), dequantize: bool = False):
        if dequantize:
            raise UsageError("--dequantize takes one graph, and this model has several", hint="give the folder of its float form, as it was exported")
        self._begin(rules)
        self.path = Path(path) if Path(path).name else Path(path).absolute()  # of a folder called `.`
        with understood():
            self.joined, self.files = self.opened_folder(self.path)
            self._read(self.joined.source)
        self.roles.structure.turns = TURNS

    def opened_folder(self, folder: Path) -> tuple[Joined, list[File]]:
        """The graphs of a folder, joined, and the files that hold them."""
        opened = {name: open_source(file) for name, file in graphs_of(folder).items()}
        apart = {name: inline(source, self.registry) for name, source in opened.items() if name != MERGED}
        views = branches(inline(opened[MERGED], self.registry)) if MERGED in opened else {}
        every = {**views, **apart}
        joined = join([Member(name, every[name]) for name in ORDER if name in every])
        files = [File(FILES[name], opened[name], {name: _back(joined, name)}) for name in apart]
        inside = {name: _through(joined, name, view, apart[name]) if name in apart else _back(joined, name) for name, view in views.items()}
        if views and None not in inside.values():
            files.append(File(FILES[MERGED], opened[MERGED], inside))
        elif not apart.keys() >= every.keys() or not every.keys() - {"encoder"}:
            raise FileError(f"{folder / FILES[MERGED]} is built in another way than optimum does it", hint="export the model with both decoders as files of their own")
        return joined, files

    @property
    def members(self) -> tuple[Member, ...]:
        """The graphs, as they are in the files."""
        return tuple(self.joined.members)

    @cached_property
    def each(self) -> list[Model]:
        """The graphs by themselves, their weights called as in the joined one."""
        return [Model.of(_renamed(m.source, {t.name: self.joined.names[m.name][t.name] for t in m.graph.initializer}), self) for m in self.members]

    @cached_property
    def stacks(self) -> list[Stack]:
        """The repeated layers; those of both decoders once."""
        makers = self.roles.structure.graph.makers
        out, seen = [], set()
        for m, model in zip(self.members, self.each):
            index = model.roles.structure.graph.by_index
            for stack in model.stacks if m.kin not in seen else ():
                found = [[makers.get(f"{m.name}:{index[i].outputs[0]}") for i in b.nodes] for b in stack.blocks]
                blocks = [Block(frozenset(n.index for n in nodes if n is not None), f"{m.name}:{b.enters}", f"{m.name}:{b.leaves}", b.layers)
                          for nodes, b in zip(found, stack.blocks)]
                out.append(replace(stack, name=self._called(m, stack), blocks=tuple(blocks), spellings=()))
            seen.add(m.kin)
        return out

    def _called(self, m: Member, stack: Stack) -> str:
        """The name of a member's stack among all."""
        if len({x.kin for x in self.members}) == 1:
            return stack.name
        return f"{m.kin}_layers" if stack.name == "layers" else f"{m.kin}.{stack.name}"

    def one_graph(self, command: str) -> None:
        raise FileError(f"{self.path} holds the graphs of one model, and {command} takes one graph",
                        hint="export encoder and decoder as one graph (torch.onnx.export of the whole model), or name one of the files")

    def planned(self, request: Request):
        from .jointplan import JointPlan

        return JointPlan(self, request)

    # --- more layers --------------------------------------------------------------------------------------------------

    def deepen(self, depth: Depth) -> JointlyDeepened:
        """Each graph by itself, and joined again.

        Raises:
            GraphError: the decoders have other layers.
        """
        wanted = {s.name: s.layers for s in self.stacks} | wanted_layers(self.stacks, depth)
        self._check_alike()
        found: list[Deepened | None] = []
        for m, model in zip(self.members, self.each):
            counts = {s.name: wanted[self._called(m, s)] for s in model.stacks}
            more = any(counts[s.name] != s.layers for s in model.stacks)
            found.append(deepen(model.roles, model.stacks, replace(depth, layers=counts)) if more else None)
        members = [Member(m.name, self._plain(d.source) if d else model.opened) for m, model, d in zip(self.members, self.each, found)]
        joined = join(members, by_content=False)
        source = unfold(spread(joined.source, self.registry), self.registry)
        fresh = {joined.names[m.name][t] for m, d in zip(members, found) if d for t in d.fresh if t in joined.names[m.name]}
        out = JointlyDeepened(source, {}, {}, {}, {}, {}, frozenset(fresh), max((d.eps for d in found if d), default=0.0), [], joined)
        for m, model, d in zip(self.members, self.each, found):
            self._take(out, m, model, d)
        return out

    def _plain(self, deeper: Source) -> Source:
        """A deeper graph as it would stand in a file."""
        return replace(deeper, proto=gather(fold(deeper, self.registry), deeper))

    def _check_alike(self) -> None:
        shapes: dict[str, tuple[str, list]] = {}
        for m, model in zip(self.members, self.each):
            mine = [(s.name, s.layers, s.period, s.before) for s in model.stacks]
            first, theirs = shapes.setdefault(m.kin, (m.name, mine))
            if theirs != mine:
                told = [", ".join(f"{layers} in {name}" for name, layers, *_ in found) or "none" for found in (theirs, mine)]
                raise GraphError(f"{first} and {m.name} have other layers: {told[0]}, and {told[1]}", hint="export both from one model, or grow widths only")

    def _take(self, out: JointlyDeepened, m: Member, model: Model, d: Deepened | None) -> None:
        """Note what one member's growth says, by the names of the joined graph; weights are called so already."""
        was, now = self.joined.names[m.name], out.joined.names[m.name]
        weights = {t.name for t in model.opened.proto.graph.initializer}
        old = lambda name: name if name in weights else was.get(name, f"{m.name}:{name}")  # noqa: E731
        new = lambda name: now.get(name, f"{m.name}:{name}")  # noqa: E731
        inputs = d.inputs if d else {v.name: v.name for v in m.fed}
        outputs = d.outputs if d else {v.name: v.name for v in m.graph.output}
        out.inputs.update({new(a): old(b) for a, b in inputs.items()})
        out.outputs.update({new(a): old(b) for a, b in outputs.items()})
        out.tensors.update({old(a): new(b) for a, b in d.tensors.items()} if d else {})
        out.copies.extend({new(a): new(b) for a, b in copied.items()} for copied in (d.copies if d else ()))
        for s in model.stacks:
            out.layers.setdefault(self._called(m, s), d.layers[s.name] if d else (s.layers, s.layers))
            out.places.setdefault(self._called(m, s), d.places[s.name] if d else [Place(k, False) for k in range(len(s.blocks))])


def _back(joined: Joined, name: str) -> dict[str, str]:
    """Joined name of a weight -> its name in a member."""
    m = next(m for m in joined.members if m.name == name)
    return {joined.names[name][t.name]: t.name for t in m.graph.initializer}


def _through(joined: Joined, name: str, view: Source, member: Source) -> dict[str, str] | None:
    """Joined name of a weight -> its name in a branch that is the same graph as a member; None where it is not."""
    found = twin_weights(view, member)
    return None if found is None else {joined.names[name][theirs]: mine for mine, theirs in found.items()}


def _renamed(source: Source, names: dict[str, str]) -> Source:
    """A source with other names for its initializers."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    for n in proto.graph.node:
        rename(n, names)
    for entry in (*proto.graph.initializer, *proto.graph.input, *proto.graph.value_info):
        entry.name = names.get(entry.name, entry.name)
    tensors, constant = ({names.get(name, name): x for name, x in held.items()} for held in (source.tensors, source.constant))
    return replace(source, proto=proto, tensors=tensors, constant=constant)
