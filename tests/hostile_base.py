"""What the hostile corpus is built of: a small sound transformer, the list of cases, and a safe place to try them in.

A case makes files in a folder and names the commands that are to meet them. Each command runs in a child process of a parent that has loaded everything,
with MEMORY bytes and SECONDS of processor time at most. Whatever happens, `misdeeds` must be empty: no traceback, no death, no hang, no raw control
characters on the screen, no file touched but the target, and a refusal says what to do next.
"""

from __future__ import annotations

import importlib
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import onnx

MEMORY, SECONDS, WALL = 2 << 30, 10, 300  # bytes more than at the start; of processor time; of the clock, since others may be at work
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
INSPECT, EXPAND = "inspect model.onnx", "expand model.onnx --ffn 40 -o out/grown.onnx"


@dataclass(frozen=True)
class Case:
    """A hostile file and what is done with it.

    Attributes:
        name, about: for the table.
        make: writes the files into a folder; returns the model for model.onnx (or its bytes), or None where it wrote all itself.
        says: a part of what the last command says; "" where it goes through.
        commands: in order; without any, expand.
    """

    name: str
    about: str
    make: Callable[[Path], onnx.ModelProto | bytes | None]
    says: str
    commands: tuple[str, ...] = (EXPAND,)
    patch: tuple[str, str, object] | None = None  # (module, name, value): a limit that is too far away to wait for


CASES: dict[str, Case] = {}
GROUPS: dict[str, list[str]] = {}


class Group:
    """Cases below one heading. `case` decorates a maker: its docstring is what the case is about."""

    def __init__(self, title: str):
        self.title = title
        GROUPS.setdefault(title, [])

    def __call__(self, says: str, *commands: str, name: str = "", about: str = "") -> Callable:
        def entered(make):
            self.add(name or make.__name__.replace("_", " "), about or " ".join((make.__doc__ or "").split()), make, says, *commands)
            return make
        return entered

    def add(self, name: str, about: str, make: Callable, says: str, *commands: str, patch: tuple | None = None) -> None:
        assert name not in CASES, name
        CASES[name] = Case(name, about, make, says, commands or (EXPAND,), patch)
        GROUPS[self.title].append(name)


# --- sound models --------------------------------------------------------------------------------------------------------------------


@cache
def _base() -> bytes:
    from tests.random_graphs import build, draw

    return build(draw(4, form="plain", mask="none", cache=False, lora=0, norm="layer-spelled", place="before", mlp="plain", act="relu", rotary="", opset=17)).SerializeToString()


def base() -> onnx.ModelProto:
    """A small sound transformer, whose feed-forward part can grow to 40."""
    return onnx.ModelProto.FromString(_base())


def carried(name: str = "tiny-llama") -> Path:
    return Path(__file__).parents[1] / "onnxgrow" / "models" / f"{name}.onnx"


# --- trying --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Tried:
    """What came of one case: exit codes, what was said, and what should not have happened."""

    codes: list[int] = field(default_factory=list)
    said: str = ""
    misdeeds: list[str] = field(default_factory=list)


def preload() -> None:
    """What children need is imported once; none of it starts threads."""
    import onnxruntime  # noqa: F401

    import onnxgrow.commands
    import onnxgrow.describe
    import onnxgrow.difference
    import onnxgrow.model
    import onnxgrow.pages.facts
    import onnxgrow.pages.render
    import onnxgrow.pytorch
    import onnxgrow.terminal.growth
    import onnxgrow.terminal.progress  # noqa: F401

    base()


def tried(case: Case, folder: Path) -> Tried:
    """Make the files of a case in `folder`/work and run its commands there, one after the other."""
    work = folder / "work"
    (work / "out").mkdir(parents=True)
    (folder / "secret.bin").write_bytes(b"secret " * 4096)
    made = case.make(work)
    if made is not None:
        (work / "model.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    found, before = Tried(), state(folder)
    for command in case.commands:
        code, out, err = run(command.split(" "), work, case.patch)
        found.codes.append(code)
        found.said = _last_word(out, err) if code else out.splitlines()[0] if out else err.strip()
        found.said = found.said.replace(f"{work}/", "")
        found.misdeeds += [f"{command}: {deed}" for deed in _misdeeds(code, out, err)]
    after = state(folder)
    found.misdeeds += [f"changed {name}" for name, what in before.items() if after.get(name) != what]
    found.misdeeds += [f"left {name}" for name in after if name not in before and not (name.startswith("work/out/") and ".onnxgrow-" not in name)]
    shutil.rmtree(folder)
    return found


def state(folder: Path) -> dict[str, tuple]:
    """Every entry below a folder, links not followed."""
    out = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            s = path.lstat()
            out[str(path.relative_to(folder))] = (s.st_mode, s.st_ino, *(() if path.is_dir() else (s.st_size, s.st_mtime_ns)))
    return out


def _last_word(out: str, err: str) -> str:
    lines = [line for line in (err or out).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith(("error:", "Error:"))), lines[-1] if lines else "").removeprefix("error: ")


def _misdeeds(code: int, out: str, err: str) -> list[str]:
    deeds = []
    if code not in (0, 1, 2):
        deeds.append(f"died with {code}")
    if "Traceback" in out + err:
        deeds.append("a traceback: " + err.strip().splitlines()[-1][:200])
    if "is not understood: " in err:
        deeds.append("nobody thought of it: " + err.strip()[:300])
    if found := CONTROL.search(out + err):
        deeds.append(f"raw {found[0]!r} on the screen")
    if "error: " in err and "next: " not in err and "Usage: " not in err:
        deeds.append("refused without a next step: " + err.strip()[:200])
    return deeds


def run(arguments: list[str], folder: Path, patch: tuple | None = None) -> tuple[int, str, str]:
    """Exit code (negative: the signal), stdout and stderr of a command in a limited child."""
    out, err = folder.parent / "stdout", folder.parent / "stderr"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            if patch:
                setattr(importlib.import_module(patch[0]), *patch[1:])
            code = _command(arguments, folder, out, err)
        finally:
            os._exit(code)
    begun = time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - begun > WALL:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
    out.unlink(), err.unlink()
    return (os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)), *texts


def _command(arguments: list[str], folder: Path, out: Path, err: Path) -> int:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
    os.chdir(folder)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from onnxgrow.commands import main

    code = 99
    try:
        main(arguments, prog_name="onnxgrow")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    return code
