"""Graph inputs that are weights: some exporters leave the weights to whoever runs the model. What is not in the file cannot be grown."""

from __future__ import annotations

import onnx

from .errors import GraphError
from .graph import Graph, Node
from .inputs import FLOATS, MOVES, kind_of

GAINS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,), "InstanceNormalization": (1, 2),
         "GroupNormalization": (1, 2), "BatchNormalization": (1, 2, 3, 4), "SkipLayerNormalization": (2, 3, 4), "SkipSimplifiedLayerNormalization": (2, 3)}
BAKE = ("put the arrays into the file first (here from weights.npz, one array per input): python -c \"import onnx, numpy as np; "
        "from onnx import numpy_helper as h; m = onnx.load('MODEL'); w = np.load('weights.npz'); "
        "m.graph.initializer.extend(h.from_array(w[n], n) for n in w.files); "
        "keep = [v for v in m.graph.input if v.name not in w.files]; del m.graph.input[:]; m.graph.input.extend(keep); onnx.save(m, 'baked.onnx')\"")


def refuse_fed_weights(graph: Graph) -> None:
    """GraphError that names the inputs that look like weights, with what to do.

    One matrix alone may be something else (states or keys that are given), so a product needs two of them; a gain, a kernel or a table cannot.
    """
    meets = {v.name: kind for v in graph.inputs if (kind := _weight(graph, v))}
    if not meets or ("kernel" not in meets.values() and len(meets) < 2):
        return
    names = list(meets)
    told = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    raise GraphError(f"inputs of the graph look like weights: {told}; the file does not hold them, so they cannot be grown",
                     hint=BAKE.replace("MODEL", graph.source.path.name if hasattr(graph.source, "path") else "model.onnx"))


def _weight(graph: Graph, value: onnx.ValueInfoProto) -> str | None:
    """How an input is used as only a weight is: "matrix" (of a product) or "kernel" (also gains and tables); None for all others."""
    dims = value.type.tensor_type.shape.dim
    if kind_of(value) not in FLOATS or not dims or not all(d.HasField("dim_value") for d in dims):
        return None
    kinds = {_use(node, slot, len(dims)) for node, slot in _readers(graph, value.name)}
    return "kernel" if "kernel" in kinds else "matrix" if "matrix" in kinds else None


def _readers(graph: Graph, tensor: str) -> list[tuple[Node, int]]:
    """Who uses a tensor, also behind what moves its values."""
    out, waiting = [], [tensor]
    while waiting:
        for node, slot in graph.users.get(waiting.pop(), ()):
            out.append((node, slot))
            waiting += node.outputs[:1] if node.op in MOVES and slot == 0 else ()
    return out


def _use(node: Node, slot: int, rank: int) -> str | None:
    if slot in GAINS.get(node.op, ()) or (node.op == "Conv" and slot) or (node.op == "Gemm" and slot == 1) or (node.op == "Gather" and slot == 0 and rank == 2):
        return "kernel"
    return "matrix" if node.op == "MatMul" and slot == 1 and rank == 2 else None
