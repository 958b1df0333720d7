"""New blocks learn: every parameter of each gets a gradient within three optimizer steps, and no norm of theirs starts at zero.

The gradients are PyTorch's, on the grown ONNX graph itself (tests/torch_runner.py). A new block adds nothing at first, so in the first step
only what makes it silent moves (last linear maps, or gates); from then on the rest does.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import growing
from tests.growing import Case
from tests.test_gradient import ALIVE, feeds
from tests.torch_runner import live_fraction
from tests.zoo_models import SPECS

MODELS = ("gpt2", "llama", "t5-gated", "bert-mlm", "gpt-neox", "phi", "vit", "gemma2", "torch-encoder-postnorm")
METHODS = {"identity": {}, "gate": dict(depth_method="gate"), "random": dict(block_init="random"),
           "random-gate": dict(block_init="random", depth_method="gate"), "wider": dict(hidden=64)}
EPS = ("torch-encoder-postnorm",)  # two norms in a row, each with an epsilon of 1e-5
LEAST = 0.9  # of each tensor; a bias of keys gets rounding noise only, in every transformer: it shifts all scores of a query alike
NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
FACTORS = ("Mul", *NORMS)  # what a vector multiplies is its gain


def deeper(case: Case, method: str, folder):
    """A plan with twice the layers, its file, and the whole of each parameter of the new blocks by name."""
    plan = growing.opened(case.path).plan(layers=2 * SPECS[case.name].sizes["layers"], **METHODS[method])
    path = growing.written(plan, folder)
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    new = {name: x for name, x in held.items() if x.dtype.kind == "f" and (origin(plan, name) in plan.deeper.fresh or is_gate(name, x))}
    return plan, path, {name: x for name, x in new.items() if x.size > 1 or is_gate(name, x)}


def origin(plan, name: str) -> str:
    recipe = plan.recipes.get(name)
    return recipe.origin or name if recipe else name


def is_gate(name: str, x: np.ndarray) -> bool:
    return x.shape == () and name.rpartition(".")[2].startswith("gate")


def gains(path, names) -> dict[str, np.ndarray]:
    """Those of the vectors that something is multiplied by."""
    graph = onnx.load(path).graph
    factors = {name for n in graph.node if n.op_type in FACTORS for name in n.input[: 2 if n.op_type in NORMS else None]}
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in factors and t.name in names and len(t.dims) == 1}


def cases() -> list:
    """Every model by each method; the usual exports run by default, the rarer methods on three kinds of norm only."""
    out = []
    for name in MODELS:
        for export in dict.fromkeys((growing.usual(name), Case(name, "torchscript"), Case(name, "dynamo"))):
            for method in METHODS:
                usual = export == growing.usual(name) and (method in ("identity", "gate") or name in ("gpt2", "llama", "bert-mlm"))
                out.append(pytest.param(export, method, id=f"{export}-{method}", marks=[] if usual else [pytest.mark.slow]))
    return out


@pytest.mark.parametrize(("case", "method"), cases())
def test_new_blocks_learn(case, method, tmp_path):
    plan, path, new = deeper(case, method, tmp_path)
    assert len(new) >= 2 * SPECS[case.name].sizes["layers"] and plan.dead_parameters == 0
    assert plan.certificate.kind == ("near" if case.name in EPS and "gate" not in method else "exact")
    found = gains(path, new)  # a zero gain in front of a gated branch would starve it for ever
    assert len(found) >= SPECS[case.name].sizes["layers"] and all(x.all() for x in found.values())
    live = live_fraction(path, {name: np.ones(x.shape, bool) for name, x in new.items()}, growing.grown_feeds(plan, feeds(case.name)))
    asleep = {name: round((1 - live[name]) * x.size) for name, x in new.items() if live[name] < 1}
    assert sum(asleep.values()) <= (1 - ALIVE) * sum(x.size for x in new.values()), asleep
    assert all(live[name] >= LEAST for name in new), asleep


def test_the_measurement_sees_a_block_that_starves(tmp_path):
    """Zero gains in front of a gated part, the mistake that the assertions above are for: after three steps it is as dead as before."""
    case = growing.usual("llama")
    plan, path, new = deeper(case, "identity", tmp_path)
    model = onnx.load(path)
    for t in model.graph.initializer:
        if t.name in gains(path, new):
            t.CopyFrom(numpy_helper.from_array(np.zeros(t.dims, np.float32), t.name))
    onnx.save(model, path)
    live = live_fraction(path, {name: np.ones(x.shape, bool) for name, x in new.items()}, growing.grown_feeds(plan, feeds("llama")))
    assert sum((1 - live[name]) * x.size for name, x in new.items()) > 0.5 * sum(x.size for x in new.values())
