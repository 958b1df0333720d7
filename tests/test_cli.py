"""The command line: documents, exit codes, and one clear message for everything that can be wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

import onnxgrow
from onnxgrow.commands import main

MODELS = Path(__file__).parents[1] / "onnxgrow" / "models"
TWIST = """
from onnxgrow.rulebook import Rule, rule

@rule("test.cli::Twist", shape=lambda node, shapes, types: [(shapes[0], types[0])])
def twist(op):
    return Rule("... -> ...", other="f(0)=0")
"""


def run(*arguments):
    """(exit code, stdout, stderr) of a command; an exception that is no exit fails the test."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def document(*arguments) -> dict:
    """The JSON document of a command that must succeed and print nothing else."""
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, ""), err
    return json.loads(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with model.onnx (Llama-like) and gpt.onnx in it."""
    shutil.copy(MODELS / "tiny-llama.onnx", tmp_path / "model.onnx")
    shutil.copy(MODELS / "tiny-gpt.onnx", tmp_path / "gpt.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- depth -----------------------------------------------------------------------------------------------------------


def test_layers_and_widths_in_one_command(folder):
    found = document("expand", "model.onnx", "--layers", 6, "--hidden", 144, "--vocab", 300, "-o", "all.onnx")
    assert found["plan"]["sizes"]["layers"] == {"old": 4, "new": 6} and found["plan"]["certificate"]["kind"] == "exact"
    (stack,) = found["plan"]["layers"]
    assert [b["from"] for b in stack["blocks"]] == [0, 1, 1, 2, 3, 3] and [b["new"] for b in stack["blocks"]] == [False, False, True, False, False, True]
    assert found["validation"]["equal"] and document("inspect", "all.onnx")["architecture"]["layers"] == 6
    assert run("validate", "model.onnx", "all.onnx")[0] == 0


def test_the_order_of_flags_does_not_matter(folder):
    one, two = ["--layers", 6, "--hidden", 144, "--ffn", 300], ["--ffn", 300, "--hidden", 144, "--layers", 6]
    run("expand", "model.onnx", *one, "-o", "one.onnx"), run("expand", "model.onnx", *two, "-o", "two.onnx")
    assert (folder / "one.onnx").read_bytes() == (folder / "two.onnx").read_bytes()


def test_the_plan_shows_where_new_blocks_go(folder):
    code, out, _ = run("expand", "model.onnx", "--layers", 6, "--placement", "end", "--plan")
    assert code == 0 and "0 1 2 3 +3 +3" in out and "layers       4 -> 6" in out and re.search(r"layers\.|val_\d+", out)
    code, out, _ = run("inspect", "model.onnx")
    assert code == 0 and "layers: 4" in out and re.search(r"  3: \d+ nodes, \S+ \.\. \S+", out)


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--layers", 3], 1, "cannot shrink"),
    (["--decoder-layers", 6], 1, "no stack named 'decoder_layers'"),
    (["--layers", 6, "--placement", "middle"], 2, "no placement 'middle'"),
    (["--layers", 6, "--placement", "after:9"], 2, "name layers from 0 to 3"),
    (["--hidden", 144, "--placement", "end"], 2, "--placement says how layers are added"),
    (["--hidden", 144, "--depth-method", "gate"], 2, "--depth-method says how layers are added"),
    (["--hidden", 144, "--vocab-init", "zero"], 2, "--vocab-init says how new words start"),
])
def test_depth_that_cannot_be(folder, arguments, code, words):
    before = contents(folder)
    found, _, err = run("expand", "model.onnx", *arguments)
    assert found == code and words in err and "Traceback" not in err and contents(folder) == before


# --- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] * (c == "demo")) for c in main.commands])
def test_the_example_in_the_help_runs(folder, command):
    os.replace("gpt.onnx", "model.onnx")
    code, text, _ = run(command, "--help")
    found = re.findall(r"^\s*Example: onnxgrow (.*)$", text, re.M)
    assert found and all(len(line) <= 80 for line in text.splitlines())
    if command in ("validate", "diff", "report"):
        assert run("expand", "model.onnx", "--hidden", 1024, "--no-validate")[0] == 0
    if command == "check-rules":
        text = (Path(__file__).parents[1] / "examples" / "custom_rule" / "acme_rules.py").read_text()
        Path("acme.py").write_text(text.replace("acme::", "helpful::"))
    if command == "import-weights":
        assert run("export", "model.onnx", "-o", "model_pt", "--no-validate")[0] == 0
        save_file({n: x * 1.01 for n, x in load_file("model_pt/model.safetensors").items()}, "model_pt/trained.safetensors")
    for example in found:
        code, out, err = run(*shlex.split(example))
        assert (code, err) == (int(command == "diff"), "") and out, example


def test_the_overview_lists_every_command_and_its_examples_parse():
    code, out, _ = run("--help")
    assert code == 0
    for name in main.commands:
        assert re.search(rf"^  {name}  ", out, re.M)
    assert run("-h")[1] == out
    assert onnxgrow.__version__ in run("--version")[1]


def test_inspect(folder):
    code, out, err = run("inspect", "model.onnx")
    assert (code, err) == (0, "")
    assert re.match(r"transformer with 4 layers, 437,\d{3} parameters", out)
    for row in (r"hidden +96", r"heads +4", r"kv_heads +2", r"head_dim +24", r"ffn +240 \(gated silu\)", r"vocab +256",
                r"norm +rms norm, before the branch"):
        assert re.search(rf"^  {row}$", out, re.M), row
    assert "dims (--set NAME=SIZE)" in out


def test_inspect_as_a_document(folder):
    doc = document("inspect", "model.onnx")
    assert list(doc) == ["onnxgrow", "command", "model", "architecture", "only_at", "growth"] and doc["growth"] is None
    sizes = {"layers": 4, "hidden": 96, "heads": 4, "kv_heads": 2, "head_dim": 24, "ffn": 240, "vocab": 256, "rotary": True, "gated": True}
    assert sizes.items() <= doc["architecture"].items()
    assert {"name": "ffn", "size": 240, "sizes": [240], "places": 4, "extent": "240", "refused": None, "module": None} in doc["architecture"]["dims"]


def test_expand_names_its_target_after_the_sizes(folder):
    code, out, err = run("expand", "model.onnx", "--hidden", 144, "--ffn", 301)
    assert (code, err) == (0, "")
    for line in ("hidden: 96 -> 144", "ffn: 240 -> 301", "heads: 4 -> 6", "kv_heads: 2 -> 3", "certificate: exact", "wrote model-h144-f301.onnx"):
        assert f"{line}\n" in out, line
    assert re.search(r"^equal on (CPU|CUDA): largest relative difference \S+ \(tolerance 1e-05\), top-1 of logits 100.00%$", out, re.M)
    onnx.checker.check_model("model-h144-f301.onnx", full_check=True)
    assert sorted(contents(folder)) == ["gpt.onnx", "model-h144-f301.onnx", "model.onnx"]


def test_expand_as_a_document(folder):
    doc = document("expand", "model.onnx", "--hidden", 120, "--only-hidden", "-o", "grown.onnx")
    assert list(doc) == ["onnxgrow", "command", "model", "plan", "output", "validation", "not_finite"]
    assert doc["output"] == "grown.onnx" and Path("grown.onnx").is_file()
    assert doc["plan"]["sizes"] == {"hidden": {"old": 96, "new": 120}}
    assert doc["plan"]["certificate"] == {"kind": "exact", "reasons": [], "bound": None, "rounding": None}
    assert doc["validation"]["equal"] is True and doc["validation"]["max_rel"] < 1e-5 and doc["validation"]["top1"] == 1
    assert document("expand", "model.onnx", "--ffn", 300, "--no-validate")["validation"] is None


def test_plan_writes_nothing_and_says_everything(folder):
    before = contents(folder)
    code, out, err = run("expand", "model.onnx", "--hidden", 144, "--plan")
    assert (code, err) == (0, "")
    for pattern in (r"hidden +96 -> 144", r"note: heads follow hidden at head_dim 24: 4 -> 6",
                    r"tokens.weight: \[256, 96\] -> \[256, 144\]  fill -, zero",
                    r"\[96\] -> \[144\]  fill free .*repair · 0\.8164", r"constants$", r"gain · √\(96/144\), eps · 96/144", r"certificate: exact"):
        assert re.search(pattern, out, re.M), pattern
    doc = document("expand", "model.onnx", "--hidden", 144, "--plan")
    assert list(doc) == ["onnxgrow", "command", "model", "plan"]
    assert contents(folder) == before


def test_the_same_command_gives_the_same_bytes(folder):
    for name in ("one", "two"):
        assert run("expand", "model.onnx", "--hidden", 144, "--no-validate", "--seed", 7, "-o", f"{name}.onnx")[0] == 0
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()
    assert run("expand", "model.onnx", "--hidden", 144, "--no-validate", "--seed", 8, "-o", "two.onnx", "--force")[0] == 0
    assert Path("one.onnx").read_bytes() != Path("two.onnx").read_bytes()


def test_validate(folder):
    run("expand", "model.onnx", "--hidden", 144, "--no-validate", "-o", "grown.onnx")
    code, out, err = run("validate", "model.onnx", "grown.onnx")
    assert (code, err) == (0, "") and out.startswith("equal on ")
    doc = document("validate", "model.onnx", "grown.onnx")
    assert list(doc) == ["onnxgrow", "command", "model", "grown", "certificate", "validation"]
    assert doc["certificate"] == "exact" and doc["validation"]["equal"] is True


def test_validate_finds_a_changed_weight(folder):
    run("expand", "model.onnx", "--hidden", 144, "--no-validate", "-o", "grown.onnx")
    proto = onnx.load("grown.onnx")
    tensor = next(t for t in proto.graph.initializer if t.name == "tokens.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[:, 3] += 0.1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, "grown.onnx")
    code, out, err = run("validate", "model.onnx", "grown.onnx")
    assert code == 1 and out.startswith("NOT EQUAL on ") and "first difference: " in out and "expected if GROWN was trained on" in out
    code, out, _ = run("validate", "model.onnx", "grown.onnx", "--json")
    assert code == 1 and json.loads(out)["validation"]["equal"] is False


def test_expand_with_inputs_of_the_user(folder):
    np.savez("inputs.npz", input_ids=np.arange(20, dtype=np.int64).reshape(2, 10))
    doc = document("expand", "model.onnx", "--ffn", 301, "--inputs", "inputs.npz", "--provider", "cpu")
    (case,) = doc["validation"]["cases"]
    assert case["outputs"][0]["shape"] == [2, 10, 256] and doc["validation"]["provider"] == "CPUExecutionProvider"


def test_naive_is_written_and_not_called_preserved(folder):
    code, out, err = run("expand", "model.onnx", "--hidden", 144, "--method", "naive")
    assert code == 0 and "certificate: not preserved" in out and "not preserved, as certified, on " in out


def test_a_rule_file_makes_an_unknown_operator_known(folder):
    with_twist(folder / "twisted.onnx", domain="test.cli")
    Path("twist.py").write_text(TWIST)
    code, out, err = run("expand", "twisted.onnx", "--hidden", 144, "--no-validate", "--rules", "twist.py")
    assert code == 0 and "certificate: exact" in out


# --- what does not ---------------------------------------------------------------------------------------------------


def with_twist(path: Path, name: str = "twist", domain: str = "acme") -> None:
    """The Llama-like model with an unknown operator in front of its head."""
    proto = onnx.load(MODELS / "tiny-llama.onnx")
    nodes = proto.graph.node
    last = max(i for i, n in enumerate(nodes) if n.op_type == "MatMul")
    nodes.insert(last, helper.make_node("Twist", [nodes[last].input[0]], ["twisted"], name=name, domain=domain))
    nodes[last + 1].input[0] = "twisted"
    del proto.graph.value_info[:]
    proto.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(proto, path)


def perceptron(path: Path) -> None:
    """A model without attention."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy")
    weight = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def without_data(path: Path) -> None:
    """A model whose external data is gone."""
    onnx.save(onnx.load(MODELS / "tiny-llama.onnx"), path, save_as_external_data=True, location="weights.data", size_threshold=0)
    path.with_name("weights.data").unlink()


