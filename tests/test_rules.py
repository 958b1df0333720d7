"""Every rule against ONNX Runtime, both ways: what it claims holds, what it does not claim does not, and a wrong one is caught."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxgrow.errors import UsageError
from onnxgrow.graph import build
from onnxgrow.model import Model
from onnxgrow.operators import EXAMPLES, RANDOM, Fed, example, markdown
from onnxgrow.rulebook import Registry, Rule, load_builtin
from onnxgrow.rulecheck import check_example, check_rule
from onnxgrow.rulegrowth import Growth, Problem
from onnxgrow.rulerun import runner
from onnxgrow.structure import tie
from tests.textgraph import model_of

BUILTIN = load_builtin()
OPERATORS = sorted({e.op for e in EXAMPLES})

BODIES = {"Either", "BeamSearch", "GreedySearch", "Sampling"}  # mean nothing without the bodies around them: tests/test_subgraphs.py
CLOSED = {"QMoE"}  # nothing is claimed, and fills of seven inputs are too many to try: tests/test_quantized_experts.py
CAREFUL = {  # claims that would be true and are not made
    "one treatment serves all comparisons": "Equal Less Greater LessOrEqual GreaterOrEqual Max Min And Or Xor BitwiseAnd BitwiseOr Mod",
    "what is smaller than the largest changes nothing": "Hardmax ArgMax ArgMin ReduceMax ReduceMin GlobalMaxPool",
    "zero makes zero, without an offset": "BatchNormalization InstanceNormalization GroupNormalization LayerNormalization RMSNormalization SimplifiedLayerNormalization ReduceProd IsNaN IsInf",
    "a channel of its own is zero where its data or its kernel is, if there is no offset": "Conv",
    "an average is a linear map": "AveragePool GlobalAveragePool",
    "a zero slope on a zero, and a choice between zeros, are zero whatever the other input": "PRelu Where",
    "three factors of which one is zero": "Einsum",
    "a product with an offset, where a factor and the offset are zero": "Conv",
    "a scale of zero makes zero, and the mean is neither the smallest nor the largest": "DequantizeLinear DynamicQuantizeLinear",
    "scales are the third factor of a packed product": "MatMulNBits",
    "a step of a loop does not see the others, but each entry is a step": "ScanSlice",
    "copies of the row that an index names": "Gather ScatterND ScatterElements",
}
REFUSED = {
    "Split": "without an operand all parts must grow alike; the proof of the shapes sees to it",
    "Resize": "scales are floats, which the shapes do not follow",
    "Upsample": "scales are floats, which the shapes do not follow",
}
LOOSE = {"GatherElements": "the data may be larger than the indices"}


def told(found: list[Problem], *kinds: str) -> str:
    return "\n".join(str(p) for p in found if p.kind in kinds)


def own_rules():
    """Rules of this project; other tests load files of their own."""
    return [entry for entry in BUILTIN if entry[3].__module__.startswith("onnxgrow.rules")]


def test_every_operator_with_a_rule_is_tried():
    assert {op for _, op, _, _ in own_rules()} == {*OPERATORS, *RANDOM, *BODIES, *CLOSED}


def test_every_version_of_a_rule_is_tried():
    tried = {BUILTIN.find(e.domain, e.op, e.opset) for e in EXAMPLES}
    assert {function.__name__ for _, op, _, function in own_rules() if op not in {*RANDOM, *BODIES, *CLOSED}} == {f.__name__ for f in tried}


@pytest.mark.parametrize("op", OPERATORS)
def test_what_a_rule_says_is_so(op):
    """What it claims holds, what it ties must be tied, what holds is claimed, and what is claimed can be carried out. One test: trying is long."""
    found = check_rule(op, examples=[e for e in EXAMPLES if e.op == op])
    assert not told(found, "wrong")
    assert bool(told(found, "loose")) == (op in LOOSE)
    assert not told(found, "missing") or any(op in ops.split() for ops in CAREFUL.values())
    assert bool(told(found, "refused")) == (op in REFUSED)


# What fills become: the table of the design, by operator and name on the rule's line


def growth_of(op: str, inputs, name: str, even: bool, **attrs) -> Growth:
    e = example(op, *inputs, **attrs)
    s = tie(build(e), BUILTIN)
    part = s.nodes[0].names[name]
    return Growth(e, {}, s, BUILTIN, part, 2 * part.size if even else part.size + 1)


def claims(op: str, inputs, name: str, **attrs) -> set[str]:
    """`zero free -> old` and the like: fills of the inputs, and what is believed to follow for the output."""
    both = [growth_of(op, inputs, name, even, **attrs) for even in (False, True)]
    return {f"{' '.join(fills.values())} -> {then or 'old'}".strip() for g in both for fills, then in g.trials() if g.claim(fills, then)}


TABLE = [
    ("Tanh", [(4, 6)], "...0", {"zero -> zero", "copy -> copy"}),
    ("Sigmoid", [(4, 6)], "...0", {"copy -> copy"}),
    ("Neg", [(4, 6)], "...0", {"zero -> zero", "mean -> mean", "copy -> copy"}),
    ("Add", ((4, 6), (4, 6)), "...0", {"zero zero -> zero", "mean mean -> mean", "copy copy -> copy"}),
    ("Add", ((4, 6), (4, 1)), "...0", {"mean -> mean", "copy -> copy"}),
    ("MatMul", ((4, 6), (6, 8)), "n", {"zero -> zero", "mean -> mean", "copy -> copy"}),
]


@pytest.mark.parametrize(("op", "inputs", "name", "expected"), TABLE)
def test_fills_through_one_operator(op, inputs, name, expected):
    assert {c for c in claims(op, inputs, name) if not c.endswith("old")} == expected


KINDS = ("zero", "mean", "free", "copy")


def test_a_product_is_zero_where_either_side_is():
    found = claims("Mul", ((4, 6), (4, 6)), "...0")
    assert {c for c in found if c.endswith("> zero")} == {f"{a} {b} -> zero" for a in KINDS for b in KINDS if "zero" in (a, b)}
    assert "mean mean -> mean" not in found


def test_a_contraction_wants_zero_on_one_side_or_copies_against_shares():
    found = claims("MatMul", ((4, 6), (6, 8)), "k")
    either = {f"{a} {b} -> old" for a in (*KINDS, "share") for b in (*KINDS, "share") if "zero" in (a, b)}
    assert found - either == {"copy copy -> old", "copy share -> old", "share copy -> old"}
    assert {"zero free -> old", "free zero -> old", "mean zero -> old"} <= found


def test_norms_want_what_their_statistics_bear():
    layer, rms = claims("LayerNormalization", ((4, 6), (6,), (6,)), "c1"), claims("RMSNormalization", ((4, 6), (6,)), "c1", opset=23)
    assert {c.split()[0] for c in layer} == {"mean", "copy"} and {c.split()[0] for c in rms} == {"zero", "copy"}
    assert {"mean free zero -> zero", "copy copy copy -> copy"} <= layer and {"zero free -> zero", "copy copy -> copy"} <= rms
    assert not any(c.startswith(("mean", "zero")) and not c.split()[2] == "zero" for c in layer if c.endswith("> zero"))


def test_reductions_want_what_they_do_not_see():
    assert claims("ReduceMean", [(4, 6)], "a1", axes=[1]) == {"mean -> old", "copy -> old"}
    assert claims("ReduceSum", [(4, 6)], "a1", keepdims=1) == {"zero -> old"}
    assert claims("LogSoftmax", [(4, 6)], "a1", axis=1) == set()


def test_choices_want_what_is_lower_than_all():
    """The largest first: where low entries are to be chosen, or stand in between, nothing is claimed."""
    assert claims("Softmax", [(4, 6)], "a1", axis=1) == {"low -> old", "low -> zero"}
    assert claims("TopK", [(4, 6), np.array([3])], "a1", outputs=2) == {"low -> old"}
    assert claims("TopK", [(4, 6), np.array([3])], "a1", outputs=2, largest=0) == set()
    assert claims("OneHot", [Fed(np.ones((4, 6), np.int64)), np.array(5), np.array([0, 1])], "c") == {"-> old", "-> zero"}


# A rule that is wrong is caught, and so is one that claims too little

PLANTED = [
    ("Sigmoid", Rule("... -> ...", other="f(0)=0"), "wrong"),
    ("Relu", Rule("... -> ..."), "wrong"),
    ("Relu", Rule("... -> ...", other="refuse"), "missing"),
    ("Identity", Rule("... -> ...", other="f(0)=0"), "missing"),
    ("Mul", Rule("..., ... -> ...", other="add"), "wrong"),
    ("Add", Rule("..., ... -> ...", other="mul"), "wrong"),
    ("Add", Rule("..., ... -> ...", other="f(0)!=0"), "missing"),
    ("Div", Rule("..., ... -> ...", other="mul"), "wrong"),
    ("MatMul", Rule("... m k, ... k n -> ... m n", {"k": "keep"}), "wrong"),
    ("MatMul", Rule("... m k, ... k n -> ... m n", {"k": "contract"}), "wrong"),  # leading axes multiply
    ("LayerNormalization", Rule("b0 c, c, c -> b0 c", {"c": "rms norm"}, "f(0)!=0"), "wrong"),
    ("RMSNormalization", Rule("b0 b1 c, c -> b0 b1 c", {"c": "layer norm"}, "f(0)!=0"), "wrong"),
    ("Softmax", Rule("a b c -> a b c"), "wrong"),
    ("LogSoftmax", Rule("a b c -> a b c", {"c": "softmax"}, "f(0)!=0"), "wrong"),
    ("TopK", Rule("a b, _ -> a _, a _", {"b": "keep"}, "f(0)!=0"), "wrong"),
    ("ScatterElements", Rule("a b, i j, i j -> a b", dict.fromkeys("bij", "refuse") | {"a": "keep"}), "wrong"),
    ("ReduceMean", Rule("a b c -> a b", {"c": "sum"}), "wrong"),
    ("ReduceL1", Rule("a b c, _ -> a 1 c", {"b": "mean"}), "wrong"),
    ("Gather", Rule("a b, i j -> i j b", {"a": "ignore", "i": "f(0)!=0", "j": "f(0)!=0"}), "wrong"),  # rows in the middle
]
TIES = [
    (example("Transpose", (6, 6)), Rule("a b -> a b"), "refused"),
    (example("Concat", (4, 6), (4, 6), axis=1), Rule("a p, a p -> a p+p"), "loose"),
    (example("Concat", (4, 6), (4, 6), axis=1), Rule("a p, a q -> a q+p"), "wrong"),
    (example("Reshape", (4, 48), np.array([4, 6, 8])), Rule("a (c b), _ -> a b c", sizes={1: ("a", "b", "c")}), "wrong"),
    (example("Reshape", (4, 48), np.array([4, 6, 8])), Rule("a (b c), _ -> a b c"), "refused"),  # the operand would keep its sizes
    (example("Split", (4, 12), np.array([6, 6]), axis=1, outputs=2), Rule("a p+q, _ -> a q, a p", sizes={1: ("q", "p")}), "wrong"),
    (example("Slice", (4, 14), *np.array([[4], [10], [1]])), Rule("a b, _, _, _ -> a _"), "wrong"),  # where the cut is, is not said
    (example("Add", (4, 6), (4, 6)), Rule("a b, _ _ -> a b"), "refused"),
]


def only(op: str, rule: Rule) -> Registry:
    registry = Registry()
    registry.add(op, 1, lambda _: rule)
    return registry


@pytest.mark.parametrize(("op", "rule", "kind"), PLANTED, ids=lambda v: getattr(v, "other", v))
def test_a_planted_fill_is_caught(op, rule, kind):
    assert kind in {p.kind for p in check_rule(op, registry=only(op, rule))}


@pytest.mark.parametrize(("e", "rule", "kind"), TIES, ids=str)
def test_a_planted_tie_is_caught(e, rule, kind):
    assert kind in {p.kind for p in check_example(e, only(e.op, rule))}
    assert not told(list(check_example(e, BUILTIN)), "loose", "refused")


@pytest.mark.parametrize("op", "Log Sqrt Reciprocal Acos Asin Acosh Atanh".split())
def test_operators_for_copies_only_are_not_defined_everywhere(op):
    e = example(op, Fed(np.array([-2, 0, 2], np.float32)))
    assert not np.isfinite(runner(e.proto)(e.feeds)["y0"]).all()


# For people who write rules


def test_an_operator_of_another_domain_is_tried_alike():
    registry, tried = Registry(), [example("QuickGelu", (4, 6), domain="com.microsoft", alpha=1.702)]
    same_shape = lambda node, shapes, types: [(shapes[0], types[0])]  # noqa: E731
    registry.add("com.microsoft::QuickGelu", 1, lambda op: Rule("... -> ...", other="f(0)=0"), same_shape)
    assert check_rule("QuickGelu", "com.microsoft", tried, registry) == []


def test_an_operator_without_a_rule_is_refused_by_name():
    assert [p.what for p in check_rule("Relu", registry=Registry())] == ["no rule for the operator Relu"]


def test_without_an_example_there_is_nothing_to_try():
    with pytest.raises(UsageError, match="no example of the operator Nonesuch"):
        check_rule("Nonesuch")


def test_a_problem_says_what_where_and_why():
    (first, *_) = check_rule("Sigmoid", registry=only("Sigmoid", Rule("... -> ...", other="f(0)=0")))
    assert str(first) == "wrong: Sigmoid-17((4, 6))\n  ...1: f(0)=0: x0 zero -> zero is claimed and is not so (the new entry y0[4, 0] is 0.5, not 0)"


def test_a_norm_of_each_head_is_filled_with_the_mean_of_its_head(tmp_path):
    """QK-LayerNorm: the rules of Reshape and LayerNormalization together, in a whole model."""
    lines = "n = LayerNormalization x g b\n"
    for t, norm in (("q", "LayerNormalization q1 gq bq"), ("k", "LayerNormalization k1 gk bk"), ("v", "Identity v1")):
        lines += f"{t}0 = MatMul n w{t}\n{t}1 = Reshape {t}0 heads\n{t}2 = {norm}\n{t} = Transpose {t}2\n"
    lines += "s = MatMul q k\nz = Mul s half\np = Softmax z\nc0 = MatMul p v\nc1 = Transpose c0\nc = Reshape c1 flat\n"
    lines += "o = MatMul c wo\ny = Add x o"
    sizes = dict.fromkeys(("g", "b"), 8) | dict.fromkeys(("gq", "bq", "gk", "bk"), 4) | dict.fromkeys(("wq", "wk", "wv", "wo"), (8, 8))
    random = np.random.default_rng(0)
    constants = {n: random.normal(size=size).astype("f") for n, size in sizes.items()}
    constants |= {"heads": [0, 0, 2, 4], "flat": [0, 0, 8], "half": np.float32(0.5)}
    perms = {t: {"perm": [0, 2, 3, 1] if t == "k" else [0, 2, 1, 3]} for t in ("q", "k", "v", "c1")}
    model = model_of(lines, {"x": ["batch", "length", 8]}, constants, **perms)
    onnx.save(model, tmp_path / "qk.onnx")
    Model(tmp_path / "qk.onnx").plan(head_dim=6).write()


def test_the_table_of_operators_in_the_docs_is_not_stale():
    written = Path(__file__).parents[1] / "docs" / "operators.md"
    assert written.read_text() == markdown(), "run: python -m onnxgrow.operators > docs/operators.md"


def test_rules_stay_short_and_name_no_architecture():
    files = sorted((Path(__file__).parents[1] / "rules").glob("*.py"))
    text = {file.name: file.read_text() for file in files}
    assert sum(t.count("\n") for t in text.values()) < 1500
    names = "bert gpt llama vit swin bart t5 whisper qwen gemma phi falcon bloom mistral deberta".split()
    assert not [(name, file) for file, t in text.items() for name in names if re.search(rf"\b{name}\b", t, re.IGNORECASE)]
