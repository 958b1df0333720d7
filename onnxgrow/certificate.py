"""What a plan promises."""

from __future__ import annotations

from dataclasses import dataclass

from .notebook import shown_as

KINDS = ("exact", "near", "not preserved")


@dataclass(frozen=True)
class Certificate:
    """What the plan promises: whether the function stays, why, and an error bound where it is near.

    Attributes:
        kind: "exact" (equal but for rounding), "near" or "not preserved".
        reasons: why it is not exact, and what was assumed.
        bound: on the relative change of a norm's statistics that one norm after the branch causes: the greatest over the norms concerned, for any
            token; what several cause adds up, and `reasons` say where it depends on the deviation of what a norm reads. None where noise was
            asked for (--wake): nothing bounds what it does. Derivation: docs/near.md.
        rounding: the type to whose rounding "exact" holds, where that is coarser than float32: repairs are computed in float64 and rounded once
            to the type of their weight, and values are rounded at every node.
    """

    kind: str
    reasons: tuple[str, ...] = ()
    bound: float | None = None
    rounding: str | None = None

    _repr_html_ = shown_as("certificate")

    def __str__(self) -> str:
        kind = f"{self.kind} up to rounding in {self.rounding}" if self.rounding and self.kind == "exact" else self.kind
        return kind if self.bound is None else f"{kind} (one norm moves statistics by at most {self.bound:.1e})"

    def joined(self, other: Certificate) -> Certificate:
        """Both together: the weaker kind, all reasons."""
        kind = max(self.kind, other.kind, key=KINDS.index)
        bounds = [b for b in (self.bound, other.bound) if b is not None]
        return Certificate(kind, self.reasons + other.reasons, max(bounds, default=None), self.rounding or other.rounding)
