"""Stand-ins for the mean behind a norm after the branch (BERT), at sizes that are no whole multiple.

Behind such a norm the residual stream holds x = γ·ŝ + β, and the next norm wants new entries that equal mean(x) of each token. A
new entry of ŝ is the same for every token where the sum s was padded with its plain mean, so LEMON (arXiv 2310.07999) falls back
to the constant mean(β), with an error in the order of the spread of γ. A new entry can do better, because every writer into s is
linear: padded with the weighted mean  s_j = mean(s) + e_j · Σ_i (v_ji − v̄_j) s_i,  it comes out of the norm as e_j·Σ_i v_ji ŝ_i. With
γ_j = 1/e_j, v_ji = u_ji·γ_i and β_j = Σ_i u_ji β_i this is Σ_i u_ji x_i: any linear functional u_j of the old entries, exactly. So the
functionals that the last norm needs (plain means) are carried backwards from norm to norm.

What remains is that the new entries of s are not quite mean(s) and move the norm's statistics. With e_j = ±1 in balanced patterns that
alternate between norms, the mean moves in the fourth order of γ's spread and the variance in the second, divided by the width.
Derivation and measurements: docs/near.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .flow import Flow, Relation
from .roles import NORM_KINDS
from .solve import Solution
from .target import Target

SIGNS = np.array([[1, -1, 1, -1], [1, 1, -1, -1]], np.float64)  # e_j by pattern, for even and odd distance from the last norm
PLAIN = 4  # entries left over from groups of four: the plain mean, a constant behind the norm


@dataclass
class StandIns:
    """Weights of the new entries of one dim.

    Attributes:
        patterns: [new entries], which row of a mix each new entry takes.
        mixes: class -> float64 [5, old], rows that make a new entry from the old ones.
        gains: (node index, input slot) of a norm's gain -> its new entries [new entries], before the norm's repair.
        bounds: node index -> bound on the relative change of that norm's statistics, over all tokens.
    """

    patterns: np.ndarray
    mixes: dict[int, np.ndarray] = field(default_factory=dict)
    gains: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    bounds: dict[int, float] = field(default_factory=dict)


def find_stand_ins(flow: Flow, solution: Solution, target: Target) -> StandIns:
    """Carry the functionals backwards through the norms of a near solution."""
    n, count = solution.dim.size, target.sizes[solution.dim] - solution.dim.size
    patterns = np.where(np.arange(count) < count // 4 * 4, np.arange(count) % 4, PLAIN)
    out, depth = StandIns(patterns), {}
    readers: dict[int, list[Relation]] = {}
    gains = {flow.find(r.ins[0]): r for r in solution.near}
    for r in flow.relations:
        if r.kind in NORM_KINDS and flow.dim[r.ins[0]] is solution.dim:
            readers.setdefault(flow.find(r.ins[0]), []).append(r)

    def mix(c: int) -> np.ndarray:
        """Rows for the class that norms read, from what the next norm needs."""
        if c not in out.mixes:
            depth[c], out.mixes[c] = 0, np.full((PLAIN + 1, n), 1 / n)  # also ends a cycle, which a proper graph has none of
            norms = readers.get(c, [])
            behind = gains.get(flow.find(norms[0].outs[0])) if len(norms) == 1 else None
            slot = _gain_slot(flow, behind) if behind else None
            if slot is not None:
                needed = mix(flow.find(behind.outs[0]))
                depth[c] = depth.get(flow.find(behind.outs[0]), 0) + 1
                gain = np.asarray(flow.structure.graph.array(behind.node.inputs[slot]), np.float64).reshape(-1)
                out.mixes[c], out.gains[behind.node.index, slot], out.bounds[behind.node.index] = _carry(patterns, gain, needed, SIGNS[depth[c] % 2])
        return out.mixes[c]

    for c in readers:
        mix(c)
    return out


def _gain_slot(flow: Flow, r: Relation) -> int | None:
    return next((i for i in r.slots if r.node.inputs[i] in flow.structure.graph.weights), None)


def _carry(patterns: np.ndarray, gain: np.ndarray, needed: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """From the functionals u [5, old] behind a norm to the weighted means before it, its new gains, and the bound."""
    n = len(gain)
    v = needed[:PLAIN] * gain
    v = np.vstack([v - v.mean(axis=1, keepdims=True), np.zeros((1, n))])
    e = np.r_[signs, 0]
    mixes = 1 / n + e[:, None] * v
    moved, spread = (e[:, None] * v)[patterns].sum(axis=0), (v[patterns] ** 2).sum()
    left = int((patterns == PLAIN).sum())
    bound = np.sqrt(n) * np.linalg.norm(moved) / (n + len(patterns)) + spread / 2 + left * gain.std() / (n + len(patterns))
    return mixes, np.where(patterns < PLAIN, e[patterns], gain.mean()), float(bound)
