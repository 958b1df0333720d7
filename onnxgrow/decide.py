"""All decisions of a growth, made before any byte is written: which entry comes from where, what is repaired, the graph that results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
import onnx
from onnx import TensorProto

from .apply import Applied, apply_edits
from .architecture import is_parameter
from .axismap import AxisMap, Fill
from .certificate import Certificate
from .constants import fix_constants
from .continued import continue_tables, follow_limits
from .dequantize import FIRST, advice
from .errors import MethodError
from .experts import Routing, route
from .flow import Flow, Relation
from .isomorphism import is_frequency
from .liveness import dead_classes
from .longer import prove_length
from .maps import Mapper
from .recipe import Recipe
from .repairs import Edits, repair
from .request import Request
from .roles import FLOATS, Roles, role_name
from .rulebook import Registry
from .solve import Conflict, Solution, Solver, solve_dim
from .standin import StandIns, find_stand_ins
from .structure import Structure
from .target import Target, resolve
from .ties import Dim
from .treatments import build_flow
from .words import NO_ROOM, find_words, notes, raise_limits, reasons, word_leaves
from .zeropoint import zero_point

ROUNDED = 1e-7  # what moves the statistics of a norm by less is lost in the rounding of float32


@dataclass
class Decisions:
    """Everything decided about one growth."""

    target: Target
    solutions: dict[Dim, Solution]
    edits: Edits
    recipes: dict[str, Recipe]  # by weight tensor id
    applied: Applied
    certificate: Certificate
    inputs: dict[str, tuple[AxisMap, ...]]
    outputs: dict[str, tuple[AxisMap, ...]]
    mapper: Mapper
    dead: dict[str, int] = field(default_factory=dict)  # weight tensor id -> new entries that never get gradient
    asleep: dict[str, int] = field(default_factory=dict)  # initializer -> entries of new experts: no gradient before they are chosen

    @cached_property
    def new_parameters(self) -> int:
        """Parameters of the grown file less those of the source; an equal vector that several uses shared may have become several."""
        weights = {name: r for name, r in self.applied.recipes.items() if is_parameter(r.dtype, r.new_shape)}
        more = sum(prod(r.new_shape) - prod(r.old_shape) for name, r in weights.items() if name in self.applied.added)  # which counts new experts at the old sizes
        made = {name: r for name, r in weights.items() if name not in self.applied.added}
        sources = {r.origin or name: r for name, r in made.items()}
        left = {t.name for t in self.proto.graph.initializer} | {n.output[0] for n in self.proto.graph.node if n.op_type == "Constant"}
        gone = sum(prod(r.old_shape) for name, r in sources.items() if name in made or name not in left)
        return sum(prod(r.new_shape) for r in made.values()) - gone + more + sum(self.applied.added.values())

    def maps(self, tensor: str) -> tuple[AxisMap, ...] | None:
        """The map of each axis of any tensor of the graph."""
        dims = self.mapper.s.dims.get(tensor)
        return None if dims is None else tuple(self.mapper.axis(tensor, i, "zero") for i in range(len(dims)))

    @property
    def dead_parameters(self) -> int:
        return sum(self.dead.values())

    @property
    def proto(self) -> onnx.ModelProto:
        return self.applied.proto


def decide(roles: Roles, request: Request, registry: Registry) -> Decisions:
    """Plan a growth from rules alone; touches no weight beyond norm gains (for the bound of the near method).

    Raises:
        SizeError, MethodError, GraphError: the growth is refused, with node, axis and next step.
    """
    s = roles.structure
    target, flow, solutions, edits = _solve_and_repair(roles, request)
    routing = route(roles, target, request.method)
    raise_limits(roles, target, edits)
    follow_limits(roles, target, edits)
    fix_constants(s, target, edits, registry)
    prove_length(roles, target, edits, registry)
    forced = ("free" if request.init_std else "zero") if request.method == "naive" else None
    asleep = dead_classes(flow, solutions, roles.caches(roles.structure.graph.outputs)) if solutions else set()
    asleep = {c for c in asleep if flow.dim[c] not in routing.dims}  # new experts are another matter
    stand_ins = {d: find_stand_ins(flow, found, target) for d, found in solutions.items() if found.near or found.weighted}
    words = find_words(roles, target, edits, request)
    target.notes += notes(roles, request)
    mapper = Mapper(s, target, flow, solutions, forced, asleep if request.wake else set(), stand_ins, routing.copies(flow, solutions), words)
    recipes = _all_recipes(roles, mapper, edits, request, routing)
    dead = _count_dead(mapper, asleep, recipes) if not request.wake else {}
    io = [{v: tuple(mapper.axis(v, i, "zero") for i in range(len(s.dims[v]))) for v in names if v in s.dims}
          for names in ([v.name for v in s.graph.inputs], s.graph.outputs)]
    applied = apply_edits(s, target, edits, recipes)
    routing.finish(applied)
    certificate = _certify(target, request, solutions, asleep, stand_ins, routing.reasons() + reasons(roles, target))
    return Decisions(target, solutions, edits, recipes, applied, certificate, *io, mapper, dead, routing.asleep(recipes, applied))


def _solve_and_repair(roles: Roles, request: Request) -> tuple[Target, Flow, dict[Dim, Solution], Edits]:
    """Fills and the repairs that they need; where a repair has no weight to go to, auto tries other fills, copies of hidden at whole multiples last."""
    ways = [{}, dict(wake=False), dict(copies=True)] if request.method == "auto" else [{}]  # what is asleep is exact; copies need no repair of a norm
    refused = None
    for way in ways:
        try:
            target, flow, solutions = _solve_all(roles, request, **way)
            return target, flow, solutions, repair(roles, flow, target, list(solutions.values()))
        except MethodError as error:
            refused = refused if "copies" in way else error
    raise refused


def _solve_all(roles: Roles, request: Request, wake: bool = True, copies: bool = False) -> tuple[Target, Flow, dict[Dim, Solution]]:
    """Sizes and fills for a request; dims that only follow hidden stay behind where they cannot."""
    keep: set[str] = set()
    while True:
        target = resolve(roles, request, frozenset(keep))
        regrouped = set(target.regroup) | {g for _, g in target.regroup.values()}
        flow = build_flow(roles, set(target.sizes) - regrouped)
        if request.method == "naive":
            return target, flow, {}
        by_dim = defaultdict(list)
        for r in flow.relations:
            by_dim[flow.dim[(r.ins or r.outs)[0]]].append(r)
        copied = {d for d in roles.leaves_of("hidden") if copies and target.size(d) % d.size == 0}
        solutions = {d: _solve(roles, flow, target, d, by_dim[d], "copy" if d in copied else request.method) for d in target.sizes if d in flow.grown}
        for d in _asleep(roles, flow, solutions) if request.method == "auto" and wake else ():  # exact, but dead: copies are exact and alive
            woken = solve_dim(flow, d, by_dim[d], target, "copy")
            solutions[d] = woken if isinstance(woken, Solution) else solutions[d]
        refused = {d: found for d, found in solutions.items() if isinstance(found, Conflict)}
        if not refused:
            return target, flow, solutions
        keep |= {name for name in target.coupled for d in refused if d in roles.leaves_of(name)}
        hard = {d: found for d, found in refused.items() if not any(d in roles.leaves_of(name) for name in target.coupled)}
        for d, found in hard.items():
            copies = isinstance(Solver(flow, d, by_dim[d], "copy").solve(), Solution)
            _refuse(roles, target, d, found, request.method, copies)


def _asleep(roles: Roles, flow: Flow, solutions: dict) -> set[Dim]:
    """Dims with weights that gradient can never reach."""
    if any(isinstance(found, Conflict) for found in solutions.values()):
        return set()
    return {flow.dim[c] for c in dead_classes(flow, solutions, roles.caches(roles.structure.graph.outputs))}


def _solve(roles: Roles, flow: Flow, target: Target, d: Dim, relations: list[Relation], method: str) -> Solution | Conflict:
    found = solve_dim(flow, d, relations, target, method)
    if isinstance(found, Conflict) and method == "copy" and d not in roles.leaves_of("hidden", "ffn"):
        target.notes.append(f"{role_name(roles, d)}: padded, since copies do not fit ({found.reason})")
        return solve_dim(flow, d, relations, target, "pad")
    return found


def _in_full(roles: Roles, target: Target, d: Dim) -> tuple[str, int, int]:
    """The name under which a user knows a dim, its old and its new size: of the whole, where the dim is one part (of rotary halves, say)."""
    name = role_name(roles, d)
    instances = roles.roles[name].instances if name in roles.roles else [d]
    whole = next((x for x in instances if d in roles.structure.leaves(x)), d)
    return name, whole.size, target.size(whole)


def _refuse(roles: Roles, target: Target, d: Dim, found: Conflict, method: str, copies: bool) -> None:
    name, n, new = _in_full(roles, target, d)
    hint = _other_ways(n, new, method, copies)
    hint = NO_ROOM if d in word_leaves(roles) and found.reason.startswith("nothing can be appended") else hint
    raise MethodError(f"{name} cannot grow from {n} to {new}: {found.reason}", node=found.node.label if found.node else None, hint=advice(roles.structure.graph.source, hint))


def _other_ways(n: int, new: int, method: str, copies: bool) -> str:
    """What else could be asked for; `copies` says whether these would keep the function at a whole multiple."""
    naive = "--method naive (not preserving)"
    multiples = dict.fromkeys((n * max(2, new // max(n, 1)), n * (new // max(n, 1) + 1)))
    whole = f"ask for a whole multiple ({' or '.join(map(str, multiples))})"
    if method == "copy":
        return f"with --method copy {whole}" if new % max(n, 1) else "leave --method copy out, so that new entries may be zeros"
    if not copies:
        return f"use {naive}"
    if method == "pad":
        whole = f"without --method pad, {whole}" if new % max(n, 1) else "leave --method pad out, since this is a whole multiple"
    return f"{whole}, which is filled with copies, or use {naive}"


def _all_recipes(roles: Roles, mapper: Mapper, edits: Edits, request: Request, routing: Routing) -> dict[str, Recipe]:
    """Tables that follow a rule go on by it, and leave the recipes; other tables of sines repeat old columns."""
    s, flow = roles.structure, mapper.flow
    mapper.repeats = False
    out = _recipes(s, mapper, edits, request, routing, s.graph.weights)
    continue_tables(roles, out, edits)
    mapper.repeats = True
    turning = [t for t in out if flow.turning and any(flow.turning & {*flow.classes(t, axis)} for axis in range(len(s.dims[t])))]
    return out | _recipes(s, mapper, edits, request, routing, turning)


def _recipes(s: Structure, mapper: Mapper, edits: Edits, request: Request, routing: Routing, tensors: Iterable[str]) -> dict[str, Recipe]:
    out = {}
    for tensor in tensors:
        origin = s.graph.weights[tensor]
        if tensor not in s.dims or not s.graph.users.get(tensor) or not (mapper.grows(tensor) or tensor in edits.scales):
            continue
        axes = tuple(mapper.axis(tensor, i) for i in range(len(s.dims[tensor])))
        scale, shift = edits.scales.get(tensor, (1.0, 0.0))
        std = 0.0 if origin in s.graph.source.constant else request.wake if mapper.wakes(tensor) else request.init_std
        dtype = s.graph.weight_type(tensor)
        given = routing.given.get(tensor, _given_gain(mapper, tensor, scale))
        zero = None if dtype in FLOATS else zero_point(s.graph, tensor)
        if zero is not None and request.wake and mapper.wakes(tensor):
            raise MethodError(f"{origin!r} is quantized, and a little noise is less than a step of it", node=s.graph.users[tensor][0][0].label, hint=FIRST)
        std = None if zero is not None and std else std  # in their own steps
        free = _free_kind(s, tensor, dtype if zero is None else TensorProto.FLOAT, request) if given is None else "given"
        free = "zero" if zero is not None and free == "gain" else free
        if dtype not in FLOATS and any(a.share or (a.fill == Fill.MEAN).any() for a in axes):
            raise MethodError(f"{origin!r} holds whole numbers, which cannot be shared out", node=s.graph.users[tensor][0][0].label,
                              hint=advice(s.graph.source, "use --method pad"))
        out[tensor] = Recipe(origin, dtype, s.graph.weight_shape(tensor), tuple(a.new for a in axes), axes, scale, shift, std,
                             free, request.seed, given=given, zero=zero)
    return out


def _given_gain(mapper: Mapper, tensor: str, scale: float) -> np.ndarray | None:
    """The new entries of a norm's gain that stand-ins for the mean ask for, with the norm's repair."""
    uses: set[tuple[int, int]] = set()
    mapper.s.graph.spread([tensor], lambda node, slot, _: uses.add((node.index, slot)) or node.op in ("Cast", "Identity"))
    found = [gain for ins in mapper.stand_ins.values() for use, gain in ins.gains.items() if use in uses]
    if any(not np.array_equal(found[0], other) for other in found[1:]):
        node = mapper.s.graph.by_index[min(uses)[0]]
        raise MethodError("one gain serves several norms after the branch, which need different new entries", node=node.label,
                          hint="ask for a whole multiple of the size")
    return found[0] * scale if found else None


def _free_kind(s: Structure, tensor: str, dtype: int, request: Request) -> str:
    """What nobody may read holds: matrices are random; offsets zero, gains their mean, frequencies go on as they began."""
    if request.method == "naive":
        return "random"
    if dtype not in FLOATS:
        return "zero"
    if sum(n > 1 for n in s.graph.weight_shape(tensor)) > 1:
        return "random"
    if is_frequency(s, tensor):
        return "continue"
    node, slot = s.graph.users[tensor][0]
    while node.op in ("Cast", "Unsqueeze", "Reshape", "Squeeze", "Identity") and s.graph.users.get(node.outputs[0]):
        node, slot = s.graph.users[node.outputs[0]][0]
    if node.op in ("Add", "Sub", "Concat", "Where") or (node.op in ("Gemm", "Conv", "LayerNormalization") and slot == 2):
        return "zero"
    return "gain"


def _count_dead(mapper: Mapper, asleep: set[int], recipes: dict[str, Recipe]) -> dict[str, int]:
    """New entries per weight that no gradient reaches. Frequencies, which continue a sequence, are no parameters."""
    out = {}
    for tensor, recipe in recipes.items():
        if recipe.dtype not in FLOATS or recipe.free == "continue":
            continue
        count = mapper.asleep(tensor, asleep)
        if count:
            out[tensor] = count
    return out


def _certify(target: Target, request: Request, solutions: dict[Dim, Solution], asleep: set[int], stand_ins: dict[Dim, StandIns],
             more: tuple[str, ...]) -> Certificate:
    if request.method == "naive" and target.sizes:
        return Certificate("not preserved", ("plain padding without repairs was asked for (--method naive)",))
    norms = {r.node.index: r.node for solution in solutions.values() for r in solution.near}
    bounds = {i: b for found in stand_ins.values() for i, b in found.bounds.items()}
    constant = set().union(*(found.constant for found in stand_ins.values()))
    reasons = [f"{n.label}: this norm comes after the branch; {_stands(i in constant)} the mean of each token"
               + (f" ({_moves(bounds[i], i in constant)})" if i in bounds else "") for i, n in norms.items() if bounds.get(i, 1) > ROUNDED]
    if asleep and request.wake:
        reasons.append(f"noise of {request.wake:g} where zero would meet zero for ever (--wake)")
    return Certificate("near", (*reasons, *more), max(bounds.values(), default=None)) if reasons else Certificate("exact", more)


def _stands(constant: bool) -> str:
    return "a constant stands in for" if constant else "weighted means stand in for"


def _moves(bound: float, constant: bool) -> str:
    if constant:
        return f"the statistics of the next norm move by at most {bound:.1e} where what it reads has a deviation of 1, and by less where it has more"
    return f"its statistics move by at most {bound:.1e}, what earlier norms have moved aside"
