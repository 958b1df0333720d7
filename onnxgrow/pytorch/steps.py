"""What the written code consists of: steps, each a line with places for tensors, sizes and a layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import OnnxgrowError
from ..modules import Scope
from ..ties import Dim
from .sizes import Numbers

ATOM, UNARY, TIMES, PLUS, AND, OR, COMPARE, ANY = 9, 8, 7, 6, 5, 4, 3, 0  # how tightly an expression holds together


@dataclass(frozen=True)
class Size:
    """A number in the code: its values at each binding, and what it consists of where that is known."""

    numbers: Numbers
    dim: Dim | None = None


@dataclass(frozen=True)
class Ref:
    """A weight as a parameter holds it: tensor id, transposed or not. None: zeros [size] that an exporter dropped, of the Gemm `node`."""

    tensor: str | None
    transposed: bool = False
    size: int = 0
    node: int = -1


@dataclass(frozen=True)
class Layer:
    """A layer of torch.nn.

    Args:
        kind: class name in torch.nn.
        arguments: constructor's arguments with places {s[0]} for `sizes`.
        refs: parameter name -> where its values come from.
    """

    kind: str
    arguments: str
    sizes: tuple[Size, ...]
    refs: dict[str, Ref]


@dataclass
class Step:
    """One operation.

    Args:
        form: Python text with places {0}, {1:9} ... for inputs (the number behind the colon: how tightly the operand must hold together),
            {s[0]} for sizes, {m} for the layer, {device} for where to make a tensor.
        inputs, outputs: tensor ids.
        word: what a variable for the result is called.
        level: how tightly the text holds together.
        norm: kind, input and epsilon of a norm that is spelled out: its gain and offset may follow.
        error: why the operation cannot be written; raised only if it is needed.
    """

    form: str
    inputs: list[str]
    outputs: list[str]
    order: int
    scope: Scope = ()
    sizes: list[Size] = field(default_factory=list)
    level: int = ATOM
    word: str = "x"
    layer: Layer | None = None
    norm: tuple[str, str, float] | None = None
    error: OnnxgrowError | None = None
