"""Norms that are spelled out in nodes are found in every spelling, what only looks like one is not, and a near miss says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxgrow.graph import build
from onnxgrow.idioms import Miss, Norm, find_attention, find_lengths, find_norms
from onnxgrow.model import Model
from onnxgrow.rulebook import load_builtin
from onnxgrow.rulerun import runner
from onnxgrow.structure import tie
from tests import test_fixed_sizes
from tests.textgraph import Memory, model_of

EPS = 0.1
CONSTANTS = {name: np.float32(v) for name, v in {"two": 2, "three": 3, "half": 0.5, "minus_half": -0.5, "one": 1, "eps": EPS}.items()}
CONSTANTS |= {"gain": np.linspace(0.5, 2, 6, dtype="f"), "offset": np.linspace(-1, 1, 6, dtype="f"), "last": [-1], "middle": [1]}
HALF, FULL = {"to": TensorProto.FLOAT16}, {"to": TensorProto.FLOAT}


def analysed(lines: str, opset: int = 18, **attrs):
    """Every ReduceMean runs along the last axis, unless its line or attributes say otherwise."""
    means = [line for line in lines.splitlines() if "ReduceMean" in line and len(line.split()) == 4]
    text = "\n".join(f"{line} last" if line in means and opset >= 18 else line for line in lines.splitlines())
    if opset < 18:
        attrs = {line.split()[0]: {"axes": [-1]} for line in means} | attrs
    used = {word for line in text.splitlines() for word in line.split()}
    constants = {n: v for n, v in CONSTANTS.items() if n in used}
    model = model_of(text, {"x": ["batch", 5, 6], "other": ["batch", 5, 6]}, constants, opset, **attrs)
    return tie(build(Memory(proto=model)), load_builtin()), model


def assert_normalises(norm: Norm, model: onnx.ModelProto) -> None:
    """What comes out of the norm is what a norm makes of what goes in, in ONNX Runtime."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in {norm.x, norm.y} - {o.name for o in model.graph.output} - {"x"})
    feeds = {n: np.random.default_rng(i).normal(1, 2, (2, 5, 6)).astype("f") for i, n in enumerate(("x", "other"))}
    got = runner(model)(feeds) | feeds
    x = got[norm.x].astype(np.float64)
    centred = x - x.mean(-1, keepdims=True) if norm.kind == "layer norm" else x
    eps = EPS if norm.eps else 0
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    np.testing.assert_allclose(got[norm.y], want, atol=1e-2 if got[norm.y].dtype == np.float16 else 1e-5)


