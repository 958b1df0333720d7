"""Small encoder–decoder models as optimum lays them out: `encoder_model.onnx`, `decoder_model.onnx`, `decoder_with_past_model.onnx`, config.json, and both
decoders merged; and a caller who runs such a folder word by word. Nothing of onnxgrow is used here."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from torch import nn

VOCAB, HIDDEN, FFN, LAYERS = 99, 32, 72, 2
ENCODER, FIRST, NEXT, MERGED = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx", "decoder_model_merged.onnx"
MODELS = {
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=VOCAB, d_model=HIDDEN, d_kv=8, d_ff=FFN, num_layers=LAYERS, num_heads=4, decoder_start_token_id=0, attn_implementation="eager")),
    "bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=VOCAB, d_model=HIDDEN, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN, max_position_embeddings=40, attn_implementation="eager")),
}


class Encoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_ids, attention_mask):
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class First(nn.Module):
    """The decoder on the first words: logits, and per layer keys and values of its own and of the encoder's states."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, encoder_attention_mask, input_ids, encoder_hidden_states):
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
        out = self.model(decoder_input_ids=input_ids, attention_mask=encoder_attention_mask, encoder_outputs=(encoder_hidden_states,), past_key_values=cache, use_cache=True)
        own, cross = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        return (out.logits, *(t for a, b in zip(own, cross) for t in (a.keys, a.values, b.keys, b.values)))


