"""How much a command says, and how: pictures and colours on a terminal, plain lines in a pipe, little with --quiet, more with --verbose."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import click

from ..errors import UsageError

NARROWEST = 72  # columns; below that pictures do not fit, and lines are printed as in a pipe
_recorder: ContextVar = ContextVar("recorder", default=None)


def set_volume(quiet: bool, verbose: bool) -> None:
    """Remember --quiet and --verbose for this command."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other", hint="leave out one or the other")
    click.get_current_context().meta.update({"onnxgrow.quiet": quiet, "onnxgrow.verbose": verbose})


def quiet() -> bool:
    """Was --quiet given?"""
    return _flag("quiet")


def verbose() -> bool:
    """Was --verbose given?"""
    return _flag("verbose")


def _flag(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(f"onnxgrow.{name}"))


def pictured(stream=None) -> bool:
    """Does a stream (default: stdout) lead to a person's terminal that can show pictures?"""
    if _recorder.get() is not None:
        return stream is None
    stream = stream or sys.stdout
    return stream.isatty() and os.environ.get("TERM") != "dumb" and "utf" in (stream.encoding or "").lower() and _columns() >= NARROWEST


def recorder():
    """The console of `recording`, or None."""
    return _recorder.get()


def coloured() -> bool:
    """Are colours wanted? NO_COLOR with any text says no (no-color.org)."""
    return not os.environ.get("NO_COLOR")


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def console(stderr: bool = False):
    """The rich console of this command. Without colours it writes no escape sequence at all."""
    if _recorder.get() is not None:
        return _recorder.get()
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, legacy_windows=False, width=_columns(), **plainness())


def plainness() -> dict:
    """Arguments of a rich Console that writes no escape sequence where NO_COLOR is set."""
    return {} if coloured() else {"color_system": None, "force_terminal": False}


def red(text: str) -> str:
    """A text for stderr, in red where somebody sees it."""
    return click.style(text, fg="red", bold=True) if sys.stderr.isatty() and coloured() and os.environ.get("TERM") != "dumb" else text


def draw(screen: Callable[[int], list]) -> None:
    """Print what `screen(columns)` makes, rich renderables one below the other; a Text that must not wrap (a command to copy) stays one line."""
    out = console()
    for piece in screen(out.width):
        out.print(piece, soft_wrap=getattr(piece, "no_wrap", None) is True)


def say(text: str) -> None:
    """Print a text as it is."""
    recorder = _recorder.get()
    recorder.print(text) if recorder is not None else click.echo(text)


@contextmanager
def recording(width: int) -> Iterator:
    """Within this, commands draw for a terminal of some width into the console that is yielded, and nothing is printed."""
    import io

    from rich.console import Console

    recorder = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor",
                       highlight=False, markup=False, emoji=False, legacy_windows=False)
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)
