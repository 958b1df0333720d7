"""Operators that move numbers about."""

from __future__ import annotations

from ...fold import slice_arguments
from ..build import Build
from ..sizes import is_constant
from ..steps import ATOM
from .registry import dtype, operator

RESHAPES = ("Reshape", "Flatten")



@operator("Reshape", "Flatten")
def _reshape(b: Build) -> None:
    source = b.behind(b.node.inputs[0], RESHAPES)  # only the last of several reshapes counts
    old, new = b.sizes.shape(source), b.out()
    if old == new:
        b.alias = source
        return
    head = next((i for i, (p, q) in enumerate(zip(old, new)) if p != q), min(len(old), len(new)))
    tail = next((i for i, (p, q) in enumerate(zip(old[head:][::-1], new[head:][::-1])) if p != q), min(len(old), len(new)) - head)
    before, after = old[head : len(old) - tail], new[head : len(new) - tail]
    x = b.tensor(source, ATOM)
    if len(after) == 1 and len(before) > 1:
        ends = (head, -1) if not tail else (head, head + len(before) - 1)
        b.form = f"{x}.flatten({', '.join(str(e) for e in ends)})" if ends[1] != -1 else f"{x}.flatten({head})"
    elif len(before) == 1 and len(after) > 1:
        b.form = f"{x}.unflatten({head if tail else -1}, ({_targets(b, head, len(after))}))"
    elif not before and all(is_one(n) for n in after):
        b.form = x + "".join(f".unsqueeze({head + i})" for i in range(len(after)))
    elif not after and all(is_one(n) for n in before):
        b.form = x + f".squeeze({head})" * len(before)
    else:
        b.form = f"{x}.reshape({_targets(b, 0, len(new))})"


def _targets(b: Build, first: int, count: int) -> str:
    """Sizes of some axes of the result; one that varies is left to PyTorch."""
    sizes, free = b.out()[first : first + count], None
    moving = [i for i, n in enumerate(sizes) if not is_constant(n)]
    if moving:
        free = max(moving, key=lambda i: (b.sizes.name(sizes[i]) is None, "*" in (b.sizes.name(sizes[i]) or "")))
    return ", ".join("-1" if i == free else b.out_size(first + i) for i in range(count))


def is_one(n) -> bool:
    return set(n) == {1}


@operator("Unsqueeze")
def _unsqueeze(b: Build) -> None:
    rank = len(b.out())
    axes = sorted(a % rank for a in b.ints(1, "axes"))
    b.form = b.use(0, ATOM) + "".join(f".unsqueeze({a if a < rank - 1 else -1})" for a in axes)


@operator("Squeeze")
def _squeeze(b: Build) -> None:
    axes = b.ints(1, "axes")
    axes = [i for i, n in enumerate(b.shape(0)) if is_one(n)] if axes is None else [a % len(b.shape(0)) for a in axes]
    b.form = b.use(0, ATOM) + "".join(f".squeeze({a})" for a in sorted(axes, reverse=True))


@operator("Transpose")
def _transpose(b: Build) -> None:
    rank = len(b.shape(0))
    b.form = b.use(0, ATOM) + permuted(b.attrs.get("perm") or list(range(rank))[::-1])


def permuted(perm: list[int]) -> str:
    """The method call for a permutation of axes: transpose where two axes change places."""
    moved = [i for i, p in enumerate(perm) if i != p]
    if not moved:
        return ""
    if len(moved) == 2:
        return f".transpose({moved[0]}, {moved[1]})"
    return f".permute({', '.join(map(str, perm))})"


@operator("Expand")
def _expand(b: Build) -> None:
    expanded(b, 0)


def expanded(b: Build, slot: int) -> None:
    """An input in the shape of the output, which it broadcasts to."""
    old, new = b.shape(slot), b.out()
    if old == new:
        b.same(slot)
        return
    if b.is_number(slot):
        sizes = ", ".join(b.out_size(i) for i in range(len(new))) + "," * (len(new) == 1)
        b.form = f"torch.full(({sizes}), {b.use(slot)}, dtype=torch.{dtype(b, b.type(slot))}, device={{device}})"
        return
    shift = len(new) - len(old)
    kept = ["-1" if i >= shift and old[i - shift] == n else b.out_size(i) for i, n in enumerate(new)]
    b.form = f"{b.use(slot, ATOM)}.expand({', '.join(kept)})"


@operator("Tile")
def _tile(b: Build) -> None:
    b.form = f"{b.use(0, ATOM)}.repeat({', '.join(b.entries(1))})"


@operator("Concat")
def _concat(b: Build) -> None:
    if len(b.node.inputs) == 1:
        b.same(0)
        return
    axis = b.attrs["axis"] % len(b.out())
    axis = -1 if axis == len(b.out()) - 1 else axis
    b.form = f"torch.cat(({', '.join(b.use(i) for i in range(len(b.node.inputs)))}), {axis})"


@operator("Split")
def _split(b: Build) -> None:
    axis = b.attrs.get("axis", 0) % len(b.shape(0))
    parts = [b.sizes.shape(o)[axis] for o in b.node.outputs]
    axis = -1 if axis == len(b.shape(0)) - 1 else axis
    if len(set(parts)) == 1:
        b.form = f"{b.use(0, ATOM)}.chunk({len(parts)}, {axis})"
    else:
        texts = [b.size(n, b.dim_of(o, axis)) for o, n in zip(b.node.outputs, parts)]
        b.form = f"{b.use(0, ATOM)}.split(({', '.join(texts)}), {axis})"


