"""What an operator's own parameters need so that a fill stays exact: gains, epsilons, shares of tied weights.

A repair always ends in a weight, an attribute or a constant, never in a new node: a grown graph fuses as well as a native one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from ml_dtypes import finfo

from .dequantize import advice
from .errors import MethodError
from .flow import Flow, Relation
from .fold import is_float
from .graph import SIZES, Node
from .idioms import Norm
from .roles import NORM_KINDS, Roles
from .solve import Solution
from .structure import Structure
from .target import Target

if TYPE_CHECKING:
    from .continued import Table

MOVES = {"Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Dropout", "Expand", "Slice"}
TAKES = MOVES | {"Gather", "ScanSlice"}  # also one of several stacked weights, as a loop over layers takes it


@dataclass
class Edits:
    """Everything that changes besides the shapes of weights.

    Attributes:
        scales: weight tensor id -> (scale, shift) applied to its old entries.
        constants: (node index, input slot) -> the private value of that use.
        attributes: node index -> attribute -> new value.
        tables: weight tensor id -> the whole new tensor, computed (`continued.Table`).
        reasons: the same, as lines for people.
    """

    scales: dict[str, tuple[float, float]] = field(default_factory=dict)
    constants: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    attributes: dict[int, dict[str, object]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


@dataclass
class Scaler:
    """Multiplies a tensor by a factor, by scaling the weights it is made from or meets next."""

    structure: Structure
    static: set[str]
    edits: Edits
    norms: dict[str, Norm] = field(default_factory=dict)  # by what they make: those with a gain, spelled out
    seen: dict[tuple[int, int], float] = field(default_factory=dict)  # weight uses that were scaled, by how much

    def attempt(self, way, *where) -> bool:
        """Scale, or leave everything as it was."""
        before = dict(self.edits.scales), dict(self.edits.constants), dict(self.seen)
        done = way(*where) and not any(map(self.unscaled, self.edits.scales))
        if not done:
            self.edits.scales, self.edits.constants, self.seen = before
        return done

    def weight(self, node: Node, slot: int, factor: float) -> bool:
        """Scale the static tensor at an input of a node: back through moves to the weight, and through `w + constant`."""
        if (node.index, slot) in self.seen:  # several read what is made of it
            return self.seen[node.index, slot] == factor
        self.seen[node.index, slot] = factor
        done = self._weight(node, slot, factor)
        if not done:
            del self.seen[node.index, slot]
        return done

    def _weight(self, node: Node, slot: int, factor: float) -> bool:
        tensor = node.inputs[slot]
        if tensor in self.structure.graph.weights:
            scale, shift = self.edits.scales.get(tensor, (1.0, 0.0))
            done = [self.seen[n.index, i] for n, i in self.structure.graph.users[tensor] if (n.index, i) in self.seen]
            if len(done) == 1:
                self.edits.scales[tensor] = (scale * factor, shift * factor)
            return len(set(done)) == 1
        maker = self.structure.graph.makers.get(tensor)
        if maker is None:
            return False
        if maker.op in TAKES:
            return self.weight(maker, 0, factor)
        if maker.op == "Add":
            return self._shifted(maker, factor)
        return False

    def _shifted(self, node: Node, factor: float) -> bool:
        """f·(w + c) = (f·w + (f − 1)·c) + c: the gain of a norm that the model stores as its distance from one."""
        for slot in (0, 1):
            constant = self.structure.walk.value(node, 1 - slot)
            if constant is not None and constant.size == 1 and node.inputs[slot] in self.structure.graph.weights:
                if (node.index, slot) in self.seen:
                    return self.seen[node.index, slot] == factor
                if not self.weight(node, slot, factor):
                    return False
                scale, shift = self.edits.scales[node.inputs[slot]]
                self.edits.scales[node.inputs[slot]] = (scale, shift + (factor - 1) * float(constant.ravel()[0]))
                return True
        return False

    def unscaled(self, tensor: str) -> Node | None:
        """Who reads a scaled weight, or what is moved from it, and was not meant: a table that is also the head, say."""
        for node, slot in self.structure.graph.users.get(tensor, ()):
            if node.op in SIZES:
                continue
            if (node.index, slot) not in self.seen:
                return node
            passes = node.op in TAKES | {"Add"} and (node.outputs[0] in self.static or node.op == "Gather")
            found = self.unscaled(node.outputs[0]) if passes else None
            if found is not None:
                return found
        return None

    def forward(self, tensor: str, factor: float) -> bool:
        """Scale what every user of a tensor makes of it."""
        users = [(n, i) for n, i in self.structure.graph.users.get(tensor, []) if n.op not in SIZES]
        return bool(users) and tensor not in self.structure.graph.outputs and all(self._forward_use(n, i, factor) for n, i in users)

    def _forward_use(self, node: Node, slot: int, factor: float) -> bool:
        if node.op in MOVES or (node.op == "Gather" and slot == 0):
            return self.forward(node.outputs[0], factor)
        if node.op in ("Mul", "MatMul") or (node.op == "Gemm" and slot < 2):
            other = 1 - slot
            return node.inputs[other] in self.static and self.weight(node, other, factor)
        if node.op == "Add":  # f·(y + b/f)
            other = 1 - slot
            return node.inputs[other] in self.static and self.weight(node, other, 1 / factor) and self.forward(node.outputs[0], factor)
        if node.op == "Div" and slot == 0:
            return node.inputs[1] in self.static and self.weight(node, 1, 1 / factor)
        return False

    def backward(self, node: Node, slot: int, factor: float) -> bool:
        """Scale the tensor at an input of a node where it is made; nobody else may use it."""
        tensor = node.inputs[slot]
        if tensor in self.static:
            return self.weight(node, slot, factor)
        maker = self.structure.graph.makers.get(tensor)
        if maker is None or len(self.structure.graph.users[tensor]) > 1 or tensor in self.structure.graph.outputs:
            return False
        norm = self.norms.get(tensor)
        if norm:  # which its last node may not show: as TensorFlow folds it, gain and deviation are one product with two readers
            return all(self.weight(*where, factor) for where in (norm.gain, norm.offset) if where)
        if maker.op in MOVES or maker.op == "Neg":
            return self.backward(maker, 0, factor)
        if maker.op in ("Add", "Sub"):
            return all(self.backward(maker, i, factor) for i in (0, 1))
        if maker.op == "LayerNormalization":
            return self.weight(maker, 1, factor) and (len(maker.inputs) < 3 or self.weight(maker, 2, factor))
        if maker.op in ("Gemm", "Conv"):
            return all(self.weight(maker, i, factor) for i in range(1, len(maker.inputs)))
        if maker.op in ("Mul", "MatMul", "RMSNormalization"):
            return any(maker.inputs[i] in self.static and self.weight(maker, i, factor) for i in (1, 0)) or self.number(maker, factor)
        return False

    def number(self, node: Node, factor: float) -> bool:
        """Scale a single number that the graph computes from sizes (1/√d) where it meets data: this use becomes a constant."""
        for slot, tensor in enumerate(node.inputs if node.op == "Mul" else ()):
            value = self.structure.walk.values.get(tensor)
            if tensor in self.structure.fixed_values and value.size == 1 and is_float(value.dtype):
                self.edits.constants[node.index, slot] = (value * factor).astype(value.dtype)
                return True
        return False


def repair(roles: Roles, flow: Flow, target: Target, solutions: list[Solution]) -> Edits:
    """Repairs for all norms and tied contractions that the solutions reach.

    Raises:
        MethodError: a factor has no weight to go to.
    """
    edits = Edits()
    scaler = Scaler(roles.structure, flow.static, edits, {n.y: n for n in roles.norms if n.gain})
    padded = {s.dim for s in solutions if s.mode != "copy"}
    done: set[int] = set()
    for r in flow.relations:
        if r.kind in NORM_KINDS and r.node.index not in done:
            done.add(r.node.index)
            _repair_norm(roles, target, scaler, r.node, padded)
    for r in {r.node.index: r for solution in solutions for r in solution.halve}.values():
        _divide_copies(roles.structure, target, scaler, r)
    for tensor in edits.scales:
        other = scaler.unscaled(tensor)
        if other is not None:
            raise MethodError(f"the weight {roles.structure.graph.weights[tensor]!r} would have to be scaled for one reader, and has another", node=other.label,
                              hint=advice(roles.structure.graph.source, "use --method copy at a whole multiple, or --method pad"))
    return edits


def _repair_norm(roles: Roles, target: Target, scaler: Scaler, node: Node, padded: set) -> None:
    """γ·√(n/N) and eps·n/N: appended zeros (or means) shrink the mean square (or variance) by n/N."""
    s = roles.structure
    idiom = next((n for n in roles.norms if n.anchor is node), None)
    d = s.dims[idiom.x][-1] if idiom else s.dims[node.inputs[0]][-1]
    grown = [leaf for leaf in s.leaves(d) if leaf in target.sizes]
    if not set(grown) & padded:
        return
    if not set(grown) <= padded:
        raise MethodError("one part of the axis of a norm is copied, another padded", node=node.label, hint="grow these dims one after the other")
    n, new = d.size, target.size(d)
    factor = (n / new) ** 0.5
    gain = (node, 1) if idiom is None else idiom.gain
    if gain:
        done = scaler.weight(*gain, factor)
    else:
        done = scaler.attempt(scaler.forward, idiom.y, factor) or _scale_root(s, scaler, idiom, factor) or scaler.forward(idiom.y, factor)
    if not done:
        raise MethodError("this norm has no gain that could be repaired", node=node.label, hint=advice(s.graph.source, "use --method copy at a whole multiple"))
    if idiom is None:
        eps = node.attrs.get("epsilon", 1e-5)
        scaler.edits.attributes.setdefault(node.index, {})["epsilon"] = float(np.float32(eps * n / new))
    elif idiom.eps:
        holder, slot = idiom.eps
        eps = s.walk.value(holder, slot)
        scaler.edits.constants[holder.index, slot] = _smaller(eps, n / new)
    scaler.edits.reasons.append(f"{node.label}: gain · √({n}/{new}), eps · {n}/{new}")


def _scale_root(s: Structure, scaler: Scaler, idiom: Norm, factor: float) -> bool:
    """x · (1 / root): the one is a number of this norm's own, and takes the factor."""
    for node in map(s.graph.by_index.get, sorted(idiom.nodes)):
        one = s.walk.value(node, 0) if node.op == "Div" else None
        if one is not None and one.size == 1 and is_float(one.dtype):
            scaler.edits.constants[node.index, 0] = np.asarray(one.astype(np.float64) * factor).astype(one.dtype)
            return True
    return False


