"""The messages that the program can raise, read off its source: where a class of the error family is called, with … for what is formatted in."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from onnxgrow import errors

ROOT = Path(__file__).parents[1]
CLASSES = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.OnnxgrowError)]
BELOW = {"TwoSizes": "GraphError", "Unforeseen": "GraphError"}  # classes of the program's own, below one of the family
HOLE = "…"


@dataclass(frozen=True)
class Message:
    """A message with its holes, where it is made, and whether a hint comes with it."""

    text: str
    error: str
    place: str
    hinted: bool


@cache
def trees() -> dict[str, ast.Module]:
    files = sorted([*(ROOT / "onnxgrow").rglob("*.py"), *(ROOT / "rules").glob("*.py")])
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


@cache
def messages() -> list[Message]:
    """Every message of every place, in order."""
    return [m for file, tree in trees().items() for m in _of_file(file, tree)]


def _of_file(file: str, tree: ast.Module) -> Iterator[Message]:
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    for call in ast.walk(tree):
        error = _name(call.func) if isinstance(call, ast.Call) else ""
        error = BELOW.get(error, error)
        if error not in CLASSES or not call.args:
            continue
        inside = [f for f in functions if f.lineno <= call.lineno <= f.end_lineno]
        hinted = any(k.arg == "hint" and not (isinstance(k.value, ast.Constant) and not k.value.value) for k in call.keywords) or len(call.args) > 2 \
            or ast.unparse(call.func).startswith("click.")  # click's own hint is the help
        for text in dict.fromkeys(_texts(call.args[0], inside[-1] if inside else None, file)):
            yield Message(text, error, f"{file}:{call.lineno}", hinted)


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""


def _texts(e: ast.expr, function: ast.FunctionDef | None, file: str) -> list[str]:
    """All that an expression may say: of a choice both, of a variable what is assigned to it, of an argument what callers give."""
    if isinstance(e, ast.Constant):
        return [str(e.value)]
    if isinstance(e, ast.JoinedStr):
        return _joined([_filled(v.value, function, file) if isinstance(v, ast.FormattedValue) else [str(v.value)] for v in e.values])
    if isinstance(e, ast.BinOp) and isinstance(e.op, ast.Add):
        return _joined([_texts(e.left, function, file), _texts(e.right, function, file)])
    if isinstance(e, ast.IfExp):
        return _texts(e.body, function, file) + _texts(e.orelse, function, file)
    if isinstance(e, ast.Name) and function is not None:
        given = _assigned(e.id, function)
        place = next((i for i, a in enumerate(a for a in function.args.args if a.arg != "self") if a.arg == e.id), None)
        if given or place is not None:
            return [t for value in given for t in _texts(value, function, file)] if given else _given(function, place, file)
    return [HOLE]


def _assigned(name: str, function: ast.FunctionDef) -> list[ast.expr]:
    """What a function gives a variable, but for changes of what it holds already."""
    values = [n.value for n in ast.walk(function) if isinstance(n, ast.Assign) and any(_name(t) == name for t in n.targets)]
    return [v for v in values if not any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(v))]


def _filled(e: ast.expr, function: ast.FunctionDef | None, file: str) -> list[str]:
    """What stands in braces: words that the function chose before, or of callers; else anything."""
    chosen = _assigned(e.id, function) if isinstance(e, ast.Name) and function is not None else []
    words = [text for value in chosen for text in _chosen(value)]
    return words if words and all(words) else [HOLE]


def _chosen(e: ast.expr) -> list[str | None]:
    """Plain words, one or the other; None where it is anything else."""
    if isinstance(e, ast.IfExp):
        return _chosen(e.body) + _chosen(e.orelse)
    return [e.value if isinstance(e, ast.Constant) and isinstance(e.value, str) else None]


def _given(function: ast.FunctionDef, place: int, file: str) -> list[str]:
    """What callers give as an argument of a function: of its own file where it is private, else of the program's part that it belongs to."""
    def near(other: str) -> bool:
        return other == file if function.name.startswith("_") else ("pytorch" in other) == ("pytorch" in file)
    return [t for c, f, name in calls().get(function.name, ()) if near(name) and f.name != function.name and len(c.args) > place
            for t in _texts(c.args[place], f, name)] or [HOLE]


@cache
def calls() -> dict[str, list[tuple[ast.Call, ast.FunctionDef, str]]]:
    """Every call in a function, with the function and the file, by the name that is called."""
    out: dict[str, list] = {}
    for name, tree in trees().items():
        for f in ast.walk(tree):
            for c in ast.walk(f) if isinstance(f, ast.FunctionDef) else ():
                if isinstance(c, ast.Call):
                    out.setdefault(_name(c.func), []).append((c, f, name))
    return out


def _joined(parts: list[list[str]]) -> list[str]:
    out = [""]
    for part in parts:
        out = [a + b for a in out for b in part]
    return [re.sub(f"{HOLE}+", HOLE, text) for text in out]


def covers(saying: str, message: str) -> bool:
    """Is a message with its holes one that a saying of the page describes?

    The saying's parts stand in it in order; or its holes filled with words of the saying give the saying ("the … is …" and "the … is a folder").
    """
    from tests.error_cases import says

    parts = [re.escape(part) for part in message.split(HOLE)]
    return says(message, saying) or (len(re.sub(r"\W", "", message)) > 1 and re.fullmatch(".+?".join(parts), saying) is not None)
