"""Trained weights back into the ONNX file that the PyTorch code was written from."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .. import disk
from ..errors import FileError
from ..external import Converted, TensorRef
from ..gather import gather
from ..graph import free_name
from ..model import Model
from ..regular import open_regular
from ..source import INLINE_BYTES
from ..unfold import fold
from ..write import stage
from .check import Agreement, agree
from .folder import load_once, tensors, write_folder
from .program import Program, decompile

KINDS = {"F64": TensorProto.DOUBLE, "F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
WRAPPED = re.compile(r"\b(module|_orig_mod|_checkpoint_wrapped_module)\.")  # what wrappers put into a name
AGAIN = "save it with safetensors.torch.save_model(model, FILE), from the model that onnxgrow export wrote"


def import_weights(model: Model, trained: str | os.PathLike, target: str | os.PathLike, *, check: bool = True,
                   overwrite: bool = False, noticed: Callable[[str], None] | None = None) -> Agreement | None:
    """Write a copy of a model with trained weights.

    Args:
        model: the file that was exported; its graph stays as it is.
        trained: .safetensors with every parameter under the name that the exported model has.
        check: run the result in ONNX Runtime against the PyTorch code with the same weights.
        noticed: called with a sentence where the weights are those that the model has already: nothing was trained.
    Raises:
        FileError: a tensor is missing, too many or of another shape, or a file cannot be read or written.
        NotEqualError: the result does not compute what the trained module does; nothing is left behind.
    """
    program, read = decompile(model), disk.identities([Path(trained).absolute()])
    found = _matched(program, read_safetensors(Path(trained)))
    if noticed and _untrained(program, found):
        noticed(_untrained_words(model, Path(trained)))
    source, proto = _with_weights(program, found)
    source = replace(source, seen=source.seen | read)
    with stage(source, proto, {}, target, overwrite=overwrite) as staged:
        agreement = _compare(program, found, staged.path) if check else None
        staged.commit()
    return agreement


def _untrained(program: Program, found: dict[str, TensorRef]) -> bool:
    """Is every weight what the model has already? The first that differs ends it."""
    own = tensors(program)
    return all(np.array_equal(found[name].array(), own[name].array()) for name in program.parameters)


def _untrained_words(model: Model, trained: Path) -> str:
    beside = trained.with_name("trained.safetensors")
    meant = f"did you mean {beside}?" if beside != trained and beside.is_file() else "train.py writes trained.safetensors"
    return f"these are the weights that {model.path.name} already has, nothing was trained: {meant}"


def read_safetensors(path: Path) -> dict[str, TensorRef]:
    """Where each tensor of a .safetensors file lies. FileError where it is none, or is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        descriptor, _ = open_regular(path, "file of weights")
        with os.fdopen(descriptor, "rb") as file:
            with safe_open(path, "numpy"):  # the library checks header, offsets and length
                pass
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileError as error:
        raise FileError(f"cannot read {path}: {error.what}", hint=AGAIN) from None
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise FileError(f"cannot read {path}: {error}", hint=AGAIN) from error
    out = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in KINDS:
            start, stop = entry["data_offsets"]
            out[name] = TensorRef(path.absolute(), 8 + length + start, stop - start, KINDS[entry["dtype"]], tuple(entry["shape"]))
    return out


def _matched(program: Program, stored: dict[str, TensorRef]) -> dict[str, TensorRef]:
    """The stored tensors by the program's names. One clear FileError for whatever does not fit."""
    stored = {WRAPPED.sub("", name): ref for name, ref in stored.items()}
    stored = {name: ref for name, ref in stored.items() if name not in program.buffers}
    found = {program.ties.get(name, name): ref for name, ref in stored.items()}
    shapes = {name: tuple(t.shape) for name, t in tensors(program).items() if name in program.parameters}
    missing, extra = [n for n in shapes if n not in found], [n for n in found if n not in shapes]
    wrong = [n for n in shapes if n in found and found[n].shape != shapes[n]]
    if missing:
        raise FileError(f"{len(missing)} of {len(shapes)} parameters are missing, the first is {missing[0]!r}", hint=AGAIN)
    if extra:
        raise FileError(f"{len(extra)} tensors belong to no parameter of {program.model.path.name}, the first is {extra[0]!r}",
                        hint="give the ONNX file that this model was exported from")
    if wrong:
        name = wrong[0]
        raise FileError(f"{name!r} has the shape {list(found[name].shape)}, the model needs {list(shapes[name])}",
                        hint="give the ONNX file that this model was exported from")
    return found


