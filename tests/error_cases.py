"""What provokes each message of docs/errors.md: the cases of tests/test_errors.py, by class of error and by saying.

A case gets the working folder, with model.onnx (the Llama-like model) and gpt.onnx in it, and pytest's monkeypatch for what no file
can bring about (a full disk). It makes its files and returns a line for the command line, or a function that calls the Python API.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from tests import bounded_models
from tests.test_cli import MODELS, contents, run

Act = str | Callable[[], object]
Case = Callable[[Path, pytest.MonkeyPatch], Act]
FAMILIES: list[Family] = []


class Family(dict[str, Case]):
    """The sayings below one heading of docs/errors.md, each with its case."""

    def __init__(self, error: str):
        super().__init__()
        self.error = error
        FAMILIES.append(self)

    def __call__(self, *sayings: str) -> Callable[[Case], Case]:
        """Decorates the case of one saying, or of several that one message has."""
        def entered(case: Case) -> Case:
            assert not self.keys() & set(sayings), sayings
            self.update(dict.fromkeys(sayings, case))
            return case
        return entered

    def lines(self, table: dict[str, str]) -> None:
        """Cases that need no more than a command."""
        for saying, line in table.items():
            self(saying)(lambda folder, patch, line=line: line)


def provoke(case: Case, folder: Path, patch: pytest.MonkeyPatch) -> tuple[dict, int | None]:
    """What `--json` says of the error, and the exit code (None: of the Python API). The folder must be as it was before."""
    act = case(folder, patch)
    before = contents(folder)
    if isinstance(act, str):
        code, out, err = run(*act.split(), "--json")
        assert code, f"the command went through: {act}\n{out[:500]}"
        found = json.loads(out)
        document = found.get("error") or dict(type="", message="", hint="")
        assert "Traceback" not in err and document["message"] in err, err
        assert "next: " in err or err.startswith("Usage: "), f"no next step: {err}"
    else:
        code = None
        with pytest.raises(OnnxgrowError) as raised:
            act()
        document = dict(type=raised.value.kind, message=raised.value.what, node=raised.value.node, hint=raised.value.hint)
    assert contents(folder) == before, "something was left behind"
    return document, code


def says(message: str, saying: str) -> bool:
    """Do the parts of a saying, with … between them, stand in a message in this order?"""
    at = 0
    for part in map(str.strip, saying.split("…")):
        found = message.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


# --- builders that the families share ---------------------------------------------------------------------------------


def changed(name: str, change: Callable[[onnx.GraphProto], object], target: str = "bad.onnx") -> Path:
    """A carried model (tiny-gpt, tiny-llama) or any file, with its graph changed."""
    source = Path(name) if name.endswith(".onnx") else MODELS / f"{name}.onnx"
    proto = onnx.load(source)
    change(proto.graph)
    onnx.save(proto, target)
    return Path(target)


def planning(path: Path | str, **sizes) -> Callable[[], object]:
    """A growth that is planned when called."""
    return lambda: Model(Path(path)).plan(**sizes)


def writing(path: Path | str, **sizes) -> Callable[[], object]:
    """A growth that is planned and written, with validation, when called."""
    return lambda: Model(Path(path)).plan(**sizes).write("grown.onnx")


def longer(kind: str, folder: Path) -> Callable[[], object]:
    """A model of tests/bounded_models.py for 40 positions, of which 57 are asked for when called."""
    path = bounded_models.export(bounded_models.bounded(kind, 40), bounded_models.inputs(kind, 2, 9), folder / "bad.onnx", "torchscript")
    return planning(path, positions=57)


def tensor(graph: onnx.GraphProto, name: str, values: np.ndarray) -> None:
    """Give an initializer, old or new, these values."""
    made = numpy_helper.from_array(np.asarray(values), name)
    held = [t for t in graph.initializer if t.name == name]
    held[0].CopyFrom(made) if held else graph.initializer.append(made)


def in_folder(config: dict | str | None = None, genai: dict | str | None = None, model: str = "model.onnx") -> None:
    """The folder `src` as optimum or onnxruntime-genai write one, of a model in the working folder."""
    Path("src").mkdir()
    shutil.copy(model, "src/model.onnx")
    for name, held in (("config.json", config), ("genai_config.json", genai)):
        if held is not None:
            Path("src", name).write_text(held if isinstance(held, str) else json.dumps(held))


def raising(problem: BaseException) -> Callable:
    """A function that raises, in the place of one of the system's."""
    def raises(*_, **__):
        raise problem
    return raises
