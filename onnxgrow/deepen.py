"""Insert blocks that change nothing: from one graph to another with more layers and the same function, before any width is looked at.

Every block of the grown stack is an instance: an old block under its new number, or a copy of one. Names follow the depth; what several
blocks use stays one; what the graph takes and gives per layer (caches) comes for new layers too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx

from .blocks import SIZES, Block, Stack
from .branches import Branches, Use
from .errors import MethodError
from .graph import Node
from .inserted import Silence, silence
from .isomorphism import is_frequency
from .numbering import Numbering, find_numbering, single_numbering
from .ordering import in_layer_order, sort_nodes
from .placement import Place, place, wanted_layers
from .request import Depth
from .roles import FLOATS, Roles
from .source import Source
from .weights import Weights


@dataclass(frozen=True)
class Deepened:
    """The deeper graph as a source of its own, and how it relates to the one it came from.

    Attributes:
        inputs: input name -> the source's input that it corresponds to; copies take what their original takes.
        outputs: output name -> the source's output that it must equal.
        tensors: tensor of the source -> its name now.
        places: stack name -> its blocks in order.
        layers: stack name -> (old, new) number of layers.
        fresh: initializers of the new blocks.
        eps: whether some norm is applied twice, which is exact up to its epsilon.
    """

    source: Source
    inputs: dict[str, str]
    outputs: dict[str, str]
    tensors: dict[str, str]
    places: dict[str, list[Place]]
    layers: dict[str, tuple[int, int]]
    fresh: frozenset[str]
    eps: bool


@dataclass
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


def deepen(roles: Roles, stacks: list[Stack], depth: Depth) -> Deepened:
    """Carry out a request for more layers.

    Raises:
        SizeError: no such stack, or a number of layers that cannot be.
        MethodError: a block cannot be inserted without changing the function.
    """
    wanted = wanted_layers(stacks, depth)
    places = {s.name: place(s, wanted.get(s.name, s.layers), depth) for s in stacks}
    return _Builder(roles, stacks, places, depth).build(wanted)


class _Builder:
    def __init__(self, roles: Roles, stacks: list[Stack], places: dict[str, list[Place]], depth: Depth):
        self.s, self.graph, self.proto, self.stacks = roles.structure, roles.structure.graph, roles.structure.graph.source.proto.graph, stacks
        self.places = places
        self.instances = {s.name: [Instance(s, p.block, q, p.new) for q, p in enumerate(places[s.name])] for s in stacks}
        self.owner = {i: (s.name, k) for s in stacks for k, b in enumerate(s.blocks) for i in b.nodes}
        self.silence: dict[str, Silence] = {s.name: silence(Branches(roles), s, places[s.name], depth.method) for s in stacks}
        self.numberings = {s.name: self._numbering(s) for s in stacks}
        self.weights = Weights(self.graph)
        self.now: dict[str, str] = {}  # tensor of the source, outside of new blocks -> its name
        self.taken: set[str] = set()
        self.taken_nodes: set[str] = set()

    # --- what belongs to a block ------------------------------------------------------------------------------------

    def _owned(self, stack: Stack) -> list[list[str]]:
        """Per block the names that only it uses: values, inputs, weights and constants."""
        place = {i: k for k, b in enumerate(stack.blocks) for i in b.nodes}
        users: dict[str, set] = {}
        for node in self.graph.nodes:
            for t in node.inputs:
                if t and (node.op not in SIZES or t in self.graph.weights):
                    users.setdefault(self.graph.weights.get(t, t), set()).add(place.get(node.index))
        out: list[list[str]] = [[] for _ in stack.blocks]
        fed = {v.name for v in self.graph.inputs} - {stack.blocks[0].enters}
        held = set(self.graph.weights.values())
        for name, found in users.items():
            if len(found) == 1 and None not in found and (name in fed or name in held):
                out[found.pop()].append(name)
        for k, block in enumerate(stack.blocks):
            out[k] += [o for i in sorted(block.nodes) for o in self.graph.by_index[i].outputs if o]
        return out

    def _numbering(self, stack: Stack) -> Numbering:
        held = set(self.graph.weights.values())
        if len(stack.blocks) == 1:
            return single_numbering(name for name in self._owned(stack)[0] if name in held)
        rows = zip(*(x.order for x in stack.spellings))
        return find_numbering((names for row in rows for names in self._names_of(row)), stack.period, stack.before)

    def _names_of(self, row: tuple[int, ...]) -> Iterable[tuple[str, ...]]:
        """Names of one place in all blocks: the node, what it makes, the weights and inputs it takes."""
        nodes = [self.graph.by_index[i] for i in row]
        yield tuple(n.proto.name for n in nodes)
        yield from zip(*(n.proto.output for n in nodes))
        yield from zip(*([self.graph.weights.get(t, t) for t in n.inputs] for n in nodes))

    # --- names --------------------------------------------------------------------------------------------------------

    def _name_everything(self) -> None:
        owned = {s.name: self._owned(s) for s in self.stacks}
        inside = {name for blocks in owned.values() for names in blocks for name in names}
        every = {*(t.name for t in self.proto.initializer), *(v.name for v in self.proto.input), *(o for n in self.proto.node for o in n.output)}
        self.taken |= every - inside
        self.taken_nodes |= {n.name for i, n in enumerate(self.proto.node) if i not in self.owner}
        for new in (False, True):
            for stack in self.stacks:
                kept = self._kept_output(stack)
                for instance in self.instances[stack.name]:
                    if instance.new == new:
                        self._name_instance(instance, owned[stack.name][instance.block], kept)
        for stack in self.stacks:
            last = self.instances[stack.name][-1]
            self.now[stack.blocks[-1].leaves] = last.names[last.source.leaves]

    def _kept_output(self, stack: Stack) -> str | None:
        """The last state where it is an output by a name without a number: the last block makes it."""
        leaves = stack.blocks[-1].leaves
        return leaves if leaves in self.graph.outputs and not self.numberings[stack.name].numbered(leaves, len(stack.blocks) - 1) else None

    def _name_instance(self, instance: Instance, owned: list[str], kept: str | None) -> None:
        last = instance.position == len(self.places[instance.stack.name]) - 1
        for name in owned:
            text = self.numberings[instance.stack.name].at(name, instance.block, instance.position)
            if kept and name == instance.source.leaves:
                text = kept if last else f"{kept}_{instance.position}"
            instance.names[name] = self.fresh(text, instance.new and text == name and not (kept and last), self.taken)
            if not instance.new:
                self.now[name] = instance.names[name]

    def fresh(self, text: str, never: bool, taken: set[str]) -> str:
        """A free name: `text` itself unless it is taken or must not be."""
        name, k = text, 0
        while name in taken or (never and name == text):
            k += 1
            name = f"{text}_{k}"
        taken.add(name)
        return name

    # --- nodes --------------------------------------------------------------------------------------------------------

    def build(self, wanted: dict[str, int]) -> Deepened:
        self._name_everything()
        keyed: list[tuple[tuple, onnx.NodeProto]] = []
        for index, proto in enumerate(self.proto.node):
            if index not in self.owner and not self._is_owned_constant(proto):
                keyed.append(((index, 0, 0), self._outside(index, proto)))
        for stack in self.stacks:
            for instance in self.instances[stack.name]:
                keyed += self._instance_nodes(instance)
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.source.proto)
        for part in ("node", "initializer", "input", "output", "value_info"):
            del getattr(model.graph, part)[:]
        model.graph.node.extend(sort_nodes(keyed))
        inputs, outputs = self._values(self.proto.input), self._values(self.proto.output)
        model.graph.input.extend(v for v, _, _ in inputs)
        model.graph.output.extend(v for v, _, _ in outputs)
        model.graph.value_info.extend(v for v, _, _ in self._values(self.proto.value_info))
        tensors, refs = self.weights.emit({name for n in model.graph.node for name in n.input}, self.now)
        model.graph.initializer.extend(tensors)
        old = self.graph.source
        source = Source(old.path, model, refs, old.data, frozenset(self.weights.constant))
        return Deepened(source, {v.name: name for v, name, _ in inputs}, {v.name: name for v, name, new in outputs if not new}, dict(self.now), self.places,
                        {s.name: (s.layers, wanted.get(s.name, s.layers)) for s in self.stacks}, frozenset(self.weights.fresh),
                        any(x.eps for x in self.silence.values()))

    def _is_owned_constant(self, proto: onnx.NodeProto) -> bool:
        return bool(proto.output) and proto.output[0] in self.graph.constant_nodes and any(
            proto.output[0] in instance.names for found in self.instances.values() for instance in found)

    def _outside(self, index: int, proto: onnx.NodeProto) -> onnx.NodeProto:
        out = onnx.NodeProto()
        out.CopyFrom(proto)
        for slot, name in enumerate(proto.input):
            changed = [(s, (-1, (index, slot))) for s in self.silence if (-1, (index, slot)) in self.silence[s].changes]
            if changed:
                stack, key = changed[0]
                out.input[slot] = self.weights.changed(self._weight_name(index, slot), self.silence[stack].changes[key], self._like, None, self._fresh_name)
            else:
                out.input[slot] = self._first(name) if proto.op_type in SIZES else self.now.get(name, name)
        return out

    def _first(self, tensor: str) -> str:
        """Sizes are read off the first block of a stack, so that what is computed from them can serve all the others."""
        maker = self.graph.makers.get(tensor)
        found = self.owner.get(maker.index) if maker is not None else None
        if found is None:
            return self.now.get(tensor, tensor)
        name, k = found
        stack, first = next(s for s in self.stacks if s.name == name), self.instances[name][0]
        order = stack.spellings[k].order
        if not first.new or maker.index not in order:
            return self.now.get(tensor, tensor)
        twin = self.graph.by_index[stack.spellings[first.block].order[order.index(maker.index)]]
        return first.names[twin.outputs[maker.outputs.index(tensor)]]

    def _instance_nodes(self, instance: Instance) -> list[tuple[tuple, onnx.NodeProto]]:
        block, numbering = instance.source, self.numberings[instance.stack.name]
        base = self._base(instance)
        out = []
        for index in sorted(block.nodes):
            node = self.graph.by_index[index]
            if node.captured:
                raise MethodError(f"{node.op} holds a graph of its own inside a block", node=node.label, hint="layers with subgraphs cannot be copied yet")
            proto = onnx.NodeProto()
            proto.CopyFrom(node.proto)
            proto.name = self._node_name(instance, node.proto.name)
            proto.input[:] = [self._input(instance, node, slot) for slot in range(len(node.inputs))]
            proto.output[:] = [instance.names.get(o, o) for o in node.proto.output]
            for p in proto.metadata_props:
                p.value = numbering.at(p.value, instance.block, instance.position)
            out.append(((*base, index) if instance.new else (index, 0, 0), proto))
        out += [((*base, -1), c) for c in self._constants(instance)]
        return out + [((*base, len(self.proto.node) + i), n) for i, n in enumerate(self._gates(instance, [p for _, p in out]))]

    def _base(self, instance: Instance) -> tuple[float, int]:
        """Where a new block stands in the file: behind the old block before it."""
        before = [x for x in self.instances[instance.stack.name][: instance.position] if not x.new]
        if before:
            return max(before[-1].source.nodes), instance.position
        return min(instance.stack.blocks[0].nodes) - 0.5, instance.position

    def _node_name(self, instance: Instance, name: str) -> str:
        if not name:
            return name
        text = self.numberings[instance.stack.name].at(name, instance.block, instance.position)
        return self.fresh(text, instance.new and text == name, self.taken_nodes)

    def _input(self, instance: Instance, node: Node, slot: int) -> str:
        use, name = (node.index, slot), node.proto.input[slot]
        change = self.silence[instance.stack.name].changes.get((instance.position, use))
        if change is not None:
            return self.weights.changed(self._weight_name(*use), change, self._like, instance, self._fresh_name)
        if not name or name == instance.source.enters:
            return name and self._entering(instance)
        held = self.graph.weights.get(node.inputs[slot])
        if held is not None and instance.new:
            return self._copied_weight(instance, node.inputs[slot], held, name)
        return instance.names.get(name) or (self._first(name) if node.op in SIZES else self.now.get(name, name))

    def _entering(self, instance: Instance) -> str:
        if instance.position == 0:
            enters = instance.stack.blocks[0].enters
            return self.now.get(enters, enters)
        before = self.instances[instance.stack.name][instance.position - 1]
        return before.names[before.source.leaves]

    def _copied_weight(self, instance: Instance, tensor: str, held: str, name: str) -> str:
        """A weight of a new block: its own copy, but for tables and matrices that other blocks use as well."""
        if held not in instance.names:
            shape, kind = self.graph.weight_shape(tensor), self.graph.weight_type(tensor)
            vector = kind in FLOATS and sum(n > 1 for n in shape) == 1 and not is_frequency(self.s, tensor)
            if not vector:
                return self.now.get(name, name)
            instance.names[held] = self.fresh(held, True, self.taken)
        if held in self.graph.constant_nodes:
            return instance.names[held]
        return self.weights.copied(held, instance.names[held])

    def _constants(self, instance: Instance) -> list[onnx.NodeProto]:
        """The Constant nodes of a block."""
        out = []
        for name, proto in self.graph.constant_nodes.items():
            if name in instance.names:
                copy = onnx.NodeProto()
                copy.CopyFrom(proto)
                copy.name, copy.output[0] = self._node_name(instance, proto.name), instance.names[name]
                out.append(copy)
        return out

    def _gates(self, instance: Instance, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """A zero scalar on each branch of a new block, or on all it does where its norms stand on the stream."""
        found = self.silence[instance.stack.name]
        out: list[onnx.NodeProto] = []
        scope = self._scope(instance)
        for i, (index, slot) in enumerate(found.gates.get(instance.position, [])):
            add = next(n for n in nodes if instance.names[self.graph.by_index[index].outputs[0]] in n.output)
            gated = self.fresh(f"{scope}.gated_{i}", False, self.taken)
            gate = self.weights.gate(self.fresh(f"{scope}.gate_{i}", False, self.taken), self._stream_type(instance))
            out.append(onnx.helper.make_node("Mul", [add.input[slot], gate], [gated], gated))
            add.input[slot] = gated
        if instance.position in found.wrapped:
            leaves, enters = instance.names[instance.source.leaves], self._entering(instance)
            made = next(n for n in nodes if leaves in n.output)
            inner, change, gated = (self.fresh(f"{scope}.{what}", False, self.taken) for what in ("inner", "change", "gated"))
            for n in nodes:
                n.input[:] = [inner if name == leaves else name for name in n.input]
            made.output[:] = [inner if o == leaves else o for o in made.output]
            gate = self.weights.gate(self.fresh(f"{scope}.gate", False, self.taken), self._stream_type(instance))
            out += [onnx.helper.make_node("Sub", [inner, enters], [change], change), onnx.helper.make_node("Mul", [change, gate], [gated], gated),
                    onnx.helper.make_node("Add", [enters, gated], [leaves], f"{scope}.add")]
        return out

    def _scope(self, instance: Instance) -> str:
        """What the weights of a block are called together: `model.layers.7`."""
        words = self.numberings[instance.stack.name].words
        for held in self._owned(instance.stack)[instance.block]:
            text = instance.names.get(held, held)
            for word, (first, step) in words.items():
                mark = f"{word}.{first + step * instance.position}."
                if held in self.graph.weights.values() and mark in text:
                    return text[: text.index(mark) + len(mark) - 1]
        return f"{instance.stack.name}.{instance.position}"

    def _stream_type(self, instance: Instance) -> int:
        return self.s.walk.types[instance.source.enters]

    # --- inputs, outputs, weights ---------------------------------------------------------------------------------------

    def _values(self, values: Iterable[onnx.ValueInfoProto]) -> list[tuple[onnx.ValueInfoProto, str, bool]]:
        """(value, the source's name, is it of a new block?): those of blocks once per block, in the order of layers."""
        owner = {name: (x.stack.name, x.block) for found in self.instances.values() for x in found for name in x.names}
        kept = {self._kept_output(s) for s in self.stacks}
        out = []
        for value, instance in in_layer_order(list(values), {n: o for n, o in owner.items() if n not in kept}, self.instances):
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            copy.name = self.now.get(value.name, value.name) if instance is None else instance.names[value.name]
            if instance is not None:
                for p in copy.metadata_props:
                    p.value = self.numberings[instance.stack.name].at(p.value, instance.block, instance.position)
            out.append((copy, value.name, instance is not None and instance.new))
        return out

    def _weight_name(self, index: int, slot: int) -> str:
        return self.graph.weights[self.graph.by_index[index].inputs[slot]]

    def _like(self, use: Use) -> str:
        return self._weight_name(*use)

    def _fresh_name(self, text: str) -> str:
        return self.fresh(text, True, self.taken)
