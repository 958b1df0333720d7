"""A small ONNX to PyTorch interpreter: gradients for the tests that ask whether every new weight learns.

    model = TorchModel(path)
    outputs = model(input_ids=ids, attention_mask=mask)         every output by name, as torch tensors
    model.parameters["encoder.weight"].grad                     after outputs["logits"].sum().backward()

Shape arithmetic runs in torch as well. An operator that no zoo graph holds is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

Predicate = Callable[[str, np.ndarray], bool]


class TorchModel:
    """The graph of an ONNX file as a differentiable function.

    Args:
        path: the file; external data beside it is read as well.
        constant: (initializer's name, value) -> True where it must not be trained (masks, frequencies).
        scalars: initializers of a single number that are trained all the same (gates).
    """

    def __init__(self, path: Path | str, constant: Predicate = lambda name, value: False, scalars: Container[str] = ()):
        self.graph = onnx.load(path).graph
        self.buffers: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        for initializer in self.graph.initializer:
            name, value = initializer.name, numpy_helper.to_array(initializer)
            trained = name in scalars or (value.dtype.kind == "f" and value.size > 1 and not constant(name, value))
            (self.parameters if trained else self.buffers)[name] = tensor(value).requires_grad_(trained)

    def __call__(self, **inputs: np.ndarray | Tensor) -> dict[str, Tensor]:
        values = {"": None} | self.buffers | self.parameters | {name: tensor(value) for name, value in inputs.items()}
        for node in self.graph.node:
            attributes = {a.name: plain(helper.get_attribute_value(a)) for a in node.attribute}
            if node.op_type not in OPERATORS:
                raise NotImplementedError(f"{node.op_type} (node {node.name!r}): add it to {__file__}")
            results = OPERATORS[node.op_type](*(values[name] for name in node.input), **attributes)
            values |= zip(node.output, results if isinstance(results, tuple) else (results,), strict=True)
        return {output.name: values[output.name] for output in self.graph.output}


def live_fraction(
    path: Path | str,
    new_regions: dict[str, np.ndarray],
    inputs: dict[str, np.ndarray | Tensor],
    steps: int = 3,
    lr: float = 1e-2,
    constant: Predicate = lambda name, value: False,
) -> dict[str, float]:
    """Fraction of each region that received a gradient in at least one of a few Adam steps towards random targets.

    Args:
        new_regions: initializer's name -> mask of the entries asked about.
        inputs: every id of the vocabulary and every position should occur, else their rows cannot learn.
    """
    model = TorchModel(path, constant, new_regions)
    alive = {name: np.zeros_like(mask) for name, mask in new_regions.items()}
    optimizer = torch.optim.Adam(model.parameters.values(), lr)
    generator, first = torch.Generator().manual_seed(0), model.graph.output[0].name
    target = None
    for _ in range(steps):
        output = model(**inputs)[first]
        if target is None:
            target = torch.randn(output.shape, generator=generator)
        optimizer.zero_grad()
        F.mse_loss(output, target).backward()
        for name in alive:
            gradient = model.parameters[name].grad
            alive[name] |= (gradient != 0).numpy() if gradient is not None else False
        optimizer.step()
    return {name: float(alive[name][mask].mean()) for name, mask in new_regions.items()}


def tensor(value: np.ndarray | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def plain(attribute):
    """An attribute as Python or torch knows it."""
    if isinstance(attribute, onnx.TensorProto):
        return tensor(numpy_helper.to_array(attribute))
    return attribute.decode() if isinstance(attribute, bytes) else attribute


# --- operators: (inputs, attributes) -> output or tuple of outputs ---------------------------------------------------


def div(a, b):
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def cast(x, to):
    if to == TensorProto.STRING:  # PyTorch has no texts: the text of a number is the number
        return x
    return x.to(tensor(np.empty(0, helper.tensor_dtype_to_np_dtype(to))).dtype)


def shape(x, start=0, end=None):
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def reshape(x, sizes, allowzero=0):
    sizes = sizes.tolist()
    return x.reshape(sizes if allowzero else [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def expand(x, sizes):
    return x.expand(torch.broadcast_shapes(x.shape, sizes.tolist()))


def squeeze(x, axes=None):
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def unsqueeze(x, axes):
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def transpose(x, perm=None):
    return x.permute(perm or [*reversed(range(x.ndim))])


def flatten(x, axis=1):
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def split(x, sizes=None, axis=0, num_outputs=None):
    part = sizes.tolist() if sizes is not None else -(-x.shape[axis] // num_outputs)
    return tuple(x.split(part, axis))


def slice_(x, starts, ends, axes=None, steps=None):
    count = range(len(starts))
    for axis, start, end, step in zip(
        count if axes is None else axes.tolist(),
        starts.tolist(),
        ends.tolist(),
        [1 for _ in count] if steps is None else steps.tolist(),
        strict=True,
    ):
        x = x.index_select(axis, torch.tensor(range(*slice(start, end, step).indices(x.shape[axis]))).long())
    return x


def gather(x, indices, axis=0):
    return x[(slice(None),) * (axis % x.ndim) + (indices,)]


def gather_elements(x, indices, axis=0):
    return x.gather(axis, indices % x.shape[axis])


def gather_nd(x, indices, batch_dims=0):
    assert batch_dims == 0
    return x[tuple(indices.unbind(-1))]


def scatter_nd(x, indices, updates):
    return x.index_put(tuple(indices.unbind(-1)), updates)


def cumsum(x, axis, exclusive=0, reverse=0):
    assert not reverse
    total = x.cumsum(int(axis), dtype=x.dtype)
    return total - x if exclusive else total


def range_(start, limit, delta):
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def reduce_mean(x, axes=None, keepdims=1, noop_with_empty_axes=0):
    axes = axes.tolist() if isinstance(axes, Tensor) else axes
    return x if axes is None and noop_with_empty_axes else x.mean(axes, keepdim=bool(keepdims))


def reduce_sum(x, axes=None, keepdims=1, noop_with_empty_axes=0):
    axes = axes.tolist() if isinstance(axes, Tensor) else axes
    return x if axes is None and noop_with_empty_axes else x.sum(axes, keepdim=bool(keepdims))


def topk(x, k, axis=-1, largest=1, sorted=1):  # noqa: A002 (ONNX's names)
    return tuple(x.topk(int(k), axis, bool(largest), bool(sorted)))


def scatter_elements(x, indices, updates, axis=0, reduction="none"):
    assert reduction == "none"
    return x.scatter(axis, indices, updates)


def trilu(x, k=None, upper=1):
    return (torch.triu if upper else torch.tril)(x, 0 if k is None else int(k))


def gemm(a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0):  # noqa: N803 (ONNX's names)
    product = alpha * (a.T if transA else a) @ (b.T if transB else b)
    return product if c is None else product + beta * c


def conv(x, weight, bias=None, auto_pad="NOTSET", dilations=1, group=1, kernel_shape=None, pads=(), strides=1):
    assert auto_pad == "NOTSET" and not any(pads)
    return F.conv2d(x, weight, bias, strides, 0, dilations, group)


def layer_norm(x, scale, bias=None, axis=-1, epsilon=1e-5, stash_type=1):
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def rms_norm(x, scale, axis=-1, epsilon=1e-5, stash_type=1):
    return F.rms_norm(x, x.shape[axis:], scale, epsilon)


def attention(q, k, v, mask=None, scale=None, is_causal=0, softcap=0.0, qk_matmul_output_mode=0):
    """ONNX Attention on [batch, heads, length, size] without cache."""
    assert q.ndim == 4 and not softcap
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=bool(is_causal), scale=scale, enable_gqa=True)


def rotary_embedding(x, cos, sin, interleaved=0, num_heads=0, rotary_embedding_dim=0):
    """x [batch, heads, length, size], cos and sin [batch, length, turned / 2]; the rest of `size` passes."""
    assert x.ndim == 4 and not interleaved
    turned = rotary_embedding_dim or x.shape[-1]
    (a, b), rest = x[..., :turned].chunk(2, -1), x[..., turned:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


OPERATORS: dict[str, Callable] = {
    "And": torch.logical_and,
    "Attention": attention,
    "Cast": cast,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Constant": lambda value: value,
    "ConstantOfShape": lambda sizes, value: torch.full(sizes.tolist(), value.item(), dtype=value.dtype),
    "Conv": conv,
    "CumSum": cumsum,
    "Div": div,
    "Einsum": lambda *operands, equation: torch.einsum(equation, *operands),
    "Equal": torch.eq,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Gelu": F.gelu,
    "Gemm": gemm,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Identity": lambda x: x,
    "LayerNormalization": layer_norm,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mod": torch.remainder,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": lambda x, y: (x**y).to(x.dtype),
    "RMSNormalization": rms_norm,
    "Range": range_,
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "Reshape": reshape,
    "RotaryEmbedding": rotary_embedding,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Shape": shape,
    "Slice": slice_,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "Split": split,
    "Squeeze": squeeze,
    "Tile": lambda x, repeats: x.repeat(repeats.tolist()),
    "TopK": topk,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
ALIKE = "Abs Add Cos Erf Exp IsNaN Log MatMul Mul Neg Reciprocal Relu Sigmoid Sin Sqrt Sub Tanh Where"
OPERATORS |= {name: getattr(torch, name.lower()) for name in ALIKE.split()}
