"""Quantized numbers: zero is their zero point, and nothing between two steps can be held."""

from math import prod

from onnxgrow.rulebook import Rule, rule


@rule("DequantizeLinear", "QuantizeLinear")
def steps(op):
    """(q − zero point)·scale and back: 0 is a step of its own. Blocks of an axis share a scale: nothing is put between them."""
    names = [f"a{i}" for i in range(op.rank)]
    if op.attrs.get("block_size"):
        scales = " ".join(f"s{i}" for i in range(op.rank))
        return Rule(f"{' '.join(names)}{f', {scales}' * (len(op.shapes) - 1)} -> {' '.join(names)}", other="refuse")
    axis = op.axis(1) if op.rank > 1 else 0
    per_entry = prod(op.shapes[1]) > 1
    others = f", {names[axis]}" if per_entry else ", _"
    return Rule(f"{' '.join(names)}{others * (len(op.shapes) - 1)} -> {' '.join(names)}", {names[axis]: "scaled"} if per_entry else {}, other="f(0)=0")


@rule("DynamicQuantizeLinear")
def measured_steps(op):
    """The steps follow from the smallest and the largest of all entries and 0: zeros and copies leave them."""
    names = " ".join(f"a{i}" for i in range(op.rank))
    return Rule(f"{names} -> {names}, _, _", other="range")


@rule("MatMulInteger")
def whole_matmul(op):
    """Σ (a − its zero point)(b − its zero point), as MatMul."""
    zero = op.shapes[3] if op.has(3) else None
    per_column = zero is not None and prod(zero) > 1
    zeros = ["_", ("1 n" if len(zero) > 1 else "n") if per_column else "_"][: max(len(op.shapes) - 2, 0)]
    tail = "".join(f", {z}" for z in zeros)
    return Rule(f"... m k, ... k n{tail} -> ... m n", {"k": "contract", "n": "scaled"}, other="mul")


def _product_shape(node, shapes, types):
    a = node.attrs
    fits = shapes[0] is not None and shapes[0][-1] == a["K"] and shapes[1][:2] == (a["N"], -(-a["K"] // a["block_size"]))
    return [((*shapes[0][:-1], a["N"]) if fits else None, types[0])]


@rule("com.microsoft::MatMulNBits", shape=_product_shape)
def packed_matmul(op):
    """A·Wᵀ, W [N, K] in blocks along K with a scale each: whole blocks can be appended, of scale or numbers zero."""
    block, count = op.attrs["block_size"], op.shapes[1][1]
    whole = op.attrs["K"] == count * block and not op.has(3) and not op.has(4)
    k, b = ("(b s)", "b") if whole else ("k", "_")
    scales = (f"(n {b})" if whole else "_") if len(op.shapes[2]) == 1 else f"n {b}"
    more = [scales, *("_" if not op.has(i) else "n" if i == 5 else "_" for i in range(3, len(op.shapes)))]
    fixed = {"s": "refuse"} if whole else {"k": "refuse"}
    frozen = {"n": "refuse"} if op.has(3) or scales == "_" else {}
    lead = " ".join(f"m{i}" for i in range(op.rank - 1))
    return Rule(f"{lead} {k}, n {b} p, {', '.join(more)} -> {lead} n", {"b": "contract", "n": "scaled", "p": "refuse"} | fixed | frozen,
                sizes={"N": ("n",), "K": (k,)}, dims={"s": block} if whole else {})


@rule("com.microsoft::QMoE", shape=lambda node, shapes, types: [(shapes[0], types[0])])
def packed_mixture(op):
    """A router's choice and all experts, in packed weights: its sizes stay as they are, and what is around it grows."""
    lead, tokens = " ".join(f"m{i}" for i in range(op.rank - 1)), "m0" if op.rank == 2 else "(m0 m1)"
    axes = {1: f"{tokens} e", 2: "e f p", 3: "e f", 4: "e f", 5: "e h q", 6: "e h", 7: "e h"}
    blocks = {3: " b", 6: " c"}
    tensors = [axes.get(i, "_") + blocks.get(i, "") * (len(op.shapes[i]) == 3) if op.has(i) else "_" for i in range(1, len(op.shapes))]
    return Rule(f"{lead} h, {', '.join(tensors)} -> {lead} h", other="refuse")
