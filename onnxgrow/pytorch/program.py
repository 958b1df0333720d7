"""From a model to a program: the text of its modules, its configuration, and where each parameter comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..model import Model
from ..ties import find
from ..understood import understood
from .classes import TIES, ClassWriter
from .forms import DTYPES
from .identifiers import identifier
from .lower import Lowering
from .naming import SizeNames
from .outline import Outline, Outliner
from .scopes import Scopes
from .sizes import Sizes, is_constant, measure
from .steps import Ref, Scope, Step
from .text import Context
from .units import Grouping, Unit
from .weights import find_weights


@dataclass(frozen=True)
class Program:
    """A model as PyTorch code.

    Attributes:
        classes: text of all classes, the whole model last; `main` is its name.
        config: fields of the configuration.
        parameters: name in the state dict -> the weight behind it; each once, under its first name.
        ties: further name of a parameter -> its first one.
        copies: weight that the exporter wrote twice -> (tensor id of the other one, transposed or not).
        buffers: name -> tensor id.
        inputs: argument's name -> graph input; outputs: names of the graph outputs.
    """

    model: Model
    sizes: Sizes
    classes: str
    main: str
    config: dict[str, int | float | list[int]]
    parameters: dict[str, Ref]
    ties: dict[str, str]
    copies: dict[str, tuple[str, bool]]
    buffers: dict[str, str]
    inputs: dict[str, str]
    outputs: list[str]


def decompile(model: Model) -> Program:
    """Write a model as PyTorch modules.

    Raises:
        GraphError: an operator on the way to an output has no PyTorch form; the message names it.
        FileError: the model has several graphs.
    """
    model.one_graph("PyTorch code")
    with understood():
        return _decompile(model)


def _decompile(model: Model) -> Program:
    roles, graph = model.roles, model.roles.structure.graph
    sizes, weights = measure(roles.structure, model.registry), find_weights(roles.structure)
    sizes.train(weights.parameters)
    scopes = Scopes(roles, model.stacks)
    lowering = Lowering(roles, sizes, weights, scopes)
    steps = lowering.needed()
    made = {o for s in steps for o in s.outputs}
    inputs = [v.name for v in graph.inputs]
    outputs = [lowering.resolve(o) for o in graph.outputs]
    held = {t for s in steps for t in s.inputs if t not in made and t in graph.weights}
    words = _Words(lowering, {o: s for s in steps for o in s.outputs})
    outliner = Outliner(steps, scopes, weights.parameters, held, lambda tensor: graph.weights.get(tensor, ""))
    outline = outliner.run(lambda found, at: Grouping(at, inputs, outputs, words.rank, sizes).run(found))
    outline.root, words.names = _promoted(outline, inputs, outputs), outline.names
    names = SizeNames(roles)
    names.learn(outline.layers)
    for _ in range(4):  # sizes that differ between layers become lists, which changes the code
        c = Context(sizes, outline, words.of, names.text, set(lowering.keep), lambda unit: "", lambda t: DTYPES[sizes.type(t)])
        writer = ClassWriter(c, outline, scopes, names, weights.parameters)
        main, text, arguments = writer.write(graph.outputs, outputs)
        if not names.settle():
            break
    parameters, ties = _parameters(writer, outline, weights.parameters)
    text = _with_ties(text, ties)
    buffers = {_dotted(p, outline): t for p, t in outline.weights.items() if t not in weights.parameters}
    return Program(model, sizes, text, main, {**names.values(), **writer.lists, **lowering.rates}, parameters, ties, weights.ties, buffers, dict(zip(arguments, inputs)), list(graph.outputs))


def _promoted(outline: Outline, inputs: list[str], outputs: list[str]) -> Unit:
    """The root without the wrapper around it that only calls the model."""
    root = outline.root
    while len(root.items) == 1 and isinstance(root.items[0], Unit) and not root.items[0].path[-1].isdigit():
        root = root.items[0]
    return replace(root, inputs=inputs, outputs=list(dict.fromkeys(outputs)))


def _dotted(path: Scope, outline: Outline) -> str:
    return ".".join(path[len(outline.root.path) :])


def _parameters(writer: ClassWriter, outline: Outline, parameters: frozenset[str]) -> tuple[dict[str, Ref], dict[str, str]]:
    """Names of all parameters in the order of the modules, and the further names of those that several modules share."""
    found: dict[str, Ref] = {}
    first: dict[tuple, str] = {}
    ties: dict[str, str] = {}
    for path, ref in _in_order(writer, outline, parameters, outline.root.path):
        name = _dotted(path, outline)
        key = (ref.tensor, ref.transposed) if ref.tensor else (name, False)
        if key in first:
            ties[name] = first[key]
        else:
            first[key], found[name] = name, ref
    return found, ties


def _in_order(writer: ClassWriter, outline: Outline, parameters: frozenset[str], path: Scope) -> Iterator[tuple[Scope, Ref]]:
    """As `named_parameters` goes: those of a module itself, then its children's."""
    if path in outline.layers:
        yield from (((*path, name), ref) for name, ref in outline.layers[path].refs.items())
        return
    children = [(*path, child) for child in writer.children(path)]
    yield from ((c, Ref(outline.weights[c])) for c in children if outline.weights.get(c) in parameters)
    for child in children:
        if child not in outline.weights:
            yield from _in_order(writer, outline, parameters, child)


def _with_ties(text: str, ties: dict[str, str]) -> str:
    """The text with the lines that make parameters one in the main class's constructor."""
    lines = [f"        self.{_python(a)} = self.{_python(b)}  # one parameter" for a, b in ties.items()]
    names = ", ".join(f'"{name}"' for name in ties)
    lines += [f"        save_once(self, {names})"] if ties else []
    return text.replace(f"        {TIES}\n", "".join(f"{line}\n" for line in lines), 1)


def _python(name: str) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", name)


class _Words:
    """What variables are called, by what they hold."""

    def __init__(self, c: Lowering, steps: dict[str, Step]):
        self.c, self.steps = c, steps
        self.names: dict[str, Scope] = {}
        self.inputs = {v.name for v in c.graph.inputs}
        self.outputs = {c.resolve(o): o for o in c.graph.outputs}
        self.hidden = {find(d) for d in c.roles.hidden}
        self.vocab = {find(d) for d in c.roles.roles["vocab"].instances} if "vocab" in c.roles.roles else set()

    def rank(self, tensor: str) -> int:
        """The stream comes first among arguments and results."""
        return 0 if self.of(tensor) == "hidden" else 1

    def of(self, tensor: str) -> str:
        if tensor in self.inputs:
            return identifier(tensor)
        if tensor in self.c.words:
            return self.c.words[tensor]
        if tensor in self.names:
            return self.names[tensor][-1]
        dims, shape = self.c.roles.structure.dims.get(tensor), self.c.walk.shapes.get(tensor)
        if dims and shape and len(shape) > 1 and not is_constant(self.c.sizes.shape(tensor)[0]):
            if find(dims[-1]) in self.hidden:
                return "hidden"
            if find(dims[-1]) in self.vocab:
                return "logits"
        if tensor in self.outputs:
            return identifier(self.outputs[tensor])
        return self.steps[tensor].word if tensor in self.steps else "x"
