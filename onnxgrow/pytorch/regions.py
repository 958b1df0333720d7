"""Which parts of the written parameters are grown, as config.json keeps it for `parameter_groups`."""

from __future__ import annotations

from ..regions import GROWN, read_regions
from .program import Program


def region_entries(program: Program) -> dict | None:
    """What the last growth added, by parameter; None where the file records no growth.

    `ranges` are lists of runs [start, stop) of old indices. A parameter is "grown" as a whole, or has an entry per axis: the number of its
    range, or null where the axis is wholly old. A number is old where it is so along every axis. Wholly old parameters are left out.
    """
    graph = program.model.roles.structure.graph
    regions = read_regions(graph.source.proto)
    if regions is None:
        return None
    found: dict[str, str | list] = {}
    for name, ref in program.parameters.items():
        entry = regions.tensors.get(graph.weights[ref.tensor]) if ref.tensor else None
        if entry is not None:
            found[name] = GROWN if entry == GROWN else list(entry)[::-1] if ref.transposed else list(entry)
    return {"ranges": [[list(run) for run in r] for r in regions.ranges], "parameters": found}
