"""Decide what every grown part holds: demands go backwards from the operators that have one, until weights satisfy them.

A demand is `zero`, `mean` or `copy`; no demand means `free` (nobody may read it, so it is random and breaks symmetry). A norm wants
its input filled with the mean (LayerNorm) or zero (RMSNorm); a contraction wants zero on one of its sides. If padding leads to
a contradiction, copies or the near method are tried, as the method allows. Table and proofs: docs/how-it-works.md.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from .flow import Flow, Relation
from .graph import Node
from .layerscale import fits, gain_of
from .roles import NORM_KINDS
from .target import Target
from .ties import Dim

CENTRED = ("layer norm", "centre")  # they take the mean away
GIVEN = "given"  # new entries are numbers that a demand elsewhere decides


@dataclass(frozen=True)
class Conflict:
    """Why a demand cannot be met: a value, not an exception, so that the next method can be tried."""

    reason: str
    node: Node | None


@dataclass
class Solution:
    """What the classes of one dim hold.

    Attributes:
        mode: "pad", "near" or "copy".
        need: class -> zero | mean | copy; classes not named are free.
        shares: classes of weights whose copies must sum to the old entry.
        halve: contractions in which copies meet copies, so that one side must be divided by the number of copies.
        weighted: class -> the gains (weight tensor ids) whose products with it must be the mean (mode "pad", see `layerscale`).
        near: the gains of norms behind which only a stand-in for the mean is possible (mode "near", see `standin`).
    """

    dim: Dim
    mode: str
    need: dict[int, str] = field(default_factory=dict)
    shares: set[int] = field(default_factory=set)
    halve: list[Relation] = field(default_factory=list)
    near: list[Relation] = field(default_factory=list)
    weighted: dict[int, tuple[str, ...]] = field(default_factory=dict)


class Solver:
    """Solves one dim at one mode. Classes of different dims never meet in a relation."""

    def __init__(self, flow: Flow, d: Dim, relations: list[Relation], mode: str):
        self.flow, self.relations, self.mode = flow, relations, mode
        self.solution = Solution(d, mode)
        self.need = self.solution.need
        self.through: dict[str, tuple[str, ...]] = {"mean": ()}  # means by weights that gains between a branch and the stream ask for
        self.makers: dict[int, list[Relation]] = defaultdict(list)
        self.users: dict[int, list[Relation]] = defaultdict(list)
        for r in relations:
            for c in r.outs:
                self.makers[flow.find(c)].append(r)
            for c in r.ins:
                self.users[flow.find(c)].append(r)
        self.alike: dict[int, set[int]] = defaultdict(set)
        for classes in flow.one_fill:
            for c in classes:
                self.alike[flow.find(c)] |= set(map(flow.find, classes))

    def ins(self, r: Relation) -> list[int]:
        return [self.flow.find(c) for c in r.ins]

    def solve(self) -> Solution | Conflict:
        for r in self.relations:
            problem = self._first_demand(r)
            if problem:
                return problem
        contractions = [r for r in self.relations if r.kind == "contract"]
        for r in contractions:
            problem = self._share(r) if self.mode == "copy" else self._zero_normed(r)
            if problem:
                return problem
        if self.mode != "copy":
            for r in sorted(contractions, key=lambda r: any(self._pure_weight(c) for c in self.ins(r))):
                problem = self._zero_one_side(r)
                if problem:
                    return problem
        return self._weighted() or self.solution

    def _weighted(self) -> Conflict | None:
        """Take the names of gains out of what is needed: `mean` by weights, and gains whose new entries are given."""
        for c, fill in list(self.need.items()):
            if fill == GIVEN:
                del self.need[c]
            elif self.through.get(fill):
                self.need[c], self.solution.weighted[c] = "mean", self.through[fill]
                if not fits(self.flow, c):
                    return Conflict("a branch ends with a gain along this axis, and what it scales stands in an axis with other parts", None)
        return None

    def _first_demand(self, r: Relation) -> Conflict | None:
        """Demands that operators have of themselves."""
        if r.partial and self.mode != "copy" and r.kind in (*CENTRED, "mean"):
            return Conflict(f"{r.node.op} takes the mean along an axis of which only a part would grow", r.node)
        if r.kind in (*CENTRED, "rms norm"):
            return self.require(self.ins(r)[0], "copy" if self.mode == "copy" else "mean" if r.kind in CENTRED else "zero", r.node)
        if r.kind in ("sum", "mean"):
            if self.mode == "copy":
                return self.require(self.ins(r)[0], "copy", r.node) if r.kind == "mean" else Conflict("a sum over copies would be multiplied", r.node)
            return self.require(self.ins(r)[0], "zero" if r.kind == "sum" else "mean", r.node)
        if r.kind in ("rows", "put", "choose", "one hot") and r.partial:
            return Conflict(f"{r.node.op} finds entries by their number, so that none can be put between them", r.node)
        if r.kind == "one hot":
            return self.require(r.outs[0], "zero", r.node)
        if r.kind == "range":
            return self.require(r.outs[0] if r.outs else self.ins(r)[0], "copy" if self.mode == "copy" else "zero", r.node)
        if r.kind == "refuse" or (r.kind in ("choose", "softmax") and (self.mode == "copy" or r.node.index not in self.flow.routed)):
            return Conflict(f"nothing can be appended along this axis of {r.node.op}", r.node)
        if r.kind == "copies only":
            if self.mode != "copy":
                return Conflict(f"{r.node.op} is not defined for every value that a new entry may have", r.node)
            return next(filter(None, (self.require(c, "copy", r.node) for c in self.ins(r))), None)
        return None

    def require(self, c: int, fill: str, node: Node | None) -> Conflict | None:
        """Demand a fill of a class and of everything that makes it; on a conflict nothing has changed."""
        trail: list[int] = []
        problem = self._require(c, fill, node, trail)
        if problem:
            for done in trail:
                del self.need[done]
        return problem

    def _require(self, c: int, fill: str, node: Node | None, trail: list[int]) -> Conflict | None:
        waiting = [(c, fill)]
        while waiting:
            c, fill = waiting.pop()
            c = self.flow.find(c)
            if c in self.need:
                if self.need[c] != fill:
                    return Conflict(f"one place wants new entries to be {self.need[c]}, another {fill}", node)
                continue
            self.need[c] = fill
            trail.append(c)
            waiting += [(other, fill) for other in self.alike[c] - {c}]
            for r in self.makers[c]:
                step = self._demand_of(r, fill, trail)
                if isinstance(step, Conflict):
                    return step
                waiting += step
        return None

    def _demand_of(self, r: Relation, fill: str, trail: list[int]) -> list[tuple[int, str]] | Conflict:
        """What an operator's inputs must hold so that its output holds `fill`."""
        ins = self.ins(r)
        if r.kind == "put":
            return [(c, fill) for c in ins] if fill == "zero" else Conflict(f"{r.node.op} changes old entries only", r.node)
        if fill == "copy":
            return [(c, "copy") for c in ins]
        if r.kind == "zeros" or (r.kind == "alike" and fill == "mean"):
            return []  # what the operator makes is that already
        if fill == "zero" and r.node.index in self.flow.routed:
            return []  # a router gives nothing to new experts
        if r.kind == "mul" and fill == "zero":
            return self._mul_zero(r, ins, trail)
        if r.kind == "mul" and fill == "mean" and self.mode == "near" and any(self._bare_norm(c, "layer norm") for c in ins):
            self.solution.near.append(r)
            return []
        if r.kind == "mul" and fill in self.through and self.mode == "pad":
            return self._scaled_mean(r, fill, trail)
        if r.kind == "shift" and fill == "mean":
            return [(c, "mean") for c in ins]
        if r.kind == "one hot" and fill == "zero":
            return []
        if r.kind == "scaled" and fill == "zero":
            return [(ins[0], "zero")]
        if r.kind in ("f(0)=0", "range") and fill == "zero":
            return [(c, "zero") for c in ins]
        if r.kind == "select" and fill == "zero":
            return [(c, "zero") for c, slot in zip(ins, r.slots) if slot]
        if r.kind in (*CENTRED, "rms norm") and self.mode != "copy" and (fill == "zero" or (fill == "mean" and r.kind in CENTRED)):
            return []  # its input already holds what makes it zero, which is the mean behind a LayerNorm
        return Conflict(f"new entries behind {r.node.op} cannot be {fill}", r.node)

    def _scaled_mean(self, r: Relation, fill: str, trail: list[int]) -> list | Conflict:
        """A gain of its own at the end of a branch: weighted means before it give the mean behind it."""
        found, refused = gain_of(self.flow, r), Conflict(f"new entries behind {r.node.op} cannot be mean", r.node)
        attempt: list[int] = []
        if not found or self.need.get(found[1], GIVEN) != GIVEN:
            return refused
        before = f"{fill} before {found[0]!r}"
        self.through[before] = (*self.through[fill], found[0])
        if self._require(found[2], before, r.node, attempt) is None:
            attempt += [] if found[1] in self.need else [found[1]]
            self.need[found[1]] = GIVEN
            trail += attempt
            return []
        for done in attempt:
            del self.need[done]
        return refused

    def _bare_norm(self, c: int, *kinds: str) -> bool:
        """Does nothing but norms make a class? What is added to their output, or stands in its place before a first step, need not be zero."""
        makers = self.makers[c] if self.mode != "copy" and c not in self.flow.held else []
        return bool(makers) and all(r.kind in (kinds or NORM_KINDS) for r in makers)

    def _mul_zero(self, r: Relation, ins: list[int], trail: list[int]) -> list | Conflict:
        """A product is zero where either factor is; take the one that is zero already, or can be."""
        if any(self.need.get(c) == "zero" or self._bare_norm(c) for c in ins):
            return []
        for c in sorted(self._cheap_first(ins), key=lambda c: c in self.flow.turning):  # queries and keys share such a table, and one of them must stay alive
            attempt: list[int] = []
            if self._require(c, "zero", r.node, attempt) is None:
                trail += attempt
                return []
            for done in attempt:
                del self.need[done]
        return Conflict("neither factor of a product can be zero in the new part", r.node)

    def _cheap_first(self, classes: list[int]) -> list[int]:
        """What a router gives to new experts is zero already; their weights need not be, so that they work once they are chosen."""
        return sorted(classes, key=self._costs) if self.flow.routed else classes

    def _costs(self, c: int) -> bool:
        """Would new entries of a weight have to be zero for this class to be?"""
        attempt: list[int] = []
        problem = self._require(c, "zero", None, attempt)
        for done in attempt:
            del self.need[done]
        return problem is not None or bool(set(attempt) & self.flow.weight_classes)

    def _pure_weight(self, c: int) -> bool:
        """A class that only contractions read: the reading side of linear maps."""
        return not self.makers[c] and all(r.kind == "contract" for r in self.users[c]) and c in self.flow.weight_classes

    def _only_fed(self, c: int) -> bool:
        """Nothing in this graph makes it (keys of an encoder, from a cache): better not to rely on what it holds."""
        return c in self.flow.fed and not self.makers[c]

    def _normed(self, c: int, seen: set[int] | None = None) -> bool:
        """Does a norm along this dim lie upstream?"""
        seen = set() if seen is None else seen
        if c in seen:
            return False
        seen.add(c)
        return any(r.kind in NORM_KINDS or any(self._normed(i, seen) for i in self.ins(r)) for r in self.makers[c])

    def _zero_normed(self, r: Relation) -> None:
        """What a norm made is zero already unless its offset says otherwise: then its readers may be free."""
        for c in self.ins(r):
            if self._normed(c):
                self.require(c, "zero", r.node)

    def _zero_one_side(self, r: Relation) -> Conflict | None:
        ins = self.ins(r)[::-1]
        if any(self.need.get(c) == "zero" for c in ins):
            return None
        order = self._cheap_first(sorted(ins, key=lambda c: (not self._pure_weight(c), self._only_fed(c))))
        problems = []
        for c in order:
            problems.append(self.require(c, "zero", r.node))
            if problems[-1] is None:
                return None
        return problems[-1]

    def _share(self, r: Relation) -> Conflict | None:
        if len(r.ins) != 2:
            return Conflict(f"copies would meet in a product of {len(r.ins)} factors", r.node)
        a, b = self.ins(r)
        pure = [c for c in (b, a) if self._pure_weight(c)]
        if pure:
            self.solution.shares.add(pure[0])
            return self.require(a if pure[0] == b else b, "copy", r.node)
        self.solution.halve.append(r)
        return self.require(a, "copy", r.node) or self.require(b, "copy", r.node)


