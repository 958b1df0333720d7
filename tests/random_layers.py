"""The parts of which tests/random_graphs.py composes transformers: each in the spellings that exporters and optimisers use.

`o` is the record of what was drawn for a graph (`random_graphs.draw`), `b` the graph under construction. Activations are [batch, length, hidden].
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MS = "com.microsoft"
REACH = 24  # positions that tables and stored masks hold
LOW = -1e4


class Builder:
    """Nodes and weights of a graph; every random number comes from one seed."""

    def __init__(self, rng: np.random.Generator, opset: int, share: bool):
        self.rng, self.opset, self.share = rng, opset, share
        self.spell(0)
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, np.ndarray] = {}
        self.same: dict = {}
        self.inputs: list = []
        self.outputs: list = []

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs):
        n = len(self.nodes)
        names = [f"{kind}_{n}"] + [f"{kind}_{n}_{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"node_{n}", domain=domain, **attrs))
        return names[0] if outputs == 1 else names

    def spell(self, seed: int) -> None:
        """Begin the choices of spelling anew: layers that begin alike are spelled alike."""
        self.spelling = np.random.default_rng(seed)

    def toss(self) -> bool:
        return bool(self.spelling.random() < 0.5)

    def hold(self, value: np.ndarray, prefix: str = "c", share: bool = False) -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if share and key in self.same:
            return self.same[key]
        name = f"{prefix}_{len(self.held)}"
        self.held[name] = value
        self.same[key] = name
        return name

    def ints(self, *values: int) -> str:
        return self.hold(np.array(values, np.int64), share=self.share)

    def whole(self, value: int) -> str:
        return self.hold(np.array(value, np.int64), share=self.share)

    def number(self, value: float) -> str:
        return self.hold(np.array(value, np.float32), share=self.share)

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        return self.hold((self.rng.standard_normal(shape) * scale / np.sqrt(shape[0])).astype("f"), "w")

    def vector(self, n: int, middle: float = 0.0, spread: float = 0.5) -> str:
        return self.hold((middle + spread * self.rng.standard_normal(n)).astype("f"), "v")

    def mean(self, x: str, kind: str = "ReduceMean") -> str:
        return self.op(kind, x, self.ints(-1), keepdims=1) if self.opset >= 18 else self.op(kind, x, axes=[-1], keepdims=1)

    def split(self, x: str, *sizes: int, axis: int = -1) -> list[str]:
        return self.op("Split", x, self.ints(*sizes), axis=axis, outputs=len(sizes))

    def slice(self, x: str, start: int | str, end: int | str, axis: int) -> str:
        start, end = (v if isinstance(v, str) else self.ints(v) for v in (start, end))
        return self.op("Slice", x, start, end, self.ints(axis))

    def cut(self, x: str, sizes: list[int], how: str) -> list[str]:
        """Parts along the last axis: Split, or Slices whose last end is open or a number."""
        if how == "split":
            return self.split(x, *sizes)
        ends = np.cumsum([0, *sizes]).tolist()
        return [self.slice(x, a, z if z < ends[-1] or self.toss() else 2**63 - 1, -1) for a, z in zip(ends, ends[1:])]

    def size(self, x: str, axis: int) -> str:
        """[1], one size of a tensor, as exporters spell it."""
        shape = self.op("Shape", x)
        if self.toss():
            return self.op("Slice", shape, self.ints(axis), self.ints(axis + 1), self.ints(0))
        return self.op("Unsqueeze", self.op("Gather", shape, self.whole(axis), axis=0), self.ints(0))

    def scalar(self, x: str, axis: int) -> str:
        return self.op("Gather", self.op("Shape", x), self.whole(axis), axis=0)

    def reshape(self, x: str, how: str, *tail: int, like: str | None = None) -> str:
        """[batch, length, ...] -> [batch, length, *tail]; `like` gives batch and length where x has them elsewhere."""
        if how == "shape" or like:
            sizes = [self.size(like or x, 0), self.size(like or x, 1), self.ints(*tail)]
            return self.op("Reshape", x, self.op("Concat", *sizes, axis=0))
        open_ = [*tail]
        if how == "inferred":
            open_[self.spelling.integers(len(tail))] = -1
        target = (0, -1, *tail) if how == "length" else (0, 0, *open_)
        return self.op("Reshape", x, self.ints(*target))

    def linear(self, x: str, n_in: int, n_out: int, o, bias: bool = True, scale: float = 1.0) -> str:
        """MatMul and Add, or Gemm on 2-D activations."""
        bias = bias and bool(o.bias)
        if o.linear == "gemm":
            flat = self.op("Reshape", x, self.ints(-1, n_in))
            turned = o.transposed
            w = self.weight(n_in, n_out, scale=scale)
            if turned:
                self.held[w] = np.ascontiguousarray(self.held[w].T)
            y = self.op("Gemm", flat, w, *[self.bias(n_out, o)] * bias, transB=int(turned))
            return self.reshape(y, "shape", n_out, like=x)
        y = self.op("MatMul", x, self.weight(n_in, n_out, scale=scale))
        if not bias:
            return y
        pair = [y, self.bias(n_out, o)]
        return self.op("Add", *(pair if self.toss() else pair[::-1]))

    def bias(self, n: int, o) -> str:
        return self.hold(np.zeros(n, "f"), "zero", share=True) if o.bias == "zero" else self.vector(n)


# --- norms ------------------------------------------------------------------------------------------------------------------------


def norm(b: Builder, x: str, n: int, kind: str, o, key: str = "norm") -> str:
    """Normalise the last axis of size n; one gain for all norms of a size where `o.one_gain`."""
    eps = o.eps
    spread = 0.0 if vars(o).get("even") else 0.3  # gains as training begins with
    held = b.same.setdefault((key, n), (b.vector(n, 1.0, spread), b.vector(n))) if o.one_gain else (b.vector(n, 1.0, spread), b.vector(n))
    gain, offset = held
    if vars(o).get("from_one"):  # the gain is stored as its distance from one, as Gemma does
        gain = b.op("Add", gain, b.number(1.0)) if o.spelling % 2 else b.op("Add", b.number(1.0), gain)
    if vars(o).get("from_two"):
        gain = b.op("Add", gain, b.vector(n, 0.0, 0.2))
    if kind == "length":  # cosines in the place of products
        length = b.op("ReduceL2", x, b.ints(-1), keepdims=1) if b.opset >= 18 else b.op("ReduceL2", x, axes=[-1], keepdims=1)
        return b.op("Div", x, length)
    if kind == "layer":
        return b.op("LayerNormalization", x, gain, *[offset] * o.offset, axis=-1, epsilon=eps)
    if kind == "rms":
        return b.op("RMSNormalization", x, gain, axis=-1, epsilon=eps)
    if kind == "simplified":
        return b.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=eps, stash_type=1)
    centred = x
    if kind == "layer-spelled":
        centred = b.op("Sub", x, b.mean(x))
        base = centred if o.spelling % 2 else b.op("Sub", x, b.mean(x))  # mean twice
    square = b.op("Pow", centred, b.number(2.0)) if o.spelling % 3 else b.op("Mul", centred, centred)
    variance = b.op("Add", b.mean(square), b.number(eps))
    base = base if kind == "layer-spelled" else x
    if vars(o).get("folded") and kind == "layer-spelled":  # x·(γ·r) + (β − mean·(γ·r)), as TensorFlow writes it
        root = b.op("Reciprocal", b.op("Sqrt", variance))
        steep = b.op("Mul", *((root, gain) if o.spelling % 2 else (gain, root)))
        return b.op("Add", b.op("Mul", x, steep), b.op("Sub", offset, b.op("Mul", b.mean(x), steep)))
    y = _over_root(b, base, variance, o.spelling)
    if vars(o).get("divided"):  # by a number, in place of a gain
        y = b.op("Div", y, b.hold(np.array(0.8, np.float32), "by"))
    elif o.gain:
        y = b.op("Mul", y, gain) if o.spelling % 2 else b.op("Mul", gain, y)
    return b.op("Add", y, offset) if o.offset and kind == "layer-spelled" else y


def _over_root(b: Builder, x: str, variance: str, spelling: int) -> str:
    if spelling == 0:
        return b.op("Div", x, b.op("Sqrt", variance))
    if spelling == 1:
        return b.op("Mul", x, b.op("Reciprocal", b.op("Sqrt", variance)))
    if spelling == 2:
        return b.op("Mul", b.op("Div", b.number(1.0), b.op("Sqrt", variance)), x)
    if spelling == 3:
        return b.op("Mul", x, b.op("Pow", variance, b.number(-0.5)))
    return b.op("Div", x, b.op("Pow", variance, b.number(0.5)))


# --- feed-forward -----------------------------------------------------------------------------------------------------------------


def activation(b: Builder, x: str, kind: str) -> str:
    if kind == "relu":
        return b.op("Relu", x)
    if kind == "silu":
        return b.op("Mul", x, b.op("Sigmoid", x))
    if kind == "erf":
        inner = b.op("Add", b.op("Erf", b.op("Div", x, b.number(2**0.5))), b.number(1.0))
        return b.op("Mul", b.op("Mul", x, inner), b.number(0.5)) if b.toss() else b.op("Mul", b.op("Mul", x, b.number(0.5)), inner)
    if kind == "tanh":
        cube = b.op("Pow", x, b.number(3.0)) if b.toss() else b.op("Mul", x, b.op("Mul", x, x))
        inner = b.op("Mul", b.op("Add", x, b.op("Mul", cube, b.number(0.044715))), b.number(0.7978845608))
        return b.op("Mul", b.op("Mul", x, b.number(0.5)), b.op("Add", b.op("Tanh", inner), b.number(1.0)))
    if kind == "gelu":
        return b.op("Gelu", x, domain="" if b.opset >= 20 else MS)
    return b.op({"fast": "FastGelu", "quick": "QuickGelu"}[kind], x, domain=MS)


def feed_forward(b: Builder, x: str, o, made: list[str] | None = None) -> str:
    """`made` holds gate and up where they are projected elsewhere."""
    n, f = o.hidden, o.ffn
    if made:
        y = b.op("Mul", activation(b, made[0], o.act), made[1])
    elif o.mlp == "plain":
        if o.act in ("biasgelu", "biasfast"):
            y = b.op("MatMul", x, b.weight(n, f, scale=1.5))
            y = b.op("BiasGelu" if o.act == "biasgelu" else "FastGelu", y, b.vector(f), domain=MS)
        else:
            y = activation(b, b.linear(x, n, f, o, scale=1.5), o.act)
    else:
        if o.mlp == "gated":
            gate, up = b.linear(x, n, f, o, scale=1.5), b.linear(x, n, f, o)
        else:
            gate, up = b.cut(b.linear(x, n, 2 * f, o, scale=1.5), [f, f], o.cut)
        y = b.op("Mul", activation(b, gate, o.act), up)
    return b.linear(y, f, n, o)


# --- attention --------------------------------------------------------------------------------------------------------------------


def lora(b: Builder, x: str, y: str, n_in: int, n_out: int, o) -> str:
    """y + (x a b) · s."""
    side = b.op("MatMul", b.op("MatMul", x, b.weight(n_in, o.lora)), b.weight(o.lora, n_out))
    return b.op("Add", y, b.op("Mul", side, b.number(0.7)))


def widths_of(o) -> list[int]:
    """Of queries, keys and values."""
    return [o.heads * o.head_dim, o.kv * o.head_dim, o.kv * o.head_dim]


def projections(b: Builder, x: str, o) -> list[str]:
    """Queries, keys and values [batch, length, heads · head_dim]."""
    widths = widths_of(o)
    if o.qkv == "separate":
        parts = [b.linear(x, o.hidden, w, o, scale=1.5) for w in widths]
    else:
        parts = b.cut(b.linear(x, o.hidden, sum(widths), o, scale=1.5), widths, o.cut)
    if o.lora:
        parts[0] = lora(b, x, parts[0], o.hidden, widths[0], o)
        parts[2] = lora(b, x, parts[2], o.hidden, widths[2], o)
    return parts


def rotate(b: Builder, x: str, env, o) -> str:
    """x · cos + rotate_half(x) · sin, or halves turned one by one."""
    half = o.head_dim // 2
    first, second = b.cut(x, [half, half], o.cut)
    if o.rotary == "halves":
        cos, sin = env["cos"], env["sin"]
        turned = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin)), b.op("Add", b.op("Mul", second, cos), b.op("Mul", first, sin))
        return b.op("Concat", *turned, axis=-1)
    turned = b.op("Concat", b.op("Neg", second), first, axis=-1)
    return b.op("Add", b.op("Mul", x, env["cos"]), b.op("Mul", turned, env["sin"]))


def repeat(b: Builder, x: str, o) -> str:
    """[batch, kv, keys, d] -> [batch, heads, keys, d]."""
    if o.kv == o.heads:
        return x
    group = o.heads // o.kv
    wide = b.op("Unsqueeze", x, b.ints(2))
    if o.reshape == "shape":
        shape = b.op("Concat", b.size(x, 0), b.ints(o.kv, group), b.size(x, 2), b.ints(o.head_dim), axis=0)
        many = b.op("Expand", wide, shape)
        return b.op("Reshape", many, b.op("Concat", b.size(x, 0), b.ints(o.heads), b.size(x, 2), b.ints(o.head_dim), axis=0))
    many = b.op("Expand", wide, b.ints(1, 1, group, 1, 1))
    return b.op("Reshape", many, b.ints(0, o.heads, -1, o.head_dim))


def repeat_flat(b: Builder, x: str, o) -> str:
    """[batch, keys, kv · d] -> [batch, keys, heads · d]: for an operator that knows no groups."""
    if o.kv == o.heads:
        return x
    many = b.op("Expand", b.op("Unsqueeze", b.reshape(x, o.reshape, o.kv, o.head_dim), b.ints(3)), b.ints(1, 1, 1, o.heads // o.kv, 1))
    return b.op("Reshape", many, b.ints(0, 0, o.heads * o.head_dim))


def scaled(b: Builder, scores: str, q: str, o) -> str:
    if o.scale == "constant":
        return b.op("Mul", scores, b.number(o.head_dim**-0.5)) if b.toss() else b.op("Div", scores, b.number(o.head_dim**0.5))
    if o.scale == "run-time":
        return b.op("Div", scores, b.op("Sqrt", b.op("Cast", b.scalar(q, 3), to=TensorProto.FLOAT)))
    return scores


def softmax(b: Builder, scores: str, env, o) -> str:
    if o.softcap:
        scores = b.op("Mul", b.op("Tanh", b.op("Div", scores, b.number(3.0))), b.number(3.0))
    if env.get("bias"):
        scores = b.op("Add", scores, env["bias"])
    if env.get("seen"):
        scores = b.op("Where", env["seen"], scores, b.number(LOW))
    return b.op("Softmax", scores, axis=-1)


def stacked(b: Builder, wide: str, o) -> list[str]:
    """Queries, keys and values [batch, length, heads, head_dim] from one projection in which they come before, behind or inside of the heads."""
    n, d = o.heads, o.head_dim
    if o.stacked == "inside":
        return b.split(b.reshape(wide, o.reshape, n, 3 * d), d, d, d)
    axis = 2 if o.stacked == "before" else 3
    apart = b.reshape(wide, o.reshape, *((3, n, d) if axis == 2 else (n, 3, d)))
    return [b.op("Gather", apart, b.whole(i), axis=axis) for i in range(3)]


def plain_attention(b: Builder, x: str, env, o, layer: int, made: list[str] | None = None) -> str:
    """Attention in plain operators; `made` holds queries, keys and values where they are projected elsewhere."""
    n, d = o.heads, o.head_dim
    if vars(o).get("stacked"):
        q, k, v = stacked(b, made[0] if made else b.linear(x, o.hidden, 3 * n * d, o, scale=1.5), o)
    else:
        q, k, v = (b.reshape(t, o.reshape, h, d) for t, h in zip(made or projections(b, x, o), (n, o.kv, o.kv)))
    if o.scale == "early":
        q = b.op("Mul", q, b.number(d**-0.5))
    if o.head_norm:
        q, k = (norm(b, t, d, o.head_norm, o, "head") for t in (q, k))
    if o.form == "einsum":
        if o.scale == "each":
            q, k = (b.op("Mul", t, b.number(d**-0.25)) for t in (q, k))
        scores = scaled(b, b.op("Einsum", q, k, equation="bqhd,bkhd->bhqk"), q, o)
        out = b.op("Einsum", softmax(b, scores, env, o), v, equation="bhqk,bkhd->bqhd")
        return b.reshape(out, o.back, n * d)
    q, k, v = (b.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, k, v))
    if o.rotary:
        q, k = rotate(b, q, env, o), rotate(b, k, env, o)
    if o.cache:
        k, v = cached(b, k, v, layer, o)
    k, v = repeat(b, k, o), repeat(b, v, o)
    if o.scale == "each":
        q, k = (b.op("Mul", t, b.number(d**-0.25)) for t in (q, k))
    if o.form == "merged":
        out = merged(b, x, q, k, v, env, o)
    else:
        scores = scaled(b, b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), q, o)
        out = b.op("MatMul", softmax(b, scores, env, o), v)
    return b.reshape(b.op("Transpose", out, perm=[0, 2, 1, 3]), o.back, n * d)


def merged(b: Builder, x: str, q: str, k: str, v: str, env, o) -> str:
    """Batch and heads are one axis around both products."""
    n, d = o.heads, o.head_dim
    flat = [b.op("Reshape", t, b.op("Concat", b.ints(-1), b.size(t, 2), b.ints(d), axis=0)) for t in (q, k, v)]
    scores = b.op("MatMul", flat[0], b.op("Transpose", flat[1], perm=[0, 2, 1]))
    full = b.op("Reshape", scores, b.op("Concat", b.size(x, 0), b.ints(n), b.size(q, 2), b.size(k, 2), axis=0))
    shares = softmax(b, scaled(b, full, q, o), env, o)
    shares = b.op("Reshape", shares, b.op("Concat", b.ints(-1), b.size(q, 2), b.size(k, 2), axis=0))
    out = b.op("MatMul", shares, flat[2])
    return b.op("Reshape", out, b.op("Concat", b.size(x, 0), b.ints(n), b.size(q, 2), b.ints(d), axis=0))


def past(b: Builder, layer: int, o) -> list[str]:
    names = [f"past_{kind}_{layer}" for kind in ("key", "value")]
    b.inputs += [(n, TensorProto.FLOAT, ["batch", o.kv, "past", o.head_dim]) for n in names]
    return names


def present(b: Builder, k: str, v: str, layer: int, o) -> None:
    for kind, t in (("key", k), ("value", v)):
        b.nodes.append(helper.make_node("Identity", [t], [f"present_{kind}_{layer}"]))
        b.outputs.append((f"present_{kind}_{layer}", TensorProto.FLOAT, ["batch", o.kv, "total", o.head_dim]))


def cached(b: Builder, k: str, v: str, layer: int, o) -> list[str]:
    k, v = (b.op("Concat", old, new, axis=2) for old, new in zip(past(b, layer, o), (k, v)))
    present(b, k, v, layer, o)
    return k, v


def fused_attention(b: Builder, x: str, env, o, layer: int) -> str:
    """Attention as one operator: of ONNX (since 23) or of ONNX Runtime."""
    n, d = o.heads, o.head_dim
    scale = {"scale": 0.4} if o.scale == "constant" else {}
    if o.form == "ms-attention":
        return b.op("Attention", x, b.weight(o.hidden, 3 * n * d, scale=1.5), b.vector(3 * n * d), env.get("keys", ""), domain=MS, num_heads=n,
                    qkv_hidden_sizes=[n * d] * 3, unidirectional=int(o.mask == "causal"), **scale)  # fmt: skip
    q, k, v = projections(b, x, o)
    old = past(b, layer, o) if o.cache else ["", ""]
    if o.form == "multi-head":
        k, v = repeat_flat(b, k, o), repeat_flat(b, v, o)
        made = b.op("MultiHeadAttention", q, k, v, b.vector(3 * n * d) if o.bias != "zero" else "", env.get("keys", ""), env.get("bias", ""), *old,
                    domain=MS, num_heads=n, unidirectional=int(o.mask == "causal"), outputs=3 if o.cache else 1, **scale)  # fmt: skip
    elif o.form == "group-query":
        packed = [b.op("Concat", q, k, v, axis=-1), "", ""] if o.qkv == "fused" else [q, k, v]
        tables = [env["cos"], env["sin"]] if o.rotary else ["", ""]
        made = b.op("GroupQueryAttention", *packed, *old, env["lengths"], env["total"], *tables, domain=MS, num_heads=n, kv_num_heads=o.kv,
                    do_rotary=int(bool(o.rotary)), softcap=3.0 * o.softcap, outputs=3, **scale)  # fmt: skip
    else:
        causal = {"is_causal": int(o.mask == "causal"), "softcap": 3.0 * o.softcap} | scale
        if o.form == "onnx-3d":
            causal |= {"q_num_heads": n, "kv_num_heads": o.kv}
        else:
            q, k, v = (b.op("Transpose", b.reshape(t, o.reshape, h, d), perm=[0, 2, 1, 3]) for t, h in ((q, n), (k, o.kv), (v, o.kv)))
        made = b.op("Attention", q, k, v, env.get("bias", ""), *old, outputs=3 if o.cache else 1, **causal)
    out, *rest = made if isinstance(made, list) else [made]
    if o.cache:
        present(b, *rest, layer, o)
    return b.reshape(b.op("Transpose", out, perm=[0, 2, 1, 3]), o.back, n * d) if o.form == "onnx-4d" else out


def attention(b: Builder, x: str, env, o, layer: int) -> str:
    make = plain_attention if o.form in ("plain", "merged", "einsum") else fused_attention
    return b.linear(make(b, x, env, o, layer), o.heads * o.head_dim, o.hidden, o)


def parallel(b: Builder, x: str, env, o, layer: int) -> str:
    """Attention and feed-forward beside each other, behind one projection of ((queries, keys, values), (gate, up)), as PaLM fuses it."""
    widths = widths_of(o)
    first, second = b.cut(b.linear(x, o.hidden, sum(widths) + 2 * o.ffn, o, scale=1.5), [sum(widths), 2 * o.ffn], o.cut)
    made = [first] if vars(o).get("stacked") else b.cut(first, widths, o.cut)
    attended = b.linear(plain_attention(b, x, env, o, layer, made), widths[0], o.hidden, o)
    return b.op("Add", attended, feed_forward(b, x, o, b.cut(second, [o.ffn, o.ffn], o.cut)))


# --- masks and positions ----------------------------------------------------------------------------------------------------------


def surroundings(b: Builder, x: str, o) -> dict[str, str]:
    """What all layers share: masks, rotary tables, lengths. x is [batch, length, ...]."""
    env, fused = {}, o.form in ("ms-attention", "multi-head", "group-query")
    length = b.scalar(x, 1)
    held = b.scalar("past_key_0", 2) if o.cache else b.whole(0)
    every = b.op("Add", length, held) if o.cache else length
    if o.form == "group-query":
        b.inputs.append(("attention_mask", TensorProto.INT64, ["batch", "total"]))
        sums = b.op("Sub", b.op("ReduceSum", "attention_mask", b.ints(1), keepdims=0), b.ints(1))
        env["lengths"] = b.op("Cast", sums, to=TensorProto.INT32)
        env["total"] = b.op("Cast", b.scalar("attention_mask", 1), to=TensorProto.INT32)
    elif o.mask == "padding":
        b.inputs.append(("attention_mask", TensorProto.INT64, ["batch", "total" if o.cache else "length"]))
        if fused:
            env["keys"] = b.op("Cast", "attention_mask", to=TensorProto.INT32)
        else:
            wide = b.op("Cast", b.op("Unsqueeze", b.op("Unsqueeze", "attention_mask", b.ints(1)), b.ints(2)), to=TensorProto.FLOAT)
            env["bias"] = b.op("Mul", b.op("Sub", b.number(1.0), wide), b.number(LOW))
            if o.form.startswith("onnx"):
                env["bias"] = b.op("Expand", env["bias"], b.op("Concat", b.ints(1, 1), b.size(x, 1), b.ints(1), axis=0))
    elif o.mask == "fed" and o.form != "ms-attention":
        b.inputs.append(("bias", TensorProto.FLOAT, ["batch", 1, "length", "total" if o.cache else "length"]))
        env["bias"] = "bias"
    elif o.mask == "stored" and not fused:
        table = b.hold(np.tril(np.ones((1, 1, REACH, REACH), bool)), "mask")
        up = lambda t: b.op("Unsqueeze", t, b.ints(0))  # noqa: E731
        env["seen"] = b.slice(b.slice(table, up(held), up(every), 2), 0, up(every), 3)
    elif o.mask == "causal" and o.form in ("plain", "merged", "einsum"):
        rows = b.op("Unsqueeze", b.op("Range", held, every, b.whole(1)), b.ints(1))
        env["seen"] = b.op("LessOrEqual", b.op("Range", b.whole(0), every, b.whole(1)), rows)
    if o.rotary:
        env |= rotary_tables(b, held, every, o)
    return env


def waves(rows: int, n: int) -> np.ndarray:
    """Sines and cosines in turns, [rows, n], as the first transformer added them."""
    angles = np.outer(np.arange(rows), 100.0 ** (-(np.arange(n) // 2 * 2) / n))
    return np.where(np.arange(n) % 2, np.cos(angles), np.sin(angles)).astype("f")


def rotary_tables(b: Builder, held: str, every: str, o) -> dict[str, str]:
    half = o.head_dim // 2
    freq = (100.0 ** (-np.arange(half) / half)).astype("f")
    stored = np.outer(np.arange(REACH), freq).astype("f")
    if o.form == "group-query":
        return {"cos": b.hold(np.cos(stored), "cos"), "sin": b.hold(np.sin(stored), "sin")}
    where = b.op("Range", held, every, b.whole(1))
    if o.tables == "stored":
        wide = stored if o.rotary == "halves" else np.concatenate([stored, stored], 1)
        return {name: b.op("Gather", b.hold(f(wide), name), where, axis=0) for name, f in (("cos", np.cos), ("sin", np.sin))}
    at = b.op("Unsqueeze", b.op("Cast", where, to=TensorProto.FLOAT), b.ints(1))
    angles = b.op("MatMul", at, b.hold(freq[None], "freq")) if b.toss() else b.op("Mul", at, b.hold(freq, "freq"))
    angles = b.op("Concat", angles, angles, axis=-1) if o.rotary == "whole" else angles
    return {"cos": b.op("Cos", angles), "sin": b.op("Sin", angles)}


def finish(b: Builder, name: str) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(b.nodes, name, [value(*v) for v in b.inputs], [value(*v) for v in b.outputs],
                              [numpy_helper.from_array(v, n) for n, v in b.held.items()])  # fmt: skip
    opsets = [helper.make_opsetid("", b.opset), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if b.opset > 20 else 9)


def in_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, with every initializer in a Constant node, and small numbers in the attributes that only such nodes have."""
    nodes = []
    for tensor in model.graph.initializer:
        x = numpy_helper.to_array(tensor)
        if x.dtype == np.int64 and x.ndim < 2:
            held = {"value_ints": x.tolist()} if x.ndim else {"value_int": int(x)}
        elif x.dtype == np.float32 and x.ndim == 0:
            held = {"value_float": float(x)}
        else:
            held = {"value": tensor}
        nodes.append(helper.make_node("Constant", [], [tensor.name], f"constant_{tensor.name}", **held))
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
