"""Linear maps: one name is summed away against another input."""

from onnxgrow.rulebook import Rule, rule


@rule("MatMul")
def matmul(op):
    """y = a b, numpy broadcasting (https://onnx.ai/onnx/operators/onnx__MatMul.html); leading axes multiply pairwise."""
    left = "k" if op.rank == 1 else "... m k"
    right = "k" if len(op.shapes[1]) == 1 else "... k n"
    out = "..." + " m" * (op.rank > 1) + " n" * (len(op.shapes[1]) > 1)
    return Rule(f"{left}, {right} -> {out}", {"k": "contract"}, other="mul")


@rule("Gemm")
def gemm(op):
    """y = alpha a b + beta c with optional transposes; c may lack either axis, then it shifts the other one."""
    a = "k m" if op.attrs.get("transA") else "m k"
    b = "n k" if op.attrs.get("transB") else "k n"
    if not op.has(2):
        return Rule(f"{a}, {b} -> m n", {"k": "contract"})
    c = op.shapes[2]
    has = {name: len(c) > at and (c[-1 - at] > 1 or op.outputs[0][-1 - at] == 1) for at, name in enumerate("nm")}
    fills = {"k": "contract"} | {name: "keep" if present else "shift" for name, present in has.items()}
    return Rule(f"{a}, {b}, {' '.join('m n'.split()[2 - len(c):]) if c else '_'} -> m n", fills)


@rule("Einsum")
def einsum(op):
    """Letters are names already; those missing on the right are summed away, all others multiply pairwise."""
    text = op.attrs["equation"].replace(" ", "")
    left, arrow, right = text.partition("->")
    letters = [c for c in left if c.isalpha()]
    if not arrow:
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    spell = lambda term: " ".join(["..." if part == "." else part for part in term.replace("...", ".")]) or "_"  # noqa: E731
    terms = left.split(",")
    gone = {c: "contract" if sum(c in t for t in terms) > 1 else "sum" for c in set(letters) - set(right)}
    diagonals = dict.fromkeys((c for t in terms for c in t if t.count(c) > 1 and c != "."), "refuse")
    return Rule(f"{', '.join(spell(t) for t in terms)} -> {spell(right)}", gone | diagonals, other="mul")
