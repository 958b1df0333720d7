"""The algebra of axes: unification keeps sizes and meaning, and what it says about positions is what ONNX Runtime does."""

from __future__ import annotations

from math import prod
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.axismap import Fill
from onnxgrow.errors import GraphError
from onnxgrow.graph import build
from onnxgrow.rulebook import load_builtin
from onnxgrow.rulecheck import Growth, runner
from onnxgrow.structure import tie
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


def shape_of(d: Dim) -> list[tuple[int, int]]:
    """Leaves as (which, size), numbered by first occurrence: the structure without the identities."""
    number: dict[Dim, int] = {}
    return [(number.setdefault(leaf, len(number)), leaf.size) for leaf in leaves(d)]


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
    assert (first is None) == (second is None)
    if first:
        assert shape_of(first[0][0]) == shape_of(second[0][0])


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


# Graphs that only move values: labels show where they go


class Memory(SimpleNamespace):
    """A model in memory, as `graph.build` and `rulecheck.Growth` take it."""

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in self.proto.graph.initializer if t.name == name))


class Program:
    """A graph that grows node by node; `shapes` of the tensors made so far."""

    def __init__(self, **inputs: tuple[int, ...]):
        self.inputs, self.shapes, self.nodes, self.constants = inputs, dict(inputs), [], []

    def add(self, op: str, ins: list[str], shapes: list[tuple[int, ...]], *operands: list[int], **attrs) -> list[str]:
        outs = [f"t{len(self.shapes) + i}" for i in range(len(shapes))]
        names = [f"c{len(self.constants) + i}" for i in range(len(operands))]
        self.constants += [numpy_helper.from_array(np.array(v, np.int64), n) for v, n in zip(operands, names)]
        self.nodes.append(helper.make_node(op, [*ins, *names], outs, name=f"{op}.{len(self.nodes)}", **attrs))
        self.shapes |= dict(zip(outs, shapes))
        return outs

    def memory(self, outputs: list[str]) -> Memory:
        value = helper.make_tensor_value_info
        ins = [value(n, TensorProto.INT64, s) for n, s in self.inputs.items()]
        outs = [value(n, TensorProto.INT64, self.shapes[n]) for n in outputs]
        graph = helper.make_graph(self.nodes, "program", ins, outs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        start, feeds = 1, {}
        for n, s in self.inputs.items():
            feeds[n] = np.arange(start, start + prod(s)).reshape(s)
            start += prod(s)
        return Memory(proto=model, feeds=feeds)


@st.composite
def programs(draw) -> Memory:
    shape = tuple(draw(st.lists(st.sampled_from([2, 3, 4, 6, 8]), min_size=2, max_size=3)))
    p = Program(x=shape, y=shape)
    for _ in range(draw(st.integers(1, 6))):
        t = draw(st.sampled_from(list(p.shapes)))
        shape = p.shapes[t]
        axis = draw(st.integers(0, len(shape) - 1))
        step = draw(st.sampled_from([merge, split_axis, transpose, cut, concat, slice_axis, squeeze]))
        step(draw, p, t, shape, axis)
    return p.memory([list(p.shapes)[-1], draw(st.sampled_from(list(p.shapes)[2:]))][: draw(st.integers(1, 2))] if len(p.shapes) > 2 else ["x"])


def merge(draw, p, t, shape, axis):
    if axis + 1 < len(shape):
        new = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
        p.add("Reshape", [t], [new], [draw(st.sampled_from([d, -1])) if i == axis else d for i, d in enumerate(new)])


def split_axis(draw, p, t, shape, axis):
    divisors = [d for d in range(2, shape[axis]) if shape[axis] % d == 0]
    if divisors:
        major = draw(st.sampled_from(divisors))
        new = (*shape[:axis], major, shape[axis] // major, *shape[axis + 1 :])
        p.add("Reshape", [t], [new], [0 if i < axis and draw(st.booleans()) else d for i, d in enumerate(new)])


def transpose(draw, p, t, shape, axis):
    perm = draw(st.permutations(range(len(shape))))
    p.add("Transpose", [t], [tuple(shape[i] for i in perm)], perm=list(perm))


def cut(draw, p, t, shape, axis):
    if shape[axis] > 1:
        first = draw(st.integers(1, shape[axis] - 1))
        sizes = [first, shape[axis] - first]
        parts = p.add("Split", [t], [(*shape[:axis], s, *shape[axis + 1 :]) for s in sizes], sizes, axis=axis)
        if draw(st.booleans()):
            p.add("Concat", parts[::-1], [shape], axis=axis)


def concat(draw, p, t, shape, axis):
    fits = [o for o, s in p.shapes.items() if len(s) == len(shape) and all(a == b for i, (a, b) in enumerate(zip(s, shape)) if i != axis)]
    other = draw(st.sampled_from(fits))
    p.add("Concat", [t, other], [(*shape[:axis], shape[axis] + p.shapes[other][axis], *shape[axis + 1 :])], axis=axis)


def slice_axis(draw, p, t, shape, axis):
    start, end = sorted(draw(st.lists(st.integers(0, shape[axis]), min_size=2, max_size=2)))
    if start < end:
        back = draw(st.booleans()) and start > 0
        operands = [start - shape[axis] if back else start], [end - shape[axis] if back and end < shape[axis] else end], [axis]
        p.add("Slice", [t], [(*shape[:axis], end - start, *shape[axis + 1 :])], *operands)


def squeeze(draw, p, t, shape, axis):
    if 1 in shape:
        at = shape.index(1)
        if len(shape) > 1:
            p.add("Squeeze", [t], [shape[:at] + shape[at + 1 :]], [at])
    elif len(shape) < 5:
        p.add("Unsqueeze", [t], [(*shape[:axis], 1, *shape[axis:])], [axis])


def grown(a: np.ndarray, axes) -> np.ndarray:
    """Old labels where the maps say, 0 in the new places."""
    out = np.zeros([m.new for m in axes], a.dtype)
    kept = [np.flatnonzero(m.fill == Fill.OLD) for m in axes]
    out[np.ix_(*kept)] = a[np.ix_(*(m.source[k] for m, k in zip(axes, kept)))]
    return out


def positions_hold(memory: Memory, choose) -> bool:
    """Grow one dim of a program: the runtime must put every label where the extents say. False where it is refused."""
    before = runner(memory.proto)(memory.feeds)
    s = tie(build(memory), load_builtin())
    assert not s.blocked
    dims = list(dict.fromkeys(leaf for t in memory.feeds for d in s.dims[t] for leaf in leaves(d) if leaf.size > 1))
    part = choose(dims)
    growth = Growth(memory, before, s, load_builtin(), part, part.size + 2)
    try:
        model = growth.grown
    except GraphError:
        return False
    after = runner(model)({t: grown(a, growth.axes(t, "free")) for t, a in memory.feeds.items()})
    for t in before:
        assert np.array_equal(after[t], grown(before[t], growth.axes(t, "free")))
    return True


@settings(max_examples=300, deadline=None)
@given(programs(), st.data())
def test_extents_predict_positions(memory, data):
    event("grown" if positions_hold(memory, lambda dims: data.draw(st.sampled_from(dims))) else "refused")
