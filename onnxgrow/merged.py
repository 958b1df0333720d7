"""A decoder in one file with and without a past (`decoder_model_merged.onnx`): one If over an input, whose branches are the two graphs.

The branches are looked at as graphs of their own, and put back into the If when they are grown. Where the branch with a past gives no cache
of the encoder's states, since they do not change, it gives empty ones, so that both branches have the same outputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .alike import same
from .graph import attributes_of, graphs_in, outer_names
from .source import Source

BRANCHES = {"decoder": "else_branch", "decoder_with_past": "then_branch"}


def branches(source: Source) -> dict[str, Source]:
    """The graphs of both branches by the name of the member that they are; none where the file is built in another way."""
    g = source.proto.graph
    if len(g.node) != 1 or g.node[0].op_type != "If" or g.node[0].input[0] not in {v.name for v in g.input}:
        return {}
    bodies = attributes_of(g.node[0])
    named = [v.name for v in g.output]
    if any(b.initializer or b.sparse_initializer or b.input or [v.name for v in b.output] != named for b in bodies.values()):
        return {}
    return {name: _graph(source, bodies[key]) for name, key in BRANCHES.items()}


def flag_of(g: onnx.GraphProto) -> str:
    """The input that chooses a branch."""
    return g.node[0].input[0]


def _graph(source: Source, body: onnx.GraphProto) -> Source:
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    g, outer = proto.graph, source.proto.graph
    read = set(outer_names(body))
    for part in ("node", "initializer", "input", "output", "value_info"):
        del getattr(g, part)[:]
    empty = {n.output[0] for n in body.node if _is_empty(n)}
    g.node.extend(n for n in body.node if not set(n.output) & empty & {o.name for o in body.output})
    g.initializer.extend(t for t in outer.initializer if t.name in read)
    g.input.extend(v for v in outer.input if v.name in read)
    g.output.extend(v for v in outer.output if v.name not in empty)
    g.value_info.extend(body.value_info)
    return replace(source, proto=proto, tensors={name: ref for name, ref in source.tensors.items() if name in read})


def _is_empty(n: onnx.NodeProto) -> bool:
    return n.op_type == "Constant" and n.attribute[0].name == "value" and 0 in n.attribute[0].t.dims


def merge(before: onnx.ModelProto, grown: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    """The file with both graphs as they are now.

    Args:
        before: the file as it was.
        grown: the graph of each branch, by the name of the member; weights of one name are one weight.
    """
    out = onnx.ModelProto()
    out.CopyFrom(before)
    g, graphs = out.graph, [model.graph for model in grown.values()]
    flag = next(v for v in before.graph.input if v.name == flag_of(before.graph))
    order = {v.name: i for i, v in enumerate(before.graph.input)}
    for part in ("initializer", "input", "output", "value_info"):
        del getattr(g, part)[:]
    g.initializer.extend({t.name: t for graph in graphs for t in graph.initializer}.values())
    fed = {v.name: v for graph in graphs for v in graph.input} | {flag.name: flag}
    g.input.extend(sorted(fed.values(), key=lambda v: order.get(v.name, len(order))))  # what new layers take comes last
    g.output.extend(grown["decoder"].graph.output)
    g.node[0].output[:] = [v.name for v in g.output]
    for name, key in BRANCHES.items():
        body = next(a.g for a in g.node[0].attribute if a.name == key)
        del body.node[:], body.output[:], body.value_info[:]
        body.node.extend(grown[name].graph.node)
        body.value_info.extend(grown[name].graph.value_info)
        given = {v.name for v in grown[name].graph.output}
        for value in g.output:
            body.output.append(value)
            if value.name not in given:
                body.node.append(_empty(value))
    return out


def _empty(value: onnx.ValueInfoProto) -> onnx.NodeProto:
    """No rows of an output."""
    kind = value.type.tensor_type
    shape = [0, *(d.dim_value or 1 for d in list(kind.shape.dim)[1:])]
    nothing = numpy_helper.from_array(np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type)), value.name)
    return helper.make_node("Constant", [], [value.name], value=nothing)


def twin_weights(a: Source, b: Source) -> dict[str, str] | None:
    """Weight of `a` -> the one of `b` that stands in its place; None where they are not one graph with the same weights."""
    x, y = a.proto.graph, b.proto.graph
    held, theirs, out = {t.name: t for t in x.initializer}, {t.name: t for t in y.initializer}, {}
    if len(x.node) != len(y.node) or [v.name for v in x.output] != [v.name for v in y.output]:
        return None
    for n, other in zip(x.node, y.node):
        out |= {i: j for i, j in zip(n.input, other.input) if i in held}
        now = onnx.NodeProto()
        now.CopyFrom(n)
        now.input[:] = [out.get(i, i) for i in n.input]
        now.name = other.name
        if any(graphs_in(n)) or now.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True):
            return None
    return out if all(j in theirs and same((a, held[i]), (b, theirs[j])) for i, j in out.items()) else None
