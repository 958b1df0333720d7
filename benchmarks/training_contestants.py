"""Who takes part in `benchmarks/training.py`: the native module of transformers, ours, and what other converters make of the same ONNX files."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import itertools
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onnxgrow
from benchmarks.native import Sizes, network
from onnxgrow.pytorch import export, load_folder
from tests import zoo
from tests.zoo_models import SPECS, FirstOutput

EXPORTS = {"dynamo": ("dynamo", 18), "torchscript": ("torchscript", 17), "torchscript, opset 14": ("torchscript", 14)}
STEPS, TOLERANCE = 5, 1e-5  # how far losses must agree before anything is timed


@dataclass(frozen=True)
class Scale:
    """How large the models and their data are."""

    sizes: Sizes = Sizes(layers=4, hidden=256, heads=4, ffn=1024)
    vocab: int = 1024
    batch: int = 4
    length: int = 64


@dataclass(frozen=True)
class Batch:
    """Words, which of them count, and what is to be said at each."""

    ids: Tensor  # [batch, length]
    mask: Tensor  # [batch, length]
    labels: Tensor  # [batch, length]


class DiffersError(Exception):
    """A module that computes something else than the native one, or cannot be trained as it is."""


class Contestant:
    """A module in training with an optimizer of its own; `lines` says how much code it is."""

    def __init__(self, module: nn.Module, lines: str = "", compiled: bool = False):
        self.lines, self.module = lines, module.train()
        self.call = torch.compile(module) if compiled else module
        self.start = {name: fingerprint(p) for name, p in module.named_parameters()}
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3) if self.start else None
        self.reached: set[str] = set()  # parameters that a gradient came to

    def step(self, batch: Batch) -> float:
        """Everything that is timed."""
        logits = first(self.call(batch.ids, batch.mask))
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def losses(self, batch: Batch) -> list[float]:
        """Of the first steps."""
        if not self.optimizer:
            raise DiffersError("all its weights are buffers: nothing to train")
        hooks = [p.register_hook(lambda _, name=name: self.reached.add(name)) for name, p in self.module.named_parameters() if p.requires_grad]
        out = [self.step(batch) for _ in range(STEPS)]
        for hook in hooks:
            hook.remove()
        return out


def first(outputs) -> Tensor:
    """A module's first output, however it returns it."""
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    return outputs


def fingerprint(tensor: Tensor) -> tuple:
    """Tells parameters with random values apart, also when one is transposed."""
    return tensor.numel(), tensor.min().item(), tensor.max().item()


# --- models and data -------------------------------------------------------------------------------------------------


def specification(name: str, scale: Scale) -> zoo.Spec:
    """A model of the zoo in other sizes, without dropout: an export in evaluation mode holds none."""
    more = dict(vocab_size=scale.vocab, max_position_embeddings=scale.length, n_positions=scale.length)

    def make(attn: str) -> nn.Module:
        module = FirstOutput(network(name, attn, scale.sizes, more), ("input_ids", "attention_mask"))
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        return module

    return replace(SPECS[name], make=make)


