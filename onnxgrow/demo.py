"""`onnxgrow demo`: the whole circle on a small trained model that the package carries, and what each step shows.

Inspect, grow, validate; then, where torch is installed, export, go on training, and back (demo_training.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from . import atomic
from .console import emit, show
from .demo_training import NEEDS, go_on, has_torch
from .describe import architecture_lines, summary_lines
from .errors import FileError
from .model import load
from .runtime import open_session
from .terminal import mode
from .terminal.growth import growth_screen, report_screen
from .terminal.picture import model_screen

NAME, LAYERS, HIDDEN, CONTEXT = "tiny-llama", 6, 144, 128  # the model was trained on windows of 128 bytes

WHAT = """\
This package carries a language model of 2 MB, trained on the sources of
Python's standard library. Here it grows, in a few minutes on 2 cores.

1. What is it?  Every size is read off the graph; there is no configuration
   file.

   $ onnxgrow inspect {source}"""
GROW = """
2. Make it 1.5 times as deep and as wide.  New layers are copies whose last
   maps are zero, so they add nothing yet. In all layers old weights keep
   their values; new ones are zero where old parts would read them, and random
   where nobody reads them yet: so the output stays, and gradient can reach
   them. Heads and feed-forward follow; norms get a factor that undoes what
   the wider axis does to them. (--plan prints every layer and tensor.)

   $ onnxgrow expand {source} --layers {layers} --hidden {hidden}"""
COMPARE = """
3. Is it the same function?  Both run side by side in ONNX Runtime on made-up
   inputs.

   $ onnxgrow validate {source} {grown}"""
LOSS = """
4. And on real text?  The loss, in nats per byte, on {bytes:,} bytes of Python
   that it was not trained on. Training the larger model goes on from here,
   not from the {chance:.2f} of a random guess.
"""
END = """
To grow your own:

   $ onnxgrow expand model.onnx --layers 24 --hidden 1024 --plan"""


def run(keep: Path | None, steps: int, as_json: bool) -> int:
    """The whole demo; 0 where source and result agree."""
    with _folder(keep) as folder:
        source = _carried(folder)
        model = load(source)
        plan = model.plan(layers=LAYERS, hidden=HIDDEN)
        grown = folder / plan.default_path().name
        names = {"source": source.name, "grown": grown.name, "layers": LAYERS, "hidden": HIDDEN}
        say = (lambda *_: None) if as_json else _paragraphs
        picture = mode.pictured() and not as_json and not mode.quiet()
        say([WHAT.format(**names), *([""] if picture else _indent(architecture_lines(model.architecture)))])
        if picture:
            mode.draw(lambda width: model_screen(model, width))
        say([GROW.format(**names), *([""] if picture else _indent([f"{n}: {old} -> {new}" for n, (old, new) in plan.sizes.items()] + summary_lines(plan)))])
        if picture:
            mode.draw(lambda _: growth_screen(plan, grown))
        plan.write(grown, validate=False)
        say([COMPARE.format(**names)])
        report = model.plan_like(load(grown)).compare(grown)
        text = files("onnxgrow.models").joinpath("sample.txt").read_bytes()
        before, after = (nats_per_byte(path, text) for path in (source, grown))
        if picture:
            mode.draw(lambda _: ["", *report_screen(report, "exact")])
        say([*([] if picture else _indent(report.lines())), LOSS.format(bytes=len(text), chance=np.log(256)), *_indent(_losses(names, before, after))])
        trained = go_on(source, grown, folder, steps, say) if has_torch() else None
        say([*([] if trained else [NEEDS]), END])
        if keep:
            say([f"\nThe files are in {folder}."])
        if as_json:
            emit({"command": "demo", "model": str(source) if keep else source.name, "output": str(grown) if keep else None,
                  "architecture": model.architecture.to_json(), "plan": plan.to_json(), "validation": report.to_json(),
                  "loss": {"unit": "nats per byte", "before": before, "after": after},
                  "training": trained and {"losses": trained.losses, "source": trained.source, "agreement": trained.agreement}})
    return 0 if report.equal else 1


def nats_per_byte(model: Path, text: bytes) -> float:
    """Mean loss of a byte-level language model over consecutive windows of a text, as examples/train_tiny.py counts it."""
    ids = np.frombuffer(text, np.uint8).astype(np.int64)
    starts = np.arange(0, len(ids) - CONTEXT, CONTEXT)
    windows = ids[starts[:, None] + np.arange(CONTEXT + 1)]  # B T+1
    logits = open_session(model).run({"input_ids": windows[:, :-1]})["logits"].astype(np.float64)  # B T V
    peak = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - peak).sum(-1)) + peak[..., 0]
    right = np.take_along_axis(logits, windows[:, 1:, None], -1)[..., 0]
    return float((log_sum - right).mean())


def _losses(names: dict, before: float, after: float) -> list[str]:
    rows = {names["source"]: f"{before:.6f}", names["grown"]: f"{after:.6f}", "difference": f"{abs(after - before):.1e}"}
    return [f"{name:<{len(names['grown'])}}  {value}" for name, value in rows.items()]


def _paragraphs(texts: list[str]) -> None:
    """Print texts of our own, which have several lines."""
    show([line for text in texts for line in text.split("\n")])


def _indent(lines: list[str]) -> list[str]:
    return [f"   {line}" for line in lines]


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """The user's folder, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="onnxgrow-demo-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FileError(f"cannot use the folder {keep}: {problem.strerror}", hint="name another one: --keep FOLDER") from problem
    yield keep


def _carried(folder: Path) -> Path:
    """A copy of the carried model, so that the printed commands can be repeated beside it."""
    target = folder / f"{NAME}.onnx"
    made = (target.name, f"{NAME}-h{HIDDEN}-l{LAYERS}.onnx", "grown_pt", "source_pt", "trained.onnx")
    if any((folder / name).exists() for name in made):
        raise FileError(f"{folder} already holds files of the demo", hint="name another folder, or remove them")
    with as_file(files("onnxgrow.models").joinpath(target.name)) as carried:
        atomic.save(target, carried.read_bytes(), overwrite=False)
    return target
