"""The exports behind docs/support.md: every model of the zoo and of tests/support_models.py, by exporter, attention and form of the graph. Files are kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
import transformers

from tests import growing, zoo
from tests.once import made
from tests.support_models import SUPPORT
from tests.zoo_models import SPECS, Spec

MODELS: dict[str, Spec] = SPECS | SUPPORT
FORMS = ("plain", "opset 23", "basic", "extended", "optimizer", "float16")
OPTIMIZER_TYPES = {"bert": ("bert", "roberta", "electra", "xlm-roberta", "distilbert"), "gpt2": ("gpt2",), "bart": ("bart",), "vit": ("vit", "deit"),
                   "t5": ("t5",), "clip": ("clip-text", "clip-vision"), "phi": ("phi",), "gpt_neox": ("gpt-neox",)}


class NoExport(Exception):
    """This combination does not exist: an exporter or a converter cannot make it."""


@dataclass(frozen=True)
class Variant:
    """One way to write a model down."""

    name: str
    exporter: str = "dynamo"
    attn: str = "eager"
    form: str = "plain"

    def __str__(self) -> str:
        return "/".join((self.name, self.exporter, self.attn, self.form))

    @property
    def spec(self) -> Spec:
        return MODELS[self.name]


def variants(part: str, only: list[str] | None = None) -> list[Variant]:
    """Those of a part: `quick` takes one plain export of each model, its neighbours take the other exporter and attention; `forms` each form of each
    model, from that export; `crossed` what is left of the models that other tests use too, so that they are tried in every exporter, attention and form;
    `plain` and `all` are of every model. The smaller parts come first, so that a run that is cut short says most."""
    names = [n for n in MODELS if not only or n in only]
    quick = [Variant(n, *_usual(n)) for n in names]
    forms = [Variant(v.name, "dynamo" if form == "opset 23" else v.exporter, v.attn, form) for form in FORMS[1:] for v in quick]
    every = [Variant(*case) for case in product(names, zoo.EXPORTERS, zoo.ATTENTIONS, FORMS)]
    every = [v for v in every if not (v.attn == "sdpa" and "eager" in v.spec.tags or v.form == "opset 23" and v.exporter != "dynamo")]
    parts = {"quick": quick, "forms": quick + forms, "crossed": [v for v in every if v.name in SPECS and v not in quick + forms],
             "plain": quick + [v for v in every if v.form == "plain"], "all": quick + forms + every}
    return list(dict.fromkeys(parts[part]))


def _usual(name: str) -> tuple[str, str]:
    at = list(MODELS).index(name)
    found = [e for e in growing.EXPORTS if not (e[1] == "sdpa" and ("eager" in MODELS[name].tags or zoo.known_failure(name, *e)))]
    return found[at % len(found)]


def cache() -> Path:
    folder = Path(os.environ.get("ONNXGROW_ZOO", tempfile.gettempdir())) / "onnxgrow-support"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@lru_cache(maxsize=None)
def state_of(name: str) -> str:
    """A hash of all that an export depends on: the libraries, the model with its weights, what it is fed, and the modules around it."""
    spec = MODELS[name]
    module, digest = spec.build(), hashlib.sha256()
    for part in (torch.__version__, transformers.__version__, onnx.__version__, ort.__version__, repr(module), repr(spec.axes), repr(spec.outputs), repr(spec.tags)):
        digest.update(part.encode())
    for part in (*module.state_dict().values(), *spec.example().values()):
        digest.update(part.contiguous().view(-1).numpy().tobytes())
    digest.update(repr([m.config.to_json_string() for m in module.modules() if hasattr(m, "config")][:1]).encode())
    for file in ("zoo_modules.py", "zoo_moe.py", "support_inputs.py"):
        digest.update((Path(__file__).parent / file).read_bytes())
    return digest.hexdigest()[:12]


def export(v: Variant) -> Path:
    """The file of a variant, made if it is not there yet.

    Raises:
        NoExport: it cannot be made, or says something else than PyTorch.
    """
    if v.name in SPECS and (reason := zoo.known_failure(v.name, v.exporter, v.attn, 23 if v.form == "opset 23" else None)):
        raise NoExport(reason)
    try:
        state = state_of(v.name)
    except Exception as error:  # whatever a library raises
        raise NoExport(f"{type(error).__name__}: {error}") from error
    path = path_of(v, state)
    failed = path.with_suffix(".failed")
    if failed.exists():
        raise NoExport(failed.read_text())

    def make(fresh: Path) -> None:
        _make(v, fresh)
        _check(v, fresh)

    try:
        return made(path, make)
    except Exception as error:  # whatever an exporter raises
        failed.write_text(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        raise NoExport(failed.read_text()) from error


def path_of(v: Variant, state: str) -> Path:
    return cache() / f"{v.name}-{state}-{v.exporter}-{v.attn}-{v.form.replace(' ', '')}.onnx"


def _make(v: Variant, path: Path) -> None:
    if v.form in ("plain", "opset 23"):
        opset = 23 if v.form == "opset 23" else zoo.DEFAULT_OPSET[v.exporter]
        if v.name in SPECS:
            shutil.copy(zoo.export(v.name, v.exporter, v.attn, opset), path)
            return
        zoo.write(v.spec, path, v.exporter, v.attn, opset, "static" in v.spec.tags, 0)
        return
    plain = export(Variant(v.name, v.exporter, v.attn))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        {"basic": _optimised, "extended": _optimised, "optimizer": _with_optimizer, "float16": _halved}[v.form](v, plain, path)


def _optimised(v: Variant, plain: Path, path: Path) -> None:
    """As ONNX Runtime rewrites it when it loads it."""
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(path)
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if v.form == "basic" else levels.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(plain), options, ["CPUExecutionProvider"])


def _with_optimizer(v: Variant, plain: Path, path: Path) -> None:
    """As the offline optimiser for transformers rewrites the architectures that it knows."""
    from onnxruntime.transformers.optimizer import optimize_model

    kind = next((kind for kind, names in OPTIMIZER_TYPES.items() if any(v.name == n or v.name.startswith(f"{n}-") for n in names)), None)
    if kind is None:
        raise NoExport("ONNX Runtime's optimiser does not know this architecture")
    heads, hidden = v.spec.sizes["heads"], v.spec.sizes["hidden"]
    optimize_model(str(plain), kind, num_heads=heads, hidden_size=hidden, opt_level=0).save_model_to_file(str(path))


def _halved(v: Variant, plain: Path, path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(plain), keep_io_types=True), path)


def _check(v: Variant, path: Path) -> None:
    """The export says what PyTorch says, at the sizes that it saw."""
    inputs = v.spec.example(seed=1)
    with torch.no_grad():
        expected = v.spec.build(0, v.attn)(*inputs.values())
    got = growing.session(path).run(list(v.spec.outputs), growing.arrays(inputs))
    worst = max(zoo.relative(a, b.numpy()) for a, b in zip(got, expected, strict=True))
    if not worst < (5e-2 if v.form == "float16" else 1e-4):
        raise NoExport(f"the export differs from PyTorch by {worst:.0e}")
