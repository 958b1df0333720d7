"""The command that makes the same file again, and what stands for the files and programs that it takes."""

from __future__ import annotations

import hashlib
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from ..request import Request
from ..source import open_source

OPTIONS = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions", "experts", "layers", "encoder_layers", "decoder_layers")
BLOCK = 1 << 22


def expand_command(request: Request, model: str, grown: str, rules: tuple[str, ...] = (), dequantize: bool = False) -> str:
    """`onnxgrow expand ...` that plans this request, for a shell; model and grown as they are to be named there."""
    usual = Request()
    depth = request.depth
    asked = request.sizes | (depth.layers if depth else {})
    words = ["onnxgrow", "expand", model]
    for name, size in asked.items():
        words += [f"--{name.replace('_', '-')}", str(size)] if name in OPTIONS else ["--set", f"{name}={size}"]
    words += ["--only-hidden"] * (request.only_hidden and any(name.split(".")[-1] == "hidden" for name in asked))
    chosen = {name: getattr(request, name) for name in ("method", "vocab_init", "pad_vocab_to", "init_std", "wake", "seed") if getattr(request, name) != getattr(usual, name)}
    chosen |= {"depth_method": depth.method, "placement": depth.placement, "block_init": depth.block_init} if depth else {}
    for name, value in chosen.items():
        if value not in ("identity", "interleave") and (name, value) != ("block_init", "copy"):
            words += [f"--{name.replace('_', '-')}", f"{value!r}" if isinstance(value, float) else str(value)]
    words += [w for rule in rules for w in ("--rules", str(rule))] + ["--dequantize"] * dequantize + ["-o", grown]
    return shlex.join(words)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
