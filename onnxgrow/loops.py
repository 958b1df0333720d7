"""Loop and Scan, spread out for the analysis and put together again.

The body stands once in the main graph, at a step that stands for all of them. Its inputs are made there: by `Carried`, from the initial value of
what is carried from step to step; by `ScanSlice`, from what a Scan takes apart; and by plain arithmetic for the number of the step. `LoopEnd`
takes what the body gives. Its ties make a state and what the body turns it into one in size and in fills, so that what holds of the
initial value holds after every step, by induction. How many steps there are is the size of an input that nobody feeds (`steps`), so that everything that
depends on it counts as known at run time only. Lengths and counters that change by the same number at every step follow it (`loopsteps`).
"""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from .graph import HOLDER, WITHIN, attributes_of, free_name
from .loopsteps import AROUND, Facts, Key

ZERO = numpy_helper.from_array(np.zeros(1, np.int64))


def is_loop(n: onnx.NodeProto) -> bool:
    return n.op_type in ("Loop", "Scan") and n.domain in ("", "ai.onnx") and any(n.output) and any(a.type == AttributeProto.GRAPH for a in n.attribute)


def key_of(n: onnx.NodeProto) -> Key:
    return next(o for o in n.output if o)


class Parts:
    """The inputs and outputs of a Loop or Scan and of its body, by what they are for."""

    def __init__(self, n: onnx.NodeProto):
        attrs = attributes_of(n)
        self.node, self.body, self.scan = n, attrs["body"], n.op_type == "Scan"
        given, taken, made = list(n.input), [v.name for v in self.body.input], [v.name for v in self.body.output]
        if self.scan:
            count = len(given) - attrs["num_scan_inputs"]
            self.trip = self.going = self.number = self.ahead = self.goes_on = ""
            self.slices = list(zip(given[count:], attrs.get("scan_input_axes") or [0] * len(given), taken[count:]))
        else:
            (self.trip, self.going), given = (given + ["", ""])[:2], given[2:]
            (self.number, self.ahead), taken = taken[:2], taken[2:]
            self.goes_on, made = made[0], made[1:]
            count, self.slices = len(given), []
        outs = list(n.output) + [""] * (len(made) - len(n.output))
        self.carried = list(zip(given[:count], taken[:count], made[:count], outs[:count]))
        axes = attrs.get("scan_output_axes") or [0] * len(made)
        self.stacks = list(zip(made[count:], axes, outs[count:]))

    @property
    def endless(self) -> bool:
        """Does nothing but the trip count end the loop?"""
        name, makers = self.goes_on, {o: x for x in self.body.node for o in x.output}
        while name in makers and makers[name].op_type == "Identity":
            name = makers[name].input[0]
        stored = {t.name: t for t in self.body.initializer} | {x.output[0]: attributes_of(x).get("value") for x in self.body.node if x.op_type == "Constant"}
        return name == self.ahead or (stored.get(name) is not None and bool(numpy_helper.to_array(stored[name]).all()))


# --- apart ---------------------------------------------------------------------------------------------------------------------------