@operator("Slice")
def _slice(b: Build) -> None:
    rank = len(b.shape(0))
    if b.shape(0) == b.out() and not any(s < 0 for s in b.ints(4, "steps") or []):
        b.same(0)
        return
    index = [":"] * rank
    first = [slice_arguments(b.node, [w.value(b.node, i) if i < len(b.node.inputs) and b.node.inputs[i] else None for i in range(5)], rank)
             for w in b.sizes.walks]
    for bounds in zip(*first):
        axis, step = bounds[0][0], bounds[0][3]
        length = b.shape(0)[axis]
        start, end = tuple(x[1] for x in bounds), tuple(x[2] for x in bounds)
        if step < 0:
            if not (is_one(b.shape(0)[axis]) or step == -1 and is_constant(start) and start[0] in (-1,)):
                b.refuse("a Slice with a negative step has no PyTorch form")
            b.flips.append(axis)
            continue
        low = "" if all(x in (0,) or x <= -n for x, n in zip(start, length)) else b.bound(start, axis)
        high = "" if all(x >= n for x, n in zip(end, length)) else b.bound(end, axis)
        index[axis] = f"{low}:{high}" + (f":{step}" if step != 1 else "")
    text = b.use(0, ATOM)
    if any(i != ":" for i in index):
        while len(index) > 1 and index[-1] == ":":
            index.pop()
        lead = next(i for i, x in enumerate(index) if x != ":")
        text += f"[{', '.join(['...', *index[lead:]] if lead > 1 and len(index) == rank else index)}]"
    b.form = text + (f".flip({', '.join(map(str, b.flips))})" if b.flips else "")


@operator("Gather")
def _gather(b: Build) -> None:
    axis, rank = b.attrs.get("axis", 0) % len(b.shape(0)), len(b.shape(0))
    if b.is_number(1):
        index = "..., " if axis == rank - 1 > 1 else ":, " * axis
        tail = f"[{index}{b.use(1)}]"
        b.form = b.use(0, ATOM) + tail + (f".unsqueeze({axis})" * len(b.shape(1)))
    elif rank == 1 or axis == 0:
        b.form = f"{b.use(0, ATOM)}[{b.use(1)}]"
    elif len(b.shape(1)) == 1:
        b.form = f"{b.use(0, ATOM)}.index_select({axis}, {b.use(1)})"
    else:
        b.form = f"{b.use(0, ATOM)}[{':, ' * axis}{b.use(1)}]"


@operator("GatherElements")
def _gather_elements(b: Build) -> None:
    b.form = f"{b.use(0, ATOM)}.gather({b.attrs.get('axis', 0)}, {b.use(1)})"


@operator("GatherND")
def _gather_nd(b: Build) -> None:
    if b.attrs.get("batch_dims"):
        b.refuse("GatherND with batch_dims has no PyTorch form")
    index = b.constant(1)
    if index is not None and index.size == index.shape[-1]:
        b.form = f"{b.use(0, ATOM)}[{', '.join(str(int(i)) for i in index.ravel())}]" + ".unsqueeze(0)" * (index.ndim - 1)
        return
    b.form = f"{b.use(0, ATOM)}[{b.use(1, ATOM)}.unbind(-1)]"


def alike(b: Build, slot: int) -> str:
    """What is written into the first input, in its type: under autocast they may differ."""
    if not b.is_float(0) or b.is_number(slot):
        return b.use(slot)
    b.named.add(b.resolve(b.node.inputs[0]))
    return f"{b.use(slot, ATOM)}.type_as({b.use(0)})"


@operator("ScatterElements")
def _scatter_elements(b: Build) -> None:
    if b.attrs.get("reduction", "none") not in ("none", "add"):
        b.refuse(f"ScatterElements with reduction {b.attrs['reduction']} has no PyTorch form")
    name = "scatter_add" if b.attrs.get("reduction") == "add" else "scatter"
    b.form = f"{b.use(0, ATOM)}.{name}({b.attrs.get('axis', 0)}, {b.use(1)}, {alike(b, 2)})"


@operator("ScatterND")
def _scatter_nd(b: Build) -> None:
    if b.attrs.get("reduction", "none") not in ("none", "add"):
        b.refuse(f"ScatterND with reduction {b.attrs['reduction']} has no PyTorch form")
    more = ", accumulate=True" if b.attrs.get("reduction") == "add" else ""
    b.form = f"{b.use(0, ATOM)}.index_put({b.use(1, ATOM)}.unbind(-1), {alike(b, 2)}{more})"


@operator("Trilu")
def _trilu(b: Build) -> None:
    b.form = f"{b.use(0, ATOM)}.{'triu' if b.attrs.get('upper', 1) else 'tril'}({b.use(1) if b.has(1) else ''})"


@operator("Pad")
def _pad(b: Build) -> None:
    rank, pads = len(b.shape(0)), b.ints(1, "pads")
    axes = b.ints(3, "") or list(range(rank))
    around = {a % rank: (pads[i], pads[i + len(axes)]) for i, a in enumerate(axes)}
    flat = [str(n) for a in reversed(range(rank)) for n in around.get(a, (0, 0))]
    while len(flat) > 2 and flat[-2:] == ["0", "0"]:
        flat = flat[:-2]
    mode = {"constant": "", "reflect": ', mode="reflect"', "edge": ', mode="replicate"'}[b.attrs.get("mode", "constant")]
    value = f", value={b.use(2)}" if not mode and b.has(2) and b.constant(2) is not None and b.constant(2).any() else ""
    b.form = f"F.pad({b.use(0)}, ({', '.join(flat)}){mode}{value})"
