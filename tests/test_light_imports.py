"""Help and import are quick: nothing heavy is loaded before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "ml_dtypes", "google.protobuf", "transformers", "importlib.metadata", "rich"}
LOADED = "import sys, json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"


def loaded(code: str) -> set[str]:
    """Modules that a fresh interpreter holds after running some code."""
    bare = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True, text=True).stderr
    after = subprocess.run([sys.executable, "-c", f"{code}\n{LOADED}"], check=True, capture_output=True, text=True).stderr
    return set(json.loads(after)) - set(json.loads(bare))


def command(*arguments: str) -> str:
    return f"from onnxgrow.commands import main; main({list(arguments)}, standalone_mode=False)"


@pytest.mark.parametrize("code", ["import onnxgrow", "import onnxgrow; onnxgrow.__version__", "import onnxgrow.commands", command("--help"),
                                  command("expand", "--help"), command("demo", "--help"), command("--version")])
def test_nothing_heavy(code):
    assert not loaded(code) & HEAVY


def test_a_model_is_opened_and_planned_without_running_anything():
    from tests.test_cli import MODELS

    code = f"import onnxgrow; onnxgrow.load({str(MODELS / 'tiny-gpt.onnx')!r}).plan(hidden=144)"
    assert not loaded(code) & {"torch", "onnxruntime", "onnx_graphsurgeon", "transformers"}


def test_this_test_can_fail():
    assert "numpy" in loaded("import onnxgrow; onnxgrow.load")
