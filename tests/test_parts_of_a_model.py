"""One model in several graphs: the refusal's commands are right, and what they make fits together."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch import nn

from tests.test_cli import run

VOCAB, HIDDEN, FFN = 99, 32, 72
SIZES = {
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=VOCAB, d_model=HIDDEN, d_kv=8, d_ff=FFN, num_layers=2, num_heads=4, decoder_start_token_id=0, attn_implementation="eager")),
    "bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=VOCAB, d_model=HIDDEN, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN, max_position_embeddings=40, attn_implementation="eager")),
}


class Encoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_ids, attention_mask):
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Decoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, encoder_attention_mask, input_ids, encoder_hidden_states):
        return self.model(decoder_input_ids=input_ids, attention_mask=encoder_attention_mask, encoder_outputs=(encoder_hidden_states,), use_cache=False).logits


def exported(name: str, folder: Path) -> nn.Module:
    """`encoder_model.onnx`, `decoder_model.onnx` and config.json of a small random model, as optimum lays them out."""
    torch.manual_seed(0)
    model = SIZES[name]().eval()
    for p in model.parameters():
        nn.init.normal_(p, 0.0 if p.dim() > 1 else 1.0, 0.2)
    folder.mkdir()
    model.config.save_pretrained(folder)
    rows = lambda length: {0: "batch", 1: length}  # noqa: E731
    ids, mask = torch.randint(VOCAB, (2, 7)), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])  # all ones would be traced as no mask
    graphs = {"encoder_model": (Encoder(model).eval(), (ids, mask), {"input_ids": rows("said"), "attention_mask": rows("said")}, "last_hidden_state", "said"),
              "decoder_model": (Decoder(model).eval(), (mask, ids[:, :5], torch.randn(2, 7, HIDDEN)),
                                {"encoder_attention_mask": rows("said"), "input_ids": rows("length"), "encoder_hidden_states": rows("said")}, "logits", "length")}
    for file, (module, inputs, axes, output, length) in graphs.items():
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, inputs, str(folder / f"{file}.onnx"), dynamo=False, opset_version=17, input_names=list(axes), output_names=[output],
                              dynamic_axes=axes | {output: rows(length)})
    return model


def answer(encoder: Path, decoder: Path, ids: np.ndarray, mask: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Logits of the decoder on what the encoder hands over."""
    first, second = (onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]) for p in (encoder, decoder))
    states, = first.run(None, {"input_ids": ids, "attention_mask": mask})
    return second.run(None, {"encoder_attention_mask": mask, "input_ids": words, "encoder_hidden_states": states})[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SIZES)
def test_the_commands_of_the_refusal_make_graphs_that_fit_together(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = exported(name, Path("source"))
    code, _, err = run("expand", "source", "--hidden", 64)
    assert code == 1 and "source holds the graphs of one model: decoder_model.onnx, encoder_model.onnx" in err
    commands = re.findall(r"^ *onnxgrow (expand source/\S+ --ffn N -o .*)$", err, re.M)
    assert len(commands) == 2
    for command in commands:
        done, out, err = run(*shlex.split(command.replace("--ffn N", "--ffn 101")))
        assert done == 0 and "equal on" in out, err
    for file in ("encoder_model.onnx", "decoder_model.onnx"):
        shapes = [list(t.dims) for t in onnx.load(file).graph.initializer]
        assert shapes.count([HIDDEN, 101]) == shapes.count([101, HIDDEN]) == 2 and not any(FFN in shape for shape in shapes)
    random = np.random.default_rng(1)
    for batch, said, length in ((3, 9, 4), (1, 5, 1)):
        ids, words = random.integers(VOCAB, size=(batch, said)), random.integers(VOCAB, size=(batch, length))
        mask = (np.arange(said) < said - np.arange(batch)[:, None]).astype(np.int64)
        old, new = (answer(Path(at) / "encoder_model.onnx", Path(at) / "decoder_model.onnx", ids, mask, words) for at in ("source", "."))
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(words)).logits.numpy()
        assert np.abs(old - wanted).max() < 1e-4 * np.abs(wanted).max() and np.abs(new - old).max() < 1e-5 * np.abs(old).max()
