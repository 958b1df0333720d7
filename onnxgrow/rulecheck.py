"""Is a rule true? What the planner believes because of it is tried in ONNX Runtime, on models of one node.

Each dim of the node grows, once at its end and once inside (as a factor of a product does), and every input that has it gets
every fill in turn. The solver says which fills of the output follow, the runtime says which come true. A claim that does not
hold makes a rule wrong; a truth that nobody claims only makes it poorer than it could be.

    from onnxgrow.rulecheck import check_rule, example
    for problem in check_rule("BiasGelu", "com.microsoft", [example("BiasGelu", (4, 6), (6,), domain="com.microsoft")]):
        print(problem)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .axismap import AxisMap, Fill
from .constants import fix_constants
from .errors import OnnxgrowError, UsageError
from .flow import build_flow
from .graph import build, set_attributes
from .maps import Mapper
from .recipe import Recipe
from .repairs import Edits
from .roles import NORM_KINDS, Roles
from .rulebook import Registry, load_builtin
from .solve import Solution, Solver
from .structure import Structure, tie
from .target import Target
from .ties import Dim, leaves, product, unify

CLAIMS = ("zero", "mean", "copy")  # "free" claims nothing; "share" is what copies meet in a contraction
ULPS = 16  # how far rounding may take a claim that holds, relative to the largest entry


@dataclass(frozen=True)
class Fed:
    """An input that is no random float: fed when the model runs, not known before."""

    array: np.ndarray


@dataclass(frozen=True)
class Example:
    """A model of one node. An input is a shape (random floats in `within`), `Fed`, an array (a constant) or None (absent)."""

    op: str
    inputs: tuple
    attrs: Mapping
    outputs: int = 1
    opset: int = 17
    domain: str = ""
    within: tuple[float, float] = (-2.0, 2.0)

    def __str__(self) -> str:
        inputs = ["" if i is None else i.tolist() if isinstance(i, np.ndarray) else np.shape(getattr(i, "array", np.empty(i))) for i in self.inputs]
        return f"{self.domain}{'::' * bool(self.domain)}{self.op}{tuple(inputs)}, {dict(self.attrs)}, opset {self.opset}"

    @cached_property
    def feeds(self) -> dict[str, np.ndarray]:
        random, out = np.random.default_rng([*self.op.encode()]), {}
        for slot, given in enumerate(self.inputs):
            if isinstance(given, tuple):
                out[f"x{slot}"] = random.uniform(*self.within, given).astype(np.float32)
            elif isinstance(given, Fed):
                out[f"x{slot}"] = given.array
        return out

    @cached_property
    def model(self) -> onnx.ModelProto:
        import onnx_graphsurgeon as gs

        fed = {name: gs.Variable(name, a.dtype, a.shape) for name, a in self.feeds.items()}
        inputs = [fed.get(f"x{i}") or (gs.Variable.empty() if v is None else gs.Constant(f"c{i}", v)) for i, v in enumerate(self.inputs)]
        made = [gs.Variable(f"y{i}") for i in range(self.outputs)]
        node = gs.Node(self.op, "node", dict(self.attrs), inputs, made, domain=self.domain or None)
        domains = [helper.make_opsetid(self.domain, 1)] if self.domain else None
        graph = gs.Graph([node], list(fed.values()), made, opset=self.opset, import_domains=domains)
        return gs.export_onnx(graph, do_type_check=False, ir_version=10)

    def array(self, name: str) -> np.ndarray:
        """A constant of the model, as `graph.build` asks for it."""
        return numpy_helper.to_array(next(t for t in self.model.graph.initializer if t.name == name))

    @property
    def proto(self) -> onnx.ModelProto:
        return self.model

    @cached_property
    def results(self) -> list[np.ndarray]:
        return run(self.model, self.feeds)


def example(op: str, *inputs, outputs: int = 1, opset: int = 17, domain: str = "", within: tuple[float, float] = (-2.0, 2.0), **attrs) -> Example:
    return Example(op, inputs, attrs, outputs, opset, domain, within)


@dataclass(frozen=True)
class Problem:
    """What a rule says and the runtime does not, or the other way round.

    `kind` is "wrong" (a claim fails), "missing" (something holds that nobody claims), "loose" (a size that the rule ties
    may differ) or "refused" (the planner could not carry it out).
    """

    kind: str
    example: Example
    line: str
    name: str
    treatment: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.example}\n  {self.line}   {self.name}: {self.treatment}\n  {self.what}"


def check_rule(op: str, domain: str = "", examples: Iterable[Example] | None = None, registry: Registry | None = None) -> list[Problem]:
    """Everything that is wrong with the rule for an operator, on the given examples or those of `operators.EXAMPLES`."""
    if examples is None:
        from .operators import EXAMPLES

        examples = [e for e in EXAMPLES if (e.op, e.domain) == (op, domain)]
        if not examples:
            raise UsageError(f"no example of the operator {op} to try its rule on", hint="give some: EXAMPLES = [rulecheck.example(...)] in the rule file")
    return [p for e in examples for p in check_example(e, registry or load_builtin())]


def check_example(e: Example, registry: Registry) -> Iterator[Problem]:
    for inside in (False, True):
        for at in itertools.count():
            s = tie(build(e), registry)
            if s.blocked:
                yield Problem("refused", e, "", "", "", s.blocked[0][1])
                return
            found = _leaves(s, e)
            if at >= len(found):
                break
            whole = part = found[at]
            if inside:
                if whole.size % 2 or whole.size < 4:
                    continue
                part = Dim(whole.size // 2)
                unify(whole, product([Dim(2), part]))
            growths = [Growth(e, s, registry, whole, part, new) for new in (part.size + 3, 2 * part.size)]
            yield from growths[0].problems(copies=False)
            yield from growths[1].problems(copies=True)


def _leaves(s: Structure, e: Example) -> list[Dim]:
    tensors = [t for t in [*e.feeds, *s.graph.outputs] if t in s.dims and t not in s.walk.values]
    return list(dict.fromkeys(leaf for t in tensors for d in s.dims[t] for leaf in leaves(d) if leaf.size > 1))


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return session(model).run(None, feeds)


def session(model: onnx.ModelProto):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    loose = onnx.ModelProto()
    loose.CopyFrom(model)
    for v in loose.graph.input:  # it is the node that should refuse a size, not the declaration
        for axis in v.type.tensor_type.shape.dim:
            axis.Clear()
    return ort.InferenceSession(loose.SerializeToString(), options, ["CPUExecutionProvider"])


@dataclass
class Growth:
    """One dim of an example, grown to one size: what is claimed, and what comes true."""

    example: Example
    s: Structure
    registry: Registry
    whole: Dim
    part: Dim
    new: int
    sessions: dict = field(default_factory=dict)

    def __post_init__(self):
        self.target = Target(sizes={self.part: self.new})
        self.flow = build_flow(Roles(self.s, [], [], []), {self.part})
        self.moving = [t for t in self.example.feeds if self._has(t)]
        self.outputs = [t for t in self.s.graph.outputs if t in self.s.dims and t not in self.s.walk.values]
        self.kinds = {r.kind for r in self.flow.relations}

    def _has(self, tensor: str) -> bool:
        return any(self.part in leaves(d) for d in self.s.dims[tensor])

    def problems(self, copies: bool) -> Iterator[Problem]:
        try:
            self.model = self._model()
        except OnnxgrowError as refusal:
            if any(f"_{k}" for k in ()):  # placeholder
                yield self._problem("refused", str(refusal))
            return
        yield from []
