"""Where the parameters are: each weight of a model under the part that it belongs to, each tensor in the file once.

A part is told by sizes and place, as roles are, never by names: what shows the feed-forward width belongs to the feed-forward part, what
shows heads to attention, rows that ids look up are words. A vector as wide as the stream belongs to the norm or the linear map that it follows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from math import prod

from .architecture import is_parameter
from .blocks import Stack
from .graph import Node
from .roles import Roles
from .ties import find

FRONT, INSIDE, BACK = "front", "inside", "back"
ATTENTION, CROSS, FEED, NORMS, WORDS, POSITIONS, INPUT, HEAD, OUTPUT, OTHER = (
    "attention", "cross attention", "feed-forward", "norms", "words", "positions", "input map", "head", "output map", "other")
KINDS = (WORDS, POSITIONS, INPUT, ATTENTION, CROSS, FEED, NORMS, OUTPUT, HEAD, OTHER)  # from the inputs to the outputs
LAYERED = (ATTENTION, CROSS, FEED)
MOVES = ("Transpose", "Cast", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class Part:
    """Weights of one kind in one place.

    Attributes:
        kind: attention, cross attention, feed-forward, norms, words, positions, input map, head (to words), output map or other.
        stack: the stack of layers that it is in or beside; empty where the model has none.
        place: "front", "inside" or "back" of the layers.
        parameters: how many numbers, all layers together.
        tied: words that are also the map to logits.
    """

    kind: str
    stack: str
    place: str
    parameters: int
    tied: bool = False


def find_parts(roles: Roles, stacks: list[Stack]) -> list[Part]:
    """The parts of a model; their parameters add up to `architecture.count_parameters`."""
    found = _Finder(roles, stacks)
    counts: Counter = Counter()
    tied: set[tuple] = set()
    for tensor in found.parameters().values():
        key = found.part(tensor)
        counts[key] += prod(found.graph.weight_shape(tensor))
        tied |= {key} if key[0] == WORDS and found.is_head(tensor) else set()
    return [Part(*key, count, key in tied) for key, count in counts.items()]


def kinds_of(roles: Roles, stacks: list[Stack]) -> dict[str, str]:
    """Initializer with parameters -> the kind of the part that it belongs to."""
    found = _Finder(roles, stacks)
    return {name: found.part(tensor)[0] for name, tensor in found.parameters().items()}


def cross_attention(roles: Roles) -> set[int]:
    """Indices in `roles.attention` of those whose keys come from another state than their queries."""
    return _Finder(roles, []).crossing


class _Finder:
    def __init__(self, roles: Roles, stacks: list[Stack]):
        self.roles, self.stacks = roles, stacks
        self.s, self.graph = roles.structure, roles.structure.graph
        self.at = self.graph.place
        self.owner = {i: x.name for x in stacks for b in x.blocks for i in b.nodes}
        places = {x.name: [self.at[i] for b in x.blocks for i in b.nodes if i not in self.graph.measuring] for x in stacks}
        self.span = {name: (min(found), max(found)) for name, found in places.items()}
        self.whole = {x.name for x in stacks if not x.before and not x.after}
        self.linear = {lin.node.index for lin in roles.linears}
        self.norms = {n.index for _, _, n in roles.norm_axes} | {i for n in roles.norms for i in n.nodes}

    def parameters(self) -> dict[str, str]:
        """Initializer -> the tensor that stands for it; an equal vector that several uses share is counted where it is used first."""
        by_name: dict[str, list[str]] = defaultdict(list)
        for tensor, name in self.graph.weights.items():
            if self.graph.users.get(tensor) and is_parameter(self.graph.weight_type(tensor), self.graph.weight_shape(tensor)):
                by_name[name].append(tensor)
        return {name: min(tensors, key=lambda t: self.at[self.final(t)[0].index]) for name, tensors in by_name.items()}

    def part(self, tensor: str) -> tuple[str, str, str]:
        """(kind, stack, place) of a weight."""
        nodes = self.final(tensor)
        kind = self.kind(tensor, nodes)
        stack, place = self.place(tensor, nodes[0], kind)
        if kind == OTHER:
            kind = {FRONT: INPUT, BACK: OUTPUT}.get(place, OTHER)
        if kind in (ATTENTION, CROSS) and nodes[0].index not in self.owner and stack in self.whole:
            kind = POSITIONS  # what all layers share of the sizes of heads: rotary tables, relative positions
        return kind, stack, place

    def final(self, tensor: str) -> list[Node]:
        """The nodes in which a weight meets what is fed, in order."""
        out, waiting, seen = {}, [tensor], {tensor}
        while waiting:
            for node, _ in self.graph.users.get(waiting.pop(), []):
                made = {o for o in node.outputs if o and o in self.roles.static}
                if not made:
                    out[node.index] = node
                waiting += made - seen
                seen |= made
        return sorted(out.values(), key=lambda n: self.at[n.index]) or [n for n, _ in self.graph.users[tensor]]

    def kind(self, tensor: str, nodes: list[Node]) -> str:
        shown = self.shown(tensor, nodes)
        if shown is None and any(n.index in self.norms for n in nodes):
            return NORMS
        maps = [n for n in nodes if n.index in self.linear]
        if shown is None and maps:
            return self.after.get(maps[0].outputs[0], OTHER) if len(self.graph.weight_shape(tensor)) < 2 else OTHER
        return shown or next((self.after[t] for n in nodes for t in n.inputs if t in self.after), OTHER)

    def shown(self, tensor: str, nodes: list[Node]) -> str | None:
        """The kind that the sizes of a weight show."""
        shown = {leaf for d in self.s.dims.get(tensor, ()) for leaf in self.s.leaves(d) if leaf.size > 1}
        if any(t.weight == tensor and t.source for t in self.roles.tables):
            return POSITIONS if shown & self.roles.leaves_of("positions") else WORDS
        if shown & self.roles.leaves_of("experts", "ffn"):
            return FEED
        if shown & self.roles.leaves_of("heads", "kv_heads", "head_dim", "v_head_dim"):
            return self.attention(nodes)
        if shown & self.roles.leaves_of("positions"):
            return POSITIONS
        return HEAD if self.is_head(tensor) else None

    def is_head(self, tensor: str) -> bool:
        """Does a linear map to logits use it?"""
        return any(n.index in self.to_words for n in self.final(tensor))

    @cached_property
    def to_words(self) -> set[int]:
        leaves = {leaf for name in self.roles.roles if name.split(".")[-1] == "vocab" for leaf in self.roles.leaves_of(name)}
        return {lin.node.index for lin in self.roles.linears if any(leaves & set(self.s.leaves(find(d))) for d in lin.writes)}

    @cached_property
    def after(self) -> dict[str, str]:
        """Tensor -> the kind of part whose result it is, as far as only vectors have been applied to it since."""
        out: dict[str, str] = {}
        weights = [t for t in self.graph.weights if self.graph.users.get(t) and len(self.graph.weight_shape(t)) > 1]
        maps = {n.index: t for t in weights for n in self.final(t) if n.index in self.linear}
        for node in self.graph.nodes:
            moving = [t for t in node.inputs if t and t not in self.roles.static and t not in self.s.walk.values]
            kind = NORMS if node.index in self.norms else None
            if node.index in maps:
                kind = HEAD if node.index in self.to_words else self.shown(maps[node.index], [node])
            elif kind is None and len(moving) == 1:
                kind = out.get(moving[0])
            out |= {o: kind for o in node.outputs if kind}
        return out

    def attention(self, nodes: list[Node]) -> str:
        """Which attention a map leads to or comes from."""
        found = {i for n in nodes for i, _ in self.leads.get(n.index, ())} or {i for n in nodes for t in n.inputs for i in self.comes.get(t, ())}
        return CROSS if found and found <= self.crossing else ATTENTION

    @cached_property
    def leads(self) -> dict[int, set[tuple[int, int]]]:
        """Node -> (attention, side) that its result goes to before the next linear map; sides 0 and 1 are those of the scores, 2 the values."""
        tensors: dict[str, set] = defaultdict(set)
        out: dict[int, set] = {}
        ends = {a.scores.index: i for i, a in enumerate(self.roles.attention)}
        values = {a.context.index: i for i, a in enumerate(self.roles.attention)}
        for node in reversed(self.graph.nodes):
            if node.index in self.graph.measuring:
                continue
            if node.index in ends:
                for side in (0, 1):
                    tensors[node.inputs[side]].add((ends[node.index], side))
            elif node.index in values:
                i = values[node.index]
                tensors[node.inputs[1 - self.roles.attention[i].shares]].add((i, 2))
            else:
                found = set().union(*(tensors.get(o, set()) for o in node.outputs))
                out[node.index] = found
                for t in node.inputs if node.index not in self.linear else ():
                    tensors[t] |= found
        return out

    @cached_property
    def comes(self) -> dict[str, set[int]]:
        """Tensor -> the attention whose result it is, until a linear map has taken it."""
        out: dict[str, set[int]] = {}
        ends = {a.context.index: {i} for i, a in enumerate(self.roles.attention)}
        for node in self.graph.nodes:
            found = ends.get(node.index) or set().union(*(out.get(t, set()) for t in node.inputs))
            if found and node.index not in self.norms:
                kept = [o for o in node.outputs if o]
                out |= {o: found for o in kept} if node.index not in self.linear else {}
        return out

    @cached_property
    def crossing(self) -> set[int]:
        states: dict[tuple[int, int], set[str]] = defaultdict(set)
        for index in self.linear & self.leads.keys():
            node = self.graph.by_index[index]
            for key in self.leads[index]:
                states[key] |= {self.state(t) for t in node.inputs if t and t not in self.roles.static}
        pairs = {i: (states[i, 0], states[i, 1]) for i in range(len(self.roles.attention))}
        return {i for i, (queries, keys) in pairs.items() if queries and not queries & keys}

    def state(self, tensor: str) -> str:
        """The tensor behind what only moves values."""
        while (node := self.graph.makers.get(tensor)) is not None and node.op in MOVES:
            tensor = node.inputs[0]
        return tensor

    def place(self, tensor: str, node: Node, kind: str) -> tuple[str, str]:
        """(stack, place): of the layers around a node; else of the stacks of its width the one before or behind it."""
        if node.index in self.owner:
            return self.owner[node.index], INSIDE
        if not self.stacks:
            return "", INSIDE if kind in LAYERED else FRONT if kind in (WORDS, POSITIONS) else BACK
        shown = {find(d) for d in self.s.dims.get(tensor, ())}
        own = [x.name for x in self.stacks if find(self.s.dims[x.blocks[0].leaves][-1]) in shown] or [x.name for x in self.stacks]
        own.sort(key=self.span.__getitem__)
        now = self.at[node.index]
        ahead = [name for name in own if now <= self.span[name][1]]
        if kind in LAYERED:
            return (ahead or own[-1:])[0], INSIDE
        behind = [name for name in own if now > self.span[name][1]]
        if ahead and (kind in (WORDS, POSITIONS) or not behind):
            return ahead[0], FRONT if now < self.span[ahead[0]][0] or kind in (WORDS, POSITIONS) else INSIDE
        return behind[-1], BACK
