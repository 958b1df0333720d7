"""Unfolded operators against the operators themselves in ONNX Runtime, and back: what folds is what was unfolded."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxgrow.fused import FUSED
from onnxgrow.graph import PARTS_OPSET
from onnxgrow.rulebook import load_builtin
from onnxgrow.source import Source
from onnxgrow.unfold import fold, unfold

REGISTRY = load_builtin()


def run(model: onnx.ModelProto, feeds: dict) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)


def source_of(example) -> Source:
    return Source(None, example.proto, {}, {})


def unfolded(example) -> onnx.ModelProto:
    """The plain model, under the opset whose meaning its nodes have."""
    proto = onnx.ModelProto()
    proto.CopyFrom(unfold(source_of(example), REGISTRY).proto)
    for o in proto.opset_import:
        if o.domain == "":
            o.version = max(o.version, PARTS_OPSET)
    proto.ir_version = max(proto.ir_version, 11)
    return proto


@pytest.mark.parametrize("example", FUSED, ids=str)
def test_plain_nodes_compute_what_the_operator_computes(example):
    plain = unfolded(example)
    assert example.op not in {n.op_type for n in plain.graph.node if n.domain == example.domain} or example.op == "Gelu"
    try:
        wanted = run(example.proto, example.feeds)
    except Exception as error:
        if "not supported" not in str(error):
            raise
        pytest.skip(f"ONNX Runtime on the CPU: {str(error)[-120:]}")
    for name, wanted, found in zip([o.name for o in plain.graph.output], wanted, run(plain, example.feeds), strict=True):
        assert wanted.shape == found.shape
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("example", FUSED, ids=str)
def test_what_was_unfolded_folds_into_itself(example):
    source = source_of(example)
    plain = unfold(source, REGISTRY)
    assert fold(plain, REGISTRY) == source.proto
    assert plain.proto != source.proto


def test_every_unfolding_has_an_example():
    tried = {(e.domain, e.op) for e in FUSED}
    ours = {(d, o) for d, o, function in REGISTRY.unfoldings if function.__module__.startswith("onnxgrow.rules")}  # other tests load files of their own
    assert ours and not ours - tried
