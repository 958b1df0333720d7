"""Graphs written as lines, for tests that need a few nodes: `out = Op a b`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.graph import Graph, build


class Memory(SimpleNamespace):
    """A model in memory, as `graph.build` and `rulegrowth.Growth` take it: `proto`, and `feeds` where it is run."""

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in self.proto.graph.initializer if t.name == name))


def model_of(lines: str, inputs: dict[str, list], constants: dict[str, object] | None = None, opset: int = 17,
    **attrs: dict) -> onnx.ModelProto:
    """A model from one line per node; its last output is the graph's.

    Args:
        inputs: shapes by name; whole numbers where the name starts with i, floats otherwise.
        attrs: attributes by the (first) output of a node.
    """
    nodes = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        made, _, call = line.partition(" = ")
        op, *ins = call.split()
        domain, _, op = op.rpartition("::")
        outs = made.split(", ")
        nodes.append(helper.make_node(op, ins, outs, name=outs[0], domain=domain, **attrs.get(outs[0], {})))
    kinds = {n: TensorProto.INT64 if n.startswith("i") else TensorProto.FLOAT for n in inputs}
    values = [helper.make_tensor_value_info(n, kinds[n], shape) for n, shape in inputs.items()]
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", values, [onnx.ValueInfoProto(name=nodes[-1].output[0])], tensors)
    domains = sorted({n.domain for n in nodes} - {""})
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)],
        ir_version=8)


def graph_of(lines: str, inputs: dict[str, list], constants: dict[str, object] | None = None, opset: int = 17, **attrs: dict) -> Graph:
    return build(Memory(proto=model_of(lines, inputs, constants, opset, **attrs)))
