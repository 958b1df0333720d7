"""Files that several test processes want, made by one of them."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """The file `path`; where it is not there yet, `make` writes it under another name. Others who want it wait, so that none reads what is replaced."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                make(Path(folder) / path.name)
                os.replace(Path(folder) / path.name, path)
    return path
