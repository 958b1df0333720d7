"""`onnxgrow check-rules`: true rules pass, false ones are shown with line, axis, fills and numbers, and examples/custom_rule works from end to end."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxgrow.commands import main

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "custom_rule"
NUMBER = itertools.count()  # a domain of its own for each file: the book of rules is one for the whole process


def checked(*arguments, columns: int = 200) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["check-rules", *map(str, arguments)], env={"COLUMNS": str(columns)})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def edited(folder: Path, *changes: tuple[str, str]) -> Path:
    """The rules of the example with changes, for a domain of their own."""
    text = (EXAMPLE / "acme_rules.py").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return written(folder, text)


def written(folder: Path, text: str) -> Path:
    number = next(NUMBER)
    path = folder / f"rules{number}.py"
    path.write_text(text.replace("acme::", f"acme{number}::"))
    return path


def test_true_rules_pass():
    code, out = checked(EXAMPLE / "acme_rules.py")
    assert code == 0 and "every claim holds" in out and "wrong" not in out
    rows, op = [], ""
    for line in out.splitlines():
        op = line.partition(": ")[0] if line.startswith("acme::") else op
        rows += [[op, *line.split()]] if line.startswith("  ") and "treatment" not in line else []
    assert {(row[0], row[1]) for row in rows} >= {("acme::GatedSwish", "f"), ("acme::SplitHeads", "h"), ("acme::SplitHeads", "d")}
    assert all(int(row[-2]) > 3 for row in rows)  # claims that held


def test_lines_fit_a_terminal_and_rules_stay_whole(tmp_path):
    """At 80 columns a rule's line is never cut, and nothing is wider than the terminal that could have been broken between words."""
    path = edited(tmp_path, ('other="f(0)=0"', 'other="keep"'))
    path.write_text(path.read_text() + "\n\n@rule(\"acme9::NobodyHasEverTriedThisOperator\", shape=lambda node, shapes, types: [(shapes[0], types[0])])\n"
                    "def alone(op):\n    return Rule(\"... -> ...\", other=\"keep\")\n")
    code, out = checked(path, columns=80)
    assert code == 1 and max(map(len, out.splitlines())) <= 80, out
    assert any(line.endswith("::SplitHeads: b t (h d) -> b h t d") for line in out.splitlines()) and "not tried: acme9::NobodyHasEverTriedThisOperator" in out


PLANTED = [  # change to the file, words that must be said
    (('other="f(0)=0"', 'other="keep"'), ["wrong", "axis f, treatment 'keep': x0 mean -> mean is claimed and is not so", "the new entry y0["]),
    (('"... f+f -> ... f"', '"... f+g -> ... f"'), ["refused", "line: ... f+g -> ... f", "its extent says (3, 9)"]),
    (('sizes={"num_heads": ("h",)}, ', ""), ["refused", "axis h", "its extent says (2, 6, 5, 4)"]),
    (('"b t (h d) -> b h t d"', '"b t (d h) -> b h t d"'), ["wrong", "old entries stay is claimed and is not so", "the old entry y0["]),
    (("width // 2)", "width)"), ["wrong", "the shape function says [3, 12] for y0, and it is [3, 6]"]),
    (('other="f(0)=0"', 'other="refuse"'), ["missing", "x0 zero -> zero is so and is not claimed"]),
]


@pytest.mark.parametrize(("change", "words"), PLANTED, ids=[c[1] or "no sizes" for c, _ in PLANTED])
def test_a_planted_lie_is_shown(change, words, tmp_path):
    code, out = checked(edited(tmp_path, change))
    assert code == (words[0] != "missing") and all(word in out for word in words), out
    assert ("not all of this is true" in out) == (words[0] != "missing")


HEAD = """
import numpy as np
from onnxgrow.operators import example
from onnxgrow.rulebook import Rule, rule
same = lambda node, shapes, types: [(shapes[0], types[0])]
@rule("acme::Double", shape=same)
def double(op):
    return Rule("... -> ...")
"""
TOLD = [  # a file, what is wrong with it, the next step
    (HEAD, "brings no examples to try its rules on", 'EXAMPLES = [example("acme'),
    ("x = 1", "has no rules", "@rule("),
    ("x = ", "does not load: SyntaxError", "fix the file"),
    ("x = 1 / 0", "does not load: ZeroDivisionError", "fix the file"),
    (HEAD + 'EXAMPLES = ["Double"]', "EXAMPLES of", "reference=in_numpy"),
    (HEAD + 'EXAMPLES = [example("acme::Double", (4, 6))]', "ONNX Runtime cannot run acme", "reference="),
    (HEAD + 'EXAMPLES = [example("acme::Double", (4, 6), reference=lambda: 1)]', "fails on its own example: TypeError", "arrays of all inputs"),
]


@pytest.mark.parametrize(("text", "message", "hint"), TOLD, ids=[m for _, m, _ in TOLD])
def test_a_file_that_cannot_be_checked_is_told_so(text, message, hint, tmp_path):
    code, out = checked(written(tmp_path, text))
    assert code in (1, 2) and message in out and hint in out and "Traceback" not in out


def test_a_rule_without_an_example_is_not_true(tmp_path):
    more = '@rule("acme::Triple", shape=same)\ndef triple(op):\n    return Rule("... -> ...")\n'
    code, out = checked(written(tmp_path, HEAD + more + 'EXAMPLES = [example("acme::Double", (4, 6), reference=lambda x: 2 * x)]'))
    assert code == 1 and "not tried: acme" in out and "::Triple: no example in EXAMPLES" in out


def test_what_onnx_runtime_knows_needs_no_reference(tmp_path):
    text = HEAD.replace("acme::Double", "ai.onnx.ml::Binarizer").replace('"... -> ..."', '"... -> ...", other="f(0)=0"')
    code, out = checked(written(tmp_path, text + 'EXAMPLES = [example("ai.onnx.ml::Binarizer", (4, 6), threshold=0.5)]'))
    assert code == 0, out


def test_as_a_document(tmp_path):
    code, out = checked(edited(tmp_path, ('other="f(0)=0"', 'other="keep"')), "--json")
    document = json.loads(out)
    assert code == 1 and document["command"] == "check-rules" and document["true"] is False and document["untried"] == []
    row = next(r for r in document["rules"] if r["axis"] == "f")
    assert row["line"] == "... f+f -> ... f" and row["treatment"] == "keep" and row["held"] > 0
    assert row["problems"][0]["kind"] == "wrong" and "not" in row["problems"][0]["numbers"]


def test_the_example_grows_with_its_rules_only(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import acme_model

    acme_model.make(str(tmp_path / "model.onnx"))

    def onnxgrow(*arguments) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], cwd=tmp_path, capture_output=True, text=True)

    refused = onnxgrow("expand", "model.onnx", "--hidden", "48")
    assert refused.returncode == 1 and "no rule for the operator acme::SplitHeads" in refused.stderr and "--rules FILE" in refused.stderr
    growths = {"hidden": ("--hidden", "48"), "rest": ("--heads", "4", "--head-dim", "10", "--ffn", "53", "--layers", "3")}
    for name, sizes in growths.items():
        done = onnxgrow("expand", "model.onnx", *sizes, "--rules", str(EXAMPLE / "acme_rules.py"), "--no-validate", "-o", f"{name}.onnx")
        assert done.returncode == 0 and "certificate: exact" in done.stdout, done.stderr
        assert acme_model.compare(str(tmp_path / "model.onnx"), str(tmp_path / f"{name}.onnx")) < 1e-5
