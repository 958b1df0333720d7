"""Local functions of a model, written out: the analysis and the grown file know nodes only."""

from __future__ import annotations

from dataclasses import replace

import onnx

from .errors import GraphError
from .graph import operators_in
from .rulebook import Registry
from .source import Source


def inline(source: Source, registry: Registry) -> Source:
    """The same model without local functions, but for those whose operator has a rule or an unfolding of its own.

    Raises:
        GraphError: a function cannot be written out.
    """
    kept = [(f.domain, f.name) for f in source.proto.functions if registry.knows(f.domain, f.name)]
    if not operators_in(source.proto.graph) & ({(f.domain, f.name) for f in source.proto.functions} - {*kept}):
        return source
    from onnx import inliner

    try:
        proto = inliner.inline_selected_functions(source.proto, kept, exclude=True)
    except Exception as problem:  # the inliner is compiled code, which raises what it likes
        names = ", ".join(f"{f.domain}::{f.name}" for f in source.proto.functions)
        raise GraphError(f"the model's local functions ({names}) cannot be written out: {problem}",
                         hint="write them out where the model was made, for example with onnx.inliner.inline_local_functions") from problem
    return replace(source, proto=_without_domains(source.proto, proto))


def _without_domains(before: onnx.ModelProto, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Domains that only functions used are not named any more."""
    used = {n.domain for n in proto.graph.node} | {f.domain for f in proto.functions} | {"", "ai.onnx"}
    gone = {f.domain for f in before.functions} - used
    for o in [o for o in proto.opset_import if o.domain in gone]:
        proto.opset_import.remove(o)
    return proto
