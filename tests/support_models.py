"""Further architectures, for the table of docs/support.md: tiny, with random weights everywhere, as those of tests/zoo_models.py.

They are kept apart from `zoo_models.SPECS`, over which the matrix of growth tests runs.
"""

from __future__ import annotations

from dataclasses import replace

import transformers
from torch import nn

from tests import zoo_models
from tests.support_inputs import (
    FRAMES,
    MELS,
    Attended,
    Detection,
    captioned_inputs,
    heard_inputs,
    ids_inputs,
    mel_inputs,
    page_inputs,
    seen_inputs,
    series_inputs,
    spectrum_inputs,
    speech_inputs,
    video_inputs,
    wave_inputs,
)
from tests.zoo_models import (
    BERT,
    BODY,
    BOTH,
    GPT2,
    IDS,
    IMAGE_CLASS,
    PER_ROW,
    PER_TOKEN,
    PICTURE,
    STATES,
    T5_BOTH,
    T5_GATED,
    TABLE,
    TEXT,
    VIT,
    WORDS,
    Spec,
)
from tests.zoo_sizes import FFN, HEADS, HIDDEN, IMAGE, LABELS, LAYERS, PATCH, POSITIONS, VOCAB

SUPPORT: dict[str, Spec] = {}


def taken(entering, name: str, *args) -> None:
    """Enter a spec with a function of the zoo and take it out of the zoo's dict again."""
    before = set(zoo_models.SPECS)
    entering(name, *args)
    for new in [n for n in zoo_models.SPECS if n not in before]:
        SUPPORT[new] = zoo_models.SPECS.pop(new)


def model(name: str, cls: str, task: tuple, config: dict, sizes: dict, tags: str = "encoder") -> None:
    taken(zoo_models.hugging, name, cls, tags, task, config, sizes)


def own(name: str, make, task: tuple, sizes: dict, tags: str = "encoder") -> None:
    taken(zoo_models.enter, name, make, set(tags.split()), task, sizes)


def with_axes(name: str, **axes: dict[int, str]) -> None:
    """Dynamic axes that the shape of an input does not show."""
    SUPPORT[name] = replace(SUPPORT[name], axes=SUPPORT[name].axes | axes)


def configured(cls: str, attn: str, config: dict) -> nn.Module:
    """A transformers model by name; the attention of models inside it too."""
    found = getattr(transformers, cls)
    return found(found.config_class(attn_implementation=attn, **config))


ALTERNATING, FOUR_LAYERS = dict(layers=4, period=2), dict(num_hidden_layers=4)  # two kinds of layers in turn


# --- encoders of text ------------------------------------------------------------------------------------------------

SMALL = BERT | dict(embedding_size=20)
model("albert", "AlbertForMaskedLM", WORDS, SMALL, TABLE)
model("electra", "ElectraForMaskedLM", WORDS, SMALL, TABLE)
DISENTANGLED = BERT | dict(relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=16, position_biased_input=False)
model("deberta", "DebertaForMaskedLM", WORDS, DISENTANGLED, TEXT, "encoder eager")
BUCKETED = DISENTANGLED | dict(position_buckets=6, norm_rel_ebd="layer_norm", share_att_key=True)
model("deberta-v2", "DebertaV2ForMaskedLM", WORDS, BUCKETED, TEXT, "encoder eager")
model("xlm-roberta", "XLMRobertaForMaskedLM", WORDS, BERT, TABLE)
model("megatron-bert", "MegatronBertForMaskedLM", WORDS, BERT, TABLE, "encoder eager")
model("rembert", "RemBertForMaskedLM", WORDS, BERT | dict(input_embedding_size=20, output_embedding_size=24), TABLE, "encoder eager")
model("roformer", "RoFormerForMaskedLM", WORDS, SMALL, TABLE, "encoder eager rotary")
model("esm", "EsmForMaskedLM", WORDS, BERT | dict(position_embedding_type="rotary", pad_token_id=1), TABLE, "encoder rotary")
model("ernie", "ErnieForMaskedLM", WORDS, BERT, TABLE)
model("layoutlm", "LayoutLMForMaskedLM", (page_inputs, "logits", PER_TOKEN), BERT | dict(max_2d_position_embeddings=1024), TABLE)
model("lilt", "LiltModel", (page_inputs, "states", PER_TOKEN), BERT | dict(channel_shrink_ratio=2, hidden_size=48), TABLE | dict(hidden=48, head_dim=12),
      "encoder eager towers")
