"""Wrong growth is impossible to miss: a slice of tests/corrupted.py, the growths that it breaks, and the judge, which must be able to say no."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxgrow.errors import GraphError
from onnxgrow.recheck import _check_copies
from tests import corrupted
from tests.corrupted import SUBJECTS, Subject
from tests.corruptions import KINDS
from tests.test_gradient import measure

WHOLE = 0.97  # of new entries that get a gradient: random units before a ReLU may be silent for all that we feed
ASLEEP = {"experts", "listed experts", "words", "words and hidden", "positions"}  # new experts wait until they are chosen, new rows until they are fed
SLICE = 44


@pytest.mark.parametrize("label", SUBJECTS)
def test_what_is_not_broken_is_exact_and_learns(label, tmp_path):
    subject = Subject(label, tmp_path)
    plan = subject.plan
    assert subject.judge(subject.whole) is None and plan.dead_parameters == 0
    if label not in ASLEEP and not plan.deeper:
        regions, dead = measure(plan, subject.case, tmp_path)
        assert regions and sum(dead.values()) <= (1 - WHOLE) * sum(mask.sum() for mask in regions.values()), dead


def test_a_slice_of_all_corruptions():
    found = list(corrupted.tried(SLICE, seed=7, labels=("hidden", "all sizes", "copies", "layers and sizes", "words", "listed experts", "head_dim", "gates")))
    assert [f for f in found if f.verdict == "missed"] == []
    assert sum(f.verdict in ("static", "validation") for f in found) > SLICE * 0.7, "else nothing much was broken"


@pytest.mark.parametrize(("label", "place"), [("gates", (0, 15, 76)), ("listed experts", (1, 20, 13)), ("family", (2, 4, 3)), ("gates", (3, 15, 46))])
def test_what_was_missed_once_is_caught(label, place, tmp_path):
    """A new layer that read an old one's weight, a new expert with old entries in the place of zeros, a length on another axis
    than the file says, a new layer that lacks a node."""
    found = corrupted.attempt(Subject(label, tmp_path), KINDS[(place[1] + place[2]) % len(KINDS)], place)
    assert found.verdict == "static", found


@pytest.mark.parametrize("label", ["layers", "gates", "random layers", "two stacks"])
def test_every_wrong_edge_inside_of_a_new_layer_is_seen(label, tmp_path):
    """Outputs say nothing of a layer that is silent."""
    subject, tried = Subject(label, tmp_path), 0
    proto = onnx.load(subject.whole)
    for copied in subject.plan.deeper.copies:
        nodes = [n for n in proto.graph.node if n.output and n.output[0] in copied]
        made = [o for n in nodes for o in n.output if o]
        for node, slot in ((n, i) for n in nodes for i, x in enumerate(n.input) if x in made):
            right = node.input[slot]
            _check_copies(proto, [copied])
            node.input[slot] = made[made.index(right) - 1]
            with pytest.raises(GraphError, match="a new layer computes something else"):
                _check_copies(proto, [copied])
            node.input[slot], tried = right, tried + 1
    assert tried > 20


def changed(subject: Subject, name: str, change):
    """The unbroken file with one initializer changed."""
    model = onnx.load(subject.whole)
    held = next(t for t in model.graph.initializer if t.name == name)
    held.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(held).copy()), name))
    path = subject.folder / "changed.onnx"
    onnx.save(model, path)
    return path


def test_the_judge_sees_another_function_dead_units_and_units_alike(tmp_path):
    subject = Subject("ffn", tmp_path)
    up = next(n for n, r in subject.plan.recipes.items() if r.is_random and len(r.new_shape) == 2 and r.new_shape[1] == 101 and r.old_shape[1] == 72)

    def filled(value):
        def change(x: np.ndarray) -> np.ndarray:
            x[:, 72:] = value
            return x
        return change

    assert "alike" in subject.judge(changed(subject, up, filled(0.01)))
    assert "no gradient" in subject.judge(changed(subject, up, filled(0.0)))
    assert "another function" in subject.judge(changed(subject, up, lambda x: x * 1.001))
