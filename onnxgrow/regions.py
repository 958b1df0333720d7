"""Which entries of a grown file are old: a record in its metadata, so that the file alone says what its source brought and what is new.

An entry is old where it is old along every axis. Of copies of one old entry the first counts as old, the others as grown; an entry that was
scaled by a repair, or is the first share of an old one, stays old. Old blocks whose norm became plain are old, inserted ones grown as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx

from .axismap import AxisMap, Fill
from .errors import FileError
from .roles import FLOATS

if TYPE_CHECKING:
    from .plan import Plan

REGIONS = "onnxgrow.regions"  # metadata key of a grown file
GROWN = "grown"  # of a tensor that has no old entry
AGAIN = "grow the model again, and read the regions before other tools change the file"

Runs = tuple[tuple[int, int], ...]  # [start, stop), in order


@dataclass(frozen=True)
class Regions:
    """The old entries of each float initializer, as the last growth left them.

    Attributes:
        ranges: runs of old indices along an axis; axes that are alike share them.
        tensors: initializer -> for each axis the number of its ranges, None where it is wholly old; or GROWN. What is wholly old is not listed.
    """

    ranges: tuple[Runs, ...]
    tensors: dict[str, tuple[int | None, ...] | str]

    def is_grown(self, name: str) -> bool:
        """Whether nothing in an initializer is old: it belongs to an inserted block, or the source has none like it."""
        return self.tensors.get(name) == GROWN

    def axes(self, name: str, shape: tuple[int, ...]) -> list[np.ndarray]:
        """For each axis of an initializer, bool [size]: where it is old. All False in a grown tensor.

        Raises:
            FileError: the tensor has another shape than in the file that was written.
        """
        if self.is_grown(name):
            return [np.zeros(size, bool) for size in shape]
        entry = self.tensors.get(name, (None,) * len(shape))
        if len(entry) != len(shape) or any(k is not None and self._end(k) > size for k, size in zip(entry, shape)):
            raise FileError(f"the record {REGIONS} does not fit a tensor of shape {list(shape)}", node=name, hint=AGAIN)
        return [np.ones(size, bool) if k is None else _mask(self.ranges[k], size) for k, size in zip(entry, shape)]

    def _end(self, k: int) -> int:
        return max((stop for _, stop in self.ranges[k]), default=0)

    def mask(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Where an initializer is old, bool of its shape; FileError as in `axes`."""
        out = np.full(shape, not self.is_grown(name))
        for k, line in enumerate(self.axes(name, shape)):
            out &= line.reshape([-1 if k == j else 1 for j in range(len(shape))])
        return out

    def among(self, names: Iterable[str]) -> Regions:
        """Those of some initializers."""
        return Regions(self.ranges, {name: entry for name in names if (entry := self.tensors.get(name)) is not None})

    def to_json(self) -> str:
        """One line of JSON; the same growth gives the same text."""
        return json.dumps({"ranges": self.ranges, "tensors": self.tensors}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Regions:
        """The regions behind `to_json`; FileError where the text is something else."""
        try:
            held = json.loads(text)
            ranges = tuple(tuple((int(start), int(stop)) for start, stop in runs) for runs in held["ranges"])
            if any(not 0 <= start <= stop for runs in ranges for start, stop in runs):
                raise ValueError("a range does not begin at 0 or later and end behind")
            tensors = {name: entry if entry == GROWN else tuple(None if k is None else range(len(ranges))[k] for k in entry)  # no number without ranges
                       for name, entry in held["tensors"].items()}
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
            raise FileError(f"the record {REGIONS} is damaged: {error}", hint=AGAIN) from None
        return cls(ranges, tensors)


def read_regions(proto: onnx.ModelProto) -> Regions | None:
    """The regions in a model's metadata; None where it was not grown, or by a version that wrote none. Asks for no weights.

    Raises:
        FileError: the record is damaged, or the initializers have other names or shapes than when it was written.
    """
    text = next((p.value for p in proto.metadata_props if p.key == REGIONS), None)
    if text is None:
        return None
    regions, shapes = Regions.from_json(text), {t.name: tuple(t.dims) for t in proto.graph.initializer}
    for name in regions.tensors:
        if name not in shapes:
            raise FileError(f"the record {REGIONS} names an initializer that the graph does not have", node=name, hint=AGAIN)
        regions.axes(name, shapes[name])
    return regions


def write_regions(proto: onnx.ModelProto, regions: Regions) -> None:
    """Put regions into a model's metadata, in the place of those of an earlier growth."""
    held = next((p for p in proto.metadata_props if p.key == REGIONS), None) or proto.metadata_props.add(key=REGIONS)
    held.value = regions.to_json()


def find_regions(plan: Plan) -> Regions:
    """What a plan leaves old, by the names of the grown file."""
    numbers, tensors = {}, {}
    for name, maps in _maps(plan):
        found = [_runs(m) for m in maps or ()]
        if maps is None:
            tensors[name] = GROWN
        elif any(runs is not None for runs in found):
            tensors[name] = tuple(None if runs is None else numbers.setdefault(runs, len(numbers)) for runs in found)
    return Regions(tuple(numbers), tensors)


def _maps(plan: Plan) -> Iterator[tuple[str, tuple[AxisMap, ...] | None]]:
    """The maps of each float initializer of the grown graph: none where it is as it was, None where it is grown as a whole."""
    added, inserted, continued = plan.decisions.applied.added, _inserted(plan), _continued(plan)
    known = {t.name for t in plan.source.proto.graph.initializer} | continued.keys()
    for t in plan.decisions.proto.graph.initializer:
        if t.data_type not in FLOATS:
            continue
        recipe = plan.recipes.get(t.name)
        origin, maps = (recipe.origin or t.name, recipe.axes) if recipe else (t.name, continued.get(t.name, ()))
        alien = origin not in known and prod(t.dims) > 1  # a single number was computed before, and is written down now
        yield t.name, None if alien or t.name in added or origin in inserted else maps


def _inserted(plan: Plan) -> frozenset[str]:
    """Initializers of inserted blocks by their name in the deeper graph, and the scalars that gate them."""
    if plan.deeper is None:
        return frozenset()
    renamed = plan.deeper.tensors
    old = {renamed.get(t.name, t.name) for t in plan.model.source.proto.graph.initializer}
    return plan.deeper.fresh | {t.name for t in plan.source.proto.graph.initializer if not t.dims and t.name not in old}


def _continued(plan: Plan) -> dict[str, tuple[AxisMap, ...]]:
    """What was computed while planning, and so has no recipe: tables that go on by their rule, and constants that became initializers.

    Where one was split, a part has a new name: the one by which its reader now asks for it.
    """
    d, graph = plan.decisions, plan.roles.structure.graph
    readers, out = {n.output[0]: n for n in d.proto.graph.node if n.output}, {}
    for tensor in [*d.edits.tables, *(t for t in d.recipes if graph.weights[t] in graph.constant_nodes)]:
        node, slot = graph.users[tensor][0]
        if node.outputs[0] in readers:
            name = readers[node.outputs[0]].input[slot]
            out[graph.alias.get(name, name)] = plan.axis_maps(tensor)
    return out


def _runs(m: AxisMap) -> Runs | None:
    """The runs of old indices of an axis; None where it is wholly old."""
    kept = np.flatnonzero(m.fill == Fill.OLD)
    _, first = np.unique(m.source[kept], return_index=True)
    old = np.zeros(m.new, bool)
    old[kept[first]] = True
    edges = np.flatnonzero(np.diff(np.r_[False, old, False]))
    return None if old.all() else tuple(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _mask(runs: Runs, size: int) -> np.ndarray:
    """bool [size], True inside of the runs."""
    out = np.zeros(size, bool)
    for start, stop in runs:
        out[start:stop] = True
    return out
