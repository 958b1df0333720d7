"""The command line: inspect, expand, validate, check-rules, demo; export and import-weights stand in torch_commands.py. Heavy imports happen inside the commands."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import click

from . import __version__
from .errors import OnnxgrowError, UsageError
from .request import BLOCK_INITS, DEPTH_METHODS, METHODS, VOCAB_INITS

SIZES = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions", "experts", "layers", "encoder_layers", "decoder_layers")


class Commands(click.Group):
    """Prints wrong usage as a document too, where one was asked for."""

    def invoke(self, context: click.Context):
        as_json = "--json" in context.args
        try:
            return super().invoke(context)
        except click.UsageError as problem:
            if as_json:
                emit_error("UsageError", problem.format_message(), hint=f"{problem.ctx.command_path} --help" if problem.ctx else None)
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxgrow")
def main() -> None:
    """Grow a trained transformer in ONNX form into a larger one that computes the same function.

    \b
    onnxgrow inspect  model.onnx                  what it is
    onnxgrow expand   model.onnx --hidden 1024    write model-h1024.onnx beside it
    onnxgrow validate model.onnx grown.onnx       the same function?
    onnxgrow export   grown.onnx -o grown_pt      PyTorch code, to go on training
    onnxgrow import-weights grown.onnx grown_pt/trained.safetensors
    """


def boundary(command):
    """Run a command; print its errors for people, or as a document with --json, and exit 1 (refused) or 2 (wrong usage)."""
    @functools.wraps(command)
    def run(*args, as_json: bool, **kwargs):
        try:
            code = command(*args, as_json=as_json, **kwargs)
        except OnnxgrowError as problem:
            if as_json:
                emit_error(type(problem).__name__, problem.what, problem.node, problem.axis, problem.hint)
            click.echo(f"error: {printable(str(problem))}", err=True)
            code = problem.exit_code
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            code = 1
        sys.exit(code or 0)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json.md) and nothing else on stdout.")(run)


def printable(text: str) -> str:
    """Text from a model file without terminal control characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def emit(document: dict) -> None:
    click.echo(json.dumps({"onnxgrow": __version__, **document}, indent=1))


def emit_error(kind: str, message: str, node: str | None = None, axis: int | None = None, hint: str | None = None) -> None:
    emit({"error": {"type": kind, "message": message, "node": node, "axis": axis, "hint": hint}})


def show(lines: list[str]) -> None:
    click.echo(printable("\n".join(lines)))


model_argument = click.argument("model", type=click.Path(path_type=Path))
rules_option = click.option("--rules", multiple=True, type=click.Path(), metavar="FILE",
                            help="Python file with rules for more operators. It is run: use only files you trust.")
inputs_option = click.option("--inputs", type=click.Path(path_type=Path), metavar="FILE.npz", help="Validate with these inputs, by name, instead of made ones.")
dequantize_option = click.option("--dequantize", is_flag=True, help="Take the float model that a quantized MODEL stands for (docs/types.md).")
provider_option = click.option("--provider", type=click.Choice(["cuda", "cpu"]), help="Where to validate; default: CUDA where there is a device.")


@main.command()
@model_argument
@rules_option
@dequantize_option
@boundary
def inspect(model: Path, rules, dequantize: bool, as_json: bool) -> int:
    """Say what MODEL is: layers, sizes, norm, and every dim that can grow.

    Example: onnxgrow inspect model.onnx
    """
    from .describe import architecture_lines
    from .model import load

    architecture = load(model, rules, dequantize).architecture
    if as_json:
        emit({"command": "inspect", "model": str(model), "architecture": architecture.to_json()})
    else:
        show(architecture_lines(architecture))
    return 0


def parse_set(items: tuple[str, ...]) -> dict[str, int]:
    out = {}
    for item in items:
        name, equals, size = item.rpartition("=")
        if not equals or not size.isdigit():
            raise UsageError(f"--set {item!r} is not NAME=SIZE", hint="for example: --set ffn=512 (names: onnxgrow inspect)")
        out[name] = int(size)
    return out


