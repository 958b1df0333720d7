"""Operators that look at one number at a time."""

from __future__ import annotations

from onnx import TensorProto

from ..build import Build
from ..steps import AND, ATOM, COMPARE, OR, PLUS, TIMES, UNARY
from .layout import expanded
from .registry import dtype, operator

BINARY = {"Add": ("+", PLUS), "Sub": ("-", PLUS), "Mul": ("*", TIMES), "Div": ("/", TIMES), "And": ("&", AND), "Or": ("|", OR), "Xor": ("^", OR),
          "BitwiseAnd": ("&", AND), "BitwiseOr": ("|", OR), "Equal": ("==", COMPARE), "Less": ("<", COMPARE), "Greater": (">", COMPARE),
          "LessOrEqual": ("<=", COMPARE), "GreaterOrEqual": (">=", COMPARE)}  # fmt: skip
METHODS = {"Abs": "abs", "Ceil": "ceil", "Cos": "cos", "Erf": "erf", "Exp": "exp", "Floor": "floor", "IsNaN": "isnan", "Log": "log", "Reciprocal": "reciprocal",
           "Round": "round", "Sigmoid": "sigmoid", "Sin": "sin", "Sqrt": "sqrt", "Tanh": "tanh", "Sign": "sign", "IsInf": "isinf"}  # fmt: skip
FUNCTIONS = {"Relu": "F.relu", "Softplus": "F.softplus", "HardSwish": "F.hardswish", "Mish": "F.mish", "Softsign": "F.softsign"}


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
        double = ".double()" * (b.type(1) == TensorProto.DOUBLE and b.is_number(1) and b.is_number(2))  # two Python numbers would make float32
        b.form, b.word = f"torch.where({b.use(0)}, {b.use(1)}, {b.use(2)}){double}", "mask"


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