def _with_weights(program: Program, found: dict[str, TensorRef]):
    """The source and graph of the trained model: initializers lie in the trained file now."""
    model = program.model
    graph, proto = model.roles.structure.graph, onnx.ModelProto()
    proto.CopyFrom(graph.source.proto)
    refs = dict(graph.source.tensors)
    places = {t.name: t for t in proto.graph.initializer}
    taken = {*places, *(o for n in proto.graph.node for o in n.output)}
    for initializer, uses in _uses(program, found).items():
        arrays = {tensor: ref for tensor, ref in uses}
        first = next(iter(arrays.values()))
        for k, (tensor, ref) in enumerate(arrays.items()):
            if k and not np.array_equal(ref.array(), first.array()):  # an exporter had merged equal vectors, which have become different
                name = free_name(initializer, taken, never=True)
                places[name] = proto.graph.initializer.add(name=name, dims=ref.shape, data_type=ref.dtype)
                _put(places[name], ref, refs)
                index, slot = tensor.rpartition("@")[2].split(".")
                proto.graph.node[int(index)].input[int(slot)] = name
        _put(places[initializer], first, refs)
    dropped = [(ref.node, found[name].array()) for name, ref in program.parameters.items() if ref.tensor is None]
    for index, values in sorted(dropped, key=lambda d: -d[0]):
        if values.any():  # a bias that an exporter had dropped because it was zero; from the end, so that numbers of nodes hold
            _add_bias(proto.graph, index, values, program.sizes.type(graph.by_index[index].inputs[1]), taken)
    plain = replace(graph.source, proto=proto, tensors=refs)
    return plain, gather(fold(plain, model.registry), plain)


def _add_bias(g: onnx.GraphProto, index: int, values: np.ndarray, kind: int, taken: set[str]) -> None:
    """Give a Gemm or Conv its bias, or add it behind a MatMul."""
    node = g.node[index]
    bias = free_name(f"{node.name or 'linear'}.bias", taken)
    g.initializer.append(numpy_helper.from_array(values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)), bias))
    if node.op_type != "MatMul":
        node.input[:] = [*node.input[:2], bias]
        return
    whole = node.output[0]
    node.output[0] = free_name(f"{whole}.product", taken)
    g.node.insert(index + 1, onnx.helper.make_node("Add", [node.output[0], bias], [whole], f"{node.name}.bias"))


def _uses(program: Program, found: dict[str, TensorRef]) -> dict[str, list[tuple[str, TensorRef]]]:
    """By initializer: the tensor ids that stand for it and what each holds now, in the initializer's layout and type."""
    graph = program.model.roles.structure.graph
    out: dict[str, list[tuple[str, TensorRef]]] = {}
    for name, ref in program.parameters.items():
        if ref.tensor is None:
            continue
        copies = [(ref.tensor, ref.transposed)] + [(t, ref.transposed ^ turned) for t, (whole, turned) in program.copies.items() if whole == ref.tensor]
        for tensor, turned in copies:
            stored, kind = found[name], graph.weight_type(tensor)
            as_it_is = not turned and stored.dtype == kind
            made = stored if as_it_is else Converted(stored.file, 0, 0, kind, graph.weight_shape(tensor), stored, turned)
            out.setdefault(graph.weights[tensor], []).append((tensor, made))
    return out


def _put(tensor: TensorProto, ref: TensorRef, refs: dict[str, TensorRef]) -> None:
    """Give an initializer its values: inline where it is small, else by reference."""
    refs.pop(tensor.name, None)
    for field in ("raw_data", "float_data", "double_data", "int32_data", "external_data", "data_location"):
        tensor.ClearField(field)
    if int(np.prod(ref.shape)) * 4 <= INLINE_BYTES:
        tensor.raw_data = np.ascontiguousarray(ref.array()).tobytes()
    else:
        refs[tensor.name] = ref


def _compare(program: Program, found: dict[str, TensorRef], path: Path) -> Agreement:
    import torch

    with tempfile.TemporaryDirectory(prefix="onnxgrow-") as folder:
        write_folder(program, Path(folder))
        module = load_once(folder)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_torch(found[name].array()))
    return agree(program, module, path)


def _torch(array: np.ndarray):
    import torch

    plain = array if array.dtype in (np.float32, np.float64, np.float16) else array.astype(np.float32)  # numpy has no bfloat16 of its own
    return torch.from_numpy(np.array(plain))
