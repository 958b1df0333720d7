"""The PyTorch modules of the zoo: positional tensors in, a tuple of tensors out."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

from tests.zoo_sizes import FFN, HEADS, HIDDEN, LAYERS, POSITIONS, VOCAB

torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no ONNX form
transformers.logging.set_verbosity_error()


class FirstOutput(nn.Module):
    """A Hugging Face model as (tensors in the order of `names`) -> (its first output,)"""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        return (self.model(**dict(zip(self.names, tensors, strict=True)))[0],)


class Cached(nn.Module):
    """(input_ids, attention_mask, past_key_0, past_value_0, ...) -> (logits, present_key_0, present_value_0, ...)"""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        ids, mask, *past = tensors
        cache = transformers.DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        return (out.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


class CachedBoth(nn.Module):
    """The decoder of a model with encoder, for one more step: (its input_ids, the encoder's attention_mask, all that is cached) -> as `Cached`

    Cached are keys and values of each layer for itself (past_*), which grow, and those of what the encoder said (cross_*), which stay.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.decoder, self.head, self.width = model.get_decoder(), model.get_output_embeddings(), model.config.d_model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        ids, mask, *caches = tensors
        past, cross = (list(zip(half[::2], half[1::2], strict=True)) for half in (caches[: len(caches) // 2], caches[len(caches) // 2 :]))
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(past), transformers.DynamicCache(cross))
        said = torch.zeros(*mask.shape, self.width)  # its keys and values are in the cache
        out = self.decoder(input_ids=ids, encoder_hidden_states=said, encoder_attention_mask=mask, past_key_values=cache, use_cache=True)
        own = cache.self_attention_cache.layers
        return (self.head(out.last_hidden_state), *(tensor for layer in own for tensor in (layer.keys, layer.values)))


class TorchEncoder(nn.Module):
    """nn.TransformerEncoder between an embedding and a head: (input_ids, attention_mask) -> (logits,)"""

    def __init__(self, norm_first: bool):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.position = nn.Parameter(torch.zeros(POSITIONS, HIDDEN))
        layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, FFN, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        norm = nn.LayerNorm(HIDDEN) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, LAYERS, norm, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN, VOCAB)

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        ids, mask = tensors
        x = self.embed(ids) + self.position[: ids.shape[1]]
        return (self.head(self.encoder(x, src_key_padding_mask=mask == 0)),)


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Spread every parameter, so that no zero, one or repeated value hides an error or gets merged by an exporter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2:
            parameter.add_(0.3 * noise)  # biases around 0, norm gains around 1
        elif parameter.ndim == 3 and len(parameter) > 1:
            parameter.copy_(noise * parameter.shape[1] ** -0.5)  # one matrix for each expert
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.eval()
