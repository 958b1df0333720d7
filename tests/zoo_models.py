"""The animals of the zoo: every architecture we claim to grow, two layers deep, with random weights everywhere.

A `Spec` builds the PyTorch module (tests/zoo_modules.py) and its inputs (tests/zoo_inputs.py); tests/zoo.py exports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import nn

from tests.zoo_inputs import Inputs, cache_names, cached_inputs, image_inputs, next_inputs, pair_inputs, text_inputs, translation_inputs
from tests.zoo_modules import Cached, CachedBoth, FirstOutput, TorchEncoder, randomise
from tests.zoo_moe import BatchedExperts, ListedExperts, MoE
from tests.zoo_sizes import BUCKETS, EXPERTS, FFN, HEADS, HIDDEN, IMAGE, LABELS, LAYERS, PATCH, POSITIONS, VOCAB

# --- specs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """One model of the zoo.

    Args:
        make: attention implementation -> module with the library's own initialisation.
        inputs: (sizes, batch, length, seed) -> inputs by name.
        axes: names of the dynamic dimensions, by input or output and axis; inputs first.
        outputs: names of the outputs.
        tags: what kind of model it is, to select by.
        sizes: the truth about its sizes, for the tests of whatever reads them off the graph.
    """

    name: str
    make: Callable[[str], nn.Module]
    inputs: Callable[[dict, int, int, int], Inputs]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    tags: frozenset[str]
    sizes: dict[str, int]

    def build(self, seed: int = 0, attn: str = "eager") -> nn.Module:
        """The module in eval mode, with random weights everywhere."""
        torch.manual_seed(seed)
        return randomise(self.make(attn), seed)

    def example(self, batch: int = 3, length: int = 7, seed: int = 0) -> Inputs:
        """Inputs by name, in the order of the module's arguments; an export sees those of the default sizes."""
        return self.inputs(self.sizes, batch, length, seed)


SPECS: dict[str, Spec] = {}


# --- the animals: sizes do not coincide, and heads * head_dim differs from hidden where an architecture lets it ------

PER_ROW, PER_TOKEN = {0: "batch"}, {0: "batch", 1: "sequence"}
WORDS, STATES = (text_inputs, "logits", PER_TOKEN), (text_inputs, "states", PER_TOKEN)
BOTH = translation_inputs, "logits", {0: "batch", 1: "target"}
TEXT_CLASS, IMAGE_CLASS = (pair_inputs, "logits", PER_ROW), (image_inputs, "logits", PER_ROW)
IMAGE_EMBEDS = image_inputs, "embeds", PER_ROW

BODY = dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FFN)
IDS = dict(vocab_size=VOCAB, bos_token_id=2, eos_token_id=3)
BERT = BODY | IDS | dict(max_position_embeddings=POSITIONS)
DISTIL = IDS | dict(dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=FFN, max_position_embeddings=POSITIONS)
GPT2 = IDS | dict(n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=FFN, n_positions=POSITIONS, use_cache=False)
T5 = IDS | dict(d_model=HIDDEN, num_layers=LAYERS, num_heads=HEADS, d_kv=6, d_ff=FFN)
T5 |= dict(relative_attention_num_buckets=BUCKETS)
VIT = BODY | dict(image_size=IMAGE, patch_size=PATCH, num_labels=LABELS)

