"""The line in which a rule writes its ties: `... m k, ... k n -> ... m n`.

Elements: a name; `...` (any axes, aligned from the right, size-1 axes untied); `1` and `_` (an axis that ties nothing);
`(h d)` for a product; `a+b` for a concatenation, also of products: `(h d)+(h d)`. A tensor written as a lone `_` is skipped.
Parse once, apply to the dims of a node, keep who stands where: the fills are decided from the same occurrences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from .ties import Dim, TieError, product, total, unify

Element = tuple[tuple[str, ...], ...]  # a sum of products of names
NAME = r"[A-Za-z][A-Za-z0-9_]*"
TERM = rf"(?:{NAME}|\(\s*{NAME}(?:\s+{NAME})*\s*\))"
ELEMENT = re.compile(rf"\s*(\.\.\.|1|_|{TERM}(?:\s*\+\s*{TERM})*)(?=\s|$)")


@dataclass(frozen=True)
class Occurrence:
    """Names that stand on one axis of one tensor of a node, in order."""

    output: bool
    slot: int
    axis: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    inputs: tuple[tuple, ...]
    outputs: tuple[tuple, ...]


@lru_cache(maxsize=4096)
def parse(text: str) -> Line:
    """Parse a line.

    Raises:
        ValueError: the text is not in the language; the message quotes it.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"no '->' in the rule line {text!r}")
    return Line(*(tuple(parse_tensor(part) for part in side.split(",")) if side.strip() else () for side in (left, right)))


@lru_cache(maxsize=4096)
def parse_tensor(text: str) -> tuple:
    elements, at, end = [], 0, len(text.rstrip())
    while at < end:
        found = ELEMENT.match(text, at)
        if not found or found[1] == "..." in elements:
            raise ValueError(f"{text[at:].strip()!r} means nothing in the rule line part {text!r}")
        plain = found[1] in ("...", "1", "_")
        elements.append(found[1] if plain else tuple(tuple(re.findall(NAME, term)) for term in found[1].split("+")))
        at = found.end()
    return tuple(elements)


def _spread(elements: tuple, shape: tuple[int, ...]) -> list | None:
    """One element per axis; `...` becomes names counted from the right. None for a skipped tensor."""
    if elements == ("_",) and len(shape) != 1:
        return None
    if "..." not in elements:
        if len(elements) != len(shape):
            raise TieError(f"the rule expects {len(elements)} axes, the tensor has {len(shape)}")
        return list(elements)
    at, n = elements.index("..."), len(shape) - len(elements) + 1
    if n < 0:
        raise TieError(f"the rule expects at least {len(elements) - 1} axes, the tensor has {len(shape)}")
    middle = [((f"...{n - k - 1}",),) for k in range(n)]
    return [*elements[:at], *middle, *elements[at + 1:]]


def apply(line: Line, shapes: tuple[list, list], dims: tuple[list, list], sizes: dict[str, int],
          torn: list[tuple[list[Dim], str]] | None = None) -> tuple[list[Occurrence], dict[str, Dim]]:
    """Tie the axes of one node.

    Args:
        shapes: input and output shapes, None for tensors that are absent.
        dims: the dims of each axis of each tensor, same layout.
        sizes: sizes of names that no axis shows alone.
        torn: takes (dims, reason) of axes that contradict earlier ties; such an axis is left out, and its dims must never grow.
    Returns:
        who stands where, and the dim of each name.
    Raises:
        TieError: the line does not fit the shapes, or contradicts earlier ties and `torn` is None.
    """
    places = []
    for output, (patterns, side) in enumerate(zip((line.inputs, line.outputs), shapes)):
        for slot, elements in enumerate(patterns):
            shape = side[slot] if slot < len(side) else None
            spread = _spread(elements, shape) if shape is not None else None
            places += [(bool(output), slot, axis, e) for axis, e in enumerate(spread or []) if not isinstance(e, str)]
    axis_dim = {(o, s, a): dims[o][s][a] for o, s, a, _ in places}
    known = _sizes(places, axis_dim, dict(sizes))
    names: dict[str, Dim] = {}
    kept = []
    for output, slot, axis, element in places:
        d = axis_dim[output, slot, axis]
        flat = tuple(n for term in element for n in term)
        if len(flat) == 1 and d.size == 1 != known[flat[0]]:
            continue  # broadcast
        for n in flat:
            names.setdefault(n, d if len(flat) == 1 else Dim(known[n]))
        terms = [[names[n] for n in term] for term in element]
        try:
            unify(d, total([t[0] if len(t) == 1 else product(t) for t in terms]))
        except TieError as problem:
            if torn is None:
                raise
            torn.append(([d, *(names[n] for n in flat)], str(problem)))
            continue
        kept.append(Occurrence(output, slot, axis, _effective(element, known)))
    return kept, names


def _sizes(places: list, axis_dim: dict, known: dict[str, int]) -> dict[str, int]:
    for output, slot, axis, element in places:
        if len(element) == 1 == len(element[0]):
            name, size = element[0][0], axis_dim[output, slot, axis].size
            if known.get(name, 1) == 1:
                known[name] = size
            elif size not in (1, known[name]):
                raise TieError(f"{name} is {known[name]} and {size}")
    for _ in range(3):
        for output, slot, axis, element in places:
            _solve(element, axis_dim[output, slot, axis].size, known)
    missing = [n for p in places for term in p[3] for n in term if n not in known]
    if missing:
        raise TieError(f"the size of {missing[0]!r} is not determined")
    return known


def _solve(element: Element, size: int, known: dict[str, int]) -> None:
    """Find the one unknown name of an element from the size of its axis."""
    unknown = [(term, n) for term in element for n in term if n not in known]
    if len(unknown) != 1:
        return
    term, name = unknown[0]
    rest = size - sum(prod(known[n] for n in t) for t in element if t is not term)
    known[name], over = divmod(rest, prod(known[n] for n in term if n != name) or 1)
    if over or rest < 0:
        raise TieError(f"{name} has no size that makes this axis {size} long")


def _effective(element: Element, known: dict[str, int]) -> tuple[str, ...]:
    """Names of an element without those that leave no trace in the extent: factors of size 1, parts of size 0."""
    if len(element) == 1 == len(element[0]):
        return element[0]
    kept = [[n for n in term if known[n] != 1 or len(term) == 1] for term in element if prod(known[n] for n in term)]
    return tuple(n for term in kept for n in term)
