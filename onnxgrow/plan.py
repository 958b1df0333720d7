"""One growth: decided, printed, written, and compared with its source."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from .architecture import count_parameters
from .axismap import AxisMap
from .certificate import Certificate
from .constants import TwoSizes
from .decide import Decisions, decide
from .deepen import Deepened
from .depthplan import depth_certificate, random_blocks
from .errors import NotEqualError, SizeError
from .folders import model_file
from .gather import gather
from .graph import build
from .layout import lay_out
from .notebook import shown_as
from .numbers import check_repairs
from .provenance import add_record
from .recheck import recheck
from .recipe import Recipe
from .regions import find_regions, write_regions
from .request import Request
from .roles import Roles, find_roles
from .runtime import norms_lose_digits
from .source import Source, open_source
from .structure import tie
from .tolerance import Precision, precision
from .twins import Twins
from .understood import understood
from .unfold import fold
from .unshare import Unshared, branching, share, unshare
from .write import stage

if TYPE_CHECKING:
    from .model import Model

DEQUANTIZED = "the function kept is that of the float model behind the quantized file: weights as the runtime reads them, activations not rounded (--dequantize)"


@dataclass(frozen=True)
class Result:
    """A written model.

    Attributes:
        path: the file that was written.
        report: what its validation showed, a `report.Report`; None where that was skipped.
        not_finite: the weights that were changed and hold NaN or infinity, by their name in the source; those that were only copied were not looked at.
    """

    path: Path
    report: object | None
    not_finite: tuple[str, ...] = ()
    _repr_html_ = shown_as("result")


class Plan:
    """One growth, decided and printable, as `Model.plan` makes it. `certificate` says what it promises; `write` carries it out.

    More layers come first: `source` and `roles` are those of the deeper graph, in which all widths are decided.
    """

    def __init__(self, model: Model, request: Request):
        self.model, self.request = model, request
        with understood():
            self.deeper: Deepened | None = model.deepen(request.depth) if request.depth else None
            self.source: Source = self.deeper.source if self.deeper else model.plain
            self.roles: Roles = find_roles(tie(build(self.source), model.registry)) if self.deeper else model.roles
            self._decide()

    _repr_html_ = shown_as("plan")

    def _decide(self) -> None:
        """Plan; where one computed size would have to be two, again on a graph in which each use has its own."""
        now = Unshared(self.source)
        while True:
            try:
                self.decisions: Decisions = decide(self.roles, self.request, self.model.registry)
                break
            except TwoSizes as problem:
                graph = self.roles.structure.graph
                node = branching(graph, problem.place)
                if node is None:
                    raise
                now = unshare(now, graph, node)
                self.source, self.roles = now.source, find_roles(tie(build(now.source), self.model.registry))
        share(self.decisions.proto, now.copies)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """How each initializer that is no plain copy is made, by name in the grown file."""
        found = self.decisions.applied.recipes
        return random_blocks(self.deeper, self.decisions.proto, found, self.request) if self.deeper else found

    @cached_property
    def certificate(self) -> Certificate:
        """What is promised for widths and depth together."""
        widths = self.decisions.certificate
        both = widths.joined(depth_certificate(self.deeper, self.request.depth)) if self.deeper else widths
        both = replace(both, rounding=self.precision.rounding) if self.sizes else both
        return replace(both, reasons=(DEQUANTIZED, *both.reasons)) if self.model.dequantized else both

    @cached_property
    def twins(self) -> Twins:
        """Which inputs and outputs of the source belong to which of the grown model."""
        d, graph = self.deeper, self.model.roles.structure.graph
        fed, given = {v.name for v in graph.fed}, set(graph.given)
        if d is None:
            return Twins.same([v.name for v in graph.fed], graph.given)
        return Twins({n: t for n, t in d.inputs.items() if t in fed}, {n: t for n, t in d.outputs.items() if t in given}, d.tensors)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Role or dim name -> (old, new), of those that change."""
        deep = {n: pair for n, pair in self.deeper.layers.items() if pair[0] != pair[1]} if self.deeper else {}
        return deep | {n: (self.roles.size(n), new) for n, new in self.decisions.target.roles.items() if new != self.roles.size(n)}

    @cached_property
    def new_parameters(self) -> int:
        """How many parameters are added, counted as `Architecture.parameters` counts them; `dead_parameters` are among them."""
        return self.decisions.new_parameters + (count_parameters(self.roles) - self.model.parameters if self.deeper else 0)

    @property
    def dead_parameters(self) -> int:
        """New parameters that gradient can never reach, because zero meets zero."""
        return self.decisions.dead_parameters

    @property
    def asleep_parameters(self) -> int:
        """How many parameters belong to new experts; no gradient reaches them before their scores are raised."""
        return sum(self.decisions.asleep.values())

    def lines(self) -> list[str]:
        """The whole growth, for people."""
        from .describe import plan_lines

        return plan_lines(self)

    def to_json(self) -> dict:
        """The whole growth as a document (docs/json.md)."""
        from .describe import plan_json

        return plan_json(self)

    def default_path(self) -> Path:
        """`model-h1024.onnx` beside the source, from the sizes asked for."""
        short = {"hidden": "h", "heads": "n", "kv_heads": "k", "head_dim": "d", "ffn": "f", "layers": "l", "vocab": "v", "positions": "p", "experts": "e"}
        asked = self.request.sizes | (self.request.depth.layers if self.request.depth else {})
        parts = [f"{short.get(n, ''.join(c if c.isalnum() else '_' for c in n) + '_')}{size}" for n, size in asked.items()]
        return self.model.path.with_name("-".join([self.model.path.stem, *(parts or ["copy"])]) + ".onnx")

    def axis_maps(self, tensor: str) -> tuple[AxisMap, ...] | None:
        """Where the old entries of any tensor of the graph land, one map for each axis; None for tensors without traced axes.

        Args:
            tensor: by its name in the source; after more layers, in the deeper graph.
        """
        return self.decisions.maps(tensor)

    def write(self, path: str | os.PathLike | None = None, *, validate: bool = True, feeds: dict[str, np.ndarray] | None = None,
              provider: str | None = None, overwrite: bool = False, progress: Callable[[int, int], None] | None = None,
              checked: Callable[[int, int], None] | None = None, threads: int = 2, block_bytes: int | None = None,
              max_output_bytes: int | None = None) -> Result:
        """Write the grown model; it gets its name only when it has passed validation.

        Args:
            path: target; None takes `default_path()`.
            validate: run source and result side by side before the result gets its name.
            feeds: inputs to validate with, by name; None makes them.
            provider: "cuda" or "cpu"; None takes CUDA where there is a device.
            overwrite: replace an existing target.
            progress: called with (bytes written, bytes in all).
            checked: called with (runs done, runs in all) while the result is validated.
            threads: for writing; the bytes do not depend on it.
            block_bytes: how much of a weight is in memory at a time; None takes the usual block.
            max_output_bytes: the most that the files of the result may have together; None: as the disk has room.
        Raises:
            SizeError: the result is larger than that; nothing is written.
            NotEqualError: source and result differ though the certificate is exact; nothing is left behind.
            FileError: the target exists, is the source, or cannot be written.
        """
        target = Path(path) if path is not None else self.default_path()
        extra = {} if block_bytes is None else {"block_bytes": block_bytes}
        check_repairs(self)
        if max_output_bytes is not None:
            self._check_bytes(self._plain_proto(), target.name, max_output_bytes)  # before the source is read, whose hash is in the record
        proto = self.proto()
        if max_output_bytes is not None:
            self._check_bytes(proto, target.name, max_output_bytes)
        with stage(self.source, proto, self.recipes, target, progress=progress, threads=threads,
                   overwrite=overwrite, unchanged=self.model.opened.proto, **extra) as staged:
            recheck(self, open_source(staged.path))
            report = self.compare(staged.path, feeds, provider, checked) if validate else None
            if report is not None and not report.equal and self.certificate.kind == "exact":
                raise NotEqualError(f"the grown model is not equal to its source: {report.first_difference or 'outputs differ'}",
                                    hint=_unequal_hint(self.source, report.provider))
            staged.commit()
        return Result(target, report, tuple(dict.fromkeys(name for r in self.recipes.values() for name in r.odd)))

    def _check_bytes(self, proto: onnx.ModelProto, name: str, most: int) -> None:
        check_allowed(sum(lay_out(self.source, proto, self.recipes, name, None).sizes.values()), most)

    def proto(self) -> onnx.ModelProto:
        """The grown graph without its large weights; records of the growth and of what is old are added where something grows."""
        proto = self._plain_proto()
        if not (self.decisions.target.sizes or self.deeper):
            return proto
        write_regions(proto, find_regions(self).among(t.name for t in proto.graph.initializer))
        add_record(proto, self, self.model.opened)
        return proto

    def _plain_proto(self) -> onnx.ModelProto:
        with understood():
            return gather(fold(replace(self.source, proto=self.decisions.proto), self.model.registry), self.source, self.recipes)

    def compare(self, grown: Path, feeds: dict[str, np.ndarray] | None = None, provider: str | None = None,
                progress: Callable[[int, int], None] | None = None):
        """Run source and grown model side by side in ONNX Runtime; returns a `report.Report`.

        Args:
            grown: a file, or a folder with one in it; its weights need not be those that this plan writes.
            feeds: inputs of the source, by name; None makes some at several sizes.
            provider: "cuda" or "cpu"; None takes CUDA where there is a device.
            progress: called with (runs done, runs in all).
        Raises:
            UsageError: the given inputs do not fit.
            GraphError: the source runs on none of the inputs, or ONNX Runtime refuses the grown model.
        """
        from .validate import distance, validate

        d, s = self.decisions, self.model.roles.structure
        report = validate(s, self.model.roles, self.model.opened, model_file(Path(grown)), d.inputs, d.outputs, feeds=feeds, provider=provider,
                          seed=self.request.seed, axis_map=self.axis_maps, twins=self.twins, progress=progress)
        if self.model.dequantized:
            gap = distance(s, self.model.roles, (self.model.path, self.model.opened), feeds=feeds, provider=provider, seed=self.request.seed)
            report = replace(report, dequantized=gap)
        return report

    @cached_property
    def precision(self) -> Precision:
        """The types that the function passes through; they decide what "exact" is up to, and the tolerance of a comparison."""
        return precision(self.model.roles.structure)


def _unequal_hint(source: Source, provider: str) -> str:
    if norms_lose_digits(source.proto, provider):
        return ("nothing was written; this onnxruntime adds up what a LayerNormalization reads one by one on the CPU, and loses digits where many entries are alike, "
                "which version 1.27 ended: pip install -U onnxruntime-gpu, or compare on a GPU, or take it as it is (--no-validate)")
    if any(n.op_type in ("MatMulInteger", "QLinearMatMul") for n in source.proto.graph.node):
        return ("nothing was written; a CPU without VNNI cuts off sums of uint8 times int8, so that they depend on the order of entries: "
                "quantize with reduce_range, or grow the float model (--dequantize)")
    return "nothing was written; please report this graph, or grow one dim at a time to find the cause"


def check_allowed(needed: int, most: int | None) -> None:
    """SizeError where files would have more bytes than are allowed; None: any number."""
    if most is not None and needed > most:
        raise SizeError(f"the grown model needs {needed} bytes, and {most} are allowed", hint="ask for smaller sizes, or allow more with --max-output-bytes")
