"""Inputs of the zoo: (sizes, batch, length, seed) -> tensors by name, in the order of the module's arguments."""

from __future__ import annotations

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


def tokens(vocab: int, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """The vocabulary in random order, over and over: no id comes twice before all have come once."""
    return torch.randperm(vocab, generator=generator)[torch.arange(batch * length) % vocab].reshape(batch, length)


def text_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Every row but the first is padded at its end."""
    ids = tokens(sizes["vocab"], batch, length, torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, max(1, length - row) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def pair_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Text in two segments: the second half is of type 1."""
    types = (torch.arange(length) >= length // 2).long().repeat(batch, 1)
    return text_inputs(sizes, batch, length, seed) | {"token_type_ids": types}


def cached_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """`length` new ids behind `length + 2` cached positions; every row but the first is padded at its beginning."""
    generator, past = torch.Generator().manual_seed(seed), length + 2
    ids = tokens(sizes["vocab"], batch, length, generator)
    mask = torch.ones(batch, past + length, dtype=torch.int64)
    for row in range(1, batch):
        mask[row, : min(row, past - 1)] = 0
    shape = batch, sizes["kv_heads"], past, sizes["head_dim"]
    cache = {name: torch.randn(shape, generator=generator) for name in cache_names("past", sizes["layers"])}
    return {"input_ids": ids, "attention_mask": mask} | cache


def image_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Pictures; their own size is fixed, so `length` is not used."""
    shape = batch, 3, sizes["image"], sizes["image"]
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def translation_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """Text for the encoder, and a shorter one, without padding, for the decoder."""
    generator = torch.Generator().manual_seed(seed + 1)
    return text_inputs(sizes, batch, length, seed) | {"decoder_input_ids": tokens(sizes["vocab"], batch, max(2, length - 2), generator)}


def next_inputs(sizes: dict, batch: int, length: int, seed: int) -> Inputs:
    """`length` new ids for a decoder behind `length + 2` cached positions, and what it keeps of an encoder's `length + 3`."""
    generator, both = torch.Generator().manual_seed(seed + 1), text_inputs(sizes, batch, length + 3, seed)
    new = {"input_ids": tokens(sizes["vocab"], batch, length, generator), "attention_mask": both["attention_mask"]}
    for when, size in (("past", length + 2), ("cross", length + 3)):
        shape = batch, sizes["kv_heads"], size, sizes["head_dim"]
        new |= {name: torch.randn(shape, generator=generator) for name in cache_names(when, sizes["layers"])}
    return new


def cache_names(when: str, layers: int) -> list[str]:
    return [f"{when}_{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]
