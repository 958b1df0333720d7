"""What somebody who mistyped may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

ALIKE = 0.6  # difflib's own threshold


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean 'ffn'?`, or None where nothing known looks like the word."""
    names = list(dict.fromkeys(known))
    plain = {name.lower().replace("-", "_"): name for name in reversed(names)}
    asked = word.lower().replace("-", "_")
    found = [asked] if asked in plain else get_close_matches(asked, plain, n=2, cutoff=ALIKE)
    return f"did you mean {' or '.join(repr(plain[f]) for f in found)}?" if found else None
