"""Look-ups: rows of a table by index."""

from onnxgrow.rulebook import Rule, rule


@rule("Gather")
def gather(op):
    """Indices made at run time name old rows by number; constant ones would have to move with them."""
    axis = op.axis(0)
    data = [f"a{i}" for i in range(op.rank)]
    index = [f"i{i}" for i in range(len(op.shapes[1]))]
    out = data[:axis] + index + data[axis + 1:]
    return Rule(f"{' '.join(data)}, {' '.join(index)} -> {' '.join(out)}", {data[axis]: _rows(op)} | dict.fromkeys(index, "f(0)!=0"))


def _rows(op) -> str:
    return "refuse" if op.constant(1) else "rows"


@rule("GatherElements")
def gather_elements(op):
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
