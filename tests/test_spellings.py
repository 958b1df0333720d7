"""Spellings of norms and of attention that no architecture of the table has: two small layers around each, grown and run in ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from tests import growing
from tests.zoo_modules import randomise

HIDDEN, HEADS, SIZE, FFN, VOCAB, LENGTH = 16, 2, 6, 20, 23, 7
TOLERANCE = 1e-5

# --- norms: (x, gain, offset) -> y ------------------------------------------------------------------------------------


def mean_twice(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    var = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(var + 1e-3) * g + b


def batch_norm_form(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    """TensorFlow's: x·(γ·r) + (β − μ·(γ·r))"""
    mean = x.mean(-1, keepdim=True)
    scale = torch.rsqrt(((x - mean) * (x - mean)).mean(-1, keepdim=True) + 1e-3) * g
    return x * scale + (b - mean * scale)


def cast_inside(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    return (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-3)).float() * g + b


def no_gain(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()


def no_offset(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return no_gain(x, g, b) * g


def power(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return g * (x * (x.pow(2).mean(-1, keepdim=True) + 1e-3).pow(-0.5))


def reciprocal(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return x * (1 / torch.sqrt(torch.mean(x * x, -1, keepdim=True) + 1e-3)) * g


NORMS = {f.__name__: f for f in (mean_twice, batch_norm_form, cast_inside, no_gain, no_offset, power, reciprocal)}

# --- attention: (layer, x [batch, length, hidden]) -> [batch, length, heads·size] ---------------------------------------


def heads_of(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, SIZE).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], HEADS * SIZE)


def plain(m: Layer, x: Tensor) -> Tensor:
    q, k, v = (heads_of(part) for part in (m.query(x), m.key(x), m.value(x)))
    return joined(torch.softmax(q @ k.transpose(2, 3) / SIZE**0.5, -1) @ v)


def einsum(m: Layer, x: Tensor) -> Tensor:
    q, k, v = (part.view(x.shape[0], x.shape[1], HEADS, SIZE) for part in (m.query(x), m.key(x), m.value(x)))
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) * SIZE**-0.5, -1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape[0], x.shape[1], HEADS * SIZE)


def merged(m: Layer, x: Tensor) -> Tensor:
    """batch·heads as one axis"""
    q, k, v = (heads_of(part).reshape(-1, x.shape[1], SIZE) for part in (m.query(x), m.key(x), m.value(x)))
    out = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / SIZE**0.5, -1), v)
    return joined(out.view(-1, HEADS, x.shape[1], SIZE))


def swapped(m: Layer, x: Tensor) -> Tensor:
    """length before batch, as in nn.MultiheadAttention"""
    y = x.transpose(0, 1)
    q, k, v = (part.reshape(y.shape[0], -1, SIZE).transpose(0, 1) for part in (m.query(y), m.key(y), m.value(y)))
    out = torch.softmax(q @ k.transpose(1, 2) / SIZE**0.5, -1) @ v
    return out.transpose(0, 1).reshape(y.shape[0], y.shape[1], HEADS * SIZE).transpose(0, 1)


def computed_bounds(m: Layer, x: Tensor) -> Tensor:
    """One map cut at thirds of its run-time width"""
    qkv = m.three(x)
    third = qkv.shape[-1] // 3
    q, k, v = (heads_of(part) for part in (qkv[..., :third], qkv[..., third : 2 * third], qkv[..., 2 * third :]))
    return joined(torch.softmax(q @ k.transpose(2, 3) / SIZE**0.5, -1) @ v)


def head_by_head(m: Layer, x: Tensor) -> Tensor:
    out = []
    for at in range(0, HEADS * SIZE, SIZE):
        q, k, v = (part[..., at : at + SIZE] for part in (m.query(x), m.key(x), m.value(x)))
        out.append(torch.softmax(q @ k.transpose(1, 2) / SIZE**0.5, -1) @ v)
    return torch.cat(out, -1)


