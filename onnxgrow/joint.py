"""A model in several graphs (`members`), grown as one: joined for the plan and the proof, apart again in the files.

More layers come first, in each graph by itself, since blocks are found there; then the deeper graphs are joined, and all widths are decided
in one plan. The files are written in a folder that has no name yet, read back, joined, and compared with the source as one graph and step by
step as a caller runs them (`turns`); only then does the folder get its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from .blocks import Block, Stack
from .deepen import Deepened, deepen
from .errors import FileError, GraphError, MethodError, NotEqualError, SizeError, UsageError
from .folders import graphs_of, write_folder
from .gather import gather
from .graph import rename
from .inline import inline
from .join import Joined, alike, join, split, written_from
from .layout import lay_out
from .members import FILES, Member, next_links
from .model import Model, Plan, Result
from .numbers import check_repairs
from .placement import Place, wanted_layers
from .provenance import add_record
from .recheck import BUG, recheck
from .recipe import Recipe
from .regions import Regions, find_regions, write_regions
from .request import Depth, Request
from .source import Source, open_source
from .structure import Structure
from .subgraphs import spread
from .understood import understood
from .unfold import fold, unfold
from .write import stage

TURNS = 2  # how often tokens are fed, one behind the other, where a graph goes on from what another one has kept


@dataclass(frozen=True)
class JointlyDeepened(Deepened):
    """Deeper graphs, joined."""

    joined: Joined | None = None


@dataclass(frozen=True)
class Part:
    """One file of the grown model: its graph, and how it is written."""

    member: Member
    opened: Source
    source: Source
    proto: onnx.ModelProto
    recipes: dict[str, Recipe]
    weights: dict[str, str]  # its own names -> those of the joined graph

    @property
    def file(self) -> str:
        return FILES[self.member.name]


class JointModel(Model):
    """A model in several graphs. `roles`, sizes and dims are those of all graphs together.

    Args:
        path: a folder with an encoder and its decoders.
        rules: files with rules for operators that onnxgrow does not know.
    Raises:
        FileError: the graphs do not belong together.
    """

    def __init__(self, path: str | os.PathLike, rules: tuple[str, ...] = (), dequantize: bool = False):
        if dequantize:
            raise UsageError("--dequantize takes one graph, and this model has several", hint="give its float form, as it was exported")
        self._begin(rules)
        self.path, files = Path(path), graphs_of(Path(path))
        with understood():
            self.joined: Joined = join([Member(name, open_source(file)) for name, file in files.items()])
            self._read(self.joined.source)
        turning(self.roles.structure)

    @property
    def members(self) -> tuple[Member, ...]:
        """The graphs, as they are in the files."""
        return tuple(self.joined.members)

    @cached_property
    def each(self) -> list[Model]:
        """The graphs by themselves, their weights called as in the joined one."""
        return [Model.of(_renamed(m.source, {t.name: self.joined.names[m.name][t.name] for t in m.graph.initializer}), self.rules) for m in self.members]

    @cached_property
    def stacks(self) -> list[Stack]:
        """The repeated layers; those of both decoders once."""
        graph = self.roles.structure.graph
        out = []
        for m, model in zip(self.members, self.each):
            for stack in model.stacks if m.name == m.kin else ():
                index = model.roles.structure.graph.by_index
                where = [[graph.makers.get(f"{m.name}:{index[i].outputs[0]}") for i in sorted(b.nodes)] for b in stack.blocks]
                blocks = [Block(frozenset(n.index for n in nodes if n is not None), f"{m.name}:{b.enters}", f"{m.name}:{b.leaves}", b.layers)
                          for nodes, b in zip(where, stack.blocks)]
                out.append(replace(stack, name=self._called(m, stack), blocks=tuple(blocks), spellings=()))
        return out

    def _called(self, m: Member, stack: Stack) -> str:
        """The name of a member's stack among all."""
        if len({x.kin for x in self.joined.members}) == 1:
            return stack.name
        return f"{m.kin}_layers" if stack.name == "layers" else f"{m.kin}.{stack.name}"

    def planned(self, request: Request) -> JointPlan:
        return JointPlan(self, request)

    def deepen(self, depth: Depth) -> JointlyDeepened:
        """Each graph by itself, and joined again.

        Raises:
            GraphError: both decoders have other layers.
        """
        wanted = {s.name: s.layers for s in self.stacks} | wanted_layers(self.stacks, depth)
        self._check_twins()
        found = []
        for m, model in zip(self.members, self.each):
            counts = {s.name: wanted[self._called(m, s)] for s in model.stacks}
            more = any(counts[s.name] != s.layers for s in model.stacks)
            found.append(deepen(model.roles, model.stacks, replace(depth, layers=counts)) if more else None)
        return self._together(found)

    def _check_twins(self) -> None:
        shapes: dict[str, list] = {}
        for m, model in zip(self.members, self.each):
            mine = [(s.name, s.layers, s.period, s.before) for s in model.stacks]
            if shapes.setdefault(m.kin, mine) != mine:
                told = ["; ".join(f"{name} {layers}" for name, layers, *_ in x) or "none" for x in (shapes[m.kin], mine)]
                raise GraphError(f"{FILES[m.kin]} and {FILES[m.name]} have other layers ({told[0]} and {told[1]})", hint="export both from one model, or grow widths only")

    def _together(self, found: list[Deepened | None]) -> JointlyDeepened:
        members = []
        for m, model, d in zip(self.members, self.each, found):
            source = d.source if d else model.opened
            source = replace(source, proto=gather(fold(source, self.registry), source)) if d else source
            own = {joined: name for name, joined in self.joined.names[m.name].items() if joined in {t.name for t in model.opened.proto.graph.initializer}}
            members.append(Member(m.name, source, own | {t.name: t.name.partition(":")[2] for t in source.proto.graph.initializer if t.name not in own and ":" in t.name}))
        joined = join(members, by_content=False)
        out = JointlyDeepened(unfold(spread(inline(joined.source, self.registry), self.registry), self.registry), {}, {}, {}, {}, {}, frozenset(), 0.0, {}, joined)
        for m, model, d in zip(self.members, self.each, found):
            self._take(out, m, model, d, joined.names[m.name])
        return replace(out, fresh=frozenset(joined.names[m.name][t] for m, d in zip(members, found) if d for t in d.fresh if t in joined.names[m.name]),
                       eps=max(d.eps for d in found if d) if any(found) else 0.0)

    def _take(self, out: JointlyDeepened, m: Member, model: Model, d: Deepened | None, names: dict[str, str]) -> None:
        """Note what one member's growth says, by the names of the joined graph."""
        was = self.joined.names[m.name]
        old = lambda name: was.get(name, name if ":" in name else f"{m.name}:{name}")  # noqa: E731 (weights are called as in the joined graph)
        new = lambda name: names.get(name, f"{m.name}:{name}")  # noqa: E731
        inputs, outputs = (dict.fromkeys([]), {}) if d is None else (d.inputs, d.outputs)
        if d is None:
            inputs, outputs = {v.name: v.name for v in m.fed}, {v.name: v.name for v in m.graph.output}
        out.inputs.update({new(a): old(b) for a, b in inputs.items()})
        out.outputs.update({new(a): old(b) for a, b in outputs.items()})
        out.tensors.update({old(a): new(b) for a, b in d.tensors.items()} if d else {})
        out.twins.update({new(a): new(b) for a, b in d.twins.items()} if d else {})
        for s in model.stacks if m.name == m.kin else ():
            out.layers[self._called(m, s)] = d.layers[s.name] if d else (s.layers, s.layers)
            out.places[self._called(m, s)] = d.places[s.name] if d else [Place(k, False) for k in range(len(s.blocks))]


