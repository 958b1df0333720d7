"""Which part of a graph is a block: every model of the zoo, and models whose layers are odd: a single one, shared ones, unequal ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxgrow.errors import MethodError
from onnxgrow.model import Model
from tests import deepening, growing, zoo, zoo_models
from tests.growing import Case
from tests.zoo_models import BERT, GPT2, SPECS, TABLE, TEXT, WORDS

LLAMA = BERT | {"use_cache": False, "num_key_value_heads": 2}
GEMMA2 = BERT | {"use_cache": False, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 12}
ALBERT = BERT | {"embedding_size": 32, "num_hidden_groups": 1}
KINDS = {"s": "sliding_attention", "f": "full_attention"}
ODD = {  # name: (model, config, sizes)
    "llama-1": ("LlamaForCausalLM", LLAMA | {"num_hidden_layers": 1}, TEXT | {"layers": 1, "kv_heads": 2}),
    "gpt2-1": ("GPT2LMHeadModel", GPT2 | {"n_layer": 1}, TABLE | {"layers": 1}),
    "bert-1": ("BertForMaskedLM", BERT | {"num_hidden_layers": 1}, TABLE | {"layers": 1}),
    "albert": ("AlbertForMaskedLM", ALBERT | {"num_hidden_layers": 3}, TABLE | {"layers": 3}),
    "sfsfs": ("Gemma2ForCausalLM", GEMMA2, TEXT | {"layers": 5, "kv_heads": 2, "head_dim": 12}),
    "fsss": ("Gemma2ForCausalLM", GEMMA2, TEXT | {"layers": 4, "kv_heads": 2, "head_dim": 12}),
}


class OddCase(Case):
    """An export of a model that is not in the zoo, as another file of one that is like it: for its inputs."""

    def __init__(self, name: str, like: str, exporter: str, path: Path):
        super().__init__(like, exporter)
        object.__setattr__(self, "file", path)
        object.__setattr__(self, "label", name)

    @property
    def path(self) -> Path:
        return self.file


def odd(name: str, exporter: str, folder: Path) -> OddCase:
    model, config, sizes = ODD[name]
    if set(name) <= KINDS.keys():
        config = config | {"num_hidden_layers": len(name), "layer_types": [KINDS[c] for c in name]}
    zoo_models.hugging(name, model, "encoder", WORDS, config, sizes)
    path = folder / f"{name}-{exporter}.onnx"
    zoo.write(SPECS.pop(name), path, exporter, "eager", zoo.DEFAULT_OPSET[exporter], False, 0)
    return OddCase(name, "bert-mlm" if "positions" in sizes else "gemma2", exporter, path)


def check(case: Case, folder: Path, label: str = "exact", **request) -> Path:
    plan = Model(case.path).plan(**request)
    path = growing.written(plan, folder)
    assert plan.certificate.kind == label and deepening.difference(plan, path, case) <= growing.TOLERANCE
    growing.check_sound(path, deepening.sound_feeds(plan, path, case))
    return path


EVERY = [pytest.param(Case(*c), id=str(Case(*c)), marks=[] if Case(*c) == growing.usual(c[0]) else [pytest.mark.slow]) for c in zoo.cases()]


@pytest.mark.parametrize("case", EVERY)
def test_stacks_of_every_model(case):
    """As many layers as the module has, in blocks that follow one another and hold most of the nodes."""
    model = growing.opened(case.path)
    assert {s.name: s.layers for s in model.stacks} == deepening.stacks(case.name)
    for stack in model.stacks:
        assert stack.before == stack.after == 0 and stack.period == deepening.PERIOD.get(case.name, 1)
        assert all(a.leaves == b.enters and not a.nodes & b.nodes for a, b in zip(stack.blocks, stack.blocks[1:]))
        assert model.architecture.layers == sum(s.layers for s in model.stacks)
    inside = sum(len(b.nodes) for s in model.stacks for b in s.blocks)
    assert inside > len(model.roles.structure.graph.nodes) / 3


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
@pytest.mark.parametrize("name", ["llama-1", "gpt2-1", "bert-1"])
def test_a_single_layer_is_a_block(name, exporter, tmp_path):
    case = odd(name, exporter, tmp_path)
    (stack,) = Model(case.path).stacks
    assert stack.layers == len(stack.blocks) == 1
    path = check(case, tmp_path, layers=3)
    numbers = {int(n) for name in deepening.names_of(path) for n in re.findall(r"(?:layers?|\bh)\.(\d)\.", name)}
    assert numbers == {0, 1, 2} and [s.layers for s in Model(path).stacks] == [3]
    check(case, tmp_path, layers=2, hidden=64, ffn=101)
    check(case, tmp_path, layers=2, depth_method="gate")


def test_layers_that_share_their_weights(tmp_path):
    """ALBERT: one set of matrices stays one, but for what silences the new layers. (The other exporter copies some of them.)"""
    case = odd("albert", "torchscript", tmp_path)
    is_matrix = lambda t: len(t.dims) == 2 and t.data_type == onnx.TensorProto.FLOAT  # noqa: E731
    before = sum(is_matrix(t) for t in onnx.load(case.path).graph.initializer)
    matrices = [t for t in onnx.load(check(case, tmp_path, layers=5)).graph.initializer if is_matrix(t)]
    silent = [t for t in matrices if not numpy_helper.to_array(t).any()]
    assert len(silent) == 4 and len(matrices) == before + 4


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
def test_an_unfinished_period_stays_behind(exporter, tmp_path):
    """Sliding, full, sliding, full, sliding: two periods and a half. The last layer is layer 6 in the end, and keeps its kind."""
    case = odd("sfsfs", exporter, tmp_path)
    (stack,) = Model(case.path).stacks
    assert (stack.period, stack.layers, stack.before + stack.after) == (2, 5, 1)
    old, new = (layer_texts(p) for p in (case.path, check(case, tmp_path, layers=7)))
    assert len(old) == 5 and len(new) == 7 and new[6] == old[4] and Model(tmp_path / "grown.onnx").stacks[0].layers == 7


def layer_texts(path: Path) -> dict[int, list[str]]:
    """By layer: what its nodes do, in order, from their names or from the scopes in their metadata."""
    out: dict[int, list[str]] = {}
    for n in onnx.load(path).graph.node:
        scopes = " ".join(p.value for p in n.metadata_props if p.key.endswith("name_scopes")) or n.name
        found = re.search(r"layers\.(\d+)", scopes)
        if found and n.op_type not in ("Constant", "Unsqueeze", "Shape", "Gather"):
            out.setdefault(int(found[1]), []).append(n.op_type)
    return out


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
def test_a_first_layer_of_another_kind_stays_in_front(exporter, tmp_path):
    case = odd("fsss", exporter, tmp_path)
    (stack,) = Model(case.path).stacks
    assert (stack.period, stack.before, stack.after, len(stack.blocks)) == (1, 1, 0, 3)
    old, new = (layer_texts(p) for p in (case.path, check(case, tmp_path, layers=6)))
    assert sorted(new) == list(range(6)) and new[0] == old[0] and new[5] == old[3]
    check(case, tmp_path, layers=5, placement="start", hidden=48)


class Between(torch.nn.Module):
    """A norm after the attention only: y = t + f(t), t = norm(x + a(x))."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 32)
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict({"qkv": torch.nn.Linear(32, 96), "out": torch.nn.Linear(32, 32), "norm": torch.nn.LayerNorm(32),
                                                               "up": torch.nn.Linear(32, 72), "down": torch.nn.Linear(72, 32)}) for _ in range(3))

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            q, k, v = layer["qkv"](x).chunk(3, -1)
            x = layer["norm"](x + layer["out"]((q @ k.transpose(1, 2) / 32**0.5).softmax(-1) @ v))
            x = x + layer["down"](layer["up"](x).relu())
        return x


