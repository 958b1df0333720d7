"""From steps to modules: which layer is an attribute of which module, and which steps are the forward of which.

The tree follows the scopes that the exporter left. A module whose steps cannot be run in one go (something outside runs in between) gives
its steps to the module around it, and one without weights does the same: it needs no class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..modules import is_anonymous
from .identifiers import is_attribute
from .scopes import Scopes, while_equal
from .steps import Layer, Scope, Step
from .units import Unit

GENERIC = {"Linear": "linear", "Embedding": "embedding", "LayerNorm": "norm", "RMSNorm": "norm", "Conv1d": "conv", "Conv2d": "conv", "Conv3d": "conv"}


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
    """Gives every layer and weight its place in the tree.

    Args:
        steps: what is written; their scopes change.
        held: weights that steps read outside of layers.
        label: name in the file of a weight's tensor id.
    """

    def __init__(self, steps: list[Step], scopes: Scopes, parameters: frozenset[str], held: set[str], label: Callable[[str | None], str]):
        self.steps, self.scopes, self.parameters, self.held, self.label = steps, scopes, parameters, held, label
        self.lists = {x[:-1] for x in scopes.all if x and x[-1].isdigit()}
        self.layers: dict[Scope, Layer] = {}
        self.layer_at: dict[int, Scope] = {}
        self.weights: dict[Scope, str] = {}
        self.names: dict[str, Scope] = {}

    def run(self, group: Callable[[list[Step], dict[str, Scope]], Unit]) -> Outline:
        """The tree; `group` makes units of the steps, given the paths of weights outside of layers."""
        for step in self.steps:
            step.scope = self._outside_list(step.scope)
        self._place_layers()
        self._place_weights()
        self._leave_empty_scopes()
        self._lift_shared()
        return Outline(group(self.steps, self.names), self.layers, self.weights, self.layer_at, self.names)

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
        if len(path) > 1 and is_attribute(path[-2]) and not is_anonymous(self.label(ref.tensor)) and tuple(path[:-2]) == step.scope:
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
            common = tuple(x[0] for x in while_equal(zip(*scopes))) if len(scopes) > 1 else scopes[0]
            *owner, name = self.label(tensor).split(".")
            if is_anonymous(self.label(tensor)) or name.isdigit() or not all(map(is_attribute, (*owner, name))):
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
            while step.scope not in owning or step.scope in self.lists:
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


def _identity(layer: Layer | None) -> tuple:
    return (layer.kind, *((k, r.tensor, r.transposed) for k, r in sorted(layer.refs.items()))) if layer else ()


def _element(scope: Scope) -> Scope:
    """The innermost element of a list that a scope is in, or ()."""
    return next((scope[: i + 1] for i in reversed(range(len(scope))) if scope[i].isdigit()), ())
