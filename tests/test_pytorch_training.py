"""The exported code trains as the model that it came from: the same loss, step by step, and the same parameters.

The sharp test is the trajectory. A lost tie, a zero bias that an exporter dropped or a constant that is trained leaves the first forward
as it is, and shows after a few steps.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onnxgrow
from onnxgrow.pytorch import export, load_folder
from tests import zoo
from tests.growing import plan_of, usual, written
from tests.zoo_models import SPECS, Spec

STEPS, RATE = 17, 1e-3
TRAINED = ["bert-mlm", "gpt2", "llama", "vit", "t5"]
CASES = [(name, *how) for name in TRAINED for how in (("dynamo", "sdpa"), ("torchscript", "sdpa"), ("dynamo", "eager"), ("torchscript", "eager"))]
FAST = [(name, "dynamo" if name in ("bert-mlm", "vit") else "torchscript", "sdpa") for name in TRAINED]


class Fresh(Spec):
    """A model as its library initialises it: zero biases and unit gains, which exporters merge and drop."""

    def build(self, seed: int = 0, attn: str = "eager") -> nn.Module:
        torch.manual_seed(seed)
        return self.make(attn).eval()


def fresh(name: str) -> Fresh:
    spec = SPECS[name]
    return Fresh(**{f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)})


@lru_cache
def exported(name: str, exporter: str, attn: str) -> nn.Module:
    """The code behind a fresh export, as it was written."""
    folder = Path(tempfile.mkdtemp(dir=zoo.cache_folder()))
    zoo.write(fresh(name), folder / "model.onnx", exporter, attn, zoo.DEFAULT_OPSET[exporter], False, 0)
    export(onnxgrow.load(folder / "model.onnx"), folder / "pt")
    return load_folder(folder / "pt")


def again(module: nn.Module) -> nn.Module:
    """Another instance with the same weights."""
    import copy

    return copy.deepcopy(module)


def outputs_of(module: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first output: native modules take their inputs by position."""
    found = module(*inputs.values()) if hasattr(module, "names") else module(**inputs)
    return found[0] if isinstance(found, tuple) else next(iter(found.values()))


def trajectory(module: nn.Module, name: str, steps: int = STEPS) -> list[float]:
    """Losses of AdamW on batches that change from step to step; words from the whole vocabulary, padding in the mask."""
    spec, losses = SPECS[name], []
    optimizer = torch.optim.AdamW(module.parameters(), RATE)
    for step in range(steps):
        inputs = spec.example(4, 9, seed=step)
        logits = outputs_of(module, inputs)
        labels = torch.randint(logits.shape[-1], logits.shape[:-1], generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in FAST else pytest.mark.slow, id="-".join(c)) for c in CASES])
def test_the_loss_follows_the_native_model(case):
    name, _, attn = case
    wanted = trajectory(fresh(name).build(0, attn), name)
    found = trajectory(again(exported(*case)), name)
    assert max(abs(a - b) / abs(a) for a, b in zip(wanted, found, strict=True)) < 1e-5
    assert wanted[-1] != wanted[0]


@pytest.mark.parametrize("case", FAST, ids="-".join)
def test_the_parameters_are_those_of_the_native_model(case):
    native, module = fresh(case[0]).build(0, case[2]), exported(*case)
    count = sum(p.numel() for p in native.parameters())
    unused = {"bert-mlm": 0, "gpt2": 0, "llama": 0, "vit": 0, "t5": 0}[case[0]]
    assert sum(p.numel() for p in module.parameters()) == count - unused


@pytest.mark.parametrize("case", FAST, ids="-".join)
def test_every_parameter_learns_and_no_constant_does(case):
    module = again(exported(*case))
    outputs_of(module, SPECS[case[0]].example(4, 9)).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert not any(b.requires_grad for b in module.buffers())


def test_a_lost_tie_would_be_seen():
    module = again(exported("gpt2", "torchscript", "sdpa"))
    module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())
    wanted = trajectory(fresh("gpt2").build(0, "sdpa"), "gpt2")
    found = trajectory(module, "gpt2")
    assert abs(wanted[0] - found[0]) < 1e-6 and max(abs(a - b) / abs(a) for a, b in zip(wanted, found)) > 1e-4


