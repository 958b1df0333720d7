"""`python -m tests.faults --kills 500 --full 100 --eio 100 --short 100 --table docs/reliability/writes.md`."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxgrow.interrupts import stoppable
from tests.faults import shim as layer

KINDS = {"kills": "SIGKILL", "stops": "SIGTERM and Ctrl-C", "full": "full disk", "eio": "read and write errors (EIO)", "short": "short reads and writes"}
BEGIN, END = "<!-- measured by tests.faults -->", "<!-- end -->"
LIBRARY = "ONNXGROW_FAULTS_SHIM"


def main() -> int:
    options = arguments()
    if LIBRARY not in os.environ:
        library = layer.build(Path(tempfile.mkdtemp(prefix="onnxgrow-faults-", dir=options.folder)))
        if library is None:
            print("skipped: this needs a C compiler and LD_PRELOAD")
            return 77
        os.execve(sys.executable, [sys.executable, "-m", "tests.faults", *sys.argv[1:]], os.environ | {LIBRARY: str(library), "LD_PRELOAD": str(library)})
    try:
        with stoppable(), tempfile.TemporaryDirectory(prefix="onnxgrow-faults-", dir=options.folder) as folder:
            return measure(options, Path(folder))
    finally:
        shutil.rmtree(Path(os.environ[LIBRARY]).parent)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Let writing go wrong, and look at what is left.")
    for name, what in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=f"{what}: how many cases")
    parser.add_argument("--together", type=int, default=0, metavar="N", help="rounds of ten runs at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="scenes with this in their name")
    parser.add_argument("--folder", help="where to work (a disk with some hundred MB)")
    parser.add_argument("--table", type=Path, help="page to write the numbers into")
    return parser.parse_args()


def measure(options: argparse.Namespace, base: Path) -> int:
    from tests.faults import together
    from tests.faults.scenes import scenes

    start, shim = time.monotonic(), layer.Shim(os.environ[LIBRARY])
    found = [scene for scene in scenes(base) if options.only in scene.name]
    outcomes = {kind: [] for kind in KINDS}
    with small_disk(base) as room, told_when_stopped():
        for kind in KINDS:
            dice = random.Random(f"{options.seed} {kind}")
            for outcome in itertools.islice(drawn(kind, found, shim, dice, room), getattr(options, kind)):
                outcomes[kind].append(outcome)
                for what in outcome.wrong:
                    print(f"WRONG: {KINDS[kind]}: {outcome.scene}: {outcome.ended}: {what}", flush=True)
            print(row(kind, outcomes[kind]), f" {time.monotonic() - start:.0f} s", flush=True)
        disk = "a tmpfs of 64 MB" if room else "errors alone (no right to mount a small disk)"
    rounds = [together.round_of_ten(base, found, random.Random(f"{options.seed} {k}")) for k in range(options.together)]
    for what in itertools.chain(*rounds):
        print(f"WRONG: together: {what}", flush=True)
    lines = table(found, outcomes, rounds, disk)
    print("\n".join(lines), f"\n{time.monotonic() - start:.0f} s")
    if options.table:
        text = options.table.read_text(encoding="utf-8")
        made = "\n".join([BEGIN, "", *lines, "", END])
        options.table.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.S), encoding="utf-8")
    return int(any(o.wrong for of_kind in outcomes.values() for o in of_kind) or any(rounds))


def drawn(kind: str, scenes: list, shim: layer.Shim, dice: random.Random, room: Path | None) -> Iterator:
    """Cases of one kind, from each scene in turn, without end; what ended before its fault is no case."""
    from tests.faults import cases

    groups = {"full": layer.WRITES | layer.NAMES}.get(kind, layer.ALL)
    counts = {scene.name: cases.calls(scene, shim, groups) for scene in scenes if scene.new}
    seconds = {scene.name: cases.duration(scene, shim) for scene in scenes} if kind == "kills" else {}
    for number, scene in ((n, s) for n in itertools.count() for s in scenes):
        at, second = dice.randint(1, counts[scene.name]), number % 2 == 1
        if kind == "kills" and second:
            outcome = cases.run(scene, shim, delay=dice.uniform(0, seconds[scene.name]))
            if outcome.ended == "done" and not outcome.wrong:
                continue
        elif kind in ("kills", "stops"):
            signal = layer.KILL if kind == "kills" else dice.choice([layer.TERM, layer.INTERRUPT])
            outcome = cases.run(scene, shim, lambda s: s.arm(layer.SIGNAL, scene.home, at, number=signal))
            outcome.wrong += [f"{kind}: {what}" for what in stopped_wrongly(outcome)] if kind == "stops" else []
        elif kind == "full" and second and room:
            free = dice.randint(0, 1 << (13 if "recipe" in scene.name else 22))
            outcome = cases.run(scene, shim, cases.unseen, room=room, free=free)
        elif kind in ("full", "eio"):
            error, on = (layer.FULL, True) if kind == "full" else (layer.BROKEN, dice.random() < 0.5)
            outcome = cases.run(scene, shim, lambda s: s.arm(layer.FAIL, scene.home, at, groups, error, on))
        else:
            outcome = cases.run(scene, shim, lambda s: s.arm(layer.SHORT, scene.home, 1, layer.READS | layer.WRITES, on=True))
            outcome.wrong += [f"a short transfer is no error: {outcome.ended}"] * (outcome.ended != "done")
        yield outcome


def stopped_wrongly(outcome) -> list[str]:
    """After SIGTERM and Ctrl-C nothing is left over at once, not only after the next run."""
    return ["something is left over"] * outcome.leftover + [f"ended as {outcome.ended}"] * (outcome.ended not in ("stopped", "done"))


@contextmanager
def told_when_stopped() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the cases, and what there is by then is shown."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped before the end")


@contextmanager
def small_disk(base: Path) -> Iterator[Path | None]:
    """A tmpfs of 64 MB; None without the right to mount one."""
    room = base / "room"
    room.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", room], capture_output=True).returncode == 0
    try:
        yield room if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", room], check=True)


def table(scenes: list, outcomes: dict, rounds: list, disk: str) -> list[str]:
    """What was found, as Markdown."""
    lines = ["| fault | cases | target after it: old or none | target after it: new | said what to do | taken away by the next run | wrong files | sources changed |",
             "|---|---|---|---|---|---|---|---|"]
    lines += [row(kind, outcomes[kind]) for kind in KINDS if outcomes[kind]]
    lines += ["", f"{len(scenes)} scenes: {'; '.join(dict.fromkeys(s.name.rpartition(',')[0] for s in scenes))}; each onto nothing and over an older target. "
              f"The full disk is {disk} in half of the cases, and ENOSPC from some call on in the others."]
    if rounds:
        lines += ["", f"Ten runs at the same time, {len(rounds)} rounds ({10 * len(rounds)} runs, some of them beside a reader): {sum(map(len, rounds))} wrong."]
    return lines


def row(kind: str, outcomes: list) -> str:
    target, wrong = Counter(o.target for o in outcomes), sum(bool(o.wrong) for o in outcomes)
    told = sum(o.ended.startswith(("refused", "stopped")) for o in outcomes)
    lost = sum("the source was changed" in o.wrong for o in outcomes)
    return (f"| {KINDS[kind]} | {len(outcomes)} | {target['old'] + target['none']} | {target['new']} | {told} | {sum(o.leftover for o in outcomes)} "
            f"| {wrong} | {lost} |")


if __name__ == "__main__":
    sys.exit(main())
