"""Operators that ONNX Runtime's optimisers fuse from norms, activations and linear maps, as the plain nodes they stand for.

Inputs and attributes: the operator schemas of com.microsoft (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from onnxgrow.rulebook import unfolds

ACTIVATIONS = {"Relu": "Relu", "Tanh": "Tanh", "Sigmoid": "Sigmoid", "LeakyRelu": "LeakyRelu", "Elu": "Elu", "Gelu": "Gelu", "Softplus": "Softplus"}


@unfolds("com.microsoft::SkipLayerNormalization")
def skip_layer_norm(b):
    """LayerNormalization(input + skip + bias) · gamma + beta; the sum is output 3."""
    _skip_norm(b, 4, lambda total: b.LayerNormalization(total, b.x(2), *[b.x(3)] * b.has(3), axis=-1, epsilon=b.tagged("epsilon", 1e-12)))


@unfolds("com.microsoft::SkipSimplifiedLayerNormalization")
def skip_rms_norm(b):
    """RMSNormalization(input + skip + bias) · gamma; the sum is output 3."""
    _skip_norm(b, 3, lambda total: b.RMSNormalization(total, b.x(2), axis=-1, epsilon=b.tagged("epsilon", 1e-12)))


def _skip_norm(b, bias, norm):
    branch = b.Add(b.x(0), b.x(bias)) if b.has(bias) else b.x(0)  # where the layers before this one, which stayed in plain operators, have their bias
    total = b.Add(branch, b.x(1))
    b.gives(norm(total), None, None, total)


@unfolds("com.microsoft::EmbedLayerNormalization")
def embed_layer_norm(b):
    """Sum of word, position and segment rows, normalised; the second output counts the words of each row (or is zero)."""
    total = b.Gather(b.x(2), b.x(0), axis=0)
    positions = b.x(8) or b.Range(b.whole(0), b.size(b.x(0), 1), b.whole(1))
    total = b.Add(total, b.Gather(b.x(3), positions, axis=0))
    total = b.Add(total, b.Gather(b.x(4), b.x(1), axis=0)) if b.has(4) else total
    norm = b.LayerNormalization(total, b.x(5), b.x(6), axis=-1, epsilon=b.tagged("epsilon", 1e-12))
    count = None
    if b.wants(1):
        words = b.x(7) or b.Sub(b.x(0), b.x(0))
        count = b.Cast(b.ReduceSum(words, b.ints(1), keepdims=0), to=6)
    b.gives(norm, count, total)


@unfolds("com.microsoft::Gelu")
def gelu(b):
    """With Erf."""
    b.gives(b.Gelu(b.x(0)))


@unfolds("com.microsoft::BiasGelu")
def bias_gelu(b):
    """Gelu(x + bias)."""
    b.gives(b.Gelu(b.Add(b.x(0), b.x(1))))


@unfolds("com.microsoft::FastGelu")
def fast_gelu(b):
    """The tanh approximation."""
    b.gives(b.Gelu(b.Add(b.x(0), b.x(1)) if b.has(1) else b.x(0), approximate="tanh"))


@unfolds("com.microsoft::QuickGelu")
def quick_gelu(b):
    """x · sigmoid(alpha · x)."""
    b.gives(b.Mul(b.x(0), b.Sigmoid(b.Mul(b.x(0), b.number(b.tagged("alpha", 1.702))))))


@unfolds("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def fused_matmul(b):
    """alpha · op(A) op(B); transBatch: the rows come first, before the batches."""
    y = b.MatMul(*(_turned(b, slot, b.attr(f"trans{name}", 0), b.attr(f"transBatch{name}", 0)) for slot, name in enumerate("AB")))
    b.gives(y if b.attr("alpha", 1.0) == 1.0 else b.Mul(y, b.number(b.tagged("alpha"))))


def _turned(b, slot, last, batch=0):
    """An input with its `last` two axes swapped, or its rows in front of its `batch` axes."""
    rank = len(b.shape(slot)) if last or batch else 0
    if rank < 2:
        return b.x(slot)
    axes = [*range(1, rank - 1), 0, rank - 1] if batch else [*range(rank)]
    return b.Transpose(b.x(slot), perm=[*axes[:-2], axes[-1], axes[-2]] if last else axes)


@unfolds("com.microsoft::FusedGemm")
def fused_gemm(b):
    """activation(alpha · op(A) op(B) + beta · C)."""
    scales = {name: b.attr(name) for name in ("alpha", "beta", "transA", "transB") if b.attr(name) is not None}
    b.gives(_activated(b, b.Gemm(*(b.x(i) for i in range(3) if b.has(i)), **scales)))


@unfolds("com.microsoft::FusedConv")
def fused_conv(b):
    """activation(conv(x) + z)."""
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    y = b.Conv(*(b.x(i) for i in range(3) if b.has(i)), **{name: b.attr(name) for name in names if b.attr(name) is not None})
    b.gives(_activated(b, b.Add(y, b.x(3)) if b.has(3) else y))


def _activated(b, y):
    kind = b.attr("activation", "")
    if kind and kind not in ACTIVATIONS:
        b.refuse(f"with the activation {kind}")
    given = {"alpha": b.attr("activation_alpha")} if kind in ("LeakyRelu", "Elu") and b.attr("activation_alpha") is not None else {}
    return b.make(ACTIVATIONS[kind], y, **given) if kind else y
