"""What the user asked for: one record, kept in the metadata of the grown file, from which the same growth can be planned again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .errors import UsageError

SIZES = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "positions", "experts", "layers", "encoder_layers", "decoder_layers")
METHODS = ("auto", "pad", "copy", "naive")
DEPTH_METHODS = ("identity", "gate", "stack")
PLACEMENTS = ("interleave", "end", "start", "stack")  # or after:3,7
BLOCK_INITS = ("copy", "random")
VOCAB_INITS = ("mean", "zero", "random")


@dataclass(frozen=True)
class Depth:
    """New numbers of layers.

    Args:
        layers: number of layers by stack: `layers` for every stack, `encoder_layers`, `decoder_layers`, or `NAME.layers`.
        method: identity, new blocks have zero last linear maps; gate, a zero scalar on each branch; stack, plain copies (not preserved).
        placement: interleave | end | start | stack | after:3,7 (layers counted from 0).
        block_init: copy, new blocks start as their neighbour; random.
    """

    layers: dict[str, int]
    method: str = "identity"
    placement: str = "interleave"
    block_init: str = "copy"

    def __post_init__(self):
        _one_of("depth_method", self.method, DEPTH_METHODS)
        _one_of("block_init", self.block_init, BLOCK_INITS)
        self.after()

    def after(self) -> list[int]:
        """The layers of a placement like after:3,7; none for the others."""
        kind, colon, numbers = self.placement.partition(":")
        if not colon:
            _one_of("placement", kind, PLACEMENTS)
            return []
        if kind != "after" or not all(n.strip().isdigit() for n in numbers.split(",")):
            raise UsageError(f"no placement {self.placement!r}", hint=f"one of: {', '.join(PLACEMENTS)}, or after:3,7 with layers counted from 0")
        return [int(n) for n in numbers.split(",")]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Args:
        sizes: new size by role or dim name (see `Roles.roles`).
        only_hidden: switches the family's coupling off.
        method: auto | pad | copy | naive.
        init_std: standard deviation of free parts; None: that of the old tensor.
        seed: of all random numbers.
        wake: standard deviation of noise for new parts that would be zero on both sides and could never learn (near, not exact).
        depth: new numbers of layers, or None.
        vocab_init: what new rows of the embedding hold: mean | zero | random.
        pad_vocab_to: the multiple that the vocabulary was rounded up to, or None; its size is among `sizes`.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    only_hidden: bool = False
    method: str = "auto"
    init_std: float | None = None
    seed: int = 0
    wake: float | None = None
    depth: Depth | None = None
    vocab_init: str = "mean"
    pad_vocab_to: int | None = None

    def __post_init__(self):
        _one_of("method", self.method, METHODS)
        _one_of("vocab_init", self.vocab_init, VOCAB_INITS)

    def record(self, **more) -> str:
        """The request as JSON text, with more entries beside it."""
        return json.dumps(asdict(self) | more, sort_keys=True)

    @classmethod
    def from_record(cls, text: str) -> Request:
        """The request behind the text that `record` made; entries that are none of its own are passed over."""
        known = {name: value for name, value in json.loads(text).items() if name in cls.__dataclass_fields__}
        depth = known.pop("depth", None)
        return cls(**known, depth=Depth(**depth) if depth else None)


def in_order(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes that have an option of their own first, as they come in SIZES; the others by name."""
    return dict(sorted(sizes.items(), key=lambda item: (SIZES.index(item[0]) if item[0] in SIZES else len(SIZES), item[0])))


def once(sizes: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Both requests as one; UsageError where they ask for one name twice."""
    for name in sizes.keys() & more.keys():
        if sizes[name] != more[name]:
            raise UsageError(f"{name} is asked for twice: {sizes[name]} and {more[name]}", hint="give it once")
    return {**sizes, **more}


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    """UsageError, "no method 'magic'" and the like, for a word that is none of those known."""
    if value not in known:
        raise UsageError(f"no {what} {value!r}", hint=f"one of: {', '.join(known)}")
