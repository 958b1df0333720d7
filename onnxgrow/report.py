"""What a validation showed, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import isfinite

from .compare import Difference
from .describe import sizes_only
from .notebook import shown_as
from .runtime import CUDA


@dataclass(frozen=True)
class CaseResult:
    """What one set of inputs showed.

    Attributes:
        label: says what was fed: `batch 3, sequence 7`.
        sizes: of the symbolic dimensions, by name.
        outputs: how each differs.
    """

    label: str
    sizes: dict[str, int]
    outputs: tuple[Difference, ...]


@dataclass(frozen=True)
class Report:
    """The outcome of a validation.

    Attributes:
        provider: where it ran, as ONNX Runtime says.
        tolerance: largest max_rel that counts as equal.
        seed: of the made inputs.
        cases: what each set of inputs showed.
        skipped: label of a case that the source itself cannot run (or answers with NaN throughout) -> what it said.
        ignored: output that is not deterministic -> why, or by how much two runs of the source differ in it.
        fixed: symbolic dimension that the graph only runs at one size of -> that size, and the node that holds it.
        only_at: rows ("batch") and tokens ("length") at which alone the graph runs, so that nothing is known of other sizes; see `inputs.fixed_sizes`.
        first_difference: where the models part, if they do.
        dequantized: how far the float form of a quantized source, with which this was compared, is from the quantized file itself.
        replaced: why both were computed in float32, where the provider cannot run the source in its own types.
    """

    provider: str
    tolerance: float
    seed: int
    cases: tuple[CaseResult, ...]
    skipped: dict[str, str]
    ignored: dict[str, str]
    first_difference: str | None = None
    replaced: str | None = None
    dequantized: float | None = None
    fixed: dict[str, str] = field(default_factory=dict)
    only_at: dict[str, list[int]] = field(default_factory=dict)

    _repr_html_ = shown_as("report")

    @property
    def equal(self) -> bool:
        """Is there something to compare, and does no output differ by more than the tolerance?"""
        return any(d.finite for d in self._all) and self.max_rel <= self.tolerance

    @property
    def max_abs(self) -> float:
        """The largest difference of an entry, over all outputs and inputs."""
        return max((d.max_abs for d in self._all), default=0.0)

    @property
    def max_rel(self) -> float:
        """The largest difference, relative to the largest value that its output has on any of the inputs."""
        return max((d.max_rel for d in self._all), default=0.0)

    @property
    def top1(self) -> float | None:
        """Share of rows, 0 to 1, whose largest entry is the same one, over the outputs in `top1_outputs`; None without any."""
        rows = sum(d.rows or 0 for d in self._all)
        return sum(d.agree or 0 for d in self._all) / rows if rows else None

    @property
    def top1_outputs(self) -> list[str]:
        """Outputs whose last axis is words or labels, so that the largest entry means something."""
        return list(dict.fromkeys(d.output for d in self._all if d.rows))

    @property
    def new_words(self) -> dict | None:
        """Outputs with logits of new words, and the mean and greatest share of probability that these take over all rows; None without any."""
        found = [d for d in self._all if d.new_mean is not None]
        if not found:
            return None
        mean = sum(d.new_mean * d.rows for d in found) / sum(d.rows for d in found)
        return {"outputs": list(dict.fromkeys(d.output for d in found)), "mean": mean, "max": max(d.new_max for d in found)}

    @property
    def _all(self) -> list[Difference]:
        return [d for case in self.cases for d in case.outputs]

    def to_json(self) -> dict:
        """A plain dict with stable keys; what is infinite or NaN becomes None."""
        head = {"equal": self.equal, "provider": self.provider, "tolerance": self.tolerance, "seed": self.seed, "max_abs": self.max_abs,
                "max_rel": self.max_rel, "top1": self.top1, "top1_outputs": self.top1_outputs, "new_words": self.new_words}
        tail = {"cases": [asdict(c) for c in self.cases], "skipped": self.skipped, "ignored": self.ignored,
                "first_difference": self.first_difference, "fixed": self.fixed, "only_at": self.only_at, "replaced": self.replaced, "dequantized": self.dequantized}
        return _plain(head | tail)

    def lines(self, promised: str = "exact") -> list[str]:
        """The report for people, one finding a line; `promised` is the kind of the certificate."""
        where = "CUDA" if self.provider == CUDA else "CPU"
        top1 = f", top-1 of {', '.join(self.top1_outputs)} {self.top1:.2%}" if self.top1 is not None else ""
        verdict = "equal" if self.equal else "NOT EQUAL" if promised == "exact" else f"{promised}, as certified,"
        out = [f"{verdict} on {where}: largest relative difference {self.max_rel:.2g} (tolerance {self.tolerance:.2g}){top1}"]
        if verdict == "NOT EQUAL":
            out.append("  expected if GROWN was trained on: then only its loss can be compared")
        if self.dequantized is not None:
            out.append(f"  compared with the float form of the source; the quantized file itself differs from that by {self.dequantized:.2g}")
        if self.replaced:
            out.append(f"  computed in float32, weights as stored: the {where} cannot run the source in its own types ({self.replaced})")
        if words := self.new_words:
            where = ", ".join(words["outputs"])
            out.append(f"  new words take {words['mean']:.2%} of the probability in {where} on average, {words['max']:.2%} at most")
        for case in self.cases:
            worst = max(case.outputs, key=lambda d: d.max_rel)
            odd = "".join(f"; {d.output}: the source gives NaN or inf in {1 - d.finite:.1%} of it" for d in case.outputs if d.finite < 1)
            out.append(f"  {case.label}: {worst.max_rel:.2g}{f' in {worst.output}' if len(case.outputs) > 1 else ''}{odd}")
        out += [f"  compared at {sizes_only(self.only_at)} only: the graph was exported with fixed axes, and runs at no other size"] * bool(self.only_at)
        out += [f"  {name}: {told}" for name, told in self.fixed.items()]
        out += [f"  not run: {label}: {reason}" for label, reason in self.skipped.items()]
        out += [f"  not compared: {output}: {reason}" for output, reason in self.ignored.items()]
        return out + ([f"  first difference: {self.first_difference}"] if self.first_difference else [])


def _plain(x):
    """For JSON: tuples as lists, infinite and NaN as None."""
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    return None if isinstance(x, float) and not isfinite(x) else x
