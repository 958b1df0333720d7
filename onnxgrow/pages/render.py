"""From facts to HTML, with Jinja2: everything is escaped, nothing is loaded, no script is in it.

Names from a model are data from elsewhere. They reach the page as text or as a quoted attribute only, escaped by the template engine, and
without control characters or marks that turn the direction of writing.
"""

from __future__ import annotations

from functools import cache
from math import isfinite
from pathlib import Path

from ..console import printable
from ..terminal.numbers import size
from .chart import chart, place_name
from .facts import Facts
from .padding import KINDS, WORDS

HERE = Path(__file__).parent


def number(x: int) -> str:
    """12345 -> 12,345"""
    return f"{x:,}"


def small(x: float | None) -> str:
    """An error or a factor in two digits; infinite and NaN in words, a dash where there is none."""
    return "-" if x is None else f"{x:.2g}" if isfinite(x) else "infinite or NaN"


def precise(x: float | None) -> str:
    """A number as far as a float32 has digits."""
    return "-" if x is None else f"{x:.9g}"


def shape(dims) -> str:
    """(2, 3) -> 2 × 3"""
    return " × ".join(map(str, dims)) if dims else "one number"


def percent(part: int, whole: int) -> str:
    """Two decimals below a percent."""
    share = 100 * part / whole if whole else 0
    return f"{share:.2f} %" if 0 < share < 1 else f"{share:.1f} %"


def path_of(areas: list[tuple[float, float, float, float]]) -> str:
    """Rectangles as one SVG path."""
    return "".join(f"M{x:g} {y:g}h{w:g}v{h:g}h{-w:g}z" for x, y, w, h in areas)


@cache
def environment():
    """The template engine: autoescape on, an unknown name is an error, text in printable characters only."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                        finalize=lambda value: printable(value) if type(value) is str else value)
    found.filters |= {"number": number, "small": small, "precise": precise, "size": size, "shape": shape, "percent": percent, "path": path_of}
    found.globals |= {"KINDS": KINDS, "WORDS": WORDS, "chart": chart, "place_name": place_name}
    return found


def page(facts: Facts) -> str:
    """The report as one HTML document. The same facts give the same text."""
    from markupsafe import Markup

    style = Markup((HERE / "style.css").read_text(encoding="utf-8"))  # our own file: quotes in it stay quotes
    return environment().get_template("report.html").render(f=facts, style=style)
