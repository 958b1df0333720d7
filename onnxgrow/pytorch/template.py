"""The file that a program becomes: its classes between a head that loads and a tail that groups parameters."""

from __future__ import annotations

from importlib.resources import files
from string import Template

from .. import __version__
from .program import Program

SHIFTED = """    loss = F.cross_entropy(predicted[:, :-1].flatten(0, 1), labels[:, 1:].flatten())"""
ALIGNED = """    if labels.is_floating_point():
        loss = F.mse_loss(predicted, labels)
    else:
        loss = F.cross_entropy(predicted.flatten(0, -2), labels.flatten())"""


def model_text(program: Program, causal: bool) -> str:
    """The text of model.py.

    Args:
        causal: each position sees only those before it, so that the label of a position is the next word.
    """
    fields = "\n".join(f"    {name}: {'list[int]' if isinstance(v, list) else 'int'}" for name, v in program.config.items())
    words = "the label of a position is the word itself: they are shifted here, -100 is left out" if causal else \
        "whole numbers are classes (-100 is left out), others are targets"
    values = {
        "title": f"{program.main}: {program.model.path.stem} as PyTorch modules.", "version": __version__, "source": program.model.path.name,
        "call": ", ".join(f"{a}={a}" for a in list(program.inputs)[:3]) + (", ..." if len(program.inputs) > 3 else ""),
        "first": program.outputs[0], "first_shape": "", "fields": fields or "    pass", "loss": SHIFTED if causal else ALIGNED, "loss_words": words,
        "classes": program.classes, "main": program.main, "groups": "",
    }  # fmt: skip
    text = Template(files(__package__).joinpath("templates").joinpath("model.py.txt").read_text()).substitute(values)
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n")) + "\n"


def train_text(program: Program, causal: bool) -> str:
    return ""
