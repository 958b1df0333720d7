"""A zoo of tiny real exports: the models of tests/zoo_models.py, written by both exporters of PyTorch.

`export` writes a model to ONNX once and caches the file; `check_export` runs that file against PyTorch at a batch and
a length that the export did not see.

    python -m tests.zoo --out /tmp/zoo [--only llama ...]      exports everything and prints what works

What does not work stands in `KNOWN_FAILURES` and `other_sizes`, as measured with torch 2.13, transformers 5.23 and
onnxruntime 1.31.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import io
import itertools
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import transformers

from tests.once import made
from tests.zoo_models import SPECS, Spec

EXPORTERS, ATTENTIONS = ("dynamo", "torchscript"), ("eager", "sdpa")
DEFAULT_OPSET = {"dynamo": 18, "torchscript": 17}

logging.getLogger("torch.onnx").setLevel(logging.ERROR)

KNOWN_FAILURES = {  # NAME/EXPORTER/ATTENTION/OPSET: reason
    "mpnet/*/sdpa/*": "transformers has no sdpa implementation of MPNet",
    "gemma2*/*/sdpa/*": "transformers has no sdpa implementation of Gemma 2",
    "gptj*/*/sdpa/*": "transformers has no sdpa implementation of GPT-J",
    "*/torchscript/sdpa/13": "torch exports scaled_dot_product_attention from opset 14 on",
    "torch-encoder-*/torchscript/*/13": "torch exports scaled_dot_product_attention from opset 14 on",
    "torch-encoder-*/dynamo/*/23": "onnxruntime's Attention takes no mask that broadcasts over the queries",
}


def known_failure(name: str, exporter: str = "dynamo", attn: str = "eager", opset: int | None = None) -> str | None:
    """Why this combination does not work, or None."""
    key = f"{name}/{exporter}/{attn}/{opset or DEFAULT_OPSET[exporter]}"
    return next((reason for pattern, reason in KNOWN_FAILURES.items() if fnmatch.fnmatch(key, pattern)), None)


def cases(*tags: str) -> list[tuple[str, str, str]]:
    """(name, exporter, attention) of every export that works and whose model has all these tags."""
    every = itertools.product((name for name in SPECS if SPECS[name].tags >= set(tags)), EXPORTERS, ATTENTIONS)
    return [case for case in every if not known_failure(*case)]


def cache_folder() -> Path:
    """Where exports are kept: a folder of its own for each state of the zoo and of the libraries."""
    versions = repr((torch.__version__, transformers.__version__, onnx.__version__)).encode()
    sources = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("zoo*.py"))]
    state = hashlib.sha256(b"".join([versions, *sources])).hexdigest()[:12]
    folder = Path(os.environ.get("ONNXGROW_ZOO", tempfile.gettempdir())) / f"onnxgrow-zoo-{state}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def export(
    name: str,
    exporter: str = "dynamo",
    attn: str = "eager",
    opset: int | None = None,
    static: bool = False,
    seed: int = 0,
    external: bool = False,
) -> Path:
    """Path of the model's ONNX file, exported if it is not there yet; processes may share the folder."""
    opset = opset or DEFAULT_OPSET[exporter]
    options = [exporter, attn, f"op{opset}", *["static"] * static, *[f"seed{seed}"] * (seed > 0), *["data"] * external]
    path = cache_folder() / f"{'-'.join([name, *options])}.onnx"

    def make(fresh: Path) -> None:
        if not external:
            return write(SPECS[name], fresh, exporter, attn, opset, static, seed)
        data = dict(save_as_external_data=True, location=f"{path.name}.data", size_threshold=100)
        onnx.save_model(onnx.load(export(name, exporter, attn, opset, static, seed)), fresh, **data)
        os.replace(f"{fresh}.data", f"{path}.data")

    return made(path, make)


def write(spec: Spec, path: Path, exporter: str, attn: str, opset: int, static: bool, seed: int) -> None:
    """One call of torch.onnx.export, in silence."""
    example, axes = spec.example(), None if static else spec.axes
    options = dict(input_names=list(example), output_names=list(spec.outputs), opset_version=opset)
    if exporter == "dynamo":
        shapes = axes and (tuple(axes[name] for name in example),)
        options |= dict(dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)
    else:
        options |= dict(dynamo=False, dynamic_axes=axes)
    silence = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), silence[0], silence[1], torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(spec.build(seed, attn), tuple(example.values()), path, **options)


def other_sizes(spec: Spec, exporter: str, opset: int, static: bool) -> tuple[int, int]:
    """Batch and length that the export did not see, as far as it runs at others."""
    batch, length = 5, 11
    if exporter == "dynamo" and opset >= 23 and "rotary" in spec.tags:
        batch = 1  # the exporter gives RotaryEmbedding tables of batch 1, which ONNX Runtime does not broadcast
    if exporter == "torchscript" and spec.name.startswith("torch-encoder"):
        length = 7  # nn.MultiheadAttention holds the length as a Python number
    return (3, 7) if static else (batch, length)


def check_export(
    name: str,
    exporter: str = "dynamo",
    attn: str = "eager",
    opset: int | None = None,
    static: bool = False,
    seed: int = 0,
    external: bool = False,
) -> float:
    """Largest difference between the export in ONNX Runtime and PyTorch, relative to the largest output."""
    spec = SPECS[name]
    inputs = spec.example(*other_sizes(spec, exporter, opset or DEFAULT_OPSET[exporter], static), seed=1)
    with torch.no_grad():
        expected = spec.build(seed, attn)(*inputs.values())
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    path = export(name, exporter, attn, opset, static, seed, external)
    session = ort.InferenceSession(path, quiet, ["CPUExecutionProvider"])
    actual = session.run(list(spec.outputs), {key: value.numpy() for key, value in inputs.items()})
    return max(relative(got, want.numpy()) for got, want in zip(actual, expected, strict=True))


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value; infinite where the shapes differ."""
    return float(np.abs(got - want).max() / np.abs(want).max()) if got.shape == want.shape else float("inf")


def main() -> None:
    """Export and check everything; one failure does not stop the rest."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME-EXPORTER-ATTENTION.onnx")
    parser.add_argument("--only", nargs="*", default=list(SPECS), help="names of models")
    parser.add_argument("--exporter", nargs="*", default=EXPORTERS)
    parser.add_argument("--attn", nargs="*", default=ATTENTIONS)
    parser.add_argument("--opset", type=int)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for case in itertools.product(args.only, args.exporter, args.attn):
        print("{:24}{:12}{:7}".format(*case), try_one(case, args.opset, args.out), flush=True)


def try_one(case: tuple[str, str, str], opset: int | None, out: Path) -> str:
    """Export into a folder; the verdict for the table."""
    if reason := known_failure(*case, opset):
        return f"known failure: {reason}"
    try:
        difference = check_export(*case, opset)
        shutil.copy(export(*case, opset), out / f"{'-'.join(case)}.onnx")
    except Exception as error:  # whatever an exporter raises is one line of the table
        return f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return f"{'ok' if difference < 1e-5 else 'DIFFERS'} {difference:.0e}"


if __name__ == "__main__":
    main()
