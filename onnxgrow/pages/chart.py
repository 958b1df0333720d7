"""Divergence along the depth as a chart: one point for each state, its error on a logarithmic axis, the tolerance as a line."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from .divergence import State

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 320.0, 150.0, 46.0, 12.0, 30.0


@dataclass(frozen=True)
class Chart:
    """Points (x, y, words), lines across (y, words) of which the last is the tolerance, labels below (x, words)."""

    points: list[tuple[float, float, str]]
    lines: list[tuple[float, str]]
    below: list[tuple[float, str]]
    tolerance: float
    label: str
    width: float = WIDTH
    height: float = HEIGHT


def place_name(layer: int) -> str:
    """A place along the depth, in words."""
    return "before the layers" if layer < 0 else f"after layer {layer}"


def chart(stack: str, states: list[State], tolerance: float) -> Chart | None:
    """The measured states of one stack; None where there are none. What is zero stands on the lowest line, what is infinite on the highest."""
    measured = [s for s in states if s.max_rel is not None]
    if not measured:
        return None
    values = [s.max_rel for s in measured if s.max_rel and isfinite(s.max_rel)]
    low, high = floor(log10(min([tolerance, *values]))) - 1, ceil(log10(max([tolerance, *values])))

    def height(value: float) -> float:
        at = high if not isfinite(value) else low if not value else log10(value)
        return round(TOP + (high - at) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)

    step = (WIDTH - LEFT - 14) / max(1, len(measured) - 1)
    across = [round(LEFT + 6 + k * step, 2) for k in range(len(measured))]
    every = max(1, ceil((high - low) / 4))
    lines = [(height(10.0**e), f"1e{e}") for e in range(high, low, -every)] + [(height(0.0), "0")]
    named = {0, len(measured) - 1} | set(range(0, len(measured), max(1, ceil(len(measured) / 6))))
    below = [(x, "in" if s.layer < 0 else str(s.layer)) for k, (x, s) in enumerate(zip(across, measured)) if k in named]
    worst = max(measured, key=lambda s: s.max_rel)
    label = f"{stack}: relative difference of the residual stream, largest {worst.max_rel:.2g} {place_name(worst.layer)}, tolerance {tolerance:.2g}"
    points = [(x, height(s.max_rel), f"{place_name(s.layer)}: {s.max_rel:.2g}") for x, s in zip(across, measured)]
    return Chart(points, lines, below, height(tolerance), label)