for name in ("layoutlm", "lilt"):
    with_axes(name, bbox=PER_TOKEN)
model("splinter", "SplinterModel", STATES, BERT, TABLE)
model("squeezebert", "SqueezeBertForMaskedLM", WORDS, SMALL | dict(embedding_size=HIDDEN), TABLE, "encoder eager multiples")
MOBILE = dict(embedding_size=20, intra_bottleneck_size=24, true_hidden_size=24, num_feedforward_networks=2)
model("mobilebert", "MobileBertForMaskedLM", WORDS, BERT | MOBILE, TABLE | dict(head_dim=6))
model("convbert", "ConvBertForMaskedLM", WORDS, SMALL, TABLE | dict(heads=2), "encoder eager")
model("modernbert", "ModernBertForMaskedLM", WORDS, BERT | FOUR_LAYERS | dict(local_attention=4, global_attn_every_n_layers=2, pad_token_id=0,
      cls_token_id=1, sep_token_id=2), TEXT | ALTERNATING, "encoder rotary gated")
model("nomic-bert", "NomicBertModel", STATES, BERT, TEXT, "encoder rotary gated")
model("eurobert", "EuroBertForMaskedLM", WORDS, BERT | dict(num_key_value_heads=2, pad_token_id=0), TEXT | dict(kv_heads=2),
      "encoder rotary gated rms")
model("xlnet", "XLNetLMHeadModel", (ids_inputs, "logits", PER_TOKEN), dict(vocab_size=VOCAB, d_model=HIDDEN, n_layer=LAYERS, n_head=HEADS, d_inner=FFN),
      TEXT, "encoder eager")

# --- decoders of text ------------------------------------------------------------------------------------------------

BLOOM = dict(vocab_size=VOCAB, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS, use_cache=False)
FOUR = dict(ffn=4 * HIDDEN)  # architectures whose ffn is four times hidden
model("bloom", "BloomForCausalLM", WORDS, BLOOM, TEXT | FOUR, "causal eager")
MPT = dict(vocab_size=VOCAB, d_model=HIDDEN, n_layers=LAYERS, n_heads=HEADS, max_seq_len=POSITIONS, use_cache=False)
model("mpt", "MptForCausalLM", WORDS, MPT, TEXT | FOUR, "causal eager")
NEO = BERT | dict(num_layers=4, num_heads=HEADS, attention_types=[[["global", "local"], 2]], window_size=4, use_cache=False)
NEO = {k: v for k, v in NEO.items() if k not in ("num_hidden_layers", "num_attention_heads")}
model("gpt-neo", "GPTNeoForCausalLM", WORDS, NEO, TABLE | ALTERNATING, "causal eager")
model("gpt-bigcode", "GPTBigCodeForCausalLM", WORDS, GPT2, TABLE | dict(kv_heads=1), "causal")
model("codegen", "CodeGenForCausalLM", WORDS, GPT2 | dict(rotary_dim=4), TABLE, "causal eager rotary")
model("openai-gpt", "OpenAIGPTLMHeadModel", (ids_inputs, "logits", PER_TOKEN), {k: v for k, v in GPT2.items() if k not in ("n_inner", "use_cache")},
      TABLE | FOUR, "causal eager")
model("ctrl", "CTRLLMHeadModel", WORDS, {k: v for k, v in GPT2.items() if k != "n_inner"} | dict(dff=FFN), TABLE, "causal eager")
XGLM = IDS | dict(d_model=HIDDEN, num_layers=LAYERS, attention_heads=HEADS, ffn_dim=FFN, max_position_embeddings=POSITIONS, use_cache=False)
model("xglm", "XGLMForCausalLM", WORDS, XGLM, TEXT, "causal eager")
model("biogpt", "BioGptForCausalLM", WORDS, BERT | dict(use_cache=False), TABLE, "causal")


