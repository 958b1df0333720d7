"""What notebooks show: the sizes and errors of the objects, as text whatever a model calls its parts."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import onnxgrow
from benchmarks import notebook
from onnxgrow.certificate import Certificate
from onnxgrow.notebook import SHOWN
from onnxgrow.report import Report
from tests.report_pages import HOSTILE, Page, renamed
from tests.test_cli import MODELS
from tests.test_docs import ROOT, blocks, workplace  # noqa: F401 (a fixture)


def cells(html: str) -> dict[str, str]:
    assert html.count("<div") == html.count("</div>") == 1
    page = Page(f"<table><caption>none</caption></table>{html}")
    return dict(page.rows) if page.all("td") else {}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(MODELS / "tiny-gpt.onnx", folder / "plain.onnx")
    renamed(folder / "plain.onnx", folder / "<script>alert(2)<b>.onnx")
    out = []
    for name in ("plain.onnx", "<script>alert(2)<b>.onnx"):
        plan = onnxgrow.load(folder / name).plan(hidden=144, vocab=300)
        out.append((plan, plan.write(folder / f"grown-{len(out)}.onnx")))
    return out


def test_sizes_and_errors(written):
    plan, result = written[0]
    a = plan.model.architecture
    rows = cells(plan.model._repr_html_())
    assert rows["hidden"] == str(a.hidden) and rows["layers"] == str(a.layers) and f"{a.parameters:,} parameters" in plan.model._repr_html_()
    rows = cells(plan._repr_html_())
    assert rows["hidden"] == f"{a.hidden} → 144" and rows["certificate"] == "exact" and rows["parameters"].endswith(f"{a.parameters + plan.new_parameters:,}")
    rows = cells(result.report._repr_html_())
    assert list(rows) == [c.label for c in result.report.cases]
    assert all(rows[c.label].startswith(f"{max(d.max_rel for d in c.outputs):.2g}") for c in result.report.cases)
    assert "new words take" in result._repr_html_() and "wrote grown-0.onnx; equal on CPU" in result._repr_html_()


def test_certificates_and_differences(written):
    html = Certificate("near", ("because of <this>",), 1e-3)._repr_html_()
    assert "Certificate: near (one norm moves statistics by at most 1.0e-03)" in html and "because of &lt;this&gt;" in html
    report: Report = written[0][1].report
    other = replace(report, tolerance=1e-12, first_difference="'x', made by node 'n'", ignored={"y": "drawn"}, dequantized=0.5)
    html = other._repr_html_()
    assert "not equal on CPU" in html and "first difference: &#39;x&#39;" in html and "not compared: y: drawn" in html and "differs from that by 0.5" in html
    assert cells(html).keys() == {c.label for c in report.cases}


def test_names_stay_text(written):
    plan, result = written[1]
    for shown in (plan.model, plan, plan.certificate, result, result.report):
        html = shown._repr_html_()
        page = Page(html)
        assert not page.all("script") and not page.all("img") and not page.all("b") and {k for _, a in page.tags for k in a} <= {"class", "scope", "style"}
        assert all(c.isprintable() or c == "\n" for c in html)
    assert any(h in Page(result._repr_html_()).said for h in HOSTILE)
    assert set(SHOWN) == {"model", "plan", "certificate", "report", "result", "exported", "agreement"}


def test_exported_code_and_its_agreement(written, tmp_path):
    from onnxgrow.pytorch import export

    done = export(written[0][0].model, tmp_path / "code")
    rows, said = cells(done._repr_html_()), Page(f"<table><caption>none</caption></table>{done._repr_html_()}").said
    assert rows == {"class": done.program.main, "parameters": f"{done.parameters:,}", "lines of model.py": str((tmp_path / "code" / "model.py").read_text().count("\n"))}
    assert "wrote code" in said and f"agree in {done.agreement.cases} cases: largest relative difference {done.agreement.max_rel:.2g}" in said
    assert "not run against ONNX Runtime" in replace(done, agreement=None)._repr_html_()
    assert f"{done.agreement.max_rel:.2g}" in done.agreement._repr_html_() and len(repr(done)) < 1000


@pytest.mark.parametrize("number", [0, 1])
def test_the_code_of_the_report_page_runs(workplace, number):  # noqa: F811
    (workplace / "example.py").write_text(blocks(ROOT / "docs" / "report.md", "python")[number][1])
    done = subprocess.run([sys.executable, "example.py"], cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (workplace / ("grown.onnx" if number == 0 else "report.html")).stat().st_size > 20_000


# --- the example notebook ---------------------------------------------------------------------------------------------


def test_the_notebook_runs_and_what_it_shows_is_stored(tmp_path, monkeypatch):
    """In a real kernel, in an empty folder; stored outputs are those of today, but for digits that were measured."""
    pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this Python, whatever the home folder has
    stored = notebook.read()
    (tmp_path / "work").mkdir()
    fresh = notebook.executed(stored, tmp_path / "work")
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        assert notebook.same(notebook.shown(old), notebook.shown(new)), f"run python -m benchmarks.notebook: {old.source}\n{notebook.shown(new)}"
    made = tmp_path / "work" / "grow-files"
    assert "exact" in (made / "report.html").read_text(encoding="utf-8") and (made / "trained.onnx").stat().st_size > 5_000_000
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", " ".join(map(notebook.shown, fresh.cells)))]
    assert len(losses) == 7 and losses[-1] < losses[0] / 2


def test_a_failing_cell_is_seen(tmp_path):
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    broken = notebook.read()
    broken.cells = [next(c for c in broken.cells if c.cell_type == "code")]
    broken.cells[0].source = "1 / 0"
    with pytest.raises(client.exceptions.CellExecutionError, match="ZeroDivisionError"):
        notebook.executed(broken, tmp_path)


@pytest.mark.parametrize("stored, fresh, equal", [
    ("hidden 96 → 144", "hidden 96 → 144", True), ("hidden 96 → 144", "hidden 96 → 145", False), ("437,100 parameters", "437,101 parameters", False),
    ("loss 1.12 ████", "loss 1.15 █████", True), ("loss 1.12", "loss 2.12", False), ("equal on CPU: 8.6e-07", "equal on CUDA: 1.3e-06", True),
    ("difference 8.6e-07", "difference 3e-3", False), ("exact", "near", False), ("rounds · 0.816496581", "rounds · 0.716496581", False)])
def test_what_counts_as_the_same_output(stored, fresh, equal):
    assert notebook.same(stored, fresh) == equal


def test_the_notebook_is_stored_whole():
    """All cells ran once, in order; it shows tables, and is small."""
    pytest.importorskip("nbformat", reason="nbformat is not installed")
    code = [c for c in notebook.read().cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)) and all(c.outputs for c in code)
    assert notebook.NOTEBOOK.stat().st_size < 60_000 and all(o.output_type != "error" for c in code for o in c.outputs)
    tables = [o for c in code for o in c.outputs if 'class="onnxgrow"' in o.get("data", {}).get("text/html", "")]
    assert len(tables) >= 5 and str(ROOT) not in notebook.NOTEBOOK.read_text(encoding="utf-8")


def test_the_notebook_needs_nothing_that_is_not_installed():
    """What it imports of onnxgrow belongs to the package that pip installs, and no path leads out of it."""
    from configparser import ConfigParser

    pytest.importorskip("nbformat", reason="nbformat is not installed")
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    packages = set(config["options"]["packages"].split())
    source = "\n".join(c.source for c in notebook.read().cells if c.cell_type == "code")
    modules = {n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.module.startswith("onnxgrow")}
    assert modules and all(m in packages or (m.rpartition(".")[0] in packages and (ROOT / (m.replace(".", "/") + ".py")).is_file()) for m in modules)
    assert ".." not in source and "tests" not in source and "benchmarks" not in source

