"""Blocks of the grown stack as instances of old ones, and what everything in them is called.

Names follow the depth wherever the source numbers its layers; the others keep their name in old blocks and get a new one in copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .blocks import Block, Stack
from .graph import Graph, free_name
from .numbering import Numbering, find_numbering, single_numbering
from .placement import Place

SCOPE = re.compile(r"[A-Za-z]+[./]\d+\b")  # `layers.7` in a text


@dataclass(eq=False)
class Instance:
    """One block of the grown stack: block number `block` of the source at `position`."""

    stack: Stack
    block: int
    position: int
    new: bool
    names: dict[str, str] = field(default_factory=dict)  # name in the source -> name here

    @property
    def source(self) -> Block:
        return self.stack.blocks[self.block]

    @property
    def leaves(self) -> str:
        """The stream tensor that it makes, by its name here."""
        return self.names[self.source.leaves]


class Names:
    """All instances of a deepened graph, named.

    Attributes:
        instances: by stack name, in order.
        now: name in the source -> name in the deepened graph, new blocks aside; names that stay are not listed.
        owner: node index -> (stack name, block number).
    """

    def __init__(self, graph: Graph, stacks: list[Stack], places: dict[str, list[Place]], caches: set[str]):
        self.graph, self.stacks = graph, stacks
        self.proto = graph.source.proto.graph
        self.instances = {s.name: [Instance(s, p.block, q, p.new) for q, p in enumerate(places[s.name])] for s in stacks}
        self.owner = {i: (s.name, k) for s in stacks for k, b in enumerate(s.blocks) for i in b.nodes}
        self.owned = {s.name: _owned(graph, s, caches) for s in stacks}
        self.numberings = {s.name: self._numbering(s) for s in stacks}
        self.now: dict[str, str] = {}
        self._reserve()
        for new in (False, True):
            for instance in self.every():
                if instance.new == new:
                    self._name(instance)
        for stack in stacks:
            self.now[stack.blocks[-1].leaves] = self.instances[stack.name][-1].leaves

    def every(self) -> Iterator[Instance]:
        for found in self.instances.values():
            yield from found

    def text(self, instance: Instance, text: str) -> str:
        """Any text of a block as it reads at the instance's position."""
        return self.numberings[instance.stack.name].at(text, instance.block, instance.position)

    def node(self, instance: Instance, name: str) -> str:
        """The name of a node in an instance; nodes without one have none."""
        return name and free_name(self.text(instance, name), self.taken_nodes, self._nameless(instance, name))

    def _nameless(self, instance: Instance, name: str) -> bool:
        """Whether a new block cannot have a name: it does not say which block it belongs to."""
        return instance.new and not self.numberings[instance.stack.name].numbered(name, instance.block)

    def fresh(self, like: str, never: bool = True) -> str:
        """A free name for a tensor; `never` the given one."""
        return free_name(like, self.taken, never)

    def scope(self, instance: Instance) -> str:
        """What the weights of a block are called together: `model.layers.7`."""
        held = set(self.graph.weights.values())
        for name in self.owned[instance.stack.name][instance.block]:
            for word, (first, step) in self.numberings[instance.stack.name].words.items():
                mark = f"{word}.{first + step * instance.position}."
                if name in held and mark in instance.names[name]:
                    return instance.names[name].partition(mark)[0] + mark[:-1]
        return f"{instance.stack.name}.{instance.position}"

    def _numbering(self, stack: Stack) -> Numbering:
        held = set(self.graph.weights.values())
        if len(stack.blocks) == 1:
            return single_numbering(name for name in self.owned[stack.name][0] if name in held)
        rows = zip(*(x.order for x in stack.spellings))
        return find_numbering((names for row in rows for names in self._side_by_side(row)), stack.period, stack.before)

    def _side_by_side(self, row: tuple[int, ...]) -> Iterable[tuple[str, ...]]:
        """Names of one place in all blocks: the node, what it makes, the weights and inputs it takes."""
        nodes = [self.graph.by_index[i] for i in row]
        yield tuple(n.proto.name for n in nodes)
        yield from zip(*(n.proto.output for n in nodes))
        yield from zip(*([self.graph.weights.get(t, t) for t in n.inputs] for n in nodes))
        for texts in zip(*([p.value for p in n.metadata_props if SCOPE.search(p.value)] for n in (n.proto for n in nodes))):
            yield tuple(" ".join(m[0] for m in SCOPE.finditer(text)) for text in texts)

    def _reserve(self) -> None:
        """Names outside of blocks, and those after them that count on: layers behind the blocks move up."""
        inside = {name for blocks in self.owned.values() for names in blocks for name in names}
        every = {*(t.name for t in self.proto.initializer), *(v.name for v in self.proto.input), *(o for n in self.proto.node for o in n.output)}
        self.taken = set()
        for name in sorted(every - inside):
            self.now |= {name: self.outside(name)} if self.outside(name) != name else {}
            self.taken.add(self.outside(name))
        constants = {n.name for n in self.graph.constant_nodes.values() if n.output[0] in inside}
        self.taken_nodes = {n.name for i, n in enumerate(self.proto.node) if i not in self.owner} - constants

    def outside(self, text: str) -> str:
        """A text from outside of all blocks: numbers of layers behind the blocks follow."""
        for stack in self.stacks:
            if stack.after:
                text = self.numberings[stack.name].at(text, len(stack.blocks), len(self.instances[stack.name]))
        return text

    def _name(self, instance: Instance) -> None:
        kept, last = instance.stack.final_output(self.graph.outputs), instance is self.instances[instance.stack.name][-1]
        for name in self.owned[instance.stack.name][instance.block]:
            text = self.text(instance, name)
            final = kept is not None and name == instance.source.leaves
            if final:
                text = kept if last else f"{kept}_{instance.position}"
            instance.names[name] = self.fresh(text, self._nameless(instance, name) and not (final and last))
            if not instance.new:
                self.now[name] = instance.names[name]


def _owned(graph: Graph, stack: Stack, caches: set[str]) -> list[list[str]]:
    """Per block the names that only it uses: inputs and weights, and all that it makes."""
    place = {i: k for k, b in enumerate(stack.blocks) for i in b.nodes}
    users: dict[str, set] = {}
    for node in graph.nodes:
        for t in node.inputs:
            if t and (node.index not in graph.measuring or t in graph.weights):
                users.setdefault(graph.weights.get(t, t), set()).add(place.get(node.index))
    fed = caches if len(stack.blocks) == 1 else {v.name for v in graph.inputs}
    alone = (fed | set(graph.weights.values())) - {stack.blocks[0].enters}
    out: list[list[str]] = [[] for _ in stack.blocks]
    for name, found in users.items():
        if name in alone and len(found) == 1 and None not in found:
            out[found.pop()].append(name)
    for k, block in enumerate(stack.blocks):
        out[k] += [o for i in sorted(block.nodes) for o in graph.by_index[i].outputs if o]
    return out
