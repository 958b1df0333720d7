"""Which functions look for an idiom at which operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...graph import Node
from ..steps import Step

if TYPE_CHECKING:
    from ..lower import Lowering

IDIOMS: dict[str, list[Callable[[Lowering, Node], Step | None]]] = {}


def idiom(*operators: str):
    """Enter a function that looks at nodes of these operators."""
    def enter(function):
        for name in operators:
            IDIOMS.setdefault(name, []).append(function)
        return function
    return enter
