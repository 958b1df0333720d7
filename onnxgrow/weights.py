"""The initializers of a deepened graph: those of the source under their new names, copies for new blocks, and constants."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .branches import Use
from .dequantize import FIRST
from .errors import MethodError
from .external import Filled, TensorRef
from .graph import Graph
from .inserted import Change
from .instances import Instance, Names
from .roles import FLOATS
from .zeropoint import zero_point


class Weights:
    """Collects what is asked for while nodes are built; `emit` makes the tensors, data left on disk."""

    def __init__(self, graph: Graph):
        self.graph, self.source = graph, graph.source
        self.held = {t.name: t for t in self.source.proto.graph.initializer}
        self.copies: dict[str, str] = {}  # new name -> name in the source
        self.filled: dict[str, tuple[str, float]] = {}  # new name -> name in the source, value
        self.gates: dict[str, TensorProto] = {}
        self.done: dict[tuple, str] = {}
        self.fresh: set[str] = set()

    @property
    def made(self) -> dict[str, str]:
        """New initializer -> the weight of the source that it is made from."""
        return {**self.copies, **{name: old for name, (old, _) in self.filled.items()}}

    def copied(self, held: str, name: str) -> str:
        """A copy of an initializer under a new name."""
        self.copies[name] = held
        self.fresh.add(name)
        return name

    def gate(self, name: str, dtype: int) -> str:
        """A scalar zero."""
        self.gates[name] = numpy_helper.from_array(np.zeros((), helper.tensor_dtype_to_np_dtype(dtype)), name)
        return name

    def held_at(self, use: Use) -> str:
        """The initializer or constant that an input slot reads, by its name in the source."""
        node = self.graph.by_index[use[0]]
        held = self.graph.weights.get(node.inputs[use[1]])
        if held is None:
            raise MethodError("a gain or an offset that new blocks must change is computed", node=node.label, hint="use --depth-method gate")
        return held

    @cached_property
    def _uses(self) -> Counter:
        return Counter(self.graph.weights[t] for n in self.graph.nodes for t in n.inputs if t in self.graph.weights)

    def changed(self, use: Use, change: Change, instance: Instance | None, names: Names) -> str:
        """The initializer that one use reads after a change: under the block's own name where no other use needs that."""
        held = self.held_at(use)
        key = (held, id(instance), change)
        if key not in self.done:
            own = instance.names.get(held) if instance is not None else None
            alone = self._uses[held] == 1
            name = own if own and alone else held if instance is None and alone else names.fresh(held)
            if change.like is None:
                self.filled[name] = (held, self._step(use, change.value))
            else:
                self.copies[name] = self.held_at(change.like)
            if instance is not None and instance.new:
                self.fresh.add(name)
            self.done[key] = name
        return self.done[key]

    def _step(self, use: Use, value: float) -> float:
        """A number as a weight holds it: zero is the zero point of quantized ones."""
        tensor = self.graph.by_index[use[0]].inputs[use[1]]
        zero = None if self.graph.weight_type(tensor) in FLOATS else zero_point(self.graph, tensor)
        if zero is not None and value:
            raise MethodError(f"a gain would have to be {value:g}, and it is quantized", node=self.graph.by_index[use[0]].label, hint=FIRST)
        return value if zero is None else zero

    def emit(self, order: list[tuple[str, str]], used: set[str]) -> tuple[list[TensorProto], dict[str, TensorRef]]:
        """All initializers, and by name those that lie in files.

        Args:
            order: (name in the source, name now) of those that belong to the source's graph or to a block, in order.
            used: names that nodes read; what nobody read in the source stays as well.
        """
        read = {self.graph.alias.get(i, i) for n in self.source.proto.graph.node for i in n.input}
        names = [(old, name) for old, name in order if name in used or old not in read]
        first = {name for _, name in names}
        names += [(old, name) for name, old in self.made.items() if name in used and name not in first]
        out, refs = [], {}
        for old, name in names:
            tensor, ref = self._make(old, name)
            out.append(tensor)
            refs |= {name: ref} if ref is not None else {}
        return out + list(self.gates.values()), refs

    def _make(self, old: str, name: str) -> tuple[TensorProto, TensorRef | None]:
        old = self.copies.get(name, old)
        value = self.filled[name][1] if name in self.filled else None
        tensor, ref = TensorProto(), self.source.tensors.get(old)
        if old not in self.held:  # a Constant node held it
            array = self.graph.array(old)
            return numpy_helper.from_array(array if value is None else np.full_like(array, value), name), None
        tensor.CopyFrom(self.held[old])
        tensor.name = name
        if value is not None and ref is None:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(self.source.array(old), value), name))
        elif value is not None:
            ref = Filled(ref.file, ref.offset, ref.length, ref.dtype, ref.shape, value)
        return tensor, ref

