"""Move bytes into one file from several threads: computed blocks, plain copies, and the hand-over to the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from .errors import FileError
from .layout import Weight
from .mapped import reading
from .stream import Stream

BLOCK_BYTES = 1 << 21  # a block should still be in the cache when it is handed to the kernel
COPY_BYTES = 1 << 26  # copies stay in the kernel
WRITE_BYTES = 1 << 17  # for larger writes Linux looks for larger runs of free memory: up to 4 times slower at 2 MB
FLUSH_SECONDS = 0.2

Progress = Callable[[int, int], None]


@dataclass
class Report:
    """Counts bytes from several threads and passes them on."""

    progress: Progress | None
    total: int
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        with self.lock:
            self.done += count
            if self.progress:
                self.progress(self.done, self.total)


def jobs(weights: list[Weight], block_bytes: int) -> Iterator[Callable]:
    """The work in file order: functions that take an open file and a buffer, and return how many bytes they wrote."""
    for weight in weights:
        if weight.recipe is None:
            for at in range(0, weight.length, COPY_BYTES):
                yield partial(_copy_weight, weight, at, min(COPY_BYTES, weight.length - at))
        else:
            stream = Stream(weight.recipe, weight.ref.array())
            step = max(1, block_bytes // max(1, stream.row_bytes))
            for row in range(0, stream.rows, step):
                yield partial(_compute, stream, weight, row, min(step, stream.rows - row))


def run(jobs: Iterator[Callable], path: Path, threads: int, report: Report) -> None:
    """Do all jobs in `threads` threads, this one included; the first exception stops them all and is raised here."""
    failed: list[BaseException] = []
    lock = threading.Lock()

    def work() -> None:
        try:
            with open(path, "r+b", buffering=0) as out:
                buffer = _Buffer()
                while not failed:
                    with lock:
                        job = next(jobs, None)
                    if job is None:
                        return
                    report.add(job(out, buffer))
        except BaseException as error:  # also KeyboardInterrupt: it is raised again below
            failed.append(error)

    others = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    work()
    try:
        for thread in others:
            thread.join()
    except BaseException as error:
        failed.append(error)
        for thread in others:  # each stops after the job that it is at
            thread.join()
    if failed:
        raise failed[0]


class Flusher:
    """Hands a file to the disk while it is still being written, so that the sync at the end finds little to do.

    An error of the disk is told once, to whoever asks first: the one that is met here is raised at the end of the block.
    """

    def __init__(self, path: Path):
        self.path, self.done, self.failed = path, threading.Event(), None
        self.thread = threading.Thread(target=self._flush, daemon=True)

    def _flush(self) -> None:
        sync = getattr(os, "fdatasync", os.fsync)
        try:
            with open(self.path, "r+b") as file:
                while not self.done.wait(FLUSH_SECONDS):
                    sync(file.fileno())
        except OSError as error:
            self.failed = error

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, kind, *_) -> None:
        self.done.set()
        self.thread.join()
        if kind is None and self.failed:
            raise self.failed


class _Buffer:
    """Memory that a thread uses again for each block: fresh pages would cost as much as the copy."""

    def __init__(self):
        self.bytes = np.empty(0, np.uint8)

    def table(self, rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
        """[rows, columns], uninitialised."""
        size = rows * columns * dtype.itemsize
        if size > self.bytes.size:
            self.bytes = np.empty(size, np.uint8)
        return self.bytes[:size].view(dtype).reshape(rows, columns)


def _compute(stream: Stream, weight: Weight, row: int, rows: int, out, buffer: _Buffer) -> int:
    block = buffer.table(rows, stream.columns, stream.dtype)
    stream.fill(np.arange(row, row + rows), block)
    out.seek(weight.offset + row * stream.row_bytes)
    _write_all(out, block.view(np.uint8))
    return block.nbytes


def _copy_weight(weight: Weight, at: int, count: int, out, _: _Buffer) -> int:
    copy(weight.ref.file, weight.ref.offset + at, out, weight.offset + at, count)
    return count


def copy(file: Path, at: int, out, to: int, count: int) -> None:
    """Copy bytes of a file into an open one, inside the kernel where it can."""
    end = at + count
    with reading(file):
        source = open(file, "rb", buffering=0)
    with source:
        try:
            while at < end and (done := os.copy_file_range(source.fileno(), out.fileno(), end - at, at, to)):
                at, to = at + done, to + done
        except (AttributeError, OSError):  # not Linux, or not between these file systems; what is wrong is met again below
            pass
        out.seek(to)
        source.seek(at)
        while at < end:
            with reading(file):
                block = source.read(min(BLOCK_BYTES, end - at))
            if not block:
                raise FileError(f"{file} became shorter while it was read", hint="run the command again when nobody writes to it; nothing was changed")
            _write_all(out, block)
            at += len(block)


def _write_all(out, block) -> None:
    """Write a buffer to an unbuffered file, in parts that the kernel takes fastest."""
    view = memoryview(block).cast("B")
    while len(view):
        view = view[out.write(view[:WRITE_BYTES]) :]
