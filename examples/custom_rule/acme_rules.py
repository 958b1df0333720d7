"""Rules for two operators of the made-up library `acme`, and examples on which `onnxgrow check-rules` tries them."""

import numpy as np

from onnxgrow.operators import example
from onnxgrow.rulebook import Rule, rule


def half_as_wide(node, shapes, types):
    """ONNX does not know the operator, so somebody has to say what shape comes out."""
    *leading, width = shapes[0]
    return [((*leading, width // 2), types[0])]


@rule("acme::GatedSwish", shape=half_as_wide)
def gated_swish(op):
    """swish(gate)·up, where the input is [gate, up]. Zeros make zeros, since swish(0)·0 = 0."""
    return Rule("... f+f -> ... f", other="f(0)=0")


def heads_first(node, shapes, types):
    batch, length, width = shapes[0]
    heads = node.attrs["num_heads"]
    return [((batch, heads, length, width // heads), types[0])]


@rule("acme::SplitHeads", shape=heads_first)
def split_heads(op):
    """[batch, length, heads·size] -> [batch, heads, length, size]: entries move, none changes."""
    return Rule("b t (h d) -> b h t d", sizes={"num_heads": ("h",)}, dims={"h": op.attrs["num_heads"]})


# The same in numpy, for `onnxgrow check-rules`: ONNX Runtime does not know the operators


def gated_swish_in_numpy(x):
    gate, up = np.split(x, 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up


def split_heads_in_numpy(x, num_heads):
    batch, length, width = x.shape
    return x.reshape(batch, length, num_heads, width // num_heads).transpose(0, 2, 1, 3)


EXAMPLES = [
    example("acme::GatedSwish", (3, 12), reference=gated_swish_in_numpy),
    example("acme::GatedSwish", (2, 3, 8), reference=gated_swish_in_numpy),
    example("acme::SplitHeads", (2, 5, 12), num_heads=3, reference=split_heads_in_numpy),
]
