"""Plain PyTorch modules that put streams of different widths together, as small as can be: what names must tell apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCAB, PATCH, CHANNELS, BANDS = 23, 4, 3, 6


class Block(nn.Module):
    """x: [batch, length, width] -> the same; LayerNorm before each branch. `crossed` also reads states of its own width."""

    def __init__(self, width: int, heads: int, ffn: int, crossed: bool = False):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 + crossed))
        self.maps = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(4)) for _ in range(1 + crossed))
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def attend(self, maps: nn.ModuleList, x: Tensor, states: Tensor) -> Tensor:
        q, k, v = (m(t).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m, t in zip(maps, (x, states, states)))
        p = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
        return maps[3]((p @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, states: Tensor | None = None) -> Tensor:
        n = self.norms[0](x)
        x = x + self.attend(self.maps[0], n, n)
        if states is not None:
            x = x + self.attend(self.maps[1], self.norms[2](x), states)
        return x + self.down(torch.relu(self.up(self.norms[1](x))))


def stack(width: int, heads: int, layers: int = 2, crossed: bool = False) -> nn.ModuleList:
    return nn.ModuleList(Block(width, heads, 2 * width + 3, crossed) for _ in range(layers))


def through(blocks: nn.ModuleList, x: Tensor, *states: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, *states)
    return x


def patches(width: int) -> nn.Module:
    """[batch, 3, h, w] -> [batch, h·w/16, width]"""
    return nn.Sequential(nn.Conv2d(CHANNELS, width, PATCH, PATCH), nn.Flatten(2))


class TwoTexts(nn.Module):
    """Two towers that read words: (query ids, document ids) -> scores [queries, documents]"""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(VOCAB, w) for w in (12, 20))
        self.towers = nn.ModuleList([stack(12, 3), stack(20, 4)])
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(w), nn.Linear(w, 9)) for w in (12, 20))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = (h(through(t, e(ids))).mean(1) for h, t, e, ids in zip(self.heads, self.towers, self.tables, (first, second)))
        return a @ b.T


class Looking(nn.Module):
    """A picture's patches stand before the words of one stream: (pixels, ids) -> logits"""

    def __init__(self):
        super().__init__()
        self.patches, self.eyes, self.bridge = patches(20), stack(20, 4), nn.Linear(20, 12)
        self.table, self.blocks, self.norm, self.head = nn.Embedding(VOCAB, 12), stack(12, 3), nn.LayerNorm(12), nn.Linear(12, VOCAB)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        seen = self.bridge(through(self.eyes, self.patches(pixels).transpose(1, 2)))
        x = torch.cat([seen, self.table(ids)], 1)
        return self.head(self.norm(through(self.blocks, x)))


class StagedEncoder(nn.Module):
    """Two stages that look, and a decoder of a third width that reads what they saw: (pixels, ids) -> logits"""

    def __init__(self):
        super().__init__()
        self.patches, self.first, self.merge, self.second = patches(12), stack(12, 3), nn.Linear(12, 20), stack(20, 4)
        self.norm, self.bridge = nn.LayerNorm(20), nn.Linear(20, 16)
        self.table, self.blocks, self.head = nn.Embedding(VOCAB, 16), stack(16, 2, crossed=True), nn.Sequential(nn.LayerNorm(16), nn.Linear(16, VOCAB))

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        seen = through(self.second, self.merge(through(self.first, self.patches(pixels).transpose(1, 2))))
        return self.head(through(self.blocks, self.table(ids), self.bridge(self.norm(seen))))


class Listening(nn.Module):
    """Frames of a signal against words: (frames [batch, time, 6], ids) -> scores"""

    def __init__(self):
        super().__init__()
        self.enter, self.ears, self.table, self.blocks = nn.Linear(BANDS, 20), stack(20, 4), nn.Embedding(VOCAB, 12), stack(12, 3)
        self.heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(w), nn.Linear(w, 9)) for w in (20, 12))

    def forward(self, frames: Tensor, ids: Tensor) -> Tensor:
        a = self.heads[0](through(self.ears, self.enter(frames))).mean(1)
        return a @ self.heads[1](through(self.blocks, self.table(ids))).mean(1).T
