"""Inputs and modules of the models in tests/support_models.py: (sizes, batch, length, seed) -> tensors by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo_inputs import Inputs, text_inputs, tokens

FRAMES, MELS, AREA = 24, 8, 1000  # of audio features: length (half of it after the stem) and channels; of a page: both sides


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    return {"input_ids": tokens(sizes["vocab"], batch, length, torch.Generator().manual_seed(seed))}


def page_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Words with a box each: left, top, right, bottom."""
    low, high = torch.randint(0, AREA // 2, (2, batch, length, 2), generator=torch.Generator().manual_seed(seed)).unbind(0)
    return text_inputs(sizes, batch, length, seed) | {"bbox": torch.cat([low, low + high + 1], -1)}


def wave_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Sound as it was recorded; 20 samples make about one position."""
    return {"input_values": random(seed, batch, 20 * length + 60)}


def mel_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Sound as features; their number is fixed."""
    return {"input_features": random(seed, batch, MELS, FRAMES)}


def speech_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    ids = tokens(sizes["vocab"], batch, max(2, length - 2), torch.Generator().manual_seed(seed + 1))
    return mel_inputs(sizes, batch, length, seed) | {"decoder_input_ids": ids}


def heard_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Text for a decoder, and what an encoder said (fixed width and length)."""
    ids = tokens(sizes["vocab"], batch, length, torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "encoder_hidden_states": random(seed + 1, batch, sizes["source"], sizes["wide"])}


def series_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Numbers over time in several channels."""
    return {"past_values": random(seed, batch, sizes["length"], sizes["channels"])}


def seen_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """What a backbone saw, for a decoder of objects."""
    return {"features": random(seed, batch, sizes["source"], sizes["wide"])}


def spectrum_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    return {"input_values": random(seed, batch, FRAMES, sizes["bins"])}


def video_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    return {"pixel_values": random(seed, batch, sizes["frames"], 3, sizes["image"], sizes["image"])}


def captioned_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Text and a picture each."""
    return text_inputs(sizes, batch, length, seed) | {"pixel_values": random(seed + 1, batch, 3, sizes["image"], sizes["image"])}


class Detection(nn.Module):
    """The decoder of a detector: (features of a backbone,) -> (classes,). Learned queries look at the features."""

    def __init__(self, decoder: nn.Module, queries: int, width: int, positions: int, labels: int):
        super().__init__()
        self.decoder, self.head = decoder, nn.Linear(width, labels)
        self.queries, self.places = nn.Embedding(queries, width), nn.Embedding(positions, width)

    def forward(self, features: Tensor) -> tuple[Tensor]:
        queries = self.queries.weight.unsqueeze(0).repeat(features.shape[0], 1, 1)
        places = self.places.weight.unsqueeze(0).repeat(features.shape[0], 1, 1)
        out = self.decoder(inputs_embeds=torch.zeros_like(queries), encoder_hidden_states=features,
                           spatial_position_embeddings=places, object_queries_position_embeddings=queries)
        return (self.head(out[0]),)


class Attended(nn.Module):
    """Any model by keyword -> (the output of that name,)"""

    def __init__(self, model: nn.Module, names: tuple[str, ...], output: str, **more):
        super().__init__()
        self.model, self.names, self.output, self.more = model, names, output, more

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        return (getattr(self.model(**dict(zip(self.names, tensors, strict=True)), **self.more), self.output),)
