"""What a model of given sizes costs: parameters, operations per token, bytes of its weights, memory of a training step.

Everything is counted on the graph. A walk at one batch and length gives the size of every axis; where a dim is to grow, its axes are taken
at the new size, so a growth is counted before it is planned. Formulas and sources: docs/suggest.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod

from .architecture import is_parameter
from .errors import GraphError, SizeError
from .graph import Node
from .roles import Linear, Roles
from .rulebook import Registry
from .shapes import Walk, walk
from .structure import Structure
from .symbols import Mismatch, Symbols, symbol_of
from .target import Target

STATE = {"mixed": (("weights", 6), ("gradients", 2), ("optimizer", 8)), "fp32": (("weights", 4), ("gradients", 4), ("optimizer", 8))}  # bytes per parameter
VALUE = {"mixed": 2, "fp32": 4}  # bytes of an activation
LOGIT = 4  # the loss is computed in float32
USUAL_LENGTH = 1024


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Attributes:
        parameters: float weights, counted as `inspect` counts them.
        operations: of a forward pass of one sequence, two per multiply-add of its matrix products.
        tokens: rows of the residual stream in that pass, of the widest one where there are several.
        saved: activations that a backward pass needs, in entries for one sequence.
        logits: entries of the outputs over words, for one sequence.
    """

    parameters: int
    operations: int
    tokens: int
    saved: int
    logits: int

    @property
    def per_token(self) -> int:
        """Operations of a forward pass for each token."""
        return round(self.operations / self.tokens)

    def memory(self, precision: str, batch: int = 1) -> dict[str, int]:
        """Bytes of a training step with AdamW, by what they hold; `activations` is an estimate.

        Args:
            precision: mixed (bfloat16 with float32 masters) or fp32.
            batch: sequences in a step.
        """
        parts = {name: size * self.parameters for name, size in STATE[precision]}
        parts["activations"] = batch * (VALUE[precision] * self.saved + LOGIT * self.logits)
        return parts | {"total": sum(parts.values())}


@dataclass(frozen=True)
class Scene:
    """A structure walked at one batch and length, on which sizes are counted; `length` None where the model has no length to choose."""

    roles: Roles
    walk: Walk
    length: int | None = None

    def axis(self, tensor: str, i: int, target: Target) -> int:
        """The size of an axis once the target is reached."""
        dims, size = self.roles.structure.dims.get(tensor), self.walk.shapes[tensor][i]
        if not dims:
            return size
        new = target.size(dims[i])
        return size if new == dims[i].size else size * new // dims[i].size

    def entries(self, tensor: str, target: Target) -> int:
        shape = self.walk.shapes.get(tensor)
        return prod(self.axis(tensor, i, target) for i in range(len(shape))) if shape is not None else 0

    def like(self, roles: Roles, registry: Registry) -> Scene:
        """Another structure of the same model, walked at the same length."""
        with suppress(SizeError):
            return scene(roles, self.length or 1, registry)
        return Scene(roles, roles.structure.walk)

    def cost(self, target: Target | None = None) -> Cost:
        """Everything at once; `target` None counts the model as it is."""
        target = target or Target()
        operations = 2 * sum(self._multiply_adds(n, target) for n in self._products)
        saved = sum(times * self.entries(t, target) for t, times in self._saved.items())
        return Cost(self.parameters(target), operations, self._tokens, saved, sum(self.entries(t, target) for t in self._logits))

    def parameters(self, target: Target) -> int:
        """Weights at the sizes of a target; each tensor in the file counts once."""
        graph, dims = self.roles.structure.graph, self.roles.structure.dims
        shapes = ((t, tuple(target.size(d) for d in dims[t]) if t in dims else graph.weight_shape(t)) for t in self._weights)
        return sum(prod(shape) for t, shape in shapes if is_parameter(graph.weight_type(t), shape))

    @cached_property
    def _weights(self) -> list[str]:
        graph = self.roles.structure.graph
        return list({name: tensor for tensor, name in graph.weights.items() if graph.users.get(tensor)}.values())

    @cached_property
    def _products(self) -> list[Node]:
        """Nodes that sum products of activations and weights, or of activations."""
        s = self.roles.structure
        return [n for n in s.graph.nodes if n.outputs[0] not in s.walk.values and n.outputs[0] not in self.roles.static
                and n.index in s.nodes and "contract" in s.nodes[n.index].rule.fills.values()]

    def _multiply_adds(self, node: Node, target: Target) -> int:
        """Entries of the result, times the entries that are summed away for each."""
        if self.walk.shapes.get(node.outputs[0]) is None:
            return 0
        made = self.entries(node.outputs[0], target)
        if node.op == "Conv":
            return made * prod(self.axis(node.inputs[1], i, target) for i in range(1, len(self.walk.shapes[node.inputs[1]])))
        return made * prod(self._summed(node, target))

    def _summed(self, node: Node, target: Target) -> Iterator[int]:
        """Sizes of the names that a node sums away."""
        ties = self.roles.structure.nodes[node.index]
        for name, kind in ties.rule.fills.items():
            if kind == "contract" and name in ties.names:
                alone = next((o for o in ties.occurrences if not o.output and o.names == (name,)), None)
                yield self.axis(node.inputs[alone.slot], alone.axis, target) if alone else target.size(ties.names[name])

    @cached_property
    def _normed(self) -> set[str]:
        """Tensors that a norm reads along a hidden size."""
        s, hidden = self.roles.structure, self.roles.leaves_of("hidden")
        found = {n.x for n in self.roles.norms} | {n.inputs[0] for _, _, n in self.roles.norm_axes if n.op != "ReduceMean"}
        return {t for t in found if s.dims.get(t) and set(s.leaves(s.dims[t][-1])) & hidden}

    @cached_property
    def _read_by_maps(self) -> set[str]:
        """Activations that linear maps read."""
        return {t for lin in self.roles.linears for t in _read(lin)}

    @cached_property
    def _tokens(self) -> int:
        """Rows of the residual stream; where nothing is normed, rows that linear maps read."""
        return max((prod(self.walk.shapes[t][:-1]) for t in self._normed or self._read_by_maps if self.walk.shapes.get(t)), default=1)

    @cached_property
    def _saved(self) -> Counter:
        """Activations that gradients are computed from, and how often: what linear maps, attention and norms read, and what a feed-forward part keeps.

        Beside what its down projection reads, that is the input of its activation, and with a gate the gate's result and the other factor.
        """
        roles = self.roles
        attention = {t for a in roles.attention for node in (a.scores, a.context) for t in node.inputs if t not in roles.static}
        out = Counter(self._read_by_maps | attention | self._normed)
        for width in roles.widths:
            ffn = roles.leaves_of(width.role("ffn"))
            down = [lin for lin in roles.linears if ffn & {*roles.structure.leaves(lin.reads)}]
            written = sum(w.size for lin in roles.linears for w in lin.writes if ffn & {*roles.structure.leaves(w)})
            gated = written >= 2 * sum(lin.reads.size for lin in down)
            for t in {t for lin in down for t in _read(lin)}:
                out[t] += 3 if gated else 1
        return out

    @cached_property
    def _logits(self) -> list[str]:
        s, words = self.roles.structure, self.roles.leaves_of("vocab")
        return [t for t in s.graph.given if s.dims.get(t) and words & set(s.leaves(s.dims[t][-1]))]


