"""How a table of constants goes on, where its old entries say so: sequences, triangles, bands, constants.

Nothing is guessed: a rule must give back every old entry, and what follows no rule is None.
"""

from __future__ import annotations

import numpy as np


def continue_rows(table: np.ndarray, count: int) -> np.ndarray | None:
    """`count` more rows behind [rows, columns], where each column is a constant or an arithmetic sequence: [rows + count, columns]."""
    if len(table) < 2:
        return None
    still = (table == table[0]).all(axis=0)
    out = np.concatenate([table, np.repeat(table[-1:], count, axis=0)])
    if still.all():
        return out
    moving = table[:, ~still]
    if table.dtype.kind == "b" or not np.isfinite(moving.astype(np.float64)).all():
        return None
    steps = np.arange(1, count + 1)[:, None]
    if table.dtype.kind in "iu":
        step = moving[1] - moving[0]
        if (np.diff(moving, axis=0) != step).any():
            return None
        out[len(table) :, ~still] = moving[-1] + steps.astype(table.dtype) * step
        return out
    if not (_is_even(moving[:3]) and _is_even(moving)):  # learned tables are large, and fail at once
        return None
    first, last = moving[[0, -1]].astype(np.float64)
    out[len(table) :, ~still] = (last + steps * (last - first) / (len(table) - 1)).astype(table.dtype)
    return out


def continue_diagonals(table: np.ndarray, count: int) -> np.ndarray | None:
    """[..., rows, columns] with `count` more of both, where an entry depends on its diagonal only (causal, banded, ALiBi)."""
    lead, (rows, columns) = table.shape[:-2], table.shape[-2:]
    if min(rows, columns) < 2:
        return None
    out = np.empty((*lead, rows + count, columns + count), table.dtype)
    for at in np.ndindex(lead):
        square = table[at]
        if not (square[1:, 1:] == square[:-1, :-1]).all():
            return None
        below, above = (continue_side(side, count) for side in (square[:, 0], square[0]))
        if below is None or above is None:
            return None
        diagonals = np.concatenate([below[:0:-1], above])  # from the lowest to the highest
        out[at] = np.lib.stride_tricks.sliding_window_view(diagonals, columns + count)[::-1]
    return out


def continue_side(side: np.ndarray, count: int) -> np.ndarray | None:
    """More diagonals on one side, [0] being the main one: beside it they change once (a band's edge), never, or evenly."""
    if (side[2:] != side[1:-1]).sum() <= 1:
        return np.concatenate([side, np.repeat(side[-1:], count)])
    even = continue_rows(side[:, None], count) if side.dtype.kind not in "biu" else None
    return None if even is None else even[:, 0]


def _is_even(table: np.ndarray) -> bool:
    """Is every column of floats [rows, columns] an arithmetic sequence, but for rounding?"""
    exact, digits = table.astype(np.float64), {"float16": 11, "bfloat16": 8, "float32": 24}.get(table.dtype.name, 53)
    step = (exact[-1] - exact[0]) / (len(exact) - 1)
    error = np.abs(exact[0] + np.arange(len(exact))[:, None] * step - exact)
    return bool((error <= 4 * 2.0**-digits * np.abs(exact).max(axis=0)).all())
