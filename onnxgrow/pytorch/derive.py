"""How a size that varies is found from the shapes of the tensors at hand."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import GraphError
from .sizes import Numbers, Sizes, is_constant

SIGNS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv}


@dataclass(frozen=True)
class Derived:
    """A size in terms of axes: `form` has a place for each of `parts`, (tensor id, axis, its numbers)."""

    form: str
    parts: tuple[tuple[str, int, Numbers], ...]


def axis_of(sizes: Sizes, tensor: str, numbers: Numbers) -> int | None:
    """The axis of a tensor that has this size, or None."""
    try:
        shape = sizes.shape(tensor)
    except GraphError:  # a shape that only the run knows tells nothing
        return None
    return next((i for i, n in enumerate(shape) if n == numbers), None)


def derive(sizes: Sizes, numbers: Numbers, tensors: Iterable[str]) -> Derived | None:
    """The size itself where an axis has it; else the sum, difference, product or quotient of two, or of one or two and a small number."""
    tensors = list(tensors)
    for t in tensors:
        axis = axis_of(sizes, t, numbers)
        if axis is not None:
            return Derived("{0}", ((t, axis, numbers),))
    known: dict[Numbers, tuple[str, int, Numbers]] = {}
    for t in tensors:
        try:
            shape = sizes.shape(t)
        except GraphError:
            continue
        for i, n in enumerate(shape):
            if not is_constant(n):
                known.setdefault(n, (t, i, n))
    for a, b in itertools.product(known, repeat=2):
        for sign, f in SIGNS.items():
            if 0 not in b and tuple(map(f, a, b)) == numbers and (a != b or sign == "*"):
                return Derived(f"{{0}} {sign} {{1}}", (known[a], known[b]))
    for a in known:
        for sign, f in SIGNS.items():
            for k in range(1, 17) if sign in "+-" else (2, 3, 4, 8, 16, 32):
                if tuple(f(n, k) for n in a) == numbers:
                    return Derived(f"{{0}} {sign} {k}", (known[a],))
        if tuple(-n for n in a) == numbers:
            return Derived("-{0}", (known[a],))
    for a, b in itertools.combinations(known, 2):  # past + length + 2: the last of some positions that begin at 2
        shift = {n - p - q for n, p, q in zip(numbers, a, b)}
        if len(shift) == 1 and abs(k := shift.pop()) <= 16:
            return Derived(f"{{0}} + {{1}} {'+' if k > 0 else '-'} {abs(k)}", (known[a], known[b]))
    return None
