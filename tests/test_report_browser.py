"""The report as a person meets it: in a real browser, on a phone, in the dark, by ear; and what can be checked of that without a browser."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from onnxgrow.pages.padding import KINDS
from tests.report_pages import shown

LABELS = ("depth", "near", "experts")
STYLE = (Path(__file__).parents[1] / "onnxgrow" / "pages" / "style.css").read_text(encoding="utf-8")


# --- without a browser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", LABELS)
def test_landmarks_and_headings(label):
    p = shown(label)
    assert p.text.startswith("<!DOCTYPE html>") and p.all("html")[0]["lang"] == "en"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in p.all("meta")
    count = Counter(tag for tag, _ in p.tags)
    assert all(count[tag] == 1 for tag in ("header", "main", "footer", "nav", "h1")) and all(a["aria-label"] for a in p.all("nav"))
    assert p.text.split("</head>")[0].count("<title>") == 1
    levels = [level for level, _ in p.headings]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:])) and all(words for _, words in p.headings)
    assert count["h2"] == count["section"] == 8


@pytest.mark.parametrize("label", LABELS)
def test_what_is_seen_can_be_heard(label):
    p = shown(label)
    assert all(a["role"] == "img" and len(a["aria-label"]) > 10 for a in p.all("svg")) and len(p.all("svg")) >= 4
    ids = [a["id"] for _, a in p.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in p.tags if "aria-labelledby" in a} | {a["href"][1:] for a in p.all("a")} <= set(ids)
    assert all(a.get("scope") in ("col", "row") for a in p.all("th"))
    wide = [a for a in p.all("div") if a.get("class") == "wide"]
    assert len(wide) == len(p.all("table")) == len(p.tables) and all(a["tabindex"] == "0" and a["role"] == "region" for a in wide)


def colours(dark: bool) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    return dict(re.findall(r"--(\w+): (#\w{6})", blocks[0])) | (dict(re.findall(r"--(\w+): (#\w{6})", blocks[1])) if dark else {})


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(dark):
    c = colours(dark)
    for text in ("text", "muted", "link", "good", "warn", "bad"):
        assert contrast(c[text], c["back"]) >= 4.5 and contrast(c[text], c["panel"]) >= 4.5, text
    for kind in set(KINDS) - {"zero"}:
        assert contrast(c[kind], c["back"]) >= 3, kind
    assert len({c[kind] for kind in KINDS}) == len(KINDS)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


# --- with one ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: playwright's own, or the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        found = Path(driver.chromium.executable_path).exists()
        if not found and not system:
            pytest.skip("no Chromium: `playwright install chromium`, or the system's package of that name")
        opened = driver.chromium.launch(executable_path=None if found else system, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    out = {label: folder / f"{label}.html" for label in LABELS}
    for label, path in out.items():
        path.write_text(shown(label).text, encoding="utf-8")
    return out


@pytest.fixture
def opened(browser, files, request):
    """(page, what it said or asked for) of one report in one scheme at one width."""
    label, scheme, width = request.param
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    tab, events = context.new_page(), []
    tab.on("console", lambda message: events.append(message.text))
    tab.on("pageerror", lambda error: events.append(str(error)))
    tab.on("request", lambda asked: events.append(asked.url))
    tab.goto(files[label].as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield tab, [e for e in events if e != files[label].as_uri()], scheme
    context.close()


CASES = [("depth", "light", 1200), ("near", "dark", 360), ("experts", "light", 360), ("experts", "dark", 1200)]
SEEN = [pytest.param(case, id="-".join(map(str, case)), marks=[pytest.mark.slow] * (case[0] == "experts")) for case in CASES]


@pytest.mark.parametrize("opened", SEEN, indirect=True)
def test_in_a_browser(opened):
    tab, events, scheme = opened
    assert events == []
    assert tab.evaluate("[document.documentElement, document.body].every(e => e.scrollWidth <= innerWidth)")
    back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(13, 17, 23)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert tab.evaluate("getComputedStyle(document.querySelector('svg text')).fontSize") == "12px"
    assert tab.evaluate("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().width > 20)")
    assert tab.evaluate("[...document.querySelectorAll('svg[role=img] text')].every(t => { const a = t.getBoundingClientRect(), "
                        "b = t.ownerSVGElement.getBoundingClientRect(); return a.right <= b.right + 1 && a.left >= b.left - 1 })")


@pytest.mark.parametrize("opened", SEEN, indirect=True)
def test_axe_finds_nothing(opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(opened[0]).response["violations"]
    assert [(v["id"], v["impact"], v["nodes"][0]["html"][:200]) for v in found] == []


def test_axe_can_find_something(browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    tab = browser.new_page()
    tab.set_content("<html><body><img src='data:,'><p style='color: #ccc; background: #fff'>faint</p></body></html>")
    assert {"image-alt", "color-contrast"} <= {v["id"] for v in axe.Axe().run(tab).response["violations"]}
    tab.close()
