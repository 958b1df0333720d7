"""Insert blocks that change nothing: from one graph to another with more layers and the same function, before any width is looked at.

Every block of the grown stack is an instance: an old block under its new number, or a copy of one. What several blocks use (masks, rotary
tables, encoder states) stays one; what the graph takes and gives per layer (caches) comes for new layers too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx

from .blocks import Stack
from .branches import Branches
from .errors import MethodError
from .external import TensorRef
from .gates import add_gates
from .graph import HOLDER, MARKS, SIZES, Node
from .inserted import Silence, silence
from .instances import Instance, Names
from .isomorphism import is_frequency
from .ordering import in_layer_order, sort_nodes
from .placement import Place, place, wanted_layers
from .request import Depth
from .roles import FLOATS, Roles
from .source import Source
from .stacked import why_no_layers
from .weights import Weights

Key = tuple[float, int, int]  # where a node would like to stand


@dataclass(frozen=True)
class Deepened:
    """The deeper graph as a source of its own, and how it relates to the one it came from.

    Attributes:
        inputs: input name -> the source's input that it corresponds to; copies take what their original takes.
        outputs: output name -> the source's output that it must equal.
        tensors: tensor of the source -> its name now, where it is another one.
        places: stack name -> its blocks in order.
        layers: stack name -> (old, new) number of layers.
        fresh: initializers of the new blocks.
        eps: the largest epsilon of a norm that states pass twice; 0 where there is none.
        copies: for each new block, the first output of each of its nodes -> that of the node it is a copy of, by their names here.
    """

    source: Source
    inputs: dict[str, str]
    outputs: dict[str, str]
    tensors: dict[str, str]
    places: dict[str, list[Place]]
    layers: dict[str, tuple[int, int]]
    fresh: frozenset[str]
    eps: float
    copies: list[dict[str, str]]


def deepen(roles: Roles, stacks: list[Stack], depth: Depth) -> Deepened:
    """Carry out a request for more layers.

    Raises:
        SizeError: no such stack, or a number of layers that cannot be.
        MethodError: a block cannot be inserted without changing the function.
    """
    refused = why_no_layers(roles, {i for s in stacks for b in s.blocks for i in b.nodes})
    if refused:
        raise refused
    wanted = {s.name: s.layers for s in stacks} | wanted_layers(stacks, depth)
    for tapped, name in ((s.tapped, s.name) for s in stacks if wanted[s.name] != s.layers):
        if tapped is not None:
            raise MethodError(f"{name}: another stream of states reads what is made inside of these layers, and would not see that of new ones", node=tapped.label,
                              hint="grow its widths, or train the model with more layers from the start")
    places = {s.name: place(s, wanted[s.name], depth) for s in stacks}
    builder = _Builder(roles, stacks, places, depth)
    model = builder.build()
    old, weights = roles.structure.graph.source, builder.weights
    source = Source(old.path, model, builder.refs, old.data, {name: value for name, (_, value) in weights.filled.items()}, old.temporary, old.seen)
    return Deepened(source, builder.inputs, builder.outputs, dict(builder.names.now), places, {s.name: (s.layers, wanted[s.name]) for s in stacks},
                    frozenset(weights.fresh), max(x.eps for x in builder.silence.values()), builder.copies)


class _Builder:
    def __init__(self, roles: Roles, stacks: list[Stack], places: dict[str, list[Place]], depth: Depth):
        self.s, self.graph, self.stacks = roles.structure, roles.structure.graph, {s.name: s for s in stacks}
        self.proto = self.graph.source.proto.graph
        branches = Branches(roles)
        self.silence: dict[str, Silence] = {s.name: silence(branches, s, places[s.name], depth.method) for s in stacks}
        self.names = Names(self.graph, stacks, places, roles.caches(v.name for v in self.graph.inputs))
        self.weights = Weights(self.graph)
        self.measuring = {i for i in self.graph.measuring if i not in self.names.owner or self.graph.by_index[i].op in SIZES}
        self.refs: dict[str, TensorRef] = {}
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.copies: list[dict[str, str]] = []

    def build(self) -> onnx.ModelProto:
        """The deepened model, large weights left out; `refs`, `inputs` and `outputs` are known afterwards."""
        keyed = list(self._outside())
        for instance in self.names.every():
            keyed += self._inside(instance)
        made = self.weights.made
        keyed = [(key, node) for key, node in keyed if node.op_type != "Constant" or node.output[0] not in made]  # what took its name takes its place
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.source.proto)
        for part in ("node", "initializer", "input", "output", "value_info"):
            del getattr(model.graph, part)[:]
        model.graph.node.extend(sort_nodes(keyed))
        values = {part: self._values(getattr(self.proto, part)) for part in ("input", "output", "value_info")}
        for part, found in values.items():
            getattr(model.graph, part).extend(v for v, _, _ in found)
        self.inputs = {v.name: old for v, old, _ in values["input"]}
        self.outputs = {v.name: old for v, old, new in values["output"] if not new}
        order = [(old, new) for _, old, new, _ in self._per_layer(self.proto.initializer)]
        tensors, self.refs = self.weights.emit(order, {name for n in model.graph.node for name in n.input})
        model.graph.initializer.extend(tensors)
        return model

    # --- outside of blocks ----------------------------------------------------------------------------------------------

    def _outside(self) -> Iterator[tuple[Key, onnx.NodeProto]]:
        constants = {name for blocks in self.names.owned.values() for names in blocks for name in names if name in self.graph.constant_nodes}
        for index, proto in enumerate(self.proto.node):
            if index in self.names.owner or (proto.output and proto.output[0] in constants):
                continue
            out = onnx.NodeProto()
            out.CopyFrom(proto)
            if proto.name:
                out.name = self.names.outside(proto.name)
            out.input[:] = [self._outside_input(index, slot, name) for slot, name in enumerate(proto.input)]
            out.output[:] = [self.names.now.get(o, o) for o in proto.output]
            for p in out.metadata_props:
                p.value = p.value if p.key in MARKS else self.names.outside(p.value)
            yield (index, 0, 0), out

    def _outside_input(self, index: int, slot: int, name: str) -> str:
        for found in self.silence.values():
            change = found.changes.get((-1, (index, slot)))
            if change is not None:
                return self.weights.changed((index, slot), change, None, self.names)
        return self._measured(name) if index in self.measuring else self.names.now.get(name, name)

    def _measured(self, tensor: str) -> str:
        """Sizes are read off the first block of a stack, so that what is computed from them can serve all the others."""
        maker = self.graph.makers.get(tensor)
        found = self.names.owner.get(maker.index) if maker is not None else None
        if found is not None:
            stack, first = self.stacks[found[0]], self.names.instances[found[0]][0]
            order = stack.spellings[found[1]].order
            if first.new and maker.index in order:
                twin = self.graph.by_index[stack.spellings[first.block].order[order.index(maker.index)]]
                return first.names[twin.outputs[maker.outputs.index(tensor)]]
        return self.names.now.get(tensor, tensor)

    # --- inside of blocks -----------------------------------------------------------------------------------------------

    def _inside(self, instance: Instance) -> list[tuple[Key, onnx.NodeProto]]:
        base, out, copied = self._base(instance), [], []
        for index in sorted(instance.source.nodes):
            node = self.graph.by_index[index]
            if node.captured or any(p.key == HOLDER for p in node.proto.metadata_props):
                raise MethodError(f"{node.op} holds a graph of its own inside a block", node=node.label,
                                  hint=f"grow its widths, or export layers without {node.op}: those with subgraphs cannot be copied yet")
            inputs = [self._input(instance, node, slot) for slot in range(len(node.inputs))]
            proto = self._copy(instance, node.proto, inputs)
            copied.append((proto, node.proto.output[0]))
            out.append(((*base, index) if instance.new else (index, 0, 0), proto))
        constants = [p for name, p in self.graph.constant_nodes.items() if name in instance.names]
        out += [((*base, -1), self._copy(instance, p, [])) for p in constants]
        found, entering = self.silence[instance.stack.name], self._entering(instance)
        gates = add_gates(self.names, self.weights, instance, entering, found, [p for _, p in out], self.s.walk.types[instance.source.enters])
        if instance.new:  # gates take over names, in these nodes too
            like = next(x for x in self.names.instances[instance.stack.name] if x.block == instance.block and not x.new)
            self.copies.append({proto.output[0]: like.names.get(old, old) for proto, old in copied})
        return out + [((*base, len(self.proto.node) + i), p) for i, p in enumerate(gates)]

    def _base(self, instance: Instance) -> tuple[float, int]:
        """Where a new block stands in the file: behind the old block before it."""
        before = [x for x in self.names.instances[instance.stack.name][: instance.position] if not x.new]
        return (max(before[-1].source.nodes) if before else min(instance.stack.blocks[0].nodes) - 0.5, instance.position)

    def _copy(self, instance: Instance, proto: onnx.NodeProto, inputs: list[str]) -> onnx.NodeProto:
        out = onnx.NodeProto()
        out.CopyFrom(proto)
        out.name = self.names.node(instance, proto.name)
        out.input[:] = inputs
        out.output[:] = [instance.names.get(o, o) for o in proto.output]
        for p in out.metadata_props:
            p.value = p.value if p.key in MARKS else self.names.text(instance, p.value)
        return out

    def _input(self, instance: Instance, node: Node, slot: int) -> str:
        use, name = (node.index, slot), node.proto.input[slot]
        change = self.silence[instance.stack.name].changes.get((instance.position, use))
        if change is not None:
            return self.weights.changed(use, change, instance, self.names)
        if not name or name == instance.source.enters:
            return name and self._entering(instance)
        held = self.graph.weights.get(node.inputs[slot])
        if held is not None and instance.new:
            return self._copied_weight(instance, node.inputs[slot], held, name)
        return instance.names.get(name) or (self._measured(name) if node.index in self.measuring else self.names.now.get(name, name))

    def _entering(self, instance: Instance) -> str:
        if instance.position:
            return self.names.instances[instance.stack.name][instance.position - 1].leaves
        enters = instance.stack.blocks[0].enters
        return self.names.now.get(enters, enters)

    def _copied_weight(self, instance: Instance, tensor: str, held: str, name: str) -> str:
        """A weight of a new block: its own copy, but for tables and matrices that other blocks use as well."""
        if held not in instance.names:
            shape, kind = self.graph.weight_shape(tensor), self.graph.weight_type(tensor)
            if kind not in FLOATS or sum(n > 1 for n in shape) != 1 or is_frequency(self.s, tensor):
                return self.names.now.get(name, name)
            instance.names[held] = self.names.fresh(held)
        return instance.names[held] if held in self.graph.constant_nodes else self.weights.copied(held, instance.names[held])

    # --- inputs, outputs, weights ---------------------------------------------------------------------------------------

    def _values(self, found: Iterable[onnx.ValueInfoProto]) -> list[tuple[onnx.ValueInfoProto, str, bool]]:
        """(value, the source's name, is it of a new block?) of inputs, outputs or what lies between."""
        out = []
        for value, old, name, instance in self._per_layer(found):
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            copy.name = name
            for p in copy.metadata_props:
                p.value = self.names.text(instance, p.value) if instance and p.key not in MARKS else p.value
            out.append((copy, old, instance is not None and instance.new))
        return out

    @cached_property
    def _repeated(self) -> dict[str, tuple[str, int]]:
        """Name -> (stack, block number) of what is there once for each block."""
        kept = {s.final_output(self.graph.outputs) for s in self.stacks.values()}
        return {name: (stack, k) for stack, blocks in self.names.owned.items() for k, names in enumerate(blocks) for name in names if name not in kept}

    def _per_layer(self, found: Iterable) -> Iterator[tuple]:
        """(entry, its name in the source, its name now, instance or None); entries of blocks once for each instance."""
        for entry, instance in in_layer_order(list(found), self._repeated, self.names.instances):
            names = instance.names if instance is not None else self.names.now
            yield entry, entry.name, names.get(entry.name, entry.name), instance
