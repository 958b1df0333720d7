"""Several hidden sizes in one model: the stages of a vision transformer, two towers, an encoder and a decoder of different widths.

A width is the size of a residual stream: norms run along it, attention writes to it, and a sum goes on with it. A model with one keeps
plain names (`hidden`, `heads`); with several each has its own (`vision.hidden`, `text.heads`, `stage2.ffn`). The name says what the
structure says: which side of cross attention, what the tower reads, or its place along the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from onnx import TensorProto

from .graph import SIZES, Node
from .idioms import Attention
from .structure import Structure
from .ties import Dim, find
from .vocabulary import find_tables

if TYPE_CHECKING:
    from .roles import Roles

OWN = ("hidden", "heads", "kv_heads", "head_dim", "v_head_dim", "ffn")  # roles that each width has for itself


@dataclass
class Width:
    """One hidden size and what belongs to it.

    Attributes:
        name: `vision`, `stage2`, `encoder.stage1` ...; empty where the model has one width only.
        hidden: the dim.
        kv, group: dims of key and value heads, and of the query heads that share one, for each attention that repeats its keys.
    """

    name: str
    hidden: Dim
    kv: list[Dim] = field(default_factory=list)
    group: list[Dim] = field(default_factory=list)

    def role(self, base: str) -> str:
        """`heads` -> `vision.heads`."""
        return f"{self.name}.{base}" if self.name else base

    @property
    def layers(self) -> str:
        """What its layers are called where they are one stack."""
        return f"{self.name}_layers" if self.name in ("encoder", "decoder") else self.role("layers")


class Towers:
    """Finds the widths of a model, which attention belongs to which, and their names."""

    def __init__(self, roles: Roles):
        self.roles, self.s = roles, roles.structure
        self.linear = {lin.node.index: lin for lin in roles.linears}
        self.streams = streams(self.s, roles.static) & {d for d, _, _ in roles.norm_axes}
        self.owner = [self._owner(a) for a in roles.attention]
        first = {d: k for k, d in reversed([*enumerate(self.owner)]) if d is not None}
        self.dims = sorted(first, key=first.__getitem__)  # along the graph

    def attention_of(self, k: int) -> list[Attention]:
        """The attention of one width; what belongs to none goes with the width that most norms run along."""
        main = find(self.roles.roles["hidden"].instances[0])
        spare = main if main in self.dims else self.dims[0]
        return [a for a, d in zip(self.roles.attention, self.owner) if (d or spare) is self.dims[k]]

    def _owner(self, attention: Attention) -> Dim | None:
        """The stream that the output map writes to, else the one that the query map reads."""
        made = [d for lin in self._next(attention.context.outputs) for d in (*lin.writes, lin.reads)]
        made += [lin.reads for t in attention.scores.inputs for lin in [self._before(t)] if lin is not None]
        return next((find(d) for d in made if find(d) in self.streams), None)

    def _next(self, tensors: Iterable[str]) -> list:
        """The first linear maps that something goes to."""
        out, seen, waiting = [], set(), [*tensors]
        while waiting:
            for node, _ in self.s.graph.users.get(waiting.pop(0), []):
                if node.index in self.linear:
                    out.append(self.linear[node.index])
                elif node.index not in seen:
                    seen.add(node.index)
                    waiting += node.outputs
            if out:
                break
        return out

    def _before(self, tensor: str):
        """The linear map that something comes from, through what moves or scales its values."""
        while (node := self.s.graph.makers.get(tensor)) is not None:
            if node.index in self.linear:
                return self.linear[node.index]
            moving = [t for t in node.inputs if t and t not in self.roles.static and t not in self.s.walk.values]
            if not moving:
                return None
            tensor = moving[0]
        return None

    # --- names ---

    def names(self) -> list[str]:
        """A name for each width, in the order of `dims`."""
        decoders = {k: found for k in range(len(self.dims)) if (found := self._reads_from(k))}
        encoders = {e for found in decoders.values() for e in found} - decoders.keys()
        if decoders and encoders and len(decoders) + len(encoders) == len(self.dims):
            sides = [("encoder", sorted(encoders)), ("decoder", sorted(decoders))]
        else:
            sides = self._towers()
        out = [""] * len(self.dims)
        for name, members in sides:
            for i, k in enumerate(members):
                stage = [f"stage{i + 1}"] * (len(members) > 1)
                out[k] = ".".join([name] * bool(name) + stage)
        return out

    def _towers(self) -> list[tuple[str, list[int]]]:
        """Widths that derive from the same inputs together; named by what they read where there are several."""
        towers: dict[int, list[int]] = {}
        root: dict[int, int] = {}
        for k in range(len(self.dims)):
            before = [j for j in self._trace.widths[k] if j in root]
            root[k] = k if self._kind(k) or not before else root[max(before)]
            towers.setdefault(root[k], []).append(k)
        if len(towers) == 1:
            return [("", members) for members in towers.values()]
        kinds = [self._kind(k) or "tower" for k in towers]
        number = {k: kinds[: i + 1].count(kinds[i]) for i, k in enumerate(towers)}
        return [(f"{kind}{number[k]}" if kinds.count(kind) > 1 or kind == "tower" else kind, towers[k]) for kind, k in zip(kinds, towers)]

    def _kind(self, k: int) -> str | None:
        """What a tower reads at first hand: text (ids), vision (floats of four axes or more), signal (other floats)."""
        s, d = self.s, self.dims[k]
        if any(t.source for t in find_tables(s, set(s.leaves(d)), self.roles.static) if t.wide):
            return "text"
        fed = [v for v in s.graph.inputs if v.name in self._trace.inputs[k] and v.type.tensor_type.elem_type in FED]
        ranks = [len(s.walk.shapes.get(v.name) or ()) for v in fed]
        return None if not ranks else "vision" if max(ranks) > 3 else "signal"

    def _reads_from(self, k: int) -> set[int]:
        """The other widths whose states a width's attention takes its keys from: cross attention.

        Keys and queries of self attention come from one state; here the queries have seen something that the keys have not.
        """
        out = set()
        for a in self.attention_of(k):
            sides = [lin.node.inputs for t in a.scores.inputs for lin in [self._before(t)] if lin is not None]
            states = [next((t for t in names if t not in self.roles.static), "") for names in sides]
            if len(states) == 2 and self._trace.fed.get(states[0]) != self._trace.fed.get(states[1]):
                out |= min((self._trace.seen.get(t, frozenset()) for t in states), key=lambda seen: (k in seen, len(seen))) - {k}
        return out

    @cached_property
    def _trace(self) -> _Trace:
        return _Trace(self.s, self.dims)


FED = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


class _Trace:
    """Where states come from.

    Attributes:
        fed: tensor -> graph inputs that it derives from.
        seen: tensor -> widths that it has passed.
        inputs, widths: for each width what enters its stream directly: graph inputs, and other widths.
    """

    def __init__(self, s: Structure, dims: list[Dim]):
        self.fed = {v.name: frozenset([v.name]) for v in s.graph.inputs}
        self.seen: dict[str, frozenset[int]] = {}
        self.inputs: list[set[str]] = [set() for _ in dims]
        self.widths: list[set[int]] = [set() for _ in dims]
        near: dict[str, tuple[frozenset[str], frozenset[int]]] = {v.name: (frozenset([v.name]), frozenset()) for v in s.graph.inputs}
        for node in s.graph.nodes:
            if not _carries(s, node):
                continue
            sources = [t for t in node.inputs if t]
            fed, seen = (frozenset().union(*(table.get(t, ()) for t in sources)) for table in (self.fed, self.seen))
            inputs, widths = (frozenset().union(*(near[t][i] for t in sources if t in near)) for i in (0, 1))
            for o in node.outputs:
                last = find(s.dims[o][-1]) if s.dims.get(o) else None
                k = dims.index(last) if last in dims else None
                if k is not None:
                    self.inputs[k] |= inputs
                    self.widths[k] |= widths - {k}
                self.fed[o], self.seen[o] = fed, seen if k is None else seen | {k}
                near[o] = (inputs, widths) if k is None else (frozenset(), frozenset([k]))


def _carries(s: Structure, node: Node) -> bool:
    return node.op not in SIZES and not all(o in s.walk.values for o in node.outputs if o)


def streams(s: Structure, static: set[str]) -> set[Dim]:
    """Last dims of what two states are summed to, by an Add or inside a fused operator."""
    out = set()
    for node in s.graph.nodes:
        if node.op in ("Add", "Sum") or node.domain not in ("", "ai.onnx"):
            last = [find(s.dims[t][-1]) for t in node.inputs if t not in static and t not in s.walk.values and s.dims.get(t)]
            out |= {d for d in last if last.count(d) > 1}
    return out
