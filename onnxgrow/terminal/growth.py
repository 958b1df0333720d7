"""What `expand` shows: before and after, what the certificate means, how it went, and what to do next."""

from __future__ import annotations

import shlex
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..certificate import Certificate
from ..console import one_line, show
from ..describe import layers, order, summary_lines
from . import mode
from .numbers import count, seconds, size, times
from .progress import CHECKING, WRITING, Bars

if TYPE_CHECKING:
    from ..model import Model
    from ..plan import Plan, Result

SHOWN = 3  # names of weights in a line
GOOD, FAIR, BAD = ("✔", "bold green"), ("≈", "bold yellow"), ("✘", "bold red")
MARKS = {"exact": GOOD, "near": FAIR, "not preserved": BAD}
RUN = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")  # domains of operators that ONNX Runtime has
QUARTERS = ("INT4", "UINT4", "FLOAT4E2M1")  # types of which two entries share a byte


def words(c: Certificate) -> str:
    """A certificate as one sentence."""
    if c.kind == "exact":
        return f"exact: the grown model computes the same function; only rounding{f' in {c.rounding}' if c.rounding else ''} differs"
    if c.kind == "near":
        bound = f"a norm moves statistics by at most {c.bound:.1e}" if c.bound is not None else "nothing bounds how far off it is"
        return f"near: the grown model computes almost the same function; {bound}"
    return "not preserved: this growth changes the function"


def weight_bytes(proto) -> int:
    """Bytes of all initializers of a graph, by their shapes and types."""
    from onnx import TensorProto, helper

    total = 0
    for tensor in proto.graph.initializer:
        entries = prod(tensor.dims)
        half = TensorProto.DataType.Name(tensor.data_type) in QUARTERS
        total += (entries + 1) // 2 if half else entries * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return total


def announce(plan: Plan, target: Path) -> None:
    """Before anything is written: the sizes, and what is promised."""
    if mode.quiet():
        return
    if mode.pictured():
        mode.draw(lambda width: growth_screen(plan, target))
        return
    old, new = weight_bytes(plan.model.opened.proto), weight_bytes(plan.decisions.proto)
    show([f"{n}: {a} -> {b}" for n, (a, b) in plan.sizes.items()] + summary_lines(plan) + [f"weights: {old:,} -> {new:,} bytes"])
    if mode.verbose():
        show([f"  {note}" for note in (*plan.decisions.target.notes, *plan.decisions.edits.reasons)])


def growth_screen(plan: Plan, target: Path) -> list:
    """Before and after, and what is promised, as rich renderables."""
    from rich.table import Table
    from rich.text import Text

    old, new = plan.model.parameters, plan.model.parameters + plan.new_parameters
    sizes = (weight_bytes(plan.model.opened.proto), weight_bytes(plan.decisions.proto))
    table = Table.grid(padding=(0, 3, 0, 0), pad_edge=False)
    for _ in range(2):
        table.add_column()
    table.columns[1].justify = "right"
    for _ in range(3):
        table.add_column(justify="right")
    table.add_row("", Text("before", "dim"), "", Text("after", "dim"), "")
    rows = [(name, str(a), str(b), times(a, b)) for name, (a, b) in plan.sizes.items()]
    rows += [("parameters", count(old), count(new), times(old, new)), ("weights", size(sizes[0]), size(sizes[1]), times(*sizes))]
    for name, before, after, factor in rows:
        table.add_row(one_line(name), before, Text("→", "dim"), Text(after, "bold"), Text(factor, "dim"))
    blocks = [Text.assemble((f"{x['stack']}: {order(x['blocks'])}", ""), ("   + is new, and starts from the layer of that number", "dim")) for x in layers(plan)]
    sign, style = MARKS[plan.certificate.kind]
    out = [Text.assemble((one_line(plan.model.path.name), "bold"), (" → ", "dim"), (one_line(target.name), "bold")), Text(""), table, *blocks, Text(""),
           Text.assemble((f"{sign} ", style), words(plan.certificate))]
    if plan.new_parameters:
        out.append(Text(f"  {plan.new_parameters:,} new parameters, " + (f"{plan.dead_parameters:,} of them dead" if plan.dead_parameters else "all of them can learn")))
    out += [Text(one_line(line), "dim") for line in summary_lines(plan)[2:]]
    return out + [Text(f"  {one_line(note)}", "dim") for note in (*plan.decisions.target.notes, *plan.decisions.edits.reasons) if mode.verbose()]