CENTRE = "m = ReduceMean x\nd = Sub x m\n"
VARIANCE = "q = Pow d two\nv = ReduceMean q\ne = Add v eps\n"
LAYER_NORMS = {
    "PyTorch": CENTRE + VARIANCE + "r = Sqrt e\nn = Div d r\ng = Mul n gain\ny = Add g offset",
    "epsilon first": CENTRE + "q = Pow d two\nv = ReduceMean q\ne = Add eps v\nr = Sqrt e\nn = Div d r",
    "no epsilon": CENTRE + "q = Pow d two\nv = ReduceMean q\nr = Sqrt v\nn = Div d r",
    "no gain": CENTRE + VARIANCE + "r = Sqrt e\nn = Div d r\ny = Relu n",
    "square as a product": CENTRE + "q = Mul d d\nv = ReduceMean q\ne = Add v eps\nr = Sqrt e\nn = Div d r",
    "times the reciprocal": CENTRE + VARIANCE + "r = Sqrt e\ni = Reciprocal r\nn = Mul d i\ny = Mul n gain",
    "reciprocal times": CENTRE + VARIANCE + "r = Sqrt e\ni = Reciprocal r\nn = Mul i d\ny = Mul gain n",
    "one over the root": CENTRE + VARIANCE + "r = Sqrt e\ni = Div one r\nn = Mul d i",
    "a power of one half": CENTRE + VARIANCE + "r = Pow e half\nn = Div d r",
    "a power of minus one half": CENTRE + VARIANCE + "r = Pow e minus_half\nn = Mul d r",
    "Sub twice": CENTRE + VARIANCE + "r = Sqrt e\nd2 = Sub x m\nn = Div d2 r",
    "mean twice": CENTRE + VARIANCE + "r = Sqrt e\nm2 = ReduceMean x\nd2 = Sub x m2\nn = Div d2 r",
    "cast around": "h = Cast x\nb = Cast h\nm = ReduceMean b\nd = Sub b m\n" + VARIANCE + "r = Sqrt e\nn = Div d r\no = Cast n\ny = Cast o",
    "cast before the square": CENTRE + "c = Cast d\n" + VARIANCE.replace("Pow d", "Pow c") + "r = Sqrt e\nn = Div c r",
}
RMS_NORMS = {
    "Llama": "q = Pow x two\nv = ReduceMean q\ne = Add v eps\nr = Sqrt e\ni = Reciprocal r\nn = Mul x i\ny = Mul gain n",
    "divided": "q = Pow x two\nv = ReduceMean q\ne = Add v eps\nr = Sqrt e\nn = Div x r\ny = Mul n gain",
    "square as a product": "q = Mul x x\nv = ReduceMean q\ne = Add v eps\nr = Sqrt e\nn = Div x r",
    "one over the root": "q = Pow x two\nv = ReduceMean q\ne = Add v eps\nr = Sqrt e\ni = Div one r\nn = Mul x i",
    "a power of minus one half": "q = Pow x two\nv = ReduceMean q\ne = Add v eps\nr = Pow e minus_half\nn = Mul r x",
    "no epsilon, no gain": "q = Pow x two\nv = ReduceMean q\nr = Sqrt v\nn = Div x r\ny = Relu n",
    "cast around": "h = Cast x\nb = Cast h\n" + VARIANCE.replace("Pow d", "Pow b") + "r = Sqrt e\nn = Div b r\no = Cast n\ny = Cast o",
}
CASTS = {"h": HALF, "b": FULL, "o": HALF, "y": FULL, "c": FULL}
SPELLINGS = [
    pytest.param(kind, name, lines, id=f"{kind}, {name}")
    for kind, found in (("layer norm", LAYER_NORMS), ("rms norm", RMS_NORMS)) for name, lines in found.items()
]  # fmt: skip


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(("kind", "name", "lines"), SPELLINGS)
def test_every_spelling_is_found(kind, name, lines, opset):
    casts = {k: v for k, v in CASTS.items() if f"{k} = Cast" in lines}
    s, model = analysed(lines, opset, **casts)
    norms, misses = find_norms(s)
    assert not misses
    (norm,) = norms
    assert norm.kind == kind and norm.y == "n"
    assert (norm.eps is None) == ("no epsilon" in name)
    assert_normalises(norm, model)


def test_a_norm_covers_its_nodes_and_no_more():
    s, _ = analysed(LAYER_NORMS["mean twice"].replace("n = ", "z = ") + "\ny = Mul z gain")
    ((norm,), _) = find_norms(s)
    assert {s.graph.by_index[i].label for i in norm.nodes} == {*"mdqverz", "m2", "d2"}
    assert norm.anchor.label == "v" and norm.eps[0].label == "e" and s.walk.value(*norm.eps) == np.float32(EPS)


def test_norms_in_a_row_are_told_apart():
    again = "q2 = Pow n two\nv2 = ReduceMean q2\nr2 = Sqrt v2\nn2 = Div n r2"
    s, model = analysed(f"{LAYER_NORMS['no gain'].replace('y = Relu n', again)}")
    norms, _ = find_norms(s)
    assert [(n.kind, n.x, n.y) for n in norms] == [("layer norm", "x", "n"), ("rms norm", "n", "n2")]
    for norm in norms:
        assert_normalises(norm, model)


# Spellings that are not known are missed with the node at which the trail ends

