"""The operators that have a rule: one-node examples of each, and the table in docs/operators.md, made from both.

    python -m onnxgrow.operators > docs/operators.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Fed:
    """An input that is no random float: `array` is fed when the model runs, and not known before."""

    array: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """A model of one node. It can be given to `graph.build` like an opened file.

    Attributes:
        op, domain, opset: the operator.
        inputs: each a shape (random floats in `within`), `Fed`, an array (a constant) or None (absent).
        attrs: attributes by name.
        outputs: how many, or which.
        reference: computes the operator where ONNX Runtime does not know it: a function of the arrays (None for absent ones) and the attributes
            by name, that returns an array or a tuple of arrays.
    """

    op: str
    inputs: tuple
    attrs: Mapping
    outputs: int | tuple[int, ...] = 1
    opset: int = 17
    domain: str = ""
    within: tuple[float, float] = (-2.0, 2.0)
    reference: Callable | None = None

    def __str__(self) -> str:
        inputs = [v.tolist() if isinstance(v, np.ndarray) else v.array.shape if isinstance(v, Fed) else v for v in self.inputs]
        attrs = "".join(f", {k}={v}" for k, v in self.attrs.items() if not isinstance(v, onnx.TensorProto))
        return f"{self.domain}{'::' * bool(self.domain)}{self.op}-{self.opset}({', '.join(map(str, inputs))}{attrs})"

    @cached_property
    def feeds(self) -> dict[str, np.ndarray]:
        """The inputs `x0`, `x1` ... that are fed, by name."""
        random, out = np.random.default_rng([*self.op.encode()]), {}
        for slot, given in enumerate(self.inputs):
            if isinstance(given, tuple):
                out[f"x{slot}"] = random.uniform(*self.within, given).astype(np.float32)
            elif isinstance(given, Fed):
                out[f"x{slot}"] = given.array
        return out

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The model; its outputs are called `y0`, `y1` ..."""
        import onnx_graphsurgeon as gs

        fed = {name: gs.Variable(name, a.dtype, a.shape) for name, a in self.feeds.items()}
        inputs = [fed.get(f"x{i}") or (gs.Variable.empty() if v is None else gs.Constant(f"c{i}", v)) for i, v in enumerate(self.inputs)]
        wanted = range(self.outputs) if isinstance(self.outputs, int) else self.outputs
        made = [gs.Variable(f"y{i}") if i in wanted else gs.Variable.empty() for i in range(max(wanted) + 1)]
        node = gs.Node(self.op, "node", dict(self.attrs), inputs, made, domain=self.domain or None)
        domains = [helper.make_opsetid(self.domain, 1)] if self.domain else None
        graph = gs.Graph([node], list(fed.values()), [made[i] for i in wanted], opset=self.opset, import_domains=domains)
        return gs.export_onnx(graph, do_type_check=False, ir_version=10)

    def array(self, name: str) -> np.ndarray:
        """A constant by its name, `c0`, `c1` ..."""
        return numpy_helper.to_array(next(t for t in self.proto.graph.initializer if t.name == name))


def example(op: str, *inputs, outputs: int | tuple[int, ...] = 1, opset: int = 17, domain: str = "", within: tuple[float, float] = (-2.0, 2.0),
    reference: Callable | None = None, **attrs) -> Example:
    """An example of an operator, given as `Name` or `domain::Name`; see `Example`."""
    named, _, op = op.rpartition("::")
    return Example(op, inputs, attrs, outputs, opset, domain or named, within, reference)


def _ints(*values) -> np.ndarray:
    return np.array(values, np.int64)


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _some(*values: float, of=np.float32, shape: tuple[int, ...] = (4, 6), seed: int = 0) -> Fed:
    """Values drawn from a few."""
    return Fed(np.random.default_rng(seed).choice(np.array(values, of), shape))


def _below(limit: int, *shape: int) -> Fed:
    """Indices 1 .. limit - 1, the greatest among them."""
    drawn = np.random.default_rng(0).integers(1, limit, shape)
    drawn[..., -1] = limit - 1
    return Fed(drawn)


def _every(ops: str, *inputs, **more) -> list[Example]:
    """The same inputs for many operators."""
    return [example(op, *inputs, **more) for op in ops.split()]


def _each(ops: str, *inputs: tuple, **more) -> list[Example]:
    """Many inputs for the same operators."""
    return [e for each in inputs for e in _every(ops, *each, **more)]


