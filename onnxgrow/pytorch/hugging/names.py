"""Parameters by name: their sizes for a config, and which entry of a class's state dict each of them is.

Names come from the framework (`bert.encoder.layer.0.output.dense.weight`), often behind the name of a wrapper. A config asks for sizes
by the end of a name, so that the wrapper does not matter; the class then says what the whole names are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from ...errors import SizeError

POOLED = r"(^|\.)(pooler|post_layernorm)\."  # what makes one vector of all states, which not every graph gives out
ROWS = 4096  # compared at a time
Parameters = Mapping[str, Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Names:
    """Parameters of a graph, to ask for by the end of their names (whole words between dots)."""

    parameters: Parameters
    known: dict[str, tuple[int, ...]] = field(default_factory=dict)
    judged: dict[tuple[str, ...], str] = field(default_factory=dict)

    def ending(self, end: str) -> list[str]:
        return [name for name in self.parameters if name == end or name.endswith(f".{end}")]

    def has(self, end: str) -> bool:
        return bool(self.ending(end))

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.known:
            self.known[name] = tuple(self.parameters[name]().shape)
        return self.known[name]

    def size(self, end: str, axis: int = 0) -> int | None:
        """The size of an axis of all parameters of this name, None without any.

        Raises:
            SizeError: layers differ.
        """
        found = {name: self.shape(name)[axis] for name in self.ending(end)}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in found.items())
            raise SizeError(f"layers differ in a size that a config states once: {told}",
                            hint="grow the role (--ffn, --heads, --head-dim), not one layer (--set), or export without --format hf")
        return next(iter(found.values()), None)

    def layers(self, pattern: str) -> int:
        """One more than the greatest number in the first group of a pattern."""
        return 1 + max((int(m.group(1)) for name in self.parameters for m in [re.search(pattern, name)] if m), default=-1)

    def alike(self, one: str, other: str) -> str:
        """Are two matrices one? "one": only one of them has a name, or they are equal. "kept": they were one before a growth, which left
        columns equal and gave others new numbers. "two": neither."""
        names = *self.ending(one)[:1], *self.ending(other)[:1]
        if names not in self.judged:
            self.judged[names] = self._judge(*names) if len(names) == 2 else "one"
        return self.judged[names]

    def _judge(self, one: str, other: str) -> str:
        a, b = self.parameters[one](), self.parameters[other]()
        if a.shape != b.shape or a.ndim != 2:
            return "two"
        equal = np.ones(a.shape[1], bool)
        for row in range(0, len(a), ROWS):
            equal &= (np.asarray(a[row:row + ROWS]) == np.asarray(b[row:row + ROWS])).all(axis=0)
        return "one" if equal.all() else "kept" if equal.any() else "two"


@dataclass
class Match:
    """How the parameters of a graph fill the state dict of a class.

    Attributes:
        meta: the model on the meta device, with the candidate config.
        keys: key of the state dict -> name of the parameter. Of tied keys the one that the graph names.
        unexpected: names that the class has no place for; missing: keys that nothing fills.
        guessed: keys whose parameter was told by its shape alone.
        copies: key -> key that holds the same (tied in the library, one in the graph).
        zeros: biases that the graph does not add; scalars: numbers that it holds as constants.
        fresh: what only pools states, which the graph does not, left as initialised.
    """

    meta: object
    keys: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)
    scalars: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    @property
    def problems(self) -> int:
        return len(self.unexpected) + len(self.missing)

    @cached_property
    def groups(self) -> list[list[str]]:
        """Keys that are one parameter in the library, embeddings first, heads last."""
        found: dict[int, list[str]] = {}
        for key, parameter in self.meta.named_parameters(remove_duplicate=False):
            found.setdefault(id(parameter), []).append(key)
        return [group for group in found.values() if len(group) > 1]

    @property
    def twins(self) -> dict[str, str]:
        """Keys that the library ties -> the one that it ties them to, where the graph has a parameter for both."""
        held = [sorted((key for key in group if key in self.keys), key=lambda key: key in self.ties) for group in self.groups]
        return {key: group[0] for group in held for key in group[1:]}

    @property
    def ties(self) -> dict[str, str]:
        """Key -> the key that the library ties it to, when the config says so."""
        return getattr(self.meta, "_tied_weights_keys", None) or {}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(x.shape) for key, x in self.meta.state_dict().items()}


def named(parameters: Parameters) -> Names:
    """Parameters by the names of their modules: where a function was called with a parameter (`c_attn.linear.weight`), without it."""
    plain = {name: re.sub(r"\.(linear|embedding)(?=\.(weight|bias)$)", "", name) for name in parameters}
    times = Counter(plain.values())
    return Names({short if times[short] == 1 else name: parameters[name] for name, short in plain.items()})


def match(meta, names: Names) -> Match:
    """Lay the parameters over the state dict of a model on the meta device, under whichever prefix fits best."""
    found = Match(meta)
    heads = {".".join(key.split(".")[:depth]) + "." for key in found.shapes for depth in (1, 2)}
    added, older = dict.fromkeys(["", f"{meta.base_model_prefix}.", *sorted(heads)]), cache(_older_names(meta))
    ways = ({_place(name, drop, add, older, found.shapes.keys()): name for name in names.parameters} for drop in _prefixes(names.parameters) for add in added)
    best: dict[str, str] = {}
    for placed in ways:
        if not best or len(placed.keys() & found.shapes.keys()) > len(best.keys() & found.shapes.keys()):
            best = placed
        if best.keys() <= found.shapes.keys():
            break
    found.keys = {key: name for key, name in best.items() if key in found.shapes}
    found.unexpected = sorted(best[key] for key in best.keys() - found.shapes.keys())
    held = {key for group in found.groups if found.keys.keys() & set(group) for key in group}
    found.missing = sorted(found.shapes.keys() - found.keys.keys() - held - {key for key, _ in meta.named_buffers()})
    _settle(found, names)
    _fill(found)
    return found


def _place(name: str, drop: str, add: str, older: Callable[[str], str], keys: Set[str]) -> str:
    """The key of a name; a head often stands beside the prefix that all others share."""
    tried = [older(add + name[len(drop):]), older(name[len(drop):])]
    return next((key for key in tried if key in keys), tried[0])


def _settle(m: Match, names: Names) -> None:
    """Names that a graph has lost: a parameter goes where alone its shape is missing. A zero bias that the class does not have is nothing."""
    for name in [*m.unexpected]:
        free = [key for key in m.missing if same_shape(m.shapes[key], names.shape(name))]
        alike = [other for other in m.unexpected if same_shape(names.shape(other), names.shape(name))]
        if len(free) == len(alike) == 1:
            m.keys[free[0]] = name
            m.guessed.append(free[0])
            m.missing.remove(free[0])
            m.unexpected.remove(name)
        elif name.endswith(".bias") and not np.asarray(names.parameters[name]()).any():
            m.unexpected.remove(name)


def same_shape(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """But for axes of size 1: exporters drop and add them."""
    return [n for n in a if n > 1] == [n for n in b if n > 1]


def _prefixes(names: Parameters) -> Iterator[str]:
    """Whole words with which every name begins: '', 'model.', 'model.model.' ..."""
    first, at = next(iter(names), ""), 0
    while all(name.startswith(first[:at]) for name in names):
        yield first[:at]
        at = first.find(".", at) + 1
        if not at:
            return


def _older_names(meta) -> Callable[[str], str]:
    """What a name of an older release of the library is called today; the library loads old checkpoints by the same table."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, apply_renamings
    except ImportError:  # before 5.0 there was no such table
        return lambda name: name
    renamings = [step for step in get_model_conversion_mapping(meta) if isinstance(step, WeightRenaming)]
    return lambda name: apply_renamings(name, renamings)


def _fill(m: Match) -> None:
    """What a graph may leave out without a loss: zero biases, a head that nothing reads, the second of two equal parameters."""
    twins = {key: twin for pair in m.ties.items() for key, twin in (pair, pair[::-1]) if twin in m.keys}
    for key in m.missing:
        if key in twins:
            m.copies[key] = twins[key]
        elif key.endswith(".bias") and f"{key[:-4]}weight" in m.keys:
            m.zeros.append(key)
        elif key.split(".")[-1] == "logit_scale":
            m.scalars.append(key)
        elif re.search(POOLED, key) and not any(re.search(POOLED, name) for name in m.keys):
            m.fresh.append(key)
    m.missing = [key for key in m.missing if key not in {*m.copies, *m.zeros, *m.scalars, *m.fresh}]
