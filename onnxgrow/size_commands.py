"""The commands that weigh and compare models: suggest and diff."""

from __future__ import annotations

from pathlib import Path

import click

from .commands import main
from .console import boundary, dequantize_option, emit, model_argument, rules_option, show
from .errors import UsageError
from .terminal import mode


@main.command(short_help="List growths of MODEL to a size, with costs and commands.")
@model_argument
@click.option("--params", metavar="COUNT", help="Parameters of the grown model: 350M, 1.3B.")
@click.option("--flops", metavar="COUNT", help="Operations of a forward pass for each token: 2G.")
@click.option("--memory", metavar="BYTES", help="What a training step with AdamW may take: 16GB, 16GiB.")
@click.option("--length", type=click.IntRange(1), metavar="N", help="Length of the sequences that are counted; default: all positions, at most 1024.")
@click.option("--batch", type=click.IntRange(1), metavar="N", default=1, show_default=True, help="Sequences in a training step.")
@click.option("--precision", type=click.Choice(["mixed", "fp32"]), default="mixed", show_default=True, help="What --memory is counted in.")
@rules_option
@dequantize_option
@boundary
def suggest(model: Path, params, flops, memory, length, batch, precision, rules, dequantize: bool, as_json: bool) -> int:
    """List ways to grow MODEL to a size: wider, deeper, or both, with what each costs and its command.

    With --quiet the commands alone, one a line.

    Example: onnxgrow suggest model.onnx --params 3M
    """
    from .family import Goal
    from .model import load
    from .quantities import parse_bytes, parse_count
    from .suggest import suggest as find

    given = [(kind, text) for kind, text in (("parameters", params), ("flops", flops), ("memory", memory)) if text is not None]
    if len(given) != 1:
        what = "no size asked for" if not given else "several sizes asked for, which may contradict each other"
        raise UsageError(what, hint="give one of --params 350M, --flops 2G, --memory 16GB")
    (kind, text), = given
    value = parse_bytes(text, "--memory") if kind == "memory" else parse_count(text, "--params" if kind == "parameters" else "--flops")
    goal = Goal(kind, value, length, batch, precision)
    options = tuple(word for file in rules for word in ("--rules", str(file))) + ("--dequantize",) * dequantize
    found = find(load(model, rules, dequantize), goal, options)
    if as_json:
        emit({"command": "suggest", **found.to_json()})
    elif mode.quiet():
        show([plan.command for plan in found.plans if plan.cost], always=True)
    elif mode.pictured():
        from .suggest_text import suggest_screen

        mode.draw(lambda width: suggest_screen(found, width))
    else:
        from .suggest_text import suggestion_lines

        show(suggestion_lines(found))
    return 0


@main.command(short_help="Say what differs between the files A and B.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Show every difference, not the first of each kind.")
@rules_option
@boundary
def diff(a: Path, b: Path, everything: bool, rules, as_json: bool) -> int:
    """Say what differs between the files A and B: sizes, weights, nodes, names, metadata. Exit code as of diff(1).

    0: they hold the same; 1: they differ; 2: wrong usage, or a file that cannot be read.

    Example: onnxgrow diff model.onnx model-h1024.onnx
    """
    from .difference import compare_files
    from .errors import OnnxgrowError

    try:
        found = compare_files(a, b, rules)
    except OnnxgrowError as problem:
        problem.exit_code = UsageError.exit_code  # 1 says that they differ
        raise
    if as_json:
        emit({"command": "diff", **found.to_json()})
    elif mode.pictured() and not mode.quiet():
        from .difference_text import difference_screen

        mode.draw(lambda width: difference_screen(found, everything, width))
    else:
        from .difference_text import difference_lines

        show(difference_lines(found, everything))
    return 0 if found.same else 1
