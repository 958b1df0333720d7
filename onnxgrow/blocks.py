"""The repeated layers of a graph, found from the graph alone.

A stream is everything that derives from one tensor of the hidden size. Swept in order, it is cut wherever a single tensor is all that
lives on; between two cuts lies a segment. The blocks are the longest run of like segments that hold attention. What is used by one
block only belongs to it (its weights, constants, cache, shape arithmetic); what several use (mask, rotary tables) is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .graph import SIZES, Node
from .idioms import PASSING
from .isomorphism import Spelling, is_idle, name_of, spell
from .ownership import own_everything, user_counts
from .roles import Roles
from .segments import Segment, Segments
from .ties import Dim
from .widths import Width, streams

SUMS = PASSING | {"Add", "Reshape"}


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
        name: `layers`, or `encoder_layers`, `vision.layers` and the like where there are several stacks.
        blocks: each is one period of the pattern of layers.
        tapped: a node of another stream that reads inside of a block, so that a new one would have no part in it; None where there is none.
        before, after: layers next to the blocks that are of another kind or an unfinished period.
        spellings: the nodes of each block in one order, so that equal places correspond.
    """

    name: str
    blocks: tuple[Block, ...]
    spellings: tuple[Spelling, ...]
    before: int = 0
    after: int = 0
    tapped: Node | None = None

    @property
    def period(self) -> int:
        """Layers in a block."""
        return self.blocks[0].layers

    def final_output(self, outputs: list[str]) -> str | None:
        """The last state where it is an output and no other state is: the last block makes it, however many there are."""
        *others, last = (b.leaves for b in self.blocks)
        return last if last in outputs and not set(others) & set(outputs) else None

    @property
    def layers(self) -> int:
        return self.before + self.period * len(self.blocks) + self.after


def find_stacks(roles: Roles) -> list[Stack]:
    """All stacks of repeated layers, in graph order; none where nothing repeats and no single layer can be told apart."""
    return _Finder(roles).stacks()


