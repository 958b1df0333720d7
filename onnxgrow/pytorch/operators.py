"""PyTorch forms of the ONNX operators that transformers are made of (semantics: https://onnx.ai/onnx/operators/).

Each function takes a `Build` of one node, and returns nothing: it fills in form, level and word. Operands that are one known number
stand in the code as that number; sizes ask the tensors at hand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ..errors import GraphError
from ..fold import slice_arguments
from .build import Build, number
from .sizes import is_constant
from .steps import AND, ATOM, COMPARE, OR, PLUS, TIMES, UNARY

OPERATORS: dict[str, Callable[[Build], None]] = {}
DTYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64",
          TensorProto.INT64: "int64", TensorProto.INT32: "int32", TensorProto.INT16: "int16", TensorProto.INT8: "int8",
          TensorProto.UINT8: "uint8", TensorProto.BOOL: "bool"}


def operator(*names: str):
    def enter(function):
        OPERATORS.update(dict.fromkeys(names, function))
        return function
    return enter


# --- one number at a time ---------------------------------------------------------------------------------------------

OPERATOR_RESHAPES = ("Reshape", "Flatten")
BINARY = {"Add": ("+", PLUS), "Sub": ("-", PLUS), "Mul": ("*", TIMES), "Div": ("/", TIMES), "And": ("&", AND), "Or": ("|", OR), "Xor": ("^", OR),
          "BitwiseAnd": ("&", AND), "BitwiseOr": ("|", OR), "Equal": ("==", COMPARE), "Less": ("<", COMPARE), "Greater": (">", COMPARE),
          "LessOrEqual": ("<=", COMPARE), "GreaterOrEqual": (">=", COMPARE)}  # fmt: skip
METHODS = {"Abs": "abs", "Ceil": "ceil", "Cos": "cos", "Erf": "erf", "Exp": "exp", "Floor": "floor", "IsNaN": "isnan", "Log": "log", "Reciprocal": "reciprocal",
           "Round": "round", "Sigmoid": "sigmoid", "Sin": "sin", "Sqrt": "sqrt", "Tanh": "tanh", "Sign": "sign", "IsInf": "isinf"}  # fmt: skip
FUNCTIONS = {"Relu": "F.relu", "Softplus": "F.softplus", "HardSwish": "F.hardswish", "Mish": "F.mish", "Softsign": "F.softsign"}
WORDS = {"Cos": "cos", "Sin": "sin", "Softmax": "weights", "And": "mask", "Or": "mask", "Not": "mask", "Range": "positions", "Sigmoid": "gate"}


@operator(*BINARY)
def _binary(b: Build) -> None:
    sign, level = BINARY[b.node.op]
    if b.node.op == "And" and (b.is_true(0) or b.is_true(1)):
        expanded(b, 1 if b.is_true(0) else 0)
        return
    if b.node.op == "Div" and not b.is_float(0):
        b.form = f'torch.div({b.use(0)}, {b.use(1)}, rounding_mode="trunc")'
        return
    b.form, b.level = f"{b.use(0, level + (level == COMPARE))} {sign} {b.use(1, level + 1)}", level


@operator(*METHODS)
def _method(b: Build) -> None:
    b.form = f"{b.use(0, ATOM)}.{METHODS[b.node.op]}()"


@operator(*FUNCTIONS)
def _function(b: Build) -> None:
    b.form = f"{FUNCTIONS[b.node.op]}({b.use(0)})"


@operator("Neg")
def _neg(b: Build) -> None:
    b.form, b.level = f"-{b.use(0, UNARY)}", UNARY


@operator("Not")
def _not(b: Build) -> None:
    b.form, b.level = f"~{b.use(0, UNARY)}", UNARY


@operator("Pow")
def _pow(b: Build) -> None:
    b.form, b.level = f"{b.use(0, ATOM)} ** {b.use(1, UNARY)}", UNARY


@operator("Mod")
def _mod(b: Build) -> None:
    b.form = f"torch.{'fmod' if b.attrs.get('fmod') else 'remainder'}({b.use(0)}, {b.use(1)})"


@operator("Max", "Min")
def _extreme(b: Build) -> None:
    name, limit = ("maximum", "min") if b.node.op == "Max" else ("minimum", "max")
    if len(b.node.inputs) == 1:
        b.same(0)
    elif len(b.node.inputs) == 2 and b.is_number(1):
        b.form = f"{b.use(0, ATOM)}.clamp({limit}={b.use(1)})"
    elif len(b.node.inputs) == 2 and b.is_number(0):
        b.form = f"{b.use(1, ATOM)}.clamp({limit}={b.use(0)})"
    elif len(b.node.inputs) == 2 and any(b.fill(i) is not None and b.shape(1 - i) == b.out() for i in (0, 1)):
        slot = 0 if b.fill(0) is not None else 1
        b.form = f"{b.use(1 - slot, ATOM)}.clamp({limit}={b.fill(slot)})"
    else:
        b.form = b.use(0)
        for slot in range(1, len(b.node.inputs)):
            b.form = f"torch.{name}({b.form}, {b.use(slot)})"


@operator("Clip")
def _clip(b: Build) -> None:
    low, high = (b.use(i) if b.has(i) else b.attrs.get(key) for i, key in ((1, "min"), (2, "max")))
    limits = [f"{key}={text}" for key, text in (("min", low), ("max", high)) if text is not None]
    b.form = f"{b.use(0, ATOM)}.clamp({', '.join(limits)})"


@operator("Where")
def _where(b: Build) -> None:
    if b.is_number(1) and not b.is_number(2) and b.shape(2) == b.out():
        b.form = f"{b.use(2, ATOM)}.masked_fill({b.use(0)}, {b.use(1)})"
    else:
        b.form, b.word = f"torch.where({b.use(0)}, {b.use(1)}, {b.use(2)})", "mask"


@operator("Cast")
def _cast(b: Build) -> None:
    if b.type(0) == b.attrs["to"]:
        b.same(0)
        return
    short = {TensorProto.BOOL: "bool()", TensorProto.INT64: "long()"}.get(b.attrs["to"])
    b.form = f"{b.use(0, ATOM)}." + (short or f"to(torch.{dtype(b, b.attrs['to'])})")


@operator("CastLike")
def _cast_like(b: Build) -> None:
    b.form = f"{b.use(0, ATOM)}.to({b.use(1, ATOM)}.dtype)"


@operator("Gelu")
def _gelu(b: Build) -> None:
    more = ', approximate="tanh"' if b.attrs.get("approximate") == "tanh" else ""
    b.form = f"F.gelu({b.use(0)}{more})"


@operator("Elu", "LeakyRelu", "Swish", "HardSigmoid")
def _with_alpha(b: Build) -> None:
    name, default = {"Elu": ("F.elu", 1.0), "LeakyRelu": ("F.leaky_relu", 0.01), "Swish": ("F.silu", 1.0), "HardSigmoid": ("F.hardsigmoid", None)}[b.node.op]
    alpha = b.attrs.get("alpha", default)
    if b.node.op in ("Swish", "HardSigmoid") and alpha not in (1.0, None):
        b.refuse(f"{b.node.op} with alpha {alpha} has no PyTorch form")
    more = f", {alpha!r}" if b.node.op in ("Elu", "LeakyRelu") and alpha != default else ""
    b.form = f"{name}({b.use(0)}{more})"


@operator("Dropout")
def _dropout(b: Build) -> None:
    b.form = f"F.dropout({b.use(0)}, self.dropout, self.training)"


@operator("MaxPool", "AveragePool")
def _pool(b: Build) -> None:
    rank, a = len(b.shape(0)) - 2, b.attrs
    pads = a.get("pads", [0] * 2 * rank)
    if a.get("auto_pad", "NOTSET") != "NOTSET" or pads[:rank] != pads[rank:] or a.get("storage_order"):
        b.refuse(f"{b.node.op} with uneven or automatic padding has no PyTorch form")
    name = "max_pool" if b.node.op == "MaxPool" else "avg_pool"
    more = [f"stride={tuple(a.get('strides', [1] * rank))}"] + [f"padding={tuple(pads[:rank])}"] * any(pads) + ["ceil_mode=True"] * bool(a.get("ceil_mode"))
    if b.node.op == "AveragePool":
        more += ["count_include_pad=False"] * (any(pads) and not a.get("count_include_pad", 0))
    elif set(a.get("dilations", [1])) != {1}:
        more.append(f"dilation={tuple(a['dilations'])}")
    b.form = f"F.{name}{rank}d({b.use(0)}, {tuple(a['kernel_shape'])}, {', '.join(more)})"


@operator("Identity")
def _identity(b: Build) -> None:
    b.same(0)


# --- layout -----------------------------------------------------------------------------------------------------------


@operator("Reshape", "Flatten")
def _reshape(b: Build) -> None:
    source = b.behind(b.node.inputs[0], OPERATOR_RESHAPES)  # only the last of several reshapes counts
    old, new = b.sizes.shape(source), b.out()
    if old == new:
        b.alias = source
        return
    head = next((i for i, (p, q) in enumerate(zip(old, new)) if p != q), min(len(old), len(new)))
    tail = next((i for i, (p, q) in enumerate(zip(old[head:][::-1], new[head:][::-1])) if p != q), min(len(old), len(new)) - head)
    before, after = old[head : len(old) - tail], new[head : len(new) - tail]
    x = b.tensor(source, ATOM)
    if len(after) == 1 and len(before) > 1:
        ends = (head, -1) if not tail else (head, head + len(before) - 1)
        b.form = f"{x}.flatten({', '.join(str(e) for e in ends)})" if ends[1] != -1 else f"{x}.flatten({head})"
    elif len(before) == 1 and len(after) > 1:
        b.form = f"{x}.unflatten({head if tail else -1}, ({_targets(b, head, len(after))}))"
    elif not before and all(is_one(n) for n in after):
        b.form = x + "".join(f".unsqueeze({head + i})" for i in range(len(after)))
    elif not after and all(is_one(n) for n in before):
        b.form = x + f".squeeze({head})" * len(before)
    else:
        b.form = f"{x}.reshape({_targets(b, 0, len(new))})"


def _targets(b: Build, first: int, count: int) -> str:
    """Sizes of some axes of the result; one that varies is left to PyTorch."""
    sizes, free = b.out()[first : first + count], None
    moving = [i for i, n in enumerate(sizes) if not is_constant(n)]
    if moving:
        free = max(moving, key=lambda i: (b.sizes.name(sizes[i]) is None, "*" in (b.sizes.name(sizes[i]) or "")))
    return ", ".join("-1" if i == free else b.out_size(first + i) for i in range(count))


def is_one(n) -> bool:
    return set(n) == {1}


@operator("Unsqueeze")
def _unsqueeze(b: Build) -> None:
    rank = len(b.out())
    axes = sorted(a % rank for a in b.ints(1, "axes"))
    b.form = b.use(0, ATOM) + "".join(f".unsqueeze({a if a < rank - 1 else -1})" for a in axes)


@operator("Squeeze")
def _squeeze(b: Build) -> None:
    axes = b.ints(1, "axes")
    axes = [i for i, n in enumerate(b.shape(0)) if is_one(n)] if axes is None else [a % len(b.shape(0)) for a in axes]
    b.form = b.use(0, ATOM) + "".join(f".squeeze({a})" for a in sorted(axes, reverse=True))


@operator("Transpose")
def _transpose(b: Build) -> None:
    rank = len(b.shape(0))
    b.form = b.use(0, ATOM) + permuted(b.attrs.get("perm") or list(range(rank))[::-1])


def permuted(perm: list[int]) -> str:
    """The method call for a permutation of axes: transpose where two axes change places."""
    moved = [i for i, p in enumerate(perm) if i != p]
    if not moved:
        return ""
    if len(moved) == 2:
        return f".transpose({moved[0]}, {moved[1]})"
    return f".permute({', '.join(map(str, perm))})"


@operator("Expand")
def _expand(b: Build) -> None:
    expanded(b, 0)


def expanded(b: Build, slot: int) -> None:
    """An input in the shape of the output, which it broadcasts to."""
    old, new = b.shape(slot), b.out()
    if old == new:
        b.same(slot)
        return
    if b.is_number(slot):
        sizes = ", ".join(b.out_size(i) for i in range(len(new))) + "," * (len(new) == 1)
        b.form = f"torch.full(({sizes}), {b.use(slot)}, dtype=torch.{dtype(b, b.type(slot))}, device={{device}})"
        return
    shift = len(new) - len(old)
    kept = ["-1" if i >= shift and old[i - shift] == n else b.out_size(i) for i, n in enumerate(new)]
    b.form = f"{b.use(slot, ATOM)}.expand({', '.join(kept)})"


@operator("Tile")
def _tile(b: Build) -> None:
    b.form = f"{b.use(0, ATOM)}.repeat({', '.join(b.entries(1))})"


@operator("Concat")
def _concat(b: Build) -> None:
    if len(b.node.inputs) == 1:
        b.same(0)
        return
    axis = b.attrs["axis"] % len(b.out())
    axis = -1 if axis == len(b.out()) - 1 else axis
    b.form = f"torch.cat(({', '.join(b.use(i) for i in range(len(b.node.inputs)))}), {axis})"


@operator("Split")
def _split(b: Build) -> None:
    axis = b.attrs.get("axis", 0) % len(b.shape(0))
    parts = [b.sizes.shape(o)[axis] for o in b.node.outputs]
    axis = -1 if axis == len(b.shape(0)) - 1 else axis
    if len(set(parts)) == 1:
        b.form = f"{b.use(0, ATOM)}.chunk({len(parts)}, {axis})"
    else:
        texts = [b.size(n, b.dim_of(o, axis)) for o, n in zip(b.node.outputs, parts)]
        b.form = f"{b.use(0, ATOM)}.split(({', '.join(texts)}), {axis})"


@operator("Slice")
def _slice(b: Build) -> None:
    rank = len(b.shape(0))
    if b.shape(0) == b.out() and not any(s < 0 for s in b.ints(4, "steps") or []):
        b.same(0)
        return
    index = [":"] * rank
    first = [slice_arguments(b.node, [w.value(b.node, i) if i < len(b.node.inputs) and b.node.inputs[i] else None for i in range(5)], rank)
             for w in b.sizes.walks]
    for bounds in zip(*first):
        axis, step = bounds[0][0], bounds[0][3]
        length = b.shape(0)[axis]
        start, end = tuple(x[1] for x in bounds), tuple(x[2] for x in bounds)
        if step < 0:
            if not (is_one(b.shape(0)[axis]) or step == -1 and is_constant(start) and start[0] in (-1,)):
                b.refuse("a Slice with a negative step has no PyTorch form")
            b.flips.append(axis)
            continue
        low = "" if all(x in (0,) or x <= -n for x, n in zip(start, length)) else b.bound(start, axis)
        high = "" if all(x >= n for x, n in zip(end, length)) else b.bound(end, axis)
        index[axis] = f"{low}:{high}" + (f":{step}" if step != 1 else "")
    text = b.use(0, ATOM)
    if any(i != ":" for i in index):
        while len(index) > 1 and index[-1] == ":":
            index.pop()
        lead = next(i for i, x in enumerate(index) if x != ":")
        text += f"[{', '.join(['...', *index[lead:]] if lead > 1 and len(index) == rank else index)}]"
    b.form = text + (f".flip({', '.join(map(str, b.flips))})" if b.flips else "")


@operator("Gather")
def _gather(b: Build) -> None:
    axis, rank = b.attrs.get("axis", 0) % len(b.shape(0)), len(b.shape(0))
    if b.is_number(1):
        index = "..., " if axis == rank - 1 > 1 else ":, " * axis
        tail = f"[{index}{b.use(1)}]"
        b.form = b.use(0, ATOM) + tail + (f".unsqueeze({axis})" * len(b.shape(1)))
    elif rank == 1 or axis == 0:
        b.form = f"{b.use(0, ATOM)}[{b.use(1)}]"
    elif len(b.shape(1)) == 1:
        b.form = f"{b.use(0, ATOM)}.index_select({axis}, {b.use(1)})"
    else:
        b.form = f"{b.use(0, ATOM)}[{':, ' * axis}{b.use(1)}]"


@operator("GatherElements")
def _gather_elements(b: Build) -> None:
    b.form = f"{b.use(0, ATOM)}.gather({b.attrs.get('axis', 0)}, {b.use(1)})"


@operator("GatherND")
def _gather_nd(b: Build) -> None:
    if b.attrs.get("batch_dims"):
        b.refuse("GatherND with batch_dims has no PyTorch form")
    index = b.constant(1)
    if index is not None and index.size == index.shape[-1]:
        b.form = f"{b.use(0, ATOM)}[{', '.join(str(int(i)) for i in index.ravel())}]" + ".unsqueeze(0)" * (index.ndim - 1)
        return
    b.form = f"{b.use(0, ATOM)}[{b.use(1, ATOM)}.unbind(-1)]"


@operator("ScatterElements")
def _scatter_elements(b: Build) -> None:
    if b.attrs.get("reduction", "none") not in ("none", "add"):
        b.refuse(f"ScatterElements with reduction {b.attrs['reduction']} has no PyTorch form")
    name = "scatter_add" if b.attrs.get("reduction") == "add" else "scatter"
    b.form = f"{b.use(0, ATOM)}.{name}({b.attrs.get('axis', 0)}, {b.use(1)}, {b.use(2)})"


@operator("ScatterND")
def _scatter_nd(b: Build) -> None:
    if b.attrs.get("reduction", "none") not in ("none", "add"):
        b.refuse(f"ScatterND with reduction {b.attrs['reduction']} has no PyTorch form")
    more = ", accumulate=True" if b.attrs.get("reduction") == "add" else ""
    b.form = f"{b.use(0, ATOM)}.index_put({b.use(1, ATOM)}.unbind(-1), {b.use(2)}{more})"


@operator("Trilu")
def _trilu(b: Build) -> None:
    b.form = f"{b.use(0, ATOM)}.{'triu' if b.attrs.get('upper', 1) else 'tril'}({b.use(1) if b.has(1) else ''})"


@operator("Pad")
def _pad(b: Build) -> None:
    rank, pads = len(b.shape(0)), b.ints(1, "pads")
    axes = b.ints(3, "") or list(range(rank))
    around = {a % rank: (pads[i], pads[i + len(axes)]) for i, a in enumerate(axes)}
    flat = [str(n) for a in reversed(range(rank)) for n in around.get(a, (0, 0))]
    while len(flat) > 2 and flat[-2:] == ["0", "0"]:
        flat = flat[:-2]
    mode = {"constant": "", "reflect": ', mode="reflect"', "edge": ', mode="replicate"'}[b.attrs.get("mode", "constant")]
    value = f", value={b.use(2)}" if not mode and b.has(2) and b.constant(2) is not None and b.constant(2).any() else ""
    b.form = f"F.pad({b.use(0)}, ({', '.join(flat)}){mode}{value})"


# --- made from sizes --------------------------------------------------------------------------------------------------


@operator("Range")
def _range(b: Build) -> None:
    start, limit, delta = (b.entries(i)[0] for i in range(3))
    bounds = [limit] if (start, delta) == ("0", "1") else [start, limit] if delta == "1" else [start, limit, delta]
    kind = "" if b.type(0) == TensorProto.INT64 else f", dtype=torch.{dtype(b, b.type(0))}"
    b.form = f"torch.arange({', '.join(bounds)}{kind}, device={{device}})"


@operator("ConstantOfShape")
def _constant_of_shape(b: Build) -> None:
    fill = b.attrs.get("value")
    value = numpy_helper.to_array(fill).ravel()[0] if fill is not None else np.float32(0)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    sizes = ", ".join(b.out_size(i) for i in range(len(b.out())))
    b.form = f"torch.full(({sizes}{',' if len(b.out()) == 1 else ''}), {number(value)}, dtype=torch.{dtype(b, kind)}, device={{device}})"


@operator("OneHot")
def _one_hot(b: Build) -> None:
    values, axis = b.constant(2), b.attrs.get("axis", -1)
    if values is None:
        values = b.array(2)
    if values is None or axis not in (-1, len(b.out()) - 1):
        b.refuse("OneHot along an inner axis has no PyTorch form")
    kind = dtype(b, b.sizes.type(b.node.outputs[0]))
    b.form = f"F.one_hot({b.use(0)}, {b.out_size(len(b.out()) - 1)}).to(torch.{kind})"
    if list(values.ravel()) != [0, 1]:
        b.form, b.level = f"{b.form} * {number(values[1] - values[0])} + {number(values[0])}", PLUS


# --- reductions and products ------------------------------------------------------------------------------------------

REDUCE = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceProd": "prod", "ReduceL2": "norm"}


@operator(*REDUCE)
def _reduce(b: Build) -> None:
    axes = b.ints(1, "axes")
    if axes is None and b.attrs.get("noop_with_empty_axes"):
        b.same(0)
        return
    keep = ", keepdim=True" if b.attrs.get("keepdims", 1) else ""
    axes = list(range(len(b.shape(0)))) if axes is None else axes
    where = f"dim={axes[0]}" if len(axes) == 1 else f"dim=({', '.join(map(str, axes))})"
    b.form = f"{b.use(0, ATOM)}.{REDUCE[b.node.op]}({where}{keep})"


@operator("ArgMax", "ArgMin")
def _arg(b: Build) -> None:
    keep = ", keepdim=True" if b.attrs.get("keepdims", 1) else ""
    b.form = f"{b.use(0, ATOM)}.{b.node.op.lower()}(dim={b.attrs.get('axis', 0)}{keep})"


@operator("TopK")
def _topk(b: Build) -> None:
    largest = "" if b.attrs.get("largest", 1) else ", largest=False"
    b.form = f"{b.use(0, ATOM)}.topk({b.entries(1)[0]}, {b.attrs.get('axis', -1)}{largest})"


@operator("CumSum")
def _cumsum(b: Build) -> None:
    if b.attrs.get("reverse"):
        b.refuse("CumSum in reverse has no PyTorch form")
    kind = dtype(b, b.type(0))
    same = "" if b.type(0) in (TensorProto.INT64, TensorProto.FLOAT) else f", dtype=torch.{kind}"
    b.form = f"{b.use(0, ATOM)}.cumsum({int(b.constant(1).ravel()[0])}{same})"
    if b.attrs.get("exclusive"):
        b.form, b.level = f"{b.form} - {b.use(0, TIMES)}", PLUS


@operator("Softmax", "LogSoftmax")
def _softmax(b: Build) -> None:
    if b.node.version < 13 and b.attrs.get("axis", 1) % len(b.shape(0)) != len(b.shape(0)) - 1:
        b.refuse("Softmax over several axes at once (opset below 13) has no PyTorch form")
    b.form = f"{b.use(0, ATOM)}.{'softmax' if b.node.op == 'Softmax' else 'log_softmax'}({b.attrs.get('axis', -1)})"


@operator("MatMul")
def _matmul(b: Build) -> None:
    b.form, b.level = f"{b.use(0, TIMES)} @ {b.use(1, UNARY)}", TIMES


@operator("Einsum")
def _einsum(b: Build) -> None:
    operands = ", ".join(b.use(i) for i in range(len(b.node.inputs)))
    b.form = f'torch.einsum("{b.attrs["equation"].replace(" ", "")}", {operands})'


@operator("Gemm")
def _gemm(b: Build) -> None:
    left, right = (f"{b.use(i, ATOM)}{'.T' if b.attrs.get(key) else ''}" for i, key in ((0, "transA"), (1, "transB")))
    alpha, beta = b.attrs.get("alpha", 1.0), b.attrs.get("beta", 1.0)
    b.form, b.level = f"{left} @ {right}" + (f" * {alpha!r}" if alpha != 1 else ""), TIMES
    if b.has(2):
        b.form, b.level = f"{b.form} + {b.use(2, TIMES)}" + (f" * {beta!r}" if beta != 1 else ""), PLUS


@operator("LayerNormalization")
def _layer_norm(b: Build) -> None:
    axis = b.attrs.get("axis", -1) % len(b.shape(0))
    sizes = ", ".join(b.out_size(i) for i in range(axis, len(b.out())))
    bias = f", {b.use(2)}" if b.has(2) else ""
    b.form = f"F.layer_norm({b.use(0)}, ({sizes},), {b.use(1)}{bias}, eps={number(np.float32(b.attrs.get('epsilon', 1e-5)))})"


@operator("RMSNormalization")
def _rms_norm(b: Build) -> None:
    axis = b.attrs.get("axis", -1) % len(b.shape(0))
    sizes = ", ".join(b.out_size(i) for i in range(axis, len(b.out())))
    b.form = f"F.rms_norm({b.use(0)}, ({sizes},), {b.use(1)}, {number(np.float32(b.attrs.get('epsilon', 1e-5)))})"


@operator("Attention")
def _attention(b: Build) -> None:
    if len(b.shape(0)) != 4 or b.attrs.get("softcap") or any(b.has(i) for i in (4, 5)):
        b.refuse("Attention with packed heads, a soft cap or a cache of its own has no PyTorch form yet")
    mask = f", attn_mask={b.use(3)}" if b.has(3) else ""
    scale = f", scale={number(np.float32(b.attrs['scale']))}" if "scale" in b.attrs else ""
    causal = ", is_causal=True" if b.attrs.get("is_causal") else ""
    grouped = ", enable_gqa=True" if b.shape(0)[1] != b.shape(1)[1] else ""
    b.form = f"F.scaled_dot_product_attention({b.use(0)}, {b.use(1)}, {b.use(2)}{mask}{causal}{scale}{grouped})"


def dtype(b: Build, kind: int) -> str:
    """PyTorch's name of an element type; refused where it has none."""
    if kind not in DTYPES:
        b.refuse(f"the element type {TensorProto.DataType.Name(kind)} has no PyTorch form")
    return DTYPES[kind]


def write(b: Build) -> None:
    """Fill in the form of a node. GraphError where its operator has none."""
    function = OPERATORS.get(b.node.op) if b.node.domain == "" else None
    if function is None:
        name = f"{b.node.domain}::{b.node.op}" if b.node.domain else b.node.op
        raise GraphError(f"the operator {name} has no PyTorch form", node=b.node.label,
                         hint="export the model in plain operators, before ONNX Runtime's optimiser fuses them")
    b.word = WORDS.get(b.node.op, b.word)
    function(b)
