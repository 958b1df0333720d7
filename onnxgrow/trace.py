"""Where two models part: the first tensor, in graph order, in which the grown model differs from its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .compare import Maps, aligned, compare, fits, scale_between
from .graph import Node
from .inputs import FLOATS, MOVES
from .roles import Roles
from .runtime import Session
from .source import Source, open_source
from .structure import Structure
from .twins import Twins

CHUNK = 64  # tensors that are held at a time
MASKED = 5e3  # what is larger is a masked score, beside which no difference would show
AxisMaps = Callable[[str], "Maps | None"]


def first_difference(roles: Roles, files: tuple[Path | Source, Path | Source], feeds: tuple[dict, dict], opened: Callable[[Path | Source, list[str]], Session], tolerance: float,
                     maps: AxisMaps, twins: Twins) -> str | None:
    """Name the first tensor that differs, the node that makes it and its weights; None where none is found.

    Args:
        files, feeds: model and inputs of source and grown.
        opened: a session of a file with some tensors as further outputs.
        maps: name in the grown model -> the maps of a tensor's axes; None for one that is compared only where both have one shape.
        twins: what the tensors of the source are called in the grown model.
    Tensors inside norms are passed over, since a repair rescales them; so is any that is the source's times a number.
    """
    scaled: dict[str, float] = {}
    nodes = list(_comparable(roles, files[1], twins))
    for start in range(0, len(nodes), CHUNK):
        chunk = nodes[start : start + CHUNK]
        names = [name for _, name in chunk]
        a = opened(files[0], names).run(feeds[0])
        b = opened(files[1], [twins.grown(name) for name in names]).run(feeds[1])
        for node, name in chunk:
            twin = twins.grown(name)
            if _differs(name, a[name], b[twin], maps(twin), tolerance, scaled):
                return _describe(roles.structure, node, name, scaled)
    return None


def _comparable(roles: Roles, grown: Path | Source, twins: Twins) -> Iterator[tuple[Node, str]]:
    """(node, tensor) of every activation that both graphs have, norms left out."""
    s, static, scaled = roles.structure, roles.static, set()
    inside = {index for norm in roles.norms for index in norm.nodes}
    there = {name for node in (grown if isinstance(grown, Source) else open_source(grown)).proto.graph.node for name in node.output}
    for node in s.graph.nodes:
        if node.index in inside or (node.op in MOVES and node.inputs[0] in scaled):  # a gain may follow its norm at a distance
            scaled.update(node.outputs)
        for name in node.outputs:
            if twins.grown(name) in there and not any(name in known for known in (static, scaled, s.walk.values)) and s.walk.types.get(name) in FLOATS:
                yield node, name


def _differs(name: str, a: np.ndarray, b: np.ndarray, maps: Maps | None, tolerance: float, scaled: dict[str, float]) -> bool:
    if maps and (not fits(a.shape, maps) or any(m.share for m in maps)):
        return False
    a, b = aligned(a, b, maps or ())
    if a.shape != b.shape:
        return False
    plain = np.abs(a) < MASKED
    a, b = a[plain], b[plain]
    if compare(name, a, b, ()).max_rel <= tolerance:
        return False
    factor = scale_between(a, b, tolerance)
    if factor is not None:
        scaled[name] = factor
    return factor is None


def _describe(s: Structure, node: Node, name: str, scaled: dict[str, float]) -> str:
    text, origin = f"{name!r}, made by {_maker(s, node)}", _scaled_origin(s, node, scaled)
    return f"{text}; before it {origin!r} is the source's times {scaled[origin]:.6g}" if origin else text


def _maker(s: Structure, node: Node) -> str:
    weight = next((s.graph.weights[t] for t in node.inputs if t in s.graph.weights), None)
    return f"node {node.label!r} ({node.op}{f' with {weight!r}' if weight else ''})"


def _scaled_origin(s: Structure, node: Node, scaled: dict[str, float]) -> str | None:
    """The earliest tensor that reaches a node through nothing but tensors that are multiples of the source's."""
    waiting, seen = list(node.inputs), set()
    while waiting:
        tensor = waiting.pop()
        if tensor in scaled and tensor not in seen:
            seen.add(tensor)
            waiting += s.graph.makers[tensor].inputs
    return next((t for t in scaled if t in seen), None)
