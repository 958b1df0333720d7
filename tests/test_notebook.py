"""What notebooks show: the sizes and errors of the objects, as text whatever a model calls its parts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

import onnxgrow
from onnxgrow.certificate import Certificate
from onnxgrow.notebook import SHOWN
from onnxgrow.report import Report
from tests.test_cli import MODELS
from tests.test_docs import ROOT, blocks, workplace  # noqa: F401 (a fixture)
from tests.test_report import HOSTILE, Page, renamed


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
    assert set(SHOWN) == {"model", "plan", "certificate", "report", "result"}


@pytest.mark.parametrize("number", [0, 1])
def test_the_code_of_the_report_page_runs(workplace, number):  # noqa: F811
    (workplace / "example.py").write_text(blocks(ROOT / "docs" / "report.md", "python")[number][1])
    done = subprocess.run([sys.executable, "example.py"], cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (workplace / ("grown.onnx" if number == 0 else "report.html")).stat().st_size > 20_000
