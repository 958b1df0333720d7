"""Which tests reach which lines: each test file runs once in a fork, under coverage.py, and what each of its tests executed is kept."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path

import coverage
import pytest

from tests.mutated import Mutant, source_of

LONG = 200  # seconds for one file: what comes later is not looked at
QUIET = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]


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
        for one in found:
            for module, lines in one["lines"].items():
                for line, tests in lines.items():
                    self.lines[module][int(line)] |= {*tests}

    def tests(self, mutant: Mutant, budget: float) -> list[str]:
        """The quick ones first, until together they take `budget` seconds. What is executed at the import of a module concerns all that use it."""
        lines = self.lines[mutant.module]
        if mutant.inside:  # an expression of several lines is put down to that where it begins, or to its own
            known = sorted(lines)
            at = bisect_right(known, mutant.line)
            found = lines[known[at - 1]] if at else set()
        else:
            found = set().union(*lines.values())
        chosen, left = [], budget
        for test in sorted(found, key=lambda t: (self.seconds[t], t)):
            left -= self.seconds[test]
            if left < 0 and chosen:
                break
            chosen.append(test)
        return chosen


def read(kept: Path) -> list[dict]:
    return [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
