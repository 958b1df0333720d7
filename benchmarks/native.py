"""A grown graph is as good as a native one: the same operators, the same fusions, the same speed.

    python -m benchmarks.native                          prints the table, about 3 minutes
    python -m benchmarks.native --write docs/native.md   also writes the page

Each model is exported small and grown, and the larger configuration is exported by the same exporter. Compared are all nodes, what feeds
what, the operators that are left after ONNX Runtime's two optimisers, and the time of a run.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnxruntime as ort
import transformers
from torch import nn

import onnxgrow
from benchmarks.analysis import machine
from tests import zoo
from tests.zoo_models import BERT, GPT2, SPECS, VIT, FirstOutput

MODELS = {"gpt2": "gpt2", "bert-mlm": "bert", "llama": "gpt2", "vit": "vit"}  # and what onnxruntime.transformers is to take each for
DOUBLE = {"bert-mlm"}  # its norms come after the branch: exact at whole multiples only
EXPORTERS, ATTENTIONS = ("torchscript", "dynamo"), ("eager", "sdpa")
LONGER = dict(max_position_embeddings=128, n_positions=128, image_size=32)  # than in the zoo
BATCH, LENGTH, ROUNDS, WARM = 4, 64, 60, 6

Histogram = Counter[str]


@dataclass(frozen=True)
class Sizes:
    """What a configuration is asked for; heads keep their size."""

    layers: int
    hidden: int
    heads: int
    ffn: int

    def times(self, depth: float, width: float) -> Sizes:
        """Larger in depth and in everything else."""
        return Sizes(int(self.layers * depth), *(int(n * width) for n in (self.hidden, self.heads, self.ffn)))


SMALL = Sizes(4, 128, 4, 512)
GROWTHS = {"layers": (1.5, 1), "all": (1.5, 1.5), "all, doubled": (2, 2)}  # times layers, times hidden, heads and ffn


# --- the two graphs --------------------------------------------------------------------------------------------------


def network(name: str, attn: str, sizes: Sizes, more: dict) -> nn.Module:
    """A model of the zoo in other sizes."""
    body = dict(num_hidden_layers=sizes.layers, hidden_size=sizes.hidden, num_attention_heads=sizes.heads, intermediate_size=sizes.ffn)
    grouped = dict(num_key_value_heads=sizes.heads // 2, use_cache=False)
    gpt2 = dict(n_layer=sizes.layers, n_embd=sizes.hidden, n_head=sizes.heads, n_inner=sizes.ffn)
    cls, config = {
        "gpt2": (transformers.GPT2LMHeadModel, GPT2 | gpt2),
        "bert-mlm": (transformers.BertForMaskedLM, BERT | body),
        "llama": (transformers.LlamaForCausalLM, BERT | body | grouped),
        "vit": (transformers.ViTForImageClassification, VIT | body),
    }[name]
    config |= {key: value for key, value in more.items() if key in config}
    return cls(cls.config_class(attn_implementation=attn, **config))


def example(name: str, more: dict, batch: int = 3, length: int = 7) -> dict:
    """Inputs by name."""
    spec = SPECS[name]
    return spec.inputs(spec.sizes | {"image": more.get("image_size", spec.sizes.get("image"))}, batch, length, 0)


def export(name: str, exporter: str, attn: str, sizes: Sizes, path: Path, more: dict) -> Path:
    """A model of the zoo in other sizes, with random weights everywhere, as a file."""
    spec = replace(SPECS[name], make=lambda attn: FirstOutput(network(name, attn, sizes, more), tuple(example(name, more))),
                   inputs=lambda _, batch, length, seed: example(name, more, batch, length))
    zoo.write(spec, path, exporter, attn, zoo.DEFAULT_OPSET[exporter], False, 0)
    return path


def growth(old: Sizes, new: Sizes) -> dict[str, int]:
    """Arguments of `plan`: heads and ffn follow hidden."""
    return {"layers": new.layers} | ({"hidden": new.hidden} if new.hidden != old.hidden else {})


# --- what is compared ------------------------------------------------------------------------------------------------


def operators(model: onnx.ModelProto) -> Histogram:
    """Nodes by domain and operator."""
    return Counter(f"{n.domain}:{n.op_type}".lstrip(":") for n in model.graph.node)


def wiring(model: onnx.ModelProto) -> Histogram:
    """Connections: which operator's which output feeds which input of which operator; weights by type and number of axes."""
    made = {o: f"{n.op_type}.{i}" for n in model.graph.node for i, o in enumerate(n.output)}
    made |= {t.name: f"weight {t.data_type} {len(t.dims)}" for t in model.graph.initializer} | {v.name: v.name for v in model.graph.input}
    return Counter(f"{made[name]} -> {n.op_type}.{slot}" for n in model.graph.node for slot, name in enumerate(n.input) if name)


