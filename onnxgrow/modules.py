"""Which module of the framework a node belongs to, and so a weight whose name says nothing (`val_8`, `onnx::MatMul_123`).

Both PyTorch exporters leave it: dynamo in the node's metadata, TorchScript in the node's name (`/layers.0/mlp/MatMul`). Exporters count up
names for weights that they transpose or fold; the module of the node that reads such a weight tells which one is meant.
"""

from __future__ import annotations

import ast
import re

import onnx

from .graph import FLOATS

Scope = tuple[str, ...]
SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
ANONYMOUS = re.compile(r"^(_?val_\d+(_\d+)*|onnx::.*|/.*|\d+|_?t_?\d+|const.*|ortshared.*|.*_output_\d+)$", re.I)
NAME = re.compile(r"^[A-Za-z_]\w*$|^\d+$")
PATH = re.compile(r"^/(.+)/([^/]+)$")
MOVES = {"Transpose", "Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze"}


def is_anonymous(name: str) -> bool:
    """A name that an exporter counted up, which says nothing about the model."""
    return bool(ANONYMOUS.match(name))


def scope_of(node: onnx.NodeProto, classes: dict[Scope, str] | None = None) -> Scope | None:
    """The path of the module that a node belongs to; None where the exporter left none.

    Args:
        classes: gets the names of the classes on the way, where the node knows them.
    """
    meta = {p.key: p.value for p in node.metadata_props}
    if SCOPES in meta:
        return _read_dynamo(meta, {} if classes is None else classes)
    found = PATH.match(node.name)
    return _clean(_torchscript(found[1].split("/"))) if found else None


def _read_dynamo(meta: dict[str, str], known: dict[Scope, str]) -> Scope | None:
    try:
        scopes, classes = ast.literal_eval(meta[SCOPES]), ast.literal_eval(meta.get(CLASSES, "[]"))
    except (ValueError, SyntaxError):
        return None
    if len(scopes) < 2 or scopes[0] != "":
        return None
    for scope, name in zip(scopes[:-1], classes):
        path = _clean(scope.split("."))
        if path is not None and name:
            known.setdefault(path, name.rpartition(".")[2])
    return _clean(scopes[-2].split("."))


def _torchscript(parts: list[str]) -> list[str]:
    """`layer.0` is an element of a list; behind `layer` itself, a list that was called, the same name says only which element."""
    out: list[str] = []
    for before, part in zip(["", *parts], parts):
        out += (part.removeprefix(f"{before}.") if before else part).split(".")
    return out


def _clean(parts: list[str]) -> Scope | None:
    """A path of attribute names; None where a part is none (an exporter's own words)."""
    parts = [p for p in parts if p]
    return tuple(parts) if all(NAME.match(p) for p in parts) else None


def modules_of(graph: onnx.GraphProto) -> dict[str, str]:
    """Anonymous float initializer -> the module that reads it (`layers.0.mlp`), the innermost one around all its readers; without those that nobody knows."""
    origin = {t.name: t.name for t in graph.initializer if (t.data_type in FLOATS or len(t.dims) > 1) and is_anonymous(t.name)}
    found: dict[str, Scope] = {}
    for node in graph.node if origin else ():
        read = [origin[t] for t in node.input if t in origin]
        if not read:
            continue
        scope = scope_of(node)
        if scope is None and node.op_type in (*MOVES, "DequantizeLinear") and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        for name in read if scope else ():
            found[name] = _common(found.get(name, scope), scope)
    return {name: ".".join(scope) for name, scope in found.items() if scope}


def _common(a: Scope, b: Scope) -> Scope:
    same = [x == y for x, y in zip(a, b)]
    return a[: same.index(False) if False in same else len(same)]


def with_module(name: str, modules: dict[str, str]) -> str:
    """A weight's name for people: `val_8 (layers.0.mlp)`."""
    return f"{name} ({modules[name]})" if name in modules else name
