"""What a plan promises."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("exact", "near", "not preserved")


@dataclass(frozen=True)
class Certificate:
    """What the plan promises: "exact", "near" or "not preserved", why, and an error bound where it is near.

    `bound` is on the relative change of a norm's statistics: the greatest over the norms concerned, for any token.
    """

    kind: str
    reasons: tuple[str, ...] = ()
    bound: float | None = None

    def __str__(self) -> str:
        return self.kind if self.bound is None else f"{self.kind} (statistics of a norm move by at most {self.bound:.1e})"

    def joined(self, other: Certificate) -> Certificate:
        """Both together: the weaker kind, all reasons."""
        kind = max(self.kind, other.kind, key=KINDS.index)
        bounds = [b for b in (self.bound, other.bound) if b is not None]
        return Certificate(kind, self.reasons + other.reasons, max(bounds, default=None))
