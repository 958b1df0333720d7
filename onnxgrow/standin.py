"""Stand-ins for the mean behind a norm after the branch (BERT), at sizes that are no whole multiple.

Behind such a norm the residual stream holds x = γ·ŝ + β, and the next norm wants new entries that equal mean(x) of each token. A
new entry of ŝ is the same for every token where the sum s was padded with its plain mean, so LEMON (arXiv 2310.07999) falls back
to the constant mean(β), with an error in the order of the spread of γ. A new entry can do better, because every writer into s is
linear: padded with the weighted mean  s_j = mean(s) + e_j · Σ_i (v_ji − v̄_j) s_i,  it comes out of the norm as e_j·Σ_i v_ji ŝ_i. With
γ_j = 1/e_j, v_ji = u_ji·γ_i and β_j = Σ_i u_ji β_i this is Σ_i u_ji x_i: any linear functional u_j of the old entries, exactly. So the
functionals that the last norm needs (plain means) are carried backwards from norm to norm.

What remains is that the new entries of s are not quite mean(s) and move the norm's statistics. The mean stays where the signs e_j = ±1 of a
norm, and their products over any run of consecutive norms, sum to zero: so their running products are orthogonal Walsh functions. New entries
come in groups of 32, 16, 8, 4 and 2; a group of G is balanced over runs of less than G norms. An odd number has one group of three with
e = (1, 1, -2)/√2. The variance moves in the second order of the spread, divided by the square of the width.
Derivation and measurements: docs/near.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .flow import Flow, Relation
from .layerscale import new_gain, weights_of
from .roles import NORM_KINDS
from .solve import Solution
from .target import Target

GROUPS = (32, 16, 8, 4, 3, 2, 1)  # a single new entry stays alone: the plain mean, a constant behind the norm
ROWS = [(size, i) for size in GROUPS for i in range(size)]


@dataclass
class StandIns:
    """Weights of the new entries of one dim.

    Attributes:
        patterns: [new entries], which row of a mix each new entry takes.
        mixes: class -> float64 [66, old], rows that make a new entry from the old ones.
        gains: (node index, input slot) of a norm's gain -> its new entries [new entries], before the norm's repair.
        bounds: node index -> bound on the relative change of that norm's statistics, over all tokens.
    """

    patterns: np.ndarray
    mixes: dict[int, np.ndarray] = field(default_factory=dict)
    gains: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    bounds: dict[int, float] = field(default_factory=dict)


def find_stand_ins(flow: Flow, solution: Solution, target: Target) -> StandIns:
    """Carry the functionals backwards through the norms of a near solution, or through the gains that branches end with."""
    n, count = solution.dim.size, target.sizes[solution.dim] - solution.dim.size
    if solution.mode == "pad":
        return _through_gains(flow, solution, count)
    patterns = _patterns(count)
    out, depth = StandIns(patterns), {}
    readers: dict[int, list[Relation]] = {}
    gains = {flow.find(r.ins[0]): r for r in solution.near}
    for r in flow.relations:
        if r.kind in NORM_KINDS and flow.dim[r.ins[0]] is solution.dim:
            readers.setdefault(flow.find(r.ins[0]), []).append(r)

    def mix(c: int) -> np.ndarray:
        """Rows for the class that norms read, from what the next norm needs."""
        if c not in out.mixes:
            depth[c], out.mixes[c] = 0, np.full((len(ROWS), n), 1 / n)  # also ends a cycle, which a proper graph has none of
            norms = readers.get(c, [])
            behind = gains.get(flow.find(norms[0].outs[0])) if len(norms) == 1 else None
            slot = _gain_slot(flow, behind) if behind else None
            if slot is not None:
                needed = mix(flow.find(behind.outs[0]))
                depth[c] = depth.get(flow.find(behind.outs[0]), 0) + 1
                gain = np.asarray(flow.structure.graph.array(_weight(flow, behind, slot)), np.float64).reshape(-1)
                out.mixes[c], out.gains[behind.node.index, slot], out.bounds[behind.node.index] = _carry(patterns, gain, needed, _signs(depth[c]))
        return out.mixes[c]

    for c in readers:
        mix(c)
    return out


def _through_gains(flow: Flow, solution: Solution, count: int) -> StandIns:
    out = StandIns(np.zeros(count, np.int64), {c: weights_of(flow, solution.dim, gains) for c, gains in solution.weighted.items()})
    for tensor in {t for gains in solution.weighted.values() for t in gains}:
        new = np.full(count, new_gain(flow, tensor)[1])
        out.gains |= {(node.index, slot): new for node, slot in flow.structure.graph.users[tensor]}
    return out


def _patterns(count: int) -> np.ndarray:
    """int64 [count], the row of each new entry: whole groups, the largest first."""
    odd = [] if count % 2 == 0 else [3] if count > 1 else [1]
    rest, rows = count - sum(odd), []
    for size in (32, 16, 8, 4, 2):
        odd, rest = odd + [size] * (rest // size), rest % size
    for size in sorted(odd, reverse=True):
        first = ROWS.index((size, 0))
        rows += range(first, first + size)
    return np.array(rows, np.int64)


def _signs(depth: int) -> np.ndarray:
    """float64 [66], e of each row at a distance from the last norm: Walsh function number (t mod G) xor (t − 1 mod G) of its group."""
    def sign(size: int, i: int) -> float:
        if size == 1:
            return 0
        return (1, 1, -2)[i] / 2**0.5 if size == 3 else (-1) ** ((depth % size ^ (depth - 1) % size) & i).bit_count()
    return np.array([sign(*row) for row in ROWS], np.float64)


def _gain_slot(flow: Flow, r: Relation) -> int | None:
    return next((i for i in r.slots if _weight(flow, r, i) in flow.structure.graph.weights), None)


def _weight(flow: Flow, r: Relation, slot: int) -> str:
    """What an input is, or is a Cast of."""
    tensor, makers = r.node.inputs[slot], flow.structure.graph.makers
    while tensor in makers and makers[tensor].op in ("Cast", "Identity"):
        tensor = makers[tensor].inputs[0]
    return tensor


def _carry(patterns: np.ndarray, gain: np.ndarray, needed: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """From the functionals u [66, old] behind a norm to the weighted means before it, its new gains, and the bound."""
    n, total = len(gain), len(gain) + len(patterns)
    v = needed * gain
    v -= v.mean(axis=1, keepdims=True)
    bent = signs[:, None] * v
    moved, spread = bent[patterns].sum(axis=0), (bent[patterns] ** 2).sum()
    alone = int((signs[patterns] == 0).sum())
    bound = np.sqrt(n) * np.linalg.norm(moved) / total + spread / 2 + alone * gain.std() / total
    gains = np.divide(1, signs, where=signs != 0, out=np.full(len(signs), gain.mean()))
    return 1 / n + bent, gains[patterns], float(bound)
