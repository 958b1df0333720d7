"""Preserved in fact: source and grown model side by side in ONNX Runtime, on the same inputs.

Whatever the source takes as input is scattered through the maps of the growth, whatever the grown model gives is read back through
them. Both models run one after the other, so a device has to hold only one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from .chance import random_outputs
from .compare import Maps, compare, fits, grown_input, over_all
from .errors import GraphError, UsageError
from .feeds import Case, cases, given
from .inputs import FLOATS, fixed_sizes
from .numbers import not_finite
from .report import CaseResult, Report
from .roles import Roles
from .runtime import Session, open_session, pick_provider
from .source import Source, open_source
from .structure import Structure
from .tolerance import precision
from .trace import AxisMaps, first_difference
from .twins import Twins

NO_NUMBERS = "the source gives nothing but NaN or inf"
NO_RANK = ("hidden", "heads", "kv_heads", "head_dim", "v_head_dim", "ffn")  # an argmax along these means nothing
Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]


def validate(structure: Structure, roles: Roles, source: Path | Source, grown: Path | Source, inputs: dict[str, Maps], outputs: dict[str, Maps], *,
             tolerance: float | None = None, feeds: Arrays | None = None, provider: str | None = None, seed: int = 0,
             axis_map: AxisMaps | None = None, twins: Twins | None = None, progress: Progress | None = None) -> Report:
    """Run both models and compare every output.

    Args:
        inputs, outputs: name in the grown model -> AxisMap per axis (`Decisions.inputs`, `Decisions.outputs`).
        tolerance: largest difference, relative to the largest value of an output, that counts as equal; None: as the source's types allow.
        feeds: the user's own inputs; None makes some at several sizes.
        provider: "cpu", "cuda" or None (CUDA where there is a device).
        axis_map: maps of intermediate tensors by name in the grown model, to name the first that differs (`Decisions.maps`).
        twins: what corresponds to what where names differ; None: names are the same.
        progress: called with (runs done, runs in all), one of either model for each set of inputs.
    Raises:
        UsageError: the given inputs do not fit.
        GraphError: the source runs on none of the inputs, or ONNX Runtime refuses the grown model.
    """
    twins = twins or Twins.same([v.name for v in structure.graph.fed], structure.graph.given)
    pair = _Pair(source, grown, inputs, outputs, twins, pick_provider(provider))
    tried = cases(structure, roles, seed) if feeds is None else [given(structure, feeds)]
    step = _Steps(progress, 2 * len(tried))
    answers, skipped = pair.run_source(tried, step)
    tolerance = precision(structure).tolerance(bool(pair.replaced)) if tolerance is None else tolerance
    ran = [case for case in tried if case.label in answers]
    if not ran:
        if set(skipped.values()) == {NO_NUMBERS}:
            _refuse_nan(pair.source, len(skipped))
        _refuse(skipped, own=feeds is not None)
    results = pair.run_grown(ran, answers, {name for name in structure.graph.given if _is_ranked(structure, roles, name)}, step)
    fixed = {name: f"{size} only, other sizes do not fit at {node.label!r}" for name, (size, node) in structure.symbols.pinned.items()}
    report = Report(pair.where, tolerance, seed, results, skipped, {}, fixed=fixed, only_at=fixed_sizes(structure), replaced=pair.replaced)
    if drawn := random_outputs(structure):
        report = _without(report, drawn, "every output is drawn at random")
    if report.equal:
        return report
    report = _without(report, pair.unstable(_smallest_failing(report, ran), tolerance), "two runs of the source differ in every output")
    if report.equal:
        return report
    case = _smallest_failing(report, ran)
    found = first_difference(roles, (pair.source, pair.grown), (case.feeds, pair.grown_feeds(case)), pair.open, tolerance,
                             partial(_maps_of, outputs, axis_map), twins)
    return replace(report, first_difference=found and f"{found}, with {case.label}")


def distance(structure: Structure, roles: Roles, models: tuple[Path | Source, Path | Source], *, feeds: Arrays | None = None,
             provider: str | None = None, seed: int = 0) -> float | None:
    """The largest relative difference between two models with the same inputs and outputs; None where they run on no inputs together."""
    tried = cases(structure, roles, seed) if feeds is None else [given(structure, feeds)]
    sessions, found = [open_session(m, pick_provider(provider)) for m in models], []
    for case in tried:
        with suppress(GraphError):
            first, second = (session.run(case.feeds) for session in sessions)
            found += [compare(name, a, second[name], ()).max_rel for name, a in first.items() if _has_numbers(a)]
    return max(found, default=None)


@dataclass
class _Steps:
    """Counts runs, and tells of each as it begins."""

    progress: Progress | None
    total: int
    done: int = 0

    def __call__(self) -> None:
        if self.progress:
            self.progress(self.done, self.total)
        self.done += 1


@dataclass
class _Pair:
    """Both files, and the maps between them; where they ran, and why in float32, is known once the source has run."""

    source: Path | Source
    grown: Path | Source
    inputs: dict[str, Maps]
    outputs: dict[str, Maps]
    twins: Twins
    provider: str
    where: str = ""
    replaced: str | None = None

    def open(self, path: Path | Source, extra_outputs: Iterable[str] = ()) -> Session:
        """A session of either model, in the types in which the source ran."""
        return open_session(path, self.provider, extra_outputs, replaced=self.replaced)

    def grown_feeds(self, case: Case) -> Arrays:
        return {name: grown_input(case.feeds[twin], self.inputs.get(name, ())) for name, twin in self.twins.inputs.items() if twin in case.feeds}

    def run_source(self, tried: list[Case], step: Callable[[], None] = lambda: None) -> tuple[dict[str, Arrays], dict[str, str]]:
        """What the source answers, by label; why the other cases are left out."""
        session, answers, skipped = self.open(self.source), {}, {}
        self.where, self.replaced = session.provider, session.replaced
        for case in tried:
            step()
            try:
                found = session.run(case.feeds)
            except GraphError as error:
                skipped[case.label] = error.what
                continue
            problem = self._unfit(case.feeds, self.inputs, self.twins.inputs) or self._unfit(found, self.outputs, self.twins.outputs)
            if case.optional and any(compare(n, x, y, ()).max_rel for (n, x), y in zip(found.items(), session.run(case.feeds).values())):
                problem = "two runs of the source differ"
            if not any(_has_numbers(x) for x in found.values()):
                problem = NO_NUMBERS
            if problem:
                skipped[case.label] = problem
            else:
                answers[case.label] = found
        return answers, skipped

    def _unfit(self, arrays: Arrays, maps: dict[str, Maps], twins: dict[str, str]) -> str | None:
        name = next((n for n, twin in twins.items() if n in maps and twin in arrays and not fits(arrays[twin].shape, maps[n])), None)
        return name and f"an axis of {name!r} mixes a run-time size with one that grows"

    def run_grown(self, ran: list[Case], answers: dict[str, Arrays], ranked: set[str], step: Callable[[], None]) -> tuple[CaseResult, ...]:
        """Compare case by case. GraphError where the grown model does not run."""
        session, results = self.open(self.grown), []
        for case in ran:
            step()
            try:
                found = session.run(self.grown_feeds(case))
            except GraphError as error:
                what = f"the grown model does not run with {case.label}: {error.what}"
                raise GraphError(what, hint="report this as a bug, with the plan") from error
            wanted = answers.pop(case.label)
            pairs = tuple(compare(twin, wanted[twin], found[name], self.outputs.get(name, ()), twin in ranked) for name, twin in self.twins.outputs.items())
            results.append(CaseResult(case.label, case.sizes, pairs))
        together = iter(over_all([d for result in results for d in result.outputs]))
        return tuple(replace(result, outputs=tuple(next(together) for _ in result.outputs)) for result in results)

    def unstable(self, case: Case, tolerance: float) -> dict[str, str]:
        """Outputs of the source that differ between two runs of one session."""
        session = self.open(self.source)
        first, second = session.run(case.feeds), session.run(case.feeds)
        found = {name: compare(name, a, second[name], ()).max_rel for name, a in first.items()}
        return {name: f"two runs of the source differ by {gap:.2g}" for name, gap in found.items() if gap > tolerance}


def _without(report: Report, ignored: dict[str, str], nothing_left: str) -> Report:
    left = tuple(replace(c, outputs=tuple(d for d in c.outputs if d.output not in ignored)) for c in report.cases)
    if not any(c.outputs for c in left):
        raise GraphError(nothing_left, hint="export the model in eval mode, without dropout or sampling")
    return replace(report, cases=left, ignored=report.ignored | ignored)


def _smallest_failing(report: Report, ran: list[Case]) -> Case:
    failing = {c.label for c in report.cases if any(d.max_rel > report.tolerance for d in c.outputs)}
    return min((c for c in ran if c.label in failing), key=lambda c: sum(x.size for x in c.feeds.values()))


def _maps_of(outputs: dict[str, Maps], axis_map: AxisMaps | None, name: str) -> Maps | None:
    return outputs.get(name) or (axis_map(name) if axis_map else None)


def _is_ranked(structure: Structure, roles: Roles, name: str) -> bool:
    """Words or labels: a last axis of fixed size that is none of the model's inner sizes."""
    dims, walk = structure.dims.get(name, []), structure.walk
    if len(dims) < 2 or dims[-1].size < 2 or structure.runtime[name][-1] or walk.types.get(name) not in FLOATS:
        return False
    return not set(structure.axis_leaves(name, -1)) & roles.leaves_of(*NO_RANK)


def _has_numbers(x: np.ndarray) -> bool:
    return bool(np.isfinite(x.astype(np.float64)).any())


def _refuse_nan(source: Path | Source, count: int) -> None:
    """NaN is not equal to NaN here: where there is nothing else, nothing was shown."""
    weights = not_finite(source if isinstance(source, Source) else open_source(source))
    raise GraphError(f"the source itself answers {count} sets of inputs with nothing but NaN or infinity", node=weights[0] if weights else None,
                     hint="mend this weight, or export the model again from a sound checkpoint" if weights else "its values overflow on the way: export the model in float32")


def _refuse(skipped: dict[str, str], own: bool) -> None:
    label, reason = next(iter(skipped.items()))
    if own:
        raise UsageError(f"the source model does not run on the given inputs: {reason}", hint="check the values of the arrays")
    what = f"the source model runs on none of {len(skipped)} sets of inputs; with {label}: {reason}"
    raise GraphError(what, hint="give inputs that it takes (--inputs FILE.npz)")