PLANE, BLOCK = (4, 6), (4, 6, 8)
SIGNS = _some(-1, 0, 1), _some(-1, 0, 1, seed=1)
FLAGS = _some(False, True, of=bool), _some(False, True, of=bool, seed=1)
COLUMN = _some(False, True, of=bool, shape=(4, 1))
WHOLE = _some(*range(1, 99), of=np.int64), _some(*range(1, 99), of=np.int64, seed=1)
ROWS = Fed(np.array([[0, 3], [5, 1], [5, 2], [4, 0]]))
TWICE = np.array([1, 1, 2, 2], np.float32)
FILLED = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
SMOOTH = "Relu LeakyRelu Elu Selu Celu Tanh Erf Sin Tan Atan Sinh Asinh Abs Sign Round Floor Ceil Softsign ThresholdedRelu Shrink"
COMPARE = "Equal Less Greater LessOrEqual GreaterOrEqual Max Min"
SUMS = "ReduceL1 ReduceL2 ReduceSumSquare ReduceMean ReduceMax ReduceMin ReduceProd"

POINTWISE = [
    *_every(f"Identity Neg Dropout {SMOOTH} Sigmoid Exp Cos Cosh Softplus", PLANE),
    *_every("Gelu Mish HardSwish", PLANE, opset=20),
    example("Gelu", PLANE, opset=20, approximate="tanh"),
    example("Swish", PLANE, opset=24),
    example("HardSigmoid", PLANE, within=(-5, 5)),
    example("Cast", PLANE, to=int(TensorProto.FLOAT16)),
    example("Cast", PLANE, to=int(TensorProto.INT64), within=(-9, 9)),
    example("Cast", SIGNS[0], to=int(TensorProto.BOOL)),
    example("BitwiseNot", WHOLE[0], opset=18),
    example("Not", FLAGS[0]),
    *_every("IsNaN IsInf", _some(np.nan, np.inf, 0, 1)),
    *_every("Log Sqrt Reciprocal Acos Asin Atanh", PLANE, within=(0.1, 0.9)),
    example("Acosh", PLANE, within=(1.1, 3)),
    *_each("Add Sub Mul", (PLANE, PLANE), (BLOCK, (8,)), ((6, 1), (4, 1, 8)), (PLANE, ())),
    *_every("Sum Mean", PLANE, PLANE, PLANE),
    *_each("PRelu", (PLANE, PLANE), (BLOCK, (6, 1))),
    *_each("Div", (PLANE, PLANE), (BLOCK, (4, 6, 1)), ((4, 1), PLANE), within=(0.5, 2)),
    *_each("Pow", (PLANE, _number(2)), (PLANE, _number(3))),
    *_each("Pow", (PLANE, _number(0.5)), (PLANE, (6,)), within=(0.5, 2)),
    *_each("Clip", (PLANE, _number(-1), _number(1)), (PLANE, _number(0.5), None)),
    example("Clip", PLANE, opset=6, min=-1.0, max=1.0),
    *_each(COMPARE, SIGNS, (SIGNS[0], (4, 1))),
    *_each("Max Min", (PLANE, _number(2)), (PLANE, _number(-2))),
    *_every("And Or Xor", *FLAGS),
    *_every("BitwiseAnd BitwiseOr", *WHOLE, opset=18),
    example("Mod", *WHOLE),
    *_each("Where", (FLAGS[0], PLANE, PLANE), (FLAGS[0], PLANE, ()), (FLAGS[0], (), ()), (COLUMN, PLANE, PLANE), (COLUMN, PLANE, ())),
]
LINEAR = [
    *_each("MatMul", (PLANE, (6, 8)), (BLOCK, (8, 10)), (BLOCK, (4, 8, 10)), ((2, 4, 6, 8), (4, 8, 10))),
    *_each("MatMul", ((6,), (6, 8)), (PLANE, (6,)), ((6,), (6,))),
    example("Gemm", PLANE, (6, 8), (8,), alpha=0.5, beta=2.0),
    *_each("Gemm", (PLANE, (6, 8), (4, 1)), (PLANE, (6, 8), ()), (PLANE, (6, 8))),
    example("Gemm", (6, 4), (8, 6), (4, 8), transA=1, transB=1),
    example("Einsum", BLOCK, (8, 10), equation="bik,kj->bij"),
    example("Einsum", BLOCK, (4, 6), equation="bij,bi->b"),
    example("Einsum", BLOCK, equation="...ij->...ji"),
    example("Einsum", (2, 4, 6, 8), (2, 10, 6, 8), equation="bqhd,bkhd->bhqk"),
    example("Einsum", PLANE, PLANE, PLANE, equation="ij,ij,ij->i"),
    example("Einsum", (6, 6), equation="ii->i"),
]
NORM = [
    example("LayerNormalization", BLOCK, (8,), (8,)),
    example("LayerNormalization", PLANE, (6,), axis=-1, epsilon=0.1),
    example("LayerNormalization", BLOCK, (6, 8), (6, 8), axis=1),
    example("LayerNormalization", PLANE, (6,), (6,), outputs=3),
    example("BatchNormalization", (2, 4, 3), *[(4,)] * 4, within=(0.5, 2)),
    example("InstanceNormalization", (2, 4, 3), (4,), (4,)),
    example("GroupNormalization", (2, 6, 5), (6,), (6,), opset=21, num_groups=3),
    example("GroupNormalization", (2, 4, 5), (4,), (4,), opset=21, num_groups=4, epsilon=0.1),
    example("GroupNormalization", (2, 6, 5), (3,), (3,), opset=18, num_groups=3),
    example("RMSNormalization", BLOCK, (8,), opset=23),
    example("RMSNormalization", BLOCK, (8,), opset=23, epsilon=0.1),
    example("SimplifiedLayerNormalization", BLOCK, (8,), axis=-1, epsilon=0.1),
    *(e for opset, axis in ((11, 2), (13, -1), (13, 1)) for e in _every("Softmax LogSoftmax Hardmax", BLOCK, opset=opset, axis=axis)),
]
LAYOUT = [
    example("Transpose", BLOCK, perm=[1, 2, 0]),
    example("Transpose", PLANE),
    *_each("Reshape", ((4, 48), _ints(4, 6, 8)), (BLOCK, _ints(4, 48)), (BLOCK, _ints(0, -1)), (BLOCK, _ints(4, 6, 2, 4))),
    *_each("Reshape", ((6, 4), _ints(4, 6)), (BLOCK, _ints(1, 24, 8))),
    *(example("Flatten", BLOCK, axis=axis) for axis in (0, 1, 2)),
    example("Unsqueeze", PLANE, _ints(0, -1)),
    example("Unsqueeze", PLANE, opset=11, axes=[1]),
    *_each("Squeeze", ((1, 4, 1, 6), _ints(0)), ((1, 4, 1, 6),)),
    example("Squeeze", (4, 1, 6), opset=11, axes=[1]),
    *_each("Expand", ((4, 1), _ints(4, 6)), ((1, 6), _ints(4, 1)), ((6,), _ints(4, 6))),
    example("Concat", PLANE, (4, 8), axis=1),
    example("Concat", BLOCK, (4, 10, 8), (4, 4, 8), axis=-2),
    example("Split", (4, 14), _ints(6, 8), axis=1, outputs=2),
    example("Split", (4, 14), opset=11, axis=1, split=[6, 8], outputs=2),
    example("Split", (4, 12), opset=18, axis=1, num_outputs=2, outputs=2),
    example("Split", (4, 12), axis=-1, outputs=3),
    *(example("Slice", (4, 14), *map(_ints, cut)) for cut in ((4, 10, 1), (0, 6, 1), (-6, 2**63 - 1, -1), (6, -1, 1))),
    *(example("Slice", (4, 14), *map(_ints, cut)) for cut in ((2, 12, 1, 2), (-1, -15, 1, -1), (1, 14, 1, 2), (0, 2**63 - 1, -1, 2))),
    example("Slice", (4, 14), opset=9, axes=[1], starts=[0], ends=[6]),
    example("Slice", (4, 14), _ints(0, 4), _ints(2, 10)),
    *_each("Tile", (PLANE, _ints(1, 2)), ((4, 1), _ints(1, 6))),
    example("Trilu", BLOCK, None, upper=0),
    example("Pad", PLANE, _ints(0, 1, 0, 1)),
    example("Pad", PLANE, opset=2, pads=[0, 1, 0, 1]),
]
REDUCE = [
    *_every(SUMS, BLOCK, axes=[-1], keepdims=0),
    *_every(f"ReduceSum {SUMS}", BLOCK, _ints(1), opset=18),
    *_every("ReduceLogSum ReduceLogSumExp", BLOCK, _ints(1), opset=18, within=(0.1, 2)),
    example("ReduceSum", BLOCK),
    example("ReduceSum", BLOCK, noop_with_empty_axes=1),
    example("ReduceMean", BLOCK, _ints(0, 2), opset=18),
    *(e for keep in (0, 1) for e in _every("ArgMax ArgMin", PLANE, axis=1, keepdims=keep)),
    example("CumSum", PLANE, np.array(1)),
    example("TopK", PLANE, _ints(5), outputs=2),
]
EMBEDDING = [
    example("Gather", (6, 8), _below(6, 4, 10)),
    example("Gather", BLOCK, _ints(1, 5), axis=1),
    example("Gather", BLOCK, np.array(-1), axis=1),
    example("Gather", BLOCK, _below(8, 4), axis=-1),
    example("GatherElements", (6, 8), _below(6, 4, 8), axis=0),
    example("GatherND", (6, 4, 8), ROWS),
    example("GatherND", BLOCK, _below(6, 4, 1), batch_dims=1),
    example("ScatterND", (6, 4, 8), ROWS, (4, 8), opset=18),
    example("ScatterElements", (6, 8), _below(6, 4, 8), (4, 8), opset=18, axis=0),
    example("TensorScatter", (2, 4, 8, 6), (2, 4, 3, 6), _below(5, 2), opset=24),
    example("TensorScatter", (2, 8, 6), (2, 3, 6), _below(5, 2), opset=24, axis=1, mode="circular"),
    example("OneHot", _below(6, 4, 8), np.array(6), _ints(0, 1)),
]
CONV = [
    example("Conv", (2, 4, 8, 8), (6, 4, 3, 3), (6,)),
    example("Conv", (2, 4, 8, 8), (6, 4, 2, 2), strides=[2, 2]),
    example("Conv", (2, 4, 8), (6, 4, 3), auto_pad="SAME_UPPER"),
    *_each("Conv", ((2, 4, 8), (4, 1, 3), (4,)), ((2, 4, 8), (4, 1, 3)), group=4),
    *_each("Conv", ((2, 4, 8), (6, 2, 3)), ((2, 4, 8), (6, 2, 3), (6,)), group=2),
    *_every("MaxPool AveragePool", (2, 4, 8, 8), kernel_shape=[2, 2]),
    *_every("GlobalAveragePool GlobalMaxPool", (2, 4, 8)),
    *_each("Resize", ((2, 4, 6, 6), None, None, _ints(2, 4, 12, 12)), ((2, 4, 6, 6), None, TWICE)),
    example("Upsample", (2, 4, 6, 6), TWICE, opset=9),
]
VALUES = [
    *_every("Shape Size NonZero EyeLike", PLANE),
    example("ConstantOfShape", _ints(4, 6), value=FILLED),
    example("ConstantOfShape", _ints(4, 6)),
    example("Range", np.array(0), np.array(6), np.array(1)),
]
SMALL = {"of": np.int8, "shape": (4, 6)}
QUANTIZED = [
    example("DequantizeLinear", _some(-5, 0, 7, **SMALL), _number(0.1), np.array(0, np.int8)),
    example("DequantizeLinear", _some(2, 3, 7, **SMALL), _number(0.1), np.array(3, np.int8)),
    example("DequantizeLinear", _some(-5, 1, 7, **SMALL), (6,), within=(0.1, 0.9), axis=1),
    example("DequantizeLinear", _some(-5, 1, 7, **SMALL), (4,), within=(0.1, 0.9), axis=0),
    example("DequantizeLinear", _some(-5, 1, 7, **SMALL), (2, 6), within=(0.1, 0.9), axis=0, block_size=2, opset=21),
    example("QuantizeLinear", PLANE, _number(0.1), np.array(0, np.int8)),
    example("DynamicQuantizeLinear", PLANE, outputs=3, within=(0.1, 2.0)),
    example("MatMulInteger", _some(2, 4, 10, of=np.uint8), _some(-5, 1, 7, of=np.int8, shape=(6, 8))),
    example("MatMulNBits", (4, 32), _some(*range(256), of=np.uint8, shape=(8, 2, 8)), (8, 2), domain="com.microsoft", K=32, N=8, bits=4, block_size=16),
    example("MatMulNBits", (4, 32), _some(*range(256), of=np.uint8, shape=(8, 2, 16)), (16,), domain="com.microsoft", K=32, N=8, bits=8, block_size=16),
]
LOOPS = [  # of operators of our own, which stand around the body of a Loop or Scan
    example("onnxgrow::Carried", PLANE, _ints(0), reference=lambda initial, steps: initial),
    example("onnxgrow::ScanSlice", BLOCK, axis=1, reference=lambda x, axis: x.take(1, axis)),
    example("onnxgrow::LoopEnd", _ints(0), _ints(0, 0, 0, 0), None, None, None, PLANE, PLANE, (2, 3), outputs=2, counters=1, carried=1, axes=[1],
            reference=lambda passed, counter, trip, going, goes_on, before, after, y, axes, **_: ((before + after) / 2, np.stack([y] * len(counter), axes[0]))),
]
EXAMPLES: list[Example] = [*POINTWISE, *LINEAR, *NORM, *LAYOUT, *REDUCE, *EMBEDDING, *CONV, *VALUES, *QUANTIZED, *LOOPS]
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")  # nothing to try: no two runs are alike

