"""A difference between two files for people: sections of one line each, long ones cut."""

from __future__ import annotations

from collections import Counter
from textwrap import shorten, wrap

from .console import one_line
from .difference import Change, FileDifference
from .graphdiff import NodeChange
from .modules import with_module
from .weightdiff import WeightChange

FEW = 12  # lines of a section, where not all are asked for
SAMPLE = 3  # lines of one kind of change of nodes
ORDER = ("operator", "attribute", "input", "output", "removed", "added", "doc", "metadata")
ASIDE = ("doc", "metadata")  # what changes nothing of the function: counted, and shown where all is asked for
COLUMNS = 80
LONG = 120  # characters of a structured text, from which a line shows how long it is and no beginning of it


def difference_screen(found: FileDifference, everything: bool, width: int) -> list:
    """The same on a terminal of so many columns, as rich texts: what a line is about stands out, and so does what is gone or new."""
    from rich.text import Text

    whole = {"  added: ": "green", "  removed: ": "red", "  ... ": "dim", "note: ": "dim"}
    ends = {"only in the second": "green", "only in the first": "red"}
    out = []
    for line in difference_lines(found, everything, width):
        shown = Text(one_line(line).replace(" -> ", " → "), next((style for start, style in whole.items() if line.startswith(start)), ""))
        if not line.startswith(" ") and not shown.style:
            shown.stylize("bold")
        elif not line.startswith("      ") and ": " in line and not shown.style:
            shown.stylize("cyan", 0, shown.plain.index(": "))
        for end, style in ends.items() if line.startswith(" ") else ():
            shown.highlight_words([end], style)
        out.append(shown)
    return out


def difference_lines(found: FileDifference, everything: bool = False, columns: int = COLUMNS) -> list[str]:
    """All sections that have something to say; `everything` cuts none of them."""
    if found.same:
        return [f"the same: {found.equal_weights:,} weights, {found.nodes[0]:,} nodes", *_notes(found)]
    out = []
    sections = [("architecture", [_changed(c) for c in found.architecture] + ([f"not compared: {found.unknown}"] if found.unknown else [])),
                (f"weights: {_counted(found)}", _weights(found, everything)),
                (f"nodes: {found.nodes[0]:,} and {found.nodes[1]:,}{_kinds(found)}", _nodes(found, everything)),
                (f"names: {len(found.renames):,} differ", [f"{r.kind} {r.a} -> {r.b}" for r in found.renames]),
                ("inputs", [_changed(c) for c in found.inputs]), ("outputs", [_changed(c) for c in found.outputs]),
                ("file", [_changed(c) for c in found.file]), ("metadata", [_changed(c) for c in found.metadata] if everything else [])]
    for title, lines in sections:
        if lines:
            out += [title, *_cut(lines, everything, columns)]
    count = 0 if everything else len(found.metadata)
    return out + [f"metadata: {count} {'entry differs' if count == 1 else 'entries differ'} (--all shows {'it' if count == 1 else 'them'})"] * bool(count) + _notes(found)


def _cut(lines: list[str], everything: bool, columns: int) -> list[str]:
    more = len(lines) - FEW
    kept = lines if everything or more < 2 or any(line.startswith("... ") for line in lines) else lines[:FEW]
    out = [part for line in kept for part in wrap(line, columns, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False, break_long_words=False)]
    return out if kept is lines else [*out, f"  ... {more:,} more (--all shows them)"]


def _notes(found: FileDifference) -> list[str]:
    return [f"note: {text}" for text in found.stored]


def _changed(c: Change) -> str:
    before, after = (None if v is None else shorten(_oneline(v), 120, placeholder=" ...") for v in (c.before, c.after))
    return f"{c.name}: only in the second: {after}" if before is None else f"{c.name}: only in the first: {before}" if after is None else f"{c.name}: {before} -> {after}"


