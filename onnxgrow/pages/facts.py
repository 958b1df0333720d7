"""Everything that a report states, gathered before it is laid out: nothing on the page is computed by its template."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, field

import numpy as np

from ..architecture import Architecture
from ..describe import changes
from ..errors import UsageError
from ..feeds import Case, cases, given
from ..model import Model
from ..modules import modules_of, with_module
from ..parts import kinds_of
from ..plan import Plan
from ..provenance import RECORD
from ..report import Report
from ..source import open_source
from .divergence import State, by_stack, diverge
from .drawing import Drawing, Tower, draw, towers, widest
from .padding import KINDS, Grown, Picture, grown_weights, picture
from .parts import Part, by_part, places
from .reproduce import expand_command, files, versions

PICTURES = 8  # weights that are drawn where nobody asks for more
ALWAYS = (
    "Equal means equal as numbers: repairs are computed in float64 and rounded once to the type of their weight, and sums over more entries are rounded in another order. The tolerance below allows for that and for no more.",
    "Both models were run unoptimised, in inference: dropout and what else acts in training only is no part of the function.",
    "Fills follow from the rules of the operators (docs/operators.md). A rule that is wrong would make the certificate wrong; that is why both models were run as well.",
)  # fmt: skip


@dataclass(frozen=True)
class Fed:
    """One array that both models were run on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    least: float | None
    greatest: float | None


@dataclass(frozen=True)
class Run:
    """One set of inputs: its arrays, a digest of their bytes, and the error of each output."""

    label: str
    fed: list[Fed]
    digest: str
    outputs: list[dict]


@dataclass
class Facts:
    """What a report of a growth states.

    Attributes:
        plan: as `Plan.to_json` has it; sizes, certificate, dead parameters and changed attributes come from there.
        record: the growth as the grown file records it; None where it has no record, and its sizes alone say what grew.
        parameters: of the source and of the grown file.
        weights: all that grew or were repaired; pictures: of some of them; places: what each belongs to, and which node reads it.
        modules: weight whose name says nothing -> the module of the framework that reads it.
        states: the residual stream along the depth.
        gradients: what a measurement of gradients showed, or None.
    """

    plan: dict
    record: dict | None
    certificate: str
    verdict: str
    before: Architecture
    after: Architecture
    parameters: tuple[int, int]
    towers: list[Tower]
    drawings: tuple[Drawing, Drawing]
    parts: list[Part]
    weights: list[Grown]
    pictures: list[tuple[Grown, Picture]]
    places: dict[str, tuple[str, str]]
    changed: dict
    assumptions: list[str]
    report: Report
    runs: list[Run]
    states: list[tuple[str, list[State]]]
    command: str
    validate: str
    files: tuple[list[dict], list[dict]]
    versions: dict[str, str] = field(default_factory=versions)
    gradients: dict | None = None
    modules: dict[str, str] = field(default_factory=dict)

    def named(self, weight: str) -> str:
        """A weight's name for people."""
        return with_module(weight, self.modules)

    @property
    def total(self) -> Part:
        """All parts together."""
        kinds = {k: sum(p.kinds[k] for p in self.parts) for k in KINDS}
        return Part("all", sum(p.old for p in self.parts), sum(p.new for p in self.parts), kinds)

    @property
    def shown(self) -> dict[str, bool]:
        """Which kinds occur in the pictures."""
        return {k: any(k in areas.areas for _, areas in self.pictures) for k in KINDS}


def gather(model: Model, grown: Model, plan: Plan, *, feeds: dict | None = None, provider: str | None = None, weights: tuple[str, ...] = (),
           rules: tuple[str, ...] = ()) -> Facts:
    """Plan the growth again, run both models, and gather what there is to say.

    Args:
        plan: of the model, as the grown one records it (`Model.plan_like`).
        feeds: inputs to run both on; None makes them.
        weights: names of initializers of the grown model to draw; () chooses one of each look.
        rules: files with rules that the model was opened with.
    Raises:
        UsageError: no initializer that grows has such a name.
        OnnxgrowError: as in `Plan.compare`, and for a model in several graphs.
    """
    model.one_graph("a report")
    made = list(grown_weights(plan))
    drawn = [(w, picture(w)) for w in chosen(plan, made, weights)]
    report = plan.compare(grown.path, feeds, provider)
    tried = _tried(model, report, plan.request.seed, feeds)
    found = towers(plan)
    record = next((p.value for p in grown.opened.proto.metadata_props if p.key == RECORD), None)
    names = model.path.name, grown.path.name
    return Facts(
        plan=plan.to_json(), record=_record(record), certificate=str(plan.certificate), verdict=verdict(report, plan.certificate.kind),
        before=model.architecture, after=grown.architecture, parameters=(model.parameters, grown.parameters), towers=found,
        drawings=tuple(draw(found, after, widest(found)) for after in (False, True)), parts=by_part(plan, made, kinds_of(grown.roles, grown.stacks)), weights=made, pictures=drawn,
        places=places(plan), changed=changes(plan), assumptions=assumptions(model, plan, report, rules, record is not None, feeds is not None), report=report,
        runs=[_run(case, report) for case in tried], states=by_stack(diverge(plan, report, tried, open_source(grown.path))),
        command=expand_command(plan.request, *names, rules, model.dequantized),
        validate=_validate_command(names, rules, model.dequantized), files=(files(model.path), files(grown.path)),
        modules=modules_of(plan.source.proto.graph) | modules_of(grown.opened.proto.graph))


