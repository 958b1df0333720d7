"""The PyTorch code of every model of the zoo computes what its graph computes, and its weights find the way back."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file, save_model

import onnxgrow
from onnxgrow.errors import FileError, GraphError, NotEqualError
from onnxgrow.pytorch import export, import_weights, load_folder, module_of
from onnxgrow.pytorch.program import decompile
from tests import random_graphs, zoo
from tests.growing import EXPORTS, Case, exported_by, feeds_of, growths, opened, session, usual, written
from tests.zoo_models import SPECS

TOLERANCE = 1e-5
MODELS = Path(onnxgrow.__file__).parent / "models"
GROWN = ["hidden-family", "together", "deeper"]
HF_NAMED = ["bert-mlm", "gpt2", "llama", "vit", "t5", "opt", "gemma", "distilbert"]


def grown(case: Case, label: str, folder: Path) -> Path:
    """The model grown, written without onnxgrow's own validation."""
    stack = opened(case.path).stacks[-1]
    request = {stack.name: stack.layers + stack.period} if label == "deeper" else growths(case.name)[label]
    return written(opened(case.path).plan(**request), folder)


def answers(module: torch.nn.Module, program, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = module(**{argument: torch.from_numpy(np.array(feeds[name])) for argument, name in program.inputs.items()})
    return {name: x.numpy() for name, x in found.items()}


def difference(path: Path, module: torch.nn.Module, program, feeds: list[dict]) -> float:
    """Largest difference between ONNX Runtime and the module, relative to the largest value of each output."""
    runner, worst = session(path), 0.0
    names = [o.name for o in runner.get_outputs()]
    for fed in feeds:
        for name, want in zip(names, runner.run(names, fed), strict=True):
            got = answers(module, program, fed)[name]
            assert got.shape == want.shape and got.dtype == want.dtype
            worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))
    return worst


def check(path: Path, folder: Path, feeds: list[dict]) -> None:
    done = export(onnxgrow.load(path), folder, check=False)
    assert difference(path, load_folder(folder), done.program, feeds) < TOLERANCE


def cases() -> list:
    """Each model once by default; its other exports are slow."""
    out = []
    for name in SPECS:
        for exporter, attn in EXPORTS:
            if not zoo.known_failure(name, exporter, attn):
                case = Case(name, exporter, attn)
                out.append(pytest.param(case, id=str(case), marks=[] if case == usual(name) else pytest.mark.slow))
    return out


@pytest.mark.parametrize("case", cases())
def test_code_and_graph_agree(case, tmp_path):
    check(case.path, tmp_path / "pt", feeds_of(case))


