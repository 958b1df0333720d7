"""Is a file what the ONNX format says? Asked once, when it is opened, so that nothing behind has to ask again.

A model may come from a stranger. What the format rules out is refused here by name: text that is no UTF-8, types that do not exist, tensors with more
or fewer values than their shape says, two values of one name, nodes without what their operator needs, operator sets that contradict each other, and
graphs of a size that no model has. What each operator needs is read off onnx's own schemas; of operators that onnx does not know nothing is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from math import prod
from pathlib import Path

import onnx
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from .errors import FileError, GraphError
from .external import AGAIN, check_length

MOST_NODES = 200_000  # in all graphs and functions of a file; the largest models, with every expert written out, have half of it
MOST_AXES = 32  # of a tensor: what every version of numpy takes
LAST_VERSION = 2**31 - 1  # of an operator set: beyond, onnx itself fails
CHECK = "check the file with onnx.checker, and export the model again"
TYPES = {kind for kind in TensorProto.DataType.values() if kind != TensorProto.UNDEFINED}
PER_VALUE = {TensorProto.COMPLEX64: 2, TensorProto.COMPLEX128: 2}  # entries of a typed field for one value
PACKED = {"UINT4": 2, "INT4": 2, "FLOAT4E2M1": 2, "UINT2": 4, "INT2": 4, "FLOAT4": 2}  # values in one entry
OURS = "onnxgrow."  # how names of metadata begin that stand on nodes during the analysis and in no file
SINGLE = onnx.defs.OpSchema.FormalParameterOption.Single


def check_model(proto: ModelProto, path: Path, detached: frozenset[str] = frozenset()) -> None:
    """Refuse what no ONNX file may hold.

    Args:
        detached: names of the initializers whose data was checked and taken out.
    Raises:
        FileError: text, tensors or operator sets are not as the format says, or there is too much of something.
        GraphError: a node or a name is not.
    """
    _check_text(proto, path)
    versions = _versions(proto.opset_import, path)
    count = sum(len(g.node) for g in all_graphs(proto)) + sum(len(f.node) for f in proto.functions)
    if count > MOST_NODES:
        raise FileError(f"{path} has {count} nodes, and {MOST_NODES} are the most that are read", hint="export the model with its layers as loops or functions")
    for g in all_graphs(proto):
        _check_names(g)
        for t in g.initializer:
            if g is not proto.graph or t.name not in detached:
                check_tensor(t)
        for v in g.input:
            _check_value(v)
    for nodes, known in [(proto.graph.node, versions), *((f.node, versions | _versions(f.opset_import, path)) for f in proto.functions)]:
        _check_nodes(nodes, known, inside=known is not versions)


def all_graphs(proto: ModelProto) -> Iterator[GraphProto]:
    """The graph, and the bodies of its nodes and of those of functions, at any depth."""
    waiting = [proto.graph]
    nodes = [n for f in proto.functions for n in f.node]
    while waiting or nodes:
        waiting += [g for n in nodes for g in bodies(n)]
        nodes = []
        if waiting:
            g = waiting.pop()
            yield g
            nodes = g.node


def bodies(n: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node."""
    for a in n.attribute:
        yield from [a.g] if a.HasField("g") else ()
        yield from a.graphs


@cache
def _strict() -> type:
    """ONNX's ModelProto in the third syntax of protobuf, which parses no text that is not UTF-8."""
    file = descriptor_pb2.FileDescriptorProto()
    ModelProto.DESCRIPTOR.file.CopyToProto(file)
    file.syntax = "proto3"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(ModelProto.DESCRIPTOR.full_name))


def _check_text(message: ModelProto, path: Path) -> None:
    """Protobuf hands out as bytes what should be text and is not. Only where parsing strictly fails, for whatever reason, it is looked for."""
    try:
        _strict().FromString(message.SerializeToString())
        return
    except (DecodeError, EncodeError, ValueError):
        pass
    waiting = [message]
    while waiting:
        for field, value in waiting.pop().ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting += [value] if hasattr(value, "ListFields") else value
            elif field.type == field.TYPE_STRING:
                wrong = next((text for text in ([value] if isinstance(value, (str, bytes)) else value) if not isinstance(text, str)), None)
                if wrong is not None:
                    raise FileError(f"{path} holds text that is not UTF-8, in {field.name}: {wrong[:60]!r}", hint=AGAIN)


