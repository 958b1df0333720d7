"""What safe writing needs of the system: syncs, renames that replace nothing or exchange, locks, and which file a file is.

Where a system has no such thing (a lock on some network disks, renames with flags outside Linux) these say so, and atomic.py does without.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
NO_REPLACE, EXCHANGE = 1, 2  # flags of renameat2, linux/fs.h
AT_FDCWD = -100  # a path is relative to the working folder, fcntl.h

Identity = list[int]


def identity(path: str | os.PathLike) -> Identity:
    """[inode, bytes, time of the last change in ns]: what changes when a file is replaced or written to, and not when it is renamed."""
    status = os.stat(path)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def identities(files: Iterable[Path]) -> dict[Path, Identity]:
    """Which file each of these is now."""
    out = {}
    for file in files:
        with suppress(OSError):  # one that has gone is missed where it is read
            out[file] = identity(file)
    return out


def is_still(path: Path, who: Identity) -> bool:
    """Is this the file that it was?"""
    try:
        return not path.is_symlink() and identity(path) == who
    except OSError:
        return False


# --- to the disk -----------------------------------------------------------------------------------------------------


def sync_file(path: Path) -> None:
    """What was written to a file reaches the disk; OSError where it did not."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """The names in a folder reach the disk, where the system can say so."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Everything below a folder, and its names, reach the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(place, name))
        sync_folder(Path(place))


def opener(like: Path | None):
    """For `open`: new files may be read by whom `like` may be read by, as far as the umask allows; None: by all whom it allows."""
    mode = 0o666 if like is None else stat.S_IMODE(os.stat(like).st_mode) & 0o666 | 0o600
    return lambda path, flags: os.open(path, flags, mode)


# --- renames ---------------------------------------------------------------------------------------------------------


def move(old: Path, new: Path) -> None:
    """Rename, and never replace anything: FileExistsError where the name is taken."""
    if not _renamed(old, new, NO_REPLACE):
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        os.rename(old, new)


def exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step; False where the system cannot."""
    return _renamed(one, other, EXCHANGE)


def _renamed(old: Path, new: Path, flags: int) -> bool:
    """Linux's rename with flags; False where the system or the file system has none."""
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if call(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(old), None, str(new))


# --- locks -----------------------------------------------------------------------------------------------------------


def lock(path: Path) -> tuple[int, bool | None] | None:
    """Open a file and lock it: its descriptor, and whether the lock holds (None: there are no locks here). None where somebody else has it.

    The kernel frees the lock when the process ends, however it ends.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    held = None
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor, held
    except (BlockingIOError, FileNotFoundError):  # it is somebody else's, or was removed meanwhile
        pass
    except OSError:
        return descriptor, None
    os.close(descriptor)
    return None


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Other runs of this program wait to give names in a folder until the block is done, where the system has such locks."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
