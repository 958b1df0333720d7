"""Numbers that are none, that hardly are, and that do not fit: NaN, infinity, subnormals, alike weights, huge ones, and repairs that overflow.

What the source holds stays where it is to the bit, what is new is finite, and ONNX Runtime says the same of both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.errors import GraphError, MethodError
from onnxgrow.finite import is_finite
from onnxgrow.model import Model
from onnxgrow.numbers import not_finite
from onnxgrow.recipe import Recipe
from tests import growing, typed
from tests.growing import Case
from tests.test_cli import run
from tests.zoo_models import VOCAB

GROWTHS = [("gpt2", dict(hidden=45, only_hidden=True)), ("llama", dict(hidden=45, only_hidden=True)), ("bert-mlm", dict(hidden=64, only_hidden=True)),
           ("gpt2", dict(ffn=101)), ("llama", dict(vocab=131)), ("gpt2", dict(layers=3))]  # means, zeros, copies and shares, free, drawn, blocks


def edited(source: Path, folder: Path, change, fits=lambda t: True) -> Path:
    """The file with float initializers changed in place by `change(name, array)`."""
    model = onnx.load(source)
    for t in model.graph.initializer:
        if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16) and fits(t):
            values = numpy_helper.to_array(t).copy()
            if change(t.name, values) is not False:
                t.CopyFrom(numpy_helper.from_array(values, t.name))
    onnx.save(model, folder / "source.onnx")
    return folder / "source.onnx"


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def last_word(value: float):
    """A change: the table's last row."""
    def change(name: str, x: np.ndarray) -> bool | None:
        if x.ndim != 2 or x.shape[0] != VOCAB:
            return False
        x[-1] = value
    return change


def is_old(name: str, plan) -> np.ndarray:
    """Where each entry of a grown weight is an old one, or a copy or share of one."""
    old = np.ones((), bool)
    for m in plan.recipes[name].axes:
        old = old[..., None] & (m.fill == Fill.OLD)
    return old


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "growth"), GROWTHS, ids=str)
def test_what_is_no_number_stays_where_it_is(name, growth, value, tmp_path):
    source = edited(growing.usual(name).path, tmp_path, last_word(value))
    plan = Model(source).plan(**growth)
    result = plan.write(tmp_path / "grown.onnx", provider="cpu")
    assert result.report.equal
    held, before, seen = arrays(result.path), arrays(source), []
    for key, recipe in plan.recipes.items():
        if not recipe.is_float:
            continue
        x, old = before[recipe.origin or key], is_old(key, plan)
        sources = np.ix_(*(m.source.clip(0) for m in recipe.axes))
        assert np.isfinite(held[key][~old]).all(), f"{key}: what is new is no number"
        assert np.array_equal(np.isfinite(held[key])[old], np.isfinite(x[sources])[old]), f"{key}: it spread, or was lost"
        odd = old & ~np.isfinite(held[key])
        assert np.array_equal(held[key][odd], x[sources][odd], equal_nan=True)
        seen += [recipe.origin or key] * bool(odd.any())
    assert sorted(result.not_finite) == sorted(set(seen)) and (seen or "ffn" in growth or "layers" in growth)


def test_the_command_says_so(tmp_path):
    source = edited(Path(__file__).parents[1] / "onnxgrow/models/tiny-llama.onnx", tmp_path, lambda name, x: x.__setitem__(-1, np.nan) if name == "tokens.weight" else False)
    code, out, err = run("expand", source, "--hidden", 144, "-o", tmp_path / "grown.onnx")
    assert code == 0 and "warning: NaN or infinity in 'tokens.weight': copied as they are, and kept out of what is new" in out + err
    assert "the source gives NaN or inf in" in out + err and "equal on" in out + err
    code, out, err = run("validate", source, tmp_path / "grown.onnx")
    assert code == 0 and "the source gives NaN or inf in" in out
    assert not_finite(Model(source).source) == ["tokens.weight"]


def test_nan_where_the_source_has_a_number_differs(tmp_path):
    plan = Model(growing.usual("llama").path).plan(ffn=101)
    path = growing.written(plan, tmp_path)
    broken = edited(path, tmp_path, last_word(np.nan))
    report = plan.compare(broken, provider="cpu")
    assert not report.equal and report.max_rel == np.inf


def test_a_source_without_numbers_is_named(tmp_path):
    source = edited(growing.usual("llama").path, tmp_path, lambda name, x: x.fill(np.nan) if name == "model.model.norm.weight" else False)
    assert not_finite(Model(source).source) == ["model.model.norm.weight"]
    with pytest.raises(GraphError, match="the source itself answers") as error:
        Model(source).plan(ffn=101).write(tmp_path / "grown.onnx", provider="cpu")
    assert error.value.node == "model.model.norm.weight" and not (tmp_path / "grown.onnx").exists()


@pytest.mark.parametrize(("name", "growth"), GROWTHS[:3], ids=str)
def test_numbers_that_hardly_are_stay_to_the_bit(name, growth, tmp_path):
    """Subnormals in a matrix, at its first rows."""
    def change(_, x: np.ndarray) -> bool | None:
        if x.ndim != 2 or x.shape[0] != VOCAB:
            return False
        x[:3] = np.float32(1e-42)
    source = edited(growing.usual(name).path, tmp_path, change)
    plan = Model(source).plan(**growth)
    result = plan.write(tmp_path / "grown.onnx", provider="cpu")
    assert result.report.equal and result.not_finite == ()
    kept = [(key, r) for key, r in plan.recipes.items() if not r.is_scaled and not any(m.share for m in r.axes) and (r.origin or key) in arrays(source)]
    held, before = arrays(result.path), arrays(source)
    assert kept and all(held[key][is_old(key, plan)].tobytes() == before[r.origin or key][np.ix_(*(m.source.clip(0) for m in r.axes))][is_old(key, plan)].tobytes()
                        for key, r in kept)


