"""What must be set in old and new blocks so that the new ones change nothing.

Norm before or around the branch: the last linear map of each branch is zero (LLaMA Pro, arXiv 2401.02415), never a norm's gain: a zero gain
before a gated branch starves it of gradient for ever. Norm after the branch: the norm in front of the new blocks becomes plain (gain 1,
offset 0), all norms of the new blocks too, and the last of them takes the old gain and offset; the norm of a normalised vector is itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .blocks import Block, Stack
from .branches import Branches, NormUse, Trunk, Use, residual_gates
from .errors import MethodError
from .placement import Place

END = "put new blocks elsewhere (--placement end), or use --depth-method gate"


@dataclass(frozen=True)
class Change:
    """What one use of a weight gets in one block: `value` everywhere, or the values that the use `like` of the source has."""

    value: float | None = None
    like: Use | None = None


@dataclass
class Silence:
    """Changes by (position, use), position -1 being outside of the stack; gates by position."""

    changes: dict[tuple[int, Use], Change] = field(default_factory=dict)
    gates: dict[int, list[Use]] = field(default_factory=dict)
    wrapped: set[int] = field(default_factory=set)  # positions gated as a whole: y = x + gate * (block(x) - x)
    eps: float = 0.0  # the largest epsilon of a norm that states pass twice


def silence(branches: Branches, stack: Stack, places: list[Place], method: str) -> Silence:
    """Decide for one stack.

    Raises:
        MethodError: a branch of it cannot be silenced.
    """
    out = Silence()
    if method == "stack":
        return out
    for position, here in enumerate(places):
        if not here.new:
            continue
        trunk = branches.trunk(stack.blocks[here.block])
        if method == "gate" and trunk.norms:
            out.wrapped.add(position)
        elif method == "gate":
            out.gates[position] = residual_gates(branches.s, trunk)
        else:
            for use in trunk.branches:
                out.changes |= {(position, zero): Change(0.0) for zero in branches.silence(use)}
            _pass_norms_on(branches, stack, places, position, trunk, out)
    return out


def _pass_norms_on(branches: Branches, stack: Stack, places: list[Place], position: int, trunk: Trunk, out: Silence) -> None:
    """After-branch norms of one new block: all plain, but the last of a run of new blocks, which takes what the norm before the run had."""
    if not trunk.norms:
        return
    out.eps = max([out.eps, *(n.eps for n in trunk.norms)])
    for norm in trunk.norms:
        out.changes |= _plain(position, norm)
    before = position - 1
    while before >= 0 and places[before].new:
        before -= 1
    held = branches.trunk(stack.blocks[places[before].block]).norms[0] if before >= 0 else _norm_in_front(branches, stack.blocks[0], trunk.norms[0])
    _refuse_read_elsewhere(branches, held.y if before < 0 else stack.blocks[places[before].block].leaves)
    out.changes |= _plain(before, held)
    if position + 1 == len(places) or not places[position + 1].new:
        last = trunk.norms[0]
        pairs = [(last.gain, held.gain), (last.offset, held.offset)]
        out.changes |= {(position, mine): Change(like=theirs) for mine, theirs in pairs if mine}


def _plain(position: int, norm: NormUse) -> dict[tuple[int, Use], Change]:
    uses = [(norm.gain, 1.0), (norm.offset, 0.0)]
    return {(position, use): Change(value) for use, value in uses if use}


def _norm_in_front(branches: Branches, block: Block, like: NormUse) -> NormUse:
    """The norm whose result the first block reads (that of the embeddings)."""
    norm = branches.norm_at(block.enters)
    if norm is None or (norm.kind, norm.gain is None, norm.offset is None) != (like.kind, like.gain is None, like.offset is None):
        maker = branches.s.graph.makers.get(block.enters)
        raise MethodError("norms come after the branches, and no such norm stands in front of the first block", node=maker.label if maker else None, hint=END)
    return norm


def _refuse_read_elsewhere(branches: Branches, tensor: str) -> None:
    if tensor in branches.s.graph.outputs:
        raise MethodError(f"the states {tensor!r} are an output, and a block behind them would change their norm",
                          node=branches.s.graph.makers[tensor].label, hint="use --depth-method gate")