def test_a_norm_in_the_middle_of_the_stream_needs_a_gate(tmp_path):
    path = tmp_path / "between.onnx"
    torch.onnx.export(zoo_models.randomise(Between(), 0).eval(), (torch.arange(15).reshape(3, 5),), path, dynamo=False, input_names=["ids"],
                      output_names=["states"], dynamic_axes={"ids": {0: "batch", 1: "sequence"}})
    model = Model(path)
    assert [s.layers for s in model.stacks] == [3]
    with pytest.raises(MethodError, match="(?s)none at its end.*gate"):
        model.plan(layers=4)
    assert model.plan(layers=5, depth_method="gate").write(tmp_path / "gated.onnx").report.max_rel <= growing.TOLERANCE


SHARED = Path(__file__).parents[2] / "shared" / "models"  # real graphs of other projects
REAL = {"ort_gpt2_past": "exact", "ort_gpt2_megatron": "exact", "jax_flat_dyn": "exact", "deeploy_cct2_128_op20": "refused", "mlagents_sorter": "near",
        "vespa_dummy_transformer": "near", "vespa_random_encoder": "near"}  # near: norms after the branch with a real epsilon; refused: a norm in the middle


@pytest.mark.parametrize("name", REAL)
def test_real_graphs_get_one_more_layer(name, tmp_path):
    path = SHARED / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here: graphs of other projects are no part of this one")
    model, feeds = Model(path), dict(np.load(path.with_name(f"{name}.inputs.npz")))
    (stack,) = model.stacks
    if REAL[name] == "refused":
        with pytest.raises(MethodError, match="none at its end"):
            model.plan(layers=stack.layers + 1)
    for method, kind in (("identity", REAL[name]), ("gate", "exact"))[REAL[name] == "refused" :]:
        plan = model.plan(layers=stack.layers + stack.period, depth_method=method)
        assert plan.certificate.kind == kind
        assert plan.write(tmp_path / f"{method}.onnx", feeds=feeds).report.max_rel <= growing.TOLERANCE
