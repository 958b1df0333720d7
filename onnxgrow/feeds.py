"""Inputs to run a model on, at several sizes: one token and many, padded on either side, the cache empty and filled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from .errors import GraphError, UsageError
from .inputs import FLOATS, INTEGERS, index_range, is_additive, is_flag, is_mask, is_position, is_trip_count, kind_of, search_input, symbol_kinds
from .roles import Roles
from .structure import Structure
from .symbols import Shape, Symbols, symbol_of

OFFSET = 2  # OPT and RoBERTa leave the first rows of their position table unused
LONG, SHORT = 33, 5  # tokens in a case
MOST_TRIPS = 4  # of a loop whose number of steps is fed
LOOK_AHEAD = 6  # words that a search finds
WORDS = 4096  # up to this size every id of a vocabulary is fed


@dataclass(frozen=True)
class Case:
    """One set of inputs: a label for people, the size of each symbolic dimension, and an array per graph input."""

    label: str
    sizes: dict[str, int]
    feeds: dict[str, np.ndarray]
    optional: bool = False  # there are switches: a case in which two runs of the source disagree tells nothing


@dataclass(frozen=True)
class Size:
    """What a case is made of: rows, new and cached tokens, padded "right", "left" or not at all ("")."""

    batch: int
    length: int
    past: int = 0
    padding: str = ""


def cases(structure: Structure, roles: Roles, seed: int = 0) -> list[Case]:
    """Inputs of several sizes, as far as the graph's axes are dynamic; the sizes of the analysis come first."""
    symbols, kinds = structure.symbols, symbol_kinds(structure)
    shown = {symbol_of(v, i) for v in structure.graph.fed for i in range(len(v.type.tensor_type.shape.dim))}  # not those of a body that is called
    masked = any(is_mask(structure, v) for v in structure.graph.fed)
    first = {kind: next((symbols.sizes[n] for n in symbols.free if kinds[n] == kind), 1) for kind in ("batch", "length", "past")}
    analysed = Size(*first.values(), "right")
    flags = [v.name for v in structure.graph.fed if is_flag(structure, v)]
    made: dict[str, Case] = {}
    for size in (analysed, *[replace(analysed, padding="left")] * (not symbols.free), *_sizes(structure, roles, "past" in kinds.values())):
        by_kind = {"batch": size.batch, "length": size.length, "past": size.past}
        keep = {"image"} if size is not analysed else {"image", *(n for n in symbols.free if "." not in n)}
        sizes = symbols.resolve({n: symbols.sizes[n] if {n, kinds[n]} & keep else by_kind[kinds[n]] for n in symbols.free})
        padding = size.padding if masked else ""
        label = _label({n: size for n, size in sizes.items() if n in shown}, kinds, padding)
        if label not in made:
            made[label] = Case(label, sizes, make_feeds(structure, roles, sizes, seed + len(made), padding), bool(flags))
    if not symbols.free:  # one size only: more draws instead of more sizes
        first = next(iter(made.values()))
        more = {f"{first.label}, draw {k}": make_feeds(structure, roles, first.sizes, seed + 100 + k, analysed.padding if masked else "") for k in (2, 3)}
        made |= {label: Case(label, first.sizes, feeds) for label, feeds in more.items()}
    return [*made.values(), *_switched(structure, roles, flags, kinds, seed)]


def _switched(structure: Structure, roles: Roles, flags: list[str], kinds: dict[str, str], seed: int) -> Iterator[Case]:
    """Cases in which a switch is off, once with an empty cache."""
    symbols = structure.symbols
    whole = {n: symbols.sizes[n] for n in symbols.free}
    for flag in flags:
        for sizes in ({n: 0 if kinds[n] == "past" else size for n, size in whole.items()}, whole)[: 1 + ("past" in kinds.values())]:
            sizes = symbols.resolve(sizes)
            feeds = make_feeds(structure, roles, sizes, seed)
            yield Case(f"{_label(sizes, kinds, '')}, {flag} off", sizes, feeds | {flag: np.zeros_like(feeds[flag])}, optional=True)


def _label(sizes: dict[str, int], kinds: dict[str, str], padding: str) -> str:
    """Dimensions without a name of their own (`input_ids.0`) go by their kind."""
    words = dict.fromkeys(f"{kinds[name] if '.' in name else name} {size}" for name, size in sizes.items()) or ["the exported size"]
    return ", ".join([*words, f"padded {padding}"] if padding else words)