@pytest.mark.parametrize("label", GROWN)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in HF_NAMED else pytest.mark.slow) for n in SPECS])
def test_grown_code_and_grown_graph_agree(name, label, tmp_path):
    case = usual(name)
    path = grown(case, label, tmp_path)
    shapes = {v.name: [d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in onnx.load(path, load_external_data=False).graph.input}
    if any(n.startswith(("past", "cross")) for n in shapes):  # caches have grown: feeds of the grown sizes
        from onnxgrow.feeds import cases as made

        model = onnxgrow.load(path)
        feeds = [c.feeds for c in made(model.roles.structure, model.roles, 0)]
    else:
        feeds = feeds_of(case)
    check(path, tmp_path / "pt", feeds)


# --- weights go back -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """The carried model, exported; (path, folder)."""
    folder = tmp_path_factory.mktemp("gpt")
    (folder / "gpt.onnx").write_bytes((MODELS / "tiny-gpt.onnx").read_bytes())
    export(onnxgrow.load(folder / "gpt.onnx"), folder / "pt")
    return folder / "gpt.onnx", folder / "pt"


def trained_for_a_step(module: torch.nn.Module, inputs: dict[str, torch.Tensor], rate: float = 1e-2) -> torch.nn.Module:
    """Every parameter moves, those that were equal apart."""
    optimizer = torch.optim.AdamW(module.parameters(), rate)
    next(iter(module(**inputs).values())).square().mean().backward()
    optimizer.step()
    return module


SHORT = {("bert-mlm", "torchscript"), ("gpt2", "dynamo"), ("llama", "torchscript"), ("vit", "dynamo"), ("t5", "torchscript"), ("gemma", "dynamo"), ("moe-batched", "torchscript")}


@pytest.mark.parametrize(("exporter", "name"), [pytest.param(exporter, name, marks=[] if (name, exporter) in SHORT else pytest.mark.slow)
                                                for exporter in zoo.EXPORTERS for name in ("bert-mlm", "gpt2", "llama", "vit", "t5", "gemma", "moe-batched")])
def test_trained_weights_come_back(name, exporter, tmp_path):
    case = exported_by(name, exporter)
    model = onnxgrow.load(case.path)
    done = export(model, tmp_path / "pt", check=False)
    module = load_folder(tmp_path / "pt")
    inputs = SPECS[name].example(4, 9)
    before = case.path.read_bytes()
    trained_for_a_step(module, {a: inputs[n] for a, n in done.program.inputs.items()})
    save_model(module, tmp_path / "trained.safetensors")
    import_weights(model, tmp_path / "trained.safetensors", tmp_path / "trained.onnx", check=False)
    assert difference(tmp_path / "trained.onnx", module, done.program, feeds_of(case)) < TOLERANCE
    assert case.path.read_bytes() == before
    onnx.checker.check_model(str(tmp_path / "trained.onnx"), full_check=True)


def test_a_dropped_bias_comes_back(tmp_path):
    """An optimiser drops biases that are all zero; trained, they are in the file."""
    from tests.test_pytorch_training import fresh

    zoo.write(fresh("vit"), tmp_path / "vit.onnx", "dynamo", "sdpa", 18, False, 0)
    model = onnxgrow.load(tmp_path / "vit.onnx")
    done = export(model, tmp_path / "pt")
    assert sum(ref.tensor is None for ref in done.program.parameters.values()) > 0
    module = trained_for_a_step(load_folder(tmp_path / "pt"), SPECS["vit"].example(4, 9))
    save_model(module, tmp_path / "trained.safetensors")
    assert import_weights(model, tmp_path / "trained.safetensors", tmp_path / "trained.onnx").max_rel < TOLERANCE


def test_the_same_weights_give_the_same_values(gpt, tmp_path):
    path, folder = gpt
    import_weights(onnxgrow.load(path), folder / "model.safetensors", tmp_path / "same.onnx")
    old, new = ({t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (path, tmp_path / "same.onnx"))
    assert old.keys() == new.keys() and all(np.array_equal(old[n], new[n]) for n in old)


def test_external_data_is_written_beside_the_trained_model(tmp_path):
    case = Case("llama", "dynamo", external=True)
    model = onnxgrow.load(case.path)
    export(model, tmp_path / "pt", check=False)
    import_weights(model, tmp_path / "pt" / "model.safetensors", tmp_path / "trained.onnx")
    assert (tmp_path / "trained.onnx.data").is_file()
    assert np.array_equal(*(session(p).run(None, feeds_of(case)[0])[0] for p in (case.path, tmp_path / "trained.onnx")))


def changed(folder: Path, target: Path, change) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target)
    return target


WRONG = {
    "missing": (lambda t: t.pop("norm.weight"), r"1 of \d+ parameters are missing, the first is 'norm.weight'"),
    "extra": (lambda t: t.update(more=torch.zeros(3)), r"1 tensors belong to no parameter of gpt.onnx, the first is 'more'"),
    "misshapen": (lambda t: t.update({"norm.weight": torch.zeros(7)}), r"'norm.weight' has the shape \[7\], the model needs \[96\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_clear_error(case, gpt, tmp_path):
    change, words = WRONG[case]
    file = changed(gpt[1], tmp_path / "wrong.safetensors", change)
    with pytest.raises(FileError, match=words):
        import_weights(onnxgrow.load(gpt[0]), file, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_file_that_is_none_is_refused(gpt, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match="cannot read"):
        import_weights(onnxgrow.load(gpt[0]), tmp_path / "x.safetensors", tmp_path / "out.onnx")


def test_names_of_wrappers_are_taken_off(gpt, tmp_path):
    tensors = {f"module.{n}": t for n, t in load_file(gpt[1] / "model.safetensors").items()}
    save_file(tensors, tmp_path / "wrapped.safetensors")
    import_weights(onnxgrow.load(gpt[0]), tmp_path / "wrapped.safetensors", tmp_path / "out.onnx", check=False)


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_state_dict_makes_the_round_trip(gpt):
    module, other = load_folder(gpt[1]), load_folder(gpt[1])
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert not other.load_state_dict(module.state_dict()).missing_keys
    ids = torch.randint(256, (2, 9))
    assert torch.equal(module(input_ids=ids)["logits"], other(input_ids=ids)["logits"])


def test_the_folder_needs_nothing_but_torch_and_safetensors(gpt):
    code = ("import sys; sys.path.insert(0, '.'); import model; m = model.load(); import torch; "
            "print(m(input_ids=torch.zeros(1, 3, dtype=torch.int64))['logits'].shape, 'onnxgrow' in sys.modules, 'transformers' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], cwd=gpt[1], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "torch.Size([1, 3, 256]) False False"


def test_the_training_example_runs_as_it_is(gpt, tmp_path):
    command = [sys.executable, "train.py", "--steps", "3", "--out", str(tmp_path / "t.safetensors")]
    out = subprocess.run(command, cwd=gpt[1], capture_output=True, text=True, check=True).stdout
    assert re.search(r"step +0  loss 1\.\d+", out)
    import_weights(onnxgrow.load(gpt[0]), tmp_path / "t.safetensors", tmp_path / "t.onnx")


@pytest.mark.parametrize("name", ["bert-mlm", "bert-cls", "vit", "t5", "llama-past", "t5-encoder"])
def test_the_training_example_fits_every_kind_of_model(name, tmp_path):
    done = export(opened(usual(name).path), tmp_path / "pt", check=False)
    module = module_of(tmp_path / "pt")
    sys.modules["model"] = module
    spec = {"__name__": "example", "__file__": str(tmp_path / "pt" / "train.py")}
    exec(compile((tmp_path / "pt" / "train.py").read_text(), "train.py", "exec"), spec)  # noqa: S102 (the file that was just written)
    loss = module.load()(**spec["batch"](torch.Generator().manual_seed(0)))["loss"]
    del sys.modules["model"]
    loss.backward()
    assert loss.isfinite() and done.program.inputs


def test_an_existing_folder_is_kept(gpt):
    with pytest.raises(FileError, match="exists"):
        export(onnxgrow.load(gpt[0]), gpt[1])


def test_code_that_disagrees_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxgrow.pytorch.program.Lowering.number", lambda self, tensor: 0.5 if "x" else None)
    with pytest.raises((NotEqualError, GraphError)):
        export(onnxgrow.load(usual("bert-mlm").path), tmp_path / "pt")
    assert not list(tmp_path.iterdir())


# --- what the code looks like ------------------------------------------------------------------------------------------


def text_of(name: str, exporter: str = "dynamo") -> str:
    return decompile(opened(exported_by(name, exporter).path)).classes


@pytest.mark.parametrize(("exporter", "name"), [pytest.param(exporter, name, marks=[pytest.mark.slow] * (exporter == "dynamo" != usual(name).exporter))
                                                for exporter in zoo.EXPORTERS for name in ("bert-mlm", "gpt2", "llama", "vit", "t5", "qwen3", "opt", "gemma", "mistral")])
def test_layers_of_torch_carry_the_weights(name, exporter):
    text = text_of(name, exporter)
    assert "F.scaled_dot_product_attention" in text and "nn.Linear" in text
    assert ("nn.Embedding(" in text or "F.embedding(" in text) == (name != "vit")
    assert "for block in" in text or "for layer in" in text or name == "t5"
    assert ".softmax(" not in text and ".matmul(" not in text


def test_names_are_the_framework_s_own():
    for exporter in ("dynamo", "torchscript"):
        native = {n.removeprefix("model."): p.shape for n, p in SPECS["llama"].build().named_parameters()}
        found = decompile(opened(Case("llama", exporter).path))
        assert found.parameters.keys() == native.keys() | (found.parameters.keys() & {"lm_head.weight"})


def test_sizes_come_from_the_configuration():
    program = decompile(opened(Case("llama", "dynamo").path))
    sizes = {"vocab": 99, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 72, "layers": 2}
    assert program.config == sizes
    for size in set(sizes.values()) - {2, 4, 8}:
        assert not re.search(rf"\b{size}\b", program.classes)


def test_layers_of_unequal_sizes(tmp_path):
    """One layer's feed-forward part is wider: its size is a list in config.json, and the class is still one."""
    model = opened(MODELS / "tiny-llama.onnx")
    names = [d.name for d in model.architecture.dims]
    instances = model.roles.roles["ffn"].instances
    assert len(instances) == 4 and "ffn" in names
    path = tmp_path / "uneven.onnx"
    _widen_one_ffn(MODELS / "tiny-llama.onnx", path, layer=2, by=8)
    done = export(onnxgrow.load(path), tmp_path / "pt")
    assert done.program.config["ffn"] == [240, 240, 248, 240]
    assert done.agreement.max_rel < TOLERANCE
    assert "ModuleList(Layer(config, layer) for layer in range(config.layers))" in done.program.classes or "(config, layer) for layer in" in done.program.classes


def _widen_one_ffn(source: Path, target: Path, layer: int, by: int) -> None:
    """Append columns of noise to the maps into one feed-forward part, and rows of zeros to the map out of it."""
    model = onnx.load(source)
    uses = {name: n.op_type for n in model.graph.node for name in n.input}
    wide = [t for t in model.graph.initializer if sorted(t.dims) == [96, 240] and uses.get(t.name) in ("MatMul", "Gemm", "Transpose")]
    order = {name: k for k, n in enumerate(model.graph.node) for name in n.input}
    wide.sort(key=lambda t: order[t.name])
    rng = np.random.default_rng(0)
    for t in wide[3 * layer : 3 * layer + 3]:
        a = numpy_helper.to_array(t)
        grows = list(a.shape).index(240)
        into = t is not wide[3 * layer + 2]
        extra = rng.standard_normal([by if i == grows else n for i, n in enumerate(a.shape)]).astype(np.float32) * 0.1
        t.CopyFrom(numpy_helper.from_array(np.concatenate([a, extra if into else 0 * extra], grows), t.name))
    del model.graph.value_info[:]
    onnx.save(model, target)


def test_an_operator_without_a_form_is_refused_by_name(tmp_path):
    model = onnx.load(Case("bert-mlm", "dynamo", "eager").path)
    erf = next(n for n in model.graph.node if n.op_type == "Erf")
    erf.op_type = "Acosh"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(GraphError, match="the operator Acosh has no PyTorch form"):
        export(onnxgrow.load(tmp_path / "odd.onnx"), tmp_path / "pt")


def test_the_code_is_valid_and_short():
    for name in ("bert-mlm", "gpt2", "llama", "t5"):
        text = text_of(name)
        ast.parse(text)
        assert len(text.splitlines()) < 320
        assert not re.search(r"[ \t]$", text, re.M)


@pytest.mark.parametrize("seed", [300, 303])
def test_a_product_with_a_matrix_of_one_number(seed, tmp_path):
    """The frequencies of a rotary part of two entries: a single number would be no operand of @."""
    drawn = random_graphs.draw(seed, form="plain", rotary="halves", head_dim=2, tables="computed", source="ids", lora=0, opset=18, norm="layer")
    onnx.save(random_graphs.build(drawn), tmp_path / "m.onnx")
    export(onnxgrow.load(tmp_path / "m.onnx"), tmp_path / "pt")
    assert "@ torch.full([1, 1], 1.0, " in (tmp_path / "pt" / "model.py").read_text()


def test_grown_parts_are_told(tmp_path):
    plan = opened(MODELS / "tiny-gpt.onnx").plan(layers=6, hidden=144)
    path = written(plan, tmp_path)
    export(onnxgrow.load(path), tmp_path / "pt", check=False)
    module = module_of(tmp_path / "pt")
    model = module.load()
    assert sum(int(m.sum()) for m in module.grown_masks(model).values()) == plan.new_parameters
    assert {g["name"] for g in module.parameter_groups(model)} == {"mixed", "grown"}


def test_gates_and_scales_are_parameters(tmp_path):
    """A single number that is trained is no constant of the code: the gate of a new layer, CLIP's scale of the logits."""
    plan = opened(Case("gpt2", "dynamo").path).plan(layers=3, depth_method="gate")
    check(written(plan, tmp_path), tmp_path / "pt", feeds_of(Case("gpt2", "dynamo")))
    module = load_folder(tmp_path / "pt")
    gates = [p for p in module.parameters() if p.numel() == 1]
    assert len(gates) == 2 and not any(gate.item() for gate in gates)
    next(iter(module(**SPECS["gpt2"].example()).values())).square().sum().backward()
    assert all(gate.grad.item() != 0 for gate in gates)
    done = export(onnxgrow.load(tmp_path / "grown.onnx"), tmp_path / "again", check=False)
    with torch.no_grad():
        for gate in gates:
            gate.fill_(0.5)
    save_model(module, tmp_path / "trained.safetensors")
    import_weights(onnxgrow.load(tmp_path / "grown.onnx"), tmp_path / "trained.safetensors", tmp_path / "trained.onnx", check=False)
    assert difference(tmp_path / "trained.onnx", module, done.program, feeds_of(Case("gpt2", "dynamo"))) < TOLERANCE


def test_old_parts_can_be_frozen(tmp_path):
    path = written(opened(MODELS / "tiny-gpt.onnx").plan(ffn=400), tmp_path)
    export(onnxgrow.load(path), tmp_path / "pt", check=False)
    module = module_of(tmp_path / "pt")
    model = module.load().train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(module.parameter_groups(model), lr=1e-2)
    module.slow_down_old(optimizer, model, 0.0)
    ids = torch.randint(256, (2, 32))
    for _ in range(3):  # new units are zero where old ones read them: their own gradient comes with the second step
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids)["loss"].backward()
        optimizer.step()
    moved = {n: p.detach() != before[n] for n, p in model.named_parameters()}
    masks = module.grown_masks(model)
    assert any(m.any() for m in masks.values())
    for name, mask in masks.items():
        assert not moved[name][~mask].any() and moved[name][mask].all()


# --- graphs that others made, or changed -------------------------------------------------------------------------------


def test_without_names_the_blocks_give_the_outline(tmp_path):
    """An optimiser drops scopes and renames weights: the blocks of the graph are still one class."""
    case = Case("llama", "dynamo")
    model = onnx.load(case.path)
    renamed = {t.name: f"w{k}" for k, t in enumerate(model.graph.initializer)}
    for k, node in enumerate(model.graph.node):
        node.name = f"n{k}"
        del node.metadata_props[:]
        node.input[:] = [renamed.get(i, i) for i in node.input]
    for t in model.graph.initializer:
        t.name = renamed[t.name]
    onnx.save(model, tmp_path / "bare.onnx")
    check(tmp_path / "bare.onnx", tmp_path / "pt", feeds_of(case))
    text = (tmp_path / "pt" / "model.py").read_text()
    assert "nn.ModuleList(Layer(config) for _ in range(config.layers))" in text and "for layer in self.layers:" in text


def test_dropout_that_the_graph_keeps_is_restored(tmp_path):
    spec = SPECS["bert-mlm"]
    module = spec.build(0, "eager").train()
    example = spec.example()
    with torch.no_grad():
        torch.onnx.export(module, tuple(example.values()), tmp_path / "train.onnx", input_names=list(example), output_names=["logits"], opset_version=17,
                          dynamo=False, dynamic_axes=spec.axes, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False)  # fmt: skip
    done = export(onnxgrow.load(tmp_path / "train.onnx"), tmp_path / "pt")
    assert done.program.config["dropout"] == done.program.config["attention_dropout"] == 0.1 and done.agreement.max_rel < TOLERANCE
    trained = load_folder(tmp_path / "pt").train()
    assert not torch.equal(trained(**example)["logits"], trained(**example)["logits"])


SHARED = Path(__file__).parents[2] / "shared" / "models"
READ = ["deeploy_cct2_128_op20", "jax_flat_dyn", "ort_gpt2_megatron", "ort_gpt2_past", "ort_tfbert_keras2onnx", "vespa_dummy_transformer", "vespa_random_encoder"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared graphs of other projects are not on this machine")
@pytest.mark.parametrize("name", READ)
def test_graphs_of_other_projects(name, tmp_path):
    assert export(onnxgrow.load(SHARED / f"{name}.onnx"), tmp_path / "pt").agreement.max_rel < TOLERANCE
