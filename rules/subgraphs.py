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


def _carried_shape(node, shapes, types):
    """That of the initial value, longer by what each step adds."""
    kind = node.attrs.get("kind") or types[0]
    if not node.inputs[0] or shapes[0] is None:
        return [(None if node.inputs[0] else (), kind)]
    out, lengths = list(shapes[0]), list(node.attrs.get("lengths", ()))
    for axis, by in zip(lengths[::2], lengths[1::2]):
        out[axis] += by * shapes[2][0]
    return [(tuple(out), kind)]


@rule("onnxgrow::Carried", shape=_carried_shape)
def carried(op):
    """What a Loop or Scan carries into a step: the initial value, or what an earlier step made of it."""
    changing = set(list(op.attrs.get("lengths", ()))[::2])
    axes = " ".join("_" if i in changing else f"a{i}" for i in range(len(op.shapes[0] or ()))) or "..."
    return Rule(f"{axes}{', _' * (len(op.shapes) - 1)} -> {axes}")


def _slice_shape(node, shapes, types):
    """One entry along the axis, and a vector as long as the axis."""
    if shapes[0] is None:
        return [(None, types[0]), (None, TensorProto.INT64)]
    axis = node.attrs.get("axis", 0) % len(shapes[0])
    return [(shapes[0][:axis] + shapes[0][axis + 1 :], types[0]), (shapes[0][axis : axis + 1], TensorProto.INT64)]


@rule("onnxgrow::ScanSlice", shape=_slice_shape)
def scan_slice(op):
    """What a Scan takes at one step of one of its inputs. A new entry of that axis would be a step more."""
    axes = [f"a{i}" for i in range(op.rank)]
    axis = op.axis(0)
    return Rule(f"{' '.join(axes)} -> {' '.join(axes[:axis] + axes[axis + 1 :]) or '...'}, {axes[axis]}", fills={axes[axis]: "refuse"})


def _end_parts(attrs, inputs):
    """(passed, counters, states, what follows them, what is stacked) of the inputs of a LoopEnd, or of anything listed alike."""
    at, n = 1 + attrs["counters"], attrs["carried"]
    rest = list(inputs)[at + 3 :]
    return inputs[0], inputs[1:at], rest[:n], rest[n : 2 * n], rest[2 * n :]


def _changes(attrs):
    """(state, axis) -> by how many entries it gets longer at each step."""
    found = list(attrs.get("lengths", ()))
    return {(k, axis): by for k, axis, by in zip(found[::3], found[1::3], found[2::3])}


def _end_shape(node, shapes, types):
    """What is carried must leave a step as it came, but for the lengths that change; what is stacked has an axis more."""
    passed, counters, states, nexts, stacked = _end_parts(node.attrs, shapes)
    kinds, changes, out = types[len(types) - len(stacked) - len(nexts) :], _changes(node.attrs), []
    for k, (before, after) in enumerate(zip(states, nexts)):
        by = [changes.get((k, i), 0) for i in range(len(before or ()))]
        fits = None not in (before, after, passed, counters[0]) and after == tuple(n + b for n, b in zip(before, by))
        out.append((tuple(n + b * (counters[0][0] - passed[0]) for n, b in zip(before, by)) if fits else None, kinds[k]))
    for shape, axis, kind in zip(stacked, node.attrs.get("axes", ()), kinds[len(nexts) :]):
        at = axis % (len(shape) + 1) if shape is not None else 0
        out.append((None if shape is None or counters[0] is None else (*shape[:at], counters[0][0], *shape[at:]), kind))
    return out


@rule("onnxgrow::LoopEnd", shape=_end_shape)
def loop_end(op):
    """The results of a Loop or Scan: what is carried is before, after and between all steps one in size and in fills, so what holds at first holds at last."""
    _, counters, states, _, stacked = _end_parts(op.attrs, op.shapes)
    changes = _changes(op.attrs)
    kept = [" ".join("_" if (k, i) in changes else f"s{k}x{i}" for i in range(len(shape))) or "..." for k, shape in enumerate(states)]
    rows = [[f"y{k}x{i}" for i in range(len(shape))] for k, shape in enumerate(stacked)]
    at = [axis % (len(row) + 1) for row, axis in zip(rows, op.attrs.get("axes", ()))]
    ins = ["_", *["n"] * len(counters), "_", "_", "_", *kept, *kept, *(" ".join(row) or "..." for row in rows)]
    outs = [*kept, *(" ".join([*row[:k], "n", *row[k:]]) for row, k in zip(rows, at))]
    return Rule(f"{', '.join(ins)} -> {', '.join(outs)}", fills={"n": "refuse"})
