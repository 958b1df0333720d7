"""What a Loop carries and what a step makes of it are one in size and in fills, even where nothing but the loop joins them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxgrow import load
from tests import loop_models as models
from tests.loop_models import BOOL, FLOAT, HIDDEN, INT, WORDS, node, run, value

INNER = 36  # what a step of the loop goes through


def replaced(path: Path, rms: bool) -> Path:
    """A block, then steps of which each makes a new state of the old one without adding it: state = down(relu(up(norm(state))))."""
    rng = np.random.default_rng(11)
    norm = lambda x, y: node("SimplifiedLayerNormalization", [x, "ln"], [y], epsilon=1e-5, axis=-1) if rms else node("LayerNormalization", [x, "ln", "ln_b"], [y])  # noqa: E731
    step = [norm("state", "n"), node("MatMul", ["n", "enter"], ["u"]), node("Relu", ["u"], ["a"]), node("MatMul", ["a", "leave"], ["state_next"]), node("Identity", ["c"], ["c_next"])]
    body = helper.make_graph(step, "step", [value("i", INT, []), value("c", BOOL, []), value("state", FLOAT, ["b", "p", HIDDEN])],
                             [value("c_next", BOOL, []), value("state_next", FLOAT, ["b", "p", HIDDEN])])
    nodes = [node("Gather", ["words", "ids"], ["h0"]), *models.block("h0", "h1", rms), node("Loop", ["trips", "", "h1"], ["last"], "steps", body=body), norm("last", "f"),
             node("MatMul", ["f", "head"], ["scores"])]
    held = models.weights(rng) | models.around(rng)
    held |= {"enter": rng.standard_normal((HIDDEN, INNER)).astype(np.float32) / 5, "leave": rng.standard_normal((INNER, HIDDEN)).astype(np.float32) / 5}
    held = {n: a for n, a in held.items() if not (rms and n in ("ln_b", "ln1_b", "ln2_b"))}
    return models.saved(path, nodes, [value("ids", INT, ["batch", "places"]), value("trips", INT, [])], [value("scores", FLOAT, ["batch", "places", 7])],
                        models.tensors(held) + models.NUMBERS, check=None)


@pytest.mark.parametrize("growth", [dict(hidden=31, only_hidden=True), dict(hidden=48, only_hidden=True), dict(hidden=48)], ids=str)
@pytest.mark.parametrize("rms", [True, False])
def test_a_state_that_a_step_replaces_grows_with_what_replaces_it(tmp_path, rms, growth):
    source = replaced(tmp_path / "model.onnx", rms)
    plan = load(source).plan(**growth)
    assert plan.certificate.kind == "exact"
    grown = plan.write(tmp_path / "grown.onnx").path
    (leave,) = [tuple(t.dims) for t in onnx.load(grown).graph.initializer if t.name == "leave"]
    assert leave[1] == growth["hidden"], "what a step gives is as wide as what it takes"
    rng = np.random.default_rng(12)
    for size, trips in (((2, 5), 3), ((3, 1), 1), ((1, 4), 2)):
        fed = {"ids": rng.integers(0, WORDS, size), "trips": np.array(trips)}
        before, after = run(source, fed)[0], run(grown, fed)[0]
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
