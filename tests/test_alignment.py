"""Reshape as terms: what `align` says about axes must be true of the numbers in an array."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxgrow.alignment import align
from onnxgrow.lines import parse_tensor

PRIMES = (2, 2, 2, 3, 3, 5)


@st.composite
def two_shapes(draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of one number of elements: the same primes, grouped twice."""
    primes = draw(st.lists(st.sampled_from(PRIMES), max_size=5))
    return tuple(_grouped(draw, draw(st.permutations(primes))) for _ in range(2))


def _grouped(draw, primes) -> tuple[int, ...]:
    cuts = sorted(draw(st.lists(st.integers(0, len(primes)), max_size=4)))
    return tuple(prod(primes[a:b]) for a, b in zip([0, *cuts], [*cuts, len(primes)]))


def names_of(terms: list[str]) -> list[list[str]]:
    """Names per axis; none for an axis of size 1."""
    return [[] if e == "1" else list(e[0]) for term in terms for e in parse_tensor(term)]


def sizes_of(shapes, groups) -> dict[str, int]:
    """The size of each name: there is always an axis in which all others are known."""
    sizes: dict[str, int] = {}
    axes = [(axis, size) for shape, side in zip(shapes, groups) for axis, size in zip(side, shape)]
    while unknown := {n for axis, _ in axes for n in axis if n not in sizes}:
        axis, size = next((axis, size) for axis, size in axes if len(unknown & {*axis}) == 1)
        sizes[(unknown & {*axis}).pop()] = size // prod(sizes[n] for n in axis if n in sizes)
    assert all(prod(sizes[n] for n in axis) == size for axis, size in axes)
    return {n: sizes[n] for axis in groups[0] for n in axis}


@settings(max_examples=300, deadline=None)
@given(two_shapes(), st.data())
def test_a_regrouping_is_what_numpy_does(shapes, data):
    """Take the axes apart into their names, let each grow, and reshape: every old entry is where its coordinates say."""
    *terms, broken = align(*shapes)
    if broken:
        return
    left, right = (names_of(side) for side in terms)
    names = [n for axis in left for n in axis]
    assert names == [n for axis in right for n in axis] and len({*names}) == len(names)
    old = sizes_of(shapes, (left, right))
    new = {n: size + data.draw(st.integers(0, 2)) for n, size in old.items()}
    x, y = (labels(side, old, new) for side in (left, right))
    assert np.array_equal(x.reshape(y.shape), y)


def labels(axes: list[list[str]], old: dict[str, int], new: dict[str, int]) -> np.ndarray:
    """0, 1, 2 … at the old coordinates of an array of the new sizes, -1 elsewhere; one axis for each group of names."""
    out = np.full([prod(new[n] for n in axis) for axis in axes], -1)
    places = [np.ravel_multi_index(np.indices([old[n] for n in axis]), [new[n] for n in axis]).ravel() if axis else [0] for axis in axes]
    out[np.ix_(*places)] = np.arange(prod(old.values())).reshape([len(p) for p in places])
    return out


@settings(max_examples=200, deadline=None)
@given(two_shapes())
def test_untied_axes_are_untied_on_both_sides(shapes):
    *terms, broken = align(*shapes)
    names = [{n for axis in names_of(side) for n in axis} for side in terms]
    assert all((n in names[0]) != (n in names[1]) for n in broken)
    assert names[0] - set(broken) == names[1] - set(broken)


@settings(max_examples=200, deadline=None)
@given(two_shapes())
def test_turned_around_it_says_the_same(shapes):
    left, right, broken = align(*shapes)
    again_right, again_left, again = align(*shapes[::-1])
    assert len(broken) == len(again)
    assert broken or (left, right) == (again_left, again_right)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((2, 12), (2, 3, 4), "a (b c) -> a b c"),
        ((7, 3, 32), (7, 12, 8), "a b (c d) -> a (b c) d"),
        ((2, 3, 4), (24,), "a b c -> (a b c)"),
        ((4, 1, 6), (4, 6), "a 1 b -> a b"),
        ((6, 4), (4, 6), "- - -> - -"),
        ((5, 6, 4), (5, 4, 6), "a - - -> a - -"),
        ((1,), (1, 1), "1 -> 1 1"),
        ((0, 3), (3, 0), "- - -> - -"),
    ],
)
def test_examples(left, right, expected):
    *terms, broken = align(left, right)
    letter = dict(zip(dict.fromkeys(n for side in terms for axis in names_of(side) for n in axis if n not in broken), "abcdef"))

    def spelled(axis: list[str]) -> str:
        if not axis or axis[0] in broken:
            return "-" if axis else "1"
        return letter[axis[0]] if len(axis) == 1 else f"({' '.join(letter[n] for n in axis)})"

    assert " -> ".join(" ".join(map(spelled, names_of(side))) for side in terms) == expected
