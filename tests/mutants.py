"""Mutation testing of the code that decides what a grown model holds: one operator, number or statement changed at a time, and tests that must see it.

mutmut and cosmic-ray start a new interpreter for each mutant, and importing torch, transformers and ONNX Runtime takes longer than the tests.
Here one process imports these libraries once; each mutant is a fork of it in which one module of onnxgrow is compiled from a changed tree
before anything has imported it. A few tests that kill most mutants come first; what survives them meets the longer list.

    python -m tests.mutants --minutes 60 --kept /tmp/mutants.jsonl --table docs/reliability/mutants.md

The order of mutants is random and always the same, so that a run that is cut short is a sample; with the same --kept the next one goes on.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = ("axismap", "recipe", "stream", "noise", "maps", "cells", "flow", "solve", "treatments", "standin", "repairs", "apply", "plan", "regions")
BASIC = ["tests/test_corrupted.py::test_what_is_not_broken_is_exact_and_learns"]
ABOUT = {"recipe": "tests/test_recipe.py", "stream": "tests/test_recipe.py", "noise": "tests/test_recipe.py", "axismap": "tests/test_recipe.py",
         "regions": "tests/test_regions.py", "repairs": "tests/test_mutations.py", "maps": "tests/test_mutations.py"}  # tests of one module; they come next
LONGER = ["tests/test_growth.py", "tests/test_deepen.py", "tests/test_vocab.py", "tests/test_experts.py", "tests/test_several_widths.py", "tests/test_ties.py",
          "tests/test_gradient.py", "tests/test_quantized.py", "tests/test_idioms.py", "tests/test_fixed_sizes.py", "tests/test_errors.py", "tests/test_pytorch_training.py",
          "tests/test_rules.py", "tests/test_untouched.py"]  # fmt: skip
SECONDS = {"basic": 900, "longer": 3600}  # of wall time on a busy machine: a mutant that runs on for longer hangs
MEMORY = 32 << 30  # of addresses, which libraries reserve plenty of

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.MatMult: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: in which module, where, and what it says there now."""

    module: str
    line: int
    column: int
    change: str
    place: int  # among all changes of the module

    @property
    def key(self) -> str:
        return f"{self.module}:{self.line}:{self.column}:{self.change}:{self.place}"


# --- changing a tree -------------------------------------------------------------------------------------------------


