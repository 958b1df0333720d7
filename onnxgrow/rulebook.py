"""What a rule is, and the book that holds them.

A rule is a small function from a node (`Op`) to a frozen `Rule`: the ties as one line, and for each name in it how the operator
treats what a grown part holds. Rules never touch a weight and never see the plan. The built-in files in `rules/` use nothing
that a user's own file cannot use:

    from onnxgrow.rulebook import Rule, rule

    @rule("acme::Swish")
    def swish(op):
        return Rule("... -> ...", other="f(0)=0")
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np

from .errors import GraphError, OnnxgrowError, UsageError

TREATMENTS = {
    "keep": "moves values, changes none (layout, cast, product with something that has no such axis)",
    "add": "sum: like fills stay; with a partner that has no such axis it is a shift",
    "shift": "a constant is added: mean and copies stay, zero becomes a constant",
    "mul": "product: zero where either side is zero",
    "divide": "quotient: along the dividend alone nothing changes; a divisor may hold nothing but copies",
    "select": "one of two inputs by a condition: like fills stay",
    "f(0)=0": "element by element, keeps zero",
    "f(0)!=0": "element by element, zero becomes a constant",
    "copies only": "element by element, but not defined everywhere (a divisor, a root): nothing but copies may stand there",
    "contract": "summed away against another input: one side must be zero, or copies meet shares",
    "sum": "summed away: zero stays exact",
    "mean": "averaged away: mean stays exact",
    "layer norm": "normalised by mean and deviation along it: wants mean or copies",
    "rms norm": "normalised by the root mean square along it: wants zero or copies",
    "scaled": "quantized numbers in steps of a scale: zero is the zero point, copies stay; scales of new entries are free",
    "range": "its largest or smallest are taken, and zero is between them: zero and copies leave them",
    "rows": "named by number when the model runs: they can grow at the end of the axis only",
    "alike": "made here, and all entries are equal: mean and copies hold",
    "zeros": "made here, and all entries are zero: every fill holds",
    "put": "overwritten by number when the model runs: nobody names a new entry, so zero stays zero; at the end of the axis only",
    "choose": "the largest are chosen: new entries must be lower than all others, as a router sees to",
    "softmax": "normalised against each other: new entries must be so low that they get nothing, as a router sees to",
    "one hot": "lit up by number when the model runs: zero for every old number",
    "refuse": "nothing can stand there",
    "ignore": "values do not pass",
}


@dataclass(frozen=True)
class Rule:
    """How one node ties its axes and treats what grown parts hold.

    Args:
        line: the ties (see `lines`).
        fills: treatment by name (see TREATMENTS).
        other: treatment of every name not in `fills`.
        sizes: size-carrying operands: input slot or attribute name -> one term of the line language per element (`_` where
            the element looks after itself, `-x` for a negated size).
        dims: sizes of names that no axis shows alone.
        weaker: a rule that ties less, for where the line cuts an axis inside a factor.
    """

    line: str
    fills: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    other: str = "keep"
    sizes: Mapping[int | str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    dims: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    weaker: Rule | None = None

    def __post_init__(self):
        unknown = {*self.fills.values(), self.other} - TREATMENTS.keys()
        if unknown:
            raise UsageError(f"a rule uses the treatment {unknown.pop()!r}", hint=f"use one of: {', '.join(TREATMENTS)}")

    def treatment(self, name: str) -> str:
        """What the operator does along the axis of that name."""
        return self.fills.get(name, self.other)


@dataclass(frozen=True)
class Op:
    """What a rule sees of a node: attributes, shapes, and those operands whose numbers are known.

    Attributes:
        op: the operator's type.
        version: of its domain in the model.
        attrs: attributes by name.
        shapes, outputs: of each input and output; None where it is absent or not known.
        values: the numbers of each operand; None where they are not known.
        runtime, runtime_outputs: of each axis, whether its size depends on what is fed (batch, sequence).
        read: False where nobody wants more of the outputs than their shapes.
        fixed: of each operand, whether its numbers never change.
        limits: `limits(slot)` are the smallest and largest number that an operand can hold, or None.
    """

    op: str
    version: int
    attrs: Mapping
    shapes: list[tuple[int, ...] | None]
    outputs: list[tuple[int, ...] | None]
    values: list[np.ndarray | None]
    runtime: list[tuple[bool, ...]]
    runtime_outputs: list[tuple[bool, ...]]
    read: bool = True
    fixed: list[bool] = field(default_factory=list)
    limits: Callable[[int], tuple[float, float] | None] = lambda slot: None

    @property
    def rank(self) -> int:
        """Number of axes of the first input."""
        return len(self.shapes[0])

    def has(self, slot: int) -> bool:
        """Is an input there, and its shape known?"""
        return slot < len(self.shapes) and self.shapes[slot] is not None

    def value(self, slot: int) -> np.ndarray | None:
        """The numbers of an operand, None where they are not known."""
        return self.values[slot] if slot < len(self.values) else None

    def constant(self, slot: int) -> bool:
        """Are the numbers of an operand known, and the same at every size that is fed?"""
        return self.value(slot) is not None and self.fixed[slot]

    def axis(self, default: int) -> int:
        """The attribute `axis`, counted from the front; `default` where it is absent."""
        return self.attrs.get("axis", default) % max(self.rank, 1)


class Registry:
    """Rules by (domain, operator, since version); the newest not above the model's opset wins."""

    def __init__(self):
        self._rules: dict[tuple[str, str], dict[int, Callable]] = {}
        self._shapes: dict[tuple[str, str], Callable] = {}
        self._unfoldings: dict[tuple[str, str], Callable] = {}

    def add(self, key: str, since: int, function: Callable, shape: Callable | None = None) -> None:
        domain, _, op = key.rpartition("::")
        versions = self._rules.setdefault((domain, op), {})
        if since in versions:
            first, second = (f"{f.__module__}.{f.__name__}" for f in (versions[since], function))
            raise UsageError(f"two rules for {key} since version {since}: {first} and {second}", hint="remove one of them")
        versions[since] = function
        if shape:
            self._shapes[domain, op] = shape

    def find(self, domain: str, op: str, version: int) -> Callable | None:
        versions = self._rules.get((domain, op), {})
        fitting = [v for v in versions if v <= version]
        return versions[max(fitting)] if fitting else None

    def shape_function(self, node) -> Callable | None:
        return self._shapes.get((node.domain, node.op))

    def add_unfolding(self, key: str, function: Callable) -> None:
        domain, _, op = key.rpartition("::")
        if (domain, op) in self._unfoldings:
            first, second = (f"{f.__module__}.{f.__name__}" for f in (self._unfoldings[domain, op], function))
            raise UsageError(f"two unfoldings for {key}: {first} and {second}", hint="remove one of them")
        self._unfoldings[domain, op] = function

    def unfolding(self, domain: str, op: str) -> Callable | None:
        """How an operator is written in plain ones; None for one that is plain itself, or has a rule of its own."""
        return self._unfoldings.get(("" if domain == "ai.onnx" else domain, op))

    def knows(self, domain: str, op: str) -> bool:
        """Is there a rule or an unfolding for an operator, since whatever version?"""
        return (domain, op) in self._rules or self.unfolding(domain, op) is not None

    @property
    def unfoldings(self) -> list[tuple[str, str, Callable]]:
        """(domain, op, function), sorted."""
        return sorted(((d, o, f) for (d, o), f in self._unfoldings.items()), key=lambda u: u[:2])

    def __iter__(self):
        """(domain, op, since, function), sorted."""
        return iter(sorted(((d, o, v, f) for (d, o), vs in self._rules.items() for v, f in vs.items()), key=lambda r: r[:3]))


