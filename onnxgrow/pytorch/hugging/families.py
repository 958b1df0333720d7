"""The architectures of transformers that a graph can be written as: how each is known, and how its config is read.

A family is evidence (names of parameters that it alone has, and what the graph computes), classes, and a function from facts to config
fields. Fields that the graph does not state are left to the library's defaults, or to the config that the user gives with --like.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import GraphError
from . import readings
from .facts import PLAIN, Facts


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        config: name of its config class; `classes` those of its models, the likeliest first.
        marks: a pattern that some parameter's name must fit; `suits` asks the graph.
        fields: facts -> config fields.
        query: a pattern for the query projection of layer {}; `packed` where keys and values follow in the same weight.
        scale: config -> what its attention multiplies scores with; None where parts of a model differ.
        epsilon: of norms whose epsilon the library has written down, None where the config states it.
        stream: parameters that write into the residual stream, to be scaled where `epsilon` is written down.
    """

    name: str
    config: str
    classes: tuple[str, ...]
    marks: str
    fields: Callable[[Facts], dict]
    suits: Callable[[Facts], bool] = lambda f: True
    query: str = ""
    packed: bool = False
    scale: Callable[[object], float] | None = lambda c: (c.hidden_size // c.num_attention_heads) ** -0.5
    epsilon: float | None = None
    stream: str = ""

    def fits(self, f: Facts) -> bool:
        """Is there all the evidence?"""
        return any(re.search(self.marks, name) for name in f.names.parameters) and self.suits(f)


def _bert(f: Facts) -> dict:
    return dict(hidden_size=f.hidden, num_hidden_layers=f.layers(r"encoder\.layer\.(\d+)\."), num_attention_heads=f.coupled_heads(),
                intermediate_size=f.size("intermediate.dense.weight"), vocab_size=f.size("word_embeddings.weight"),
                max_position_embeddings=f.size("position_embeddings.weight"), type_vocab_size=f.size("token_type_embeddings.weight"),
                layer_norm_eps=f.epsilon, hidden_act=f.activation(),
                tie_word_embeddings=f.tied("word_embeddings.weight", "decoder.weight"))


def _roberta(f: Facts) -> dict:
    return _bert(f) | dict(pad_token_id=readings.compared_id(f.roles))


def _distilbert(f: Facts) -> dict:
    return dict(dim=f.hidden, n_layers=f.layers(r"transformer\.layer\.(\d+)\."), n_heads=f.coupled_heads(), hidden_dim=f.size("ffn.lin1.weight"),
                vocab_size=f.size("word_embeddings.weight"), max_position_embeddings=f.size("position_embeddings.weight"), activation=f.activation(),
                tie_word_embeddings=f.tied("word_embeddings.weight", "vocab_projector.weight"))


def _gpt2(f: Facts) -> dict:
    return dict(n_embd=f.hidden, n_layer=f.layers(r"\bh\.(\d+)\."), n_head=f.coupled_heads(), n_inner=f.size("mlp.c_fc.bias"),
                vocab_size=f.size("wte.weight", "lm_head.weight"), n_positions=f.size("wpe.weight"),
                layer_norm_epsilon=f.epsilon, activation_function=f.activation("gelu_new"),
                tie_word_embeddings=f.tied("wte.weight", "lm_head.weight"))


def _opt(f: Facts) -> dict:
    words = "embed_tokens.weight", "lm_head.weight"
    return dict(hidden_size=f.hidden, num_hidden_layers=f.layers(r"\blayers\.(\d+)\."), num_attention_heads=f.coupled_heads(), ffn_dim=f.size("fc1.weight"),
                vocab_size=f.size(*words), max_position_embeddings=f.size("embed_positions.weight") - 2, word_embed_proj_dim=f.size(*words, axis=1),
                do_layer_norm_before=f.architecture.norm_place != "after", enable_bias=f.has("fc1.bias"), activation_function=f.activation(),
                tie_word_embeddings=f.tied(*words))


def _llama(f: Facts) -> dict:
    return _decoder(f) | dict(attention_bias=f.has("o_proj.bias"), mlp_bias=f.has("down_proj.bias"))


def _mistral(f: Facts) -> dict:
    return _decoder(f) | dict(sliding_window=f.window)


def _qwen2(f: Facts) -> dict:
    if f.window and not f.given:
        raise GraphError(f"the graph has a window of {f.window} positions, and Qwen2 may have it in some layers only", hint=f"give --like DIR, {PLAIN}")
    return _decoder(f)


def _gemma(f: Facts) -> dict:
    return _decoder(f) | dict(attention_bias=f.has("o_proj.bias"))


def _decoder(f: Facts) -> dict:
    """What Llama and those after it share."""
    words = "embed_tokens.weight", "lm_head.weight"
    return dict(hidden_size=f.hidden, num_hidden_layers=f.layers(r"\blayers\.(\d+)\."), num_attention_heads=f.heads("q_proj.weight"),
                num_key_value_heads=f.kv_heads("k_proj.weight"), head_dim=f.head_dim, intermediate_size=f.size("gate_proj.weight"), vocab_size=f.size(*words),
                rms_norm_eps=f.epsilon, hidden_act=f.activation(), rope_parameters=f.rope(), tie_word_embeddings=f.tied(*words))


def _plain(f: Facts) -> bool:
    """No norms of queries, none behind a branch, no experts: later members of the family have them."""
    return not any(f.has(end) for end in ("q_norm.weight", "pre_feedforward_layernorm.weight", "gate.weight"))


def _vit(f: Facts) -> dict:
    return _picture(f, "patch_embeddings.projection.weight", f.size("position_embeddings", axis=1)) | dict(
        num_hidden_layers=f.layers(r"\blayers?\.(\d+)\."), intermediate_size=f.size("mlp.fc1.weight", "intermediate.dense.weight"),
        qkv_bias=f.has("q_proj.bias") or f.has("query.bias"))


def _clip_vision(f: Facts) -> dict:
    return _picture(f, "patch_embedding.weight", f.size("position_embedding.weight") or f.architecture.positions) | dict(
        num_hidden_layers=f.layers(r"\blayers\.(\d+)\."), intermediate_size=f.size("mlp.fc1.weight"), projection_dim=f.size("visual_projection.weight"))


def _picture(f: Facts, patches: str, positions: int) -> dict:
    """Patches [hidden, channels, high, wide]; the picture's size from what is fed, or a square of as many patches as there are positions."""
    patch = f.size(patches, axis=2)
    shapes = [v.type.tensor_type.shape.dim for v in f.roles.structure.graph.inputs]
    fed = [d.dim_value for dims in shapes if len(dims) == 4 for d in dims[2:]]
    sides = fed if len(fed) == 2 and all(fed) else [round((positions - 1) ** 0.5) * patch]
    return dict(hidden_size=f.hidden, num_attention_heads=f.coupled_heads(), num_channels=f.size(patches, axis=1), patch_size=patch,
                image_size=sides[0] if len(set(sides)) == 1 else sides, layer_norm_eps=f.epsilon, hidden_act=f.activation())


def _clip_text(f: Facts) -> dict:
    return dict(hidden_size=f.hidden, num_hidden_layers=f.layers(r"\blayers\.(\d+)\."), num_attention_heads=f.coupled_heads(),
                intermediate_size=f.size("mlp.fc1.weight"), vocab_size=f.size("token_embedding.weight"),
                max_position_embeddings=f.size("position_embedding.weight") or f.architecture.positions, layer_norm_eps=f.epsilon,
                hidden_act=f.activation(), projection_dim=f.size("text_projection.weight"),
                eos_token_id=_end(f) if f.has("text_projection.weight") else None)


def _end(f: Facts) -> int:
    """The id of the token whose state stands for the text. Old models take the greatest id of each row; their configs say 2."""
    found = readings.compared_id(f.roles)
    return 2 if found is None else found


def _clip(f: Facts) -> dict:
    """Two towers, each with a config of its own."""
    text = _clip_text(f.of("text_model", "token_embedding.weight", "self_attn.q_proj.weight")) | dict(eos_token_id=_end(f))
    picture = _clip_vision(f.of("vision_model", "position_embedding.weight", "self_attn.q_proj.weight"))
    width = dict(projection_dim=f.size("text_projection.weight"))
    said = {name: {key: value for key, value in fields.items() if value is not None} for name, fields in (("text_config", text), ("vision_config", picture))}
    return {name: fields | width for name, fields in said.items()} | width


def _t5(f: Facts) -> dict:
    words, act = ("shared.weight", "embed_tokens.weight", "lm_head.weight"), f.activation("gelu_new")
    decoder = f.layers(r"decoder\.block\.(\d+)\.")
    encoder = f.layers(r"encoder\.block\.(\d+)\.") if decoder else f.layers(r"\bblock\.(\d+)\.")
    fields = dict(d_model=f.hidden, d_kv=f.head_dim, num_heads=f.heads("SelfAttention.q.weight"), d_ff=f.size("wi_0.weight", "wi.weight"), num_layers=encoder,
                  num_decoder_layers=decoder or encoder, vocab_size=f.size(*words), relative_attention_num_buckets=f.size("relative_attention_bias.weight"),
                  relative_attention_max_distance=readings.farthest(f.roles), layer_norm_epsilon=f.epsilon,
                  feed_forward_proj=act if not f.has("wi_0.weight") else "gated-gelu" if act == "gelu_new" else f"gated-{act}")
    if decoder and readings.logit_factor(f.roles) == 1:
        fields["tie_word_embeddings"] = False  # this is how a T5 config says that logits are not scaled; the library ties by the weights
    return fields


def _classes(name: str, *ends: str) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for end in ends)