def flat(m: Layer, x: Tensor) -> Tensor:
    """Activations of two axes, as Gemm takes them"""
    rows = x.reshape(-1, HIDDEN)
    q, k, v = (heads_of(torch.addmm(part.bias, rows, part.weight.t()).view(x.shape[0], x.shape[1], -1)) for part in (m.query, m.key, m.value))
    return joined(torch.softmax(q @ k.transpose(2, 3) / SIZE**0.5, -1) @ v)


def low_rank(m: Layer, x: Tensor) -> Tensor:
    """A side branch of rank 3 on queries and values (LoRA)"""
    q, k, v = (heads_of(part) for part in (m.query(x) + 0.5 * m.up_q(m.down_q(x)), m.key(x), m.value(x) + 0.5 * m.up_v(m.down_v(x))))
    return joined(torch.softmax(q @ k.transpose(2, 3) / SIZE**0.5, -1) @ v)


def capped(m: Layer, x: Tensor) -> Tensor:
    q, k, v = (heads_of(part) for part in (m.query(x), m.key(x), m.value(x)))
    return joined(torch.softmax(torch.tanh(q @ k.transpose(2, 3) / 3) * 3, -1) @ v)


def with_sinks(m: Layer, x: Tensor) -> Tensor:
    """One more score of each head, which gets attention and gives nothing"""
    q, k, v = (heads_of(part) for part in (m.query(x), m.key(x), m.value(x)))
    scores = q @ k.transpose(2, 3) / SIZE**0.5
    sinks = m.sinks.view(1, -1, 1, 1).expand(x.shape[0], -1, x.shape[1], 1)
    return joined(torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1] @ v)


def sloped(m: Layer, x: Tensor) -> Tensor:
    """A slope for each head times the distance (ALiBi)"""
    q, k, v = (heads_of(part) for part in (m.query(x), m.key(x), m.value(x)))
    place = torch.arange(x.shape[1])
    return joined(torch.softmax(q @ k.transpose(2, 3) / SIZE**0.5 - m.slopes.view(-1, 1, 1) * (place[:, None] - place).abs(), -1) @ v)


def by_bucket(m: Layer, x: Tensor) -> Tensor:
    """A learned bias for each distance and head (T5)"""
    q, k, v = (heads_of(part) for part in (m.query(x), m.key(x), m.value(x)))
    place = torch.arange(x.shape[1])
    bias = m.buckets((place[:, None] - place).abs().clamp(max=4)).permute(2, 0, 1).unsqueeze(0)
    return joined(torch.softmax(q @ k.transpose(2, 3) + bias, -1) @ v)


def normed(m: Layer, x: Tensor) -> Tensor:
    """Queries and keys of length one, times a learned scale"""
    q, k, v = (heads_of(part) for part in (m.query(x), m.key(x), m.value(x)))
    return joined(torch.softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(2, 3) * m.scale, -1) @ v)


ATTENTIONS = {f.__name__: f for f in (plain, einsum, merged, swapped, computed_bounds, head_by_head, flat, low_rank, capped, with_sinks, sloped, by_bucket, normed)}
REFUSED = {  # nothing in the graph says that its parts are heads of one layer
    ("head_by_head", "heads"): "the model has no dim named 'heads'",
    ("head_by_head", "layers"): "layers is 4 and cannot shrink to 3",
}

# --- what a branch ends with: (layer, f(x), which branch) -> what is added -----------------------------------------------


def scaled(m: Layer, f: Tensor, k: int) -> Tensor:
    """Layer scale: a gain of the hidden size"""
    return m.ends[k] * f


def scaled_twice(m: Layer, f: Tensor, k: int) -> Tensor:
    return (f * m.ends[k]) * m.ends[1 - k].view(1, 1, -1)


def scaled_alike(m: Layer, f: Tensor, k: int) -> Tensor:
    """One gain for both branches, negative in part"""
    return f * m.ends[0]


def scaled_late(m: Layer, f: Tensor, k: int) -> Tensor:
    """An activation between the last map and the gain"""
    return torch.tanh(f) * m.ends[k]


