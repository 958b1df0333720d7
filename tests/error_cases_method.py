"""MethodError: how each message of this family is provoked."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.model import Model
from tests import zoo
from tests.error_cases import Family, changed, longer, planning
from tests.quantized import quantized
from tests.test_fixed_sizes import ATTENTION, FEED, FFN, HIDDEN, PERMS, written

method = Family("MethodError")
DEEPER, WIDER = "expand model.onnx --layers 3 --no-validate", "expand model.onnx --hidden 12 --only-hidden --no-validate"
SMALL = {"wide": np.random.default_rng(1).normal(size=(HIDDEN, HIDDEN)).astype(np.float32)}

method.lines({
    "which shifts the statistics of a norm": "expand model.onnx --hidden 120 --only-hidden --method copy",
})


def small(lines: str, more: dict | None = None, command: str = DEEPER, **attrs):
    """A case: the tiny transformer with other lines."""
    def case(folder, patch):
        written(folder, lines=lines, more=SMALL | (more or {}), **attrs)
        return command
    return case


def quantized_as(form: str, words: str, name: str = "llama"):
    return lambda folder, patch: f"expand {quantized(name, form)} {words} --no-validate -o grown.onnx"


# --- widths -------------------------------------------------------------------------------------------------------------


@method("nothing can be appended along this axis of …")
def along_softmax(folder, patch):
    def change(graph):
        graph.node.append(helper.make_node("Softmax", ["logits"], ["said"], name="tail", axis=-1))
        graph.output.append(helper.make_tensor_value_info("said", TensorProto.FLOAT, None))
    changed("tiny-gpt", change)
    return "expand bad.onnx --vocab 300"


COPY = "expand model.onnx --hidden 16 --only-hidden --method copy --no-validate"
BESIDE = "e = MatMul y beside\nall = Concat y e\n"  # the stream, and five entries of another dim
RMS = "{y}sq = Mul {x} {x}\n{y}ms = ReduceMean {y}sq\n{y}me = Add {y}ms eps\n{y}rt = Sqrt {y}me\n{y} = Div {x} {y}rt\n"
EXTRA = {"axis": np.array([-1]), "ones": np.ones(HIDDEN, np.float32), "eps": np.float32(1e-5), "one": np.float32(1), "some": np.array([1, 2]),
         "beside": np.random.default_rng(2).normal(size=(HIDDEN, 5)).astype(np.float32), "wide": np.random.default_rng(1).normal(size=(HIDDEN, HIDDEN)).astype(np.float32),
         "all_gain": np.ones(HIDDEN + 5, np.float32)}


def widened(lines: str, command: str = WIDER, outputs=("z",), more: dict | None = None, **attrs):
    """A case: lines behind the attention, or in place of all, whose z is an output."""
    means = {f"{name}ms": {"axes": [-1]} for name in ("m", "y", "nn", "z")}
    return lambda folder, patch: (written(folder, lines=lines if "table" in lines else ATTENTION + lines, more=EXTRA | (more or {}), outputs=outputs, **means | attrs), command)[1]


def twice(lines: str) -> tuple[str, dict]:
    """The lines of one layer, from x to y, for two layers with the same weights; and the axes of their transposes."""
    first, _, layer = lines.partition("n")  # what makes x comes before
    made = {name for line in layer.splitlines() for name in line.split(" = ")[0].split(", ")} - {"y"} | {"n"}
    out, perms = first, {}
    for k in range(2):
        names = {name: f"{name}_{k}" for name in made} | {"x": "x" if not k else "y_0", "y": "y" if k else "y_0"}
        out += "\n".join(" ".join(names.get(word, word) for word in line.replace(", ", " , ").split(" ")) for line in ("n" + layer).splitlines()).replace(" , ", ", ") + "\n"
        perms |= {f"{name}_{k}": held for name, held in PERMS.items()}
    return out, perms


CONFLICTS = {  # reason: the graph, and the growth where it is another
    "… cannot grow from … to …: one place wants new entries to be …, another …": widened(FEED + "z = ReduceSum y axis\n"),
    "… takes the mean along an axis of which only a part would grow": widened(FEED + BESIDE + "z = LayerNormalization all all_gain all_gain\n", all={"axis": -1}),
    "… finds entries by their number, so that none can be put between them": widened(ATTENTION.replace("x = Gather table", "all = Concat table more\nx = Gather all") + FEED,
        "expand model.onnx --vocab 30", outputs=(), more={"more": np.ones((5, HIDDEN), np.float32)}, all={"axis": 0}),
    "new entries behind … cannot be …": widened(FEED.replace("u = MatMul m up", "e = Exp m\nz = LayerNormalization e g b\nu = MatMul z up")),
    "neither factor of a product can be zero in the new part": widened(FEED + "e = Exp y\nc9 = Cos y\nw = Mul e c9\nz = ReduceSum w axis\n"),
    "a sum over copies would be multiplied": widened(FEED + "z = ReduceSum y axis\n", COPY),
    "… is not defined for every value that a new entry may have": widened(FEED.replace("u = MatMul m up", "z = Div ones m\nu = MatMul z up"), WIDER + " --method pad"),
    "copies would meet in a product of … factors": widened(FEED + "z = Einsum y y ones\n", COPY, z={"equation": "btd,btd,d->bt"}),
}
for saying, case in CONFLICTS.items():
    method(saying)(case)

AFTER = ATTENTION.replace("n = LayerNormalization x g b", "n0 = Identity x").replace("MatMul n ", "MatMul n0 ")  # norms on the stream
POST = AFTER.replace("x = Gather table ids", "x0 = Gather table ids\nx = LayerNormalization x0 g b").replace("m = LayerNormalization h g2 b2", "m = LayerNormalization h {} b") \
    + FEED.replace("y = Add h d", "e = Add m d\n{}")
NAKED = "mu = ReduceMean e\nnn0 = Sub e mu\n" + RMS.format(x="nn0", y="nn").replace("nn = Div nn0 nnrt", "over = Div one nnrt\nnn = Mul nn0 over")

method("the statistics of this norm after the branch could move by …")(
    widened(POST.format("g2", "y = LayerNormalization e g2 b2\n"), outputs=(),
            more={"g": np.array([90, 9, 1, 0.1, 0, 0, -5, 0.1], np.float32)}))
method("what a norm after the branch is multiplied with is computed while the model runs")(
    widened(POST.format("g2", NAKED + "gate = MatMul nn wide\ny = Mul nn gate\nz = LayerNormalization y g b\n"), mu={"axes": [-1]}))
method("one gain serves several norms after the branch")(widened(POST.format("gg", "y = LayerNormalization e gg b2\n").replace("x = Layer", "gg = Cast g\nx = Layer").replace("x0 g b", "x0 gg b"), outputs=(), gg={"to": TensorProto.FLOAT}))
BARE = ATTENTION.replace("m = LayerNormalization h g2 b2", RMS.format(x="h", y="m")).replace("n = LayerNormalization x g b", "n = Identity x")
method("this norm has no gain that could be repaired")(widened(BARE + FEED.replace("u = MatMul m up", "r = Relu m\nu = MatMul r up"), outputs=()))
method("the weight … would have to be scaled for one reader, and has another")(widened(BARE + FEED + "z = MatMul y up\n"))
method("one part of the axis of a norm is copied, another padded")(
    widened(FEED + BESIDE + RMS.format(x="all", y="z"), COPY + " --set beside[1]=7", all={"axis": -1}))


@method("copies meet copies in this product, and neither side can be divided")
def copies(folder, patch):
    return f"expand {quantized('llama', 'weights')} --hidden 64 --only-hidden --method copy --no-validate -o grown.onnx"


@method("the query heads of a group do not stand side by side in this weight, so that the group cannot be cut")
def cut_group(folder, patch):
    patch.setattr("onnxgrow.maps.summands", lambda d: [])  # as if the group stood elsewhere
    return f"expand {zoo.export('falcon-kv2', 'torchscript')} --kv-heads 4 --no-validate -o grown.onnx"


# --- quantized weights --------------------------------------------------------------------------------------------------

method("… holds whole numbers, which cannot be shared out")(quantized_as("dynamic", "--hidden 64 --only-hidden --method copy"))
method("… has several numbers in a byte")(quantized_as("blocked-4", "--layers 3"))
method("new words start from a mean or zero, and … is quantized")(quantized_as("weights", "--vocab 120"))
method("… is quantized, and a little noise is less than a step of it")(quantized_as("weights", "--head-dim 12 --wake 0.001", "qwen3"))


@method("the zero points of … differ from entry to entry, and new ones would have none")
def uneven_zeros(folder, patch):
    def change(graph):
        for t in graph.initializer:
            if t.name.endswith("_zero"):
                t.CopyFrom(numpy_helper.from_array(np.arange(np.prod(t.dims), dtype=np.int8), t.name))
    changed(str(quantized("llama", "weights-channel")), change)
    return "expand bad.onnx --ffn 101"


@method("a zero point is computed")
def computed_zero(folder, patch):
    def change(graph):
        node = next(n for n in graph.node if n.op_type == "DequantizeLinear" and "up_proj" in n.name or n.op_type == "DequantizeLinear")
        del node
        for n in [n for n in graph.node if n.op_type == "DequantizeLinear"]:
            at = list(graph.node).index(n)
            graph.node.insert(at, helper.make_node("Relu", [n.input[2]], [n.input[2] + "_now"]))
            n.input[2] += "_now"
    changed(str(quantized("llama", "weights")), change)
    return "expand bad.onnx --ffn 101"


@method("a gain would have to be …, and it is quantized")
def quantized_gain(folder, patch):
    """Of the stream itself, in every layer."""
    more = {"eight": np.full(HIDDEN, 90, np.int8), "step": np.float32(0.01), "point": np.int8(3)}
    lines, perms = twice((ATTENTION + FEED).replace("h = Add x o", "gain = DequantizeLinear eight step point\nh0 = Mul x gain\nh = Add h0 o"))
    written(folder, lines=lines, more=more, **perms)
    return DEEPER


# --- depth --------------------------------------------------------------------------------------------------------------

method("no linear map ends this branch, but …")(small(ATTENTION + "f = Relu m\ny = Add h f\n"))
method("a norm stands on the stream inside a block, and none at its end")(small(AFTER + "u = MatMul m up\nf = Relu u\nd = MatMul f down\ny = Add m d\n"))
method("the weight of a last linear map is computed by …")(small(ATTENTION + FEED.replace("d = MatMul f down", "warm = Tanh down\nd = MatMul f warm")))
method("no such norm stands in front of the first block")(
    small(POST.format("g", "y = LayerNormalization e g2 b2\n").replace("x = LayerNormalization x0 g b", "x = Identity x0"), command=DEEPER + " --placement start"))
method("a gain or an offset that new blocks must change is computed")(small(POST.format("g", "gain = Exp g2\ny = LayerNormalization e gain b2\n")))


@method("a block does not add to the stream that it reads")
def no_sum(folder, patch):
    from onnxgrow.blocks import Block
    from onnxgrow.branches import Branches

    model = Model(written(folder))
    block, made = model.stacks[0].blocks[0], next(n for n in model.roles.structure.graph.nodes if n.label == "d").outputs[0]
    return lambda: Branches(model.roles).trunk(Block(block.nodes, block.enters, made))


@method("a branch comes from outside the block")
def from_outside(folder, patch):
    written(folder, lines=ATTENTION + FEED.replace("y = Add h d", "d1 = Add d extra\ny = Add h d1"), more={"extra": np.ones((1, 1, HIDDEN), np.float32)})

    def change(graph):
        graph.initializer.remove(next(t for t in graph.initializer if t.name == "extra"))
        graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["batch", "length", HIDDEN]))
    changed("model.onnx", change, "model.onnx")
    return DEEPER


@method("the states … are an output, and a block behind them would change their norm")
def states_given(folder, patch):
    written(folder, lines=POST.format("g", "y = LayerNormalization e g2 b2\n"), outputs=("x",))
    return DEEPER + " --placement start"


@method("a weight that one block must change is read outside of it")
def read_outside(folder, patch):
    tail = "logits0 = MatMul y head\nmore = ReduceSum turned\nlogits = Add logits0 more"
    written(folder, tail, lines=ATTENTION + FEED.replace("d = MatMul f down", "d = MatMul f turned"), more={"down": np.ones((HIDDEN, FFN), np.float32)})
    changed("model.onnx", lambda g: g.node.insert(0, helper.make_node("Transpose", ["down"], ["turned"], perm=[1, 0])), "model.onnx")
    return DEEPER


@method("… holds a graph of its own inside a block")
def choice(folder, patch):
    written(folder, lines=ATTENTION + FEED.replace("f = Relu u", "most = ReduceMax u\nyes = Greater most half\nf = Relu u"), most={"keepdims": 0})

    def change(graph):
        at = next(k for k, n in enumerate(graph.node) if n.op_type == "Relu")
        graph.node.remove(graph.node[at])
        branches = {name: helper.make_graph([helper.make_node(op, ["u"], [f"f_{op}"])], name, [], [helper.make_tensor_value_info(f"f_{op}", TensorProto.FLOAT, None)])
                    for name, op in (("then_branch", "Relu"), ("else_branch", "Tanh"))}
        graph.node.insert(at, helper.make_node("If", ["yes"], ["f"], "choice", **branches))
    changed("model.onnx", change, "model.onnx")
    return DEEPER


@method("another stream of states reads what is made inside of these layers, and would not see that of new ones")
def coupled(folder, patch):
    from tests.test_spellings import exported

    return planning(exported(folder, end="coupled"), layers=3)


# --- lengths ------------------------------------------------------------------------------------------------------------


@method("positions cannot grow: nothing says how … goes on")
def no_pattern(folder, patch):
    return longer("mask without a rule", folder)


@method("masks and tables of so many positions take … bytes")
def too_many(folder, patch):
    patch.setattr("onnxgrow.continued.LARGEST", 3000)
    return longer("range ids, bool mask", folder)

