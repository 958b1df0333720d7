"""Files that a stranger may have made are opened as what they should be: regular, readable, and no larger than makes sense."""

from __future__ import annotations

import json
import os
import stat
from math import isfinite
from pathlib import Path

from .errors import FileError

MOST_SMALL = 64 << 20  # bytes of a config, the largest of which have some hundred thousand


def open_regular(path: Path, what: str) -> tuple[int, int]:
    """A descriptor for reading a regular file, and its size; never waits on a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise FileError(f"there is no {what} {path}", hint="check the path") from None
    except OSError as error:
        raise FileError(f"cannot read the {what} {path}: {error.strerror}", hint="check its permissions") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise FileError(f"the {what} {path} is {kind}", hint="name a file")
    return descriptor, status.st_size


def read_small(path: Path, what: str, most: int = MOST_SMALL) -> bytes:
    """The bytes of a file beside a model. FileError where it is none, may not be read, or has more than `most` bytes."""
    descriptor, size = open_regular(path, what)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise FileError(f"the {what} {path} has {max(size, most + 1)} bytes, and {most} are the most that are read", hint="give another file")
    return content


def read_json(path: Path, what: str, most: int = MOST_SMALL):
    """What a JSON file holds. FileError as in `read_small`, and for text that is no JSON, nested too deep, or with numbers that no machine has."""
    content = read_small(path, what, most)
    try:
        return json.loads(content, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FileError(f"cannot read {path}: {error}", hint="mend it, or give another file") from None


def _no_number(word: str):
    raise ValueError(f"{word} is no JSON")


def _finite(word: str) -> float:
    return float(word) if isfinite(float(word)) else _no_number(word)
