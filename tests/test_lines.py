"""The language of rule lines: what it says, what it refuses, and what `apply` makes of it."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxgrow.lines import Occurrence, apply, parse
from onnxgrow.structure import term_size
from onnxgrow.ties import Dim, TieError, describe, find

A, B, C = (("a",),), (("b",),), (("c",),)


@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [
        ("a b -> b a", ((A, B),), ((B, A),)),
        ("... a, a -> ...", (("...", A), (A,)), (("...",),)),
        ("(a b) -> a b", (((("a", "b"),),),), ((A, B),)),
        ("a+b -> a, b", (((("a",), ("b",)),),), ((A,), (B,))),
        ("a + b->a,b", (((("a",), ("b",)),),), ((A,), (B,))),
        ("(a b)+(a c) -> a", (((("a", "b"), ("a", "c")),),), ((A,),)),
        ("1 a, _ -> _ a", (("1", A), ("_",)), (("_", A),)),
        ("-> a", (), ((A,),)),
        ("batch n0c1 -> n0c1", (((("batch",),), (("n0c1",),)),), (((("n0c1",),),),)),
    ],
)
def test_what_a_line_says(text, inputs, outputs):
    assert (parse(text).inputs, parse(text).outputs) == (inputs, outputs)


BROKEN = [
    "a b", "a? -> a", "a -> b -> c", "2 -> a", "a* -> a", ") -> a", "((a b)) -> a", "(a b -> a", "+a -> a", "a+ -> a", "(a+b) -> a", "a+1 -> a",
    "a+... -> a", "(a _) -> a", "() -> a", "... ... -> a",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_not_in_the_language_is_quoted(text):
    with pytest.raises(ValueError, match="rule line") as error:
        parse(text)
    assert any(part.strip() in str(error.value) for part in text.split("->"))


names = st.text(string.ascii_lowercase, min_size=1, max_size=3)
terms = st.one_of(st.tuples(names), st.tuples(names, names))
elements = st.one_of(st.sampled_from(["1", "_"]), st.lists(terms, min_size=1, max_size=3).map(tuple))
tensors = st.lists(elements, min_size=1, max_size=4).map(tuple)


def spelled(tensor: tuple) -> str:
    term = lambda t: t[0] if len(t) == 1 else f"({' '.join(t)})"
    return " ".join(e if isinstance(e, str) else "+".join(map(term, e)) for e in tensor)


@settings(max_examples=200, deadline=None)
@given(st.lists(tensors, max_size=3), st.lists(tensors, max_size=3))
def test_what_is_written_is_read(inputs, outputs):
    line = parse(f"{', '.join(map(spelled, inputs))} -> {', '.join(map(spelled, outputs))}")
    assert line.inputs == tuple(inputs) and line.outputs == tuple(outputs)


# Applied to the shapes of a node


def tied(text: str, inputs: list, outputs: list, **sizes: int):
    """Occurrences, dims by name, and what each axis consists of."""
    dims = tuple([None if shape is None else [Dim(d) for d in shape] for shape in side] for side in (inputs, outputs))
    kept, named = apply(parse(text), (inputs, outputs), dims, sizes)
    return kept, named, [[describe(d) for d in tensor] for side in dims for tensor in side if tensor is not None]


def test_axes_of_one_name_become_one():
    kept, named, _ = tied("... m k, ... k n -> ... m n", [(2, 3, 4), (4, 5)], [(2, 3, 5)])
    assert {n: find(d).size for n, d in named.items()} == {"...0": 2, "m": 3, "k": 4, "n": 5}
    assert [o for o in kept if o.names == ("k",)] == [Occurrence(False, 0, 2, ("k",)), Occurrence(False, 1, 0, ("k",))]


def test_axes_of_size_one_are_not_tied():
    kept, named, _ = tied("..., ... -> ...", [(2, 1, 4), (3, 4)], [(2, 3, 4)])
    assert [(o.slot, o.axis) for o in kept if not o.output] == [(0, 0), (0, 2), (1, 0), (1, 1)]
    assert find(named["...1"]).size == 3


def test_a_product_takes_its_sizes_from_axes_that_have_them_alone():
    kept, _, extents = tied("a (h d) -> a h d", [(2, 12)], [(2, 3, 4)])
    assert extents == [["2", "3·4"], ["2", "3", "4"]]
    assert Occurrence(False, 0, 1, ("h", "d")) in kept


def test_a_sum_takes_the_last_size_from_the_rest():
    assert tied("a+b+c -> a, c", [(9,)], [(2,), (3,)])[2] == [["2 + 4 + 3"], ["2"], ["3"]]
    assert tied("p+q -> q", [(9,)], [(4,)])[2] == [["5 + 4"], ["4"]]


def test_sizes_that_no_axis_shows_are_given():
    assert tied("p+q+r -> q", [(9,)], [(4,)], p=2)[2] == [["2 + 4 + 3"], ["4"]]


def test_factors_of_size_one_and_parts_of_size_zero_leave_no_trace():
    kept, _, extents = tied("(a b) -> a b", [(4,)], [(1, 4)])
    assert extents == [["4"], ["1", "4"]] and kept[0].names == ("b",)
    kept, _, extents = tied("a+b -> a, b", [(4,)], [(0,), (4,)])
    assert extents == [["4"], ["0"], ["4"]] and kept[0].names == ("b",)


def test_a_lone_underscore_skips_a_tensor_of_any_rank_and_absent_tensors_are_left_out():
    kept, _, _ = tied("a, _, b -> a", [(2,), (5, 6, 7), None], [(2,)])
    assert {(o.output, o.slot) for o in kept} == {(False, 0), (True, 0)}


@pytest.mark.parametrize(
    ("text", "inputs", "outputs", "message"),
    [
        ("a b -> a", [(2, 3, 4)], [(2,)], "the rule expects 2 axes, the tensor has 3"),
        ("... a b -> a", [(2,)], [(2,)], "the rule expects at least 2 axes, the tensor has 1"),
        ("a, a -> a", [(2,), (3,)], [(2,)], "a is 2 and 3"),
        ("(a b) -> c", [(6,)], [(6,)], "the size of 'a' is not determined"),
        ("(a b) -> a", [(10,)], [(4,)], "differ in size|no size"),
        ("a+b -> a", [(4,)], [(6,)], "no size"),
    ],
)
def test_what_does_not_fit_is_refused(text, inputs, outputs, message):
    with pytest.raises(TieError, match=message):
        tied(text, inputs, outputs)


@pytest.mark.parametrize(("text", "expected"), [("_", None), ("", None), ("a", 2), ("-a", -2), ("a+b", 5), ("-(a b)+b", -9), ("(a b)", 6)])
def test_terms_of_operands_are_numbers(text, expected):
    assert term_size(text, {"a": Dim(2), "b": Dim(3)}, lambda d: d.size) == expected
