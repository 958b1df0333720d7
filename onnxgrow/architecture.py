"""What a model is, in the words of the field: the record behind `onnxgrow inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, fields
from math import prod

from .blocks import Stack
from .flow import is_turning
from .modules import modules_of
from .roles import FLOATS, QUANTIZED, Roles
from .stacked import STACKED
from .ties import Dim, describe, find
from .widths import Width

ACTIVATIONS = {"Gelu": "gelu", "Erf": "gelu", "Relu": "relu", "Tanh": "gelu_tanh", "Sigmoid": "silu", "Swish": "silu", "Elu": "elu", "HardSwish": "hard_swish"}


@dataclass(frozen=True)
class DimInfo:
    """One size that can be asked for by name.

    Attributes:
        name: what `--set NAME=SIZE` takes.
        size: the size today.
        sizes: all sizes, where layers differ.
        places: in how many places (layers) it has a dim of its own.
        extent: what it consists of (`4 + 4` for rotary halves, `2·2` for kv heads and group).
        refused: why it cannot grow, or None.
        module: of the axis of a weight whose name says nothing, the module of the framework that reads the weight; else None.
    """

    name: str
    size: int
    sizes: tuple[int, ...]
    places: int
    extent: str
    refused: str | None
    module: str | None = None


@dataclass(frozen=True)
class BlockInfo:
    """One repeated block: the `layers` it is (counted from 0), its `first` and `last` node in the file's order, and how many `nodes` it has."""

    layers: tuple[int, ...]
    first: str
    last: str
    nodes: int


@dataclass(frozen=True)
class StackInfo:
    """Layers that repeat.

    Attributes:
        name: `layers`, `encoder_layers`, `decoder_layers`: what `--set NAME=COUNT` takes.
        layers: how many there are.
        period: layers that are alike only every so often; new ones come in whole periods.
        blocks: the periods that repeat; layers beside them are of another kind.
    """

    name: str
    layers: int
    period: int
    blocks: tuple[BlockInfo, ...]


@dataclass(frozen=True)
class WidthInfo:
    """One of several hidden sizes and what goes with it: `--set NAME.hidden=SIZE`.

    Attributes:
        name: of the tower, stack or stage: `text`, `vision`, `encoder`, `stage2` ...
        hidden: its size.
        heads, kv_heads, head_dim, ffn: the one inside of this width, None where there is none.
        norm, norm_place, activation, gated: as in `Architecture`.
    """

    name: str
    hidden: int
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    ffn: int | None
    norm: str | None
    norm_place: str | None
    activation: str | None
    gated: bool


@dataclass(frozen=True)
class Architecture:
    """Sizes of a transformer; None where the model has no such thing.

    Attributes:
        layers: of all stacks together.
        hidden: None where there are several hidden sizes that differ; so are heads, kv_heads, head_dim and ffn.
        heads: of the queries.
        kv_heads: of keys and values.
        head_dim: size of a head of queries and keys.
        ffn: width of the feed-forward part.
        vocab: rows of the table of words.
        positions: rows of the position table, or the smallest other bound of the length.
        norm: "layer norm" or "rms norm".
        norm_place: "before" or "after" the branch, or "around" it.
        activation: of the feed-forward part.
        gated: whether a second map of the same input is multiplied in there.
        rotary: whether positions turn queries and keys.
        parameters: entries of all float weights, each tensor of the file once.
        opset: version of ONNX's own operators.
        producer: the exporter and its version.
        stacks: layers that repeat.
        dims: everything that `--set NAME=SIZE` accepts, roles first.
        widths: hidden sizes of a model that has several, along the graph; empty where there is one.
    """

    layers: int
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    ffn: int | None
    vocab: int | None
    positions: int | None
    norm: str | None
    norm_place: str | None
    activation: str | None
    gated: bool
    rotary: bool
    parameters: int
    opset: int
    producer: str
    dims: tuple[DimInfo, ...]
    stacks: tuple[StackInfo, ...]
    widths: tuple[WidthInfo, ...] = ()

    def to_json(self) -> dict:
        """As a document; `widths` only where there are several."""
        return {name: value for name, value in asdict(self).items() if name != "widths" or value}