ENDS = {f.__name__: f for f in (scaled, scaled_twice, scaled_alike, scaled_late)} | {"off": scaled}

# --- the model around them ---------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, norm, attention, shared: nn.Parameter | None, end=None):
        super().__init__()
        self.norm, self.attention, self.end = norm, attention, end
        self.ends = nn.ParameterList([nn.Parameter(torch.ones(HIDDEN)) for _ in range(2)])
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(HIDDEN)) if shared is None else shared for _ in range(2)])
        self.offsets = nn.ParameterList([nn.Parameter(torch.zeros(HIDDEN)) for _ in range(2)])
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HEADS * SIZE) for _ in range(3))
        self.three, self.out = nn.Linear(HIDDEN, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, HIDDEN)
        self.down_q, self.down_v = (nn.Linear(HIDDEN, 3, bias=False) for _ in range(2))
        self.up_q, self.up_v = (nn.Linear(3, HEADS * SIZE, bias=False) for _ in range(2))
        self.sinks, self.slopes, self.scale = nn.Parameter(torch.zeros(HEADS)), nn.Parameter(torch.ones(HEADS)), nn.Parameter(torch.ones(()))
        self.buckets = nn.Embedding(5, HEADS)
        self.up, self.down = nn.Linear(HIDDEN, FFN), nn.Linear(FFN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        end = self.end or (lambda m, x, k: x)
        x = x + end(self, self.out(self.attention(self, self.norm(x, self.gains[0], self.offsets[0]))), 0)
        return x + end(self, self.down(F.silu(self.up(self.norm(x, self.gains[1], self.offsets[1])))), 1)


class Choosing(Layer):
    """Experts that are fetched by number, with offsets; entries of gate and up take turns."""

    def __init__(self, *args):
        super().__init__(*args)
        sizes = {"up": (HIDDEN, 2 * FFN), "down": (FFN, HIDDEN)}
        self.router = nn.Linear(HIDDEN, 4)
        self.maps = nn.ParameterDict({name: nn.Parameter(torch.ones(4, *size)) for name, size in sizes.items()})
        self.offsets_of = nn.ParameterDict({name: nn.Parameter(torch.ones(4, size[1])) for name, size in sizes.items()})

    def expert(self, name: str, x: Tensor, at: Tensor) -> Tensor:
        return (x.unsqueeze(-2) @ self.maps[name][at]).squeeze(-2) + self.offsets_of[name][at]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attention(self, self.norm(x, self.gains[0], self.offsets[0])))
        y = self.norm(x, self.gains[1], self.offsets[1])
        scores, at = torch.topk(self.router(y), 2, -1)
        both = self.expert("up", y.unsqueeze(-2).expand(-1, -1, 2, -1), at)
        made = self.expert("down", (both[..., 1::2] + 1) * F.silu(both[..., ::2]), at)
        return x + (made * torch.softmax(scores, -1).unsqueeze(-1)).sum(-2)


class Narrow(Layer):
    """Gains and offsets on the stream in place of norms, and both parts of a layer inside of a bottleneck."""

    def __init__(self, *args):
        super().__init__(*args)
        self.narrow, self.wide = nn.Linear(HIDDEN, 10), nn.Linear(10, HIDDEN)
        self.query, self.key, self.value = (nn.Linear(size, HEADS * SIZE) for size in (10, 10, HIDDEN))
        self.out, self.up, self.down = nn.Linear(HEADS * SIZE, 10), nn.Linear(10, FFN), nn.Linear(FFN, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(x)
        q, k, v = (heads_of(part) for part in (self.query(y), self.key(y), self.value(x)))
        y = y + self.out(joined(torch.softmax(q @ k.transpose(2, 3) / SIZE**0.5, -1) @ v))
        y = y + self.down(F.relu(self.up(y)))
        return (x + self.wide(y)) * self.gains[0] + self.offsets[0]


class Turning(Layer):
    """Channels before positions in the first sum, and convolutions of width one in the second part."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.out(self.attention(self, self.norm(x, self.gains[0], self.offsets[0])))
        x = (x.transpose(1, 2) + f.transpose(1, 2)).transpose(1, 2)
        y = self.norm(x, self.gains[1], self.offsets[1]).transpose(1, 2)
        y = F.conv1d(F.silu(F.conv1d(y, self.up.weight.unsqueeze(-1), self.up.bias)), self.down.weight.unsqueeze(-1), self.down.bias)
        return (x.transpose(1, 2) + y).transpose(1, 2)


class Channels(Layer):
    """A stream with channels before positions, from layer to layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2), self.gains[0], self.offsets[0])
        x = x + self.out(self.attention(self, y)).transpose(1, 2)
        y = self.norm(x.transpose(1, 2), self.gains[1], self.offsets[1])
        return x + self.down(F.silu(self.up(y))).transpose(1, 2)


