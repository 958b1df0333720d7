"""PyTorch forms of operators whose result is a matter of what is fed: branches, places, draws, a cache that is written into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import onnxgrow
from onnxgrow.errors import GraphError
from onnxgrow.pytorch import export, load_folder
from onnxgrow.runtime import open_session
from tests import loop_models, test_subgraphs
from tests.test_square_masks import HIDDEN, WORDS, fed, saved

ROOM = 11
value, node = helper.make_tensor_value_info, helper.make_node


def model_with(path: Path, nodes: list, inputs: list, outputs: list, numbers: dict | None = None, opset: int = 17) -> Path:
    """A small decoder with more nodes behind it; `x` is what its head reads."""
    model = saved(path, "added")
    model.opset_import[0].version, model.ir_version = opset, 10
    graph, x = model.graph, model.graph.node[-1].input[0]
    for n in nodes:
        n.input[:] = [x if i == "x" else i for i in n.input]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in (numbers or {}).items())
    onnx.save(model, path)
    return path


def assert_written(path: Path, cases: list[dict]) -> None:
    """The module that is written for a model gives what ONNX Runtime gives."""
    run = written(path)
    for feeds in cases:
        wanted, found = open_session(path).run(feeds), run(feeds)
        assert wanted.keys() == found.keys()
        for name, x in wanted.items():
            assert found[name].shape == x.shape and found[name].dtype == x.dtype, name
            np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-5 * max(1, np.abs(x).max()))


def written(path: Path):
    """The PyTorch form of a model, as a function from feeds to outputs."""
    inputs, module = export(onnxgrow.load(path), path.with_suffix(""), check=False).program.inputs, load_folder(path.with_suffix(""))

    def run(feeds: dict) -> dict:
        with torch.no_grad():
            return {n: x.numpy() for n, x in module(**{argument: torch.from_numpy(np.array(feeds[name])) for argument, name in inputs.items()}).items()}

    return run


def test_an_if_takes_one_of_two_branches(tmp_path):
    branches = {k: helper.make_graph([node(op, ["logits"], [f"{k}_out"])], k, [], [value(f"{k}_out", TensorProto.FLOAT, None)])
                for k, op in (("then_branch", "Sigmoid"), ("else_branch", "Neg"))}
    path = model_with(tmp_path / "if.onnx", [node("If", ["flag"], ["chosen"], "choice", **branches), node("Add", ["chosen", "logits"], ["sum"])], [value("flag", TensorProto.BOOL, [])],
                      [value("sum", TensorProto.FLOAT, ["batch", "length", WORDS])])
    assert_written(path, [fed("added", 2, 5) | {"flag": np.array(flag)} for flag in (True, False)])


@pytest.mark.parametrize("inside", [True, False])
def test_both_branches_of_a_merged_decoder_are_written(inside, tmp_path):
    path = test_subgraphs.merged(tmp_path / "merged.onnx", inside)
    rng = np.random.default_rng(0)
    assert_written(path, [test_subgraphs.feeds(rng, 2, 3, 4) | {"use_cache": np.array([flag])} for flag in (True, False)])


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("placed", [True, False])
def test_new_entries_of_a_cache(tmp_path, mode, axis, placed):
    nodes = [node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
             node("TensorScatter", ["cache", "x" if axis == 1 else "turned", *(["at"] if placed else [])], ["written"], "write", axis=axis, mode=mode)]
    sizes = ["batch", ROOM, HIDDEN] if axis == 1 else ["batch", HIDDEN, ROOM]
    path = model_with(tmp_path / "cache.onnx", nodes[axis == 1 :], [value("cache", TensorProto.FLOAT, sizes), *([value("at", TensorProto.INT64, ["batch"])] * placed)],
                      [value("written", TensorProto.FLOAT, sizes)], opset=24)
    rng, cases = np.random.default_rng(2), []
    for batch, length in ((2, 5), (3, 7)):
        more = {"cache": rng.standard_normal([batch, *sizes[1:]]).astype("f")}
        more |= {"at": rng.integers(0, ROOM if mode == "circular" else ROOM - length + 1, batch)} if placed else {}
        cases.append(fed("added", batch, length) | more)
    assert_written(path, cases)


def test_places(tmp_path):
    path = model_with(tmp_path / "places.onnx", [node("Greater", ["logits", "limit"], ["high"]), node("NonZero", ["high"], ["places"])], [], [value("places", TensorProto.INT64, [3, None])],
                      {"limit": np.float32(0.3)})
    cases = [fed("added", 2, 5), fed("added", 3, 7)]
    assert all(open_session(path).run(case)["places"].shape[1] > 3 for case in cases)
    assert_written(path, cases)


def test_draws_come_from_the_same_probabilities(tmp_path):
    nodes = [node("Reshape", ["logits", "flat"], ["rows"]), node("Multinomial", ["rows"], ["drawn"], sample_size=4000, dtype=TensorProto.INT64)]
    path = model_with(tmp_path / "draws.onnx", nodes, [], [value("drawn", TensorProto.INT64, None)], {"flat": np.array([-1, WORDS])})
    torch.manual_seed(0)
    feeds = fed("added", 2, 3)
    wanted, found = open_session(path).run(feeds), written(path)(feeds)
    counts = [np.stack([np.bincount(row, minlength=WORDS) for row in x["drawn"]]) / 4000 for x in (wanted, found)]
    assert found["drawn"].shape == wanted["drawn"].shape == (6, 4000) and found["drawn"].dtype == np.int64
    assert np.abs(counts[0] - counts[1]).max() < 0.04 and np.abs(counts[0] - 1 / WORDS).max() > 0.1


@pytest.mark.parametrize("kind", ["scan", "loop", "search"])
def test_loops_and_searches_are_refused_by_name_with_the_next_step(kind, tmp_path):
    make = {"scan": loop_models.over_time, "loop": loop_models.until, "search": lambda path: test_subgraphs.searched(path, "BeamSearch")}[kind]
    path = make(tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="the search|a loop .*has no PyTorch form") as refusal:
        export(onnxgrow.load(path), tmp_path / "pt")
    assert "export the decoder alone" in refusal.value.hint and refusal.value.node


@pytest.mark.parametrize("op, each, opset, attrs", [("BatchNormalization", 4, 17, {}), ("InstanceNormalization", 2, 17, {"epsilon": 0.1}), ("GroupNormalization", 2, 21, {"num_groups": 4}),
                                                    ("GroupNormalization", 2, 18, {"num_groups": 4})])
def test_norms_of_images(tmp_path, op, each, opset, attrs):
    rng, channels = np.random.default_rng(1), 4 if opset == 18 else HIDDEN
    numbers = {f"by{i}": rng.uniform(0.5, 2, channels).astype("f") for i in range(each)}
    nodes = [node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]), node(op, ["turned", *numbers], ["even"], **attrs)]
    path = model_with(tmp_path / "norm.onnx", nodes, [], [value("even", TensorProto.FLOAT, None)], numbers, opset=opset)
    assert_written(path, [fed("added", 2, 5), fed("added", 3, 7)])