SQUARES = "q = Pow x two\nv = ReduceMean q\ne = Add v eps\n"
TENSORFLOW = "r = Sqrt e\ni = Reciprocal r\ns = Mul i gain\na = Mul x s\nb = Mul m s\nc = Sub offset b\ny = Add a c"
MISSES = {  # lines, the node to blame, and a word of the reason
    "TensorFlow, with another mean": (CENTRE + VARIANCE + "m2 = ReduceMean other\n" + TENSORFLOW.replace("Mul m s", "Mul m2 s"), "s", "no factor"),
    "TensorFlow, without a sum": (CENTRE + VARIANCE + TENSORFLOW.replace("Add a c", "Mul a c"), "b", "do not follow"),
    "no root": (CENTRE + VARIANCE + "y = Div d e", "y", "no square root"),
    "computed epsilon": (CENTRE + "z = ReduceMean other\n" + VARIANCE.replace("eps", "z") + "r = Sqrt e\ny = Div d r", "e", "no constant"),
    "another numerator": (SQUARES + "r = Sqrt e\ny = Div other r", "y", "something other"),
    "another numerator, centred": (CENTRE + VARIANCE + "r = Sqrt e\ny = Div x r", "y", "something other"),
    "another mean": (CENTRE + VARIANCE + "r = Sqrt e\nm2 = ReduceMean other\nd2 = Sub other m2\ny = Div d2 r", "y", "something other"),
    "root on top": (SQUARES + "r = Sqrt e\ny = Div r x", "y", "does not divide"),
    "times the root": (SQUARES + "r = Sqrt e\ny = Mul x r", "y", "does not divide"),
    "a root of another order": (SQUARES + "r = Pow e three\ny = Div x r", "r", "no square root"),
    "centred elsewhere": (CENTRE + VARIANCE + "r = Sqrt e\nn = Div d r\ny = Add n d", "y", "used elsewhere"),
}


def test_tensorflows_form_is_one_norm_with_its_gain_and_offset():
    s, model = analysed(CENTRE + VARIANCE + TENSORFLOW)
    (norm,), misses = find_norms(s)
    assert not misses and (norm.kind, norm.x, norm.y) == ("layer norm", "x", "y")
    assert [(node.label, slot) for node, slot in (norm.gain, norm.offset)] == [("s", 1), ("c", 0)]


@pytest.mark.parametrize("name", MISSES)
def test_a_near_miss_says_why_and_where(name):
    lines, node, reason = MISSES[name]
    norms, (miss,) = find_norms(analysed(lines, **{n: FULL for n in "cf" if f"{n} = Cast" in lines})[0])
    assert not norms and isinstance(miss, Miss)
    assert (miss.node.label, reason in miss.reason) == (node, True), miss


