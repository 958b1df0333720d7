"""Models as a hostile or careless hand might leave them: a few changes to a real one, each from a seeded random generator.

`mutant(rng, content)` knows the structure of an ONNX file (dims, types, edges, attributes, operators, nodes, initializers, opsets, names,
bodies, functions, metadata); `bytes_changed(rng, content)` knows bytes only, and breaks the encoding.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx
from onnx import AttributeProto, TensorProto, helper

NUMBERS = (0, 1, -1, 2, 3, 5, 7, 64, 255, 4096, 65536, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -2, -7, -(2**31), -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"))
WORDS = ("", "x", "axis", "\x1b[31mred\x1b[0m", "a\nb", "__class__", "self", "\u202eabc", "{{ 7 * 7 }}", "</script><script>alert(1)</script>",
         '"); __import__("os").system("true") #', "a" * 5000, "\x00", "é" * 3, "..", "/etc/passwd")
OPERATORS = ("Add", "MatMul", "Gemm", "Reshape", "Transpose", "Softmax", "LayerNormalization", "Slice", "Gather", "Concat", "Split", "Expand", "Tile", "Range",
             "ConstantOfShape", "Pad", "Shape", "Size", "Cast", "Where", "Identity", "Constant", "If", "Loop", "Scan", "Einsum", "TopK", "OneHot", "NonZero",
             "ReduceMean", "Squeeze", "Unsqueeze", "Conv", "Resize", "Attention", "RotaryEmbedding", "CumSum", "Trilu", "EyeLike", "QuantizeLinear",
             "DequantizeLinear", "SequenceConstruct", "SplitToSequence", "Optional", "StringConcat", "Nonsense", "Mod", "Div", "Pow", "BitShift")
Change = Callable[[random.Random, onnx.ModelProto], None]
CHANGES: list[Change] = []


def change(made: Change) -> Change:
    CHANGES.append(made)
    return made


def mutant(rng: random.Random, content: bytes) -> bytes:
    """One to five changes of a model's structure; now and then of its bytes as well."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        rng.choice(CHANGES)(rng, model)
    out = model.SerializeToString()
    return bytes_changed(rng, out) if rng.random() < 0.05 else out


def bytes_changed(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, bytes put in, taken out or repeated, the end cut off; mostly in the first part, where few weights are."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(max(1, rng.choice((200, 5000, len(out)))))
        at = min(at, max(0, len(out) - 1))
        kind = rng.randrange(5)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 9)))
        elif kind == 2:
            del out[at : at + rng.choice((1, 2, 30))]
        elif kind == 3:
            end = at + rng.choice((2, 20, 200))
            out[end:end] = out[at:end] * rng.choice((1, 3))
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


# --- what is picked -----------------------------------------------------------------------------------------------------------------


def graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    found = [model.graph]
    for g in found:
        found += [sub for n in g.node for a in n.attribute for sub in ([a.g] if a.HasField("g") else []) + [*a.graphs]]
    return found


def a_graph(rng: random.Random, model: onnx.ModelProto) -> onnx.GraphProto:
    found = graphs(model)
    return found[0] if rng.random() < 0.7 else rng.choice(found)


def a_node(rng: random.Random, model: onnx.ModelProto) -> onnx.NodeProto | None:
    nodes = a_graph(rng, model).node
    return rng.choice(nodes) if nodes else None


def a_tensor(rng: random.Random, model: onnx.ModelProto) -> TensorProto | None:
    g = a_graph(rng, model)
    found = [*g.initializer] if rng.random() < 0.7 else [a.t for n in g.node for a in n.attribute if a.HasField("t")]
    small = [t for t in found if len(t.raw_data) < 256]
    return rng.choice(small if small and rng.random() < 0.5 else found) if found else None


def a_name(rng: random.Random, model: onnx.ModelProto) -> str:
    g = a_graph(rng, model)
    kind = rng.randrange(8)
    if kind == 0:
        return ""
    if kind == 1:
        return rng.choice(WORDS)
    if kind == 2 and g.initializer:
        return rng.choice(g.initializer).name
    if kind == 3 and g.input:
        return rng.choice(g.input).name
    names = [o for n in g.node for o in n.output]
    return rng.choice(names) if names else "nothing"


