"""What a block adds to its stream, and how to make it add nothing.

y = x + f(x) + g(x): flattening the sums that lead to y gives the stream x once and the branches f, g. A branch is silent when its last linear
map is zero (and whatever constant is added behind it). A norm on the way from x to y stands after the branch: see `Trunk.norms`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import numpy_helper

from .blocks import Block
from .errors import MethodError
from .graph import Node
from .idioms import PASSING, Norm
from .roles import Roles
from .structure import Structure

Use = tuple[int, int]  # node index, input slot
FUSED_NORMS = {"LayerNormalization": "layer norm", "RMSNormalization": "rms norm", "SimplifiedLayerNormalization": "rms norm"}
LINEAR = ("MatMul", "Gemm", "Conv", "Einsum", "MatMulInteger", "MatMulNBits")
MOVES = PASSING | {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Expand", "Flatten", "ReduceSum", "Neg"}
RESHAPES = PASSING | {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}  # no entry moves: with the old shape back, the tensor is the old one
SCATTERS = ("ScatterND", "ScatterElements")  # into what is there, in another order: tokens of an expert
TRY_GATE = "use --depth-method gate"


@dataclass(frozen=True)
class NormUse:
    """A norm with its gain and offset, wherever they are multiplied and added: None where it has none."""

    kind: str
    x: str
    y: str
    gain: Use | None
    offset: Use | None
    nodes: frozenset[int]
    eps: float


@dataclass
class Trunk:
    """How a block gets from its stream `enters` to its stream `leaves`.

    Attributes:
        branches: (Add node, input slot) of each summand beside the stream.
        norms: those that the stream itself goes through (after-branch norms), the last one first.
        gains: weights by which the stream itself is multiplied: what stands in place of a norm where there is none.
    """

    branches: list[Use] = field(default_factory=list)
    norms: list[NormUse] = field(default_factory=list)
    gains: list[Use] = field(default_factory=list)

    def take(self, inner: Trunk) -> None:
        self.branches += inner.branches
        self.norms += inner.norms
        self.gains += inner.gains


class Branches:
    """Looks into the blocks of one graph."""

    def __init__(self, roles: Roles):
        self.roles, self.s = roles, roles.structure
        self.static = roles.static
        self.spelled = {n.y: n for n in roles.norms}

    def trunk(self, block: Block) -> Trunk:
        """MethodError where the stream does not run through sums and norms alone."""
        out = Trunk()
        shapes = [self.s.walk.shapes.get(t) for t in (block.enters, block.leaves)]
        if self._follow(block, block.leaves, out) != 1 or shapes[0] != shapes[1]:
            node = self.s.graph.makers[block.leaves]
            raise MethodError("a block does not add to the stream that it reads", node=node.label,
                              hint=f"zero weights need residual connections, y = x + f(x): {TRY_GATE}")
        return out

    def _follow(self, block: Block, tensor: str, out: Trunk, turned: tuple[int, ...] = ()) -> int:
        """How often the stream is a summand of a tensor; collects the other summands.

        Args:
            turned: for each axis of the state that leaves the block, the axis of this tensor; empty where none has moved.
        """
        if tensor == block.enters:
            return int(not turned)
        node = self.s.graph.makers.get(tensor)
        if node is None or node.index not in block.nodes:
            return 0
        norm = self.norm_at(tensor)
        if norm is not None and norm.nodes <= block.nodes:
            inner = Trunk()
            if self._follow(block, norm.x, inner, turned):
                out.norms.append(norm)
                out.take(inner)
                return 1
            return 0
        if node.op in RESHAPES:
            return self._follow(block, node.inputs[0], out, turned) if not turned or node.op in PASSING else 0
        if node.op == "Transpose":
            perm = node.attrs.get("perm") or range(len(self.s.walk.shapes[tensor]))[::-1]
            turned = tuple(perm[i] for i in turned or range(len(perm)))
            return self._follow(block, node.inputs[0], out, () if turned == tuple(range(len(perm))) else turned)
        if node.op == "Mul" and (slot := self._static_slot(node)) is not None:
            out.gains.append((node.index, slot))
            return self._follow(block, node.inputs[1 - slot], out, turned)
        if node.op != "Add":
            return 0
        found = 0
        for slot, t in enumerate(node.inputs):
            inner = Trunk()
            times = 0 if t in self.static else self._follow(block, t, inner, turned)
            if times:
                out.take(inner)
            else:
                out.branches.append((node.index, slot))
            found += times
        if not found:  # a sum of branches is one branch
            out.branches = [use for use in out.branches if use[0] != node.index]
        return found

    def norm_behind(self, tensor: str) -> NormUse | None:
        """The norm that made a state, which may have been transposed since."""
        while (node := self.s.graph.makers.get(tensor)) is not None and node.op in PASSING | {"Transpose"}:
            tensor = node.inputs[0]
        return self.norm_at(tensor)

    def norm_at(self, tensor: str) -> NormUse | None:
        """The norm whose result, gain and offset included, is a tensor."""
        node, gain, offset, nodes = self.s.graph.makers.get(tensor), None, None, set()
        if node is not None and node.op == "Add" and (slot := self._static_slot(node)) is not None:
            offset, tensor = (node.index, slot), node.inputs[1 - slot]
            nodes.add(node.index)
            node = self.s.graph.makers.get(tensor)
        if node is not None and node.op == "Mul" and tensor not in self.spelled and (slot := self._static_slot(node)) is not None:
            gain, tensor = (node.index, slot), node.inputs[1 - slot]
            nodes.add(node.index)
            node = self.s.graph.makers.get(tensor)
        while node is not None and node.op == "Cast" and gain:
            nodes.add(node.index)
            tensor = node.inputs[0]
            node = self.s.graph.makers.get(tensor)
        if tensor in self.spelled:
            norm = self.spelled[tensor]
            gain, offset = (use and self._held(use) for use in (gain, offset))
            if norm.gain:
                gain, offset = (use and self._held((use[0].index, use[1])) for use in (norm.gain, norm.offset))
                return None if nodes else NormUse(norm.kind, norm.x, tensor, gain, offset, norm.nodes, self._eps(norm))
            return NormUse(norm.kind, norm.x, tensor, gain, offset, frozenset(nodes) | norm.nodes, self._eps(norm))
        if node is None or nodes or node.op not in FUSED_NORMS:
            return None
        offset = self._held((node.index, 2)) if len(node.inputs) > 2 and node.inputs[2] else None
        return NormUse(FUSED_NORMS[node.op], node.inputs[0], tensor, self._held((node.index, 1)), offset, frozenset({node.index}),
                       node.attrs.get("epsilon", 1e-5))

    def _held(self, use: Use) -> Use:
        """The use of the initializer that an input is, or is a Cast of."""
        node, tensor = None, self.s.graph.by_index[use[0]].inputs[use[1]]
        while tensor not in self.s.graph.weights and (node := self.s.graph.makers.get(tensor)) is not None and node.op in ("Cast", "Identity"):
            use, tensor = (node.index, 0), node.inputs[0]
        return use

    def _eps(self, norm: Norm) -> float:
        held = self.s.walk.value(*norm.eps) if norm.eps else None
        return float(held.ravel()[0]) if held is not None else 0.0

    def _static_slot(self, node: Node) -> int | None:
        """The input of a sum or product that is a weight, where exactly one is."""
        slots = [i for i, t in enumerate(node.inputs) if t in self.static]
        return slots[0] if len(slots) == 1 and len(node.inputs) == 2 else None

    def silence(self, use: Use) -> list[Use]:
        """The weights, by use, that must be zero so that what flows into an input is zero.

        Raises:
            MethodError: no linear map lies behind it.
        """
        node = self.s.graph.by_index[use[0]]
        return self._zero(node.inputs[use[1]], use)

    def _zero(self, tensor: str, use: Use) -> list[Use]:
        number = self.s.walk.values.get(tensor)
        if number is not None and not number.any() or self._is_blank(tensor):
            return []
        if tensor in self.static:
            return [self._weight(use)]
        node = self.s.graph.makers.get(tensor)
        if node is None:
            raise MethodError("a branch comes from outside the block", hint=TRY_GATE)
        norm = self.norm_at(tensor)
        if norm is not None:  # around the branch: the linear map before it is zero, not the gain
            return self._zero(norm.x, (-1, 0)) + ([norm.offset] if norm.offset else [])
        if node.op in LINEAR and (slots := [i for i in (0, 1) if node.inputs[i] in self.static]):
            bias = [self._held((node.index, 2))] if node.op in ("Gemm", "Conv") and len(node.inputs) > 2 and node.inputs[2] else []
            return [self._weight((node.index, slots[0])), *bias]
        if node.op in LINEAR and (fetched := [use for i in (1, 0) if (use := self._fetched(node.inputs[i])) is not None]):
            return [self._weight(fetched[0])]
        if node.op in ("Gather", "GatherND") and node.inputs[0] in self.static:  # the offsets of all experts, or another table of the block's own
            return [self._weight((node.index, 0))]
        if node.op in ("Add", "Sub", "Sum", "Concat"):  # pieces of one tensor, as shifted windows are put back, need the same zeros
            return [*dict.fromkeys(found for slot, t in enumerate(node.inputs) for found in self._zero(t, (node.index, slot)))]
        if node.op in ("Mul", "Div"):
            return self._zero_product(node)
        if node.op in MOVES:
            return self._zero(node.inputs[0], (node.index, 0))
        if node.op in SCATTERS:
            return self._zero(node.inputs[0], (node.index, 0)) + self._zero(node.inputs[2], (node.index, 2))
        raise MethodError(f"no linear map ends this branch, but {node.op}", node=node.label, hint=TRY_GATE)

    def _fetched(self, tensor: str) -> Use | None:
        """Where the matrices of all experts go in, of which a tensor is those that were chosen."""
        node = self.s.graph.makers.get(tensor)
        while node is not None and node.op in RESHAPES | {"Transpose"}:
            node = self.s.graph.makers.get(node.inputs[0])
        return (node.index, 0) if node is not None and node.op in ("Gather", "GatherND") and node.inputs[0] in self.static else None

    def _is_blank(self, tensor: str) -> bool:
        """Zeros that the graph makes, to be written into."""
        node = self.s.graph.makers.get(tensor)
        held = node.attrs.get("value") if node is not None and node.op == "ConstantOfShape" else None
        return node is not None and node.op == "ConstantOfShape" and (held is None or not numpy_helper.to_array(held).any())

    def _zero_product(self, node: Node) -> list[Use]:
        """One zero factor is enough; the other keeps the gradient alive. A scale by a weight is no place for zero."""
        problem = None
        for slot in (0, 1) if node.op == "Mul" else (0,):
            if node.inputs[slot] not in self.static:
                try:
                    return self._zero(node.inputs[slot], (node.index, slot))
                except MethodError as error:
                    problem = error
        raise problem or MethodError(f"no linear map ends this branch, but {node.op}", node=node.label, hint=TRY_GATE)

    def plain(self, use: Use) -> Use:
        """The weight behind a gain of the stream, which is one in a block that changes nothing."""
        return self._weight(use)

    def _weight(self, use: Use) -> Use:
        """The use of an initializer behind an input: weights may sit behind Transpose, Cast and the like."""
        node = self.s.graph.by_index[use[0]]
        while node.inputs[use[1]] not in self.s.graph.weights:
            node = self.s.graph.makers[node.inputs[use[1]]]
            if node.op not in MOVES | {"DequantizeLinear"}:
                raise MethodError(f"the weight of a last linear map is computed by {node.op}", node=node.label, hint=TRY_GATE)
            use = (node.index, 0)
        return use


def residual_gates(s: Structure, trunk: Trunk) -> list[Use]:
    """Where a gate goes without after-branch norms: on each branch, but not on a plain bias."""
    return [use for use in trunk.branches if s.graph.by_index[use[0]].inputs[use[1]] not in s.graph.weights]
