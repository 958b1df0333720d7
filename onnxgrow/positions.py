"""What bounds the length that a model takes: learned tables, stored ids, masks, tables of sines. All of it grows together.

A bound is an axis of a stored tensor from which the run takes as much as it is fed: a Slice to a length that is known at run time,
or a look-up by indices that count positions. What the new entries hold is decided in `continued`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import SizeError
from .graph import Node
from .indices import Indices, find_indices
from .stacked import STACKED
from .structure import Structure
from .ties import Dim, find

LOOK_UPS = ("Gather", "GatherElements", "GatherND")


@dataclass
class Reach:
    """What bounds the length.

    Attributes:
        bounds: leaf dim -> a node that reads along it by position.
        fixed: leaf dim -> a node that reads the whole axis, or always the same places of it.
        unclear: leaf dim -> a node on the way of its indices that is not understood and does not limit them.
        limits: (node, input slot, old value, leaf) of constants that positions are clipped to.
    """

    bounds: dict[Dim, Node] = field(default_factory=dict)
    fixed: dict[Dim, Node] = field(default_factory=dict)
    unclear: dict[Dim, Node] = field(default_factory=dict)
    limits: list[tuple[Node, int, int, Dim]] = field(default_factory=list)


def find_reach(s: Structure, learned: list[Dim]) -> Reach:
    """Every bound of a graph; `learned` are dims of tables that are read by position if they are read by a graph input."""
    reach, stored = Reach(), stored_tensors(s)
    for node in s.graph.nodes:
        ties = s.nodes.get(node.index)
        if ties is None or not node.inputs or node.inputs[0] not in stored:
            continue
        for name, kind in ties.rule.fills.items():
            d = find(ties.names[name]) if name in ties.names else None
            if d is not None and d.form is None and d.size > 1 and kind in ("rows", "refuse"):
                _read(s, reach, node, kind, d, learned)
    _find_whole(s, reach, stored, learned)
    return reach


def _read(s: Structure, reach: Reach, node: Node, kind: str, d: Dim, learned: list[Dim]) -> None:
    """One reading along one dim of what is stored."""
    if node.op == "Slice" and kind == "rows":
        reach.bounds.setdefault(d, node)
    elif node.op == "GatherND" and s.walk.shapes[node.inputs[1]][-1] > 1:
        reach.unclear.setdefault(d, node)
    elif node.op in LOOK_UPS and kind == "rows":
        _look_up(reach, node, find_indices(s, node.inputs[1]), d, learned)
    elif kind == "refuse":
        reach.fixed.setdefault(d, node)


def _look_up(reach: Reach, node: Node, indices: Indices, d: Dim, learned: list[Dim]) -> None:
    fed = indices.kind == "fed" and ("pos" in indices.name.lower() or d in learned)
    if indices.kind == "position" or fed:
        reach.bounds.setdefault(d, node)
        reach.limits += [(*limit, d) for limit in indices.limits]
    elif indices.kind == "other" and (d in learned or not indices.bounded):
        reach.unclear.setdefault(d, indices.node)
    elif indices.kind == "fixed" and d in learned and indices.limits == []:
        learned.remove(d)  # token types that the model makes itself


def _find_whole(s: Structure, reach: Reach, stored: set[str], learned: list[Dim]) -> None:
    """Bounds that meet what is fed, or a whole learned table: the export or the picture fixed them."""
    wanted = {*reach.bounds, *(leaf for d in learned for leaf in s.leaves(d))}
    for node in s.graph.nodes:
        for t in node.outputs:
            if t in s.dims and t not in stored and t not in s.walk.values:
                for d in wanted.intersection(leaf for axis in s.dims[t] for leaf in s.leaves(axis)):
                    reach.fixed.setdefault(d, node)


def stored_tensors(s: Structure) -> set[str]:
    """Weights, and what moves or repeats them to sizes that are fed: nothing that is fed enters the values."""
    stored = set(s.graph.weights)
    for node in s.graph.nodes:
        sources = [t for t in node.inputs if t]
        if any(t in stored for t in sources) and all(t in stored or t in s.walk.values for t in sources):
            stored.update(o for o in node.outputs if o)
    return stored


def name_positions(roles) -> None:
    """Give the role `positions` to every bound, learned tables first. Beside a table that words are counted in, one that pictures of one size read whole is none."""
    s, role = roles.structure, roles.roles.get("positions")
    learned = [find(d) for d in role.instances] if role else []
    roles.reach = find_reach(s, learned)
    learned = [d for d in learned if d in roles.reach.bounds and not roles.reach.fixed.keys() & set(s.leaves(d))] or learned
    roles.roles.pop("positions", None)
    rest = sorted((d for d in roles.reach.bounds if d not in learned and d not in roles.leaves_of(STACKED)), key=lambda d: d.size)
    for d in [*learned, *rest]:
        roles.add("positions", d)


def check_reach(roles) -> None:
    """Refuse more positions where nothing bounds the length, or where something does that cannot grow.

    Raises:
        SizeError: with the node that stands in the way.
    """
    reach, role = roles.reach, roles.roles.get("positions")
    for d, node in reach.unclear.items():
        raise SizeError(f"positions cannot grow: a table of {d.size} rows is read by indices that come out of {node.op}, and nothing "
                        "says how they go on", node=node.label, hint="export a model that counts positions with a range or a sum of its mask")
    if role is None:
        raise _nothing(roles.structure)
    for d in role.instances:
        leaves = roles.structure.leaves(d)
        node = next((reach.fixed[leaf] for leaf in leaves if leaf in reach.fixed), None)
        if node is not None or d not in reach.bounds:
            raise SizeError("positions cannot grow: every call reads the same ones, so that their number is tied to the size of the picture, "
                            "or to the one length of the export", node=node.label if node else None,
                            hint="for text, export with a dynamic length (dynamic_axes, dynamic_shapes); for pictures, export at a larger size")


def _nothing(s: Structure) -> SizeError:
    fed = [(v.name, v.type.tensor_type.shape.dim) for v in s.graph.inputs]
    fixed = next((name for name, dims in fed if len(dims) > 1 and dims[1].HasField("dim_value")), None)
    if fixed and not any(s.runtime.get(fixed, ())):
        return SizeError(f"no table, mask or stored ids bound the length: the export itself fixed it ({fixed!r} has no dynamic axis)",
                         hint="export with a dynamic length (dynamic_axes, dynamic_shapes)")
    return SizeError("nothing bounds the length: no position table, mask or stored ids in this graph have a fixed length",
                     hint="the model takes any length as it is; other sizes can grow: see onnxgrow inspect")
