"""SizeError: how each message of this family is provoked."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests import loop_models, several_models, zoo
from tests.error_cases import Family, changed, in_folder, longer, tensor
from tests.growing import usual
from tests.quantized import quantized
from tests.test_cli import with_twist
from tests.test_fixed_sizes import ATTENTION, FEED, HIDDEN, written

size = Family("SizeError")
LLAMA = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 240, "num_hidden_layers": 4, "vocab_size": 256}

size.lines({
    "… is … and cannot shrink to …": "expand model.onnx --hidden 48",
    "GROWN is not grown from MODEL: its … is …, MODEL's is …": "validate gpt.onnx model.onnx",
    "is not a whole number of heads of …": "expand model.onnx --hidden 100",
    "are no whole number of groups: …": "expand model.onnx --heads 5",
    "cannot share … kv heads evenly": "expand model.onnx --kv-heads 3",
    "would cut groups of … unevenly": "expand model.onnx --heads 6 --kv-heads 6",
    "this model has no kv heads of their own": "expand gpt.onnx --kv-heads 6",
    "this model has one kv head for all its query heads": "expand {gemma} --kv-heads 2",
    "and grows by multiples of …": "expand model.onnx --head-dim 25",
    "the model has no dim named …": "expand model.onnx --set depth=12",
    "the model has … already, and … are asked for": "suggest model.onnx --params 100K",
    "the model has no stack named …": "expand model.onnx --decoder-layers 6",
    "nothing bounds the length": "expand model.onnx --positions 5000",
    "this model has several sizes named …: …": "expand {clip} --hidden 64",
    "this model has several stacks of layers: …": "expand {clip} --layers 6",
    "is no multiple of …": "expand {packed} --hidden 45 --only-hidden",
    "layers alternate with a period of …": "expand {gemma2} --layers 5",
    "positions cannot grow: every call reads the same ones": "expand {vit} --positions 100",
})
MODELS = {
    "clip": lambda: several_models.export("clip", "torchscript"), "packed": lambda: quantized("llama", "nbits-4"),
    "gemma2": lambda: usual("gemma2").path, "gemma": lambda: usual("gemma").path, "vit": lambda: zoo.export("vit", "torchscript"),
}
for saying, case in list(size.items()):
    for name, make in MODELS.items():
        line = case(None, None)
        if f"{{{name}}}" in line:
            size[saying] = lambda folder, patch, line=line, name=name, make=make: line.replace(f"{{{name}}}", str(make())) + " --no-validate -o g.onnx"


# --- dims that cannot be told, or cannot grow ---------------------------------------------------------------------------


@size("… cannot grow: no rule for the operator …")
def no_rule(folder, patch):
    with_twist(folder / "bad.onnx")
    return "expand bad.onnx --hidden 144"


@size("no … found in the part of the graph that is understood: …")
def hidden_behind(folder, patch):
    written(folder, lines=ATTENTION + FEED.replace("Relu", "acme::Odd"))
    return "expand model.onnx --ffn 17"


@size("… cannot grow: a size here is known only when the model runs")
def known_when_run(folder, patch):
    written(folder, "spots = NonZero y\nrows = Transpose spots\npicked = GatherND y rows\nsquare = Reshape picked eight\nlogits = MatMul square head",
            more={"eight": np.array([-1, HIDDEN])})
    return "expand model.onnx --hidden 16 --only-hidden"


@size("an axis of one entry cannot be told from one that is spread over others")
def single(folder, patch):
    """Rotary halves of one entry each."""
    turn = "qa, qb = Split q\nqc = Neg qb\nqr = Concat qc qa\nqs = Mul qr sin\nqu = Mul q cos\nqq = Add qs qu\ns0 = MatMul qq k"
    more = {n: np.arange(1, 3, dtype=np.float32).reshape(1, 1, 1, 2) for n in ("sin", "cos")}
    written(folder, lines=ATTENTION.replace("s0 = MatMul q k", turn) + FEED, heads=(0, 0, 4, 2), more=more, qa={"axis": -1}, qr={"axis": -1})
    return "expand model.onnx --head-dim 4"


@size("… would have to be … and …")
def one_dim_of_two_names(folder, patch):
    """Keys that are the values as well."""
    written(folder, lines=ATTENTION.replace("v0 = MatMul n wv", "v0 = Identity k0") + FEED)
    return "expand model.onnx --head-dim 6 --set v_head_dim=8"


@size("this model takes its key or value heads apart one by one, so that none can be repeated beside another")
def apart(folder, patch):
    """Two key and value heads, each repeated for the two queries of its group."""
    lines = ATTENTION
    for x, turned in (("k", {"perm": [0, 2, 1]}), ("v", {"perm": [0, 1, 2]})):
        parts = f"{x}a, {x}b = Split {x}0\n" + "".join(f"{x}{i}1 = Transpose {x}{i}\n{x}{i}2 = Unsqueeze {x}{i}1 one\n{x}{i}3 = Expand {x}{i}2 twice\n" for i in "ab")
        lines = lines.replace(f"{x}1 = Reshape {x}0 heads\n", parts).replace(f"{x} = Transpose {x}1", f"{x} = Concat {x}a3 {x}b3")
    turns = {f"k{i}1": {"perm": [0, 2, 1]} for i in "ab"} | {f"v{i}1": {"perm": [0, 1, 2]} for i in "ab"}
    more = {"one": np.array([1]), "twice": np.array([1, 2, 1, 1]), "wq": np.ones((HIDDEN, 16), np.float32), "wo": np.ones((16, HIDDEN), np.float32)}
    written(folder, lines=lines + FEED, heads=(0, 0, 4, 4), flat=(0, 0, 16), more=more, k={"axis": 1}, v={"axis": 1}, ka={"axis": -1}, va={"axis": -1}, **turns)
    return "expand model.onnx --kv-heads 4"


@size("this model has no vocabulary")
def no_vocabulary(folder, patch):
    written(folder)

    def change(graph):
        graph.node.remove(graph.node[0])
        graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", HIDDEN]))
    changed("model.onnx", change)
    return "expand bad.onnx --vocab 30"


@size("this model has vocabularies of different sizes: …")
def two_vocabularies(folder, patch):
    written(folder)

    def change(graph):
        graph.input.append(helper.make_tensor_value_info("iother", TensorProto.INT64, ["batch", "length"]))
        tensor(graph, "table2", np.ones((23, HIDDEN), np.float32))
        tensor(graph, "square", np.ones((HIDDEN, HIDDEN), np.float32))
        graph.node[1].input[0] = "both"
        graph.node.insert(1, helper.make_node("Add", ["x", "x3"], ["both"]))
        graph.node.insert(1, helper.make_node("MatMul", ["x2", "square"], ["x3"]))
        graph.node.insert(1, helper.make_node("Gather", ["table2", "iother"], ["x2"]))
    changed("model.onnx", change)
    return "expand bad.onnx --vocab 30 --plan"


@size("layers have different numbers of experts: …")
def uneven_experts(folder, patch):
    def change(graph):
        for t in graph.initializer:
            axis = 0 if t.name.startswith("experts.1.") else 1 if t.name == "val_208" else None
            if axis is not None:
                tensor(graph, t.name, np.take(numpy_helper.to_array(t), range(3), axis))
        del graph.value_info[:]
    changed(str(usual("moe-batched").path), change)
    return "expand bad.onnx --experts 8"


# --- layers and lengths -------------------------------------------------------------------------------------------------


@size("no repeated layers found")
def no_layers(folder, patch):
    """Attention to a table, without a stream that it would add to."""
    lines = "x = Gather table ids\nq = MatMul x wq\nk0 = MatMul x wk\nv = MatMul x wv\nk = Transpose k0\ns = MatMul q k\np = Softmax s\no = MatMul p v\ny = MatMul o wo\n"
    written(folder, lines=lines, k={"perm": [0, 2, 1]})
    return "expand model.onnx --layers 3"


@size("the … layers cannot become more: …")
def steps_of_a_loop(folder, patch):
    loop_models.over_layers(folder / "bad.onnx", 4)
    return "expand bad.onnx --layers 5"


@size("the layers cannot become more: the loop carries keys and values of each layer, …")
def caches_in_a_loop(folder, patch):
    loop_models.cached(folder / "bad.onnx", fed=True)
    return "expand bad.onnx --layers 3"


@size("the model does not run at length …")
def too_long(folder, patch):
    return "suggest gpt.onnx --params 3M --length 4000"


@size("no table, mask or stored ids bound the length")
def fixed_length(folder, patch):
    written(folder, ids=(2, 5))
    return "expand model.onnx --positions 10"


@size("positions cannot grow: a table of … rows is read by indices that come out of …")
def wrapped(folder, patch):
    return longer("wrapped ids", folder)


# --- configs ------------------------------------------------------------------------------------------------------------


@size("does not belong to this model: …")
def other_config(folder, patch):
    in_folder(LLAMA | {"hidden_size": 64})
    return "expand src --hidden 144 --no-validate -o grown"


@size("has no entry that could say …")
def no_entry(folder, patch):
    in_folder({k: v for k, v in LLAMA.items() if k != "vocab_size"})
    return "expand src --vocab 300 --no-validate -o grown"


@size("the model has several hidden sizes, and model.decoder of genai_config.json has one")
def several(folder, patch):
    in_folder(genai={"model": {"decoder": {"filename": "model.onnx"}}}, model=str(several_models.export("clip", "torchscript")))
    return "expand src --set text.ffn=200 --no-validate -o grown"

