"""The PyTorch code of every model of the zoo computes what its graph computes, and its weights find the way back."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file, save_model

import onnxgrow
from onnxgrow.errors import FileError, GraphError, NotEqualError
from onnxgrow.pytorch import export, import_weights, load_folder, module_of
from onnxgrow.pytorch.program import decompile
from tests import zoo
from tests.growing import EXPORTS, Case, feeds_of, growths, opened, session, source_outputs, usual, written
from tests.zoo_models import SPECS

TOLERANCE = 1e-5
MODELS = Path(onnxgrow.__file__).parent / "models"
DEPTH = ("deeper", dict(layers=3))
GROWN = ["hidden-family", "together", "deeper"]
HF_NAMED = ["bert-mlm", "gpt2", "llama", "vit", "t5", "opt", "gemma", "distilbert"]


def grown(case: Case, label: str, folder: Path) -> Path:
    """The model grown, written without onnxgrow's own validation."""
    request = dict(layers=SPECS[case.name].sizes["layers"] + 1) if label == "deeper" else growths(case.name)[label]
    if label == "deeper" and "both" in SPECS[case.name].tags:
        request = dict(decoder_layers=4)
    return written(opened(case.path).plan(**request), folder)


def answers(module: torch.nn.Module, program, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = module(**{argument: torch.from_numpy(np.array(feeds[name])) for argument, name in program.inputs.items()})
    return {name: x.numpy() for name, x in found.items()}


def difference(path: Path, module: torch.nn.Module, program, feeds: list[dict]) -> float:
    """Largest difference between ONNX Runtime and the module, relative to the largest value of each output."""
    runner, worst = session(path), 0.0
    names = [o.name for o in runner.get_outputs()]
    for fed in feeds:
        for name, want in zip(names, runner.run(names, fed), strict=True):
            got = answers(module, program, fed)[name]
            assert got.shape == want.shape and got.dtype == want.dtype
            worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))
    return worst


def check(path: Path, folder: Path, feeds: list[dict]) -> None:
    done = export(onnxgrow.load(path), folder, check=False)
    assert difference(path, load_folder(folder), done.program, feeds) < TOLERANCE


def cases() -> list:
    """Each model once by default; its other exports are slow."""
    out = []
    for name in SPECS:
        for exporter, attn in EXPORTS:
            if not zoo.known_failure(name, exporter, attn):
                case = Case(name, exporter, attn)
                out.append(pytest.param(case, id=str(case), marks=[] if case == usual(name) else pytest.mark.slow))
    return out


@pytest.mark.parametrize("case", cases())
def test_code_and_graph_agree(case, tmp_path):
    check(case.path, tmp_path / "pt", feeds_of(case))


@pytest.mark.parametrize("label", GROWN)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in HF_NAMED else pytest.mark.slow) for n in SPECS])
def test_grown_code_and_grown_graph_agree(name, label, tmp_path):
    case = usual(name)
    path = grown(case, label, tmp_path)
    shapes = {v.name: [d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in onnx.load(path, load_external_data=False).graph.input}
    if any(n.startswith(("past", "cross")) for n in shapes):  # caches have grown: feeds of the grown sizes
        from onnxgrow.feeds import cases as made

        model = onnxgrow.load(path)
        feeds = [c.feeds for c in made(model.roles.structure, model.roles, 0)]
    else:
        feeds = feeds_of(case)
    check(path, tmp_path / "pt", feeds)
