"""The site: these pages, README as its home, and the Python API from docstrings.

    pip install ".[docs]" && sphinx-build -W docs build/site

Every broken link is an error (-W). The result asks for nothing from the network, its search neither: open build/site/index.html.
"""

import os
import re
import sys
from pathlib import Path

from docutils import nodes

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # the API is that of this checkout

from onnxgrow import __version__  # noqa: E402

project, author, release = "onnxgrow", "the onnxgrow authors", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# pages are read as they look in a repository: the same lists and tables, and anchors made of headings in the same way
myst_heading_anchors = 4
smartquotes = False  # what is written is meant: `--hidden` has two hyphens
default_role = "literal"  # docstrings write code in single backticks, as the pages do
highlight_language = "none"  # what is indented is a command, an answer or a formula
pygments_style, pygments_dark_style = "default", "monokai"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"onnxgrow {release}"
html_copy_source = html_show_sphinx = html_show_copyright = False

STANDS_FOR = {"examples/custom_rule/README.md": "docs/guides/write-a-rule.md"}  # what a page of the site says as well

COMMANDS = """
```{toctree}
:hidden:
:glob:

commands/*
```
"""  # their page is written by the program


def link(match: re.Match, place: Path) -> str:
    """One link of a page in the folder `place`. What is no page is a file to download; a folder is only named."""
    text, target = match.groups()
    path, _, anchor = target.partition("#")
    file = Path(os.path.normpath(place / path))
    if DOCS in file.parents and place != ROOT and not file.is_dir():
        return match[0]
    file = ROOT / STANDS_FOR.get(os.path.relpath(file, ROOT), os.path.relpath(file, ROOT))
    if file.is_dir():
        return text
    here = os.path.relpath(file, DOCS if place == ROOT else place)
    if file.suffix == ".md" and DOCS not in file.parents:
        return f"{{download}}`{text} <{here}>`"
    return f"[{text}]({here}{anchor and '#'}{anchor})"


def read(app, name: str, source: list[str]) -> None:
    """README is the home page: the index has only the tree of pages. Links lead as they do in the repository."""
    page, place = DOCS / f"{name}.md", (DOCS / name).parent
    if page.exists():
        home = (ROOT / "README.md").read_text(encoding="utf-8") if name == "index" else ""
        texts = [(home, ROOT), (source[0], place)]
        more = COMMANDS if name == "commands" else ""
        source[0] = "".join(re.sub(r"\[([^][]*)\]\((?!https?:|#)([^)\s]+)\)", lambda m, at=at: link(m, at), text) for text, at in texts) + more


def dashes(app, tree) -> None:
    """Between a parameter and what it means."""
    for text in [node for node in tree.findall(nodes.Text) if node == " -- "]:
        text.parent.replace(text, nodes.Text(": "))


def setup(app) -> None:
    app.connect("source-read", read)
    app.connect("doctree-read", dashes)
