"""Files and folders that appear whole or not at all, whatever stops the program: `save` for one file, `new_folder` for a folder, and `Staging`
for several files that belong together.

All is made in a folder `.onnxgrow-XXXXXXXX` beside its target, which holds:

    lock      locked while its run lives: the next run in the folder takes away what nobody holds any more
    new/      what is being made, under its final name
    journal   before several files get their names: which they are, so that the next run can take back a part of them
    old/      a folder that is being replaced, where the system cannot exchange two names

Why each step is there, and how it is tried: docs/reliability/writes.md.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from . import disk
from .errors import FileError
from .interrupts import undisturbed

PREFIX, NAME = ".onnxgrow-", re.compile(r"\.onnxgrow-[a-z0-9_]{8}")
LOCK, NEW, JOURNAL, OLD = "lock", "new", "journal", "old"
OR_FORCE = ", or give --force (in Python: overwrite=True)"
AGAIN = {errno.ENOSPC: "make room on the disk, then run the command again", errno.EDQUOT: "make room on the disk, then run the command again"}


# --- what callers use ------------------------------------------------------------------------------------------------


def check_free(path: Path, overwrite: bool, replaceable: Callable[[Path], bool] = lambda path: not path.is_dir(),
               instead: str = "choose another name with -o") -> None:
    """FileError where nothing may get the name `path`: its folder is missing, or it exists and is not to be replaced.

    Args:
        replaceable: of an existing path, whether `overwrite` is enough to replace it.
        instead: the next step that always helps.
    """
    if not path.absolute().parent.is_dir():
        raise FileError(f"there is no folder {path.absolute().parent}", hint="create it first")
    recover(path.absolute().parent)
    if os.path.lexists(path):
        may = replaceable(path)
        if not (overwrite and may):
            raise FileError(f"{path} exists", hint=instead + OR_FORCE * may)


def check_apart(target: Path, source: Path) -> None:
    """FileError where the folder `target`, which may be about to be replaced, is or holds a source."""
    if source.resolve().is_relative_to(target.resolve()):
        raise FileError(f"{target} holds the source model, which is never changed", hint="choose another name with -o")


def check_room(folder: Path, needed: int) -> None:
    """FileError where a disk has not so many bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FileError(f"{folder} has {free} bytes free, and {needed} are needed", hint="make room, or choose another disk")


def save(path: Path, content: bytes, overwrite: bool, instead: str = "choose another name with -o") -> None:
    """Write one file. FileError where it exists and is not to be replaced, or where writing failed; then all is as it was."""
    path = path.absolute()
    check_free(path, overwrite, instead=instead)
    check_room(path.parent, len(content))
    with Staging(path.parent) as staging, writing(path):
        with open(staging.new / path.name, "xb") as file:
            file.write(content)
        disk.sync_file(staging.new / path.name)
        staging.place_files([path.name], overwrite)


@contextmanager
def new_folder(target: Path, overwrite: bool = False, like: Path | None = None) -> Iterator[Path]:
    """A folder to fill, which gets the name `target` when the block ends well, and replaces an older one whole.

    Args:
        like: the folder may be entered by whom this file or folder may be read by.
    """
    target = Path(os.path.abspath(target))
    with Staging(target.parent) as staging, writing(target):
        place = staging.new / target.name
        readers = 0o444 if like is None else os.stat(like).st_mode
        place.mkdir(sum(0o7 << who for who in (0, 3, 6) if readers >> who & 4) | 0o700)
        yield place
        staging.place_folder(target.name, overwrite)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """An OSError within the block is a FileError that says what could not be written."""
    try:
        yield
    except FileExistsError as error:
        raise FileError(f"{error.filename2 or error.filename} exists", hint="somebody made it meanwhile: choose another name with -o" + OR_FORCE) from error
    except OSError as error:
        hint = AGAIN.get(error.errno, "check the disk, then run the command again")
        raise FileError(f"cannot write {target}: {error.strerror or error}", hint=hint) from error


