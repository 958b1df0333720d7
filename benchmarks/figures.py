"""Draw the picture of the README: what the new parts of a weight hold. The numbers in it are made by `onnxgrow.recipe`.

    python benchmarks/figures.py                 writes docs/figures/growth.svg
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto

from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.recipe import Recipe

TARGET = Path(__file__).parents[1] / "docs" / "figures" / "growth.svg"
CELL, PITCH, GAP, TOP = 13, 15, 42, 74  # of a cell, from cell to cell, from vector to weight, above the weights
STYLE = """
.old { fill: #4184d6 } .mean { fill: #dd9326 } .copy { fill: #2aa173 } .free { fill: #b565d0 }
.zero { fill: none; stroke: #8b949e; stroke-width: 1 }
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a }
.title { font-weight: 600; font-size: 14px } .small { font-size: 12px } .arrow { fill: none; stroke: #8b949e; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #adb5bf } }
"""
TIP = """<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#8b949e"/></marker>"""
KINDS = {Fill.FREE: "free", Fill.MEAN: "mean", Fill.ZERO: "zero"}
LEGEND = {"old": "old", "free": "free: random, nobody reads it yet", "zero": "zero", "mean": "mean of the old",
          "copy": "copy, or its share"}


@dataclass
class Drawing:
    parts: list[str] = field(default_factory=list)

    def cells(self, x: float, y: float, kinds: np.ndarray, values: np.ndarray) -> None:
        """A table of cells, coloured by kind; the larger a value, the stronger its colour."""
        strength = 0.35 + 0.65 * np.abs(values) / np.abs(values).max()
        for (row, column), kind in np.ndenumerate(kinds):
            at = f'x="{x + column * PITCH:g}" y="{y + row * PITCH:g}" width="{CELL}" height="{CELL}" rx="2"'
            self.parts.append(f'<rect class="{kind}" {at}' + (f' opacity="{strength[row, column]:.2f}"' if kind != "zero" else "") + "/>")

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>')

    def arrow(self, path: str) -> None:
        self.parts.append(f'<path class="arrow" marker-end="url(#tip)" d="{path}"/>')


def grow(old: np.ndarray, rows: AxisMap, columns: AxisMap) -> tuple[np.ndarray, np.ndarray]:
    """Kind and value of every entry of a grown weight, by the code that writes grown files."""
    recipe = Recipe("figure", TensorProto.FLOAT, old.shape, (rows.new, columns.new), (rows, columns), seed=3)
    fill = np.maximum.outer(rows.fill, columns.fill)  # where two axes disagree, the greater code wins
    kinds = np.select([fill == code for code in KINDS], list(KINDS.values()), "old").astype(object)
    if rows.share:
        kinds[kinds == "old"] = "copy"  # the first share is not the old entry either
    return kinds, recipe.evaluate(old)


def product(d: Drawing, x: float, left: tuple, weight: tuple, below: tuple, titles: tuple[str, str, str]) -> float:
    """A weight with what goes in at its left and what comes out below it; gives the x behind it."""
    rows, columns = weight[0].shape
    d.cells(x, TOP, left[0][:, None], left[1][:, None])
    d.text(x + CELL / 2, TOP - 10, titles[0], "small", "middle")
    d.cells(x + GAP, TOP, *weight)
    d.text(x + GAP + columns * PITCH / 2, TOP - 10, titles[1], "small", "middle")
    d.cells(x + GAP, TOP + rows * PITCH + 15, below[0][None], below[1][None])
    d.text(x + GAP + columns * PITCH / 2, TOP + rows * PITCH + 46, titles[2], "small", "middle")
    return x + GAP + columns * PITCH


def padding(d: Drawing, x: float, random: np.random.Generator) -> float:
    """A LayerNorm in front: its output is zero in the new part, its input gets means."""
    up, down = random.standard_normal((6, 8)).astype(np.float32), random.standard_normal((8, 6)).astype(np.float32) + np.float32(0.4)
    inner = grow(up, AxisMap.append(6, 9, Fill.FREE), AxisMap.append(8, 12, Fill.FREE))
    outer = grow(down, AxisMap.append(8, 12, Fill.ZERO), AxisMap.append(6, 9, Fill.MEAN))
    normed = np.r_[random.standard_normal(6), np.zeros(3)]
    h = np.abs(normed @ inner[1])
    d.text(x, 24, "Padding, for a norm before the branch", "title")
    end = product(d, x + 14, (parts(6, "zero", 3), normed), inner, (parts(8, "free", 4), h), ("norm(x)", "up: [6, 8] → [9, 12]", "h"))
    d.arrow(f"M {end + 8:g} {TOP + 9 * PITCH + 21:g} h 14 V {TOP + 90:g} h 12")
    y = h @ outer[1]
    return product(d, end + 46, (parts(8, "free", 4), h), outer, (parts(6, "mean", 3), y), ("f(h)", "down: [8, 6] → [12, 9]", "added to x"))


def copies(d: Drawing, x: float, random: np.random.Generator) -> float:
    """A LayerNorm behind: whole copies keep its statistics, and readers share their old rows out."""
    twice = AxisMap(5, 10, np.tile(np.arange(5), 2), np.zeros(10), share=True)
    reader = grow(random.standard_normal((5, 8)).astype(np.float32), twice, AxisMap.append(8, 12, Fill.FREE))
    normed = np.tile(random.standard_normal(5), 2)
    d.text(x, 24, "Copies, for a norm after it", "title")
    h = normed @ reader[1]
    return product(d, x + 14, (parts(5, "copy", 5), normed), reader, (parts(8, "free", 4), h), ("norm(x)", "up: [5, 8] → [10, 12]", "h"))


def parts(old: int, kind: str, new: int) -> np.ndarray:
    return np.array(["old"] * old + [kind] * new, object)


def draw() -> str:
    random, d = np.random.default_rng(1), Drawing()
    split = padding(d, 14, random) + 34
    d.parts.append(f'<path class="arrow" stroke-dasharray="2 4" d="M {split:g} 12 V {TOP + 12 * PITCH + 50:g}"/>')
    end = copies(d, split + 24, random)
    width, height = end + 14, TOP + 12 * PITCH + 100
    at = 14.0
    for kind, words in LEGEND.items():
        d.cells(at, height - 30, np.array([[kind]], object), np.ones((1, 1)))
        d.text(at + 20, height - 19, words, "small")
        at += 46 + 6.4 * len(words)
    label = "Two ways to widen a feed-forward part without changing what it computes"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">'
    return "\n".join([head, f"<title>{label}</title>", f"<style>{STYLE}</style>", f"<defs>{TIP}</defs>", *d.parts, "</svg>", ""])


def main() -> None:
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(draw(), encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
