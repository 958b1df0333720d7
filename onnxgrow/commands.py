"""The command line: inspect, expand, validate, check-rules, demo; export and import-weights stand in torch_commands.py. Heavy imports happen inside the commands."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from pathlib import Path

import click

from . import __version__
from .errors import OnnxgrowError, UsageError
from .growthfile import with_recipe
from .request import BLOCK_INITS, DEPTH_METHODS, METHODS, SIZES, VOCAB_INITS
from .terminal import mode
from .terminal.guess import complete_dim, did_you_mean


class Commands(click.Group):
    """Prints wrong usage as a document too, where one was asked for; knows what a mistyped command may have meant."""

    def resolve_command(self, context: click.Context, args: list[str]):
        if args and not args[0].startswith("-") and self.get_command(context, args[0]) is None and not context.resilient_parsing:
            meant = did_you_mean(args[0], self.list_commands(context)) or f"one of: {', '.join(self.list_commands(context))}"
            raise click.UsageError(f"no command {args[0]!r}; {meant}", context)
        return super().resolve_command(context, args)

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
    onnxgrow suggest  model.onnx --params 350M    sizes that make sense
    onnxgrow validate model.onnx grown.onnx       the same function?
    onnxgrow diff     model.onnx grown.onnx       what differs in the files?
    onnxgrow export   grown.onnx -o grown_pt      PyTorch code, to go on training
    onnxgrow import-weights grown.onnx grown_pt/trained.safetensors

    Each command explains itself: onnxgrow expand --help. Colours go with NO_COLOR=1; in a pipe everything is plain.
    """


def boundary(command):
    """Run a command; print its errors for people, or as a document with --json, and exit 1 (refused) or 2 (wrong usage).

    Gives it --json, and --quiet and --verbose, which `show` and `mode` know of.
    """
    @functools.wraps(command)
    def run(*args, as_json: bool, quiet: bool, verbose: bool, **kwargs):
        try:
            mode.set_volume(quiet, verbose)
            code = command(*args, as_json=as_json, **kwargs)
        except OnnxgrowError as problem:
            if as_json:
                emit_error(type(problem).__name__, problem.what, problem.node, problem.axis, problem.hint)
            click.echo("".join(traceback.format_tb(problem.__traceback__)) * verbose + f"{mode.red('error:')} {printable(str(problem))}", err=True)
            code = problem.exit_code
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was written", err=True)
            code = 1
        sys.exit(code or 0)
    for option in (click.option("-v", "--verbose", is_flag=True, help="Say more; with an error, where in the program it was raised."),
                   click.option("-q", "--quiet", is_flag=True, help="Print errors, and of all else only what a script needs."),
                   click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/json.md) and nothing else on stdout.")):
        run = option(run)
    return run


