"""ONNX Runtime's mixture of experts in one operator, as the plain nodes it stands for: every expert for every token, weighted by what the router gives.

Inputs and attributes: the operator schema of com.microsoft (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MoE).
That scores are normalised before the choice, and Gelu is the tanh approximation: measured with ONNX Runtime 1.31 on the CPU.
"""

from onnxgrow.rulebook import unfolds

FURTHEST = 2**63 - 1


@unfolds("com.microsoft::MoE")
def mixture(b):
    """Weights are [experts, out, in]."""
    if b.attr("use_sparse_mixer", 0) or b.has(6) or b.attr("swiglu_fusion", 0) == 2:  # ONNX Runtime has no CPU kernel that could check these
        b.refuse("with use_sparse_mixer, a third map, or swiglu_fusion=2")
    weights, tokens = _given(b), b.Reshape(b.x(0), b.ints(-1, b.shape(2)[2]))
    made = _linear(b, tokens, 2, 3)
    made = _gated(b, made) if b.attr("activation_type") == "swiglu" else _activated(b, made)
    made = _linear(b, made, 4, 5)
    total = b.ReduceSum(b.Mul(made, b.Unsqueeze(b.Transpose(weights, perm=[1, 0]), b.ints(2))), b.ints(0), keepdims=0)
    b.gives(b.Reshape(total, b.Shape(b.x(0))))


def _given(b):
    """What each token gives to each expert, [tokens, experts]: zero where it was not chosen."""
    shares = b.Softmax(b.x(1), axis=-1)
    best, which = b.TopK(shares, b.ints(b.attr("k", 1)), axis=-1, outputs=2)
    if b.attr("normalize_routing_weights", 0):
        best = b.Div(best, b.ReduceSum(best, b.ints(-1), keepdims=1))
    return b.ScatterElements(b.Sub(shares, shares), which, best, axis=1)


def _linear(b, x, weight, bias):
    y = b.MatMul(x, b.Transpose(b.x(weight), perm=[0, 2, 1]))
    return b.Add(y, b.Unsqueeze(b.x(bias), b.ints(1))) if b.has(bias) else y


def _activated(b, x):
    kind = b.attr("activation_type", "relu")
    if kind == "silu":
        return b.Mul(x, b.Sigmoid(x))
    if kind not in ("relu", "gelu", "identity"):
        b.refuse(f"with the activation {kind}")
    return {"relu": b.Relu, "gelu": lambda y: b.Gelu(y, approximate="tanh"), "identity": b.Identity}[kind](x)


def _gated(b, made):
    """(G · sigmoid(alpha · G)) · (L + beta), where the entries of gate and linear part come in turns."""
    gate, linear = (b.Slice(made, b.ints(first), b.ints(FURTHEST), b.ints(2), b.ints(2)) for first in (0, 1))
    if b.attr("swiglu_limit") is not None:
        limit = b.attr("swiglu_limit")
        gate, linear = b.Clip(gate, "", b.number(limit)), b.Clip(linear, b.number(-limit), b.number(limit))
    alpha, beta = b.attr("activation_alpha", 1.0), b.attr("activation_beta", 0.0)
    gate = b.Mul(gate, b.Sigmoid(gate if alpha == 1.0 else b.Mul(gate, b.number(alpha))))
    return b.Mul(gate, linear if beta == 0.0 else b.Add(linear, b.number(beta)))
