"""Row-major alignment of two shapes with the same number of elements: which axes of one are which groups of the other."""

from __future__ import annotations

from math import prod


def align(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[list[str], list[str], list[str]]:
    """Terms of the line language for both sides of a reshape.

    Row-major order fixes where data goes: an axis boundary is a prefix product of the shape. Boundaries that both shapes share
    cut the elements into groups; inside a group the boundaries of both sides together give the factors (`[7, 3, 32] -> [7, 12, 8]`
    is `a b (h d) -> a (b h) d`), as long as each divides the next. Where they do not, the group's axes are tied to nothing.

    Returns:
        left terms, right terms, names whose axes were in a group without common factors.
    """
    terms: tuple[list[str], list[str]] = (["1"] * len(left), ["1"] * len(right))
    broken: list[str] = []
    for count, group in enumerate(_groups(left, right)):
        cuts = sorted({1, *_prefixes(left, group[0]), *_prefixes(right, group[1])})
        if 0 in cuts or any(b % a for a, b in zip(cuts, cuts[1:])):
            for side in (0, 1):
                for i in group[side]:
                    terms[side][i] = f"x{count}{'lr'[side]}{i}"
                    broken.append(terms[side][i])
            continue
        for side, shape in enumerate((left, right)):
            start = 1
            for i in group[side]:
                names = [f"n{count}c{k}" for k, cut in enumerate(cuts[:-1]) if start <= cut < start * shape[i]]
                terms[side][i] = f"({' '.join(names)})" if len(names) > 1 else names[0]
                start *= shape[i]
    return *terms, broken


def _prefixes(shape: tuple[int, ...], axes: list[int]) -> list[int]:
    return [prod(shape[i] for i in axes[: k + 1]) for k in range(len(axes))]


def _groups(left: tuple[int, ...], right: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Axes (size 1 left out) between boundaries that both shapes share."""
    waiting = [[i for i, d in enumerate(shape) if d != 1] for shape in (left, right)]
    shapes, out = (left, right), []
    while waiting[0] or waiting[1]:
        group: tuple[list[int], list[int]] = ([], [])
        sizes = [1, 1]
        while (waiting[0] or waiting[1]) and not (group[0] and group[1] and sizes[0] == sizes[1]):
            side = 0 if (sizes[0] <= sizes[1] and waiting[0]) or not waiting[1] else 1
            i = waiting[side].pop(0)
            group[side].append(i)
            sizes[side] *= shapes[side][i]
        out.append(group)
    return out