def optimised(path: Path, folder: Path) -> onnx.ModelProto:
    """What ONNX Runtime makes of a file when it opens it with all optimisations."""
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(folder / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def transformer_optimised(path: Path, name: str, sizes: Sizes) -> onnx.ModelProto:
    """What ONNX Runtime's tool for transformers makes of it."""
    from onnxruntime.transformers import optimizer

    logging.disable(logging.WARNING)  # it reports each fusion that it does not find
    try:
        return optimizer.optimize_model(str(path), MODELS[name], num_heads=sizes.heads, hidden_size=sizes.hidden).model
    finally:
        logging.disable(logging.NOTSET)


def views(path: Path, name: str, sizes: Sizes, folder: Path) -> dict[str, Histogram]:
    """All that must be equal, by what it is called in the table."""
    plain = onnx.load(path)
    return {"nodes": operators(plain), "wiring": wiring(plain), "ONNX Runtime": operators(optimised(path, folder)),
            "transformers tool": operators(transformer_optimised(path, name, sizes))}


def fused(found: Histogram) -> int:
    """Operators that only an optimiser makes."""
    return sum(count for op, count in found.items() if op.startswith("com.microsoft") or op == "SimplifiedLayerNormalization")


def difference(grown: Histogram, native: Histogram) -> str:
    """Empty where both are equal, else each operator with (grown, native)."""
    return ", ".join(f"{op} {grown[op]} for {native[op]}" for op in sorted(grown | native) if grown[op] != native[op])


def missing(grown: Histogram, native: Histogram) -> int | None:
    """How many fewer the grown graph has, where it has nothing more."""
    return sum((native - grown).values()) if not grown - native else None


# --- time ------------------------------------------------------------------------------------------------------------


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def latency(grown: Path, native: Path, feeds: dict) -> tuple[list[float], list[float]]:
    """Ratios grown / native and native / native (two sessions of the same file: the noise), of runs in turn.

    Each runs on this thread alone, and its processor time is taken: waiting for other jobs does not count. Two sessions of each file take
    turns, so that each finds the processor's caches as a run of the other file left them; those opened later are a little faster, so that
    one file has the first and the last of them.
    """
    first, second, third, fourth = (session(path) for path in (grown, native, native, grown))
    runners, rows = (first, second, fourth, third), []
    for _ in range(ROUNDS + WARM):
        times = []
        for runner in runners:
            start = time.thread_time()
            runner.run(None, feeds)
            times.append(time.thread_time() - start)
        rows.append(((times[0] + times[2]) / (times[1] + times[3]), times[3] / times[1]))
    ours, noise = zip(*rows[WARM:], strict=True)
    return list(ours), list(noise)


def spread(ratios: list[float]) -> str:
    """Median, with the quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


# --- the table -------------------------------------------------------------------------------------------------------

DIFFERS = "**differs**"
HEAD = ["model", "exporter", "attention", "grown", "nodes", "wiring", "ONNX Runtime", "transformers tool", "time, grown / native", "native / native"]


def row(name: str, exporter: str, attn: str, label: str, source: Path, folder: Path) -> tuple[str, list[str]]:
    """A line of the table, and what differs."""
    depth, width = GROWTHS[label]
    new = SMALL.times(depth, 2 if width > 1 and name in DOUBLE else width)
    native = export(name, exporter, attn, new, folder / "native.onnx", LONGER)
    grown = onnxgrow.load(source).plan(**growth(SMALL, new)).write(folder / "grown.onnx", overwrite=True).path
    ours, theirs = (views(path, name, new, folder) for path in (grown, native))
    problems = [f"{name}, {exporter}, {attn}, {label}, {view}: {text}" for view in ours if (text := difference(ours[view], theirs[view]))]
    feeds = {key: value.numpy() for key, value in example(name, LONGER, BATCH, LENGTH).items()}
    cells = [name, exporter, attn, label, *(cell(view, ours[view], theirs[view]) for view in ours)]
    return " | ".join([*cells, *map(spread, latency(grown, native, feeds))]), problems


def cell(view: str, grown: Histogram, native: Histogram) -> str:
    """Equal, or how many fewer, and how many of them are fused."""
    fewer = missing(grown, native)
    if fewer is None or fused(grown) != fused(native):
        return DIFFERS
    verdict = f"= {sum(native.values()):,}" + (f" - {fewer}" if fewer else "")
    return verdict if view in ("nodes", "wiring") else f"{verdict}, {fused(native)} fused"


def table(names: list[str]) -> tuple[list[str], list[str]]:
    """Lines of the table, and all differences."""
    lines, problems = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"], []
    for name, exporter, attn in itertools.product(names, EXPORTERS, ATTENTIONS):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            source = export(name, exporter, attn, SMALL, folder / "source.onnx", LONGER)
            for label in GROWTHS:
                line, found = row(name, exporter, attn, label, source, folder)
                lines.append(f"| {line} |")
                problems += found
                print(lines[-1], file=sys.stderr, flush=True)
    return lines, problems


INTRODUCTION = f"""\
# A grown graph is as good as a native one

Written by `python -m benchmarks.native --write docs/native.md`; do not edit. A small model is exported and grown, and the larger
configuration is exported by the same exporter. Small: {SMALL.layers} layers, hidden {SMALL.hidden}, {SMALL.heads} heads, ffn {SMALL.ffn}, random
weights. `layers`: 1.5 times the layers; `all`: 1.5 times layers, hidden, heads and ffn in one growth (BERT, whose norms come after the
branch: layers 1.5 times, the others twice); `all, doubled`: everything twice. Every growth was exact and validated.

`=` means that grown and native graph have the same number of each: nodes by operator; *wiring*, which operator feeds which input of
which operator; operators, fused ones included, that ONNX Runtime is left with after all its own optimisations, and after its tool for
transformers (`onnxruntime.transformers.optimizer`; Llama is taken for GPT-2, as ONNX Runtime's own script for it does). Repairs lie in
weights and attributes, so no pattern breaks.

Times are ratios of processor times of runs in turn in one process on one thread, batch {BATCH}, length {LENGTH} (pictures of 32 by 32): median
and quartiles of {ROUNDS} rounds, two sessions of each file. The last column is one session of the native file against the other: the noise.
"""
FEWER = """
BERT by the TorchScript exporter, doubled: its first layer takes batch and length from the states that the mask is made for, where the
other layers ask for the shape again. A copy of the first layer does as the first layer does, so the grown graph has two `Shape` and two
`Gather` with their constants less. The operators that compute are the same, and so are the fused ones."""
GATES = """
`--depth-method gate` adds nodes by design: a `Mul` for each branch of a new block, or a `Sub`, a `Mul` and an `Add` for each new block
where norms come after the branch."""


def middle(lines: list[str], column: int) -> float:
    """The median of a column of times."""
    return statistics.median(float(line.strip("| ").split(" | ")[column].split()[0]) for line in lines[2:])


def page(lines: list[str], problems: list[str]) -> str:
    """The whole of docs/native.md."""
    found = ["", "Differences (grown for native):", "", *(f"- {p}" for p in problems), FEWER] if problems else []
    times = (f"Over all {len(lines) - 2} rows the medians of grown / native have the median {middle(lines, -2):.3f}, those of native / native "
             f"{middle(lines, -1):.3f}.")
    return "\n".join([INTRODUCTION, *lines, "", times, *found, GATES, "", f"Measured on: {machine()}, onnxruntime {ort.__version__}.", ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.native", description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="Markdown page to write")
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=MODELS)
    arguments = parser.parse_args()
    lines, problems = table(arguments.only)
    print("\n".join([*lines, *problems]))
    if arguments.write:
        arguments.write.write_text(page(lines, problems), encoding="utf-8")
    return 1 if any(DIFFERS in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
