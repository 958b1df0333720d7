"""Examples of the operators that are unfolded: one-node models on which every unfolding is tried against ONNX Runtime."""

from __future__ import annotations

import numpy as np

from .operators import Example, Fed, example

B, T, P, N, K, D = 2, 5, 3, 4, 2, 8  # batch, new words, words in the cache, heads, kv heads, size of a head
H, S = N * D, P + T
X, SKIP, VECTOR = (B, T, H), (B, T, H), (H,)
HEADS, CACHE, PAIR = (B, N, T, D), (B, N, P, D), (2, B, N, P, D)


def _ids(limit: int, *shape: int, kind=np.int32) -> Fed:
    drawn = np.random.default_rng(1).integers(0, limit, shape).astype(kind)
    return Fed(drawn)


def _mask(*shape: int, kind=np.int32) -> Fed:
    """Some keys hidden, never the last one, which every query sees."""
    drawn = np.random.default_rng(2).random(shape) < 0.7
    drawn[..., -1] = drawn[..., 0] = True
    return Fed(drawn.astype(kind))


def _turns(rows: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(rows)[:, None] * 0.3 ** np.arange(half)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _ms(op: str, *inputs, **more) -> Example:
    return example(op, *inputs, domain="com.microsoft", **more)


COS, SIN = _turns(16, D // 2)
WHERE = Fed(np.array([[3, 4, 5, 6, 7], [0, 1, 2, 3, 4]]))
START, EVERY = Fed(np.array([T - 1, T - 1], np.int32)), Fed(np.array(T, np.int32))
KV, KV_CACHE = (B, T, K * D), (B, K, P, D)
COS16, SIN16 = _turns(16, 8)  # ONNX Runtime wants heads of 16 where they turn
MORE = (1, T, N * 16), (1, T, K * 16), (1, T, K * 16), (1, K, P, 16), (1, K, P, 16), Fed(np.array([S - 1], np.int32)), Fed(np.array(S, np.int32))
WIDE = (1, T, N * 32), (1, T, K * 32), (1, T, K * 32), (1, K, P, 32), (1, K, P, 32), *MORE[5:]
ONE = (B, 1, N * 16), (B, 1, K * 16), (B, 1, K * 16), (B, K, P, 16), (B, K, P, 16), Fed(np.array([P, P], np.int32)), Fed(np.array(P + 1, np.int32))
GROUPED = dict(num_heads=N, kv_num_heads=K, outputs=3)

E, F = 4, 12  # experts, hidden units of each
EXPERTS = (E, F, H), (E, F), (E, H, F), (E, H)
IN_TURNS = (E, 2 * F, H), (E, 2 * F), *EXPERTS[2:]
BARE = EXPERTS[0], None, EXPERTS[2]

FUSED: list[Example] = [
    *(_ms(op, X) for op in ("Gelu", "FastGelu", "QuickGelu")),
    _ms("QuickGelu", X, alpha=0.7),
    *(_ms(op, X, VECTOR) for op in ("BiasGelu", "FastGelu")),
    _ms("FusedMatMul", X, (H, 12)),
    _ms("FusedMatMul", (B, H, T), (B, 7, H), transA=1, transB=1, alpha=0.25),
    _ms("FusedMatMul", (T, B, H), (7, B, H), transBatchA=1, transBatchB=1, transB=1, alpha=0.5),
    _ms("FusedMatMul", (H, B, T), (H, B, 7), transBatchA=1, transBatchB=1, transA=1),
    _ms("TransposeMatMul", X, (12, H), transB=1),
    _ms("FusedGemm", (T, H), (7, H), (7,), transB=1, alpha=0.5, activation="Relu"),
    _ms("FusedGemm", (T, H), (H, 7), activation="LeakyRelu", activation_alpha=0.3),
    _ms("FusedConv", (2, 4, 8, 8), (6, 4, 3, 3), (6,), activation="Relu", pads=[1, 1, 1, 1]),
    _ms("SkipLayerNormalization", X, SKIP, VECTOR, VECTOR, epsilon=1e-3),
    _ms("SkipLayerNormalization", X, SKIP, VECTOR, VECTOR, VECTOR, outputs=(0, 3)),
    _ms("SkipSimplifiedLayerNormalization", X, SKIP, VECTOR, VECTOR, outputs=(0, 3), epsilon=1e-3),
    _ms("SkipSimplifiedLayerNormalization", X, SKIP, VECTOR),
    _ms("EmbedLayerNormalization", _ids(9, B, T), _ids(2, B, T), (9, H), (16, H), (2, H), VECTOR, VECTOR, _mask(B, T), outputs=2, epsilon=1e-3),
    _ms("EmbedLayerNormalization", _ids(9, B, T), None, (9, H), (16, H), None, VECTOR, VECTOR, None, _ids(16, B, T), outputs=3),
    _ms("Attention", X, (H, 3 * H), (3 * H,), num_heads=N),
    _ms("Attention", X, (H, 3 * H), (3 * H,), _mask(B, T), num_heads=N),
    _ms("Attention", X, (H, 3 * H), (3 * H,), Fed(np.array([5, 3], np.int32)), num_heads=N, scale=0.2),
    _ms("Attention", X, (H, 3 * H), (3 * H,), _mask(B, T, T), None, (B, N, T, T), num_heads=N, unidirectional=1),
    _ms("Attention", X, (H, 3 * H), (3 * H,), _mask(B, S), PAIR, num_heads=N, unidirectional=1, outputs=2),
    _ms("Attention", X, (H, 2 * 16 + 24), (2 * 16 + 24,), num_heads=N, qkv_hidden_sizes=[16, 16, 24]),
    _ms("MultiHeadAttention", X, X, X, (3 * H,), num_heads=N),
    _ms("MultiHeadAttention", X, (B, S, H), (B, S, N * 6), None, _mask(B, S), (1, 1, T, S), num_heads=N, scale=0.3),
    _ms("MultiHeadAttention", X, X, X, (3 * H,), None, None, CACHE, CACHE, num_heads=N, outputs=3, unidirectional=1),
    _ms("MultiHeadAttention", X, (B, N, S, D), (B, N, S, D), (3 * H,), num_heads=N),
    _ms("DecoderMaskedMultiHeadAttention", (B, 1, H), (B, 1, H), (B, 1, H), None, None, CACHE, CACHE, Fed(np.array([P - 1], np.int32)), None, None, (3 * H,),
        num_heads=N, past_present_share_buffer=1, outputs=3),
    _ms("GroupQueryAttention", X, KV, KV, None, None, START, EVERY, **GROUPED),
    _ms("GroupQueryAttention", X, KV, KV, None, None, START, EVERY, None, None, None, None, (N,), **GROUPED),
    _ms("GroupQueryAttention", X, KV, KV, None, None, START, EVERY, smooth_softmax=1, **GROUPED),
    _ms("GroupQueryAttention", *ONE, softcap=2.0, local_window_size=3, **GROUPED),
    _ms("GroupQueryAttention", *MORE, COS16, SIN16, do_rotary=1, **GROUPED),
    _ms("GroupQueryAttention", *WIDE, COS16, SIN16, do_rotary=1, scale=0.2, **GROUPED),
    _ms("GroupQueryAttention", *ONE, COS16, SIN16, Fed(np.array([[4], [2]])), (B, 1, 1, P + 1), do_rotary=1, **GROUPED),
    _ms("GroupQueryAttention", (B, 1, (N + 2 * K) * 16), None, None, *ONE[3:], COS16, SIN16, do_rotary=1, rotary_interleaved=1, **GROUPED),
    _ms("GroupQueryAttention", *ONE, COS16, SIN16, None, None, None, None, None, (16,), (16,), do_rotary=1, qk_norm_epsilon=1e-3, **GROUPED),
    _ms("RotaryEmbedding", X, WHERE, COS, SIN),
    _ms("RotaryEmbedding", HEADS, WHERE, COS, SIN, interleaved=1),
    _ms("RotaryEmbedding", X, Fed(np.array([3])), COS, SIN),
    _ms("RotaryEmbedding", X, WHERE, COS[:, :2], SIN[:, :2], num_heads=N, rotary_embedding_dim=4),
    example("RotaryEmbedding", HEADS, COS, SIN, WHERE, opset=23),
    example("RotaryEmbedding", X, (B, T, D // 2), (B, T, D // 2), opset=23, num_heads=N, interleaved=1),
    example("RotaryEmbedding", HEADS, COS[:, :2], SIN[:, :2], WHERE, opset=23, rotary_embedding_dim=4),
    example("Attention", HEADS, (B, N, S, D), (B, N, S, 6), opset=23),
    example("Attention", HEADS, (B, K, T, D), (B, K, T, D), opset=23, is_causal=1, scale=0.2),
    example("Attention", X, KV, KV, _mask(B, 1, T, T, kind=bool), opset=23, q_num_heads=N, kv_num_heads=K),
    example("Attention", X, KV, KV, (T, S), KV_CACHE, KV_CACHE, opset=23, q_num_heads=N, kv_num_heads=K, is_causal=1, softcap=1.5, outputs=3),
    example("Attention", HEADS, (B, N, S, D), (B, N, S, D), None, None, None, Fed(np.array([8, 6])), opset=24, is_causal=1),
    *(_ms("MoE", X, (B * T, E), *EXPERTS, k=2, activation_type=kind) for kind in ("relu", "gelu", "silu")),
    _ms("MoE", (T, H), (T, E), *BARE, k=3, activation_type="identity", normalize_routing_weights=1),
    _ms("MoE", X, (B * T, E), *IN_TURNS, k=2, activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=1),
    _ms("MoE", X, (B * T, E), *IN_TURNS, k=2, activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.702, activation_beta=1.0, swiglu_limit=1.0),
]
