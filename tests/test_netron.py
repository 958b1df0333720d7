"""Grown files in Netron, the viewer that people open ONNX files with: it draws every node of them, and complains about none."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from datetime import datetime
from html import unescape
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

import onnxgrow
from tests import zoo
from tests.test_cli import MODELS
from tests.test_folders import SHARED
from tests.test_report_browser import browser  # noqa: F401 (a fixture)
from tests.test_untouched import decorated

PATIENCE = 60_000  # milliseconds for the drawing of one graph
FREE = "Constant"  # some are drawn, others are shown as values of the nodes that read them


def plain(folder: Path) -> Path:
    return Path(shutil.copy(MODELS / "tiny-gpt.onnx", folder / "model.onnx"))


def external(folder: Path) -> Path:
    """Weights beside the graph, a local function, and metadata, annotations and unknown fields everywhere."""
    from tests.growing import Case

    return decorated(Case("gpt2"), folder, external=True)


def fused(folder: Path) -> Path:
    """With ONNX Runtime's operators in it."""
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(folder / "model.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(zoo.export("bert-mlm")), options, ["CPUExecutionProvider"])
    return folder / "model.onnx"


def functions(folder: Path) -> Path:
    """Layers are calls of local functions, which a growth writes out."""
    if SHARED is None or not (SHARED / "jax_func4_dyn.onnx").is_file():
        pytest.skip("the graphs of other projects are not here")
    return SHARED / "jax_func4_dyn.onnx"


GROWTHS = {plain: {"hidden": 144, "layers": 6}, external: {"hidden": 48, "layers": 3}, fused: {"hidden": 64, "layers": 3}, functions: {"ffn": 640}}


@pytest.fixture
def viewer(browser):  # noqa: F811
    """A function: opens a file in Netron; (the operators that it drew, what it said, requests that failed)."""
    netron = pytest.importorskip("netron", reason="netron is not installed")

    def view(file: Path) -> tuple[Counter, str, list[str]]:
        host, port = netron.start(str(file), browse=False)
        url, failed = f"http://{host}:{port}", []
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        context.add_cookies([{"name": "consent", "value": "1", "url": url}])
        context.route(lambda asked: not asked.startswith(url), lambda route: route.abort())  # it tells its makers about its use
        context.route(f"{url}/", lambda route: route.fulfill(response=(found := route.fetch()), body=re.sub(  # an old one asks to be replaced
            r'(<meta name="date" content=")[^"]*', rf"\g<1>{datetime.now():%Y-%m-%d %H:%M:%S}", found.text())))
        tab = context.new_page()
        tab.on("pageerror", lambda error: failed.append(str(error)))
        tab.on("response", lambda answer: answer.status >= 400 and failed.append(answer.url))
        try:
            tab.goto(url)
            tab.wait_for_selector("body.default, body.alert", timeout=PATIENCE, state="attached")
            html = tab.content()
            said = tab.locator("#message-text").text_content() if tab.locator("body.alert").count() else ""
        finally:
            context.close()
            netron.stop((host, port))
        drawn = re.findall(r'<g class="node-item node-item-type[^>]*>.*?<text[^>]*>([^<]*)', html)
        return Counter(map(unescape, drawn)), said, failed

    return view


def whole(name: str, known) -> str:
    """A name that is drawn as its two ends, in full."""
    start, cut, end = name.partition("…")
    found = [n for n in known if n.startswith(start) and n.endswith(end)] if cut else []
    return found[0] if len(found) == 1 else name


@pytest.mark.parametrize("make", GROWTHS, ids=lambda make: make.__name__)
def test_netron_draws_every_node(make, viewer, tmp_path):
    source = make(tmp_path)
    grown = tmp_path / "grown.onnx"
    onnxgrow.load(source).plan(**GROWTHS[make]).write(grown, validate=False)
    proto = onnx.load(grown, load_external_data=False)
    beside = {t.data_location for t in proto.graph.initializer} == {onnx.TensorProto.EXTERNAL, onnx.TensorProto.DEFAULT}
    assert beside == (make is external) and any(n.domain == "com.microsoft" for n in proto.graph.node) == (make is fused)
    assert bool(proto.functions) == (make is external)
    drawn, said, failed = viewer(grown)
    assert (said, failed) == ("", [])
    wanted = Counter(n.op_type for n in proto.graph.node if n.op_type != FREE)
    assert Counter(whole(name, wanted) for name in drawn.elements() if name != FREE) == wanted


def test_a_damaged_file_is_seen(viewer, tmp_path):
    file = tmp_path / "cut.onnx"
    file.write_bytes((MODELS / "tiny-gpt.onnx").read_bytes()[:1_000_000])
    drawn, said, _ = viewer(file)
    assert not drawn and "onnx" in said
