"""What an operator that stands for many is made of: `Body`, with which an unfolding writes the plain nodes down.

    @unfolds("com.microsoft::BiasGelu")
    def bias_gelu(b):
        b.gives(b.Gelu(b.Add(b.x(0), b.x(1))))

Any capitalised method writes a node of that operator type in ONNX's own domain, as of opset `graph.PARTS_OPSET`, and returns the name of its output
(a list where several are asked for). Numbers that come from an attribute are written as `b.tagged(...)`, so that a growth that changes the
number can be read back into the attribute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from .errors import GraphError
from .graph import attributes_of


@dataclass(frozen=True)
class Tagged:
    """A number that an attribute holds: its name, the element where it is a list, and the value now."""

    name: str
    value: float | int
    element: int | None = None


@dataclass(frozen=True)
class Tag:
    """Where a tagged number went: element `at` of the constant `tensor`, or attribute `tensor` of part number `part`."""

    name: str
    element: int | None
    part: int
    tensor: str
    at: int = 0


@dataclass
class Body:
    """The plain nodes of one operator, while they are written.

    Args:
        node: the operator. Its inputs keep their names in the body.
        shapes, types: of each input; None where it is absent or not known.
        nodes: what was written so far.
        tags: which numbers in it come from attributes.
        given: which name each output had inside.
        apart: the nodes are to be compared, not used: their names are no names of a graph.
        steps: what `takes` has said yes to; before the body is written, what it did before a growth.
    """

    node: onnx.NodeProto
    shapes: list[tuple[int, ...] | None]
    types: list[int | None]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tags: list[Tag] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
    apart: bool = False
    steps: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.attrs, self.prefix = attributes_of(self.node), next(o for o in self.node.output if o)
        self.inner = "part" if self.apart else self.prefix

    # --- what the operator says --------------------------------------------------------------------------------------

    def has(self, slot: int) -> bool:
        """Is an input there?"""
        return slot < len(self.node.input) and bool(self.node.input[slot])

    def x(self, slot: int) -> str:
        """The name of an input; '' where it is absent."""
        return self.node.input[slot] if self.has(slot) else ""

    def wants(self, output: int) -> bool:
        """Does anybody use an output?"""
        return output < len(self.node.output) and bool(self.node.output[output])

    def shape(self, slot: int) -> tuple[int, ...]:
        """The shape of an input; GraphError where it is not known."""
        if not self.has(slot) or self.shapes[slot] is None:
            raise GraphError(f"the shape of input {slot} of {self.node.op_type} is not known before the model runs", node=self.node.name or self.prefix,
                             hint="export it with fixed sizes of weights and heads")
        return self.shapes[slot]

    def attr(self, name: str, default=None):
        """The value of an attribute that no growth changes."""
        return self.attrs.get(name, default)

    def takes(self, step: str, needed: bool) -> bool:
        """Is a step written that some sizes make needless? One that was needed before a growth stays, so that parts can be compared."""
        if needed:
            self.steps.add(step)
        return step in self.steps

    def tagged(self, name: str, default=None, element: int | None = None, zero: bool = True) -> Tagged:
        """A number that an attribute holds, or would hold if it were there; `zero=False`: where it is 0 that says the default."""
        value = self.attrs.get(name, default)
        value = value if value or zero else default
        return Tagged(name, value if element is None or not isinstance(value, list) else value[element], element)

    def refuse(self, what: str, hint: str = "export the model without this fusion, or with plain operators") -> None:
        """Raise the GraphError of a form that is not read: `what` follows the operator's name, `hint` says what to do."""
        raise GraphError(f"{self.node.op_type} {what}, which cannot be read yet", node=self.node.name or self.prefix, hint=hint)

    # --- what it is made of ----------------------------------------------------------------------------------------------

    def __getattr__(self, op: str) -> Callable:
        if not op[:1].isupper():
            raise AttributeError(op)
        return partial(self.make, op)

    def make(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs):
        """Write a node; returns the name of its output, a list of names for more than one."""
        names = [f"{self.inner}/{op}_{len(self.nodes)}" + f".{i}" * bool(i) for i in range(outputs)]
        plain = {}
        for name, value in attrs.items():
            if isinstance(value, Tagged):
                self.tags.append(Tag(value.name, value.element, len(self.nodes), name))
            plain[name] = value.value if isinstance(value, Tagged) else value
        self._add(helper.make_node(op, list(inputs), names, domain=domain, **plain))
        return names[0] if outputs == 1 else names

    def ints(self, *elements: int | Tagged) -> str:
        """A vector of whole numbers."""
        return self._constant(np.array([e.value if isinstance(e, Tagged) else e for e in elements], np.int64), elements)

    def whole(self, value: int) -> str:
        """A whole number without axes."""
        return self._constant(np.array(value, np.int64), ())

    def number(self, value: float | Tagged, like: int = 0) -> str:
        """A number of the type of an input."""
        kind = helper.tensor_dtype_to_np_dtype(self.types[like])
        reach = float(ml_dtypes.finfo(kind).max)
        plain = value.value if isinstance(value, Tagged) else value
        return self._constant(np.array(min(max(plain, -reach), reach), kind), (value,))

    def size(self, tensor: str, axis: int) -> str:
        """The length of an axis, as a number without axes."""
        return self.Squeeze(self.Shape(tensor, start=axis, end=axis + 1))

    def gives(self, *outputs: str | None) -> None:
        """Name what comes out, in the operator's order; None for what nobody can ask for."""
        for name, made in zip(self.node.output, outputs):
            if not name:
                continue
            if made is None:
                self.refuse(f"gives its output {name!r}")
            if made in self.given or not any(made in n.output for n in self.nodes):
                made = self.Identity(self.given.get(made, made))
            self.given[made] = name
            for n in self.nodes:
                n.input[:] = [name if i == made else i for i in n.input]
                n.output[:] = [name if o == made else o for o in n.output]

    def _constant(self, value: np.ndarray, elements) -> str:
        name = f"{self.inner}/Constant_{len(self.nodes)}"
        self.tags += [Tag(e.name, e.element, len(self.nodes), name, at) for at, e in enumerate(elements) if isinstance(e, Tagged)]
        self._add(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return name

    def _add(self, node: onnx.NodeProto) -> None:
        node.name = f"{self.node.name or self.prefix}/{node.op_type}_{len(self.nodes)}"
        self.nodes.append(node)


def body_of(function: Callable, node: onnx.NodeProto, shapes: list, types: list, apart: bool = False, steps: frozenset[str] = frozenset()) -> Body:
    """Let an unfolding write the body of one node.

    Raises:
        GraphError: the unfolding does not read this form of the operator.
    """
    body = Body(node, shapes, types, apart=apart, steps=set(steps))
    try:
        function(body)
    except (LookupError, TypeError, ValueError, ArithmeticError) as problem:  # inputs and attributes that do not belong together
        raise GraphError(f"{node.op_type} has inputs or attributes that do not belong together ({type(problem).__name__})", node=node.name or body.prefix,
                         hint="check that the model runs in ONNX Runtime") from problem
    return body
