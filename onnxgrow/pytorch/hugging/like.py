"""A folder of transformers that the written one shall be like: its config is the base, its tokenizer and other files come along."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import FileError
from ...regular import read_json

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".data", ".gguf"}
OWN = {"config.json"}  # written anew; everything else in the folder is carried over
FOLDERS = ("additional_chat_templates",)  # part of a tokenizer; other folders hold other formats of the same model
STALE = ("quantization_config", "auto_map", "transformers_version", "torch_dtype", "dtype")  # true of the folder's own weights only


@dataclass(frozen=True)
class Like:
    """A folder with a config. `config` is its config.json."""

    folder: Path
    config: dict

    @property
    def architectures(self) -> list[str]:
        return self.config.get("architectures") or []

    @cached_property
    def config_class(self) -> str | None:
        """Name of the library's class of this config."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        return CONFIG_MAPPING_NAMES.get(self.config.get("model_type"))

    @property
    def rope_type(self) -> str:
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        return rope.get("rope_type") or rope.get("type") or "default"

    def with_sizes(self, fields: dict) -> dict:
        """The config with other sizes. Lists with an entry for each layer are made anew by the library."""
        layers = {name for name, value in self.config.items() if isinstance(value, list) and name.startswith("layer")}
        rope = {"rope_theta", "rope_scaling"} if "rope_parameters" in fields else set()
        kept = {name: value for name, value in self.config.items() if name not in {*STALE, *layers, *rope}}
        labels = {"id2label", "label2id"} if "num_labels" in fields else set()
        kept = {name: value for name, value in kept.items() if name not in labels}
        return kept | {name: kept[name] | value if isinstance(value, dict) and isinstance(kept.get(name), dict) else value for name, value in fields.items()}


def open_like(folder: Path) -> Like:
    """Read the config of a folder.

    Raises:
        FileError: there is no folder, or no config.json that can be read.
    """
    file = Path(folder) / "config.json"
    if not file.exists():
        raise FileError(f"cannot read {file}: there is no such file", hint="give the folder of the source model, with its config.json")
    config = read_json(file, "config")
    if not isinstance(config, dict):
        raise FileError(f"{file} holds no config", hint="give the folder of the source model, with its config.json")
    return Like(Path(folder), config)


def carry_over(like: Like, target: Path) -> list[str]:
    """Copy the tokenizer and whatever else is no weight; returns the names.

    Raises:
        FileError: a file cannot be read.
    """
    files = [file for file in sorted(like.folder.iterdir()) if file.is_file() and _is_carried(file)]
    files += [file for name in FOLDERS for file in sorted((like.folder / name).glob("*")) if file.is_file()]
    names = [str(file.relative_to(like.folder)) for file in files]
    try:
        for file, name in zip(files, names):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target / name)  # through links: the cache of the hub is made of them
    except OSError as error:
        raise FileError(f"cannot copy {file}: {error}", hint="check the folder given with --like") from error
    return names


def _is_carried(file: Path) -> bool:
    return file.suffix not in WEIGHTS and file.name not in OWN and not file.name.startswith(".") and not file.name.endswith(".index.json")
