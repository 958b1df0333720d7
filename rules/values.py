"""Tensors made from numbers: sizes, ranges, constants."""

from onnxgrow.rulebook import Rule, rule


@rule("Shape", "Size", "NonZero", "Range", "RandomNormal", "RandomUniform")
def numbers(op):
    """What comes out are sizes or positions; no value of a grown axis passes."""
    return Rule(f"{', '.join(['_'] * len(op.shapes))} -> {', '.join('_' for _ in op.outputs)}", other="ignore")


@rule("ConstantOfShape")
def constant_of_shape(op):
    names = [f"a{i}" for i in range(len(op.outputs[0]))]
    return Rule(f"_ -> {' '.join(names)}", sizes={0: tuple(names)})


@rule("EyeLike")
def eye(op):
    return Rule("_ _ -> _ _")


@rule("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def random_like(op):
    return Rule("... -> ...", other="f(0)!=0")
