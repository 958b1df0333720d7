"""Convolutions: input channels are contracted, output channels written; pixels tie nothing."""

from onnxgrow.rulebook import Rule, rule


@rule("Conv")
def conv(op):
    space = " _" * (op.rank - 2)
    bias = ", o" if op.has(2) else ""
    if op.attrs.get("group", 1) == 1:
        return Rule(f"b c{space}, o c{space}{bias} -> b o{space}", {"c": "contract"})
    if op.attrs["group"] == op.shapes[0][1] == op.shapes[1][0]:
        return Rule(f"b o{space}, o _{space}{bias} -> b o{space}", {"o": "mul" if not bias else "copies only"}, sizes={"group": ("o",)})
    return Rule(f"b c{space}, o c1{space}{bias} -> b o{space}", {"c": "refuse", "c1": "refuse", "o": "refuse"})


@rule("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
def pool(op):
    space = " _" * (op.rank - 2)
    return Rule(f"b c{space} -> b c{space}", other="f(0)=0")


@rule("Resize", "Upsample")
def resize(op):
    """Pixels are interpolated; only axes whose length stays are kept."""
    names = [f"a{i}" for i in range(op.rank)]
    kept = [n if a == b else "_" for n, a, b in zip(names, op.shapes[0], op.outputs[0])]
    return Rule(f"{' '.join(names)}{', _' * (len(op.shapes) - 1)} -> {' '.join(kept)}", {n: "refuse" for n, k in zip(names, kept) if k == "_"})