TEXT = "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"
CAUSAL = "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "Model"
ROTARY = dict(marks=r"mlp\.gate_proj\.weight$", query=r"layers\.{}\.self_attn\.q_proj", scale=lambda c: c.head_dim**-0.5)
LIKE_BERT = dict(marks=r"attention\.self\.query\.weight$", query=r"encoder\.layer\.{}\.attention\.self\.query")
CLIP = dict(marks=r"self_attn\.q_proj\.weight$", query=r"encoder\.layers\.{}\.self_attn\.q_proj")

FAMILIES = (
    Family("RoBERTa", "RobertaConfig", _classes("Roberta", *TEXT), fields=_roberta, **LIKE_BERT,
           suits=lambda f: f.has("lm_head.dense.weight") or readings.compared_id(f.roles) is not None),
    Family("BERT", "BertConfig", _classes("Bert", *TEXT), fields=_bert, **LIKE_BERT),
    Family("DistilBERT", "DistilBertConfig", _classes("DistilBert", *TEXT), r"attention\.q_lin\.weight$", _distilbert,
           query=r"transformer\.layer\.{}\.attention\.q_lin", scale=lambda c: (c.dim // c.n_heads) ** -0.5, epsilon=1e-12),
    Family("GPT-2", "GPT2Config", _classes("GPT2", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification", "Model"),
           r"attn\.c_attn\.weight$", _gpt2, query=r"h\.{}\.attn\.c_attn", packed=True, scale=lambda c: (c.n_embd // c.n_head) ** -0.5),
    Family("OPT", "OPTConfig", _classes("OPT", "ForCausalLM", "ForSequenceClassification", "Model"), r"self_attn_layer_norm\.weight$", _opt,
           suits=lambda f: f.has("embed_positions.weight") and not f.has("encoder_attn_layer_norm.weight") and not f.has("layernorm_embedding.weight"),
           query=r"decoder\.layers\.{}\.self_attn\.q_proj", epsilon=1e-5,
           stream=r"(embed_tokens|embed_positions|self_attn\.out_proj|fc2)\.(weight|bias)$"),
    Family("Gemma", "GemmaConfig", _classes("Gemma", *CAUSAL), fields=_gemma, **ROTARY, suits=lambda f: f.embedding_factor != 1 and _plain(f)),
    Family("Qwen2", "Qwen2Config", _classes("Qwen2", *CAUSAL), fields=_qwen2, **ROTARY,
           suits=lambda f: f.has("q_proj.bias") and not f.has("o_proj.bias") and _plain(f)),
    Family("Llama", "LlamaConfig", _classes("Llama", *CAUSAL), fields=_llama, **ROTARY,
           suits=lambda f: _plain(f) and f.window is None and f.hidden % f.heads("q_proj.weight") == 0),
    Family("Mistral", "MistralConfig", _classes("Mistral", *CAUSAL), fields=_mistral, **ROTARY, suits=lambda f: _plain(f) and not f.has("q_proj.bias")),
    Family("ViT", "ViTConfig", _classes("ViT", "ForImageClassification", "Model"), r"layernorm_before\.weight$", _vit,
           suits=lambda f: not f.has("distillation_token"), query=r"layers\.{}\.attention\.q_proj"),
    Family("T5", "T5Config", _classes("T5", "ForConditionalGeneration", "EncoderModel", "Model"), r"SelfAttention\.q\.weight$", _t5,
           query=r"(Self|EncDec)Attention\.q", scale=lambda c: 1.0),
    Family("CLIP", "CLIPConfig", ("CLIPModel",), fields=_clip, **CLIP | dict(scale=None),
           suits=lambda f: f.has("class_embedding") and f.has("token_embedding.weight")),
    Family("CLIP text", "CLIPTextConfig", _classes("CLIPTextModel", "", "WithProjection"), fields=_clip_text, **CLIP,
           suits=lambda f: f.has("token_embedding.weight") and not f.has("class_embedding")),
    Family("CLIP vision", "CLIPVisionConfig", _classes("CLIPVisionModel", "", "WithProjection"), fields=_clip_vision, **CLIP,
           suits=lambda f: f.has("class_embedding") and not f.has("token_embedding.weight")),
)