class ByHead(nn.Module):
    """A convolution in groups: each head has a part of the stream to itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv1d(HIDDEN, HEADS * SIZE, 1, groups=HEADS)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Grouped(Layer):
    def __init__(self, *args):
        super().__init__(*args)
        self.query, self.key, self.value = ByHead(), ByHead(), ByHead()


VARIANTS = {"grouped": Grouped, "experts": Choosing, "narrow": Narrow, "turning": Turning, "channels": Channels}


class Spelled(nn.Module):
    def __init__(self, norm, attention, one_gain: bool, end=None, layer=Layer):
        super().__init__()
        shared = nn.Parameter(torch.ones(HIDDEN)) if one_gain else None
        self.embed, self.head = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB)
        self.layers = nn.ModuleList(layer(norm, attention, shared, end) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        first = isinstance(self.layers[0], Channels)
        x = x.transpose(1, 2) if first else x
        for layer in self.layers:
            x = layer(x)
        return self.head(x.transpose(1, 2) if first else x)


class Coupled(nn.Module):
    """Two streams, each of which adds the other's scores to its own, layer by layer."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(VOCAB, size) for size in (10, HIDDEN))
        self.maps = nn.ModuleList(nn.ModuleList(nn.ModuleList(nn.Linear(size, HEADS * SIZE) for _ in range(3)) for size in (10, HIDDEN)) for _ in range(2))
        self.outs = nn.ModuleList(nn.ModuleList(nn.Linear(HEADS * SIZE, size) for size in (10, HIDDEN)) for _ in range(2))
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(size)) for size in (10, HIDDEN))
        self.head = nn.Linear(HIDDEN, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        states = [table(ids) for table in self.tables]
        for maps, outs in zip(self.maps, self.outs):
            parts = [[heads_of(m(no_offset(x, g, None))) for m in three] for x, g, three in zip(states, self.gains, maps)]
            scores = [q @ k.transpose(2, 3) / SIZE**0.5 for q, k, _ in parts]
            states = [x + out(joined(torch.softmax(scores[i] + scores[1 - i], -1) @ parts[i][2])) for i, (x, out) in enumerate(zip(states, outs))]
        return self.head(states[1])


@lru_cache(maxsize=None)
def exported(folder: Path, norm: str = "power", attention: str = "plain", one_gain: bool = False, end: str = "") -> Path:
    torch.manual_seed(0)
    module = randomise(Coupled() if end == "coupled" else Spelled(NORMS[norm], ATTENTIONS[attention], one_gain, ENDS.get(end), VARIANTS.get(end, Layer)), 0)
    if end == "off":
        for layer in module.layers:
            nn.init.zeros_(layer.ends[1])
    path = folder / f"{norm}-{attention}-{one_gain}-{end}.onnx"
    silence = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), silence[0], silence[1], torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(2, LENGTH, dtype=torch.int64),), path, input_names=["ids"], output_names=["y"], opset_version=17,
                          dynamic_axes={"ids": {0: "batch", 1: "length"}}, dynamo=False)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("spelled")


