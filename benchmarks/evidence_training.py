"""Train, grow and measure: one run of `benchmarks/evidence.py`.

Every model, the one from scratch too, goes through an ONNX file and back to PyTorch by `onnxgrow.pytorch`.
Shapes at line ends: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

import torch
from torch import nn
from torch.nn import functional as F

import onnxgrow
from onnxgrow.pytorch import export as to_folder
from onnxgrow.pytorch import module_of

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from tiny_models import Sizes, TinyGPT, TinyLlama  # noqa: E402
from train_tiny import as_tensor, export, mean_loss, stdlib_text, windows  # noqa: E402

EXPORTER, OPSET = "torch.onnx.export(dynamo=False)", 17
DECAY = 0.3  # the last part of a run, in which the learning rate goes down to zero
LOOK = (1, 3)  # steps at which gradients are counted


@dataclass(frozen=True)
class Scale:
    """How much is done. `peak` is the learning rate of a model from scratch, the source too."""

    seeds: int
    hidden: int
    layers: int
    head_dim: int
    context: int
    batch: int
    source_steps: int
    steps: int
    every: int
    held_out: int
    peak: float = 3e-3
    group: int = 1  # query heads to a kv head, Llama-like
    warmup: float = 0.05

    @property
    def tokens(self) -> int:
        """Per step."""
        return self.batch * self.context

    def sizes(self, family: str, wider: int = 1, deeper: int = 1) -> Sizes:
        """With the proportions of the large relatives: heads * head_dim = hidden; feed-forward 4x, gated 2.5x."""
        hidden, heads = self.hidden * wider, self.hidden * wider // self.head_dim
        kv, ffn = (heads, 4 * hidden) if family == "gpt" else (heads // self.group, 5 * hidden // 2)
        return Sizes(self.layers * deeper, hidden, heads, kv, self.head_dim, ffn, self.context)


@dataclass(frozen=True, eq=False)
class Run:
    """One curve. `start` is grown, scratch or source; `rate` is the part of `Scale.peak` that the learning rate reaches."""

    family: str
    seed: int
    target: str
    method: str
    start: str
    steps: int
    rate: float
    growth: dict = field(default_factory=dict)


FAMILIES = {"gpt": TinyGPT, "llama": TinyLlama}
Data = tuple[torch.Tensor, torch.Tensor]  # what is learnt, what is held out


def text(file: Path | None) -> Data:
    """What is learnt and what is held out: every tenth file of the standard library, or the last tenth of `file`."""
    if file is None:
        learnt, held, _ = stdlib_text()
    else:
        whole = file.read_bytes()
        learnt, held = whole[: -len(whole) // 10], whole[-len(whole) // 10 :]
    return as_tensor(learnt), as_tensor(held)


# --- models ---


def create(family: str, size: Sizes, seed: int) -> nn.Module:
    """A model that has learnt nothing. The GPT-like one gets a head of its own: grown ones have one, and all are to be alike."""
    torch.manual_seed(seed)
    model = FAMILIES[family](size)
    if family == "gpt":
        model.head.weight = nn.Parameter(torch.randn_like(model.tokens.weight) * 0.02)
    return model


def to_torch(path: Path, folder: Path) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """What `onnxgrow export` writes for a file, and which entries of each parameter the growth added (the first of several copies is old)."""
    to_folder(onnxgrow.load(path), folder, check=False)
    code = module_of(folder)
    module = code.load(folder).train()
    return module, code.grown_masks(module, folder)


# --- training ---


def rate(step: int, steps: int, scale: Scale) -> float:
    """Up in a line, level, and down in a line to zero; 1 is the peak."""
    warmup = max(1, round(scale.warmup * steps))
    return min((step + 1) / warmup, 1.0, (steps - step) / (DECAY * steps))


def logits(module: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    out = module(input_ids=ids)
    return out["logits"] if isinstance(out, dict) else out  # B T V


def train(module: nn.Module, data: Data, scale: Scale, steps: int, peak: float, seed: int, masks: dict) -> tuple[list, dict]:
    """The validation loss at intervals, and what part of the new entries got a gradient at the steps of `LOOK`."""
    learnt, held = data
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [p for p in module.parameters() if p.dim() < 2]  # gains and biases are not decayed
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    draw = torch.Generator("cpu").manual_seed(seed)
    most = min(scale.held_out, len(held) // scale.context)
    validate = lambda: round(mean_loss(lambda ids: logits(module, ids), held, scale.context, most), 4)  # noqa: E731
    curve, live = [[0, validate()]], {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * rate(step, steps, scale)
        starts = torch.randint(len(learnt) - scale.context, (scale.batch,), generator=draw, device="cpu")
        inputs, targets = windows(learnt, starts.to(learnt.device), scale.context)  # B T, B T
        loss = F.cross_entropy(logits(module, inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        if masks and step + 1 in LOOK:
            live[str(step + 1)] = alive(module, masks)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % scale.every == 0 or step + 1 == steps:
            curve.append([step + 1, validate()])
    return curve, live


def alive(module: nn.Module, masks: dict[str, torch.Tensor]) -> float:
    """The part of the new entries whose gradient is not zero. Of a table of embeddings the rows that the batch reads count."""
    tables = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    hit = total = 0
    for name, parameter in module.named_parameters():
        live = parameter.grad != 0
        new = masks[name] & live.any(-1, keepdim=True) if name in tables else masks[name]
        hit, total = hit + int((live & new).sum()), total + int(new.sum())
    return round(hit / total, 4)


def block_parameters(size: Sizes, family: str) -> int:
    """Weights of the matrices in the blocks: no embedding, head, gain or bias."""
    attention = size.hidden * size.head_dim * 2 * (size.heads + size.kv_heads)
    return size.layers * (attention + (2 if family == "gpt" else 3) * size.hidden * size.ffn)


def train_source(family: str, seed: int, scale: Scale, folder: Path, data: Data) -> dict:
    """The small model, to the end of its schedule, as an ONNX file."""
    model = create(family, scale.sizes(family), seed)
    curve, _ = train(model, data, scale, scale.source_steps, scale.peak, seed, {})
    export(model.eval(), folder / f"{family}-{seed}.onnx", EXPORTER, OPSET)
    return {"family": family, "seed": seed, "loss": curve[-1][1]}


def carry_out(run: Run, scale: Scale, folder: Path, data: Data) -> dict:
    """One run from its start to its curve."""
    began = time.perf_counter()
    source, place = folder / f"{run.family}-{run.seed}.onnx", folder / uuid4().hex  # the same source for several runs at a time
    path = place.with_suffix(".onnx")
    certificate = None
    if run.start == "scratch":
        export(create(run.family, scale.sizes(run.family, **run.growth), run.seed).eval(), path, EXPORTER, OPSET)
    elif run.start == "source":
        path = source
    else:
        plan = onnxgrow.load(source).plan(seed=run.seed, **run.growth)
        plan.write(path, validate=False)
        certificate = plan.certificate.kind
    module, masks = to_torch(path, place)
    masks = masks if run.start == "grown" else {}
    curve, live = train(module.to(data[0].device), data, scale, run.steps, scale.peak * run.rate, 1000 + run.seed, masks)
    return asdict(run) | {"certificate": certificate, "live": live, "seconds": round(time.perf_counter() - began, 1), "curve": curve}
