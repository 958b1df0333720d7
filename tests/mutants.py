"""Mutation testing of the code that decides what a grown model holds: one operator, number or statement changed at a time, and tests that must see it.

mutmut and cosmic-ray start a new interpreter for each mutant, and importing torch, transformers and ONNX Runtime takes longer than the tests.
Here one process imports these libraries once. First each test file runs in a fork of it, under coverage.py, to see which tests reach which lines;
then each mutant is a fork in which one module of onnxgrow is compiled from a changed tree before anything has imported it, and meets the tests
that reach its line, the quick ones first.

    python -m tests.mutants --minutes 60 --kept /tmp/mutants --table docs/reliability/mutants.md

The order of mutants is random and always the same, so that a run that is cut short is a sample; with the same --kept the next one goes on.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import yaml

from tests.mutated import Mutant, changed, in_order, source_of, state_of

MODULES = ("axismap", "recipe", "stream", "noise", "maps", "cells", "flow", "solve", "treatments", "standin", "repairs", "apply", "decide", "regions")
TESTS = ("golden", "corrupted", "recipe", "regions", "growth", "deepen", "vocab", "several_widths", "write", "ties", "standin", "experts", "positions", "fixed_sizes", "untouched", "diff", "limits",
         "validate", "numbers", "unshare", "errors", "rules", "gradient", "quantized", "idioms", "lines", "blocks", "types", "evidence", "loops", "parts", "free_names")  # fmt: skip
PATIENCE = 10  # times so long a mutant may take, and a minute, before it counts as one that hangs
IDLE = 10  # the same by the clock, times that of the processor
MEMORY = 32 << 30  # of addresses, which libraries reserve plenty of
SURVIVORS = Path(__file__).with_name("survivors.yaml")  # why those that no test kills may live
KILLED, SAME = ("killed", "hangs"), "the same"


# --- forks -----------------------------------------------------------------------------------------------------------


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed module to whoever imports it."""

    def __init__(self, mutant: Mutant):
        self.name, self.file = f"onnxgrow.{mutant.module}", source_of(mutant.module)
        self.code = compile(changed(mutant), str(self.file), "exec")

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self, origin=str(self.file)) if name == self.name else None

    def exec_module(self, module) -> None:
        module.__file__ = str(self.file)
        exec(self.code, module.__dict__)  # noqa: S102 -- it is our own


def in_fork(work: Callable[[Path], int], seconds: float) -> int | None:
    """What `work` returns in a child with a folder of its own for temporary files and `seconds` of processor time; None where it hangs, 70 where it dies."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    child = os.fork()
    if not child:
        code = 70
        try:
            _confine(folder, seconds)
            code = work(folder)
        finally:
            os._exit(code)  # a fork must never go on as its parent
    try:
        _, status = os.waitpid(child, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if os.WIFSIGNALED(status):
        return None if os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL) else 70
    return os.WEXITSTATUS(status)


def _confine(folder: Path, seconds: float) -> None:
    """Seconds of processor time, so that a busy machine kills nobody; and more by the clock, for who sleeps for ever."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(IDLE * seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def import_libraries() -> None:
    """All that a fork needs, and nothing of onnxgrow."""
    os.environ.setdefault("ONNXGROW_ZOO", tempfile.gettempdir())  # exports are kept from fork to fork
    import hypothesis  # noqa: F401
    import ml_dtypes  # noqa: F401
    import onnx.checker  # noqa: F401
    import onnx.shape_inference  # noqa: F401
    import onnxruntime  # noqa: F401
    import pytest  # noqa: F401
    import torch.onnx  # noqa: F401

    from tests import reached, zoo  # noqa: F401  (the models and transformers)

    assert not any(name == "onnxgrow" or name.startswith("onnxgrow.") for name in sys.modules)


# --- trying one ------------------------------------------------------------------------------------------------------


def look(kept: Path, modules: tuple[str, ...]):
    """Which tests reach which lines: of each test file once."""
    from tests.reached import Reached, read, watch

    place = kept / "reached.jsonl"
    known = {one["file"] for one in read(place)}

    def kept_after(file: str) -> int:
        text = json.dumps(watch(file, modules))
        with place.open("a") as out:
            out.write(text + "\n")
        return 0

    for file in (f"tests/test_{name}.py" for name in TESTS):
        if file not in known:
            begun = time.time()
            code = in_fork(lambda _, file=file: kept_after(file), 3600)
            print(f"{file}: {time.time() - begun:.0f} s{'' if code == 0 else ', failed'}", flush=True)
    return Reached(read(place))


