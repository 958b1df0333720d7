"""Attention and rotary positions as one operator, as the plain nodes they stand for: scores, mask, Softmax, context.

com.microsoft: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md; ONNX: https://onnx.ai/onnx/operators/.
"""

from math import sqrt

from onnx import TensorProto

from onnxgrow.rulebook import unfolds

LOWEST = {TensorProto.FLOAT: -3.4028234663852886e38, TensorProto.FLOAT16: -65504.0, TensorProto.BFLOAT16: -3.3895313892515355e38,
          TensorProto.DOUBLE: -1.7976931348623157e308}

UNCHECKED = "(ONNX Runtime has no CPU kernel that could check it)"


@unfolds("com.microsoft::Attention")
def attention(b):
    """One weight [hidden, q + k + v]; past and present are [2, batch, heads, length, head_dim]."""
    if b.attr("do_rotary", 0):
        b.refuse(f"with rotary positions of its own (do_rotary) {UNCHECKED}", "fuse the model with MultiHeadAttention and RotaryEmbedding, as its CPU kernel asks for")
    if b.attr("past_present_share_buffer", 0):
        b.refuse(f"with a cache that it shares (past_present_share_buffer) {UNCHECKED}", "fuse the model without a shared buffer; ONNX Runtime can share it later")
    qkv = b.MatMul(b.x(0), b.x(1))
    qkv = b.Add(qkv, b.x(2)) if b.has(2) else qkv
    third = b.shape(1)[-1] // 3
    sizes = [b.tagged("qkv_hidden_sizes", None, i) if b.attr("qkv_hidden_sizes") else third for i in range(3)]
    heads, q_size = b.attr("num_heads"), b.attr("qkv_hidden_sizes", [third])[0]
    q, k, v = (_heads_first(b, x) for x in b.Split(qkv, b.ints(*sizes), axis=-1, outputs=3))
    present = None
    if b.has(4):
        old_k, old_v = (b.Squeeze(x, b.ints(0)) for x in b.Split(b.x(4), b.ints(1, 1), axis=0, outputs=2))
        k, v = b.Concat(old_k, k, axis=2), b.Concat(old_v, v, axis=2)
    if b.wants(1):
        present = b.Concat(b.Unsqueeze(k, b.ints(0)), b.Unsqueeze(v, b.ints(0)), axis=0)
    scores = _scores(b, q, k, q_size // heads)
    scores = b.Add(scores, b.x(5)) if b.has(5) else scores
    scores = _padded(b, scores, k, 3)
    scores = _causal(b, scores, q, k) if b.attr("unidirectional", 0) else scores
    b.gives(_context(b, scores, v), present)


@unfolds("com.microsoft::MultiHeadAttention")
def multi_head_attention(b):
    """Queries, keys and values apart, with one bias for all three; keys and values may come with their heads first (from another cache)."""
    _multi_head(b, bias=3, mask=4, extra=5, past=6)


@unfolds("com.microsoft::DecoderMaskedMultiHeadAttention")
def decoder_masked(b):
    """The same for one new word, which is written into a cache that has room for more than it holds."""
    if b.has(9) or b.wants(3):
        b.refuse("with a cache that beams share, or scores as an output")
    _multi_head(b, bias=10, mask=3, extra=4, past=5, length=7 if b.attr("past_present_share_buffer", 0) else None)


def _multi_head(b, bias, mask, extra, past, length=None):
    if b.has(0) and len(b.shape(0)) == 5 or b.has(1) and len(b.shape(1)) == 5:
        b.refuse("with packed queries, keys and values")
    if not b.has(1):
        b.refuse("without keys")
    size = b.shape(0)[-1] // b.attr("num_heads")
    parts = [b.x(0), b.x(1), b.x(2)]
    if b.has(bias):
        width = b.shape(0)[-1]
        cut = b.Split(b.x(bias), b.ints(width, width, b.shape(bias)[-1] - 2 * width), axis=0, outputs=3)
        parts = [b.Add(x, c) if len(b.shape(i)) == 3 else _beside(b, x, c) for i, (x, c) in enumerate(zip(parts, cut))]
    q, k, v = (_heads_first(b, x) if len(b.shape(i)) == 3 else x for i, x in enumerate(parts))
    places = held = None
    if b.has(past) and length is not None:
        places, held = b.Range(b.whole(0), b.size(b.x(past), 2), b.whole(1)), b.Cast(b.x(length), to=TensorProto.INT64)
        here = b.Unsqueeze(b.Equal(places, held), b.ints(1))
        k, v = b.Where(here, k, b.x(past)), b.Where(here, v, b.x(past + 1))
    elif b.has(past):
        k, v = b.Concat(b.x(past), k, axis=2), b.Concat(b.x(past + 1), v, axis=2)
    scores = _scores(b, q, k, size)
    scores = b.Add(scores, b.x(extra)) if b.has(extra) else scores
    scores = _padded(b, scores, k, mask)
    scores = b.Where(b.LessOrEqual(places, held), scores, b.number(LOWEST[b.types[0]])) if held else scores
    scores = _causal(b, scores, q, k) if b.attr("unidirectional", 0) else scores
    b.gives(_context(b, scores, v), b.Identity(k) if b.wants(1) else None, b.Identity(v) if b.wants(2) else None)


def _beside(b, x, bias):
    """Keys of another cache have their bias already, but the operator wants room for one: of the same sizes, and without effect."""
    return b.Add(x, b.Mul(b.Unsqueeze(b.Reshape(bias, b.ints(b.tagged("num_heads"), -1)), b.ints(1)), b.number(0.0)))


@unfolds("com.microsoft::GroupQueryAttention")
def group_query(b):
    """Fewer keys than queries; rotary positions inside, queries, keys and values packed into one tensor, or both."""
    heads, kv = b.attr("num_heads"), b.attr("kv_num_heads")
    if b.attr("kv_cache_bit_width", 0) or b.wants(3):
        b.refuse("with a quantized cache, or scores as an output")
    size = b.shape(0)[-1] // (heads if b.has(1) else heads + 2 * kv)
    parts = [b.x(0), b.x(1), b.x(2)]
    if not b.has(1):
        parts = b.Split(b.x(0), b.ints(heads * size, kv * size, kv * size), axis=-1, outputs=3)
    q, k, v = (_heads_first(b, x, name) for x, name in zip(parts, ("num_heads", "kv_num_heads", "kv_num_heads")))
    norm = b.tagged("qk_norm_epsilon", 1e-6)
    q = b.RMSNormalization(q, b.x(14), axis=-1, epsilon=norm) if b.has(14) else q
    k = b.RMSNormalization(k, b.x(15), axis=-1, epsilon=norm) if b.has(15) else k
    if b.attr("do_rotary", 0):
        cos, sin = (b.Unsqueeze(b.Gather(b.x(i), _positions(b), axis=0), b.ints(1)) for i in (7, 8))
        q, k = (_rotated(b, x, cos, sin, b.shape(7)[-1], size, b.attr("rotary_interleaved", 0)) for x in (q, k))
    if b.has(3):
        k, v = b.Concat(b.x(3), k, axis=2), b.Concat(b.x(4), v, axis=2)
    present = b.Identity(k) if b.wants(1) else None, b.Identity(v) if b.wants(2) else None
    k, v = (_repeated(b, x, heads // kv, b.tagged("num_heads"), size) for x in (k, v))
    scores = _capped(b, _scores(b, q, k, size), "softcap")
    scores = b.Add(scores, b.x(10)) if b.has(10) else scores
    scores = _causal(b, scores, q, k, b.attr("local_window_size", -1)) if b.attr("causal", 1) else scores
    b.gives(_context(b, scores, v, b.x(11), b.attr("smooth_softmax", 0)), *present)


def _positions(b):
    """Positions of the new words: given, or behind those that the cache holds."""
    if b.has(9):
        return b.x(9)
    new = b.size(b.x(0), 1)
    held = b.Max(b.Sub(b.Add(b.Cast(b.Flatten(b.x(5), axis=0), to=TensorProto.INT64), b.whole(1)), new), b.whole(0))
    return b.Add(b.Transpose(held, perm=[1, 0]), b.Range(b.whole(0), new, b.whole(1)))


@unfolds("Attention")
def onnx_attention(b):
    """ONNX Attention (since 23): 4-D with heads first, or 3-D with their numbers as attributes."""
    flat = len(b.shape(0)) == 3
    if b.attr("qk_matmul_output_mode", 0) or b.wants(3):
        b.refuse("with scores as an output")
    q, k, v = b.x(0), b.x(1), b.x(2)
    if flat:
        heads, kv = b.attr("q_num_heads"), b.attr("kv_num_heads")
        size = b.shape(0)[-1] // heads
        q, k, v = (_heads_first(b, x, name) for x, name in zip((q, k, v), ("q_num_heads", "kv_num_heads", "kv_num_heads")))
    else:
        heads, kv, size = b.shape(0)[1], b.shape(1)[1], b.shape(0)[-1]
    if b.has(4):
        k, v = b.Concat(b.x(4), k, axis=2), b.Concat(b.x(5), v, axis=2)
    present = b.Identity(k) if b.wants(1) else None, b.Identity(v) if b.wants(2) else None
    if b.takes("repeat", kv != heads):
        many, v_size = b.tagged("q_num_heads") if flat else heads, b.shape(2)[-1] // kv if flat else b.shape(2)[-1]
        k, v = _repeated(b, k, heads // kv, many, size), _repeated(b, v, heads // kv, many, v_size)
    scores = _capped(b, _scores(b, q, k, size), "softcap")
    if b.has(3):
        seen = b.types[3] == TensorProto.BOOL
        scores = b.Where(b.x(3), scores, b.number(LOWEST[b.types[0]])) if seen else b.Add(scores, b.x(3))
    if b.has(6):  # keys in use per row, of a cache that is longer
        keys = b.Range(b.whole(0), b.size(k, 2), b.whole(1))
        if b.attr("is_causal", 0):
            behind = b.Sub(b.Unsqueeze(b.x(6), b.ints(1)), b.size(q, 2))
            seen = b.LessOrEqual(keys, b.Unsqueeze(b.Add(behind, b.Range(b.whole(0), b.size(q, 2), b.whole(1))), b.ints(2)))
        else:
            seen = b.Unsqueeze(b.Less(keys, b.Unsqueeze(b.x(6), b.ints(1))), b.ints(1))
        scores = b.Where(b.Unsqueeze(seen, b.ints(1)), scores, b.number(LOWEST[b.types[0]]))
    elif b.attr("is_causal", 0):
        scores = _causal(b, scores, q, k, offset=b.has(4))
    out = b.MatMul(b.Softmax(scores, axis=-1), v)
    b.gives(b.Reshape(b.Transpose(out, perm=[0, 2, 1, 3]), b.ints(0, 0, -1)) if flat else out, *present)


@unfolds("RotaryEmbedding")
def onnx_rotary(b):
    """ONNX RotaryEmbedding (since 23): tables of halves, looked up by position or given per word."""
    _rotary(b, tables=(1, 2), positions=3)


@unfolds("com.microsoft::RotaryEmbedding")
def rotary(b):
    """Tables of halves, looked up by position, or by where the first word stands."""
    if b.attr("is_packed_batching", 0):
        b.refuse("with packed rows")
    _rotary(b, tables=(2, 3), positions=1)


def _rotary(b, tables, positions):
    shape, half, first = b.shape(0), b.shape(tables[0])[-1], tables[0]
    flat = len(shape) == 3
    named = b.attr("num_heads", 0)
    partial = b.attr("rotary_embedding_dim", 0)
    heads = named or (shape[-1] // (2 * half) if flat else shape[1])
    size = shape[-1] // heads if flat else shape[-1]
    x = b.Reshape(b.x(0), b.ints(0, 0, b.tagged("num_heads") if named else heads, -1)) if flat else b.x(0)
    where = b.x(positions)
    if b.has(positions) and len(b.shape(positions)) == 1:  # where the first word stands
        where = b.Unsqueeze(b.Add(b.Range(b.whole(0), b.size(b.x(0), 1 if flat else 2), b.whole(1)), b.x(positions)), b.ints(0))
    cos, sin = (b.Gather(b.x(t), where, axis=0) if b.has(positions) else b.x(t) for t in (first, first + 1))
    cos, sin = (b.Unsqueeze(t, b.ints(2 if flat else 1)) for t in (cos, sin))
    y = _rotated(b, x, cos, sin, half, size, b.attr("interleaved", 0), "rotary_embedding_dim" if partial else None)
    b.gives(b.Reshape(y, b.ints(0, 0, -1)) if flat else y)


def _rotated(b, x, cos, sin, half, size, interleaved, named=None):
    """Pairs (i, i + half), or (2i, 2i + 1) where they are interleaved, turned by cos and sin; what lies behind them passes."""
    rest = []
    if 2 * half < size:
        x, kept = b.Split(x, b.ints(b.tagged(named) if named else 2 * half, size - 2 * half), axis=-1, outputs=2)
        rest = [kept]
    if interleaved:
        pairs = b.Reshape(x, b.ints(0, 0, 0, -1, 2))
        first, second = (b.Squeeze(p, b.ints(-1)) for p in b.Split(pairs, b.ints(1, 1), axis=-1, outputs=2))
    else:
        first, second = b.Split(x, b.ints(half, half), axis=-1, outputs=2)
    turned = b.Sub(b.Mul(first, cos), b.Mul(second, sin)), b.Add(b.Mul(second, cos), b.Mul(first, sin))
    if interleaved:
        y = b.Reshape(b.Concat(*(b.Unsqueeze(t, b.ints(-1)) for t in turned), axis=-1), b.ints(0, 0, 0, -1))
    else:
        y = b.Concat(*turned, axis=-1)
    return b.Concat(y, *rest, axis=-1) if rest else y


# --- what they share ---------------------------------------------------------------------------------------------------------------


def _heads_first(b, x, name="num_heads"):
    """[batch, length, heads · size] -> [batch, heads, length, size]."""
    return b.Transpose(b.Reshape(x, b.ints(0, 0, b.tagged(name), -1)), perm=[0, 2, 1, 3])


def _repeated(b, x, group, heads, size):
    """Each kv head for its group of query heads: [batch, kv, length, size] -> [batch, heads, length, size]."""
    if not b.takes("repeat", group > 1):
        return x
    many = b.Expand(b.Unsqueeze(x, b.ints(2)), b.ints(1, 1, group, 1, 1))
    return b.Reshape(many, b.ints(0, heads, -1, size))


def _scores(b, q, k, size):
    return b.Mul(b.MatMul(q, b.Transpose(k, perm=[0, 1, 3, 2])), b.number(b.tagged("scale", 1 / sqrt(size), zero=False)))


def _capped(b, scores, name):
    if not b.attr(name, 0.0):
        return scores
    cap = b.number(b.tagged(name))
    return b.Mul(b.Tanh(b.Div(scores, cap)), cap)


def _padded(b, scores, k, slot):
    """Hide the keys that a mask of 0 and 1 names: per key, per query and key, or as the length of each row."""
    if not b.has(slot):
        return scores
    shape, hidden = b.shape(slot), b.number(b.attr("mask_filter_value", -10000.0))
    if len(shape) == 1:
        if shape[0] != b.shape(0)[0]:
            b.refuse("with a mask of starts and ends")
        keys = b.Cast(b.Range(b.whole(0), b.size(k, 2), b.whole(1)), to=b.types[slot])
        seen = b.Unsqueeze(b.Less(keys, b.Unsqueeze(b.x(slot), b.ints(1))), b.ints(1, 2))
    else:
        if len(shape) > 3:
            b.refuse(f"with a square mask of 0 and 1 for all lengths {UNCHECKED}", "feed the mask as [batch, length, keys], or as attention_bias with what is added to the scores")
        seen = b.Cast(b.Unsqueeze(b.x(slot), b.ints(1, 2) if len(shape) == 2 else b.ints(1)), to=TensorProto.BOOL)
    return b.Where(seen, scores, b.Add(scores, hidden))


def _causal(b, scores, q, k, window=-1, offset=True):
    """Each query sees the keys up to its own place, which is counted from the end; with a window no more than that many."""
    new, every = b.size(q, 2), b.size(k, 2)
    rows = b.Range(b.whole(0), new, b.whole(1))
    rows = b.Unsqueeze(b.Add(rows, b.Sub(every, new)) if offset else rows, b.ints(1))
    keys = b.Range(b.whole(0), every, b.whole(1))
    seen = b.LessOrEqual(keys, rows)
    seen = b.And(seen, b.Greater(keys, b.Sub(rows, b.whole(window)))) if window > 0 else seen
    return b.Where(seen, scores, b.number(LOWEST[b.types[0]]))


def _context(b, scores, v, sink="", smooth=0):
    """softmax(scores) v with heads last again; a sink takes its share of the softmax and gives nothing."""
    if sink or smooth:
        shape = b.Concat(b.Shape(scores, start=0, end=3), b.ints(1), axis=0)
        more = b.Expand(b.Reshape(sink, b.ints(1, -1, 1, 1)) if sink else b.number(0.0), shape)
        shares = b.Softmax(b.Concat(scores, more, axis=-1), axis=-1)
        shares = b.Slice(shares, b.ints(0), b.ints(-1), b.ints(-1))
    else:
        shares = b.Softmax(scores, axis=-1)
    out = b.MatMul(shares, v)
    return b.Reshape(b.Transpose(out, perm=[0, 2, 1, 3]), b.ints(0, 0, -1))
