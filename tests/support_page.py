"""The page docs/support.md from the results of tests/support.py."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

COLOUR = re.compile(r"\x1b?\[\d*m")
ORDER = ("wrong", "crash", "refused", "near", "exact")  # worst first
GROWTHS = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "layers")

TITLES = {"crossed": "What grows, by every exporter, attention and form"}  # of parts with a page of their own

HEAD = """# {title}

Written by `python -m tests.support --table docs/{file} --part {part}`; do not edit. Tiny models with random weights everywhere are exported, grown in one
size at a time, and run beside their source in ONNX Runtime (CPU), with inputs of several batches and lengths as far as the export takes them. Sizes are odd where
the family allows it: hidden + 13 (twice as much where the stream begins with a convolution and an activation, or positions are a grouped
convolution), ffn + 29, head_dim + 3 (+ 4 with rotary pairs), one head or one group of heads more, kv_heads to the number of heads, one layer (or one period of
layers) more.

A cell is `exact` (certified, and the outputs agree to 1e-5 of their largest value; float16: 2e-2; or to four times what half a unit in the last place of its weights does to the source), `near` (certified as near, with the largest measured
difference), `refused` (before anything is written, for a reason that stands below), `WRONG` (certified, and not so) or `CRASH` (no error of onnxgrow's own). It is
the worst of all exports of the model; numbers say how many where they differ. `–`: the model has no such size. Variants: {variants}
"""


def page(found: list, file: Path, part: str, count: int) -> str:
    """The whole page, which will be `file`; `count` exports were to be tried."""
    results = [f for f in found if f.kind != "no export"]
    forms = Counter("/".join(f.variant.split("/")[1:]) for f in {f.variant: f for f in results}.values())
    tried = len({f.variant for f in found})
    rest = f" {tried} of {count} combinations were tried in this run." if tried < count else ""
    parts = [HEAD.format(title=TITLES.get(part, "What grows"), file=file.name, part=part, variants=", ".join(f"{form} ({n})" for form, n in sorted(forms.items())) + "." + rest),
             totals(results), table(results), refusals(results), bad(results), missing(found)]
    return "\n".join(p for p in parts if p)


def totals(results: list) -> str:
    kinds, count = Counter(f.kind for f in results), max(len(results), 1)
    good = kinds["exact"] + kinds["near"]
    lines = [f"{len({f.name for f in results})} architectures in {len({f.variant for f in results})} exports, {len(results)} growths: "
             f"{kinds['exact']} exact, {kinds['near']} near, {kinds['refused']} refused, {kinds['wrong']} wrong, {kinds['crash']} crashes. "
             f"**{100 * good / count:.1f} % exact or near.**", ""]
    by_form = defaultdict(Counter)
    for f in results:
        by_form[f.variant.split("/")[-1]][f.kind] += 1
    lines += ["| form | exact | near | refused | wrong | crash | exact or near |", "|---|---|---|---|---|---|---|"]
    for form, c in by_form.items():
        share = 100 * (c["exact"] + c["near"]) / sum(c.values())
        lines.append(f"| {form} | {c['exact']} | {c['near']} | {c['refused']} | {c['wrong']} | {c['crash']} | {share:.1f} % |")
    return "\n".join([*lines, ""])


def table(results: list) -> str:
    by_cell = defaultdict(list)
    for f in results:
        by_cell[f.name, f.growth].append(f)
    lines = ["## Architecture by growth", "", f"| model | {' | '.join(GROWTHS)} |", f"|---|{'---|' * len(GROWTHS)}"]
    for name in dict.fromkeys(f.name for f in results):
        lines.append(f"| {name} | {' | '.join(cell(by_cell.get((name, g), [])) for g in GROWTHS)} |")
    return "\n".join([*lines, ""])


def cell(found: list) -> str:
    """The worst kind, with the measured error of near growths, and counts where kinds are mixed."""
    if not found:
        return "–"
    kinds = Counter(f.kind for f in found)
    worst = next(k for k in ORDER if k in kinds)
    text = worst.upper() if worst in ("wrong", "crash") else worst
    if worst == "near":
        text += f" {max(f.error for f in found if f.kind == 'near'):.0e}"
    others = ", ".join(f"{kinds[k]} {k}" for k in ORDER if k in kinds and k != worst)
    return f"{text} ({kinds[worst]}; {others})" if others else text


def refusals(results: list) -> str:
    by_reason = defaultdict(list)
    for f in results:
        if f.kind == "refused":
            by_reason[f.reason].append(f)
    if not by_reason:
        return ""
    lines = ["## Refusals", "", "| reason | growths | where |", "|---|---|---|"]
    for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        where = defaultdict(set)
        for f in found:
            where[f.name].add(f.growth)
        places = "; ".join(f"{name}: {', '.join(g for g in GROWTHS if g in labels)}" for name, labels in where.items())
        lines.append(f"| {reason.replace('|', '/')} | {len(found)} | {places} |")
    return "\n".join([*lines, ""])


def bad(results: list) -> str:
    found = [f for f in results if f.kind in ("wrong", "crash")]
    if not found:
        return ""
    return "\n".join(["## Wrong or crashed", "", *(f"- {f.variant} {f.growth}: {f.kind} {f.error or ''} {f.reason}" for f in found), ""])


def missing(found: list) -> str:
    """Combinations that exporters and converters do not make."""
    by_reason = defaultdict(list)
    for f in found:
        if f.kind == "no export":
            by_reason[COLOUR.sub("", f.reason)].append(f.variant)
    if not by_reason:
        return ""
    lines = [f"- {reason}: {', '.join(names) if len(names) < 8 else f'{len(names)} exports'}" for reason, names in by_reason.items()]
    return "\n".join(["## What exporters and converters do not make", "", *lines, ""])
