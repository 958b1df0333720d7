"""Whole-number tensors that only sizes decide (positions, grids, triangles), recognised by what they hold at every binding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from ..fold import FOLD
from ..graph import Node
from .build import Build
from .sizes import Numbers, Sizes
from .steps import ATOM, Step

WHOLE = {TensorProto.BOOL, TensorProto.INT64, TensorProto.INT32}
SPREADS = {"Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Gather", "GatherElements", "Tile", "Flatten"}


def table_step(sizes: Sizes, node: Node, resolve: Callable[[str], str], filled: dict[str, int]) -> Step | None:
    """The step for a node whose result is such a tensor, or that only reads another one in its own order.

    `filled` keeps what is known to be one whole number everywhere, even where its places depend on what is fed.
    """
    if len(node.outputs) != 1:
        return None
    value = _fill_of(sizes, node.inputs[0], filled) if node.op in SPREADS else None
    if value is not None:
        filled[node.outputs[0]] = value
        if sizes.values(node.outputs[0]) is None:
            return _filled(Build(node, sizes, resolve, filled), value, len(sizes.shape(node.outputs[0])), sizes.type(node.inputs[0]))
    if node.op in ("GatherND", "Gather"):
        step = _grid_read(sizes, node, resolve, filled)
        if step is not None:
            return step
    values = evaluate(sizes, node.outputs[0])
    if values is None or any(v.size < 2 for v in values) or values[0].dtype.kind not in "iub":
        return None
    if all(np.array_equal(v, values[0]) for v in values[1:]):
        return None
    b = Build(node, sizes, resolve, filled)
    fill = values[0].ravel()[0]
    if all((v == fill).all() for v in values):
        filled[node.outputs[0]] = int(fill)
        return _filled(b, int(fill), values[0].ndim, sizes.type(node.outputs[0]))
    return _steps(b, values) or _triangle(b, values)


DEEP = 12  # nodes on the way back to what is known


def evaluate(sizes: Sizes, tensor: str) -> list[np.ndarray] | None:
    """What a tensor of whole numbers holds at each binding, where stored tables and sizes alone decide it."""
    found = sizes.values(tensor)
    if found is not None or sizes.walks[0].types.get(tensor) not in WHOLE:
        return found
    if tensor not in sizes.tables:
        found = [_value(sizes, k, tensor, DEEP) for k in range(len(sizes.walks))]
        sizes.tables[tensor] = None if any(v is None for v in found) else found
    return sizes.tables[tensor]


def _value(sizes: Sizes, k: int, tensor: str, depth: int) -> np.ndarray | None:
    w, graph = sizes.walks[k], sizes.structure.graph
    if tensor in w.values or not tensor:
        return w.values.get(tensor)
    if tensor in graph.weights:
        return graph.array(tensor) if w.types[tensor] in WHOLE else None
    node = graph.makers.get(tensor)
    if node is None or not depth or node.op not in FOLD or node.domain or len(node.outputs) > 1:
        return None
    inputs = [_value(sizes, k, t, depth - 1) if t else None for t in node.inputs]
    if any(v is None and t for v, t in zip(inputs, node.inputs)):
        return None
    with np.errstate(all="ignore"):  # the logarithm of a distance of 0, which a Where leaves out
        return np.asarray(FOLD[node.op](node, *inputs))


def _fill_of(sizes: Sizes, tensor: str, filled: dict[str, int]) -> int | None:
    """The whole number that a tensor of more than one entry holds everywhere."""
    if tensor in filled:
        return filled[tensor]
    value = sizes.constant(tensor)
    if value is None or value.size < 2 or value.dtype.kind not in "iub" or not (value == value.ravel()[0]).all():
        return None
    return int(value.ravel()[0])


def _filled(b: Build, fill: int, rank: int, type_: int) -> Step:
    """One number everywhere."""
    shape = ", ".join(b.out_size(i) for i in range(rank)) + "," * (rank == 1)
    kind = {TensorProto.BOOL: "bool"}.get(type_) or str(helper.tensor_dtype_to_np_dtype(type_))
    name = {0: "zeros", 1: "ones"}.get(fill)
    b.form = f"torch.{name}(({shape}), " if name else f"torch.full(({shape}), {fill}, "
    b.form += f"dtype=torch.{kind}, device={{device}})"
    b.word = "mask" if kind == "bool" else "zeros"
    return b.step()


def _steps(b: Build, values: list[np.ndarray]) -> Step | None:
    """first, first + 1, first + 2 ... along one axis."""
    axis = [next((a for a, n in enumerate(v.shape) if n > 1), 0) for v in values]
    if len(set(axis)) > 1 or any(v.size != v.shape[axis[0]] for v in values) or values[0].dtype.kind == "b":
        return None
    firsts = tuple(int(v.ravel()[0]) for v in values)
    if not all(np.array_equal(v.ravel(), np.arange(f, f + v.size)) for v, f in zip(values, firsts)):
        return None
    length = tuple(v.size for v in values)
    if set(firsts) == {0}:
        bounds = b.size(length)
    else:
        bounds = f"{b.size(firsts)}, {b.size(tuple(f + n for f, n in zip(firsts, length)))}"
    kind = "" if values[0].dtype == np.int64 else f", dtype=torch.{values[0].dtype}"
    b.form = f"torch.arange({bounds}{kind}, device={{device}})" + reshaped(values[0].ndim, axis[0])
    b.word = "positions"
    return b.step()


def reshaped(rank: int, axis: int) -> str:
    """The index that gives a vector its place among `rank` axes."""
    return "" if rank == 1 else "[" + ", ".join(":" if i == axis else "None" for i in range(rank)) + "]"


def _triangle(b: Build, values: list[np.ndarray]) -> Step | None:
    if not is_triangle(values, np.True_):
        return None
    rank = values[0].ndim
    sides = b.out_size(rank - 2), b.out_size(rank - 1)
    b.form = f"torch.ones({sides[0]}, {sides[1]}, dtype=torch.bool, device={{device}}).tril()"
    b.form += f"[{'None, ' * (rank - 2)}...]" if rank > 2 else ""
    b.word, b.level = "causal", ATOM
    return b.step()


def is_triangle(values: list[np.ndarray] | None, kept: np.bool_) -> bool:
    """Is a table `kept` on and below the diagonal of its last two axes, of equal size, and nowhere else?"""
    if values is None or any(v.dtype != bool or v.ndim < 2 or v.shape[-1] != v.shape[-2] or v.size != v.shape[-1] ** 2 for v in values):
        return False
    return all(np.array_equal(v.reshape(v.shape[-2:]) == kept, np.tri(v.shape[-1], dtype=bool)) for v in values)


def _grid_read(sizes: Sizes, node: Node, resolve: Callable[[str], str], filled: dict[str, int]) -> Step | None:
    """x[i, j] for all i and j in order: x itself with further axes of size 1. Exporters write it as a Gather with a grid of indices."""
    indices, shape, out = sizes.values(node.inputs[1]), sizes.shape(node.inputs[0]), sizes.shape(node.outputs[0])
    data = node.inputs[0]
    if indices is None or indices[0].size < 2:
        return None
    if node.op == "Gather":
        graph = sizes.structure.graph
        flat = graph.makers.get(data)
        if flat is None or flat.op not in ("Flatten", "Reshape") or len(sizes.shape(flat.inputs[0])) != 2 or any(set(n) != {1} for n in shape[1:]):
            return None
        data, shape = flat.inputs[0], sizes.shape(flat.inputs[0])
        indices = [np.stack(np.divmod(v, n), -1) for v, n in zip(indices, shape[1])]
    if len(shape) != 2 or indices[0].shape[-1] != 2 or node.attrs.get("batch_dims"):
        return None
    axes = [_axis_of(indices, k, shape[k]) for k in (0, 1)]
    if None in axes or axes[0] >= axes[1]:
        return None
    b = Build(node, sizes, resolve, filled)
    places = [":" if i in axes else "None" for i in range(len(out))]
    b.form, b.word = b.tensor(data, ATOM) + f"[{', '.join(places)}]", "mask"
    return b.step()


def _axis_of(indices: list[np.ndarray], k: int, size: Numbers) -> int | None:
    """The axis along which index number k counts from 0 to its size, everywhere; None where it does not."""
    for axis in range(indices[0].ndim - 1):
        if all(v.shape[axis] == n and np.array_equal(v[..., k], np.broadcast_to(np.arange(n).reshape([-1 if a == axis else 1 for a in range(v.ndim - 1)]), v.shape[:-1]))
               for v, n in zip(indices, size)):
            return axis
    return None
