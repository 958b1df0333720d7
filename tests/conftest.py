"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers share the cores, and tiny models lose by waiting for each other


# Of models of one family (with and without a cache, encoder and its decoder) the short run takes one or two.
SECOND = {"bert-cls", "t5-gated", "t5-decoder", "bart-decoder", "opt-past", "phi-past", "mistral", "mistral-past", "qwen2", "qwen3-past", "gemma-past", "gemma-kv2",
          "gptj-past", "falcon-past", "falcon-kv2", "gpt-neox", "clip-vision", "deit"}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is about a model of `SECOND` is slow."""
    for item in items:
        for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
            first = value[0] if isinstance(value, tuple) and value else value
            name = getattr(first, "name", first)
            if isinstance(name, str) and name in SECOND:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What the libraries hold stays: the collector of garbage, which would look through all of it again and again, leaves it out."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def snapshot():
    """A function: everything in a folder and below it, by relative name, as (bytes, time of the last change)."""

    def take(folder: Path) -> dict[str, tuple[bytes, int]]:
        files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
        return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    return take
