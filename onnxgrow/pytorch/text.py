"""What the parts of the written text share: operands, sizes, and the comments with shapes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import GraphError
from .identifiers import remark
from .outline import Outline
from .sizes import Numbers, Sizes, is_constant
from .steps import ATOM, PLUS, TIMES, Scope, Size
from .units import Unit

CONFIG = re.compile(r"config\.(\w+)(\[layer\])?")


@dataclass
class Context:
    """What all forwards of a program share.

    Attributes:
        word: tensor id -> what a variable for it is called.
        size_text: (size, path of the module) -> text in terms of `config`, or None.
        keep: tensors that get a name of their own.
        class_of: the class of a unit.
        dtype: PyTorch's name of a tensor's element type.
    """

    sizes: Sizes
    outline: Outline
    word: Callable[[str], str]
    size_text: Callable[[Size, Scope], str | None]
    keep: set[str]
    class_of: Callable[[Unit], str]
    dtype: Callable[[str], str]


class Operand:
    """An operand in a form: text that is wrapped in parentheses where it does not hold together tightly enough."""

    def __init__(self, text: str, level: int):
        self.text, self.level = text, level

    def __format__(self, wanted: str) -> str:
        return self.text if self.level >= int(wanted or 0) else f"({self.text})"


def loose(text: str) -> Operand:
    """The operand for the text of a size."""
    return Operand(text, ATOM if " " not in text else PLUS if " + " in text or " - " in text else TIMES)


def describe(c: Context, tensor: str, path: Scope) -> str:
    """The shape of a tensor as a person writes it: [batch, sequence, hidden]."""
    try:
        shape = c.sizes.shape(tensor)
    except GraphError:  # a shape that only the run knows is left out
        return ""
    dims = c.sizes.structure.dims.get(tensor) or [None] * len(shape)
    return f"[{', '.join(_axis_text(c, n, d, path) for n, d in zip(shape, dims))}]"


def _axis_text(c: Context, numbers: Numbers, dim, path: Scope) -> str:
    if not is_constant(numbers):
        return remark(c.sizes.name(numbers) or "_")
    text = c.size_text(Size(numbers, dim), path) if dim is not None and numbers[0] > 1 else None
    return CONFIG.sub(r"\1", text).replace(" * ", "*").replace(" // ", "/") if text else str(numbers[0])
