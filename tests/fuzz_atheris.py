"""Fuzzing that is guided by coverage: `python -m tests.fuzz --atheris --minutes N` (pip install atheris, which has wheels for some versions of Python only).

libFuzzer keeps the inputs that reach new lines of onnxgrow, and changes them with tests/fuzz_changes.py where they are models, else byte by byte.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path


def main(minutes: float, log: Path | None) -> None:
    import atheris
    from google.protobuf.message import DecodeError

    with atheris.instrument_imports(include=["onnxgrow"]):
        import onnxgrow.describe
        import onnxgrow.model  # noqa: F401
    from onnxgrow.errors import OnnxgrowError
    from tests.fuzz import sources, use
    from tests.fuzz_changes import mutant

    place = log or Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, content in sources():
        if len(content) < 1 << 18:
            (corpus / name).write_bytes(content)
    path = Path(tempfile.mkdtemp(prefix="fuzz-"), "model.onnx")

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            use(path, random.Random(len(data)))
        except OnnxgrowError as problem:
            assert problem.hint, problem
        finally:
            for file in path.parent.glob("grown*"):
                file.unlink()

    def changed(data: bytes, most: int, seed: int) -> bytes:
        try:
            return mutant(random.Random(seed), data)[:most]
        except (DecodeError, ValueError, TypeError):
            return atheris.Mutate(data, most)

    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={int(60 * minutes)}", "-max_len=300000", "-rss_limit_mb=3000", "-timeout=60", f"-artifact_prefix={place}/"],
                  one, custom_mutator=changed)
    atheris.Fuzz()
