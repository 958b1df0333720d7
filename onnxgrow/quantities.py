"""Numbers as people write them: 350M parameters, 2G operations, 16GB or 16GiB of memory."""

from __future__ import annotations

import re
from math import isfinite

from .errors import UsageError

COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12, "P": 10**15}  # B as in billion
BYTES = {f"{letter}{unit}": base**power for power, letter in enumerate(("K", "M", "G", "T"), 1) for unit, base in (("B", 1000), ("IB", 1024))}
NUMBER = re.compile(r"\s*([0-9][0-9_,]*\.?[0-9]*(?:e[0-9]+)?|\.[0-9]+)\s*([a-z]*)\s*", re.I)


def parse_count(text: str, option: str) -> int:
    """`350M`, `1.3B`, `2e9`, `1_000_000` -> a whole number.

    Args:
        option: the name of the option it came from, for messages.
    Raises:
        UsageError: no number, an unknown letter, or nothing.
    """
    return _parse(text, option, COUNTS, "350M, 1.3B or 2e9 (K, M, G or B, T)")


def parse_bytes(text: str, option: str) -> int:
    """`16GB` (10^9) or `16GiB` (2^30) -> bytes; a bare number is refused, since nobody means bytes. UsageError as in `parse_count`."""
    return _parse(text, option, BYTES, "16GB (decimal) or 16GiB (binary): KB, MB, GB, TB or KiB, MiB, GiB, TiB")


def _parse(text: str, option: str, units: dict[str, int], examples: str) -> int:
    found = NUMBER.fullmatch(text)
    number, unit = (found[1].replace("_", "").replace(",", ""), found[2].upper()) if found else ("", "")
    if not found or unit not in units:
        what = f"{option} {text!r} is not a number" if not found else f"{option} {text!r} has no unit" if not unit else f"{option} {text!r} has an unknown unit"
        raise UsageError(what, hint=f"write it like {examples}")
    value = float(number) * units[unit]
    if not isfinite(value) or value < 1:
        raise UsageError(f"{option} {text!r} is no size that a model can have", hint=f"write it like {examples}")
    return round(value)


def short(value: float, unit: str = "") -> str:
    """Three digits and a letter: 437_100 -> `437K`, 1.3e9 with unit `B` -> `1.30 GB`; parameters (no unit) use B for billions."""
    letters = ["", "K", "M", "G" if unit else "B", "T", "P", "E"]
    power = 0
    while float(f"{value:.3g}") >= 1000 and power < len(letters) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 and value == int(value) else max(0, 3 - len(str(int(value))))
    return f"{value:.{digits}f}{' ' if unit else ''}{letters[power]}{unit}"
