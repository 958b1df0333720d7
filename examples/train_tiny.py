"""Train two small byte-level language models on the Python standard library and write them as ONNX files.

    python examples/train_tiny.py onnxgrow/models            both models, about 6 minutes each on one core
    python examples/train_tiny.py /tmp/tiny --quick          20 steps each, to see that everything works

The files in onnxgrow/models were made by the first line. Needs torch, onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import sysconfig
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn
from torch.nn import functional as F

from tiny_models import GPT, LLAMA, TinyGPT, TinyLlama

SEED = 1337
STEPS, BATCH, WARMUP = 3000, 16, 100
PEAK = 3e-3  # of 1e-3, 2e-3, 3e-3, 5e-3 in runs of 300 steps; 5e-3 is as good
SAMPLE = Path(__file__).parents[1] / "onnxgrow" / "models" / "sample.txt"

MODELS = {  # name: class, sizes, exporter, opset
    "tiny-gpt": (TinyGPT, GPT, "torch.onnx.export(dynamo=False)", 17),
    "tiny-llama": (TinyLlama, LLAMA, "torch.onnx.export(dynamo=True)", 18),
}

# --- text: every Python has its own sources ---

# not language (tests, tables), not in every Python (lib2to3, distutils), not the same on every machine (the rest)
LEFT_OUT = {"test", "tests", "idlelib", "encodings", "pydoc_data", "lib2to3", "distutils", "site-packages"}


def stdlib_text() -> tuple[bytes, bytes, int]:
    """All sources in the order of their paths; every tenth file is held out."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    files = [f for f in files if not LEFT_OUT & set(f.split("/")) and not f.startswith(("config-", "_sysconfigdata"))]
    texts = [(root / f).read_bytes() for f in files]
    held_out = texts[9::10]
    del texts[9::10]
    return b"".join(texts), b"".join(held_out), len(files)


def as_tensor(text: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))


def windows(text: torch.Tensor, starts: torch.Tensor, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    both = text[starts[:, None] + torch.arange(context + 1)]  # B T+1
    return both[:, :-1], both[:, 1:]  # B T, B T


# --- training ---


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Up in a line, down in a line to zero."""
    return PEAK * min((step + 1) / warmup, (steps - step) / (steps - warmup))


def train(model: nn.Module, text: torch.Tensor, context: int, steps: int) -> None:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]  # gains and biases are not decayed
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    draw = torch.Generator().manual_seed(SEED)
    warmup = min(WARMUP, steps // 10)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, warmup)
        starts = torch.randint(len(text) - context, (BATCH,), generator=draw)
        inputs, targets = windows(text, starts, context)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"  step {step:5d}  loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.no_grad()
def mean_loss(model, text: torch.Tensor, context: int, most: int = 1024) -> float:
    """Nats per byte over about `most` windows, evenly spread; a short text is read once from end to end."""
    stride = max(context, len(text) // most)
    starts = torch.arange(0, len(text) - context, stride)
    total = 0.0
    for part in starts.split(32):
        inputs, targets = windows(text, part, context)
        total += F.cross_entropy(model(inputs).double().flatten(0, 1), targets.flatten(), reduction="sum").item()
    return total / (len(starts) * context)


# --- the file ---


def export(model: nn.Module, path: Path, exporter: str, opset: int) -> None:
    ids = torch.zeros(2, 16, dtype=torch.long)  # any batch and length: both stay free in the file
    axes = {0: "batch", 1: "sequence"}
    names = {"input_names": ["input_ids"], "output_names": ["logits"], "opset_version": opset, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter announces its age
        if "dynamo=True" in exporter:
            torch.onnx.export(model, (ids,), path, dynamo=True, dynamic_shapes=(axes,), external_data=False, **names)
        else:
            free = {"input_ids": axes, "logits": axes}
            torch.onnx.export(model, (ids,), path, dynamo=False, dynamic_axes=free, **names)
    forget_traces(path)


def forget_traces(path: Path) -> None:
    """Drop the Python tracebacks that the newer exporter writes beside each node: they hold this machine's paths."""
    file = onnx.load(path)
    for node in file.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.checker.check_model(file, full_check=True)
    onnx.save(file, path)


def in_onnx_runtime(path: Path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda ids: torch.from_numpy(session.run(["logits"], {"input_ids": ids.numpy()})[0])


@torch.no_grad()
def largest_difference(model: nn.Module, exported, context: int) -> float:
    """The file against PyTorch, at every length and at batches 1 to 5."""
    draw, worst = torch.Generator().manual_seed(SEED), 0.0
    for length in range(1, context + 1):
        ids = torch.randint(256, (1 + length % 5, length), generator=draw)  # B T
        worst = max(worst, (model(ids) - exported(ids)).abs().max().item())
    return worst


def build(name: str, folder: Path, states: Path | None, text: torch.Tensor, held_out: torch.Tensor, steps: int) -> dict:
    """Train, export, compare; return what is to be remembered."""
    cls, size, exporter, opset = MODELS[name]
    torch.manual_seed(SEED)
    model, path = cls(size), folder / f"{name}.onnx"
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    began = time.perf_counter()
    train(model, text, size.context, steps)
    seconds = time.perf_counter() - began
    if states:
        states.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), states / f"{name}.pt")
    export(model, path, exporter, opset)
    exported = in_onnx_runtime(path)
    difference = largest_difference(model, exported, size.context)
    if difference > 1e-3:
        raise SystemExit(f"{path} differs from PyTorch by {difference:.1e}")
    sample = as_tensor(SAMPLE.read_bytes())
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sizes": asdict(size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "exporter": exporter,
        "opset": opset,
        "seed": SEED,
        "steps": steps,
        "tokens": steps * BATCH * size.context,
        "seconds": round(seconds),
        "loss": {  # nats per byte
            "train": round(mean_loss(model, text, size.context), 4),
            "held_out": round(mean_loss(model, held_out, size.context), 4),
            "sample": round(mean_loss(exported, sample, size.context), 6),
        },
        "largest_difference_from_torch": float(f"{difference:.1e}"),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the .onnx files and training.json go")
    parser.add_argument("--quick", action="store_true", help=f"20 steps instead of {STEPS}")
    parser.add_argument("--states", type=Path, help="also save the PyTorch state dicts into this folder")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # one core; a second run on the same machine gives the same weights

    text, held_out, files = stdlib_text()
    record = {
        "command": " ".join(["python", "examples/train_tiny.py", *(arguments or sys.argv[1:])]),
        "text": {
            "what": "the standard library's sources, every tenth file held out",
            "files": files,
            "train_bytes": len(text),
            "held_out_bytes": len(held_out),
            "sha256": hashlib.sha256(text + held_out).hexdigest(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "onnx": onnx.__version__},
        "schedule": {"batch": BATCH, "peak": PEAK, "warmup": WARMUP, "decay": "linear to zero", "optimizer": "AdamW"},
        "models": {},
    }
    for name in MODELS:
        steps = 20 if options.quick else STEPS
        both = as_tensor(text), as_tensor(held_out)
        record["models"][name] = build(name, options.folder, options.states, *both, steps)
        print(f"{name}: {record['models'][name]['loss']}", flush=True)
    (options.folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