OTHERS = {
    "an average": "y = ReduceMean x",
    "centring alone": CENTRE,
    "a mean of cubes": "q = Pow x three\nv = ReduceMean q\nr = Sqrt v\ny = Div x r",
    "a mean of products": "q = Mul x other\nv = ReduceMean q\nr = Sqrt v\ny = Div x r",
    "over another axis": "q = Pow x two\nv = ReduceMean q middle\nr = Sqrt v\ny = Div x r",
    "L2 normalisation": "q = Pow x two\nv = ReduceSum q last\nr = Sqrt v\ny = Div x r",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_something_else_is_left_alone(name):
    assert find_norms(analysed(OTHERS[name])[0]) == ([], [])


def test_centring_along_another_axis_makes_a_norm_of_what_is_centred():
    """The variance is of d, whatever d is: a root mean square of it, and no LayerNorm of x."""
    s, model = analysed(LAYER_NORMS["PyTorch"].replace("m = ReduceMean x", "m = ReduceMean x middle"))
    ((norm,), _) = find_norms(s)
    assert (norm.kind, norm.x) == ("rms norm", "d")
    assert_normalises(norm, model)


# Attention

QK = "q = MatMul x wq\nk = MatMul x wk\nv = MatMul x wv\nt = Transpose k\n"
ATTENTION = {
    "plain": QK + "s = MatMul q t\np = Softmax s\nc = MatMul p v",
    "scaled and masked": QK + "s = MatMul q t\nz = Div s two\na = Add z mask\np = Softmax a\nc = MatMul p v",
    "guarded": QK + "s = MatMul q t\nz = Mul s half\np = Softmax z\nb = IsNaN p\ng = Where b zero p\nc = MatMul g v",
    "cast": QK + "s = MatMul q t\nh = Cast s\np = Softmax h\nf = Cast p\nc = MatMul f v",
    "capped": QK + "s = MatMul q t\nz = Div s two\nr = Tanh z\nw = Mul r two\np = Softmax w\nc = MatMul p v",
    "einsum": QK + "s = Einsum q k\np = Softmax s\nc = MatMul p v",
}
NO_ATTENTION = {
    "a classifier": QK + "p = Softmax q",
    "a router": QK + "p = Softmax q\nc = MatMul p w6",
    "logits of weights": QK + "s = MatMul x w6\np = Softmax s\nc = MatMul p t",
}


def attention(lines: str):
    weights = {n: np.ones((6, 6), "f") for n in ("wq", "wk", "wv", "w6")}
    weights |= {"two": np.float32(2), "half": np.float32(0.5), "zero": np.float32(0)}
    used = {n: v for n, v in weights.items() if n in lines.split()}
    attrs = {"t": {"perm": [0, 2, 1]}, "h": FULL, "f": FULL, "p": {"axis": -1}}
    attrs |= {"s": {"equation": "bik,bjk->bij"}} if "Einsum" in lines else {}
    kept = {n: a for n, a in attrs.items() if f"\n{n} = " in lines}
    model = model_of(lines, {"x": [2, 5, 6], "mask": [2, 1, 5]}, used, **kept)
    return find_attention(tie(build(Memory(proto=model)), load_builtin()))


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_two_products_around_a_softmax(name):
    (found,) = attention(ATTENTION[name])
    assert [n.label for n in (found.scores, found.softmax, found.context)] == ["s", "p", "c"]


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_a_softmax_alone_is_none(name):
    assert attention(NO_ATTENTION[name]) == []


@pytest.mark.parametrize("other, found", [([1, 0, 2], 1), ([0, 1, 2], 0)])
def test_a_length_may_be_measured_before_states_are_turned(other, found):
    """ONNX Runtime moves a Transpose behind what measures; what is divided must be turned alike."""
    lines = "l = ReduceL2 x\nm = Transpose l\nc = Clip m least\nt = Transpose x\ny = Div t c"
    model = model_of(lines, {"x": [3, 3, 4]}, {"least": np.float32(1e-6)}, l={"axes": [-1]}, m={"perm": [1, 0, 2]}, t={"perm": other})
    lengths = find_lengths(tie(build(Memory(proto=model)), load_builtin()))
    assert [(n.kind, n.x, n.y) for n in lengths] == [("length", "t", "y")] * found


@pytest.mark.parametrize("sizes", [dict(hidden=13, only_hidden=True), dict(hidden=16), dict(layers=2)], ids=str)
def test_a_mean_may_be_taken_away_before_an_rms_norm_that_is_an_operator(tmp_path, sizes):
    """As opset 23 exports of Cohere have it: together they are a LayerNorm."""
    lines = test_fixed_sizes.ATTENTION + test_fixed_sizes.FEED
    for x, y, gain in (("x", "n", "g"), ("h", "m", "g2")):
        lines = lines.replace(f"{y} = LayerNormalization {x} {gain} {'b' if y == 'n' else 'b2'}",
                              f"{y}_mean = ReduceMean {x}\n{y}_off = Sub {x} {y}_mean\n{y} = SimplifiedLayerNormalization {y}_off {gain}")
    axes = {f"{y}_mean": {"axes": [-1]} for y in "nm"} | {y: {"axis": -1} for y in "nm"}
    plan = Model(test_fixed_sizes.written(tmp_path, lines=lines, **axes)).plan(**sizes)
    result = plan.write()
    assert plan.certificate.kind == "exact" and result.report.equal and result.report.max_rel < 1e-5 and plan.model.architecture.norm == "layer norm"
