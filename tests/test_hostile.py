"""Hostile files are refused in words or read as harmless, fuzzed ones too; and the package never reads a pickle or runs what it reads."""

from __future__ import annotations

import ast
import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.shape_inference import InferenceError

from onnxgrow.errors import FileError, GraphError, SizeError
from onnxgrow.fold import fold
from onnxgrow.graph import Node, build
from onnxgrow.inference import infer
from onnxgrow.model import Model
from onnxgrow.source import open_source
from onnxgrow.understood import Unforeseen, understood
from tests import fuzz, hostile
from tests.fuzz_changes import CHANGES, bytes_changed, mutant
from tests.hostile_base import CASES, GROUPS, base
from tests.test_cli import run
from tests.textgraph import Memory, model_of

ROOT = Path(__file__).parents[1]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork") or not Path("/proc/self/statm").exists(), reason="children with limits: Linux")
QUICK = {name for names in GROUPS.values() for name in names[::4]}  # the short run takes every fourth


def test_the_corpus_is_large_and_every_case_says_what_it_is():
    assert len(CASES) >= 60 and all(case.about for case in CASES.values())
    refused = [case for case in CASES.values() if case.says]
    assert len(refused) > 100


@needs_fork
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_a_hostile_file_does_no_harm(name):
    assert not hostile.wrong(*hostile.attempt(name))


@needs_fork
def test_harm_is_seen():
    """What the corpus looks for would be found."""
    from tests.hostile_base import _misdeeds

    assert _misdeeds(-9, "", "") and _misdeeds(1, "", "Traceback (most recent call last)") and _misdeeds(0, "\x1b[31m", "") and _misdeeds(1, "", "error: no")
    assert not _misdeeds(1, "", "error: no\n  next: yes\n") and not _misdeeds(0, "fine\n", "")


# --- fuzzing -------------------------------------------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize(("first", "count"), [(10_000_000, 60), pytest.param(20_000_000, 400, marks=pytest.mark.slow)])
def test_changed_models_meet_no_errors_but_our_own(first, count):
    assert not fuzz.run(first, count, None, (), None)["finding"]


def test_an_input_is_made_from_its_seed_alone():
    name, content = fuzz.made(7, ())
    assert (name, content) == fuzz.made(7, ()) and content != dict(fuzz.sources(()))[name]
    assert len({fuzz.made(seed, ())[1] for seed in range(20)}) == 20


def test_every_change_changes_something():
    for change in CHANGES:
        made = set()
        for seed in range(12):
            model = base()
            change(random.Random(seed), model)
            made.add(model.SerializeToString())
        assert len(made - {base().SerializeToString()}) > 1, change.__name__
    assert bytes_changed(random.Random(1), b"x" * 100) != b"x" * 100 and mutant(random.Random(1), base().SerializeToString())


@needs_fork
@pytest.mark.parametrize(("what", "kind"), [("raise KeyError('x')", "finding"), ("raise FileError('x', hint='y')", "refused"), ("raise FileError('x')", "finding"),
                                            ("[0] * (1 << 40)", "finding"), ("os.abort()", "finding"), ("pass", "fine")])
def test_the_fuzzer_sees(what, kind, monkeypatch):
    """Errors of others, refusals without a next step, too much memory, and death."""
    monkeypatch.setattr(fuzz, "use", lambda path, rng: exec(what, {"os": os, "FileError": FileError}))
    assert [result[1] for result in fuzz.tried([3], ())] == [kind]


@needs_fork
def test_the_fuzzer_sees_what_hangs(monkeypatch):
    def forever(path, rng):
        while True:
            pass
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(fuzz, "use", forever)
    ((_, kind, what, _),) = fuzz.tried([3], ())
    assert kind == "finding" and "hang" in what


# --- what fuzzing and the corpus found, one by one -----------------------------------------------------------------------------------


