"""Files that are read while a disk fails, or while somebody cuts them: said as a FileError, also where weights are mapped into memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from .errors import FileError

POPULATE_READ = 22  # MADV_POPULATE_READ, linux/mman.h, since Linux 5.14
FAILED = (errno.EFAULT, errno.EIO)  # the first is what it says where reading a page would have ended the process


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """An OSError within the block is a FileError that says what could not be read."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror or error}", hint="check the file and its disk, then run the command again") from error


def ready(array: np.ndarray) -> None:
    """Read a part of a mapped file into memory before it is used, where the system can and the part lies in one piece.

    Otherwise a page that cannot be read ends the process by a signal.

    Raises:
        FileError: the disk does not give it, or the file was cut short.
    """
    advise = _madvise()
    if advise is None or not array.nbytes or not array.flags.c_contiguous:
        return
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    if advise(start, array.ctypes.data + array.nbytes - start, POPULATE_READ) and (number := ctypes.get_errno()) in FAILED:
        why = os.strerror(number) if number == errno.EIO else "the disk does not give it, or the file was cut short"
        raise FileError(f"cannot read the weights of the source: {why}", hint="check the disk and the file, then run the command again; nothing was changed")


@cache
def _madvise():
    """The call of the system's library; None where there is none."""
    try:
        call = ctypes.CDLL(None, use_errno=True).madvise
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return call
