"""Are the rules of a user's file true? What `onnxgrow check-rules FILE` finds, and how it shows it.

The file brings its own examples, in a list called EXAMPLES; each is a model of one node on which every claim of its rule is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from types import ModuleType

from .errors import UsageError
from .operators import Example
from .rulebook import Registry, load_builtin, load_file
from .rulecheck import check_example
from .rulegrowth import Problem
from .terminal import mode

FALSE = ("wrong", "refused")  # the other kinds of problems only make a rule poorer than it could be
ADD_ONE = 'for example: EXAMPLES = [example("{op}", (4, 6), reference=in_numpy)], with `from onnxgrow.operators import example` (docs/rules.md)'


@dataclass
class Row:
    """What was tried of one name on a rule's line.

    Attributes:
        op: `domain::Name`.
        held: how many claims came true, in all examples.
    """

    op: str
    line: str
    name: str
    treatment: str
    held: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def true(self) -> bool:
        return not any(p.kind in FALSE for p in self.problems)

    @property
    def verdict(self) -> str:
        kinds = [p.kind for p in self.problems]
        return next((k for k in FALSE if k in kinds), "true" if not kinds else f"true, {kinds[0]}")

    def to_json(self) -> dict:
        found = [{"kind": p.kind, "example": str(p.example), "what": p.what, "numbers": p.numbers} for p in self.problems]
        return {"operator": self.op, "line": self.line, "axis": self.name, "treatment": self.treatment, "held": self.held, "problems": found}


@dataclass(frozen=True)
class Findings:
    """Everything that was found about one file; `untried` are operators that have a rule and no example."""

    file: str
    rows: list[Row]
    untried: list[str]

    @property
    def true(self) -> bool:
        return not self.untried and all(row.true for row in self.rows)

    def to_json(self) -> dict:
        return {"file": self.file, "true": self.true, "rules": [row.to_json() for row in self.rows], "untried": self.untried}


def check_file(path: str | Path) -> Findings:
    """Try every rule of a file on the file's own examples (the file is run: use only files that you trust).

    Raises:
        UsageError: the file has no rules or no examples, or an example cannot be run.
        GraphError: the file does not load.
    """
    registry = load_builtin()
    module = load_file(str(path))
    mine = {(domain, op): function for domain, op, _, function in registry if function.__module__ == module.__name__}
    if not mine:
        raise UsageError(f"{path} has no rules", hint='a rule is a function under @rule("domain::Name"): docs/rules.md')
    examples = _examples(module, path, _name(*next(iter(mine))))
    rows = [row for e in examples for row in _try(e, registry)]
    tried = {(e.domain, e.op) for e in examples}
    return Findings(str(path), _together(rows), [_name(*key) for key in mine if key not in tried])


def _examples(module: ModuleType, path: str | Path, op: str) -> list[Example]:
    found = list(getattr(module, "EXAMPLES", ()))
    if not found:
        raise UsageError(f"{path} brings no examples to try its rules on", hint=ADD_ONE.format(op=op))
    odd = next((e for e in found if not isinstance(e, Example)), None)
    if odd is not None:
        raise UsageError(f"EXAMPLES of {path} holds {type(odd).__name__} {odd!r:.60}", hint=ADD_ONE.format(op=op))
    return found


def _try(e: Example, registry: Registry) -> list[Row]:
    held: Counter = Counter()
    problems = list(check_example(e, registry, held))
    lines = {p.line for p in problems if p.line} or {_line(e, registry)}
    keys = [*held, *((p.name, p.treatment) for p in problems)]
    return [Row(_name(e.domain, e.op), min(lines), *key, held[key], [p for p in problems if (p.name, p.treatment) == key]) for key in dict.fromkeys(keys)]


def _line(e: Example, registry: Registry) -> str:
    from .graph import build
    from .structure import tie

    nodes = tie(build(e), registry).nodes
    return nodes[0].rule.line if nodes else ""


def _together(rows: list[Row]) -> list[Row]:
    """Rows of equal rules in different examples as one."""
    out: dict[tuple, Row] = {}
    for row in rows:
        same = out.setdefault((row.op, row.line, row.name, row.treatment), Row(row.op, row.line, row.name, row.treatment))
        same.held += row.held
        same.problems += [p for i, p in enumerate(row.problems) if str(p) not in map(str, row.problems[:i])]
    return list(out.values())


def _name(domain: str, op: str) -> str:
    return f"{domain}::{op}" if domain else op


def show_findings(found: Findings) -> None:
    """Below each rule's line what held of each axis, then each problem with its line, axis, fills and numbers; no line breaks in the middle of a word."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, **mode.plainness())
    for line, style in (*_table(found.rows), *((f"{op}: not tried", "red") for op in found.untried)):
        console.print(Text(_broken(line, console.width), style))
    for row in found.rows:
        for p in row.problems:
            say = [f"{p.kind}: {p.example}", f"  line: {row.line}", f"  axis {p.name}, treatment {p.treatment!r}: {p.what}" if p.name else f"  {p.what}"]
            for line in [*say, *[f"  {p.numbers}"] * bool(p.numbers)]:
                console.print(Text(_broken(line, console.width)), soft_wrap=True)
    for op in found.untried:
        console.print(Text(_broken(f"not tried: {op}: no example in EXAMPLES; {ADD_ONE.format(op=op)}", console.width)), soft_wrap=True)
    console.print("every claim holds" if found.true else "not all of this is true", markup=False)


def _table(rows: list[Row]) -> Iterator[tuple[str, str]]:
    """Lines and their styles: an operator with its line as a heading, below it one line for each axis."""
    titles = ("axis", "treatment", "claims that held", "verdict")
    cells = [(row.name or "-", row.treatment or "-", str(row.held), row.verdict) for row in rows]
    wide = [max(map(len, column)) for column in zip(titles, *cells)]

    def line(a: str, b: str, c: str, d: str) -> str:
        return f"  {a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d}"

    above = None
    for row, cell in zip(rows, cells):
        if (row.op, row.line) != above:
            yield f"{row.op}: {row.line}", "bold"
            yield line(*titles), "dim"
        above = row.op, row.line
        yield line(*cell), "green" if row.verdict == "true" else "yellow" if row.true else "red"


def _broken(line: str, width: int) -> str:
    """A line in as many as it needs, those below indented."""
    start = line[: len(line) - len(line.lstrip())]
    if len(line) <= width:
        return line
    return "\n".join(wrap(line.strip(), width, initial_indent=start, subsequent_indent=start + "    ", break_long_words=False, break_on_hyphens=False))