def feeds() -> list[dict]:
    random = np.random.default_rng(0)
    return [{"ids": random.integers(0, VOCAB, shape)} for shape in ((5, 11), (1, 3), (2, LENGTH))]


def difference(path: Path, request: dict, tmp_path: Path) -> float:
    """Grow and compare at several sizes; the certificate must be exact."""
    plan = Model(path).plan(**request)
    assert plan.certificate.kind == "exact"
    grown, source = growing.session(growing.written(plan, tmp_path)), growing.session(path)
    pairs = [(source.run(None, f)[0], grown.run(None, f)[0]) for f in feeds()]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


GROWTHS = {"hidden": dict(hidden=21, only_hidden=True), "heads": dict(heads=3), "head_dim": dict(head_dim=9), "ffn": dict(ffn=33), "layers": dict(layers=3)}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("growth", ["hidden", "layers"])
def test_every_spelling_of_a_norm_grows(folder, tmp_path, norm, growth):
    assert difference(exported(folder, norm), GROWTHS[growth], tmp_path) < TOLERANCE


@pytest.mark.parametrize("norm", ["no_offset", "power", "batch_norm_form"])
def test_one_gain_for_all_layers(folder, tmp_path, norm):
    assert difference(exported(folder, norm, one_gain=True), GROWTHS["hidden"], tmp_path) < TOLERANCE


@pytest.mark.parametrize("end", ["scaled", "scaled_twice", "scaled_alike", "off"])
@pytest.mark.parametrize("norm", ["batch_norm_form", "power"])
def test_a_gain_at_the_end_of_a_branch(folder, tmp_path, norm, end):
    for growth in ("hidden", "layers"):
        assert difference(exported(folder, norm, end=end), GROWTHS[growth], tmp_path) < TOLERANCE


def test_a_gain_behind_an_activation_is_no_mean(folder, tmp_path):
    """tanh(mean) is not the mean of tanh: copies are what is left."""
    path = exported(folder, "batch_norm_form", end="scaled_late")
    with pytest.raises(OnnxgrowError, match="behind Mul cannot be mean"):
        Model(path).plan(hidden=21, only_hidden=True)
    assert difference(path, dict(hidden=32, only_hidden=True), tmp_path) < TOLERANCE


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("growth", GROWTHS)
def test_every_spelling_of_attention_grows(folder, tmp_path, attention, growth):
    path = exported(folder, attention=attention)
    if (attention, growth) in REFUSED:
        with pytest.raises(OnnxgrowError, match=REFUSED[attention, growth]):
            Model(path).plan(**GROWTHS[growth])
        return
    assert difference(path, GROWTHS[growth], tmp_path) < TOLERANCE


@pytest.mark.parametrize("growth", GROWTHS)
def test_experts_in_pairs_and_with_offsets(folder, tmp_path, growth):
    assert difference(exported(folder, end="experts"), GROWTHS[growth], tmp_path) < TOLERANCE


@pytest.mark.parametrize("growth", GROWTHS)
def test_gains_in_place_of_norms_around_bottlenecks(folder, tmp_path, growth):
    """The stream is hidden, though the bottlenecks are what most maps touch; a new layer has gains of one."""
    path = exported(folder, end="narrow")
    assert Model(path).roles.size("hidden") == HIDDEN
    assert difference(path, GROWTHS[growth], tmp_path) < TOLERANCE
    if growth == "layers":
        assert difference(path, GROWTHS[growth] | {"depth_method": "gate"}, tmp_path) < TOLERANCE


@pytest.mark.parametrize("end", ["turning", "channels"])
@pytest.mark.parametrize("growth", GROWTHS)
def test_channels_before_positions(folder, tmp_path, end, growth):
    assert difference(exported(folder, "no_offset", end=end), GROWTHS[growth], tmp_path) < TOLERANCE


def test_layers_of_a_stream_that_is_cut_into_heads(folder, tmp_path):
    """Its width is heads times a part for each: no hidden size of its own, and layers all the same."""
    path = exported(folder, "no_offset", end="grouped")
    assert [(s.name, s.layers, s.period) for s in Model(path).stacks] == [("layers", 2, 1)]
    assert difference(path, GROWTHS["layers"], tmp_path) < TOLERANCE


