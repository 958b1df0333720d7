"""New words: what their rows and head columns start from, and the limits that the graph itself puts on ids.

Nothing of the old function depends on them, so this is about a good start only. A new row of a table is the mean of the old ones and a little
noise, that new words may part in training; it also holds whatever a growth of its other axis asks of old rows (a mean, zeros, copies).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .axismap import Draw, Fill
from .dequantize import FIRST
from .errors import MethodError
from .inputs import readers
from .recipe import sample_std
from .repairs import Edits
from .request import Request
from .roles import FLOATS, QUANTIZED, Roles
from .structure import Structure
from .target import Target
from .ties import Dim, find
from .vocabulary import is_copy

NOISE = 0.02  # deviation of the noise beside a mean, as a part of the deviation of the old entries
LIMITS = {"Clip": -1, "Min": -1, "LessOrEqual": -1, "Greater": -1, "Less": 0, "GreaterOrEqual": 0, "Mod": 0, "Add": 0}  # limit - number of words
NO_ROOM = "more words change every probability, and one of them may win: export the model with logits as its output"
LARGER = "a softmax over more words has a larger denominator: old probabilities shrink by what new words take (validate measures it)"

STARTS = {"mean": f"the mean of the old rows, and noise of {NOISE:.0%} of their deviation", "zero": "zero",
          "random": "noise of the deviation of the old rows"}


@dataclass
class Words:
    """What new entries along the vocabulary hold.

    Attributes:
        dims: atomic dims that count words and grow.
        starts: weight tensor id -> a Draw, or Fill.ZERO; a weight that is not named is filled like any other.
    """

    dims: frozenset[Dim] = frozenset()
    starts: dict[str, Draw | Fill] = field(default_factory=dict)

    def fill(self, tensor: str, d: Dim) -> str | None:
        """zero | drawn, for one weight; None where words have no say."""
        start = self.starts.get(tensor) if d in self.dims else None
        return None if start is None else "zero" if start == Fill.ZERO else "drawn"

    def draw(self, tensor: str) -> Draw | None:
        start = self.starts.get(tensor)
        return start if isinstance(start, Draw) else None


def find_words(roles: Roles, target: Target, edits: Edits, request: Request) -> Words:
    """Decide how new words start; of a large weight only a sample is read, to know its deviation."""
    s, dims = roles.structure, frozenset(d for d in target.sizes if d in word_leaves(roles))
    words, matrices = Words(dims), {}
    for tensor in s.graph.weights if dims else ():
        long = [d for d in s.dims.get(tensor, ()) if d.size > 1]
        if not any(set(s.leaves(d)) & dims for d in long) or not s.graph.users.get(tensor):
            continue
        if s.graph.weight_type(tensor) in QUANTIZED and len(long) > 1 and request.vocab_init != "random":
            raise MethodError(f"new words start from a mean or zero, and {s.graph.weights[tensor]!r} is quantized",
                              node=s.graph.users[tensor][0][0].label, hint=f"{FIRST}, or use --vocab-init random")
        if s.graph.weight_type(tensor) not in FLOATS:
            continue
        if len(long) > 1:
            first = matrices.setdefault(next((t for t in matrices if is_copy(s.graph.array(t), s.graph.array(tensor))), tensor), tensor)
            words.starts[tensor] = _start(s, first, abs(edits.scales.get(tensor, (1.0, 0.0))[0]), request)
        elif request.vocab_init == "mean" and np.isfinite(s.graph.array(tensor)).all():
            words.starts[tensor] = Draw(True, 0.0, s.graph.weights[tensor])  # a bias; a forbidden word's is -inf
    return words


def _start(s: Structure, tensor: str, scale: float, request: Request) -> Draw | Fill:
    """How new rows start in a matrix or, with the same numbers, in a copy of it."""
    if request.vocab_init == "zero":
        return Fill.ZERO
    std = sample_std(s.graph.array(tensor).reshape(-1)) * scale
    if request.vocab_init == "mean":
        return Draw(True, NOISE * std, s.graph.weights[tensor])
    return Draw(False, std if request.init_std is None else request.init_std, s.graph.weights[tensor])


def word_leaves(roles: Roles) -> set[Dim]:
    """Atomic dims that count the words of any vocabulary."""
    return roles.leaves_of("vocab", *(name for name in roles.roles if name.startswith("table.")))


def raise_limits(roles: Roles, target: Target, edits: Edits) -> None:
    """Ids that the graph clips, wraps or compares at the number of words get the new number."""
    s = roles.structure
    for rows, source in _indexed(roles, target):
        for node, slot, _ in readers(s, source):
            other = 1 - slot if node.op != "Clip" else 2
            limit = s.walk.value(node, other) if node.op in LIMITS and other < len(node.inputs) else None
            if limit is not None and limit.size == 1 and limit.dtype.kind in "iu" and int(limit.ravel()[0]) == rows.size + LIMITS[node.op]:
                new = target.size(rows) + LIMITS[node.op]
                edits.constants[node.index, other] = np.full_like(limit, new)
                edits.reasons.append(f"{node.label}: limit of ids {int(limit.ravel()[0])} -> {new}")


def _indexed(roles: Roles, target: Target) -> Iterator[tuple[Dim, str]]:
    """(rows of a vocabulary that grows, the graph input that names them)."""
    leaves = word_leaves(roles)
    for table in roles.tables:
        if table.source and find(table.rows) in target.sizes and find(table.rows) in leaves:
            yield find(table.rows), table.source


def grown_logits(roles: Roles, target: Target) -> list[str]:
    """Graph outputs with an entry for each word, of a vocabulary that grows."""
    s, dims = roles.structure, word_leaves(roles) & target.sizes.keys()
    return [o for o in s.graph.outputs if s.dims.get(o) and set(s.leaves(s.dims[o][-1])) & dims]


def reasons(roles: Roles, target: Target) -> tuple[str, ...]:
    """What a certificate says about more words."""
    return (LARGER,) if grown_logits(roles, target) else ()


def notes(roles: Roles, request: Request) -> list[str]:
    """What a plan tells about the number of words."""
    if "vocab" not in request.sizes:
        return []
    s, size, leaves = roles.structure, roles.size("vocab"), word_leaves(roles)
    grown = size is not None and request.sizes["vocab"] > size
    out = [f"new words: {STARTS[request.vocab_init]} (--vocab-init)"] if grown else []
    out += [f"vocab is rounded up to a multiple of {request.pad_vocab_to}: {request.sizes['vocab']}"] if request.pad_vocab_to else []
    for o in s.graph.outputs:
        for axis, d in enumerate(s.dims.get(o, ())):
            if d.size == size and not s.runtime[o][axis] and not set(s.leaves(d)) & leaves:
                out.append(f"{o} has {size} entries too, but not for each token: labels, not words. They stay (--set grows them)")
    return out
