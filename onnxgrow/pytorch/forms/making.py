"""Operators that make a tensor from sizes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ..build import Build, number
from ..steps import PLUS
from .registry import dtype, operator


@operator("Range")
def _range(b: Build) -> None:
    start, limit, delta = (b.entries(i)[0] for i in range(3))
    bounds = [limit] if (start, delta) == ("0", "1") else [start, limit] if delta == "1" else [start, limit, delta]
    kind = "" if b.type(0) == TensorProto.INT64 else f", dtype=torch.{dtype(b, b.type(0))}"
    b.form = f"torch.arange({', '.join(bounds)}{kind}, device={{device}})"


@operator("ConstantOfShape")
def _constant_of_shape(b: Build) -> None:
    fill = b.attrs.get("value")
    value = numpy_helper.to_array(fill).ravel()[0] if fill is not None else np.float32(0)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    sizes = ", ".join(b.out_size(i) for i in range(len(b.out())))
    b.form = f"torch.full(({sizes}{',' if len(b.out()) == 1 else ''}), {number(value)}, dtype=torch.{dtype(b, kind)}, device={{device}})"


@operator("OneHot")
def _one_hot(b: Build) -> None:
    values, axis = b.constant(2), b.attrs.get("axis", -1)
    if values is None:
        values = b.array(2)
    if values is None or axis not in (-1, len(b.out()) - 1):
        b.refuse("OneHot along an inner axis has no PyTorch form")
    kind = dtype(b, b.sizes.type(b.node.outputs[0]))
    b.form = f"F.one_hot({b.use(0)}, {b.out_size(len(b.out()) - 1)}).to(torch.{kind})"
    if list(values.ravel()) != [0, 1]:
        b.form, b.level = f"{b.form} * {number(values[1] - values[0])} + {number(values[0])}", PLUS