def _versions(imports, path: Path) -> dict[str, int]:
    """The version of each operator set."""
    found: dict[str, int] = {}
    for o in imports:
        domain = "" if o.domain == "ai.onnx" else o.domain
        if found.setdefault(domain, o.version) != o.version:
            raise FileError(f"{path} names two versions of the operator set {domain or 'ai.onnx'!r}: {found[domain]} and {o.version}", hint=AGAIN)
        if not 1 <= o.version <= LAST_VERSION:
            raise FileError(f"{path} names version {o.version} of the operator set {domain or 'ai.onnx'!r}, which cannot be", hint=AGAIN)
    return found


# --- tensors and values --------------------------------------------------------------------------------------------------------------


def check_tensor(t: TensorProto) -> None:
    """A tensor whose data is in its proto, or nowhere.

    Raises:
        FileError: its type does not exist, or its values are not as many as its shape says.
    """
    if t.data_type not in TYPES:
        raise FileError(f"the element type {t.data_type} is none of ONNX", node=t.name, hint=AGAIN)
    if len(t.dims) > MOST_AXES:
        raise FileError(f"it has {len(t.dims)} axes, and {MOST_AXES} are the most that are read", node=t.name, hint=AGAIN)
    if t.HasField("segment"):
        raise FileError("a tensor in segments is not read", node=t.name, hint=AGAIN)
    if t.HasField("raw_data") or t.data_location == TensorProto.EXTERNAL:
        return check_length(t, len(t.raw_data))
    if any(d < 0 for d in t.dims):
        raise FileError(f"the shape {list(t.dims)} has a negative size", node=t.name, hint=AGAIN)
    values = prod(t.dims)
    packed = PACKED.get(TensorProto.DataType.Name(t.data_type), 1)
    wanted, held = -(-values * PER_VALUE.get(t.data_type, 1) // packed), len(getattr(t, helper.tensor_dtype_to_field(t.data_type)))
    if held != wanted:
        raise FileError(f"the shape {list(t.dims)} needs {wanted} values, the file has {held}", node=t.name, hint=AGAIN)


def _check_value(v: onnx.ValueInfoProto) -> None:
    kind, depth = v.type, 0
    while kind.WhichOneof("value") in ("sequence_type", "optional_type", "map_type"):
        word = kind.WhichOneof("value")
        kind, depth = getattr(kind, word).value_type if word == "map_type" else getattr(kind, word).elem_type, depth + 1
    if not kind.HasField("tensor_type"):
        return
    if kind.tensor_type.elem_type not in TYPES | {TensorProto.UNDEFINED}:
        raise FileError(f"the element type {kind.tensor_type.elem_type} is none of ONNX", node=v.name, hint=AGAIN)
    sizes = [d.dim_value for d in kind.tensor_type.shape.dim if d.HasField("dim_value")]
    if any(size < 0 for size in sizes):
        raise FileError(f"the shape {sizes} has a negative size", node=v.name, hint=AGAIN)
    if len(kind.tensor_type.shape.dim) > MOST_AXES:
        raise FileError(f"it has {len(kind.tensor_type.shape.dim)} axes, and {MOST_AXES} are the most that are read", node=v.name, hint=AGAIN)


# --- names and nodes -----------------------------------------------------------------------------------------------------------------


def _check_names(g: GraphProto) -> None:
    """Every value of a graph is made once."""
    held, made = [t.name for t in g.initializer], set()
    for name in (*held, *(s.values.name for s in g.sparse_initializer)):
        if name in made:
            raise GraphError(f"two values are called {name!r}", hint=CHECK)
        made.add(name)
    fed = [v.name for v in g.input]
    if len({*fed}) < len(fed):
        raise GraphError(f"two values are called {next(n for i, n in enumerate(fed) if n in fed[:i])!r}", hint=CHECK)
    made.update(fed)
    makers: dict[str, NodeProto] = {}
    for n in g.node:
        for name in filter(None, n.output):
            first = makers.setdefault(name, n)
            if name in made or (first is not n and not _says_the_same(first, n)):
                raise GraphError(f"two values are called {name!r}", node=n.name or n.op_type, hint=CHECK)


def _says_the_same(one: NodeProto, other: NodeProto) -> bool:
    """Converters to float16 write one Cast twice; of two Constants runtimes take the last."""
    if one.op_type == other.op_type == "Constant":
        return True
    return (one.op_type, one.domain, one.input, one.output) == (other.op_type, other.domain, other.input, other.output) and [*one.attribute] == [*other.attribute]


def _check_nodes(nodes, versions: dict[str, int], inside: bool) -> None:
    """Nodes of a graph or function (`inside`), and those of their bodies."""
    waiting = [*nodes]
    for n in waiting:
        _check_attributes(n, inside)
        waiting += [x for g in bodies(n) for x in g.node]
        _check_bodies(n)
        domain = "" if n.domain == "ai.onnx" else n.domain
        needs = _needs(n.op_type, versions.get(domain, 1), domain)
        if needs:
            _check_node(n, *needs)
        elif not any(n.output):
            raise GraphError(f"{n.op_type} has 0 outputs, and takes at least 1", node=n.name or n.op_type, hint=CHECK)


@lru_cache(4096)
def _needs(op: str, version: int, domain: str) -> tuple | None:
    """What a node of this operator must have: bounds of its inputs and outputs, which inputs, which attributes, and the types of those; None where that is not known."""
    if not onnx.defs.has(op, version, domain):
        return None
    schema = onnx.defs.get_schema(op, version, domain)
    given = [i for i, p in enumerate(schema.inputs) if p.option == SINGLE and i < schema.min_input]
    types = {name: int(a.type.value) for name, a in schema.attributes.items()}
    required = frozenset(name for name, a in schema.attributes.items() if a.required)
    return (schema.min_input, schema.max_input), (schema.min_output, schema.max_output), given, required, types


def _check_node(n: NodeProto, inputs: tuple[int, int], outputs: tuple[int, int], given: list[int], required: frozenset[str], types: dict[str, int]) -> None:
    label = n.name or f"{n.op_type} -> {n.output[0] if n.output else '?'}"
    for what, count, (least, most) in (("inputs", len(n.input), inputs), ("outputs", len(n.output), outputs)):
        if not least <= count <= most:
            raise GraphError(f"{n.op_type} has {count} {what}, and takes {least if least == most else f'{least} to {most}'}", node=label, hint=CHECK)
    if any(not n.input[i] for i in given):
        raise GraphError(f"{n.op_type} lacks its input {next(i for i in given if not n.input[i])}", node=label, hint=CHECK)
    if n.op_type == "Constant" and len(n.attribute) != 1:
        raise GraphError(f"a Constant holds {len(n.attribute)} values, and must hold one", node=label, hint=CHECK)
    held = {a.name: a.type for a in n.attribute}
    if missing := sorted(required - held.keys()):
        raise GraphError(f"{n.op_type} lacks its attribute {missing[0]}", node=label, hint=CHECK)
    for name, kind in held.items():
        if types.get(name, kind) != kind:
            raise GraphError(f"the attribute {name} of {n.op_type} has the type {AttributeProto.AttributeType.Name(kind)}, and must have "
                             f"{AttributeProto.AttributeType.Name(types[name])}", node=label, hint=CHECK)


def _check_bodies(n: NodeProto) -> None:
    """Inputs and outputs of a Loop, Scan or If and of its bodies belong together."""
    held = {a.name: a for a in n.attribute}
    if n.domain not in ("", "ai.onnx") or n.op_type not in ("If", "Loop", "Scan"):
        return
    for key in ("then_branch", "else_branch") if n.op_type == "If" else ("body",):
        if key not in held or not held[key].HasField("g"):
            raise GraphError(f"{n.op_type} lacks its attribute {key}", node=n.name or n.op_type, hint=CHECK)
        g = held[key].g
        given, taken, made, wanted = len(n.input), len(g.input), len(g.output), len(n.output)
        fits = taken == 0 and made == wanted
        if n.op_type == "Loop":
            carried = max(0, given - 2)
            fits = taken == 2 + carried and wanted + 1 <= made >= 1 + carried
        elif n.op_type == "Scan":
            slices = held["num_scan_inputs"].i if "num_scan_inputs" in held else 0
            fits = taken == given and 1 <= slices <= given and wanted <= made >= given - slices
        if not fits:
            raise GraphError(f"{n.op_type} has {given} inputs and {wanted} outputs, its body {taken} and {made}, which does not fit", node=n.name or n.op_type, hint=CHECK)


def _check_attributes(n: NodeProto, inside: bool) -> None:
    label, seen = n.name or n.op_type, set()
    if mark := next((p.key for p in n.metadata_props if p.key.startswith(OURS)), None):
        raise GraphError(f"the node has metadata called {mark!r}, a name that only onnxgrow's own analysis uses", node=label, hint="remove that metadata")
    for a in n.attribute:
        if a.name in seen:
            raise GraphError(f"two attributes are called {a.name!r}", node=label, hint=CHECK)
        seen.add(a.name)
        if a.ref_attr_name and not inside:
            raise GraphError(f"the attribute {a.name} stands for one of a function, and there is none around it", node=label, hint=CHECK)
        if a.type == AttributeProto.UNDEFINED and not a.ref_attr_name:
            raise GraphError(f"the attribute {a.name} has no type", node=label, hint=CHECK)
        for t in ([a.t] if a.type == AttributeProto.TENSOR and not a.ref_attr_name else a.tensors):
            check_tensor(t)
