"""Memory and time of growing a model of several GB, against `cp` of the result.

    python benchmarks/streaming.py [--gb 3] [--dtype float32] [--rounds 3] [--folder DIR] [--only GROWTH]

Writes a Llama-like model with external data (random weights), then grows it in depth, in every dimension, in both and in ffn only,
in subprocesses, in turn with `cp` of the result. Prints for each the wall time ratio, once as it is and once with both
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
from onnx import TensorProto, helper, numpy_helper

HIDDEN, FFN, VOCAB, HEAD_DIM = 2048, 5632, 32000, 64

SIZES = {"hidden": HIDDEN, "heads": HIDDEN, "ffn": FFN, "vocab": VOCAB}
BLOCK = {"input_norm": ("hidden",), "q": ("hidden", "heads"), "k": ("hidden", "heads"), "v": ("hidden", "heads"), "o": ("heads", "hidden"),
         "ffn_norm": ("hidden",), "gate": ("hidden", "ffn"), "up": ("hidden", "ffn"), "down": ("ffn", "hidden")}  # as MatMul has them: [in, out]
GROWTHS = {"1.5x in every dimension": {"hidden": 3072}, "ffn only": {"ffn": 8448},  # heads and ffn follow hidden
           "1.5x the layers": {"layers": 1.5}, "1.5x the layers and every dimension": {"layers": 1.5, "hidden": 3072}}


def llama_weights(layers: int) -> dict[str, tuple[str, ...]]:
    """The dims of each weight."""
    blocks = {f"layers.{layer}.{name}": dims for layer in range(layers) for name, dims in BLOCK.items()}
    return {"embed": ("vocab", "hidden")} | blocks | {"norm": ("hidden",), "head": ("hidden", "vocab")}


def llama_nodes(layers: int) -> list[onnx.NodeProto]:
    """ids [batch, sequence] -> logits [batch, sequence, vocab]: RMSNorm, attention and a gated feed-forward part per layer."""
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, **attributes) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"t{len(nodes)}"], f"n{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    def norm(x: str, gain: str) -> str:
        mean = op("ReduceMean", op("Mul", x, x), axes=[-1], keepdims=1)
        return op("Mul", op("Div", x, op("Sqrt", op("Add", mean, "eps"))), gain)

    def heads(x: str, weight: str, perm: list[int]) -> str:
        return op("Transpose", op("Reshape", op("MatMul", x, weight), "split"), perm=perm)

    x = op("Gather", "embed", "ids")
    for layer in range(layers):
        name = f"layers.{layer}."
        y = norm(x, name + "input_norm")
        q, k, v = (heads(y, name + w, perm) for w, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])))
        context = op("MatMul", op("Softmax", op("Mul", op("MatMul", q, k), "scale"), axis=-1), v)
        x = op("Add", x, op("MatMul", op("Reshape", op("Transpose", context, perm=[0, 2, 1, 3]), "merge"), name + "o"))
        y = norm(x, name + "ffn_norm")
        gate = op("MatMul", y, name + "gate")
        x = op("Add", x, op("MatMul", op("Mul", op("Mul", gate, op("Sigmoid", gate)), op("MatMul", y, name + "up")), name + "down"))
    nodes.append(helper.make_node("MatMul", [norm(x, "norm"), "head"], ["logits"], "head"))
    return nodes


def write_source(path: Path, gigabytes: float, dtype: np.dtype) -> None:
    """A model of about `gigabytes` GB: real random bytes, no holes."""
    block = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN
    layers = max(1, round((gigabytes * 1e9 / dtype.itemsize - 2 * VOCAB * HIDDEN) / block))
    random = np.random.default_rng(0)
    pool = (random.standard_normal(1 << 24, np.float32) * 0.02).astype(dtype).tobytes()
    kind, data = helper.np_dtype_to_tensor_dtype(dtype), f"{path.name}.data"
    constants = {"eps": np.array(1e-5, dtype), "scale": np.array(HEAD_DIM**-0.5, dtype),
                 "split": np.array([0, 0, HIDDEN // HEAD_DIM, HEAD_DIM]), "merge": np.array([0, 0, HIDDEN])}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    with open(path.parent / data, "wb") as out:
        for name, dims in llama_weights(layers).items():
            shape = [SIZES[dim] for dim in dims]
            tensor = TensorProto(name=name, dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
            offset, length = -(-out.tell() // 4096) * 4096, int(np.prod(shape)) * dtype.itemsize
            out.seek(offset)
            for start in range(0, length, len(pool)):
                shift = int(random.integers(0, 1 << 16)) * dtype.itemsize
                out.write((pool[shift:] + pool[:shift])[: length - start])
            for key, value in (("location", data), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info("logits", kind, ["batch", "sequence", VOCAB])
    graph = helper.make_graph(llama_nodes(layers), "llama", [ids], [logits], tensors)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString())


def grow(source: str, target: str, growth: str, result: str) -> None:
    """In a subprocess: grow, and print seconds and bytes as JSON."""
    import onnxgrow
    from onnxgrow.rulebook import load_builtin

    load_builtin()  # an import, too
    load = onnxgrow.load
    if result:
        warm(Path(result))
    start_anonymous, peak, done = anonymous(), [0], threading.Event()

    def poll() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=poll)
    watcher.start()
    start = time.perf_counter()
    model = load(source)
    plan = model.plan(**{n: -int(-size * model.stacks[0].layers // 1) if n == "layers" else size for n, size in GROWTHS[growth].items()})
    plan.write(target, validate=False)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    assert plan.certificate.kind == "exact"
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
    parser.add_argument("--only", nargs="*", default=list(GROWTHS), choices=list(GROWTHS), help="growths to measure (default: all)")
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return grow(*arguments.child)
    folder = Path(tempfile.mkdtemp(prefix="onnxgrow-streaming-", dir=arguments.folder))
    try:
        source = folder / "source.onnx"
        write_source(source, arguments.gb, np.dtype(arguments.dtype))
        for growth in arguments.only:
            measure(source, folder, growth, arguments.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
