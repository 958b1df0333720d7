"""Exports of the zoo in other element types: float16 by ONNX Runtime's converter, half() and bfloat16() in PyTorch, float64.

Files are kept beside those of the zoo. The names do not match tests/zoo*.py: editing them exports nothing else again.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

from tests import zoo
from tests.zoo_models import SPECS

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The cached file of that name; `make` writes it to a path where it is not there yet."""
    path = zoo.cache_folder() / f"typed-{name}.onnx"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            make(Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    return path


def by_converter(name: str, exporter: str = "dynamo", keep_io: bool = False, blocked: tuple[str, ...] = ()) -> Path:
    """An export turned into float16 by onnxruntime.transformers; `blocked` operators stay islands of float32."""
    def make(path: Path) -> None:
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            source = onnx.load(zoo.export(name, exporter))
            onnx.save(convert_float_to_float16(source, keep_io_types=keep_io, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *blocked]), path)
    return kept("-".join([name, exporter, "float16", *["io"] * keep_io, *blocked]), make)


def by_torch(name: str, kind: str, exporter: str = "dynamo") -> Path:
    """A module of the zoo in another type, exported by PyTorch."""
    def make(path: Path) -> None:
        spec = SPECS[name]
        cast = lambda x: x.to(TORCH[kind]) if x.is_floating_point() else x  # noqa: E731
        example = {n: cast(x) for n, x in spec.example().items()}
        options = dict(input_names=list(example), output_names=list(spec.outputs), opset_version=zoo.DEFAULT_OPSET[exporter])
        if exporter == "dynamo":
            options |= dict(dynamo=True, dynamic_shapes=(tuple(spec.axes[n] for n in example),), external_data=False, verbose=False)
        else:
            options |= dict(dynamo=False, dynamic_axes=spec.axes)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(spec.build().to(TORCH[kind]), tuple(example.values()), path, **options)
    return kept(f"{name}-{exporter}-{kind}", make)
