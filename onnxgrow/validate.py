"""Preserved in fact: source and grown model side by side in ONNX Runtime, on the same inputs.

Whatever the source takes as input is scattered through the maps of the growth, whatever the grown model gives is read back through
them. Both models run one after the other, so a device has to hold only one of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path

import numpy as np
from onnx import TensorProto

from .compare import Difference, Maps, compare, fits, grown_input
from .errors import GraphError, UsageError
from .feeds import Case, cases, given
from .roles import Roles
from .runtime import CUDA, open_session, pick_provider
from .structure import Structure
from .trace import AxisMaps, first_difference

TOLERANCE = {TensorProto.DOUBLE: 1e-5, TensorProto.FLOAT: 1e-5, TensorProto.FLOAT16: 1e-2, TensorProto.BFLOAT16: 5e-2}
NO_RANK = ("hidden", "heads", "kv_heads", "head_dim", "v_head_dim", "ffn")  # an argmax along these means nothing
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class CaseResult:
    """What one set of inputs showed: sizes of the symbolic dimensions, and a Difference per output."""

    label: str
    sizes: dict[str, int]
    outputs: tuple[Difference, ...]


@dataclass(frozen=True)
class Report:
    """The outcome of a validation.

    Attributes:
        provider: where it ran, as ONNX Runtime says.
        tolerance: largest max_rel that counts as equal.
        skipped: label of a case that the source itself cannot run (or answers with NaN throughout) -> what it said.
        ignored: output that differs between two runs of the source itself -> by how much.
        first_difference: where the models part, if they do.
    """

    provider: str
    tolerance: float
    seed: int
    cases: tuple[CaseResult, ...]
    skipped: dict[str, str]
    ignored: dict[str, str]
    first_difference: str | None = None

    @property
    def equal(self) -> bool:
        return any(d.finite for d in self._all) and self.max_rel <= self.tolerance

    @property
    def max_abs(self) -> float:
        return max((d.max_abs for d in self._all), default=0.0)

    @property
    def max_rel(self) -> float:
        return max((d.max_rel for d in self._all), default=0.0)

    @property
    def top1(self) -> float | None:
        """Share of rows whose largest entry is the same one, over the outputs in `top1_outputs`."""
        rows = sum(d.rows or 0 for d in self._all)
        return sum(d.agree or 0 for d in self._all) / rows if rows else None

    @property
    def top1_outputs(self) -> list[str]:
        return list(dict.fromkeys(d.output for d in self._all if d.rows))

    @property
    def _all(self) -> list[Difference]:
        return [d for case in self.cases for d in case.outputs]

    def to_json(self) -> dict:
        """A plain dict with stable keys; what is infinite or NaN becomes None."""
        head = {"equal": self.equal, "provider": self.provider, "tolerance": self.tolerance, "seed": self.seed, "max_abs": self.max_abs,
                "max_rel": self.max_rel, "top1": self.top1, "top1_outputs": self.top1_outputs}
        tail = {"cases": [asdict(c) for c in self.cases], "skipped": self.skipped, "ignored": self.ignored, "first_difference": self.first_difference}
        return _plain(head | tail)

    def lines(self) -> list[str]:
        """The report for people, one finding a line."""
        where = "CUDA" if self.provider == CUDA else "CPU"
        top1 = f", top-1 of {', '.join(self.top1_outputs)} {self.top1:.2%}" if self.top1 is not None else ""
        out = [f"{'equal' if self.equal else 'NOT EQUAL'} on {where}: largest relative difference {self.max_rel:.2g} (tolerance {self.tolerance:.2g}){top1}"]
        for case in self.cases:
            worst = max(case.outputs, key=lambda d: d.max_rel)
            odd = "".join(f"; {d.output}: the source gives NaN or inf in {1 - d.finite:.1%} of it" for d in case.outputs if d.finite < 1)
            out.append(f"  {case.label}: {worst.max_rel:.2g}{f' in {worst.output}' if len(case.outputs) > 1 else ''}{odd}")
        out += [f"  not run: {label}: {reason}" for label, reason in self.skipped.items()]
        out += [f"  not compared: {output}: {reason}" for output, reason in self.ignored.items()]
        return out + ([f"  first difference: {self.first_difference}"] if self.first_difference else [])


def validate(structure: Structure, roles: Roles, source: Path, grown: Path, inputs: dict[str, Maps], outputs: dict[str, Maps], *,
             feeds: Arrays | None = None, provider: str | None = None, tolerance: float | None = None, seed: int = 0,
             axis_map: AxisMaps | None = None) -> Report:
    """Run both models and compare every output.

    Args:
        inputs, outputs: name -> AxisMap per axis (`Decisions.inputs`, `Decisions.outputs`).
        feeds: the user's own inputs; None makes some at several sizes.
        provider: "cpu", "cuda" or None (CUDA where there is a device).
        tolerance: on max_rel; None: by the coarsest float type of the weights.
        axis_map: maps of intermediate tensors by name, to name the first that differs.
    Raises:
        UsageError: the given inputs do not fit.
        GraphError: the source runs on none of the inputs, or ONNX Runtime refuses the grown model.
    """
    pair = _Pair(source, grown, inputs, outputs, pick_provider(provider))
    tolerance = default_tolerance(structure) if tolerance is None else tolerance
    tried = cases(structure, roles, seed) if feeds is None else [given(structure, feeds)]
    answers, skipped, where = pair.run_source(tried)
    ran = [case for case in tried if case.label in answers]
    if not ran:
        _refuse(skipped, own=feeds is not None)
    results = pair.run_grown(ran, answers, {name for name in outputs if _is_ranked(structure, roles, name)})
    report = Report(where, tolerance, seed, results, skipped, {})
    if report.equal:
        return report
    suspect = min((c for c, r in zip(ran, results) if any(d.max_rel > tolerance for d in r.outputs)), key=lambda c: sum(x.size for x in c.feeds.values()))
    report = _without(report, pair.unstable(suspect, tolerance))
    if report.equal:
        return report
    maps = partial(_maps_of, structure, outputs, axis_map)
    found = first_difference(roles, (source, grown), (suspect.feeds, pair.grown_feeds(suspect)), pair.provider, tolerance, maps)
    return replace(report, first_difference=found and f"{found}, with {suspect.label}")


def default_tolerance(structure: Structure) -> float:
    """By the coarsest float type of the weights: what rounding alone may do to a whole model."""
    graph = structure.graph
    return max((TOLERANCE[kind] for t in graph.weights if (kind := graph.weight_type(t)) in TOLERANCE), default=TOLERANCE[TensorProto.FLOAT])


@dataclass(frozen=True)
class _Pair:
    """Both files, and the maps between them."""

    source: Path
    grown: Path
    inputs: dict[str, Maps]
    outputs: dict[str, Maps]
    provider: str

    def grown_feeds(self, case: Case) -> Arrays:
        return {name: grown_input(x, self.inputs.get(name, ())) for name, x in case.feeds.items()}

    def run_source(self, tried: list[Case]) -> tuple[dict[str, Arrays], dict[str, str], str]:
        """What the source answers, by label; why the other cases are left out; the provider."""
        session, answers, skipped = open_session(self.source, self.provider), {}, {}
        for case in tried:
            try:
                found = session.run(case.feeds)
            except GraphError as error:
                skipped[case.label] = error.what
                continue
            problem = self._unfit(case.feeds, self.inputs) or self._unfit(found, self.outputs)
            if not any(np.isfinite(_plain_floats(x)).any() for x in found.values()):
                problem = "the source gives nothing but NaN or inf"
            if problem:
                skipped[case.label] = problem
            else:
                answers[case.label] = found
        return answers, skipped, session.provider

    def _unfit(self, arrays: Arrays, maps: dict[str, Maps]) -> str | None:
        name = next((n for n, x in arrays.items() if n in maps and not fits(x.shape, maps[n])), None)
        return name and f"an axis of {name!r} mixes a run-time size with one that grows"

    def run_grown(self, ran: list[Case], answers: dict[str, Arrays], ranked: set[str]) -> tuple[CaseResult, ...]:
        """Compare case by case. GraphError where the grown model does not run."""
        session, results = open_session(self.grown, self.provider), []
        for case in ran:
            try:
                found = session.run(self.grown_feeds(case))
            except GraphError as error:
                raise GraphError(f"the grown model does not run with {case.label}: {error.what}", hint="report this as a bug, with the plan") from error
            wanted = answers.pop(case.label).items()
            pairs = tuple(compare(name, a, found[name], self.outputs.get(name, ()), name in ranked) for name, a in wanted)
            results.append(CaseResult(case.label, case.sizes, pairs))
        return tuple(results)

    def unstable(self, case: Case, tolerance: float) -> dict[str, str]:
        """Outputs of the source that differ between two runs of one session."""
        session = open_session(self.source, self.provider)
        first, second = session.run(case.feeds), session.run(case.feeds)
        found = {name: compare(name, a, second[name], ()).max_rel for name, a in first.items()}
        return {name: f"two runs of the source differ by {gap:.2g}" for name, gap in found.items() if gap > tolerance}


def _without(report: Report, ignored: dict[str, str]) -> Report:
    left = tuple(replace(c, outputs=tuple(d for d in c.outputs if d.output not in ignored)) for c in report.cases)
    if not any(c.outputs for c in left):
        raise GraphError("two runs of the source differ in every output", hint="export the model in eval mode, without dropout or sampling")
    return replace(report, cases=left, ignored=ignored)


def _maps_of(structure: Structure, outputs: dict[str, Maps], axis_map: AxisMaps | None, name: str) -> Maps | None:
    return outputs.get(name) or (axis_map(name) if axis_map and name in structure.dims else None)


def _is_ranked(structure: Structure, roles: Roles, name: str) -> bool:
    """Words or labels: a last axis of fixed size that is none of the model's inner sizes."""
    dims, walk = structure.dims.get(name, []), structure.walk
    if len(dims) < 2 or dims[-1].size < 2 or structure.runtime[name][-1] or walk.types.get(name) not in TOLERANCE:
        return False
    return not set(structure.axis_leaves(name, -1)) & roles.leaves_of(*NO_RANK)


def _refuse(skipped: dict[str, str], own: bool) -> None:
    label, reason = next(iter(skipped.items()))
    if own:
        raise UsageError(f"the source model does not run on the given inputs: {reason}", hint="check the values of the arrays")
    raise GraphError(f"the source model runs on none of {len(skipped)} sets of inputs; with {label}: {reason}", hint="give inputs that it takes (an .npz file)")


def _plain_floats(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype.kind not in "iub" else x


def _plain(x):
    """For JSON: tuples as lists, infinite and NaN as None."""
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    return None if isinstance(x, float) and not isfinite(x) else x
