"""GraphError, but for what is special to quantized, fused and nested graphs: how each message of this family is provoked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxgrow.model import Model
from tests.error_cases import Family, changed, in_folder, longer, raising
from tests.test_cli import TWIST, perceptron, with_twist
from tests.test_fixed_sizes import ATTENTION, FEED, HEADS, HIDDEN, written
from tests.textgraph import model_of

graph = Family("GraphError")
GROW = "expand model.onnx --ffn 17 --no-validate"


def saved(lines: str, inputs: dict[str, list], constants: dict | None = None, **attrs) -> str:
    """A few nodes as bad.onnx, and the command that grows it."""
    onnx.save(model_of(lines, inputs, constants, **attrs), "bad.onnx")
    return "expand bad.onnx --hidden 16"


# --- what is no transformer, or no whole graph --------------------------------------------------------------------------


@graph("no attention found (a Softmax between two products of activations)")
def no_attention(folder, patch):
    perceptron(folder / "bad.onnx")
    return "expand bad.onnx --hidden 16"


@graph("the first node that is not understood: …")
def blocked(folder, patch):
    return saved("a = acme::Odd x\ny = MatMul a w", {"x": ["n", 8]}, {"w": np.ones((8, 8), np.float32)})


@graph("no hidden size found")
def no_hidden(folder, patch):
    return saved("t = Transpose x\ns = MatMul x t\np = Softmax s\ny = MatMul p x", {"x": ["b", 2, "n", 4]}, t={"perm": [0, 1, 3, 2]})


@graph("has no tensor shape")
def no_shape(folder, patch):
    changed("tiny-gpt", lambda g: g.input[0].type.tensor_type.ClearField("shape"))
    return "inspect bad.onnx"


@graph("sizes do not fit: …")
def misfit(folder, patch):
    written(folder, heads=(2, 6, HEADS + 1, 7))
    return GROW


@graph("is made by no node, or in a cycle")
def cycle(folder, patch):
    def change(g):
        g.node[3].input[0] = g.node[-1].output[0]
    changed("tiny-gpt", change)
    return "inspect bad.onnx"


@graph("a Constant holds …, which is not a numeric tensor")
def text_constant(folder, patch):
    changed("tiny-gpt", lambda g: g.node.insert(0, helper.make_node("Constant", [], ["words"], name="words", value_string="a")))
    return "inspect bad.onnx"


@graph("inputs of the graph look like weights: …")
def fed(folder, patch):
    written(folder, fed=("up", "down"))
    return GROW


@graph("the model's local functions (…) cannot be written out: …")
def functions(folder, patch):
    written(folder)
    proto = onnx.load("model.onnx")
    proto.functions.append(helper.make_function("acme", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)]))
    proto.graph.node.append(helper.make_node("Twice", ["logits"], ["twice"], domain="acme"))
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(proto, "model.onnx")
    patch.setattr("onnx.inliner.inline_selected_functions", raising(RuntimeError("no version of the operator sets fits both")))
    return GROW


# --- sizes that are written down ----------------------------------------------------------------------------------------


SIZES = "sizes = Shape x\nlength = Gather sizes one\nhidden = Gather sizes two\n"
NUMBERS = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "eight": np.array([HEADS * 4]), "back": np.array([0, -1, HEADS * 4])}


@graph("computed in a way that cannot be traced")
def untraceable(folder, patch):
    """All words side by side: as many numbers as the larger of two products."""
    lines = SIZES + "wide = Mul length eight\ntop = Max wide one\nside = Concat zero top\nc2 = Reshape c1 side\nc = Reshape c2 back"
    written(folder, lines=ATTENTION.replace("c = Reshape c1 flat", lines) + FEED, more=NUMBERS, side={"axis": 0})
    return "expand model.onnx --heads 3 --no-validate"


@graph("a size here would have to be … and …")
def two_sizes(folder, patch):
    """One shape for all heads side by side and for the stream, which is an output as well, so that no copies of it can be made."""
    lines = SIZES + "rest = Slice sizes zero two\nwidth = Mul hidden one\nshape = Concat rest width\nc = Reshape c1 shape"
    lines = ATTENTION.replace("c = Reshape c1 flat", lines).replace("m = LayerNormalization h ", "h1 = Reshape h shape\nm = LayerNormalization h1 ")
    written(folder, lines=lines + FEED, more=NUMBERS, outputs=("shape",), shape={"axis": 0})
    return "expand model.onnx --hidden 16 --only-hidden --heads 3 --no-validate"


def with_a_lie(folder: Path) -> str:
    """A rule that says "as wide as before", and a shape function that knows one width only."""
    Path("twist.py").write_text(TWIST.replace("(shapes[0], types[0])", "(shapes[0][:-1] + (96,), types[0])").replace("Twist", "Stiff"))
    return "expand twisted.onnx --hidden 144 --rules twist.py --no-validate"


@graph("at the new sizes the graph does not fit: …")
def no_fit(folder, patch):
    with_twist(folder / "twisted.onnx", domain="test.cli")
    changed("twisted.onnx", lambda g: next(setattr(n, "op_type", "Stiff") for n in g.node if n.op_type == "Twist"), "twisted.onnx")
    return with_a_lie(folder)


@graph("at the new sizes, its extent says …")
def other_extent(folder, patch):
    with_twist(folder / "twisted.onnx", domain="test.cli")
    proto = onnx.load("twisted.onnx")
    at = next(n for n in proto.graph.node if n.op_type == "Twist")
    at.op_type = "Stiff"
    next(n for n in proto.graph.node if "twisted" in n.input).input[0] = at.input[0]
    proto.graph.output.append(helper.make_tensor_value_info("twisted", TensorProto.FLOAT, None))
    onnx.save(proto, "twisted.onnx")
    return with_a_lie(folder)


@graph("has room for more positions, but does not run at a length of …")
def fixed_length(folder, patch):
    return longer("mask from its end", folder)


@graph("calls the caches …, and the grown model has no …")
def caches(folder, patch):
    decoder = {"filename": "model.onnx", "hidden_size": 96, "num_hidden_layers": 4, "inputs": {"past_key_names": "past.%d.key"}}
    in_folder(genai={"model": {"decoder": decoder}})
    return "expand src --hidden 144 --no-validate -o grown"


# --- rules and runs -----------------------------------------------------------------------------------------------------


@graph("the rule file … does not load: …")
def broken_rules(folder, patch):
    Path("bad.py").write_text("x = 1 / 0")
    return "expand model.onnx --ffn 300 --rules bad.py"


@graph("ONNX Runtime does not open the file …: …")
def no_kernel(folder, patch):
    with_twist(folder / "twisted.onnx", domain="test.cli")
    Path("twist.py").write_text(TWIST)
    return "expand twisted.onnx --ffn 300 --rules twist.py"


@graph("two runs of the source differ in every output")
def random_source(folder, patch):
    """With noise that nobody could read off the graph: the file that runs is not the one that was planned with."""
    from tests.test_validate import edited, noisy, run

    plan = Model(written(folder)).plan(ffn=17)
    grown, source = plan.write("grown.onnx", validate=False).path, edited(plan.model.path, noisy("logits", 2), "noisy.onnx")
    edited(Path(grown), noisy("logits", 1))
    return lambda: run(plan, Path("grown.onnx"), source)


@graph("every output is drawn at random")
def samples(folder, patch):
    written(folder, "l0 = ReduceMean y\nlogits = MatMul l0 head\nword = Multinomial logits", l0={"axes": [1], "keepdims": 0})
    return "expand model.onnx --ffn 17"


@graph("the source model runs on none of … sets of inputs; with …")
def never_runs(folder, patch):
    """An index beyond its table is no matter of shapes."""
    written(folder, "far = Gather head beyond\nlogits = MatMul y head\nlast = Add logits far", more={"beyond": np.array([HIDDEN + 5])}, far={"axis": 0})
    return "expand model.onnx --ffn 17"


@graph("the grown model does not run with …")
def grown_does_not_run(folder, patch):
    from tests.test_validate import rewired

    plan = Model(written(folder)).plan(ffn=17)
    plan.write("grown.onnx", validate=False)
    grown = onnx.load("grown.onnx")
    shape = helper.make_node("Constant", [], ["shape"], value_ints=[1000, 1000])
    rewired("ids", shape, helper.make_node("Reshape", ["ids", "shape"], ["square"]))(grown.graph)
    onnx.save(grown, "grown.onnx")
    return lambda: plan.compare("grown.onnx")


@graph("the input … is of type …")
def text_input(folder, patch):
    written(folder)
    proto = onnx.load("model.onnx")
    proto.graph.input.append(helper.make_tensor_value_info("name", TensorProto.STRING, ["batch"]))
    onnx.save(proto, "model.onnx")
    return "expand model.onnx --ffn 17"


@graph("this Python has no sources of its encodings to train on")
def no_text(folder, patch):
    from onnxgrow.demo_training import texts

    patch.setattr("onnxgrow.demo_training.sysconfig.get_path", lambda _: str(folder))
    return texts
