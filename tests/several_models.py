"""Tiny models with more than one hidden size, written to ONNX by both exporters of PyTorch.

Sizes are chosen so that none occurs twice unless that is the point. Exports are kept beside those of the zoo, and made again when this file changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from tests import several_modules
from tests.once import made
from tests.zoo import DEFAULT_OPSET
from tests.zoo_modules import randomise

VOCAB, PICTURE = 97, 16
IDS = dict(vocab_size=VOCAB, bos_token_id=2, eos_token_id=3)
Feeds = dict[str, np.ndarray]


class Tensors(nn.Module):
    """A transformers model as (tensors in the order of `names`) -> the outputs named in `wanted`."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], wanted: tuple[str, ...]):
        super().__init__()
        self.model, self.names, self.wanted = model, names, wanted

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(self.model, transformers.PreTrainedModel):
            return (self.model(*tensors),)
        out = self.model(**dict(zip(self.names, tensors, strict=True)))
        return tuple(out[name] for name in self.wanted)


@dataclass(frozen=True)
class Spec:
    """One model: how to make it, its inputs for (batch, length, seed), the outputs, names of dynamic axes of the inputs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int, int], dict[str, Tensor]]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]


def pictures(batch: int, size: int = PICTURE, seed: int = 0) -> Tensor:
    return torch.randn((batch, 3, size, size), generator=torch.Generator().manual_seed(seed))


def words(batch: int, length: int, seed: int) -> Tensor:
    return torch.randint(4, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(batch: int, length: int) -> Tensor:
    """Rows are padded at their end, each a little more; the first not at all."""
    return (torch.arange(length) < length - torch.arange(batch)[:, None] % max(1, length // 2)).long()


def clip(vision: int = 48, text: int = 32) -> nn.Module:
    eyes = dict(hidden_size=vision, intermediate_size=100, num_hidden_layers=3, num_attention_heads=vision // 16, image_size=PICTURE, patch_size=4)
    reads = dict(hidden_size=text, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=20, **IDS)
    config = transformers.CLIPConfig(vision_config=eyes, text_config=reads, projection_dim=24)
    config.vision_config._attn_implementation = config.text_config._attn_implementation = "eager"
    return transformers.CLIPModel._from_config(config, attn_implementation="eager")


def swin() -> nn.Module:
    config = transformers.SwinConfig(image_size=32, patch_size=2, embed_dim=12, depths=[2, 2, 1], num_heads=[2, 3, 4], window_size=4, num_labels=5,
                                     mlp_ratio=3.0, attn_implementation="eager")
    return transformers.SwinForImageClassification(config)


def segformer() -> nn.Module:
    config = transformers.SegformerConfig(num_encoder_blocks=2, depths=[2, 2], sr_ratios=[2, 1], hidden_sizes=[12, 20], patch_sizes=[7, 3], strides=[4, 2],
                                          num_attention_heads=[2, 4], mlp_ratios=[3, 2], decoder_hidden_size=14, num_labels=5)
    return transformers.SegformerForSemanticSegmentation(config)


def captions() -> nn.Module:
    eyes = transformers.ViTConfig(hidden_size=48, intermediate_size=100, num_hidden_layers=3, num_attention_heads=3, image_size=PICTURE, patch_size=4)
    says = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=72, n_positions=20, add_cross_attention=True, use_cache=False, **IDS)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(eyes, says)
    return transformers.VisionEncoderDecoderModel(config=config, encoder=transformers.ViTModel(eyes), decoder=transformers.GPT2LMHeadModel(says))


def pair() -> nn.Module:
    reads = transformers.BertConfig(hidden_size=48, intermediate_size=100, num_hidden_layers=3, num_attention_heads=3, max_position_embeddings=20, vocab_size=VOCAB)
    says = transformers.BertConfig(hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=20, vocab_size=VOCAB,
                                   is_decoder=True, add_cross_attention=True, use_cache=False)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(reads, says)
    return transformers.EncoderDecoderModel(config=config, encoder=transformers.BertModel(reads), decoder=transformers.BertLMHeadModel(says))


def bart() -> nn.Module:
    config = transformers.BartConfig(d_model=32, encoder_ffn_dim=72, decoder_ffn_dim=100, encoder_attention_heads=4, decoder_attention_heads=2,
                                     encoder_layers=3, decoder_layers=2, max_position_embeddings=20, use_cache=False, **IDS)
    return transformers.BartForConditionalGeneration(config)


def text_inputs(batch: int, length: int, seed: int) -> dict[str, Tensor]:
    return {"input_ids": words(batch, length, seed), "attention_mask": padding(batch, length)}


def both_inputs(batch: int, length: int, seed: int) -> dict[str, Tensor]:
    return text_inputs(batch, length, seed) | {"decoder_input_ids": words(batch, length // 2 + 1, seed + 1)}


ROW, TOKENS = {0: "batch"}, {0: "batch", 1: "sequence"}
BOTH = {"input_ids": TOKENS, "attention_mask": TOKENS, "decoder_input_ids": {0: "batch", 1: "target"}}
CLIP_AXES = {"input_ids": {0: "texts", 1: "sequence"}, "pixel_values": {0: "images"}, "attention_mask": {0: "texts", 1: "sequence"}}


def clip_inputs(batch: int, length: int, seed: int) -> dict[str, Tensor]:
    return {"input_ids": words(batch, length, seed), "pixel_values": pictures(batch + 1, seed=seed), "attention_mask": padding(batch, length)}


def picture_inputs(batch: int, length: int, seed: int) -> dict[str, Tensor]:
    return {"pixel_values": pictures(batch, 2 * PICTURE, seed)}


def caption_inputs(batch: int, length: int, seed: int) -> dict[str, Tensor]:
    return {"pixel_values": pictures(batch, seed=seed), "decoder_input_ids": words(batch, length, seed)}


def plain_inputs(*kinds: str) -> Callable[[int, int, int], dict[str, Tensor]]:
    """Inputs of a plain module: words of two lengths, pictures, frames of a signal."""
    def make(batch: int, length: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made = {"ids": words(batch, length, seed) % several_modules.VOCAB, "more_ids": words(batch + 1, length + 2, seed + 1) % several_modules.VOCAB,
                "pixels": pictures(batch, seed=seed), "frames": torch.randn((batch, length + 3, several_modules.BANDS), generator=generator)}
        return {kind: made[kind] for kind in kinds}
    return make


PLAIN_AXES = {"ids": TOKENS, "more_ids": {0: "others", 1: "length"}, "pixels": ROW, "frames": {0: "batch", 1: "time"}}
PLAIN = {"two-texts": (several_modules.TwoTexts, "ids", "more_ids"), "looking": (several_modules.Looking, "pixels", "ids"),
         "staged-encoder": (several_modules.StagedEncoder, "pixels", "ids"), "listening": (several_modules.Listening, "frames", "ids")}
SPECS = {name: Spec(make, plain_inputs(*kinds), ("out",), {kind: PLAIN_AXES[kind] for kind in kinds}) for name, (make, *kinds) in PLAIN.items()}
SPECS |= {
    "clip": Spec(clip, clip_inputs, ("logits_per_image", "text_embeds", "image_embeds"), CLIP_AXES),
    "clip-one-size": Spec(lambda: clip(32, 32), clip_inputs, ("logits_per_image", "text_embeds", "image_embeds"), CLIP_AXES),
    "swin": Spec(swin, picture_inputs, ("logits",), {"pixel_values": ROW}),
    "segformer": Spec(segformer, picture_inputs, ("logits",), {"pixel_values": ROW}),
    "captions": Spec(captions, caption_inputs, ("logits",), {"pixel_values": ROW, "decoder_input_ids": {0: "batch", 1: "target"}}),
    "pair": Spec(pair, both_inputs, ("logits",), BOTH),
    "bart": Spec(bart, both_inputs, ("logits",), BOTH),
}


def export(name: str, exporter: str) -> Path:
    """Path of a model's ONNX file, exported if it is not there yet."""
    sources = Path(__file__).read_bytes() + Path(several_modules.__file__).read_bytes()
    state = hashlib.sha256(sources + repr((torch.__version__, transformers.__version__)).encode()).hexdigest()[:12]
    folder = Path(os.environ.get("ONNXGROW_ZOO", tempfile.gettempdir())) / f"onnxgrow-several-{state}"
    folder.mkdir(parents=True, exist_ok=True)
    return made(folder / f"{name}-{exporter}.onnx", lambda path: _write(SPECS[name], path, exporter))


def _write(spec: Spec, path: Path, exporter: str) -> None:
    torch.manual_seed(0)
    example = spec.inputs(3, 7, 0)
    model = Tensors(randomise(spec.make(), 0), tuple(example), spec.outputs)
    options = dict(input_names=list(example), output_names=list(spec.outputs), opset_version=DEFAULT_OPSET[exporter])
    if exporter == "dynamo":
        options |= dict(dynamo=True, dynamic_shapes=(tuple(spec.axes[name] for name in example),), external_data=False, verbose=False)
    else:
        options |= dict(dynamo=False, dynamic_axes=spec.axes)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, tuple(example.values()), path, **options)


def feeds_of(name: str) -> list[Feeds]:
    """Inputs of several batch sizes and lengths, that of the export last."""
    return [{key: x.numpy() for key, x in SPECS[name].inputs(*size).items()} for size in ((5, 13, 1), (1, 4, 2), (3, 7, 3))]