def rotary(name: str, cls: str, kv_heads: int = 2, head_dim: int = HIDDEN // HEADS, tags: str = "rms gated", **more) -> None:
    """A decoder with rotary positions."""
    layers = 4 if "alternating" in tags else LAYERS
    config = BERT | dict(num_key_value_heads=kv_heads, head_dim=head_dim, num_hidden_layers=layers, use_cache=False, pad_token_id=0) | more
    sizes = TEXT | dict(kv_heads=kv_heads, head_dim=head_dim, layers=layers, period=layers // 2)
    model(name, cls, WORDS, config, sizes, f"causal rotary {tags}")


rotary("stablelm", "StableLmForCausalLM", tags="gated")
rotary("phi3", "Phi3ForCausalLM", original_max_position_embeddings=POSITIONS)
rotary("persimmon", "PersimmonForCausalLM", kv_heads=HEADS, tags="eager")
TWO_KINDS = ["sliding_attention", "full_attention"] * 2
GEMMA3 = dict(sliding_window=4, query_pre_attn_scalar=6, layer_types=TWO_KINDS)
rotary("gemma3", "Gemma3ForCausalLM", head_dim=12, tags="rms gated alternating", **GEMMA3)
rotary("olmo", "OlmoForCausalLM", tags="gated")
rotary("olmo2", "Olmo2ForCausalLM")
rotary("olmo3", "Olmo3ForCausalLM", tags="rms gated alternating", sliding_window=4, layer_types=TWO_KINDS)
rotary("cohere", "CohereForCausalLM", tags="gated parallel")
rotary("cohere2", "Cohere2ForCausalLM", tags="gated parallel alternating", sliding_window=4, layer_types=TWO_KINDS)
rotary("granite", "GraniteForCausalLM", attention_multiplier=0.3, residual_multiplier=0.7, embedding_multiplier=3.0, logits_scaling=2.0)
rotary("smollm3", "SmolLM3ForCausalLM", tags="rms gated alternating", no_rope_layers=[1, 0, 1, 0])
rotary("nemotron", "NemotronForCausalLM", tags="")
rotary("glm", "GlmForCausalLM", partial_rotary_factor=0.5)
rotary("glm4", "Glm4ForCausalLM", partial_rotary_factor=0.5)
rotary("starcoder2", "Starcoder2ForCausalLM", tags="", sliding_window=None)
rotary("helium", "HeliumForCausalLM")
rotary("arcee", "ArceeForCausalLM", tags="rms")
rotary("seed-oss", "SeedOssForCausalLM")
rotary("exaone4", "Exaone4ForCausalLM", tags="rms gated alternating", sliding_window=4, layer_types=TWO_KINDS)
rotary("ernie4.5", "Ernie4_5ForCausalLM")
rotary("hunyuan", "HunYuanDenseV1ForCausalLM")
rotary("apertus", "ApertusForCausalLM", tags="rms")
rotary("diffllama", "DiffLlamaForCausalLM")
rotary("gpt-oss", "GptOssForCausalLM", tags="rms eager alternating", num_local_experts=4, num_experts_per_tok=2, sliding_window=4, layer_types=TWO_KINDS,
       experts_implementation="batched_mm")
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=FFN, experts_implementation="batched_mm")
rotary("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, experts_implementation="batched_mm")
rotary("qwen2-moe", "Qwen2MoeForCausalLM", shared_expert_intermediate_size=40, **EXPERTS)
rotary("qwen3-moe", "Qwen3MoeForCausalLM", head_dim=10, **EXPERTS)
rotary("olmoe", "OlmoeForCausalLM", kv_heads=HEADS, **EXPERTS)

# --- encoder and decoder ---------------------------------------------------------------------------------------------

SIDES = IDS | dict(d_model=HIDDEN, max_position_embeddings=POSITIONS, use_cache=False, pad_token_id=0, decoder_start_token_id=0)
for side in ("encoder", "decoder"):
    SIDES |= {f"{side}_attention_heads": HEADS, f"{side}_ffn_dim": FFN, f"{side}_layers": LAYERS}
model("pegasus", "PegasusForConditionalGeneration", BOTH, SIDES, TEXT, "translator")
model("marian", "MarianMTModel", BOTH, SIDES | dict(decoder_vocab_size=VOCAB), TEXT, "translator")
model("m2m100", "M2M100ForConditionalGeneration", BOTH, SIDES, TEXT, "translator")
model("mbart", "MBartForConditionalGeneration", BOTH, SIDES, TABLE, "translator")
model("blenderbot", "BlenderbotForConditionalGeneration", BOTH, SIDES, TABLE, "translator")
model("plbart", "PLBartForConditionalGeneration", BOTH, SIDES, TABLE, "translator")
model("mt5", "MT5ForConditionalGeneration", BOTH, T5_BOTH | T5_GATED | dict(num_decoder_layers=LAYERS), TEXT | dict(head_dim=6), "translator eager relative rms gated")

# --- sound -----------------------------------------------------------------------------------------------------------

WHISPER = {k: v for k, v in SIDES.items() if k != "max_position_embeddings"} | dict(
    num_mel_bins=MELS, max_source_positions=FRAMES // 2, max_target_positions=POSITIONS)
model("whisper", "WhisperForConditionalGeneration", (speech_inputs, "logits", {0: "batch", 1: "target"}), WHISPER, TABLE, "translator")
own("whisper-encoder", lambda attn: Attended(configured("WhisperModel", attn, WHISPER).encoder, ("input_features",), "last_hidden_state"),
    (mel_inputs, "states", PER_ROW), TABLE, "encoder multiples")
own("whisper-decoder", lambda attn: Attended(configured("WhisperModel", attn, WHISPER).decoder, ("input_ids", "encoder_hidden_states"), "last_hidden_state"),
    (heard_inputs, "states", PER_TOKEN), TABLE | dict(source=FRAMES // 2, wide=HIDDEN), "decoding")
WAVE = BODY | dict(vocab_size=VOCAB, conv_dim=[12, 20], conv_stride=[5, 4], conv_kernel=[10, 4], num_conv_pos_embeddings=6, num_conv_pos_embedding_groups=4,
                   num_feat_extract_layers=2, layerdrop=0.0)
WAVES = wave_inputs, "logits", {0: "batch", 1: "frames"}
model("wav2vec2", "Wav2Vec2ForCTC", WAVES, WAVE, TEXT, "encoder multiples")
model("wav2vec2-stable", "Wav2Vec2ForCTC", WAVES, WAVE | dict(do_stable_layer_norm=True, feat_extract_norm="layer"), TEXT, "encoder multiples")
model("hubert", "HubertForCTC", WAVES, WAVE, TEXT, "encoder multiples")
model("ast", "ASTForAudioClassification", (spectrum_inputs, "logits", PER_ROW), BODY | dict(patch_size=PATCH, frequency_stride=3, time_stride=3,
      max_length=FRAMES, num_mel_bins=10, num_labels=LABELS), TEXT | dict(bins=10))

# --- pictures --------------------------------------------------------------------------------------------------------

PIXELS = (zoo_models.image_inputs, "states", PER_ROW)
model("beit", "BeitForImageClassification", IMAGE_CLASS, VIT | dict(use_relative_position_bias=True), PICTURE, "encoder image eager")
model("data2vec-vision", "Data2VecVisionForImageClassification", IMAGE_CLASS, VIT | dict(use_shared_relative_position_bias=True), PICTURE, "encoder image eager")
SCALED = {k: v for k, v in VIT.items() if k != "intermediate_size"} | dict(mlp_ratio=2)
model("dinov2", "Dinov2ForImageClassification", IMAGE_CLASS, SCALED, PICTURE | dict(ffn=2 * HIDDEN), "encoder image")
model("dinov2-registers", "Dinov2WithRegistersForImageClassification", IMAGE_CLASS, SCALED | dict(num_register_tokens=3), PICTURE | dict(ffn=2 * HIDDEN), "encoder image")
model("siglip-vision", "SiglipVisionModel", PIXELS, VIT, PICTURE, "encoder image")
model("siglip-text", "SiglipTextModel", STATES, BERT | dict(projection_size=24), TABLE)
model("vit-msn", "ViTMSNForImageClassification", IMAGE_CLASS, VIT, PICTURE, "encoder image")
model("ijepa", "IJepaForImageClassification", IMAGE_CLASS, VIT, PICTURE, "encoder image")
model("yolos", "YolosForObjectDetection", IMAGE_CLASS, VIT | dict(image_size=[IMAGE, IMAGE], num_detection_tokens=3), PICTURE, "encoder image")
model("videomae", "VideoMAEForVideoClassification", (video_inputs, "logits", PER_ROW), VIT | dict(num_frames=4, tubelet_size=2), PICTURE | dict(frames=4),
      "encoder image")
model("vivit", "VivitForVideoClassification", (video_inputs, "logits", PER_ROW), VIT | dict(num_frames=4, tubelet_size=[2, PATCH, PATCH]),
      PICTURE | dict(frames=4), "encoder image")
SAM = {k: v for k, v in VIT.items() if k not in ("intermediate_size", "num_hidden_layers")} | dict(image_size=24, output_channels=20, window_size=4, global_attn_indexes=[1, 3], mlp_dim=FFN, **FOUR_LAYERS)
model("sam-vision", "SamVisionModel", PIXELS, SAM, PICTURE | ALTERNATING | dict(image=24), "encoder image eager")
STAGED = dict(image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=LABELS)
STAGES = PICTURE | dict(image=16)
SHIFTED = STAGES | dict(period=2)  # plain and shifted windows take turns
model("swin", "SwinForImageClassification", IMAGE_CLASS, STAGED, SHIFTED, "encoder image staged eager")
model("swinv2", "Swinv2ForImageClassification", IMAGE_CLASS, STAGED, SHIFTED, "encoder image staged eager")
SEG = dict(num_encoder_blocks=2, depths=[2, 2], sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[2, 4],
           mlp_ratios=[2, 2], decoder_hidden_size=24, num_labels=LABELS)
model("segformer", "SegformerForImageClassification", IMAGE_CLASS, SEG, STAGES, "encoder image staged eager")
PVT = {k: v for k, v in SEG.items() if k not in ("sr_ratios", "decoder_hidden_size", "patch_sizes")}
model("pvt", "PvtForImageClassification", IMAGE_CLASS, PVT | dict(image_size=16, sequence_reduction_ratios=[2, 1], patch_sizes=[2, 2]), STAGES,
      "encoder image staged eager")
DETECTOR = dict(d_model=HIDDEN, decoder_layers=LAYERS, decoder_attention_heads=HEADS, decoder_ffn_dim=FFN)


def detector(attn: str) -> nn.Module:
    from transformers.models.detr.modeling_detr import DetrDecoder

    config = transformers.DetrConfig(attn_implementation=attn, use_timm_backbone=False, backbone_config=transformers.ResNetConfig(), **DETECTOR)
    return Detection(DetrDecoder(config), 6, HIDDEN, 9, LABELS)


own("detr-decoder", detector, (seen_inputs, "logits", PER_ROW), TEXT | dict(source=9, wide=HIDDEN), "decoding")

# --- two towers, numbers over time -----------------------------------------------------------------------------------

TOWERS = dict(text_config=BERT | dict(hidden_size=24, num_attention_heads=3, intermediate_size=50, projection_dim=20),
              vision_config=VIT | dict(projection_dim=20), projection_dim=20)
own("clip", lambda attn: Attended(configured("CLIPModel", attn, TOWERS), ("input_ids", "attention_mask", "pixel_values"), "logits_per_image"),
    (captioned_inputs, "logits", PER_ROW), PICTURE | dict(vocab=VOCAB), "encoder towers")
own("siglip", lambda attn: Attended(configured("SiglipModel", attn, dict(text_config=BERT | dict(projection_size=HIDDEN), vision_config=VIT)),
    ("input_ids", "attention_mask", "pixel_values"), "logits_per_image"), (captioned_inputs, "logits", PER_ROW), PICTURE | dict(vocab=VOCAB), "encoder towers")
TROCR = IDS | dict(d_model=HIDDEN, decoder_layers=LAYERS, decoder_attention_heads=HEADS, decoder_ffn_dim=FFN, max_position_embeddings=POSITIONS,
                   use_cache=False, cross_attention_hidden_size=24, is_decoder=True, add_cross_attention=True)
own("trocr-decoder", lambda attn: Attended(configured("TrOCRForCausalLM", attn, TROCR), ("input_ids", "encoder_hidden_states"), "logits"),
    (heard_inputs, "logits", PER_TOKEN), TABLE | dict(source=10, wide=24), "decoding eager")
SERIES = dict(d_model=HIDDEN, num_attention_heads=HEADS, num_hidden_layers=LAYERS, ffn_dim=FFN, context_length=24, patch_length=4, patch_stride=4,
              num_input_channels=3, prediction_length=5)
OVER_TIME = (series_inputs, "forecast", PER_ROW)
SPAN = TEXT | dict(length=24, channels=3)


def forecaster(attn: str) -> nn.Module:
    """Its batch norms have statistics that are not those of their start."""
    module = Attended(configured("PatchTSTForPrediction", attn, SERIES | dict(loss="mse")), ("past_values",), "prediction_outputs")
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_(0, 0.5)
            part.running_var.uniform_(0.5, 2)
    return module


own("patchtst", forecaster, OVER_TIME, SPAN)
