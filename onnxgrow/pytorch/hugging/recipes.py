"""The state dict of the class, from the graph's parameters: layouts, and the numbers that a class computes from its config.

A grown graph keeps the old 1/√head_dim, √hidden and the like as constants, and a class computes new ones. The quotient goes into weights
next to it, where it is exact: into queries, embeddings, gains of the last norm. Each fold is one line of the report.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...errors import SizeError
from . import readings
from .choice import Choice, filled, transposed
from .facts import NEGLIGIBLE, PLAIN, Facts

SAME = 1e-6  # relative; scales are written down in float32


@dataclass
class State:
    """Arrays of a state dict, made when they are asked for; `notes` tell what was folded into them."""

    arrays: dict[str, Callable[[], np.ndarray]]
    notes: list[str] = field(default_factory=list)

    def change(self, key: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
        """Compute an entry in float64 and round it once."""
        old = self.arrays[key]
        self.arrays[key] = lambda: (lambda x: how(x.astype(np.float64)).astype(x.dtype))(old())

    def scale(self, key: str, factor: float, first: int | None = None) -> None:
        """Multiply an entry by a number; `first`: only the first entries of its last axis ([in, out] weights, biases)."""
        self.change(key, lambda x: np.concatenate([x[..., :first] * factor, x[..., first:]], axis=-1) if first else x * factor)


def state_of(choice: Choice, f: Facts) -> State:
    """Every entry of the class's state dict that is loaded.

    Raises:
        SizeError: a number that the class computes cannot be folded into a weight.
    """
    turned, shapes = transposed(choice.match, f), choice.match.shapes
    loaded = filled(choice.match, f)
    state = State({key: _laid(f, name, key in turned, shapes[key]) for key, name in loaded.items()})
    for key, name in choice.match.keys.items():
        if key not in loaded and f.names.alike(choice.match.keys[choice.match.twins[key]], name) == "kept":
            state.notes.append(f"{key} is {choice.match.twins[key]} again, as before the growth: it had new columns of its own, which nothing uses yet")
    for key, twin in choice.match.copies.items():
        state.arrays[key] = state.arrays[twin]
    for key in choice.match.zeros:
        dtype = state.arrays[f"{key[:-4]}weight"]().dtype
        state.arrays[key] = lambda shape=shapes[key], dtype=dtype: np.zeros(shape, dtype)
        state.notes.append(f"{key}: zero, the graph adds nothing there")
    for key in choice.match.scalars:  # exporters fold its exponential
        state.arrays[key] = lambda: np.asarray(np.log(readings.similarity_factor(f.roles) or np.e), np.float32)
    for key in choice.match.guessed:
        state.notes.append(f"{key} is {choice.match.keys[key]}: the graph has lost its name, and no other parameter has this shape")
    for key in choice.match.fresh:
        state.notes.append(f"{key}: not in the graph, initialised anew (no output of the graph needs it)")
    for recipe in (_gains, _scores, _embeddings, _logits, _stream):
        recipe(state, choice, f)
    return state


def _laid(f: Facts, name: str, turn: bool, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    make = f.names.parameters[name]
    return lambda: (make().T if turn else make()).reshape(shape)


def _differs(a: float, b: float, f: Facts) -> bool:
    """By more than the float type of the file rounds."""
    return abs(a - b) > max(SAME, readings.rounding(f.roles)) * abs(b)


def _gains(state: State, choice: Choice, f: Facts) -> None:
    """Gemma's norms multiply by 1 + w; exporters fold the sum."""
    if choice.family.name == "Gemma" and readings.is_gain_folded(f.roles):
        for key in [key for key in state.arrays if key.endswith("norm.weight")]:
            state.change(key, lambda x: x - 1)