class Changer(ast.NodeVisitor):
    """Walks a module; `at` None lists all changes, a number makes that one."""

    def __init__(self, module: str, at: int | None = None):
        self.module, self.at, self.found = module, at, []

    def offer(self, node: ast.AST, change: str) -> bool:
        """Note a change; True where it is the one to make."""
        self.found.append(Mutant(self.module, node.lineno, node.col_offset, change, len(self.found)))
        return self.at == len(self.found) - 1

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)

    def visit_Raise(self, node: ast.Raise) -> None:
        """What an error says is not the plan."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Words for people."""

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._swap(node, "op")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._swap(node, "op")

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._swap(node, "op")

    def _swap(self, node, name: str) -> None:
        new = SWAPS.get(type(getattr(node, name)))
        if new and self.offer(node, f"{type(getattr(node, name)).__name__} is {new.__name__}"):
            setattr(node, name, new())
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for k, op in enumerate(node.ops):
            new = SWAPS.get(type(op))
            if new and self.offer(node, f"{type(op).__name__} is {new.__name__}"):
                node.ops[k] = new()
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub, ast.Invert)) and self.offer(node, f"without {type(node.op).__name__}"):
            node.op = ast.UAdd() if not isinstance(node.op, ast.Not) else ast.Not()
            node.operand = ast.UnaryOp(ast.Not(), node.operand) if isinstance(node.op, ast.Not) else node.operand
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            if self.offer(node, f"{node.value} is {not node.value}"):
                node.value = not node.value
        elif isinstance(node.value, (int, float)) and self.offer(node, f"{node.value} is {node.value + 1}"):
            node.value += 1

    def visit_If(self, node: ast.If) -> None:
        self._negated(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negated(node)

    def visit_While(self, node: ast.While) -> None:
        self.generic_visit(node)

    def _negated(self, node: ast.If | ast.IfExp) -> None:
        if self.offer(node, "condition negated"):
            node.test = ast.UnaryOp(ast.Not(), node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for k, test in enumerate(list(node.ifs)):
            if self.offer(test, "filter left out"):
                node.ifs[k] = ast.Constant(True)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None) and self.offer(node, "returns None"):
            node.value = ast.Constant(None)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name not in ("__repr__", "__str__"):
            self.generic_visit(node)

    def visit(self, node: ast.AST) -> None:
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            for k, statement in enumerate(body if isinstance(body, list) else []):
                text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                left_out = isinstance(statement, (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break)) and not text
                if left_out and self.offer(statement, "left out"):
                    body[k] = ast.copy_location(ast.Pass(), statement)
        super().visit(node)


def source_of(module: str) -> Path:
    return ROOT / "onnxgrow" / f"{module}.py"


def mutants(module: str) -> list[Mutant]:
    """Every change of a module."""
    changer = Changer(module)
    changer.visit(ast.parse(source_of(module).read_text()))
    return changer.found


def changed(mutant: Mutant) -> ast.Module:
    """The tree of the module with this change."""
    tree, changer = ast.parse(source_of(mutant.module).read_text()), Changer(mutant.module, mutant.place)
    changer.visit(tree)
    return ast.fix_missing_locations(tree)


# --- trying one ------------------------------------------------------------------------------------------------------


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed module to whoever imports it."""

    def __init__(self, mutant: Mutant):
        self.name, self.file = f"onnxgrow.{mutant.module}", source_of(mutant.module)
        self.code = compile(changed(mutant), str(self.file), "exec")

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self, origin=str(self.file)) if name == self.name else None

    def exec_module(self, module) -> None:
        module.__file__ = str(self.file)
        exec(self.code, module.__dict__)  # noqa: S102 -- it is our own


def passes(mutant: Mutant | None, tests: list[str], seconds: int) -> bool | None:
    """Whether all tests pass in a fork with this change (None: with none); None where they hang."""
    folder = tempfile.mkdtemp(prefix="mutant-")
    child = os.fork()
    if not child:
        _run(mutant, tests, seconds, folder)
    try:
        _, status = os.waitpid(child, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if os.WIFSIGNALED(status):
        return None if os.WTERMSIG(status) == signal.SIGALRM else False
    code = os.WEXITSTATUS(status)
    assert code != 5, f"no tests in {tests}"
    return code == 0


def _run(mutant: Mutant | None, tests: list[str], seconds: int, folder: str) -> None:
    """In the fork: never returns."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    if mutant is not None or not os.environ.get("SHOWN"):
        os.dup2(null, 1)
        os.dup2(null, 2)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    code = 70
    try:
        import pytest

        if mutant:
            sys.meta_path.insert(0, Finder(mutant))
        code = int(pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist", f"--basetemp={folder}/pytest", *tests]))
    except BaseException:  # noqa: BLE001 -- a fork must never go on as its parent
        code = 71
    finally:
        os._exit(code)


def import_libraries() -> None:
    """All that a fork needs, and nothing of onnxgrow."""
    import hypothesis  # noqa: F401
    import ml_dtypes  # noqa: F401
    import onnx.checker  # noqa: F401
    import onnx.shape_inference  # noqa: F401
    import onnxruntime  # noqa: F401
    import pytest  # noqa: F401
    import torch.onnx  # noqa: F401

    from tests import zoo  # noqa: F401  (the models and transformers)

    assert not any(name == "onnxgrow" or name.startswith("onnxgrow.") for name in sys.modules)


def run(todo: list[Mutant], kept: Path, end: float, longer: bool) -> Iterator[tuple[Mutant, str]]:
    """The verdict of each: `basic` or `longer` (who killed it), `hangs`, or `survived`; those of an earlier run first."""
    done = {d["key"]: d["verdict"] for d in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    with kept.open("a") as file:
        for m in todo:
            verdict = done.get(f"{state_of(m.module)}:{m.key}")
            if verdict is None or (verdict == "unknown" and longer):
                if time.time() > end:
                    return
                verdict = judge(m, longer)
                file.write(json.dumps({"key": f"{state_of(m.module)}:{m.key}", "verdict": verdict} | asdict(m)) + "\n")
                file.flush()
                print(f"{verdict:9} {m.key}", flush=True)
            yield m, verdict


def judge(m: Mutant, longer: bool) -> str:
    basic = [*BASIC, *[ABOUT[m.module]] * (m.module in ABOUT)]
    for name, tests in (("basic", basic), *[("longer", LONGER)] * longer):
        passed = passes(m, tests, SECONDS[name])
        if not passed:
            return name if passed is False else "hangs"
    return "survived" if longer else "unknown"


def state_of(module: str) -> str:
    return hashlib.sha256(source_of(module).read_bytes()).hexdigest()[:8]


def in_order(modules: tuple[str, ...] = MODULES) -> list[Mutant]:
    """All mutants in a random order that is always the same."""
    found = [m for module in modules for m in mutants(module)]
    return sorted(found, key=lambda m: hashlib.sha256(m.key.encode()).hexdigest())


# --- the page --------------------------------------------------------------------------------------------------------


def section(found: list[tuple[Mutant, str]], every: int) -> str:
    """What stands behind the mark in the page."""
    rows: dict[str, Counter] = {module: Counter() for module in MODULES}
    for m, verdict in found:
        rows[m.module][verdict] += 1
    total = sum(rows.values(), Counter())
    columns = ("basic", "longer", "hangs", "survived", "unknown")

    def line(name: str, all_of: int, c: Counter) -> str:
        tried = sum(c.values())
        killed = tried - c["survived"] - c["unknown"]
        return f"| {name} | {all_of} | {tried} | {' | '.join(str(c[v]) for v in columns)} | {f'{killed / tried:.0%}' if tried else '–'} |"

    sizes = Counter(m.module for m in in_order())
    lines = [line(f"`{module}.py`", sizes[module], c) for module, c in rows.items()]
    left = [f"- `{m.module}.py:{m.line}:{m.column}` {m.change}" for m, verdict in sorted(found, key=lambda x: x[0].key) if verdict in ("survived", "unknown")]
    return "\n".join([f"{len(found)} of {every} mutants were tried, in an order that is random.", "",
                      f"| module | mutants | tried | {' | '.join(columns)} | killed |", "|---|" + "---|" * (len(columns) + 3), *lines, line("**all**", every, total), "",
                      "Those that were not killed:", "", *left, ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=Path, required=True, help="results, one a line: a later run goes on from there")
    parser.add_argument("--only", nargs="*", default=list(MODULES), help="names of modules")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no mutant after that")
    parser.add_argument("--longer", action="store_true", help="what survives the first tests meets the long list too")
    parser.add_argument("--table", type=Path, help="write the numbers into this page, behind its mark")
    args = parser.parse_args()
    end, todo = time.time() + 60 * args.minutes, in_order(tuple(args.only))
    import_libraries()
    assert passes(None, BASIC, 3600), "the tests fail without any change"
    found = list(run(todo, args.kept, end, args.longer))
    text = section(found, len(todo))
    print(text)
    if args.table:
        args.table.write_text(args.table.read_text().partition("<!-- measured -->")[0] + f"<!-- measured -->\n\n{text}")


if __name__ == "__main__":
    main()