def data(scale: Scale, padded: bool) -> Batch:
    """The same for all; padded rows get shorter one by one."""
    generator = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(scale.vocab, (scale.batch, scale.length), generator=generator) for _ in range(2))
    ends = scale.length - torch.arange(scale.batch)[:, None] * (scale.length // (2 * scale.batch)) * padded
    return Batch(ids, (torch.arange(scale.length) < ends).long(), labels)


def files(name: str, scale: Scale, exports: list[str], folder: Path) -> dict[str, Path]:
    """The model as ONNX files."""
    out = {}
    for label in exports:
        exporter, opset = EXPORTS[label]
        out[label] = folder / f"{exporter}-{opset}.onnx"
        zoo.write(specification(name, scale), out[label], exporter, "sdpa", opset, False, 0)
    return out


# --- converters ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def some_torchvision() -> Iterator[None]:
    """An empty torchvision where the real one does not import: converters want it for operators that no transformer has."""
    names = () if imports("torchvision") else ("torchvision", "torchvision.ops", "torchvision.io")
    sys.modules.update({name: Empty(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def imports(name: str) -> bool:
    """Is a package there, and made for this torch?"""
    try:
        return bool(importlib.import_module(name))
    except Exception:  # a torchvision for CUDA raises whatever it misses
        return False


class Empty(types.ModuleType):
    """A module, or package, in which every name can be looked up."""

    __path__ = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def ours(path: Path) -> tuple[nn.Module, str]:
    """A new module from the folder that is exported once, and the lines of its code."""
    folder = path.with_suffix("")
    if not folder.exists():
        export(onnxgrow.load(path), folder)
    return load_folder(folder), f"{(folder / 'model.py').read_text().count(chr(10))} lines"


def by_onnx2torch(path: Path) -> tuple[nn.Module, str]:
    import onnx2torch

    module = onnx2torch.convert(str(path))
    return module, f"{module.code.count(chr(10))} lines (fx)"


def by_onnx2fx(path: Path) -> tuple[nn.Module, str]:
    import onnx2fx

    module = onnx2fx.make_trainable(onnx2fx.convert(str(path)))
    return module, f"{module.code.count(chr(10))} lines (fx)"


def by_onnx2pytorch(path: Path) -> tuple[nn.Module, str]:
    import onnx2pytorch

    proto = onnx.load(path)
    return onnx2pytorch.ConvertModel(proto), f"{len(proto.graph.node)} nodes"


Converter = Callable[[Path], tuple[nn.Module, str]]
OTHERS: dict[str, Converter] = {"onnx2torch": by_onnx2torch, "onnx2pytorch": by_onnx2pytorch, "onnx2fx": by_onnx2fx}


# --- the field -------------------------------------------------------------------------------------------------------


def field(native: nn.Module, paths: dict[str, Path], compiled: bool) -> dict[str, Contestant]:
    """The native module twice, for the noise, and ours from each export."""
    out = {name: Contestant(copy.deepcopy(native), compiled=compiled) for name in ("native", "native again")}
    return out | {f"onnxgrow, {label}": Contestant(*ours(path), compiled=compiled) for label, path in paths.items() if "opset" not in label}


def others(native: list[float], paths: dict[str, Path], batch: Batch) -> Iterator[tuple[str, Contestant | None, list[float], str]]:
    """(name, contestant, its losses, why it does not take part): what other converters make of the exports."""
    for converter, (label, path) in itertools.product(OTHERS, paths.items()):
        if not importlib.util.find_spec(converter) or ("opset" in label and converter != "onnx2torch"):
            continue  # older operators are only tried where the newer ones have no converter
        name = f"{converter}, {label}"
        try:
            with some_torchvision(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contestant = Contestant(*OTHERS[converter](path))
                losses = contestant.losses(batch)
            must_follow(losses, native, name, steps=1)  # what it trains is another column
            yield name, contestant, losses, ""
        except Exception as error:  # whatever a converter raises is one line of the table
            yield name, None, [], said(error)


def must_follow(losses: list[float], native: list[float], name: str, steps: int = STEPS) -> None:
    """Refuses what computes something else, or trains something else."""
    for step, (got, want) in enumerate(itertools.islice(zip(losses, native, strict=True), steps)):
        if not abs(got - want) <= TOLERANCE * abs(want):
            raise DiffersError(f"{name}: the loss at step {step} is {got:.6f}, that of the native module {want:.6f}")


def trained(native: Contestant, other: Contestant) -> str:
    """Which part of the native parameters a gradient reaches, and what else is trained."""
    size = lambda prints: sum(entry[0] * count for entry, count in prints.items())  # noqa: E731
    wanted, found = Counter(native.start.values()), Counter(other.start[name] for name in other.reached)
    missing, more = size(wanted - found), size(found - wanted)
    return ("all" if not missing else f"{1 - missing / size(wanted):.1%}") + (f" and {more:,} others" if more else "")


def said(error: BaseException) -> str:
    """An error as a cell of a table."""
    name = "" if isinstance(error, DiffersError) else f"{type(error).__name__}: "
    return (name + " ".join(str(error).split())[:110]).replace("|", "/")
