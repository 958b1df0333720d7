"""The mutants of `python -m tests.mutants` are other programs than the one that they are made of, and meet the tests that reach them."""

from __future__ import annotations

import ast

import pytest

from tests.mutants import MODULES, at, reasons
from tests.mutated import Mutant, changed, in_order, mutants, source_of


@pytest.mark.parametrize("module", MODULES)
def test_every_change_is_another_program(module):
    text = source_of(module).read_text()
    before = ast.dump(ast.parse(text))
    for mutant in mutants(module)[::13]:
        tree = changed(mutant)
        assert ast.dump(tree) != before, mutant
        compile(tree, module, "exec")
        assert mutant.text in text


def test_the_order_is_always_the_same_and_mixes_modules():
    found = in_order(("noise", "flow"))
    assert found == in_order(("noise", "flow")) and {m.module for m in found[:20]} == {"noise", "flow"}
    assert len({m.key for m in found}) == len(found)


def test_a_mutant_meets_tests_of_its_line():
    reached = pytest.importorskip("tests.reached", reason="coverage.py is not installed")
    found = reached.Reached([{"file": "f", "seconds": {"slow": 9.0, "quick": 1.0, "other": 0.5}, "lines": {"noise": {"10": ["slow", "quick"], "30": ["other"]}}}])

    def tests(line: int, budget: float, inside: bool = True) -> list[str]:
        return sum(found.rounds(Mutant("noise", line, 0, "", 0, inside, ""), budget), [])

    assert {*tests(10, 20)} == {"quick", "slow"} and tests(10, 5) == ["quick"]
    assert {*tests(12, 20)} == {"quick", "slow"}, "a line in an expression is put down to where it begins"
    assert tests(30, 20) == ["other"] and tests(3, 20) == []
    assert {*tests(3, 20, inside=False)} == {"other", "quick", "slow"}, "an import concerns all"


def test_reasons_are_about_mutants_that_there_are():
    assert reasons().keys() <= {at(m) for module in MODULES for m in mutants(module)}
