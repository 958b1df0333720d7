"""Which parts of the written parameters are grown, as the configuration keeps it."""

from __future__ import annotations

from .program import Program


def region_entries(program: Program) -> dict | None:
    """For each parameter that is not wholly old: "grown", or per axis the runs of old indices; None where nothing is recorded."""
    return None
