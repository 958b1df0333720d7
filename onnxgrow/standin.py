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
e = (1, 1, -2)/∛2, turned by one place from norm to norm, so that the product of three is -1 for each and grows nowhere. The variance moves in the
second order of the spread, divided by the square of the width. Where nothing can be carried (several norms read one sum), the constant stays.
Derivation, bounds and measurements: docs/near.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .errors import MethodError
from .flow import Flow, Relation
from .layerscale import new_gain, weights_of
from .roles import NORM_KINDS
from .solve import Solution
from .target import Target

GROUPS = (32, 16, 8, 4, 3, 2, 1)
CLOSE, LEAST = 0.02, 1 / 16  # outside of chains e is smaller than 1 where a norm's statistics would move by more; but no gain larger than 16
LIMIT = 0.5  # statistics that may move by more are near to nothing
ROWS = [(size, i) for size in GROUPS for i in range(size)]


@dataclass
class StandIns:
    """Weights of the new entries of one dim.

    Attributes:
        patterns: [new entries], which row of a mix each new entry takes.
        mixes: class -> float64 [66, old], rows that make a new entry from the old ones.
        gains: (node index, input slot) of a norm's gain -> its new entries [new entries], before the norm's repair.
        bounds: index of the gain's node -> bound on the relative change of a norm's statistics, over all tokens: of the norm itself, or behind a
            constant of the next one, where what that reads has a deviation of at least 1.
        constant: indices of those behind which a constant stands for the mean.
    """

    patterns: np.ndarray
    mixes: dict[int, np.ndarray] = field(default_factory=dict)
    gains: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    bounds: dict[int, float] = field(default_factory=dict)
    constant: set[int] = field(default_factory=set)


def find_stand_ins(flow: Flow, solution: Solution, target: Target) -> StandIns:
    """Carry the functionals backwards through the norms of a near solution, or through the gains that branches end with.

    Raises:
        MethodError: a norm has no bound, since its gain is computed while the model runs, or one that promises nothing.
    """
    n, count = solution.dim.size, target.sizes[solution.dim] - solution.dim.size
    if solution.mode == "pad":
        return _through_gains(flow, solution, count)
    patterns = _patterns(count)
    out, depth, fed = StandIns(patterns), {}, {flow.find(r.outs[0]) for r in solution.near}
    readers: dict[int, list[Relation]] = {}
    for r in flow.relations:
        if r.kind in NORM_KINDS and flow.dim[r.ins[0]] is solution.dim:
            readers.setdefault(flow.find(r.ins[0]), []).append(r)
    bare = {flow.find(r.outs[0]) for found in readers.values() for r in found}
    gains = {c: r for r in solution.near for c in map(flow.find, r.ins) if c in bare}  # a gain may stand on either side of its product

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
                gain = _gain(flow, behind, slot)
                chained = c in fed or depth[c] > 1
                out.mixes[c], out.gains[behind.node.index, slot], out.bounds[behind.node.index] = _carry(patterns, gain, needed, _signs(depth[c]), chained)
        return out.mixes[c]

    for c in readers:
        mix(c)
    for r in solution.near:
        if r.node.index not in out.bounds:
            out.constant.add(r.node.index)
            out.bounds[r.node.index] = _left_constant(flow, r, n, count)
    _refuse_far(flow, solution, target, out)
    return out


def _left_constant(flow: Flow, r: Relation, n: int, count: int) -> float:
    """The bound where new entries are mean(β): each is off by Σ (γ − mean γ) ŝ / n, which is at most the spread of γ."""
    gains = [_gain(flow, r, slot) for slot in r.slots if r.node.inputs[slot] in flow.static]
    if not gains or gains[0] is None:
        raise MethodError("what a norm after the branch is multiplied with is computed while the model runs, so that nothing bounds the mean behind it",
                          node=r.node.label, hint="ask for a whole multiple of this size, or for another size")
    spread = float(gains[0].std())
    return count * spread / (n + count) + count * spread**2 / (2 * n)


def _refuse_far(flow: Flow, solution: Solution, target: Target, found: StandIns) -> None:
    worst = max(found.bounds, key=found.bounds.get, default=None)
    if worst is not None and found.bounds[worst] > LIMIT:
        n, new = solution.dim.size, target.sizes[solution.dim]
        raise MethodError(f"from {n} to {new} the statistics of this norm after the branch could move by {found.bounds[worst]:.1e} of themselves, so that "
                          "nothing would be promised", node=flow.structure.graph.by_index[worst].label, hint=f"ask for a whole multiple ({n * -(-new // n)})")


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
            return -1
        return (1, 1, -2)[(i + depth) % 3] / 2 ** (1 / 3) if size == 3 else (-1) ** ((depth % size ^ (depth - 1) % size) & i).bit_count()
    return np.array([sign(*row) for row in ROWS], np.float64)


def _gain_slot(flow: Flow, r: Relation) -> int | None:
    return next((i for i in r.slots if _weight(flow, r, i) in flow.structure.graph.weights), None)


def _weight(flow: Flow, r: Relation, slot: int) -> str:
    """What an input is, or is a Cast of."""
    tensor, makers = r.node.inputs[slot], flow.structure.graph.makers
    while tensor in makers and makers[tensor].op in ("Cast", "Identity"):
        tensor = makers[tensor].inputs[0]
    return tensor


def _gain(flow: Flow, r: Relation, slot: int) -> np.ndarray | None:
    """float64 [old], a static gain: a weight, or one that is stored as its distance from a number."""
    graph, tensor = flow.structure.graph, _weight(flow, r, slot)
    if tensor in graph.weights:
        return np.asarray(graph.array(tensor), np.float64).reshape(-1)
    maker = graph.makers.get(tensor)
    if maker is not None and maker.op == "Add":  # a number changes no spread
        shifts = [i for i in (0, 1) if (v := flow.structure.walk.value(maker, i)) is not None and v.size == 1]
        other = maker.inputs[1 - shifts[0]] if shifts else None
        return np.asarray(graph.array(other), np.float64).reshape(-1) if other in graph.weights else None
    return None


def _carry(patterns: np.ndarray, gain: np.ndarray, needed: np.ndarray, signs: np.ndarray, chained: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """From the functionals u [66, old] behind a norm to the weighted means before it, its new gains, and the bound.

    In a chain of such norms what one leaves wrong in new entries passes the gains 1/e of all that follow: there |e| stays near 1.
    """
    n, total = len(gain), len(gain) + len(patterns)
    v = needed * gain
    v -= v.mean(axis=1, keepdims=True)
    bent = signs[:, None] * v
    first, second = np.sqrt(n) * np.linalg.norm(bent[patterns].sum(axis=0)) / total, (bent[patterns] ** 2).sum() / 2
    small = 1.0 if chained else max(_smaller(first, second), LEAST)
    return 1 / n + small * bent, 1 / (small * signs[patterns]), float(small * first + small**2 * second)


def _smaller(first: float, second: float) -> float:
    """The factor of the signs, at most 1, with which a norm's statistics move by CLOSE: factor · first + factor² · second."""
    if first + second <= CLOSE:
        return 1.0
    return 2 * CLOSE / (first + (first**2 + 4 * second * CLOSE) ** 0.5)
