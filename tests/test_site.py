"""The site is built by one command, has no broken link, asks for nothing from the network, and every part of the API on it is documented."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
import re
import sys
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.pages import DOCS, GUIDES, README, ROOT, perform

LISTED = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", (DOCS / "api.rst").read_text(encoding="utf-8"), re.M)


def build(source: Path, target: Path):
    """As README says it, with another target."""
    return perform([sys.executable, "-m", "sphinx", "-W", "-q", str(source), str(target)], ROOT)


@pytest.fixture
def builder():
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name, reason=f"no {name} here: pip install '.[docs]'")
    return build


class Loads(HTMLParser):
    """What a page loads by itself, and what it links to."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded, self.linked = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag in ("img", "script", "iframe", "source") and a.get("src"):
            self.loaded.append(a["src"])
        elif tag == "link" and a.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(a["href"])
        elif tag == "a" and a.get("href"):
            self.linked.append(a["href"])


def test_the_site_is_built_and_whole(builder, tmp_path):
    """One test, so that it is built once, however many workers there are."""
    done = builder(DOCS, tmp_path)
    assert done.returncode == 0, done.stdout
    for check in (pages_are_there, nothing_comes_from_elsewhere, search_knows, api_is_shown):
        check(tmp_path)


def pages_are_there(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file(), page
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "Two commands" in home and all(f"guides/{page.stem}.html" in home for page in GUIDES)
    assert 'pip install ".[docs]" && sphinx-build -W docs build/site' in README.read_text(encoding="utf-8")


def nothing_comes_from_elsewhere(site: Path) -> None:
    for file in site.rglob("*.html"):
        found = Loads(file.read_text(encoding="utf-8"))
        for target in found.loaded + [t for t in found.linked if not t.startswith(("http", "mailto:", "#"))]:
            path = target.partition("#")[0].partition("?")[0]
            assert not target.startswith(("http", "//")) and (file.parent / path).exists(), (file.name, target)
    assert not any(re.search(rb"@import|url\(.?(https?:)?//", css.read_bytes()) for css in site.rglob("*.css"))


def search_knows(site: Path) -> None:
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("(") + 1:text.rindex(")")])
    assert {"api", "guides/five-minutes", "how-it-works"} <= set(index["docnames"])
    assert "certif" in index["terms"] and any("Plan" in str(entry) for entry in index["objects"].values())


def api_is_shown(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    assert "Raises" in page and all(f'id="{name}"' in page for name in LISTED)


def test_a_broken_link_stops_the_build(builder, tmp_path):
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text((DOCS / "conf.py").read_text(encoding="utf-8").replace("DOCS.parent", f"Path({str(ROOT)!r})"), encoding="utf-8")
    (source / "index.md").write_text("# Index\n\n[there](nowhere.md)\n", encoding="utf-8")
    (source / "README.md").write_text("", encoding="utf-8")
    done = builder(source, tmp_path / "out")
    assert done.returncode == 1 and "nowhere.md" in done.stdout


def of(name: str):
    """What stands behind a dotted name."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


@pytest.mark.parametrize("name", LISTED)
def test_what_the_site_shows_has_docstrings(name):
    shown = of(name)
    assert inspect.getdoc(shown) and not (dataclasses.is_dataclass(shown) and inspect.getdoc(shown).startswith(f"{shown.__name__}(")), name
    if inspect.isclass(shown) and not issubclass(shown, enum.Enum):
        fields = {f.name for f in dataclasses.fields(shown)} if dataclasses.is_dataclass(shown) else set()
        own = {key: value for key, value in vars(shown).items() if not key.startswith("_") and key not in fields}
        silent = [key for key, value in own.items() if not isinstance(value, (int, str, float)) and not inspect.getdoc(getattr(value, "func", value))]
        assert not silent, f"{name}: {silent}"
        typed = [key for key, value in own.items() if isinstance(value, (property, cached_property)) and re.match(r"[^`:]*: ", inspect.getdoc(value) or "")]
        assert not typed, f"{name}: {typed}: what stands before a colon is taken for a type"
        unknown = [field for field in fields if not re.search(rf"\b{field}\b", inspect.getdoc(shown))]
        assert not unknown, f"{name}: {unknown} are not explained"
    elif inspect.isfunction(shown) and not name.endswith(("rule", "unfolds", "page")):
        assert len(inspect.getdoc(shown)) > 60, f"{name}: what goes in, what comes out, what is raised?"
