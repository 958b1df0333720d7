"""Where spread-out bodies of nodes meet again (`onnxgrow.subgraphs`), and the searches that call a body."""

from onnx import TensorProto

from onnxgrow.rulebook import Rule, rule


def _either_shape(node, shapes, types):
    """That of the branch that is taken; of two that may be taken, that of the first."""
    branches = [(s, t) for s, t in zip(shapes[1 : 1 + node.attrs["live"]], types[1 : 1 + node.attrs["live"]])]
    known = [b for b in branches if b[0] is not None]
    return [known[0] if known and len({len(s) for s, _ in known}) == 1 else (None, branches[0][1])]


@rule("onnxgrow::Either", shape=_either_shape)
def either(op):
    """The result of an If: one of two tensors, by a condition that is one for all entries."""
    live = op.attrs["live"]
    sizes = zip(*op.shapes[1 : 1 + live])
    axes = " ".join(f"a{i}" if len(set(found)) == 1 else "_" for i, found in enumerate(sizes)) or "..."  # the lengths may differ
    return Rule(f"_, {', '.join([axes] * live)}{', _' * (len(op.shapes) - 1 - live)} -> {axes}", other="select" if live > 1 else "keep")


def _ids(node, shapes, types):
    return [(None, TensorProto.INT32)] * len(node.outputs)


@rule("com.microsoft::BeamSearch", "com.microsoft::GreedySearch", "com.microsoft::Sampling", shape=_ids)
def search(op):
    """Word numbers in, word numbers out; what a grown axis holds is a matter of the body."""
    return Rule(f"{', '.join(['_'] * len(op.shapes))} -> {', '.join(['_'] * len(op.outputs))}", other="ignore")
