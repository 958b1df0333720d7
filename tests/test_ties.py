"""The algebra of extents: unification keeps sizes, identities and meaning. What it says about graphs: test_positions.py."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from onnxgrow.ties import Dim, TieError, describe, find, leaves, product, total, unify

quick = settings(max_examples=200, deadline=None)


# Extents as plain data: a size, or ("*" or "+", parts). A spec is made into a Dim as often as a test needs it.


@st.composite
def specs(draw, size: int, depth: int = 3):
    divisors = [d for d in range(2, size) if size % d == 0]
    kinds = ["atom", *["*"] * bool(divisors), *["+"] * (size > 2)] if depth else ["atom"]
    kind = draw(st.sampled_from(kinds))
    if kind == "atom":
        return size
    first = draw(st.sampled_from(divisors)) if kind == "*" else draw(st.integers(1, size - 1))
    rest = size // first if kind == "*" else size - first
    return kind, [draw(specs(first, depth - 1)), draw(specs(rest, depth - 1))]


def same_size(count: int):
    return st.sampled_from([2, 4, 6, 8, 12, 16, 24]).flatmap(lambda n: st.tuples(*[specs(n)] * count))


def made(spec, atoms: list[Dim]) -> Dim:
    if isinstance(spec, int):
        atoms.append(Dim(spec))
        return atoms[-1]
    parts = [made(p, atoms) for p in spec[1]]
    return product(parts) if spec[0] == "*" else total(parts)


def value(d: Dim) -> int:
    d = find(d)
    if d.form is None:
        return d.size
    values = [value(p) for p in d.form[1]]
    return prod(values) if d.form[0] == "*" else sum(values)


def places(d: Dim) -> list[tuple]:
    """Each index of an extent as coordinates (leaf, position): a product is row-major, a sum one part after the other."""
    d = find(d)
    if d.form is None:
        return [((id(d), i),) if d.size > 1 else () for i in range(d.size)]
    return arranged(d.form[0], [places(p) for p in d.form[1]])


def arranged(kind: str, parts: list[list[tuple]]) -> list[tuple]:
    out = parts[0]
    for p in parts[1:]:
        out = out + p if kind == "+" else [a + b for a in out for b in p]
    return out


def spelled(spec, atoms) -> list[tuple]:
    """`places` of a spec as it was written, its atoms being what they are by now."""
    if isinstance(spec, int):
        return places(next(atoms))
    return arranged(spec[0], [spelled(p, atoms) for p in spec[1]])


def united(specs, order) -> list[tuple[Dim, list[Dim]]] | None:
    """Dims of the specs, tied in pairs; None where that is refused."""
    out = []
    for spec in specs:
        atoms: list[Dim] = []
        out.append((made(spec, atoms), atoms))
    try:
        for a, b in order:
            unify(out[a][0], out[b][0])
    except TieError:
        return None
    return out


def pattern(d: Dim) -> list[tuple]:
    """`places` with the leaves numbered by first occurrence, so that two unifications can be compared."""
    number: dict[int, int] = {}
    return [tuple((number.setdefault(leaf, len(number)), i) for leaf, i in place) for place in places(d)]


@quick
@given(same_size(2))
@example(((("*", [4, 3])), ("+", [6, 6])))
def test_sizes_are_kept_and_the_two_are_one(pair):
    dims = united(pair, [(0, 1)])
    assume(dims)
    (a, left), (b, right) = dims
    assert find(a) is find(b) and value(a) == a.size == b.size
    assert all(value(d) == find(d).size == d.size for d in (*left, *right))


@quick
@given(same_size(2))
def test_no_dim_is_tied_to_one_of_another_size_even_where_it_is_refused(pair):
    atoms: list[Dim] = []
    a, b = (made(spec, atoms) for spec in pair)
    try:
        unify(a, b)
    except TieError:
        event("refused")
    assert all(value(d) == find(d).size == d.size for d in (*atoms, a, b))


@quick
@given(same_size(3))
def test_the_meaning_of_an_extent_stays_as_it_was_written(specs):
    """(a+b)·c may become a·c + b·c, but each index stays where it was."""
    dims = united(specs, [(0, 1), (1, 2)])
    assume(dims)
    for spec, (d, atoms) in zip(specs, dims):
        assert spelled(spec, iter(atoms)) == places(d)


@quick
@given(same_size(2))
def test_twice_is_once(pair):
    dims = united(pair, [(0, 1)])
    assume(dims)
    before = leaves(dims[0][0])
    unify(dims[0][0], dims[1][0])
    unify(dims[1][0], dims[0][0])
    assert leaves(dims[0][0]) == leaves(dims[1][0]) == before


@quick
@given(same_size(3), st.permutations([(0, 1), (1, 2), (0, 2)]), st.booleans())
def test_the_order_of_ties_does_not_matter(specs, order, turned):
    first = united(specs, [(0, 1), (1, 2)])
    second = united(specs, [(b, a) if turned else (a, b) for a, b in order])
    assume(first and second)  # cuts are made from the left, so that an order may be refused where another is not
    assert pattern(first[0][0]) == pattern(second[0][0])


def test_other_sizes_are_refused():
    with pytest.raises(TieError, match="6 and 4 differ in size"):
        unify(Dim(6), Dim(4))


def test_products_without_a_common_boundary_are_refused():
    with pytest.raises(TieError, match=r"4·9 and 6·6 have no common boundary"):
        unify(product([Dim(4), Dim(9)]), product([Dim(6), Dim(6)]))


def test_a_sum_that_cuts_inside_a_product_is_refused():
    with pytest.raises(TieError, match=r"5 \+ 7 cuts 3·4 inside its inner factors"):
        unify(product([Dim(3), Dim(4)]), total([Dim(5), Dim(7)]))


def test_a_sum_cuts_the_major_factor():
    rows, inner, first, second = Dim(6), Dim(4), Dim(16), Dim(8)
    unify(product([rows, inner]), total([first, second]))
    assert [describe(d) for d in (rows, first, second)] == ["4 + 2", "4·4", "2·4"]
    assert leaves(first)[1] is leaves(second)[1] is inner
