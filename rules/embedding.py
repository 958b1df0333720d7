"""Look-ups: rows of a table by index."""

from onnxgrow.rulebook import Rule, rule

AROUND = {"before": "ignore", "behind": "ignore"}  # of an axis that is cut at one row


@rule("Gather")
def gather(op):
    """Indices made at run time name old rows by number, and so does a constant one that counts from the beginning; many would have to move."""
    axis = op.axis(0)
    data = [f"a{i}" for i in range(op.rank)]
    if len(op.shapes[1]) < 2 and _one_row(op, axis):
        data[axis], sizes, dims = _cut_at(op, axis)
        out = data[:axis] + ["1"] * len(op.shapes[1]) + data[axis + 1:]
        return Rule(f"{' '.join(data)}, {'_ ' * len(op.shapes[1])} -> {' '.join(out)}", AROUND, sizes=sizes, dims=dims)
    index = [f"i{i}" for i in range(len(op.shapes[1]))]
    out = data[:axis] + index + data[axis + 1:]
    one = op.value(1) is not None and op.value(1).size == 1 and (op.value(1) >= 0).all()
    rows = "rows" if one else _rows(op)
    return Rule(f"{' '.join(data)}, {' '.join(index)} -> {' '.join(out)}", {data[axis]: rows} | dict.fromkeys(index, "f(0)!=0"))


def _rows(op) -> str:
    return "refuse" if op.constant(1) else "rows"


@rule("GatherElements")
def gather_elements(op):
    """Indices name old entries by number."""
    axis, names = op.axis(0), [f"a{i}" for i in range(op.rank)]
    index = [n if i != axis else "_" for i, n in enumerate(names)]
    same = [n if a == b else "_" for n, a, b in zip(index, op.shapes[0], op.shapes[1])]
    return Rule(f"{' '.join(names)}, {' '.join(same)} -> {' '.join(same)}", {names[axis]: _rows(op)})


@rule("GatherND")
def gather_nd(op):
    """The last axis of the indices addresses leading axes of the data; what lies behind them is kept."""
    batch, depth = op.attrs.get("batch_dims", 0), op.shapes[1][-1]
    tail = [f"t{i}" for i in range(op.rank - batch - depth)]
    lead = [f"i{i}" for i in range(len(op.shapes[1]) - 1)]
    addressed = [f"x{i}" for i in range(depth)]
    if depth == 1 and not batch and _one_row(op, 0):
        row, sizes, dims = _cut_at(op, 0)
        return Rule(f"{' '.join([row, *tail])}, {'_ ' * len(op.shapes[1])} -> {' '.join(['1'] * len(lead) + tail)}", AROUND, sizes=sizes, dims=dims)
    data = " ".join(lead[:batch] + addressed + tail)
    fills = dict.fromkeys(addressed, _rows(op)) | dict.fromkeys(lead[batch:], "f(0)!=0")
    return Rule(f"{data}, {' '.join(lead)} d -> {' '.join(lead + tail)}", fills | {"d": "refuse"})


@rule("ScatterND")
def scatter_nd(op):
    depth = op.shapes[1][-1]
    names = [f"a{i}" for i in range(op.rank)]
    lead = [f"i{i}" for i in range(len(op.shapes[1]) - 1)]
    data, at = " ".join(names), " ".join(lead)
    return Rule(f"{data}, {at} d, {at} {' '.join(names[depth:])} -> {data}", dict.fromkeys([*names[:depth], *lead, "d"], "refuse"))


@rule("ScatterElements")
def scatter_elements(op):
    """Indices name old places by number; along the other axes, too, an index stands for the place it came from."""
    names, index = [f"a{i}" for i in range(op.rank)], [f"i{i}" for i in range(op.rank)]
    line = f"{' '.join(names)}, {' '.join(index)}, {' '.join(index)} -> {' '.join(names)}"
    return Rule(line, dict.fromkeys(names + index, "refuse") | {names[op.axis(0)]: "put"})


@rule("TensorScatter")
def tensor_scatter(op):
    """New words of a cache, written from a place on that the run names."""
    names, axis = [f"a{i}" for i in range(op.rank)], op.axis(-2)
    update = [*names[:axis], "t", *names[axis + 1:]]
    line = f"{' '.join(names)}, {' '.join(update)}{', a0' * op.has(2)} -> {' '.join(names)}"
    return Rule(line, {"t": "refuse", names[axis]: "put"})


@rule("OneHot")
def one_hot(op):
    """Old indices light up old entries, and new ones hold the number for off; the depth is a number in the graph."""
    lead, values = [f"i{i}" for i in range(op.rank)], op.value(2)
    axis = op.attrs.get("axis", -1) % (op.rank + 1)
    off = values is not None and values.size and not values.ravel()[0]
    line = f"{' '.join(lead)}, _, _ -> {' '.join([*lead[:axis], 'c', *lead[axis:]])}"
    return Rule(line, {"c": "one hot" if off else "refuse"}, "f(0)!=0", {1: ("c",)} if op.value(1) is not None else {})


def _one_row(op, axis: int) -> bool:
    """Does a constant name one row, which somebody reads, of an axis whose length is known?"""
    return op.read and op.constant(1) and op.value(1).size == 1 and op.shapes[0][axis] > 1 and not op.runtime[0][axis]


def _cut_at(op, axis: int) -> tuple[str, dict, dict]:
    """The axis as what lies before the row, the row, and what lies behind; the index moves with them, from the end if it is negative."""
    at, size = int(op.value(1).ravel()[0]), op.shapes[0][axis]
    lengths = {"before": at % size, "row": 1, "behind": size - at % size - 1}
    known = {name: length for name, length in lengths.items() if length}
    index = "before" if at > 0 else "_" if at == 0 else "-" + "+".join(name for name in ("row", "behind") if name in known)
    return "+".join(known), {1: (index,)}, known
