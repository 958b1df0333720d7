"""Cut the streams of a graph into segments: the pieces between two points at which a single tensor is all that lives on.

A stream is everything that derives from one tensor of the hidden size and matters for later ones. What only sizes are read from carries
no stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .graph import SIZES, Node
from .idioms import PASSING
from .roles import Roles
from .ties import Dim


@dataclass(frozen=True)
class Segment:
    """Nodes of a stream between two cuts."""

    nodes: frozenset[int]
    enters: str
    leaves: str


@dataclass
class Stream:
    """What derives from `root` and matters for later states: `nodes` in order, and the tensors that carry it."""

    root: str
    nodes: list[Node]
    tensors: set[str]


class Segments:
    """Finds the segments of one graph: the streams of each hidden size by themselves, or of other sizes that states have."""

    def __init__(self, roles: Roles, sizes: list[Dim] | None = None):
        self.s, self.static = roles.structure, roles.static
        self.hidden = roles.hidden if sizes is None else sizes
        self.whole = sizes is not None
        self.wide: set[str] = set()  # states of one hidden size

    def by_stream(self) -> Iterator[list[Segment]]:
        """The segments of each stream, in order."""
        for hidden in self.hidden:
            leaves = set(self.s.leaves(hidden))
            self.wide = {t for t, dims in self.s.dims.items() if dims and t not in self.static  # states may have their channels before their length
                         and (not self.whole and set(self.s.leaves(dims[-1])) & leaves or any(self.s.leaves(d) == self.s.leaves(hidden) for d in dims))}
            for stream in self._streams():
                yield self._segments(stream)

    def _streams(self) -> Iterator[Stream]:
        """One stream for each tensor of hidden size that derives from no other."""
        graph, derived, roots = self.s.graph, set(), []
        for node in graph.nodes:
            if self._carries(node):
                if any(t in derived for t in node.inputs):
                    derived.update(node.outputs)
                else:
                    fed = [t for t in node.inputs if t in self.wide]  # states that are fed to the graph
                    new = fed or [t for t in node.outputs if t in self.wide]
                    roots += [t for t in new if t not in roots]
                    derived.update([*new, *(node.outputs if fed else ())])
        for root in roots:
            yield self._stream(root)

    def _carries(self, node: Node) -> bool:
        return node.op not in SIZES and not all(o in self.s.walk.values for o in node.outputs if o)

    def _stream(self, root: str) -> Stream:
        tensors, nodes = {root}, []
        for node in self.s.graph.nodes:
            if self._carries(node) and any(t in tensors for t in node.inputs):
                tensors.update(o for o in node.outputs if o)
                nodes.append(node)
        useful, main = set(), []
        for node in reversed(nodes):
            if any(o in useful or o in self.wide for o in node.outputs):
                useful.update(t for t in node.inputs if t in tensors)
                main.append(node)
        return Stream(root, main[::-1], tensors)

    def _segments(self, stream: Stream) -> list[Segment]:
        """Cut where one tensor is all that lives on."""
        last: dict[str, int] = {}
        for i, node in enumerate(stream.nodes):
            last |= dict.fromkeys((t for t in node.inputs if t in stream.tensors), i)
        out, nodes, enters, live = [], [], stream.root, {stream.root}
        for i, node in enumerate(stream.nodes):
            nodes.append(node.index)
            live = {t for t in live | set(node.outputs) if last.get(t, -1) > i}
            ended = i == len(stream.nodes) - 1
            moves = all(self.s.graph.by_index[j].op in PASSING for j in nodes)  # a Cast alone is no segment: it goes with the next
            if ended or (not moves and len(live) == 1 and next(iter(live)) in self.wide):
                leaves = next((o for o in node.outputs if o in self.wide), "") if ended else next(iter(live))
                if leaves:
                    out.append(Segment(frozenset(nodes), enters, leaves))
                nodes, enters = [], leaves
        return out
