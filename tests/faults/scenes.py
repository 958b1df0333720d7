"""What is done while things go wrong: each scene has a folder with a source, perhaps an older target, and one command that writes.

The graph is read and the growth planned before, once for all: until the first byte is written nothing can be lost.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from onnxgrow import atomic, growthfile
from onnxgrow.folders import write_folder
from onnxgrow.model import Model
from tests.test_cli import MODELS

TEMPORARY = atomic.PREFIX


def digest(path: Path) -> str:
    """Of a model: its graph and all values, under whatever name its data lies; of a folder: of everything in it; else of the bytes."""
    if path.is_dir():
        return hashed(*(f"{file.relative_to(path)} {digest(file)}".encode() for file in sorted(path.rglob("*")) if file.is_file()))
    return hashed(onnx.load(path).SerializeToString() if path.suffix == ".onnx" else path.read_bytes())


def hashed(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file below a folder: its bytes and when it was changed."""
    return {str(file.relative_to(folder)): (hashed(file.read_bytes()), file.stat().st_mtime_ns) for file in sorted(folder.rglob("*")) if file.is_file()}


@dataclass
class Scene:
    """One command, which is run in a new folder each time.

    Attributes:
        act: writes the target; gets the folder, and whether to replace.
        target: name of what is written.
        force: an older target is there, and is replaced.
        older: writes that older target.
        home: has the source in it, and where things are made.
    """

    name: str
    act: Callable[[Path, bool], None]
    target: str
    force: bool
    older: Callable[[Path, bool], None]
    home: Path

    @cached_property
    def start(self) -> Path:
        """The folder as it is before: copied for each case."""
        start = self.home / f"start-{self.name}"
        start.mkdir()
        if self.force:
            self.older(start, False)
        return start

    @cached_property
    def old(self) -> str | None:
        return digest(self.start / self.target) if self.force else None

    @cached_property
    def new(self) -> str:
        """What an undisturbed run makes: the same each time, also over itself."""
        folder = self.home / f"new-{self.name}"
        shutil.copytree(self.start, folder)
        made = set()
        for force in (self.force, True, True):
            self.act(folder, force)
            made.add(digest(folder / self.target))
        shutil.rmtree(folder)
        (found,) = made
        assert found != self.old
        return found

    def names(self, folder: Path) -> set[str]:
        """The names that may be in the folder when all is done: the target, and the data that it reads."""
        target = folder / self.target
        graph = onnx.load(target, load_external_data=False).graph if target.suffix == ".onnx" else None
        return {self.target} | {e.value for t in (graph.initializer if graph else ()) for e in t.external_data if e.key == "location"}


def scenes(base: Path) -> list[Scene]:
    """All commands, with weights inside and beside the graph, onto nothing and onto an older target."""
    out = []
    for external in (False, True):
        home = base / ("apart" if external else "one")
        source = home / "source" / "model.onnx"
        source.parent.mkdir(parents=True)
        onnx.save(onnx.load(MODELS / "tiny-llama.onnx"), source, **(dict(save_as_external_data=True, location="weights.bin", size_threshold=100) if external else {}))
        (source.parent / "tokenizer.json").write_text("{}")
        acts = _acts(home, source)
        for name in ("expand", "expand-folder", "import", *(() if external else ("export", "recipe"))):
            act, older, target = acts[name]
            out += [Scene(f"{name}, {'external' if external else 'embedded'}, {'over an older one' if force else 'new'}", act, target, force, older, home)
                    for force in (False, True)]
    return out


def _acts(home: Path, source: Path) -> dict[str, tuple[Callable, Callable, str]]:
    """By name: what is done, what made the older target, and the target's name."""
    from onnxgrow.pytorch import export, import_weights

    model = Model(source)
    plan, other = model.plan(hidden=120, only_hidden=True), model.plan(ffn=300)
    other.write(home / "bigger.onnx", validate=False)
    bigger = Model(home / "bigger.onnx")
    export(model, home / "pt", check=False)
    trained = [_trained(home / "pt" / "model.safetensors", home / f"trained-{k}.safetensors", k) for k in (1, 2)]

    def expand(p):
        return lambda folder, over: p.write(folder / "out.onnx", validate=False, overwrite=over)

    def into_folder(p):
        return lambda folder, over: write_folder(p, source.parent, folder / "grown", validate=False, overwrite=over)

    def exported(m):
        return lambda folder, over: export(m, folder / "pt", check=False, overwrite=over)

    def brought(file):
        return lambda folder, over: import_weights(model, file, folder / "out.onnx", check=False, overwrite=over)

    def noted(size):
        return lambda folder, over: growthfile.save(folder / "recipe.yaml", {"sizes": {"hidden": size}}, over)

    return {"expand": (expand(plan), expand(other), "out.onnx"), "expand-folder": (into_folder(plan), into_folder(other), "grown"),
            "export": (exported(model), exported(bigger), "pt"), "import": (brought(trained[0]), brought(trained[1]), "out.onnx"),
            "recipe": (noted(96), noted(48), "recipe.yaml")}


def _trained(weights: Path, target: Path, step: int) -> Path:
    from safetensors.numpy import load_file, save_file

    save_file({name: (w + np.float32(step)).astype(w.dtype) for name, w in load_file(weights).items()}, target)
    return target
