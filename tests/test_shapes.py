"""Every size a number: symbols, sizes that are sums of others, values of shape arithmetic, and sizes that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from onnxgrow.errors import GraphError
from onnxgrow.rulebook import Registry, load_builtin
from onnxgrow.shapes import first_walk, revisit, walk
from onnxgrow.symbols import PRIMES, Mismatch, Symbols, bind_symbols
from tests.textgraph import graph_of

BUILTIN = load_builtin()


def walked(*args, registry=BUILTIN, **kwargs):
    return first_walk(graph_of(*args, **kwargs), registry)


def weight(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


# Symbols


def test_each_symbol_is_a_prime_of_its_own():
    w, symbols = walked("y = Relu x\nz = Add y u", {"x": ["batch", "seq", 8], "u": ["batch", "seq", 8]})
    assert len({*symbols.sizes.values()}) == 2 and {*symbols.sizes.values()} <= {*PRIMES}
    assert w.shapes["z"] == (symbols.sizes["batch"], symbols.sizes["seq"], 8)


def test_an_unnamed_axis_is_called_after_its_input():
    _, symbols = walked("y = Relu x", {"x": [None, 8, None]})
    assert [*symbols.sizes] == ["x.0", "x.2"]


def test_there_are_as_many_primes_as_symbols():
    graph = graph_of("y = Relu x0", {f"x{i}": [f"s{i}"] for i in range(20)})
    sizes = bind_symbols(graph).sizes
    assert len({*sizes.values()}) == 20 and list(sizes.values())[: len(PRIMES)] == list(PRIMES)


def test_an_input_of_unknown_rank_is_refused():
    graph = graph_of("y = Relu x", {"x": [2]})
    graph.source.proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(GraphError, match="the input 'x' has no tensor shape"):
        first_walk(graph, BUILTIN)


def test_a_total_is_the_sum_of_past_and_present():
    nodes = "keys = Concat past x\ny = Add keys mask"
    w, symbols = walked(nodes, {"past": ["batch", 4, "past", 8], "x": ["batch", 4, "seq", 8], "mask": ["batch", 1, "total", 1]},
        keys={"axis": 2})
    assert symbols.sums["total"] in (("past", "seq"), ("seq", "past"))
    assert symbols.sizes["total"] == symbols.sizes["past"] + symbols.sizes["seq"]
    assert w.shapes["y"][2] == symbols.sizes["total"] and symbols.free == ["batch", "past", "seq"]


def test_a_total_that_only_a_mask_shows_is_proposed():
    _, symbols = walked("y = Identity ids", {"ids": ["batch", "seq"], "imask": ["batch", "total"], "past": ["batch", 4, "past", 8]})
    assert symbols.sums == {"total": ("past", "seq")}


def test_two_names_of_one_size_become_one():
    w, symbols = walked("y = Add x u", {"x": ["rows", 8], "u": ["lines", 8]})
    assert symbols.sizes["rows"] == symbols.sizes["lines"] == w.shapes["y"][0]
    (free,) = symbols.free
    assert symbols.resolve({free: 5}) == {"rows": 5, "lines": 5}


def test_unnamed_pasts_of_several_layers_become_one():
    nodes = "k0 = Concat past0 x\nk1 = Concat past1 x\ny = Add k0 k1"
    _, symbols = walked(nodes, {"past0": [None, 4, "a", 8], "past1": [None, 4, "b", 8], "x": [None, 4, "seq", 8]}, k0={"axis": 2},
        k1={"axis": 2})
    assert symbols.sizes["a"] == symbols.sizes["b"] != symbols.sizes["seq"]
    assert symbols.sizes["past0.0"] == symbols.sizes["past1.0"] == symbols.sizes["x.0"]


def test_a_symbol_that_fits_one_number_only_is_that_number():
    w, symbols = walked("y = Add x w\nz = Relu y", {"x": ["rows", "width"]}, {"w": weight(6, 8)})
    assert {name: (size, node.label) for name, (size, node) in symbols.pinned.items()} == {"rows": (6, "y"), "width": (8, "y")}
    assert w.shapes["z"] == (6, 8) and symbols.free == [] and symbols.resolve({}) == {"rows": 6, "width": 8}


def test_a_reshape_must_keep_the_number_of_entries():
    w, symbols = walked("y = Reshape x shape", {"x": ["batch", "length", 8]}, {"shape": np.array([2, 5, 2, 4])})
    assert w.shapes["y"] == (2, 5, 2, 4) and symbols.resolve({}) == {"batch": 2, "length": 5}
    with pytest.raises(GraphError, match="sizes do not fit: .* cannot be reshaped to"):
        walked("y = Reshape x shape", {"x": ["batch", "length", 8]}, {"shape": np.array([2, 5, 2, 5])})


def test_sums_of_sums_resolve():
    symbols = Symbols({"a": 3, "b": 7, "c": 10, "d": 13}, {"c": ("a", "b"), "d": ("c", "a")})
    assert symbols.resolve({"a": 2, "b": 4}) == {"a": 2, "b": 4, "c": 6, "d": 8} and symbols.free == ["a", "b"]


def test_sizes_that_do_not_fit_are_refused_with_the_node():
    with pytest.raises(GraphError, match="sizes do not fit") as error:
        walked("y = MatMul x w", {"x": ["rows", 8]}, {"w": weight(6, 4)})
    assert error.value.node == "y" and "ONNX Runtime" in error.value.hint


# Values


def test_shape_arithmetic_is_folded_to_the_end():
    nodes = """
        shape = Shape x
        last = Gather shape two
        rest = Div last four
        list = Unsqueeze rest zero_list
        target = Concat zeros list fours
        y = Reshape x target
    """
    constants = {"two": 2, "four": 4, "zero_list": [0], "zeros": [0, 0], "fours": [4]}
    w, symbols = walked(nodes, {"x": ["batch", "seq", 24]}, constants, target={"axis": 0})
    assert w.values["target"].tolist() == [0, 0, 6, 4] and w.values["rest"].shape == ()
    assert w.shapes["y"] == (symbols.sizes["batch"], symbols.sizes["seq"], 6, 4)


@pytest.mark.parametrize(("attrs", "expected"),
    [({}, [2, 3, 4]), ({"start": 1}, [3, 4]), ({"end": -1}, [2, 3]), ({"start": -2, "end": 2}, [3])])
def test_parts_of_a_shape(attrs, expected):
    w, _ = walked("y = Shape x", {"x": [2, 3, 4]}, y=attrs)
    assert w.values["y"].tolist() == expected and w.values["y"].dtype == np.int64


def test_the_size_of_a_tensor_is_a_scalar():
    w, _ = walked("y = Size x", {"x": [2, 3, 4]})
    assert w.values["y"].shape == () and w.values["y"] == 24


def test_scalars_stay_scalars():
    """1/√d, computed: no step may turn a 0-d value into a list."""
    w, _ = walked("shape = Shape x\nd = Gather shape two\nf = Cast d\nroot = Sqrt f\ny = Div x root", {"x": [2, 3, 16]}, {"two": 2},
        f={"to": TensorProto.FLOAT})
    assert w.values["root"] == 4 and {w.values[n].shape for n in ("d", "f", "root")} == {()}
    assert w.shapes["y"] == (2, 3, 16) and "y" not in w.values


def test_small_weights_are_no_numbers():
    w, _ = walked("y = Add w w\nz = Add x y", {"x": [2, 4]}, {"w": weight(4)})
    assert "w" not in w.values and "y" not in w.values and w.shapes["y"] == (4,)


def test_a_value_that_is_fed_is_not_known():
    w, _ = walked("y = Reshape x ishape", {"x": [2, 12], "ishape": [3]})
    assert w.shapes["y"] is None


def test_types_are_followed():
    w, _ = walked("a = Cast x\nb = Shape a\nc = Equal b b", {"x": [2]}, a={"to": TensorProto.FLOAT16})
    assert [w.types[n] for n in "abc"] == [TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL]


# Operators that ONNX does not know, and uses with a value of their own


def test_an_unknown_operator_leaves_its_outputs_open():
    w, _ = walked("y = acme::Twice x", {"x": [2, 3]})
    assert w.shapes["y"] is None


def test_a_rule_may_bring_the_shapes_of_its_operator():
    registry = Registry()
    registry.add("acme::Twice", 1, lambda op: None, lambda node, shapes, types: [((2 * shapes[0][0], *shapes[0][1:]), types[0])])
    w, _ = walked("y = acme::Twice x\nz = Relu y", {"x": [2, 3]}, registry=registry)
    assert w.shapes["z"] == (4, 3) and w.types["z"] == TensorProto.FLOAT


def test_one_use_of_a_constant_may_have_a_value_of_its_own():
    graph = graph_of("y = Reshape x s\nz = Reshape u s", {"x": [2, 6], "u": [2, 6]}, {"s": [2, 3, 2]})
    first = graph.nodes[0]
    w = walk(graph, {"x": (2, 12), "u": (2, 6)}, BUILTIN, overrides={(first.index, 1): np.array([2, 3, 4])})
    assert (w.shapes["y"], w.shapes["z"]) == ((2, 3, 4), (2, 3, 2))
    assert w.value(first, 1).tolist() == [2, 3, 4] and w.value(graph.nodes[1], 1).tolist() == [2, 3, 2]


def test_a_constant_in_two_places_of_one_node_may_differ():
    """Slice starts and ends may be one tensor; a private value of one of them must not reach the other."""
    graph = graph_of("y = Slice x one one zero", {"x": [8]}, {"one": [1], "zero": [0]})
    w = walk(graph, {"x": (8,)}, BUILTIN, overrides={(graph.nodes[0].index, 2): np.array([5])})
    assert w.shapes["y"] == (4,)


def test_grown_weights_and_attributes_are_walked_at_their_new_sizes():
    graph = graph_of("h = MatMul x w\na, b = Split h", {"x": [3, 4]}, {"w": weight(4, 6)}, opset=11, a={"axis": 1, "split": [2, 4]})
    w = walk(graph, {"x": (3, 4)}, BUILTIN, {"w": (4, 9)}, attributes={graph.nodes[1].index: {"split": [5, 4]}})
    assert (w.shapes["h"], w.shapes["a"], w.shapes["b"]) == ((3, 9), (3, 5), (3, 4))


def test_a_node_is_evaluated_again():
    graph = graph_of("s = Add a a\ny = Reshape x s", {"x": [2, 6]}, {"a": [1, 3]})
    w = walk(graph, {"x": (2, 6)}, BUILTIN)
    w.overrides[graph.nodes[0].index, 1] = np.array([5, -1])
    revisit(graph.nodes[0], w, graph, BUILTIN)
    assert w.values["s"].tolist() == [6, 2]


def test_the_walk_at_new_sizes_says_what_meets():
    graph = graph_of("y = Add x w", {"x": [2, 8]}, {"w": weight(8)})
    with pytest.raises(Mismatch) as error:
        walk(graph, {"x": (2, 9)}, BUILTIN)
    assert (9, 8) in error.value.pairs and error.value.node.label == "y"


def test_fixes_are_asked_for_before_each_node():
    graph = graph_of("a = Relu x\nb = Relu a", {"x": [2]})
    seen = []
    walk(graph, {"x": (2,)}, BUILTIN, fix=lambda node, w: seen.append((node.label, w.shapes.get(node.inputs[0]))))
    assert seen == [("a", (2,)), ("b", (2,))]
