"""Names for dims: which of them is the hidden size, the heads, the feed-forward width.

Everything is read off the structure: heads and head_dim from the two products around a Softmax, hidden from the axis that norms
run along, ffn from dims that linear maps reach from hidden and leave to hidden. No operator or weight name decides a size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from onnx import TensorProto

from .dequantize import advice
from .errors import GraphError
from .graph import FLOATS, Node
from .idioms import Attention, Norm, find_attention, find_centred, find_lengths, find_norms
from .mixture import Mixture, name_experts
from .positions import Reach, name_positions
from .stacked import name_stacked
from .structure import NodeTies, Structure, hint_for
from .ties import Dim, find, product
from .vocabulary import Table, Vocabularies, find_tables
from .widths import OWN, Towers, Width, streams

QUANTIZED = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}  # in which weights are stored, and nothing else that is large
WEIGHTS = FLOATS | QUANTIZED
NORM_KINDS = ("layer norm", "rms norm")


@dataclass(frozen=True)
class Linear:
    """A linear map from an activation through a weight: node, weight tensor id, dims it reads and writes."""

    node: Node
    weight: str
    reads: Dim
    writes: tuple[Dim, ...]


@dataclass
class Role:
    """A named size. One instance per place that has its own dim (ffn of each layer); all instances are set together."""

    name: str
    instances: list[Dim] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.instances[0].size

    @property
    def sizes(self) -> set[int]:
        return {d.size for d in self.instances}


@dataclass
class Roles:
    """The roles found in a structure, and what they were found from."""

    structure: Structure
    norms: list[Norm]
    attention: list[Attention]
    linears: list[Linear]
    roles: dict[str, Role] = field(default_factory=dict)
    group: list[Dim] = field(default_factory=list)  # query heads per kv head, one per attention that repeats its keys
    kv: list[Dim] = field(default_factory=list)
    mixtures: list[Mixture] = field(default_factory=list)
    tails: list[Dim] = field(default_factory=list)  # what grows behind experts that are a list
    tables: list[Table] = field(default_factory=list)  # looked up by number
    widths: list[Width] = field(default_factory=list)  # hidden sizes, along the graph
    reach: Reach = field(default_factory=Reach)  # what bounds the length
    halves: list[Norm] = field(default_factory=list)  # of norms: vectors that are divided by their length, or have their mean taken away

    def add(self, name: str, d: Dim) -> None:
        d = find(d)
        role = self.roles.setdefault(name, Role(name))
        if d.size > 1 and d not in map(find, role.instances):
            role.instances.append(d)
        if not role.instances:
            del self.roles[name]

    def size(self, name: str) -> int | None:
        return self.roles[name].size if name in self.roles else None

    def each(self, name: str) -> list[str]:
        """The roles behind a plain name: itself, or that of each width where there are several."""
        return [n for n in (name, *(w.role(name) for w in self.widths if w.name and name in OWN)) if n in self.roles]

    def leaves_of(self, *names: str) -> set[Dim]:
        """Atomic dims of some roles; a plain name like `heads` stands for those of all widths."""
        return {leaf for n in names for role in self.each(n) for d in self.roles[role].instances for leaf in self.structure.leaves(d)}

    @property
    def hidden(self) -> list[Dim]:
        """The dims of all hidden sizes."""
        return [w.hidden for w in self.widths]

    @cached_property
    def weight_leaves(self) -> set[Dim]:
        """Atomic dims that some weight has."""
        s = self.structure
        weights = [t for t in s.graph.weights if t in s.dims and s.graph.weight_type(t) in WEIGHTS]
        return {leaf for t in weights for d in s.dims[t] for leaf in s.leaves(d)}

    @cached_property
    def written_leaves(self) -> set[Dim]:
        """Atomic dims that linear maps write."""
        return {leaf for lin in self.linears for d in lin.writes for leaf in self.structure.leaves(d)}

    @cached_property
    def static(self) -> set[str]:
        return static_tensors(self.structure)

    def caches(self, names: Iterable[str]) -> set[str]:
        """Those of some inputs or outputs that end in the size of a head: keys and values for other calls."""
        s, head = self.structure, self.leaves_of("head_dim", "v_head_dim")
        return {name for name in names if s.dims.get(name) and set(s.leaves(s.dims[name][-1])) & head}

    @cached_property
    def batch_leaves(self) -> set[Dim]:
        """Atomic dims of the first axis of what is fed."""
        s = self.structure
        return {leaf for v in s.graph.inputs if s.dims.get(v.name) for leaf in s.leaves(s.dims[v.name][0])}

    @cached_property
    def norm_axes(self) -> list[tuple[Dim, str, Node]]:
        """(dim, kind, node) of every norm, fused or spelled out. An RMS norm of what had its mean taken away is a LayerNorm."""
        s, centred = self.structure, {n.y for n in self.halves if n.kind == "centre"}
        out = [(s.dims[n.x][-1], n.kind, n.anchor) for n in self.norms]
        for node in s.graph.nodes:
            ties = s.nodes.get(node.index)
            for name, kind in ties.rule.fills.items() if ties else ():
                if kind in NORM_KINDS and name in ties.names:
                    out.append((ties.names[name], "layer norm" if node.inputs[0] in centred else kind, node))
        return [(find(d), k, n) for d, k, n in out]


def find_roles(s: Structure) -> Roles:
    """Name the dims of a structure.

    Raises:
        GraphError: nothing in the graph looks like a transformer.
    """
    norms, _ = find_norms(s)
    roles = Roles(s, norms, find_attention(s), find_linears(s), halves=[*find_lengths(s), *find_centred(s, norms)])
    if not roles.attention:
        _refuse(s, "no attention found (a Softmax between two products of activations)",
                "onnxgrow grows transformers; export the model with attention in plain operators")
    runtime = runtime_leaves(s)
    for attention in roles.attention:
        _name_attention(roles, attention, runtime)
    _name_hidden(roles)
    _name_ffn(roles)
    _name_widths(roles, runtime)
    name_experts(roles)
    name_stacked(roles)
    _name_tables(roles)
    name_positions(roles)
    _name_rest(roles, runtime)
    return roles


def _refuse(s: Structure, what: str, hint: str) -> None:
    """No transformer: if a node could not be read, that is the likely cause."""
    _, reason, node = s.blocked[0] if s.blocked else (None, None, None)
    hint = advice(s.graph.source, hint)
    raise GraphError(f"{what}; the first node that is not understood: {reason}" if node else what, node=node.label if node else None,
                     hint=hint_for(reason, node, hint) if node else hint)


def static_tensors(s: Structure) -> set[str]:
    """Tensors that depend on weights alone."""
    static = set(s.graph.weights)
    for node in s.graph.nodes:
        if node.inputs and all(t in static or not t for t in node.inputs):
            static.update(o for o in node.outputs if o)
    return static


def runtime_leaves(s: Structure) -> set[Dim]:
    """Atomic dims whose size depends on what is fed."""
    out = set()
    for tensor, flags in s.runtime.items():
        for flag, d in zip(flags, s.dims.get(tensor, ())):
            if flag and find(d).form is None:
                out.add(find(d))
    return out


def find_linears(s: Structure) -> list[Linear]:
    """Contractions of an activation with a weight, or with that of an expert, which is fetched by its number."""
    static, out = static_tensors(s), []
    for node in s.graph.nodes:
        ties = s.nodes.get(node.index)
        for name, kind in ties.rule.fills.items() if ties else ():
            if kind != "contract" or name not in ties.names:
                continue
            slots = [o.slot for o in ties.occurrences if name in o.names and not o.output]
            weights = [i for i in slots if node.inputs[i] in static or _is_fetched(s, static, node.inputs[i])]
            if weights and len(slots) - len(weights) == 1:  # a packed weight comes with its scales
                made = {n for o in ties.occurrences if o.output for n in o.names}
                own = [n for o in ties.occurrences if o.slot == weights[0] and not o.output for n in o.names if n in made]
                read = next(s.dims[node.inputs[o.slot]][o.axis] for o in ties.occurrences if name in o.names and not o.output and o.slot not in weights)
                out.append(Linear(node, node.inputs[weights[0]], find(read), tuple(find(ties.names[n]) for n in own)))
    return out


def _is_fetched(s: Structure, static: set[str], tensor: str) -> bool:
    """Is a tensor one matrix of several, found by a number that the run makes?"""
    node = s.graph.makers.get(tensor)
    while node is not None and node.op in ("Unsqueeze", "Squeeze", "Transpose", "Cast", "Identity"):
        node = s.graph.makers.get(node.inputs[0])
    return node is not None and node.op in ("Gather", "GatherND") and node.inputs[0] in static and len(s.dims.get(node.inputs[0], ())) > 2


def _name_attention(roles: Roles, attention: Attention, runtime: set[Dim]) -> None:
    s = roles.structure
    scores, context = s.nodes.get(attention.scores.index), s.nodes.get(attention.context.index)
    summed, valued = scores and _summed(scores), context and _valued(attention, context)
    if not summed or not valued:
        return
    beside = _beside(s, attention.scores, scores)
    axes = [leaf for d in beside for leaf in s.leaves(d) if leaf not in runtime and leaf.size > 1]
    repeated = {leaf for d in s.repeated for leaf in s.leaves(d)}
    axes = [a for a in axes if a in (roles.weight_leaves | repeated) - roles.batch_leaves]  # a batch that the export fixed is no head
    axes = [a for a in axes if a in roles.written_leaves | repeated] or axes  # windows that a stored mask counts are none
    if axes:
        heads = [find(d) for d in beside if s.leaves(d) and set(s.leaves(d)) == set(axes)]
        roles.add("heads", heads[0] if heads else product(axes))
        kv, group = [a for a in axes if a not in repeated], [a for a in axes if a in repeated]
        if group:
            roles.group += [g for g in group if g not in roles.group]
        if kv and group:
            roles.kv += [k for k in kv if k not in roles.kv]
            roles.add("kv_heads", product(kv))
    roles.add("head_dim", scores.names[summed])
    roles.add("v_head_dim", context.names[valued])


def _summed(ties: NodeTies) -> str | None:
    """The name that a product sums over, where it is one."""
    names = [n for n, kind in ties.rule.fills.items() if kind == "contract" and n in ties.names]
    return names[0] if len(names) == 1 else None


def _valued(attention: Attention, ties: NodeTies) -> str | None:
    """The name of the last axis of the values in softmax(...)·values: it comes from them alone."""
    if attention.context.op == "MatMul":
        name = "m" if attention.shares else "n"
        return name if name in ties.names else None
    values, shares = ({n for o in ties.occurrences if not o.output and o.slot == slot for n in o.names} for slot in (1 - attention.shares, attention.shares))
    found = [n for o in ties.occurrences if o.output for n in o.names if n in values - shares]
    return found[0] if len(found) == 1 else None


def _beside(s: Structure, node: Node, ties: NodeTies) -> list[Dim]:
    """The axes of attention scores that both factors have: batch and heads."""
    if node.op == "MatMul":
        return s.dims[node.outputs[0]][:-2]
    both = set.intersection(*({n for o in ties.occurrences if not o.output and o.slot == slot for n in o.names} for slot in (0, 1)))
    return [ties.names[o.names[0]] for o in ties.occurrences if o.output and len(o.names) == 1 and o.names[0] in both]


def _name_hidden(roles: Roles) -> None:
    """The dim that most norms run along, heads aside; where no norm runs along a stream of sums, the one of these that linear maps touch most."""
    s, taken = roles.structure, roles.leaves_of("heads", "head_dim", "v_head_dim")
    counts, touched = (Counter(d for d in found if d.size > 1 and not taken & set(s.leaves(d)))
                       for found in ([d for d, _, _ in roles.norm_axes], [d for lin in roles.linears for d in (lin.reads, *lin.writes)]))
    summed = streams(s, roles.static)
    if not counts.keys() & summed:
        counts = Counter({d: n for d, n in touched.items() if d in summed}) or counts or touched
    if not counts:
        _refuse(s, "no hidden size found: no norm and no linear map outside attention", "re-export with a newer exporter or opset")
    roles.add("hidden", counts.most_common(1)[0][0])


def _name_ffn(roles: Roles) -> None:
    s, hidden = roles.structure, roles.roles["hidden"].instances[0]
    taken = roles.leaves_of("heads", "head_dim", "v_head_dim") | set(s.leaves(hidden))
    reached = [d for lin in roles.linears if lin.reads is hidden for w in lin.writes for d in _parts(w)]
    left = {lin.reads for lin in roles.linears if hidden in lin.writes}
    for d in reached:
        if d in left and not taken & set(s.leaves(d)):
            roles.add("ffn", d)


def _name_widths(roles: Roles, runtime: set[Dim]) -> None:
    """One hidden size keeps plain names; of several, each names its own heads and feed-forward part."""
    towers = Towers(roles)
    if len(towers.dims) < 2:
        roles.widths = [Width("", roles.roles["hidden"].instances[0], roles.kv, roles.group)]
        return
    roles.widths = [Width(name, d) for name, d in zip(towers.names(), towers.dims)]
    found: dict[str, Role] = {}
    for k, width in enumerate(roles.widths):
        part = Roles(roles.structure, roles.norms, towers.attention_of(k), roles.linears, kv=width.kv, group=width.group)
        for attention in part.attention:
            _name_attention(part, attention, runtime)
        part.add("hidden", width.hidden)
        _name_ffn(part)
        found |= {width.role(name): Role(width.role(name), role.instances) for name, role in part.roles.items()}
    roles.roles = found


def _parts(d: Dim) -> list[Dim]:
    """A fused up and gate projection writes a sum, or a product where they come in turns; beside fused queries, keys and values it is a sum in a sum."""
    d = find(d)
    return [d, *(inner for p in d.form[1] for inner in _parts(p))] if d.form else [d]


def _name_tables(roles: Roles) -> None:
    """Rows of embedding tables: vocab where the graph's ids come in or its logits go out, positions where indices are computed."""
    s, hidden = roles.structure, roles.leaves_of("hidden")
    static = roles.static
    roles.tables = find_tables(s, hidden, static)
    for name, d in Vocabularies(roles, roles.tables).named():
        roles.add(name, d)
    experts = roles.leaves_of("experts")
    for node in s.graph.nodes:  # learned positions that are added as they are, or cut to the length that is fed
        if node.op in ("Add", "Slice") and "positions" not in roles.roles:
            for t in node.inputs:
                dims = [d for d in s.dims.get(t, ()) if d.size > 1]
                if t in static and len(dims) == 2 and set(s.leaves(dims[1])) & hidden and find(dims[0]) not in experts:
                    roles.add("positions", dims[0])


def _name_rest(roles: Roles, runtime: set[Dim]) -> None:
    """Every other dim of a float weight gets the name of the first weight that shows it."""
    s = roles.structure
    taken = {leaf for r in roles.roles.values() for d in r.instances for leaf in s.leaves(d)} | runtime | set(roles.group)
    used = [w for w in s.graph.weights.items() if s.graph.users.get(w[0])]  # a vector whose uses were separated has none left
    by_rank = sorted(used, key=lambda w: -len(s.dims.get(w[0], ())))
    for tensor, name in by_rank:
        for axis, d in enumerate(s.dims.get(tensor, ())):
            if s.graph.weight_type(tensor) in QUANTIZED and axis > 1:  # bytes of a block
                continue
            if s.graph.weight_type(tensor) not in WEIGHTS or tensor in s.walk.values or d.size == 1 or set(s.leaves(d)) & taken:
                continue
            roles.add(f"{name}[{axis}]", d)
            taken |= set(s.leaves(d))


def role_name(roles: Roles, d: Dim) -> str:
    """The name under which a user knows an atomic dim."""
    return next((n for n in roles.roles if d in roles.leaves_of(n)), f"a dim of size {d.size}")
