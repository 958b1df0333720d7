"""Numbers that a config states and a graph has spread over its nodes: epsilon, activation, scales, rotary frequencies.

Each reading is a plain function of the roles. None means that the graph does not say; nothing here guesses a default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import exp, prod

import numpy as np
from onnx import TensorProto

from ...graph import Node
from ...idioms import Attention
from ...inputs import readers
from ...roles import FLOATS, Roles
from ...structure import Structure

CLASSES = "pkg.torch.onnx.class_hierarchy"  # metadata of a node: the classes of the modules around it, outermost first
QUICK = 1.702  # x·sigmoid(1.702 x)
ULPS = 3e-7  # relative error of a frequency in float32; 1e-6 more would turn the ten thousandth position by 0.01
COMPARES = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


def declared_class(roles: Roles) -> str | None:
    """The transformers class that the exporter noted, if the file still has its notes."""
    for node in roles.structure.graph.nodes:
        for entry in node.proto.metadata_props:
            found = re.search(r"transformers\.models\.\w+\.modeling_\w+\.(\w+)", entry.value) if entry.key == CLASSES else None
            if found:
                return found.group(1)
    return None


def epsilons(roles: Roles, width: int | None = None) -> list[tuple[str, float]]:
    """(label, epsilon) of every norm, spelled out or one operator; `width`: only of norms along so many entries."""
    s = roles.structure
    spelled = [(n.anchor, s.walk.value(*n.eps) if n.eps else np.zeros(1)) for n in roles.norms]
    anchors, wide = {n.index for n, _ in spelled}, {n.index: d.size for d, _, n in roles.norm_axes}
    fused = [(n, np.asarray(n.attrs.get("epsilon", 1e-5))) for _, _, n in roles.norm_axes if n.index not in anchors]
    found = [(n, value) for n, value in sorted([*spelled, *fused], key=lambda pair: pair[0].index) if width in (None, wide[n.index])]
    return [(node.label, short(value.ravel()[0])) for node, value in found]


def head_sizes(roles: Roles) -> list[tuple[int, int]]:
    """(head_dim, heads · head_dim) of every attention."""
    s, found = roles.structure, []
    for attention in roles.attention:
        size = s.nodes[attention.scores.index].names["k"].size
        heads = [leaf.size for d in s.dims[attention.scores.outputs[0]][:-2] for leaf in s.leaves(d) if leaf not in roles.batch_leaves]
        found.append((size, size * prod(heads)))
    return found


def short(value: float) -> float:
    """The shortest decimal number that is this float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def activation(roles: Roles) -> str | None:
    """gelu | gelu_tanh | relu | silu | quick_gelu, of the feed-forward part."""
    s, width = roles.structure, roles.leaves_of("ffn")
    for node in s.graph.nodes:
        dims = s.dims.get(node.outputs[0]) if node.outputs else None
        if not dims or not width & set(s.leaves(dims[-1])):
            continue
        if node.op in ("Gelu", "FastGelu"):
            return "gelu_tanh" if node.attrs.get("approximate") == "tanh" or node.op == "FastGelu" else "gelu"
        if node.op == "Sigmoid":
            before = s.graph.makers.get(node.inputs[0])
            return "quick_gelu" if before is not None and abs(_factor(s, before) - QUICK) < 1e-2 else "silu"
        if node.op in ("Erf", "Relu", "Tanh", "Swish", "QuickGelu"):
            return {"Erf": "gelu", "Relu": "relu", "Tanh": "gelu_tanh", "Swish": "silu", "QuickGelu": "quick_gelu"}[node.op]
    return None


# --- factors --------------------------------------------------------------------------------------------------------


def attention_scales(roles: Roles) -> list[float]:
    """What the product of queries and keys is multiplied with before each Softmax, in the order of the graph."""
    return [_attention_scale(roles, a) for a in roles.attention]


