"""The dims of a model as rows for people: name, size, where it is, in which steps it grows, and what grows with it."""

from __future__ import annotations

from dataclasses import dataclass

from ..architecture import Architecture
from ..errors import OnnxgrowError
from ..request import Request
from ..roles import Roles
from ..target import resolve

WHERE = {"hidden": "residual stream", "heads": "attention", "kv_heads": "keys and values", "head_dim": "queries and keys", "v_head_dim": "values",
         "ffn": "feed-forward", "vocab": "words", "positions": "positions", "experts": "feed-forward"}
LAYERED = ("heads", "kv_heads", "head_dim", "v_head_dim", "ffn")


@dataclass(frozen=True)
class DimRow:
    """One line of the table; `step` is None where the dim cannot grow, and `follows` then says why."""

    name: str
    size: str
    where: str
    step: int | None
    follows: str


def dim_rows(roles: Roles, a: Architecture) -> list[DimRow]:
    """Stacks first, then all other dims as `Architecture.dims` lists them."""
    rows = [DimRow(s.name, str(s.layers), "blocks", s.period, "all parts of a layer") for s in a.stacks]
    for d in a.dims:
        base = d.name.split(".")[-1]
        where = WHERE.get(base, f"axis {d.name.rpartition('[')[2].rstrip(']')} of this weight" if "[" in d.name else "rows of a table")
        where += f", {d.module}" if d.module else ""
        where += f", {d.places} layers" if base in LAYERED and d.places > 1 else ""
        rows.append(DimRow(d.name, "/".join(map(str, d.sizes)), where, *((None, f"cannot grow: {d.refused}") if d.refused else growing(roles, d.name, d.size))))
    return rows


def growing(roles: Roles, name: str, size: int) -> tuple[int | None, str]:
    """(smallest step of a dim, what grows with it), from asking for it as `expand` would."""
    inner = [n for w in roles.widths for n in [roles.size(w.role("head_dim")), roles.size(w.role("heads")), roles.size(w.role("kv_heads"))] if n]
    ratios = {a // b for a in inner for b in inner if a % b == 0}
    steps = sorted({1, 2, 3, 4, 8, 16, *inner, *ratios, *(a * b for a in inner for b in ratios), size})
    problem = None
    for step in steps:
        try:
            target = resolve(roles, Request({name: size + step}))
        except OnnxgrowError as refused:
            problem = refused
            continue
        return step, ", ".join(n for n in target.roles if n != name and n in roles.roles and target.roles[n] != roles.size(n)) or "-"
    return None, "cannot grow: " + problem.what.removeprefix(f"{name} cannot grow: ")
