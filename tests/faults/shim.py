"""The layer between Python and the C library (shim.c), compiled when it is needed."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

READS, WRITES, NAMES, SYNCS = 1, 2, 4, 8
COUNT, SIGNAL, FAIL, SHORT = 1, 2, 3, 4
ALL = READS | WRITES | NAMES | SYNCS
CODE = Path(__file__).with_name("shim.c")


def build(folder: Path) -> Path | None:
    """The compiled layer in a new folder; None, and the folder gone, where there is no C compiler or no LD_PRELOAD."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or not os.path.exists("/proc/self/fd"):
        folder.rmdir()
        return None
    library = folder / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, CODE, "-ldl"], check=True)
    return library


class Shim:
    """The layer in this process; `arm` is for the child that is to meet the fault."""

    def __init__(self, library: str):
        self.calls = ctypes.CDLL(library)
        self.calls.fault_seen.restype = ctypes.c_long
        self.calls.fault_arm.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]

    def arm(self, what: int, folder: Path, at: int = 1, groups: int = ALL, number: int = 0, on: bool = False) -> None:
        """The call number `at` below a folder goes wrong, and with `on` all that follow too."""
        self.calls.fault_arm(what, groups, at, number, on, os.fsencode(folder))

    def off(self) -> None:
        self.calls.fault_off()

    def seen(self) -> int:
        """How many calls there were."""
        return self.calls.fault_seen()


KILL, TERM, INTERRUPT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
FULL, BROKEN = errno.ENOSPC, errno.EIO
