"""How long it takes to open a model and to plan its growth: no weight is read, so only the number of nodes counts.

    python -m benchmarks.analysis                     exports 24 layers and about 5,000 nodes, prints a table
    python -m benchmarks.analysis --profile llama     where the time goes, by function
    python -m benchmarks.analysis --docs              also puts the table into docs/benchmarks.md

Each time is that of a fresh process, after the imports: the fastest of five. Targets: 24 layers in 1 s, 5,000 nodes in 3 s.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import os
import platform
import pstats
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS, NODES = 24, 5000
MODELS = {"llama": {"hidden": 48}, "gpt2": {"hidden": 48}}  # the zoo's models are 32 wide
EXPORTERS = ("dynamo", "torchscript")
SLOW = {("gpt2", "dynamo")}  # 130 layers make 5,000 nodes there, and the exporter takes a quarter of an hour for them
ROUNDS = 5
TARGETS = {LAYERS: 1.0, NODES: 3.0}


def export(model: str, exporter: str, layers: int, folder: Path) -> Path:
    """A model of the zoo with many layers, exported once."""
    path = folder / f"{model}-{exporter}-{layers}.onnx"
    if not path.exists():
        from tests import zoo, zoo_models

        spec = zoo_models.SPECS[model]
        deep = lambda attn: zoo_models.FirstOutput(_network(model, layers, attn), tuple(spec.example()))  # noqa: E731
        zoo.write(replace(spec, make=deep), path, exporter, "eager", zoo.DEFAULT_OPSET[exporter], False, 0)
    return path


def _network(model: str, layers: int, attn: str):
    import transformers

    from tests.zoo_models import BERT, GPT2

    if model == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(attn_implementation=attn, **GPT2 | {"n_layer": layers}))
    sizes = BERT | {"num_hidden_layers": layers, "num_key_value_heads": 2, "use_cache": False}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(attn_implementation=attn, **sizes))


def layers_for(nodes: int, model: str, exporter: str, folder: Path) -> int:
    """How many layers give about that many nodes."""
    few, more = (node_count(export(model, exporter, n, folder)) for n in (2, 4))
    return 2 + round((nodes - few) / ((more - few) / 2))


def node_count(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def once(path: Path, sizes: dict[str, int]) -> dict[str, float]:
    """Seconds to open and to plan, in this process."""
    import onnxgrow

    assert onnxgrow.load  # imports what is needed; that is not counted
    start = time.perf_counter()
    model = onnxgrow.load(path)
    opened = time.perf_counter()
    plan = model.plan(**sizes)
    return {"load": opened - start, "plan": time.perf_counter() - opened, "certificate": plan.certificate.kind}


def measure(path: Path, sizes: dict[str, int]) -> dict[str, float]:
    """The fastest of fresh processes: what else the machine does can only add."""
    command = [sys.executable, "-m", "benchmarks.analysis", "--child", str(path), json.dumps(sizes)]
    rows = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout) for _ in range(ROUNDS)]
    return {key: min(row[key] for row in rows) for key in ("load", "plan")}


def table(folder: Path) -> tuple[list[str], bool]:
    """Lines of the table, and whether every target is met."""
    lines, good = ["| model | exporter | layers | nodes | open | plan | together | target |", "|---|---|---|---|---|---|---|---|"], True
    for goal in TARGETS:
        for model, exporter in itertools.product(MODELS, EXPORTERS):
            if goal != LAYERS and (model, exporter) in SLOW:
                continue
            layers = goal if goal == LAYERS else layers_for(goal, model, exporter, folder)
            path = export(model, exporter, layers, folder)
            found = measure(path, MODELS[model])
            together = found["load"] + found["plan"]
            good &= together <= TARGETS[goal]
            lines.append(f"| {model} | {exporter} | {layers} | {node_count(path):,} | {found['load']:.2f} s | {found['plan']:.2f} s "
                         f"| {together:.2f} s | {TARGETS[goal]:g} s |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines, good


def machine() -> str:
    """The machine and the versions, in one line."""
    import onnx

    import onnxgrow

    words = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return (f"{words[0] if words else platform.processor()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, "
            f"Python {platform.python_version()}, onnx {onnx.__version__}, onnxgrow {onnxgrow.__version__}")


def into_docs(lines: list[str]) -> None:
    """Replace what stands between the markers in docs/benchmarks.md."""
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    block = "\n".join(["<!-- analysis -->", *lines, "", f"Measured on: {machine()}.", "<!-- /analysis -->"])
    page.write_text(re.sub(r"<!-- analysis -->.*<!-- /analysis -->", lambda _: block, text, flags=re.S), encoding="utf-8")


def profile(model: str, folder: Path) -> None:
    path = export(model, "dynamo", LAYERS, folder)
    once(path, MODELS[model])
    with cProfile.Profile() as found:
        once(path, MODELS[model])
    pstats.Stats(found).sort_stats("tottime").print_stats(25)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where exports are kept for the next run (default: a temporary folder)")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--profile", choices=MODELS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(once(Path(arguments.child[0]), json.loads(arguments.child[1]))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.profile:
            profile(arguments.profile, folder)
            return 0
        lines, good = table(folder)
    print("\n".join(lines))
    if arguments.docs:
        into_docs(lines)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
