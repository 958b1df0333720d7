"""What more layers add to a plan: the certificate, and random blocks."""

from __future__ import annotations

import numpy as np
import onnx

from .axismap import AxisMap, Fill
from .certificate import Certificate
from .deepen import Deepened
from .recipe import Recipe
from .request import Depth, Request
from .roles import FLOATS

LEAST_VARIANCE = 0.01  # in front of a norm, for the bound that is printed
TINY_EPS = 1e-8  # below this, what a second norm changes is lost in the rounding of float32


def depth_certificate(deeper: Deepened, depth: Depth) -> Certificate:
    """What inserted blocks promise."""
    if depth.method == "stack" and any(p.new for places in deeper.places.values() for p in places):
        return Certificate("not preserved", ("layers were copied as they are (--depth-method stack)",))
    if deeper.eps > TINY_EPS:
        bound = twice_normalised(deeper.eps, LEAST_VARIANCE)
        return Certificate("near", (f"norms come after the branches, so that states are normalised twice and move by {deeper.eps / 2:.1e} times |1/variance - 1| of "
                                    f"themselves, at most {bound:.1e} where the variance is at least {LEAST_VARIANCE} (not at all: --depth-method gate)",), bound)
    return Certificate("exact")


def twice_normalised(eps: float, variance: float) -> float:
    """How far states move at most, of themselves, that any number of norms with this epsilon normalise again, if their variance was at least `variance`.

    The first norm leaves them with v/(v + eps), each further one brings that nearer to 1 - eps, where it stays.
    """
    return max(((1 - eps) * (1 + eps / variance)) ** 0.5 - 1, 1 - (1 - eps) ** 0.5)


def random_blocks(deeper: Deepened, proto: onnx.ModelProto, recipes: dict[str, Recipe], request: Request) -> dict[str, Recipe]:
    """With --block-init random the matrices of new blocks are noise with the deviation of the ones they stand for; what must be zero stays."""
    if request.depth is None or request.depth.block_init != "random":
        return recipes
    out = dict(recipes)
    for tensor in proto.graph.initializer:
        origin = recipes[tensor.name].origin or tensor.name if tensor.name in recipes else tensor.name
        matrix = tensor.data_type in FLOATS and sum(n > 1 for n in tensor.dims) > 1
        if origin in deeper.fresh and origin not in deeper.source.constant and matrix:
            old = recipes[tensor.name].old_shape if tensor.name in recipes else tuple(tensor.dims)
            axes = tuple(AxisMap(n, new, np.full(new, -1), np.full(new, Fill.FREE)) for n, new in zip(old, tensor.dims))
            out[tensor.name] = Recipe(tensor.name, tensor.data_type, old, tuple(tensor.dims), axes, std=request.init_std, seed=request.seed, origin=origin)
    return out
