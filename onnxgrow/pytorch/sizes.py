"""Sizes and whole-number tensors of a graph at several bindings of its symbolic dimensions.

One walk of the graph gives every size as a number. Three walks with other numbers for the symbols tell what a size is: constant,
one of the symbols, or made of them. Two sizes are one if they agree in all walks, so no shape arithmetic has to be traced: the code
that is written asks the tensors at hand. What is written is run against ONNX Runtime at further sizes afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np

from ..errors import GraphError
from ..feeds import symbol_kinds
from ..shapes import Walk, walk
from ..structure import Structure
from ..symbols import Mismatch, Symbols
from .identifiers import identifier

Numbers = tuple[int, ...]  # one size, at each binding
BINDINGS = 3
STEPS = ((2, 5), (1, 3), (4, 13), (9, 2), (6, 21), (17, 8), (10, 29), (23, 5))  # added to each symbol's first number in the second and third walk
WORDS = {"batch": "batch", "length": "length", "past": "past", "image": "pixels"}


@dataclass(frozen=True)
class Sizes:
    """All walks of one graph.

    Attributes:
        walks: one for each binding.
        symbols: name -> its number at each binding.
        trained: single numbers that are parameters, and what is made from them: no constants of the code.
        tables: what larger tables of whole numbers hold, as far as somebody asked (see `tables.evaluate`).
    """

    structure: Structure
    walks: list[Walk]
    symbols: dict[str, Numbers]
    trained: set[str] = field(default_factory=set)
    tables: dict[str, list[np.ndarray] | None] = field(default_factory=dict)

    def shape(self, tensor: str) -> tuple[Numbers, ...]:
        """The size of each axis. GraphError where only the run knows it."""
        shapes = [w.shapes.get(tensor) for w in self.walks]
        if any(s is None for s in shapes):
            node = self.structure.graph.makers.get(tensor)
            raise GraphError(f"the size of {tensor!r} is known only when the model runs", node=node.label if node else None,
                             hint="export the model with a newer exporter, or with fixed sizes")
        return tuple(zip(*shapes)) if shapes[0] else ()

    def values(self, tensor: str) -> list[np.ndarray] | None:
        """The numbers that a tensor holds at each binding, where neither an input's values nor a parameter decides them."""
        if tensor in self.trained:
            return None
        found = [w.values.get(tensor) for w in self.walks]
        return None if any(v is None for v in found) else found

    def train(self, parameters: frozenset[str]) -> None:
        """These weights are parameters: what follows from a single number among them (a gate, the exponent of a logit scale) is not known."""
        self.trained.update(t for t in parameters if t in self.walks[0].values)
        for node in self.structure.graph.nodes:
            if self.trained.intersection(node.inputs):
                self.trained.update(o for o in node.outputs if o in self.walks[0].values)

    def entry(self, tensor: str) -> list[Numbers] | None:
        """A vector of whole numbers (operand of Reshape, Slice ...) entry by entry; None where an input's values decide it."""
        found = self.values(tensor)
        if found is None or len({v.size for v in found}) > 1:
            return None
        return [tuple(int(x) for x in column) for column in zip(*(v.ravel() for v in found))]

    def constant(self, tensor: str) -> np.ndarray | None:
        """The value of a tensor that is the same at all bindings."""
        found = self.values(tensor)
        return found[0] if found and all(np.array_equal(found[0], v) and found[0].shape == v.shape for v in found[1:]) else None

    def type(self, tensor: str) -> int:
        return self.walks[0].types[tensor]

    def name(self, size: Numbers) -> str | None:
        """What people call a size that varies: its symbol, or a sum or product of two."""
        return self._names.get(size)

    @cached_property
    def _names(self) -> dict[Numbers, str]:
        out: dict[Numbers, str] = {}
        for name, numbers in self.symbols.items():
            if not is_constant(numbers):
                out.setdefault(numbers, name)
        for (a, x), (b, y) in product(list(out.items()), repeat=2):
            out.setdefault(tuple(p + q for p, q in zip(a, b)), f"{x}+{y}")
            out.setdefault(tuple(p * q for p, q in zip(a, b)), f"{x}*{y}")
        return out


def is_constant(size: Numbers) -> bool:
    return len(set(size)) == 1


def measure(s: Structure, registry) -> Sizes:
    """Walk at several bindings; a symbol that the graph holds fixed (a length that its exporter wrote down) stays as it is."""
    steps = {name: _usual(i) for i, name in enumerate(s.symbols.free)}
    tried = False
    while True:
        bindings = [_binding(s.symbols, {name: by[k - 1] for name, by in steps.items() if k}) for k in range(BINDINGS)]
        try:
            walks = [s.walk, *(_walk(s, registry, b) for b in bindings[1:])]
            break
        except (Mismatch, GraphError):
            if not tried:
                steps, tried = {name: _steps(s, registry, i, name) for i, name in enumerate(s.symbols.free)}, True
                continue
            steps[next(name for name in reversed(steps) if any(steps[name]))] = (0, 0)  # each moves alone, not all together: the last one stays
    names = _readable(s)
    numbers = {names[name]: tuple(b.sizes[name] for b in bindings) for name in s.symbols.sizes}
    return Sizes(s, walks, numbers)


def _usual(place: int) -> tuple[int, int]:
    return tuple(step + place // len(STEPS) for step in STEPS[place % len(STEPS)])


def _steps(s: Structure, registry, place: int, name: str) -> tuple[int, int]:
    """By how much a symbol moves: up, or down where a short table ends, or not at all."""
    for by in (_usual(place), (-1, -2), (0, 0)):
        try:
            for step in by:
                _walk(s, registry, _binding(s.symbols, {name: step}))
            return by
        except (Mismatch, GraphError):
            continue
    return 0, 0


def _binding(symbols: Symbols, steps: dict[str, int]) -> Symbols:
    sizes = {name: max(1, size + steps.get(name, 0)) for name, size in symbols.sizes.items()}
    return Symbols(symbols.resolve(sizes), symbols.sums)


def _walk(s: Structure, registry, bound: Symbols) -> Walk:
    return walk(s.graph, {v.name: bound.bind(v) for v in s.graph.inputs}, registry)


def _readable(s: Structure) -> dict[str, str]:
    """Names for the symbols that can stand in code: their own, or what they count where the exporter left them unnamed."""
    kinds, out = symbol_kinds(s), {}
    for name in s.symbols.sizes:
        own = name if identifier(name) == name and not (name[0] == "s" and name[1:].isdigit()) else WORDS[kinds[name]]
        while own in out.values():
            own += "_"
        out[name] = own
    return out
