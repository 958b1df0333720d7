"""Names of a hostile model in the written PyTorch code: they are names, quoted text or remarks, and nothing of them is run."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from onnxgrow.errors import GraphError, OnnxgrowError
from onnxgrow.graph import graphs_in
from onnxgrow.model import Model
from onnxgrow.modules import CLASSES, SCOPES
from onnxgrow.pytorch import export
from onnxgrow.pytorch.identifiers import class_name, identifier, is_attribute, quoted, remark
from onnxgrow.pytorch.program import decompile
from onnxgrow.pytorch.template import model_text
from tests.random_graphs import build, draw
from tests.textgraph import model_of

MARK = "onnxgrow_was_here"
PAYLOAD = f"__import__('builtins').__dict__['open']('{MARK}','w').close()"
HOSTILE = [f'"); {PAYLOAD} #', f'x": {PAYLOAD}, "y', f"'''\n{PAYLOAD}\n'''", f'"""\n{PAYLOAD}\n"""', f"a\nimport os; {PAYLOAD}\n", "__class__", "__init__", "self", "class", "None",
           "import os", "0", "9lives", "labels", "config", "torch", "F", "a.b", "a_b", "a/b", "é²", "ﬁ", "", "{0}", "{s[0]}", "$main", "%s", "\\", "\u2028x", "lambda: 0", "x" * 400,
           "forward", "_parameters", "training", "Config", "load", "weight\n", "super", "max"]


def renamed(model: onnx.ModelProto, start: int, scopes: bool = False) -> onnx.ModelProto:
    """Every value, node and size has a hostile name, from another place of the list for every `start`; none twice."""
    names: dict[str, str] = {"": ""}

    def new(old: str) -> str:
        at = start + len(names)
        return names.setdefault(old, (HOSTILE * (at // len(HOSTILE) + 1))[at] + (f" {len(names)}" if at - start >= len(HOSTILE) or not HOSTILE[at % len(HOSTILE)] else ""))

    g = model.graph
    for value in (*g.output, *g.input):
        value.name = new(value.name)
        for d in value.type.tensor_type.shape.dim:
            d.dim_param = new("dim " + d.dim_param) if d.dim_param else ""
    for k, n in enumerate(g.node):
        assert not [*graphs_in(n)]
        n.input[:], n.output[:] = map(new, n.input), map(new, n.output)
        n.name = f"{HOSTILE[len(names) % len(HOSTILE)]}{k}"
        if not scopes:
            continue
        n.name = f"/{n.name}/{n.op_type}_{k}"
        scope = HOSTILE[(start + len(n.name)) % len(HOSTILE)]
        n.metadata_props.add(key=SCOPES, value=repr(["", f"layers.0.{scope}", scope]))
        n.metadata_props.add(key=CLASSES, value=repr([f"a.b.{scope}", scope, scope]))
    for t in g.initializer:
        t.name = new(t.name)
    return model


@pytest.mark.parametrize("start", (0, 7, 14, 21, 28))
def test_hostile_names_are_names_only(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    o = draw(start + 1, form="plain", mask="none", cache=False, lora=0)
    model = renamed(build(o), start)
    file = tmp_path / f"{HOSTILE[2][:20]!r}.onnx".replace("/", "_").replace("\\", "")
    onnx.save(model, file)
    exported = export(Model(file), tmp_path / "pt")  # compares with ONNX Runtime, so it has been run
    assert not Path(MARK).exists()
    assert exported.agreement.max_rel < 1e-4
    _check_code((tmp_path / "pt" / "model.py").read_text(encoding="utf-8"), {v.name for v in model.graph.output})
    assert not [n for n in ast.walk(ast.parse((tmp_path / "pt" / "train.py").read_text(encoding="utf-8"))) if getattr(n, "id", "") in ("__import__", "__dict__")]
    assert not Path(MARK).exists() and not (tmp_path / "pt" / MARK).exists()
    assert json.loads((tmp_path / "pt" / "config.json").read_text())


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 7))
def test_hostile_modules_run_nothing(start, tmp_path, monkeypatch):
    """What metadata says of modules and classes may be any nonsense: it is followed as far as it is names, and the export may be refused."""
    monkeypatch.chdir(tmp_path)
    onnx.save(renamed(build(draw(start, form="plain", mask="none", cache=False, lora=0)), start, scopes=True), "m.onnx")
    program = decompile(Model("m.onnx"))
    _check_code(model_text(program, True), {*program.outputs})
    try:
        export(Model("m.onnx"), tmp_path / "pt")
    except (OnnxgrowError, NotImplementedError):
        pass
    assert not Path(MARK).exists()


def _check_code(text: str, outputs: set[str]) -> None:
    """Every name in the code is a plain one, and what the payload calls is called nowhere."""
    tree = ast.parse(text)
    held = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert outputs <= held
    for n in ast.walk(tree):
        for name in (getattr(n, "id", ""), getattr(n, "attr", ""), getattr(n, "arg", "") or "", getattr(n, "name", "") or ""):
            name = str(name)
            assert not name or (name.isascii() and len(name) < 130), name
            assert name not in ("__import__", "__dict__", "os", MARK), name
        if isinstance(n, ast.ClassDef):
            assert not n.name.startswith("_")
        if isinstance(n, (ast.Import, ast.ImportFrom)):
            root = (n.module or "") if isinstance(n, ast.ImportFrom) else n.names[0].name
            assert root.split(".")[0] in {*sys.stdlib_module_names, "torch", "safetensors", "model"} and root != "os", root


def test_what_is_a_name():
    assert [identifier(t) for t in ("a.b/c", "input_ids", "0", "class", "self", "__x", "é", "", "past.0.key")] == \
        ["a_b_c", "input_ids", "x0", "class_", "self_", "x", "x", "x", "past_0_key"]
    assert all(identifier(t).isidentifier() and identifier(t).isascii() for t in HOSTILE)
    assert [quoted(t) for t in ("logits", 'a"b', "a\\", "a\nb")] == ['"logits"', "'a\"b'", "'a\\\\'", "'a\\nb'"]
    assert all(ast.literal_eval(quoted(t)) == t for t in HOSTILE)
    assert all("\n" not in remark(t) and '"' not in remark(t) for t in HOSTILE)
    assert [class_name(t) for t in ("LlamaMLP", "Config", "a b", "class", "_X", "X\n")] == ["LlamaMLP", "ConfigModule", "", "", "", ""]
    assert all(map(is_attribute, ("layers", "0", "12", "q_proj", "_orig_mod", "ln_1")))
    assert not any(map(is_attribute, ("", "x\n", "class", "__class__", "²", "٣", "a-b", "99999999", "007", "é")))


def test_what_a_module_has_already_is_no_name_for_a_part_of_it():
    """In a process of its own: other libraries give nn.Module attributes of theirs."""
    code = "import torch; from onnxgrow.pytorch.identifiers import is_attribute; print([n for n in dir(torch.nn.Module()) if is_attribute(n)])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_text_in_attributes_is_words(tmp_path):
    """An Einsum's equation, and what a fused operator hands on to a plain one."""
    lines = "q = MatMul x wq\nk = MatMul x wk\ns = Einsum q k\np = Softmax s\nv = MatMul x wv\nc = MatMul p v\no = MatMul c wo\ny = Add x o"
    weights = {n: np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32) for n in ("wq", "wk", "wv", "wo")}
    for equation, fine in (("bik,bjk->bij", True), (f'bik,bjk->bij", {PAYLOAD}) #', False)):
        path = tmp_path / "m.onnx"
        path.write_bytes(model_of(lines, {"x": ["b", "t", 8]}, weights, s={"equation": equation}).SerializeToString())
        if fine:
            decompile(Model(path))
        else:
            with pytest.raises(GraphError):
                decompile(Model(path))


