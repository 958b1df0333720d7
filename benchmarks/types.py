"""What growth costs in each element type and quantized format: the largest relative differences, as tables for docs/types.md.

    python benchmarks/types.py              all tables
    python benchmarks/types.py --only gpt2 llama
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnxgrow.errors import OnnxgrowError  # noqa: E402
from onnxgrow.model import Model  # noqa: E402
from tests import growing  # noqa: E402
from tests.quantized import FORMATS, quantized  # noqa: E402
from tests.test_types import KINDS  # noqa: E402

LABELS = ("hidden-only", "ffn", "heads", "head_dim", "layers", "naive-hidden")


def cell(model: Model, name: str, label: str, folder: Path) -> str:
    """The largest relative difference, with the certificate in front where it is not exact; what was refused."""
    asked = {"layers": model.architecture.layers + 1} if label == "layers" else growing.growths(name)[label]
    try:
        plan = model.plan(**asked)
        report = plan.write(folder / "grown.onnx", overwrite=True).report
    except OnnxgrowError as refusal:
        return f"**{type(refusal).__name__}**" if type(refusal).__name__ == "NotEqualError" else "refused"
    kind = "" if plan.certificate.kind == "exact" else f"{plan.certificate.kind} "
    return f"{kind}{report.max_rel:.0e}"


def table(title: str, rows: dict[str, tuple[str, Model]], folder: Path) -> None:
    print(f"\n| {title} | {' | '.join(LABELS)} | source and float form |\n|{'---|' * (len(LABELS) + 2)}")
    for row, (name, model) in rows.items():
        cells = [cell(model, name, label, folder) for label in LABELS]
        away = "-"
        if model.dequantized:
            plan = model.plan(ffn=model.architecture.ffn + 1)
            away = f"{plan.write(folder / 'away.onnx', overwrite=True).report.dequantized:.0e}"
        print(f"| {row} | {' | '.join(cells)} | {away} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["gpt2", "llama", "bert-mlm", "vit", "t5"])
    names = parser.parse_args().only
    with tempfile.TemporaryDirectory() as folder:
        table("type", {f"{name}, {kind}": (name, Model(make(name))) for name in names for kind, make in KINDS.items()}, Path(folder))
        for dequantize in (False, True):
            rows = {}
            for name in [n for n in names if n in ("llama", "gpt2")]:
                for form in FORMATS:
                    try:
                        rows[f"{name}, {form}"] = name, Model(quantized(name, form), dequantize=dequantize)
                    except OnnxgrowError as refusal:
                        print(f"{name}, {form}: not opened: {refusal.what}")
            table("--dequantize" if dequantize else "as it is", rows, Path(folder))


if __name__ == "__main__":
    main()
