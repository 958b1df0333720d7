"""ONNX Runtime sessions that leave the weights on disk and say where they really ran.

A session is opened from the graph alone: every big weight is named as external data (file, offset, length), embedded ones
too, so that ONNX Runtime maps it instead of reading it. A 0.8 GB file costs 33 MB of memory instead of 3.3 GB.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper

from .errors import FileError, GraphError, OnnxgrowError, UsageError
from .precision import in_float32
from .source import Source, open_source

RUN_SECONDS, RUN_SECONDS_PER_MB = 120, 1.0  # that one run may take, before and for each megabyte of weights: far more than any needs
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OPTIONS = {  # TF32 keeps 10 bits of a float32: far too few to tell a wrong growth from a right one
    CPU: [CPU],
    CUDA: [(CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}), CPU],
}
RARE = ("bfloat16", "float16", "double")  # types in which operators may lack a kernel
FOREIGN = {TensorProto.BFLOAT16}  # types that ONNX Runtime cannot hand to numpy


@dataclass
class Session:
    """A model ready to run. `provider` is the one that ONNX Runtime put first, `outputs` the names in order.

    `replaced` says why everything is computed in float32, where the provider cannot run the model in its own types.
    """

    inner: object
    provider: str
    outputs: list[str]
    replaced: str | None = None
    seconds: float = RUN_SECONDS

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name. GraphError, with what ONNX Runtime said, where the model does not take the feeds, or runs for longer than `seconds`."""
        try:
            values = self._run({name: _to_runtime(x) for name, x in feeds.items()})
            return {name: _to_numpy(v) for name, v in zip(self.outputs, values, strict=True)}
        except Exception as error:  # ONNX Runtime raises a dozen classes without a common one
            raise GraphError(said(error), hint="give arrays of the names, types, sizes and values that the model takes") from error


    def _run(self, feeds: dict):
        """In a thread of its own, so that a loop without end can be stopped, by the clock or by Ctrl-C."""
        options = _onnxruntime().RunOptions()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.inner.run_with_ort_values, self.outputs, feeds, options)
            try:
                return answer.result(self.seconds)
            except TimeoutError:
                raise GraphError(f"one run takes longer than {self.seconds:.0f} s", hint="check its loops, or run on a faster machine") from None
            finally:
                options.terminate = True  # of a run that is over it changes nothing


def pick_provider(wanted: str | None = None) -> str:
    """The execution provider for "cpu", "cuda" or None (CUDA where there is a device, else the CPU).

    Raises:
        UsageError: another word.
        OnnxgrowError: CUDA was asked for, and no CUDA device can be used.
    """
    if wanted not in (None, "cpu", "cuda"):
        raise UsageError(f"there is no provider {wanted!r}", hint="one of: cpu, cuda")
    if wanted == "cpu":
        return CPU
    problem = _cuda_problem()
    if problem and wanted == "cuda":
        raise OnnxgrowError(f"no CUDA device can be used: {problem}",
                            hint="check nvidia-smi, run `pip install 'onnxruntime-gpu[cuda,cudnn]'`, or ask for the provider cpu")
    return CPU if problem else CUDA


def open_session(path: str | os.PathLike | Source, provider: str = CPU, extra_outputs: Iterable[str] = (), training: bool = True,
                 replaced: str | None = None) -> Session:
    """Open the model at `path` (or opened already), unoptimised, with intermediate tensors as further outputs.

    Where the provider lacks an operator in the model's own type, or where another session was `replaced` for that reason, everything is
    computed in float32 (see `precision`). `training=False` lets Dropout pass everything, also where it was exported to drop.

    Raises:
        FileError: the file is missing or breaks a read rule.
        GraphError: ONNX Runtime refuses the model.
    """
    ort = _onnxruntime()
    source = path if isinstance(path, Source) else open_source(path)
    header, folder = detached(source)
    known = {o.name for o in header.graph.output}
    for name in extra_outputs:
        if name not in known:
            header.graph.output.add(name=name)  # without a type ONNX Runtime infers it
    for node in header.graph.node:
        if node.op_type == "Dropout" and len(node.input) > 2 and not training:
            del node.input[2:]
    options = _options(ort)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)

    def opened(model: onnx.ModelProto):
        return ort.InferenceSession(model.SerializeToString(), options, providers=OPTIONS[provider], enable_fallback=0)

    try:
        try:
            inner = opened(header) if not replaced else opened(in_float32(header))
        except Exception as error:
            if not _lacks_type(error):
                raise
            replaced, inner = said(error), opened(in_float32(header))
    except Exception as error:
        if failed := re.search(r"SystemError : (\d+)", str(error)):  # of the disk: it says nothing of the model
            raise FileError(f"cannot read {source.path}: {os.strerror(int(failed[1]))}", hint="check the file and its disk, then run the command again") from error
        raise GraphError(f"ONNX Runtime does not open the file {source.path}: {said(error)}", hint=_next_step(error, provider)) from error
    seconds = RUN_SECONDS + RUN_SECONDS_PER_MB * sum(ref.length for ref in source.tensors.values()) / 1e6
    return Session(inner, inner.get_providers()[0], [o.name for o in inner.get_outputs()], replaced, seconds)


