"""Tensors made from numbers: sizes, ranges, constants."""

from onnx import numpy_helper

from onnxgrow.rulebook import Rule, rule


@rule("Shape", "Size", "NonZero", "Range", "RandomNormal", "RandomUniform")
def numbers(op):
    """What comes out are sizes or positions; no value of a grown axis passes."""
    return Rule(f"{', '.join(['_'] * len(op.shapes))} -> {', '.join('_' for _ in op.outputs)}", other="ignore")


@rule("ConstantOfShape")
def constant_of_shape(op):
    """One number everywhere; without a value it is zero."""
    names = [f"a{i}" for i in range(len(op.outputs[0]))]
    value = op.attrs.get("value")
    zero = value is None or not numpy_helper.to_array(value).any()
    return Rule(f"_ -> {' '.join(names)}", other="zeros" if zero else "alike", sizes={0: tuple(names)})


@rule("Multinomial")
def multinomial(op):
    """Classes drawn by their logits: another one could be drawn."""
    return Rule("b c -> b _", {"c": "refuse"})


@rule("EyeLike")
def eye(op):
    return Rule("_ _ -> _ _")


@rule("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def random_like(op):
    return Rule("... -> ...", other="f(0)!=0")
