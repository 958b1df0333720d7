"""Dims and extents: what the axes of a graph consist of, found by unification.

A `Dim` is a size shared by many axes. It is atomic, or bound to a product (`heads · head_dim`) or a sum (`half + half`) of
other dims. `unify` says that two dims are one; products are aligned from the left, sums part by part, and a product that meets
a sum has its major factor cut. Nothing here knows what a head is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


class TieError(Exception):
    """Two extents cannot be one (sizes 6 and 4 share no boundary, say)."""


@dataclass(eq=False)
class Dim:
    """A size. `form` is None (atomic), ("*", parts) or ("+", parts); `parent` leads to the dim it was unified with."""

    size: int
    form: tuple[str, list["Dim"]] | None = None
    parent: "Dim | None" = None

    def __repr__(self) -> str:
        return describe(self)


def find(d: Dim) -> Dim:
    while d.parent is not None:
        if d.parent.parent is not None:
            d.parent = d.parent.parent
        d = d.parent
    return d


def product(parts: list[Dim]) -> Dim:
    """The dim of a row-major product; factors of size 1 vanish."""
    parts = [p for p in parts if p.size != 1]
    if not parts:
        return Dim(1)
    return parts[0] if len(parts) == 1 else Dim(prod(p.size for p in parts), ("*", parts))


def total(parts: list[Dim]) -> Dim:
    """The dim of a concatenation; parts of size 0 vanish."""
    parts = [p for p in parts if p.size != 0]
    if not parts:
        return Dim(0)
    return parts[0] if len(parts) == 1 else Dim(sum(p.size for p in parts), ("+", parts))


def factors(d: Dim) -> list[Dim]:
    """The dim as a flat product, major factor first."""
    d = find(d)
    if d.form and d.form[0] == "*":
        return [f for part in d.form[1] for f in factors(part)]
    return [d]


def summands(d: Dim) -> list[Dim]:
    d = find(d)
    if d.form and d.form[0] == "+":
        return [f for part in d.form[1] for f in summands(part)]
    return [d]


def leaves(d: Dim) -> tuple[Dim, ...]:
    """Atomic dims in order, each as often as it occurs."""
    d = find(d)
    return tuple(leaf for part in d.form[1] for leaf in leaves(part)) if d.form else (d,)


def unify(a: Dim, b: Dim) -> None:
    """Make two dims one.

    Raises:
        TieError: sizes differ or no common refinement exists.
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise TieError(f"{describe(a)} and {describe(b)} differ in size")
    if a.form is None:
        _join(a, b)
    elif b.form is None:
        _join(b, a)
    elif a.form[0] == b.form[0] == "*":
        _align_products(a, b)
    elif a.form[0] == b.form[0] == "+":
        _align_sums(summands(a), summands(b))
        _join(a, b)
    else:
        p, s = (a, b) if a.form[0] == "*" else (b, a)
        _cut_major(p, s)
        _join(s, p)


def _join(a: Dim, b: Dim) -> None:
    a, b = find(a), find(b)
    if a is not b:
        a.parent = b


def _align_products(a: Dim, b: Dim) -> None:
    left, right = factors(a)[::-1], factors(b)[::-1]  # stacks, major on top
    while left and right:
        x, y = find(left.pop()), find(right.pop())
        if x.size == y.size:
            unify(x, y)
        elif x.size > y.size and x.size % y.size == 0:
            left.append(_split_major(x, y))
        elif y.size > x.size and y.size % x.size == 0:
            right.append(_split_major(y, x))
        else:
            raise TieError(f"{describe(a)} and {describe(b)} have no common boundary")
    _join(a, b)


def _split_major(x: Dim, major: Dim) -> Dim:
    """Make x the product major · rest and return rest."""
    rest = Dim(x.size // major.size)
    unify(x, Dim(x.size, ("*", [major, rest])))
    return rest


def _align_sums(left: list[Dim], right: list[Dim]) -> None:
    left, right = left[::-1], right[::-1]
    while left and right:
        x, y = find(left.pop()), find(right.pop())
        if x.size == y.size:
            unify(x, y)
        elif x.size > y.size:
            left += summands(_split_first(x, y))[::-1]
        else:
            right += summands(_split_first(y, x))[::-1]


def _split_first(x: Dim, first: Dim) -> Dim:
    """Make x the sum first + rest and return rest."""
    rest = Dim(x.size - first.size)
    unify(x, Dim(x.size, ("+", [first, rest])))
    return rest


def _cut_major(p: Dim, s: Dim) -> None:
    """A product meets a sum: each part of the sum is a share of the major factor times the same inner factors."""
    major, *inner = factors(p)
    step = prod(f.size for f in inner)
    if any(part.size % step for part in summands(s)):
        raise TieError(f"{describe(s)} cuts {describe(p)} inside its inner factors")
    shares = [Dim(part.size // step) for part in summands(s)]
    for share, part in zip(shares, summands(s)):
        unify(part, product([share, *inner]))
    unify(major, total(shares))


def describe(d: Dim, names: dict[Dim, str] | None = None) -> str:
    """The extent as a person would write it: `4·(8+8)`, or with names where there are some."""
    d = find(d)
    if names and d in names:
        return names[d]
    if d.form is None:
        return str(d.size)
    if d.form[0] == "+":
        return " + ".join(describe(p, names) for p in d.form[1])
    return "·".join(f"({describe(p, names)})" if find(p).form and find(p).form[0] == "+" else describe(p, names) for p in d.form[1])
