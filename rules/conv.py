"""Convolutions: input channels are contracted, output channels written; pixels and kernels cannot grow."""

from onnxgrow.rulebook import Rule, rule


@rule("Conv")
def conv(op):
    """In groups, each has channels of its own on both sides; where they have one each, that is a product with the kernel."""
    image, kernel, out = _space("i", op), _space("k", op), " _" * (op.rank - 2)
    groups, offset = op.attrs.get("group", 1), op.has(2)
    fixed = dict.fromkeys((image + kernel).split(), "refuse") | {"b": "shift" if offset else "keep"}
    if groups == 1:
        return Rule(f"b c{image}, o c{kernel}{', o' * offset} -> b o{out}", fixed | {"c": "contract"})
    if groups == op.shapes[0][1] == op.shapes[1][0]:
        return Rule(f"b o{image}, o _{kernel}{', o' * offset} -> b o{out}", fixed | {"o": "f(0)=0" if offset else "mul"}, sizes={"group": ("o",)})
    line = f"b (g c){image}, (g o) c{kernel}{', (g o)' * offset} -> b (g o){out}"
    return Rule(line, fixed | {"c": "contract", "g": "f(0)=0" if offset else "mul"}, sizes={"group": ("g",)}, dims={"g": groups})


@rule("AveragePool", "GlobalAveragePool")
def average(op):
    image = _space("i", op)
    return Rule(f"b c{image} -> b c{' _' * (op.rank - 2)}", dict.fromkeys(image.split(), "refuse"))


@rule("MaxPool", "GlobalMaxPool")
def largest(op):
    image = _space("i", op)
    return Rule(f"b c{image} -> b c{' _' * (op.rank - 2)}", dict.fromkeys(image.split(), "refuse"), other="f(0)=0")


def _space(letter: str, op) -> str:
    return "".join(f" {letter}{i}" for i in range(op.rank - 2))


@rule("Resize", "Upsample")
def resize(op):
    """Pixels are interpolated; only axes whose length stays are kept."""
    names = [f"a{i}" for i in range(op.rank)]
    kept = [n if a == b else "_" for n, a, b in zip(names, op.shapes[0], op.outputs[0])]
    line = f"{' '.join(names)}{', _' * (len(op.shapes) - 1)} -> {' '.join(kept)}"
    sizes = {3: tuple(kept)} if op.value(3) is not None else {}
    return Rule(line, {n: "refuse" for n, k in zip(names, kept) if k == "_"}, sizes=sizes)