WHOLE = (MODELS / "tiny-llama.onnx").read_bytes()
BAD = {  # what is wrong: (makes the file bad.onnx or something else, the command, its exit code, the message)
    "no file": (None, "expand none.onnx --hidden 144", 1,
        r"there is no model file \S*/none.onnx\n"
        r"  next: check the path"),
    "no file to inspect": (None, "inspect none.onnx", 1,
        r"there is no model file \S*/none.onnx\n"
        r"  next: check the path"),
    "no file to validate": (None, "validate model.onnx none.onnx", 1,
        r"there is no model file \S*/none.onnx\n"
        r"  next: check the path"),
    "a folder": (lambda p: p.mkdir(), "expand bad.onnx --hidden 144", 1,
        r"the model file \S*/bad.onnx is a folder\n"
        r"  next: name a file"),
    "empty": (lambda p: p.touch(), "expand bad.onnx --hidden 144", 1,
        r"\S*/bad.onnx is empty\n"
        r"  next: export or download the model again"),
    "not ONNX": (lambda p: p.write_text("hello\n"), "expand bad.onnx --hidden 144", 1,
        r"\S*/bad.onnx is not an ONNX model: .*\n"
        r"  next: export or download the model again"),
    "truncated": (lambda p: p.write_bytes(WHOLE[:-500]), "expand bad.onnx --hidden 144", 1,
        r"\S*/bad.onnx is damaged or incomplete: it ends at byte \d+, .*\n"
        r"  next: export or download the model again"),
    "missing external data": (without_data, "expand bad.onnx --hidden 144", 1,
        r"there is no external data file \S*/weights.data \(node 'tokens.weight'\)\n"
        r"  next: put the data file beside the model"),
    "no transformer": (perceptron, "expand bad.onnx --hidden 16", 1,
        r"no attention found .*\n"
        r"  next: .*"),
    "unknown operator on a grown axis": (with_twist, "expand bad.onnx --hidden 144", 1,
        r"hidden cannot grow: no rule for the operator acme::Twist \(node 'twist', axis 2\)\n"
        r"  next: add a rule for acme::Twist \(--rules FILE, see docs/rules.md\).*"),
    "a size that does not divide": (None, "expand model.onnx --hidden 100", 1,
        r"hidden 100 is not a whole number of heads of 24\n"
        r"  next: ask for 120, or give --only-hidden, .*"),
    "heads that do not divide": (None, "expand model.onnx --heads 5", 1,
        r"5 heads are no whole number of groups: 2 query heads share a kv head\n"
        r"  next: ask for 4 or 6, .*"),
    "kv heads that do not divide": (None, "expand model.onnx --kv-heads 3", 1,
        r"4 query heads cannot share 3 kv heads evenly\n"
        r"  next: ask for kv_heads 2 or 4, .*"),
    "rotary halves": (None, "expand model.onnx --head-dim 25", 1,
        r"head_dim is 12 \+ 12 and grows by multiples of 2\n"
        r"  next: ask for 24 or 26"),
    "no kv heads": (None, "expand gpt.onnx --kv-heads 6", 1,
        r"this model has no kv heads of their own: .*\n"
        r"  next: use --heads"),
    "shrinking": (None, "expand model.onnx --hidden 48", 1,
        r"hidden is 96 and cannot shrink to 48\n"
        r"  next: ask for 96 or more"),
    "copies at no multiple": (None, "expand model.onnx --hidden 120 --only-hidden --method copy", 1,
        r"hidden cannot grow from 96 to 120: copies of 96 entries .*\n"
        r"  next: with --method copy ask for a whole multiple \(192\)"),
    "no such dim": (None, "expand model.onnx --set depth=12", 1,
        r"the model has no dim named 'depth'\n"
        r"  next: one of: heads, kv_heads, .*`?onnxgrow inspect`?.*"),
    "no size": (None, "expand model.onnx", 2,
        r"no size asked for\n"
        r"  next: for example: --hidden 1024 \(sizes today: onnxgrow inspect\)"),
    "a set that is none": (None, "expand model.onnx --set ffn", 2,
        r"--set 'ffn' is not NAME=SIZE\n"
        r"  next: for example: --set ffn=512 .*"),
    "two sizes for one": (None, "expand model.onnx --hidden 144 --set hidden=192", 2,
        r"hidden is asked for twice: 144 and 192\n"
        r"  next: give it once"),
    "only hidden without hidden": (None, "expand model.onnx --only-hidden --ffn 300", 2,
        r"--only-hidden .* there is no --hidden\n"
        r"  next: leave it out, or add --hidden SIZE"),
    "inputs that nobody uses": (None, "expand model.onnx --ffn 300 --no-validate --inputs i.npz", 2,
        r"--no-validate leaves nothing to do for --inputs and --provider\n"
        r"  next: .*"),
    "no inputs file": (None, "expand model.onnx --ffn 300 --inputs none.npz", 2,
        r"cannot read inputs from none.npz: .*\n"
        r"  next: give a .npz file .*"),
    "inputs that are none": (lambda p: Path("bad.npz").write_text("hello"), "expand model.onnx --ffn 300 --inputs bad.npz", 2,
        r"bad.npz is not a .npz file\n"
        r"  next: give a .npz file .*"),
    "inputs of another model": (lambda p: np.savez("bad.npz", pixels=np.zeros(3)), "expand model.onnx --ffn 300 --inputs bad.npz", 2,
        r"there is no array for the input 'input_ids'\n"
        r"  next: give exactly these arrays: input_ids"),
    "inputs of a wrong type": (lambda p: np.savez("bad.npz", input_ids=np.zeros((1, 3), "f")), "expand model.onnx --ffn 300 --inputs bad.npz", 2,
        r"the array 'input_ids' is of type float32, the input of type int64\n"
        r"  next: .*"),
    "onto the source": (None, "expand model.onnx --ffn 300 -o model.onnx --force --no-validate", 1,
        r"\S*model.onnx is the source model itself, which is never changed\n"
        r"  next: choose another name"),
    "onto another file": (None, "expand model.onnx --ffn 300 -o gpt.onnx --no-validate", 1,
        r"\S*gpt.onnx (already )?exists.*\n"
        r"  next: .*"),
    "into no folder": (None, "expand model.onnx --ffn 300 -o none/g.onnx --no-validate", 1,
        r"there is no folder \S*none\n"
        r"  next: create it first"),
    "no rule file": (None, "expand model.onnx --ffn 300 --rules none.py", 2,
        r"no rule file 'none.py'\n"
        r"  next: give --rules the path of a Python file"),
    "a rule file that fails": (lambda p: Path("bad.py").write_text("def ("), "expand model.onnx --ffn 300 --rules bad.py", 1,
        r"the rule file 'bad.py' does not load: .*\n"
        r"  next: fix the file"),
    "validate two models": (None, "validate model.onnx gpt.onnx", 1,
        r"GROWN is not grown from MODEL: its head_dim is 16, MODEL's is 24\n"
        r"  next: give the source first .*"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_clear_message(folder, case):
    make, command, expected, words = BAD[case]
    if make:
        make(folder / "bad.onnx")
    before = contents(folder)
    code, out, err = run(*command.split())
    assert code == expected
    assert re.fullmatch(f"error: {words}\n", err), err
    assert "Traceback" not in out + err
    assert contents(folder) == before, "nothing may be left behind"


@pytest.mark.parametrize("case", BAD)
def test_the_same_as_a_document(folder, case):
    make, command, expected, words = BAD[case]
    if make:
        make(folder / "bad.onnx")
    code, out, err = run(*command.split(), "--json")
    assert code == expected and err.startswith("error: ")
    doc = json.loads(out)
    assert list(doc) == ["onnxgrow", "error"] and list(doc["error"]) == ["type", "message", "node", "axis", "hint"]
    assert doc["error"]["message"] in err and doc["error"]["hint"] in err
    assert doc["error"]["type"] in ("FileError", "GraphError", "SizeError", "MethodError", "UsageError")


USAGE = ["expand model.onnx --hidden many", "expand model.onnx --hidden 0", "expand --hidden 144", "expand model.onnx --method magic --ffn 300",
         "inspect model.onnx --bogus", "validate model.onnx", "grow model.onnx", ""]


@pytest.mark.parametrize("command", USAGE)
def test_wrong_usage(folder, command):
    before = contents(folder)
    code, out, err = run(*command.split())
    assert (code, out) == (2, "") and err.startswith("Usage: ") and "Traceback" not in err
    assert contents(folder) == before
    if command and not command.startswith("grow"):
        code, out, _ = run(*command.split(), "--json")
        assert code == 2 and json.loads(out)["error"]["type"] == "UsageError"


def test_names_from_a_file_cannot_command_the_terminal(folder):
    with_twist(folder / "bad.onnx", name="twist\x1b[31m\x07\u202e")
    gpt = onnx.load("gpt.onnx")
    rename(gpt, "positions.weight", "positions\x1b[2J")
    onnx.save(gpt, "named.onnx")
    for command in ("inspect bad.onnx", "expand bad.onnx --hidden 144", "expand bad.onnx --hidden 144 --json", "inspect named.onnx",
                    "expand named.onnx --hidden 144 --plan", "expand named.onnx --hidden 144 --plan --json"):
        _, out, err = run(*command.split())
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + err), command
    assert r"twist\x1b[31m\x07\u202e" in run("expand", "bad.onnx", "--hidden", 144)[2]
    assert r"positions\x1b[2J: [128, 96] -> [128, 144]" in run("expand", "named.onnx", "--hidden", 144, "--plan")[1]


def rename(proto: onnx.ModelProto, old: str, new: str) -> None:
    """Another name for an initializer."""
    next(t for t in proto.graph.initializer if t.name == old).name = new
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def test_an_interrupted_growth_leaves_nothing(folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxgrow.plan.Plan.compare", interrupted)
    before = contents(folder)
    code, out, err = run("expand", "model.onnx", "--ffn", 300)
    assert code == 1 and err == "interrupted; nothing was left half written\n" and contents(folder) == before


def test_a_growth_that_fails_validation_leaves_nothing(folder, monkeypatch):
    from onnxgrow import repairs

    monkeypatch.setattr(repairs.Scaler, "weight", lambda *_: True)  # no gain is repaired
    before = contents(folder)
    code, out, err = run("expand", "model.onnx", "--hidden", 144)
    assert code == 1 and err.startswith("error: the grown model is not equal to its source") and "next: " in err
    assert contents(folder) == before