REGISTRY = Registry()


def rule(*keys: str, since: int = 1, shape: Callable | None = None):
    """Register the decorated function, from an `Op` to a `Rule`, for operators.

    Args:
        keys: operators, as `Name` or `domain::Name`.
        since: the opset version from which the rule holds; the newest that is not above the model's wins.
        shape: for operators that ONNX does not know: `shape(node, shapes, types)` gives (shape, element type) for each output.
    Raises:
        UsageError: there is a rule for this key and version already.
    """
    def register(function):
        for key in keys:
            REGISTRY.add(key, since, function, shape)
        return function
    return register


def unfolds(*keys: str):
    """Register the decorated function, which takes a `Body`, as what writes operators down in plain nodes.

    Args:
        keys: operators, as `domain::Name`.
    Raises:
        UsageError: there is an unfolding for this key already.
    """
    def register(function):
        for key in keys:
            REGISTRY.add_unfolding(key, function)
        return function
    return register


@cache
def load_builtin() -> Registry:
    """Import the files of `rules/` and those that installed packages offer as entry points in group `onnxgrow.rules`."""
    from importlib.metadata import entry_points

    package = _rules_package()
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"onnxgrow.rules.{module.name}")
    for point in entry_points(group="onnxgrow.rules"):
        point.load()
    return REGISTRY


def _rules_package():
    """`onnxgrow.rules`; in a checkout that is the folder `rules` beside the package, whatever other checkout is installed."""
    if not (Path(__file__).parent / "rules").is_dir():
        importlib.import_module("onnxgrow").__path__.append(str(Path(__file__).parents[1]))
    return importlib.import_module("onnxgrow.rules")


@cache
def load_file(path: str) -> ModuleType:
    """Run a user's rule file (it is code: run only files you trust) and return it as a module."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no rule file {path!r}", hint="give --rules the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"onnxgrow_rules_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OnnxgrowError:
        raise
    except Exception as problem:  # whatever a file does wrong is the file's error
        raise GraphError(f"the rule file {path!r} does not load: {type(problem).__name__}: {problem}", hint="fix the file") from problem
    return module
