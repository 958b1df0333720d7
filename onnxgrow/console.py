"""What every command shares: errors at the boundary, output for people and as documents, and the options that several take."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from pathlib import Path

import click

from . import __version__
from .errors import FileError, OnnxgrowError, UsageError
from .interrupts import stoppable
from .terminal import mode
from .understood import understood

MOST_INPUTS = 4 << 30  # bytes of all arrays of --inputs


def boundary(command):
    """Run a command; print its errors for people, or as a document with --json, and exit 1 (refused) or 2 (wrong usage).

    Gives it --json, and --quiet and --verbose, which `show` and `mode` know of.
    """
    @functools.wraps(command)
    def run(*args, as_json: bool, quiet: bool, verbose: bool, **kwargs):
        try:
            mode.set_volume(quiet, verbose)
            with stoppable(), understood():
                code = command(*args, as_json=as_json, **kwargs)
        except OnnxgrowError as problem:
            if as_json:
                emit_error(problem.kind, problem.what, problem.node, problem.axis, problem.hint)
            click.echo("".join(traceback.format_tb(problem.__traceback__)) * verbose + f"{mode.red('error:')} {printable(str(problem))}", err=True)
            code = problem.exit_code
        except KeyboardInterrupt:
            click.echo("interrupted; nothing was left half written", err=True)
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


def one_line(text: str) -> str:
    """Such text in one line: a line break in a name is written as `\\n`, a tab as `\\t`."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def emit(document: dict) -> None:
    click.echo(json.dumps({"onnxgrow": __version__, **document}, indent=1))


def emit_error(kind: str, message: str, node: str | None = None, axis: int | None = None, hint: str | None = None) -> None:
    emit({"error": {"type": kind, "message": message, "node": node, "axis": axis, "hint": hint}})


def show(lines: list[str], always: bool = False) -> None:
    """Print lines, unless --quiet was given and they are not what a script needs (`always`). A name with a line break in it makes no line of its own."""
    if lines and (always or not mode.quiet()):
        mode.say("\n".join(map(one_line, lines)))


def finish(lines: list[str], path: Path) -> None:
    """What a command that wrote something says: all of it, or with --quiet the path alone."""
    show([str(path)] if mode.quiet() else lines, always=True)


model_argument = click.argument("model", type=click.Path(path_type=Path))
rules_option = click.option("--rules", multiple=True, type=click.Path(), metavar="FILE",
                            help="Python file with rules for more operators. It is run: use only files you trust.")
inputs_option = click.option("--inputs", type=click.Path(path_type=Path), metavar="FILE.npz", help="Validate with these inputs, by name, instead of made ones.")
dequantize_option = click.option("--dequantize", is_flag=True, help="Take the float model that a quantized MODEL stands for (docs/types.md).")
provider_option = click.option("--provider", type=click.Choice(["cuda", "cpu"]), help="Where to validate; default: CUDA where there is a device.")


def read_feeds(path: Path | None):
    if path is None:
        return None
    import zipfile

    import numpy as np

    from .regular import open_regular

    hint = "give a .npz file made by numpy.savez, one array per graph input"
    try:
        descriptor, _ = open_regular(path, "file of inputs")
    except FileError as problem:
        raise UsageError(f"cannot read inputs from {path}: {problem.what}", hint=hint) from None
    with open(descriptor, "rb") as held:
        if not zipfile.is_zipfile(held):
            raise UsageError(f"{path} is not a .npz file", hint=hint)
        try:
            with zipfile.ZipFile(held) as packed:
                size = sum(entry.file_size for entry in packed.infolist())
            if size > MOST_INPUTS:
                raise UsageError(f"the arrays in {path} have {size} bytes, and {MOST_INPUTS} are the most that are read", hint="give smaller inputs")
            held.seek(0)
            with np.load(held, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except UsageError:
            raise
        except Exception as problem:  # numpy, zipfile and zlib raise a dozen classes
            raise UsageError(f"cannot read inputs from {path}: {problem}", hint=hint) from problem
