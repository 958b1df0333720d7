"""The command that makes the same file again, and what stands for the files and programs that it takes."""

from __future__ import annotations

import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from ..provenance import command_words, sha256
from ..request import Request
from ..source import open_source


def expand_command(request: Request, model: str, grown: str, rules: tuple[str, ...] = (), dequantize: bool = False) -> str:
    """`onnxgrow expand ...` that plans this request, for a shell; model and grown as they are to be named there."""
    return shlex.join([*command_words(request, model, map(str, rules), dequantize), "-o", grown])


def files(path: Path) -> list[dict]:
    """Name, bytes and sha256 of a model and of its external data, by the names that the model uses."""
    found = {path.name: path} | dict(sorted(open_source(path).data.items()))
    return [{"name": name, "bytes": file.stat().st_size, "sha256": sha256(file)} for name, file in found.items()]


def versions() -> dict[str, str]:
    """Of this program and of those that its numbers depend on."""
    out = {"onnxgrow": __version__, "Python": platform.python_version()}
    for name in ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
