"""A quantized mixture of experts in ONNX Runtime's one operator: refused as it is, the float mixture with `dequantize`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxgrow.dequantize import FIRST, dequantize
from onnxgrow.errors import GraphError, OnnxgrowError
from onnxgrow.model import Model
from onnxgrow.plan import DEQUANTIZED
from onnxgrow.runtime import open_session
from onnxgrow.source import open_source
from tests.test_fused_experts import KINDS, VOCAB, model_of

GATED = KINDS["gated in turns"]
SILU = dict(activation_type="silu", normalize_routing_weights=1)
BLOCK = 16
FORMS = {  # bits, block, zero points, attributes
    "rows": (8, 0, False, SILU), "rows, zero points": (4, 0, True, SILU), "two bits": (2, 0, True, SILU | dict(activation_type="gelu")),
    "blocks": (4, BLOCK, False, GATED), "blocks, zero points": (2, BLOCK, True, GATED), "bytes in blocks": (8, BLOCK, True, SILU),
}  # fmt: skip


def packed(q: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of some bits in bytes along the last axis, the first in the lowest bits; what is left of a last byte is zero."""
    per = 8 // bits
    q = np.concatenate([q, np.zeros((*q.shape[:-1], -q.shape[-1] % per), np.uint8)], -1)
    return sum(q[..., k::per].astype(np.uint16) << (bits * k) for k in range(per)).astype(np.uint8)


def quantized(path, form: str, hidden: int = 32, ffn: int = 48, **more) -> onnx.ModelProto:
    """The mixture of tests/test_fused_experts.py, with weights of experts that are quantized: random numbers, scales and zero points."""
    bits, block, points, attrs = FORMS[form]
    rng, source = np.random.default_rng(5), model_of("gated in turns" if attrs is GATED else "silu", hidden, ffn)
    tensors = {t.name: t for t in source.graph.initializer}
    for n in [n for n in source.graph.node if n.op_type == "MoE"]:
        x, scores, up, up_bias, down, down_bias = n.input
        inputs, ends = [x, scores], []
        for name, bias in ((up, up_bias), (down, down_bias)):
            experts, rows, columns = tensors[name].dims
            counts = (experts, rows, columns // block) if block else (experts, rows)
            q = rng.integers(0, 2**bits, (experts, rows, columns), dtype=np.uint8)
            tensors[name].CopyFrom(numpy_helper.from_array(packed(q, bits), name))
            zeros = packed(rng.integers(0, 2**bits, counts, dtype=np.uint8), bits)
            scales = ((0.5 + rng.random(counts)) / 2**bits).astype(np.float32)
            source.graph.initializer.extend([numpy_helper.from_array(scales, f"{name}.scales")] + [numpy_helper.from_array(zeros, f"{name}.zeros")] * points)
            inputs += [name, f"{name}.scales", bias]
            ends += [f"{name}.zeros"] * points
        given = {"k": 2, "expert_weight_bits": bits, **({"block_size": block} if block else {})}
        n.CopyFrom(helper.make_node("QMoE", inputs + [""] * 3 * points + ends, list(n.output), n.name, domain="com.microsoft", **given | attrs | more))
    onnx.save(source, path)
    return source


def logits(model, ids: np.ndarray) -> np.ndarray:
    return open_session(model).run({"ids": ids})["logits"]


@pytest.mark.parametrize("form", FORMS)
def test_the_float_form_is_what_onnx_runtime_computes(form, tmp_path):
    quantized(tmp_path / "q.onnx", form)
    source = dequantize(open_source(tmp_path / "q.onnx"))
    assert sum(n.op_type == "MoE" for n in source.proto.graph.node) == 2 and not any(n.op_type == "QMoE" for n in source.proto.graph.node)
    assert not any(t.name.endswith((".scales", ".zeros")) for t in source.proto.graph.initializer)
    for shape in ((2, 7), (3, 4)):
        ids = np.random.default_rng(shape[0]).integers(0, VOCAB, shape)
        before, after = logits(tmp_path / "q.onnx", ids), logits(source, ids)
        bound = 0.05 if form == "bytes in blocks" else 3e-6  # whose kernel rounds what goes in to 8 bits
        assert np.abs(after - before).max() <= bound * np.abs(before).max()


@pytest.mark.parametrize("growth", [dict(hidden=45, only_hidden=True), dict(ffn=50), dict(experts=6), dict(layers=3)], ids=str)
@pytest.mark.parametrize("form", ["rows, zero points", "blocks"])
def test_the_float_form_grows(form, growth, tmp_path):
    quantized(tmp_path / "q.onnx", form)
    plan = Model(tmp_path / "q.onnx", dequantize=True).plan(**growth)
    result = plan.write(tmp_path / "grown.onnx")
    assert plan.certificate.kind == "exact" and plan.certificate.reasons[0] == DEQUANTIZED
    assert result.report.equal and result.report.dequantized < 1e-5
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 7))
    before, after = logits(tmp_path / "q.onnx", ids), logits(result.path, ids)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("growth", [dict(heads=3), dict(head_dim=20), dict(layers=3, depth_method="gate")], ids=str)
def test_as_it_is_what_is_around_it_grows(growth, tmp_path):
    quantized(tmp_path / "q.onnx", "blocks")
    plan = Model(tmp_path / "q.onnx").plan(**growth)
    result = plan.write(tmp_path / "grown.onnx")
    assert plan.certificate.kind == "exact" and result.report.max_rel <= 1e-6
    assert sum(n.op_type == "QMoE" for n in onnx.load(result.path).graph.node) == growth.get("layers", 2)


@pytest.mark.parametrize("growth", [dict(hidden=45, only_hidden=True), dict(experts=6)], ids=str)
def test_as_it_is_it_says_what_to_do(growth, tmp_path):
    quantized(tmp_path / "q.onnx", "rows")
    with pytest.raises(OnnxgrowError, match="QMoE") as refusal:
        Model(tmp_path / "q.onnx").plan(**growth)
    assert FIRST in refusal.value.hint and refusal.value.node == "MoE.12"


@pytest.mark.parametrize(("more", "match"), [(dict(normalize_routing_weights=0), "normalize_routing_weights=0"), (dict(quant_type="fp4"), "floats of 8 or 4 bits"),
                                             (dict(weights_prepacked=1), "that a device has chosen"),
                                             (dict(fc2_expert_weight_bits=4), "two widths")])
def test_what_is_no_clear_order_is_refused(more, match, tmp_path):
    quantized(tmp_path / "q.onnx", "rows", **more)
    with pytest.raises(GraphError, match=match) as refusal:
        Model(tmp_path / "q.onnx", dequantize=True)
    assert refusal.value.node and "float model" in refusal.value.hint


def test_scores_for_the_weighing_are_refused(tmp_path):
    model = quantized(tmp_path / "q.onnx", "rows")
    for n in model.graph.node:
        if n.op_type == "QMoE":
            n.input.extend([""] * (14 - len(n.input)) + [n.input[1]])
    onnx.save(model, tmp_path / "q.onnx")
    with pytest.raises(GraphError, match="other scores for the weighing"):
        Model(tmp_path / "q.onnx", dequantize=True)
