"""From steps to modules: which layer is an attribute of which module, and which steps are the forward of which.

The tree follows the scopes that the exporter left. A module whose steps cannot be run in one go (something outside runs in between) gives
its steps to the module around it, and one without weights does the same: it needs no class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import GraphError
from .derive import axis_of, derive
from .scopes import Scopes
from .sizes import Numbers, Sizes, is_constant
from .steps import Layer, Ref, Scope, Step
from .weights import Weights, is_anonymous

GENERIC = {"Linear": "linear", "Embedding": "embedding", "LayerNorm": "norm", "RMSNorm": "norm", "Conv1d": "conv", "Conv2d": "conv", "Conv3d": "conv"}


@dataclass
class Unit:
    """A module with a forward: its own steps and the calls of the units in it, in order."""

    path: Scope
    items: list[Step | Unit] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def steps(self) -> Iterable[Step]:
        for item in self.items:
            yield from item.steps() if isinstance(item, Unit) else (item,)

    def units(self) -> Iterable[Unit]:
        """The units in it, itself last."""
        for item in self.items:
            if isinstance(item, Unit):
                yield from item.units()
        yield self


@dataclass
class Outline:
    """The tree of modules.

    Attributes:
        root: the unit that is the whole model.
        layers: path of each layer -> the layer.
        weights: path of each parameter or buffer outside of a layer -> tensor id.
        layer_at: id of a step -> the path of its layer.
        names: tensor id of such a weight -> its path.
    """

    root: Unit
    layers: dict[Scope, Layer]
    weights: dict[Scope, str]
    layer_at: dict[int, Scope]
    names: dict[str, Scope]


class Outliner:
    def __init__(self, steps: list[Step], scopes: Scopes, weights: Weights, held: set[str], inputs: list[str], outputs: list[str], label, rank, sizes: Sizes):
        self.steps, self.scopes, self.label = steps, scopes, label
        self.parameters = weights.parameters
        self.held, self.inputs, self.outputs, self.rank = held, inputs, outputs, rank
        self.sizes = sizes
        self.lists = {x[:-1] for x in scopes.all if x and x[-1].isdigit()}
        self.layers: dict[Scope, Layer] = {}
        self.layer_at: dict[int, Scope] = {}
        self.weights: dict[Scope, str] = {}
        self.names: dict[str, Scope] = {}

    def run(self) -> Outline:
        for step in self.steps:
            step.scope = self._outside_list(step.scope)
        self._place_layers()
        self._place_weights()
        self._leave_empty_scopes()
        self._lift_shared()
        root = self._unit((), self.steps)
        self._ports(root)
        return Outline(root, self.layers, self.weights, self.layer_at, self.names)

    def _outside_list(self, scope: Scope) -> Scope:
        """A list of modules has no forward and no weights of its own: what is in it is of the module around it."""
        while scope in self.lists:
            scope = scope[:-1]
        return scope

    # --- layers and weights get their places ---

    def _place_layers(self) -> None:
        """A scope that holds one layer and nothing else is that layer; in others each layer gets a name of its own."""
        self._keep_names()
        inside = Counter(s.scope[:i] for s in self.steps for i in range(len(s.scope) + 1))
        alike = Counter((s.scope, _identity(s.layer)) for s in self.steps if s.layer)
        seen: dict[tuple, Scope] = {}
        for step in self.steps:
            if not step.layer:
                continue
            key = step.scope, _identity(step.layer)
            if key not in seen:
                whole = step.scope and inside[step.scope] == alike[key]
                seen[key] = step.scope if whole else self._free(step.scope, self._layer_name(step))
                self.layers[seen[key]] = step.layer
                self.lists |= {seen[key][:-1]} if seen[key][-1].isdigit() else set()
            self.layer_at[id(step)] = seen[key]
        for step in self.steps:
            if step.layer:
                path = self.layer_at[id(step)]
                step.word = step.word if path[-1].isdigit() or step.word != "x" else path[-1]
                if step.scope == path:
                    step.scope = self._outside_list(path[:-1])

    def _keep_names(self) -> None:
        """A table that belongs to a module which does more than look up (Gemma's scaled embedding) stays that module's own `weight`."""
        own = Counter(s.scope for s in self.steps)
        for step in self.steps:
            tensor = step.layer.refs["weight"].tensor if step.layer and step.layer.kind == "Embedding" else None
            if tensor and own[step.scope] > 1 and step.scope and "embed_" in f"{step.scope[-1]}_".lower():
                padding = step.layer.arguments.partition(", padding_idx")
                step.form, step.layer = f"F.embedding({{0}}, {{1}}{padding[1]}{padding[2]})", None
                step.inputs.append(tensor)
                self.held.add(tensor)

    def _layer_name(self, step: Step) -> str:
        ref = step.layer.refs["weight"]
        path = self.label(ref.tensor).split(".")
        if len(path) > 1 and not is_anonymous(self.label(ref.tensor)) and tuple(path[:-2]) == step.scope:
            return path[-2]
        return GENERIC[step.layer.kind]

    def _free(self, scope: Scope, name: str) -> Scope:
        path, k = (*scope, name), 1
        while path in self.layers or path in self.weights or path in self.scopes.all:
            k += 1
            path = (*scope, f"{name}_{k}")
        return path

    def _place_weights(self) -> None:
        """A weight outside of layers belongs where its name says, if all who use it are in there, else where they all are."""
        users: dict[str, list[Scope]] = {}
        for step in self.steps:
            for t in step.inputs:
                if t in self.held:
                    users.setdefault(t, []).append(step.scope)
        for tensor, scopes in users.items():
            common = tuple(x[0] for x in _while_equal(zip(*scopes))) if len(scopes) > 1 else scopes[0]
            *owner, name = self.label(tensor).split(".")
            if is_anonymous(self.label(tensor)) or not name.isidentifier() or not all(p.isidentifier() or p.isdigit() for p in owner):
                owner, name = list(common), "weight" if tensor in self.parameters else "table"
            elif not owner or tuple(owner) != common[: len(owner)]:
                owner = list(common)
            owner = self._outside_list(tuple(owner))
            path = self._free(tuple(owner), name) if (*owner, name) in self.scopes.all or (*owner, name) in self.weights else (*owner, name)
            self.weights[path] = tensor
            self.names[tensor] = path

    def _leave_empty_scopes(self) -> None:
        owning = {p[:i] for p in (*self.layers, *self.weights) for i in range(len(p))} | {()}
        for step in self.steps:
            while step.scope not in owning:
                step.scope = step.scope[:-1]

    def _lift_shared(self) -> None:
        """What the first of several like modules computes for all of them, without weights, moves out to the module around them."""
        made = {o: s for s in self.steps for o in s.outputs}
        users: dict[int, list[Step]] = {}
        for step in self.steps:
            for t in step.inputs:
                if t in made:
                    users.setdefault(id(made[t]), []).append(step)
        free: set[int] = set()
        for step in self.steps:
            element = _element(step.scope)
            if element and not step.layer and not any(t in self.held for t in step.inputs):
                inside = [made[t] for t in step.inputs if t in made and made[t].scope[: len(element)] == element]
                if all(id(m) in free for m in inside):
                    free.add(id(step))
        for step in reversed(self.steps):
            element = _element(step.scope)
            if id(step) in free and any(u.scope[: len(element)] != element for u in users.get(id(step), ())):
                step.scope = element[:-2]

    # --- units ---

    def _unit(self, path: Scope, steps: list[Step]) -> Unit:
        """The module at a path, from all steps in it."""
        parts: dict[Scope, list[Step]] = {}
        own: list[Step] = []
        for step in steps:
            if step.scope == path:
                own.append(step)
            else:
                parts.setdefault(self._unit_path(path, step.scope, steps), []).append(step)
        while True:
            broken = self._entangled(own, parts)
            if broken is None:
                break
            loose = parts.pop(broken)
            for step in loose:
                if step.scope == broken:
                    step.scope = path
                    own.append(step)
                else:
                    parts.setdefault(self._unit_path(broken, step.scope, loose), []).append(step)
        items = [*own, *(self._unit(p, found) for p, found in parts.items())]
        return Unit(path, _ordered(items))

    def _unit_path(self, path: Scope, scope: Scope, steps: list[Step]) -> Scope:
        """The unit below `path` that a scope belongs to: past lists, which have no forward of their own."""
        end = len(path) + 1
        while end < len(scope) and scope[end].isdigit():
            end += 1
        return scope[:end]

    def _entangled(self, own: list[Step], parts: dict[Scope, list[Step]]) -> Scope | None:
        """A part that cannot run in one go: what it needs depends on what it makes."""
        group = {id(s): ("own", k) for k, s in enumerate(own)} | {id(s): p for p, found in parts.items() for s in found}
        made = {o: s for s in [*own, *(s for found in parts.values() for s in found)] for o in s.outputs}
        needs: dict = {}
        for step in made.values():
            mine = group[id(step)]
            needs.setdefault(mine, set()).update(group[id(made[t])] for t in step.inputs if t in made and group[id(made[t])] != mine)
        done, waiting = set(), set(needs)
        while True:
            ready = {g for g in waiting if needs[g] <= done}
            if not ready:
                break
            done |= ready
            waiting -= ready
        cycle = [p for p in parts if p in waiting and _reaches(needs, p, waiting)]
        return max(cycle, key=lambda p: len(parts[p])) if cycle else None

    def _ports(self, root: Unit) -> None:
        """What each unit takes and gives."""
        users: dict[str, set[int]] = {}
        for step in root.steps():
            for t in step.inputs:
                users.setdefault(t, set()).add(id(step))
        for unit in root.units():
            inside = {id(s): s for s in unit.steps()}
            made = [o for s in inside.values() for o in s.outputs]
            used = dict.fromkeys(t for s in inside.values() for t in s.inputs)
            own = {t for t, p in self.names.items() if p[: len(unit.path)] == unit.path and len(p) > len(unit.path)}
            known = set(made)
            unit.inputs = sorted((t for t in used if t not in known and t not in own), key=self.rank)
            unit.outputs = sorted((t for t in made if t in self.outputs or users.get(t, set()) - inside.keys()), key=self.rank)
        root.inputs = self.inputs
        self._hand_down_sizes(root, [])

    def _hand_down_sizes(self, unit: Unit, above: list[Unit]) -> None:
        """A unit whose steps ask for a size that its arguments do not show gets a further argument, from the units around it."""
        made: list[str] = []
        for item in unit.items:
            for size in item.sizes if isinstance(item, Step) else ():
                if not is_constant(size.numbers) and not derive(self.sizes, size.numbers, unit.inputs) and not any(
                        axis_of(self.sizes, t, size.numbers) is not None for t in made):
                    self._hand_down(size.numbers, unit, above)
            made += filter(None, item.outputs)
        for item in unit.items:
            if isinstance(item, Unit):
                self._hand_down_sizes(item, [*above, unit])

    def _hand_down(self, numbers: Numbers, unit: Unit, above: list[Unit]) -> None:
        for k, outer in reversed(list(enumerate(above))):
            found = derive(self.sizes, numbers, outer.inputs)
            if found:
                for inner in [*above[k + 1 :], unit]:
                    inner.inputs += [t for t, _, _ in found.parts if t not in inner.inputs]
                return
        raise GraphError(f"a size of {numbers[0]} (with the inputs as analysed) is found in no input of the graph",
                         hint="export the model with dynamic axes, or report this graph")


def _identity(layer: Layer | None) -> tuple:
    return (layer.kind, *((k, r.tensor, r.transposed) for k, r in sorted(layer.refs.items()))) if layer else ()


def _while_equal(columns):
    for column in columns:
        if len(set(column)) > 1:
            return
        yield column


def _element(scope: Scope) -> Scope:
    """The innermost element of a list that a scope is in, or ()."""
    return next((scope[: i + 1] for i in reversed(range(len(scope))) if scope[i].isdigit()), ())


def _reaches(needs: dict, start, waiting: set) -> bool:
    """Is a group among those that it needs, in the end?"""
    seen, stack = set(), list(needs[start])
    while stack:
        g = stack.pop()
        if g == start:
            return True
        if g not in seen and g in waiting:
            seen.add(g)
            stack += needs[g]
    return False


def _ordered(items: list[Step | Unit]) -> list[Step | Unit]:
    """Each after what it needs; otherwise as in the graph."""
    made, needs, first = {}, {}, {}
    for item in items:
        inside = list(item.steps()) if isinstance(item, Unit) else [item]
        for s in inside:
            made |= dict.fromkeys(s.outputs, id(item))
        needs[id(item)] = {t for s in inside for t in s.inputs}
        first[id(item)] = min(s.order for s in inside)
    waiting, done, out = sorted(items, key=lambda i: first[id(i)]), set(), []
    while waiting:
        item = next(i for i in waiting if all(made[t] in done or made[t] == id(i) for t in needs[id(i)] if t in made))
        waiting.remove(item)
        done.add(id(item))
        out.append(item)
    return out
