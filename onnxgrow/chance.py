"""Outputs that are drawn at random: no two runs give the same, so there is nothing to compare."""

from __future__ import annotations

import numpy as np
import onnx

from .graph import SIZES, Node, graphs_in, operators_in
from .structure import Structure, qualified

DRAWS = {"Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "com.microsoft::Sampling"}


def random_outputs(s: Structure) -> dict[str, str]:
    """Outputs of a graph whose values come from a random number -> which node draws it. A size that is read off one is none."""
    drawn: dict[str, Node] = {}
    for node in s.graph.nodes:
        if node.op in SIZES or all(o in s.walk.values for o in node.outputs if o):
            continue
        source = node if _draws(s, node) else next((drawn[t] for t in (*node.inputs, *node.captured) if t in drawn and not _measured(node, t)), None)
        if source is not None:
            drawn |= dict.fromkeys(node.outputs, source)
    return {o: f"drawn at random by {drawn[o].op} (node {drawn[o].label!r})" for o in s.graph.outputs if o in drawn}


def _draws(s: Structure, node: Node) -> bool:
    return qualified(node) in DRAWS or _drops(s, node) or any(map(_draws_inside, graphs_in(node.proto)))


def _measured(node: Node, tensor: str) -> bool:
    """Does a node look at nothing but the shape of an input?"""
    return node.op in ("RandomNormalLike", "RandomUniformLike") and tensor == node.inputs[0]


def _drops(s: Structure, node: Node) -> bool:
    """Dropout in training mode, at a rate that is not known to be zero. Where the mode is fed, the cases switch it."""
    if node.op != "Dropout" or len(node.inputs) < 3 or not node.inputs[2]:
        return False
    rate, training = (s.walk.value(node, slot) if node.inputs[slot] else np.array(0.5) for slot in (1, 2))
    return training is not None and bool(training.any()) and (rate is None or bool(rate.any()))


def _draws_inside(graph: onnx.GraphProto) -> bool:
    """Does a subgraph draw?"""
    return any((op if domain in ("", "ai.onnx") else f"{domain}::{op}") in DRAWS for domain, op in operators_in(graph))