def _sizes(structure: Structure, roles: Roles, cached: bool) -> Iterator[Size]:
    positions = roles.size("positions")
    limit = max((positions - OFFSET) // structure.turns, 1) if positions else LONG
    long = min(limit, 2 * LONG)  # the whole table where it is small
    yield Size(1, min(limit, SHORT))
    yield Size(2, 1, long - 1, "left") if cached else Size(1, 1)
    yield Size(3, long, 0, "left")
    words = max((rows for rows, _ in filter(None, (index_range(structure, v.name) for v in structure.graph.fed))), default=0)
    if 3 * long < words <= WORDS:
        yield Size(-(-words // long), long)


def given(structure: Structure, feeds: dict[str, np.ndarray]) -> Case:
    """The user's own inputs as a case.

    Raises:
        UsageError: a name is missing or unknown, or a shape or an element type does not fit the graph.
    """
    wanted, sizes = {v.name: v for v in structure.graph.fed}, {}
    for name in [*wanted, *feeds]:
        if name not in feeds or name not in wanted:
            what = f"there is no array for the input {name!r}" if name in wanted else f"the model has no input {name!r}"
            raise UsageError(what, hint=f"give exactly these arrays: {', '.join(wanted)}")
    for name, value in wanted.items():
        _check(value, np.asarray(feeds[name]), sizes)
    for name, parts in structure.symbols.sums.items():
        if parts and {name, *parts} <= sizes.keys() and sizes[name] != sum(sizes[p] for p in parts):
            needed = " + ".join(f"{p} {sizes[p]}" for p in parts)
            raise UsageError(f"{name} is {sizes[name]}, but the graph needs {needed}", hint="make the shapes agree")
    return Case("the given inputs", sizes, {name: np.asarray(x) for name, x in feeds.items()})


def _check(value: onnx.ValueInfoProto, x: np.ndarray, sizes: dict[str, int]) -> None:
    dims, dtype = value.type.tensor_type.shape.dim, helper.tensor_dtype_to_np_dtype(kind_of(value))
    expected = [d.dim_value if d.HasField("dim_value") else symbol_of(value, i) for i, d in enumerate(dims)]
    if x.dtype != dtype:
        what = f"the array {value.name!r} is of type {x.dtype}, the input of type {dtype}"
        raise UsageError(what, hint=f"save it with .astype({str(dtype)!r})")
    if len(expected) != x.ndim or any(sizes.setdefault(e, n) != n if isinstance(e, str) else e != n for e, n in zip(expected, x.shape)):
        known = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise UsageError(f"the array {value.name!r} has the shape {list(x.shape)}, the input [{', '.join(map(str, expected))}]",
                         hint=f"make the shapes agree{f' (so far {known})' if known else ''}")


def make_feeds(structure: Structure, roles: Roles, sizes: dict[str, int], seed: int = 0, padding: str = "right") -> dict[str, np.ndarray]:
    """An array for every graph input at these sizes of the free symbols.

    Ids come from the whole table that they index, each as often as the others; floats are standard normal; of several rows of a mask
    the first is all real and the last has one real token.

    Raises:
        GraphError: an input is neither a number nor a truth value.
    """
    rng, kinds = np.random.default_rng(seed), symbol_kinds(structure)
    symbols = Symbols(structure.symbols.resolve(sizes), structure.symbols.sums)
    past, length = (max([size for name, size in symbols.sizes.items() if kinds[name] == kind], default=0) for kind in ("past", "length"))
    found = {v.name: search_input(structure, v) for v in structure.graph.fed}
    return {v.name: _setting(structure, roles, v, symbols.bind(v), rng, found[v.name], length) if found[v.name] else
            _make(structure, roles, v, symbols.bind(v), rng, past, padding) for v in structure.graph.fed}


def _setting(structure: Structure, roles: Roles, value: onnx.ValueInfoProto, shape: Shape, rng: np.random.Generator, what: str, length: int) -> np.ndarray:
    """What a search wants to know: some words to begin with, and how many to find."""
    dtype = helper.tensor_dtype_to_np_dtype(kind_of(value))
    if what == "ids":
        return _ids(rng, roles.size("vocab") or 2, shape).astype(dtype)
    settings = {"max_length": length + LOOK_AHEAD, "min_length": length + LOOK_AHEAD // 2, "num_beams": 2}
    return np.full(shape, settings.get(what, 1), dtype)


def _make(structure: Structure, roles: Roles, value: onnx.ValueInfoProto, shape: Shape, rng: np.random.Generator, past: int,
          padding: str) -> np.ndarray:
    kind = kind_of(value)
    if kind not in FLOATS | INTEGERS | {TensorProto.BOOL}:
        raise GraphError(f"the input {value.name!r} is of type {TensorProto.DataType.Name(kind)}", hint="give inputs of your own")
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if is_mask(structure, value):
        return _mask(structure, value, shape, padding, dtype)
    if is_flag(structure, value):
        return np.ones(shape, dtype)
    if kind in FLOATS:
        return rng.standard_normal(shape).astype(dtype)
    if is_trip_count(structure, value):
        return rng.integers(2, MOST_TRIPS + 1, shape).astype(dtype)
    rows, _ = index_range(structure, value.name) or (None, None)
    if is_position(structure, roles, value):
        return _positions(shape, past, rows).astype(dtype)
    return _ids(rng, rows or 2, shape).astype(dtype)


def _positions(shape: Shape, past: int, rows: int | None) -> np.ndarray:
    steps = np.arange(past, past + shape[-1]) if shape else np.asarray(past)
    return np.broadcast_to(np.clip(steps, 0, None if rows is None else rows - 1), shape)


def _ids(rng: np.random.Generator, rows: int, shape: Shape) -> np.ndarray:
    """No row of the table comes twice before all have come once, and the first and the last are never left out."""
    order = rng.permutation(rows)
    ends = {0, rows - 1}
    order = np.array([*ends, *(i for i in order[: int(np.prod(shape))] if i not in ends)])
    return rng.permutation(np.resize(order, int(np.prod(shape)))).reshape(shape)


def _mask(structure: Structure, value: onnx.ValueInfoProto, shape: Shape, padding: str, dtype: np.dtype) -> np.ndarray:
    rows, tokens = (shape[0] if len(shape) > 1 else 1), shape[-1] if shape else 1
    pads = np.linspace(0 if rows > 1 else tokens // 2, max(tokens - 1, 0), rows).astype(int) * bool(padding)
    index = np.arange(tokens)[None, :]
    real = index >= pads[:, None] if padding == "left" else index < tokens - pads[:, None]
    real = np.broadcast_to(real.reshape(rows, *[1] * (len(shape) - 2), tokens) if len(shape) > 1 else real[0].reshape(shape), shape)
    if is_additive(structure, value):
        return np.where(real, 0, -3e4 if dtype.name == "float16" else -1.5e38).astype(dtype)  # half the least number: two masks may meet
    return (~real if dtype == bool and "padding" in value.name.lower() else real).astype(dtype)
