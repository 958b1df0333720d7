"""Numbers that are none, and numbers that a type cannot hold: NaN and infinity in weights, and repairs that overflow or vanish.

NaN and infinity in a weight are copied as they are, and do not spread: means are taken of what is finite, shares of an infinite entry are
infinite too, and random entries take their deviation from the finite ones (`recipe`). They are named where somebody looks: a changed weight
is looked at while it is written, all weights only where the source answers with nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ml_dtypes import finfo

from .errors import MethodError
from .finite import is_finite
from .recipe import CHUNK, Recipe
from .roles import FLOATS
from .source import Source

if TYPE_CHECKING:
    from .plan import Plan

WIDER = "export the model in float32 and grow that, or ask for a whole multiple with --method copy, where norms need no repair"


def not_finite(source: Source) -> list[str]:
    """The float weights of a source that hold NaN or infinity: reads all of them."""
    arrays = ((t.name, source.array(t.name).reshape(-1)) for t in source.proto.graph.initializer if t.data_type in FLOATS)
    return [name for name, flat in arrays if not all(is_finite(flat[at : at + CHUNK]) for at in range(0, flat.size, CHUNK))]


def check_repairs(plan: Plan) -> None:
    """Refuse a growth in which a repair makes a number that the type of its weight cannot hold; reads the weights that are scaled, mostly gains.

    Raises:
        MethodError: with the node that reads the weight.
    """
    graph, edits = plan.roles.structure.graph, plan.decisions.edits
    for tensor, recipe in plan.decisions.recipes.items():
        if not recipe.is_float or not recipe.is_scaled:
            continue
        flat = graph.array(tensor).reshape(-1)
        for at in range(0, flat.size, CHUNK):
            lost = _lost(recipe, flat[at : at + CHUNK])
            if lost is not None:
                raise MethodError(f"the repair of {graph.weights[tensor]!r} makes {lost:.3g}, which {recipe.numpy_dtype} cannot hold",
                                  node=graph.users[tensor][0][0].label, hint=WIDER)
    for (index, slot), value in edits.constants.items():
        if np.asarray(value).dtype.kind == "f" and not is_finite(np.asarray(value)) and is_finite(np.asarray(plan.roles.structure.walk.value(graph.by_index[index], slot))):
            raise MethodError(f"the repair of {graph.by_index[index].inputs[slot]!r} makes infinity, which {value.dtype} cannot hold",
                              node=graph.by_index[index].label, hint=WIDER)


def _lost(recipe: Recipe, old: np.ndarray) -> float | None:
    """A number that rounding takes to infinity, or to zero although it counts beside the others; None where there is none."""
    wanted = recipe.scaled(old)
    with np.errstate(all="ignore"):
        held = wanted.astype(recipe.numpy_dtype).astype(np.float64)
    sizes = np.abs(wanted[np.isfinite(wanted)])
    least = float(finfo(recipe.numpy_dtype).eps) * sizes.max(initial=0)
    lost = wanted[np.isfinite(wanted) & (~np.isfinite(held) | ((held == 0) & (np.abs(wanted) > least)))]
    return float(lost[0]) if lost.size else None