def _read(linear: Linear) -> list[str]:
    """The activation that a linear map reads."""
    return [t for t in linear.node.inputs[:2] if t and t != linear.weight][:1]


def usual_length(roles: Roles) -> int:
    """The length that costs are stated at where none is asked for: all positions that the model has, at most 1024."""
    return min(roles.size("positions") or USUAL_LENGTH, USUAL_LENGTH)


def scene(roles: Roles, length: int, registry: Registry) -> Scene:
    """Walk a structure with one sequence of a length, caches as empty as they may be; axes of fixed size stay.

    Raises:
        SizeError: the graph does not run at this length.
    """
    s, problem = roles.structure, None
    for past in (0, 1) if s.symbols.sizes else ():
        bound = _bound(s, length, past)
        symbols = Symbols(s.symbols.resolve(bound), s.symbols.sums, s.symbols.pinned)
        chosen = length if any(bound[name] == length != 1 for name in symbols.free) else None
        try:
            return Scene(roles, walk(s.graph, {v.name: symbols.bind(v) for v in s.graph.inputs}, registry), chosen)
        except (Mismatch, GraphError) as error:
            problem = error
    if problem is None:
        return Scene(roles, s.walk)
    raise SizeError(f"the model does not run at length {length}: {problem}", hint="give a --length that it runs at")


def usual_scene(roles: Roles, registry: Registry) -> Scene:
    """The scene at the usual length, or at the longest half, quarter ... of it that the graph runs at."""
    length = usual_length(roles)
    while length >= 8:
        with suppress(SizeError):
            return scene(roles, length, registry)
        length //= 2
    return Scene(roles, roles.structure.walk)


def _bound(s: Structure, length: int, past: int) -> dict[str, int]:
    """A size for each symbol: 1 for batches, `past` for what caches hold, those of the analysis for pixels, the length for others."""
    out, shapes = {}, {v.name: v.type.tensor_type.shape.dim for v in s.graph.inputs}
    flat = {symbol_of(v, len(shapes[v.name]) - 1) for v in s.graph.inputs if 0 < len(shapes[v.name]) < 3}  # of ids, and of masks over them
    for value in s.graph.inputs:
        dims = shapes[value.name]
        for i, d in enumerate(dims):
            if d.HasField("dim_value"):
                continue
            name, inside = symbol_of(value, i), len(dims) >= 4 and i >= 2
            pixels = inside and all(not other.HasField("dim_value") for other in dims[2:])
            size = 1 if i == 0 and len(dims) > 1 else length if not inside or name in flat else s.symbols.sizes[name] if pixels else past
            out[name] = min(size, out.get(name, size))
    return out
