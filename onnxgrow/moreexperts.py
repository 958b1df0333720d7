"""Write further experts of a list into the grown graph: each a copy of an old one, with weights of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .apply import Applied
from .axismap import AxisMap
from .listed import ExpertList, Part
from .recipe import Recipe
from .roles import FLOATS
from .structure import Structure


class Continuation:
    """Continues one list of experts in the edited graph."""

    def __init__(self, s: Structure, experts: ExpertList, applied: Applied):
        self.s, self.experts, self.applied, self.graph = s, experts, applied, applied.proto.graph
        self.made = {n.output[0]: n for n in self.graph.node}

    def write(self, old: int, new: int) -> None:
        """Add experts `old` to `new` - 1: number e starts as number e % old. The sum keeps its name, so that nobody notices."""
        nodes: list[onnx.NodeProto] = []
        total = self.experts.total
        at = next(i for i, n in enumerate(self.graph.node) if total in n.output)
        first = so_far = self.applied.fresh(f"{total}_{old}")
        for number in range(old, new):
            body, gives = self._expert(number, number % old)
            after = total if number == new - 1 else self.applied.fresh(f"{total}_{number + 1}")
            nodes += [*body, helper.make_node("Add", [so_far, gives], [after], self.applied.fresh(f"{total}_add_{number}"))]
            so_far = after
        self.graph.node[at].output[:] = [first if o == total else o for o in self.graph.node[at].output]
        for k, node in enumerate(nodes):
            self.graph.node.insert(at + 1 + k, node)

    def _expert(self, number: int, like: int) -> tuple[list[onnx.NodeProto], str]:
        """The nodes of one further expert, and the tensor that it gives to the sum."""
        names: dict[str, str] = {}
        out = []
        for part in self.experts.parts:
            source = self.made[part.nodes[like].outputs[0]]
            node = onnx.NodeProto()
            node.CopyFrom(source)
            node.name = self.applied.fresh(self._numbered([n.label for n in part.nodes], number))
            for k, o in enumerate(source.output):
                names[o] = self.applied.fresh(self._numbered([n.outputs[k] for n in part.nodes], number)) if o else o
            node.output[:] = [names[o] if o else o for o in source.output]
            node.input[:] = [self._input(part, slot, name, number, names) for slot, name in enumerate(source.input)]
            out.append(node)
        return out, names[self.experts.gives[like]]

    def _input(self, part: Part, slot: int, name: str, number: int, names: dict[str, str]) -> str:
        kind = part.inputs.get(slot, "shared")
        if isinstance(kind, tuple):
            first, step = kind
            return self._constant(f"expert_{number}", np.asarray(first + number * step, first.dtype))
        if kind == "inner":
            return names[name]
        if kind == "weight":
            if name not in names:
                names[name] = self._weight(name, self._numbered([self.s.graph.weights[n.inputs[slot]] for n in part.nodes], number))
            return names[name]
        return name

    def _constant(self, like: str, value: np.ndarray) -> str:
        name = self.applied.fresh(like)
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _weight(self, held: str, like: str) -> str:
        """A weight of its own that starts as the one named `held`, and grows as that does."""
        if held in self.applied.constants:
            return self._constant(like, numpy_helper.to_array(self.applied.constants[held].attribute[0].t))
        name = self.applied.fresh(like)
        tensor, recipe = self.graph.initializer.add(), self.applied.recipes.get(held)
        tensor.CopyFrom(self.applied.initializers[held])
        tensor.name = name
        shape = tuple(tensor.dims)
        if recipe is not None:
            self.applied.recipes[name] = replace(recipe, name=name)
        elif held in self.s.graph.source.tensors:
            self.applied.recipes[name] = Recipe(name, tensor.data_type, shape, shape, tuple(map(AxisMap.identity, shape)), origin=held)
        if tensor.data_type in FLOATS and prod(shape) > 1:
            self.applied.added[name] = prod(recipe.old_shape if recipe is not None else shape)
            self.applied.asleep[name] = prod(shape)
        return name

    def _numbered(self, names: list[str], number: int) -> str:
        """The name that continues those of experts 0, 1, 2 ...; where they do not count, that of the first with the number behind it."""
        split = [re.split(r"(\d+)", n) for n in names]
        if len({len(x) for x in split}) == 1:
            for at in range(1, len(split[0]), 2):
                rest = {tuple(x[:at] + x[at + 1:]) for x in split}
                if len(rest) == 1 and [x[at] for x in split] == [str(e) for e in range(len(names))]:
                    return "".join([*split[0][:at], str(number), *split[0][at + 1:]])
        return f"{names[number % len(names)]}_expert_{number}"
