"""Messages about files that no honest exporter writes: most cases are those of the hostile corpus (tests/hostile_*.py), by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

from onnx import helper

from tests import hostile_external, hostile_files, hostile_graphs  # noqa: F401 (they enter their cases)
from tests.error_cases import Family, raising
from tests.hostile_base import CASES, base

file, graph, size, usage = Family("FileError"), Family("GraphError"), Family("SizeError"), Family("UsageError")


def corpus(name: str):
    """A case of the corpus: its file is inspected."""
    def act(folder, patch):
        made = CASES[name].make(Path("."))
        Path("bad.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        return "inspect bad.onnx"
    return act


for saying, name in {"holds text that is not UTF-8, in …": "no UTF-8 in a domain", "names two versions of the operator set …": "two opsets", "names version … of the operator set …, which cannot be": "huge opset",
                     "the element type … is none of ONNX": "unknown type of an input", "axes, and … are the most that are read": "a thousand axes", "a tensor in segments is not read": "tensor in segments",
                     "values, the file has …": "fewer values than the shape says"}.items():
    file(saying)(corpus(name))

for saying, name in {"two values are called …": "value made twice", ", and takes …": "missing inputs", "lacks its attribute …": "missing attribute", "has the type …, and must have …": "attribute of another type",
                     "two attributes are called …": "attribute twice", "stands for one of a function, and there is none around it": "attribute of a function that is not there",
                     "its body … and …, which does not fit": "body that does not fit", "a name that only onnxgrow's own analysis uses": "marks of the analysis",
                     "entries (…), in a model of … weights": "ConstantOfShape", "the local function … calls itself": "function that calls itself",
                     "written out, the model's local functions make … nodes, and …": "ten to the ten nodes"}.items():
    graph(saying)(corpus(name))


def shown(change):
    """A sound model with one change, inspected."""
    def act(folder, patch):
        model = base()
        change(model)
        Path("bad.onnx").write_bytes(model.SerializeToString())
        return "inspect bad.onnx"
    return act


graph("lacks its input …")(shown(lambda m: m.graph.node.insert(0, helper.make_node("MatMul", ["", ""], ["z"]))))
graph("the attribute … has no type")(shown(lambda m: m.graph.node[0].attribute.add(name="x")))
graph("a Constant holds … values, and must hold one")(shown(lambda m: m.graph.node.insert(0, helper.make_node("Constant", [], ["z"]))))
graph("has inputs or attributes that do not belong together (…)")(
    shown(lambda m: m.graph.node.insert(0, helper.make_node("MultiHeadAttention", [next(t.name for t in m.graph.initializer if len(t.dims) == 2 and t.data_type == 1)] * 3, ["z"], domain="com.microsoft", num_heads=0))))


@file("nodes, and … are the most that are read")
def too_many_nodes(folder, patch):
    patch.setattr("onnxgrow.wellformed.MOST_NODES", 3)
    return "inspect model.onnx"


@file("bytes, and … are the most that are read")
def a_config_of_gigabytes(folder, patch):
    from onnxgrow.regular import read_json

    Path("config.json").write_text("{}")
    return lambda: read_json(Path("config.json"), "config", 1)


@graph("the graph asks for more memory than there is")
def no_memory(folder, patch):
    patch.setattr("onnxgrow.model.build", raising(MemoryError()))
    return "inspect model.onnx"


@graph("the graph is not understood: …")
def a_stumble(folder, patch):
    patch.setattr("onnxgrow.model.build", raising(KeyError("axis")))
    return "inspect model.onnx"


@graph("one run takes longer than …")
def endless(folder, patch):
    patch.setattr("onnxgrow.runtime.RUN_SECONDS", 1)
    patch.setattr("onnxgrow.runtime.RUN_SECONDS_PER_MB", 0)
    corpus("loop without end")(folder, patch)
    return "expand bad.onnx --ffn 40"


@graph("the attribute … of … is no plain word and has no PyTorch form")
def code_in_an_attribute(folder, patch):
    from onnxgrow.graph import Node
    from onnxgrow.pytorch.lower import _check_words

    node = Node(0, helper.make_node("Einsum", ["x"], ["y"], equation='i->i", exit()) #'), ["x"], 17)
    return lambda: _check_words(node)


size.lines({"the grown model needs … bytes, and … are allowed": "expand model.onnx --ffn 300 --no-validate --max-output-bytes 1000"})


@usage("the arrays in … have … bytes, and … are the most that are read")
def too_large_inputs(folder, patch):
    patch.setattr("onnxgrow.console.MOST_INPUTS", 10)
    with zipfile.ZipFile("x.npz", "w") as out:
        out.writestr("x.npy", bytes(11))
    return "expand model.onnx --ffn 300 --inputs x.npz"