def _scores(state: State, choice: Choice, f: Facts) -> None:
    """q := q · scale of the graph / scale of the class, so that their product with k comes out the same."""
    family = choice.family
    if family.scale is None:
        return
    native = family.scale(choice.config)
    factors = [scale / native for scale in f.scales]
    if not any(_differs(factor, 1, f) for factor in factors):
        return
    even = not any(_differs(factor, factors[0], f) for factor in factors)
    for layer, factor in [(r"\d+", factors[0])] if even else [*enumerate(factors)]:
        keys = [key for key in state.arrays if re.search(rf"(^|\.){family.query.format(layer)}\.(weight|bias)$", key)]
        if not keys or ("{}" not in family.query and not even):
            raise SizeError(f"layers scale their scores differently, and {family.config} says {native:.6g} for all",
                            hint=f"grow the head_dim of all layers alike, {PLAIN}")
        for key in keys:
            state.scale(key, factor, choice.match.shapes[key][-1] // 3 if family.packed else None)
    state.notes.append(f"queries · {factors[0]:.6g}: the graph scales scores by {f.scales[0]:.6g}, the class by {native:.6g}")


def _embeddings(state: State, choice: Choice, f: Facts) -> None:
    """Gemma multiplies embeddings by √hidden. E := E · c, and where the head is the same matrix, the last gain / c."""
    if choice.family.name != "Gemma":
        return
    factor = f.embedding_factor / choice.config.hidden_size**0.5
    if _differs(factor, 1, f):
        words, gain = _one(state, r"embed_tokens\.weight$|lm_head\.weight$"), _one(state, r"(^|\.)norm\.weight$")
        _scale_words(state, choice, words, factor, lambda: state.change(gain, lambda x: (1 + x) / factor - 1))
        state.notes.append(f"embeddings · {factor:.6g}: the graph multiplies them by {f.embedding_factor:.6g}, the class by √hidden")


def _logits(state: State, choice: Choice, f: Facts) -> None:
    """T5 multiplies the last states by 1/√hidden in front of a tied head: the quotient goes into the last gain."""
    if choice.family.name == "T5" and getattr(choice.config, "scale_decoder_outputs", False) and choice.cls.__name__.endswith("Generation"):
        native, have = choice.config.d_model**-0.5, readings.logit_factor(f.roles)
        if _differs(have, native, f):
            state.scale(_one(state, r"decoder\.final_layer_norm\.weight$"), have / native)
            state.notes.append(f"last gain · {have / native:.6g}: the graph scales states by {have:.6g}, the class by {native:.6g}")


def _stream(state: State, choice: Choice, f: Facts) -> None:
    """Where the class has its epsilon written down: norm with e of c·x is norm with e/c² of x, so all that writes into the stream is scaled."""
    family = choice.family
    if family.epsilon is None or abs(f.epsilon - family.epsilon) < NEGLIGIBLE or not _differs(f.epsilon, family.epsilon, f):
        return
    if not family.stream or not getattr(choice.config, "do_layer_norm_before", True):
        raise SizeError(f"norms have an epsilon of {f.epsilon:g}, and {family.name} has {family.epsilon:g} written down in its code",
                        hint=f"grow hidden by a whole multiple with --method copy, which keeps epsilon, {PLAIN}")
    factor = (family.epsilon / f.epsilon) ** 0.5
    for key in [key for key in state.arrays if re.search(family.stream, key) and "embed_tokens" not in key]:
        state.scale(key, factor)
    last = [key for key in state.arrays if re.search(r"decoder\.final_layer_norm\.(weight|bias)$", key)]
    words = _one(state, r"embed_tokens\.weight$|lm_head\.weight$")
    _scale_words(state, choice, words, factor, lambda: [state.scale(key, 1 / factor) for key in last])
    state.notes.append(f"the residual stream · {factor:.6g}: {family.name} has an epsilon of {family.epsilon:g} written down, the graph {f.epsilon:g}")


def _scale_words(state: State, choice: Choice, words: str, factor: float, compensate: Callable[[], object]) -> None:
    """Scale the embedding; a head that is the same matrix gets states that are as much smaller."""
    state.scale(words, factor)
    if "lm_head.weight" in choice.match.shapes and not {"lm_head.weight", words} <= state.arrays.keys():
        compensate()


def _one(state: State, pattern: str) -> str:
    """The key that fits a pattern; of embedding and head the embedding, where both are there."""
    return min((key for key in state.arrays if re.search(pattern, key)), key=lambda key: key.startswith("lm_head"))
