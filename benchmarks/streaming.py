"""Memory and time of growing a model of several GB, against `cp` of the result.

    python benchmarks/streaming.py [--gb 3] [--dtype float32] [--rounds 3] [--folder DIR]

Writes a Llama-like model with external data (random weights), then grows it "1.5x in every dimension" and "ffn only" in
subprocesses, in turn with `cp` of the result. Prints for each the wall time ratio, once as it is and once with both
sides synced to disk, and the peak of anonymous memory above what the imports need. Needs about five times --gb of disk;
everything is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

HIDDEN, FFN, VOCAB = 2048, 5632, 32000


def llama_weights(layers: int) -> dict[str, tuple[str, ...]]:
    """The dims of each weight, as `MatMul` has them: [in, out]."""
    block = {"input_norm": ("hidden",), "q": ("hidden", "heads"), "k": ("hidden", "heads"), "v": ("hidden", "heads"),
             "o": ("heads", "hidden"), "ffn_norm": ("hidden",), "gate": ("hidden", "ffn"), "up": ("hidden", "ffn"),
             "down": ("ffn", "hidden")}  # fmt: skip
    weights = {"embed": ("vocab", "hidden")}
    for layer in range(layers):
        weights |= {f"layers.{layer}.{name}": dims for name, dims in block.items()}
    return weights | {"norm": ("hidden",), "head": ("hidden", "vocab")}


SIZES = {"hidden": HIDDEN, "heads": HIDDEN, "ffn": FFN, "vocab": VOCAB}


def write_source(path: Path, gigabytes: float, dtype: np.dtype) -> None:
    """A model of about `gigabytes` GB: real random bytes, no holes. The nodes do not matter here."""
    block = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN
    layers = max(1, round((gigabytes * 1e9 / dtype.itemsize - 2 * VOCAB * HIDDEN) / block))
    random = np.random.default_rng(0)
    pool = (random.standard_normal(1 << 24, np.float32) * 0.02).astype(dtype).tobytes()
    tensors, data = [], f"{path.name}.data"
    with open(path.parent / data, "wb") as out:
        for name, dims in llama_weights(layers).items():
            shape = [SIZES[dim] for dim in dims]
            tensor = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(dtype))
            tensor.data_location = TensorProto.EXTERNAL
            offset, length = -(-out.tell() // 4096) * 4096, int(np.prod(shape)) * dtype.itemsize
            out.seek(offset)
            for start in range(0, length, len(pool)):
                shift = int(random.integers(0, 1 << 16)) * dtype.itemsize
                out.write((pool[shift:] + pool[:shift])[: length - start])
            for key, value in (("location", data), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
    graph = helper.make_graph([], "llama", [], [], tensors)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def llama_recipes(source, sizes: dict[str, int]):
    """The edited proto and its recipes, as for every RMSNorm decoder: writers of hidden zero, readers free."""
    from onnxgrow.recipe import AxisMap, Fill, Recipe

    zero = {("heads", "hidden"), ("ffn", "hidden"), ("vocab", "hidden")}
    proto, recipes = onnx.ModelProto(), {}
    proto.CopyFrom(source.proto)
    layers = sum(tensor.name.endswith(".down") for tensor in proto.graph.initializer)
    dims_of = llama_weights(layers)
    for tensor in proto.graph.initializer:
        dims = dims_of[tensor.name]
        old, new = [SIZES[dim] for dim in dims], [sizes[dim] for dim in dims]
        if old != new:
            fill = Fill.ZERO if dims in zero else Fill.FREE
            axes = tuple(AxisMap.append(before, after, fill) for before, after in zip(old, new, strict=True))
            gain = {"free": "gain", "scale": (old[0] / new[0]) ** 0.5} if len(dims) == 1 else {}
            recipes[tensor.name] = Recipe(tensor.name, tensor.data_type, tuple(old), tuple(new), axes, **gain)
            tensor.dims[:] = new
    return proto, recipes


GROWTHS = {
    "1.5x in every dimension": {"hidden": 3072, "heads": 3072, "ffn": 8448, "vocab": VOCAB},
    "ffn only": {**SIZES, "ffn": 8448},
}


def grow(source: str, target: str, growth: str, result: str) -> None:
    """In a subprocess: grow, and print seconds and bytes as JSON."""
    from onnxgrow.source import open_source
    from onnxgrow.write import stage

    if result:
        warm(Path(result))
    start_anonymous, peak, done = anonymous(), [0], threading.Event()

    def poll() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=poll)
    watcher.start()
    start = time.perf_counter()
    opened = open_source(source)
    proto, recipes = llama_recipes(opened, GROWTHS[growth])
    with stage(opened, proto, recipes, target) as staged:
        staged.commit()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "bytes": peak[0] - start_anonymous}))


def anonymous() -> int:
    """Anonymous resident memory of this process, bytes."""
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("this kernel does not report RssAnon")


def warm(result: Path) -> None:
    """Copy and delete. A virtual machine gets each page of memory from its host on first use and may give freed ones
    back after seconds, which can take longer than the copy: both sides start with enough free pages that are there."""
    os.sync()
    scratch = result.with_name("scratch")
    shutil.copyfile(result, scratch)
    scratch.unlink()


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def grown(source: Path, target: Path, growth: str, result: Path | str = "") -> dict[str, float]:
    """Grow in a subprocess of its own."""
    command = [sys.executable, __file__, "--child", str(source), str(target), growth, str(result)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(source: Path, folder: Path, growth: str, rounds: int) -> None:
    """Both in turn, each with source and result in the page cache, everything synced, and the other's files deleted."""
    result, again, copy = folder / "result.onnx", folder / "again.onnx", folder / "copy"
    grown(source, result, growth)
    size = sum(file.stat().st_size for file in folder.glob("result.onnx*"))
    rows = []
    for _ in range(rounds):
        warm(Path(f"{result}.data"))
        copied = timed(["cp", f"{result}.data", str(copy)])
        synced = copied + timed(["sync", str(copy)])
        copy.unlink()
        run = grown(source, again, growth, f"{result}.data")
        rows.append((run["seconds"], copied, synced, run["bytes"]))
        print(
            f"  {size / 1e9:.2f} GB, {run['seconds']:.2f} s, cp {copied:.2f} s, cp and sync {synced:.2f} s", flush=True
        )
        for file in folder.glob("again.onnx*"):
            file.unlink()
    seconds, copied, synced, _ = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"{growth}: {seconds / copied:.2f} x cp, {seconds / synced:.2f} x cp and sync, "
        f"{max(row[3] for row in rows) / 1e6:.0f} MB anonymous memory (medians of {rounds}; memory: the most)"
    )
    for file in folder.glob("result.onnx*"):
        file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=3.0, help="size of the source model in GB (default 3)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return grow(*arguments.child)
    folder = Path(tempfile.mkdtemp(prefix="onnxgrow-streaming-", dir=arguments.folder))
    try:
        source = folder / "source.onnx"
        write_source(source, arguments.gb, np.dtype(arguments.dtype))
        for growth in GROWTHS:
            measure(source, folder, growth, arguments.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
