"""Symbolic input dimensions: the number that stands for each, and how they turn out to be related.

Each is bound to a prime of its own. Where two sizes meet that should be one, either a symbol is a sum of others (total = past + sequence),
or the graph only runs at one size of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product

import onnx

from .errors import GraphError
from .graph import Graph, Node

PRIMES = (3, 7, 5, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
LARGER_PRIMES = ((3, 211, 223, 227, 229, 233, 239, 241, 251), (3, 16001, 16007, 16033, 16057, 16061, 16063))
Shape = tuple[int, ...]


@dataclass
class Symbols:
    """Symbolic input dimensions: the number that stands for each, and those that turned out to be sums of others.

    `sums["total"] == ("past", "sequence")` means that the graph only runs where total = past + sequence; `pinned["batch"] == (2, node)`
    that it only runs where batch is 2: at that node other sizes do not fit.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    sums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pinned: dict[str, tuple[int, Node]] = field(default_factory=dict)

    def bind(self, value: onnx.ValueInfoProto) -> Shape:
        dims = value.type.tensor_type.shape.dim
        return tuple(self.sizes[symbol_of(value, i)] if not d.HasField("dim_value") else d.dim_value for i, d in enumerate(dims))

    def resolve(self, sizes: dict[str, int]) -> dict[str, int]:
        """Sizes of all symbols, given those of the free ones."""
        def size(name: str) -> int:
            return self.pinned[name][0] if name in self.pinned else sum(size(p) for p in self.sums[name]) if name in self.sums else sizes[name]
        return {name: size(name) for name in self.sizes}

    @property
    def free(self) -> list[str]:
        return [name for name in self.sizes if name not in self.sums and name not in self.pinned]


class Mismatch(Exception):
    """Two sizes meet that should be one: either the graph is wrong or two symbols are related."""

    def __init__(self, pairs: list[tuple[int, int]], node: Node, reason: str, held: Iterable[int] = ()):
        super().__init__(reason)
        self.pairs, self.node, self.held = pairs, node, list(dict.fromkeys(held))


def symbol_of(value: onnx.ValueInfoProto, axis: int) -> str:
    """The name of a symbolic dimension; an unnamed one is called after its input and axis."""
    d = value.type.tensor_type.shape.dim[axis]
    return d.dim_param if d.dim_param else f"{value.name}.{axis}"


def bind_symbols(graph: Graph, primes: tuple[int, ...] = PRIMES) -> Symbols:
    symbols = Symbols()
    primes = iter(primes)
    for value in graph.inputs:
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            raise GraphError(f"the input {value.name!r} has no tensor shape", hint="export the model with typed inputs of known rank")
        for i, d in enumerate(value.type.tensor_type.shape.dim):
            if not d.HasField("dim_value"):
                name = symbol_of(value, i)
                if name not in symbols.sizes:
                    symbols.sizes[name] = next(primes, 0) or 2 * max(symbols.sizes.values()) + 1
    return symbols


def likely_pins(symbols: Symbols, problem: Mismatch) -> Iterator[dict[str, int]]:
    """Likely sizes of symbols: what stands beside them, together and one by one; then any number that the node holds, for one or two of them."""
    by_size = {symbols.sizes[name]: name for name in reversed(symbols.free)}
    beside = {by_size[u]: v for pair in problem.pairs for u, v in (pair, pair[::-1]) if u in by_size and v not in by_size}
    yield from [beside, *({name: size} for name, size in beside.items())] if beside else []
    for count in (1, 2):
        for names in combinations(symbols.free[:4], count):
            yield from (dict(zip(names, sizes)) for sizes in product(problem.held[:6], repeat=count))


def propose_total(graph: Graph, symbols: Symbols) -> None:
    """A mask over past and present: the second axis of a 2-D input that is neither the sequence nor the past is their sum.

    Graphs that gather from the mask do not show this in any shape, they only fail when they run.
    """
    def axis(rank: int, position: int) -> list[str]:
        dims = [(v, v.type.tensor_type.shape.dim) for v in graph.inputs]
        return [symbol_of(v, position) for v, d in dims if len(d) == rank and not d[position].HasField("dim_value")]
    past, flat = axis(4, 2), axis(2, 1)
    if past and len(set(flat)) == 2 and not set(past) & set(flat):  # the mask of another cache counts for itself
        sequence, whole = dict.fromkeys(flat)
        symbols.sums[whole] = (past[0], sequence)
        symbols.sizes = symbols.resolve(symbols.sizes)


def relate(symbols: Symbols, pairs: list[tuple[int, int]]) -> bool:
    for u, v in pairs:
        if _relate_sums(symbols, u, v):
            return True
        for mine, other in ((u, v), (v, u)):
            name = next((s for s in reversed(symbols.free) if symbols.sizes[s] == mine), None)
            if name is None:
                continue
            before = symbols.free[: symbols.free.index(name)]
            rest = before + [s for s in symbols.free if s != name and s not in before]
            for count in (1, 2):
                for group in combinations(rest, count):
                    if sum(symbols.sizes[s] for s in group) == other:
                        symbols.sums[name] = group
                        symbols.sizes[name] = other
                        return True
    return False


def _relate_sums(symbols: Symbols, u: int, v: int) -> bool:
    """past + sequence meets past' + sequence: the two pasts are one."""
    def sums(size: int) -> list[set[str]]:
        return [{a, b} for a, b in combinations(symbols.free, 2) if symbols.sizes[a] + symbols.sizes[b] == size]
    for left in sums(u):
        for right in sums(v):
            if len(left & right) == 1:
                (keep,), (name,) = left - right, right - left
                symbols.sums[name], symbols.sizes[name] = (keep,), symbols.sizes[keep]
                return True
    return False
