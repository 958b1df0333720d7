"""A mixture of experts in ONNX Runtime's one operator grows in every dim, and is that operator again in the file."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model

VOCAB, HIDDEN, FFN, EXPERTS, CHOSEN, LAYERS = 19, 10, 14, 4, 2, 2
KINDS = {
    "silu": dict(activation_type="silu"),
    "gelu, normalised": dict(activation_type="gelu", normalize_routing_weights=1),
    "gated in turns": dict(activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=1, activation_alpha=1.702, activation_beta=1.0, swiglu_limit=7.0),
}
GROWTHS = {
    "odd": dict(hidden=13, only_hidden=True), "double": dict(hidden=20, only_hidden=True), "family": dict(hidden=20), "ffn": dict(ffn=17), "ffn twice": dict(ffn=28),
    "experts": dict(experts=7), "layers": dict(layers=3), "together": dict(hidden=15, only_hidden=True, ffn=19, experts=5, layers=3),
}  # fmt: skip


def model_of(kind: str, hidden: int = HIDDEN, ffn: int = FFN) -> onnx.ModelProto:
    """An embedding, blocks of attention and a mixture, and a head."""
    rng, weights, nodes = np.random.default_rng(7), [], []

    def hold(name: str, *shape: int, scale: float = 0.5, around: float = 0.0) -> str:
        weights.append(numpy_helper.from_array((around + scale * rng.standard_normal(shape)).astype("f"), name))
        return name

    def add(op: str, *ins: str, **attrs) -> str:
        nodes.append(helper.make_node(op, list(ins), [f"t{len(nodes)}"], f"{op}.{len(nodes)}", **attrs))
        return nodes[-1].output[0]

    wide = ffn * 2 if KINDS[kind]["activation_type"] == "swiglu" else ffn
    weights.append(numpy_helper.from_array(np.array([-1, hidden]), "flat"))
    x = add("Gather", hold("embedding", VOCAB, hidden, scale=1.0), "ids")
    for k in range(LAYERS):
        y = add("LayerNormalization", x, hold(f"{k}.before.weight", hidden, around=1.0), hold(f"{k}.before.bias", hidden), epsilon=1e-5)
        parts = [add("MatMul", y, hold(f"{k}.{part}", hidden, hidden)) for part in ("query", "key", "value")]
        y = add("MultiHeadAttention", *parts, domain="com.microsoft", num_heads=2)
        x = add("Add", x, add("MatMul", y, hold(f"{k}.out", hidden, hidden)))
        y = add("LayerNormalization", x, hold(f"{k}.norm.weight", hidden, around=1.0), hold(f"{k}.norm.bias", hidden), epsilon=1e-5)
        scores = add("MatMul", add("Reshape", y, "flat"), hold(f"{k}.router", hidden, EXPERTS))
        scores = add("Add", scores, hold(f"{k}.router.bias", EXPERTS)) if kind == "silu" else scores
        maps = hold(f"{k}.up", EXPERTS, wide, hidden), hold(f"{k}.up.bias", EXPERTS, wide), hold(f"{k}.down", EXPERTS, hidden, ffn), hold(f"{k}.down.bias", EXPERTS, hidden)
        x = add("Add", x, add("MoE", y, scores, *maps, domain="com.microsoft", k=CHOSEN, **KINDS[kind]))
    x = add("LayerNormalization", x, hold("norm.weight", hidden, around=1.0), hold("norm.bias", hidden), epsilon=1e-5)
    nodes.append(helper.make_node("MatMul", [x, hold("head", hidden, VOCAB)], ["logits"], "head"))
    ids, logits = (helper.make_tensor_value_info(n, t, ["batch", "length", *more]) for n, t, more in (("ids", TensorProto.INT64, []), ("logits", TensorProto.FLOAT, [VOCAB])))
    graph = helper.make_graph(nodes, "mixture", [ids], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=9)


def run(model: bytes, ids: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"ids": ids})[0]


@pytest.mark.parametrize("label", GROWTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_mixture_grows(kind, label, tmp_path):
    source = model_of(kind)
    onnx.save(source, tmp_path / "source.onnx")
    plan = Model(tmp_path / "source.onnx").plan(**GROWTHS[label], seed=3)
    plan.write(tmp_path / "grown.onnx")
    grown = onnx.load(tmp_path / "grown.onnx")
    fused = [n for n in grown.graph.node if n.op_type == "MoE"]
    assert plan.certificate.kind == "exact"
    assert len(fused) == GROWTHS[label].get("layers", LAYERS) and not any(n.op_type in ("TopK", "ScatterElements") for n in grown.graph.node)
    sizes = {t.name: list(t.dims) for t in grown.graph.initializer}
    asked = GROWTHS[label]
    assert sizes["0.down"] == [asked.get("experts", EXPERTS), asked.get("hidden", HIDDEN), asked.get("ffn", 28 if label == "family" else FFN)]
    for shape in ((2, 7), (3, 4)):
        ids = np.random.default_rng(shape[0]).integers(0, VOCAB, shape)
        before, after = (run(m.SerializeToString(), ids) for m in (source, grown))
        np.testing.assert_allclose(after, before, rtol=0, atol=3e-5 * np.abs(before).max())


def test_what_the_operator_does_that_is_not_known_is_refused_by_name(tmp_path):
    model = model_of("silu")
    next(n for n in model.graph.node if n.op_type == "MoE").attribute.append(helper.make_attribute("use_sparse_mixer", 1))
    onnx.save(model, tmp_path / "source.onnx")
    with pytest.raises(OnnxgrowError, match="MoE with use_sparse_mixer"):
        Model(tmp_path / "source.onnx").plan(hidden=13, only_hidden=True)
