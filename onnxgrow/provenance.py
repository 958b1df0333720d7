"""Where a grown file comes from: a record in its metadata with the hash of its source, the command, the version, the seed and the certificate.

The record depends on the source's bytes and on the growth alone: no clock, no path, no host. The same growth writes the same file wherever
it is run. Of a file that was grown more than once it tells the last growth, and those before it under `before`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from . import __version__
from .errors import UsageError
from .mapped import reading
from .request import SIZES, Request, in_order
from .source import Source, open_source

if TYPE_CHECKING:
    from .plan import Plan

RECORD = "onnxgrow.growth"  # metadata key of a grown file
BLOCK = 1 << 20
TOLD = {  # what a record tells -> whether a value can be that
    **dict.fromkeys(("command", "version"), lambda x: isinstance(x, str)),
    "seed": lambda x: type(x) is int,
    "certificate": lambda x: x in ("exact", "near", "not preserved"),
    "bound": lambda x: type(x) in (int, float) and isfinite(x),
    "rounding": lambda x: isinstance(x, str),
    "reasons": lambda x: isinstance(x, list) and all(isinstance(reason, str) for reason in x),
    "source": lambda x: isinstance(x, dict) and x.keys() == {"sha256", "data"} and isinstance(x["data"], dict) and all(map(_is_hash, (x["sha256"], *x["data"].values()))),
}


def add_record(proto: onnx.ModelProto, plan: Plan, opened: Source) -> None:
    """Write the record of a plan into the metadata of its result, in the place of an earlier one; `opened`: what it was made of."""
    before = _chain(_record(opened.proto))  # not of `proto`, which may have this plan's own record already
    c = plan.certificate
    text = plan.request.record(version=__version__, certificate=c.kind, bound=c.bound, rounding=c.rounding, reasons=list(c.reasons),
                               command=command_of(plan), source=fingerprint(opened.path), **({"before": before} if before else {}))
    entry = next((p for p in proto.metadata_props if p.key == RECORD), None) or proto.metadata_props.add(key=RECORD)
    entry.value = text


def fingerprint(path: Path) -> dict:
    """SHA-256 of a model file, and of each external data file by the name that the model has for it."""
    return {"sha256": sha256(path), "data": {name: sha256(file) for name, file in sorted(open_source(path).data.items())}}


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; read in blocks."""
    found = hashlib.sha256()
    with reading(path), open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def command_of(plan: Plan) -> str:
    """The command that makes this growth; MODEL stands for the file that the hash names, rule files are named without their folder."""
    return shlex.join(command_words(plan.request, "MODEL", [Path(file).name for file in plan.model.rules], plan.model.dequantized))


def command_words(r: Request, model: str, rules: Iterable[str], dequantize: bool) -> list[str]:
    """The words of `onnxgrow expand ...` that ask for a request, without a target."""
    d, usual = r.depth, Request()
    words = ["onnxgrow", "expand", model]
    asked = in_order(r.sizes | (d.layers if d else {}))
    if r.pad_vocab_to:
        words += ["--pad-vocab-to", str(r.pad_vocab_to)]
    for name, size in asked.items():
        words += [f"--{name.replace('_', '-')}", str(size)] if name in SIZES else ["--set", f"{name}={size}"]
    words += ["--only-hidden"] * (r.only_hidden and any(name.split(".")[-1] == "hidden" for name in asked))  # says nothing, and is refused, without it
    for option in ("method", "init_std", "wake", "vocab_init", "seed"):
        if getattr(r, option) != getattr(usual, option):
            words += [f"--{option.replace('_', '-')}", str(getattr(r, option))]
    for option, field, default in (("depth-method", "method", "identity"), ("placement", "placement", "interleave"), ("block-init", "block_init", "copy")):
        if d and getattr(d, field) != default:
            words += [f"--{option}", getattr(d, field)]
    words += ["--dequantize"] * dequantize
    return words + [word for file in rules for word in ("--rules", file)]


def request_of(proto: onnx.ModelProto) -> Request | None:
    """What was asked for in the last growth of a file; None where it does not say so."""
    text = _record(proto)
    try:
        found = Request.from_record(text) if text else None
        return found if found and all(isinstance(size, int) for size in found.sizes.values()) else None
    except (ValueError, TypeError, AttributeError, RecursionError, UsageError):
        return None


def growth_of(proto: onnx.ModelProto) -> dict | None:
    """What a file says of its growth, by the keys in TOLD and `before`, oldest first; None where it says nothing that can be read."""
    chain = _chain(_record(proto))
    return chain[-1] | {"before": chain[:-1]} if chain else None


def _record(proto: onnx.ModelProto) -> str:
    return next((p.value for p in proto.metadata_props if p.key == RECORD), "")


def _chain(text: str) -> list[dict]:
    """The growths behind a record, oldest first. Metadata is data from elsewhere: what is no record is passed over."""
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(held, dict):
        return []
    before = held.get("before")
    found = [one for one in [*(before if isinstance(before, list) else []), held] if isinstance(one, dict)]
    return [{key: one[key] if key in one and fits(one[key]) else None for key, fits in TOLD.items()} for one in found]


def _is_hash(x) -> bool:
    return isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) is not None


def growth_lines(proto: onnx.ModelProto) -> list[str]:
    """The same for people."""
    found = growth_of(proto)
    if found is None:
        return []
    out = []
    for one in [*found["before"], found]:
        out += [f"grown by onnxgrow {one['version']}, {one['certificate']}: {one['command'] or 'command not recorded'}"]
        out += [f"  {reason}" for reason in one["reasons"] or []]
        out += [f"  from sha256 {one['source']['sha256']}"] if one["source"] else []
    return out