def a_number(rng: random.Random, old: int = 0) -> int:
    number = rng.choice((*NUMBERS, old + 1, old - 1, old * 2, old // 2, -old, rng.randrange(100)))
    return min(max(number, -(2**63)), 2**63 - 1)


# --- changes ------------------------------------------------------------------------------------------------------------------------


@change
def dims(rng, model):
    t = a_tensor(rng, model)
    if t is None:
        return
    if t.dims and rng.random() < 0.7:
        at = rng.randrange(len(t.dims))
        t.dims[at] = a_number(rng, t.dims[at])
    elif rng.random() < 0.5:
        t.dims.insert(rng.randrange(len(t.dims) + 1), rng.choice((1, 1, a_number(rng))))
    elif t.dims:
        del t.dims[rng.randrange(len(t.dims)) :]


@change
def types(rng, model):
    t = a_tensor(rng, model)
    if t is not None:
        t.data_type = rng.choice((*range(27), 999, 2**31 - 1))


@change
def values(rng, model):
    """Other numbers in a small tensor: that is where sizes and axes are written."""
    t = a_tensor(rng, model)
    if t is None or len(t.raw_data) > 4096:
        return
    if t.data_type == TensorProto.INT64 and t.raw_data and len(t.raw_data) % 8 == 0:
        at = 8 * rng.randrange(len(t.raw_data) // 8)
        old = int.from_bytes(t.raw_data[at : at + 8], "little", signed=True)
        t.raw_data = t.raw_data[:at] + a_number(rng, old).to_bytes(8, "little", signed=True) + t.raw_data[at + 8 :]
    else:
        t.raw_data = rng.choice((b"", t.raw_data[:-1], t.raw_data * 2, rng.randbytes(len(t.raw_data))))


@change
def fields_of_tensors(rng, model):
    t = a_tensor(rng, model)
    if t is None:
        return
    kind = rng.randrange(6)
    if kind == 0:
        t.name = a_name(rng, model)
    elif kind == 1:
        t.ClearField("raw_data")
    elif kind == 2:
        t.float_data.extend([rng.choice(FLOATS)] * rng.choice((1, 8)))
    elif kind == 3:
        t.string_data.append(b"\xff\xfe")
    elif kind == 4:
        t.data_location = TensorProto.EXTERNAL
        t.external_data.add(key=rng.choice(("location", "offset", "__class__")), value=rng.choice(("model.onnx", *WORDS)))
    else:
        t.segment.begin = a_number(rng)


@change
def inputs_of_nodes(rng, model):
    n = a_node(rng, model)
    if n is None:
        return
    if n.input and rng.random() < 0.7:
        n.input[rng.randrange(len(n.input))] = a_name(rng, model)
    elif n.input and rng.random() < 0.5:
        del n.input[rng.randrange(len(n.input)) :]
    else:
        n.input.append(a_name(rng, model))


@change
def outputs_of_nodes(rng, model):
    n = a_node(rng, model)
    if n is None:
        return
    if n.output and rng.random() < 0.5:
        n.output[rng.randrange(len(n.output))] = a_name(rng, model)
    elif n.output and rng.random() < 0.5:
        del n.output[rng.randrange(len(n.output)) :]
    else:
        n.output.append(rng.choice((a_name(rng, model), "fresh")))


@change
def attributes(rng, model):
    found = [(n, a) for n in a_graph(rng, model).node for a in n.attribute]
    if not found:
        return
    n, a = rng.choice(found)
    kind = rng.randrange(8)
    if kind == 0:
        n.attribute.remove(a)
    elif kind == 1:
        n.attribute.add().CopyFrom(a)
    elif kind == 2:
        a.name = rng.choice((*WORDS, "to", "axis", "axes", "perm", "value", "body"))
    elif kind == 3:
        a.type = rng.randrange(15)
    elif kind == 4:
        a.ref_attr_name = "alpha"
    elif a.type == AttributeProto.INT:
        a.i = a_number(rng, a.i)
    elif a.type == AttributeProto.FLOAT:
        a.f = rng.choice(FLOATS)
    elif a.type == AttributeProto.INTS and a.ints and kind == 5:
        a.ints[rng.randrange(len(a.ints))] = a_number(rng, a.ints[0])
    elif a.type == AttributeProto.INTS:
        a.ints.append(a_number(rng))
    elif a.type == AttributeProto.STRING:
        a.s = rng.choice((b"", b"\xff", b"linear", a.s * 2))


@change
def more_attributes(rng, model):
    n = a_node(rng, model)
    if n is not None:
        name = rng.choice(("axis", "axes", "to", "perm", "keepdims", "num_heads", "equation", "mode", "value", "self", "__dict__"))
        value = rng.choice((a_number(rng), rng.choice(FLOATS), [a_number(rng), 1], rng.choice(WORDS), [1.0], helper.make_tensor("t", 1, [1], [1.0])))
        n.attribute.append(helper.make_attribute(name, value))


@change
def operators(rng, model):
    n = a_node(rng, model)
    if n is not None and rng.random() < 0.8:
        n.op_type = rng.choice(OPERATORS) if rng.random() < 0.6 else rng.choice(model.graph.node).op_type
    elif n is not None:
        n.domain = rng.choice(("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "ai.onnx.training", *WORDS))


@change
def nodes(rng, model):
    g = a_graph(rng, model)
    if not g.node:
        return
    at, kind = rng.randrange(len(g.node)), rng.randrange(5)
    if kind == 0:
        del g.node[at]
    elif kind == 1:
        g.node.add().CopyFrom(g.node[at])
    elif kind == 2:
        other, held = rng.randrange(len(g.node)), onnx.NodeProto()
        held.CopyFrom(g.node[at])
        g.node[at].CopyFrom(g.node[other])
        g.node[other].CopyFrom(held)
    elif kind == 3:
        held = [*g.node]
        rng.shuffle(held) if rng.random() < 0.5 else held.reverse()
        kept = [n.SerializeToString() for n in held]
        del g.node[:]
        g.node.extend(map(onnx.NodeProto.FromString, kept))
    else:
        made = helper.make_node(rng.choice(OPERATORS), [a_name(rng, model) for _ in range(rng.randrange(4))], [rng.choice(("fresh", a_name(rng, model)))])
        g.node.insert(rng.randrange(len(g.node) + 1), made)


@change
def initializers(rng, model):
    g = a_graph(rng, model)
    if not g.initializer:
        return
    at, kind = rng.randrange(len(g.initializer)), rng.randrange(4)
    if kind == 0:
        del g.initializer[at]
    elif kind == 1:
        g.initializer.add().CopyFrom(g.initializer[at])
    elif kind == 2:
        sparse = g.sparse_initializer.add()
        sparse.values.CopyFrom(g.initializer[at])
        sparse.dims.append(a_number(rng))
        del g.initializer[at]
    else:
        g.input.add(name=g.initializer[at].name).type.tensor_type.elem_type = rng.choice((1, 7, 99))
        if rng.random() < 0.5:
            del g.initializer[at]


@change
def inputs_of_graphs(rng, model):
    g = a_graph(rng, model)
    held = g.input if rng.random() < 0.6 else g.output if rng.random() < 0.6 else g.value_info
    kind = rng.randrange(8)
    if not held or kind == 0:
        held.append(helper.make_tensor_value_info(a_name(rng, model), rng.choice((1, 7, 8, 10, 16)), [rng.choice((a_number(rng), "n", None)) for _ in range(rng.randrange(4))]))
        return
    v = rng.choice(held)
    shape = v.type.tensor_type.shape
    if kind == 1:
        held.remove(v)
    elif kind == 2:
        held.add().CopyFrom(v)
    elif kind == 3:
        v.name = a_name(rng, model)
    elif kind == 4:
        v.type.tensor_type.elem_type = rng.choice((*range(27), 999))
    elif kind == 5 and shape.dim:
        d = rng.choice(shape.dim)
        d.dim_value = a_number(rng, d.dim_value)
    elif kind == 6 and shape.dim:
        rng.choice(shape.dim).dim_param = rng.choice((*WORDS, rng.choice(shape.dim).dim_param))
    else:
        v.type.CopyFrom(rng.choice((onnx.TypeProto(), helper.make_sequence_type_proto(v.type), helper.make_optional_type_proto(v.type),
                                    helper.make_map_type_proto(7, v.type), helper.make_tensor_type_proto(1, None))))


@change
def opsets(rng, model):
    kind = rng.randrange(5)
    if kind == 0 and model.opset_import:
        rng.choice(model.opset_import).version = a_number(rng, model.opset_import[0].version)
    elif kind == 1:
        model.opset_import.add(domain=rng.choice(("", "ai.onnx", "com.microsoft", *WORDS)), version=a_number(rng))
    elif kind == 2 and model.opset_import:
        del model.opset_import[rng.randrange(len(model.opset_import))]
    elif kind == 3 and model.opset_import:
        rng.choice(model.opset_import).version = rng.randrange(1, 28)
    else:
        model.ir_version = a_number(rng)


@change
def names(rng, model):
    """A tensor is called something else wherever it is used."""
    g, new = model.graph, rng.choice(WORDS)
    old = a_name(rng, model)
    for n in g.node:
        n.input[:] = [new if i == old else i for i in n.input]
        n.output[:] = [new if o == old else o for o in n.output]
    for held in (*g.input, *g.output, *g.initializer):
        held.name = new if held.name == old else held.name


@change
def words(rng, model):
    n = a_node(rng, model)
    if n is not None:
        n.name, n.doc_string = rng.choice(WORDS), rng.choice(WORDS)
        n.metadata_props.add(key=rng.choice(("onnxgrow.part", "onnxgrow.whole", "onnxgrow.within", "onnxgrow.holder", "namespace", "pkg.torch.onnx.name_scopes", *WORDS)),
                             value=rng.choice(("[]", "{}", "['', 'a']", "a\tb\tc", *WORDS)))
    model.metadata_props.add(key=rng.choice(("onnxgrow.growth", "onnxgrow.regions", *WORDS)),
                             value=rng.choice(("{}", "[]", '{"sizes": {"ffn": 1e400}}', '{"sizes": [1]}', "[" * 3000, '{"before": [[], {}]}', *WORDS)))


@change
def bodies(rng, model):
    """A few nodes go into the body of an If or Loop."""
    g = model.graph
    if len(g.node) < 3:
        return
    at = rng.randrange(len(g.node) - 2)
    taken = [n.SerializeToString() for n in g.node[at : at + rng.randrange(1, 3)]]
    body = helper.make_graph([onnx.NodeProto.FromString(t) for t in taken], "body", [], [])
    out = [o for n in body.node for o in n.output]
    for o in out:
        body.output.add(name=o)
    del g.node[at : at + len(taken)]
    cond = a_name(rng, model)
    if rng.random() < 0.6:
        made = helper.make_node("If", [cond], out, then_branch=body, else_branch=body)
    else:
        made = helper.make_node(rng.choice(("Loop", "Scan")), [cond, a_name(rng, model)], out, body=body)
    g.node.insert(at, made)


@change
def functions(rng, model):
    n = a_node(rng, model)
    if n is None:
        return
    f = model.functions.add(name=rng.choice((n.op_type, "F", *WORDS)), domain=rng.choice(("", "d", n.domain)))
    f.input.extend(n.input)
    f.output.extend(n.output)
    f.node.add().CopyFrom(n)
    f.attribute.append(rng.choice(("alpha", "axis", "__class__")))
    f.opset_import.add(domain="", version=rng.choice((17, 23, a_number(rng))))
    if rng.random() < 0.5:
        model.opset_import.add(domain=f.domain, version=1)
        n.op_type, n.domain = f.name, f.domain
    if rng.random() < 0.3:
        f.node.add(op_type=f.name, domain=f.domain, input=[*n.input], output=[*n.output])


@change
def shape_bombs(rng, model):
    """A node that makes very much of very little, before another one."""
    n = a_node(rng, model)
    if n is None or not n.input:
        return
    g = model.graph
    big = [a_number(rng) for _ in range(rng.randrange(1, 4))]
    g.initializer.append(helper.make_tensor("bomb", TensorProto.INT64, [len(big)], big))
    op = rng.choice(("ConstantOfShape", "Expand", "Tile", "Reshape", "Pad"))
    g.node.insert(0, helper.make_node(op, ["bomb"] if op == "ConstantOfShape" else [n.input[0], "bomb"], ["exploded"]))
    n.input[0] = "exploded"
