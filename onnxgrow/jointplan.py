"""The growth of a model in several graphs: decided in the joined graph, written as the files of a folder that has no name yet.

The files are read back, joined, and compared with the source: as one graph, and then as a caller runs them, word by word (`turns`). Only then
does the folder get its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from .errors import FileError, GraphError, MethodError, NotEqualError
from .folders import default_folder, graphs_of, snapshot, write_folder
from .join import Joined, split, written_from
from .joint import File, JointModel
from .layout import lay_out
from .members import FILES, next_links
from .merged import merge
from .numbers import check_repairs
from .plan import Plan, Result, check_allowed
from .provenance import add_record
from .recheck import BUG, recheck
from .recipe import Recipe
from .regions import Regions, find_regions, write_regions
from .source import Source
from .write import stage

UNEQUAL = "nothing was written; please report these graphs, or grow one dim at a time to find the cause"


@dataclass(frozen=True)
class Part:
    """One file of the grown model, and how it is written.

    Args:
        weights: what its weights are called in it and in the joined graph.
    """

    file: File
    source: Source
    proto: onnx.ModelProto
    recipes: dict[str, Recipe]
    weights: dict[str, str]

    @property
    def bytes(self) -> int:
        if self.proto is self.file.source.proto:
            return sum(file.stat().st_size for file in self.file.source.files)
        return sum(lay_out(self.source, self.proto, self.recipes, self.file.name, None).sizes.values())


class JointPlan(Plan):
    """One growth of a model in several graphs, decided and printable. `write` makes a folder."""

    model: JointModel

    def _decide(self) -> None:
        super()._decide()
        self._check_caches()

    @property
    def joined(self) -> Joined:
        """The joined graph that widths are decided in."""
        return self.deeper.joined if self.deeper else self.model.joined

    def _check_caches(self) -> None:
        """MethodError where what a decoder keeps for its next step would not be what it takes in that."""
        for m in self.joined.members:
            names = self.joined.names[m.name]
            for taken, given in next_links(m).items():
                a, b = (self.axis_maps(names[name]) or () for name in (taken, given))
                if [_said(x) for x in a if not x.is_identity] != [_said(x) for x in b if not x.is_identity]:
                    raise MethodError(f"what {FILES[m.name]} keeps would not be what it takes in the next step: {given!r} and {taken!r} grow in other places",
                                      node=given, hint="grow other dims than those of its keys and values")

    def write(self, path: Path | str | None = None, **options) -> Result:
        """Write the grown folder: its graphs, their configs and what goes with them; see `Plan.write` for the options."""
        return write_folder(self, snapshot(self.model.path), Path(path) if path is not None else default_folder(self.model.path, self), **options)[0]

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
        sizes = [part.bytes for part in parts]
        check_allowed(sum(sizes), max_output_bytes)
        extra = {} if block_bytes is None else {"block_bytes": block_bytes}
        for part, size in zip(parts, sizes):
            told = progress and (lambda now, _, start=done: progress(start + now, sum(sizes)))
            with stage(part.source, part.proto, part.recipes, place / part.file.name, progress=told, threads=threads, **extra) as staged:
                staged.commit()
            done += size
        recheck(self, self._read_back(place, parts).source)
        report = self.compare(place, feeds, provider, checked) if validate else None
        if report is not None and not report.equal and self.certificate.kind == "exact":
            raise NotEqualError(f"the grown model is not equal to its source: {report.first_difference or 'outputs differ'}", hint=UNEQUAL)
        return Result(place, report, tuple(dict.fromkeys(name for r in self.recipes.values() for name in r.odd)))

    def parts(self) -> Iterator[Part]:
        """The files of the grown model; one of which nothing changes is the source's, to the byte."""
        whole, regions, members = self._plain_proto(), find_regions(self), {m.name: m for m in self.joined.members}
        for file in self.model.files:
            called = {joined: own for weights in file.weights.values() for joined, own in weights.items()}
            protos, weights, same = {}, {}, True
            for name in file.weights:
                before = self._before(name, dict(called))
                protos[name], mine = split(self.joined, whole, members[name], called)
                weights |= mine
                same &= before.SerializeToString(deterministic=True) == protos[name].SerializeToString(deterministic=True)
            if same and not any(name in self.recipes for name in weights.values()):
                yield Part(file, file.source, file.source.proto, {}, weights)
                continue
            proto = merge(file.source.proto, protos) if len(protos) > 1 else protos[name]
            recipes = {own: replace(r, origin=r.origin or name) for own, name in weights.items() if (r := self.recipes.get(name))}
            write_regions(proto, Regions(regions.ranges, {own: regions.tensors[name] for own, name in weights.items() if name in regions.tensors}))
            add_record(proto, self, file.source)
            yield Part(file, written_from(self.source, file.source, weights), proto, recipes, weights)

    def _before(self, name: str, called: dict[str, str]) -> onnx.ModelProto:
        """The graph of a member as it was, written in the same way."""
        joined = self.model.joined
        return split(joined, joined.source.proto, next(m for m in joined.members if m.name == name), called)[0]

    def _read_back(self, place: Path, parts: list[Part]) -> Joined:
        """The files that were written, joined. GraphError where a parameter that two of them had in common is none any more."""
        grown, _ = self.model.opened_folder(place)
        found: dict[str, str] = {}
        for part in parts:
            for m in grown.members:
                names = grown.names[m.name] if list(part.file.weights) == [m.name] else {}
                for own, name in part.weights.items():
                    if own in names and found.setdefault(name, names[own]) != names[own]:
                        raise GraphError(f"{part.file.name} holds another {name!r} than the graphs before it", node=own, hint=BUG)
        return grown

    def compare(self, grown: Path, feeds: dict[str, np.ndarray] | None = None, provider: str | None = None,
                progress: Callable[[int, int], None] | None = None):
        """Run source and grown model side by side, as one graph and then word by word; see `Plan.compare`.

        Args:
            grown: a folder with the same files.
            feeds: inputs by their names in the joined graph, as `encoder:input_ids`.
        """
        from .turns import steps_equal
        from .validate import validate

        if not graphs_of(Path(grown)):
            raise FileError(f"{grown} holds no graphs like those of {self.model.path}", hint=f"give a folder with {', '.join(f.name for f in self.model.files)}")
        joined, files = self.model.opened_folder(Path(grown))
        d, s = self.decisions, self.model.roles.structure
        report = validate(s, self.model.roles, self.model.opened, joined.source, d.inputs, d.outputs, feeds=feeds, provider=provider, seed=self.request.seed,
                          axis_map=self.axis_maps, twins=self.twins, progress=progress)
        return steps_equal(self, joined, files, report, feeds, provider)


def _said(axis) -> tuple:
    """What an axis map says, to be compared."""
    return axis.source.tobytes(), axis.fill.tobytes(), axis.share
