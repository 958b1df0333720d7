"""Quantized operators of ONNX Runtime that stand for many, or hold packed weights, in their float forms.

Inputs, attributes and how numbers are packed: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from .errors import GraphError
from .floatweights import FLOAT_MODEL, at
from .graph import attributes_of, free_name
from .packed import Quantized, unpacked_rows

if TYPE_CHECKING:
    from .dequantize import Rewriter

ATTENTION = {"num_heads", "unidirectional", "mask_filter_value", "scale", "do_rotary", "past_present_share_buffer"}
MIXTURE = {"k", "activation_type", "activation_alpha", "activation_beta", "normalize_routing_weights", "swiglu_fusion", "swiglu_limit", "use_sparse_mixer"}


def attention(r: Rewriter, node: onnx.NodeProto) -> None:
    """(input, weight, bias, input scale, weight scale, mask, input zero point, weight zero point, past)."""
    weight = r.floats(node, node.input[1], node.input[4], at(node, 7), axis=-1, block=0)
    inputs = [node.input[0], weight, node.input[2], at(node, 5) or "", at(node, 8) or ""]
    while not inputs[-1]:
        inputs.pop()
    keep = {k: v for k, v in attributes_of(node).items() if k in ATTENTION}
    r.nodes.append(helper.make_node("Attention", inputs, list(node.output), node.name, domain="com.microsoft", **keep))


def matmul_nbits(r: Rewriter, node: onnx.NodeProto) -> None:
    """A · Wᵀ with W [N, K] in blocks of `block_size` along K."""
    a = attributes_of(node)
    if at(node, 4):
        raise GraphError("the columns of a packed weight are in another order (g_idx)", node=node.name or node.output[0], hint=FLOAT_MODEL)
    shape, bits = (a["N"], a["K"]), a.get("bits", 4)
    made = r.blocks(node, 1, 2, 3, shape, bits, a["block_size"], axis=1, turned=True)
    r.product(node, node.input[0], made, at(node, 5))


def gather_blocks(r: Rewriter, node: onnx.NodeProto) -> None:
    """Rows of a packed table: (data, indices, scales, zero points)."""
    a = attributes_of(node)
    tensor = r.held.get(node.input[0])
    bits = a.get("bits", 4)
    packed = tensor is not None and tensor.data_type == TensorProto.UINT8
    if tensor is None or a.get("gather_axis", 0) != 0 or a.get("quantize_axis", 1) % len(tensor.dims) != len(tensor.dims) - 1 or len(tensor.dims) != 2:
        raise GraphError("a packed table is read along another axis than its first", node=node.name or node.output[0], hint=FLOAT_MODEL)
    if packed:
        shape = (tensor.dims[0], tensor.dims[1] * 8 // bits)
        made = r.blocks(node, 0, 2, 3, shape, bits, a.get("block_size", 128), axis=1)
    else:
        made = r.floats(node, node.input[0], node.input[2], at(node, 3), axis=1, block=a.get("block_size", 128))
    r.make("Gather", [made, node.input[1]], node, axis=0)


def mixture(r: Rewriter, node: onnx.NodeProto) -> None:
    """QMoE -> MoE: (x, scores; weight, scales and bias of each of three maps; zero points of each; scores for the weighing; scales of activations).

    `normalize_routing_weights=0` is no clear order: ONNX Runtime's CPU kernel gives the chosen experts weights that sum to 1 even so
    (measured with 1.31), where MoE and the operator's text leave them as the softmax over all experts has them.
    """
    a = attributes_of(node)
    if a.get("quant_type", "int") != "int" or a.get("weights_prepacked", -1) > 0:
        _refuse(node, "weights in floats of 8 or 4 bits, or in an order that a device has chosen")
    if any(at(node, i) for i in (8, 9, 10, 13, *range(14, len(node.input)))):
        _refuse(node, "a third map, other scores for the weighing than for the choice, or scales of activations")
    if not a.get("normalize_routing_weights", 0):
        _refuse(node, "normalize_routing_weights=0, which the CPU's kernel reads as 1 and others do not",
                f"set it to 1 in the file where that is what it means, or {FLOAT_MODEL}")
    bits = {a.get(f"fc{k}_expert_weight_bits", a.get("expert_weight_bits", 4)) for k in (1, 2)}
    if len(bits) > 1:
        _refuse(node, "maps of two widths, for which there is no CPU kernel to check against")
    maps = [_experts(r, node, first, zero, *bits, a.get("block_size", 0)) for first, zero in ((2, 11), (5, 12))]
    inputs = [*node.input[:2], maps[0], at(node, 4) or "", maps[1], at(node, 7) or ""]
    r.make("MoE", inputs, node, domain="com.microsoft", **{n: v for n, v in a.items() if n in MIXTURE})


def _experts(r: Rewriter, node: onnx.NodeProto, first: int, zero: int, bits: int, block: int) -> str:
    """A weight [experts, out, in], packed along `in` as bytes; scales [experts, out] or [experts, out, blocks of `in`]."""
    held, given, around = (at(node, i) for i in (first, first + 1, zero))
    if not given or not all(r.is_constant(x) for x in (held, given, around) if x):
        _refuse(node, "weights or scales that are computed, or no scales")
    many, rows, packed = r.int_ref(held).shape
    shape, scales = (many * rows, packed * 8 // bits), np.asarray(r.array(given))
    count = shape[1] // block if block > 0 else 1
    zeros = np.full((shape[0], count), 2 ** (bits - 1), np.float32)
    if around:  # a vector for each expert, or for each of its rows, that ends at a whole byte
        vectors, length = (shape[0], count) if block > 0 else (many, rows)
        zeros = unpacked_rows(np.asarray(r.array(around)).reshape(vectors, -1), bits)[:, :length].reshape(zeros.shape).astype(np.float32)
    key = held, given, around, bits, block
    if key not in r.weights:
        bias = at(node, first + 2)
        kind = r.held[bias].data_type if bias in r.held else helper.np_dtype_to_tensor_dtype(scales.dtype)
        weight = Quantized(r.int_ref(held), scales.reshape(zeros.shape), zeros, 1, shape[1] // count, bits, shape)
        r.weights[key] = r.write(free_name(f"{held}_float", r.taken, never=True), weight, kind, (many, rows, shape[1]))
    return r.weights[key]


def _refuse(node: onnx.NodeProto, what: str, hint: str = FLOAT_MODEL) -> None:
    raise GraphError(f"{node.op_type} with {what}, has no float form here", node=node.name or node.output[0], hint=hint)


FUSED = {"QAttention": attention, "MatMulNBits": matmul_nbits, "GatherBlockQuantized": gather_blocks, "QMoE": mixture}