def read_architecture(roles: Roles, stacks: list[Stack]) -> Architecture:
    proto = roles.structure.graph.source.proto
    widths = tuple(_width(roles, w) for w in roles.widths)
    shared = {f.name: _shared([getattr(w, f.name) for w in widths]) for f in fields(WidthInfo) if f.name != "name"}
    rotary = (_is_rotary(roles) and not _is_absolute(roles)) or any(is_turning(roles.structure, roles.static, t) for t in roles.structure.graph.weights
                                                                    if t in roles.structure.dims)
    layers = sum(x.layers for x in stacks) or len(roles.attention) * (roles.size(STACKED) or 1)
    return Architecture(
        layers=layers, **shared | {"gated": bool(shared["gated"])}, vocab=roles.size("vocab"), positions=roles.size("positions"),
        rotary=rotary, parameters=count_parameters(roles),
        opset=next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(), dims=tuple(_dims(roles)),
        stacks=tuple(_stack(roles, x) for x in stacks), widths=widths if len(widths) > 1 else ())


def _shared(found: list):
    """The value of all widths, None where they differ."""
    return found[0] if len(set(found)) == 1 else None


def _width(roles: Roles, width: Width) -> WidthInfo:
    kinds = Counter(kind for d, kind, _ in roles.norm_axes if d in roles.roles[width.role("hidden")].instances)
    size = {base: roles.size(width.role(base)) for base in ("hidden", "heads", "head_dim", "ffn")}
    activation, gated = _feed_forward(roles, width)
    return WidthInfo(width.name, **size, kv_heads=kv_heads_of(roles, width), norm=kinds.most_common(1)[0][0] if kinds else None,
                     norm_place=_norm_place(roles, width) if kinds else None, activation=activation, gated=gated)


def _stack(roles: Roles, stack: Stack) -> StackInfo:
    by = roles.structure.graph.by_index
    blocks = []
    for k, block in enumerate(stack.blocks):
        nodes = [by[i] for i in sorted(block.nodes)]
        start = stack.before + k * stack.period
        blocks.append(BlockInfo(tuple(range(start, start + stack.period)), nodes[0].label, nodes[-1].label, len(nodes)))
    return StackInfo(stack.name, stack.layers, stack.period, tuple(blocks))


def kv_heads_of(roles: Roles, width: Width) -> int | None:
    """Key and value heads: their role; one, where all query heads meet the same keys; else as many as heads."""
    heads, kv = width.role("heads"), width.role("kv_heads")
    if kv in roles.roles or heads not in roles.roles:
        return roles.size(kv)
    s, leaves = roles.structure, roles.leaves_of(heads)
    sides = [t for a in roles.attention for t in a.scores.inputs if leaves & {leaf for d in s.dims.get(a.scores.outputs[0], ()) for leaf in s.leaves(d)}]
    return roles.size(heads) if all(_has_heads(roles, t, leaves) for t in sides) else 1


def _has_heads(roles: Roles, tensor: str, heads: set[Dim]) -> bool:
    """Is a side of the scores made with heads? One that has none, or is repeated for all of them, is not."""
    s = roles.structure
    while heads & {leaf for d in s.dims.get(tensor, ()) for leaf in s.leaves(d)}:
        node = s.graph.makers.get(tensor)
        if node is None or node.op in ("MatMul", "Gemm", "Einsum"):
            return True
        tensor = max(node.inputs, key=lambda t: (t not in roles.static, prod(s.walk.shapes.get(t) or (0,))))
    return False


def count_parameters(roles: Roles) -> int:
    """Weights, each tensor in the file once; single numbers (eps, scales) are no parameters, nor are zero points."""
    graph = roles.structure.graph
    names = {name: tensor for tensor, name in graph.weights.items() if graph.users.get(tensor)}
    return sum(prod(graph.weight_shape(t)) for t in names.values() if is_parameter(graph.weight_type(t), graph.weight_shape(t)))


