"""Progress of what may take long, on stderr: bytes written with throughput and time left, runs of a validation. Nothing where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import mode
from .numbers import size

WRITING, CHECKING = "writing", "validating"
SETTLED = 0.1  # seconds from which a throughput means something


@dataclass
class Bars:
    """Callbacks for `Plan.write`, and how long each part took.

    Attributes:
        shown: a rich Progress, or None.
        total: bytes of all files, known once writing has begun.
        still: the bars are printed once, in the middle of a validation, for a picture of the screen.
        began, ended: part -> seconds of the clock at its first and last word.
    """

    shown: object | None = None
    total: int = 0
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    still: bool = False

    def writing(self, done: int, total: int) -> None:
        """So many bytes are written; called from several threads."""
        self.total = total
        passed = self._clock(WRITING)
        self._update(WRITING, done, total, f"{size(done)} of {size(total)}" + (f", {size(done / max(passed, 1e-6))}/s" if passed > SETTLED or self.still else ""))

    def checking(self, done: int, total: int) -> None:
        """So many runs of either model are over."""
        passed = self._clock(CHECKING)
        self._update(CHECKING, done, total, f"run {done + 1} of {total}" + (f", {passed / done:.2g} s each" if done else ""))

    def took(self, part: str) -> float:
        """Seconds from the first to the last word about a part; the end of validation is only known outside."""
        return self.ended.get(part, 0.0) - self.began.get(part, 0.0)

    def _clock(self, part: str) -> float:
        now = time.perf_counter()
        self.ended[part] = now
        return now - self.began.setdefault(part, now)

    def _update(self, part: str, done: int, total: int, said: str) -> None:
        if self.shown is None:
            return
        if part not in self.tasks:
            self.tasks[part] = self.shown.add_task(part, total=total, said=said)
        self.shown.update(self.tasks[part], completed=done, total=total, said=said)
        if self.still and part == CHECKING and 2 * done >= total:
            self.still = False
            mode.recorder().print(self.shown.get_renderable())


def watched() -> bool:
    """Does a person watch stderr? Bars are drawn with escape sequences, so not without colours."""
    return mode.pictured(sys.stderr) and mode.coloured() and not mode.quiet()


@contextmanager
def bars(wanted: bool = True) -> Iterator[Bars]:
    """Bars for the time of a growth; they vanish at its end, whatever the end."""
    if wanted and mode.recorder() is not None and not mode.quiet():
        yield Bars(drawn(mode.recorder()), still=True)
        return
    if not (wanted and watched()):
        yield Bars()
        return
    with drawn(mode.console(stderr=True)) as shown:
        yield Bars(shown)


def drawn(console):
    """A rich Progress with what a Bars needs."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    return Progress(SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(24, complete_style="cyan", finished_style="green"), TextColumn("{task.fields[said]}"), TimeRemainingColumn(compact=True),
                    console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


@contextmanager
def busy(words: str, wanted: bool = True) -> Iterator[None]:
    """A turning sign beside a few words, while something of unknown length goes on."""
    if not (wanted and watched()):
        yield
        return
    with mode.console(stderr=True).status(words):
        yield
