"""GELU and SiLU, whatever order their factors stand in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...graph import Node
from ..steps import Step
from .registry import idiom

if TYPE_CHECKING:
    from ..lower import Lowering


@idiom("Mul")
def gelu(c: Lowering, node: Node) -> Step | None:
    """0.5 x (1 + erf(x/√2)), and with tanh(√(2/π) (x + 0.044715 x³)), whatever order the factors stand in."""
    factors, scale = c.factors(node)
    if len(factors) != 2 or abs(scale - 0.5) > 1e-6:
        return None
    for x, other in (factors, factors[::-1]):
        inner = c.plus(other, 1.0)
        made = c.maker(inner) if inner else None
        if made is None or made.op not in ("Erf", "Tanh"):
            continue
        argument, by = c.scaled(made.inputs[0])
        if made.op == "Erf" and argument == c.resolve(x) and abs(by - 0.5**0.5) < 1e-6:
            return c.function("F.gelu({0})", [x], node)
        if made.op == "Tanh" and abs(by - (2 / np.pi) ** 0.5) < 1e-6 and c.is_cubic(argument, x):
            return c.function('F.gelu({0}, approximate="tanh")', [x], node)
    return None


@idiom("Mul")
def silu(c: Lowering, node: Node) -> Step | None:
    """x sigmoid(x), and the quick GELU x sigmoid(1.702 x) as it stands."""
    for x, other in (node.inputs, node.inputs[::-1]):
        made = c.maker(other)
        if made is not None and made.op == "Sigmoid" and c.resolve(made.inputs[0]) == c.resolve(x):
            return c.function("F.silu({0})", [x], node)
    return None
