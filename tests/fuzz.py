"""Changed models, one after the other, through opening, planning, and now and then writing, exporting and running: only onnxgrow's own errors may come out.

    python -m tests.fuzz --minutes 120 --log /tmp/fuzz      goes on where an earlier run in the folder stopped; totals of all runs at the end
    python -m tests.fuzz --count 300                        so many from the first on, the same for everybody
    python -m tests.fuzz --minutes 10 --atheris             guided by coverage (pip install atheris)
    python -m tests.fuzz --only 1234                        one input again, with its traceback

Input k is made from the seed k alone: a source among small models (made by tests/random_graphs.py, those of the package, and with --zoo FOLDER any others)
and changes of tests/fuzz_changes.py. Inputs are tried in child processes, which are killed after SECONDS without an answer and may take MEMORY bytes
more than at their start. What is counted as a finding: another error than onnxgrow's own, a crash, a hang, too much memory, a file written elsewhere.
An error of Python that the outermost layer has turned into a refusal ("not understood here") is no finding, and is counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS, MEMORY = 10, 2 << 30
WALL = 60  # seconds of the clock for one of processor time, at most: others may be at work on the machine
BATCH = 25  # inputs for one child
MODELS = ROOT / "onnxgrow" / "models"
SEEDS = range(40)  # of tests/random_graphs.py
LARGEST = 2_200_000  # bytes of a source


@cache
def sources(zoo: tuple[str, ...] = ()) -> list[tuple[str, bytes]]:
    """(name, content) of the models that are changed."""
    from tests.random_graphs import build, draw

    found = [(f"random-{seed}", build(draw(seed)).SerializeToString()) for seed in SEEDS]
    files = [*sorted(MODELS.glob("*.onnx")), *(file for folder in zoo for file in sorted(Path(folder).glob("*.onnx")))]
    return found + [(file.stem, file.read_bytes()) for file in files if file.stat().st_size < LARGEST]


def made(seed: int, zoo: tuple[str, ...]) -> tuple[str, bytes]:
    """(name of the source, content) of one input."""
    from tests.fuzz_changes import bytes_changed, mutant

    rng = random.Random(seed)
    name, content = rng.choice(sources(zoo))
    return name, (bytes_changed if rng.random() < 0.12 else mutant)(rng, content)


def use(path: Path, rng: random.Random) -> None:
    """What users do with a model; errors of onnxgrow come out as they are."""
    from onnxgrow.model import Model
    from onnxgrow.provenance import growth_lines

    model = Model(path, dequantize=rng.random() < 0.05)
    growth_lines(model.opened.proto)
    model.architecture.to_json()
    sizes = model.roles.roles
    asked = [rng.choice([*sizes])] if sizes and rng.random() < 0.4 else [n for n in ("ffn", "hidden", "vocab") if n in sizes][: rng.randrange(1, 4)]
    request = {n: sizes[n].size * rng.choice((1, 2, 2)) + rng.choice((0, 0, 8)) for n in asked}
    if model.stacks and rng.random() < 0.2:
        request["layers"] = len(model.stacks[0].blocks) + 1
    plan = model.plan(set=request, method=rng.choice(("auto", "auto", "naive", "copy")))
    plan.lines(), plan.to_json(), plan.certificate
    if rng.random() < 0.15:
        plan.write(path.with_name("grown.onnx"), validate=rng.random() < 0.3, overwrite=True)
    if rng.random() < 0.1:
        from onnxgrow.pytorch.program import decompile

        compile(decompile(model).classes, "model.py", "exec")


def outcome(seed: int, zoo: tuple[str, ...], folder: Path) -> tuple[str, str]:
    """(kind, what) of one input: fine, refused, translated, or a finding by the place where it was raised."""
    from onnxgrow.errors import OnnxgrowError
    from onnxgrow.understood import Unforeseen

    name, content = made(seed, zoo)
    path = folder / "model.onnx"
    path.write_bytes(content)
    before = {*os.listdir(folder)}
    try:
        use(path, random.Random(seed + 1))
        return "fine", name
    except OnnxgrowError as problem:
        cause = problem.__cause__
        if isinstance(problem, Unforeseen):
            return "translated", f"{type(cause).__name__} at {_place(cause)}"
        if not problem.hint:
            return "finding", f"no next step: {problem.what}"
        if left := {*os.listdir(folder)} - before - {"grown.onnx"}:
            return "finding", f"left behind: {left}"
        return "refused", problem.what[:60]
    except BaseException as problem:
        return "finding", f"{type(problem).__name__} at {_place(problem)}: {str(problem)[:120]}"
    finally:
        for file in folder.glob("grown*"):
            file.unlink()


def _place(problem: BaseException) -> str:
    frames = traceback.extract_tb(problem.__traceback__)
    ours = [f for f in frames if "/onnxgrow/" in f.filename or "/rules/" in f.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "?"


# --- children ------------------------------------------------------------------------------------------------------------------------


def limited() -> None:
    """This process may take MEMORY bytes more than it has."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(seeds: list[int], zoo: tuple[str, ...], out: int) -> None:
    """Try inputs and write a line for each, `+` before it begins."""
    limited()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for seed in seeds:
            os.write(out, f"+{seed}\n".encode())
            begun = time.process_time()
            kind, what = outcome(seed, zoo, Path(folder))
            took = time.process_time() - begun
            if took > SECONDS and kind != "finding":
                kind, what = "finding", f"slow: {kind} {what}"
            os.write(out, (json.dumps([seed, kind, what, round(took, 2)]) + "\n").encode())


