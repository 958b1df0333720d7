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
        if method == "gate":
            _gate(branches, stack.blocks[here.block], position, out)
        else:
            trunk = branches.trunk(stack.blocks[here.block])
            for use in trunk.branches:
                out.changes |= {(position, zero): Change(0.0) for zero in branches.silence(use)}
            out.changes |= {(position, branches.plain(use)): Change(1.0) for use in trunk.gains}
            _pass_norms_on(branches, stack, places, position, trunk, out)
    for (position, (index, _)), _ in out.changes.items():
        if position >= 0 and index not in stack.blocks[places[position].block].nodes:
            raise MethodError("a weight that one block must change is read outside of it", node=branches.s.graph.by_index[index].label,
                              hint="use --depth-method gate")
    return out


def _gate(branches: Branches, block: Block, position: int, out: Silence) -> None:
    """One gate per branch; one for the whole block where norms stand on the stream, or its branches cannot be told apart."""
    try:
        trunk = branches.trunk(block)
    except MethodError:
        trunk = None
    if trunk is None or trunk.norms or trunk.gains:
        out.wrapped.add(position)
    else:
        out.gates[position] = residual_gates(branches.s, trunk)


def _pass_norms_on(branches: Branches, stack: Stack, places: list[Place], position: int, trunk: Trunk, out: Silence) -> None:
    """After-branch norms of one new block: all plain, but the last of a run of new blocks, which takes what the norm before the run had."""
    if not trunk.norms:
        return
    leaves = stack.blocks[places[position].block].leaves
    if branches.norm_behind(leaves) is None:  # only what a norm just made passes another one unchanged
        raise MethodError("a norm stands on the stream inside a block, and none at its end", node=branches.s.graph.makers[leaves].label,
                          hint="use --depth-method gate")
    out.eps = max([out.eps, *(n.eps for n in trunk.norms)])
    for norm in trunk.norms:
        out.changes |= _plain(position, norm)
    before = position - 1
    while before >= 0 and places[before].new:
        before -= 1
    held = branches.trunk(stack.blocks[places[before].block]).norms[0] if before >= 0 else _norm_in_front(branches, stack.blocks[0], trunk.norms[0])
    _refuse_read_elsewhere(branches, stack, held.y if before < 0 else stack.blocks[places[before].block].leaves)
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
    norm = branches.norm_behind(block.enters)
    if norm is None or (norm.kind, norm.gain is None, norm.offset is None) != (like.kind, like.gain is None, like.offset is None):
        maker = branches.s.graph.makers.get(block.enters)
        raise MethodError("norms come after the branches, and no such norm stands in front of the first block", node=maker.label if maker else None, hint=END)
    return norm


def _refuse_read_elsewhere(branches: Branches, stack: Stack, tensor: str) -> None:
    outputs = branches.s.graph.outputs
    if tensor in outputs and tensor != stack.final_output(outputs):
        raise MethodError(f"the states {tensor!r} are an output, and a block behind them would change their norm",
                          node=branches.s.graph.makers[tensor].label, hint="use --depth-method gate")
