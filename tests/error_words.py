"""What refusals of a growth say, whole, kept in tests/error_words.json: message, node and next step. tests/test_errors.py compares.

Only of sizes and methods, and not of configs: these say nothing in the words of another library.

    python -m tests.error_words --write          after words were changed on purpose
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest

KEPT = Path(__file__).with_name("error_words.json")
CLASSES = ("SizeError", "MethodError")


def prepare(folder: Path) -> None:
    """The two models that each case may begin with."""
    from tests.error_cases import MODELS

    for name, source in (("model", "tiny-llama"), ("gpt", "tiny-gpt")):
        shutil.copy(MODELS / f"{source}.onnx", folder / f"{name}.onnx")


def are_kept(document: dict) -> bool:
    return document["type"] in CLASSES and "--format hf" not in document["hint"]


def words(document: dict, folder: Path) -> list[str | None]:
    """Message, node and next step, without what says where the test ran."""
    return [text and text.replace(str(folder), "FOLDER") for text in (document["message"], document.get("node"), document["hint"])]


def main() -> None:
    from tests.error_cases import provoke
    from tests.test_errors import CASES

    parser = argparse.ArgumentParser(prog="python -m tests.error_words", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep what they say now")
    write = parser.parse_args().write
    found = {}
    for (error, saying), case in CASES.items():
        if error in CLASSES:
            with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                prepare(Path(folder))
                patch.chdir(folder)
                document, _ = provoke(case, Path(folder), patch)
                os.chdir("/")  # out of a folder that goes
                if are_kept(document):
                    found[f"{error}: {saying}"] = words(document, Path(folder))
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    if write:
        KEPT.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
