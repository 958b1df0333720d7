"""Where new blocks go: the order of old and new blocks for a new number of layers."""

from __future__ import annotations

from dataclasses import dataclass

from .blocks import Stack
from .errors import SizeError, UsageError
from .request import Depth


@dataclass(frozen=True)
class Place:
    """One block of the grown stack: the old block it is, or is a copy of."""

    block: int
    new: bool


def wanted_layers(stacks: list[Stack], depth: Depth) -> dict[str, int]:
    """New number of layers by stack name.

    Raises:
        SizeError: there is no such stack, or the number shrinks.
    """
    out: dict[str, int] = {}
    for asked, count in depth.layers.items():
        found = stacks if asked == "layers" else [s for s in stacks if asked in (s.name, s.name.replace("_layers", ".layers"))]
        if asked == "layers":
            _check_alike(stacks, depth)
        if not found:
            names = ", ".join(f"{s.name} ({s.layers})" for s in stacks) or "none"
            what = "no repeated layers found" if not stacks else f"the model has no stack named {asked!r}"
            raise SizeError(what, hint=f"stacks of layers: {names}")
        for stack in found:
            if asked == "layers" != stack.name and stack.name in depth.layers:
                continue  # its own number is given too
            if count < stack.layers:
                raise SizeError(f"{stack.name} is {stack.layers} and cannot shrink to {count}", hint=f"ask for {stack.layers} or more")
            out[stack.name] = count
    return out


def _check_alike(stacks: list[Stack], depth: Depth) -> None:
    """One number for stages of different depths is hardly what was meant: SizeError that lists them."""
    open_ = [s for s in stacks if s.name not in depth.layers]
    if any("." in s.name for s in stacks) and len({s.layers for s in open_}) > 1:
        told = ", ".join(f"{s.name} ({s.layers})" for s in open_)
        raise SizeError(f"this model has several stacks of layers: {told}", hint=f"say which: {' or '.join(f'--set {s.name}=COUNT' for s in open_)}")


def place(stack: Stack, layers: int, depth: Depth) -> list[Place]:
    """The blocks of the grown stack in order; SizeError where the layers come in periods and the number does not fit."""
    added = layers - stack.layers
    if added % stack.period:
        low = layers - added % stack.period
        raise SizeError(f"{stack.name}: layers alternate with a period of {stack.period}, so {added} cannot be added to {stack.layers}",
                        hint=f"ask for {low} or {low + stack.period}" if low > stack.layers else f"ask for {low + stack.period}")
    count, old = added // stack.period, len(stack.blocks)
    if depth.placement == "stack":
        return [Place(k % old, k >= old) for k in range(old + count)]
    behind = _behind(stack, count, depth)
    out = [Place(0, True)] * behind.get(-1, 0)
    for k in range(old):
        out += [Place(k, False)] + [Place(k, True)] * behind.get(k, 0)
    return out


def _behind(stack: Stack, count: int, depth: Depth) -> dict[int, int]:
    """How many new blocks follow each old one; -1 is in front of all."""
    old, named = len(stack.blocks), depth.after()
    if depth.placement == "end":
        return {old - 1: count}
    if depth.placement == "start":
        return {-1: count}
    if depth.placement == "interleave":
        return {k: (k + 1) * count // old - k * count // old for k in range(old)}
    after = [_block_of(stack, layer) for layer in named]
    if count % len(after):
        low = stack.layers + count // len(after) * len(after) * stack.period
        raise UsageError(f"{count} new blocks cannot be shared evenly behind {len(after)} layers",
                         hint=f"ask for {low + len(after) * stack.period} layers, or name other layers")
    return {k: count // len(after) * after.count(k) for k in after}


def _block_of(stack: Stack, layer: int) -> int:
    block, inner = divmod(layer - stack.before, stack.period)
    if not 0 <= block < len(stack.blocks):
        last = stack.before + len(stack.blocks) * stack.period - 1
        raise UsageError(f"{stack.name} has no layer {layer} that repeats", hint=f"name layers from {stack.before} to {last}")
    if inner != stack.period - 1:
        good = stack.before + block * stack.period + stack.period - 1
        raise UsageError(f"{stack.name}: layers alternate with a period of {stack.period}; layer {layer} is inside one", hint=f"name layer {good}")
    return block
