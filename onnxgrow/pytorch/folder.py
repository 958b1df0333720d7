"""A folder with a model as PyTorch code: model.py, config.json, model.safetensors and train.py, checked against ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np

from .. import __version__
from ..atomic import check_apart, check_free, check_room, new_folder
from ..errors import FileError
from ..model import Model
from ..notebook import shown_as
from ..write import check_source
from .check import Agreement, agree, is_causal
from .program import Program, decompile
from .regions import region_entries
from .safetensors import Tensor, write_safetensors
from .template import model_text, train_text

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
         "uint8": "U8", "bool": "BOOL"}  # fmt: skip
WRITTEN = ("model.py", "train.py", "config.json", "model.safetensors")


@dataclass(frozen=True)
class Exported:
    """A written folder.

    Attributes:
        folder: where it is.
        program: the code, as text of classes; `program.main` is the name of the model's class.
        parameters: how many numbers are trained.
        lines: of model.py.
        agreement: how far it is from ONNX Runtime; None where that was not asked for.
    """

    folder: Path
    program: Program = field(repr=False)  # the whole graph
    parameters: int
    lines: int
    agreement: Agreement | None

    _repr_html_ = shown_as("exported")


def export(model: Model, folder: str | os.PathLike, *, check: bool = True, overwrite: bool = False,
           progress: Callable[[int, int], None] | None = None, checked: Callable[[int, int], None] | None = None) -> Exported:
    """Write a model as PyTorch code.

    Args:
        folder: made new; it gets its name only when the code agrees with ONNX Runtime.
        check: run both side by side at several sizes.
        overwrite: replace an existing folder that an earlier export made.
        progress: called with (bytes of weights written, bytes in all).
        checked: called with (sets of inputs run, sets in all) while both run side by side.
    Raises:
        GraphError: an operator has no PyTorch form; the message names it.
        NotEqualError: the code does not compute what the graph does.
        FileError: the folder exists, or cannot be written.
    """
    program = decompile(model)
    target = Path(folder)
    check_target(target, overwrite, model.path)
    check_room(target.absolute().parent, sum(t.nbytes for t in tensors(program).values()))
    with new_folder(target, overwrite, like=model.path) as place:
        text = write_folder(program, place, is_causal(model), progress)
        agreement = agree(program, load_once(place), checked=checked) if check else None
        shutil.rmtree(place / "__pycache__", ignore_errors=True)
        check_source(model.source)
    count = sum(prod(t.shape) for n, t in tensors(program).items() if n in program.parameters)
    return Exported(Path(folder), program, count, text.count("\n"), agreement)


def write_folder(program: Program, place: Path, causal: bool = False, progress: Callable[[int, int], None] | None = None) -> str:
    """Fill an existing folder; returns the text of model.py. `causal` says how labels are compared (see `model_text`); `progress` as in `export`."""
    text = model_text(program, causal)
    (place / "model.py").write_text(text, encoding="utf-8")
    (place / "train.py").write_text(train_text(program, causal), encoding="utf-8")
    (place / "config.json").write_text(json.dumps(_config(program), indent=2) + "\n", encoding="utf-8")
    write_safetensors(place / "model.safetensors", tensors(program), {"format": "pt", "written_by": f"onnxgrow {__version__}"}, progress)
    return text


def _config(program: Program) -> dict:
    entries = {"model": program.main, "source": program.model.path.name, "onnxgrow": __version__, "sizes": program.config}
    grown = region_entries(program)
    return entries | ({"grown": grown} if grown else {})


def tensors(program: Program) -> dict[str, Tensor]:
    """Every parameter and buffer by its name in the state dict, its values still on disk."""
    graph = program.model.roles.structure.graph
    out: dict[str, Tensor] = {}
    for name, ref in program.parameters.items():
        if ref.tensor is None:
            out[name] = Tensor((ref.size,), "F32", lambda n=ref.size: np.zeros(n, np.float32))
            continue
        shape, kind = graph.weight_shape(ref.tensor), TYPES[str(graph.array(ref.tensor).dtype)]
        turned = ref.transposed
        out[name] = Tensor(shape[::-1] if turned else shape, kind, lambda t=ref.tensor, turned=turned: graph.array(t).T if turned else graph.array(t))
    for name, tensor in program.buffers.items():
        array = graph.array(tensor)
        out[name] = Tensor(tuple(array.shape), TYPES[str(array.dtype)], lambda t=tensor: graph.array(t))
    return out


def parameters_of(model: Model) -> dict[str, Callable[[], np.ndarray]]:
    """The trained weights of a model by the framework's own names, in the layout of torch.nn ([out, in] for a linear map); each once."""
    program = decompile(model)
    return {name: t.array for name, t in tensors(program).items() if name in program.parameters}


def load_folder(folder: str | os.PathLike):
    """The torch.nn.Module of an exported folder, with its weights, in evaluation mode."""
    return module_of(folder).load(folder)


def load_once(folder: str | os.PathLike):
    """As `load_folder`, of a folder that goes away: its Python module is not kept among those of the interpreter."""
    module = module_of(folder)
    del sys.modules[module.__name__]
    return module.load(folder)


def module_of(folder: str | os.PathLike) -> ModuleType:
    """The Python module behind the model.py of a folder; it is run."""
    file = Path(folder) / "model.py"
    if not file.is_file():
        raise FileError(f"{folder} holds no model.py", hint="make the folder with: onnxgrow export MODEL.onnx -o FOLDER")
    name = f"onnxgrow_exported_{abs(hash(file.resolve()))}_{file.stat().st_mtime_ns}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def check_target(target: Path, overwrite: bool, source: Path) -> None:
    """FileError where a folder of that name may not be made: it exists and is none that an earlier export made, or somebody put more into it."""
    check_free(target, overwrite, _is_ours)
    check_apart(target, source)
    more = sorted({*os.listdir(target)} - {*WRITTEN, "__pycache__"}) if target.is_dir() else []
    if more:
        raise FileError(f"{target} holds {', '.join(more[:3])}, which would be lost: export did not write it", hint="move it elsewhere, or choose another name with -o")


def _is_ours(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
