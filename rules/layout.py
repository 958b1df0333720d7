"""Values move, none changes."""

from onnxgrow.alignment import align
from onnxgrow.fold import slice_arguments
from onnxgrow.rulebook import Rule, rule


@rule("Transpose")
def transpose(op):
    names = _names(op.rank)
    perm = op.attrs.get("perm") or list(range(op.rank))[::-1]
    return Rule(f"{' '.join(names)} -> {' '.join(names[p] for p in perm)}")


@rule("Reshape")
def reshape(op):
    """Row-major regrouping; elements of the operand that are -1 or 0 look after themselves."""
    left, right, broken = align(op.shapes[0], op.outputs[0])
    operand = op.value(1)
    own = {0, -1} if not op.attrs.get("allowzero") else {-1}
    sizes = {1: tuple("_" if int(v) in own else _term(t) for v, t in zip(operand, right))} if operand is not None else {}
    return Rule(f"{' '.join(left)}, _ -> {' '.join(right)}", dict.fromkeys(broken, "refuse"), sizes=sizes)


@rule("Flatten")
def flatten(op):
    left, right, broken = align(op.shapes[0], op.outputs[0])
    return Rule(f"{' '.join(left)} -> {' '.join(right)}", dict.fromkeys(broken, "refuse"))


@rule("Unsqueeze", "Squeeze")
def squeeze(op):
    """Axes of size 1 come and go; all others keep their order."""
    wide, narrow = (op.outputs[0], op.shapes[0]) if op.op == "Unsqueeze" else (op.shapes[0], op.outputs[0])
    axes = op.attrs.get("axes") if op.value(1) is None else [int(a) for a in op.value(1).ravel()]
    axes = [i for i, d in enumerate(wide) if d == 1] if axes is None else [a % len(wide) for a in axes]
    names = iter(_names(len(narrow)))
    wide_terms = ["1" if i in axes else next(names) for i in range(len(wide))]
    terms = {"Unsqueeze": (_names(len(narrow)), wide_terms), "Squeeze": (wide_terms, _names(len(narrow)))}[op.op]
    return Rule(f"{' '.join(terms[0])}{', _' * (len(op.shapes) - 1)} -> {' '.join(terms[1])}")


@rule("Expand")
def expand(op):
    """Size-1 axes are repeated; the repeated axis is new and holds equal entries."""
    out, pad = op.outputs[0], len(op.outputs[0]) - op.rank
    right = [f"a{i}" for i in range(len(out))]
    left = [right[i + pad] if d == out[i + pad] else "1" for i, d in enumerate(op.shapes[0])]
    operand = op.value(1)
    sizes = {} if operand is None else {1: tuple("_" if int(v) == 1 else right[i + len(out) - operand.size] for i, v in enumerate(operand))}
    zero = op.value(0) is not None and not op.value(0).any()
    made = dict.fromkeys((n for n in right if n not in left), "zeros" if zero else "alike")
    return Rule(f"{' '.join(left)}, _ -> {' '.join(right)}", made, sizes=sizes)


@rule("Concat")
def concat(op):
    axis, names = op.axis(0), _names(op.rank)
    parts = [f"p{i}" for i in range(len(op.shapes))]
    put = lambda term: " ".join(term if i == axis else n for i, n in enumerate(names))  # noqa: E731
    return Rule(f"{', '.join(put(p) for p in parts)} -> {put('+'.join(parts))}")


@rule("Split")
def split(op):
    axis, names = op.axis(0), _names(op.rank)
    parts = [f"p{i}" for i in range(len(op.outputs))]
    put = lambda term: " ".join(term if i == axis else n for i, n in enumerate(names))  # noqa: E731
    slot = "split" if "split" in op.attrs else 1
    sizes = {slot: tuple(parts)} if slot == "split" or op.value(1) is not None else {}
    return Rule(f"{put('+'.join(parts))}{', _' * (len(op.shapes) - 1)} -> {', '.join(put(p) for p in parts)}", sizes=sizes)


@rule("Slice")
def slices(op):
    """A cut [start, end) makes the axis a sum of what lies before, inside and behind; one to a length that is fed reads by number; of every n-th entry
    the axis is n columns. A cut inside a factor (of windows, say) lets the other axes grow.
    """
    return _slice(op, True)


