"""The near method: signs, functionals, and that it is nearer than a constant."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import onnxgrow
from onnxgrow import decide as decide_module
from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.recipe import Recipe
from onnxgrow.standin import GROUPS, ROWS, StandIns, _carry, _patterns, _signs
from tests.zoo import export


@given(st.integers(1, 200))
def test_groups_cover_every_new_entry(count):
    rows = _patterns(count)
    assert len(rows) == count
    sizes = [ROWS[r][0] for r in rows]
    assert sizes.count(1) == (count == 1)
    assert all(sizes.count(g) % g == 0 for g in GROUPS)


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_signs_are_balanced_over_runs_of_norms_shorter_than_the_group(size):
    rows = [ROWS.index((size, i)) for i in range(size)]
    signs = np.array([_signs(depth)[rows] for depth in range(1, 60)])
    for start in range(len(signs)):
        for length in range(1, min(size, len(signs) - start + 1)):
            assert signs[start:start + length].prod(axis=0).sum() == 0


def test_a_group_of_three_is_balanced_at_every_norm_and_grows_over_none():
    rows = [ROWS.index((3, i)) for i in range(3)]
    signs = np.array([_signs(depth)[rows] for depth in range(1, 60)])
    np.testing.assert_allclose(signs.sum(axis=1), 0, atol=1e-12)
    products = np.abs(np.cumprod(signs, axis=0))
    assert products.min() > 0.6 and products.max() < 1.6


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 24), st.integers(1, 12), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_no_token_moves_the_statistics_by_more_than_the_bound(n, count, depth, chained, seed):
    rng, patterns = np.random.default_rng(seed), _patterns(count)
    gain, needed = rng.normal(1, 0.3, n), (1 + rng.normal(0, 0.3, (len(ROWS), n))) / n
    mixes, gains, bound = _carry(patterns, gain, needed, _signs(depth), chained)
    along = (mixes[patterns] - 1 / n).sum(axis=0)  # the token that moves the mean most is among them
    s = np.vstack([along, rng.normal(0, 2, (50, n)) + 3]) + (np.arange(n) == 0) * 1e-3
    mean, deviation = s.mean(1), s.std(1)
    whole = np.hstack([s, s @ mixes[patterns].T])
    moved = np.abs(whole.mean(1) - mean) / deviation + np.abs(whole.std(1) * ((n + count) / n) ** 0.5 / deviation - 1)
    assert (moved <= bound * (1 + 1e-9)).all()
    assert np.abs(gains).max() <= 16 * 2 ** (1 / 3) and (chained or bound <= 0.02 + 1e-12 or np.isclose(np.abs(gains).min(), 16, rtol=0.4))


def test_a_new_entry_comes_out_of_the_norm_as_the_functional_that_was_asked_for():
    rng = np.random.default_rng(0)
    n, tokens, patterns = 24, 50, _patterns(8)
    gain, offset = rng.normal(1, 0.2, n), rng.normal(0, 0.3, n)
    needed = rng.normal(0, 1, (len(ROWS), n)) / n
    mixes, gains, _ = _carry(patterns, gain, needed, _signs(3), False)
    s = rng.normal(0, 2, (tokens, n)) + 3
    mean, deviation = s.mean(1, keepdims=True), s.std(1, keepdims=True)
    behind = gain * (s - mean) / deviation + offset
    new = gains * (s @ mixes[patterns].T - mean) / deviation + needed[patterns] @ offset
    np.testing.assert_allclose(new, behind @ needed[patterns].T, rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 7), st.sampled_from([0, 1]), st.sampled_from([8, 64, 1 << 20]), st.integers(0, 99))
def test_weighted_means_stream_like_their_specification(rows, columns, new, axis, block, seed):
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(rows, columns)).astype(np.float32)
    n = old.shape[axis]
    grown = AxisMap(n, n + new, np.r_[np.arange(n), np.full(new, -1)], np.r_[np.zeros(n), np.full(new, Fill.MEAN)], False,
                    rng.normal(size=(3, n)), np.r_[np.zeros(n, int), rng.integers(0, 3, new)])
    other = AxisMap.append(old.shape[1 - axis], old.shape[1 - axis] + 2, Fill.ZERO)
    axes = (grown, other) if axis == 0 else (other, grown)
    recipe = Recipe("w", TensorProto.FLOAT, old.shape, tuple(a.new for a in axes), axes)
    whole = recipe.evaluate(old)
    assert b"".join(b.tobytes() for _, b in recipe.blocks(old, block)) == whole.tobytes()
    kept = np.moveaxis(old, axis, 0).astype(np.float64)
    added = np.moveaxis(whole, axis, 0)[n:, : old.shape[1 - axis]]
    np.testing.assert_allclose(added, grown.mixes[grown.pattern[n:]] @ kept, rtol=1e-5, atol=1e-5)


def near_error(path, folder, monkeypatch, carried):
    with monkeypatch.context() as patch:
        if not carried:
            patch.setattr(decide_module, "find_stand_ins", lambda *_: StandIns(np.zeros(0, np.int64)))
        plan = onnxgrow.load(path).plan(hidden=48, only_hidden=True)
    assert plan.certificate.kind == "near"
    assert (plan.certificate.bound is not None) == carried
    grown = folder / f"grown{carried}.onnx"
    plan.write(grown, validate=False)
    ids = np.random.default_rng(0).integers(0, 99, (4, 9))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    a, b = (onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feeds)[0] for p in (path, grown))
    return np.abs(a - b).max() / np.abs(a).max()


def test_stand_ins_are_several_times_nearer_than_a_constant(tmp_path, monkeypatch):
    path = export("bert-mlm", "dynamo", "eager")
    constant, carried = (near_error(path, tmp_path, monkeypatch, c) for c in (False, True))
    assert carried < constant / 5
