"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers share the cores, and tiny models lose by waiting for each other


@pytest.fixture
def snapshot():
    """A function: everything in a folder and below it, by relative name, as (bytes, time of the last change)."""

    def take(folder: Path) -> dict[str, tuple[bytes, int]]:
        files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
        return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    return take