def printable(text: str) -> str:
    """Text from a model file without terminal control characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def emit(document: dict) -> None:
    click.echo(json.dumps({"onnxgrow": __version__, **document}, indent=1))


def emit_error(kind: str, message: str, node: str | None = None, axis: int | None = None, hint: str | None = None) -> None:
    emit({"error": {"type": kind, "message": message, "node": node, "axis": axis, "hint": hint}})


def show(lines: list[str], always: bool = False) -> None:
    """Print lines, unless --quiet was given and they are not what a script needs (`always`)."""
    if lines and (always or not mode.quiet()):
        mode.say(printable("\n".join(lines)))


def finish(lines: list[str], path: Path) -> None:
    """What a command that wrote something says: all of it, or with --quiet the path alone."""
    show([str(path)] if mode.quiet() else lines, always=True)


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
    """Show what MODEL is: its parts, sizes, and what can grow.

    On a terminal the model is drawn, with the parameters of each part beside it and a table of its dims; in a pipe the same comes as plain lines.
    Everything is read off the graph, whatever made the file; no weight is loaded.

    Example: onnxgrow inspect model.onnx
    """
    from .describe import architecture_lines
    from .model import load
    from .provenance import growth_lines, growth_of

    opened = load(model, rules, dequantize)
    architecture, proto = opened.architecture, opened.opened.proto
    if as_json:
        emit({"command": "inspect", "model": str(model), "architecture": architecture.to_json(), "growth": growth_of(proto)})
    elif mode.quiet():
        show(architecture_lines(architecture)[:1], always=True)
    elif mode.pictured():
        from .terminal.picture import model_screen

        mode.draw(lambda width: model_screen(opened, width))
        show(growth_lines(proto))
    else:
        show(architecture_lines(architecture) + growth_lines(proto))
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
        click.option("--hidden", type=click.IntRange(1), metavar="N", help="Residual width. Alone, heads and ffn follow as in the family."),
        click.option("--heads", type=click.IntRange(1), metavar="N", help="Attention heads."),
        click.option("--kv-heads", type=click.IntRange(1), metavar="N", help="Key and value heads (grouped-query attention)."),
        click.option("--head-dim", type=click.IntRange(1), metavar="N", help="Size of a head."),
        click.option("--ffn", type=click.IntRange(1), metavar="N", help="Width of the feed-forward part."),
        click.option("--layers", type=click.IntRange(1), metavar="N", help="Number of layers, of every stack."),
        click.option("--encoder-layers", type=click.IntRange(1), metavar="N", help="Number of layers of the encoder."),
        click.option("--decoder-layers", type=click.IntRange(1), metavar="N", help="Number of layers of the decoder."),
        click.option("--vocab", type=click.IntRange(1), metavar="N", help="Words of the vocabulary."),
        click.option("--positions", type=click.IntRange(1), metavar="N", help="Longest sequence (position tables, masks, buffers)."),
        click.option("--experts", type=click.IntRange(1), metavar="N", help="Experts of a mixture of experts."),
        click.option("--only-hidden", is_flag=True, help="--hidden grows nothing else."),
        click.option("--set", "set_", multiple=True, metavar="NAME=SIZE", shell_complete=complete_dim, help="Any dim that inspect lists."),
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
        click.option("--init-std", type=click.FloatRange(0), metavar="STD", help="Deviation of new parts that nobody reads yet (default: that of the old tensor)."),
        click.option("--wake", type=click.FloatRange(0, min_open=True), metavar="STD", help="Noise for new parts that could never learn (near, not exact)."),
        click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Seed of all random numbers."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@plan_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Target; default: MODEL-h1024.onnx and the like, beside MODEL.")
@click.option("--plan", "--dry-run", "only_plan", is_flag=True, help="Print the whole growth and write nothing.")
@click.option("--no-validate", is_flag=True, help="Do not run source and result side by side.")
@click.option("--force", is_flag=True, help="Replace an existing target.")
@click.option("--torch", "torch_folder", type=click.Path(path_type=Path), metavar="FOLDER", help="Write the result as PyTorch code too (see export).")
@inputs_option
@provider_option
@rules_option
@dequantize_option
@boundary
@with_recipe
def expand(model: Path, output, only_plan, no_validate, force, torch_folder, inputs, provider, rules, dequantize, set_, as_json, **request) -> int:
    """Grow MODEL and write the result under a new name.

    First come the sizes before and after and a certificate: exact, near, or not preserved. Then weights stream from file to file, and both models
    run side by side; a result that breaks an exact certificate never gets its name. MODEL itself is never changed.

    \b
    Example: onnxgrow expand model.onnx --hidden 1024 --ffn 4096 -o grown.onnx
    Example: onnxgrow expand model.onnx --layers 6 --vocab 300
    Example: onnxgrow expand model.onnx --set ffn=512 --plan
    """
    from .folders import default_folder, write_grown
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
    from .terminal import growth, progress

    with progress.busy("reading the graph", not as_json):
        opened = load(model, rules, dequantize)
    with progress.busy("planning: sizes, fills, repairs, and what they promise", not as_json):
        plan = opened.plan(set=more, **request)
        document = {"command": "expand", "model": str(model), "plan": plan.to_json()}
    if only_plan:
        emit(document) if as_json else show(plan.lines())
        return 0
    if not as_json:
        growth.announce(plan, output or (default_folder(model, plan) if model.is_dir() else plan.default_path()))
    with progress.bars(not as_json) as bars:
        result, grown_folder = write_grown(plan, model, output, validate=not no_validate, feeds=feeds, provider=provider, overwrite=force,
                                           progress=bars.writing, checked=bars.checking)
    document |= {"output": str(result.path), "validation": result.report.to_json() if result.report else None}
    lines: list[str] = grown_folder.lines() if grown_folder else []
    if grown_folder:
        document["folder"] = grown_folder.to_json()
    if torch_folder:
        from .torch_commands import write_torch

        with progress.bars(not as_json) as shown:
            document["torch"], more_lines = write_torch(load(result.path, rules), torch_folder, not no_validate, force, shown)
        lines += more_lines
    emit(document) if as_json else growth.done(plan, result, bars, lines, model)
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
    """Run MODEL and GROWN side by side: the same function?

    Inputs are made up at several sizes, with padding and caches where the model has them, unless --inputs gives some. What differs is said with
    the first node that parts.

    Example: onnxgrow validate model.onnx model-h1024.onnx
    """
    from .model import load
    from .terminal import growth, progress

    feeds = read_feeds(inputs)
    with progress.busy("reading both graphs", not as_json):
        plan = load(model, rules, dequantize).plan_like(load(grown, rules))
    with progress.bars(not as_json) as bars:
        report = plan.compare(grown, feeds, provider, bars.checking)
    if as_json:
        emit({"command": "validate", "model": str(model), "grown": str(grown), "certificate": plan.certificate.kind, "validation": report.to_json()})
    elif mode.pictured() and not mode.quiet():
        mode.draw(lambda width: growth.report_screen(report, plan.certificate.kind))
    else:
        show(report.lines(plan.certificate.kind))
    return 0 if report.equal else 1


@main.command("check-rules")
@click.argument("file", type=click.Path(path_type=Path))
@boundary
def check_rules(file: Path, as_json: bool) -> int:
    """Try every claim of the rules in FILE.

    Each is tried on the examples that the file gives, in ONNX Runtime. The file is run: use only files you trust.

    Example: onnxgrow check-rules acme.py
    """
    from .rulefile import check_file, show_findings

    found = check_file(file)
    if as_json:
        emit({"command": "check-rules", **found.to_json()})
    elif not mode.quiet():
        show_findings(found)
    return 0 if found.true else 1


@main.command()
@click.option("--keep", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the files in this folder.")
@click.option("--steps", type=click.IntRange(1), metavar="N", default=40, show_default=True, help="Steps of training in PyTorch.")
@boundary
def demo(keep: Path | None, steps: int, as_json: bool) -> int:
    """Show the whole circle on a small model that comes along.

    Inspect, grow, validate, export, train in PyTorch (where it is installed) and bring the weights back.

    Example: onnxgrow demo
    """
    from .demo import run

    return run(keep, steps, as_json)


from . import report_command, size_commands, torch_commands  # noqa: E402, F401 (they enter themselves into `main`)
from .terminal import completion  # noqa: E402, F401