class Times(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(8))

    def forward(self, x):
        return x * self.gain


class Listed(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.q, self.k, self.v, self.head = (nn.Linear(8, n) for n in (8, 8, 8, 11))
        self.layers = nn.ModuleList(nn.Sequential(*(part() for part in parts)) for _ in range(2))
        self.ffn = nn.Sequential(*(part() for part in parts))

    def forward(self, ids):
        x = self.embed(ids)
        x = x + torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1) @ self.v(x)
        for layer in (*self.layers, self.ffn):
            x = x + layer(x)
        return self.head(x)


PARTS = {
    "with what has no weights": [lambda: nn.LayerNorm(8), lambda: nn.Linear(8, 16), nn.ReLU, lambda: nn.Linear(16, 8)], "after nothing": [nn.Tanh, nn.Identity, nn.Dropout, nn.Tanh, lambda: nn.Linear(8, 8)],
    "with modules of one's own": [lambda: nn.LayerNorm(8), Times, nn.ReLU, lambda: nn.Linear(8, 8), nn.Tanh],
}  # fmt: skip


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("parts", PARTS)
def test_a_list_of_modules_keeps_its_numbers(parts, exporter, tmp_path):
    """A list has no forward and no attribute `0`: what is computed in it without weights belongs to the module around it, and leaves a place free."""
    torch.manual_seed(0)
    model, ids = Listed(*PARTS[parts]).eval(), torch.arange(6).reshape(2, 3)
    torch.onnx.export(model, (ids,), tmp_path / "m.onnx", dynamo=exporter == "dynamo", input_names=["ids"], verbose=False,
                      **(dict(dynamic_shapes=({0: "batch", 1: "length"},)) if exporter == "dynamo" else dict(dynamic_axes={"ids": {0: "batch", 1: "length"}})))  # fmt: skip
    exported = export(Model(tmp_path / "m.onnx"), tmp_path / "pt")
    assert exported.agreement.max_rel < 1e-5
    if exporter == "dynamo":
        held = set(safetensors.torch.load_file(tmp_path / "pt" / "model.safetensors"))
        assert {name for name in model.state_dict() if name.startswith(("layers.", "ffn.")) and name.endswith("bias")} <= held
