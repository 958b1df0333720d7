"""One node on its way to a line of code: what an operator's function asks, and where it leaves the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from ..errors import GraphError
from ..graph import Node
from ..roles import FLOATS
from ..ties import Dim, summands, total
from .sizes import Numbers, Sizes, is_constant
from .steps import ATOM, Size, Step


class Build:
    """A node and the step that it becomes.

    Attributes:
        form, level, word: of the step (see `Step`), left by the operator's function.
        alias: the tensor that the node hands on unchanged, where it does nothing.
    """

    def __init__(self, node: Node, sizes: Sizes, resolve: Callable[[str], str], filled: dict[str, int]):
        self.node, self.sizes, self.resolve, self.filled = node, sizes, resolve, filled
        self.attrs = node.attrs
        self.form, self.level, self.word, self.alias = "", ATOM, "x", None
        self.inputs: list[str] = []
        self.used: list[Size] = []
        self.flips: list[int] = []
        self.named: set[str] = set()  # inputs that the form mentions twice: they get names of their own

    # --- questions ---

    def has(self, slot: int) -> bool:
        return slot < len(self.node.inputs) and bool(self.node.inputs[slot])

    def shape(self, slot: int) -> tuple[Numbers, ...]:
        return self.sizes.shape(self.node.inputs[slot])

    def out(self) -> tuple[Numbers, ...]:
        """Shape of the first output."""
        return self.sizes.shape(self.node.outputs[0])

    def type(self, slot: int) -> int:
        return self.sizes.type(self.node.inputs[slot])

    def is_float(self, slot: int) -> bool:
        return self.type(slot) in FLOATS

    def constant(self, slot: int) -> np.ndarray | None:
        return self.sizes.constant(self.node.inputs[slot]) if self.has(slot) else None

    def array(self, slot: int) -> np.ndarray | None:
        """A small weight's values."""
        graph, tensor = self.sizes.structure.graph, self.node.inputs[slot]
        return graph.array(tensor) if tensor in graph.weights and int(np.prod(graph.weight_shape(tensor))) <= 64 else None

    def is_number(self, slot: int) -> bool:
        """One number that is known: it stands in the code as it is."""
        values = self.sizes.values(self.node.inputs[slot])
        return values is not None and values[0].size == 1

    def is_true(self, slot: int) -> bool:
        """A condition that always holds."""
        values = self.sizes.values(self.node.inputs[slot])
        return values is not None and all(v.dtype == bool and v.all() for v in values)

    def fill(self, slot: int) -> int | None:
        """The whole number that a tensor holds everywhere."""
        return self.filled.get(self.node.inputs[slot])

    def behind(self, tensor: str, operators: tuple[str, ...]) -> str:
        """What a tensor was before such operators, one after the other."""
        makers = self.sizes.structure.graph.makers
        while (node := makers.get(self.resolve(tensor))) is not None and node.op in operators:
            tensor = node.inputs[0]
        return self.resolve(tensor)

    def ints(self, slot: int, key: str) -> list[int] | None:
        """Axes and the like: an input or, in older opsets, an attribute."""
        if self.has(slot):
            value = self.constant(slot)
            if value is None:
                self.refuse(f"{self.node.op} along axes that depend on what is fed has no PyTorch form")
            return [int(a) for a in value.ravel()]
        return self.attrs.get(key)

    def refuse(self, what: str) -> NoReturn:
        raise GraphError(what, node=self.node.label, hint="export the model with another exporter or opset, or write this part by hand")

    # --- answers ---

    def same(self, slot: int) -> None:
        self.alias = self.node.inputs[slot]

    def use(self, slot: int, level: int = 0) -> str:
        """The operand at an input slot: its number where it is known, else a place for the tensor."""
        return self.tensor(self.node.inputs[slot], level)

    def tensor(self, tensor: str, level: int = 0) -> str:
        values = self.sizes.values(tensor)
        if values is not None and values[0].size == 1:
            scalars = [v.ravel()[0] for v in values]
            if all(x == scalars[0] or x != x for x in scalars):
                text = number(scalars[0])
                if level == ATOM:  # asked for a method
                    return f"torch.tensor({text}, device={{device}})"
                return f"({text})" if text.startswith("-") and level > 0 else text
            if values[0].dtype.kind in "iu":
                size = self.size(tuple(int(x) for x in scalars), level=level)
                return f"torch.tensor({size}, device={{device}})" if level == ATOM else size
        tensor = self.resolve(tensor)
        if tensor not in self.inputs:
            self.inputs.append(tensor)
        return f"{{{self.inputs.index(tensor)}:{level}}}"

    def size(self, numbers: Numbers, dim: Dim | None = None, level: int = 0) -> str:
        """A place for a size; a small constant that is nobody's size stands as it is."""
        if is_constant(numbers) and (dim is None or numbers[0] <= 1):
            return str(numbers[0])
        self.used.append(Size(numbers, dim))
        return f"{{s[{len(self.used) - 1}]:{level}}}"

    def dim_of(self, tensor: str, axis: int) -> Dim | None:
        dims = self.sizes.structure.dims.get(tensor)
        return dims[axis] if dims else None

    def out_size(self, axis: int) -> str:
        tensor = self.node.outputs[0]
        return self.size(self.sizes.shape(tensor)[axis], self.dim_of(tensor, axis))

    def entries(self, slot: int) -> list[str]:
        """The numbers of a vector operand, as sizes."""
        found = self.sizes.entry(self.node.inputs[slot])
        if found is None:
            self.refuse(f"{self.node.op} with sizes that depend on the values of an input has no PyTorch form")
        return [self.size(n) for n in found]

    def bound(self, numbers: Numbers, axis: int) -> str:
        """Where a slice begins or ends: at a size of the model where the axis consists of several parts and the cut is between them."""
        if is_constant(numbers) and numbers[0] < 0:
            return str(numbers[0])
        if not is_constant(numbers):
            return self.size(numbers)
        whole, dim, parts = self.dim_of(self.node.inputs[0], axis), None, []
        for part in summands(whole) if whole is not None else ():
            parts.append(part)
            if sum(p.size for p in parts) == numbers[0]:
                dim = total(parts)
        return self.size(numbers, dim)

    def step(self) -> Step:
        return Step(self.form, self.inputs, list(self.node.outputs), self.node.index, sizes=self.used, level=self.level, word=self.word)


def number(x) -> str:
    """A number as Python text, as short as it can be without losing a bit."""
    if isinstance(x, (np.bool_, bool)):
        return str(bool(x))
    if isinstance(x, np.integer):
        return str(int(x))
    if np.isnan(x):
        return 'float("nan")'
    if np.isinf(x):
        return 'float("inf")' if x > 0 else '-float("inf")'
    text = repr(float(str(x))) if str(x) not in ("", "nan") else repr(float(x))
    return repr(float(x)) if type(x)(float(text)) != x or abs(float(x)) > 1e30 else text
