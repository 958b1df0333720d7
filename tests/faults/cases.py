"""One case: a child does what a scene says and meets its fault, the parent looks at what is left, and a clean run follows."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from onnxgrow import atomic, write
from onnxgrow.errors import FileError
from onnxgrow.interrupts import stoppable
from tests.faults.scenes import TEMPORARY, Scene, contents, digest
from tests.faults.shim import COUNT, Shim

PATIENCE = 120  # seconds that a child may take; then it hangs
numbers = itertools.count()


@dataclass
class Outcome:
    """What became of one case: `wrong` is empty where all is as promised."""

    scene: str
    ended: str  # "done", "refused: MESSAGE", "stopped", "killed", "crashed: ..."
    target: str = ""  # "old", "new", "none"
    leftover: bool = False
    wrong: list[str] = field(default_factory=list)


def run(scene: Scene, shim: Shim, arm=lambda shim: None, *, delay: float | None = None, room: Path | None = None, free: int = 0) -> Outcome:
    """One case.

    Args:
        arm: called in the child before the command.
        delay: seconds after which the child is killed.
        room: a small disk to write on, of which `free` bytes are left; None: beside everything else.
    """
    folder = (room or scene.home) / f"case-{next(numbers)}"
    shutil.copytree(scene.start, folder)
    if room:
        nearly_full(room, free)
    before = contents(scene.home / "source")
    outcome = Outcome(scene.name, _child(lambda: _act(scene, folder, shim, arm), delay))
    _judge(outcome, scene, folder)
    if room:
        (room / "ballast").unlink()
    _again(outcome, scene, folder)
    if contents(scene.home / "source") != before:
        outcome.wrong.append("the source was changed")
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _act(scene: Scene, folder: Path, shim: Shim, arm) -> str:
    """In the child: the command, and how it ended."""
    try:
        with stoppable():
            arm(shim)
            scene.act(folder, scene.force)
        return "done"
    except FileError as error:
        return f"refused: {error.what}" if error.hint else f"crashed: no next step in {error.what}"
    except KeyboardInterrupt:
        return "stopped"
    except BaseException:
        return f"crashed: {traceback.format_exc()}"
    finally:
        shim.off()


def _child(act, delay: float | None) -> str:
    """Run `act` in a forked process; what it returned, or how it ended otherwise."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(reads)
        said = act()
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    status, until = None, time.monotonic() + PATIENCE
    kill_at = time.monotonic() + delay if delay is not None else until
    while status is None:
        done, found = os.waitpid(child, os.WNOHANG)
        if done:
            status = found
        elif time.monotonic() >= kill_at:
            os.kill(child, signal.SIGKILL)
            kill_at = until
        else:
            time.sleep(0.0005)
    with os.fdopen(reads) as file:
        said = file.read()
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGKILL and time.monotonic() < until else f"crashed: signal {os.WTERMSIG(status)}"
    return said


def _leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.startswith(TEMPORARY)]


def _judge(outcome: Outcome, scene: Scene, folder: Path) -> None:
    """What must hold right after the fault."""
    target, wrong = folder / scene.target, outcome.wrong
    if not target.exists():
        outcome.target = "none"
        wrong += ["the old target is gone"] * scene.force
    else:
        try:
            found = digest(target)
        except Exception as error:  # a model that cannot be read is the worst of all
            found = f"unreadable: {error}"
        outcome.target = {scene.old: "old", scene.new: "new"}.get(found, "wrong")
        wrong += [f"the target is neither the old one nor the new one: {found}"] * (outcome.target == "wrong")
    outcome.leftover = bool(_leftovers(folder))
    if outcome.ended.startswith("crashed"):
        wrong.append(outcome.ended)
    if outcome.ended == "done" and outcome.target != "new":
        wrong.append(f"said to be done, and the target is {outcome.target}")
    if outcome.ended.startswith("refused") and outcome.target == "new" and "did not confirm" not in outcome.ended:
        wrong.append(f"said to be refused, and the target is new: {outcome.ended}")


def _again(outcome: Outcome, scene: Scene, folder: Path) -> None:
    """An undisturbed run afterwards makes the right thing, and nothing else is left. It may replace what the first one had finished."""
    try:
        scene.act(folder, scene.force or outcome.target == "new")
        if digest(folder / scene.target) != scene.new:
            outcome.wrong.append("the next run makes something else")
        left = {file.name for file in folder.iterdir()} - scene.names(folder)
        outcome.wrong += [f"the next run leaves {', '.join(sorted(left))}"] * bool(left)
    except Exception:
        outcome.wrong.append(f"the next run fails: {traceback.format_exc()}")


# --- the faults --------------------------------------------------------------------------------------------------------


def calls(scene: Scene, shim: Shim, groups: int) -> int:
    """How many calls of these groups the command makes."""
    folder = scene.home / f"case-{next(numbers)}"
    shutil.copytree(scene.start, folder)
    shim.arm(COUNT, scene.home, groups=groups)
    try:
        scene.act(folder, scene.force)
    finally:
        shim.off()
    shutil.rmtree(folder)
    return shim.seen()


def duration(scene: Scene, shim: Shim) -> float:
    """Seconds that the command takes in a child, in the middle of three tries."""
    def once() -> float:
        folder = scene.home / f"case-{next(numbers)}"
        shutil.copytree(scene.start, folder)
        start = time.monotonic()
        _child(lambda: _act(scene, folder, shim, lambda _: None), None)
        shutil.rmtree(folder)
        return time.monotonic() - start
    return sorted(once() for _ in range(3))[1]


def nearly_full(room: Path, free: int) -> None:
    """Leave so many bytes on a small disk."""
    (room / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(room).free - free)))


def unseen(shim: Shim) -> None:
    """The look at the disk before writing is of no use: it is others that fill it meanwhile."""
    atomic.check_room = write.check_room = lambda *_: None
