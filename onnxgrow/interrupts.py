"""When a command may be stopped: SIGTERM and a closed terminal end it like Ctrl-C does, and a few steps are not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise KeyboardInterrupt, so that what was begun is removed; what is ignored (nohup) stays ignored."""
    def stop(*_) -> None:
        raise KeyboardInterrupt

    with _handled([s for s in ENDING if signal.getsignal(s) is signal.SIG_DFL], stop):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that would stop the program wait until the block is done."""
    came: list[int] = []
    try:
        with _handled([signal.SIGINT, *ENDING], lambda number, _: came.append(number)):
            yield
    finally:
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


@contextmanager
def _handled(signals: list, handler) -> Iterator[None]:
    """Another handler for some signals. Python runs handlers in the main thread alone, so others need nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in signals}
    before = {s: old for s, old in before.items() if old not in (None, signal.SIG_IGN)}  # None: set by another language
    try:
        for s in before:
            signal.signal(s, handler)
        yield
    finally:
        for s, old in before.items():
            signal.signal(s, old)