def written(tmp_path, change) -> Path:
    model = base()
    change(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


FOUND = {
    "a Loop without body": (lambda m: m.graph.node.insert(0, helper.make_node("Loop", ["", ""], ["z"])), "lacks its attribute body"),
    "an If without branches": (lambda m: m.graph.node.insert(0, helper.make_node("If", [m.graph.initializer[0].name], ["z"])), "lacks its attribute (then|else)_branch"),
    "a Scan without number": (lambda m: m.graph.node.insert(0, helper.make_node("Scan", [m.graph.initializer[0].name], ["z"], body=helper.make_graph([], "b", [], []))), "which does not fit"),
    "a Constant of too few values": (lambda m: m.graph.node.insert(0, helper.make_node("Constant", [], ["z"], value=TensorProto(dims=[5], data_type=1, float_data=[1]))), "needs 5 values"),
    "a Constant of nothing": (lambda m: m.graph.node.insert(0, helper.make_node("Constant", [], ["z"])), "holds 0 values"),
    "an attribute of a function outside": (lambda m: next(n for n in m.graph.node if n.attribute).attribute[0].__setattr__("ref_attr_name", "alpha"), "stands for one of a function"),
    "a fused operator without its types": (lambda m: m.graph.node.insert(0, helper.make_node("GroupQueryAttention", [m.graph.initializer[0].name], ["z"], domain="com.microsoft")), ""),
    "a norm of nothing": (lambda m: m.graph.node.insert(0, helper.make_node("SimplifiedLayerNormalization", [], ["z"])), ""),
    "a search that gives nothing": (lambda m: m.graph.node.insert(0, helper.make_node("BeamSearch", [m.graph.input[0].name], [], domain="com.microsoft")), "has 0 outputs, and takes at least 1"),
    "a scale of a negative size": (lambda m: m.graph.node.insert(0, helper.make_node("MultiHeadAttention", [m.graph.initializer[0].name] * 3, ["z"], domain="com.microsoft", num_heads=-1)), ""),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_refused(name, tmp_path):
    change, words = FOUND[name]
    try:
        Model(written(tmp_path, change)).architecture.to_json()
    except (FileError, GraphError) as problem:
        import re

        assert not isinstance(problem, Unforeseen), problem
        assert re.search(words, problem.what), problem
    else:
        assert not words


@pytest.mark.parametrize("change", [
    lambda m: m.graph.output[0].type.tensor_type.__setattr__("elem_type", TensorProto.INT64), lambda m: m.graph.node[-1].__setattr__("domain", "{{ 7 * 7 }}"),
    lambda m: m.functions.append(helper.make_function("here", "self", ["x"], ["y"], [helper.make_node("self", ["x"], ["y"], domain="here")], [helper.make_opsetid("here", 1)])),
], ids=["another type", "another domain", "a function of itself"])  # fmt: skip
def test_types_that_do_not_fit_are_refused_where_the_written_file_is_looked_at(change, tmp_path):
    """onnx refuses to infer anything of such a graph, also where it is not asked to be strict."""
    model = onnx.load(fuzz.MODELS / "tiny-llama.onnx")
    change(model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(GraphError, match="ONNX Runtime does not open") as refused:
        Model(tmp_path / "m.onnx").plan(ffn=300).write(tmp_path / "grown.onnx", provider="cpu")
    assert refused.value.hint and not isinstance(refused.value, Unforeseen)


@pytest.mark.parametrize(("op", "second"), [("Expand", [-7, 1]), ("Pad", [-8, 0, 0, 0])])
def test_no_size_is_negative(op, second):
    """onnx infers such sizes, and ends the process when a Slice meets them."""
    node = Node(0, helper.make_node(op, ["x", "s"], ["y"]), ["x", "s"], 17)
    with pytest.raises(InferenceError, match="a size of -7"):
        infer(node, [(1, 1), (len(second),)], [1, 7], [None, np.array(second)])


def test_nodes_in_any_order_take_linear_time():
    """Reversed, a chain once took the square of its length."""
    lines = [helper.make_node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(20_000)]
    model = helper.make_model(helper.make_graph(lines[::-1], "g", [helper.make_tensor_value_info("v0", 1, [1])], []), opset_imports=[helper.make_opsetid("", 17)])
    graph = build(Memory(proto=model))
    assert [n.inputs[0] for n in graph.nodes] == [f"v{i}" for i in range(20_000)]


def test_order_stays_as_the_file_has_it_where_it_can():
    proto = model_of("a = Neg x\nb = Neg x\nc = Add b a\nd = Neg c", {"x": [2]})
    assert [n.outputs[0] for n in build(Memory(proto=proto)).nodes] == ["a", "b", "c", "d"]
    moved = onnx.ModelProto()
    moved.CopyFrom(proto)
    del moved.graph.node[:]
    moved.graph.node.extend([proto.graph.node[k] for k in (3, 2, 0, 1)])
    assert [n.outputs[0] for n in build(Memory(proto=moved)).nodes] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("op", "inputs"), [("Range", [0, 10**12, 1]), ("ConstantOfShape", [[10**6, 10**6]]), ("Expand", [[1], [10**9, 10**3]]), ("Tile", [[1], [10**12]]), ("Tile", [[[1]], [10**12, 0]]),
                                           ("OneHot", [[1, 2], 10**12, [0, 1]]), ("Gather", [np.zeros((1, 4000)), np.zeros(4000, np.int64)])])
def test_shape_arithmetic_makes_nothing_large(op, inputs):
    node = Node(0, helper.make_node(op, list("abc")[: len(inputs)], ["y"]), list("abc")[: len(inputs)], 17)
    assert fold(node, [np.asarray(x) for x in inputs]) is None


@needs_fork
def test_a_graph_that_fits_at_no_size_is_refused_in_seconds():
    """Sizes are tried where an export may have written one down; here no size helps, and all were tried."""
    for seed in (374,):
        ((_, kind, what, took),) = fuzz.tried([seed], ())
        assert kind != "finding" and took < 10, what


def test_real_oddities_are_no_hostility(tmp_path):
    """Seen in files of others: one Cast written twice, two Constants of one name (the last counts), value_info with a size of -1."""
    def change(m):
        m.graph.node.extend([helper.make_node("Cast", [m.graph.input[0].name], ["t"], name=f"c{k}", to=1) for k in range(2)])
        m.graph.node.extend([helper.make_node("Constant", [], ["k"], value_int=k) for k in range(2)])
        m.graph.value_info.append(helper.make_tensor_value_info("t", 1, [-1]))
    assert open_source(written(tmp_path, change)).proto.graph.value_info


def test_errors_of_others_become_refusals_and_those_of_the_system_pass():
    with pytest.raises(Unforeseen, match="not understood: KeyError: 'axis'") as found, understood():
        raise KeyError("axis")
    assert isinstance(found.value.__cause__, KeyError) and found.value.kind == "GraphError" and found.value.hint
    for problem in (FileError("x"), OSError(28, "full"), KeyboardInterrupt()):
        with pytest.raises(type(problem)), understood():
            raise problem


def test_a_name_with_lines_makes_no_lines_in_a_message():
    assert str(FileError("there is no a\nb", hint="find a\nb")) == "there is no a\\nb\n  next: find a\\nb"


def test_a_name_with_lines_makes_no_lines_on_the_screen(tmp_path):
    """Names of nodes and weights stand in what `inspect` and `expand -v` say of a growth."""
    model = base()
    renamed = {name: f"{name}\nwrote elsewhere" for name in [t.name for t in model.graph.initializer]}
    for n in model.graph.node:
        n.name += "\nwrote elsewhere"
        n.input[:] = [renamed.get(name, name) for name in n.input]
    for t in model.graph.initializer:
        t.name = renamed[t.name]
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for command in (["inspect", path, "-v"], ["expand", path, "--hidden", 48, "-o", tmp_path / "grown.onnx", "-v"], ["diff", path, tmp_path / "grown.onnx", "--all"]):
        code, out, err = run(*command)
        assert code == (command[0] == "diff") and "elsewhere" in out + err, (command, err)
        assert not any(line.startswith("wrote elsewhere") for line in (out + err).splitlines()), command


def test_more_bytes_than_allowed_are_refused_before_the_first(tmp_path):
    plan = Model(written(tmp_path, lambda m: None)).plan(ffn=40)
    before = {*tmp_path.iterdir()}
    needed = plan.write(tmp_path / "grown.onnx", validate=False).path.stat().st_size
    (tmp_path / "grown.onnx").unlink()
    for allowed in (1000, needed - 1):
        with pytest.raises(SizeError, match=rf"needs (\d+) bytes, and {allowed} are allowed"):
            plan.write(tmp_path / "grown.onnx", max_output_bytes=allowed, validate=False)
    assert {*tmp_path.iterdir()} == before
    assert plan.write(tmp_path / "grown.onnx", max_output_bytes=needed, validate=False).path.stat().st_size == needed


# --- what the package never does -----------------------------------------------------------------------------------------------------


def calls() -> list[tuple[str, ast.Call]]:
    files = [*(ROOT / "onnxgrow").rglob("*.py"), *(ROOT / "rules").glob("*.py")]
    return [(f"{file.name}:{n.lineno}", n) for file in files for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]


def test_no_pickle_is_read_and_nothing_read_is_run():
    found = {place: ast.unparse(call.func) for place, call in calls()}
    assert not {p: f for p, f in found.items() if f in ("eval", "exec", "__import__", "yaml.unsafe_load", "yaml.full_load", "os.system") or f.startswith(("pickle.", "marshal.", "shelve.", "dill."))}
    for place, call in calls():
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        match ast.unparse(call.func):
            case "np.load":
                assert given.get("allow_pickle") == "False", place
            case "torch.load":
                assert given.get("weights_only") == "True", place
            case "yaml.load":
                assert given.get("Loader") == "_loader()", place  # a subclass of SafeLoader
            case function:
                assert "trust_remote_code" not in given, (place, function)


def test_the_help_says_that_rules_are_code():
    from tests.test_cli import run

    assert "It is run: use only files you trust" in " ".join(run("expand", "--help")[1].split())