def judge(m: Mutant, reached, budget: float) -> str:
    """`killed`, `hangs`, `survived`, or `unreached` where no test executes it."""
    from tests.reached import QUIET

    finder = Finder(m)  # what cannot be compiled is a mistake here, and kills nobody

    def meet(folder: Path, tests: list[str]) -> int:
        import pytest

        sys.meta_path.insert(0, finder)
        return int(pytest.main([*QUIET, "-x", f"--basetemp={folder}/pytest", *tests]))

    verdict = "unreached"
    for tests in reached.rounds(m, budget):
        code = in_fork(partial(meet, tests=tests), 60 + PATIENCE * sum(map(reached.seconds.get, tests)))
        verdict = "hangs" if code is None else "killed" if code else "survived"
        if verdict != "survived":
            break
    return verdict


def run(todo: list[Mutant], kept: Path, end: float, reached, budget: float) -> Iterator[tuple[Mutant, str]]:
    """The verdict of each, that of an earlier run where it has one (and survived no smaller budget than this); no new one after `end`."""
    place = kept / "results.jsonl"
    done = {d["key"]: d for d in map(json.loads, place.read_text().splitlines())} if place.exists() else {}
    known_reasons = reasons()
    with place.open("a") as file:
        for m in todo:
            if known_reasons.get(at(m), "").startswith(SAME):
                yield m, SAME
                continue
            key = f"{state_of(m.module)}:{m.key}"
            known = done.get(key, {})
            verdict = known.get("verdict")
            if (verdict is None or (verdict == "survived" and known["budget"] < budget)) and time.time() < end:
                verdict = judge(m, reached, budget)
                file.write(json.dumps({"key": key, "verdict": verdict, "budget": budget} | asdict(m)) + "\n")
                file.flush()
                print(f"{verdict:9} {m.key}", flush=True)
            if verdict:
                yield m, verdict


# --- the page --------------------------------------------------------------------------------------------------------


def at(m: Mutant) -> tuple[str, str, int, str]:
    """By what a reason is kept: lines move."""
    return m.module, m.change, m.column, m.text


def reasons() -> dict[tuple[str, str, int, str], str]:
    return {tuple(key): reason for *key, reason in yaml.safe_load(SURVIVORS.read_text())}


def section(found: list[tuple[Mutant, str]], modules: tuple[str, ...]) -> str:
    """What stands behind the mark in the page."""
    columns = ("killed", "hangs", "survived", "unreached", SAME)
    rows = {module: Counter(verdict for m, verdict in found if m.module == module) for module in modules}
    every = Counter(m.module for m in in_order(modules))

    def line(name: str, of: int, c: Counter) -> str:
        others = c.total() - c[SAME]
        share = f"{sum(c[v] for v in KILLED) / others:.1%}" if others else "–"
        return f"| {name} | {of} | {c.total()} | {' | '.join(str(c[v]) for v in columns)} | {share} |"

    why = reasons()
    left = [f"| `{m.module}.py:{m.line}` | `{m.text.replace('|', chr(92) + '|')}` | {m.change} | {why.get(at(m), 'not yet looked at')} |"
            for m, verdict in sorted(found, key=lambda x: (x[0].module, x[0].line)) if verdict not in KILLED]
    return "\n".join([f"{len(found)} of {every.total()} mutants were tried, in an order that is random.", "",
                      f"| module | mutants | tried | {' | '.join(columns)} | killed of those that differ |", "|---|" + "---|" * (len(columns) + 3),
                      *(line(f"`{module}.py`", every[module], c) for module, c in rows.items()), line("**all**", every.total(), sum(rows.values(), Counter())), "",
                      "## Those that live", "", "| where | line | change | why no test sees it |", "|---|---|---|---|", *left, ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=Path, required=True, help="folder for results: a later run goes on from there")
    parser.add_argument("--only", nargs="*", default=list(MODULES), help="names of modules")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no mutant after that")
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests that a mutant meets, as long as they take undisturbed; a larger one tries those again that survived")
    parser.add_argument("--share", default="1/1", help="1/2 and 2/2: two runs side by side, each with half of the mutants")
    parser.add_argument("--table", type=Path, help="write the numbers into this page, behind its mark")
    args = parser.parse_args()
    args.kept.mkdir(parents=True, exist_ok=True)
    end, modules, (part, parts) = time.time() + 60 * args.minutes, tuple(args.only), map(int, args.share.split("/"))
    import_libraries()
    found = list(run(in_order(modules)[part - 1 :: parts], args.kept, end, look(args.kept, MODULES), args.budget))
    text = section(found, modules)
    print(text)
    if args.table:
        args.table.write_text(args.table.read_text().partition("<!-- measured -->")[0] + f"<!-- measured -->\n\n{text}")


if __name__ == "__main__":
    main()
