"""Other mixtures of experts that people have: routers and experts in the ways in which they are written, on the decoder of tests/zoo_moe.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from tests import zoo
from tests.growing import Case, Edited
from tests.zoo_models import SPECS
from tests.zoo_moe import MoE
from tests.zoo_sizes import CHOSEN, EXPERTS, FFN, HIDDEN


@dataclass(frozen=True)
class Way:
    """How a mixture is written.

    Args:
        score: before | whole | after | sigmoid | corrected: a softmax before TopK whose best are normalised, or are not; a softmax over
            the chosen; sigmoids, normalised; the same, chosen by scores with an offset (DeepSeek).
        bias: whether the router has one.
        experts: scattered | einsum | onehot | fetched | equal | gather | weighed: dense experts with weights that are scattered (and
            combined by einsum), or made by one-hot; weights fetched by index; lists that compare, gather, or slice.
    """

    score: str = "before"
    bias: bool = False
    experts: str = "scattered"

    def __str__(self) -> str:
        return "-".join([self.score, "bias" if self.bias else "plain", self.experts])


class AnyRouter(nn.Module):
    """Hidden states -> (weights of the chosen, their numbers), both [batch, length, CHOSEN]"""

    def __init__(self, way: Way):
        super().__init__()
        self.way, self.score = way, nn.Linear(HIDDEN, EXPERTS, bias=way.bias)
        if way.score == "corrected":
            self.correction = nn.Parameter(torch.zeros(EXPERTS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, way = self.score(x), self.way.score
        if way == "after":
            best, which = torch.topk(logits, CHOSEN, -1)
            return torch.softmax(best, -1), which
        scores = torch.softmax(logits, -1) if way in ("before", "whole") else torch.sigmoid(logits)
        if way == "corrected":
            which = torch.topk(scores + self.correction, CHOSEN, -1)[1]
            best = scores.gather(-1, which)
        else:
            best, which = torch.topk(scores, CHOSEN, -1)
        return (best if way == "whole" else best / best.sum(-1, keepdim=True)), which


def spread(x: Tensor, routed: tuple[Tensor, Tensor]) -> Tensor:
    """A weight for every expert: [batch, length, EXPERTS]"""
    best, which = routed
    return torch.zeros(*x.shape[:2], EXPERTS, dtype=x.dtype).scatter(-1, which, best)


class Dense(nn.Module):
    """Experts in one weight each."""

    def __init__(self, way: Way):
        super().__init__()
        self.way = way.experts
        self.up = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, FFN))
        self.offset = nn.Parameter(torch.zeros(EXPERTS, 1, FFN))
        self.down = nn.Parameter(torch.zeros(EXPERTS, FFN, HIDDEN))

    def forward(self, x: Tensor, routed: tuple[Tensor, Tensor]) -> Tensor:
        best, which = routed
        if self.way == "fetched":
            up, offset, down = (w[which] for w in (self.up, self.offset, self.down))  # [batch, length, chosen, ...]
            made = nn.functional.silu(x[:, :, None, None] @ up + offset) @ down
            return (made.squeeze(-2) * best[..., None]).sum(2)
        if self.way == "onehot":
            weights = (nn.functional.one_hot(which, EXPERTS).to(x.dtype) * best[..., None]).sum(2)
        else:
            weights = spread(x, routed)
        if self.way == "einsum":
            made = torch.einsum("blh,ehf->belf", x, self.up) + self.offset
            return torch.einsum("belf,efh,ble->blh", nn.functional.silu(made), self.down, weights)
        made = nn.functional.silu(x[:, None] @ self.up + self.offset) @ self.down
        return (made * weights.transpose(1, 2)[..., None]).sum(1)


class Listed(nn.Module):
    """Experts with maps of their own."""

    def __init__(self, way: Way):
        super().__init__()
        self.way = way.experts
        self.up = nn.ModuleList(nn.Linear(HIDDEN, FFN) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(FFN, HIDDEN, bias=False) for _ in range(EXPERTS))

    def forward(self, x: Tensor, routed: tuple[Tensor, Tensor]) -> Tensor:
        best, which = routed
        out = torch.zeros_like(x)
        weights = spread(x, routed) if self.way == "gather" else None
        for e in range(EXPERTS):
            made = self.down[e](nn.functional.gelu(self.up[e](x)))
            if weights is None:
                part = (best * (which == e).to(x.dtype)).sum(-1, keepdim=True)
            else:
                part = weights[..., e].unsqueeze(-1)
            out = out + made * part
        return out


def model(way: Way, attn: str) -> nn.Module:
    """The decoder of the zoo, with another mixture in each layer."""
    out = MoE(attn, nn.Identity)
    out.router = nn.ModuleList(AnyRouter(way) for _ in out.router)
    kind = Listed if way.experts in ("equal", "gather") else Dense
    out.experts = nn.ModuleList(kind(way) for _ in out.experts)
    return out


@cache
def exported(way: Way, exporter: str = "torchscript", seed: int = 0, static: bool = False) -> Case:
    """An export of it, as a case that tests/growing.py can run."""
    spec = replace(SPECS["moe-batched"], name=f"moe-{way}", make=lambda attn: model(way, attn))
    path = Path(zoo.cache_folder()) / f"{spec.name}-{exporter}-{seed}{'-static' * static}.onnx"
    if not path.exists():
        zoo.write(spec, path, exporter, "eager", zoo.DEFAULT_OPSET[exporter], static, seed)
    return Edited(Case("moe-batched", exporter, "eager"), path)
