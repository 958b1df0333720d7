"""Changes of a module, one at a time: an operator, a number, a condition, a filter, a return value or a statement. What an error says, annotations and text stay."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

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
    inside: bool  # a function; what is not is executed when the module is imported
    text: str  # the line as it was

    @property
    def key(self) -> str:
        return f"{self.module}:{self.line}:{self.column}:{self.change}:{self.place}"


class Changer(ast.NodeVisitor):
    """Walks a module; `at` None lists all changes, a number makes that one."""

    def __init__(self, module: str, at: int | None = None):
        self.module, self.at, self.found, self.depth = module, at, [], 0
        self.lines = source_of(module).read_text().splitlines()

    def offer(self, node: ast.AST, change: str) -> bool:
        """Note a change; True where it is the one to make."""
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)  # behind the change that is made, nodes may have no place
        self.found.append(Mutant(self.module, line, column, change, len(self.found), self.depth > 0, self.lines[line - 1].strip()))
        return self.at == len(self.found) - 1

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            outside = isinstance(node, ast.FunctionDef) and name == "args"  # defaults are made where the function is
            self.depth -= outside
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)
            self.depth += outside

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

    def visit(self, node: ast.AST) -> None:
        function = isinstance(node, ast.FunctionDef)
        if function and node.name in ("__repr__", "__str__"):
            return
        self.depth += function
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            for k, statement in enumerate(body if isinstance(body, list) else []):
                text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                left_out = isinstance(statement, (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break)) and not text
                if left_out and self.offer(statement, "left out"):
                    body[k] = ast.copy_location(ast.Pass(), statement)
        super().visit(node)
        self.depth -= function


def source_of(module: str) -> Path:
    return ROOT / "onnxgrow" / f"{module}.py"


def mutants(module: str) -> list[Mutant]:
    """Every change of a module."""
    changer = Changer(module)
    changer.visit(ast.parse(source_of(module).read_text()))
    return [m for m in changer.found if (m.change, m.text) != ("returns None", "return False")]  # which whoever asks cannot tell apart


def changed(mutant: Mutant) -> ast.Module:
    """The tree of the module with this change."""
    tree, changer = ast.parse(source_of(mutant.module).read_text()), Changer(mutant.module, mutant.place)
    changer.visit(tree)
    return ast.fix_missing_locations(tree)


def state_of(module: str) -> str:
    """Of the text of a module."""
    return hashlib.sha256(source_of(module).read_bytes()).hexdigest()[:8]


def in_order(modules: tuple[str, ...]) -> list[Mutant]:
    """All mutants in a random order that is always the same."""
    found = [m for module in modules for m in mutants(module)]
    return sorted(found, key=lambda m: hashlib.sha256(m.key.encode()).hexdigest())
