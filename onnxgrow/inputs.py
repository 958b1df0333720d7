"""What a graph input means: ids of a table, positions, a mask, cached keys, plain numbers; what its symbolic axes count.

The graph says most of it (the table that ids index, the Add behind an additive mask); a name is asked only where nothing else tells.
A wrong guess costs realism, not truth: both models are fed the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from .graph import FLOATS, Node
from .roles import Roles
from .structure import Structure
from .symbols import symbol_of
from .ties import Dim

INTEGERS = {TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8, TensorProto.UINT8, TensorProto.UINT16}
MOVES = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Expand", "Flatten"}
TABLES = {  # (operator, slot of the indices) -> slot of the table that they index
    ("Gather", 1): 0, ("EmbedLayerNormalization", 0): 2, ("EmbedLayerNormalization", 1): 4, ("EmbedLayerNormalization", 8): 3,
    ("com.microsoft::RotaryEmbedding", 1): 2, ("RotaryEmbedding", 3): 1,
}


def kind_of(value: onnx.ValueInfoProto) -> int:
    """TensorProto element type."""
    return value.type.tensor_type.elem_type


def rank_of(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def symbol_kinds(s: Structure) -> dict[str, str]:
    """Whether a symbolic dimension counts rows ("batch"), cached tokens ("past"), pixels ("image") or tokens ("length")."""
    found: dict[str, set[str]] = {}
    for value in s.graph.inputs:
        pixels = kind_of(value) in FLOATS and rank_of(value) > 3 and not is_mask(s, value)
        inner = "past" if is_cache(s, value) else "image" if pixels else "length"
        for axis, d in enumerate(value.type.tensor_type.shape.dim):
            if not d.HasField("dim_value"):
                found.setdefault(symbol_of(value, axis), set()).add("batch" if axis == 0 and rank_of(value) > 1 else inner)
    return {name: next(k for k in ("batch", "length", "image", "past") if k in kinds) for name, kinds in found.items()}


def fixed_sizes(s: Structure) -> dict[str, list[int]]:
    """Rows ("batch") and tokens ("length") at which alone the graph runs, from axes that its inputs give as numbers and from what its nodes hold.

    A size of one beside a dynamic axis of the same kind is no limit: it is spread, or a step after a cache.
    """
    kinds = symbol_kinds(s)
    open_ended = {kinds[name] for name in s.symbols.free}
    found = [(kinds[name], size) for name, (size, _) in s.symbols.pinned.items()]
    for value in s.graph.fed:
        for axis, d in enumerate(value.type.tensor_type.shape.dim):
            kind = _counts(s, value, axis) if d.HasField("dim_value") else None
            if kind and (d.dim_value > 1 or not open_ended & {kind, "past"}):
                found.append((kind, d.dim_value))
    return {kind: sorted({size for k, size in found if k == kind}) for kind in ("batch", "length") if any(k == kind for k, _ in found)}


def _counts(s: Structure, value: onnx.ValueInfoProto, axis: int) -> str | None:
    """What an axis of known size counts: rows, tokens, or something that belongs to the model (heads, channels, pixels, features)."""
    words = kind_of(value) in INTEGERS | {TensorProto.BOOL}
    if rank_of(value) < 2 or (rank_of(value) == 2 and not words) or is_cache(s, value):  # caches may have keys and values as their first axis
        return None
    if axis == 0:
        return "batch"
    states = rank_of(value) == 3 and not words and all(node.op != "Conv" for node, _, _ in readers(s, value.name))
    return "length" if axis == 1 and (states or rank_of(value) == 2) else None


def is_mask(s: Structure, value: onnx.ValueInfoProto) -> bool:
    """So named, or whole numbers in rows that index no table and are no positions."""
    if "mask" in value.name.lower():
        return kind_of(value) in FLOATS | INTEGERS | {TensorProto.BOOL}
    return kind_of(value) in INTEGERS and rank_of(value) > 1 and "pos" not in value.name.lower() and index_range(s, value.name) is None


def is_additive(s: Structure, value: onnx.ValueInfoProto) -> bool:
    """A mask of zeros and large negative numbers, added to the scores."""
    return kind_of(value) in FLOATS and any(node.op in ("Add", "Attention", "MultiHeadAttention") for node, _, _ in readers(s, value.name))


def is_flag(s: Structure, value: onnx.ValueInfoProto) -> bool:
    """One truth value that switches something: a cache, dropout."""
    return kind_of(value) == TensorProto.BOOL and not is_mask(s, value) and all(d.dim_value == 1 for d in value.type.tensor_type.shape.dim)


SEARCH_INPUTS = {"BeamSearch": "ids max_length min_length num_beams num_return_sequences length_penalty repetition_penalty".split(),
                 "GreedySearch": "ids max_length min_length repetition_penalty".split(), "Sampling": "ids max_length min_length repetition_penalty".split()}


def search_input(s: Structure, value: onnx.ValueInfoProto) -> str | None:
    """What an input means to the search of ONNX Runtime that it goes to: "ids" or the name of a setting; None where it goes elsewhere."""
    found = {(node.op, slot) for node, slot in s.graph.users.get(value.name, ()) if node.op in SEARCH_INPUTS}
    op, slot = found.pop() if len(found) == 1 else ("", 0)
    return SEARCH_INPUTS[op][slot] if op and slot < len(SEARCH_INPUTS[op]) else None


def is_trip_count(s: Structure, value: onnx.ValueInfoProto) -> bool:
    """How often a Loop runs."""
    return kind_of(value) in INTEGERS and any(node.op == "LoopEnd" and slot == 1 + node.attrs["counters"] for node, slot, _ in readers(s, value.name))


def is_cache(s: Structure, value: onnx.ValueInfoProto) -> bool:
    """Past keys and values: so named, or with heads and joined to new ones."""
    if kind_of(value) not in FLOATS or rank_of(value) < 3 or "mask" in value.name.lower():
        return False
    named = any(word in value.name.lower() for word in ("past", "cache"))
    return named or (rank_of(value) > 3 and any(node.op == "Concat" for node, _, _ in readers(s, value.name)))


def is_position(s: Structure, roles: Roles, value: onnx.ValueInfoProto) -> bool:
    found = index_range(s, value.name)
    return "pos" in value.name.lower() or (found is not None and bool(set(s.leaves(found[1])) & roles.leaves_of("positions")))


def index_range(s: Structure, tensor: str) -> tuple[int, Dim] | None:
    """How many different indices a tensor may hold, and the rows of the smallest table that it indexes; None without one."""
    found = []
    for node, slot, shift in readers(s, tensor):
        op = f"{node.domain}::{node.op}" if node.op == "RotaryEmbedding" and node.domain else node.op
        table = node.inputs[TABLES[op, slot]] if (op, slot) in TABLES and slot < len(node.inputs) else None
        axis = node.attrs.get("axis", 0) if node.op == "Gather" else 0
        if op == "OneHot" and slot == 0 and not s.runtime[node.outputs[0]][node.attrs.get("axis", -1)]:
            table, axis = node.outputs[0], node.attrs.get("axis", -1)
        if table in s.dims and not s.runtime[table][axis]:
            rows = s.dims[table][axis]
            found.append((max(rows.size - shift, 1), rows))
    return min(found, key=lambda f: f[0], default=None)


def readers(s: Structure, tensor: str) -> Iterator[tuple[Node, int, int]]:
    """(node, slot, what was added on the way) of all who get the values of a tensor, moved or shifted by a constant."""
    waiting, seen = [(tensor, 0)], {tensor}
    while waiting:
        tensor, shift = waiting.pop(0)
        for node, slot in s.graph.users.get(tensor, ()):
            yield node, slot, shift
            moved = _moved(s, node, slot)
            for out in node.outputs[:1] if moved is not None else ():
                if out not in seen:
                    seen.add(out)
                    waiting.append((out, shift + moved))


def _moved(s: Structure, node: Node, slot: int) -> int | None:
    """What a node adds to the values it passes on; None where it passes none on."""
    if node.op in MOVES or node.op == "Clip":
        return 0 if slot == 0 else None
    if node.op in ("Min", "Max", "Mod"):
        return 0
    if node.op == "Concat" or (node.op == "Where" and slot > 0):
        return 0
    other = s.walk.value(node, 1 - slot) if node.op in ("Add", "Sub") else None
    if other is None or other.size != 1 or other.dtype.kind not in "iu" or (node.op == "Sub" and slot):
        return None
    return int(other.ravel()[0]) * (1 if node.op == "Add" else -1)
