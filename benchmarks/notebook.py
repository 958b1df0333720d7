"""Run examples/grow.ipynb from its first cell to its last and store it with what its cells show.

    python -m benchmarks.notebook                runs it in a temporary folder, and writes it with its outputs

Needs nbclient and ipykernel. Nothing that depends on when or where it ran is stored.
"""

from __future__ import annotations

import html
import re
import tempfile
from math import isclose
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "grow.ipynb"
TOO_LONG = 120  # seconds for one cell
NEAR = 0.1  # relative: losses after some steps differ between processors and versions of torch
TINY = 1e-4  # below this a number is rounding
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")


def read():
    """The notebook as it is stored."""
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def executed(notebook, folder: Path):
    """A copy of a notebook whose cells a kernel of this Python ran in a folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; its text has the traceback.
    """
    from copy import deepcopy

    from nbclient import NotebookClient

    ran = deepcopy(notebook)
    NotebookClient(ran, timeout=TOO_LONG, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in ran.cells:
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", ()):
            for kind, text in output.get("data", {}).items():
                output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", text)
    ran.metadata = notebook.metadata
    return ran


def shown(cell) -> str:
    """What a cell shows, as text: HTML without its tags, else plain text, and what it printed."""
    out = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        text = output.get("text") or re.sub(r"<[^>]+>", " ", data.get("text/html", "")) or data.get("text/plain", "")
        out.append(html.unescape(text))
    return " ".join(" ".join(out).split())


def same(stored: str, fresh: str) -> bool:
    """Do two texts say the same? Words to the letter, whole numbers to the last digit, measured ones nearly; bars and the processor are not compared."""
    plain = [text.replace("█", "").replace("CUDA", "CPU") for text in (stored, fresh)]
    words = [NUMBER.sub("#", text).split() for text in plain]
    numbers = [NUMBER.findall(text) for text in plain]
    return words[0] == words[1] and all(a == b or _measured(a, b) for a, b in zip(*numbers))


def _measured(a: str, b: str) -> bool:
    x, y = float(a), float(b)
    return (not (a.isdigit() and b.isdigit())) and (isclose(x, y, rel_tol=NEAR) or max(x, y) < TINY)


def main() -> None:
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(read(), Path(folder)), NOTEBOOK)


if __name__ == "__main__":
    main()