class _Finder:
    def __init__(self, roles: Roles):
        self.roles, self.s = roles, roles.structure
        self.static = roles.static
        self.attention = {a.softmax.index: a for a in roles.attention}
        self.linear = {lin.node.index for lin in roles.linears}
        self.norms = {i for n in roles.norms for i in n.nodes} | {n.index for _, _, n in roles.norm_axes}

    def stacks(self) -> list[Stack]:
        found = self._found(Segments(self.roles)) or self._found(Segments(self.roles, self._headed()))
        found.sort(key=lambda blocks: min(self.s.graph.place[i] for i in blocks[0].nodes))
        names = self._names(found)
        return [stack for name, blocks in zip(names, found) for stack in [self._stack(name, blocks)] if stack]

    def _found(self, streams: Segments) -> list[list[Block]]:
        found: list[list[Block]] = []
        claimed: set[int] = set()
        for segments in streams.by_stream():
            for blocks in self._runs(segments):
                if not claimed & blocks[0].nodes:
                    claimed |= {i for b in blocks for i in b.nodes}
                    found.append(blocks)
        return found

    def _headed(self) -> list[Dim]:
        """Streams with norms whose width is tied to the heads (by maps in groups, one for each head), and so is no hidden size of its own."""
        taken = self.roles.leaves_of("heads", "head_dim", "v_head_dim")
        along = {self.s.leaves(d): d for d, _, _ in self.roles.norm_axes if taken & set(self.s.leaves(d))}
        summed = {self.s.leaves(d) for d in streams(self.s, self.static)}
        return [d for leaves, d in along.items() if leaves in summed]

    def _runs(self, segments: list[Segment]) -> Iterator[list[Block]]:
        """The best run of repeated segments, then those left and right of it; single layers where nothing repeats."""
        known: dict[tuple, int] = {}
        words = [known.setdefault(self._word(g), len(known)) for g in segments]
        softmax = [bool(g.nodes & self.attention.keys()) for g in segments]
        best = _best_run(words, softmax, self._leads(segments, softmax))
        if best is None:
            yield from self._single(segments)
            return
        start, period, count = best
        yield from self._runs(segments[:start]) if any(softmax[:start]) else ()
        yield [self._block(segments[start + k * period : start + (k + 1) * period]) for k in range(count)]
        rest = start + count * period
        yield from self._runs(segments[rest:]) if any(softmax[rest:]) else ()

    def _leads(self, segments: list[Segment], softmax: list[bool]) -> list[bool]:
        """Does attention come first from here on, behind nothing but what moves values?"""
        out = list(softmax)
        for i in reversed(range(len(segments) - 1)):
            moves = all(self.s.graph.by_index[j].op in PASSING | {"Transpose", "Reshape"} for j in segments[i].nodes)
            out[i] = out[i] or moves and out[i + 1]
        return out

    def _word(self, g: Segment) -> tuple:
        """What a segment looks like from afar: its operators and their shapes."""
        by = self.s.graph.by_index
        seen = Counter((name_of(by[i]), by[i].domain, tuple(self.s.walk.shapes.get(o) for o in by[i].outputs)) for i in g.nodes if not is_idle(self.s, by[i]))
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
        for merge in range(1, max(2, len(blocks) // 2 + 1)):
            whole = [_merged(blocks[k : k + merge]) for k in range(0, len(blocks) - merge + 1, merge)]
            owned = own_everything(self.roles, [b.nodes for b in whole], {t for b in whole for t in (b.enters, b.leaves)})
            whole, users = [replace(b, nodes=nodes) for b, nodes in zip(whole, owned)], user_counts(self.s, owned)
            spellings = [spell(self.s, b.nodes, b.enters, b.leaves, users) for b in whole]
            first, count = _longest_equal([x.word for x in spellings])
            if count > 1 or len(whole) == 1:
                period, total = whole[0].layers, sum(b.layers for b in blocks)
                return Stack(name, tuple(whole[first : first + count]), tuple(spellings[first : first + count]), first * period,
                             total - (first + count) * period, self._tapped(blocks))
        return None

    def _tapped(self, blocks: list[Block]) -> Node | None:
        """Where two streams are coupled layer by layer: a linear map of another stream follows on what is made inside of a block."""
        inside = {i: k for k, b in enumerate(blocks) for i in b.nodes}
        states = {t for b in blocks for t in (b.enters, b.leaves)}
        reached: dict[str, Node] = {}  # tensors beside the stream -> the node that leaves the block
        for node in self.s.graph.nodes:
            if node.op in SIZES or all(o in self.s.walk.values for o in node.outputs if o):
                continue
            if node.index in inside:
                reached |= dict.fromkeys((o for o in node.outputs if o and o not in states), node)
                continue
            first = next((reached[t] for t in node.inputs if t in reached), None)
            if first is None:
                continue
            if node.index in self.linear:
                return node
            reached |= dict.fromkeys((o for o in node.outputs if o), first)
        return None

    def _names(self, found: list[list[Block]]) -> list[str]:
        if len(self.roles.widths) > 1:
            return self._names_by_width(found)
        if len(found) == 1:
            return ["layers"]
        sides = ["encoder_layers", "decoder_layers"]
        if len(found) == 2 and self._feeds(*found):
            return sides
        if len(found) == 2 and self._feeds(*reversed(found)):  # a decoder's nodes may come first in the file
            return sides[::-1]
        return [f"stack{i}.layers" for i in range(1, len(found) + 1)]

    def _names_by_width(self, found: list[list[Block]]) -> list[str]:
        """`vision.layers`, `stage2.layers`: each stack after the stream that it reads, numbered where one has several."""
        streams = [self._width(blocks[0].enters) for blocks in found]
        out = []
        for i, width in enumerate(streams):
            number = f"stack{streams[: i + 1].count(width)}."
            out.append(width.layers if streams.count(width) == 1 else width.role(f"{number}layers"))
        return out

    def _width(self, tensor: str) -> Width:
        leaves = {leaf for d in self.s.dims[tensor] for leaf in self.s.leaves(d)}
        return next(w for w in self.roles.widths if leaves & set(self.s.leaves(w.hidden)))

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


def _best_run(words: list[int], softmax: list[bool], leads: list[bool]) -> tuple[int, int, int] | None:
    """(start, period, count) of the run that covers most segments; of equals the shortest period, then one that begins with attention."""
    best, key = None, None
    for period in range(1, len(words) // 2 + 1):
        for start in range(len(words) - 2 * period + 1):
            count = 1
            while words[start + (count - 1) * period : start + count * period] == words[start + count * period : start + (count + 1) * period]:
                count += 1
            if count > 1 and any(softmax[start : start + period]):
                now = (count * period, -period, leads[start], -start)
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
