"""The classes of a program as text: one for each kind of module, written once however many instances it has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .forward import Forward, Writer
from .identifiers import quoted
from .naming import SizeNames
from .outline import Outline
from .scopes import Scopes
from .steps import Layer, Scope, Size
from .text import Context, describe
from .units import Unit

TIES = "# ties"  # where the main class makes parameters one
GENERIC = {"layer", "layers", "block", "blocks", "h", "model"}


@dataclass(frozen=True)
class Built:
    """How a module is made: constructor's name, and whether it asks which layer it is."""

    name: str
    layered: bool

    def call(self, layer: str = "layer") -> str:
        return f"{self.name}(config, {layer})" if self.layered else f"{self.name}(config)"


class ClassWriter:
    """Writes all classes of one outline, children first."""

    def __init__(self, c: Context, outline: Outline, scopes: Scopes, names: SizeNames, parameters: frozenset[str]):
        self.c, self.outline, self.scopes, self.names, self.parameters = c, outline, scopes, names, parameters
        self.units = {u.path: u for u in outline.root.units()}
        self.paths = [*self._in_order()]
        self.texts: dict[str, str] = {}  # body -> class name
        self.order: list[str] = []
        self.built: dict[Scope, Built] = {}
        self.lists: dict[str, int] = {}
        c.class_of = lambda unit: self.build(unit.path).name

    def _in_order(self):
        """Paths of all layers and weights, in the order in which they are used."""
        at: dict[Scope, int] = {}
        for k, step in enumerate(self.outline.root.steps()):
            path = self.outline.layer_at.get(id(step))
            for p in ([path] if path else []) + [self.outline.names[t] for t in step.inputs if t in self.outline.names]:
                at.setdefault(p, k)
        return sorted(at, key=lambda p: at[p])

    def children(self, path: Scope) -> list[str]:
        found = [p[len(path)] for p in self.paths if p[: len(path)] == path and len(p) > len(path)]
        return sorted(dict.fromkeys(found), key=lambda c: (0, int(c)) if c.isdigit() else (1, 0))

    def build(self, path: Scope) -> Built:
        """The class for a path, written if it is not there yet."""
        if path not in self.built:
            self.built[path] = self._write(path)
        return self.built[path]

    def write(self, names: list[str], outputs: list[str]) -> tuple[str, str, list[str]]:
        """Name of the main class, the text of all (each above those that use it), and the main forward's arguments.

        Args:
            names, outputs: of the graph outputs: what they are called, and the tensors behind them.
        """
        root = self.outline.root
        forward, init = self._parts(root.path, root)
        main, results = self._name(root.path), dict(zip(root.outputs, forward.results))
        gives = ", ".join(f"{quoted(n)}: {results[o]}" for n, o in zip(names, outputs))
        arguments = ", ".join(f"{a}: Tensor" for a in forward.arguments)
        lines = ["def __init__(self, config: Config):", "    super().__init__()", *(f"    {line}" for line in init), f"    {TIES}", "",
                 f"def forward(self, {arguments}, labels: Tensor | None = None) -> dict[str, Tensor]:",
                 *(f"    {line}" for line in forward.lines), f"    return with_loss({{{gives}}}, labels)"]  # fmt: skip
        texts = [f"class {self.texts[t]}(nn.Module):\n{t}" for t in self.order] + [f"class {main}(nn.Module):\n{_indented(lines)}"]
        return main, "\n\n\n".join(texts), forward.arguments

    def _parts(self, path: Scope, unit: Unit | None) -> tuple[Forward | None, list[str]]:
        """The forward of a module, and what its constructor sets."""
        made = [self._attribute(path, child) for child in self.children(path)]
        forward = Writer(self.c, unit).run() if unit is not None else None
        return forward, [*(f"self.{name} = {text}" for name, text in sorted(forward.fields.items())), *made] if forward else made

    def _write(self, path: Scope) -> Built:
        unit = self.units.get(path)
        forward, init = self._parts(path, unit)
        layered = any(re.search(r"\blayer\b(?! in)", line.split("=", 1)[-1]) and "for layer in" not in line for line in init)
        head = f"def __init__(self, config: Config{', layer: int' if layered else ''}):"
        body = [head, "    super().__init__()", *(f"    {line}" for line in init)]
        if forward is not None:
            body += ["", *self._forward(unit, forward)]
        text = _indented(body)
        if text not in self.texts:
            self.texts[text] = self._name(path)
            self.order.append(text)
        return Built(self.texts[text], layered)

    def _forward(self, unit: Unit, forward: Forward) -> list[str]:
        arguments = ", ".join(f"{a}: Tensor" for a in forward.arguments)
        gives = "Tensor" if len(unit.outputs) == 1 else f"tuple[{', '.join(['Tensor'] * len(unit.outputs))}]"
        lines = [f"def forward(self, {arguments}) -> {gives}:", *(f"    {line}" for line in forward.lines)]
        text = f"    return {', '.join(forward.results)}"
        comment = describe(self.c, unit.outputs[0], unit.path) if len(unit.outputs) == 1 else ""
        return [*lines, text + (f"  # {comment}" if comment and forward.results[0] not in forward.arguments else "")]

    # --- attributes ---

    def _attribute(self, path: Scope, child: str) -> str:
        place = (*path, child)
        if place in self.outline.layers:
            return f"self.{child} = {self._layer(self.outline.layers[place], path)}"
        if place in self.outline.weights:
            return self._weight(place, path, child)
        return f"self.{child} = {self._module(place)}"

    def _weight(self, place: Scope, path: Scope, child: str) -> str:
        tensor = self.outline.weights[place]
        sizes = ", ".join(self._size(Size(n, d), path) for n, d in zip(self.c.sizes.shape(tensor), self.c.sizes.structure.dims[tensor]))
        if tensor in self.parameters:
            return f"self.{child} = nn.Parameter(torch.empty({sizes or '()'}))"
        kind = self.c.dtype(tensor)
        return f'self.register_buffer("{child}", torch.empty({sizes or "()"}{"" if kind == "float32" else f", dtype=torch.{kind}"}))'

    def _layer(self, layer: Layer, path: Scope) -> str:
        return f"nn.{layer.kind}({layer.arguments.format(s=[_Plain(self._size(x, path)) for x in layer.sizes])})"

    def _size(self, size: Size, path: Scope) -> str:
        return self.c.size_text(size, path) or str(size.numbers[0])

    def _module(self, place: Scope) -> str:
        """A module that is no layer of torch: one of our classes, or a list of modules, which is a comprehension where they are of one kind."""
        if not self._is_list(place):
            return self.build(place).call()
        elements = [(*place, c) for c in self.children(place)]
        inner = any(p.isdigit() for p in place)  # within a layer: which one it is comes from there
        texts = [self._element(e, "layer" if inner else e[-1]) for e in elements]
        kinds = [self._element(e, "layer") for e in elements]
        index = "layer" if "(config, layer)" in kinds[-1] and not inner else "_"
        count = self._count(place, len(texts)) if not set(elements) & self.outline.layers.keys() else str(len(texts))
        whole = [int(e[-1]) for e in elements] == list(range(len(texts)))
        if whole and len(set(kinds)) == 1:
            return f"nn.ModuleList({kinds[0]} for {index} in range({count}))"
        if whole and len(texts) > 2 and len(set(kinds[1:])) == 1:  # the first one is of its own kind
            return f"nn.ModuleList([{texts[0]}, *({kinds[1]} for {index} in range(1, {count}))])"
        return f"nn.ModuleList([{', '.join(_in_place(texts, [int(e[-1]) for e in elements]))}])"

    def _element(self, place: Scope, index: str) -> str:
        if place in self.outline.layers:
            return self._layer(self.outline.layers[place], place)
        return self._module(place) if self._is_list(place) else self.build(place).call(index)

    def _is_list(self, place: Scope) -> bool:
        return place not in self.units and place not in self.outline.layers and all(c.isdigit() for c in self.children(place))

    def _count(self, place: Scope, count: int) -> str:
        """The number of layers as a field of the configuration."""
        stack = next((p for p in place if "coder" in p), None)
        field = f"{stack}_layers" if stack and self.lists.get("layers", count) != count else "layers"
        self.lists.setdefault(field, count)
        return f"config.{field}" if self.lists[field] == count else str(count)

    # --- names ---

    def _name(self, path: Scope) -> str:
        """The framework's name of the class where it is known, else one from the path: EncoderLayer for encoder.block.3.layer.0."""
        words = [p for p in path if not p.isdigit()]
        while len(words) > 1 and words[-1].lower() in GENERIC and words[-2].lower() in GENERIC:
            del words[-2]
        last = words[-2:] if words and words[-1].lower() in GENERIC else words[-1:]
        if path[-1:] and path[-1].isdigit() and last[-1].endswith("s"):
            last = [*last[:-1], last[-1][:-1]]  # one of the blocks is a Block
        short = self.scopes.classes.get(path) or "".join(_camel(p) for p in last) or "Model"
        name, k = short, 1
        while name in self.texts.values():
            k += 1
            name = f"{short}{k}"
        return name


def _in_place(texts: list[str], numbers: list[int]) -> list[str]:
    """Elements of a list under their numbers: where one is missing, an activation without weights say, something stands that does nothing."""
    out, at = [], 0
    for text, number in zip(texts, numbers):
        missing = number - at
        out += ["nn.Identity()"] * missing if missing < 3 else [f"*(nn.Identity() for _ in range({missing}))"]
        out.append(text)
        at = number + 1
    return out


def _indented(lines: list[str]) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines)


class _Plain(str):
    def __format__(self, wanted: str) -> str:
        return str(self)


def _camel(word: str) -> str:
    return "".join(w[:1].upper() + w[1:] for w in word.split("_"))
