"""The operators that have a rule: one-node examples of each, and the table in docs/operators.md, made from both.

    python -m onnxgrow.operators > docs/operators.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Fed:
    """An input that is no random float: fed when the model runs, not known before."""

    array: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """A model of one node. An input is a shape (random floats in `within`), `Fed`, an array (a constant) or None (absent).

    It can be given to `graph.build` like an opened file.
    """

    op: str
    inputs: tuple
    attrs: Mapping
    outputs: int = 1
    opset: int = 17
    domain: str = ""
    within: tuple[float, float] = (-2.0, 2.0)

    def __str__(self) -> str:
        inputs = [v.tolist() if isinstance(v, np.ndarray) else v.array.shape if isinstance(v, Fed) else v for v in self.inputs]
        return f"{self.domain}{'::' * bool(self.domain)}{self.op}({', '.join(map(str, inputs))}) {dict(self.attrs) or ''} opset {self.opset}"

    @cached_property
    def feeds(self) -> dict[str, np.ndarray]:
        random, out = np.random.default_rng([*self.op.encode()]), {}
        for slot, given in enumerate(self.inputs):
            if isinstance(given, tuple):
                out[f"x{slot}"] = random.uniform(*self.within, given).astype(np.float32)
            elif isinstance(given, Fed):
                out[f"x{slot}"] = given.array
        return out

    @cached_property
    def proto(self) -> onnx.ModelProto:
        import onnx_graphsurgeon as gs

        fed = {name: gs.Variable(name, a.dtype, a.shape) for name, a in self.feeds.items()}
        inputs = [fed.get(f"x{i}") or (gs.Variable.empty() if v is None else gs.Constant(f"c{i}", v)) for i, v in enumerate(self.inputs)]
        made = [gs.Variable(f"y{i}") for i in range(self.outputs)]
        node = gs.Node(self.op, "node", dict(self.attrs), inputs, made, domain=self.domain or None)
        domains = [helper.make_opsetid(self.domain, 1)] if self.domain else None
        graph = gs.Graph([node], list(fed.values()), made, opset=self.opset, import_domains=domains)
        return gs.export_onnx(graph, do_type_check=False, ir_version=10)

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(t for t in self.proto.graph.initializer if t.name == name))


def example(op: str, *inputs, outputs: int = 1, opset: int = 17, domain: str = "", within: tuple[float, float] = (-2.0, 2.0), **attrs) -> Example:
    return Example(op, inputs, attrs, outputs, opset, domain, within)


def _ints(*values) -> np.ndarray:
    return np.array(values, np.int64)


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _bools(*shape: int, seed: int = 0) -> Fed:
    return Fed(np.random.default_rng(seed).random(shape) < 0.5)


def _below(limit: int, *shape: int, seed: int = 0) -> Fed:
    """Indices 1 .. limit - 1, each row with the greatest among them."""
    random = np.random.default_rng(seed).integers(1, limit, shape)
    random[..., -1] = limit - 1
    return Fed(random)


KEEP_ZERO = "Relu LeakyRelu Elu Selu Celu Tanh Erf Sin Tan Atan Sinh Asinh Abs Sign Round Floor Ceil Softsign ThresholdedRelu Shrink".split()
MOVE_ZERO = "Sigmoid Exp Cos Cosh Softplus HardSigmoid".split()
SUMS = "ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceMean".split()
EXTREMES = "ReduceMax ReduceMin ReduceProd ReduceLogSum ReduceLogSumExp".split()
PLANE, BLOCK = (4, 6), (4, 6, 8)
BOXES = (Fed(np.random.default_rng(1).integers(1, 99, PLANE)), Fed(np.random.default_rng(2).integers(1, 99, PLANE)))
INDICES = Fed(np.array([[0, 3], [5, 1], [5, 2], [4, 0]]))

EXAMPLES: list[Example] = [
    # pointwise
    *(example(op, PLANE) for op in ["Identity", "Neg", "Dropout", *KEEP_ZERO, *MOVE_ZERO]),
    *(example(op, PLANE, opset=20) for op in ("Gelu", "Mish", "HardSwish")),
    example("Gelu", PLANE, opset=20, approximate="tanh"),
    example("Swish", PLANE, opset=24),
    *(example("Cast", PLANE, to=int(kind)) for kind in (TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL)),
    example("BitwiseNot", BOXES[0], opset=18),
    example("Not", _bools(*PLANE)),
    *(example(op, PLANE) for op in ("IsNaN", "IsInf")),
    *(example(op, PLANE, within=(0.1, 0.9)) for op in ("Log", "Sqrt", "Reciprocal", "Acos", "Asin", "Atanh")),
    example("Acosh", PLANE, within=(1.1, 3.0)),
    *(example(op, *shapes) for op in ("Add", "Sub", "Mul") for shapes in ((PLANE, PLANE), (BLOCK, (8,)), ((6, 1), (4, 1, 8)), (PLANE, ()))),
    *(example(op, PLANE, PLANE, PLANE) for op in ("Sum", "Mean")),
    example("PRelu", PLANE, PLANE), example("PRelu", BLOCK, (6, 1)),
    *(example("Div", *shapes, within=(0.5, 2.0)) for shapes in ((PLANE, PLANE), (BLOCK, (4, 6, 1)), ((4, 1), PLANE))),
    *(example("Pow", PLANE, _number(p)) for p in (2, 3)), example("Pow", PLANE, _number(0.5), within=(0.1, 2.0)), example("Pow", PLANE, (6,), within=(0.5, 2.0)),
    example("Clip", PLANE, _number(-1), _number(1)), example("Clip", PLANE, _number(0.5), None), example("Clip", PLANE, opset=6, min=-1.0, max=1.0),
    *(example(op, PLANE, shape) for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Max", "Min") for shape in (PLANE, (4, 1))),
    *(example(op, _bools(*PLANE), _bools(*PLANE, seed=1)) for op in ("And", "Or", "Xor")),
    *(example(op, *BOXES, opset=18) for op in ("BitwiseAnd", "BitwiseOr")), example("Mod", *BOXES),
    *(example("Where", _bools(*shape), a, b) for shape, a, b in ((PLANE, PLANE, PLANE), ((4, 1), PLANE, PLANE), ((4, 1), PLANE, ()), (PLANE, PLANE, ()), (PLANE, (), ()))),
    # linear
    *(example("MatMul", *shapes) for shapes in ((PLANE, (6, 8)), (BLOCK, (8, 10)), (BLOCK, (4, 8, 10)), ((2, 4, 6, 8), (4, 8, 10)), ((6,), (6, 8)), (PLANE, (6,)), ((6,), (6,)))),
    example("Gemm", PLANE, (6, 8), (8,), alpha=0.5, beta=2.0), example("Gemm", PLANE, (6, 8), (4, 1)), example("Gemm", PLANE, (6, 8)),
    example("Gemm", (6, 4), (8, 6), (4, 8), transA=1, transB=1), example("Gemm", PLANE, (6, 8), ()),
    example("Einsum", BLOCK, (8, 10), equation="bik,kj->bij"), example("Einsum", BLOCK, (4, 6), equation="bij,bi->b"),
    example("Einsum", (2, 4, 6, 8), (2, 10, 6, 8), equation="bqhd,bkhd->bhqk"), example("Einsum", BLOCK, equation="...ij->...ji"),
    example("Einsum", PLANE, PLANE, PLANE, equation="ij,ij,ij->i"), example("Einsum", (6, 6), equation="ii->i"),
    # norm
    example("LayerNormalization", BLOCK, (8,), (8,)), example("LayerNormalization", PLANE, (6,), axis=-1, epsilon=0.1),
    example("LayerNormalization", BLOCK, (6, 8), (6, 8), axis=1), example("LayerNormalization", PLANE, (6,), (6,), outputs=3),
    example("RMSNormalization", BLOCK, (8,), opset=23), example("RMSNormalization", BLOCK, (8,), opset=23, epsilon=0.1),
    example("SimplifiedLayerNormalization", BLOCK, (8,), axis=-1),
    *(example(op, BLOCK, opset=opset, axis=axis) for op in ("Softmax", "LogSoftmax", "Hardmax") for opset, axis in ((11, 2), (13, -1), (13, 1))),
    # layout
    example("Transpose", BLOCK, perm=[1, 2, 0]), example("Transpose", PLANE),
    *(example("Reshape", shape, _ints(*to)) for shape, to in (((4, 48), (4, 6, 8)), (BLOCK, (4, 48)), (BLOCK, (0, -1)), (BLOCK, (4, 6, 2, 4)), ((6, 4), (4, 6)), (BLOCK, (1, 24, 8)))),
    *(example("Flatten", BLOCK, axis=axis) for axis in (0, 1, 2)),
    example("Unsqueeze", PLANE, _ints(0, -1)), example("Squeeze", (1, 4, 1, 6), _ints(0)), example("Squeeze", (1, 4, 1, 6)),
    example("Unsqueeze", PLANE, opset=11, axes=[1]), example("Squeeze", (4, 1, 6), opset=11, axes=[1]),
    *(example("Expand", shape, _ints(*to)) for shape, to in (((4, 1), (4, 6)), ((1, 6), (4, 1)), ((6,), (4, 6)))),
    example("Concat", PLANE, (4, 8), axis=1), example("Concat", BLOCK, (4, 10, 8), (4, 4, 8), axis=-2),
    example("Split", (4, 14), _ints(6, 8), axis=1, outputs=2), example("Split", (4, 14), opset=11, axis=1, split=[6, 8], outputs=2),
    example("Split", (4, 12), opset=18, axis=1, num_outputs=2, outputs=2), example("Split", (4, 12), axis=-1, outputs=3),
    *(example("Slice", (4, 14), *map(_ints, cut)) for cut in ((4, 10, 1), (0, 6, 1), (-6, 2**63 - 1, -1), (6, -1, 1), (2, 12, 1, 2), (-1, -15, 1, -1))),
    example("Slice", (4, 14), opset=9, axes=[1], starts=[0], ends=[6]), example("Slice", (4, 14), _ints(0, 4), _ints(2, 10)),
    example("Tile", PLANE, _ints(1, 2)), example("Trilu", BLOCK, None, upper=0), example("Pad", PLANE, _ints(0, 1, 0, 1)), example("Pad", PLANE, opset=2, pads=[0, 1, 0, 1]),
    # reduce
    *(example(op, BLOCK, axes=[-1], keepdims=0) for op in SUMS[1:] + EXTREMES), example("ReduceSum", BLOCK, _ints(-1), keepdims=0),
    *(example(op, BLOCK, _ints(1), opset=18) for op in SUMS[1:] + EXTREMES), example("ReduceSum", BLOCK), example("ReduceMean", BLOCK, _ints(0, 2), opset=18),
    example("ReduceSum", BLOCK, noop_with_empty_axes=1),
    *(example(op, PLANE, axis=1, keepdims=keep) for op in ("ArgMax", "ArgMin") for keep in (0, 1)),
    example("CumSum", PLANE, np.array(1)), example("TopK", PLANE, _ints(5), outputs=2),
    # embedding
    *(example("Gather", shape, index, axis=axis) for shape, index, axis in (((6, 8), _below(6, 4, 10), 0), (BLOCK, _ints(1, 5), 1), (BLOCK, np.array(-1), 1), (BLOCK, _below(8, 4), -1))),
    example("GatherElements", (6, 8), _below(6, 4, 8), axis=0), example("GatherND", (6, 4, 8), INDICES), example("GatherND", (4, 6, 8), _below(6, 4, 1), batch_dims=1),
    example("ScatterND", (6, 4, 8), INDICES, (4, 8), opset=18), example("ScatterElements", (6, 8), _below(6, 4, 8), (4, 8), opset=18, axis=0),
    example("OneHot", _below(6, 4, 8), np.array(6), np.array([0, 1], np.float32)),
    # conv
    example("Conv", (2, 4, 8, 8), (6, 4, 3, 3), (6,)), example("Conv", (2, 4, 8, 8), (6, 4, 2, 2), strides=[2, 2]), example("Conv", (2, 4, 8), (6, 4, 3)),
    example("Conv", (2, 4, 8), (4, 1, 3), (4,), group=4), example("Conv", (2, 4, 8), (4, 1, 3), group=4), example("Conv", (2, 4, 8), (6, 2, 3), group=2),
    *(example(op, (2, 4, 8, 8), kernel_shape=[2, 2]) for op in ("MaxPool", "AveragePool")), *(example(op, (2, 4, 8)) for op in ("GlobalAveragePool", "GlobalMaxPool")),
    example("Resize", (2, 4, 6, 6), None, np.array([1, 1, 2, 2], np.float32)), example("Upsample", (2, 4, 6, 6), np.array([1, 1, 2, 2], np.float32), opset=9),
    # values
    example("Shape", PLANE), example("Size", PLANE), example("NonZero", PLANE), example("ConstantOfShape", _ints(4, 6), value=helper.make_tensor("v", 1, [1], [2.0])),
    example("Range", np.array(0), np.array(6), np.array(1)), example("EyeLike", PLANE),
]
UNTRIED = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}  # no two runs are alike
