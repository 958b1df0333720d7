"""`onnxgrow diff`: planted differences are found and nothing else is, whatever the form in which a file stores the same."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow import tensordiff
from onnxgrow.difference import compare_files
from onnxgrow.tensordiff import Held, compare_regions, gap_between
from tests.test_cli import folder, run  # noqa: F401 (a fixture)
from tests.zoo import export


def differences(a, b) -> dict:
    """What differs by section, empty ones left out; the exit code must agree."""
    code, out, err = run("diff", a, b, "--json")
    found = json.loads(out)
    assert err == "" and code == (0 if found["same"] else 1)
    sections = {"weights": found["weights"]["changes"], "nodes": found["nodes"]["changes"]} | {k: found[k] for k in ("names", "inputs", "outputs", "file", "metadata")}
    assert found["same"] == (not any(sections.values()))
    return {name: changes for name, changes in sections.items() if changes}


def changed(source: str, change, target: str = "b.onnx") -> str:
    """A copy of a model after a change of its proto."""
    proto = onnx.load(source)
    change(proto)
    onnx.save(proto, target)
    return target


def weight(proto: onnx.ModelProto, least: int = 2) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if len(t.dims) >= least and t.data_type == TensorProto.FLOAT)


def set_array(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


# --- planted differences ---------------------------------------------------------------------------------------------


def test_a_file_and_its_copy(folder):  # noqa: F811
    assert differences("model.onnx", "model.onnx") == {}
    assert differences("model.onnx", changed("model.onnx", lambda proto: None)) == {}


def test_one_entry_of_one_weight(folder):  # noqa: F811
    def change(proto):
        tensor = weight(proto)
        array = numpy_helper.to_array(tensor).copy()
        array[5, 7] += 0.25
        set_array(tensor, array)

    (found,) = differences("model.onnx", changed("model.onnx", change))["weights"]
    assert found["change"] == "changed" and found["a"] == found["b"] == "tokens.weight" and found["compared"] == 256 * 96
    assert found["differ"] == 1 and found["within"] == [[5, 5], [7, 7]] and found["largest"] == pytest.approx(0.25, rel=1e-5)
    code, out, _ = run("diff", "model.onnx", "b.onnx")
    assert code == 1 and "1 of 24,576 entries differ, by 0.25 at most within [5, 7]" in " ".join(out.split())


def test_an_attribute(folder):  # noqa: F811
    def change(proto):
        node = next(n for n in proto.graph.node if n.op_type == "LayerNormalization")
        next(a for a in node.attribute if a.name == "epsilon").f = 1e-3

    found = differences("gpt.onnx", changed("gpt.onnx", change))
    assert list(found) == ["nodes"] and len(found["nodes"]) == 1
    assert (found["nodes"][0]["change"], found["nodes"][0]["what"], found["nodes"][0]["from"], found["nodes"][0]["to"]) == ("attribute", "epsilon", "1e-05", "0.001")


def test_a_renamed_node_and_its_tensor(folder):  # noqa: F811
    def change(proto):
        node = next(n for n in proto.graph.node if n.op_type == "Softmax")
        old, node.name, node.output[0] = node.output[0], "renamed", "shares"
        for n in proto.graph.node:
            n.input[:] = ["shares" if i == old else i for i in n.input]

    found = differences("model.onnx", changed("model.onnx", change))
    assert list(found) == ["names"] and [(r["kind"], r["b"]) for r in found["names"]] == [("node", "renamed"), ("tensor", "shares")]


def test_all_names_renamed(folder):  # noqa: F811
    """Matched along the graph alone: nothing but names differs, and every weight finds its partner."""
    def change(proto):
        graph, names = proto.graph, {}
        new = lambda name: names.setdefault(name, f"t{len(names)}") if name else ""  # noqa: E731
        for n in graph.node:
            n.input[:], n.output[:], n.name = map(new, n.input), map(new, n.output), f"n{len(names)}"
        for v in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            v.name = new(v.name)

    found = differences("gpt.onnx", changed("gpt.onnx", change))
    kinds = {r["kind"] for r in found.pop("names")}
    assert kinds == {"node", "tensor", "weight", "input", "output"} and found == {}


def test_an_inserted_and_a_removed_node(folder):  # noqa: F811
    def change(proto):
        node = next(n for n in proto.graph.node if n.op_type == "Softmax")
        extra = helper.make_node("Identity", [node.output[0]], ["same"], "extra")
        for n in proto.graph.node:
            n.input[:] = ["same" if i == node.output[0] else i for i in n.input]
        proto.graph.node.insert([n.name for n in proto.graph.node].index(node.name) + 1, extra)

    b = changed("model.onnx", change)
    kinds = [(c["change"], c["b"]) for c in differences("model.onnx", b)["nodes"]]
    assert ("added", "extra") in kinds and len(kinds) == 2 and {k for k, _ in kinds} == {"added", "input"}
    assert {c["change"] for c in differences(b, "model.onnx")["nodes"]} == {"removed", "input"}


def test_another_type_of_a_weight(folder):  # noqa: F811
    def change(proto):
        tensor = weight(proto)
        set_array(tensor, numpy_helper.to_array(tensor).astype(np.float16))

    (found,) = differences("model.onnx", changed("model.onnx", change))["weights"]
    assert (found["change"], found["from"], found["to"], found["differ"]) == ("type", "float32[256, 96]", "float16[256, 96]", 0)
    assert 0 < found["largest"] < 1e-2


def test_inputs_outputs_opset_and_metadata(folder):  # noqa: F811
    def change(proto):
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
        next(o for o in proto.opset_import if o.domain in ("", "ai.onnx")).version += 1
        proto.metadata_props.add(key="note", value="by hand")
        proto.producer_name = "somebody"
        proto.graph.node[0].doc_string = "first"

    found = differences("model.onnx", changed("model.onnx", change))
    assert found["inputs"] == [{"name": "input_ids", "from": "int64[batch, sequence]", "to": "int32[batch, sequence]"}]
    assert found["outputs"][0]["to"].startswith("float32[rows, ") and found["metadata"] == [{"name": "note", "from": None, "to": "by hand"}]
    assert {c["name"] for c in found["file"]} == {"opset ai.onnx", "producer_name"} and found["nodes"][0]["change"] == "doc"


def test_metadata_is_counted_and_shown_where_all_is_asked_for(folder):  # noqa: F811
    def change(proto):
        for name, value in (("note", "by hand"), ("origin", "here")):
            proto.metadata_props.add(key=name, value=value)
        for node in proto.graph.node[:2]:
            node.metadata_props.add(key="stage", value="a word of a node")
            node.doc_string = "changed"

    other = changed("model.onnx", change)
    short, whole = (run("diff", "model.onnx", other, *flags)[1] for flags in ([], ["--all"]))
    assert "metadata: 2 entries differ (--all shows them)" in short and "by hand" not in short and "a word of a node" not in short
    assert [line for line in short.splitlines() if line.startswith("  ")] == ["  ... 2 doc (--all shows them)", "  ... 2 metadata (--all shows them)"]
    assert "note: only in the second: by hand" in whole and whole.count("a word of a node") == 2 and "--all" not in whole


def test_bodies_and_functions(tmp_path):
    """What differs inside an If and inside a local function is found there."""
    def model(value: float, eps: float) -> onnx.ModelProto:
        weight = numpy_helper.from_array(np.array([1, value], np.float32), "w")
        branches = {name: helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"], "sum")], name, [], [helper.make_tensor_value_info("y", 1, [2])], [weight])
                    for name in ("then_branch", "else_branch")}
        function = helper.make_function("own", "Leak", ["a"], ["b"], [helper.make_node("LeakyRelu", ["a"], ["b"], "leak", alpha=eps)], [helper.make_opsetid("", 17)])
        graph = helper.make_graph([helper.make_node("If", ["c"], ["z"], "choice", **branches), helper.make_node("Leak", ["z"], ["out"], "call", domain="own")], "g",
                                  [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, [2])],
                                  [helper.make_tensor_value_info("out", 1, [2])])
        return helper.make_model(graph, functions=[function], opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)])

    for name, arguments in (("a", (2, 0.1)), ("b", (3, 0.1)), ("c", (2, 0.2))):
        onnx.save(model(*arguments), tmp_path / f"{name}.onnx")
    found = differences(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert list(found) == ["weights"] and {w["a"] for w in found["weights"]} == {"choice/then_branch/w", "choice/else_branch/w"}
    assert found["weights"][0]["values"] == {"from": [1, 2], "to": [1, 3]}
    found = differences(tmp_path / "a.onnx", tmp_path / "c.onnx")
    assert [(c["a"], c["what"], c["to"]) for c in found["nodes"]] == [("own::Leak/leak", "alpha", "0.2")]
    assert "not compared" in run("diff", tmp_path / "a.onnx", tmp_path / "c.onnx")[1]


# --- other forms of the same -----------------------------------------------------------------------------------------


def test_external_data_is_no_difference(folder):  # noqa: F811
    onnx.save(onnx.load("model.onnx"), "outside.onnx", save_as_external_data=True, location="outside.data", size_threshold=0)
    assert differences("model.onnx", "outside.onnx") == {} and differences("outside.onnx", "model.onnx") == {}
    code, out, _ = run("diff", "model.onnx", "outside.onnx")
    assert code == 0 and out.startswith("the same:") and "weights in files of their own: 0 and 1" in out
    with open("outside.data", "r+b") as file:
        file.seek(4 * (96 * 10 + 3))
        file.write(np.float32(9).tobytes())
    assert sum(w["differ"] for w in differences("model.onnx", "outside.onnx")["weights"]) == 1


def test_typed_fields_and_order_are_no_difference(folder):  # noqa: F811
    def change(proto):
        for t in proto.graph.initializer:
            if t.data_type == TensorProto.FLOAT and t.HasField("raw_data"):
                values = numpy_helper.to_array(t).ravel().tolist()
                t.ClearField("raw_data")
                t.float_data.extend(values)
        kept = [t for t in proto.graph.initializer][::-1]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)

    b = changed("gpt.onnx", change)
    assert differences("gpt.onnx", b) == {}
    assert {"weights stand in another order"} < set(json.loads(run("diff", "gpt.onnx", b, "--json")[1])["stored"])


def test_a_constant_node_is_a_weight(folder):  # noqa: F811
    def change(proto):
        tensor = weight(proto)
        proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        proto.graph.initializer.remove(tensor)

    assert differences("model.onnx", changed("model.onnx", change)) == {}


# --- grown pairs -----------------------------------------------------------------------------------------------------


def test_a_grown_pair(folder):  # noqa: F811
    """Old blocks where the growth put them (the qkv map of GPT-2 is three blocks), gains scaled by the repair, zeros counted."""
    assert run("expand", "gpt.onnx", "--hidden", 144, "--no-validate", "-o", "grown.onnx")[0] == 0
    found = json.loads(run("diff", "gpt.onnx", "grown.onnx", "--json")[1])
    sizes = {c["name"]: (c["from"], c["to"]) for c in found["architecture"]["changes"]}
    assert sizes["hidden"] == (96, 144) and sizes["heads"] == (6, 9) and sizes["ffn"] == (384, 576) and "layers" not in sizes
    grown = {w["a"]: w for w in found["weights"]["changes"] if w["change"] == "grown"}
    assert grown and all(w["recorded"] for w in grown.values())
    for name, w in grown.items():
        gain = name.endswith("norm.weight")
        assert w["factor"] == (pytest.approx((96 / 144) ** 0.5, rel=1e-6) if gain else None) and (w["differ"] == 0) != gain, name
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load("grown.onnx").graph.initializer}
    zero = {name: int((arrays[name] == 0).sum()) for name in grown}
    assert {name: w["zero"] for name, w in grown.items()} == zero  # the source has none
    assert all(w["new"] == arrays[name].size - w["compared"] for name, w in grown.items())


def test_an_entry_of_an_old_block_that_was_changed(folder):  # noqa: F811
    assert run("expand", "gpt.onnx", "--hidden", 144, "--no-validate", "-o", "grown.onnx")[0] == 0

    def change(proto):
        tensor = next(t for t in proto.graph.initializer if list(t.dims) == [144, 432])
        array = numpy_helper.to_array(tensor).copy()
        array[3, 150] += 1  # the second of three blocks, which begins at 144
        set_array(tensor, array)

    assert run("diff", "gpt.onnx", "grown.onnx")[0] == 1
    (found,) = (w for w in differences("gpt.onnx", changed("grown.onnx", change))["weights"] if w["change"] == "grown" and w["differ"] and not w["factor"])
    assert found["differ"] == 1 and found["within"] == [[3, 3], [102, 102]] and found["largest"] == pytest.approx(1)


def test_more_layers(folder):  # noqa: F811
    """Old layers are followed to their new numbers; what is new is called so."""
    assert run("expand", "model.onnx", "--layers", 6, "--no-validate", "-o", "grown.onnx")[0] == 0
    found = json.loads(run("diff", "model.onnx", "grown.onnx", "--json")[1])
    assert [c for c in found["architecture"]["changes"] if c["name"] == "layers"] == [{"name": "layers", "from": 4, "to": 6}]
    assert {w["change"] for w in found["weights"]["changes"]} == {"added"} and {c["change"] for c in found["nodes"]["changes"]} <= {"added", "metadata", "input"}
    assert {"a": "blocks.2.ffn_norm.weight", "b": "blocks.3.ffn_norm.weight", "kind": "weight"} in found["names"]


def test_grown_by_another_hand(folder):  # noqa: F811
    """Without a record the first entries of each axis are taken for the old block, and that is said."""
    def change(proto):
        tensor = weight(proto)
        set_array(tensor, np.pad(numpy_helper.to_array(tensor), ((0, 2), (0, 4))))

    (found,) = differences("model.onnx", changed("model.onnx", change))["weights"]
    assert (found["change"], found["differ"], found["new"], found["zero"], found["recorded"]) == ("grown", 0, 258 * 100 - 256 * 96, 258 * 100 - 256 * 96, False)
    assert "first entries taken for the old block" in " ".join(run("diff", "model.onnx", "b.onnx")[1].split())


def test_two_exporters_of_one_model():
    """Nothing in common but the function: it ends, and says so."""
    found = compare_files(export("gpt2", "dynamo"), export("gpt2", "torchscript"))
    assert not found.same and found.unknown is None and found.file


# --- entry by entry --------------------------------------------------------------------------------------------------


def held(array: np.ndarray) -> Held:
    return Held.of(numpy_helper.from_array(np.ascontiguousarray(array), "x"))


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_regions_in_blocks_of_any_size(monkeypatch, block):
    """Against numpy's own choice of the entries."""
    monkeypatch.setattr(tensordiff, "BLOCK", block)
    random = np.random.default_rng(0)
    masks = [np.isin(np.arange(n), keep) for n, keep in ((5, [0, 3, 4]), (6, range(6)), (7, [1, 2, 5]))]
    b = random.normal(size=(5, 6, 7)).astype(np.float32)
    b[0, 0] = 0
    a = b[np.ix_(*masks)].copy()
    a[1, 2, 0] -= 3
    a[2, 5, 2] = np.nan
    found = compare_regions(held(a), held(b), [np.ones(n, bool) for n in a.shape], masks)
    assert (found.old.differ, found.old.entries, found.old.within) == (2, a.size, [[1, 2], [2, 5], [0, 2]])
    old = np.ix_(*masks)
    rest = b.copy()
    rest[old] = 1
    assert found.new == b.size - a.size and found.zero == (rest == 0).sum() and found.old.largest == np.inf
    back = compare_regions(held(b), held(a), masks, [np.ones(n, bool) for n in a.shape])
    assert (back.old.differ, back.new, back.zero) == (2, found.new, found.zero)