def _oneline(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    if len(text) > LONG and text[0] in "{[":
        return f"{len(text):,} characters of JSON"
    return text if len(text) <= 300 else f"{text[:60]} ... ({len(text):,} characters)"


def _counted(found: FileDifference) -> str:
    kinds = Counter(w.change for w in found.weights)
    return ", ".join([f"{found.equal_weights:,} equal", *(f"{n:,} {NAMES[kind]}" for kind, n in kinds.items())])


NAMES = {"changed": "changed", "grown": "of another size", "type": "of another type", "shape": "not comparable", "added": "only in the second", "removed": "only in the first"}


def _weights(found: FileDifference, everything: bool) -> list[str]:
    """A line for each weight; those that became the same in the same way (a norm in each layer) share one, unless all are asked for."""
    alike: dict[tuple, list[WeightChange]] = {}
    for w in found.weights:
        said = {"added": "only in the second", "removed": "only in the first", "shape": "nothing compared: too unlike"}.get(w.change) or _told(w)
        alike.setdefault((_types(w), said, _name(found, w) if everything else ""), []).append(w)
    return [f"{_name(found, some[0])}{f' and {len(some) - 1} more' if len(some) > 1 else ''} {types}: {said}" for (types, said, _), some in alike.items()]


def _name(found: FileDifference, w: WeightChange) -> str:
    a, b = (name and with_module(name, modules) for name, modules in zip((w.a, w.b), found.modules))
    return f"{a} -> {b}" if a and b and w.a != w.b else a or b


def _types(w: WeightChange) -> str:
    return f"{w.before} -> {w.after}" if w.before and w.after and w.before != w.after else w.before or w.after


def _told(w: WeightChange) -> str:
    gap = w.gap
    if w.values:
        return " -> ".join(", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in side) for side in w.values)
    if not gap.differ:
        same = "the same numbers" if w.change == "type" and not gap.largest else f"rounded, by {gap.largest:.2g} at most" if w.change == "type" else "old block equal"
        return same + _new(w)
    what = f"{gap.differ:,} of {gap.entries:,} entries differ" + (" in the old block" if w.change == "grown" else "")
    if gap.factor:
        return f"{'old block' if w.change == 'grown' else 'all'} times {gap.factor:.6g}{_new(w)}"
    where = "" if gap.within is None else f" within [{', '.join(f'{i}' if i == j else f'{i}..{j}' for i, j in gap.within)}]"
    return f"{what}, by {gap.largest:.3g} at most{where if gap.differ < gap.entries else ''}{_new(w)}"


def _new(w: WeightChange) -> str:
    if w.new is None:
        return ""
    zero = "all zero" if w.zero == w.new else f"{w.zero:,} zero" if w.zero else "none zero"
    return f"; {w.new:,} new entries, {zero}" + ("" if w.known else "; first entries taken for the old block")


def _kinds(found: FileDifference) -> str:
    kinds = Counter(c.change for c in found.changes)
    return "".join(f", {n:,} {kind}{'s' * (n > 1)}" if kind in ("attribute", "input", "output", "operator") else f", {n:,} {kind}" for kind, n in kinds.items())


def _nodes(found: FileDifference, everything: bool) -> list[str]:
    """What changes the function first; a few of each kind, of what does not the number."""
    kinds = {kind: [c for c in found.changes if c.change == kind] for kind in ORDER}
    out = []
    for kind, changes in kinds.items():
        few = changes if everything or (kind not in ASIDE and len(changes) <= SAMPLE + 1) else changes[: SAMPLE * (kind not in ASIDE)]
        left = f"{len(changes) - len(few):,} {'more: ' * bool(few)}{kind}"
        out += [_node(c) for c in few] + [f"... {left} (--all shows {'it' if len(changes) == 1 else 'them'})"] * (len(few) < len(changes))
    return out


def _node(c: NodeChange) -> str:
    if c.change in ("added", "removed"):
        return f"{c.change}: {c.what} {c.b or c.a}"
    what = {"attribute": c.what, "input": f"input {c.what}", "metadata": f"metadata {c.what}", "output": "number of outputs", "operator": "domain", "doc": "doc"}[c.change]
    return f"{c.a}{'' if c.a == c.b else f' ({c.b})'}: {what}: {_short(c.before)} -> {_short(c.after)}"


def _short(text: str | None) -> str:
    return "nothing" if text is None else shorten(text, 60, placeholder=" ...") if text else "''"
