"""Draw the pictures of docs/report.md: grow the model that the repository carries, report on it, and photograph the page in a headless Chromium.

    python benchmarks/report_sample.py           writes docs/figures/report-light.png, report-maps.png and report-phone.png
    python benchmarks/report_sample.py PAGE.html keeps the page as well
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxgrow
from onnxgrow.pages.facts import gather
from onnxgrow.pages.gradients import measure
from onnxgrow.pages.render import page

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
SHOTS = {  # name -> scheme, width of the window, which part (from the top of one element to that of another)
    "report-light": ("light", 860, "body", "#maps"),
    "report-maps": ("light", 860, "#maps", "#certificate"),
    "report-phone": ("dark", 360, "#validation", "#gradients"),
}


def sample(folder: Path) -> Path:
    """The page on tiny-llama, half as wide again and half as deep again; its gradients measured."""
    source, grown = folder / "tiny-llama.onnx", folder / "grown.onnx"
    shutil.copy(ROOT / "onnxgrow" / "models" / "tiny-llama.onnx", source)
    model = onnxgrow.load(source)
    model.plan(hidden=144, layers=6).write(grown)
    result = onnxgrow.load(grown)
    facts = gather(model, result, model.plan_like(result))
    facts.gradients = measure(result)
    target = folder / "report.html"
    target.write_text(page(facts), encoding="utf-8")
    return target


def photograph(file: Path) -> None:
    """Take the pictures. Needs playwright, and its Chromium or the system's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        own = Path(driver.chromium.executable_path).exists()
        browser = driver.chromium.launch(executable_path=None if own else shutil.which("chromium"), args=["--no-sandbox"])
        for name, (scheme, width, first, last) in SHOTS.items():
            tab = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
            tab.goto(file.as_uri())
            top, bottom = (tab.evaluate(f"document.querySelector('{place}').getBoundingClientRect().top") for place in (first, last))
            tab.screenshot(path=FIGURES / f"{name}.png", full_page=True, clip={"x": 0, "y": top, "width": width, "height": bottom - top})
            print(f"wrote {FIGURES / name}.png")
        browser.close()


def main() -> None:
    with TemporaryDirectory() as folder:
        file = sample(Path(folder))
        photograph(file)
        if sys.argv[1:]:
            shutil.copy(file, sys.argv[1])


if __name__ == "__main__":
    main()
