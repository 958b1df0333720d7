"""The commands that lead to PyTorch and back: export, import-weights, and what `expand --torch` adds."""

from __future__ import annotations

from pathlib import Path

import click

from .commands import main
from .console import boundary, emit, finish, model_argument, printable, rules_option
from .errors import UsageError
from .terminal.progress import Bars, bars, busy

FORMATS = ("torch", "hf")


@main.command()
@model_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make; default: MODEL_pt or MODEL_hf, beside MODEL.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="torch", show_default=True,
              help="torch: readable modules that need only torch and safetensors; hf: a folder for transformers' AutoModel.")
@click.option("--like", type=click.Path(path_type=Path), metavar="FOLDER", help="With --format hf: start from this folder's config, and carry its tokenizer over.")
@click.option("--no-validate", is_flag=True, help="Do not run the code against ONNX Runtime (with --format torch).")
@click.option("--force", is_flag=True, help="Replace a folder that an earlier export made (with --format torch).")
@rules_option
@boundary
def export(model: Path, output: Path | None, format_: str, like: Path | None, no_validate: bool, force: bool, rules, as_json: bool) -> int:
    """Write MODEL as PyTorch code, or for transformers.

    The folder holds model.py, config.json, model.safetensors and train.py; the code has run beside ONNX Runtime before the folder gets its name.

    Example: onnxgrow export model.onnx -o model_pt
    """
    from .model import load

    if like and format_ != "hf":
        raise UsageError("--like gives a Hugging Face folder to start from", hint="add --format hf, or leave --like out")
    if format_ == "hf" and (no_validate or force):
        raise UsageError(f"--{'no-validate' if no_validate else 'force'} is for --format torch: a folder for transformers is always new, and checked",
                         hint="leave it out")
    target = output or model.with_name(f"{model.stem}_{'hf' if format_ == 'hf' else 'pt'}")
    with busy("reading the graph", not as_json):
        opened = load(model, rules)
    if format_ == "hf":
        with busy("writing weights and config, and running them beside ONNX Runtime", not as_json):
            document, lines = write_hugging(opened, target, like)
    else:
        with bars(not as_json) as shown:
            document, lines = write_torch(opened, target, not no_validate, force, shown)
    emit({"command": "export", "model": str(model), **document}) if as_json else finish(lines, target)
    return 0


def write_torch(model, target: Path, check: bool, force: bool, shown: Bars) -> tuple[dict, list[str]]:
    """Write the folder; what to say of it, as a document and for people."""
    from .pytorch import export

    done = export(model, target, check=check, overwrite=force, progress=shown.writing, checked=shown.checking)
    document = {"format": "torch", "output": str(target), "class": done.program.main, "parameters": done.parameters, "lines": done.lines,
                "agreement": done.agreement and done.agreement.to_json()}
    said = f"equal to ONNX Runtime in {done.agreement.cases} cases, largest relative difference {done.agreement.max_rel:.1e}" if done.agreement else \
        "not run against ONNX Runtime (--no-validate)"
    return document, [f"{done.program.main}: {done.parameters:,} parameters, {done.lines} lines", *left_out(done), said, f"wrote {target}",
                      f"go on training with: python {target / 'train.py'}"]


def left_out(done) -> list[str]:
    """Why there are fewer parameters than in the graph, where that adds up: buffers are not trained, tied copies are one parameter."""
    from math import prod

    from .architecture import is_parameter

    program, graph = done.program, done.program.model.roles.structure.graph
    fixed = {n: prod(graph.weight_shape(t)) for n, t in program.buffers.items() if is_parameter(graph.weight_type(t), graph.weight_shape(t))}
    copied = {graph.weights[copy]: prod(graph.weight_shape(copy)) for copy, (whole, _) in program.copies.items()
              if graph.weights[copy] != graph.weights[whole]}
    reasons = [f"{sum(fixed.values()):,} in buffers, which are not trained ({', '.join(list(fixed)[:3])}{', ...' * (len(fixed) > 3)})"] * bool(fixed)
    reasons += [f"{sum(copied.values()):,} in copies of a tied weight, which is one here"] * bool(copied)
    known = sum(fixed.values()) + sum(copied.values())
    if not known or done.parameters + known != program.model.parameters:
        return []
    return [f"the graph has {program.model.parameters:,}: {', '.join(reasons)}"]


def write_hugging(model, target: Path, like: Path | None) -> tuple[dict, list[str]]:
    """Write the folder for transformers; what to say of it, as a document and for people."""
    from .pytorch import parameters_of
    from .pytorch.hugging import write_hf

    done = write_hf(model, parameters_of(model), target, like)
    return {"format": "hf", "output": str(target), "report": done.to_json()}, done.lines()


@main.command("import-weights")
@model_argument
@click.argument("trained", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Target; default: MODEL-trained.onnx beside MODEL.")
@click.option("--no-validate", is_flag=True, help="Do not run the result against the PyTorch code.")
@click.option("--force", is_flag=True, help="Replace an existing target.")
@rules_option
@boundary
def import_weights(model: Path, trained: Path, output: Path | None, no_validate: bool, force: bool, rules, as_json: bool) -> int:
    """Bring trained weights back into a copy of MODEL.

    TRAINED is a .safetensors file of the model that `onnxgrow export` wrote; the result has run beside the PyTorch code before it gets its name.

    Example: onnxgrow import-weights model.onnx model_pt/trained.safetensors
    """
    from .model import load
    from .pytorch import import_weights

    target = output or model.with_name(f"{model.stem}-trained.onnx")
    notes: list[str] = []
    with busy("bringing the weights back, and running both", not as_json):
        found = import_weights(load(model, rules), trained, target, check=not no_validate, overwrite=force, noticed=notes.append)
    for note in notes * (not as_json):
        click.echo(f"warning: {printable(note)}", err=True)
    if as_json:
        emit({"command": "import-weights", "model": str(model), "weights": str(trained), "output": str(target), "agreement": found and found.to_json()})
    else:
        said = f"equal to the trained module in {found.cases} cases, largest relative difference {found.max_rel:.1e}" if found else "not validated (--no-validate)"
        finish([said, f"wrote {target}"], target)
    return 0
