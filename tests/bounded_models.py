"""Small transformers with a bound on their length: tables, masks and ids of `reach` positions, kept as buffers or parameters.

`Bounded(reach, **parts)` is one model; built again with a greater reach and the same parameters, it is what a grown file must equal.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.zoo_models import randomise

VOCAB, HIDDEN, HEADS, SIZE, FFN, LAYERS = 99, 32, 4, 10, 72, 2
BASE = 10000.0

# name -> parts of the model; None where there is no such part
KINDS = {
    "range ids, bool mask": dict(ids="range", mask="causal"),
    "stored ids, -inf mask": dict(ids="stored", mask="inf"),
    "counted ids, least mask": dict(ids="counted", mask="least"),
    "fed ids, ones mask": dict(ids="fed", mask="ones"),
    "table cut, band": dict(ids="cut", mask="band"),
    "clipped ids": dict(ids="clipped", mask="causal"),
    "token types": dict(ids="stored", types=True),
    "sinusoids added": dict(waves="added", mask="causal"),
    "sinusoids looked up": dict(waves="looked up"),
    "rotary halves cut": dict(rotary="halves", mask="causal"),
    "rotary halves by ids": dict(rotary="halves", ids="rotary fed", mask="inf"),
    "rotary half tables": dict(rotary="half", mask="band"),
    "rotary in turns": dict(rotary="turns", mask="causal"),
    "rotary pairs": dict(rotary="pairs", mask="causal"),
    "rotary scaled": dict(rotary="halves", scale=1.25, mask="causal"),
    "alibi row": dict(alibi="row", mask="causal"),
    "alibi square": dict(alibi="square"),
    "gathered ids": dict(ids="gathered", mask="window"),
    "past": dict(ids="past", mask="causal"),
}
REFUSED = {
    "mask without a rule": dict(ids="range", mask="random"),
    "blocks": dict(ids="range", mask="blocks"),
    "learned square": dict(alibi="learned"),
    "learned factors": dict(waves="factors"),
    "learned distances": dict(alibi="distances"),
    "mask from its end": dict(ids="range", mask="end"),
    "wrapped ids": dict(ids="wrapped"),
    "no bound": dict(),
}


def triangle(reach: int) -> Tensor:
    return torch.ones(reach, reach, dtype=torch.bool).tril()


def mask_of(kind: str, reach: int) -> Tensor:
    """[1, 1, reach, reach]: bool, or floats to be added."""
    below = triangle(reach)
    steps = torch.arange(reach)
    tables = {
        "causal": below,
        "end": below,
        "window": (steps[None] - steps[:, None]).abs() < 4,
        "random": torch.rand(reach, reach, generator=torch.Generator().manual_seed(0)) < 0.8,
        "blocks": steps[None] // 8 == steps[:, None] // 8,
        "ones": below.float(),
        "band": below & ~torch.ones_like(below).tril(-5),
        "inf": torch.zeros(reach, reach).masked_fill(~below, -torch.inf),
        "least": torch.zeros(reach, reach).masked_fill(~below, torch.finfo(torch.float32).min),
    }
    return tables[kind][None, None]


def angles(reach: int, size: int) -> Tensor:
    """[reach, size / 2]"""
    frequency = 1.0 / BASE ** (torch.arange(0, size, 2).float() / size)
    return torch.outer(torch.arange(reach).float(), frequency)


def sinusoids(reach: int, size: int) -> Tensor:
    out = torch.zeros(reach, size)
    out[:, 0::2], out[:, 1::2] = angles(reach, size).sin(), angles(reach, size).cos()
    return out


class Bounded(nn.Module):
    """(input_ids, and position_ids or past where they are fed) -> (logits,)

    `past` [batch, past, heads, size] serves every layer as keys and values before its own.
    """

    def __init__(self, reach: int, ids: str | None = None, mask: str | None = None, waves: str | None = None, rotary: str | None = None,
                 alibi: str | None = None, types: bool = False, scale: float = 1.0):
        super().__init__()
        self.ids, self.mask, self.waves, self.rotary, self.alibi, self.types = ids, mask, waves, rotary, alibi, types
        self.embed, self.head, self.norm = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB), nn.LayerNorm(HIDDEN)
        self.layers = nn.ModuleList([Layer(self) for _ in range(LAYERS)])
        if ids and not rotary:
            self.position = nn.Embedding(reach + 2 * (ids == "counted"), HIDDEN)
        if types:
            self.kinds = nn.Embedding(2, HIDDEN)
            self.register_buffer("type_ids", torch.zeros(1, reach, dtype=torch.int64))
        self.register_buffer("position_ids", torch.arange(reach)[None])
        self.reach = reach
        self.register_buffer("bias", mask_of(mask, reach) if mask else None)
        if waves == "factors":
            self.pe = nn.Parameter(torch.zeros(1, reach, HIDDEN))
        elif waves:
            self.register_buffer("pe", sinusoids(reach, HIDDEN)[None])
        slopes = 2.0 ** -torch.arange(1, HEADS + 1)[:, None, None]
        if alibi == "learned":
            self.slopes = nn.Parameter(torch.zeros(HEADS, reach, reach))
        if alibi == "distances":
            self.distances = nn.Embedding(2 * reach - 1, HEADS)
        if alibi == "row":
            self.register_buffer("slopes", slopes * torch.arange(reach))
        if alibi == "square":
            distance = (torch.arange(reach)[None] - torch.arange(reach)[:, None]).float()
            self.register_buffer("slopes", (slopes * distance).masked_fill(~triangle(reach), -torch.inf))
        self.register_tables(reach, scale)

    def register_tables(self, reach: int, scale: float) -> None:
        angle = angles(reach, SIZE)
        if self.rotary in ("halves", "half", "turns"):
            angle = {"halves": torch.cat([angle, angle], -1), "half": angle, "turns": angle.repeat_interleave(2, -1)}[self.rotary]
            self.register_buffer("cos", scale * angle.cos())
            self.register_buffer("sin", scale * angle.sin())
        if self.rotary == "pairs":
            self.register_buffer("pairs", torch.stack([angle.cos(), angle.sin()], -1))

    def positions(self, x: Tensor, fed: Tensor | None) -> Tensor | None:
        """Ids of a learned table."""
        length = x.shape[1]
        if self.ids in ("stored", "cut"):
            return self.position_ids[:, :length]
        if self.ids == "counted":
            return (x >= 0).long().cumsum(1) - 1 + 2
        if self.ids == "clipped":
            return torch.arange(length)[None].clamp(max=self.reach - 1)
        if self.ids == "past":
            return torch.arange(length)[None] + fed.shape[1]
        if self.ids == "gathered":
            return self.position_ids[0][torch.arange(length)][None]
        if self.ids == "wrapped":
            return (torch.arange(length)[None] + 1) * 7 // 7 - 1
        return fed if self.ids in ("fed", "rotary fed") else torch.arange(length)[None]

    def forward(self, x: Tensor, fed: Tensor | None = None) -> tuple[Tensor]:
        length, ids = x.shape[1], self.positions(x, fed)
        h = self.embed(x)
        if self.ids and not self.rotary:
            h = h + (self.position.weight[:length] if self.ids == "cut" else self.position(ids))
        if self.types:
            h = h + self.kinds(self.type_ids[:, :length].expand(x.shape))
        if self.waves:
            h = h * self.pe[:, :length] if self.waves == "factors" else h + (self.pe[:, :length] if self.waves == "added" else self.pe[0][torch.arange(length)])
        past, tables = (fed, ()) if self.ids == "past" else (None, self.tables(length, fed))
        for layer in self.layers:
            h = layer(h, tables, past)
        return (self.head(self.norm(h)),)

    def tables(self, length: int, fed: Tensor | None) -> tuple[Tensor, ...]:
        """Cosines and sines at the positions of a call, [.., length, 1, ..]."""
        if self.rotary == "pairs":
            return tuple(self.pairs[:length, None].unbind(-1))
        if self.rotary is None:
            return ()
        return tuple((t[fed] if fed is not None else t[:length])[..., None, :] for t in (self.cos, self.sin))


class Layer(nn.Module):
    """A block with its norms before the branches."""

    def __init__(self, model: Bounded):
        super().__init__()
        self.model = [model]  # not a child
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, FFN), nn.Linear(FFN, HIDDEN)
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)

    def forward(self, h: Tensor, tables: tuple[Tensor, ...], past: Tensor | None = None) -> Tensor:
        batch, length, _ = h.shape
        q, k, v = self.qkv(self.norm1(h)).view(batch, length, 3, HEADS, SIZE).unbind(2)
        if tables:
            q, k = (self.turn(t, *tables) for t in (q, k))
        if past is not None:
            k, v = torch.cat([past, k], 1), torch.cat([past, v], 1)
        scores = self.masked(q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / SIZE**0.5, length, k.shape[1])
        mixed = (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).reshape(batch, length, HEADS * SIZE)
        h = h + self.out(mixed)
        return h + self.down(torch.nn.functional.gelu(self.up(self.norm2(h))))

    def masked(self, scores: Tensor, length: int, total: int) -> Tensor:
        model = self.model[0]
        if model.alibi == "distances":
            steps = torch.arange(length)
            scores = scores + model.distances(steps[None] - steps[:, None] + model.reach - 1).permute(2, 0, 1)
        elif model.alibi:
            scores = scores + (model.slopes[:, :, :length] if model.alibi == "row" else model.slopes[:, :length, :length])
        if model.mask == "end":
            return torch.where(model.bias[:, :, -length:, -length:], scores, -1e9)
        if model.bias is not None and model.bias.dtype == torch.bool:
            return torch.where(model.bias[:, :, total - length : total, :total], scores, -1e9)
        if model.mask == "ones":
            part = model.bias[:, :, :length, :length]
            return scores * part - 1e4 * (1 - part)
        return scores + model.bias[:, :, :length, :length] if model.mask else scores

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary positions: halves against each other, or neighbours."""
        kind = self.model[0].rotary
        if kind == "halves":
            a, b = x.chunk(2, -1)
            return x * cos + torch.cat([-b, a], -1) * sin
        if kind == "half":
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        if kind == "pairs":
            return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        return x * cos + torch.stack([-b, a], -1).flatten(-2) * sin