def _slice(op, cutting: bool) -> Rule:
    left, right = _names(op.rank), _names(op.rank)
    fills, dims, starts, ends = {}, {}, [], []
    for axis, start, end, step in slice_arguments(op, op.values, op.rank):
        size = op.shapes[0][axis]
        first, last = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))
        moves = _runtime_cut(op, axis) or (start and op.value(1) is not None and not op.constant(1))  # at another step, say, it starts elsewhere
        if first == last == size == start and not moves:  # nothing is left behind the end
            fills[left[axis]], right[axis] = "ignore", "_"
            starts.append(left[axis]), ends.append("_" if end > size else left[axis])
            continue
        if _takes_column(op, axis, first, last, step):
            left[axis], right[axis], dims[f"s{axis}"], fills[f"s{axis}"] = f"(p{axis} s{axis})", f"p{axis}", step, "refuse"
            starts.append("_"), ends.append("_" if end > size else left[axis])
            continue
        lengths = {f"p{axis}": first, f"q{axis}": last - first, f"r{axis}": size - last}
        known = {n: length for n, length in lengths.items() if length > 0}
        if step != 1 or first >= last or moves or len(known) > 1 and not cutting:
            by_number = moves and not op.runtime[0][axis] and step == 1 and 0 <= start and 0 <= end < size
            fills[left[axis]], right[axis] = "rows" if by_number else "refuse", "_"
            starts.append("_"), ends.append("_")
            continue
        p, q, r = lengths
        if len(known) > 1:
            left[axis], right[axis] = "+".join(known), q
            dims |= known
        before, inside = "+".join(n for n in (p,) if n in known), "+".join(n for n in (p, q) if n in known)
        behind = "+".join(n for n in (q, r) if n in known)
        starts.append("_" if first == 0 else f"-{behind}" if start < 0 else before)
        ends.append("_" if end > size or end == 0 else f"-{r}" if end < 0 else inside if len(known) > 1 else left[axis])
    keys = ("starts", "ends") if op.version < 10 else (1, 2)
    return Rule(f"{' '.join(left)}{', _' * (len(op.shapes) - 1)} -> {' '.join(right)}", fills,
                sizes=dict(zip(keys, (tuple(starts), tuple(ends)))), dims=dims, weaker=_slice(op, False) if cutting else None)


@rule("Tile")
def tile(op):
    """A single entry is repeated as by Expand; several become the inner factor of a product, and the repetitions the outer one."""
    names, left, right, times, fills, dims = _names(op.rank), [], [], [], {}, {}
    for n, a, b in zip(names, op.shapes[0], op.outputs[0]):
        again = f"t{n}" if a > 1 else n
        left.append("1" if a == 1 < b else n)
        right.append(n if a in (1, b) else f"({again} {n})")
        times.append(again if a != b else "_")
        if a != b:
            fills[again] = "alike"
            dims |= {again: b // a} if a > 1 else {}
    return Rule(f"{' '.join(left)}, _ -> {' '.join(right)}", fills, sizes={1: tuple(times)} if op.value(1) is not None else {}, dims=dims)


@rule("Trilu")
def trilu(op):
    names = _names(op.rank)
    return Rule(f"{' '.join(names)}{', _' * (len(op.shapes) - 1)} -> {' '.join(names)}", dict.fromkeys(names[-2:], "refuse"))


@rule("Pad")
def pad(op):
    names = _names(op.rank)
    kept = [n if a == b else "_" for n, a, b in zip(names, op.shapes[0], op.outputs[0])]
    return Rule(f"{' '.join(names)}{', _' * (len(op.shapes) - 1)} -> {' '.join(kept)}", {n: "refuse" for n, k in zip(names, kept) if k == "_"})


def _takes_column(op, axis: int, first: int, last: int, step: int) -> bool:
    """Does a slice take one entry of each row of `step`, from the first row to the last?"""
    size = op.shapes[0][axis]
    return step > 1 and size % step == 0 and first < step and last == size and not _runtime_cut(op, axis)


def _runtime_cut(op, axis: int) -> bool:
    """Is the length of this axis, or what the cut leaves of it, known at run time only?"""
    return op.runtime[0][axis] or op.runtime_outputs[0][axis]


def _names(rank: int) -> list[str]:
    return [f"a{i}" for i in range(rank)]


def _term(text: str) -> str:
    return "_" if text == "1" else text