def turning(s: Structure) -> None:
    s.turns = TURNS


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


class JointPlan(Plan):
    """The growth of a model in several graphs. `write` makes a folder."""

    model: JointModel

    def _decide(self) -> None:
        super()._decide()
        self._check_caches()

    @property
    def joined(self) -> Joined:
        """The joined graph that widths are decided in."""
        return self.deeper.joined if self.deeper else self.model.joined

    def _check_caches(self) -> None:
        """MethodError where what a decoder keeps for its next step would mean something else than what it takes."""
        for m in self.joined.members:
            names = self.joined.names[m.name]
            for taken, given in next_links(m).items():
                a, b = (self.axis_maps(names[name]) or () for name in (taken, given))
                if [_entries(x) for x in a if not x.is_identity] != [_entries(x) for x in b if not x.is_identity]:
                    raise MethodError(f"what {FILES[m.name]} keeps as {given!r} would not be what it takes as {taken!r} in the next step", node=given,
                                      hint="grow other dims than those of its keys and values")

    def write(self, path: str | os.PathLike | None = None, **options) -> Result:
        """Write the grown folder: its graphs, their configs and what goes with them; see `Plan.write` for the options."""
        return write_folder(self, self.model.path, Path(path) if path is not None else self.default_folder(), **options)[0]

    def default_folder(self) -> Path:
        """Beside the source, called after the sizes asked for."""
        from .folders import default_folder

        return default_folder(self.model.path, self)

    def write_into(self, place: Path, *, validate: bool = True, feeds: dict[str, np.ndarray] | None = None, provider: str | None = None,
                   progress: Callable[[int, int], None] | None = None, checked: Callable[[int, int], None] | None = None, threads: int = 2,
                   block_bytes: int | None = None, max_output_bytes: int | None = None) -> Result:
        """Write the grown graphs into a folder that is there and has no name yet.

        Raises:
            SizeError: they would be larger than allowed.
            NotEqualError: source and result differ though the certificate is exact.
        """
        check_repairs(self)
        parts, done = list(self.parts()), 0
        sizes = [self._bytes(part) for part in parts]
        if max_output_bytes is not None and sum(sizes) > max_output_bytes:
            raise SizeError(f"the grown model needs {sum(sizes)} bytes, and {max_output_bytes} are allowed",
                            hint="ask for smaller sizes, or allow more with --max-output-bytes")
        extra = {} if block_bytes is None else {"block_bytes": block_bytes}
        for part, size in zip(parts, sizes):
            told = progress and (lambda now, _, start=done: progress(start + now, sum(sizes)))
            with stage(part.source, part.proto, part.recipes, place / part.file, progress=told, threads=threads, **extra) as staged:
                staged.commit()
            done += size
        grown = self._read_back(place, parts)
        recheck(self, grown.source)
        report = self.compare(grown, feeds, provider, checked) if validate else None
        if report is not None and not report.equal and self.certificate.kind == "exact":
            raise NotEqualError(f"the grown model is not equal to its source: {report.first_difference or 'outputs differ'}",
                                hint="nothing was written; please report these graphs, or grow one dim at a time to find the cause")
        return Result(place, report, tuple(dict.fromkeys(name for r in self.recipes.values() for name in r.odd)))

    @staticmethod
    def _bytes(part: Part) -> int:
        if part.proto is part.opened.proto:
            return sum(file.stat().st_size for file in part.opened.files)
        return sum(lay_out(part.source, part.proto, part.recipes, part.file, None).sizes.values())

    def parts(self) -> Iterator[Part]:
        """The files of the grown model; a graph of which nothing changes is the source's, to the byte."""
        whole, regions = self._plain_proto(), find_regions(self)
        for m, was in zip(self.joined.members, self.model.joined.members):
            proto, weights = split(self.joined, whole, m)
            recipes = {own: replace(r, origin=r.origin or name) for own, name in weights.items() if (r := self.recipes.get(name))}
            if not recipes and proto.SerializeToString(deterministic=True) == was.source.proto.SerializeToString(deterministic=True):
                yield Part(m, was.source, was.source, was.source.proto, {}, weights)
                continue
            entries = {own: regions.tensors[name] for own, name in weights.items() if name in regions.tensors}
            write_regions(proto, Regions(regions.ranges, entries))
            add_record(proto, self, was.source)
            yield Part(m, was.source, written_from(self.source, was.source, weights), proto, recipes, weights)

    def _read_back(self, place: Path, parts: list[Part]) -> Joined:
        """The files that were written, joined; a parameter that two of them had in common must be one in these as well."""
        grown = join([Member(part.member.name, open_source(place / part.file)) for part in parts])
        for part in parts:
            for own, name in part.weights.items():
                twins = [other for other in parts if name in other.weights.values() and other is not part]
                for other in twins:
                    theirs = next(n for n, x in other.weights.items() if x == name)
                    if grown.names[part.member.name][own] != grown.names[other.member.name][theirs]:
                        raise GraphError(f"{part.file} and {other.file} hold another {name!r}", node=own, hint=BUG)
        return grown

    def compare(self, grown: Path | Joined, feeds: dict[str, np.ndarray] | None = None, provider: str | None = None,
                progress: Callable[[int, int], None] | None = None):
        """Run source and grown model side by side, as one graph and then step by step; see `Plan.compare`.

        Args:
            grown: a folder.
            feeds: inputs by their names in the joined graph, as `encoder:input_ids`.
        """
        from .turns import steps_equal
        from .validate import validate

        if not isinstance(grown, Joined):
            files = graphs_of(grown)
            if set(files) != {m.name for m in self.joined.members}:
                raise FileError(f"{grown} does not hold the graphs of the source: {', '.join(FILES[m.name] for m in self.joined.members)}",
                                hint="give a folder with the same files")
            grown = join([Member(name, open_source(file)) for name, file in files.items()])
        d, s = self.decisions, self.model.roles.structure
        report = validate(s, self.model.roles, self.model.opened, grown.source, d.inputs, d.outputs, feeds=feeds, provider=provider, seed=self.request.seed,
                          axis_map=self.axis_maps, twins=self.twins, progress=progress)
        return steps_equal(self, grown, report, feeds, provider) if report.equal else report


def _entries(axis) -> tuple:
    """What an axis map says, to be compared."""
    return axis.source.tobytes(), axis.fill.tobytes(), axis.share


def one_graph(model: Model, what: str) -> None:
    """FileError where a command needs a single graph."""
    if isinstance(model, JointModel):
        raise FileError(f"{model.path} holds the graphs of one model, and {what} takes one graph",
                        hint="export encoder and decoder as one graph (torch.onnx.export of the whole model), or name one of the files")
