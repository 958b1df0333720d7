"""Ten runs at the same time: into different targets, onto the same one, and over one that is being read."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import onnx

from onnxgrow.errors import FileError
from tests.faults.scenes import Scene, contents, digest


def round_of_ten(base: Path, scenes: list[Scene], dice: random.Random) -> list[str]:
    """What went wrong in one round: scene, and whether all have one target, are drawn."""
    scene, same = dice.choice(scenes), dice.random() < 0.7
    folders = [base / f"together-{k}" for k in range(1 if same else 10)]
    for folder in folders:
        shutil.copytree(scene.start, folder)
    before = contents(scene.home / "source")
    reader = _forked(lambda: _read(folders[0] / scene.target, {scene.old, scene.new})) if scene.target == "out.onnx" and scene.force else None
    children = [_forked(lambda k=k: _write(scene, folders[k % len(folders)])) for k in range(10)]
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    wrong = [f"{scene.name}: a run ended with {code}" for code in ended if code not in (0, 1)]
    if reader:
        os.kill(reader, signal.SIGTERM)
        wrong += [f"{scene.name}: a reader saw another model"] * (os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 3)
    good = ended.count(0)
    wrong += [f"{scene.name}: {good} of 10 went through"] * (not (good == 1 if same and not scene.force else good == 10))
    for folder in folders:
        wrong += [f"{scene.name}: another result than alone"] * (digest(folder / scene.target) != scene.new)
        more = {file.name for file in folder.iterdir()} - scene.names(folder)
        wrong += [f"{scene.name}: left: {', '.join(more)}"] * bool(more)
        shutil.rmtree(folder)
    return wrong + [f"{scene.name}: the source was changed"] * (contents(scene.home / "source") != before)


def _forked(act) -> int:
    child = os.fork()
    if child == 0:
        code = 4
        try:
            code = act()
        finally:
            os._exit(code)
    return child


def _write(scene: Scene, folder: Path) -> int:
    try:
        scene.act(folder, scene.force)
        return 0
    except FileError as error:
        return 1 if "exists" in error.what else 2


def _read(target: Path, whole: set[str]) -> int:
    """Read the model again and again: it is an old or a new one; its data may be gone when the graph was replaced meanwhile, which is told."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        try:
            if digest(target) not in whole:
                return 3
        except (FileNotFoundError, onnx.checker.ValidationError):
            time.sleep(0.001)
