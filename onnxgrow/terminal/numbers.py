"""Numbers for people."""

from __future__ import annotations

WHOLE = 10_000_000  # numbers up to here are written out
BYTES = ("bytes", "kB", "MB", "GB", "TB")


def count(n: int) -> str:
    """`437,100`, `124.4 M`, `7.24 B`: at least three digits of a large number."""
    if n < WHOLE:
        return f"{n:,}"
    unit, letter = next((u, x) for u, x in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if n >= u)
    return f"{n / unit:.4g} {letter}" if n / unit >= 100 else f"{n / unit:.3g} {letter}"


def size(bytes_: float) -> str:
    """`1.75 MB`, in powers of a thousand."""
    for unit in BYTES:
        if bytes_ < 1000 or unit == BYTES[-1]:
            break
        bytes_ /= 1000
    return f"{bytes_:.0f} {unit}" if unit == "bytes" else f"{bytes_:.3g} {unit}"


def seconds(s: float) -> str:
    """`0.3 s`, `2 min 5 s`."""
    return f"{s:.1f} s" if s < 60 else f"{int(s // 60)} min {s % 60:.0f} s"


def times(old: float, new: float) -> str:
    """`x 1.5` where something grows, else nothing."""
    return f"× {new / old:.3g}" if old and new != old else ""
