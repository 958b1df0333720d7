"""From nodes to steps: every node becomes a line of PyTorch, alone or as the end of an idiom; only what an output needs is kept."""

from __future__ import annotations

import numpy as np

from ..errors import GraphError, OnnxgrowError
from ..graph import Node
from ..idioms import Norm
from ..roles import FLOATS, Roles
from .build import Build
from .forms import write
from .idioms import IDIOMS
from .scopes import Scopes, while_equal
from .sizes import Numbers, Sizes
from .steps import Layer, Ref, Scope, Size, Step
from .tables import evaluate, is_triangle, table_step
from .weights import Weights

LAYOUT = {"Reshape", "Flatten", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Cast"}  # what they make is called as what they take
SEVERAL = {"Split", "TopK"}  # operators whose further outputs have a PyTorch form; those of others (Dropout's mask) do not
GUARDS = {"Cast", "Identity", "Dropout"}


class Lowering:
    """All steps of one graph.

    Attributes:
        steps: tensor id -> the step that makes it.
        alias: tensor id -> the one that it is, behind nodes that do nothing.
        keep: tensors that get a name of their own in the code.
    """

    def __init__(self, roles: Roles, sizes: Sizes, weights: Weights, scopes: Scopes):
        self.roles, self.sizes, self.weights, self.scopes = roles, sizes, weights, scopes
        self.graph, self.walk = roles.structure.graph, sizes.walks[0]
        self.norms: dict[str, Norm] = {n.y: n for n in roles.norms}
        self.attention = {a.context.outputs[0]: a for a in roles.attention}
        self.steps: dict[str, Step] = {}
        self.alias: dict[str, str] = {}
        self.keep: set[str] = set()
        self.words: dict[str, str] = {}  # what a tensor is, where an idiom says it
        self.filled: dict[str, int] = {}
        self.rates: dict[str, float] = {}  # field of the configuration -> rate of dropout
        for node in self.graph.nodes:
            self._enter(node)

    def needed(self) -> list[Step]:
        """The steps that lead to the outputs, in order. GraphError where one of them cannot be written."""
        found, waiting = {}, [self.resolve(o) for o in self.graph.outputs]
        while waiting:
            step = self.steps.get(waiting.pop())
            if step is None or id(step) in found:
                continue
            if step.error:
                raise step.error
            found[id(step)] = step
            waiting += step.inputs
        return sorted(found.values(), key=lambda x: x.order)

    def _enter(self, node: Node) -> None:
        try:
            step = table_step(self.sizes, node, self.resolve, self.filled) or next(filter(None, (match(self, node) for match in IDIOMS.get(node.op, ()))), None)
            step = step or self._plain(node)
        except OnnxgrowError as error:
            step = Step("", [], list(node.outputs), node.index, error=error)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            problem = GraphError(f"{node.op} is not understood here: {error}", node=node.label, hint="report this graph")
            step = Step("", [], list(node.outputs), node.index, error=problem)
        if step is not None:
            step.scope = step.scope or self.scopes.of(node)
            step.outputs = step.outputs[:1] if node.op not in SEVERAL else step.outputs
            self.steps.update(dict.fromkeys((o for o in step.outputs if o), step))

    def _plain(self, node: Node) -> Step | None:
        if node.op == "Dropout":
            self.rates.setdefault("dropout", rate_of(self.sizes, node))
        b = Build(node, self.sizes, self.resolve, self.filled)
        write(b)
        self.keep |= b.named
        made = self.steps.get(self.resolve(node.inputs[0])) if node.inputs and node.op in LAYOUT else None
        if made is not None and b.word == "x":
            b.word = made.word
        if b.alias is not None:
            whole = self.resolve(b.alias)
            if node.outputs[0] in self.graph.outputs and whole in self.graph.weights:  # what the model gives is read in its forward, also a weight
                return self.function("{0}", [whole], node)
            self.alias[node.outputs[0]] = whole
            return None
        return b.step()

    # --- what idioms ask ---

    def resolve(self, tensor: str) -> str:
        return self.alias.get(tensor, tensor)

    def shape(self, tensor: str) -> tuple[Numbers, ...]:
        return self.sizes.shape(tensor)

    def dim(self, tensor: str, axis: int):
        dims = self.roles.structure.dims.get(tensor)
        return dims[axis] if dims else None

    def dims(self, tensor: str) -> list[Size]:
        """The sizes of a tensor's axes."""
        return [Size(n, self.dim(tensor, i)) for i, n in enumerate(self.shape(tensor))]

    def maker(self, tensor: str) -> Node | None:
        return self.graph.makers.get(self.resolve(tensor))

    def made_by(self, tensor: str) -> Step | None:
        return self.steps.get(self.resolve(tensor))

    def only_user(self, tensor: str, node: Node) -> bool:
        return all(n.index == node.index for n, _ in self.graph.users.get(tensor, ())) and tensor not in self.graph.outputs

    def matrix(self, tensor: str) -> Ref | None:
        """A parameter with two axes, as it is or behind a Transpose."""
        node = self.graph.makers.get(tensor)
        turned = node is not None and node.op == "Transpose" and list(node.attrs.get("perm", [1, 0])) == [1, 0]
        tensor = node.inputs[0] if turned else self.resolve(tensor)
        return Ref(tensor, turned) if tensor in self.weights.parameters and len(self.shape(tensor)) == 2 else None

    def vector(self, tensor: str) -> Ref | None:
        """A parameter with one axis."""
        tensor = self.resolve(tensor)
        return Ref(tensor) if tensor in self.weights.parameters and len(self.shape(tensor)) == 1 else None

    def layer_step(self, layer: Layer, inputs: list[str], node: Node, word: str) -> Step:
        return Step("{m}({0})", [self.resolve(t) for t in inputs], list(node.outputs), node.index, self.scopes.of(node), word=word, layer=layer)

    def function(self, form: str, inputs: list[str], node: Node) -> Step:
        return Step(form, [self.resolve(t) for t in inputs], list(node.outputs), node.index)

    def common_scope(self, *nodes: Node) -> Scope:
        paths = [self.scopes.of(n) for n in nodes]
        return tuple(p[0] for p in while_equal(zip(*paths)))

    def number(self, tensor: str) -> float | None:
        """A single float that is known and does not depend on what is fed."""
        value = self.sizes.constant(tensor)
        return float(value.ravel()[0]) if value is not None and value.size == 1 and self.sizes.type(tensor) in FLOATS else None

    def scaled(self, tensor: str) -> tuple[str, float]:
        """A tensor as factor times another one."""
        by, tensor = 1.0, self.resolve(tensor)
        while (node := self.maker(tensor)) is not None and node.op in ("Mul", "Div"):
            numbers = [self.number(t) for t in node.inputs]
            if numbers[1] is not None:
                by, tensor = by * numbers[1] if node.op == "Mul" else by / numbers[1], self.resolve(node.inputs[0])
            elif numbers[0] is not None and node.op == "Mul":
                by, tensor = by * numbers[0], self.resolve(node.inputs[1])
            else:
                break
        return tensor, by

    def factors(self, node: Node) -> tuple[list[str], float]:
        """What a product multiplies, and the number among it."""
        tensors, by = [], 1.0
        waiting = [(t, True) for t in node.inputs]
        while waiting:
            tensor, deeper = waiting.pop(0)
            tensor, more = self.scaled(tensor) if self.number(tensor) is None else (tensor, 1.0)
            by *= more
            made = self.maker(tensor)
            if self.number(tensor) is not None:
                by *= self.number(tensor)
            elif deeper and made is not None and made.op == "Mul" and len(tensors) < 2 and any(self.plus(t, 1.0) for t in made.inputs):
                waiting += [(t, False) for t in made.inputs]
            else:
                tensors.append(tensor)
        return tensors, by

    def plus(self, tensor: str, wanted: float) -> str | None:
        """The other operand, where a tensor is a sum with that number."""
        node = self.maker(tensor)
        if node is None or node.op != "Add":
            return None
        return next((self.resolve(node.inputs[1 - i]) for i in (0, 1) if self.number(node.inputs[i]) == wanted), None)

    def is_cubic(self, tensor: str, x: str) -> bool:
        """x + 0.044715 x³, the cube as a power or a product."""
        node, x = self.maker(tensor), self.resolve(x)
        if node is None or node.op != "Add" or x not in map(self.resolve, node.inputs):
            return False
        other = next((t for t in node.inputs if self.resolve(t) != x), None)
        if other is None:
            return False
        cube, by = self.scaled(other)
        return abs(by - 0.044715) < 1e-6 and self._power(cube, x) == 3

    def _power(self, tensor: str, x: str) -> float:
        """p where a tensor is x to the power p, else 0."""
        if self.resolve(tensor) == x:
            return 1
        node = self.maker(tensor)
        if node is not None and node.op == "Pow" and self.resolve(node.inputs[0]) == x:
            value = self.sizes.constant(node.inputs[1])
            return float(value.ravel()[0]) if value is not None else 0
        if node is not None and node.op == "Mul":
            powers = [self._power(t, x) for t in node.inputs]
            return sum(powers) if all(powers) else 0
        return 0

    def behind_casts(self, tensor: str) -> str:
        """A float tensor before it changed its type and back."""
        while (node := self.maker(tensor)) is not None and node.op == "Cast" and self.sizes.type(node.inputs[0]) in FLOATS:
            tensor = self.resolve(node.inputs[0])
        return self.resolve(tensor)

    def behind_guards(self, tensor: str) -> str:
        """Attention weights before casts, dropout and the guard that turns NaN into zero."""
        tensor = self.resolve(tensor)
        while (node := self.maker(tensor)) is not None:
            if node.op in GUARDS:
                tensor = self.resolve(node.inputs[0])
            elif node.op == "Where" and self._is_nan_guard(node):
                tensor = self.resolve(node.inputs[2])
            else:
                break
        return tensor

    def dropout_behind(self, tensor: str) -> bool:
        """Is there dropout among the guards? Its rate becomes `attention_dropout`."""
        tensor = self.resolve(tensor)
        while (node := self.maker(tensor)) is not None and tensor != self.behind_guards(tensor):
            if node.op == "Dropout":
                self.rates.setdefault("attention_dropout", rate_of(self.sizes, node))
                return True
            tensor = self.resolve(node.inputs[2 if node.op == "Where" else 0])
        return False

    def _is_nan_guard(self, node: Node) -> bool:
        test = self.maker(node.inputs[0])
        return test is not None and test.op == "IsNaN" and self.resolve(test.inputs[0]) == self.resolve(node.inputs[2]) and self.number(node.inputs[1]) == 0

    def leads_to(self, tensor: str, goal: Node) -> bool:
        """Is a tensor made from that node's result by the steps between scores and Softmax?"""
        seen, waiting = set(), [self.resolve(tensor)]
        while waiting:
            node = self.maker(waiting.pop())
            if node is None or node.index in seen or node.index < goal.index:
                continue
            if node.index == goal.index:
                return True
            seen.add(node.index)
            waiting += [t for t in node.inputs if t]
        return False

    def swapped(self, tensor: str) -> str | None:
        """x, where a tensor is x with its last two axes swapped by [a b c d] -> [a*b c d] -> [a*b d c] -> [a b d c]."""
        chain = [self.maker(tensor)]
        for op in ("Transpose", "Reshape"):
            chain.append(self.maker(chain[-1].inputs[0]) if chain[-1] is not None else None)
            if chain[-1] is None or chain[-1].op != op:
                return None
        x = self.resolve(chain[2].inputs[0])
        before, after, perm = self.shape(x), self.shape(tensor), chain[1].attrs.get("perm")
        inner = self.shape(chain[2].outputs[0])
        turned = perm == [0, 2, 1] and inner[-2:] == before[-2:] and chain[0].op == "Reshape"
        return x if turned and len(before) > 3 and after == (*before[:-2], before[-1], before[-2]) else None

    def transposed(self, tensor: str) -> tuple[str, list[int]] | None:
        """A tensor as another one with axes permuted, the last two of the result swapped back: (x, perm)."""
        x = self.swapped(tensor)
        if x is not None:
            return x, list(range(len(self.shape(x))))
        node = self.maker(tensor)
        if node is None or node.op != "Transpose":
            return None
        perm = list(node.attrs.get("perm") or range(len(self.shape(tensor)))[::-1])
        return node.inputs[0], [*perm[:-2], perm[-1], perm[-2]]

    def is_causal(self, mask) -> bool:
        """Is a mask (see idioms/attention.py) one that lets each position see itself and those before it, and nothing else?"""
        if mask.kind != "add":
            return is_triangle(evaluate(self.sizes, self.resolve(mask.tensor)), np.bool_(mask.kind == "unless"))
        node = self.maker(mask.tensor)
        if node is None or node.op != "Where" or self.number(node.inputs[1]) != 0 or not (self.number(node.inputs[2]) or 0) <= -1e8:
            return False
        return is_triangle(evaluate(self.sizes, self.resolve(node.inputs[0])), np.True_)


def rate_of(sizes: Sizes, node: Node) -> float:
    """The share that a Dropout drops: an input, or an attribute below opset 12."""
    value = sizes.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    return round(float(value.ravel()[0]), 6) if value is not None else node.attrs.get("ratio", 0.5)
