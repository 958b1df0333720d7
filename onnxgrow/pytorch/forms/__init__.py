"""PyTorch forms of the ONNX operators that transformers are made of (semantics: https://onnx.ai/onnx/operators/), a file for each family.

Each function takes a `Build` of one node, and returns nothing: it fills in form, level and word. Operands that are one known number stand in
the code as that number; sizes ask the tensors at hand.
"""

from . import choosing, layout, making, pointwise, reducing
from .layout import permuted
from .registry import DTYPES, OPERATORS, operator, write

__all__ = ["DTYPES", "OPERATORS", "choosing", "layout", "making", "operator", "permuted", "pointwise", "reducing", "write"]