SIZES = dict(hidden=HIDDEN, heads=HEADS, kv_heads=HEADS, head_dim=HIDDEN // HEADS, ffn=FFN, layers=LAYERS)
TEXT = SIZES | dict(vocab=VOCAB)
TABLE = TEXT | dict(positions=POSITIONS)
PICTURE = SIZES | dict(image=IMAGE, positions=(IMAGE // PATCH) ** 2 + 1)


def enter(name: str, make: Callable, tags: set[str], task: tuple, sizes: dict) -> None:
    """Enter a spec; a task is (inputs, name of the output, its dynamic axes)."""
    inputs, output, output_axes = task
    axes = {key: PER_TOKEN if value.ndim == 2 else PER_ROW for key, value in inputs(sizes, 2, 3, 0).items()}
    outputs = {output: output_axes}
    if "decoder_input_ids" in axes:
        axes |= {"decoder_input_ids": {0: "batch", 1: "target"}}
    if "cross" in tags:
        axes |= {"attention_mask": {0: "batch", 1: "source"}}
        axes |= dict.fromkeys(cache_names("past", sizes["layers"]), {0: "batch", 2: "past"})
        axes |= dict.fromkeys(cache_names("cross", sizes["layers"]), {0: "batch", 2: "source"})
        outputs |= dict.fromkeys(cache_names("present", sizes["layers"]), {0: "batch", 2: "total"})
    if "past" in tags:
        axes |= {"attention_mask": {0: "batch", 1: "total"}}
        axes |= dict.fromkeys(cache_names("past", sizes["layers"]), {0: "batch", 2: "past"})
        outputs |= dict.fromkeys(cache_names("present", sizes["layers"]), {0: "batch", 2: "total"})
    SPECS[name] = Spec(name, make, inputs, axes | outputs, tuple(outputs), frozenset(tags), sizes)


def hugging(name: str, model: str, tags: str, task: tuple, config: dict, sizes: dict) -> None:
    """Enter a transformers model; a decoder also as `name-past`, where its cache goes in and comes out."""
    labels, arguments = set(tags.split()), tuple(task[0](sizes, 2, 3, 0))

    def make(attn: str) -> nn.Module:
        cls = getattr(transformers, model)
        return cls(cls.config_class(attn_implementation=attn, **config))

    enter(name, lambda attn: FirstOutput(make(attn), arguments), labels, task, sizes)
    if "both" in labels:
        deeper, step = sizes | dict(layers=sizes["layers"] + 1), (next_inputs, *task[1:])
        enter(f"{name}-decoder", lambda attn: CachedBoth(make(attn)), labels - {"both"} | {"cross"}, step, deeper)
    if "decoder" in labels:
        enter(f"{name}-past", lambda attn: Cached(make(attn)), labels | {"past"}, (cached_inputs, *task[1:]), sizes)


def rotary(name: str, model: str, tags: str, kv_heads: int = HEADS, head_dim: int = HIDDEN // HEADS, layers: int = LAYERS, **more) -> None:
    """Enter a decoder with rotary positions, its own number of key/value heads and its own head size."""
    config = BERT | dict(num_key_value_heads=kv_heads, head_dim=head_dim, num_hidden_layers=layers, use_cache=False) | more
    hugging(name, model, f"decoder rotary {tags}", WORDS, config, TEXT | dict(kv_heads=kv_heads, head_dim=head_dim, layers=layers))


hugging("bert-mlm", "BertForMaskedLM", "encoder tied", WORDS, BERT, TABLE)
hugging("bert-cls", "BertForSequenceClassification", "encoder", TEXT_CLASS, BERT | dict(num_labels=LABELS), TABLE)
hugging("distilbert", "DistilBertForMaskedLM", "encoder tied", WORDS, DISTIL, TABLE)
hugging("roberta", "RobertaForMaskedLM", "encoder tied", WORDS, BERT, TABLE)
hugging("mpnet", "MPNetForMaskedLM", "encoder tied relative", WORDS, BERT, TABLE)
hugging("t5-encoder", "T5EncoderModel", "encoder relative rms", STATES, T5, TEXT | dict(head_dim=6))
T5_GATED = T5 | dict(feed_forward_proj="gated-gelu")
hugging("t5-gated", "T5EncoderModel", "encoder relative rms gated", STATES, T5_GATED, TEXT | dict(head_dim=6))
hugging("gpt2", "GPT2LMHeadModel", "decoder tied", WORDS, GPT2, TABLE)
OPT = BERT | dict(ffn_dim=FFN, word_embed_proj_dim=HIDDEN, use_cache=False)
hugging("opt", "OPTForCausalLM", "decoder tied", WORDS, OPT, TABLE | dict(positions=POSITIONS + 2))
rotary("gpt-neox", "GPTNeoXForCausalLM", "parallel")
rotary("phi", "PhiForCausalLM", "parallel")
rotary("llama", "LlamaForCausalLM", "rms gated", kv_heads=2)
rotary("mistral", "MistralForCausalLM", "rms gated", kv_heads=2, head_dim=6)
rotary("qwen2", "Qwen2ForCausalLM", "rms gated", kv_heads=2)
rotary("qwen3", "Qwen3ForCausalLM", "rms gated", kv_heads=2, head_dim=10)
rotary("gemma", "GemmaForCausalLM", "rms gated tied", kv_heads=1, head_dim=12)
rotary("gemma-kv2", "GemmaForCausalLM", "rms gated tied", kv_heads=2, head_dim=12)
hugging("vit", "ViTForImageClassification", "encoder image", IMAGE_CLASS, VIT, PICTURE)
hugging("deit", "DeiTForImageClassification", "encoder image", IMAGE_CLASS, VIT, PICTURE | dict(positions=11))
hugging("clip-text", "CLIPTextModel", "encoder causal", STATES, BERT, TABLE)
CLIP = VIT | dict(projection_dim=24)
hugging("clip-vision", "CLIPVisionModelWithProjection", "encoder image", IMAGE_EMBEDS, CLIP, PICTURE)
enter("torch-encoder-prenorm", lambda attn: TorchEncoder(norm_first=True), {"encoder"}, WORDS, TABLE)
enter("torch-encoder-postnorm", lambda attn: TorchEncoder(norm_first=False), {"encoder"}, WORDS, TABLE)
EXPERT, MOE = {"causal", "rms", "gated", "experts"}, TABLE | dict(experts=EXPERTS)
enter("moe-batched", lambda attn: MoE(attn, BatchedExperts), EXPERT, WORDS, MOE)
enter("moe-listed", lambda attn: MoE(attn, ListedExperts), EXPERT, WORDS, MOE)
WINDOW = dict(sliding_window=4, query_pre_attn_scalar=6, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)  # each of them is felt
rotary("gemma2", "Gemma2ForCausalLM", "rms gated tied", kv_heads=2, head_dim=12, layers=4, **WINDOW)
GPTJ = GPT2 | dict(rotary_dim=4)
hugging("gptj", "GPTJForCausalLM", "decoder rotary parallel", WORDS, GPTJ, TEXT)
FALCON = BERT | dict(ffn_hidden_size=FFN, use_cache=False)
hugging("falcon", "FalconForCausalLM", "decoder rotary parallel", WORDS, FALCON, TEXT | dict(kv_heads=1))
FALCON_KV2 = FALCON | dict(new_decoder_architecture=True, num_kv_heads=2)  # its cache holds keys that are repeated already
hugging("falcon-kv2", "FalconForCausalLM", "causal rotary parallel", WORDS, FALCON_KV2, TEXT | dict(kv_heads=2))
T5_BOTH = T5 | dict(num_decoder_layers=3, use_cache=False)
hugging("t5", "T5ForConditionalGeneration", "both relative rms", BOTH, T5_BOTH, TEXT | dict(head_dim=6))
BART = IDS | dict(d_model=HIDDEN, max_position_embeddings=POSITIONS, use_cache=False)
for side, layers in (("encoder", LAYERS), ("decoder", LAYERS + 1)):
    BART |= {f"{side}_attention_heads": HEADS, f"{side}_ffn_dim": FFN, f"{side}_layers": layers}
hugging("bart", "BartForConditionalGeneration", "both", BOTH, BART, TABLE | dict(positions=POSITIONS + 2))
