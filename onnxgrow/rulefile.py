"""Are the rules of a user's file true? What `onnxgrow check-rules FILE` finds, and how it shows it.

The file brings its own examples, in a list called EXAMPLES; each is a model of one node on which every claim of its rule is tried.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
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
    """A table of what held, then each problem with its line, axis, fills and numbers."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, **mode.plainness())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("operator", "line", "axis", "treatment", "claims that held", "verdict"):
        table.add_column(title, justify="right" if title.startswith("claims") else "left", overflow="fold")
    for row in found.rows:
        style = "green" if row.verdict == "true" else "yellow" if row.true else "red"
        table.add_row(*map(_plain, (row.op, row.line, row.name or "-", row.treatment or "-", str(row.held), row.verdict)), style=style)
    for op in found.untried:
        table.add_row(_plain(op), "", "-", "-", "0", "not tried", style="red")
    console.print(table)
    for row in found.rows:
        for p in row.problems:
            say = [f"{p.kind}: {p.example}", f"  line: {row.line}", f"  axis {p.name}, treatment {p.treatment!r}: {p.what}" if p.name else f"  {p.what}"]
            console.print("\n".join([*say, *[f"  {p.numbers}"] * bool(p.numbers)]), markup=False, soft_wrap=True)
    for op in found.untried:
        console.print(f"not tried: {op}: no example in EXAMPLES; {ADD_ONE.format(op=op)}", markup=False, soft_wrap=True)
    console.print("every claim holds" if found.true else "not all of this is true", markup=False)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
