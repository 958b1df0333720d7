"""What a growth adds takes no name that the model has already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxgrow.model import Model
from tests import random_graphs
from tests.test_fused_experts import VOCAB, model_of


def experts() -> tuple[onnx.ModelProto, dict, dict]:
    return model_of("gelu, normalised"), dict(experts=6), {"ids": np.random.default_rng(0).integers(0, VOCAB, (2, 5))}


def shared_numbers() -> tuple[onnx.ModelProto, dict, dict]:
    """Which some of their uses keep and others change."""
    drawn = random_graphs.draw(303, share=True)
    model = random_graphs.build(drawn)
    return model, random_graphs.growths(drawn)["double"], random_graphs.feeds_of(drawn, model)[0]


SUBJECTS = {"experts": experts, "shared numbers": shared_numbers}


def names(model: onnx.ModelProto) -> list[str]:
    """Of tensors and of nodes."""
    nodes = [n.name for n in model.graph.node if n.name] + [o for n in model.graph.node for o in n.output]
    return [t.name for t in model.graph.initializer] + nodes


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for n in out.graph.node:
        n.input[:] = [new if t == old else t for t in n.input]
        n.output[:] = [new if t == old else t for t in n.output]
        n.name = new if n.name == old else n.name
    for t in (*out.graph.initializer, *out.graph.input):
        t.name = new if t.name == old else t.name
    return out


def grow(model: onnx.ModelProto, sizes: dict, folder: Path) -> onnx.ModelProto:
    onnx.save(model, folder / "source.onnx")
    return onnx.load(Model(folder / "source.onnx").plan(**sizes).write(folder / "grown.onnx", overwrite=True, provider="cpu").path)


def run(model: onnx.ModelProto, feeds: dict) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_names_that_are_taken_stay_with_who_has_them(subject, tmp_path):
    model, sizes, feeds = SUBJECTS[subject]()
    new = sorted({*names(grow(model, sizes, tmp_path))} - {*names(model)})
    assert new
    fed, held = model.graph.input[0].name, model.graph.initializer[0].name
    made, node = model.graph.node[0].output[0], model.graph.node[1].name
    for name in new:
        for old in (fed, held, made, node):
            source = renamed(model, old, name)
            grown = grow(source, sizes, tmp_path)
            given = {name if k == old else k: v for k, v in feeds.items()}
            tensors = [t.name for t in (*grown.graph.initializer, *grown.graph.input)] + [o for n in grown.graph.node for o in n.output if o]
            called = [n.name for n in grown.graph.node if n.name]
            assert len({*tensors}) == len(tensors) and len({*called}) == len(called), f"{name} of {old}"
            want, got = run(source, given), run(grown, given)
            np.testing.assert_allclose(got[..., : want.shape[-1]], want, rtol=0, atol=3e-5 * np.abs(want).max())