class Next(nn.Module):
    """The decoder on one more word, with what it has kept."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, encoder_attention_mask, input_ids, *kept):
        own, cross = ([(kept[4 * k + at], kept[4 * k + at + 1]) for k in range(len(kept) // 4)] for at in (0, 2))
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(own), transformers.DynamicCache(cross))
        said = torch.zeros(*encoder_attention_mask.shape, self.model.config.d_model)  # its keys and values are kept
        out = self.model(decoder_input_ids=input_ids, attention_mask=encoder_attention_mask, encoder_outputs=(said,), past_key_values=cache, use_cache=True)
        return (out.logits, *(t for layer in cache.self_attention_cache.layers for t in (layer.keys, layer.values)))


@cache
def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = MODELS[name]().eval()
    for p in made.parameters():
        nn.init.normal_(p, 0.0 if p.dim() > 1 else 1.0, 0.2)
    return made


def kept_names(when: str, sides: tuple[str, ...] = ("decoder", "encoder")) -> list[str]:
    return [f"{when}.{k}.{side}.{kind}" for k in range(LAYERS) for side in sides for kind in ("key", "value")]


def export(name: str, folder: Path) -> None:
    """The three graphs of a small random model and its config."""
    made, rows = model(name), lambda length: {0: "batch_size", 1: length}
    folder.mkdir()
    made.config.save_pretrained(folder)
    ids, mask, states = torch.randint(VOCAB, (2, 7)), torch.tensor([[1] * 7, [1] * 5 + [0] * 2]), torch.randn(2, 7, HIDDEN)  # all ones would be traced as no mask
    said, asked, past = "encoder_sequence_length", "decoder_sequence_length", "past_decoder_sequence_length"
    with torch.no_grad():
        kept = First(made)(mask, ids[:, :5], states)[1:]
    length = {n: past if ".decoder." in n else said for when in ("present", "past_key_values") for n in kept_names(when)}
    held = {n: {0: "batch_size", 2: length[n]} for n in length}
    graphs = {
        ENCODER: (Encoder(made), (ids, mask), {"input_ids": rows(said), "attention_mask": rows(said)}, {"last_hidden_state": rows(said)}),
        FIRST: (First(made), (mask, ids[:, :5], states), {"encoder_attention_mask": rows(said), "input_ids": rows(asked), "encoder_hidden_states": rows(said)},
                {"logits": rows(asked)} | {n: held[n] for n in kept_names("present")}),
        NEXT: (Next(made), (mask, ids[:, :1], *kept), {"encoder_attention_mask": rows(said), "input_ids": rows(asked)} | {n: held[n] for n in kept_names("past_key_values")},
               {"logits": rows(asked)} | {n: held[n] for n in kept_names("present", ("decoder",))}),
    }
    for file, (module, inputs, axes, outputs) in graphs.items():
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(module.eval(), inputs, str(folder / file), dynamo=False, opset_version=17, input_names=list(axes), output_names=list(outputs),
                              dynamic_axes=axes | outputs)


def merge(folder: Path) -> None:
    """Write both decoders as one: an If over `use_cache_branch`, equal weights once and outside, empty caches where a branch makes none."""
    first, later = (onnx.load(folder / file) for file in (FIRST, NEXT))
    outer: dict[bytes, TensorProto] = {}
    for m in (first, later):
        names = {}
        for t in m.graph.initializer:
            key = np.asarray(t.dims).tobytes() + numpy_helper.to_array(t).tobytes() + bytes([len(t.dims), *(t.name.encode() * (len(t.dims) < 2))])
            held = outer.setdefault(key, numpy_helper.from_array(numpy_helper.to_array(t), f"{t.name}_merged_0"))
            names[t.name] = held.name
        for n in m.graph.node:
            n.input[:] = [names.get(i, i) for i in n.input]
    given = {v.name for v in later.graph.output}
    empty = [helper.make_node("Constant", [], [v.name], value=numpy_helper.from_array(np.zeros([0, *(d.dim_value or 1 for d in v.type.tensor_type.shape.dim[1:])], np.float32)))
             for v in first.graph.output if v.name not in given]
    bodies = {f"{key}_branch": helper.make_graph([*m.graph.node, *more], key, [], list(first.graph.output)) for key, m, more in (("else", first, []), ("then", later, empty))}
    inputs = {v.name: v for m in (first, later) for v in m.graph.input}
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    names = [v.name for v in first.graph.output]
    graph = helper.make_graph([helper.make_node("If", ["use_cache_branch"], names, "optimum::if", **bodies)], "merged", [*inputs.values(), flag],
                              list(first.graph.output), list(outer.values()))
    onnx.save(helper.make_model(graph, ir_version=first.ir_version, opset_imports=first.opset_import), folder / MERGED)


class Caller:
    """Runs a folder as a program would: encoder, decoder, then word by word."""

    def __init__(self, folder: Path, merged: bool = False):
        opened = lambda file: onnxruntime.InferenceSession(str(Path(folder) / file), providers=["CPUExecutionProvider"])  # noqa: E731
        self.encoder, self.merged = opened(ENCODER), merged
        self.first, self.later = (opened(MERGED),) * 2 if merged else (opened(FIRST), opened(NEXT))

    def _run(self, session, fed: dict, branch: bool) -> dict:
        if self.merged:
            blank = {i.name: np.zeros([n if isinstance(n, int) else 1 for n in i.shape], np.float32) for i in session.get_inputs() if i.name not in fed}
            fed = blank | fed | {"use_cache_branch": np.array([branch])}
        wanted = {i.name for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, {name: x for name, x in fed.items() if name in wanted})))

    def logits(self, ids: np.ndarray, mask: np.ndarray, words: np.ndarray, first: int) -> np.ndarray:
        """[batch, length, vocab] of `words`, of which `first` come at once and the others one by one."""
        states = self.encoder.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        said = {"encoder_attention_mask": mask, "encoder_hidden_states": states}
        out = self._run(self.first, said | {"input_ids": words[:, :first]}, False)
        found, kept = [out["logits"]], {name.replace("present", "past_key_values"): x for name, x in out.items() if name != "logits"}
        for k in range(first, words.shape[1]):
            out = self._run(self.later, said | kept | {"input_ids": words[:, k : k + 1]}, True)
            found.append(out["logits"])
            kept |= {name.replace("present", "past_key_values"): x for name, x in out.items() if name != "logits" and x.size}
        return np.concatenate(found, axis=1)


def asked(seed: int = 1, batch: int = 3, said: int = 9, length: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and mask for the encoder, words for the decoder."""
    random = np.random.default_rng(seed)
    mask = (np.arange(said) < said - np.arange(batch)[:, None]).astype(np.int64)
    return random.integers(VOCAB, size=(batch, said)), mask, random.integers(VOCAB, size=(batch, length))
