"""Models whose transformer stands in the body of a Loop or Scan: generation with and without a cache, a recurrent state, a stack of layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests import zoo
from tests.zoo_models import VOCAB

INT, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
value = helper.make_tensor_value_info
node = helper.make_node


def run(path: Path | str, feeds: dict) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, ["CPUExecutionProvider"]).run(None, feeds)


def ints(**arrays) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(v, np.int64), n) for n, v in arrays.items()]


def saved(path: Path, nodes, inputs, outputs, weights, like: onnx.ModelProto | None = None, opset: int = 17, check: bool | None = True) -> Path:
    opsets, ir = (like.opset_import, like.ir_version) if like is not None else ([helper.make_opsetid("", opset)], 8)
    model = helper.make_model(helper.make_graph(nodes, "main", inputs, outputs, weights), opset_imports=opsets, ir_version=ir)
    if check is not None:
        onnx.checker.check_model(model, full_check=check)
    onnx.save(model, path)
    return path


def renamed(nodes, names: dict[str, str]) -> list[onnx.NodeProto]:
    out = []
    for n in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        copy.input[:], copy.output[:] = [names.get(i, i) for i in n.input], [names.get(o, o) for o in n.output]
        out.append(copy)
    return out


PICK = [node("Slice", ["logits", "last", "end", "one"], ["at_last"]), node("Squeeze", ["at_last", "one"], ["scores"]),
        node("ArgMax", ["at_last"], ["word"], axis=2, keepdims=0)]


def greedy(path: Path, exporter: str = "torchscript", name: str = "gpt2", values: bool = False) -> Path:
    """Words appended one by one; the weights stand outside of the body. Outputs: ids [batch, sequence + trips], scores [trips, batch, vocab]."""
    model = onnx.load(zoo.export(name, exporter))
    decoder = renamed(model.graph.node, {"input_ids": "ids", "attention_mask": "mask"})
    body_nodes = [*decoder, *PICK, node("Concat", ["ids", "word"], ["ids_next"], axis=1),
                  node("ConstantOfShape", ["word_shape"], ["seen"], value=numpy_helper.from_array(np.ones(1, np.int64))),
                  node("Concat", ["mask", "seen"], ["mask_next"], axis=1), node("Identity", ["cond"], ["cond_next"])]
    body_nodes.insert(len(body_nodes) - 4, node("Shape", ["word"], ["word_shape"]))
    body = helper.make_graph(body_nodes, "step", [value("i", INT, []), value("cond", BOOL, []), value("ids", INT, ["b", None]), value("mask", INT, ["b", None])],
                             [value("cond_next", BOOL, []), value("ids_next", INT, ["b", None]), value("mask_next", INT, ["b", None]),
                              value("scores", FLOAT, ["b", VOCAB])], ints(last=[-1], end=[2**40], one=[1]),
                             value_info=[value("logits", FLOAT, ["b", "s", VOCAB])] * values)
    loop = node("Loop", ["trips", "", "input_ids", "attention_mask"], ["words", "last_mask", "all_scores"], "generate", body=body)
    return saved(path, [loop], [*model.graph.input, value("trips", INT, [])], [value("words", INT, ["batch", "length"]), value("all_scores", FLOAT, ["trips", "batch", VOCAB])],
                 model.graph.initializer, model, check=False)


def cached(path: Path, fed: bool, exporter: str = "torchscript", name: str = "gpt2-past", kv: int = 4, size: int = 8) -> Path:
    """Words one by one, with keys and values carried; the weights stand in the body. The first cache is fed, or made empty.

    Outputs: words [trips, batch], scores [trips, batch, vocab], and the caches.
    """
    model = onnx.load(zoo.export(name, exporter))
    caches = [v.name for v in model.graph.input if v.name.startswith("past")]
    presents = [v.name for v in model.graph.output if v.name.startswith("present")]
    decoder = renamed(model.graph.node, {"input_ids": "ids", "attention_mask": "mask", **{c: f"old_{c}" for c in caches}})
    ones = numpy_helper.from_array(np.ones(1, np.int64))
    body_nodes = [*decoder, *PICK, node("Shape", ["word"], ["word_shape"]), node("ConstantOfShape", ["word_shape"], ["seen"], value=ones),
                  node("Concat", ["mask", "seen"], ["mask_next"], axis=1), node("Squeeze", ["word", "one"], ["chosen"]), node("Identity", ["cond"], ["cond_next"])]
    cache = [value(f"old_{c}", FLOAT, ["b", kv, None, size]) for c in caches]
    inputs = [value("i", INT, []), value("cond", BOOL, []), value("ids", INT, ["b", 1]), value("mask", INT, ["b", None]), *cache]
    outputs = [value("cond_next", BOOL, []), value("word", INT, ["b", 1]), value("mask_next", INT, ["b", None]),
               *(value(p, FLOAT, ["b", kv, None, size]) for p in presents), value("chosen", INT, ["b"]), value("scores", FLOAT, ["b", VOCAB])]
    body = helper.make_graph(body_nodes, "step", inputs, outputs, [*model.graph.initializer, *ints(last=[-1], end=[2**40], one=[1])])
    first = [] if fed else [
        node("Shape", ["input_ids"], ["shape"]), node("Gather", ["shape", "zero"], ["rows"]), node("Concat", ["rows", "rest"], ["no_words"], axis=0),
        node("ConstantOfShape", ["no_words"], ["nothing"], value=numpy_helper.from_array(np.zeros(1, np.float32))), node("ConstantOfShape", ["shape"], ["attention_mask"], value=ones)]
    given = caches if fed else ["nothing"] * len(caches)
    loop = node("Loop", ["trips", "go", "input_ids", "attention_mask", *given], ["last", "last_mask", *presents, "words", "all_scores"], "generate", body=body)
    graph_inputs = [value("input_ids", INT, ["batch", 1]), value("trips", INT, [])]
    graph_inputs += [value("attention_mask", INT, ["batch", "seen"])] * fed
    graph_inputs += [v for v in model.graph.input if v.name in caches] * fed
    return saved(path, [*first, loop], graph_inputs,
                 [value("words", INT, ["trips", "batch"]), value("all_scores", FLOAT, ["trips", "batch", VOCAB]), *(value(p, FLOAT, ["batch", kv, "length", size]) for p in presents)],
                 [*ints(zero=[0], rest=[kv, 0, size]), numpy_helper.from_array(np.array(True), "go")], model, check=False)


# --- blocks written out, for Scan -----------------------------------------------------------------------------------------------------

HIDDEN, HEADS, SIZE, FFN, WORDS = 24, 3, 8, 40, 31
SHAPES = {"ln1": (HIDDEN,), "ln1_b": (HIDDEN,), "wq": (HIDDEN, HEADS * SIZE), "wk": (HIDDEN, HEADS * SIZE), "wv": (HIDDEN, HEADS * SIZE), "bq": (HEADS * SIZE,),
          "wo": (HEADS * SIZE, HIDDEN), "bo": (HIDDEN,), "ln2": (HIDDEN,), "ln2_b": (HIDDEN,), "up": (HIDDEN, FFN), "up_b": (FFN,), "down": (FFN, HIDDEN), "down_b": (HIDDEN,)}
NUMBERS = ints(split=[0, 0, HEADS, SIZE], merge=[0, 0, HEADS * SIZE]) + [numpy_helper.from_array(np.array(SIZE**-0.5, np.float32), "scale")]


def block(x: str, y: str, rms: bool = False) -> list[onnx.NodeProto]:
    """A transformer block with norms before its branches; x is [batch, length, hidden], weights have the names of SHAPES."""
    def norm(a: str, b: str, w: str) -> list[onnx.NodeProto]:
        return [node("SimplifiedLayerNormalization", [a, w], [b], epsilon=1e-5, axis=-1) if rms else node("LayerNormalization", [a, w, f"{w}_b"], [b], epsilon=1e-5)]
    out = norm(x, "n1", "ln1")
    for k in "qkv":
        out += [node("MatMul", ["n1", f"w{k}"], [f"{k}0"]), *([node("Add", ["q0", "bq"], ["q1"])] if k == "q" else []),
                node("Reshape", ["q1" if k == "q" else f"{k}0", "split"], [f"{k}2"]), node("Transpose", [f"{k}2"], [f"{k}3"], perm=[0, 2, 3, 1] if k == "k" else [0, 2, 1, 3])]
    out += [node("MatMul", ["q3", "k3"], ["qk"]), node("Mul", ["qk", "scale"], ["qk_scaled"]), node("Softmax", ["qk_scaled"], ["p"], axis=-1),
            node("MatMul", ["p", "v3"], ["o0"]), node("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]), node("Reshape", ["o1", "merge"], ["o2"]),
            node("MatMul", ["o2", "wo"], ["o3"]), node("Add", ["o3", "bo"], ["o4"]), node("Add", [x, "o4"], ["mid"]), *norm("mid", "n2", "ln2"),
            node("MatMul", ["n2", "up"], ["u0"]), node("Add", ["u0", "up_b"], ["u1"]), node("Relu", ["u1"], ["u2"]), node("MatMul", ["u2", "down"], ["d0"]),
            node("Add", ["d0", "down_b"], ["d1"]), node("Add", ["mid", "d1"], [y])]
    return out


def weights(rng, *stack: int) -> dict[str, np.ndarray]:
    out = {n: (rng.standard_normal((*stack, *s)) * (0.25 if len(s) > 1 else 0.1)).astype(np.float32) for n, s in SHAPES.items()}
    return out | {n: (1 + 0.2 * rng.standard_normal((*stack, HIDDEN))).astype(np.float32) for n in ("ln1", "ln2")}


def tensors(arrays: dict[str, np.ndarray]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(v, n) for n, v in arrays.items()]


def around(rng) -> dict[str, np.ndarray]:
    return {"words": rng.standard_normal((WORDS, HIDDEN)).astype(np.float32), "ln": (1 + 0.2 * rng.standard_normal(HIDDEN)).astype(np.float32),
            "ln_b": (0.1 * rng.standard_normal(HIDDEN)).astype(np.float32), "head": rng.standard_normal((HIDDEN, 7)).astype(np.float32)}


def over_time(path: Path, inside: bool = False, axis: int = 0, backwards: bool = False, out_axis: int = 0, mixed: bool = False) -> Path:
    """Scan over time: a state [batch, places, hidden], to which the words of each step are added before a block. ids: [time, batch, places], time at `axis`.

    `mixed`: a linear map of the state is added instead, so that nothing but the loop itself says that state and next state are of one size.
    """
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) / 5
    held = tensors(weights(rng) | ({"mix": mix, "beginnings": rng.standard_normal((WORDS, HIDDEN)).astype(np.float32)} if mixed else {})) + NUMBERS
    before = [node("MatMul", ["state", "mix"], ["mixed"])] * mixed
    body_nodes = [node("Gather", ["words", "now"], ["e"]), *before, node("Add", ["mixed" if mixed else "state", "e"], ["x"]), *block("x", "state_next"),
                  node("LayerNormalization", ["state_next", "ln", "ln_b"], ["f"]), node("MatMul", ["f", "head"], ["scores"])]
    body = helper.make_graph(body_nodes, "step", [value("state", FLOAT, ["b", "p", HIDDEN]), value("now", INT, ["b", "p"])],
                             [value("state_next", FLOAT, ["b", "p", HIDDEN]), value("scores", FLOAT, ["b", "p", 7])], held if inside else [],
                             value_info=[value("n1", FLOAT, ["b", "p", HIDDEN]), value("q2", FLOAT, ["b", "p", HEADS, SIZE])])
    attrs = dict(num_scan_inputs=1, scan_input_axes=[axis], scan_input_directions=[int(backwards)], scan_output_axes=[out_axis], scan_output_directions=[int(backwards)])
    nodes = [node("Gather", ["beginnings" if mixed else "words", "first"], ["h0"]), node("Scan", ["h0", "ids"], ["last", "all"], "time", body=body, **attrs),
             node("MatMul", ["last", "head"], ["end"])]
    dims = ["batch", "places"]
    dims.insert(axis % 3, "time")
    outs = ["batch", "places", 7]
    outs.insert(out_axis % 4, "time")
    return saved(path, nodes, [value("first", INT, ["batch", "places"]), value("ids", INT, dims)], [value("all", FLOAT, outs), value("end", FLOAT, ["batch", "places", 7])],
                 tensors(around(rng)) + ([] if inside else held), check=False)


def over_layers(path: Path, layers: int = 4, rms: bool = False, loop: bool = False) -> Path:
    """Scan over layers whose weights are stacked [layers, in, out], or a Loop that looks them up by the number of the layer."""
    rng = np.random.default_rng(6)
    stacked = weights(rng, layers)
    used = [n for n in stacked if not (rms and n in ("ln1_b", "ln2_b"))]
    layer = block("x", "y", rms)
    if loop:
        looked_up = [node("Gather", [f"all_{n}", "i"], [n], axis=0) for n in used]
        body = helper.make_graph([*looked_up, *layer, node("Identity", ["cond"], ["cond_next"])], "layer",
                                 [value("i", INT, []), value("cond", BOOL, []), value("x", FLOAT, ["b", "p", HIDDEN])],
                                 [value("cond_next", BOOL, []), value("y", FLOAT, ["b", "p", HIDDEN])])
        stack = node("Loop", ["count", "", "h0"], ["last"], "layers", body=body)
    else:
        body = helper.make_graph(layer, "layer", [value("x", FLOAT, ["b", "p", HIDDEN]), *(value(n, FLOAT, SHAPES[n]) for n in used)], [value("y", FLOAT, ["b", "p", HIDDEN])])
        stack = node("Scan", ["h0", *(f"all_{n}" for n in used)], ["last"], "layers", body=body, num_scan_inputs=len(used))
    nodes = [node("Gather", ["words", "ids"], ["h0"]), stack,
             node("SimplifiedLayerNormalization", ["last", "ln"], ["f"], epsilon=1e-5, axis=-1) if rms else node("LayerNormalization", ["last", "ln", "ln_b"], ["f"]),
             node("MatMul", ["f", "head"], ["scores"])]
    held = {f"all_{n}": stacked[n] for n in used} | {n: a for n, a in around(rng).items() if not (rms and n == "ln_b")}
    return saved(path, nodes, [value("ids", INT, ["batch", "places"])], [value("scores", FLOAT, ["batch", "places", 7])],
                 tensors(held) + NUMBERS + ints(count=layers), check=None if rms else False)


def normed_state(path: Path, rms: bool) -> Path:
    """Scan over time whose state is normed without a gain when a step ends, and not before the first: what the norm makes zero is not zero at first."""
    rng = np.random.default_rng(8)
    held = weights(rng)
    spelled = [node("ReduceMean", ["y"], ["mean"], axes=[-1], keepdims=1), node("Sub", ["y", "mean"], ["c"])] if not rms else [node("Identity", ["y"], ["c"])]
    spelled += [node("Pow", ["c", "two"], ["c2"]), node("ReduceMean", ["c2"], ["var"], axes=[-1], keepdims=1), node("Add", ["var", "eps"], ["var_eps"]),
                node("Sqrt", ["var_eps"], ["dev"]), node("Div", ["unit", "dev"], ["over"]), node("Mul", ["c", "over"], ["state_next"])]
    layer = [n for n in block("x", "y") if n.op_type != "LayerNormalization"]
    layer = renamed(layer, {"n1": "scaled", "n2": "mid"})
    nodes = [node("Mul", ["state", "ln1"], ["scaled"]), node("Gather", ["words", "now"], ["e"]), node("Add", ["scaled", "e"], ["x"]), *layer, *spelled,
             node("MatMul", ["scaled", "head"], ["scores"])]
    body = helper.make_graph(nodes, "step", [value("state", FLOAT, ["b", "p", HIDDEN]), value("now", INT, ["b", "p"])],
                             [value("state_next", FLOAT, ["b", "p", HIDDEN]), value("scores", FLOAT, ["b", "p", 7])])
    scan = node("Scan", ["h0", "ids"], ["last", "all"], "time", body=body, num_scan_inputs=1)
    rest = around(rng)
    rest["others"] = rng.standard_normal((WORDS, HIDDEN)).astype(np.float32)
    held |= {"two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32), "unit": np.array(1, np.float32)}
    return saved(path, [node("Gather", ["others", "first"], ["h0"]), scan],
                 [value("first", INT, ["batch", "places"]), value("ids", INT, ["time", "batch", "places"])],
                 [value("all", FLOAT, ["time", "batch", "places", 7])], tensors(rest | held) + NUMBERS, check=False)


def over_heads(path: Path, by_slice: bool, axis: int) -> Path:
    """A Loop that takes one head, or one channel, after the other by the number of the step, in order of their numbers."""
    rng = np.random.default_rng(9)
    taken = node("Slice", ["whole", "from", "to", "along"], ["cut"]) if by_slice else node("Gather", ["whole", "at"], ["cut"], axis=axis)
    body = helper.make_graph([node("Reshape", ["i", "one"], ["from"]), node("Add", ["from", "one"], ["to"]), node("Identity", ["from"], ["at"]), taken,
                              node("Mul", ["cut", "cut"], ["sq"]), node("ReduceSum", ["sq"], ["part"], keepdims=0), node("Identity", ["c"], ["c2"])],
                             "one", [value("i", INT, []), value("c", BOOL, [])], [value("c2", BOOL, []), value("part", FLOAT, [])])
    nodes = [node("Gather", ["words", "ids"], ["x"]), *block("x", "y"), node("LayerNormalization", ["y", "ln", "ln_b"], ["f"]), node("MatMul", ["f", "head"], ["scores"]),
             node("Identity", ["v3" if axis == 1 else "u1"], ["whole"]), node("Loop", ["count", ""], ["parts"], "heads", body=body)]
    return saved(path, nodes, [value("ids", INT, ["batch", "places"])], [value("scores", FLOAT, ["batch", "places", 7]), value("parts", FLOAT, [3])],
                 tensors(weights(rng) | around(rng)) + NUMBERS + ints(one=[1], along=[axis], count=3), check=False)


def shared_number(path: Path) -> Path:
    """A transformer whose shapes are read by a loop beside it, too, that no growth touches: there they are numbers like any other."""
    rng = np.random.default_rng(11)
    body = helper.make_graph([node("Add", ["s", "split"], ["more"]), node("Concat", ["more", "split"], ["s_next"], axis=0), node("Identity", ["c"], ["c_next"])], "sum",
                             [value("i", INT, []), value("c", BOOL, []), value("s", INT, [None])], [value("c_next", BOOL, []), value("s_next", INT, [None])])
    nodes = [node("Gather", ["words", "ids"], ["x"]), *block("x", "y"), node("LayerNormalization", ["y", "ln", "ln_b"], ["f"]), node("MatMul", ["f", "head"], ["scores"]),
             node("Loop", ["once", "", "zeros"], ["sums"], "sums", body=body)]
    return saved(path, nodes, [value("ids", INT, ["batch", "places"])], [value("scores", FLOAT, ["batch", "places", 7]), value("sums", INT, [None])],
                 tensors(weights(rng) | around(rng)) + NUMBERS + ints(once=1, zeros=[0, 0, 0, 0]), check=False)


def beside(path: Path) -> Path:
    """A decoder with two loops that no growth touches: one runs over its mask, column by column, the other gets twice as long at every step (which nothing describes)."""
    model = onnx.load(zoo.export("gpt2", "torchscript"))
    column = [node("Reshape", ["i", "one"], ["at"]), node("Add", ["at", "one"], ["after"]), node("Slice", ["attention_mask", "at", "after", "one"], ["column"], "cut"),
              node("Mul", ["column", "keep"], ["kept"]), node("Add", ["run", "kept"], ["run_next"]), node("Identity", ["run_next"], ["so_far"]), node("Identity", ["c"], ["c_next"])]
    body = helper.make_graph(column, "column", [value("i", INT, []), value("c", BOOL, []), value("run", INT, ["rows", 1])],
                             [value("c_next", BOOL, []), value("run_next", INT, ["rows", 1]), value("so_far", INT, ["rows", 1])], ints(keep=[1]),
                             value_info=[value("column", INT, ["rows", 1])])
    twice = helper.make_graph([node("Concat", ["s", "s"], ["s_next"], axis=0), node("Identity", ["c"], ["c_next"])], "twice",
                              [value("i", INT, []), value("c", BOOL, []), value("s", INT, [None])], [value("c_next", BOOL, []), value("s_next", INT, [None])])
    nodes = [node("Shape", ["input_ids"], ["ids_shape"]), node("Gather", ["ids_shape", "second"], ["length"]), node("Gather", ["ids_shape", "none"], ["rows"]),
             node("Concat", ["rows", "one"], ["start_shape"], axis=0), node("ConstantOfShape", ["start_shape"], ["start"], value=numpy_helper.from_array(np.zeros(1, np.int64))),
             node("Loop", ["length", "", "start"], ["total", "columns"], "sums", body=body, doc_string="sums of the mask"), node("Squeeze", ["columns", "two"], ["sums"]),
             node("Transpose", ["sums"], ["by_row"], perm=[1, 0]), node("Cast", ["by_row"], ["seen"], to=BOOL), node("Cast", ["seen"], ["mask"], to=INT),
             *renamed(model.graph.node, {"attention_mask": "mask"}), node("Loop", ["three", "", "one"], ["doubled"], "doubling", body=twice)]
    return saved(path, nodes, model.graph.input, [*model.graph.output, value("doubled", INT, [None])],
                 [*model.graph.initializer, *ints(one=[1], second=1, none=[0], two=[2], three=3)], model, check=False)


def until(path: Path) -> Path:
    """A Loop without a trip count that ends when a counter says so; in its body an If chooses between a block and half of what came."""
    rng = np.random.default_rng(10)
    then = helper.make_graph(block("x", "by_block"), "then", [], [value("by_block", FLOAT, None)])
    other = helper.make_graph([node("Mul", ["x", "half"], ["by_half"])], "other", [], [value("by_half", FLOAT, None)])
    body = helper.make_graph([node("If", ["flag"], ["y"], then_branch=then, else_branch=other), node("Add", ["n", "unit"], ["n_next"]), node("Less", ["n_next", "limit"], ["c_next"])], "step",
                             [value("i", INT, []), value("c", BOOL, []), value("x", FLOAT, ["b", "p", HIDDEN]), value("n", INT, [])],
                             [value("c_next", BOOL, []), value("y", FLOAT, ["b", "p", HIDDEN]), value("n_next", INT, [])])
    nodes = [node("Gather", ["words", "ids"], ["h0"]), node("Loop", ["", "yes", "h0", "zero"], ["last", "count"], "until", body=body),
             node("LayerNormalization", ["last", "ln", "ln_b"], ["f"]), node("MatMul", ["f", "head"], ["scores"])]
    held = weights(rng) | around(rng) | {"half": np.array(0.5, np.float32), "yes": np.array(True)}
    return saved(path, nodes, [value("ids", INT, ["batch", "places"]), value("limit", INT, []), value("flag", BOOL, [1])],
                 [value("scores", FLOAT, ["batch", "places", 7]), value("count", INT, [])], tensors(held) + NUMBERS + ints(zero=0, unit=1), check=None)