def has_norm(relations: list[Relation]) -> bool:
    return any(r.kind in NORM_KINDS for r in relations)


def solve_dim(flow: Flow, d: Dim, relations: list[Relation], target: Target, method: str) -> Solution | Conflict:
    """Try the modes that a method allows, best first.

    Args:
        method: auto | pad | copy.
        target: new sizes; copies through a norm need a whole multiple of the old one, all along the axis.
    """
    new = target.sizes[d]
    whole = d.size > 0 and new % d.size == 0
    modes = {"auto": ["pad", *(["copy"] if whole else []), "near"], "pad": ["pad", "near"], "copy": ["copy"]}[method]
    first: Conflict | None = None
    for mode in modes:
        found = Solver(flow, d, relations, mode).solve()
        if isinstance(found, Solution) and mode == "copy" and not whole and (has_norm(relations) or found.halve):
            found = Conflict(f"copies of {d.size} entries fill {new} unevenly, which shifts the statistics of a norm", None)
        if isinstance(found, Solution) and any(not _alike(flow, target, r) for r in found.halve):
            found = Conflict("parts of the axis would be copied differently often", found.halve[0].node)
        if isinstance(found, Solution):
            return found
        first = found if first is None or mode == "near" else first  # near asks for least: what stops it stops all
    return first


def _alike(flow: Flow, target: Target, r: Relation) -> bool:
    """Do all parts of a contracted axis grow by one factor, so that one number undoes the copies?"""
    ties = flow.structure.nodes[r.node.index]
    along = [leaf for name, kind in ties.rule.fills.items() if kind == "contract" for leaf in flow.structure.leaves(ties.names[name])]
    return len({target.size(leaf) / leaf.size for leaf in along}) == 1
