"""Element by element. What matters is what the operator makes of zero."""

from onnx import TensorProto

from onnxgrow.rulebook import Rule, rule


@rule("Identity", "Neg", "Dropout")
def linear(op):
    """f(x) = ±x: every fill passes, also the mean."""
    return Rule(_unary(op))


@rule("Cast")
def cast(op):
    """Between floats every fill passes; to whole numbers the mean is cut off."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return Rule(_unary(op), other="keep" if op.attrs["to"] in floats else "f(0)=0")


@rule("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Tanh", "Erf", "Sin", "Tan", "Atan", "Sinh", "Asinh", "Abs", "Sign", "Round", "Floor",
      "Ceil", "Mish", "HardSwish", "Softsign", "ThresholdedRelu", "Swish", "Shrink", "IsNaN", "IsInf")
def keeps_zero(op):
    """f(0) = 0."""
    return Rule(_unary(op), other="f(0)=0")


@rule("Sigmoid", "Exp", "Cos", "Cosh", "Softplus", "HardSigmoid", "Not", "BitwiseNot")
def moves_zero(op):
    """f(0) is another constant, and f is finite everywhere."""
    return Rule(_unary(op), other="f(0)!=0")


@rule("Log", "Sqrt", "Reciprocal", "Acos", "Asin", "Acosh", "Atanh")
def partial(op):
    """Undefined or steep somewhere, so that new entries might turn into NaN and spread."""
    return Rule(_unary(op), other="copies only")


@rule("Add", "Sub", "Sum", "Mean")
def add(op):
    return Rule(f"{', '.join(['...'] * len(op.shapes))} -> ...", other="add")


@rule("Mul")
def mul(op):
    return Rule("..., ... -> ...", other="mul")


@rule("PRelu")
def prelu(op):
    """x where positive, slope·x elsewhere: a zero slope does not make it zero."""
    return Rule("..., ... -> ...", other="f(0)=0")


@rule("Div")
def div(op):
    return Rule("..., ... -> ...", other="divide")


@rule("Pow")
def power(op):
    """x^p: zero stays zero for a known positive whole exponent; anything else is not defined everywhere."""
    p = op.value(1)
    whole = p is not None and p.size == 1 and float(p.ravel()[0]) > 0 and float(p.ravel()[0]).is_integer()
    return Rule("..., ... -> ...", other="f(0)=0" if whole else "copies only")


@rule("Clip")
def clip(op):
    """Zero stays zero where the bounds enclose it."""
    low, high = (op.attrs.get(n) if op.version < 11 else op.value(i) for i, n in ((1, "min"), (2, "max")))
    known = all(v is not None for i, v in ((1, low), (2, high)) if op.has(i))
    encloses = known and (low is None or float(low) <= 0) and (high is None or float(high) >= 0)
    return Rule(_unary(op), other="f(0)=0" if encloses else "f(0)!=0")


@rule("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr")
def compare(op):
    return Rule(f"{', '.join(['...'] * len(op.shapes))} -> ...", other="f(0)!=0")


@rule("Max", "Min")
def extreme(op):
    """Zero stays zero between zero and bounds that lie beyond it."""
    bounds = [found for i in range(len(op.shapes)) if (found := op.limits(i)) is not None]
    beyond = all(high <= 0 if op.op == "Max" else low >= 0 for low, high in bounds)
    data = len(op.shapes) - len(bounds)
    return Rule(f"{', '.join(['...'] * len(op.shapes))} -> ...", other="f(0)=0" if beyond and data == 1 else "f(0)!=0")


@rule("Mod")
def modulo(op):
    """Not defined for a divisor of zero."""
    return Rule("..., ... -> ...", other="copies only")


@rule("Where")
def where(op):
    return Rule("..., ..., ... -> ...", other="select")


def _unary(op) -> str:
    """The data is the first input; others (bounds, ratios) are numbers."""
    return f"{', '.join(['...'] + ['_'] * (len(op.shapes) - 1))} -> {', '.join(['...'] * len(op.outputs))}"