HEAD = """# Operators

Made by `python -m onnxgrow.operators > docs/operators.md` from the rules in `rules/` and the examples in `onnxgrow/operators.py`, on which
`tests/test_rules.py` tries every rule in ONNX Runtime. The line shows how the rule ties the axes of the first example (the language:
`onnxgrow/lines.py`); other attributes and ranks have lines of their own. An operator that is not in this table is refused by name.

| new entries along an axis | meaning |
|---|---|"""


UNFOLDED_HEAD = """## Fused operators

They are read as the plain operators that they stand for, and folded back when the file is written ([fused](fused.md)). The nodes are those of
the first example in `onnxgrow/fused.py`; `tests/test_unfold.py` runs both forms of every example in ONNX Runtime.

| operator | plain nodes | why |
|---|---|---|"""


def markdown() -> str:
    """The whole of docs/operators.md."""
    from .rulebook import TREATMENTS, load_builtin

    files: dict[str, list] = {}
    for entry in load_builtin():
        package, _, name = entry[3].__module__.rpartition(".")
        if package == "onnxgrow.rules":
            files.setdefault(name, []).append(entry)
    words = [f"| {kind} | {meaning} |" for kind, meaning in TREATMENTS.items()]
    return "\n".join([HEAD, *words, *(line for name in sorted(files) for line in _section(name, files[name])), *_unfolded()]) + "\n"


