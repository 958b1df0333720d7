"""Do new parameters learn? The grown model trains for a few steps in PyTorch, towards random targets, and each new entry that receives a gradient counts."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..errors import UsageError
from ..feeds import cases
from ..model import Model
from ..regions import GROWN

STEPS, RATE = 3, 1e-2  # as many steps as the plan follows


def measure(grown: Model) -> dict:
    """Train a grown model and count.

    Returns:
        steps; new: float entries that are new, by the record in the file; live: those with a gradient in any step; silent: parameters with
        entries that received none, as {name, new, silent}, the largest first.
    Raises:
        UsageError: PyTorch is missing, or the file does not say what is new.
        GraphError: an operator has no PyTorch form.
    """
    try:
        import torch
    except ImportError:
        raise UsageError("--gradients trains the model in PyTorch, which is not installed", hint="pip install torch") from None
    from ..pytorch import export, load_folder
    from ..pytorch.regions import region_entries

    with TemporaryDirectory(prefix="onnxgrow-") as folder:
        done = export(grown, Path(folder) / "pt", check=False)
        entries = region_entries(done.program)
        if entries is None:
            raise UsageError("--gradients counts new entries, and the grown file does not record which these are", hint="grow the model with onnxgrow expand")
        module = load_folder(Path(folder) / "pt")
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    new = {name: _mask(entries, name, tuple(p.shape)) for name, p in parameters.items() if name in entries["parameters"]}
    live = {name: np.zeros(mask.shape, bool) for name, mask in new.items()}
    step = _Step(grown, done.program, module)
    optimizer = torch.optim.Adam(parameters.values(), RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        step.loss().backward()
        for name, seen in live.items():
            if parameters[name].grad is not None:
                seen |= (parameters[name].grad != 0).numpy()
        optimizer.step()
    silent = [{"name": name, "new": int(mask.sum()), "silent": int((mask & ~live[name]).sum())} for name, mask in new.items()]
    total, quiet = sum(s["new"] for s in silent), sum(s["silent"] for s in silent)
    return {"steps": STEPS, "new": total, "live": total - quiet, "silent": sorted((s for s in silent if s["silent"]), key=lambda s: (-s["silent"], s["name"]))}


class _Step:
    """The loss of one step: how far all float outputs but caches are from random targets, which stay the same ones."""

    def __init__(self, grown: Model, program, module):
        import torch

        from ..pytorch.check import to_torch

        self.module, self.targets = module, {}
        self.random = torch.Generator().manual_seed(0)
        outside = grown.roles.caches(program.outputs)
        self.judged = [name for name in program.outputs if name not in outside]
        kind = next(module.parameters()).dtype
        self.fed = []
        for case in cases(grown.roles.structure, grown.roles, 0):
            arrays = {a: to_torch(case.feeds[name]) for a, name in program.inputs.items()}
            self.fed.append({a: x.to(kind) if x.is_floating_point() else x for a, x in arrays.items()})

    def loss(self):
        """A tensor of one number."""
        import torch

        total = 0.0
        for k, arrays in enumerate(self.fed):
            outputs = self.module(**arrays)
            for name in self.judged:
                x = outputs[name]
                if x.is_floating_point() and x.requires_grad:
                    if (k, name) not in self.targets:
                        self.targets[k, name] = torch.randn(x.shape, generator=self.random).to(x.dtype)
                    total = total + torch.nn.functional.mse_loss(x, self.targets[k, name])
        return total


def _mask(entries: dict, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """bool [*shape], True where a parameter is new."""
    entry = entries["parameters"][name]
    old = np.full(shape, entry != GROWN)
    for axis, k in enumerate([] if entry == GROWN else entry):
        if k is not None:
            line = np.zeros(shape[axis], bool)
            for start, stop in entries["ranges"][k]:
                line[start:stop] = True
            old &= line.reshape([-1 if axis == j else 1 for j in range(len(shape))])
    return ~old
