"""Proof that a graph with more positions runs at a length that it could not take before: shapes are walked once more, at that length."""

from __future__ import annotations

from math import prod

from .constants import predicted
from .errors import GraphError
from .inputs import symbol_kinds
from .repairs import Edits
from .roles import Roles
from .rulebook import Registry
from .shapes import Walk, walk
from .structure import Structure
from .symbols import Mismatch, Symbols
from .target import Target

OFFSET = 2  # OPT and RoBERTa leave the first rows of their table unused


def prove_length(roles: Roles, target: Target, edits: Edits, registry: Registry) -> None:
    """Walk the grown graph at the greatest length that all its bounds have room for. Nothing to prove where no bound grows.

    Raises:
        GraphError: it does not fit, for example because the export wrote its length into the graph.
    """
    s, grown = roles.structure, [d for d in roles.reach.bounds if d in target.sizes]
    kinds = symbol_kinds(s)
    lengths = [name for name in s.symbols.free if kinds[name] == "length"]
    if not grown or not lengths:
        return
    past = max((size for name, size in s.symbols.sizes.items() if kinds[name] == "past"), default=0)
    room = min(target.size(d) for d in roles.reach.bounds) - OFFSET - past
    sizes = {name: max(room, size) if name in lengths else size for name, size in s.symbols.sizes.items()}
    symbols = Symbols(Symbols(sizes, s.symbols.sums).resolve(sizes), s.symbols.sums)
    inputs = {}
    for value in s.graph.inputs:
        dims = value.type.tensor_type.shape.dim
        inputs[value.name] = tuple(new if d.HasField("dim_value") else size
                                   for d, new, size in zip(dims, predicted(s, target, value.name), symbols.bind(value)))
    weights = {t: predicted(s, target, t) for t in s.graph.weights}
    try:
        _check_entries(s, walk(s.graph, inputs, registry, weights, edits.constants, None, edits.attributes))
    except Mismatch as problem:
        raise GraphError(f"the graph has room for more positions, but does not run at a length of {room}: {problem}", node=problem.node.label,
                         hint="a length is written down here, by the export or in the model: export with a dynamic length") from problem


def _check_entries(s: Structure, w: Walk) -> None:
    """What ONNX's own inference lets pass: a Reshape to another number of entries."""
    for node in s.graph.nodes:
        before, after = (w.shapes.get(t) for t in (node.inputs[0] if node.inputs else "", node.outputs[0]))
        if node.op == "Reshape" and before is not None and after is not None and prod(before) != prod(after):
            raise Mismatch([], node, f"{list(before)} cannot become {list(after)}")
