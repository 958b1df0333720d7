"""Shape arithmetic on host arrays is what ONNX Runtime computes, value, shape and type."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.fold import FOLD, LIMIT, fold, foldable
from onnxgrow.graph import Node
from onnxgrow.rulerun import runner


def array(value, dtype=np.int64) -> np.ndarray:
    return np.array(value, dtype)


def both(op: str, inputs: list, opset: int = 17, outputs: int = 1, **attrs) -> tuple[list, list]:
    """What `fold` and the runtime make of a node."""
    names = [f"x{i}" if v is not None else "" for i, v in enumerate(inputs)]
    made = [f"y{i}" for i in range(outputs)]
    proto = helper.make_node(op, names, made, **attrs)
    feeds = {n: v for n, v in zip(names, inputs) if n}
    values = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()]
    graph = helper.make_graph([proto], "one", values, [onnx.ValueInfoProto(name=n) for n in made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return fold(Node(0, proto, names, opset), inputs), list(runner(model)(feeds).values())


def assert_same(ours: list | None, theirs: list) -> None:
    assert ours is not None and len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


ONE, MANY = array(7), array([5, -3, 0, 8])
TABLE = array(range(24)).reshape(2, 3, 4)
CASES = {
    "Abs": [([MANY], {}), ([array(-2.5, np.float32)], {})],
    "Neg": [([MANY], {})],
    "Not": [([np.array([True, False])], {}), ([np.array(True)], {})],
    "Identity": [([MANY], {}), ([ONE], {})],
    "Sqrt": [([array(2.0, np.float32)], {}), ([array([9.0], np.float64)], {})],
    "Reciprocal": [([array(3.0, np.float32)], {})],
    "Ceil": [([array(2.5, np.float32)], {})],
    "Floor": [([array(-2.5, np.float32)], {})],
    "Exp": [([array(0.0, np.float32)], {})],
    "Log": [([array(1.0, np.float32)], {})],
    "Add": [([MANY, ONE], {}), ([MANY.reshape(4, 1), MANY], {})],
    "Sub": [([MANY, ONE], {})],
    "Mul": [([MANY, MANY], {}), ([array(1.5, np.float32), array(2.0, np.float32)], {})],
    "Div": [([array([7, -7, 7, -7]), array([2, 2, -2, -2])], {}), ([array(7, np.int32), array(2, np.int32)], {}),
        ([array(7.0, np.float32), array(2.0, np.float32)], {})],
    "Mod": [([array([7, -7, 7, -7]), array([3, 3, -3, -3])], {}), ([array([7, -7]), array([3, 3])], {"fmod": 1})],
    "Pow": [([array(3.0, np.float32), array(2.0, np.float32)], {}), ([array([2, 3]), array([3, 2])], {}),
        ([array(64.0, np.float32), array(0.5, np.float32)], {}),
            ([array(3.0, np.float32), array(2)], {})],
    "Max": [([MANY, ONE, array([9, 9, -9, 9])], {}), ([MANY], {})],
    "Min": [([MANY, ONE], {}), ([array([2, 3], np.int32), array([3, 2], np.int32)], {})],
    **{op: [([MANY, array(0)], {}), ([MANY, MANY], {})] for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")},
    "And": [([np.array([True, False]), np.array([True, True])], {})],
    "Or": [([np.array([True, False]), np.array([False, False])], {})],
    "Where": [([np.array([True, False, True, False]), MANY, ONE], {}), ([np.array([[True], [False]]), MANY, array([1, 2, 3, 4])], {})],
    "Cast": [([MANY], {"to": TensorProto.INT32}), ([array(2.7, np.float32)], {"to": TensorProto.INT64}),
        ([array(-2.7, np.float32)], {"to": TensorProto.INT64}),
             ([MANY], {"to": TensorProto.BOOL}), ([array([5])], {"to": TensorProto.FLOAT})],
    "CastLike": [([MANY, array(1, np.int32)], {}), ([ONE, array(1.0, np.float32)], {})],
    "Unsqueeze": [([MANY, array([0])], {}), ([MANY, array([0, 2])], {}), ([MANY, array([-1, 0])], {}), ([ONE, array([0])], {})],
    "Squeeze": [([array([[5]]), array([0])], {}), ([array([[[5], [6]]]), array([-1, 0])], {}), ([array([[5]])], {})],
    "Slice": [([TABLE, array(s), array(e), array(a), array(t)], {}) for s, e, a, t in (
        ([1], [3], [2], [1]), ([-1], [-100], [2], [-1]), ([2], [0], [2], [-1]), ([-100], [100], [1], [2]),
            ([0, 3], [1, 0], [0, 2], [1, -2]), ([3], [-6], [-1], [-2]))]
    + [([MANY, array([1]), array([2**63 - 1])], {}), ([MANY, array([2]), array([1])], {}),
        ([MANY, array([-1]), array([-(2**63)]), array([0]), array([-1])], {})],
    "Reshape": [([TABLE, array([6, -1])], {}), ([TABLE, array([0, 12])], {}), ([TABLE, array([0, 0, 4, 1])], {}),
        ([array([5]), np.zeros(0, np.int64)], {})],
    "Concat": [([MANY, array([1])], {"axis": 0}), ([TABLE, TABLE], {"axis": -2})],
    "Gather": [([MANY, array(1)], {}), ([MANY, array([0, -1])], {}), ([TABLE, array([[2, 0]])], {"axis": -1}),
        ([TABLE, array(1)], {"axis": 1})],
    "Expand": [([array([1]), array([3])], {}), ([array([[1], [2]]), array([2, 1, 3])], {}), ([ONE, array([2, 2])], {}),
        ([TABLE, array([1])], {})],
    "ConstantOfShape": [([array([2, 2])], {"value": numpy_helper.from_array(array([3]))}), ([array([1])], {}),
        ([np.zeros(0, np.int64)], {})],
    "Range": [([array(0), array(7), array(2)], {}), ([array(5), array(0), array(-2)], {}), ([array(3), array(3), array(1)], {})],
    "Transpose": [([TABLE], {"perm": [2, 0, 1]}), ([TABLE], {})],
    "Size": [([TABLE], {}), ([ONE], {})],
    **{op: [([TABLE], {}), ([TABLE], {"keepdims": 0}), ([TABLE], {"axes": [1, -1], "keepdims": 0})] for op in ("ReduceProd", "ReduceMax",
        "ReduceMin")},
    "ReduceSum": [([TABLE], {}), ([TABLE, array([1])], {"keepdims": 0}), ([TABLE, array([-1, 0])], {}),
        ([TABLE], {"noop_with_empty_axes": 1})],
    "Split": [([MANY, array([1, 3])], {}), ([TABLE, array([1, 3])], {"axis": -1}), ([MANY], {})],
    "NonZero": [([array([0, 2, 0, 1])], {}), ([TABLE], {})],
    "OneHot": [([array([1, 0, -1]), array(3), array([5, 7])], {}), ([array([[1, 0]]), array([3]), array([0, 1])], {"axis": 0})],
    "Tile": [([MANY, array([2])], {}), ([array([[1, 2]]), array([2, 2])], {})],
    "Flatten": [([TABLE], {"axis": a}) for a in (0, 1, 2, 3, -1)] + [([TABLE], {})],
}


def test_every_operator_is_tried():
    assert set(CASES) == set(FOLD)


@pytest.mark.parametrize(("op", "inputs", "attrs"), [(op, *case) for op, found in CASES.items() for case in found])
def test_it_is_what_the_runtime_computes(op, inputs, attrs):
    assert_same(*both(op, inputs, outputs=2 if op == "Split" else 1, **attrs))


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs"),
    [
        ("Unsqueeze", [MANY], {"axes": [0, 2]}, 11, 1),
        ("Squeeze", [array([[5]])], {"axes": [1]}, 11, 1),
        ("Slice", [TABLE], {"starts": [1, 0], "ends": [3, 2], "axes": [2, 1]}, 9, 1),
        ("Slice", [MANY], {"starts": [-3], "ends": [-1]}, 1, 1),
        ("Split", [TABLE], {"split": [1, 3], "axis": 2}, 11, 2),
        ("Split", [array(range(7))], {"num_outputs": 3}, 18, 3),
        ("ReduceSum", [TABLE], {"axes": [0]}, 11, 1),
        ("ReduceMax", [TABLE, array([0])], {}, 18, 1),
        ("Reshape", [np.zeros((0, 3), np.int64), array([3, 0])], {"allowzero": 1}, 14, 1),
    ],
)
def test_other_opsets(op, inputs, attrs, opset, outputs):
    assert_same(*both(op, inputs, opset, outputs, **attrs))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_slices_of_any_kind(shape, data):
    x = np.arange(np.prod(shape)).reshape(shape)
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape), unique=True))
    steps = [data.draw(st.sampled_from([1, 2, -1, -2])) for _ in axes]
    starts = [data.draw(st.integers(-7 if step > 0 else -shape[axis], 7)) for axis, step in zip(axes, steps)]
    ends = [data.draw(st.one_of(st.integers(-7, 7), st.just(2**63 - 1 if step > 0 else -(2**63) + 1))) for step in steps]
    assert_same(*both("Slice", [x, *map(array, (starts, ends, axes, steps))]))


def test_a_backward_slice_from_before_the_first_entry():
    assert_same(*both("Slice", [MANY, array([-9]), array([-99]), array([0]), array([-1])]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9).filter(bool)), min_size=1, max_size=4),
    st.sampled_from(["Div", "Mod", "Mul", "Sub", "Min"]))
def test_whole_numbers_of_any_sign(pairs, op):
    a, b = zip(*pairs, strict=True)
    assert_same(*both(op, [array(a), array(b)]))


def test_only_sizes_are_folded():
    node = lambda op, domain="": SimpleNamespace(op=op, domain=domain, attrs={}, outputs=["y"], version=17)
    assert fold(node("Relu"), [MANY]) is None
    assert fold(node("Add", "com.microsoft"), [MANY, MANY]) is None
    assert fold(node("Add"), [array([1.0, 2.0], np.float32)] * 2) is None, "a small float weight stays a weight"
    assert fold(node("Add"), [array(1.0, np.float32)] * 2) is not None
    assert foldable(np.zeros(LIMIT, np.int64)) and not foldable(np.zeros(LIMIT + 1, np.int64))


@pytest.mark.parametrize(("op", "inputs"),
    [("Concat", [MANY, TABLE]), ("Gather", [MANY, array(9)]), ("Reshape", [MANY, array([3])]), ("Add", [MANY, MANY[:3]])])
def test_what_does_not_fit_raises_what_the_walk_catches(op, inputs):
    with pytest.raises((ValueError, IndexError, TypeError)):
        fold(Node(0, helper.make_node(op, ["a", "b"], ["y"], axis=0), ["a", "b"], 17), inputs)
