"""What is installed and what runs: the lower ends of the ranges, no network, a wheel that is the same each time, a list of parts that is true."""

from __future__ import annotations

import ast
import configparser
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "onnxgrow" / "models" / "tiny-llama.onnx"
NETWORK = {"socket", "ssl", "http", "urllib", "requests", "ftplib", "huggingface_hub", "aiohttp", "httpx"}
NO_NETWORK = """
import socket, sys
def refused(*_, **__):
    raise AssertionError("this program opened a network connection")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refused
from onnxgrow.commands import main
main(sys.argv[1:])
"""


def requirements(extra: str | None = None) -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.extras_require"][extra] if extra else setup["options"]["install_requires"]
    return [Requirement(line) for line in lines.split("\n") if line]


def lowest(requirement: Requirement) -> Version:
    return next(Version(s.version) for s in requirement.specifier if s.operator in (">=", "=="))


def test_the_oldest_environment_of_ci_is_the_lower_end_of_every_range():
    pinned = {r.name: lowest(r) for r in map(Requirement, (ROOT / ".ci" / "oldest.txt").read_text().split())}
    assert pinned == {r.name: lowest(r) for r in requirements()}


def test_what_is_installed_lies_in_the_ranges():
    for requirement in requirements():
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), requirement


def test_no_module_can_reach_the_network():
    for path in (*(ROOT / "onnxgrow").rglob("*.py"), *(ROOT / "rules").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & NETWORK, path


def offline(folder: Path, *arguments: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
    done = subprocess.run([sys.executable, "-c", NO_NETWORK, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_command_opens_a_connection(tmp_path):
    shutil.copy(MODEL, tmp_path / "model.onnx")
    offline(tmp_path, "inspect", "model.onnx")
    offline(tmp_path, "expand", "model.onnx", "--layers", "5", "-o", "grown.onnx")
    offline(tmp_path, "validate", "model.onnx", "grown.onnx", "--provider", "cpu")
    offline(tmp_path, "report", "model.onnx", "grown.onnx", "-o", "report.html")
    offline(tmp_path, "export", "grown.onnx", "-o", "grown_pt")
    assert not re.findall(r"https?://(?!www\.w3\.org/)", (tmp_path / "report.html").read_text())


def wheel(folder: Path) -> Path:
    """The wheel of a fresh copy of the project, built without the network."""
    copy = folder / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", "docs", "tests"))
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(copy)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_is_the_same_bytes_wherever_it_is_built(tmp_path):
    pytest.importorskip("setuptools", reason="building a wheel without isolation needs setuptools here")
    hashes = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        hashes.append(hashlib.sha256(wheel(tmp_path / name).read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]


def test_the_list_of_parts_names_every_dependency():
    parts = json.loads((ROOT / "docs" / "reliability" / "sbom.json").read_text())
    named = {c["name"].lower().replace("_", "-"): Version(c["version"]) for c in parts["components"]}
    for requirement in requirements():
        assert requirement.specifier.contains(named[requirement.name.lower().replace("_", "-")]), requirement
