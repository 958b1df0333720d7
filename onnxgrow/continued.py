"""What the tables that bound the length hold at new positions: where their old entries follow a rule, the rule goes on.

Stored ids count on, masks keep their triangle or band, sines and cosines their frequencies. Learned rows follow no rule and are free:
nobody reads them at the old lengths. Anything else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from .axismap import AxisMap, Fill
from .errors import MethodError
from .recipe import Recipe, continuation
from .repairs import Edits
from .roles import Roles
from .sequels import continue_diagonals, continue_rows
from .structure import Structure
from .target import Target
from .waves import Waves, find_waves

LARGEST = 1 << 30  # bytes of computed tables in all: they are written with the graph, not streamed
MOVES = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Expand", "Gather", "GatherElements", "GatherND", "Concat", "Split"}
MASKING = {"Mul", "Where", "And", "Or", "Xor", "Not", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Div", "Pow"}


@dataclass(frozen=True)
class Table:
    """A stored tensor as it is in the grown file, and in words how it goes on."""

    value: np.ndarray
    rule: str


def continue_tables(roles: Roles, recipes: dict[str, Recipe], edits: Edits) -> None:
    """Take recipes of tables that follow a rule and put the whole new tables into `edits.tables`.

    Raises:
        MethodError: a table must have more positions and says nothing about them, or the new tables are too large.
    """
    s, bounds = roles.structure, roles.reach.bounds
    work = []
    for tensor, recipe in recipes.items():
        along = [i for i, d in enumerate(s.dims[tensor]) if set(s.leaves(d)) & bounds.keys()]
        if along and (any(recipe.axes[i].new > recipe.axes[i].old for i in along) or _has_free(recipe)):
            work.append((tensor, recipe, along))
    known = _known_frequencies(s, [(t, along) for t, _, along in work])
    for tensor, recipe, along in work:
        made = _continue(roles, tensor, recipe, along, known)
        if made is not None:
            edits.tables[tensor] = made
            del recipes[tensor]
    names = {s.graph.weights[t]: table.value.nbytes for t, table in edits.tables.items()}
    if sum(names.values()) > LARGEST:
        raise MethodError(f"masks and tables of so many positions take {sum(names.values()):,} bytes", node=max(names, key=names.get),
                          hint="ask for fewer positions, or export a model that computes its mask")


def follow_limits(roles: Roles, target: Target, edits: Edits) -> None:
    """Constants that positions are clipped to move with their table, where they are its last row (or its length)."""
    for node, slot, value, d in roles.reach.limits:
        more = target.sizes.get(d, d.size) - d.size
        if more and value in (d.size - 1, d.size):
            old = np.asarray(roles.structure.walk.value(node, slot))
            edits.constants[node.index, slot] = np.asarray(old + more, old.dtype)
            edits.reasons.append(f"{node.label}: positions are clipped to {value + more}, not {value}")


def _has_free(recipe: Recipe) -> bool:
    return recipe.is_float and any((m.fill == Fill.FREE).any() for m in recipe.axes)


def _known_frequencies(s: Structure, tables: list[tuple[str, list[int]]]) -> np.ndarray:
    """Frequencies of all sines: slow cosines say little about their own."""
    found = [np.zeros(0)]
    for tensor, along in tables:
        old = s.graph.array(tensor)
        waves = find_waves(_as_rows(old, along[0])) if len(along) == 1 and old.dtype.kind not in "biu" else None
        found += [waves.frequency[~waves.cosine]] if waves else []
    return np.unique(np.concatenate(found))


def _as_rows(values: np.ndarray, axis: int) -> np.ndarray:
    """[positions, all the rest]."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _continue(roles: Roles, tensor: str, recipe: Recipe, along: list[int], known: np.ndarray) -> Table | None:
    """The new table, or None where its recipe says it all: learned rows are free."""
    s, old = roles.structure, roles.structure.graph.array(tensor)
    more = [recipe.axes[i].new - recipe.axes[i].old for i in along]
    if any(not _appends(recipe.axes[i]) for i in along) or len(set(more)) > 1 or len(along) > 2:
        raise _no_rule(s, tensor, "its positions are one part of an axis")
    waves, longer, rule = None, None, ""
    if len(along) == 2:
        longer, rule = _diagonals(old, along, more[0]), "diagonals"
    else:
        rows = _as_rows(old, along[0])
        if recipe.is_float:
            waves = find_waves(rows, known)
        if waves is not None:
            longer, rule = _wave_rows(waves, rows, more[0]), "waves"
        else:
            longer, rule = continue_rows(rows, more[0]), "steps"
        longer = None if longer is None else np.moveaxis(longer.reshape(-1, *np.delete(old.shape, along[0])), 0, along[0])
    if longer is None:
        if more[0] and (len(along) > 1 or not _is_learned(roles, tensor, along[0], old)):
            raise _no_rule(s, tensor, "its entries follow no rule that could go on (a sequence, a triangle, a band, waves)")
        return None
    if more[0] == 0 and waves is None:
        return None
    return Table(_with_columns(recipe, longer, along, waves), rule)


def _appends(m: AxisMap) -> bool:
    return bool((m.source[: m.old] == np.arange(m.old)).all()) and not (m.source[m.old :] >= 0).any()