def bounded(kind: str, reach: int, seed: int = 0) -> Bounded:
    torch.manual_seed(seed)
    return randomise(Bounded(reach, **(KINDS | REFUSED)[kind]), seed)


def inputs(kind: str, batch: int, length: int, seed: int = 0) -> tuple[Tensor, ...]:
    ids = torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
    how = (KINDS | REFUSED)[kind].get("ids", "")
    if how == "past":
        return ids, torch.randn(batch, length // 2 + 1, HEADS, SIZE, generator=torch.Generator().manual_seed(seed))
    fed = "fed" in how
    return (ids, torch.arange(length).repeat(batch, 1)) if fed else (ids,)


def export(model: nn.Module, arguments: tuple[Tensor, ...], path: Path, exporter: str, static: bool = False) -> Path:
    """A file by one of PyTorch's exporters, batch and length dynamic."""
    second = ("past", {0: "batch", 1: "past"}) if arguments[-1].is_floating_point() else ("position_ids", {0: "batch", 1: "length"})
    names, dynamic = zip(("input_ids", {0: "batch", 1: "length"}), *[second] * (len(arguments) - 1))
    options = dict(input_names=list(names), output_names=["logits"])
    if exporter == "dynamo":
        axes = None if static else dynamic
        options |= dict(dynamo=True, opset_version=18, dynamic_shapes=axes, external_data=False, verbose=False)
    else:
        axes = None if static else dict(zip(names, dynamic)) | {"logits": {0: "batch", 1: "length"}}
        options |= dict(dynamo=False, opset_version=17, dynamic_axes=axes)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, path, **options)
    return path
