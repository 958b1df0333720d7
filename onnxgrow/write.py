"""Write a grown model: weights stream from the source through recipes into the target, in memory of one block.

`stage` writes everything into an exclusive temporary folder beside the target, under the final file names, so that the
result can be run before it counts. `Staged.commit` moves the files to their place; until then, and whenever something
fails, the target folder is as it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from .errors import FileError
from .layout import Layout, lay_out
from .recipe import Recipe
from .source import Source
from .transfer import (
    BLOCK_BYTES,
    COPY_BYTES,
    Flusher,
    Progress,
    Report,
    copy,
    jobs,
    run,
)

OR_FORCE = ", or give --force (in Python: overwrite=True)"


@dataclass
class Staged:
    """A complete model at `path`, not in its place yet. As a context manager it is discarded unless committed."""

    path: Path
    target: Path
    files: list[str]  # relative to the folder of either, the graph last
    overwrite: bool

    def commit(self) -> Path:
        """Move the files beside the target, data before graph; returns the target's path."""
        folder = self.target.parent
        check_targets([folder / name for name in self.files], [], self.overwrite)
        moved: list[Path] = []
        try:
            for name in self.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path.parent / name, folder / name)
                moved.append(folder / name)
            _sync_folder(folder)
        except OSError as error:
            for path in moved:
                path.unlink()
            self.discard()
            raise FileError(
                f"cannot move the model to {self.target}: {error.strerror}", hint="check the folder"
            ) from error
        self.discard()
        return self.target

    def discard(self) -> None:
        """Remove the temporary folder and what is left in it."""
        shutil.rmtree(self.path.parent, ignore_errors=True)

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_) -> None:
        self.discard()


def stage(
    source: Source,
    proto: onnx.ModelProto,
    recipes: dict[str, Recipe],
    target: str | os.PathLike,
    *,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
    threads: int = 2,
    external: bool | None = None,
    overwrite: bool = False,
    unchanged: onnx.ModelProto | None = None,
) -> Staged:
    """Write the model `proto` to a temporary folder beside `target`; where nothing changed, copy byte for byte.

    Args:
        proto: an edited copy of source.proto: initializers with their new sizes, the detached ones without data, new
            ones inline.
        recipes: how initializers are made, by their name in `proto`. A detached one without a recipe is copied.
        progress: called with (bytes written, bytes in all).
        unchanged: the model as it is in the file, where source.proto is another form of it.
        external: whether weights go to `<target name>.data`; None: as in the source, or where they do not fit into one
            file.
    Raises:
        FileError: the target exists or is the source, the disk is too small, or writing failed. Nothing is left behind.
    """
    target = Path(target).absolute()
    copies = {**source.data, target.name: source.path}  # file name -> what to copy
    # In the source's own folder the copy needs a data file of its own, so there the model is written anew.
    beside = any((target.parent / name).resolve() == file for name, file in source.data.items())
    same = (
        not recipes
        and source.temporary is None
        and target.name not in source.data
        and external in (None, source.external)
        and {ref.file for ref in source.tensors.values() if ref.in_file} <= {source.path, *source.data.values()}
        and all(ref.in_file for ref in source.tensors.values())
        and proto.SerializeToString() == (unchanged or source.proto).SerializeToString()
    )
    if same and not beside:
        layout, sizes = None, {name: file.stat().st_size for name, file in copies.items()}
    else:
        layout = lay_out(source, proto, recipes, target.name, external)
        sizes = layout.sizes
    check_targets([target.parent / name for name in sizes], [source.path, *source.data.values()], overwrite)
    _check_space(target.parent, sum(sizes.values()))
    try:
        folder = Path(tempfile.mkdtemp(prefix=".onnxgrow-", dir=target.parent))
    except OSError as error:
        raise FileError(f"cannot write into {target.parent}: {error.strerror}", hint="choose another folder") from None
    staged = Staged(folder / target.name, target, list(sizes), overwrite)
    report = Report(progress, sum(sizes.values()))
    try:
        if layout:
            _write(layout, folder, block_bytes, threads, report)
        else:
            _copy_files(copies, folder, report)
    except BaseException as error:
        staged.discard()
        if isinstance(error, OSError):
            raise FileError(
                f"cannot write {target}: {error.strerror or error}", hint="check the disk, then try again"
            ) from error
        raise
    return staged


def check_targets(paths: list[Path], sources: list[Path], overwrite: bool) -> None:
    """No path may be a file of the source, under whatever name, nor an existing file unless it may be overwritten."""
    if not paths[-1].parent.is_dir():
        raise FileError(f"there is no folder {paths[-1].parent}", hint="create it first")
    for path in (paths[-1], *paths[:-1]):  # the graph first: it is the file that was asked for
        if any(path.exists() and path.samefile(source) for source in sources):
            raise FileError(f"{path} is the source model itself, which is never changed", hint="choose another name")
        if os.path.lexists(path) and (path.is_dir() or not overwrite):
            raise FileError(f"{path} exists", hint="choose another name with -o" + ("" if path.is_dir() else OR_FORCE))


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FileError(f"{folder} has {free} bytes free, the model needs {needed}", hint="choose another disk")


def _copy_files(copies: dict[str, Path], folder: Path, report: Report) -> None:
    for name, file in copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(file, "rb") as source, open(folder / name, "xb", buffering=0) as out:
            size = os.fstat(source.fileno()).st_size
            for at in range(0, size, COPY_BYTES):
                copy(source.fileno(), at, out, at, min(COPY_BYTES, size - at))
                report.add(min(COPY_BYTES, size - at))
            os.fsync(out.fileno())


def _write(layout: Layout, folder: Path, block_bytes: int, threads: int, report: Report) -> None:
    """All files of a layout."""
    for name, size in layout.sizes.items():
        with open(folder / name, "xb") as out:
            out.truncate(size)
            for of, offset, header in layout.headers:
                if of == name:
                    out.seek(offset)
                    out.write(header)
                    report.add(len(header))
    with Flusher(folder / layout.weight_file):
        run(jobs(layout.weights, block_bytes), folder / layout.weight_file, threads, report)
    for name in layout.sizes:
        with open(folder / name, "r+b") as out:
            os.fsync(out.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)
