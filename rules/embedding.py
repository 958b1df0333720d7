"""Look-ups: rows of a table by index."""

from onnxgrow.rulebook import Rule, rule

AROUND = {"before": "ignore", "behind": "ignore"}  # of an axis that is cut at one row


@rule("Gather")
def gather(op):
    """Indices made at run time name old rows by number; a single constant one moves with its row, many would have to."""
    axis = op.axis(0)
    data = [f"a{i}" for i in range(op.rank)]
    if len(op.shapes[1]) < 2 and _one_row(op, axis):
        data[axis], sizes, dims = _cut_at(op, axis)
        out = data[:axis] + ["1"] * len(op.shapes[1]) + data[axis + 1:]
        return Rule(f"{' '.join(data)}, {'_ ' * len(op.shapes[1])} -> {' '.join(out)}", AROUND, sizes=sizes, dims=dims)
    index = [f"i{i}" for i in range(len(op.shapes[1]))]
    out = data[:axis] + index + data[axis + 1:]
    rows = "refuse" if op.value(1) is not None else "rows"
    return Rule(f"{' '.join(data)}, {' '.join(index)} -> {' '.join(out)}", {data[axis]: rows} | dict.fromkeys(index, "f(0)!=0"))


@rule("GatherElements")
def gather_elements(op):
    axis, names = op.axis(0), [f"a{i}" for i in range(op.rank)]
    index = [n if i != axis else "_" for i, n in enumerate(names)]
    same = [n if a == b else "_" for n, a, b in zip(index, op.shapes[0], op.shapes[1])]
    return Rule(f"{' '.join(names)}, {' '.join(same)} -> {' '.join(same)}", {names[axis]: "refuse"})


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
    fills = dict.fromkeys(addressed, "refuse") | dict.fromkeys(lead[batch:], "f(0)!=0")
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
    """Along the other axes, too, an index stands for the place it came from."""
    names, index = [f"a{i}" for i in range(op.rank)], [f"i{i}" for i in range(op.rank)]
    line = f"{' '.join(names)}, {' '.join(index)}, {' '.join(index)} -> {' '.join(names)}"
    return Rule(line, dict.fromkeys(names + index, "refuse"))


@rule("OneHot")
def one_hot(op):
    """Indices grow an axis of constants; the depth is a number in the graph."""
    lead = [f"i{i}" for i in range(op.rank)]
    axis = op.attrs.get("axis", -1) % (op.rank + 1)
    return Rule(f"{' '.join(lead)}, _, _ -> {' '.join([*lead[:axis], '_', *lead[axis:]])}", other="f(0)!=0")


def _one_row(op, axis: int) -> bool:
    """Does a constant name one row, which somebody reads, of an axis whose length is known?"""
    return op.read and op.value(1) is not None and op.value(1).size == 1 and op.shapes[0][axis] > 1 and not op.runtime[0][axis]


def _cut_at(op, axis: int) -> tuple[str, dict, dict]:
    """The axis as what lies before the row, the row, and what lies behind; the index moves with them, from the end if it is negative."""
    at, size = int(op.value(1).ravel()[0]), op.shapes[0][axis]
    lengths = {"before": at % size, "row": 1, "behind": size - at % size - 1}
    known = {name: length for name, length in lengths.items() if length}
    index = "before" if at > 0 else "_" if at == 0 else "-" + "+".join(name for name in ("row", "behind") if name in known)
    return "+".join(known), {1: (index,)}, known
