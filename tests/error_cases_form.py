"""GraphError of quantized, fused and nested graphs, and of mixtures of experts: how each message is provoked."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.error_cases import Family, changed
from tests.growing import usual

form = Family("GraphError")
MS = "com.microsoft"


# --- quantized ----------------------------------------------------------------------------------------------------------


def quantized(nodes: list[onnx.NodeProto], held: dict[str, object], kind: int = TensorProto.FLOAT, opset: int = 17) -> str:
    """Some nodes from x [2, 8] to y as bad.onnx, and the command that asks for their float form."""
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in held.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, [2, 8])], [onnx.ValueInfoProto(name="y")], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)], ir_version=9), "bad.onnx")
    return "expand bad.onnx --hidden 16 --dequantize"


def node(op: str, inputs: str, outputs: str = "y", domain: str = "", **attrs) -> onnx.NodeProto:
    return helper.make_node(op, ["" if i == "-" else i for i in inputs.split()], outputs.split(), outputs.split()[0], domain=domain, **attrs)


WEIGHT, SCALE, ZERO = np.ones((8, 4), np.int8), np.float32(0.1), np.uint8(0)
DYNAMIC = node("DynamicQuantizeLinear", "x", "q s z")


@form("… has no float form here")
def no_float_form(folder, patch):
    return quantized([node("QLinearReduceMean", "x s z s z", domain=MS, axes=[1], keepdims=1)], {"s": SCALE, "z": ZERO}, TensorProto.UINT8)


@form("a product of whole numbers is not scaled in a way that is understood")
def not_scaled(folder, patch):
    return quantized([DYNAMIC, node("MatMulInteger", "q w z", "i"), node("Cast", "i", to=TensorProto.FLOAT)], {"w": WEIGHT})


@form("a product of whole numbers has no weight with a scale of its own")
def no_scale(folder, patch):
    nodes = [DYNAMIC, node("MatMulInteger", "q w z", "i"), node("Cast", "i", "f", to=TensorProto.FLOAT), node("ReduceMax", "x", "m", keepdims=0),
             node("Mul", "s m", "both"), node("Mul", "f both")]
    return quantized(nodes, {"w": WEIGHT})


@form("the scale of a quantized weight is computed")
def computed_scale(folder, patch):
    nodes = [node("ReduceMax", "x", "m", keepdims=0), node("DequantizeLinear", "w m", "f"), node("MatMul", "x f")]
    return quantized(nodes, {"w": WEIGHT})


@form("one quantized table is read with two scales")
def two_scales(folder, patch):
    nodes = [node("Gather", "w one", "rows"), node("DequantizeLinear", "rows s", "a"), node("DequantizeLinear", "rows s2", "b"), node("Add", "a b")]
    return quantized(nodes, {"w": WEIGHT, "one": np.array([1]), "s": SCALE, "s2": np.float32(0.2)})


@form("QLinearSoftmax of an old opset")
def old_softmax(folder, patch):
    return quantized([node("QLinearSoftmax", "x s z s z", domain=MS, axis=1, opset=11)], {"s": SCALE, "z": ZERO}, TensorProto.UINT8)


@form("the columns of a packed weight are in another order (g_idx)")
def reordered(folder, patch):
    packed = dict(b=np.zeros((4, 1, 8), np.uint8), s=np.ones(4, np.float32), order=np.arange(8, dtype=np.int32))
    return quantized([node("MatMulNBits", "x b s - order", domain=MS, K=8, N=4, bits=4, block_size=16)], packed)


@form("a packed table is read along another axis than its first")
def across(folder, patch):
    packed = dict(t=np.zeros((8, 8), np.uint8), s=np.ones((8, 1), np.float32), i=np.array([1]))
    return quantized([node("GatherBlockQuantized", "t i s", domain=MS, gather_axis=1, quantize_axis=0, block_size=16), ], packed)


# --- fused --------------------------------------------------------------------------------------------------------------


def fused(op: str, inputs: str, **attrs) -> str:
    """The GPT-like model with an operator of ONNX Runtime behind its logits."""
    def change(graph):
        graph.node.append(node("NonZero", "logits", "spots"))
        graph.node.append(node(op, inputs, "said", domain=MS, **attrs))
        graph.output.append(helper.make_tensor_value_info("said", TensorProto.FLOAT, None))
    proto = onnx.load(changed("tiny-gpt", change))
    proto.opset_import.append(helper.make_opsetid(MS, 1))
    onnx.save(proto, "bad.onnx")
    return "expand bad.onnx --ffn 400 --no-validate"


@form("…, which cannot be read yet")
def not_read(folder, patch):
    return fused("FusedGemm", "logits logits", activation="Softsign")


@form("the shape of input … of … is not known before the model runs")
def unknown_shape(folder, patch):
    return fused("FusedMatMul", "spots spots", transB=1)


@form("… cannot hold what it would have to become: …")
def cannot_hold(folder, patch):
    """No growth that is allowed leads here; this is the proof that it did not."""
    patch.setattr("onnxgrow.unfold.Folder._differs", lambda *_: "its part Mul is gone")
    return fused("QuickGelu", "logits")


# --- graphs in graphs ---------------------------------------------------------------------------------------------------


@form("… calls …, between which states pass unseen")
def search(folder, patch):
    def change(graph):
        body = helper.make_graph([node("Identity", "a", "b")], "body", [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])],
                                 [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])])
        graph.node.append(node("BeamSearch", "input_ids", "found", domain=MS, encoder=body, decoder=body))
    changed("tiny-gpt", change)
    return "inspect bad.onnx"



# --- experts ------------------------------------------------------------------------------------------------------------

MIXED = "expand bad.onnx --experts 8 --no-validate"


@form("the model has no experts: no TopK over the scores of a router is in the graph")
def no_experts(folder, patch):
    return "expand model.onnx --experts 8"


@form("the experts are packed inside the fused operator …, whose sizes stay as they are")
def fused_experts(folder, patch):
    def change(graph):
        graph.node.append(node("QMoE", "logits", "said", domain=MS))
    changed("tiny-gpt", change)
    proto = onnx.load("bad.onnx")
    proto.opset_import.append(helper.make_opsetid(MS, 1))
    onnx.save(proto, "bad.onnx")
    return MIXED


@form("the scores of this TopK do not come from a linear map, so it is no router of experts that is known")
def no_router(folder, patch):
    def change(graph):
        for n in graph.node:
            for a in n.attribute:
                if n.op_type == "TopK" and a.name == "largest":
                    a.i = 0
    changed(str(usual("moe-batched").path), change)
    return MIXED


@form("experts cannot be added: …")
def unlike(folder, patch):
    def change(graph):
        other = [n for n in graph.node if n.op_type == "Sigmoid"][2]
        other.op_type, other.name = "Tanh", "other"
    changed(str(usual("moe-listed").path), change)
    return MIXED


@form("experts cannot grow: …")
def groups(folder, patch):
    """Scores that stand in two groups before the best are chosen."""
    def change(graph):
        at = next(k for k, n in enumerate(graph.node) if n.name == "node_softmax")
        graph.node[at].input[0] = "scores"
        graph.node.insert(at, node("Reshape", "pairs all", "scores"))
        graph.node.insert(at, node("Reshape", "linear_4 two", "pairs"))
        graph.initializer.extend(numpy_helper.from_array(np.array(v), n) for n, v in (("two", [0, 0, 2, 2]), ("all", [0, 0, 4])))
    changed(str(usual("moe-batched").path), change)
    return MIXED
