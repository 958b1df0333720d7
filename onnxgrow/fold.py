"""Shape arithmetic as numbers: the handful of operators that exporters compute sizes with, on small host arrays.

Each function takes the node and its input arrays (None where an optional input is absent) and returns the output arrays.
Semantics follow the ONNX operator specification (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np
from onnx import helper, numpy_helper

LIMIT = 4096  # elements; larger tensors are data, not sizes
BOUNDS, LONGEST = {"Min", "Max"}, 8  # operators that also compare lists of sizes as floats, and the entries of such a list


def _axes(node, inputs, slot=1, key="axes"):
    if len(inputs) > slot and inputs[slot] is not None:
        return [int(a) for a in np.ravel(inputs[slot])]
    return node.attrs.get(key)


def _unsqueeze(node, x, *rest):
    axes = _axes(node, (x, *rest))
    rank = x.ndim + len(axes)
    for a in sorted(a % rank for a in axes):
        x = np.expand_dims(x, a)
    return x


def _squeeze(node, x, *rest):
    axes = _axes(node, (x, *rest))
    return np.squeeze(x, axis=tuple(axes) if axes is not None else None)


def slice_arguments(node, inputs, rank):
    """(axis, start, end, step) per sliced axis, as written: opset 1 keeps them in attributes, later ones in inputs."""
    if node.version < 10:
        starts, ends = node.attrs["starts"], node.attrs["ends"]
        axes, steps = node.attrs.get("axes"), None
    else:
        starts, ends = (np.ravel(v).tolist() for v in inputs[1:3])
        axes = _axes(node, inputs, 3, "")
        steps = _axes(node, inputs, 4, "")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    return [(a % rank, int(s), int(e), int(t)) for a, s, e, t in zip(axes, starts, ends, steps)]


def _slice(node, x, *rest):
    index = [slice(None)] * x.ndim
    for axis, start, end, step in slice_arguments(node, (x, *rest), x.ndim):
        n = x.shape[axis]
        low, high = (0, n) if step > 0 else (-1, n - 1)
        first, last = (v + n if v < 0 else v for v in (start, end))
        first, last = min(max(first, 0), high), min(max(last, low), high)
        index[axis] = slice(first, None if last < 0 else last, step)
    return x[tuple(index)]


def _cast(node, x):
    return x.astype(helper.tensor_dtype_to_np_dtype(node.attrs["to"]))


def _div(node, a, b):
    if np.issubdtype(np.result_type(a), np.integer):
        return (np.sign(a) * np.sign(b) * (np.abs(a) // np.maximum(np.abs(b), 1))).astype(a.dtype)  # towards zero, as the spec says
    return a / b


def _mod(node, a, b):
    return np.fmod(a, b) if node.attrs.get("fmod") else np.mod(a, b)


def _reshape(node, x, shape):
    target = [x.shape[i] if d == 0 and not node.attrs.get("allowzero") else int(d) for i, d in enumerate(shape)]
    return x.reshape(target)


def _constant_of_shape(node, shape):
    fill = node.attrs.get("value")
    fill = numpy_helper.to_array(fill).ravel()[0] if fill is not None else np.float32(0)
    return np.full([int(d) for d in shape], fill)


def _one_hot(node, indices, depth, values):
    axis, size = node.attrs.get("axis", -1), int(np.ravel(depth)[0])
    lit = np.arange(size) == np.expand_dims(np.where(indices < 0, indices + size, indices), -1)
    return np.moveaxis(np.where(lit, values[1], values[0]), -1, axis)


def _reduce(f):
    def run(node, x, *rest):
        axes = _axes(node, (x, *rest))
        if axes is None and node.attrs.get("noop_with_empty_axes"):
            return x
        return f(x, axis=tuple(axes) if axes is not None else None, keepdims=bool(node.attrs.get("keepdims", 1))).astype(x.dtype)
    return run


def _split(node, x, *rest):
    axis = node.attrs.get("axis", 0)
    sizes = _axes(node, (x, *rest), 1, "split")
    if sizes is None:
        parts = node.attrs.get("num_outputs", len(node.outputs))
        step = -(-x.shape[axis] // parts)
        cuts = list(range(step, x.shape[axis], step))
    else:
        cuts = np.cumsum(sizes)[:-1].tolist()
    return np.split(x, cuts, axis=axis)


FOLD = {
    "Abs": lambda n, x: np.abs(x), "Neg": lambda n, x: -x, "Not": lambda n, x: ~x, "Identity": lambda n, x: x,
    "Sqrt": lambda n, x: np.sqrt(x), "Reciprocal": lambda n, x: (1 / x).astype(x.dtype), "Ceil": lambda n, x: np.ceil(x),
    "Floor": lambda n, x: np.floor(x), "Exp": lambda n, x: np.exp(x), "Log": lambda n, x: np.log(x),
    "Add": lambda n, a, b: a + b, "Sub": lambda n, a, b: a - b, "Mul": lambda n, a, b: a * b, "Div": _div, "Mod": _mod,
    "Pow": lambda n, a, b: np.power(a, b).astype(a.dtype), "Max": lambda n, *v: np.maximum.reduce(np.broadcast_arrays(*v)),
    "Min": lambda n, *v: np.minimum.reduce(np.broadcast_arrays(*v)),
    "Equal": lambda n, a, b: a == b, "Less": lambda n, a, b: a < b, "Greater": lambda n, a, b: a > b,
    "LessOrEqual": lambda n, a, b: a <= b, "GreaterOrEqual": lambda n, a, b: a >= b,
    "And": lambda n, a, b: a & b, "Or": lambda n, a, b: a | b, "Where": lambda n, c, a, b: np.where(c, a, b),
    "Cast": _cast, "CastLike": lambda n, a, b: a.astype(b.dtype), "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Slice": _slice, "Reshape": _reshape,
    "Concat": lambda n, *v: np.concatenate(v, axis=n.attrs["axis"]),
    "Gather": lambda n, x, i: np.take(x, i, axis=n.attrs.get("axis", 0)),
    "Expand": lambda n, x, s: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(d) for d in s))),
    "ConstantOfShape": _constant_of_shape, "Range": lambda n, a, b, c: np.arange(a, b, c, dtype=a.dtype),
    "Transpose": lambda n, x: np.transpose(x, n.attrs.get("perm")), "Size": lambda n, x: np.asarray(x.size),
    "ReduceProd": _reduce(np.prod), "ReduceSum": _reduce(np.sum), "ReduceMax": _reduce(np.max), "ReduceMin": _reduce(np.min),
    "OneHot": _one_hot, "NonZero": lambda n, x: np.array(np.nonzero(x), np.int64), "Split": _split, "Tile": lambda n, x, r: np.tile(x, r), "Flatten": lambda n, x: x.reshape(int(np.prod(x.shape[: n.attrs.get("axis", 1)])), -1),
}


TOGETHER = {"Add", "Sub", "Mul", "Div", "Mod", "Pow", "Max", "Min", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Where"}  # shapes meet


def foldable(value: np.ndarray) -> bool:
    """Integers and booleans up to a limit, floats only where they are one number: a small float weight or an empty cache is none."""
    return value.size == 1 if is_float(value.dtype) else value.size <= LIMIT


@lru_cache(64)
def is_float(dtype: np.dtype) -> bool:
    """Also for bfloat16 and the float8 types, which numpy does not count among its own."""
    return "float" in dtype.name


def _too_many(node, inputs: list[np.ndarray | None]) -> bool:
    """Would the outputs be larger than anything that counts as sizes? Asked before they are made: a few bytes may ask for terabytes."""
    shapes = [x.shape for x in inputs if x is not None]
    if node.op == "Range":
        start, stop, step = (float(np.ravel(x)[0]) for x in inputs)
        return not step or abs(stop - start) / abs(step) > LIMIT
    if node.op == "ConstantOfShape":
        return prod(max(int(n), 0) for n in np.ravel(inputs[0])) > LIMIT
    if node.op == "Expand":
        return prod(max(int(n), 1) for n in np.ravel(inputs[1])) * inputs[0].size > LIMIT and prod(np.broadcast_shapes(inputs[0].shape, tuple(map(int, inputs[1])))) > LIMIT
    if node.op == "Tile":
        return prod(max(int(n), 1) for n in np.ravel(inputs[1])) * inputs[0].size > LIMIT  # axis by axis: a zero that comes later does not help
    if node.op == "OneHot":
        return abs(int(np.ravel(inputs[1])[0])) * inputs[0].size > LIMIT
    if node.op == "Gather":
        axis = node.attrs.get("axis", 0)
        return inputs[1].size * inputs[0].size > LIMIT * max(1, inputs[0].shape[axis])
    if node.op in TOGETHER:
        return prod(np.broadcast_shapes(*shapes)) > LIMIT
    return False


def fold(node, inputs: list[np.ndarray | None]) -> list[np.ndarray] | None:
    """The outputs of a node whose inputs are all known, or None where it is not shape arithmetic."""
    run = FOLD.get(node.op) if node.domain == "" else None
    if run is None or _too_many(node, inputs):
        return None
    with np.errstate(all="ignore"):
        out = run(node, *inputs)
    out = [np.asarray(o) for o in (out if isinstance(out, list) else [out])]
    return out if all(foldable(o) or node.op in BOUNDS and o.ndim == 1 and o.size <= LONGEST for o in out) else None
