"""More positions: equal to the source at its own lengths, and beyond them to the module that is built with the greater reach."""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.continued import continue_columns
from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from onnxgrow.sequels import continue_diagonals, continue_rows
from onnxgrow.waves import find_waves
from tests import bounded_models as bounded
from tests import zoo
from tests.growing import TOLERANCE, session
from tests.zoo_models import SPECS

OLD, NEW = 40, 57
EXPORTERS = ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)]
BOTH = EXPORTERS


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(kind, exporter) -> (module, file), each made once."""
    folder = tmp_path_factory.mktemp("bounded")

    @lru_cache
    def export(kind: str, exporter: str, static: bool = False):
        module = bounded.bounded(kind, OLD)
        file = folder / f"{abs(hash((kind, exporter, static)))}.onnx"
        return module, bounded.export(module, bounded.inputs(kind, 3, 7), file, exporter, static)

    return export


def grow(file, target, **sizes):
    """A growth by so many positions that the bound goes from OLD to NEW, validated by onnxgrow itself."""
    model = Model(file)
    plan = model.plan(positions=model.roles.size("positions") + NEW - OLD, **sizes)
    assert plan.certificate.kind == "exact"
    assert plan.write(target).report.equal
    return plan


def native(module: torch.nn.Module, big: torch.nn.Module, grown) -> torch.nn.Module:
    """`big` with the parameters of `module`; those of another shape (learned rows) are the grown file's."""
    held = {tuple(t.dims): numpy_helper.to_array(t) for t in onnx.load(grown).graph.initializer}
    old = dict(module.named_parameters())
    with torch.no_grad():
        for name, parameter in big.named_parameters():
            same = old[name].shape == parameter.shape
            parameter.copy_(old[name] if same else torch.from_numpy(held[tuple(parameter.shape)].copy()))
            if not same:
                assert torch.equal(parameter[: len(old[name])], old[name])
    return big.eval()


def run(file, arguments) -> np.ndarray:
    runner = session(file)
    return runner.run(None, dict(zip((i.name for i in runner.get_inputs()), (t.numpy() for t in arguments))))[0]


def difference(got: np.ndarray, want: torch.Tensor | np.ndarray) -> float:
    want = np.asarray(want)
    return float(np.abs(got - want).max() / np.abs(want).max())


def lengths(kind: str) -> tuple[list[int], list[int]]:
    """Lengths within the old bound and beyond it; a past of half the length comes on top."""
    return ([1, 7, 26], [27, 37]) if kind == "past" else ([1, 7, OLD], [OLD + 1, NEW])


@torch.no_grad()
def check(kind: str, module, file, grown) -> None:
    big = native(module, bounded.bounded(kind, NEW), grown)
    old, new = lengths(kind)
    for length in old + new:
        arguments = bounded.inputs(kind, 2, length, seed=length)
        got = run(grown, arguments)
        assert difference(got, big(*arguments)[0]) < TOLERANCE, length
        if length in old:
            assert difference(got, run(file, arguments)) < TOLERANCE, length


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("kind", bounded.KINDS)
def test_every_bound_goes_on(kind, exporter, exported, tmp_path):
    module, file = exported(kind, exporter)
    plan = grow(file, tmp_path / "grown.onnx")
    assert all(t["new_shape"].count(NEW) == t["old_shape"].count(OLD) for t in plan.to_json()["tables"])
    check(kind, module, file, tmp_path / "grown.onnx")


OTHER_SIZES = [dict(head_dim=16), dict(hidden=45, only_hidden=True), dict(hidden=64, method="copy"), dict(head_dim=20, method="copy"), dict(heads=6, ffn=80)]
MOVING = ["sinusoids added", "rotary halves cut", "rotary half tables", "rotary in turns", "rotary pairs", "alibi square"]


@pytest.mark.parametrize(("kind", "sizes"), [pytest.param(kind, sizes, id=f"{kind}-{sizes}", marks=[pytest.mark.slow] * ((i + k) % 3 > 0))
                                             for i, kind in enumerate(MOVING) for k, sizes in enumerate(OTHER_SIZES)])
def test_positions_grow_with_other_sizes(kind, sizes, exported, tmp_path):
    module, file = exported(kind, "torchscript")
    grow(file, tmp_path / "grown.onnx", **sizes)
    check(kind, module, file, tmp_path / "grown.onnx")


