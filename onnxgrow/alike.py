"""Weights that several graphs of one model hold alike are one parameter: the same in both decoders, or one matrix of an encoder and a decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx

from .architecture import is_parameter
from .external import Filled
from .graph import free_name
from .members import Member
from .source import Source

SAMPLE, BLOCK = 1 << 12, 1 << 22  # bytes of a weight that are looked at first, and at a time
Held = tuple[Source, onnx.TensorProto]


def alike(members: list[Member], by_content: bool = True) -> dict[str, dict[str, str]]:
    """Member -> initializer -> its name in the joined graph: one name for what holds the same.

    Vectors must have one name in both decoders, since fresh ones are alike by chance; matrices may have others.

    Args:
        by_content: whether names are those of the files; else they are those of a joined graph already, and tell all.
    """
    held: dict[str, Held] = {}
    matrices: dict[tuple, list[str]] = defaultdict(list)
    taken = {f"{m.name}:{o}" for m in members for n in m.graph.node for o in n.output}
    kin = {m.kin for m in members}
    out: dict[str, dict[str, str]] = {}
    for m in members:
        named = {t.name for t in m.graph.initializer if not by_content and t.name.partition(":")[0] in kin}
        first = {t.name: t.name if t.name in named else f"{m.kin}:{t.name}" for t in m.graph.initializer}
        mine = {t.name: first[t.name] for t in m.graph.initializer if first[t.name] in held and same((m.source, t), held[first[t.name]])}
        for t in (t for t in m.graph.initializer if t.name not in mine):
            peers = matrices[_key(m.source, t)] if by_content and _is_matrix(t) else []
            name = next((name for name in peers if name not in mine.values() and same((m.source, t), held[name])), None)
            if name is None:
                name = free_name(first[t.name], taken)
                held[name] = m.source, t
                peers.append(name)
            mine[t.name] = name
        out[m.name] = mine
    return out


def same(a: Held, b: Held) -> bool:
    """Do two initializers hold the same?"""
    (source, x), (other, y) = a, b
    if (x.data_type, tuple(x.dims)) != (y.data_type, tuple(y.dims)):
        return False
    ref, its = source.tensors.get(x.name), other.tensors.get(y.name)
    if ref is not None and ref == its:  # at one place of one file
        return True
    if isinstance(ref, Filled) or isinstance(its, Filled):  # one number everywhere
        return isinstance(ref, Filled) and isinstance(its, Filled) and ref.value == its.value
    return all(m == n for m, n in zip(_blocks(source, x.name), _blocks(other, y.name)))


def _is_matrix(t: onnx.TensorProto) -> bool:
    return is_parameter(t.data_type, tuple(t.dims)) and sum(n > 1 for n in t.dims) > 1


def _key(source: Source, t: onnx.TensorProto) -> tuple:
    return t.data_type, tuple(t.dims), next(_blocks(source, t.name, SAMPLE), b"")


def _blocks(source: Source, name: str, step: int = BLOCK) -> Iterator[bytes]:
    """The bytes of an initializer, some at a time."""
    flat = np.atleast_1d(source.array(name)).reshape(-1)
    step = max(1, step // flat.itemsize)
    for at in range(0, flat.size, step):
        yield flat[at : at + step].tobytes()
