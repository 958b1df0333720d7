"""Graphs by other projects (`../shared/models`): what inspect must say of each, and what becomes of each growth.

    python -m tests.shared_graphs        the table of docs/support.md, as markdown

Source and grown model run in ONNX Runtime on the inputs that lie beside the graph; the comparison is the tests' own.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from onnxgrow.plan import Plan
from tests import growing

FOLDER = next((p / "shared" / "models" for p in Path(__file__).resolve().parents if (p / "shared" / "models").is_dir()), None)
LIMITS = {"FLOAT16": 2e-2}
NEAR = 0.5  # what a near growth of these small models may differ by


@dataclass(frozen=True)
class Known:
    """What a reader of the graph finds in it: layers, hidden, heads, ffn, vocab; None where there is no such thing."""

    source: str
    layers: int
    hidden: int | tuple[int, ...]
    heads: int | None
    ffn: int | tuple[int, ...] | None
    vocab: int | None = None


ABOUT = """Published by others, with exporters and spellings that are not ours; `python -m tests.shared_graphs` writes this part. Each size alone: hidden × 1.5 and × 2
(heads and ffn follow), heads × 2, ffn + 5, one more layer; of several stages the first. Errors are relative to the largest value of an output, with the inputs that
lie beside the graphs. `ort_tfbert_keras2onnx` is 24 norms after the branch at a width of 8, where near is far."""

ORT, GENAI = "microsoft/onnxruntime", "microsoft/onnxruntime-genai"
KNOWN = {
    "ort_bert_toy": Known(ORT, 5, 32, 4, 37, 99),
    "ort_gpt2_past": Known(ORT, 12, 4, 2, 16, 20),
    "ort_gpt2_megatron": Known(ORT, 1, 8, 2, 32, 10),
    "ort_tfbert_keras2onnx": Known(ORT, 24, 8, 2, 32, 20),
    "ort_tinygpt2_beam": Known(ORT, 5, 32, 4, 128, 1000),
    "ort_whisper_hf_enc": Known(ORT, 1, 10, 2, 10),
    "ort_whisper_hf_dec_past": Known(ORT, 1, 10, 2, 10),
    "genai_tinygpt2_fp32": Known(GENAI, 5, 32, 4, 128, 1000),
    "genai_tinygpt2_fp16": Known(GENAI, 5, 32, 4, 128, 1000),
    "genai_tinyqwen35": Known(GENAI, 2, 64, 4, 128, 1000),
    "genai_mobius_op24": Known(GENAI, 2, 64, 4, 128, 256),
    "vespa_random_encoder": Known("vespa-engine/vespa", 1, 8, None, 16),  # one head, which is no axis
    "vespa_dummy_transformer": Known("vespa-engine/vespa", 2, 16, 2, 32),
    "jax_flat_dyn": Known("enpasos/jax2onnx", 1, 256, 8, 512),
    "jax_func4_dyn": Known("enpasos/jax2onnx", 1, 256, 8, 512),
    "exp_llama_dynamic": Known("sdpython/experimental-experiment", 1, 16, 2, 16, 1024),
    "deeploy_cct2_128_op20": Known("pulp-platform/Deeploy", 2, 128, 2, 128),
    "silero_vad_micro": Known("snakers4/silero-vad", 4, (8, 16, 16, 16), 2, (8, 16, 16, 16)),
    "mlagents_sorter": Known("Unity-Technologies/ml-agents", 1, 128, 4, None),
    "ezkl_nanogpt": Known("zkonduit/ezkl", 4, 64, 4, 256, 65),
}


@lru_cache(maxsize=2)
def opened(name: str) -> Model:
    return Model(FOLDER / f"{name}.onnx")


def found(model: Model) -> dict[str, object]:
    """The facts of `Known` as onnxgrow sees them."""
    roles = model.roles

    def size(role: str):
        sizes = [roles.size(n) for n in roles.each(role)]
        return None if not sizes else sizes[0] if len(sizes) == 1 or role == "heads" and len(set(sizes)) == 1 else tuple(sizes)

    return {"layers": sum(s.layers for s in model.stacks)} | {role: size(role) for role in ("hidden", "heads", "ffn", "vocab")}


def growths(model: Model) -> dict[str, dict]:
    """Each size alone and one more layer; of several widths or stacks the first."""
    width, out = model.roles.widths[0], {}
    for role, more in (("hidden", lambda n: n + n // 2), ("heads", lambda n: 2 * n), ("ffn", lambda n: n + 5)):
        name = width.role(role)
        if model.roles.size(name):
            out[role] = {"set": {name: more(model.roles.size(name))}, "only_hidden": True}
    if "hidden" in out:
        out["hidden x2"] = {"set": {width.role("hidden"): 2 * model.roles.size(width.role("hidden"))}}
    out["layers"] = {"set": {model.stacks[0].name: model.stacks[0].layers + 1}} if model.stacks else {"layers": 2}
    return out


@dataclass(frozen=True)
class Cell:
    """What became of a growth: "exact", "near" with the error, "refused" with the reason."""

    kind: str
    error: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        return {"refused": "refused"}.get(self.kind, f"{self.kind} {self.error:.0e}")


def tried(name: str, label: str) -> Cell:
    """Grow, run both, compare. AssertionError where the result is not what the certificate says."""
    model = opened(name)
    try:
        plan = model.plan(**growths(model)[label])
    except OnnxgrowError as refusal:
        return Cell("refused", reason=str(refusal).partition("\n")[0])
    with tempfile.TemporaryDirectory() as folder:
        error = difference(plan, growing.written(plan, Path(folder)), name)
    limit = {"exact": LIMITS.get("FLOAT16") if plan.certificate.rounding else growing.TOLERANCE, "near": NEAR}[plan.certificate.kind]
    assert error <= limit, (name, label, plan.certificate.kind, error)
    return Cell(plan.certificate.kind, error)


def difference(plan: Plan, grown: Path, name: str) -> float:
    """Largest difference of any output that two runs of the source agree on, relative to its largest value."""
    feeds = dict(np.load(FOLDER / f"{name}.inputs.npz"))
    source, runner, noise = growing.session(FOLDER / f"{name}.onnx"), growing.session(grown), np.random.default_rng(0)
    names = [o.name for o in source.get_outputs()]
    first, again = ({n: x for n, x in zip(names, source.run(None, feeds))} for _ in range(2))
    asked, worst = [o.name for o in runner.get_outputs() if o.name in plan.twins.outputs], 0.0
    fed = {i.name: _spread(plan, i.name, feeds[plan.twins.inputs[i.name]], noise)[0] for i in runner.get_inputs()}
    for output, got in zip(asked, runner.run(asked, fed)):
        old = first[plan.twins.outputs[output]]
        if not np.array_equal(old, again[plan.twins.outputs[output]], equal_nan=True):
            continue  # drawn at random
        want, defined = _spread(plan, output, old)
        assert got.shape == want.shape, (output, got.shape, want.shape)
        scale = np.abs(old).max()
        worst = max(worst, float(np.abs(got.astype(np.float64) - want.astype(np.float64))[defined].max() / scale) if scale else 0.0)
    return worst


def _spread(plan: Plan, tensor: str, x: np.ndarray, noise: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Values of the source where the grown tensor holds them, and which entries these are."""
    known = tensor in plan.decisions.mapper.s.dims
    return growing.spread(x, growing.map_of(plan, tensor), noise) if known else (x, np.ones(x.shape, bool))


def section() -> str:
    """The part of docs/support.md about these graphs."""
    lines = ["| graph | by | layers / hidden / heads / ffn / vocab | " + " | ".join(LABELS) + " |", "|---|---|---|" + "---|" * len(LABELS)]
    reasons: dict[str, list[str]] = {}
    for name, known in sorted(KNOWN.items(), key=lambda item: (item[1].source, item[0])):
        sizes, cells = found(opened(name)), []
        for label in LABELS:
            cell = tried(name, label) if label in growths(opened(name)) else None
            cells.append("–" if cell is None else str(cell))
            if cell is not None and cell.kind == "refused":
                reasons.setdefault(re.sub(r" \(node.*", "", cell.reason), []).append(f"{name} {label}")
        facts = " / ".join("–" if v is None else "·".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in sizes.values())
        lines.append(f"| {name} | {known.source} | {facts} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Refused:", "", *(f"- {', '.join(who)}: {why}" for why, who in sorted(reasons.items()))])


LABELS = ("hidden", "hidden x2", "heads", "ffn", "layers")

if __name__ == "__main__":
    print(section())