@pytest.mark.parametrize("kind", ["rotary halves cut", "rotary half tables", "rotary in turns", "rotary pairs"])
def test_wider_heads_get_the_next_frequencies(kind, exported, tmp_path):
    """Columns of stored sines and cosines stay waves: all of them lie on circles."""
    _, file = exported(kind, "torchscript")
    Model(file).plan(head_dim=16).write(tmp_path / "grown.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "grown.onnx").graph.initializer}
    cos, sin = (held["pairs"][..., 0], held["pairs"][..., 1]) if kind == "rotary pairs" else (held["cos"], held["sin"])
    frequencies = np.unique(np.arctan2(sin[1], cos[1]).round(9))
    assert len(frequencies) == 8 and np.allclose(cos**2 + sin**2, 1, atol=1e-6)
    assert np.allclose(frequencies[::-1], bounded.BASE ** -(np.arange(8) / 5), rtol=1e-3)


@pytest.mark.parametrize(("kind", "exporter"), [pytest.param(kind, exporter, marks=[pytest.mark.slow] * (k != (i % 4 > 0)))
                                                for i, kind in enumerate(bounded.REFUSED) for k, exporter in enumerate(("dynamo", "torchscript"))])
def test_what_follows_no_rule_is_refused(kind, exporter, exported):
    words = {"no bound": "nothing bounds the length", "wrapped ids": "come out of Div", "learned distances": "come out of Sub",
             "mask from its end": "does not run"}
    model = Model(exported(kind, exporter)[1])
    with pytest.raises(OnnxgrowError, match=words.get(kind, "nothing says how")) as refused:
        model.plan(positions=(model.roles.size("positions") or OLD) + 17)
    assert refused.value.hint and (refused.value.node or kind == "no bound")


@pytest.mark.parametrize("exporter", BOTH)
@pytest.mark.parametrize("kind", ["range ids, bool mask", "rotary halves cut"])
def test_an_export_of_one_length_is_refused(kind, exporter, exported):
    with pytest.raises(OnnxgrowError, match="the export") as refused:
        Model(exported(kind, exporter, static=True)[1]).plan(positions=NEW)
    assert "dynamic length" in refused.value.hint


@pytest.mark.parametrize(("name", "words"), [("vit", "size of the picture"), ("clip-vision", "size of the picture"), ("llama", "nothing bounds"),
                                             ("t5-encoder", "nothing bounds")])
@pytest.mark.parametrize("exporter", BOTH)
def test_models_without_a_bound_of_their_own_are_refused(name, words, exporter):
    with pytest.raises(OnnxgrowError, match=words) as refused:
        Model(zoo.export(name, exporter)).plan(positions=100)
    assert refused.value.hint and (refused.value.node or words == "nothing bounds")


def test_a_length_that_the_exporter_wrote_down_is_refused():
    with pytest.raises(OnnxgrowError, match="the one length of the export"):
        Model(zoo.export("torch-encoder-prenorm", "torchscript")).plan(positions=NEW)


LEARNED = ["gpt2", "gpt2-past", "opt", "bert-mlm", "bert-cls", "distilbert", "roberta", "mpnet", "clip-text"]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_learned_positions_of_known_models(name, exporter, tmp_path):
    spec, file, grown = SPECS[name], zoo.export(name, exporter), tmp_path / "grown.onnx"
    grow(file, grown)
    small = spec.build()
    big, config = copy.deepcopy(small), copy.deepcopy(small.model.config)
    setattr(config, "n_positions" if name.startswith("gpt2") else "max_position_embeddings", NEW)
    big.model = type(small.model)(config)
    big = native(small, big, grown)
    offset = 2 if name in ("roberta", "mpnet") else 0
    for length in [7, 18, 25] if "past" in spec.tags else [7, OLD - offset, OLD + 1, NEW - offset]:
        example = spec.example(2, length, seed=length)
        assert difference(run(grown, example.values()), big(*example.values())[0]) < TOLERANCE, length
        if length <= OLD - offset and "past" not in spec.tags:
            assert difference(run(grown, example.values()), run(file, example.values())) < TOLERANCE, length


def test_the_plan_lists_what_goes_on(exported):
    plan = Model(exported("rotary halves cut", "torchscript")[1]).plan(positions=NEW)
    rules = {t["name"]: (t["old_shape"], t["new_shape"], t["rule"]) for t in plan.to_json()["tables"]}
    assert rules["bias"] == ([1, 1, OLD, OLD], [1, 1, NEW, NEW], "diagonals") and rules["cos"] == ([OLD, 10], [NEW, 10], "waves")
    assert any("cos: [40, 10] -> [57, 10]" in line for line in plan.lines())
    assert plan.model.architecture.rotary and plan.model.architecture.positions == OLD


# --- rules on their own ----------------------------------------------------------------------------------------------


def rotary(reach: int, size: int, base: float, scale: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines as PyTorch makes them."""
    angle = torch.outer(torch.arange(reach).float(), 1.0 / base ** (torch.arange(0, size, 2).float() / size))
    return tuple((f(angle) * scale).numpy().astype(dtype) for f in (torch.cos, torch.sin))


@pytest.mark.parametrize(("old", "new", "size", "base", "scale", "dtype", "worst"), [
    (16, 64, 8, 1e4, 1, "float32", 2e-6), (2048, 4096, 128, 1e4, 1, "float32", 2e-7), (2048, 8192, 64, 5e5, 1.3, "float32", 4e-7),
    (512, 1024, 64, 1e6, 0.7, "float32", 2e-7), (256, 512, 32, 1e4, 1, "float16", 1e-3)])
def test_waves_go_on(old, new, size, base, scale, dtype, worst):
    cos, sin = rotary(new, size, base, scale, dtype)
    waves = find_waves(sin[:old])
    for table, found in ((sin, waves), (cos, find_waves(cos[:old], waves.frequency))):
        assert np.abs(found.rows(np.arange(new)).astype(dtype) - table).max() <= worst


def test_waves_of_float64_and_with_a_row_of_padding():
    angle = np.arange(300)[:, None] / 10000 ** (2 * (np.arange(64) // 2) / 64)
    table = np.where(np.arange(64) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)
    old = table[:100].copy()
    old[1] = 0
    assert np.abs(find_waves(old).rows(np.arange(300)) - table).max() < 2e-7


@pytest.mark.parametrize("change", [lambda t: t.__setitem__((17, 3), t[17, 3] + 1e-4), lambda t: t.__setitem__(slice(20, None), t[:20].copy())])
def test_one_entry_that_is_no_wave_is_enough(change):
    table = rotary(40, 16, 1e4, 1, "float32")[0]
    assert find_waves(table) is not None
    change(table)
    assert find_waves(table) is None


def test_learned_rows_are_no_waves():
    assert find_waves(np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)) is None


@pytest.mark.parametrize("dtype", [np.int64, np.float32, bool])
def test_rows_go_on(dtype):
    whole = np.stack([np.arange(9), np.full(9, 4), 7 - 2 * np.arange(9)], 1).astype(np.int64)
    whole = (whole * 0 + 1 if dtype is bool else whole).astype(dtype)
    assert np.array_equal(continue_rows(whole[:5], 4), whole) and continue_rows(whole[:5], 4).dtype == dtype
    broken = whole[:5].copy()
    broken[3, 0] = 0
    assert continue_rows(broken, 4) is None


@pytest.mark.parametrize("entry", [
    lambda d: d <= 0, lambda d: (d <= 0) & (d > -3), lambda d: np.abs(d) < 4, lambda d: d == d, lambda d: d < 0,
    lambda d: np.where(d > 0, -np.inf, 0.0), lambda d: np.where(d > 0, np.finfo(np.float32).min, d / 4), lambda d: -np.abs(d) / 8])
def test_diagonals_go_on(entry):
    whole = entry(np.arange(14)[None, :] - np.arange(13)[:, None])[None]
    whole = whole.astype(np.float32) if whole.dtype.kind == "f" else whole
    assert np.array_equal(continue_diagonals(whole[:, :8, :9], 5), whole)


@pytest.mark.parametrize("entry", [lambda d: d % 3 == 0, lambda d: (d < -2) & (d > -5), lambda d: d])
def test_other_diagonals_are_refused(entry):
    assert continue_diagonals(entry(np.arange(9)[None, :] - np.arange(9)[:, None]), 4) is None


def test_columns_go_on_in_runs_and_in_turns():
    whole = 0.1 ** np.arange(4)
    halves = AxisMap(4, 8, [0, 1, -1, -1, 2, 3, -1, -1], [Fill.OLD, Fill.OLD, Fill.FREE, Fill.FREE] * 2)
    assert np.allclose(continue_columns(halves, np.ones(4, bool), np.tile(whole[:2], 2))[1], np.tile(whole, 2))
    turns = AxisMap.append(4, 8, Fill.FREE)
    cosine, frequency = continue_columns(turns, np.array([1, 0, 1, 0], bool), np.repeat(whole[:2], 2))
    assert np.allclose(frequency, np.repeat(whole, 2)) and cosine.tolist() == [True, False] * 4
