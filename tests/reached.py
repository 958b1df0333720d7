"""Which tests reach which lines: each test file runs once in a fork, under coverage.py, and what each of its tests executed is kept."""

from __future__ import annotations

import hashlib
import json
import re
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from pathlib import Path

import coverage
import pytest

from tests.mutated import Mutant, source_of

LONG = 300  # seconds for one file: what comes later is not looked at
BESIDE, FEW = 8, 3  # lines behind a mutant that may show a rare case, and tests of each
CLOSE = 0.25  # share of what a test reaches that is in one module: a test of that module
GOLDEN = "tests/test_golden.py"
QUIET = ["-q", "-m", "not slow or part", "-p", "no:cacheprovider", "-p", "no:xdist"]


class Watch:
    """A plugin of pytest: lines are put down to the test that runs, and its seconds of processor time; only tests that pass count."""

    def __init__(self, lines: coverage.Coverage):
        self.lines, self.seconds, self.failed = lines, {}, set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        self.lines.switch_context(item.nodeid)
        begun = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - begun
        if sum(self.seconds.values()) > LONG:
            item.session.shouldstop = "long enough"
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)


def watch(file: str, modules: tuple[str, ...]) -> dict:
    """One test file: test -> its seconds, and module -> line -> tests."""
    lines = coverage.Coverage(data_file=None, config_file=False, include=[str(source_of(m)) for m in modules], messages=False)
    watched = Watch(lines)
    lines.start()
    try:
        pytest.main([*QUIET, file], plugins=[watched])
    finally:
        lines.stop()
    data, passed = lines.get_data(), {test: s for test, s in watched.seconds.items() if test not in watched.failed}
    by_line = {m: data.contexts_by_lineno(str(source_of(m))) for m in modules}
    return {"file": file, "seconds": passed, "lines": {m: {k: sorted(passed.keys() & names) for k, names in found.items()} for m, found in by_line.items()}}


class Reached:
    """Tests by the lines that they execute.

    Args:
        found: what `watch` found of each file.
    """

    def __init__(self, found: list[dict]):
        self.seconds: dict[str, float] = {test: s for one in found for test, s in one["seconds"].items()}
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.counts: dict[str, Counter] = defaultdict(Counter)
        for one in found:
            for module, lines in one["lines"].items():
                for line, tests in lines.items():
                    self.lines[module][int(line)] |= {*tests}
                    for test in tests:
                        self.counts[test][module] += 1

    def reaching(self, mutant: Mutant) -> set[str]:
        """All tests of its line. What is executed at the import of a module concerns all that use it."""
        lines = self.lines[mutant.module]
        if not mutant.inside:
            return set().union(*lines.values())
        known = sorted(lines)  # an expression of several lines is put down to that where it begins, or to its own
        at = bisect_right(known, mutant.line)
        return lines[known[at - 1]] if at else set()

    def rounds(self, mutant: Mutant, budget: float) -> list[list[str]]:
        """As many tests as take `budget` seconds, one at least, in rounds: collecting files takes longer than most tests, and who is dead needs no more of them.

        First those that reach lines beside it that few others reach (a refusal, a rare case), and those that reach little besides its module; then those that
        only look whether a growth is what it was, for most of the budget, one of each kind of graph and growth, and then another one of each; then, in the same
        way, of all functions.
        """
        quick = sorted(self.reaching(mutant), key=lambda t: (self.seconds[t], t))
        beside = sorted((tests for line, tests in self.lines[mutant.module].items() if -2 <= line - mutant.line <= BESIDE), key=len) if mutant.inside else []
        rare = self._fitting([*dict.fromkeys(t for tests in beside for t in sorted(tests & {*quick}, key=self.seconds.get)[:FEW])], budget / 4)
        close = sorted((t for t in quick if t not in rare and self._share(t, mutant.module) > CLOSE), key=lambda t: -self._share(t, mutant.module))
        first = rare + self._fitting(close, budget / 4)
        golden = self._fitting(_in_turns([t for t in quick if t.startswith(GOLDEN) and t not in first], mutant), budget * 2 / 3)
        others = _in_turns([t for t in quick if t not in first and t not in golden], mutant)
        last = self._fitting(others, budget - sum(self.seconds[t] for t in (*first, *golden)))
        return [tests for tests in (first, golden, last) if tests] or [quick[:1]] * bool(quick)

    def _share(self, test: str, module: str) -> float:
        """Of the lines that a test reaches, those of one module."""
        counts = self.counts[test]
        return counts[module] / counts.total()

    def _fitting(self, tests: list[str], budget: float) -> list[str]:
        """Those that fit, in their order; one that is too long leaves room for others."""
        out = []
        for test in tests:
            if self.seconds[test] <= budget:
                out.append(test)
                budget -= self.seconds[test]
        return out



def _in_turns(tests: list[str], mutant: Mutant) -> list[str]:
    """One test of each kind (a function, or a graph and its growth without numbers), then another one of each; which comes first differs from mutant to mutant."""
    turns: Counter = Counter()
    out = []
    for test in sorted(tests, key=lambda t: hashlib.sha256(f"{mutant.key} {t}".encode()).digest()):
        kind = re.sub(r"\d+", "", test) if test.startswith(GOLDEN) else test.partition("[")[0]
        turns[kind] += 1
        out.append((turns[kind], test))
    return [test for _, test in sorted(out, key=lambda x: x[0])]


def read(kept: Path) -> list[dict]:
    return [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
