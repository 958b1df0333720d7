"""The hostile corpus: what is made by code here, and what onnxgrow says to it.

    python -m tests.hostile                                     every case, with what was said; fails where something happened that must not
    python -m tests.hostile --only "zip bomb"                   cases whose name has this in it
    python -m tests.hostile --table docs/reliability/hostile.md the page with the table
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from onnxgrow.console import printable
from tests import hostile_external, hostile_files, hostile_graphs
from tests.hostile_base import CASES, GROUPS, MEMORY, SECONDS, Case, Tried, preload, tried

MODULES = hostile_external, hostile_files, hostile_graphs
HEAD = """# Hostile files

A model file from a stranger is untrusted input. This is the corpus of files that no honest exporter writes, made by code (`tests/hostile_*.py`), and what onnxgrow says to
each. Every command runs in a process of its own with {memory} GB of memory and {seconds} s of processor time. Beside the answer it is checked that there is no traceback, no
crash and no hang, that no raw control character reaches the screen, that no file but the target is touched, and that each refusal says what to do next
(`tests/test_hostile.py`).

    python -m tests.hostile --table docs/reliability/hostile.md

{count} cases: {refused} are refused, {safe} are harmless and are read (a file that is only strange, or a control).

What is not tried here: code that you give yourself. Rule files (`--rules`) are Python and are run; everything else (models, data beside them, configs, recipes, inputs,
trained weights) is data and is never run. No pickle is read anywhere.
"""


def wrong(case: Case, found: Tried) -> list[str]:
    """What is not as it should be."""
    out = [*found.misdeeds]
    if case.says and (not found.codes[-1] or case.says not in found.said):
        out.append(f"should say {case.says!r}: {found.said[:300]!r} (exit codes {found.codes})")
    return out


def attempt(name: str) -> tuple[Case, Tried]:
    preload()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        return CASES[name], tried(CASES[name], Path(folder, "case"))


def table(found: dict[str, Tried]) -> str:
    refused = sum(bool(t.codes[-1]) for t in found.values())
    out = [HEAD.format(memory=MEMORY >> 30, seconds=SECONDS, count=len(found), refused=refused, safe=len(found) - refused)]
    for title, names in GROUPS.items():
        out += [f"## {title}\n", "| case | what it is | what onnxgrow says |", "|---|---|---|"]
        out += [f"| {_cell(name)} | {_cell(CASES[name].about)} | {_answer(found[name])} |" for name in names if name in found]
        out.append("")
    return "\n".join(out)


def _answer(found: Tried) -> str:
    if not found.codes[-1]:
        return "harmless: read and done"
    return f"`{_cell(found.said, 150).replace('`', '')}`"


def _cell(text: str, most: int = 100) -> str:
    text = " ".join(printable(text).replace("|", "/").split())
    text = text.replace("<", "&lt;").replace("{", "&#123;") if "`" not in text and most == 100 else text
    return text if len(text) <= most else text[: most - 1] + "…"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--group", default="", help="only below this heading")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    found, bad = {}, 0
    for name in CASES:
        if options.only in name and (not options.group or name in GROUPS[options.group]):
            case, found[name] = attempt(name)
            problems = wrong(case, found[name])
            bad += bool(problems)
            print(f"{'WRONG' if problems else 'ok':5} {printable(name)}: {printable(found[name].said)[:110]}", *problems, sep="\n      ", flush=True)
    print(f"{len(found)} cases, {bad} wrong")
    if options.table:
        options.table.parent.mkdir(exist_ok=True)
        options.table.write_text(table(found), encoding="utf-8")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
