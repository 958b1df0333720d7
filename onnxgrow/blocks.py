"""The repeated layers of a graph, found from the graph alone.

A stream is everything that derives from one tensor of the hidden size. Swept in order, it is cut wherever a single tensor is all that
lives on; between two cuts lies a segment. The blocks are the longest run of like segments that hold attention. What is used by one
block only belongs to it (its weights, constants, cache, shape arithmetic); what several use (mask, rotary tables) is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from .graph import Graph, Node
from .idioms import PASSING
from .isomorphism import Spelling, spell
from .roles import Roles, static_tensors
from .structure import Structure

SUMS = PASSING | {"Add", "Reshape"}
SIZES = ("Shape", "Size")  # what reads only a size carries no stream


@dataclass(frozen=True)
class Block:
    """One period of repeated layers: node indices, the stream tensor it reads and the one it makes, and how many layers it is."""

    nodes: frozenset[int]
    enters: str
    leaves: str
    layers: int = 1


@dataclass(frozen=True)
class Stack:
    """Blocks of one kind, each reading what the one before it makes.

    Attributes:
        name: `layers`, or `encoder_layers` and the like where there are several stacks.
        blocks: each is one period of the pattern of layers.
        before, after: layers next to the blocks that are of another kind or an unfinished period.
        spellings: the nodes of each block in one order, so that equal places correspond.
    """

    name: str
    blocks: tuple[Block, ...]
    spellings: tuple[Spelling, ...]
    before: int = 0
    after: int = 0

    @property
    def period(self) -> int:
        """Layers in a block."""
        return self.blocks[0].layers

    @property
    def layers(self) -> int:
        return self.before + self.period * len(self.blocks) + self.after


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


def find_stacks(roles: Roles) -> list[Stack]:
    """All stacks of repeated layers, in graph order; none where nothing repeats and no single layer can be told apart."""
    return _Finder(roles).stacks()


class _Finder:
    def __init__(self, roles: Roles):
        self.roles, self.s = roles, roles.structure
        self.static = static_tensors(self.s)
        self.attention = {a.softmax.index: a for a in roles.attention}
        self.linear = {lin.node.index for lin in roles.linears}
        self.norms = {i for n in roles.norms for i in n.nodes} | {n.index for _, _, n in roles.norm_axes}
        self.place = {n.index: i for i, n in enumerate(self.s.graph.nodes)}

    @cached_property
    def wide(self) -> set[str]:
        """Activations whose last axis is the hidden size."""
        hidden = set(self.s.leaves(self.roles.roles["hidden"].instances[0]))
        return {t for t, dims in self.s.dims.items() if dims and t not in self.static and set(self.s.leaves(dims[-1])) & hidden}

    @cached_property
    def own_kind(self) -> set[int]:
        """Nodes that are of one layer even where there is only one: linear maps of states from elsewhere, moved weights, caches, sizes."""
        caches, out = caches_in(self.roles), set()
        for node in self.s.graph.nodes:
            mapped = node.index in self.linear or any(t in caches for t in node.inputs)
            sized = all(o in self.s.walk.values for o in node.outputs if o)
            if mapped or sized or all(t in self.static or not t for t in node.inputs):
                out.add(node.index)
                caches = caches | (set(node.outputs) if mapped else set())
        return out

    def stacks(self) -> list[Stack]:
        found: list[list[Block]] = []
        claimed: set[int] = set()
        for stream in self._streams():
            for blocks in self._runs(self._segments(stream)):
                if not claimed & blocks[0].nodes:
                    claimed |= {i for b in blocks for i in b.nodes}
                    found.append(blocks)
        found.sort(key=lambda blocks: min(self.place[i] for i in blocks[0].nodes))
        names = self._names(found)
        return [stack for name, blocks in zip(names, found) for stack in [self._stack(name, blocks)] if stack]

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

    def _runs(self, segments: list[Segment]) -> Iterator[list[Block]]:
        """The best run of repeated segments, then those left and right of it; single layers where nothing repeats."""
        words = [self._word(g) for g in segments]
        softmax = [bool(g.nodes & self.attention.keys()) for g in segments]
        best = _best_run(words, softmax)
        if best is None:
            yield from self._single(segments)
            return
        start, period, count = best
        yield from self._runs(segments[:start]) if any(softmax[:start]) else ()
        yield [self._block(segments[start + k * period : start + (k + 1) * period]) for k in range(count)]
        rest = start + count * period
        yield from self._runs(segments[rest:]) if any(softmax[rest:]) else ()

    def _word(self, g: Segment) -> tuple:
        """What a segment looks like from afar: its operators and their shapes."""
        by = self.s.graph.by_index
        seen = Counter((by[i].op, by[i].domain, tuple(self.s.walk.shapes.get(o) for o in by[i].outputs)) for i in g.nodes)
        return tuple(sorted(seen.items(), key=repr))

    def _single(self, segments: list[Segment]) -> Iterator[list[Block]]:
        """A stack of one: neighbouring segments that add to the stream they read, with the norms between them."""
        run: list[Segment] = []
        for g in [*segments, None]:
            if g is not None and (self._adds(g) or (run and self._is_norm(g))):
                run.append(g)
                continue
            while len(run) > 1 and self._is_norm(run[-1]) and not self._is_norm(run[1]):
                run.pop()  # norms stand after each sum, or this one belongs to what follows
            if any(h.nodes & self.attention.keys() for h in run):
                yield [self._block(run)]
            run = []

    def _adds(self, g: Segment) -> bool:
        """Is the stream that enters a summand of what leaves, beside a linear map of it?"""
        return bool(g.nodes & self.linear) and self._reaches(g, g.leaves)

    def _is_norm(self, g: Segment) -> bool:
        return bool(g.nodes & self.norms) and not g.nodes & self.linear

    def _reaches(self, g: Segment, tensor: str) -> bool:
        """Is the stream that enters a summand of a tensor?"""
        node = self.s.graph.makers.get(tensor)
        if tensor == g.enters or node is None or node.index not in g.nodes:
            return tensor == g.enters
        return node.op in SUMS and any(self._reaches(g, t) for t in node.inputs if t not in self.static)

    def _block(self, segments: list[Segment]) -> Block:
        nodes = frozenset(i for g in segments for i in g.nodes)
        return Block(nodes, segments[0].enters, segments[-1].leaves, max(1, self._self_attentions(nodes)))

    def _self_attentions(self, nodes: frozenset[int]) -> int:
        """Layers are counted by attention whose keys come from the block's own stream."""
        inside = [self.attention[i] for i in nodes if i in self.attention]
        made = {o for i in nodes for o in self.s.graph.by_index[i].outputs}
        own = [a for a in inside if all(t in made for t in a.scores.inputs)]
        return len(own) or len(inside)

    def _stack(self, name: str, blocks: list[Block]) -> Stack | None:
        """Give each block what it alone uses, and find the period at which blocks are truly alike."""
        sizing = measuring(self.s.graph)
        for merge in range(1, max(2, len(blocks) // 2 + 1)):
            whole = self._own_everything([_merged(blocks[k : k + merge]) for k in range(0, len(blocks) - merge + 1, merge)])
            users = _user_counts(self.s, whole)
            spellings = [spell(self.s, b.nodes, b.enters, b.leaves, users, sizing) for b in whole]
            first, count = _longest_equal([x.word for x in spellings])
            if count > 1 or len(whole) == 1:
                period, total = whole[0].layers, sum(b.layers for b in blocks)
                return Stack(name, tuple(whole[first : first + count]), tuple(spellings[first : first + count]), first * period,
                             total - (first + count) * period)
        return None

    def _own_everything(self, blocks: list[Block]) -> list[Block]:
        """Add to each block the nodes that only it uses, and those that only derive from it: shape arithmetic, caches that come out."""
        graph, owner = self.s.graph, {i: k for k, b in enumerate(blocks) for i in b.nodes}
        states, sizing = {t for b in blocks for t in (b.enters, b.leaves)}, measuring(graph)
        for node in graph.nodes:  # what comes out beside the stream
            makers = {owner[graph.makers[t].index] for t in node.inputs if t in graph.makers and graph.makers[t].index in owner and t not in states}
            if node.index not in owner and len(makers) == 1 and node.op not in SIZES:
                owner[node.index] = makers.pop()
        for node in reversed(graph.nodes):  # a tail that anything else uses is no tail; a node that one block uses is its own
            uses = [n for o in node.outputs for n, _ in graph.users.get(o, [])]
            users = {owner.get(n.index) for n in uses if n.index not in sizing} or {owner.get(n.index) for n in uses}
            outside = any(o in graph.outputs or o in states for o in node.outputs)
            core = any(node.index in b.nodes for b in blocks)
            if not core and node.index in owner and users - {owner[node.index]}:
                del owner[node.index]
            alone = len(users) == 1 and None not in users and (len(blocks) > 1 or node.index in self.own_kind)
            if not core and node.index not in owner and alone and not outside:
                owner[node.index] = users.pop()
        return [replace(b, nodes=frozenset(i for i, k in owner.items() if k == j)) for j, b in enumerate(blocks)]

    def _names(self, found: list[list[Block]]) -> list[str]:
        if len(found) == 1:
            return ["layers"]
        if len(found) == 2 and self._feeds(found[0], found[1]):
            return ["encoder_layers", "decoder_layers"]
        return [f"stack{i}.layers" for i in range(1, len(found) + 1)]

    def _feeds(self, first: list[Block], second: list[Block]) -> bool:
        """Does the second stack read states that derive from the first (cross-attention), beside its own stream?"""
        reached = {first[-1].leaves}
        own = {i for b in second for i in b.nodes}
        for node in self.s.graph.nodes:
            if node.op not in SIZES and any(t in reached for t in node.inputs):
                if node.index in own:
                    return True
                reached.update(node.outputs)
        return False


def _best_run(words: list[tuple], softmax: list[bool]) -> tuple[int, int, int] | None:
    """(start, period, count) of the run that covers most segments; of equals the shortest period, then one that begins with attention."""
    best, key = None, None
    for period in range(1, len(words) // 2 + 1):
        for start in range(len(words) - 2 * period + 1):
            count = 1
            while words[start + (count - 1) * period : start + count * period] == words[start + count * period : start + (count + 1) * period]:
                count += 1
            if count > 1 and any(softmax[start : start + period]):
                now = (count * period, -period, softmax[start], -start)
                if key is None or now > key:
                    best, key = (start, period, count), now
    return best


def _longest_equal(words: list) -> tuple[int, int]:
    """(first, count) of the longest run of equal entries."""
    best, start = (0, 1), 0
    for i in range(1, len(words) + 1):
        if i == len(words) or words[i] != words[start]:
            best = max(best, (start, i - start), key=lambda run: run[1])
            start = i
    return best


def _merged(blocks: list[Block]) -> Block:
    return Block(frozenset().union(*(b.nodes for b in blocks)), blocks[0].enters, blocks[-1].leaves, sum(b.layers for b in blocks))


def caches_in(roles: Roles) -> set[str]:
    """Inputs that end in the size of a head: keys and values of earlier calls."""
    s, head = roles.structure, roles.leaves_of("head_dim", "v_head_dim")
    return {v.name for v in s.graph.inputs if s.dims.get(v.name) and set(s.leaves(s.dims[v.name][-1])) & head}


def measuring(graph: Graph) -> set[int]:
    """Nodes of whose results nothing but sizes is used."""
    out: set[int] = set()
    for node in reversed(graph.nodes):
        users = [n for o in node.outputs for n, _ in graph.users.get(o, [])]
        if node.op in SIZES or (users and all(n.index in out for n in users) and not set(node.outputs) & set(graph.outputs)):
            out.add(node.index)
    return out


def _user_counts(s: Structure, blocks: list[Block]) -> dict[str, int]:
    """By how many blocks each weight or input is used; users outside count as one more."""
    owner = {i: k for k, b in enumerate(blocks) for i in b.nodes}
    out: dict[str, set] = {}
    sizing = measuring(s.graph)
    for node in s.graph.nodes:
        for t in node.inputs:
            if node.index not in sizing or t in s.graph.weights:
                out.setdefault(s.graph.weights.get(t, t), set()).add(owner.get(node.index))
    return {t: len(found) for t, found in out.items()}
