"""The genai_config.json of an onnxruntime-genai folder: which file is the model, and its sizes after growth."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from .configs import FILE, Grown, Sizes, sizes_of
from .errors import FileError, GraphError, SizeError

NAME = "genai_config.json"
DECODER = {"hidden": "hidden_size", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_size", "layers": "num_hidden_layers"}
PATTERNS = (("inputs", "past_key_names", "past_value_names", "past_names"), ("outputs", "present_key_names", "present_value_names", "present_names"))


def decoder_file(config: dict, folder: Path) -> Path:
    """The one model of a folder.

    Raises:
        FileError: the folder has several models that work together, or the config names none.
    """
    parts = config.get("model") if isinstance(config.get("model"), dict) else {}
    files = {name: part["filename"] for name, part in parts.items() if isinstance(part, dict) and part.get("filename")}
    if set(files) != {"decoder"} or not isinstance(files["decoder"], str) or Path(files["decoder"]).name != files["decoder"]:
        told = ", ".join(f"{name} ({file})" for name, file in files.items()) or "none"
        raise FileError(f"{folder / NAME} names these models: {told}; one decoder beside it can be grown", hint="name the model file that is to grow")
    return folder / files["decoder"]


def grow_genai(config: dict, plan) -> Grown:
    """The config of the grown model.

    Raises:
        SizeError: the config is not that of the model.
    """
    grown = Grown(json.loads(json.dumps(config)), {}, [])
    found = sizes_of(plan)
    if len(found) != 1:
        raise SizeError("the model has several hidden sizes, and model.decoder of genai_config.json has one", hint=FILE)
    (sizes,) = found.values()
    model, decoder = grown.config["model"], grown.config["model"]["decoder"]
    for role in sizes.changed():
        part, where, key = (decoder, "model.decoder.", DECODER[role]) if role in DECODER else (model, "model.", {"vocab": "vocab_size", "positions": "context_length"}.get(role))
        if key is None:
            continue
        _check(part, where, key, role, sizes)
        grown.changes[where + key] = (part.get(key), sizes.new[role])
        part[key] = sizes.new[role]
    slide = decoder.get("sliding_window")
    if "layers" in sizes.origins and isinstance(slide, dict) and isinstance(slide.get("layers"), list):
        new = [i for i, origin in enumerate(sizes.origins["layers"]) if origin in slide["layers"]]
        grown.changes["model.decoder.sliding_window.layers"] = (slide["layers"], new)
        slide["layers"] = new
    if "vocab" in sizes.changed():
        grown.notes.append("the tokenizer does not know the new words")
    return grown


def _check(part: dict, where: str, key: str, role: str, sizes: Sizes) -> None:
    usual = (None, sizes.old[role])
    if part.get(key) not in usual and role != "positions":
        raise SizeError(f"{NAME} does not belong to this model: {where}{key} is {part[key]}, and the graph has {role} {sizes.old[role]}",
                        hint=f"correct it, or {FILE}")


def check_names(config: dict, proto: onnx.ModelProto) -> None:
    """GraphError unless the graph has a cache of each layer under the names that the config gives."""
    decoder = config["model"]["decoder"]
    have = {"inputs": {v.name for v in proto.graph.input}, "outputs": {v.name for v in proto.graph.output}}
    for side, *patterns in PATTERNS:
        names = decoder.get(side) if isinstance(decoder.get(side), dict) else {}
        for pattern in (names[p] for p in patterns if isinstance(names.get(p), str) and "%d" in names[p]):
            missing = [n for n in (pattern.replace("%d", str(i)) for i in range(decoder.get("num_hidden_layers") or 0)) if n not in have[side]]
            if missing:
                raise GraphError(f"{NAME} calls the caches {pattern}, and the grown model has no {side[:-1]} {missing[0]!r}", hint=f"rename them, or {FILE}")
