"""Cases of tests/test_errors.py: folders with one model in several graphs."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxgrow
from onnxgrow import configs
from onnxgrow.model import Model
from tests import seq2seq
from tests.error_cases import Case, Family
from tests.error_cases_file import file, in_folder
from tests.seq2seq import ENCODER, FIRST, MERGED, NEXT

graph, method, size, usage = Family("GraphError"), Family("MethodError"), Family("SizeError"), Family("UsageError")


@cache
def exported() -> Path:
    place = Path(tempfile.mkdtemp()) / "t5"
    seq2seq.export("t5", place)
    seq2seq.merge(place)
    return place


def src(*files: str) -> None:
    """`src` with these graphs of a small T5."""
    Path("src").mkdir()
    for name in (*(files or (ENCODER, FIRST, NEXT)), "config.json"):
        shutil.copy(exported() / name, f"src/{name}")


def changed(name: str, change) -> None:
    m = onnx.load(f"src/{name}")
    change(m)
    onnx.save(m, f"src/{name}")


@file("holds the graphs of one model: …")
def in_parts(folder, patch):
    in_folder()
    shutil.copy("gpt.onnx", f"src/{NEXT}")
    os.rename("src/model.onnx", f"src/{ENCODER}")
    return "expand src --hidden 144"


@file("holds the graphs of one model, and … takes one graph")
def one_graph(folder, patch):
    src()
    return "export src -o pt"


@file("holds no graphs like those of …")
def other_folder(folder, patch):
    src()
    return f"validate src src/{ENCODER}"


@file("takes …, and … gives no …")
def lost_cache(folder, patch):
    src()
    changed(FIRST, lambda m: m.graph.output.remove(m.graph.output[1]))
    return "inspect src"


@file("takes … as …, and … gives … as …")
def other_type(folder, patch):
    src()
    changed(ENCODER, lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", TensorProto.FLOAT16))
    return "inspect src"


@file("another graph of the model …")
def other_opset(folder, patch):
    src()
    changed(NEXT, lambda m: setattr(m.opset_import[0], "version", 18))
    return "inspect src"


@file("is built in another way than optimum does it")
def other_merged(folder, patch):
    src(ENCODER, MERGED)
    changed(MERGED, lambda m: m.graph.node.append(helper.make_node("Identity", ["logits"], ["again"])))
    return "inspect src"


@graph("have other layers: …")
def other_layers(folder, patch) -> Case:
    src()
    model = onnxgrow.load("src")
    model.each[-1].__dict__["stacks"] = []
    return lambda: model.plan(layers=3)


@method("keeps would not be what it takes in the next step: …")
def other_meaning(folder, patch) -> Case:
    src()

    def turn(m):
        g = m.graph
        next(n for n in g.node if "present.0.decoder.key" in n.output).output[0] = "straight"
        for n in g.node:
            n.input[:] = ["straight" if i == "present.0.decoder.key" else i for i in n.input]
        g.initializer.append(numpy_helper.from_array(seq2seq.np.array([3, 5]), "cuts"))
        g.node.extend([helper.make_node("Split", ["straight", "cuts"], ["a", "b"], axis=3), helper.make_node("Concat", ["b", "a"], ["present.0.decoder.key"], axis=3)])

    changed(NEXT, turn)
    return "expand src --head-dim 16 -o grown"


@size("config.json has one entry …, which would have to be …")
def two_towers(folder, patch) -> Case:
    patch.setattr(configs, "sizes_of", lambda plan: {name: configs.Sizes({"hidden": 32}, {"hidden": new}, tower=name) for name, new in (("encoder", 32), ("decoder", 48))})
    plan = Model("model.onnx").plan(ffn=300)
    return lambda: configs.grow_config({"d_model": 32}, plan)


@usage("holds several graphs, and … is one file")
def one_file(folder, patch):
    src()
    return "expand src --ffn 90 -o one.onnx"


@usage("--dequantize takes one graph, and this model has several")
def in_float(folder, patch):
    src()
    return "expand src --ffn 90 --dequantize"
