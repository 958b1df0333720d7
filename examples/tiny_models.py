"""Two small language models in plain PyTorch: one built like GPT-2, one built like Llama.

Both read bytes and predict the next byte. Shapes at line ends: B batch, T sequence, C hidden, V vocabulary,
N query heads, K key-value heads, D head size, F feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """Everything that decides a shape. No two of them are equal where it can be helped, so a mix-up shows."""

    layers: int = 4
    hidden: int = 96
    heads: int = 6
    kv_heads: int = 6
    head_dim: int = 16
    ffn: int = 384
    context: int = 128
    vocab: int = 256


# --- like GPT-2: learned positions, LayerNorm, one qkv map, GELU, biases everywhere, head tied to the embedding ---


class GPTAttention(nn.Module):
    def __init__(self, size: Sizes):
        super().__init__()
        self.size = size
        self.qkv = nn.Linear(size.hidden, 3 * size.heads * size.head_dim)
        self.out = nn.Linear(size.heads * size.head_dim, size.hidden)
        self.register_buffer("past", torch.ones(size.context, size.context).tril().bool(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        N, D = self.size.heads, self.size.head_dim
        q, k, v = (part.view(B, T, N, D).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))  # B N T D
        scores = (q @ k.transpose(-2, -1)) * D**-0.5  # B N T T
        scores = scores.masked_fill(~self.past[:T, :T], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(dim=-1) @ v  # B N T D
        return self.out(mixed.transpose(1, 2).reshape(B, T, N * D))  # B T C


class GPTBlock(nn.Module):
    def __init__(self, size: Sizes):
        super().__init__()
        self.attention_norm = nn.LayerNorm(size.hidden)
        self.attention = GPTAttention(size)
        self.ffn_norm = nn.LayerNorm(size.hidden)
        self.up = nn.Linear(size.hidden, size.ffn)
        self.down = nn.Linear(size.ffn, size.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))  # B T C
        return x + self.down(F.gelu(self.up(self.ffn_norm(x))))  # B T C


class TinyGPT(nn.Module):
    def __init__(self, size: Sizes):
        super().__init__()
        self.tokens = nn.Embedding(size.vocab, size.hidden)
        self.positions = nn.Embedding(size.context, size.hidden)
        self.blocks = nn.ModuleList(GPTBlock(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.hidden)
        self.head = nn.Linear(size.hidden, size.vocab, bias=False)
        self.head.weight = self.tokens.weight  # the tie
        initialise(self, size.layers)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]  # B T C
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # B T V


# --- like Llama: rotary positions, RMSNorm, grouped queries, gated SiLU, no biases, a head of its own ---


class RMSNorm(nn.Module):
    def __init__(self, hidden: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))  # B T C


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (i, i + D/2) of every head by their angle, as in Llama: https://arxiv.org/abs/2104.09864."""
    a, b = x.chunk(2, dim=-1)  # B N T D/2
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # B N T D


class LlamaAttention(nn.Module):
    def __init__(self, size: Sizes):
        super().__init__()
        self.size = size
        self.q = nn.Linear(size.hidden, size.heads * size.head_dim, bias=False)
        self.k = nn.Linear(size.hidden, size.kv_heads * size.head_dim, bias=False)
        self.v = nn.Linear(size.hidden, size.kv_heads * size.head_dim, bias=False)
        self.out = nn.Linear(size.heads * size.head_dim, size.hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        N, K, D = self.size.heads, self.size.kv_heads, self.size.head_dim
        q = rotate(self.q(x).view(B, T, N, D).transpose(1, 2), cos, sin)  # B N T D
        k = rotate(self.k(x).view(B, T, K, D).transpose(1, 2), cos, sin)  # B K T D
        v = self.v(x).view(B, T, K, D).transpose(1, 2)  # B K T D
        # N/K neighbouring query heads read the same key and value head
        k, v = (y[:, :, None].expand(B, K, N // K, T, D).reshape(B, N, T, D) for y in (k, v))  # B N T D
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # B N T D
        return self.out(mixed.transpose(1, 2).reshape(B, T, N * D))  # B T C


class LlamaBlock(nn.Module):
    def __init__(self, size: Sizes):
        super().__init__()
        self.attention_norm = RMSNorm(size.hidden)
        self.attention = LlamaAttention(size)
        self.ffn_norm = RMSNorm(size.hidden)
        self.gate = nn.Linear(size.hidden, size.ffn, bias=False)
        self.up = nn.Linear(size.hidden, size.ffn, bias=False)
        self.down = nn.Linear(size.ffn, size.hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)  # B T C
        y = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # B T C


class TinyLlama(nn.Module):
    def __init__(self, size: Sizes):
        super().__init__()
        self.tokens = nn.Embedding(size.vocab, size.hidden)
        self.blocks = nn.ModuleList(LlamaBlock(size) for _ in range(size.layers))
        self.norm = RMSNorm(size.hidden)
        self.head = nn.Linear(size.hidden, size.vocab, bias=False)
        pairs = torch.arange(0, size.head_dim, 2) / size.head_dim  # D/2
        self.register_buffer("inv_freq", 10000.0**-pairs, persistent=False)  # D/2
        initialise(self, size.layers)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(input_ids.shape[1])[:, None] * self.inv_freq  # T D/2
        cos, sin = angles.cos(), angles.sin()
        x = self.tokens(input_ids)  # B T C
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))  # B T V


def initialise(model: nn.Module, layers: int) -> None:
    """GPT-2's start: normal with std 0.02, and the last map of each branch smaller, one branch sum per layer."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            last = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(weight, std=0.02 * (2 * layers) ** (-0.5 if last else 0))
        elif name.endswith("bias"):
            nn.init.zeros_(weight)


# heads * head_dim = hidden and feed-forward 4x (gated: 2.5x), the proportions of their large relatives
GPT = Sizes(layers=4, hidden=96, heads=6, kv_heads=6, head_dim=16, ffn=384)
LLAMA = Sizes(layers=4, hidden=96, heads=4, kv_heads=2, head_dim=24, ffn=240)
