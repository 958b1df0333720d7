"""Exports of the zoo in other element types: float16 by ONNX Runtime's converter, half() and bfloat16() in PyTorch, float64.

Files are kept beside those of the zoo. The names do not match tests/zoo*.py: editing them exports nothing else again.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch

from tests import zoo
from tests.once import made
from tests.zoo_models import SPECS

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The cached file of that name; `make` writes it to a path where it is not there yet."""
    return made(zoo.cache_folder() / f"typed-{name}.onnx", make)


def by_converter(name: str, exporter: str = "dynamo", keep_io: bool = False, islands: tuple[str, ...] = ()) -> Path:
    """An export turned into float16 by onnxruntime.transformers; `islands` are operators that compute in float32, between Casts."""
    def make(path: Path) -> None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            source = onnx.load(zoo.export(name, exporter))
            half = convert_float_to_float16(source, keep_io_types=keep_io)
        _cast_around(half, islands)
        onnx.save(half, path)
    return kept("-".join([name, exporter, "half", *["io"] * keep_io, *islands]), make)


def _cast_around(model: onnx.ModelProto, operators: tuple[str, ...]) -> None:
    """Casts before and behind every node of some operators: the converter's own way gives several Casts one name, which is no valid graph."""
    whole = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64}
    whole |= {n.output[0] for n in model.graph.node if n.op_type == "Constant" and n.attribute[0].t.data_type == onnx.TensorProto.INT64}
    nodes = []
    for index, node in enumerate(model.graph.node):
        if node.op_type not in operators:
            nodes.append(node)
            continue
        for slot, name in enumerate(node.input):
            if name and name not in whole:
                node.input[slot] = f"{name}.{index}.{slot}"
                nodes.append(onnx.helper.make_node("Cast", [name], [node.input[slot]], f"widen.{index}.{slot}", to=onnx.TensorProto.FLOAT))
        (name,) = node.output
        node.output[0] = f"{name}.{index}"
        nodes += [node, onnx.helper.make_node("Cast", [node.output[0]], [name], f"narrow.{index}", to=onnx.TensorProto.FLOAT16)]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)


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