def _lacks_type(error: Exception) -> bool:
    """Does the runtime know the operators, but not in the types of the model?"""
    text = str(error)
    return "Could not find an implementation" in text or ("Type Error: Type 'tensor(" in text and any(f"({name})" in text for name in RARE))


def detached(source: Source) -> tuple[onnx.ModelProto, str]:
    """The model with every big weight as external data, and the folder that the locations are relative to."""
    header = onnx.ModelProto()
    header.CopyFrom(source.proto)
    folder = os.path.commonpath([source.path.resolve().parent, *(ref.file.resolve().parent for ref in source.tensors.values())])
    for tensor in header.graph.initializer:
        ref = source.tensors.get(tensor.name)
        if ref is not None:
            where = {"location": os.path.relpath(ref.file.resolve(), folder), "offset": ref.offset, "length": ref.length}
            tensor.ClearField("raw_data")
            del tensor.external_data[:]
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
    return header, folder


def _next_step(error: Exception, provider: str) -> str:
    if "implementation" in str(error):
        return f"{provider} lacks an operator in this element type: use another provider, or export in float32"
    if any(words in str(error) for words in ("is not a registered function/op", "No Op registered for")):
        return "it has no kernel for this operator: grow with --no-validate (in Python: validate=False), and compare where the model can run"
    return "try the provider cpu" if provider == CUDA else "open the file with onnxruntime.InferenceSession, or update onnxruntime"


def said(error: Exception) -> str:
    """What ONNX Runtime said, in one line of at most 300 characters."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ .* was false\. ", "", str(error))
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."


def _onnxruntime():
    """Imported only here: it takes a second. Its own warnings are not for our users."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def norms_lose_digits(model: onnx.ModelProto, provider: str) -> bool:
    """Do the model's norms come out wrong from the fifth digit on where many entries are alike? So they do on the CPU before 1.27: from 96 to 1,024 entries by 4e-5."""
    version = re.match(r"(\d+)\.(\d+)", _onnxruntime().__version__)
    old = version is not None and tuple(map(int, version.groups())) < (1, 27)
    return old and provider == CPU and any(n.op_type in ("LayerNormalization", "SkipLayerNormalization") for n in model.graph.node)


def _options(ort):
    """Unoptimised kernels give the same bits for any number of threads; prepacking would copy every weight."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.enable_mem_pattern = False  # shapes change from case to case
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@cache
def _cuda_problem() -> str | None:
    """Why CUDA cannot be used, or None. The list of available providers names CUDA on every machine, so try it."""
    ort = _onnxruntime()
    if CUDA not in ort.get_available_providers():
        return "this onnxruntime is built without CUDA"
    problem = _driver_problem()
    if problem:
        return problem
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        ort.preload_dlls()  # finds the libraries that pip installed; prints what it does not find
    options = _options(ort)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(_tiny(), options, providers=[CUDA], enable_fallback=0)
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:
        return said(error)
    return None if session.get_providers()[0] == CUDA else "ONNX Runtime fell back to the CPU"


def _driver_problem() -> str | None:
    """Why NVIDIA's driver has no device to offer, asked without ONNX Runtime: 1.21 ends the process where CUDA's libraries are installed, as torch brings them, and no device is."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    count = ctypes.c_int()
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return None if found else "NVIDIA's driver finds no device"


def _tiny() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [x], [y])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()


def _to_runtime(x: np.ndarray):
    from onnxruntime import OrtValue

    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    if kind in FOREIGN:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(x).view(np.uint16), kind)
    return OrtValue.ortvalue_from_numpy(np.require(x, requirements="C"))


def _to_numpy(value) -> np.ndarray:
    if not value.is_tensor() or value.element_type() not in FOREIGN:
        return value.numpy()
    bits = (ctypes.c_uint16 * int(np.prod(value.shape()))).from_address(value.data_ptr())
    return np.frombuffer(bits, np.uint16).reshape(value.shape()).copy().view(helper.tensor_dtype_to_np_dtype(value.element_type()))
