"""Means through a gain at the end of a branch (layer scale): x + γ·f(x) with a norm that wants new entries of the sum to be its mean.

The stream needs new entries  mean_j(γ_j f_j) = g · Σ_j γ_j/(n·g) · f_j.  So what writes f gets weighted means with weights γ_j/(n·g), and all
new entries of the gain are one number g, any but zero: the root mean square of γ, with which the weighted means are as large as an ordinary
entry. It is rounded to the type of the gain before the weights are made from it. A gain of zeros (the start of some trainings) keeps plain
means. Layer scale: CaiT, arXiv 2103.17239.
"""

from __future__ import annotations

import numpy as np

from .flow import Flow, Relation
from .ties import Dim

MOVES = ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape")


def gain_of(flow: Flow, r: Relation) -> tuple[str, int, int] | None:
    """(weight tensor id, its class, the class it scales) of a product with a stored vector along the dim, alone in its class."""
    classes = [flow.find(c) for c in r.ins]
    for at, slot in enumerate(r.slots):
        if len(classes) != 2 or classes[at] not in flow.weight_classes or classes[1 - at] in flow.weight_classes or r.partial:
            continue
        graph, tensor = flow.structure.graph, r.node.inputs[slot]
        while tensor in graph.makers and graph.makers[tensor].op in MOVES:
            tensor = graph.makers[tensor].inputs[0]
        alone = {t for (t, *_), c in flow.ids.items() if flow.find(c) == classes[at] and t in graph.weights} == {tensor}
        if alone and graph.weight_shape(tensor).count(1) == len(graph.weight_shape(tensor)) - 1:
            return tensor, classes[at], classes[1 - at]
    return None


def fits(flow: Flow, c: int) -> bool:
    """Is every stored axis in which a class stands the dim alone? Weighted means of products and sums of dims are not made."""
    s = flow.structure
    ends = {*s.graph.weights, *s.graph.outputs, *(v.name for v in s.graph.inputs)}
    return all(len(s.axis_leaves(tensor, axis)) == 1 for (tensor, axis, *_), other in flow.ids.items() if tensor in ends and flow.find(other) == flow.find(c))


def new_gain(flow: Flow, tensor: str) -> tuple[np.ndarray, float]:
    """The old entries of a gain float64 [n], and the number that its new entries hold."""
    stored = np.asarray(flow.structure.graph.array(tensor)).reshape(-1)
    old = stored.astype(np.float64)
    return old, float(np.sqrt(np.mean(old**2)).astype(stored.dtype))


def weights_of(flow: Flow, d: Dim, tensors: tuple[str, ...]) -> np.ndarray:
    """float64 [1, n], the weights of the mean before one or several gains."""
    out = np.full((1, d.size), 1 / d.size)
    for tensor in tensors:
        old, g = new_gain(flow, tensor)
        out = out * old / g if g else out
    return out
