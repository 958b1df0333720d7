"""Folders with a model in them: `model.onnx` beside config.json and a tokenizer (as optimum writes them), onnxruntime-genai folders, and the
local cache of the Hugging Face hub, whose files are links into its blobs.

A grown folder is made under a temporary name beside its target and renamed when the model in it has passed validation and everything else is
there. Weights of other formats and other models in the folder belong to the old sizes and stay behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from . import configs, disk, genai
from .atomic import check_apart, check_free, check_room, new_folder
from .errors import FileError, UsageError
from .members import FILES, files_in
from .provenance import RECORD
from .source import open_source
from .transfer import copy
from .write import check_targets

BESIDE = ("", "onnx")  # where the models of a folder lie


@dataclass(frozen=True)
class GrownFolder:
    """What was written: the model, or the first of its `graphs`; changes by config file and key, names of copied files, and of what stayed behind."""

    model: str
    changes: dict[str, dict[str, tuple]]
    carried: list[str]
    left_out: list[str]
    notes: list[str]
    graphs: list[str]

    def to_json(self) -> dict:
        changes = {file: {key: {"old": old, "new": new} for key, (old, new) in found.items()} for file, found in self.changes.items()}
        return {"model": self.model, "graphs": self.graphs, "configs": changes, "carried": self.carried, "left_out": self.left_out, "notes": self.notes}

    def lines(self) -> list[str]:
        out = [f"{file}: {key} {old} -> {new}" for file, found in self.changes.items() for key, (old, new) in found.items()]
        out += [f"copied: {', '.join(self.carried)}"] * bool(self.carried) + [f"left out, of the old sizes: {', '.join(self.left_out)}"] * bool(self.left_out)
        return out + [f"note: {note}" for note in self.notes]


# --- reading ---------------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> Path:
    """The files of a model in the cache of the hub, where `folder` is its `models--org--name`; else `folder`."""
    found = sorted((folder / "snapshots").glob("*")) if folder.name.startswith("models--") else []
    main = folder / "refs" / "main"
    named = folder / "snapshots" / main.read_text(encoding="utf-8").strip() if found and main.is_file() else None
    return named if named in found else found[0] if len(found) == 1 else folder


def graphs_of(path: Path) -> dict[str, Path]:
    """The graphs of one model in a folder, by the names of `members`; none where the path means a single graph."""
    folder = snapshot(path) if path.is_dir() else None
    if folder is None or (folder / genai.NAME).is_file():
        return {}
    for place in (folder / name for name in BESIDE):
        if any(place.glob("*.onnx")):
            return {} if (place / "model.onnx").is_file() else files_in(place)
    return {}


def model_file(path: Path) -> Path:
    """The model that a path means: the file itself, or the one in a folder.

    Raises:
        FileError: the folder has several models, and none of them is called model.onnx, or one model in several graphs.
    """
    if not path.is_dir():
        return path
    folder = snapshot(path)
    if (folder / genai.NAME).is_file():
        return genai.decoder_file(configs.read_config(folder / genai.NAME), folder)
    for place in (folder / name for name in BESIDE):
        found = sorted(file for file in place.glob("*.onnx") if file.is_file())
        best = found if len(found) == 1 else [file for file in found if file.name == "model.onnx"]
        if best:
            return best[0]
        if any(file.name in FILES.values() for file in found):
            raise FileError(f"{place} holds the graphs of one model: {', '.join(file.name for file in found)}",
                            hint="give such a folder to expand, inspect or validate, with all of its files, or name one of them")
        if found:
            raise FileError(f"{place} holds several models: {', '.join(file.name for file in found)}", hint=f"name one of them, for example {found[0]}")
    return path  # as a file it is refused, with the usual words


def default_folder(path: Path, plan) -> Path:
    """`FOLDER-h1024` beside the folder; for the hub's cache, which is not written to, by the model's name in the working folder."""
    real = path.absolute()
    cached = next((p for p in (real, *real.parents) if p.name.startswith("models--")), None)
    sizes = plan.default_path().name.removesuffix(".onnx").removeprefix(plan.model.path.stem)
    return Path(cached.name.split("--")[-1] + sizes) if cached else (path if path.name else real).with_name(real.name + sizes)  # `.` has no name


def carried_files(folder: Path) -> list[Path]:
    """Files that belong to the model at any size: tokenizer, generation config, licence; relative to the folder.

    Raises:
        FileError: one of them is a link out of the folder, and not into the blobs of the hub's cache.
    """
    from .pytorch.hugging.like import FOLDERS, WEIGHTS

    files = [file for place in (".", *FOLDERS) for file in sorted((folder / place).glob("*")) if file.is_file()]
    files = [file for file in files if file.suffix not in WEIGHTS and not file.name.endswith((".index.json", "_data")) and not file.name.startswith(".")]
    real = folder.resolve()
    roots = [real, *[real.parent.parent / "blobs"] * (real.parent.name == "snapshots")]
    for file in files:
        if not any(file.resolve().is_relative_to(root) for root in roots):
            raise FileError(f"{file} is a link out of the folder", hint="put a copy of the file in its place, or remove it")
    return [file.relative_to(folder) for file in files]


# --- writing ---------------------------------------------------------------------------------------------------------


def write_grown(plan, path: Path, output: Path | None, **options):
    """Write a plan as a file, or as a folder where the source is one and the target is not called *.onnx: its Result, and a GrownFolder or None."""
    if not path.is_dir() or (output is not None and output.suffix == ".onnx"):
        return plan.write(output if output is not None or not path.is_dir() else None, **options), None
    return write_folder(plan, snapshot(path), output or default_folder(path, plan), **options)


def write_folder(plan, folder: Path, target: Path, *, overwrite: bool = False, **options):
    """Write the grown model, its configs and the files that go with them; see `Plan.write` for the options.

    Raises:
        FileError: the target exists, or a file cannot be read or written.
        SizeError: a config cannot say the new sizes; nothing is written.
    """
    files, data = _model_files(plan)
    inner = files[0].relative_to(folder.absolute())
    grown = {name: grow(configs.read_config(folder / name), plan) for name, grow in (("config.json", configs.grow_config), (genai.NAME, genai.grow_genai))
             if (folder / name).is_file()}
    carried = [file for file in carried_files(folder) if str(file) not in grown and (folder / file).resolve() not in data.values()]
    check_folder(target, overwrite, folder)
    check_room(target.absolute().parent, sum((folder / file).stat().st_size for file in carried))
    with new_folder(target, overwrite, like=folder) as place:
        (place / inner).parent.mkdir(exist_ok=True)
        result = plan.write(place / inner, **options) if len(files) == 1 else plan.write_into((place / inner).parent, **options)
        _finish(grown, place / inner if len(files) == 1 else place, plan)
        for name, found in grown.items():
            configs.write_config(place / name, found.config)
        for file in carried:
            (place / file).parent.mkdir(exist_ok=True)
            with open(place / file, "xb", buffering=0, opener=disk.opener(folder / file)) as out:
                copy(folder / file, 0, out, 0, (folder / file).stat().st_size)
    taken = {*(file.name for file in files), *data, *map(str, carried), *grown}
    left = [file.name for at in BESIDE for file in sorted((folder / at).glob("*")) if file.is_file() and file.name not in taken and not file.name.startswith(".")]
    notes = list(dict.fromkeys(note for found in grown.values() for note in found.notes))
    graphs = [str(file.relative_to(folder.absolute())) for file in files]
    changes = {name: g.changes for name, g in grown.items()}
    return type(result)(target, result.report, result.not_finite), GrownFolder(graphs[0], changes, [str(f) for f in carried], left, notes, graphs)


def _model_files(plan) -> tuple[list[Path], dict[str, Path]]:
    """The graphs of the source, and the real paths of its data files by the locations that they have in them."""
    opened = [file.source for file in plan.model.files] or [plan.model.opened]
    return [source.path for source in opened], {location: file for source in opened for location, file in source.data.items()}


def _finish(grown: dict, written: Path, plan) -> None:
    """What can be said of the configs once the model is there."""
    if not plan.sizes or not grown:
        return
    from .model import load

    if "config.json" in grown:
        configs.follow_numbers(grown["config.json"], load(written, plan.model.rules))
    if genai.NAME in grown:
        genai.check_names(grown[genai.NAME].config, onnx.load(written, load_external_data=False))


def check_folder(target: Path, overwrite: bool, source: Path) -> None:
    """FileError where a folder of that name may not be made: it exists and is no grown folder to be replaced, or holds the source."""
    check_free(target, overwrite, _is_grown)
    check_apart(target, source)


def check_output(path: Path, target: Path, overwrite: bool) -> None:
    """Refuse where what grows out of the model or folder `path` cannot get the name `target`: before anything is planned or printed.

    Raises:
        FileError: it is taken, or its folder is missing.
        UsageError: several graphs would have to be one file.
    """
    if target.suffix == ".onnx" and graphs_of(path):
        raise UsageError(f"{path} holds several graphs, and {target.name} is one file", hint="name a folder with -o")
    if path.is_dir() and target.suffix != ".onnx":
        check_folder(target, overwrite, path)
    else:
        check_targets([target.absolute()], [path] * path.is_file(), overwrite)


def _is_grown(folder: Path) -> bool:
    """Is there a model in it that onnxgrow grew? Nothing else is ever replaced."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        sources = [open_source(file) for name in BESIDE for file in (folder / name).glob("*.onnx")]
    except FileError:
        return False
    return any(p.key == RECORD for source in sources for p in source.proto.metadata_props)
