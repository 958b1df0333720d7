"""Normalisation as one operator. Spelled-out norms are found by `onnxgrow.idioms`."""

from onnx import TensorProto

from onnxgrow.rulebook import Rule, rule


def _shapes(node, shapes, types):
    """ONNX has no schema of SimplifiedLayerNormalization, and none of LayerNormalization before opset 17; ONNX Runtime writes both all the same."""
    axis = node.attrs.get("axis", -1) % len(shapes[0]) if shapes[0] is not None else 0
    inner = shapes[0] and (*shapes[0][:axis], *(1 for _ in shapes[0][axis:]))
    return [(shapes[0], types[0])] + [(inner, TensorProto.FLOAT)] * (len(node.outputs) - 1)


@rule("LayerNormalization", shape=_shapes)
def layer_norm(op):
    """(x − mean) / deviation · gain + offset. Appended means leave the mean and shrink the variance by n/N: gain·√(n/N), eps·n/N."""
    return _norm(op, "layer norm", op.axis(-1))


@rule("RMSNormalization")
@rule("SimplifiedLayerNormalization", shape=_shapes)
def rms_norm(op):
    """x / rms · gain. Appended zeros shrink the mean square by n/N: gain·√(n/N), eps·n/N."""
    return _norm(op, "rms norm", op.axis(-1))


def _norm(op, kind: str, axis: int) -> Rule:
    inner = [f"c{i}" for i in range(axis, op.rank)]
    lead = " ".join(f"b{i}" for i in range(axis))
    gains = [" ".join(inner[op.rank - axis - len(s):]) if s is not None else "_" for s in op.shapes[1:]]
    outs = [f"{lead} {' '.join(inner)}"] + [f"{lead} {'1 ' * len(inner)}"] * (len(op.outputs) - 1)
    alone = len(inner) == 1 and not any(op.outputs[1:])  # the repair does not reach the deviation as a second output
    fills = {name: kind if alone else "refuse" for name in inner}
    return Rule(f"{', '.join([outs[0], *gains])} -> {', '.join(outs)}", fills, other="f(0)!=0")


@rule("BatchNormalization")
def batch_norm(op):
    """(x − mean) / deviation · gain + offset with numbers that were measured in training, one of each per channel."""
    image = "".join(f" i{n}" for n in range(op.rank - 2))
    return Rule(f"b c{image}, c, c, c, c -> b c{image}", {"c": "f(0)!=0"}, other="f(0)!=0")


@rule("InstanceNormalization")
def instance_norm(op):
    """Each channel by its own mean and deviation over the image: channels do not meet."""
    image = "".join(f" i{n}" for n in range(op.rank - 2))
    return Rule(f"b c{image}, c, c -> b c{image}", {"b": "f(0)!=0", "c": "f(0)!=0"}, other="refuse")


@rule("GroupNormalization", shape=lambda node, shapes, types: [(shapes[0], types[0])])  # ONNX infers nothing of it
def group_norm(op):
    """Groups of channels by their common mean and deviation: new groups leave the old ones alone. Before opset 21 there is one gain for a group."""
    image = "".join(f" i{n}" for n in range(op.rank - 2))
    gain, groups = "(g k)" if op.version >= 21 else "g", op.attrs["num_groups"]
    return Rule(f"b (g k){image}, {gain}, {gain} -> b (g k){image}", {"b": "f(0)!=0", "g": "f(0)!=0"}, other="refuse", sizes={"num_groups": ("g",)}, dims={"g": groups})


@rule("Softmax", since=13)
def softmax(op):
    """Along the axis the old probabilities would shrink, unless the exponentials of new entries are zero."""
    return _along(op, "softmax")


@rule("LogSoftmax", "Hardmax", since=13)
def other_softmax(op):
    """Nothing can be appended along the axis: the old probabilities would shrink."""
    return _along(op, "refuse")


def _along(op, kind: str) -> Rule:
    names = [f"a{i}" for i in range(op.rank)]
    return Rule(f"{' '.join(names)} -> {' '.join(names)}", {names[op.axis(-1)]: kind}, other="f(0)!=0")


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax_flat(op):
    """Before opset 13 all axes from `axis` on are one."""
    names = [f"a{i}" for i in range(op.rank)]
    return Rule(f"{' '.join(names)} -> {' '.join(names)}", dict.fromkeys(names[op.axis(1):], "refuse"), other="f(0)!=0")