def _attention_scale(roles: Roles, attention: Attention) -> float:
    """Exporters scale scores, or queries, or both sides by a root each: all numbers on the way count."""
    s, heads = roles.structure, roles.leaves_of("head_dim", "v_head_dim")
    projections = {lin.node.index for lin in roles.linears if heads & {leaf for d in lin.writes for leaf in s.leaves(d)}}
    ways = [(attention.softmax.inputs[0], {attention.scores.index}), *((t, projections) for t in attention.scores.inputs)]
    found = [_on_the_way(s, tensor, ends, set()) for tensor, ends in ways]
    return float(np.prod([1.0 if f is None else f for f in found]))


def _on_the_way(s: Structure, tensor: str, ends: set[int], seen: set[int]) -> float | None:
    """The product of the numbers that a tensor was multiplied with since one of some nodes; None where it comes from elsewhere."""
    node = s.graph.makers.get(tensor)
    if node is None or node.index in seen:
        return None
    if node.index in ends:
        return 1.0
    seen.add(node.index)
    for t in node.inputs:
        if t and t not in s.walk.values and t not in s.graph.weights:
            found = _on_the_way(s, t, ends, seen)
            if found is not None:
                return found * _factor(s, node)
    return None


def _factor(s: Structure, node: Node) -> float:
    """The number that a node multiplies its data with, 1 where it does something else."""
    values = [s.walk.value(node, slot) for slot in range(len(node.inputs))] if node.op in ("Mul", "Div") else []
    numbers = [(slot, float(v.ravel()[0])) for slot, v in enumerate(values) if v is not None and v.size == 1 and v.dtype.kind == "f"]
    if len(numbers) != 1 or (node.op == "Div" and numbers[0][0] == 0):
        return 1.0
    return numbers[0][1] if node.op == "Mul" else 1 / numbers[0][1]


def embedding_factor(roles: Roles) -> float:
    """What looked-up words are multiplied with (Gemma: √hidden)."""
    s, words = roles.structure, roles.leaves_of("vocab")
    for table in roles.tables:
        if words & set(s.leaves(table.rows)):
            return float(np.prod([_factor(s, node) for node in _only_users(s, table.found)]))
    return 1.0


def _only_users(s: Structure, tensor: str) -> Iterator[Node]:
    """Nodes that a tensor passes one after the other, as long as each is its only user."""
    while len(users := {n.index: n for n, _ in s.graph.users.get(tensor, [])}) == 1:
        node = next(iter(users.values()))
        if node.op not in ("Mul", "Div", "Cast", "Identity"):
            return
        yield node
        tensor = node.outputs[0]


def logit_factor(roles: Roles) -> float:
    """What states are multiplied with in front of the map to words (T5: 1/√hidden)."""
    s, words = roles.structure, roles.leaves_of("vocab")
    heads = [lin for lin in roles.linears if words & {leaf for d in lin.writes for leaf in s.leaves(d)}]
    before = s.graph.makers.get(next(t for t in heads[-1].node.inputs if t != heads[-1].weight)) if heads else None
    return _factor(s, before) if before is not None else 1.0


def similarity_factor(roles: Roles) -> float | None:
    """What the products of texts with pictures are multiplied with (CLIP); None where no output is one."""
    s = roles.structure
    for output in s.graph.outputs:
        node = s.graph.makers.get(output)
        while node is not None and node.op in ("Transpose", "Identity", "Cast"):
            node = s.graph.makers.get(node.inputs[0])
        if node is not None and node.op == "Mul" and _factor(s, node) != 1:
            return _factor(s, node)
    return None


def is_gain_folded(roles: Roles) -> bool:
    """Is 1 + w of the norms (Gemma) one constant in this graph, no sum of one and a weight?"""
    s = roles.structure
    for node in s.graph.nodes:
        one = [s.walk.value(node, i) for i in range(len(node.inputs))] if node.op == "Add" else []
        ones = any(v is not None and v.size == 1 and float(v.ravel()[0]) == 1 for v in one)
        if ones and node.outputs[0] in roles.static and set(node.inputs) & set(s.graph.weights):
            return False
    return True


