"""What differs between two ONNX files: architecture, weights, nodes and attributes, names, inputs and outputs, opsets, metadata.

Any two files can be compared. Where both are understood as transformers their sizes are compared as well; where the second one was grown from the
first, names that the growth gave to old layers are followed. How tensors are stored (embedded, beside the file, in typed fields) is no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx

from .architecture import Architecture
from .blocks import find_stacks
from .deepen import deepen
from .errors import OnnxgrowError
from .graphdiff import GraphPair, NodeChange, Rename, pair_graphs, weights_of
from .model import Model
from .modules import modules_of
from .provenance import request_of
from .source import Source, open_source
from .tensordiff import kind_name
from .weightdiff import Records, WeightChange, weight_changes


@dataclass(frozen=True)
class Change:
    """Something with a name that is `before` in the first file and `after` in the second; None where there is none."""

    name: str
    before: object
    after: object

    def to_json(self) -> dict:
        return {"name": self.name, "from": self.before, "to": self.after}


@dataclass
class FileDifference:
    """All that differs between the files `a` and `b`.

    Attributes:
        architecture: sizes and kinds that are not the same.
        weights: those of other values, sizes or types, and those that only one file has.
        changes: attributes, wiring, nodes that only one graph has.
        renames: what is the same under another name.
        modules: for either file, name of a weight that says nothing -> the module of the framework that reads it.
        inputs, outputs, file, metadata: what this part of the files says before and after.
        unknown: why the architectures were not compared; None where they were.
        equal_weights: how many weights are the same.
        nodes: how many (a, b) the graphs have, with their bodies and functions.
        stored: notes on how things are stored or ordered, which make no difference.
    """

    a: Path
    b: Path
    architecture: list[Change] = field(default_factory=list)
    unknown: str | None = None
    weights: list[WeightChange] = field(default_factory=list)
    equal_weights: int = 0
    nodes: tuple[int, int] = (0, 0)
    changes: list[NodeChange] = field(default_factory=list)
    renames: list[Rename] = field(default_factory=list)
    modules: tuple[dict[str, str], dict[str, str]] = ({}, {})
    inputs: list[Change] = field(default_factory=list)
    outputs: list[Change] = field(default_factory=list)
    file: list[Change] = field(default_factory=list)
    metadata: list[Change] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not (self.weights or self.changes or self.renames or self.inputs or self.outputs or self.file or self.metadata)

    def to_json(self) -> dict:
        """As a document (docs/json.md)."""
        nodes = [{"change": c.change, "a": c.a, "b": c.b, "what": c.what, "from": c.before, "to": c.after} for c in self.changes]
        return {"a": str(self.a), "b": str(self.b), "same": self.same,
                "architecture": {"compared": self.unknown is None, "reason": self.unknown, "changes": [c.to_json() for c in self.architecture]},
                "weights": {"equal": self.equal_weights, "changes": [w.to_json() for w in self.weights]},
                "nodes": {"a": self.nodes[0], "b": self.nodes[1], "changes": nodes}, "names": [asdict(r) for r in self.renames],
                "inputs": [c.to_json() for c in self.inputs], "outputs": [c.to_json() for c in self.outputs],
                "file": [c.to_json() for c in self.file], "metadata": [c.to_json() for c in self.metadata], "stored": self.stored}


def compare_files(a: Path, b: Path, rules: tuple[str, ...] = ()) -> FileDifference:
    """Compare two files; weights are read in blocks, once each.

    Args:
        rules: files with rules for operators, for the architecture alone.
    Raises:
        FileError: one of them cannot be read.
    """
    first, second = open_source(a), open_source(b)
    out = FileDifference(Path(a), Path(b), modules=(modules_of(first.proto.graph), modules_of(second.proto.graph)))
    models = [_model(path, rules) for path in (a, b)]
    _architecture(out, *models)
    seeds = _renamed_by_growth(models[0], second.proto)
    pairs = [*_all(_pair(first, second, seeds)), *(p for f in _functions(out, first.proto, second.proto) for p in _all(f))]
    records = Records.read(first.proto, second.proto)
    for pair in pairs:
        changes, equal = weight_changes(pair, records)
        out.weights += changes
        out.equal_weights += equal
        out.changes += pair.changes
        out.renames += pair.renames
    out.nodes = sum(len(p.a.node) for p in pairs), sum(len(p.b.node) for p in pairs)
    _values(out, pairs[0])
    _file(out, first.proto, second.proto)
    _stored(out, first, second, pairs[0])
    return out


def _model(path: Path, rules: tuple[str, ...]) -> Model | str:
    """The model, or why it is not understood."""
    try:
        return Model(path, rules)
    except OnnxgrowError as problem:
        return f"{Path(path).name}: {problem.what}"


def _architecture(out: FileDifference, a: Model | str, b: Model | str) -> None:
    if isinstance(a, str) or isinstance(b, str):
        out.unknown = a if isinstance(a, str) else b
        return
    mine, theirs = _facts(a.architecture), _facts(b.architecture)
    out.architecture = [Change(n, mine.get(n), theirs.get(n)) for n in dict.fromkeys([*mine, *theirs]) if mine.get(n) != theirs.get(n)]


def _facts(a: Architecture) -> dict:
    """Sizes and kinds by name: those of the model, of each width, and of every other dim."""
    plain = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions", "norm", "norm_place", "activation", "gated", "rotary", "parameters")
    out = {name: getattr(a, name) for name in plain}
    for width in a.widths:
        out |= {f"{width.name}.{name}": value for name, value in asdict(width).items() if name != "name"}
    out |= {stack.name: stack.layers for stack in a.stacks}
    for d in a.dims:
        if d.name not in out:
            out[d.name] = d.size if len(d.sizes) == 1 else list(d.sizes)
    return out


def _renamed_by_growth(a: Model | str, grown: onnx.ModelProto) -> dict[str, str]:
    """Tensor of a -> its name in a model that says it was grown from it with more layers."""
    asked = request_of(grown)
    if asked is None or isinstance(a, str):
        return {}
    try:
        return dict(deepen(a.roles, find_stacks(a.roles), asked.depth).tensors) if asked.depth else {}
    except (OnnxgrowError, ValueError, TypeError, KeyError):  # the record of some other growth
        return {}


def _pair(a: Source, b: Source, seeds: dict[str, str]) -> GraphPair:
    return pair_graphs(a.proto.graph, b.proto.graph, weights_of(a.proto.graph, a), weights_of(b.proto.graph, b), seeds)


def _all(pair: GraphPair) -> Iterator[GraphPair]:
    """A pair and those of the bodies inside."""
    yield pair
    for inner in pair.inner:
        yield from _all(inner)


def _functions(out: FileDifference, a: onnx.ModelProto, b: onnx.ModelProto) -> Iterator[GraphPair]:
    """Local functions by domain and name."""
    mine, theirs = ({f"{f.domain}::{f.name}": f for f in m.functions} for m in (a, b))
    for name in dict.fromkeys([*mine, *theirs]):
        f, g = mine.get(name), theirs.get(name)
        if f is None or g is None:
            out.file.append(Change(f"function {name}", f and f"{len(f.node)} nodes", g and f"{len(g.node)} nodes"))
            continue
        said = [{"inputs": list(x.input), "outputs": list(x.output), "attributes": list(x.attribute),
                 "opsets": {o.domain: o.version for o in x.opset_import}} for x in (f, g)]
        out.file += [Change(f"function {name}, {key}", v, said[1][key]) for key, v in said[0].items() if v != said[1][key]]
        bodies = [onnx.GraphProto(node=x.node) for x in (f, g)]
        pair = pair_graphs(*bodies, *map(weights_of, bodies), where=f"{name}/", outer=dict(zip(f.input, g.input)))
        yield pair


def _values(out: FileDifference, pair: GraphPair) -> None:
    """Inputs and outputs: types, shapes and names."""
    inputs, others = ({v.name: v for v in g.input} for g in (pair.a, pair.b))
    for name, value in inputs.items():
        other = others.pop(pair.same.get(name, name), None)
        _one(out.inputs, name, value, other)
    for name, value in others.items():
        _one(out.inputs, name, None, value)
    given, theirs = ({v.name: v for v in g.output} for g in (pair.a, pair.b))
    partner = {name: pair.same.get(name, name) for name in given}
    for name, value in given.items():
        other = theirs.pop(partner[name], None)
        _one(out.outputs, name, value, other)
        if other is not None and other.name != name:
            out.renames.append(Rename("output", name, other.name))
    for name, value in theirs.items():
        _one(out.outputs, name, None, value)
    order = [partner[n] for n in given], [v.name for v in pair.b.output]
    if order[0] != order[1] and sorted(order[0]) == sorted(order[1]):
        out.outputs.append(Change("order", *map(list, order)))


def _one(found: list[Change], name: str, a: onnx.ValueInfoProto | None, b: onnx.ValueInfoProto | None) -> None:
    before, after = (None if v is None else value_type(v) for v in (a, b))
    if before != after:
        found.append(Change(name, before, after))


def value_type(value: onnx.ValueInfoProto) -> str:
    """`float32[batch, 3]`; `?` where a size has no name."""
    kind = value.type.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return kind.removesuffix("_type") if kind else "untyped"
    tensor = getattr(value.type, kind)
    if not tensor.HasField("shape"):
        return f"{kind_name(tensor.elem_type)}[...]"
    sizes = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return f"{kind_name(tensor.elem_type)}[{', '.join(sizes)}]"


def _file(out: FileDifference, a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    """What the model says about itself."""
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        _add(out.file, name, getattr(a, name), getattr(b, name))
    mine, theirs = ({o.domain or "ai.onnx": o.version for o in m.opset_import} for m in (a, b))
    for domain in dict.fromkeys([*mine, *theirs]):
        _add(out.file, f"opset {domain}", mine.get(domain), theirs.get(domain))
    _add(out.file, "graph name", a.graph.name, b.graph.name)
    _add(out.file, "graph doc_string", a.graph.doc_string, b.graph.doc_string)
    for what, x, y in (("", a, b), ("graph ", a.graph, b.graph)):
        mine, theirs = ({p.key: p.value for p in m.metadata_props} for m in (x, y))
        for key in dict.fromkeys([*mine, *theirs]):
            _add(out.metadata, what + key, mine.get(key), theirs.get(key))
    for what in ("quantization_annotation", "sparse_initializer"):
        x, y = ([m.SerializeToString(deterministic=True) for m in getattr(g, what)] for g in (a.graph, b.graph))
        if x != y:
            out.file.append(Change(what, len(x), len(y)))


def _add(found: list[Change], name: str, before: object, after: object) -> None:
    if before != after:
        found.append(Change(name, before, after))


def _stored(out: FileDifference, a: Source, b: Source, pair: GraphPair) -> None:
    """What is stored or ordered in another way, and means the same."""
    def sides(what: str, x: object, y: object) -> None:
        if x != y:
            out.stored.append(f"{what}: {x} and {y}")

    sides("weights in files of their own", len(a.data), len(b.data))
    sides("weights that are Constant nodes", *(sum(n.op_type == "Constant" for n in s.proto.graph.node) for s in (a, b)))
    fields = [sum(not t.HasField("raw_data") and t.name not in s.tensors for t in s.proto.graph.initializer) for s in (a, b)]
    sides("weights in typed fields", *fields)
    order = [n for n, _ in pair.weights if n in {t.name for t in a.proto.graph.initializer}], [t.name for t in b.proto.graph.initializer]
    if order[0] != order[1] and sorted(order[0]) == sorted(order[1]):
        out.stored.append("weights stand in another order")
    mine = [id(y) for _, y in pair.nodes if y is not None]
    theirs = [i for i in map(id, pair.b.node) if i in set(mine)]
    if [i for i in mine] != theirs:
        out.stored.append("nodes stand in another order")
    sides("shapes noted for tensors inside", len(a.proto.graph.value_info), len(b.proto.graph.value_info))
