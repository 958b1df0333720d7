"""Tables of sines and cosines (rotary, sinusoidal): the frequency of each column, read off the old rows, gives the next rows.

Row p of a column holds A·cos(p·f) or A·sin(p·f). Frequencies are fitted on ever more rows, so that a slow wave is as well known as
the table allows, and every old row must then come out again. Exporters compute angles in float32, where p·f is rounded; a table
made so is recognised, and its new rows are rounded alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

LEAST_ROWS = 8  # fewer say too little
GRID = 1024  # first guesses of a frequency, from -π/2 to π/2
FEW, COLUMNS = 4, 256  # columns fitted at a time, at first and then
ROUNDED = 2.0**-23  # of an angle that was computed in float32, twice the half ulp: the frequency is rounded too


@dataclass(frozen=True)
class Waves:
    """Columns of waves.

    Args:
        cosine: bool [columns], sine elsewhere.
        frequency: float64 [columns].
        amplitude: of the whole table.
        single: whether angles are rounded to float32 before the cosine.
    """

    cosine: np.ndarray
    frequency: np.ndarray
    amplitude: float
    single: bool = False

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """float64 [positions, columns]."""
        return self.amplitude * _wave(positions, self.frequency, self.cosine, self.single)

    def columns(self, index: np.ndarray) -> Waves:
        return replace(self, cosine=self.cosine[index], frequency=self.frequency[index])


def find_waves(table: np.ndarray, known: np.ndarray | None = None) -> Waves | None:
    """The waves of a float table [rows, columns], or None where any row is something else. Rows of zeros (padding) do not count.

    Args:
        known: frequencies found in other tables; one that fits a slow column as well as its own is taken.
    """
    if len(table) < LEAST_ROWS or not all(np.isfinite(row.astype(np.float32)).all() for row in table):
        return None
    eps = max(_epsilon(table.dtype), 2.0**-24)
    rows = np.flatnonzero(table.any(axis=1))
    if len(rows) < LEAST_ROWS:
        return None
    for amplitude in _amplitudes(table, rows):
        found = _fit_all(table, amplitude, rows, eps)
        if found is not None:
            return _sharpen(Waves(*found, amplitude), table.astype(np.float64), rows, eps, known)
    return None


def _fit_all(table: np.ndarray, amplitude: float, rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray] | None:
    """(cosine, frequency) of all columns; given up at the first few that are no waves."""
    found, at, step = [], 0, FEW
    while at < table.shape[1]:
        part = _fit(table[:, at : at + step].astype(np.float64) / amplitude, rows, eps)
        if part is None:
            return None
        found.append(part)
        at, step = at + step, COLUMNS
    return tuple(np.concatenate(parts) for parts in zip(*found))


def _epsilon(dtype: np.dtype) -> float:
    """Half the distance from 1 to the next number, of any float type."""
    return {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}.get(dtype.name, 1.0)


def _wave(positions: np.ndarray, frequency: np.ndarray, cosine: np.ndarray, single: bool = False) -> np.ndarray:
    if single:
        angle = (positions[:, None].astype(np.float32) * frequency.astype(np.float32)).astype(np.float64)
    else:
        angle = positions[:, None] * frequency
    out = np.sin(angle)
    out[:, cosine] = np.cos(angle[:, cosine])
    return out


def _amplitudes(table: np.ndarray, rows: np.ndarray) -> list[float]:
    """Guesses: 1, the first row (cosines), and what the liveliest column says about sines."""
    out, y = [1.0], table[:, :COLUMNS].astype(np.float64)
    if (first := np.abs(y[0]).max()) > 0:
        out.append(float(first))
    line = y[:, np.argmax((np.diff(y, axis=0) ** 2).sum(axis=0))]
    inner = line[1:-1]
    turn = np.clip((inner * (line[2:] + line[:-2])).sum() / max(2 * (inner**2).sum(), 1e-30), -1, 1)
    angle = rows * np.arccos(turn)
    basis = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    out.append(float(np.hypot(*np.linalg.lstsq(basis, line[rows], rcond=None)[0])))
    return [a for a in dict.fromkeys(out) if a > 0]


def _fit(u: np.ndarray, rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray] | None:
    """(cosine, frequency) of columns [rows, columns] of amplitude 1, or None."""
    fitted = [_frequencies(u, rows, cosine) for cosine in (True, False)]
    worst = []
    for cosine, frequency in zip((True, False), fitted):
        error = np.abs(u[rows] - _wave(rows, frequency, np.full(u.shape[1], cosine)))
        worst.append((error / _allowed(rows, frequency, eps)).max(axis=0))
    cosine = worst[0] <= worst[1]
    if not (np.minimum(*worst) <= 1).all():
        return None
    return cosine, np.where(cosine, *fitted)


def _allowed(rows: np.ndarray, frequency: np.ndarray, eps: float) -> np.ndarray:
    """How far an entry may be off: rounding of the entry and of its angle, [rows, columns]."""
    return 8 * eps + rows[:, None] * np.abs(frequency) * ROUNDED


def _frequencies(u: np.ndarray, rows: np.ndarray, cosine: bool) -> np.ndarray:
    """Least squares on 8, 16, 32 ... rows, from the best guess of a grid: float64 [columns]."""
    grid, few = np.linspace(-np.pi / 2, np.pi / 2, GRID + 1), rows[:LEAST_ROWS]
    guesses = _wave(few, grid, np.full(len(grid), cosine))
    misfit = (guesses**2).sum(axis=0)[:, None] - 2 * guesses.T @ u[few]
    f = grid[misfit.argmin(axis=0)]
    count = LEAST_ROWS
    while True:
        here = rows[:count]
        for _ in range(4):
            f = _step(u[here], here, f, cosine)
        if count >= len(rows):
            return f
        count *= 2


def _step(u: np.ndarray, p: np.ndarray, f: np.ndarray, cosine: bool) -> np.ndarray:
    """One step of Gauss and Newton. A cosine is even, so it is fitted by f², which is well defined down to f = 0."""
    angle = p[:, None] * f
    if cosine:
        slope = -(p[:, None] ** 2) / 2 * np.sinc(angle / np.pi)
        square = f**2 + ((u - np.cos(angle)) * slope).sum(axis=0) / (slope**2).sum(axis=0)
        return np.sqrt(np.maximum(square, 0))
    slope = p[:, None] * np.cos(angle)
    return f + ((u - np.sin(angle)) * slope).sum(axis=0) / np.maximum((slope**2).sum(axis=0), 1e-30)


def _sharpen(waves: Waves, y: np.ndarray, rows: np.ndarray, eps: float, known: np.ndarray | None) -> Waves:
    """Take frequencies that sines know better than slow cosines do, and float32 angles where they explain the table better."""
    own = np.abs(waves.frequency[~waves.cosine])
    pool = np.unique(np.concatenate([own, np.abs(known) if known is not None else own]))
    if len(pool):
        nearest = pool[np.abs(pool[:, None] - np.abs(waves.frequency)).argmin(axis=0)] * np.where(waves.frequency < 0, -1, 1)
        other = replace(waves, frequency=np.where(waves.cosine, nearest, waves.frequency))
        better = (_errors(other, y, rows) <= _errors(waves, y, rows) + 2 * eps * waves.amplitude) & waves.cosine
        waves = replace(waves, frequency=np.where(better, other.frequency, waves.frequency))
    single = _in_single(waves, y, rows)
    return single if _errors(single, y, rows).max() <= _errors(waves, y, rows).max() else waves


def _errors(waves: Waves, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The largest error of each column."""
    return np.abs(waves.rows(rows) - y[rows]).max(axis=0)


def _in_single(waves: Waves, y: np.ndarray, rows: np.ndarray) -> Waves:
    """The same with float32 angles, each frequency the best of its float32 neighbours."""
    start = waves.frequency.astype(np.float32)
    best, least = start, np.full(len(start), np.inf)
    for ulps in (0, 1, -1, 2, -2, 3, -3, 4, -4):
        f = start + np.float32(ulps) * np.spacing(start)
        error = _errors(replace(waves, frequency=f, single=True), y, rows)
        best, least = np.where(error < least, f, best), np.minimum(error, least)
    return replace(waves, frequency=best.astype(np.float64), single=True)