def test_units_of_a_weight_that_is_all_zero_can_still_learn(tmp_path):
    """An up map that is still zero, as adapters start: new units would be zero for ever, since their down map is."""
    source = edited(growing.usual("vit").path, tmp_path, lambda name, x: x.fill(0) if x.shape == (32, 72) else False)
    plan = Model(source).plan(ffn=101)
    result = plan.write(tmp_path / "grown.onnx", provider="cpu")
    assert result.report.equal
    new = [arrays(result.path)[key] for key, r in plan.recipes.items() if r.old_shape == (32, 72)]
    assert new and all(np.abs(x[:, 72:]).min(axis=0).max() > 0 and not x[:, :72].any() for x in new)


def test_huge_weights_of_float16_get_finite_company(tmp_path):
    recipe = Recipe("w", TensorProto.FLOAT16, (8, 64), (8, 4096), (AxisMap.identity(8), AxisMap.append(64, 4096, Fill.FREE)))
    new = recipe.evaluate((np.random.default_rng(0).choice([-1, 1], (8, 64)) * 60000).astype(np.float16))
    assert np.isfinite(new).all() and np.abs(new[:, 64:]).max() > 1e4


@pytest.mark.parametrize("kind", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_repair_that_vanishes_is_refused_before_anything_is_written(kind, tmp_path):
    """Gains of the least number: four times as wide, √(n/N) takes them to zero; float32 holds them."""
    path, least = typed.by_torch("llama", kind), {"float16": 2.0**-24, "bfloat16": 2.0**-133}[kind]
    source = edited(path, tmp_path, lambda name, x: x.fill(least) if name == "model.model.norm.weight" else False)
    with pytest.raises(MethodError, match=rf"the repair of 'model.model.norm.weight' makes .*, which {kind} cannot hold") as error:
        Model(source).plan(hidden=160, only_hidden=True).write(tmp_path / "grown.onnx", provider="cpu")
    assert error.value.node and "float32" in error.value.hint and [p.name for p in tmp_path.iterdir()] == ["source.onnx"]


def test_one_gain_that_vanishes_beside_larger_ones_does_not_count(tmp_path):
    source = edited(typed.by_torch("llama", "float16"), tmp_path, lambda name, x: x.__setitem__(0, 2.0**-24) if name == "model.model.norm.weight" else False)
    assert Model(source).plan(hidden=160, only_hidden=True).write(tmp_path / "grown.onnx", provider="cpu").report.equal


def test_shares_and_means_of_what_is_no_number():
    old = np.array([[np.inf, -np.inf, np.nan, 1.0], [1.0, 2.0, 3.0, 4.0]], np.float32)
    share = AxisMap(2, 4, [0, 1, 0, 1], [Fill.OLD] * 4, share=True)
    new = Recipe("w", TensorProto.FLOAT, (2, 4), (4, 4), (share, AxisMap.identity(4))).evaluate(old)
    for row in (0, 2):
        assert np.array_equal(new[row, :3], old[0, :3], equal_nan=True)
    assert np.allclose(new[0, 3] + new[2, 3], 1) and np.allclose(new[1] + new[3], old[1])
    mean = Recipe("w", TensorProto.FLOAT, (2, 4), (3, 6), (AxisMap.append(2, 3, Fill.MEAN), AxisMap.append(4, 6, Fill.MEAN)))
    new = mean.evaluate(old)
    assert np.allclose(new[:2, 4:], [[1, 1], [2.5, 2.5]]) and np.allclose(new[2, :4], [1, 2, 3, 2.5]), "means of what is finite"
    for recipe in (mean, Recipe("w", TensorProto.FLOAT, (2, 4), (4, 4), (share, AxisMap.identity(4)))):
        assert b"".join(block.tobytes() for _, block in recipe.blocks(old, 16)) == recipe.evaluate(old).tobytes() and recipe.odd == ["w"]
    gain = Recipe("g", TensorProto.FLOAT, (3,), (5,), (AxisMap.append(3, 5, Fill.FREE),), free="gain")
    assert gain.evaluate(np.array([np.nan, 1, 3], np.float32))[3:].tolist() == [2, 2]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_finite(dtype):
    x = np.ones((3, 5), dtype)
    assert is_finite(x) and is_finite(x * np.finfo(dtype).max), "a sum that overflows is no infinity"
    for odd in (np.nan, np.inf):
        x[1, 2] = odd
        assert not is_finite(x)


def test_a_static_axis_of_equal_rows_is_no_trouble(tmp_path):
    """Channels without variance: every norm gives its offset, whatever the gain."""
    case = Case("gpt2", "torchscript")
    source = edited(case.path, tmp_path, lambda name, x: x.fill(0.25) if x.ndim == 2 and x.shape in ((VOCAB, 32), (40, 32)) else False)
    result = Model(source).plan(hidden=45, only_hidden=True).write(tmp_path / "grown.onnx", provider="cpu")
    assert result.report.equal