def _unfolded() -> list[str]:
    """Operators that are read as plain ones: which, in their first example."""
    from .fused import FUSED
    from .graph import build
    from .rulebook import REGISTRY
    from .shapes import first_walk
    from .unfold import body_at

    rows = {}
    for e in FUSED:
        key = f"{e.domain}{'::' * bool(e.domain)}{e.op}"
        function = REGISTRY.unfolding(e.domain, e.op)
        if key not in rows and function.__module__.startswith("onnxgrow.rules."):
            graph = build(e)
            parts = body_at(graph.nodes[0], first_walk(graph, REGISTRY)[0], REGISTRY).nodes
            ops = " ".join(n.op_type for n in parts if n.op_type not in ("Constant", "Identity"))
            rows[key] = f"| {key} | {ops} | {(function.__doc__ or '').strip().partition(chr(10))[0]} |"
    return ["", UNFOLDED_HEAD, *(rows[key] for key in sorted(rows))]


def _section(file: str, entries: list) -> list[str]:
    """One rule file: operators that have all in common share a row."""
    from importlib import import_module

    rows: dict[tuple[str, str, str], list[str]] = {}
    for domain, op, since, function in entries:
        line, fills = _spelled(domain, op, function)
        why = (function.__doc__ or "").strip().partition("\n")[0]
        rows.setdefault((line, fills, why),
            []).append(f"{domain}{'::' * bool(domain)}{op}" + (f" (from opset {since})" if since > 1 else ""))
    about = import_module(f"onnxgrow.rules.{file}").__doc__.splitlines()[0]
    table = [f"| {', '.join(ops)} | {line} | {fills} | {why} |" for (line, fills, why), ops in rows.items()]
    return ["", f"## rules/{file}.py", "", about, "", "| operator | line | new entries | why |", "|---|---|---|---|", *table]


def _spelled(domain: str, op: str, function) -> tuple[str, str]:
    """The line of the first example that can be traced, and its treatments."""
    from .graph import build
    from .rulebook import REGISTRY
    from .structure import tie

    for e in EXAMPLES:
        if (e.domain, e.op) == (domain, op) and REGISTRY.find(domain, op, e.opset) is function:
            for ties in tie(build(e), REGISTRY).nodes.values():
                fills = [f"`{name}` {kind}" for name, kind in ties.rule.fills.items()]
                return f"`{ties.rule.line}`".replace(" ,", ",").replace("  ",
                    " "), ", ".join([*fills, f"{'others' if fills else 'all'} {ties.rule.other}"])
    return "–", "–"


if __name__ == "__main__":
    print(markdown(), end="")