class Staging:
    """A temporary folder beside a target: fill `new`, then let `place_files` or `place_folder` give the names. Removed with all that is left in it.

    Raises:
        FileError: the folder cannot be written to.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            recover(folder)
            with undisturbed():
                self.root, self._lock = _made(folder)
                self.discard = weakref.finalize(self, _removed, self.root, self._lock, os.getpid())
                (self.root / NEW).mkdir()
        except OSError as error:
            if hasattr(self, "discard"):
                self.discard()
            raise FileError(f"cannot write into {folder}: {error.strerror}", hint="choose another folder") from None

    @property
    def new(self) -> Path:
        return self.root / NEW

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_) -> None:
        self.discard()

    def place_files(self, names: list[str], overwrite: bool, obsolete: Iterable[str] = ()) -> None:
        """Give files their names, of which the last makes the others count: they are parts of it, and their names must be free.

        Args:
            names: relative to `new` and to the folder, their bytes on the disk already.
            overwrite: the last may replace an older file, whose mode it gets.
            obsolete: files that only the replaced one needed; they go when it has gone.
        Raises:
            OSError: nothing has changed.
            FileError: all has its name, and the disk did not confirm it.
        """
        *parts, last = names
        made = [str(p) for part in parts for p in reversed(Path(part).parents) if not (self.folder / p).exists()]
        journal = {"last": last, "folders": made, "parts": {n: disk.identity(self.new / n) for n in parts},
                   "obsolete": {n: disk.identity(self.folder / n) for n in obsolete}}
        with undisturbed():
            try:
                if parts or obsolete:
                    self._note(journal)
                for name in parts:
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    disk.move(self.new / name, self.folder / name)
                if parts:
                    disk.sync_folder(self.folder)
                self._put(self.new / last, self.folder / last, overwrite)
            except BaseException:
                self._settle()
                raise
            self._confirm(self.folder / last)
            self._settle()

    def place_folder(self, name: str, overwrite: bool) -> None:
        """Give the folder `new/name` its name; an older one goes when it has been replaced.

        Raises:
            OSError: nothing has changed.
            FileError: it has its name, and the disk did not confirm it.
        """
        made, target = self.new / name, self.folder / name
        if overwrite and os.path.lexists(target):
            os.chmod(made, stat.S_IMODE(target.stat().st_mode))
        disk.sync_tree(made)
        with disk.one_at_a_time(self.folder), undisturbed():
            try:
                if not (overwrite and os.path.lexists(target)):
                    disk.move(made, target)
                elif not disk.exchange(made, target):
                    (self.root / OLD).mkdir()
                    os.rename(target, self.root / OLD / name)
                    disk.move(made, target)
            except BaseException:
                self._settle()
                raise
            self._confirm(target)

    def _note(self, journal: dict) -> None:
        with open(self.root / JOURNAL, "x", encoding="utf-8") as file:
            json.dump(journal, file)
        disk.sync_file(self.root / JOURNAL)
        disk.sync_folder(self.root)

    def _put(self, made: Path, target: Path, overwrite: bool) -> None:
        if not overwrite:
            disk.move(made, target)
            return
        if target.is_file() and not target.is_symlink():
            os.chmod(made, stat.S_IMODE(target.stat().st_mode))
        os.replace(made, target)

    def _confirm(self, target: Path) -> None:
        try:
            disk.sync_folder(self.folder)
        except OSError as error:
            self._leave()
            raise FileError(f"{target} is whole, but the disk did not confirm its name: {error.strerror}",
                            hint="check the disk, and that the file is still there") from error

    def _settle(self) -> None:
        """Take back what was begun, or finish what was done; what cannot be is left to the next run."""
        try:
            _settle(self.root, self.folder)
        except OSError:
            self._leave()

    def _leave(self) -> None:
        """Leave the temporary folder as it is: the next run in the folder needs it."""
        if self.discard.detach():
            os.close(self._lock)


# --- what runs that died have left -----------------------------------------------------------------------------------


def recover(folder: Path) -> None:
    """Take away what runs that died have left in a folder, and take back what they had only half done."""
    for root in sorted(folder.glob(PREFIX + "*")):
        with suppress(OSError):
            _recover(root, folder)


def _recover(root: Path, folder: Path) -> None:
    status = os.lstat(root)
    mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    if not (NAME.fullmatch(root.name) and stat.S_ISDIR(status.st_mode) and mine and {*os.listdir(root)} <= {LOCK, NEW, JOURNAL, OLD}):
        return
    locked = disk.lock(root / LOCK)
    if locked is None:  # its run is alive
        return
    descriptor, held = locked
    try:
        if held:
            _settle(root, folder)
            shutil.rmtree(root, ignore_errors=True)
    finally:
        os.close(descriptor)


def _settle(root: Path, folder: Path) -> None:
    """Bring what a run began in a folder to an end: back to where it was, or on, if the last name was given. OSError where that fails."""
    for old in (root / OLD).glob("*"):
        if os.path.lexists(root / NEW / old.name):
            disk.move(old, folder / old.name)
    try:
        journal = json.loads((root / JOURNAL).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none, or not finished: then no name had been given yet
        return
    done = not os.path.lexists(root / NEW / journal["last"])
    for name, who in journal["obsolete" if done else "parts"].items():
        if not Path(name).is_absolute() and ".." not in Path(name).parts and disk.is_still(folder / name, who):
            os.unlink(folder / name)
    for name in [] if done else reversed(journal["folders"]):
        with suppress(OSError):
            os.rmdir(folder / name)
    disk.sync_folder(folder)


def _made(folder: Path) -> tuple[Path, int]:
    """A new temporary folder and the descriptor that holds its lock."""
    while True:  # a run that cleans up at this very moment may take it for a leftover
        root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        try:
            if locked := disk.lock(root / LOCK):
                return root, locked[0]
        except FileNotFoundError:
            continue
        except OSError:
            shutil.rmtree(root, ignore_errors=True)
            raise


def _removed(root: Path, lock: int, owner: int) -> None:
    """Remove a temporary folder; not in a process that was forked off while it was in use."""
    if os.getpid() == owner:
        with undisturbed():
            shutil.rmtree(root, ignore_errors=True)
            os.close(lock)