def verdict(report: Report, promised: str) -> str:
    """In the words of `validate`."""
    return "equal" if report.equal else "NOT EQUAL" if promised == "exact" else f"{promised}, as certified"


def chosen(plan: Plan, made: list[Grown], names: tuple[str, ...]) -> list[Grown]:
    """The weights to draw: those named, or the largest of each look, in the file's order."""
    known = {w.name: w for w in made}
    for name in names:
        if name not in known:
            some = ", ".join(list(known)[:6]) or "none"
            raise UsageError(f"--weight {name!r} names no weight that grows", hint=f"for example: {some} (all: onnxgrow expand ... --plan)")
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    looks: dict[tuple, Grown] = {}
    for w in made:
        if w.size > looks.get(w.look, w).size or w.look not in looks:
            looks[w.look] = w
    largest = sorted(looks.values(), key=lambda w: -w.size)[:PICTURES]
    return [w for w in made if w in largest]


def assumptions(model: Model, plan: Plan, report: Report, rules: tuple[str, ...], recorded: bool, own: bool) -> list[str]:
    """All that the certificate and the comparison stand on, a sentence each."""
    doc, out = plan.to_json(), []
    if not recorded:
        out.append("The grown file records no growth. What grew was read off the sizes of both files, and the plan is the one that onnxgrow would make for them today.")
    out += list(ALWAYS)
    out += [f"Rules from {rule} were used beside the built-in ones; nobody but their author has checked them." for rule in rules]
    pinned = model.roles.structure.symbols.pinned
    out += [f"The graph runs at {name} = {size} only: other sizes do not fit at {node.label!r}." for name, (size, node) in pinned.items()]
    out += [f"The input {v['name']!r} grew from {v['old_shape']} to {v['new_shape']}: its new entries are zero wherever the source's function is asked for." for v in doc["inputs"]]
    out += [f"The output {v['name']!r} grew from {v['old_shape']} to {v['new_shape']}: its old entries are the source's, the new ones are beside them." for v in doc["outputs"]]
    inserted = [n for n in plan.twins.inputs if n != plan.twins.inputs[n] and n not in {v.name for v in model.roles.structure.graph.fed}]
    out += [f"The input {n!r} belongs to an inserted layer and takes the values of {plan.twins.inputs[n]!r}." for n in inserted]
    out += ["Both models were run on the inputs that were given, and on no others."] if own else [
        f"The inputs were made by onnxgrow (seed {report.seed}) from what the graph says of them. They are samples: they can show that the function differs, and cannot prove that it does not."]
    out += [f"Not compared: {output!r}, {reason}." for output, reason in report.ignored.items()]
    out += [f"Not run: {label}: {reason}." for label, reason in report.skipped.items()]
    out += [f"Computed in float32, weights as stored: {report.replaced}."] if report.replaced else []
    if report.dequantized is not None:
        out.append(f"The source is quantized and was taken as the float model that it stands for, from which the file itself differs by {report.dequantized:.2g}.")
    return out + doc["notes"]


def _record(text: str | None) -> dict | None:
    return json.loads(text) if text else None


def _validate_command(names: tuple[str, str], rules: tuple[str, ...], dequantize: bool) -> str:
    return shlex.join(["onnxgrow", "validate", *names, *(w for r in rules for w in ("--rules", str(r))), *["--dequantize"] * dequantize])


def _tried(model: Model, report: Report, seed: int, feeds: dict | None) -> list[Case]:
    """The inputs that a validation ran, made again."""
    structure = model.roles.structure
    tried = cases(structure, model.roles, seed) if feeds is None else [given(structure, feeds)]
    ran = {c.label for c in report.cases}
    return [c for c in tried if c.label in ran]


def _run(case: Case, report: Report) -> Run:
    digest, fed = hashlib.sha256(), []
    for name, x in case.feeds.items():
        digest.update(name.encode() + str(x.dtype).encode() + repr(x.shape).encode() + np.ascontiguousarray(x).tobytes())
        ends = (float(x.min()), float(x.max())) if x.size else (None, None)
        fed.append(Fed(name, str(x.dtype), x.shape, *ends))
    outputs = next(c.outputs for c in report.cases if c.label == case.label)
    return Run(case.label, fed, digest.hexdigest(), [vars(d) for d in outputs])

