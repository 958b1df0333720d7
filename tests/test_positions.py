"""Graphs that only move values, made at random and fed with labels: extents say where each goes, and ONNX Runtime puts it there."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.axismap import Fill
from onnxgrow.errors import GraphError
from onnxgrow.graph import build
from onnxgrow.rulebook import Registry, Rule, load_builtin
from onnxgrow.rulegrowth import Growth
from onnxgrow.rulerun import runner
from onnxgrow.structure import tie
from onnxgrow.ties import leaves
from tests.textgraph import Memory

BUILTIN = load_builtin()


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
    assume(p.nodes)
    return p.memory([list(p.shapes)[-1]])


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


def positions_hold(memory: Memory, choose, registry: Registry = BUILTIN) -> bool:
    """Grow one dim of a program: the runtime must put every label where the extents say. False where it is refused."""
    before = runner(memory.proto)(memory.feeds)
    s = tie(build(memory), registry)
    found = dict.fromkeys(leaf for t in memory.feeds for d in s.dims[t] for leaf in leaves(d))
    part = choose([d for d in found if d.size > 1 and d not in s.frozen])
    if part is None:
        return False
    growth = Growth(memory, before, s, registry, part, part.size + 2)
    try:
        model = growth.grown
    except GraphError:
        return False
    if "refuse" in growth.kinds:
        return False
    after = runner(model)({t: grown(a, growth.axes(t, "free")) for t, a in memory.feeds.items()})
    for t in before:
        assert np.array_equal(after[t], grown(before[t], growth.axes(t, "free")))
    return True


@settings(max_examples=300, deadline=None)
@given(programs(), st.data())
def test_extents_predict_positions(memory, data):
    event("grown" if positions_hold(memory, lambda dims: data.draw(st.sampled_from(dims)) if dims else None) else "refused")


@pytest.mark.parametrize(("line", "right"), [("a p, a q -> a p+q", True), ("a p, a q -> a q+p", False)])
def test_a_wrong_tie_moves_labels(line, right):
    p = Program(x=(2, 4), y=(2, 6))
    p.add("Concat", ["x", "y"], [(2, 10)], axis=1)
    registry = Registry()
    registry.add("Concat", 1, lambda op: Rule(line))
    memory = p.memory(list(p.shapes)[-1:])
    if right:
        assert positions_hold(memory, lambda dims: dims[1], registry)
    else:
        with pytest.raises(AssertionError):
            positions_hold(memory, lambda dims: dims[1], registry)


def dims_of(p: Program):
    return tie(build(p.memory(list(p.shapes)[-1:])), BUILTIN).dims


def test_heads_fall_out_of_a_fused_projection():
    """GPT-2: nobody says what a head is, and yet q and k share their heads and width while v has a width of its own."""
    p = Program(x=(2, 5, 12), w=(12, 36), o=(12, 14))
    (fused,) = p.add("MatMul", ["x", "w"], [(2, 5, 36)])
    parts = p.add("Split", [fused], [(2, 5, 12)] * 3, [12, 12, 12], axis=2)
    heads = [p.add("Reshape", [t], [(2, 5, 3, 4)], [2, 5, 3, 4])[0] for t in parts]
    (q,), (k,), (v,) = (
        p.add("Transpose", [t], [shape], perm=perm)
        for t, shape, perm in zip(heads, [(2, 3, 5, 4), (2, 3, 4, 5), (2, 3, 5, 4)], ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    )
    (scores,) = p.add("MatMul", [q, k], [(2, 3, 5, 5)])
    (context,) = p.add("MatMul", [scores, v], [(2, 3, 5, 4)])
    (back,) = p.add("Transpose", [context], [(2, 5, 3, 4)], perm=[0, 2, 1, 3])
    (flat,) = p.add("Reshape", [back], [(2, 5, 12)], [2, 5, 12])
    p.add("MatMul", [flat, "o"], [(2, 5, 14)])
    dims = dims_of(p)
    n, dk, *rest = leaves(dims["w"][1])
    assert [leaf.size for leaf in (n, dk, *rest)] == [3, 4] * 3
    assert rest[:3] == [n, dk, n] and rest[3] is not dk and leaves(dims["o"][0]) == (n, rest[3])


def test_rotary_halves_are_one_dim_twice():
    p = Program(x=(2, 5, 8), cos=(5, 8))
    halves = p.add("Split", ["x"], [(2, 5, 4)] * 2, [4, 4], axis=2)
    (turned,) = p.add("Concat", halves[::-1], [(2, 5, 8)], axis=2)
    (a,), (b,) = p.add("Mul", ["x", "cos"], [(2, 5, 8)]), p.add("Mul", [turned, "cos"], [(2, 5, 8)])
    p.add("Add", [a, b], [(2, 5, 8)])
    first, second = leaves(dims_of(p)["x"][2])
    assert first is second and first.size == 4
