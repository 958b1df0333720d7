"""What a config asks of a model: sizes by the names of its parameters, numbers from its graph, and the couplings checked.

A size that the config cannot say (heads that do not fill hidden, norms with different epsilons) is refused here, with the sizes that fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from ...architecture import Architecture
from ...errors import SizeError
from ...roles import Roles
from . import readings
from .names import Names

NEGLIGIBLE = 1e-9  # a difference of epsilons that no variance feels (BERT's are 1e-12)
PLAIN = "or export without --format hf, which has no such limit"


@dataclass(frozen=True)
class Facts:
    """One model, to be asked by `families`.

    Attributes:
        retie: whether a head that was the embedding before a growth becomes it again. Exporters write such a matrix twice, and new columns
            that nobody reads differ; whether the function is the same then is a matter of trying.
        given: whether the user gives a config; scaled_rope: whether that says how rotary frequencies are scaled.
        tower: name of the part of a model that these facts are about; None: the whole.
    """

    roles: Roles
    architecture: Architecture
    names: Names
    retie: bool = True
    given: bool = False
    scaled_rope: bool = False
    tower: str | None = None

    def of(self, tower: str, embedding: str, query: str) -> Facts:
        """The facts of one of several towers (CLIP), its hidden size that of an embedding, its heads those of attention with as many queries.

        Raises:
            SizeError: it cannot be told which heads are the tower's.
        """
        names = Names({name: make for name, make in self.names.parameters.items() if f"{tower}." in f".{name}"})
        hidden, rows = names.size(embedding, 1), names.size(query)
        sizes = {size for size, wide in readings.head_sizes(self.roles) if wide == rows}
        if len(sizes) != 1:
            raise SizeError(f"{tower} has {rows} rows of queries, in heads of {' or '.join(map(str, sorted(sizes))) or 'unknown size'}",
                            hint=f"give the towers heads of one size, {PLAIN}")
        size = sizes.pop()
        return replace(self, names=names, tower=tower, architecture=replace(self.architecture, hidden=hidden, heads=rows // size, head_dim=size))

    @property
    def hidden(self) -> int:
        return self.architecture.hidden

    @property
    def head_dim(self) -> int | None:
        return self.architecture.head_dim

    @cached_property
    def output(self) -> tuple[int, bool]:
        """Rank of the first output that is no cache, and whether its last axis counts words."""
        s = self.roles.structure
        caches = self.roles.caches(s.graph.outputs)
        first = next((o for o in s.graph.outputs if o not in caches), s.graph.outputs[0])
        dims = s.dims[first]
        return len(dims), bool(dims and self.roles.leaves_of("vocab") & set(s.leaves(dims[-1])))

    def size(self, *ends: str, axis: int = 0) -> int | None:
        """The size of the parameters of the first of these names that there is; SizeError where layers differ."""
        return next((size for end in ends if (size := self.names.size(end, axis)) is not None), None)

    def has(self, end: str) -> bool:
        return self.names.has(end)

    def tied(self, embedding: str, head: str) -> bool:
        """Are embedding and head one parameter?"""
        found = self.names.alike(embedding, head)
        return found == "one" or (found == "kept" and self.retie)

    def layers(self, pattern: str) -> int:
        return self.names.layers(pattern)

    def heads(self, query: str) -> int:
        """Query heads, by the rows of the query projections [heads · head_dim, hidden]."""
        return self._heads(query, self.size(query))

    def kv_heads(self, key: str) -> int:
        return self._heads(key, self.size(key))

    def _heads(self, end: str, rows: int | None) -> int:
        if not rows or not self.head_dim or rows % self.head_dim:
            raise SizeError(f"{rows} rows of {end} are no whole number of heads of {self.head_dim}", hint=f"grow heads and head_dim as roles, {PLAIN}")
        return rows // self.head_dim

    def coupled_heads(self) -> int:
        """Heads of a family without a head_dim of its own.

        Raises:
            SizeError: hidden is not heads · head_dim.
        """
        heads, head_dim = self.architecture.heads or 1, self.head_dim or self.hidden
        uneven = not self.tower and any(len(self.roles.roles[n].sizes) > 1 for n in ("heads", "head_dim") if n in self.roles.roles)
        if heads * head_dim != self.hidden or uneven:
            near = sorted({max(self.hidden // head_dim, 1), -(-self.hidden // head_dim), heads})
            fits = " or ".join(f"hidden {n * head_dim} with {n} heads" for n in near)
            whose = f"the config of {self.tower}" if self.tower else "this config"
            raise SizeError(f"{whose} has no head size: hidden must be heads · head_dim, and {self.hidden} is not {heads} · {head_dim}",
                            hint=f"grow hidden and heads together (heads of {head_dim}: {fits}), {PLAIN}")
        return heads

    @cached_property
    def epsilon(self) -> float:
        """The one epsilon of all norms.

        Raises:
            SizeError: they differ; the message names them.
        """
        found = readings.epsilons(self.roles, self.hidden if self.tower else None)
        groups: dict[float, list[str]] = {}
        for label, eps in found:
            groups.setdefault(next((e for e in groups if abs(e - eps) <= max(1e-5 * e, NEGLIGIBLE)), eps), []).append(label)
        if len(groups) > 1:
            told = "; ".join(f"{eps:g} in {', '.join(labels[:3])}{' ...' if len(labels) > 3 else ''}" for eps, labels in groups.items())
            raise SizeError(f"the config has one epsilon for all norms, and the graph has several: {told}",
                            hint=f"grow hidden by a whole multiple with --method copy, which keeps every epsilon, {PLAIN}")
        return max(groups, key=lambda eps: len(groups[eps]), default=1e-5)

    def activation(self, tanh: str = "gelu_pytorch_tanh") -> str | None:
        """By its name in the library; it has several for the tanh form of GELU."""
        found = readings.activation(self.roles)
        return tanh if found == "gelu_tanh" else found

    @cached_property
    def scales(self) -> list[float]:
        return readings.attention_scales(self.roles)

    @cached_property
    def embedding_factor(self) -> float:
        return readings.embedding_factor(self.roles)

    @cached_property
    def window(self) -> int | None:
        return readings.window(self.roles)

    def rope(self) -> dict | None:
        """Rotary parameters of a config.

        Raises:
            SizeError: the frequencies are no powers of one base.
        """
        found = None if self.scaled_rope else readings.frequencies(self.roles)
        theta = None if found is None else readings.fit_theta(found, readings.rounding(self.roles))
        if found is not None and theta is None:
            listed = ", ".join(f"{f:.3g}" for f in found[:8]) + " ..." * (len(found) > 8)
            raise SizeError(f"the rotary frequencies are no powers of one base, which is all that a plain config says: {listed}",
                            hint="grow head_dim with --method pad, which continues the series (copies repeat it), or give --like DIR if the config "
                                 f"of the source scales them, {PLAIN}")
        return None if theta is None else {"rope_type": "default", "rope_theta": theta}
