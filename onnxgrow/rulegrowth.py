"""One dim of an example at one new size: what the planner claims of every fill, and what ONNX Runtime says of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx
from onnx import helper

from .apply import apply_edits
from .axismap import AxisMap, Fill
from .constants import fix_constants
from .errors import OnnxgrowError
from .experts import LOW
from .flow import Flow
from .maps import Mapper
from .operators import Example
from .recipe import Recipe
from .repairs import Edits
from .roles import NORM_KINDS, Roles
from .rulebook import Registry
from .rulerun import runner
from .solve import Solution, Solver
from .structure import Structure
from .target import Target
from .ties import Dim, leaves
from .treatments import build_flow
from .zeropoint import zero_point

CLAIMS = ("zero", "mean", "copy")  # "free" claims nothing; "share" is what copies meet in a contraction
ULPS = 16  # how far rounding may take a claim that holds, relative to the largest entry


@dataclass(frozen=True)
class Problem:
    """Where a rule and the runtime disagree.

    Attributes:
        kind: "wrong" (a claim does not hold), "missing" (something holds that the rule does not claim), "loose" (axes are tied
            that may differ) or "refused" (the planner could not carry out what the rule claims).
        example: the model of one node on which it was seen.
        name: the name on the rule's line that grew.
        treatment: what the rule says of it.
        what: the claim, in fills.
        line: the rule's line.
        numbers: of the first entry that is not as claimed.
    """

    kind: str
    example: Example
    name: str
    treatment: str
    what: str
    line: str = ""
    numbers: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.example}\n  {self.name}: {self.treatment}: {self.what}{self.numbers and f' ({self.numbers})'}"


@dataclass
class Growth:
    """One dim of an example at one new size. Copies are tried where they come out even, the other fills where they would not."""

    example: Example
    before: dict[str, np.ndarray]
    s: Structure
    registry: Registry
    part: Dim
    new: int
    runners: dict = field(default_factory=dict)
    tried: dict = field(default_factory=dict)
    mapped: dict = field(default_factory=dict)
    filled: dict = field(default_factory=dict)
    held: int = 0

    def problems(self) -> Iterator[Problem]:
        try:
            claims = [(fills, then, self.claim(fills, then)) for fills, then in self.trials()]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            yield self.problem("wrong", f"the planner fails: {error!r}")
            return
        try:
            _ = self.grown
        except OnnxgrowError as refusal:
            if any(claim for _, _, claim in claims) and self.name != "_":
                yield self.problem("refused", refusal.what)
            return
        for fills, then, claim in claims:
            if claim and not self.holds(fills, then, self.repair_of(claim)):
                yield self.problem("wrong", f"{_told(fills, then)} is claimed and is not so", self.numbers(fills, then, self.repair_of(claim)))
            elif claim:
                self.held += 1
            elif not claim and self.possible(fills) and any(self.holds(fills, then, r) for r in self.repairs()):
                yield self.problem("missing", f"{_told(fills, then)} is so and is not claimed")
        yield from self.loose()

    @property
    def name(self) -> str:
        """The dim on the rule's line; `_` where the rule says nothing about it."""
        return next((n for n, d in self.s.nodes[0].names.items() if self.part in leaves(d)), "_")

    @property
    def treatment(self) -> str:
        return "untied" if self.name == "_" else self.s.nodes[0].rule.treatment(self.name)

    def problem(self, kind: str, what: str, numbers: str = "") -> Problem:
        return Problem(kind, self.example, self.name, self.treatment, what, self.s.nodes[0].rule.line, numbers)

    # What the planner says

    @cached_property
    def target(self) -> Target:
        return Target(sizes={self.part: self.new})

    @cached_property
    def flow(self) -> Flow:
        return build_flow(Roles(self.s, [], [], []), {self.part})

    @cached_property
    def kinds(self) -> set[str]:
        return {r.kind for r in self.flow.relations}

    @cached_property
    def outputs(self) -> list[str]:
        return [t for t in self.s.graph.outputs if t in self.s.dims and t not in self.s.walk.values]

    def classes(self, tensor: str) -> list[int]:
        return [c for axis in range(len(self.s.dims[tensor])) for c in self.flow.classes(tensor, axis)]

    def trials(self) -> Iterator[tuple[dict[str, str], str | None]]:
        """(fill of each input that grows, claim about the outputs): None claims that old entries stay, and no more."""
        even, options = self.new % self.part.size == 0, {}
        for t in filter(self.classes, self.example.feeds):
            floats = np.issubdtype(self.example.feeds[t].dtype, np.floating)
            low = bool(self.kinds & {"choose", "softmax"}) and floats
            options[t] = ["zero", *["low"] * low, *["mean", "free"] * floats, *["copy"] * even, *["share"] * (floats and even and "contract" in self.kinds)]
        then = (None, *CLAIMS) if any(map(self.classes, self.outputs)) else (None,)
        for fills in itertools.product(*options.values()):
            if not options or bool({"copy", "share"} & {*fills}) == even:
                yield from ((dict(zip(options, fills)), claim) for claim in then)

    def claim(self, fills: dict[str, str], then: str | None) -> Solution | None:
        """Would the planner believe in `then` because the inputs are filled so?"""
        given = self.given(fills)
        routed = frozenset({0} if "low" in fills.values() else ())
        flow = replace(self.flow, static={t for t, fill in fills.items() if fill == "share"}, routed=routed)
        for mode in ("pad", "copy") if given is not None else ():
            solver = Solver(flow, self.part, flow.relations, mode)
            wanted = {c: then for t in self.outputs for c in self.classes(t)} if then else {}
            found = solver.solve() if _accepts(solver, given) and _accepts(solver, wanted) else None
            told = given and {c: "free" if fill == "low" else fill for c, fill in given.items()}
            if isinstance(found, Solution) and told == {c: "share" if c in found.shares else found.need.get(c, "free") for c in given}:
                return found
        return None

    def possible(self, fills: dict[str, str]) -> bool:
        """Would a plan ever fill the inputs so? And is the operator defined for whatever they hold?"""
        given = self.given(fills)
        solver = Solver(self.flow, self.part, self.flow.relations, "copy" if "copy" in fills.values() else "pad")
        sound = given is not None and "copies only" not in self.kinds and _accepts(solver, given)
        return sound and all(solver.need.get(c, fill) == fill for c, fill in given.items())

    def given(self, fills: dict[str, str]) -> dict[int, str] | None:
        """Fill by class; None where inputs that must hold the same do not."""
        out: dict[int, str] = {}
        alike = [out.setdefault(c, fill) == fill for t, fill in fills.items() for c in self.classes(t)]
        return out if all(alike) else None

    def repair_of(self, claim: Solution) -> str | None:
        return "halve" if claim.halve else "norm" if claim.mode == "pad" and "norm" in self.repairs() else None

    def repairs(self) -> list[str | None]:
        return [None, *["norm"] * bool(self.kinds & {*NORM_KINDS}), *["halve"] * ("contract" in self.kinds)]

    # What the runtime says

    @cached_property
    def grown(self) -> onnx.ModelProto:
        edits = Edits()
        fix_constants(self.s, self.target, edits, self.registry)
        return apply_edits(self.s, self.target, edits, {}).proto

    def axes(self, tensor: str, fill: str) -> tuple[AxisMap, ...]:
        if (tensor, fill) not in self.mapped:
            self.mapped[tensor, fill] = self._axes(tensor, fill)
        return self.mapped[tensor, fill]

    def _axes(self, tensor: str, fill: str) -> tuple[AxisMap, ...]:
        mapper = Mapper(self.s, self.target, self.flow, {}, forced="copy" if fill == "share" else fill)
        axes = [mapper.axis(tensor, i) for i in range(len(self.s.dims[tensor]))]
        return tuple(replace(a, share=fill == "share" and a.old != a.new) for a in axes)

    def grow(self, tensor: str, old: np.ndarray, fill: str) -> np.ndarray:
        """A tensor of the example, or what it gave, with new entries; one array for all trials, since there may be thousands."""
        if (tensor, fill) not in self.filled:
            self.filled[tensor, fill] = self._grow(tensor, old, fill)
        return self.filled[tensor, fill]

    def _grow(self, tensor: str, old: np.ndarray, fill: str) -> np.ndarray:
        if fill == "low":
            axes, out = self.axes(tensor, "zero"), self.grow(tensor, old, "zero")
            added = np.ones(out.shape, bool)
            added[np.ix_(*(np.flatnonzero(a.fill == Fill.OLD) for a in axes))] = False
            return np.where(added, np.float32(LOW), out)
        axes = self.axes(tensor, fill)
        zero = zero_point(self.s.graph, tensor) if old.dtype.kind in "iu" and tensor in self.example.feeds else None
        return Recipe(tensor, helper.np_dtype_to_tensor_dtype(old.dtype), old.shape, tuple(a.new for a in axes), axes, zero=zero).evaluate(old)

    def results(self, fills: dict[str, str], repair: str | None = None) -> dict[str, np.ndarray] | Exception:
        """Outputs of the grown model, or what the runtime objects to."""
        key = (*fills.items(), repair)
        if key not in self.tried:
            feeds = {t: self.grow(t, a, fills[t]) if t in fills else a for t, a in self.example.feeds.items()}
            try:
                self.tried[key] = self.repaired(repair, feeds)
            except Exception as objection:
                if self.example.reference is None and not type(objection).__module__.startswith("onnxruntime"):
                    raise
                self.tried[key] = objection
        return self.tried[key]

    def repaired(self, repair: str | None, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run with the norm's gain and epsilon, or one side of a contraction over copies, as `repairs` leaves them."""
        whole = self.s.dims["x0"][-1] if repair == "norm" else self.part
        ratio = whole.size / self.target.size(whole)
        if repair:
            slot, factor = ("x1", ratio**0.5) if repair == "norm" else ("x0", ratio)
            feeds[slot] = (feeds[slot] * factor).astype(feeds[slot].dtype)
        if repair not in self.runners:
            eps = {"epsilon": self.example.attrs.get("epsilon", 1e-5) * ratio} if repair == "norm" else {}
            self.runners[repair] = runner(self.grown, self.example.reference, **eps)
        return self.runners[repair](feeds)

    def holds(self, fills: dict[str, str], then: str | None, repair: str | None = None) -> bool:
        """Do old entries stay, and do new ones hold what is claimed?"""
        got = self.results(fills, repair)
        if isinstance(got, Exception):
            return False
        return all(self.agree(t, self.before[t], got[t], then) for t in self.outputs)

    def numbers(self, fills: dict[str, str], then: str | None, repair: str | None) -> str:
        """The first output that is not as claimed: its shape, or the entry that is furthest off."""
        got = self.results(fills, repair)
        if isinstance(got, Exception):
            return " ".join(str(got).split())[:160]
        t = next((t for t in self.outputs if not self.agree(t, self.before[t], got[t], then)), None)
        if t is None:
            return ""
        shape = tuple(a.new for a in self.axes(t, "free"))
        if got[t].shape != shape:
            return f"{t} has shape {list(got[t].shape)}, not {list(shape)}"
        want = self.grow(t, self.before[t], then or "zero")
        kept = [np.flatnonzero(a.fill == Fill.OLD) for a in self.axes(t, "free")]
        off = np.abs(got[t].astype(np.float64) - want)
        if then is None:  # only old entries are claimed
            old = np.zeros(off.shape, bool)
            old[np.ix_(*kept)] = True
            off = np.where(old, off, 0)
        at = np.unravel_index(np.nanargmax(np.where(np.isnan(off), np.inf, off)), off.shape)
        where = "new" if any(i not in k for i, k in zip(at, kept)) else "old"
        return f"the {where} entry {t}{list(map(int, at))} is {got[t][at]:.6g}, not {want[at]:.6g}"

    def agree(self, tensor: str, old: np.ndarray, new: np.ndarray, then: str | None) -> bool:
        if then == "mean" and not np.issubdtype(old.dtype, np.floating):
            return False
        if new.shape != tuple(a.new for a in self.axes(tensor, "free")):
            return False
        return close(new, self.grow(tensor, old, then)) if then and self.classes(tensor) else self.stays(tensor, old, new)

    def stays(self, tensor: str, old: np.ndarray, new: np.ndarray) -> bool:
        """Are old entries where the extent says?"""
        axes = self.axes(tensor, "free")
        kept = [np.flatnonzero(a.fill == Fill.OLD) for a in axes]
        if new.ndim != len(axes) or any(k.max(initial=-1) >= n for k, n in zip(kept, new.shape)):
            return False
        return close(new[np.ix_(*kept)], old[np.ix_(*(a.source[k] for a, k in zip(axes, kept)))])

    def loose(self) -> Iterator[Problem]:
        """Axes that are tied must not be able to differ: each input grown alone has to fail."""
        moving = [t for t in self.example.feeds if self.classes(t)]
        for t in moving if len(moving) > 1 else ():
            got = self.results({t: "free" if np.issubdtype(self.example.feeds[t].dtype, np.floating) else "zero"})
            if isinstance(got, dict) and all(self.stays(t, self.before[t], got[t]) for t in self.outputs):
                yield self.problem("loose", f"{t} can grow alone")


def _accepts(solver: Solver, fills: dict[int, str]) -> bool:
    return all(solver.require(c, fill, None) is None for c, fill in fills.items() if fill in CLAIMS)


def _told(fills: dict[str, str], then: str | None) -> str:
    return f"{', '.join(f'{t} {fill}' for t, fill in fills.items()) or 'no input'} -> {then or 'old entries stay'}"


def close(got: np.ndarray, want: np.ndarray) -> bool:
    """Equal up to a few units in the last place of the largest entry."""
    if not np.issubdtype(want.dtype, np.floating):
        return np.array_equal(got, want)
    scale = float(np.abs(want).max(initial=0)) or 1.0
    return bool((np.abs(got.astype(np.float64) - want) <= ULPS * np.finfo(want.dtype).eps * scale).all())
