"""Decoders with a mixture of experts, in the two forms that exports have: experts in one weight, or a list of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo_sizes import CHOSEN, EXPERTS, FFN, HEADS, HIDDEN, LAYERS, POSITIONS, VOCAB


class Rms(nn.Module):
    """RMSNorm in plain operators."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


class CausalAttention(nn.Module):
    """Self-attention with one map for queries, keys and values each."""

    def __init__(self, attn: str):
        super().__init__()
        self.attn = attn
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        q, k, v = (m(x).view(batch, length, HEADS, HIDDEN // HEADS).transpose(1, 2) for m in (self.query, self.key, self.value))
        if self.attn == "sdpa":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, keep)
        else:
            scores = q @ k.transpose(2, 3) * (HIDDEN // HEADS) ** -0.5
            mixed = torch.softmax(scores.masked_fill(~keep, -1e9), -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, length, HIDDEN))


class Router(nn.Module):
    """Hidden states -> a weight for every expert: the best few share one, all others get zero."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(HIDDEN, EXPERTS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        chance = torch.softmax(self.score(x), -1)
        best, which = torch.topk(chance, CHOSEN, -1)
        return torch.zeros_like(chance).scatter(-1, which, best / best.sum(-1, keepdim=True))


class BatchedExperts(nn.Module):
    """All experts in one weight each: [experts, in, out]."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = (nn.Parameter(torch.zeros(EXPERTS, HIDDEN, FFN)) for _ in range(2))
        self.down = nn.Parameter(torch.zeros(EXPERTS, FFN, HIDDEN))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        made = (nn.functional.silu(x @ self.gate) * (x @ self.up)) @ self.down
        return (made * weights.transpose(1, 2).unsqueeze(-1)).sum(1)


class ListedExperts(nn.Module):
    """Each expert has its own linear maps."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = (nn.ModuleList(nn.Linear(HIDDEN, FFN) for _ in range(EXPERTS)) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(FFN, HIDDEN) for _ in range(EXPERTS))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i, (gate, up, down) in enumerate(zip(self.gate, self.up, self.down, strict=True)):
            out = out + down(nn.functional.silu(gate(x)) * up(x)) * weights[..., i : i + 1]
        return out


class MoE(nn.Module):
    """A decoder with a mixture of experts in each layer: (input_ids, attention_mask) -> (logits,)"""

    def __init__(self, attn: str, experts: type[nn.Module]):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.position = nn.Parameter(torch.zeros(POSITIONS, HIDDEN))
        self.norms = nn.ModuleList(Rms() for _ in range(2 * LAYERS + 1))
        self.attention = nn.ModuleList(CausalAttention(attn) for _ in range(LAYERS))
        self.router = nn.ModuleList(Router() for _ in range(LAYERS))
        self.experts = nn.ModuleList(experts() for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        ids, mask = tensors
        at = torch.arange(ids.shape[1], device=ids.device)
        keep = (at[None, :] <= at[:, None]) & (mask[:, None, None, :] > 0)
        x = self.embed(ids) + self.position[: ids.shape[1]]
        for i, (attention, router, experts) in enumerate(zip(self.attention, self.router, self.experts, strict=True)):
            x = x + attention(self.norms[2 * i](x), keep)
            y = self.norms[2 * i + 1](x)
            x = x + experts(y, router(y))
        return (self.head(self.norms[-1](x)),)
