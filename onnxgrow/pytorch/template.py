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

OFFSET = 2  # positions that some families never use
OPTION = """
    parser.add_argument("--text", type=Path, metavar="FILE",
                        help="train on this file instead: each byte is one id, and the last tenth is held out")"""
CHECK = """\
    if args.text and not args.text.is_file():
        parser.error(f"--text: there is no file {args.text}")
"""
READ = """
    train_text, held_text = read(args.text)"""


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
    """The text of train.py. `causal` as in `model_text`, so that its labels are what the loss there takes."""
    batch, length, why = _size(program, "batch", 8)[0], *_size(program, "length", 64)
    lines, words = _batch_lines(program, causal)
    wordy = {"functools": "import functools\n", "sysconfig": "import sysconfig\n", "words": _template("words.py.txt", {}), "option": OPTION, "held": ", held_text", "train": ", train_text",
             "take": ", data: torch.Tensor | None = None", "read": READ, "check": CHECK,
             "data": "The data here only shows the way: Python's own sources, byte by byte. `--text FILE` takes your own; for a tokenizer let\n"
                     "`read` return its ids."}  # fmt: skip
    wordless = dict.fromkeys(wordy, "") | {"data": "The data here only shows the way: noise. Put yours into `batch`."}
    values = {"main": program.main, "batch": batch, "length": length, "why": why, "lines": "\n".join(f"    {x}" for x in lines),
              "source": program.model.path.name, **(wordy if words else wordless)}  # fmt: skip
    return _template("train.py.txt", values)


def _template(name: str, values: dict) -> str:
    return Template(files(__package__).joinpath("templates").joinpath(name).read_text()).substitute(values)


def _size(program: Program, kind: str, wanted: int) -> tuple[int, str]:
    """A batch or length for the example, and why: what was exported where that is fixed, else what is wanted as far as positions reach."""
    s = program.model.roles.structure
    axis = 0 if kind == "batch" else 1
    for value in s.graph.inputs:
        dims = value.type.tensor_type.shape.dim
        if len(dims) > axis and dims[axis].HasField("dim_value") and (axis == 0 or len(dims) == 2):
            return dims[axis].dim_value, "the length that the ONNX file was exported with: it takes no other"
    positions = program.model.roles.size("positions")
    if positions and 4 < positions < wanted + OFFSET:
        return positions - OFFSET, f"the model has {positions} positions, and some families (RoBERTa) leave out the first {OFFSET}"
    return wanted, f"up to {positions - OFFSET} fit" if positions else "words in a window; any length will do"


def _batch_lines(program: Program, causal: bool) -> tuple[list[str], list[str]]:
    """A batch for every input: windows of a text for words, ones for masks, an empty cache, noise for pictures; and labels that can be learnt.

    Returns:
        The lines of `batch`, and the inputs that are words.
    """
    model = program.model
    s, roles, values = model.roles.structure, model.roles, {v.name: v for v in model.roles.structure.graph.inputs}
    kinds = {name: _kind(program, values[name]) for name in program.inputs.values()}
    words = [name for name, kind in kinds.items() if kind == "words"]
    labels, note = _labels(program, causal, words)
    ahead = labels == "ids[:, 1:]"  # one word more than the model is fed
    lines, entries = [], []
    for argument, name in program.inputs.items():
        value, shape, kind = values[name], s.walk.shapes[name], kinds[name]
        if kind == "mask":
            entries.append((argument, f"torch.{'zeros' if is_additive(s, value) else 'ones'}({_dims(value, shape)}, dtype=torch.{DTYPES[kind_of(value)]})"))
        elif kind == "cache":
            past = ["0" if i == 2 else n for i, n in enumerate(_dims(value, shape).split(", "))]
            entries.append((argument, f"torch.zeros({', '.join(past)})"))
        elif kind == "noise":
            entries.append((argument, f"torch.randn({_dims(value, shape)}, generator=generator)"))
        elif kind == "positions":
            entries.append((argument, "torch.arange(LENGTH).expand(BATCH, LENGTH)"))
        else:
            rows = (index_range(s, name) or (roles.size("vocab") or 2, None))[0]
            if not lines:
                drawn = "LENGTH + 1" if ahead else "LENGTH"
                lines = ["data = read()[0] if data is None else data", f"starts = torch.randint(len(data) - {drawn} + 1, (BATCH, 1), generator=generator)",
                         f"ids = data[starts + torch.arange({drawn})] % {rows}  # [BATCH, {drawn}]"]  # fmt: skip
            fed = "ids[:, :-1]" if ahead else "ids"
            entries.append((argument, fed if len(shape) == 2 and rows > 2 else f"torch.zeros({_dims(value, shape)}, dtype=torch.int64)"))
    return [*lines, "return {", *(f'    "{a}": {text},' for a, text in entries), f'    "labels": {labels},{note}', "}"], words


def _kind(program: Program, value) -> str:
    """What an input of the example is filled with."""
    s = program.model.roles.structure
    if is_mask(s, value):
        return "mask"
    if is_cache(s, value):
        return "cache"
    if kind_of(value) in FLOATS:
        return "noise"
    return "positions" if is_position(s, program.model.roles, value) else "words"


def _labels(program: Program, causal: bool, words: list[str]) -> tuple[str, str]:
    """The labels that `with_loss` takes, as code, and a comment. Where the loss shifts (`causal`) they are the ids, whatever the shapes say."""
    s, roles = program.model.roles.structure, program.model.roles
    if causal:
        return "ids", "  # the same ids: with_loss in model.py compares each position with the next word"
    out, lengths = s.walk.shapes[program.outputs[0]], [s.walk.shapes[name][1] for name in words if len(s.walk.shapes[name]) == 2]
    varies = len(out) == 3 and s.runtime[program.outputs[0]][1]
    if words and "vocab" in roles.roles and len(out) == 3 and out[-1] == roles.size("vocab") and (varies or out[1] in lengths):
        return "ids[:, 1:]", "  # the next word, shifted here: with_loss compares position by position"
    if words and len(out) == 2:
        return f"ids[:, 0] % {out[-1]}", ""
    if len(out) == 2:
        return f"torch.randint({out[-1]}, (BATCH,), generator=generator)", ""
    return f"torch.zeros(BATCH, {'LENGTH, ' if varies else ''}{', '.join(map(str, out[2 if varies else 1 :]))})", ""


def _dims(value, shape: tuple[int, ...]) -> str:
    """Sizes of an input: fixed ones as they are, the first and the others that vary as BATCH and LENGTH."""
    dims = value.type.tensor_type.shape.dim
    return ", ".join(str(n) if d.HasField("dim_value") else "BATCH" if i == 0 else "LENGTH" for i, (n, d) in enumerate(zip(shape, dims)))