# --- what training needs of the code -----------------------------------------------------------------------------------


@lru_cache
def code_of(name: str, label: str = "") -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The code of a zoo model with random weights everywhere, as exported or grown, and inputs."""
    case, folder = usual(name), Path(tempfile.mkdtemp(dir=zoo.cache_folder()))
    path = written(plan_of(case, label), folder) if label else case.path
    done = export(onnxgrow.load(path), folder / "pt", check=False)
    inputs = SPECS[name].example(5, 11)
    return load_folder(folder / "pt"), {argument: inputs[n] for argument, n in done.program.inputs.items()}


COMPILED = [("gpt2", "together"), ("t5", ""), ("gemma", "hidden-family")]
LATER = [("bert-mlm", ""), ("llama", ""), ("vit", ""), ("moe-batched", "")]


@pytest.mark.parametrize("name, label", [pytest.param(*each, marks=[pytest.mark.slow] * (each[0] != "gpt2")) for each in COMPILED + LATER])
def test_it_compiles_as_one_graph(name, label):
    module, inputs = code_of(name, label)
    torch._dynamo.reset()
    compiled = torch.compile(again(module), fullgraph=True, backend="aot_eager", dynamic=True)
    wanted, found = module(**inputs), compiled(**inputs)
    for key, value in wanted.items():
        assert torch.allclose(value, found[key], rtol=1e-5, atol=1e-5 * value.abs().max().item())
    sum(x.square().mean() for x in found.values()).backward()


@pytest.mark.slow
@pytest.mark.parametrize("name, label", COMPILED)
def test_inductor_agrees(name, label):
    module, inputs = code_of(name, label)
    torch._dynamo.reset()
    wanted, found = module(**inputs), torch.compile(module, fullgraph=True)(**inputs)
    assert all(torch.allclose(wanted[k], found[k], rtol=1e-4, atol=1e-4 * wanted[k].abs().max().item()) for k in wanted)


@pytest.mark.parametrize("name, label", COMPILED)
def test_mixed_precision_works(name, label):
    module, inputs = code_of(name, label)
    wanted = next(iter(module(**inputs).values()))
    with torch.autocast("cpu", torch.bfloat16):
        found = next(iter(module(**inputs).values()))
    found.float().square().mean().backward()
    assert found.isfinite().all() and (found.float() - wanted).abs().max() / wanted.abs().max() < 0.1
    assert all(p.grad.isfinite().all() for p in module.parameters())
    module.zero_grad()


@pytest.mark.parametrize("name", ["bert-mlm", "gpt2", "llama", "t5", "vit"])
def test_labels_give_a_loss(name):
    module, inputs = code_of(name)
    logits = module(**inputs)["logits"]
    labels = torch.randint(logits.shape[-1], logits.shape[:-1])
    labels[0] = -100 if labels.ndim > 1 else labels[0]
    found = module(**inputs, labels=labels)
    assert list(found)[:2] == ["loss", "logits"]
    causal = "causal" in SPECS[name].tags or "decoder" in SPECS[name].tags
    x, y = (logits[:, :-1], labels[:, 1:]) if causal else (logits, labels)
    assert torch.isclose(found["loss"], F.cross_entropy(x.flatten(0, -2), y.flatten()))


def test_the_loss_is_that_of_transformers():
    module, inputs = code_of("gpt2")
    native, labels = SPECS["gpt2"].build().model, inputs["input_ids"]
    assert torch.isclose(native(**inputs, labels=labels).loss, module(**inputs, labels=labels)["loss"], rtol=1e-5)


def test_linear_maps_are_layers_that_lora_finds():
    module, _ = code_of("llama")
    found = {n.rpartition(".")[2] for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}


def test_blocks_share_one_class():
    for name in ("bert-mlm", "gpt2", "llama", "vit"):
        lists = [m for m in code_of(name)[0].modules() if isinstance(m, nn.ModuleList)]
        assert len(lists) == 1 and len({type(block) for block in lists[0]}) == 1
