"""Which float weights of a graph are parameters, and which of them are one.

Exporters write masks, tables of sines and folded constants as initializers too; training those would change the model. They also write
a tied matrix twice, transposed: its two copies are one parameter again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

import numpy as np

from ..graph import Graph
from ..isomorphism import is_frequency
from ..modules import MOVES, is_anonymous
from ..roles import FLOATS
from ..structure import Structure
from .steps import Ref

SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
BUFFER = re.compile(r": BUFFER target='([^']+)'")
CONTRACTS = {"MatMul", "Gemm", "Conv", "Einsum"}
SMALL = 1 << 22  # entries up to which a whole table is looked at


@dataclass(frozen=True)
class Weights:
    """Parameters of a graph.

    Attributes:
        parameters: tensor ids that are trained.
        ties: tensor id of a copy -> (tensor id that it is a copy of, transposed or not).
    """

    parameters: frozenset[str]
    ties: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def ref(self, tensor: str, transposed: bool = False) -> Ref:
        """The parameter behind a weight."""
        if tensor in self.ties:
            tensor, turned = self.ties[tensor]
            transposed ^= turned
        return Ref(tensor, transposed)

    @staticmethod
    def zero_row(graph: Graph, tensor: str) -> int | None:
        """The only row of a table that is all zero: libraries start the row of the padding word so, and it gets no gradient."""
        table = graph.array(tensor)
        found = np.flatnonzero(~np.asarray(table[:, :1]).any(1)) if len(table) > 2 else []
        zero = [int(i) for i in found if not np.asarray(table[i]).any()]
        return zero[0] if len(zero) == 1 else None


def find_weights(s: Structure) -> Weights:
    buffers = _buffers(s)
    parameters = frozenset(t for t in s.graph.weights if _is_parameter(s, t, buffers))
    return Weights(parameters, _find_ties(s, parameters))


def _is_parameter(s: Structure, tensor: str, buffers: set[str]) -> bool:
    graph = s.graph
    shape, name = graph.weight_shape(tensor), graph.weights[tensor]
    users = [(n, i) for n, i in graph.users.get(tensor, ()) if n.index not in graph.measuring]
    if graph.weight_type(tensor) not in FLOATS or not users or name in graph.constant_nodes:
        return False
    if prod(shape) <= 1:
        return "." in name and not is_anonymous(name) and name not in buffers
    if is_frequency(s, tensor) or _is_fixed(s, tensor):
        return False
    return not is_anonymous(name) or len(shape) == 1 or _is_read_as_weight(s, tensor)


def _buffers(s: Structure) -> set[str]:
    """Names of the framework's buffers, which dynamo writes into the metadata of the graph."""
    text = next((p.value for p in s.graph.source.proto.graph.metadata_props if p.key == SIGNATURE), "")
    return set(BUFFER.findall(text))


def _is_read_as_weight(s: Structure, tensor: str) -> bool:
    """Contracted with an activation, or looked up by number, perhaps after it was moved."""
    for node, slot in s.graph.users.get(tensor, ()):
        if node.op in CONTRACTS or (node.op in ("Gather", "GatherND") and slot == 0):
            return True
        if node.op in MOVES and any(_is_read_as_weight(s, o) for o in node.outputs):
            return True
    return False


def _is_fixed(s: Structure, tensor: str) -> bool:
    """A mask (zeros and large negative numbers), or a table of sines and cosines (its first row is 0 and 1)."""
    shape = s.graph.weight_shape(tensor)
    if prod(shape) > SMALL or len(shape) < 2:
        return False
    values = np.asarray(s.graph.array(tensor), np.float64)
    if np.isin(values, (0, 1)).all() or ((values == 0) | (values < -1e4)).all():
        return bool(values.any())
    return _is_wave(values.reshape(-1, values.shape[-1]))


def _is_wave(rows: np.ndarray) -> bool:
    """Sines and cosines of 0, w, 2w ...: the double angle follows from the single one. A row of zeros alone is the padding word's."""
    if len(rows) < 3 or not np.isin(rows[0], (0, 1)).all() or np.abs(rows).max() > 1 + 1e-6:
        return False
    cosine = 2 * rows[1] ** 2 - 1
    sine = 2 * rows[1] * np.sqrt(np.maximum(1 - rows[1] ** 2, 0))
    wanted = np.where(rows[0] == 1, cosine, sine)
    return bool(np.allclose(np.where(rows[0] == 1, rows[2], np.abs(rows[2])), np.where(rows[0] == 1, wanted, np.abs(wanted)), atol=1e-3))


def _find_ties(s: Structure, parameters: frozenset[str]) -> dict[str, tuple[str, bool]]:
    """Matrices that hold what a table of embeddings holds."""
    graph, out = s.graph, {}
    tables = [t for t in parameters if len(graph.weight_shape(t)) == 2 and any(n.op == "Gather" and i == 0 for n, i in graph.users[t])]
    for tensor in sorted(parameters):
        shape = graph.weight_shape(tensor)
        if len(shape) != 2 or tensor in tables:
            continue
        for table in tables:
            for turned in (True, False):
                if shape == graph.weight_shape(table)[:: -1 if turned else 1] and _equal(graph.array(tensor), graph.array(table), turned):
                    out[tensor] = (table, turned)
    return out


def _equal(a: np.ndarray, b: np.ndarray, turned: bool) -> bool:
    b = b.T if turned else b
    return a.dtype == b.dtype and np.array_equal(a[:1], b[:1]) and all(np.array_equal(a[i : i + 1024], b[i : i + 1024]) for i in range(0, len(a), 1024))
