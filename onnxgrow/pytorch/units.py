"""Modules with a forward: which steps run in which, in what order, and what each takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..errors import GraphError
from .derive import axis_of, derive
from .sizes import Numbers, Sizes, is_constant
from .steps import Scope, Step


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


class Grouping:
    """Makes units of steps by their scopes.

    Args:
        names: weight outside of layers -> its path.
        inputs, outputs: of the graph.
        rank: in which order a unit takes and gives tensors.
    """

    def __init__(self, names: dict[str, Scope], inputs: list[str], outputs: list[str], rank: Callable[[str], int], sizes: Sizes):
        self.names, self.inputs, self.outputs, self.rank, self.sizes = names, inputs, outputs, rank, sizes

    def run(self, steps: list[Step]) -> Unit:
        root = self._unit((), steps)
        self._ports(root)
        self._hand_down_sizes(root, [])
        return root

    def _unit(self, path: Scope, steps: list[Step]) -> Unit:
        """The module at a path, from all steps in it."""
        parts: dict[Scope, list[Step]] = {}
        own: list[Step] = []
        for step in steps:
            if step.scope == path:
                own.append(step)
            else:
                parts.setdefault(_unit_path(path, step.scope), []).append(step)
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
                    parts.setdefault(_unit_path(broken, step.scope), []).append(step)
        items = [*own, *(self._unit(p, found) for p, found in parts.items())]
        return Unit(path, _ordered(items))

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


def _unit_path(path: Scope, scope: Scope) -> Scope:
    """The unit below `path` that a scope belongs to: past lists, which have no forward of their own."""
    end = len(path) + 1
    while end < len(scope) and scope[end].isdigit():
        end += 1
    return scope[:end]


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