class Scaffold:
    """The nodes around one spread body, and the input that says how many steps there were."""

    def __init__(self, parts: Parts, names: dict[str, str], facts: Facts, taken: set[str]):
        self.parts, self.names, self.facts = parts, names, facts
        self.key, self.taken = key_of(parts.node), taken
        self.place = f"{self.key}\t{AROUND}\t"
        self.steps = self.fresh("steps")
        self.count, self.written = "", []
        self.nodes: list[onnx.NodeProto] = []

    def fresh(self, what: str) -> str:
        return free_name(f"{self.key}/{what}", self.taken)

    def input(self) -> onnx.ValueInfoProto:
        value = helper.make_tensor_value_info(self.steps, TensorProto.INT64, [self.steps])
        value.metadata_props.add(key=WITHIN, value=self.place)
        return value

    def values(self, g: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
        """The types and sizes that are written down in the body, under their new names."""
        known, out = {v.name for v in (*g.value_info, *g.input, *g.output)}, {}
        for value in (*self.parts.body.input, *self.parts.body.value_info, *self.parts.body.output):
            name = self.names.get(value.name)
            if name and name not in known and value.type.HasField("tensor_type"):
                out.setdefault(name, onnx.ValueInfoProto()).CopyFrom(value)
                out[name].name = name
        self.written = list(out)
        return list(out.values())

    def add(self, op: str, inputs: list[str], outputs: list[str] | str, domain: str = "", **attrs) -> str:
        outputs = [outputs] if isinstance(outputs, str) else outputs
        label = f"{self.parts.node.name or self.parts.node.op_type}/{op}"
        self.nodes.append(helper.make_node(op, inputs, outputs, name=label, domain=domain, **{k: v for k, v in attrs.items() if v not in ([], None)}))
        self.nodes[-1].metadata_props.add(key=WITHIN, value=self.place)
        return outputs[0]

    def constant(self, numbers, what: str) -> str:
        return self.add("Constant", [], self.fresh(what), value=numpy_helper.from_array(np.asarray(numbers, np.int64)))

    def before(self) -> list[onnx.NodeProto]:
        """What makes the inputs of the body."""
        p = self.parts
        self.entries = [self.add("ScanSlice", [x], [self.names[inner], self.fresh("entries")], "onnxgrow", axis=axis) and self.nodes[-1].output[1]
                        for x, axis, inner in p.slices]
        self.at = self._step()
        if p.number:
            ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in p.body.input}
            self.add("Identity" if ranks[p.number] == 1 else "Squeeze", [self.at], self.names[p.number])
        if p.ahead:
            self.add("Carried", [p.going, self.steps], self.names[p.ahead], "onnxgrow", kind=TensorProto.BOOL)
        for k, (initial, inner, _, _) in enumerate(p.carried):
            self._carry(k, initial, self.names[inner])
        return self.nodes

    def _step(self) -> str:
        """The number of the step, as [1]: less than the number of steps, where that is known."""
        p = self.parts
        if self.facts.first:
            return self.constant([0], "first")
        at = self.add("Shape", [self.steps], self.fresh("step"))
        if p.slices:
            axis = p.slices[0][1]
            end = {} if axis == -1 else {"end": axis + 1}
            self.count = self.add("Shape", [p.slices[0][0]], self.fresh("count"), start=axis, **end)
        elif self.facts.counted:
            self.count = self.add("Reshape", [p.trip, self.constant([1], "one")], self.fresh("count"))
        return self.add("Mod", [at, self.count], self.fresh("step")) if self.count else at

    def _carry(self, k: int, initial: str, inner: str) -> None:
        change, lengths = self.facts.counters.get(k), self.facts.lengths.get(k)
        if self.facts.first:
            self.add("Identity", [initial], inner)
        elif change is not None and not lengths:
            far = self.add("Mul", [self.at, self.constant(change["by"], "by")], self.fresh("far"))
            shaped = self.add("Reshape", [far, self.constant(change["shape"], "shape")], self.fresh("far"))
            cast = self.add("Cast", [shaped], self.fresh("far"), to=change["kind"])
            self.add("Add", [initial, cast], inner)
        else:
            axes = [x for axis, by in sorted((lengths or {}).items()) for x in (axis, by)]
            self.add("Carried", [initial, self.steps, self.add("ConstantOfShape", [self.at], self.fresh("passed"), value=ZERO)], inner, "onnxgrow", lengths=axes)

    def end(self, held: str) -> list[onnx.NodeProto]:
        """What takes the outputs of the body, and stands for the node."""
        p, start = self.parts, len(self.nodes)
        name = lambda inner: self.names.get(inner, inner)  # noqa: E731
        passed = self.add("ConstantOfShape", [self.at], self.fresh("passed"), value=ZERO)
        if self.entries:
            counter = self.entries[0]
        else:
            known = self.count and p.endless
            total = self.count if known else self.add("Add", [self.at, self.constant([1], "one")], self.fresh("total"))
            counter = self.add("ConstantOfShape", [total], self.fresh("counter"), value=ZERO)
        inputs = [passed, counter, *(self.entries[1:] or ()), p.trip, p.going, p.goes_on and name(p.goes_on)]
        inputs += [self.names[inner] for _, inner, _, _ in p.carried] + [name(made) for _, _, made, _ in p.carried] + [name(made) for made, _, _ in p.stacks]
        outputs = [o or self.fresh("unused") for o in [*(o for *_, o in p.carried), *(o for *_, o in p.stacks)]]
        lengths = [x for k, axes in sorted(self.facts.lengths.items()) for axis, by in sorted(axes.items()) for x in (k, axis, by)]
        self.add("LoopEnd", inputs, outputs, "onnxgrow", counters=1 + len(self.entries[1:]), carried=len(p.carried),
                 axes=[axis for _, axis, _ in p.stacks], lengths=lengths, names=json.dumps(self.names), values=json.dumps(self.written), key=self.key)
        last = self.nodes[-1]
        last.name = p.node.name or self.key
        del last.metadata_props[:]
        last.metadata_props.extend(p.node.metadata_props)
        last.metadata_props.add(key=HOLDER, value=held)
        return self.nodes[start:]


def bare(n: onnx.NodeProto) -> onnx.NodeProto:
    """A copy whose body lists its weights without their numbers, which stand elsewhere."""
    out = onnx.NodeProto()
    out.CopyFrom(n)
    for t in Parts(out).body.initializer:
        for part in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"):
            t.ClearField(part)
    return out
