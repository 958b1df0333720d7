"""The file that a program becomes: its classes between a head that loads and a tail that groups parameters."""

from __future__ import annotations

from importlib.resources import files
from string import Template

from onnx import TensorProto

from .. import __version__
from ..inputs import FLOATS, index_range, is_additive, is_cache, is_mask, is_position, kind_of
from .forms import DTYPES
from .program import Program

SHIFTED = """    loss = F.cross_entropy(predicted[:, :-1].flatten(0, 1), labels[:, 1:].flatten())"""
ALIGNED = """    if labels.is_floating_point():
        loss = F.mse_loss(predicted, labels)
    else:
        loss = F.cross_entropy(predicted.flatten(0, -2), labels.flatten())"""
WIDER = """
    for parameter in model.parameters():
        parameter.data = parameter.data.double()  # as in the file"""


def model_text(program: Program, causal: bool) -> str:
    """The text of model.py.

    Args:
        causal: each position sees only those before it, so that the label of a position is the next word.
    """
    fields = "\n".join(f"    {name}: {'list[int]' if isinstance(v, list) else type(v).__name__}" for name, v in program.config.items())
    words = "the label of a position is the word itself: they are shifted here, -100 is left out" if causal else \
        "whole numbers are classes (-100 is left out), others are targets"
    values = {
        "title": f"{program.main}: {program.model.path.stem} as PyTorch modules.", "version": __version__, "source": program.model.path.name,
        "call": ", ".join(f"{a}={a}" for a in list(program.inputs)[:3]) + (", ..." if len(program.inputs) > 3 else ""),
        "first": program.outputs[0], "fields": fields or "    pass", "loss": SHIFTED if causal else ALIGNED, "loss_words": words,
        "classes": program.classes, "main": program.main, "ties": _template("ties.py.txt", {}) if program.ties else "", "groups": _template("groups.py.txt", {}),
        "wider": WIDER if _is_double(program) else "",
    }  # fmt: skip
    text = _template("model.py.txt", values)
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n")) + "\n"


def _is_double(program: Program) -> bool:
    graph = program.model.roles.structure.graph
    return any(ref.tensor is not None and graph.weight_type(ref.tensor) == TensorProto.DOUBLE for ref in program.parameters.values())


def train_text(program: Program, causal: bool) -> str:
    """The text of train.py."""
    batch, length = _size(program, "batch", 8), _size(program, "length", 64)
    values = {"main": program.main, "batch": batch, "length": length, "lines": "\n".join(f"    {x}" for x in _batch_lines(program, causal)),
              "source": program.model.path.name}  # fmt: skip
    return _template("train.py.txt", values)


def _template(name: str, values: dict) -> str:
    return Template(files(__package__).joinpath("templates").joinpath(name).read_text()).substitute(values)


def _size(program: Program, kind: str, wanted: int) -> int:
    """A batch or length for the example: what was exported where that is fixed, else what is wanted as far as positions reach."""
    s = program.model.roles.structure
    axis = 0 if kind == "batch" else 1
    for value in s.graph.inputs:
        dims = value.type.tensor_type.shape.dim
        if len(dims) > axis and dims[axis].HasField("dim_value") and (axis == 0 or len(dims) == 2):
            return dims[axis].dim_value
    positions = program.model.roles.size("positions")
    return min(wanted, positions - 2) if kind == "length" and positions and positions > 4 else wanted


def _batch_lines(program: Program, causal: bool) -> list[str]:
    """A batch for every input: windows of a text for words, ones for masks, an empty cache, noise for pictures; and labels that can be learnt."""
    model = program.model
    s, roles, values = model.roles.structure, model.roles, {v.name: v for v in model.roles.structure.graph.inputs}
    lines, entries, words = [], [], []
    for argument, name in program.inputs.items():
        value, shape = values[name], s.walk.shapes[name]
        if is_mask(s, value):
            kind = DTYPES[kind_of(value)]
            entries.append((argument, f"torch.{'zeros' if is_additive(s, value) else 'ones'}({_dims(value, shape)}, dtype=torch.{kind})"))
        elif is_cache(s, value):
            past = ["0" if i == 2 else n for i, n in enumerate(_dims(value, shape).split(", "))]
            entries.append((argument, f"torch.zeros({', '.join(past)})"))
        elif kind_of(value) in FLOATS:
            entries.append((argument, f"torch.randn({_dims(value, shape)}, generator=generator)"))
        elif is_position(s, roles, value):
            entries.append((argument, "torch.arange(LENGTH).expand(BATCH, LENGTH)"))
        else:
            rows = (index_range(s, name) or (roles.size("vocab") or 2, None))[0]
            if not words:
                lines += ["data = text()", "starts = torch.randint(len(data) - LENGTH - 1, (BATCH, 1), generator=generator)",
                          f"ids = data[starts + torch.arange(LENGTH + 1)] % {rows}  # [BATCH, LENGTH + 1]"]  # fmt: skip
            entries.append((argument, "ids[:, :-1]" if len(shape) == 2 and rows > 2 else f"torch.zeros({_dims(value, shape)}, dtype=torch.int64)"))
            words.append(argument)
    out = s.walk.shapes[program.outputs[0]]
    sequence = len(out) == 3 and s.runtime[program.outputs[0]][1]
    if words and sequence and "vocab" in roles.roles and out[-1] == roles.size("vocab"):
        labels = "ids[:, :-1]" if causal else "ids[:, 1:]"
    elif words and len(out) == 2:
        labels = f"ids[:, 0] % {out[-1]}"
    elif len(out) == 2:
        labels = f"torch.randint({out[-1]}, (BATCH,), generator=generator)"
    else:
        labels = f"torch.zeros(BATCH, {'LENGTH, ' if sequence else ''}{', '.join(map(str, out[2 if sequence else 1 :]))})"
    return [*lines, "return {", *(f'    "{a}": {text},' for a, text in entries), f'    "labels": {labels},', "}"]


def _dims(value, shape: tuple[int, ...]) -> str:
    """Sizes of an input: fixed ones as they are, the first and the others that vary as BATCH and LENGTH."""
    dims = value.type.tensor_type.shape.dim
    return ", ".join(str(n) if d.HasField("dim_value") else "BATCH" if i == 0 else "LENGTH" for i, (n, d) in enumerate(zip(shape, dims)))