def test_layers_of_coupled_streams_are_refused_by_name(folder, tmp_path):
    """A new layer of one stream would have no part in the scores of the other."""
    path = exported(folder, end="coupled")
    with pytest.raises(OnnxgrowError, match="another stream of states reads what is made inside of these layers"):
        Model(path).plan(layers=3)


def test_a_stream_that_comes_back_with_other_axes_is_none(folder):
    from onnxgrow.blocks import Block
    from onnxgrow.branches import Branches

    model = Model(exported(folder, "no_offset", end="turning"))
    branches, block = Branches(model.roles), model.stacks[0].blocks[0]
    turned = next(n for n in model.roles.structure.graph.nodes if n.op == "Transpose" and n.inputs[0] == block.enters)
    with pytest.raises(OnnxgrowError, match="does not add to the stream"):
        branches.trunk(Block(block.nodes, block.enters, turned.outputs[0]))


def test_layers_are_alike_however_their_attributes_are_written(folder, tmp_path):
    """One layer says what the other leaves out, counts axes from the other end, and casts to the type that is there."""
    model = onnx.load(exported(folder, "batch_norm_form"))
    first = [n for n in model.graph.node if n.name.startswith("/layers.0/")]
    for node in first:
        held = {a.name: a for a in node.attribute}
        if node.op_type in ("Softmax", "Concat") and held["axis"].i < 0:
            held["axis"].i += {"Softmax": 4, "Concat": 1}[node.op_type]
        if node.op_type == "Reshape":
            held["allowzero"].i = 1
    entering = next(n for n in model.graph.node if n.name == "/embed/Gather")
    for node in model.graph.node:
        node.input[:] = ["same" if t == entering.output[0] else t for t in node.input]
    model.graph.node.insert(list(model.graph.node).index(entering) + 1, helper.make_node("Cast", entering.output[:1], ["same"], "cast", to=onnx.TensorProto.FLOAT))
    path = tmp_path / "attributes.onnx"
    onnx.save(model, path)
    assert [(s.name, s.layers, s.period) for s in Model(path).stacks] == [("layers", 2, 1)]
    for placement in ("interleave", "start"):
        assert difference(path, dict(layers=3, placement=placement), tmp_path) < TOLERANCE


def test_batch_times_heads_over_heads_is_right_at_every_batch(folder, tmp_path):
    """`batch·heads // heads` gives the batch by chance where the new heads are few and the batch is small (as in BLOOM)."""
    path = exported(folder, attention="merged")
    model = onnx.load(path)
    divided = [n for n in model.graph.node if n.op_type == "Reshape"]
    assert divided
    plan = Model(path).plan(heads=3)
    grown, source = growing.session(growing.written(plan, tmp_path)), growing.session(path)
    ids = {"ids": np.random.default_rng(1).integers(0, VOCAB, (19, 4))}
    assert np.allclose(source.run(None, ids)[0], grown.run(None, ids)[0], atol=1e-5)


# --- graphs by hand -----------------------------------------------------------------------------------------------------


def test_an_empty_end_of_a_slice_moves_with_the_axis():
    """q[..., :d] and q[..., d:] where d is the whole axis (partial rotary positions of which all entries take part)."""
    from onnxgrow.graph import build
    from onnxgrow.rulebook import load_builtin
    from onnxgrow.source import Source
    from onnxgrow.structure import tie

    numbers = {"from": [6], "to": [2**63 - 1], "axis": [1]}
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in numbers.items()]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", [4, 6]), ("y", [4, 0])))
    graph = helper.make_graph([helper.make_node("Slice", ["x", "from", "to", "axis"], ["y"])], "g", [x], [y], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    ties = tie(build(Source(Path("."), proto, {}, {})), load_builtin()).nodes[0]
    assert ties.rule.sizes[1] == ("a1",) and ties.rule.fills["a1"] == "ignore"
