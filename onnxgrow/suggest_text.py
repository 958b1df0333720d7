"""Suggested sizes for people: plain lines of at most 80 columns, and a table for terminals."""

from __future__ import annotations

from textwrap import wrap

from .console import one_line, printable
from .costs import Cost
from .family import Goal
from .quantities import short
from .suggest import Suggestion, Suggestions

COLUMNS = 80
PROSE = 110  # columns that running text takes at most
WIDE = 100  # columns from which there is room for the sizes of today beside the new ones
COLOURS = {"exact": "green", "near": "yellow", "refused": "red"}
REASONS = 1  # of a certificate; a norm in each layer says the same


def suggestion_lines(found: Suggestions) -> list[str]:
    """Everything, one plan after the other. Commands stay on one line, so that they can be copied."""
    out = [*_head(found), ""]
    for plan in found.plans:
        out += [*_wrapped(f"{plan.name}: {sizes_of(plan)}", ""), *_numbers(plan, found.goal), *_wrapped(certificate_text(plan)), *[f"  {plan.command}"] * (plan.cost is not None), ""]
    return out + foot_lines(found)


def _head(found: Suggestions) -> list[str]:
    now = f"{found.now.parameters:,} parameters, {_flops(found.now)}, file {short(found.now_bytes, 'B')}"
    return [*_wrapped(f"{found.model.path.name}: {now}", ""), f"asked for: {asked_for(found.goal)}"]


def asked_for(goal: Goal) -> str:
    return {"parameters": f"{short(goal.value)} parameters", "flops": f"{short(goal.value, 'FLOP')} per token",
            "memory": f"training in {short(goal.value, 'B')} ({goal.precision})"}[goal.kind]


def sizes_of(plan: Suggestion) -> str:
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in plan.sizes.items())


def _flops(cost: Cost) -> str:
    return f"{short(cost.per_token, 'FLOP')} per token"


def off(cost: Cost, goal: Goal) -> str:
    """`-15.2 %`: how far from what was asked for."""
    return f"{100 * (goal.of(cost) / goal.value - 1):+.1f} %"


def _numbers(plan: Suggestion, goal: Goal) -> list[str]:
    if plan.cost is None:
        return []
    counts = f"{plan.cost.parameters:,} parameters, {_flops(plan.cost)}, file {short(plan.file_bytes, 'B')}"
    memory = " or ".join(f"{short(m['total'], 'B')} {name} ({short(m['activations'], 'B')} activations)"
                         for name in ("mixed", "fp32") for m in [plan.cost.memory(name, goal.batch)])
    return _wrapped(f"{counts} ({off(plan.cost, goal)})") + _wrapped(f"memory to train: {memory}")


def certificate_text(plan: Suggestion) -> str:
    """Exact, near or refused, with the first reason."""
    more = len(plan.reasons) - REASONS if plan.certificate != "refused" else 0
    shown = plan.reasons[:REASONS] if more > 0 else plan.reasons
    return plan.certificate + (": " + "; next: ".join(shown) if shown else "") + (f" (and {more} more like it)" if more > 0 else "")


def foot_lines(found: Suggestions, width: int = COLUMNS) -> list[str]:
    """What the numbers are."""
    at = f"of {found.length:,}" if found.length else f"of {found.now.tokens:,} tokens (a fixed size)"
    flops = f"FLOP: a forward pass over a sequence {at}, two per multiply-add of matrix products, divided by its tokens; a training step takes about three times that."
    many = f"{found.goal.batch} sequence{'s' * (found.goal.batch > 1)}"
    memory = f"memory to train: weights, gradients and AdamW's states, and activations of {many} (an estimate: docs/suggest.md)."
    return [line for text in (*found.notes, flops, memory) for line in wrap(text, width)]


def _wrapped(text: str, indent: str = "  ", width: int = COLUMNS) -> list[str]:
    return wrap(text, width, initial_indent=indent, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def suggest_screen(found: Suggestions, width: int) -> list:
    """The same on a terminal, as rich renderables: a table of numbers, then what is to be said of each plan, and the commands."""
    from rich.text import Text

    now = f"{found.now.parameters:,} parameters, {_flops(found.now)}, file {short(found.now_bytes, 'B')}"
    out = [Text.assemble((printable(found.model.path.name), "bold"), f"  {now}"), Text(f"asked for: {asked_for(found.goal)}", "dim"), Text("")]
    out += [_table(found, width), Text("")] * bool(found.plans)
    for plan in found.plans:
        out += [Text(one_line(line)) for line in _wrapped(f"{plan.name}: {certificate_text(plan)}", "", min(width, PROSE)) if plan.reasons]
    commands = [(plan.command, plan.name) for plan in found.plans if plan.cost]
    longest = max((len(command) for command, _ in commands), default=0)
    for command, name in commands:
        out.append(Text.assemble((one_line(command), "bold"), (f"{'':<{longest - len(command)}}   # {name}", "dim"), no_wrap=True))
    return [*out, Text(""), *(Text(one_line(line), "dim") for line in foot_lines(found, min(width, PROSE)))]


def _table(found: Suggestions, width: int):
    """A row for each plan: its sizes, its costs, and below what was asked for, how far from it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2 if width >= COLUMNS else 1, 0, 0))
    table.add_column("\nplan", no_wrap=True)
    table.add_column("\nsizes", overflow="fold", min_width=12)
    for title in ("\nparameters", "FLOP per\ntoken", "\nfile", "memory\nmixed", "memory\nfp32"):
        table.add_column(title, justify="right", no_wrap=True)
    for i, plan in enumerate(found.plans):
        name = Text.assemble((plan.name, "bold"), "\n", (plan.certificate, COLOURS.get(plan.certificate, "")))
        sizes = [f"{name} {old} → {new}" if width >= WIDE else f"{name} {new}" for name, (old, new) in plan.sizes.items()]
        table.add_row(name, printable("\n".join(sizes)) + "\n" * (i < len(found.plans) - 1), *_cells(plan, found.goal))
    return table


def _cells(plan: Suggestion, goal: Goal) -> list[str]:
    if plan.cost is None:
        return [""] * 5
    memory = [short(plan.cost.memory(p, goal.batch)["total"], "B") for p in ("mixed", "fp32")]
    cells = [short(plan.cost.parameters), short(plan.cost.per_token), short(plan.file_bytes, "B"), *memory]
    asked = {"parameters": 0, "flops": 1, "memory": 3 if goal.precision == "mixed" else 4}[goal.kind]
    cells[asked] += f"\n{off(plan.cost, goal)}"
    return cells
