"""Reductions along axes."""

from onnxgrow.rulebook import Rule, rule


@rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def total(op):
    """Zeros add nothing."""
    return _reduce(op, "sum", "f(0)=0" if op.op != "ReduceSum" else "keep")


@rule("ReduceMean")
def mean(op):
    """The mean of old entries and their mean is their mean."""
    return _reduce(op, "mean", "keep")


@rule("ReduceMax", "ReduceMin")
def extreme(op):
    """Copies leave the largest and the smallest; zeros leave the largest of what is never below zero, and the smallest of what is never above."""
    low, high = op.limits(0) or (-1, 1)
    return _reduce(op, "range" if (low >= 0 if op.op == "ReduceMax" else high <= 0) else "copies only", "f(0)=0")


@rule("ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
def folded(op):
    return _reduce(op, "refuse", "f(0)!=0")


@rule("ArgMax", "ArgMin")
def arg(op):
    axis = op.axis(0)
    return _line(op, {axis}, "refuse", "f(0)!=0", bool(op.attrs.get("keepdims", 1)))


@rule("CumSum")
def cumulative(op):
    """Along its axis a running sum reaches everything behind a new entry."""
    names = [f"a{i}" for i in range(op.rank)]
    axis = op.value(1)
    fills = {names[int(axis.ravel()[0])]: "refuse"} if axis is not None else dict.fromkeys(names, "refuse")
    return Rule(f"{' '.join(names)}, _ -> {' '.join(names)}", fills)


@rule("TopK")
def top_k(op):
    """What is lower than the chosen ones changes nothing; of equal entries the first are chosen."""
    names = [f"a{i}" for i in range(op.rank)]
    axis = "choose" if op.attrs.get("largest", 1) else "refuse"
    out = [n if i != op.axis(-1) else "_" for i, n in enumerate(names)]
    return Rule(f"{' '.join(names)}, _ -> {' '.join(out)}, {' '.join(out)}", {names[op.axis(-1)]: axis}, other="f(0)!=0")


def _reduce(op, gone: str, other: str) -> Rule:
    given = op.value(1)
    axes = [int(a) for a in given.ravel()] if given is not None else op.attrs.get("axes")
    if axes is None or not len(axes):
        axes = [] if op.attrs.get("noop_with_empty_axes") else range(op.rank)
    return _line(op, {a % op.rank for a in axes}, gone, other, bool(op.attrs.get("keepdims", 1)))


def _line(op, axes: set[int], gone: str, other: str, keep: bool) -> Rule:
    names = [f"a{i}" for i in range(op.rank)]
    out = ["1" if i in axes else n for i, n in enumerate(names) if keep or i not in axes]
    return Rule(f"{' '.join(names)}{', _' * (len(op.shapes) - 1)} -> {' '.join(out)}", {names[a]: gone for a in axes}, other=other)