def _no_rule(s: Structure, tensor: str, why: str) -> MethodError:
    node = s.graph.users[tensor][0][0]
    return MethodError(f"positions cannot grow: nothing says how {s.graph.weights[tensor]!r} goes on: {why}", node=node.label,
                       hint="export a model that computes this from the length, or grow another size")


def _diagonals(old: np.ndarray, along: list[int], more: int) -> np.ndarray | None:
    square = np.moveaxis(old, along, (-2, -1))
    longer = continue_diagonals(square, more)
    return None if longer is None else np.moveaxis(longer, (-2, -1), along)


def _wave_rows(waves: Waves, rows: np.ndarray, more: int) -> np.ndarray:
    """The old rows, bit for bit, and the next."""
    return np.concatenate([rows, waves.rows(np.arange(len(rows), len(rows) + more)).astype(rows.dtype)])


def _is_learned(roles: Roles, tensor: str, axis: int, old: np.ndarray) -> bool:
    """Rows of floats that are added, joined or mapped, and do not multiply or choose."""
    s = roles.structure
    if old.dtype.kind in "biu" or prod(np.delete(old.shape, axis)) == 1 or not all(np.isfinite(row.astype(np.float32)).all() for row in old):
        return False
    waiting, seen = [tensor], set()
    while waiting:
        t = waiting.pop()
        for node, slot in s.graph.users.get(t, []):
            other = [i for i in node.inputs if i and i != t]
            if node.op in MOVES or (node.op in ("Mul", "Div") and slot == 0 and _is_number(s, other)):
                waiting += [o for o in node.outputs if o not in seen]
                seen.update(node.outputs)
            elif node.op in MASKING:
                return False
    return True


def _is_number(s: Structure, tensors: list[str]) -> bool:
    return all(prod(s.walk.shapes.get(t) or (2,)) == 1 for t in tensors)


def _with_columns(recipe: Recipe, longer: np.ndarray, along: list[int], waves: Waves | None) -> np.ndarray:
    """The other axes grow as their maps say; free columns of waves get the next frequencies."""
    axes = tuple(AxisMap.identity(longer.shape[i]) if i in along else m for i, m in enumerate(recipe.axes))
    if all(m.is_identity for m in axes) and not recipe.is_scaled:
        return np.ascontiguousarray(longer)
    out = replace(recipe, old_shape=longer.shape, axes=axes).evaluate(np.ascontiguousarray(longer))
    free = [i for i, m in enumerate(axes) if (m.fill == Fill.FREE).any()]
    if waves is None or len(free) != 1:
        return out
    return _new_columns(out, longer, axes[free[0]], waves, along[0], free[0])


def _new_columns(out: np.ndarray, longer: np.ndarray, m: AxisMap, waves: Waves, rows: int, axis: int) -> np.ndarray:
    """Put waves at the free indices of one axis: each run of new indices goes on from the run of old ones before it."""
    shape = np.delete(longer.shape, rows)
    axis = axis - (axis > rows)
    line = lambda v: np.moveaxis(v.reshape(shape), axis, -1).reshape(-1, m.old)  # noqa: E731
    lines = zip(line(waves.cosine), line(waves.frequency))
    grown = [continue_columns(m, cosine, frequency) for cosine, frequency in lines]
    cosine, frequency = (np.stack(part) for part in zip(*grown))  # [others, new]
    values = replace(waves, cosine=cosine.ravel(), frequency=frequency.ravel()).rows(np.arange(longer.shape[rows]))
    values = values.reshape(-1, *np.delete(shape, axis), m.new)
    table = np.moveaxis(np.moveaxis(out, rows, 0), axis + 1, -1).copy()
    free = m.fill == Fill.FREE
    table[..., free] = values[..., free].astype(out.dtype)
    return np.ascontiguousarray(np.moveaxis(np.moveaxis(table, -1, axis + 1), 0, rows))


def continue_columns(m: AxisMap, cosine: np.ndarray, frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cosine, frequency) at each new index of an axis. Runs of old columns are one sequence, or two that take turns.

    Args:
        cosine, frequency: of the old columns, [m.old].
    """
    out = cosine[m.source.clip(0)].copy(), frequency[m.source.clip(0)].copy()
    edges = np.flatnonzero(np.diff(np.r_[-1, (m.fill == Fill.FREE).astype(int), -1]))
    start = 0
    for at, stop in zip(edges, edges[1:]):
        if m.fill[at] != Fill.FREE:
            start = at
            continue
        before = slice(start, at)
        for column, next_values in zip(range(2), _two_turns(frequency[m.source[before]], stop - at)):
            kinds = cosine[m.source[before]][column::2]
            out[1][at + column : stop : 2] = next_values
            out[0][at + column : stop : 2] = kinds[-1] if len(kinds) else cosine[0]
    return out


def _two_turns(sequence: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The next `count` entries, the even and the odd ones: of one sequence, or else of the two that take turns."""
    whole = continuation(sequence, count, otherwise=np.nan)
    if np.ndim(whole):
        return whole[::2], whole[1::2]
    counts = (count + 1) // 2, count // 2
    return tuple(np.broadcast_to(continuation(sequence[k::2], n, otherwise=sequence[-1] if len(sequence) else 0.0), n) for k, n in enumerate(counts))