def tried(seeds: list[int], zoo: tuple[str, ...]) -> list[tuple[int, str, str, float]]:
    """Results of some inputs; a child that dies or hangs gives a finding, and the next one goes on behind it."""
    results, waiting = [], [*seeds]
    while waiting:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            try:
                _child(waiting, zoo, write)
            finally:
                os._exit(0)
        os.close(write)
        lines, hung = _watch(pid, read)
        done = [json.loads(line) for line in lines if line.startswith("[")]
        results += [tuple(d) for d in done]
        waiting = waiting[len(done):]
        if waiting:
            begun = [line for line in lines if line.startswith("+")]
            results.append((waiting[0], "finding", f"hang over {SECONDS} s" if hung else f"the process died ({'before' if not begun else 'while'} trying)", float(SECONDS)))
            waiting = waiting[1:]
    return results


def _watch(pid: int, read: int) -> tuple[list[str], bool]:
    """What a child writes, and whether it had to be killed."""
    import select

    text, hung, last, used = b"", False, time.monotonic(), 0.0
    while True:
        ready, _, _ = select.select([read], [], [], 1)
        if ready:
            new = os.read(read, 65536)
            if not new:
                break
            text, last, used = text + new, time.monotonic(), _seconds(pid)
        elif _seconds(pid) - used > SECONDS or time.monotonic() - last > SECONDS * WALL:
            os.kill(pid, signal.SIGKILL)
            hung = True
            break
    os.close(read)
    os.waitpid(pid, 0)
    return text.decode().splitlines(), hung


def _seconds(pid: int) -> float:
    """Processor time of a child until now."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


# --- runs ----------------------------------------------------------------------------------------------------------------------------


def preload() -> None:
    """What children need is imported once."""
    import onnxruntime  # noqa: F401

    import onnxgrow.describe
    import onnxgrow.model
    import onnxgrow.pytorch.program
    import onnxgrow.runtime
    import onnxgrow.validate  # noqa: F401


def run(first: int, count: int | None, minutes: float | None, zoo: tuple[str, ...], log: Path | None) -> Counter:
    """Try inputs from seed `first` on; totals by kind. Findings and translations are written to the log as they come."""
    preload()
    sources(zoo)
    totals: Counter = Counter()
    begun, seed = time.monotonic(), first
    while (count is None or seed < first + count) and (minutes is None or time.monotonic() - begun < 60 * minutes):
        seeds = [*range(seed, min(seed + BATCH, first + count) if count is not None else seed + BATCH)]
        for one in tried(seeds, zoo):
            totals[one[1]] += 1
            if one[1] == "finding":
                print(*one, flush=True)
            if log and one[1] in ("finding", "translated"):
                with open(log / "found.jsonl", "a") as file:
                    file.write(json.dumps(one) + "\n")
        seed = seeds[-1] + 1
        if log:
            (log / "next").write_text(str(seed))
            with open(log / "runs.jsonl", "a") as file:
                file.write(json.dumps({"inputs": len(seeds), "until": time.time(), "minutes": (time.monotonic() - begun) / 60, "pid": os.getpid()}) + "\n")
    return totals


def totals_of(log: Path) -> str:
    """All runs of a folder together."""
    runs = [json.loads(line) for line in (log / "runs.jsonl").read_text().splitlines()]
    last = {r["pid"]: r["minutes"] for r in runs}
    found = [json.loads(line) for line in (log / "found.jsonl").read_text().splitlines()] if (log / "found.jsonl").exists() else []
    kinds = Counter(kind for _, kind, _, _ in found)
    return f"{sum(r['inputs'] for r in runs)} inputs in {sum(last.values()):.0f} minutes, {len(last)} runs: {kinds['finding']} findings, {kinds['translated']} translated"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--count", type=int)
    parser.add_argument("--first", type=int)
    parser.add_argument("--zoo", action="append", default=[])
    parser.add_argument("--log", type=Path)
    parser.add_argument("--only", type=int)
    parser.add_argument("--atheris", action="store_true")
    options = parser.parse_args()
    zoo = tuple(options.zoo)
    if options.atheris:
        from tests.fuzz_atheris import main as guided

        return guided(options.minutes or 10, options.log)
    if options.only is not None:
        name, content = made(options.only, zoo)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(content)
            print("source:", name)
            use(path, random.Random(options.only + 1))
        return None
    if options.log:
        options.log.mkdir(parents=True, exist_ok=True)
    first = options.first
    if first is None:
        first = int((options.log / "next").read_text()) if options.log and (options.log / "next").exists() else 0
    minutes = options.minutes if options.minutes or options.count else 1
    found = run(first, options.count, minutes, zoo, options.log)
    print(dict(found))
    if options.log:
        print(totals_of(options.log))
    sys.exit(1 if found["finding"] else 0)


if __name__ == "__main__":
    main()
