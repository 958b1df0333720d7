"""Local functions of a model, written out: the analysis and the grown file know nodes only."""

from __future__ import annotations

from dataclasses import replace

import onnx

from .errors import GraphError
from .graph import graphs_in, operators_in
from .rulebook import Registry
from .source import Source
from .wellformed import MOST_NODES

DEEPEST = 50  # calls inside of calls


def inline(source: Source, registry: Registry) -> Source:
    """The same model without local functions, but for those whose operator has a rule or an unfolding of its own.

    Raises:
        GraphError: a function cannot be written out.
    """
    kept = [(f.domain, f.name) for f in source.proto.functions if registry.knows(f.domain, f.name)]
    if not operators_in(source.proto.graph) & ({(f.domain, f.name) for f in source.proto.functions} - {*kept}):
        return source
    _check_calls(source.proto)
    from onnx import inliner

    try:
        proto = inliner.inline_selected_functions(source.proto, kept, exclude=True)
    except Exception as problem:  # the inliner is compiled code, which raises what it likes
        names = ", ".join(f"{f.domain}::{f.name}" for f in source.proto.functions)
        raise GraphError(f"the model's local functions ({names}) cannot be written out: {problem}",
                         hint="write them out where the model was made, for example with onnx.inliner.inline_local_functions") from problem
    return replace(source, proto=_without_domains(source.proto, proto))


def _check_calls(proto: onnx.ModelProto) -> None:
    """GraphError for functions that call themselves, or of which few lines stand for very many nodes."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def written_out(nodes, around: tuple) -> int:
        return sum(1 + sum(written_out(g.node, around) for g in graphs_in(n)) + (size((n.domain, n.op_type), around) if (n.domain, n.op_type) in functions else 0) for n in nodes)

    def size(key: tuple[str, str], around: tuple) -> int:
        name = "::".join(key)
        if key in around or len(around) > DEEPEST:
            what = "calls itself" if key in around else f"is called through more than {DEEPEST} others"
            raise GraphError(f"the local function {name} {what}", node=name, hint="write the model's functions out where it was made")
        if key not in sizes:
            sizes[key] = written_out(functions[key].node, (*around, key))
        return sizes[key]

    count = written_out(proto.graph.node, ())
    if count > MOST_NODES:
        raise GraphError(f"written out, the model's local functions make {count} nodes, and {MOST_NODES} are the most that are read", hint="export a smaller model")


def _without_domains(before: onnx.ModelProto, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Domains that only functions used are not named any more."""
    used = {n.domain for n in proto.graph.node} | {f.domain for f in proto.functions} | {"", "ai.onnx"}
    gone = {f.domain for f in before.functions} - used
    for o in [o for o in proto.opset_import if o.domain in gone]:
        proto.opset_import.remove(o)
    return proto