def done(plan: Plan, result: Result, bars: Bars, more: list[str], source: Path) -> None:
    """Afterwards: what validation showed, the file, and the next command; with --quiet the path alone."""
    kind = plan.certificate.kind
    said = result.report.lines(kind) if result.report else ["not validated (--no-validate)"]
    if mode.quiet():
        show([str(result.path)], always=True)
    elif mode.pictured():
        mode.draw(lambda width: _finished(plan, result, bars, more, source))
    else:
        show([*said, f"wrote {result.path}", *_odd(result), *more, *(timing(bars) if mode.verbose() else [])])


def _odd(result: Result) -> list[str]:
    """Weights of the source that hold what is no number."""
    names, more = result.not_finite[:SHOWN], len(result.not_finite) - SHOWN
    listed = ", ".join(map(repr, names)) + (f" and {more} more" if more > 0 else "")
    return [f"warning: NaN or infinity in {listed}: copied as they are, and kept out of what is new"] if names else []


def timing(bars: Bars) -> list[str]:
    """Where the time went."""
    rate = bars.total / max(bars.took(WRITING), 1e-3)
    return [f"  writing: {size(bars.total)} in {seconds(bars.took(WRITING))} ({size(rate)}/s)"] + \
        [f"  validating: {seconds(bars.took(CHECKING))}"] * (CHECKING in bars.began)


def _finished(plan: Plan, result: Result, bars: Bars, more: list[str], source: Path) -> list:
    from rich.text import Text

    out = report_screen(result.report, plan.certificate.kind) if result.report else [Text.assemble(("– ", "dim"), "not validated (--no-validate)")]
    took = max(bars.took(WRITING), 1e-3)
    rate = f" in {seconds(took)} ({size(bars.total / took)}/s)" if took > 0.5 else ""
    out.append(Text.assemble((f"{GOOD[0]} ", GOOD[1]), "wrote ", (one_line(str(result.path)), "bold"), (f", {size(bars.total)}{rate}", "dim")))
    out += [Text(f"  {one_line(line)}") for line in (*_odd(result), *more)]
    out += [Text(line, "dim") for line in timing(bars) if mode.verbose()]
    return [*out, Text(""), *_next(plan.model, source, result.path, checked=result.report is not None, exported=bool(more))]


def _next(model: Model, source: Path, grown: Path, checked: bool, exported: bool) -> list:
    """Commands that are likely to come next, with the rules that they need; what is known by rules alone, or has several graphs, can be looked at, but not exported."""
    from rich.text import Text

    rules = "".join(f" --rules {shlex.quote(file)}" for file in model.rules)
    known = {*RUN, *(function.domain for function in model.opened.proto.functions)}
    foreign = any(node.domain not in known for node in model.opened.proto.graph.node)
    steps = [] if checked or foreign else [(f"onnxgrow validate {shlex.quote(str(source))} {shlex.quote(str(grown))}{rules}", "the same function?")]
    foreign |= bool(model.members)
    steps += [] if exported or foreign else [(f"onnxgrow export {shlex.quote(str(grown))}{rules}", "go on training in PyTorch")]
    steps += [(f"onnxgrow inspect {shlex.quote(str(grown))}{rules}", "look at it")] * (exported and checked or foreign)
    return [Text.assemble(("next: " if i == 0 else "      ", "dim"), (one_line(command), "bold"), (f"   # {why}", "dim"), no_wrap=True) for i, (command, why) in enumerate(steps)]


def report_screen(report, kind: str) -> list:
    """What a validation showed, the verdict first; each set of inputs with --verbose."""
    from rich.text import Text

    verdict, *rest = report.lines(kind)
    mark = GOOD if report.equal else MARKS[kind] if kind != "exact" else BAD
    cases = {f"  {c.label}: " for c in report.cases}
    kept = [line for line in rest if mode.verbose() or not line.startswith(tuple(cases)) or "NaN" in line]
    counted = f"  compared in {len(report.cases)} set{'s' * (len(report.cases) != 1)} of inputs"
    verdict, top1, share = verdict.partition(", top-1")
    counted += f"; top-1{share}" if top1 else ""
    return [Text.assemble((f"{mark[0]} ", mark[1]), one_line(verdict)), Text(one_line(counted), "dim"), *(Text(one_line(line), "dim") for line in kept)]
