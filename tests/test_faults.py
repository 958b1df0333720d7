"""A slice of `python -m tests.faults`: what goes wrong while files are written costs nothing (docs/reliability/writes.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def faults(folder: Path, *arguments) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "tests.faults", "--folder", folder, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stdout)
    return done


def test_a_few_faults(tmp_path):
    done = faults(tmp_path, "--only", "expand, external", "--kills", 12, "--stops", 4, "--full", 6, "--eio", 6, "--short", 2, "--together", 1)
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout + done.stderr
    assert "| SIGKILL | 12 |" in done.stdout and "| short reads and writes | 2 | 0 | 2 |" in done.stdout and os.listdir(tmp_path) == []


@pytest.mark.slow
def test_many_faults(tmp_path):
    done = faults(tmp_path, "--kills", 160, "--stops", 32, "--full", 48, "--eio", 48, "--short", 16, "--together", 5, "--seed", 2)
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("break_it", [
    "from onnxgrow import disk; disk.identity = lambda path: [0, 0, 0]; disk.is_still = lambda path, who: False",  # data without a graph stays
    "from onnxgrow import write; write.Staged._name_data = lambda self: self.staging.folder.joinpath('out.onnx.data').unlink(missing_ok=True)",  # new data, old graph
])
@pytest.mark.slow
def test_what_is_written_in_another_way_is_found_out(tmp_path, break_it):
    """Each makes one promise untrue; the same kills that find nothing otherwise find it."""
    code = f"import sys, runpy; sys.argv[0] = 'tests.faults'; {break_it}; from tests.faults.__main__ import main; sys.exit(main())"
    (tmp_path / "shim").mkdir()
    library = subprocess.run([sys.executable, "-c", f"from tests.faults import shim; from pathlib import Path; print(shim.build(Path({str(tmp_path / 'shim')!r})))"],
                             cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LD_PRELOAD": library, "ONNXGROW_FAULTS_SHIM": library}
    done = subprocess.run([sys.executable, "-c", code, "--only", "expand, external", "--kills", "60", "--folder", str(tmp_path)],
                          cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "WRONG" in done.stdout, done.stdout + done.stderr
