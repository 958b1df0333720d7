"""Write a grown model: weights stream from the source through recipes into the target, in memory of one block.

`stage` writes everything into a temporary folder beside the target (atomic.py), under the final file names, so that the
result can be run before it counts. `Staged.commit` gives the files their names; until then, and whenever something
fails, the target folder is as it was.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import onnx

from . import disk
from .atomic import Staging, check_free, check_room, writing
from .errors import FileError
from .layout import Layout, lay_out
from .recipe import Recipe
from .source import Source, locations
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


@dataclass
class Staged:
    """A complete model at `path`, not in its place yet. As a context manager it is discarded unless committed."""

    staging: Staging
    target: Path
    files: list[str]  # the graph last
    overwrite: bool
    source: Source
    anew: bool  # written by a layout, not a copy of the source's files

    @property
    def path(self) -> Path:
        return self.staging.new / self.target.name

    def commit(self) -> Path:
        """Give the files their names, data before the graph that makes it count; returns the target's path."""
        check_source(self.source)
        folder = self.target.parent
        with writing(self.target), disk.one_at_a_time(folder):
            check_targets([folder / name for name in self.files], self.source.files, self.overwrite)
            if self.overwrite and self.anew:
                self._name_data()
            self.staging.place_files(self.files, self.overwrite, own_data(self.target) if self.overwrite else ())
        self.discard()
        return self.target

    def _name_data(self) -> None:
        """Data never takes the name of other data, or an older graph would be read with it: the first free one of NAME.data, NAME.data.1, ..."""
        for old in self.files[:-1]:
            new = next(name for name in chain([old], (f"{old}.{k}" for k in count(1))) if not os.path.lexists(self.target.parent / name))
            if new != old:
                point_to(self.path, old, new)
                os.rename(self.staging.new / old, self.staging.new / new)
                self.files[self.files.index(old)] = new

    def discard(self) -> None:
        """Remove what has not been committed."""
        self.staging.discard()

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
    # In the source's own folder the copy needs a data file of its own, and data that is there already is never replaced: then it is written anew.
    beside = any((target.parent / name).resolve() == file or (overwrite and os.path.lexists(target.parent / name)) for name, file in source.data.items())
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
    check_targets([target.parent / name for name in sizes], source.files, overwrite)
    check_room(target.parent, sum(sizes.values()))
    staged = Staged(Staging(target.parent), target, list(sizes), overwrite, source, layout is not None)
    report = Report(progress, sum(sizes.values()))
    try:
        with writing(target):
            if layout:
                _write(layout, staged.staging.new, disk.opener(source.path), block_bytes, threads, report)
            else:
                _copy_files(copies, staged.staging.new, report)
        check_source(source)
    except BaseException:
        staged.discard()
        raise
    return staged


def check_targets(paths: list[Path], sources: list[Path], overwrite: bool) -> None:
    """No path may be a file of the source, under whatever name, nor an existing file unless it may be overwritten."""
    for path in (paths[-1], *paths[:-1]):  # the graph first: it is the file that was asked for
        if any(path.exists() and source.exists() and path.samefile(source) for source in sources):
            raise FileError(f"{path} is the source model itself, which is never changed", hint="choose another name")
        if path is paths[-1] or path.parent.is_dir():  # folders of data are made
            check_free(path, overwrite)


def check_source(source: Source) -> None:
    """FileError where a file of the source is no longer the one that was opened: half of it would be of one model, and half of another."""
    for file, who in source.seen.items():
        try:
            if disk.identity(file) == who:
                continue
            what = f"{file} was changed while it was read"
        except OSError as error:
            what = f"{file} went away while it was read: {error.strerror}"
        raise FileError(what, hint="run the command again when nobody writes to it; nothing was changed")


def own_data(target: Path) -> list[str]:
    """The data files named after the model at `target` that it alone reads: they go when it is replaced."""
    if not target.is_file():
        return []
    own = {name for name in locations(target) if re.fullmatch(re.escape(target.name) + r"\.data(\.[0-9]+)?", name)}
    others = [file for file in target.parent.glob("*.onnx*") if own and file.is_file() and file.name != target.name and file.name not in own]
    return sorted(name for name in own.difference(*map(locations, others)) if (target.parent / name).is_file())


def point_to(graph: Path, old: str, new: str) -> None:
    """Let a graph file that `_write` made find its data under another name."""
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new
    graph.write_bytes(model.SerializeToString())
    disk.sync_file(graph)


def _copy_files(copies: dict[str, Path], folder: Path, report: Report) -> None:
    for name, file in copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        size = file.stat().st_size
        with open(folder / name, "xb", buffering=0, opener=disk.opener(file)) as out:
            for at in range(0, size, COPY_BYTES):
                copy(file, at, out, at, min(COPY_BYTES, size - at))
                report.add(min(COPY_BYTES, size - at))
            os.fsync(out.fileno())


def _write(layout: Layout, folder: Path, opener, block_bytes: int, threads: int, report: Report) -> None:
    """All files of a layout."""
    for name, size in layout.sizes.items():
        with open(folder / name, "xb", opener=opener) as out:
            out.truncate(size)
            for of, offset, header in layout.headers:
                if of == name:
                    out.seek(offset)
                    out.write(header)
                    report.add(len(header))
    with Flusher(folder / layout.weight_file):
        run(jobs(layout.weights, block_bytes), folder / layout.weight_file, threads, report)
    for name in layout.sizes:
        disk.sync_file(folder / name)