def test_nan_and_signs_of_zero():
    a, b = np.array([np.nan, 0.0, 1, 2], np.float32), np.array([np.nan, -0.0, 1, 2], np.float32)
    assert gap_between(held(a), held(a)).differ == 0 and gap_between(held(a), held(b)).differ == 1 and gap_between(held(a), held(b)).largest == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "uint4", "bool", "complex64", "uint8", "float64"])
def test_types(tmp_path, dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    a = (np.arange(3001) % 7).astype(kind)
    b = a.copy()
    b[2001] = kind.type(not a[2001]) if dtype == "bool" else kind.type(1 if a[2001] != 1 else 2)
    for form, extra in (("inside", {}), ("outside", dict(save_as_external_data=True, size_threshold=0))):
        for name, array in (("a", a), ("b", b)):
            tensor = numpy_helper.from_array(array, "w")
            graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [helper.make_tensor_value_info("y", tensor.data_type, None)], [tensor])
            onnx.save(helper.make_model(graph), tmp_path / f"{name}-{form}.onnx", **extra, **(dict(location=f"{name}.data") if extra else {}))
    assert differences(tmp_path / "a-inside.onnx", tmp_path / "a-outside.onnx") == {}
    (found,) = differences(tmp_path / "a-outside.onnx", tmp_path / "b-inside.onnx")["weights"]
    assert found["differ"] == 1 and found["within"] == [[2001, 2001]] and found["compared"] == 3001


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Two weights of 64 MB, one of them grown: far less is held at any time."""
    big = np.ones((1 << 12, 1 << 12), np.float32)
    for name, array in (("a", big), ("b", np.pad(big, ((0, 1), (0, 1))))):
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [helper.make_tensor_value_info("y", 1, None)], [numpy_helper.from_array(array, "w")])
        onnx.save(helper.make_model(graph), tmp_path / f"{name}.onnx", save_as_external_data=True, location=f"{name}.data")
    tracemalloc.start()
    found = compare_files(tmp_path / "a.onnx", tmp_path / "b.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.weights[0].gap.differ == 0 and found.weights[0].new == 2 * 4096 + 1 and peak < 60e6


# --- how it is said --------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_trouble_and_no_difference(folder):  # noqa: F811
    for words in (("model.onnx", "missing.onnx"), ("model.onnx",), ("model.onnx", "gpt.onnx", "--wrong")):
        assert run("diff", *words)[0] == 2
    (folder / "text.onnx").write_text("no model")
    code, out, err = run("diff", "text.onnx", "model.onnx", "--json")
    assert code == 2 and json.loads(out)["error"]["type"] == "FileError" and "next:" in err


def test_long_sections_are_cut_unless_all_is_asked_for(folder):  # noqa: F811
    few, every = run("diff", "model.onnx", "gpt.onnx")[1], run("diff", "model.onnx", "gpt.onnx", "--all")[1]
    assert "(--all shows them)" in few and "(--all shows them)" not in every and len(every) > 5 * len(few)
    assert all(len(line) <= 80 for line in few.splitlines()) and "  norm: rms norm -> layer norm" in few.splitlines()
