"""More experts in a mixture that computes the same: new ones are never chosen, until somebody lets them be.

The score of a new expert gets an offset of -10,000, in the router's own bias or in one that is added to the graph, so that neither a TopK nor
a Softmax notices it. Its weights are copies of those of an old expert, its column of the router is random. Nothing here learns before
the offset is raised: docs/experts.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import helper

from .apply import Applied
from .errors import GraphError
from .flow import Flow
from .graph import Node
from .listed import ExpertList, Unlike, find_list, is_listed
from .mixture import Mixture
from .moreexperts import Continuation
from .recipe import Recipe
from .roles import FLOATS, Roles
from .solve import Solution
from .structure import Structure
from .target import Target
from .ties import Dim, find

LOW = -10_000.0  # exp of it is zero in every float type, and it is far from the end of float16


@dataclass
class Routing:
    """How one growth keeps new experts from being chosen; empty where no experts are added.

    Attributes:
        mixtures: those that grow.
        given: weight tensor id -> its new entries: of an offset that the model has, or numbers that count on.
        inserts: mixtures whose router gets an offset of its own.
        lists: mixtures whose experts are a list, which is continued.
    """

    roles: Roles
    target: Target
    naive: bool
    mixtures: list[Mixture] = field(default_factory=list)
    given: dict[str, np.ndarray] = field(default_factory=dict)
    inserts: list[Mixture] = field(default_factory=list)
    lists: list[tuple[Mixture, ExpertList]] = field(default_factory=list)

    @property
    def dims(self) -> set[Dim]:
        """The atomic dims that count experts, and grow."""
        return {find(d) for m in self.mixtures for d in (m.dim, *m.named)} | {t for t in self.roles.tails if t in self.target.sizes}

    def place_offsets(self) -> None:
        """Choose where the score of new experts is made low: at the router's map itself where a softmax sees all experts."""
        for m in self.mixtures:
            usable = [t for node, slot in m.scores.offsets if (t := self._vector(m, node, slot)) is not None]
            at_map = m.scores.first and bool(usable) and usable[0] == self._vector(m, *m.scores.offsets[0])
            old, new = m.dim.size, self.target.size(m.dim)
            self.given |= {t: np.full(new - old, LOW) for t in usable} | {t: np.arange(old, new) for t in m.counts}
            if not usable or (len(m.routed) > 1 and not at_map):
                self.inserts.append(m)

    def _vector(self, m: Mixture, node: Node, slot: int) -> str | None:
        """The weight behind an offset, if it has one entry for each expert."""
        graph, tensor = self.roles.structure.graph, node.inputs[slot]
        while tensor not in graph.weights and graph.makers[tensor].op in ("Cast", "Unsqueeze", "Identity", "Reshape"):
            tensor = graph.makers[tensor].inputs[0]
        dims = self.roles.structure.dims.get(tensor, ())
        fits = tensor in graph.weights and graph.weight_type(tensor) in FLOATS and [find(d) for d in dims if d.size > 1] == [m.dim]
        return tensor if fits and node.attrs.get("beta", 1) == 1 else None

    def find_lists(self) -> None:
        """Read the experts that have maps of their own. GraphError where they are not alike, or not understood."""
        s = self.roles.structure
        for m in self.mixtures:
            if is_listed(s, m):
                found = find_list(s, m)
                if isinstance(found, Unlike):
                    raise GraphError(f"experts cannot be added: {found.reason}", node=found.node.label,
                                     hint="export experts that are alike and meet in a sum, or in one weight each; other dims can grow")
                self.lists.append((m, found))

    def copies(self, flow: Flow, solutions: dict[Dim, Solution]) -> set[tuple[str, Dim]]:
        """(weight, dim) where new experts start as the old ones, one after the other, since nobody asks for anything else.

        Who writes scores is not copied: two experts with one score would never part.
        """
        writers, out = {t for m in self.mixtures for t in m.scores.root.inputs} | self.given.keys(), set()
        dims = self.dims
        for (tensor, *_), c in flow.ids.items():
            c = flow.find(c)
            d = flow.dim[c]
            if d in dims and d in solutions and d.size and c not in solutions[d].need and self._is_float(tensor) and tensor not in writers:
                out.add((tensor, d))
        return out

    def _is_float(self, tensor: str) -> bool:
        graph = self.roles.structure.graph
        return tensor in graph.weights and graph.weight_type(tensor) in FLOATS

    def finish(self, applied: Applied) -> None:
        """Add the offsets that the model does not have, each behind its router's map, and further experts of lists."""
        for m, experts in self.lists:
            Continuation(self.roles.structure, experts, applied).write(m.dim.size, self.target.size(m.dim))
        for m in self.inserts:
            _insert_offset(self.roles.structure, m, self.target.size(m.dim), applied)

    def asleep(self, recipes: dict[str, Recipe], applied: Applied) -> dict[str, int]:
        """Initializer -> new entries that get no gradient before an offset is raised."""
        s, out = self.roles.structure, {}
        if self.naive:
            return out
        dims = self.dims
        for tensor, r in recipes.items():
            kept = [m.old if dims & set(s.axis_leaves(tensor, i)) else m.new for i, m in enumerate(r.axes)]
            if r.dtype in FLOATS and prod(kept) < prod(r.new_shape):
                out[s.graph.weights[tensor]] = prod(r.new_shape) - prod(kept)
        return out | applied.asleep

    def reasons(self) -> tuple[str, ...]:
        """What the certificate says about the new experts."""
        if not self.mixtures or self.naive:
            return ()
        old, new = self.mixtures[0].dim.size, self.target.size(self.mixtures[0].dim)
        added = f"offsets added to {len(self.inserts)} routers (a new node each)" if self.inserts else "the routers' own offsets"
        return (f"experts {old} to {new - 1} are never chosen: {added} make their scores lower by {-LOW:,.0f}, "
                "which holds while old scores stay above that",
                "they get no gradient before these offsets are raised (docs/experts.md)")


def route(roles: Roles, target: Target, method: str) -> Routing:
    """The routing of a growth; a naive one does not care whom it sends to new experts.

    Raises:
        GraphError: a list of experts cannot be continued.
    """
    out = Routing(roles, target, method == "naive", [m for m in roles.mixtures if m.dim in target.sizes])
    if not out.naive:
        out.place_offsets()
    out.find_lists()
    return out


def _insert_offset(s: Structure, m: Mixture, size: int, applied: Applied) -> None:
    """`logits = Add(map's result, offset)`: the offset is zero for old experts. The sum takes the old name, so that nobody notices."""
    name, graph = m.scores.logits, applied.proto.graph
    dims = [find(d) for d in s.dims[name]]
    shape = [size if d is m.dim else 1 for d in dims[dims.index(m.dim):]]
    values = np.r_[np.zeros(m.dim.size), np.full(size - m.dim.size, LOW)]
    offset, before = applied.fresh(f"{name}_offset"), applied.fresh(f"{name}_raw")
    graph.initializer.append(helper.make_tensor(offset, s.walk.types[name], shape, values))
    at = next(i for i, n in enumerate(graph.node) if name in n.output)
    graph.node[at].output[:] = [before if o == name else o for o in graph.node[at].output]
    graph.node.insert(at + 1, helper.make_node("Add", [before, offset], [name], applied.fresh(f"{m.scores.root.label}_offset")))
    applied.added[offset], applied.asleep[offset] = size, size - m.dim.size
