"""Bounds of tensors: known where the graph alone says them, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from onnxgrow.rulebook import load_builtin
from onnxgrow.structure import tie
from tests.textgraph import graph_of

CHOSEN = "n = IsInf x\nc = Cast n\nm = ReduceMax c\nb = Cast m\nw = Where b low high\ny = Min x w"
SIZED = "s = Shape x\nl = Gather s one\nf = Cast l\nw = Sub f hundred\ny = Max x w"


@pytest.mark.parametrize(("lines", "attrs", "keeps"), [
    (CHOSEN, {"c": {"to": 1}, "m": {"keepdims": 0}, "b": {"to": 9}}, True),
    (SIZED, {"f": {"to": 1}}, False),  # below zero at the first sizes that are tried, above it for 101 words
])  # fmt: skip
def test_zero_stays_zero_only_where_the_bound_has_a_sign_at_every_size(lines, attrs, keeps):
    constants = {"low": np.float32(64504), "high": np.float32(65504), "one": np.int64(1), "hundred": np.float32(100)}
    graph = graph_of(lines, {"x": ["batch", "length", 8]}, constants, **attrs)
    s = tie(graph, load_builtin())
    assert (s.nodes[graph.makers["y"].index].rule.other == "f(0)=0") == keeps