def is_parameter(kind: int, shape: tuple[int, ...]) -> bool:
    return prod(shape) > 1 and (kind in FLOATS or (kind in QUANTIZED and len(shape) > 1))


def _dims(roles: Roles):
    frozen, modules = roles.structure.frozen, modules_of(roles.structure.graph.source.proto.graph)
    for name, role in roles.roles.items():
        why = next((frozen[leaf] for leaf in roles.leaves_of(name) if leaf in frozen), None)
        refused = f"{why[0]} (node {why[1].label!r})" if why else None
        yield DimInfo(name, role.size, tuple(sorted(role.sizes)), len(role.instances), describe(role.instances[0]), refused, modules.get(name.rpartition("[")[0]))


def _norm_place(roles: Roles, width: Width) -> str:
    """After the branch: the sum of stream and branch goes to a norm and nowhere else. Around: a norm feeds the sum as well."""
    s, votes = roles.structure, Counter()
    norms = {n.index for _, _, n in roles.norm_axes} | {i for n in roles.norms for i in n.nodes}
    hidden = width.hidden
    sums = [n for n in s.graph.nodes if n.op == "Add" and s.dims.get(n.outputs[0]) and find(s.dims[n.outputs[0]][-1]) is hidden
            and all(t not in s.graph.weights for t in n.inputs) and not set(n.inputs) <= s.walk.values.keys()]
    for n in sums:
        users = {u.index for u, _ in s.graph.users.get(n.outputs[0], [])}
        normed = any(_is_normed(roles, norms, t) for t in n.inputs)
        votes["after" if users and users <= norms else "around" if normed else "before"] += 1
    place, count = max(votes.items(), key=lambda v: v[1], default=("before", 0))
    return place if count > 1 else "before"


def _is_normed(roles: Roles, norms: set[int], tensor: str) -> bool:
    """Does a tensor come from a norm, through its gain and offset only?"""
    s = roles.structure
    node = s.graph.makers.get(tensor)
    while node is not None and node.index not in norms:
        moving = [t for t in node.inputs if t and t not in s.graph.weights and t not in s.walk.values and t not in roles.static]
        if node.op not in ("Mul", "Add", "Cast", "Identity", "Reshape") or len(moving) != 1:
            return False
        node = s.graph.makers.get(moving[0])
    return node is not None


def _feed_forward(roles: Roles, width: Width) -> tuple[str | None, bool]:
    s, ffn = roles.structure, width.role("ffn")
    leaves = roles.leaves_of(ffn)
    inside = [n for n in s.graph.nodes if n.outputs[0] in s.dims and s.dims[n.outputs[0]] and set(s.leaves(s.dims[n.outputs[0]][-1])) & leaves]
    found = [ACTIVATIONS[n.op] for n in inside if n.op in ACTIVATIONS]
    wide = {next((t for t in n.inputs if t in roles.static), n.index) for n in inside if n.op == "MatMul" or n.op == "Gemm"}  # a weight that is used twice counts once
    places = max(len(roles.roles[ffn].instances), 1) if ffn in roles.roles else 1
    return (found[0] if found else None), len(wide) >= 2 * places


def _is_absolute(roles: Roles) -> bool:
    """Is there a table of positions as wide as the stream?"""
    s, rows, width = roles.structure, roles.leaves_of("positions"), roles.leaves_of("hidden")
    leaves = ([set(s.leaves(d)) for d in s.dims[t]] for t in s.graph.weights if t in s.dims)
    return any(any(d & rows for d in dims) and any(d & width for d in dims) for dims in leaves)


def _is_rotary(roles: Roles) -> bool:
    """Sines and cosines are computed, or stored per position and entry of a head."""
    s, rows, width = roles.structure, roles.leaves_of("positions"), roles.leaves_of("head_dim")
    stored = any({*s.leaves(dims[0])} & rows and {*s.leaves(dims[-1])} & width
                 for dims in (s.dims[t] for t in s.graph.weights if len(s.dims.get(t, ())) > 1))
    return stored or {n.op for n in s.graph.nodes} & {"Sin", "Cos", "RotaryEmbedding"} != set()