def _smaller(eps: np.ndarray, factor: float) -> np.ndarray:
    """eps · factor in its own type, but no zero where it was none: 0 / √(0 + 0) is no number.

    float16 has steps of 2⁻²⁴ below 6e-5, so a small epsilon comes out wrong by up to 2⁻²⁵: as much as the sum with a mean square of that
    size is rounded by anyway.
    """
    new = np.asarray(eps.astype(np.float64) * factor).astype(eps.dtype)
    least = np.asarray(finfo(eps.dtype).smallest_subnormal, eps.dtype)
    return np.where((new == 0) & (eps > 0), least, new).astype(eps.dtype)


def _divide_copies(s: Structure, target: Target, scaler: Scaler, r: Relation) -> None:
    """Copies meet copies: the sum counts each old product N/n times."""
    ties = s.nodes[r.node.index]
    contracted = next(ties.names[name] for name, kind in ties.rule.fills.items() if kind == "contract")
    n, new = contracted.size, target.size(contracted)
    for slot in r.slots:
        if scaler.attempt(scaler.backward, r.node, slot, n / new):
            scaler.edits.reasons.append(f"{r.node.label}: input {slot} · {n}/{new} where it is made")
            return
    if scaler.attempt(scaler.forward, r.node.outputs[0], n / new):
        scaler.edits.reasons.append(f"{r.node.label}: output · {n}/{new} where it is used")
        return
    raise MethodError("copies meet copies in this product, and neither side can be divided", node=r.node.label,
                      hint=advice(s.graph.source, "use --method pad"))