# --- positions ------------------------------------------------------------------------------------------------------


def frequencies(roles: Roles) -> np.ndarray | None:
    """The inverse frequencies of rotary positions, [head_dim / 2]; None without them, or where only tables of sines are stored."""
    s = roles.structure
    for node in s.graph.nodes:
        for tensor in _weights_behind(s, node.inputs[0]) if node.op == "Cos" else ():
            if s.graph.weight_type(tensor) in FLOATS and np.prod(s.graph.weight_shape(tensor)) == max(s.graph.weight_shape(tensor), default=0):
                return np.asarray(s.graph.array(tensor)).astype(np.float32).ravel()
    return None


def _weights_behind(s: Structure, tensor: str) -> Iterator[str]:
    waiting, seen = [tensor], set()
    while waiting:
        t = waiting.pop(0)
        if t in s.graph.weights and t not in s.walk.values:
            yield t
        node = s.graph.makers.get(t)
        if node is not None and node.index not in seen:
            seen.add(node.index)
            waiting += [i for i in node.inputs if i and i not in s.walk.values]


def fit_theta(frequency: np.ndarray, error: float = ULPS) -> float | None:
    """The one θ with frequency[i] = θ^(-i/n) for all i < n, each off by at most a relative error; None where there is none."""
    n, f = len(frequency), frequency.astype(np.float64)
    if n < 2 or (f <= 0).any():
        return None
    theta = f[-1] ** (-n / (n - 1))
    for digits, allowed in [*((d, error) for d in range(1, 9)), (17, 8 * error)]:  # the fewest digits that say it: 500000, not 499999.97
        candidate = float(f"{theta:.{digits}g}")
        if np.allclose(candidate ** (-np.arange(n) / n), f, rtol=allowed, atol=0):
            return candidate
    return None


def rounding(roles: Roles) -> float:
    """Relative error of a stored frequency; a model that was cast to half precision as a whole has its frequencies rounded, too."""
    types = {t.data_type for t in roles.structure.graph.source.proto.graph.initializer}
    return 8e-3 if TensorProto.BFLOAT16 in types else 1e-3 if TensorProto.FLOAT16 in types else ULPS


def window(roles: Roles) -> int | None:
    """How many positions back attention looks, where a mask compares positions with positions minus a number (Mistral)."""
    return next((n for n in _compared(roles.structure, {"Sub", "Add"}) if n > 1), None)


def _compared(s: Structure, makers: set[str]) -> Iterator[int]:
    for node in s.graph.nodes:
        for tensor in node.inputs if node.op in COMPARES else ():
            made = s.graph.makers.get(tensor)
            value = s.walk.value(made, 1) if made is not None and made.op in makers and len(made.inputs) > 1 else None
            if value is not None and value.size == 1 and value.dtype.kind in "iu":
                yield abs(int(value.ravel()[0]))


def compared_id(roles: Roles) -> int | None:
    """The id that the graph looks for among those it is fed: of padding (RoBERTa), of the end (CLIP)."""
    s = roles.structure
    for v in s.graph.inputs:
        for node, slot, shift in readers(s, v.name):
            value = s.walk.value(node, 1 - slot) if node.op == "Equal" else None
            if value is not None and value.size == 1 and value.dtype.kind in "iu":
                return int(value.ravel()[0]) - shift
    return None


def farthest(roles: Roles) -> int | None:
    """The distance from which on T5 tells distances no longer apart: exact · e^c, of log(x / exact) / c."""
    s = roles.structure
    for node in s.graph.nodes:
        if node.op != "Log":
            continue
        before, after = s.graph.makers.get(node.inputs[0]), next((n for n, _ in s.graph.users.get(node.outputs[0], [])), None)
        if before is not None and after is not None and before.op == after.op == "Div":
            return round(exp(1 / _factor(s, after)) / _factor(s, before))
    return None
