"""Folders as optimum writes them, grown, and loaded by optimum again: does it say the same words?

optimum wants another version of transformers than our tests, so it gets an environment of its own, and calls onnxgrow in this one:

    python -m venv /tmp/optimum
    /tmp/optimum/bin/pip install "optimum-onnx[onnxruntime]==0.1.0" "transformers==4.57.6" "torch==2.13.0"
    /tmp/optimum/bin/python -P benchmarks/with_optimum.py --python "$(which python)"      prints the table, about 5 minutes

Small models with random weights are exported by optimum's own exporter; nothing is downloaded. Compared are the source's and the grown folder's
answers in optimum's own classes: words found greedily and by a search with three beams, and all logits or states on the way.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import subprocess
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import optimum.onnxruntime as runtime
import torch
import transformers as tf
from optimum.exporters.onnx import onnx_export_from_model

VOCAB, HIDDEN, FFN = 99, 32, 72
WORDS = dict(vocab_size=VOCAB, pad_token_id=0, eos_token_id=1)
PAIR = dict(d_model=HIDDEN, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=FFN, decoder_ffn_dim=FFN,
            forced_eos_token_id=None)
BOTH = {**WORDS, **PAIR}
SEQ2SEQ, SPEECH, CAUSAL, STATES = "text2text-generation-with-past", "automatic-speech-recognition-with-past", "text-generation-with-past", "feature-extraction"
CLASSES = {SEQ2SEQ: runtime.ORTModelForSeq2SeqLM, SPEECH: runtime.ORTModelForSpeechSeq2Seq, CAUSAL: runtime.ORTModelForCausalLM, STATES: runtime.ORTModelForFeatureExtraction}
MODELS = {
    "T5": (SEQ2SEQ, lambda: tf.T5ForConditionalGeneration(tf.T5Config(**WORDS, d_model=HIDDEN, d_kv=8, d_ff=FFN, num_layers=2, num_heads=4, decoder_start_token_id=0))),
    "BART": (SEQ2SEQ, lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BOTH, max_position_embeddings=40))),
    "Marian": (SEQ2SEQ, lambda: tf.MarianMTModel(tf.MarianConfig(**BOTH, max_position_embeddings=40, decoder_start_token_id=0))),
    "Whisper": (SPEECH, lambda: tf.WhisperForConditionalGeneration(tf.WhisperConfig(
        **BOTH, max_target_positions=40, num_mel_bins=16, bos_token_id=1, decoder_start_token_id=2, suppress_tokens=None, begin_suppress_tokens=None))),
    "GPT-2": (CAUSAL, lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1))),
    "BERT": (STATES, lambda: tf.BertModel(tf.BertConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=FFN, max_position_embeddings=64))),
}
GROWTHS = ("--hidden 64", "--layers 4", "--hidden 64 --layers 3 --vocab 128")
FORMS = {"decoders apart": ("decoder_model_merged.onnx",), "merged": (), "merged alone": ("decoder_model.onnx", "decoder_with_past_model.onnx")}  # and what is taken away


def exported(name: str, folder: Path) -> str:
    """optimum's export of a random model; its task."""
    task, make = MODELS[name]
    torch.manual_seed(0)
    model, noise = make().eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=noise)) if p.dim() < 2 else p.copy_(0.2 * torch.randn(p.shape, generator=noise))
    model.tie_weights()
    onnx_export_from_model(model, folder, task=task, do_validation=False)
    return task


def answers(folder: Path, task: str, merged: bool | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(words of each search, logits or states) of a folder in optimum's class."""
    more = {} if merged is None else {"use_merged": merged}
    model, random = CLASSES[task].from_pretrained(folder, **more), torch.Generator().manual_seed(3)
    ids = torch.randint(2, VOCAB, (3, 9), generator=random)
    mask = (torch.arange(9) < torch.tensor([9, 6, 3])[:, None]).long()
    fed = {"input_features": torch.randn(2, 16, 3000, generator=random)} if task == SPEECH else {"input_ids": ids, "attention_mask": mask if task != CAUSAL else torch.ones_like(ids)}
    if task == STATES:
        return [], [model(**fed).last_hidden_state]
    greedy = model.generate(**fed, max_new_tokens=12, do_sample=False, num_beams=1, return_dict_in_generate=True, output_logits=True)
    return [greedy.sequences, model.generate(**fed, max_new_tokens=12, num_beams=3)], list(greedy.logits)


def grown(python: str, source: Path, flags: str, target: Path) -> None:
    subprocess.run([python, "-m", "onnxgrow", "expand", str(source), *shlex.split(flags), "-o", str(target)], check=True, stdout=subprocess.DEVNULL)


def difference(source: Path, target: Path, task: str, merged: bool | None) -> tuple[bool, float]:
    """Are all words the same, and the largest difference of logits or states, relative to the largest of them; new words and entries aside."""
    (words, before), (found, after) = (answers(folder, task, merged) for folder in (source, target))
    largest = max(float(x.abs().max()) for x in before)
    gap = max((float((y[..., : x.shape[-1]] - x).abs().max()) for x, y in zip(before, after)), default=float("inf"))
    return all(torch.equal(a, b) for a, b in zip(words, found, strict=True)), gap / largest


def row(name: str, flags: str, python: str, place: Path) -> str:
    source = place / name
    task = MODELS[name][0] if source.exists() else exported(name, source)
    cells = []
    for form, gone in FORMS.items() if task in (SEQ2SEQ, SPEECH) else {"": ()}.items():
        here, there = place / f"{name}-{form}", place / f"{name}-{form}-{flags}".replace(" ", "")
        here.mkdir(exist_ok=True)
        for file in source.iterdir():
            if file.name not in gone and not (here / file.name).exists():
                (here / file.name).write_bytes(file.read_bytes())
        grown(python, here, flags, there)
        same, gap = difference(here, there, task, None if not form else form != "decoders apart")
        cells.append(f"{'same words, ' * (same and task != STATES)}{'OTHER WORDS, ' * (not same)}{gap:.0e}")
    return f"| {name} | `{flags}` | {' | '.join(cells if len(cells) > 1 else [*cells, '–', '–'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="the Python that has onnxgrow")
    parser.add_argument("--only", nargs="*", default=list(MODELS), help="names of models")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    tf.logging.set_verbosity_error()
    print("Measured with", ", ".join(f"{name} {version(name)}" for name in ("optimum-onnx", "transformers", "torch", "onnxruntime")), "\n")
    print(f"| model | growth | {' | '.join(FORMS)} |\n|---|---|{'---|' * len(FORMS)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            for flags in GROWTHS:
                print(row(name, flags, args.python, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
