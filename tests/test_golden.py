"""Growths come to what they came to before (tests/golden.py): a change of plans shows, and has to be meant."""

from __future__ import annotations

import json

import pytest

from tests import golden

THEN = json.loads(golden.KEPT.read_text())


@pytest.mark.parametrize(("source", "growth"), golden.cases())
def test_growths_are_what_they_were(source, growth):
    then = THEN[f"{source} {growth}"]
    assert golden.differences(golden.found(source, growth), then) == [], "if it is meant: python -m tests.golden --write"


def test_all_that_is_kept_is_compared():
    assert {f"{source} {growth}" for source, growth in golden.cases()} == THEN.keys()
    assert sum("refused" not in kept for kept in THEN.values()) > 0.9 * len(THEN)


def test_a_change_is_seen():
    source, growth = golden.cases()[0]
    now = golden.found(source, growth)
    name = next(iter(now["weights"]))
    *shape, value = now["weights"][name]
    assert golden.differences(now, now | {"weights": now["weights"] | {name: [*shape, value + 0.01]}})
    assert golden.differences(now, now | {"graph": ""}) and golden.differences(now, {"refused": "no"})
