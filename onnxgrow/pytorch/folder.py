"""A folder with a model as PyTorch code: model.py, config.json, model.safetensors and train.py, checked against ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np

from .. import __version__
from ..errors import FileError
from ..model import Model
from ..notebook import shown_as
from ..write import OR_FORCE
from .check import Agreement, agree, is_causal
from .program import Program, decompile
from .regions import region_entries
from .safetensors import Tensor, write_safetensors
from .template import model_text, train_text

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
         "uint8": "U8", "bool": "BOOL"}  # fmt: skip


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
    with staged(Path(folder), overwrite) as place:
        text = write_folder(program, place, is_causal(model), progress)
        agreement = agree(program, load_folder(place), checked=checked) if check else None
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


@contextmanager
def staged(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside the target, which takes its name when all went well and is removed otherwise."""
    target = check_target(target, overwrite)
    try:
        place = Path(tempfile.mkdtemp(prefix=".onnxgrow-", dir=target.parent))
        place.chmod(0o755)
    except OSError as error:
        raise FileError(f"cannot write into {target.parent}: {error.strerror}", hint="choose another folder") from None
    try:
        yield place
        if target.exists():
            shutil.rmtree(target)
        shutil.rmtree(place / "__pycache__", ignore_errors=True)
        os.replace(place, target)
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror or error}", hint="check the disk, then try again") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def check_target(target: Path, overwrite: bool = False) -> Path:
    """The absolute path of a folder that may be made. FileError where it exists, or its parent does not."""
    target = Path(os.path.abspath(target))
    if target.exists() and not (overwrite and _is_ours(target)):
        raise FileError(f"{target} exists", hint="choose another name with -o" + (OR_FORCE if _is_ours(target) else ""))
    if not target.parent.is_dir():
        raise FileError(f"there is no folder {target.parent}", hint="create it first")
    return target


def _is_ours(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
