"""The forward of one module as text: which results get a name, what they are called, and where sizes come from.

First it is decided what is written inside of something else: a result that is used once, as long as the line stays readable. Then the
statements are fixed, and names are given so that one can be used again (`hidden = hidden + ...`) when its old value is not needed any more.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .derive import axis_of, derive
from .sizes import Numbers, is_constant
from .steps import ATOM, Scope, Size, Step
from .text import CONFIG, Context, Operand, describe, loose
from .units import Unit

WIDTH = 100
RESERVED = {"self", "torch", "nn", "F", "Tensor", "labels", "config"}
NUMBER = re.compile(r"_\d+(?=_|$)")
DROPOUT = re.compile(r"self\.((?:attention_)?dropout)\b(?!\()")

Item = Step | Unit


@dataclass
class Forward:
    """Text of one forward.

    Attributes:
        arguments: names, in order.
        lines: of the body, without indentation, the return statement left out.
        results: names or expressions of the outputs, in order.
        fields: configuration fields that the body reads from `self`.
    """

    arguments: list[str]
    lines: list[str]
    results: list[str]
    fields: dict[str, str] = field(default_factory=dict)


class Writer:
    """Writes the forward of one unit."""

    def __init__(self, c: Context, unit: Unit):
        self.c, self.unit = c, unit
        self.items = unit.items
        self.maker: dict[str, Item] = {o: i for i in self.items for o in i.outputs}
        self.uses = Counter(t for i in self.items for t in dict.fromkeys(i.inputs))
        self.uses.update(unit.outputs)
        self.argument: dict[str, str] = {}
        self.attributes = {p[len(unit.path)] for p in (*c.outline.layers, *c.outline.weights) if p[: len(unit.path)] == unit.path}
        self.fields: dict[str, str] = {}
        self.sources: dict[str, tuple[str, int]] = {}  # name of a size -> the argument and axis that it is read from
        self.extra: dict[int, list[str]] = {}  # further tensors that a step asks for sizes
        self.names: dict[str, str] = {}
        self._find_sizes()
        self.inlined: set[int] = set()
        self._choose_inlined()

    def run(self) -> Forward:
        arguments = self._name_arguments()
        lines, statements = [], [i for i in self.items if id(i) not in self.inlined]
        self.last = self._last_uses(statements)
        self.taken = {name: t for t, name in self.names.items()}
        position = 0
        while position < len(statements):
            loop = self._loop(statements[position:])
            if loop:
                lines += self._write_loop(loop, position)
            else:
                item = statements[position]
                text = self._text(item)
                targets = [self._bind(o, position) if o else "_" for o in item.outputs]
                lines.append(f"{', '.join(targets)} = {text}{self._comment(item)}")
            position += len(loop) or 1
        results = [self._expression(t)[0] for t in self.unit.outputs]
        rates = dict.fromkeys(DROPOUT.findall("\n".join([*lines, *results])))
        self.fields |= {name: f"config.{name}" for name in rates}
        return Forward(arguments, self._prelude([*lines, *results]) + lines, results, self.fields)

    def _word(self, tensor: str) -> str:
        """In a layer the number of the layer says nothing: past_key_3 is past_key."""
        word = self.c.word(tensor)
        return NUMBER.sub("", word) if any(p.isdigit() for p in self.unit.path) else word

    # --- sizes ---

    def _find_sizes(self) -> None:
        """Where each size that varies comes from: the arguments, or a tensor made before, which then gets a name of its own."""
        for step in self.items:
            for size in step.sizes if isinstance(step, Step) else ():
                if not is_constant(size.numbers) and derive(self.c.sizes, size.numbers, self.unit.inputs) is None:
                    tensor = next(t for t in self._made_before(step) if axis_of(self.c.sizes, t, size.numbers) is not None)
                    self.extra.setdefault(id(step), []).append(tensor)
                    self.c.keep.add(tensor)
                    self.uses[tensor] += 1

    def _made_before(self, step: Step) -> Iterator[str]:
        for item in self.items:
            if item is step:
                return
            yield from filter(None, item.outputs)

    def _size(self, size: Size, step: Step) -> Operand:
        if is_constant(size.numbers):
            text = self.c.size_text(size, self.unit.path)
            if text is None:
                return Operand(str(size.numbers[0]), ATOM)
            for name, index in CONFIG.findall(text):
                own = f"num_{name}" if name in self.attributes else name  # `experts` may be a module here
                self.fields[own] = f"config.{name}{index}"
                text = text.replace(f"config.{name}{index}", f"self.{own}")
            return loose(text)
        found = derive(self.c.sizes, size.numbers, self.unit.inputs)
        if found is not None:
            return loose(found.form.format(*(self._size_name(*part) for part in found.parts)))
        tensor = next(t for t in self.extra[id(step)] if axis_of(self.c.sizes, t, size.numbers) is not None)
        return Operand(f"{self.names.get(tensor, self._word(tensor))}.shape[{axis_of(self.c.sizes, tensor, size.numbers)}]", ATOM)

    def _size_name(self, tensor: str, axis: int, numbers: Numbers) -> str:
        name = re.sub(r"\W+", "_", (self.c.sizes.name(numbers) or "size").replace("+", "_and_").replace("*", "_by_"))
        while self.sources.get(name, (tensor, axis)) != (tensor, axis):
            name += "_"
        self.sources[name] = (tensor, axis)
        return name

    def _prelude(self, written: list[str]) -> list[str]:
        """`batch, length = hidden.shape[:2]`: the sizes that the body asks for."""
        by_tensor: dict[str, dict[int, str]] = {}
        used = "\n".join(written)
        for name, (tensor, axis) in self.sources.items():
            if re.search(rf"\b{name}\b", used):
                by_tensor.setdefault(tensor, {})[axis] = name
        lines = []
        for tensor, axes in by_tensor.items():
            variable = self.argument[tensor]
            if sorted(axes) == list(range(len(axes))) and len(axes) > 1:
                whole = "" if len(axes) == len(self.c.sizes.shape(tensor)) else f"[:{len(axes)}]"
                lines.append(f"{', '.join(axes[i] for i in range(len(axes)))} = {variable}.shape{whole}")
            else:
                lines += [f"{name} = {variable}.shape[{axis}]" for axis, name in sorted(axes.items())]
        return lines

    # --- what is written inside of what ---

    def _inputs(self, item: Item) -> list[str]:
        return item.inputs + self.extra.get(id(item), []) if isinstance(item, Step) else item.inputs

    def _choose_inlined(self) -> None:
        """Fill `inlined`: everything that may be, until a line would be too long."""
        for item in self.items:
            made = [self.maker[t] for t in dict.fromkeys(item.inputs) if t in self.maker]
            self.inlined |= {id(m) for m in made if self._may_be_inlined(m)}
            while len(self._text(item)) > WIDTH:
                inside = [m for m in made if id(m) in self.inlined]
                if not inside:
                    break
                self.inlined.discard(id(max(inside, key=lambda m: len(self._text(m)))))
        made = self.maker.get(self.unit.outputs[0]) if len(self.unit.outputs) == 1 else None
        if made is not None and self._may_be_inlined(made) and len(self._text(made)) < WIDTH - 10:
            self.inlined.add(id(made))  # it stands in the return statement

    def _may_be_inlined(self, item: Item) -> bool:
        outputs = [o for o in item.outputs if o]
        return len(outputs) == 1 and self.uses[outputs[0]] == 1 and outputs[0] not in self.c.keep and not (isinstance(item, Unit) and item.path[-1].isdigit())

    def _expression(self, tensor: str) -> tuple[str, int]:
        made = self.maker.get(tensor)
        if made is not None and id(made) in self.inlined:
            return self._text(made), made.level if isinstance(made, Step) else ATOM
        path = self.c.outline.names.get(tensor)
        if path is not None and path[: len(self.unit.path)] == self.unit.path and tensor not in self.names:
            return self._access(path), ATOM
        return self.names.get(tensor) or self._word(tensor), ATOM

    def _text(self, item: Item) -> str:
        if isinstance(item, Unit):
            return f"{self._access(item.path)}({', '.join(self._expression(t)[0] for t in item.inputs)})"
        operands = [Operand(*self._expression(t)) for t in item.inputs]
        sizes = [self._size(x, item) for x in item.sizes]
        layer = self.c.outline.layer_at.get(id(item))
        return item.form.format(*operands, s=sizes, m=self._access(layer) if layer else "", device=self._device())

    def _access(self, path: Scope) -> str:
        text = "self"
        for part in path[len(self.unit.path) :]:
            text += f"[{part}]" if part.isdigit() else f".{part}"
        return text

    def _device(self) -> str:
        if self.unit.inputs:
            return f"{self.argument.get(self.unit.inputs[0]) or self._word(self.unit.inputs[0])}.device"
        inside = [p for p in (*self.c.outline.weights, *(((*p, "weight")) for p in self.c.outline.layers)) if p[: len(self.unit.path)] == self.unit.path]
        return f"{self._access(inside[0])}.device" if inside else "None"

    # --- names ---

    def _name_arguments(self) -> list[str]:
        for t in self.unit.inputs:
            self.argument[t] = self.names[t] = self._fresh(self._word(t), set(self.names.values()))
        return list(self.argument.values())

    def _fresh(self, word: str, taken: set[str]) -> str:
        word = word + "_" if keyword.iskeyword(word) or word in RESERVED else word
        name, k = word, 1
        while name in taken or name in self.sources:
            k += 1
            name = f"{word}_{k}"
        return name

    def _last_uses(self, statements: list[Item]) -> dict[str, int]:
        """The last statement that needs a tensor; those that are returned are needed to the end."""
        last: dict[str, int] = {}
        for k, item in enumerate(statements):
            stack = [item]
            while stack:
                for t in self._inputs(stack.pop()):
                    last[t] = k
                    if t in self.maker and id(self.maker[t]) in self.inlined:
                        stack.append(self.maker[t])
        stack = list(self.unit.outputs)
        while stack:
            t = stack.pop()
            last[t] = len(statements)
            if t in self.maker and id(self.maker[t]) in self.inlined:
                stack += self._inputs(self.maker[t])
        return last

    def _bind(self, tensor: str, position: int) -> str:
        """A name for a result: its word, if what has it now is not needed after this statement."""
        live = {name for name, t in self.taken.items() if self.last.get(t, -1) > position}
        name = self._fresh(self._word(tensor), live)
        self.taken[name] = tensor
        self.names[tensor] = name
        return name

    def _comment(self, item: Item) -> str:
        text = describe(self.c, item.outputs[0], self.unit.path)
        return f"  # {text}" if text else ""

    # --- loops over lists of modules ---

    def _loop(self, items: list[Item]) -> list[Unit]:
        """Calls of all modules of a list in order, each reading what the one before gave and otherwise the same; else nothing."""
        first = items[0]
        if not isinstance(first, Unit) or first.path[-1] != "0":
            return []
        run = [first]
        for item in items[1:]:
            if not isinstance(item, Unit) or item.path[:-1] != first.path[:-1] or len(item.outputs) != 1 or not _chains(first, run[-1], item):
                break
            run.append(item)
        whole = sum(isinstance(i, Unit) and i.path[:-1] == first.path[:-1] for i in self.items)
        return run if len(first.outputs) == 1 and len(run) == whole > 1 and len({self.c.class_of(u) for u in run}) == 1 else []

    def _write_loop(self, loop: list[Unit], position: int) -> list[str]:
        place = next(i for i, (a, b) in enumerate(zip(loop[0].inputs, loop[1].inputs)) if a != b)
        arguments = [self._expression(t)[0] for t in loop[0].inputs]
        start, arguments[place] = arguments[place], ""
        name = self._bind(loop[-1].outputs[0], position + len(loop) - 1)
        if name in arguments:  # another argument has that name and is needed in each round
            name = self._fresh(name, {*arguments, *self.taken})
            self.names[loop[-1].outputs[0]] = name
        arguments[place] = name
        block = self._fresh({"layers": "layer", "blocks": "block"}.get(loop[0].path[-2], "block"), {*self.names.values()})
        call = f"for {block} in {self._access(loop[0].path[:-1])}:", f"    {name} = {block}({', '.join(arguments)}){self._comment(loop[0])}"
        return [f"{name} = {start}", *call] if start != name else [*call]


def _chains(first: Unit, before: Unit, unit: Unit) -> bool:
    """Is a call the first one but for one argument, which is what the call before gave?"""
    if len(first.inputs) != len(unit.inputs):
        return False
    differ = [i for i, (a, b) in enumerate(zip(first.inputs, unit.inputs)) if a != b]
    return len(differ) == 1 and unit.inputs[differ[0]] == before.outputs[0]