def plan_options(command):
    """Sizes and methods of a growth."""
    options = [
        click.option("--hidden", type=click.IntRange(1), help="Residual width. Alone, heads and ffn follow as in the family."),
        click.option("--heads", type=click.IntRange(1), help="Attention heads."),
        click.option("--kv-heads", type=click.IntRange(1), help="Key and value heads (grouped-query attention)."),
        click.option("--head-dim", type=click.IntRange(1), help="Size of a head."),
        click.option("--ffn", type=click.IntRange(1), help="Width of the feed-forward part."),
        click.option("--layers", type=click.IntRange(1), help="Number of layers, of every stack."),
        click.option("--encoder-layers", type=click.IntRange(1), help="Number of layers of the encoder."),
        click.option("--decoder-layers", type=click.IntRange(1), help="Number of layers of the decoder."),
        click.option("--vocab", type=click.IntRange(1), help="Words of the vocabulary."),
        click.option("--positions", type=click.IntRange(1), help="Longest sequence (position tables, masks, buffers)."),
        click.option("--experts", type=click.IntRange(1), help="Experts of a mixture of experts."),
        click.option("--only-hidden", is_flag=True, help="--hidden grows nothing else."),
        click.option("--set", "set_", multiple=True, metavar="NAME=SIZE", help="Any dim that inspect lists."),
        click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True,
                     help="auto: exact wherever the architecture allows; naive: plain padding, the function changes."),
        click.option("--depth-method", type=click.Choice(DEPTH_METHODS), default="identity", show_default=True,
                     help="identity: last linear maps of new blocks are zero; gate: a zero scalar on each branch; stack: plain copies, the function changes."),
        click.option("--placement", default="interleave", show_default=True, metavar="WHERE",
                     help="Where new blocks go: interleave, end, start, stack, or after:3,7 (layers counted from 0)."),
        click.option("--block-init", type=click.Choice(BLOCK_INITS), default="copy", show_default=True,
                     help="What new blocks start from: their neighbour, or noise."),
        click.option("--vocab-init", type=click.Choice(VOCAB_INITS), default="mean", show_default=True, help="What the rows of new words hold."),
        click.option("--pad-vocab-to", type=click.IntRange(1), metavar="N", help="Round the vocabulary up to a multiple of N."),
        click.option("--init-std", type=click.FloatRange(0), help="Deviation of new parts that nobody reads yet (default: that of the old tensor)."),
        click.option("--wake", type=click.FloatRange(0, min_open=True), metavar="STD", help="Noise for new parts that could never learn (near, not exact)."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random numbers."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@model_argument
@plan_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Target; default: MODEL-h1024.onnx and the like, beside MODEL.")
@click.option("--plan", "only_plan", is_flag=True, help="Print the whole growth and write nothing.")
@click.option("--no-validate", is_flag=True, help="Do not run source and result side by side.")
@click.option("--force", is_flag=True, help="Replace an existing target.")
@click.option("--torch", "torch_folder", type=click.Path(path_type=Path), metavar="FOLDER", help="Write the result as PyTorch code too (see export).")
@inputs_option
@provider_option
@rules_option
@dequantize_option
@boundary
def expand(model: Path, output, only_plan, no_validate, force, torch_folder, inputs, provider, rules, dequantize, set_, as_json, **request) -> int:
    """Grow MODEL and write the result, validated, under a new name.

    Example: onnxgrow expand model.onnx --hidden 1024 --ffn 4096 -o grown.onnx
    """
    from .describe import summary_lines
    from .model import load

    sizes = {n: request[n] for n in SIZES if request[n] is not None}
    if not sizes and not set_ and not request["pad_vocab_to"]:
        raise UsageError("no size asked for", hint="for example: --hidden 1024 (sizes today: onnxgrow inspect)")
    more = parse_set(set_)
    if request["only_hidden"] and request["hidden"] is None and not any(name.split(".")[-1] == "hidden" for name in more):
        raise UsageError("--only-hidden says what --hidden takes along, and there is no --hidden", hint="leave it out, or add --hidden SIZE")
    refuse_idle(request, more)
    if no_validate and (inputs or provider):
        raise UsageError("--no-validate leaves nothing to do for --inputs and --provider", hint="leave out one or the other")
    if torch_folder and only_plan:
        raise UsageError("--plan writes nothing, and --torch is a folder to write", hint="leave out one or the other")
    feeds = read_feeds(inputs)
    if torch_folder:
        from .pytorch.folder import check_target

        check_target(torch_folder, force)  # before the growth, which may take long
    plan = load(model, rules, dequantize).plan(set=more, **request)
    document = {"command": "expand", "model": str(model), "plan": plan.to_json()}
    if only_plan:
        emit(document) if as_json else show(plan.lines())
        return 0
    if not as_json:
        show([f"{n}: {old} -> {new}" for n, (old, new) in plan.sizes.items()] + summary_lines(plan))
    result = plan.write(output, validate=not no_validate, feeds=feeds, provider=provider, overwrite=force)
    document |= {"output": str(result.path), "validation": result.report.to_json() if result.report else None}
    lines = (result.report.lines(plan.certificate.kind) if result.report else ["not validated (--no-validate)"]) + [f"wrote {result.path}"]
    if torch_folder:
        from .torch_commands import write_torch

        document["torch"], more_lines = write_torch(load(result.path, rules), torch_folder, not no_validate, force)
        lines += more_lines
    emit(document) if as_json else show(lines)
    return 0


def refuse_idle(request: dict, more: dict[str, int]) -> None:
    """Options that say how something grows need that it grows."""
    layers = any(name.endswith("layers") for name in more) or any(request[n] is not None for n in ("layers", "encoder_layers", "decoder_layers"))
    idle = [n for n, usual in (("depth_method", "identity"), ("placement", "interleave"), ("block_init", "copy")) if request[n] != usual and not layers]
    words = request["vocab"] is not None or request["pad_vocab_to"] or "vocab" in more
    idle += ["vocab_init"] * (request["vocab_init"] != "mean" and not words)
    if "vocab_init" in idle:
        raise UsageError("--vocab-init says how new words start, and none are asked for", hint="leave it out, or add --vocab SIZE")
    if idle:
        option = "--" + idle[0].replace("_", "-")
        raise UsageError(f"{option} says how layers are added, and none are asked for", hint="leave it out, or add --layers NUMBER")


def read_feeds(path: Path | None):
    if path is None:
        return None
    import zipfile

    import numpy as np

    hint = "give a .npz file made by numpy.savez, one array per graph input"
    if path.is_file() and not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not a .npz file", hint=hint)
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as problem:
        raise UsageError(f"cannot read inputs from {path}: {problem}", hint=hint) from problem


@main.command()
@model_argument
@click.argument("grown", type=click.Path(path_type=Path))
@inputs_option
@provider_option
@rules_option
@dequantize_option
@boundary
def validate(model: Path, grown: Path, inputs, provider, rules, dequantize: bool, as_json: bool) -> int:
    """Run MODEL and GROWN side by side: do they compute the same function?

    Example: onnxgrow validate model.onnx model-h1024.onnx
    """
    from .model import load

    feeds = read_feeds(inputs)
    plan = load(model, rules, dequantize).plan_like(load(grown, rules))
    report = plan.compare(grown, feeds, provider)
    if as_json:
        emit({"command": "validate", "model": str(model), "grown": str(grown), "certificate": plan.certificate.kind, "validation": report.to_json()})
    else:
        show(report.lines(plan.certificate.kind))
    return 0 if report.equal else 1


@main.command("check-rules")
@click.argument("file", type=click.Path(path_type=Path))
@boundary
def check_rules(file: Path, as_json: bool) -> int:
    """Try every claim of the rules in FILE on the file's own examples. The file is run: use only files you trust.

    Example: onnxgrow check-rules acme.py
    """
    from .rulefile import check_file, show_findings

    found = check_file(file)
    if as_json:
        emit({"command": "check-rules", **found.to_json()})
    else:
        show_findings(found)
    return 0 if found.true else 1


@main.command()
@click.option("--keep", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the files in this folder.")
@click.option("--steps", type=click.IntRange(1), default=40, show_default=True, help="Steps of training in PyTorch.")
@boundary
def demo(keep: Path | None, steps: int, as_json: bool) -> int:
    """Inspect, grow, validate, export, train and bring back a small model that onnxgrow carries.

    Example: onnxgrow demo
    """
    from .demo import run

    return run(keep, steps, as_json)


from . import report_command, torch_commands  # noqa: E402, F401 (they enter themselves into `main`)
