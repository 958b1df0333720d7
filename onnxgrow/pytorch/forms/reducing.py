"""Reductions, products, norms and attention."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ..build import Build, number
from ..steps import ATOM, PLUS, TIMES, UNARY
from .registry import dtype, operator

REDUCE = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceProd": "prod", "ReduceL2": "norm"}


@operator(*REDUCE)
def _reduce(b: Build) -> None:
    axes = b.ints(1, "axes")
    if axes is None and b.attrs.get("noop_with_empty_axes"):
        b.same(0)
        return
    keep = ", keepdim=True" if b.attrs.get("keepdims", 1) else ""
    axes = list(range(len(b.shape(0)))) if axes is None else axes
    where = f"dim={axes[0]}" if len(axes) == 1 else f"dim=({', '.join(map(str, axes))})"
    b.form = f"{b.use(0, ATOM)}.{REDUCE[b.node.op]}({where}{keep})"


@operator("ArgMax", "ArgMin")
def _arg(b: Build) -> None:
    keep = ", keepdim=True" if b.attrs.get("keepdims", 1) else ""
    b.form = f"{b.use(0, ATOM)}.{b.node.op.lower()}(dim={b.attrs.get('axis', 0)}{keep})"


@operator("TopK")
def _topk(b: Build) -> None:
    largest = "" if b.attrs.get("largest", 1) else ", largest=False"
    b.form = f"{b.use(0, ATOM)}.topk({b.entries(1)[0]}, {b.attrs.get('axis', -1)}{largest})"


@operator("CumSum")
def _cumsum(b: Build) -> None:
    if b.attrs.get("reverse"):
        b.refuse("CumSum in reverse has no PyTorch form")
    kind = dtype(b, b.type(0))
    same = "" if b.type(0) in (TensorProto.INT64, TensorProto.FLOAT) else f", dtype=torch.{kind}"
    b.form = f"{b.use(0, ATOM)}.cumsum({int(b.constant(1).ravel()[0])}{same})"
    if b.attrs.get("exclusive"):
        b.form, b.level = f"{b.form} - {b.use(0, TIMES)}", PLUS


@operator("Softmax", "LogSoftmax")
def _softmax(b: Build) -> None:
    if b.node.version < 13 and b.attrs.get("axis", 1) % len(b.shape(0)) != len(b.shape(0)) - 1:
        b.refuse("Softmax over several axes at once (opset below 13) has no PyTorch form")
    b.form = f"{b.use(0, ATOM)}.{'softmax' if b.node.op == 'Softmax' else 'log_softmax'}({b.attrs.get('axis', -1)})"


def _factor(b: Build, slot: int, level: int = 0) -> str:
    """An operand of a product along axes: a single number that is known has its axes here."""
    if not b.is_number(slot):
        return b.use(slot, level)
    return f"torch.full({[1] * len(b.shape(slot))}, {b.use(slot)}, dtype=torch.{dtype(b, b.type(slot))}, device={{device}})"


@operator("MatMul")
def _matmul(b: Build) -> None:
    b.form, b.level = f"{_factor(b, 0, TIMES)} @ {_factor(b, 1, UNARY)}", TIMES


@operator("Einsum")
def _einsum(b: Build) -> None:
    operands = ", ".join(_factor(b, i) for i in range(len(b.node.inputs)))
    b.form = f'torch.einsum("{b.attrs["equation"].replace(" ", "")}", {operands})'


@operator("Gemm")
def _gemm(b: Build) -> None:
    left, right = (f"{_factor(b, i, ATOM)}{'.T' if b.attrs.get(key) else ''}" for i, key in ((0, "transA"), (1, "transB")))
    alpha, beta = b.attrs.get("alpha", 1.0), b.attrs.get("beta", 1.0)
    b.form, b.level = f"{left} @ {right}" + (f" * {alpha!r}" if alpha != 1 else ""), TIMES
    if b.has(2):
        b.form, b.level = f"{b.form} + {b.use(2, TIMES)}" + (f" * {beta!r}" if beta != 1 else ""), PLUS


def _eps(b: Build) -> str:
    return number(np.float32(b.attrs.get("epsilon", 1e-5)))


@operator("LayerNormalization")
def _layer_norm(b: Build) -> None:
    axis = b.attrs.get("axis", -1) % len(b.shape(0))
    sizes = ", ".join(b.out_size(i) for i in range(axis, len(b.out())))
    bias = f", {b.use(2)}" if b.has(2) else ""
    b.form = f"F.layer_norm({b.use(0)}, ({sizes},), {b.use(1)}{bias}, eps={_eps(b)})"


@operator("RMSNormalization")
def _rms_norm(b: Build) -> None:
    axis = b.attrs.get("axis", -1) % len(b.shape(0))
    sizes = ", ".join(b.out_size(i) for i in range(axis, len(b.out())))
    b.form = f"F.rms_norm({b.use(0)}, ({sizes},), {b.use(1)}, {number(np.float32(b.attrs.get('epsilon', 1e-5)))})"


@operator("BatchNormalization")
def _batch_norm(b: Build) -> None:
    if b.attrs.get("training_mode") or any(b.node.outputs[1:]):
        b.refuse("BatchNormalization that measures while it runs has no PyTorch form")
    gain, bias, mean, variance = (b.use(i) for i in range(1, 5))
    b.form = f"F.batch_norm({b.use(0)}, {mean}, {variance}, {gain}, {bias}, eps={_eps(b)})"


@operator("InstanceNormalization")
def _instance_norm(b: Build) -> None:
    b.form = f"F.instance_norm({b.use(0)}, weight={b.use(1)}, bias={b.use(2)}, eps={_eps(b)})"


@operator("GroupNormalization")
def _group_norm(b: Build) -> None:
    groups, (channels, *_), (gains, *_) = b.attrs["num_groups"], b.shape(0)[1], b.shape(1)[0]
    each = f".repeat_interleave({channels // gains})" * (gains != channels)  # before opset 21 there is one gain for a group
    b.form = f"F.group_norm({b.use(0)}, {groups}, {b.use(1, ATOM)}{each}, {b.use(2, ATOM)}{each}, eps={_eps(b)})"


@operator("Attention")
def _attention(b: Build) -> None:
    if len(b.shape(0)) != 4 or b.attrs.get("softcap") or any(b.has(i) for i in (4, 5)):
        b.refuse("Attention with packed heads, a soft cap or a cache of its own has no PyTorch form yet")
    mask = f", attn_mask={b.use(3)}" if b.has(3) else ""
    scale = f", scale={number(np.float32(b.attrs['scale']))}" if "scale" in b.attrs else ""
    causal = ", is_causal=True" if b.attrs.get("is_causal") else ""
    grouped = ", enable_gqa=True" if b.shape(0)[1] != b.shape(1)[1] else ""
    b.form = f"F.scaled_dot_product_attention({b.use(0)}, {b.use(1)}, {b.use(2)}{mask}{causal}{scale}{grouped})"
