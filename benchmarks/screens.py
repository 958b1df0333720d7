"""Draw what the commands show on a terminal, as SVG, by running them: docs/screens/NAME-COLUMNS.svg.

    python -m benchmarks.screens                 all of them, at 80 and at 140 columns
    python -m benchmarks.screens --text inspect  print one as text, to look at it

A new screen is a line in SCREENS. Nothing in the files comes from the network: fonts are those of the reader.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxgrow.commands import main
from onnxgrow.terminal import mode

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "screens"
WIDTHS = (80, 140)
MODEL = "tiny-llama.onnx"  # the one that the package carries, copied to where the command runs
SCREENS = {  # name: (the command, commands that go before it and are not shown)
    "inspect": (f"onnxgrow inspect {MODEL}", ()),
    "expand": (f"onnxgrow expand {MODEL} --layers 6 --hidden 144 --provider cpu", ()),
    "suggest": (f"onnxgrow suggest {MODEL} --params 1M", ()),
    "diff": ("onnxgrow diff tiny-llama.onnx tiny-llama-h144.onnx", (f"onnxgrow expand {MODEL} --hidden 144 --no-validate",)),
    "validate": ("onnxgrow validate tiny-llama.onnx tiny-llama-h144.onnx --provider cpu -v", (f"onnxgrow expand {MODEL} --hidden 144 --no-validate",)),
}
COLOURS = {  # of the terminal that is drawn: text of all of them can be read on the background (contrast of 4.5 at least, also where it is dim)
    "background": "#171c24", "foreground": "#e6edf3", "black": "#6e7681", "red": "#ff8a82", "green": "#4ac26b", "yellow": "#e0a83a",
    "blue": "#79b8ff", "magenta": "#d494ea", "cyan": "#56c5d8", "white": "#e6edf3"}
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<!-- made by python -m benchmarks.screens -->
<style>
.{unique_id}-matrix {{ font-family: "Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve" style="white-space: pre">
{matrix}
</g>
</g>
</svg>
"""


def run(command: str) -> None:
    """One command of onnxgrow, in this process."""
    with contextlib.suppress(SystemExit):
        main(shlex.split(command)[1:], standalone_mode=False)


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """A folder of its own with the carried model in it."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "onnxgrow" / "models" / MODEL, folder)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def record(name: str, width: int):
    """A rich console that holds what a command showed."""
    command, before = SCREENS[name]
    with workplace():
        for earlier in before:
            with contextlib.redirect_stdout(io.StringIO()):
                run(earlier)
        with mode.recording(width) as console:
            console.print(f"$ {command}", style="bold")
            run(command)
    return console


def theme():
    """COLOURS as rich takes them; bright ones are the same."""
    from rich.terminal_theme import TerminalTheme

    background, foreground, *ansi = [tuple(int(c[i:i + 2], 16) for i in (1, 3, 5)) for c in COLOURS.values()]
    return TerminalTheme(background, foreground, ansi, ansi)


def draw(name: str, width: int) -> str:
    """A screen as SVG."""
    text = record(name, width).export_svg(title=f"onnxgrow {name}", theme=theme(), code_format=FORMAT, unique_id=f"screen-{name}-{width}")
    return re.sub(r"[ \t]+$", "", text, flags=re.M)


def words(svg: str) -> str:
    """The words of a screen without what was measured: numbers behind a point or with a unit of time or speed, turning signs, bars."""
    text = html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", svg, flags=re.S)).replace("\xa0", " ")
    text = re.sub(r"\d+(\.\d+)?e-\d+|\d+(\.\d+)? (GB|MB|kB|bytes)/s|\d+(\.\d+)?(e-\d+)? s\b|--:--|\d+:\d\d", "#", text)
    return " ".join(re.sub(r"[\u2800-\u28ff━╸╺]", "", text).split())


def write() -> None:
    """All screens at all widths."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in SCREENS:
        for width in WIDTHS:
            (TARGET / f"{name}-{width}.svg").write_text(draw(name, width), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--text"]:
        print("\n".join(record(name, width).export_text() for name in sys.argv[2:] for width in WIDTHS))
    else:
        write()
