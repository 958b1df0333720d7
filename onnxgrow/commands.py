"""The command line, and inspect, validate, check-rules and demo; the others stand in modules of their own. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path

import click

from . import __version__
from .console import boundary, dequantize_option, emit, emit_error, inputs_option, model_argument, provider_option, read_feeds, rules_option, show
from .terminal import mode
from .terminal.guess import did_you_mean


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
    from .describe import architecture_lines, fixed_lines
    from .inputs import fixed_sizes
    from .model import load
    from .provenance import growth_lines, growth_of

    opened = load(model, rules, dequantize)
    architecture, proto, fixed = opened.architecture, opened.opened.proto, fixed_sizes(opened.roles.structure)
    if as_json:
        emit({"command": "inspect", "model": str(model), "architecture": architecture.to_json(), "only_at": fixed, "growth": growth_of(proto)})
    elif mode.quiet():
        show(architecture_lines(architecture)[:1], always=True)
    elif mode.pictured():
        from .terminal.picture import model_screen

        mode.draw(lambda width: model_screen(opened, width))
        show(growth_lines(proto))
    else:
        show(architecture_lines(architecture) + fixed_lines(fixed) + growth_lines(proto))
    return 0


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


from . import expand_command, report_command, size_commands, torch_commands  # noqa: E402, F401 (they enter themselves into `main`)
from .terminal import completion  # noqa: E402, F401
