"""The second half of `onnxgrow demo`: the grown model goes on training in PyTorch, on a kind of text that its source never saw, and comes back."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .errors import GraphError
from .model import load

BATCH, LENGTH, RATE = 8, 64, 1e-3
EXPORT = """
5. To PyTorch: modules that a person could have written, checked against ONNX
   Runtime.

   $ onnxgrow export {grown} -o grown_pt
"""
TRAIN = """
6. Go on training. The text is of a kind that the model has never seen:
   Python's tables of character encodings (its own training left them out).
   Loss on windows that are held out, in nats per byte; the source stays as it
   is.
"""
BACK = """
7. Back to ONNX, and compared with the trained module.

   $ onnxgrow import-weights {grown} grown_pt/trained.safetensors -o trained.onnx
"""
NEEDS = """
To see it go on training as well: pip install 'onnxgrow[torch]'"""


@dataclass(frozen=True)
class Trained:
    """What came of it: losses by step, the source's loss on the same text, and how far the ONNX file is from the trained module."""

    losses: dict[int, float]
    source: float
    agreement: float


def has_torch() -> bool:
    return find_spec("torch") is not None


def go_on(source: Path, grown: Path, folder: Path, steps: int, say: Callable[[list[str]], None]) -> Trained:
    """Export, train, import, compare; files go into `folder`."""
    from safetensors.torch import save_model

    from .pytorch import export, import_weights, load_folder

    names, model = {"grown": grown.name}, load(grown)
    say([EXPORT.format(**names)])
    done = export(model, folder / "grown_pt")
    say([f"   {done.program.main}: {done.parameters:,} parameters, {done.lines} lines, largest relative difference {done.agreement.max_rel:.1e}",
         TRAIN.format(**names)])
    export(load(source), folder / "source_pt", check=False)
    train, held_out = texts()
    module, reference = load_folder(folder / "grown_pt"), loss_of(load_folder(folder / "source_pt"), held_out)
    say([f"   {'step':>6}  {'grown':>8}  {'source':>8}"])
    losses = {}
    for step, loss in training(module, train, held_out, steps):
        losses[step] = loss
        say([f"   {step:>6}  {loss:>8.4f}  {reference:>8.4f}"])
    save_model(module, folder / "grown_pt" / "trained.safetensors")
    say([BACK.format(**names)])
    found = import_weights(model, folder / "grown_pt" / "trained.safetensors", folder / "trained.onnx")
    say([f"   equal to the trained module: largest relative difference {found.max_rel:.1e}"])
    return Trained(losses, reference, found.max_rel)


def texts():
    """Bytes of Python's tables of encodings, to train on and held out (every eighth file), as int64 tensors."""
    import torch

    files = sorted((Path(sysconfig.get_path("stdlib")) / "encodings").glob("*.py"))
    if len(files) < 16:
        raise GraphError("this Python has no sources of its encodings to train on", hint="run the demo with a Python that has its standard library")
    parts = [b"".join(f.read_bytes() for i, f in enumerate(files) if (i % 8 == 7) is held) for held in (False, True)]
    return tuple(torch.frombuffer(bytearray(p), dtype=torch.uint8).long() for p in parts)


def training(module, train, held_out, steps: int) -> Iterator[tuple[int, float]]:
    """AdamW with a short warm-up; yields (step, held-out loss) five times."""
    import torch

    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters(), RATE, weight_decay=0.01)
    every = max(1, steps // 4)
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            yield step, loss_of(module, held_out)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 5)
        starts = torch.randint(len(train) - LENGTH, (BATCH, 1), generator=generator)
        ids = train[starts + torch.arange(LENGTH)]
        if step < steps:
            module.train()(input_ids=ids, labels=ids)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()


def loss_of(module, text) -> float:
    """Mean loss over 32 windows, spread evenly."""
    import torch

    starts = torch.linspace(0, len(text) - LENGTH, 32).long()[:, None]
    ids = text[starts + torch.arange(LENGTH)]
    with torch.no_grad():
        return module.eval()(input_ids=ids, labels=ids)["loss"].item()
