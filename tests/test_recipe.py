"""Recipes: what each fill means, and that streaming gives the bytes of the specification."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxgrow import noise
from onnxgrow.axismap import AxisMap, Draw, Fill
from onnxgrow.noise import Noise
from onnxgrow.recipe import Recipe, continuation, sample_std
from onnxgrow.stream import Stream

OLD, FREE, DRAWN, MEAN, ZERO = Fill
FLOATS = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT8E4M3FN]


def recipe(*axes: AxisMap, dtype=TensorProto.FLOAT, **options) -> Recipe:
    old, new = tuple(axis.old for axis in axes), tuple(axis.new for axis in axes)
    return Recipe(options.pop("name", "w"), dtype, old, new, axes, **options)


def normal(*shape, dtype=TensorProto.FLOAT, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(dtype))


def streamed(made: Recipe, old: np.ndarray, block_bytes: int) -> bytes:
    """All blocks, put together by their offsets."""
    out = bytearray(made.nbytes)
    for offset, block in made.blocks(old, block_bytes):
        out[offset : offset + block.nbytes] = block.tobytes()
    return bytes(out)


# Axis maps


def test_segments_are_the_longest_runs():
    axis = AxisMap(5, 8, [0, 1, -1, 2, 3, 1, 2, -1], [OLD, OLD, FREE, OLD, OLD, OLD, OLD, ZERO])
    assert axis.segments() == [(0, 0, 2), (3, 2, 2), (5, 1, 2)]
    assert AxisMap.identity(5).segments() == [(0, 0, 5)] and AxisMap.identity(5).is_identity
    assert not AxisMap(2, 2, [1, 0], [OLD, OLD]).is_identity
    assert AxisMap.append(3, 4, ZERO).segments() == [(0, 0, 3)]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((2, 3, [0, 1], [0, 0]), "must both be"),
        ((2, 2, [0, 2], [OLD, OLD]), "outside 0..1"),
        ((2, 2, [0, -1], [OLD, OLD]), "outside 0..1"),
        ((2, 2, [0, 1], [OLD, 9]), "unknown fill"),
        ((2, 2, [-1, -1], [MEAN, MEAN]), "needs OLD"),
        ((2, 2, [-1, -1], [DRAWN, DRAWN]), "needs OLD"),
        ((2, 3, [0, 1, -1], [OLD, OLD, DRAWN]), "needs a Draw"),
        ((2, 2, [0, 1], [OLD, OLD], False, np.ones((1, 3)), np.zeros(2)), "mixes"),
    ],
)
def test_wrong_maps(arguments, words):
    with pytest.raises(ValueError, match=words):
        AxisMap(*arguments)


def test_wrong_recipes():
    with pytest.raises(ValueError, match="axes map"):
        Recipe("w", TensorProto.FLOAT, (2,), (3,), (AxisMap.identity(2),))
    with pytest.raises(ValueError, match="only one axis"):
        recipe(AxisMap(1, 2, [0, 0], [0, 0], True), AxisMap(1, 2, [0, 0], [0, 0], True))
    drawn = AxisMap.append(2, 3, DRAWN, Draw(True, 1, "d"))
    with pytest.raises(ValueError, match="only one axis can be drawn"):
        recipe(drawn, drawn)
    with pytest.raises(ValueError, match="int64 can be copied"):
        recipe(drawn, dtype=TensorProto.INT64)
    with pytest.raises(ValueError, match="free fill"):
        recipe(AxisMap.identity(2), free="nothing")
    for options in ({"scale": 2.0}, {"free": "gain"}):
        with pytest.raises(ValueError, match="int64 can be copied"):
            recipe(AxisMap.identity(2), dtype=TensorProto.INT64, **options)
    with pytest.raises(ValueError, match="int64 can be copied"):
        recipe(AxisMap.append(2, 3, MEAN), dtype=TensorProto.INT64)


# What the fills mean


def test_old_entries_are_copied_to_the_bit():
    old = np.array([[np.nan, -0.0], [np.inf, 1e-45]], np.float32)
    new = recipe(AxisMap.append(2, 3, ZERO), AxisMap(2, 3, [1, 0, 1], [OLD] * 3)).evaluate(old)
    assert new[:2].tobytes() == old[:, [1, 0, 1]].tobytes() and not new[2].any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_scale_and_shift_round_once(dtype):
    old = normal(50, dtype=dtype)
    new = recipe(AxisMap.identity(50), dtype=dtype, scale=1 / 3, shift=0.1).evaluate(old)
    assert (new == (old.astype(np.float64) * (1 / 3) + 0.1).astype(old.dtype)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("copies", [2, 3, 4, 7])
@pytest.mark.parametrize("k", [0, 1])
def test_shares_sum_to_the_old_entry_and_differ(dtype, copies, k):
    n = 6
    shared = AxisMap(n, n * copies, np.tile(np.arange(n), copies), np.zeros(n * copies), share=True)
    axes = [AxisMap.identity(40), AxisMap.identity(40)]
    axes[k] = shared
    old = np.ones([axis.old for axis in axes]).astype(helper.tensor_dtype_to_np_dtype(dtype))
    parts = np.split(recipe(*axes, dtype=dtype).evaluate(old).astype(np.float64), copies, axis=k)
    rounding = float(ml_dtypes.finfo(old.dtype).eps) / 2 + copies * 2.0**-53  # of the last part; of the float64 sums
    assert np.abs(sum(parts) - 1).max() <= rounding
    assert min(part.min() for part in parts) > 0
    if dtype == TensorProto.FLOAT:
        for a in range(copies):
            for b in range(a):
                assert (parts[a] != parts[b]).mean() > 0.99
            assert np.unique(parts[a]).size > 0.9 * parts[a].size, "shares differ from element to element"


def test_one_copy_is_the_entry_itself():
    old = normal(3, 5)
    axis = AxisMap(5, 7, [0, 1, 2, 3, 4, 4, 3], [OLD] * 7, share=True)
    new = recipe(AxisMap.identity(3), axis).evaluate(old)
    assert (new[:, :3] == old[:, :3]).all() and (new[:, 3] != old[:, 3]).any()


def test_mean_along_either_axis():
    old = normal(4, 6)
    new = recipe(AxisMap.append(4, 5, MEAN), AxisMap.append(6, 8, MEAN)).evaluate(old)
    rows = old.astype(np.float64).mean(1).astype(np.float32)
    assert (new[:4, 6] == rows).all() and (new[:4, 7] == rows).all()
    assert (new[4, :6] == old.astype(np.float64).mean(0).astype(np.float32)).all()
    assert np.allclose(new[4, 6:], old.astype(np.float64).mean())


@pytest.mark.parametrize("k", [0, 1])
def test_weighted_means(k):
    """Each MEAN index takes the row of `mixes` that `pattern` names, along the old entries wherever they are now."""
    old, mixes = normal(5, 5), normal(3, 4, dtype=TensorProto.DOUBLE)
    source, pattern = np.array([3, -1, 0, 1, -1, 2, -1]), np.array([0, 2, 0, 0, 1, 0, 2])
    mixed = AxisMap(4, 7, source, np.where(source < 0, MEAN, OLD), mixes=mixes, pattern=pattern)
    axes = [AxisMap.identity(5), AxisMap.identity(5)]
    axes[k] = mixed
    old = old[:4] if k == 0 else old[:, :4]
    new = recipe(*axes).evaluate(old)
    assert (new.take([2, 3, 5, 0], axis=k) == old).all()
    expected = np.moveaxis(np.tensordot(mixes[[2, 1, 2]], old.astype(np.float64), (1, k)), 0, k)
    assert np.allclose(new.take([1, 4, 6], axis=k), expected, rtol=1e-6, atol=1e-6)


def test_mean_of_free_rows_is_over_their_entries_at_old_positions():
    new = recipe(AxisMap.append(4, 6, FREE), AxisMap.append(6, 8, MEAN)).evaluate(normal(4, 6))
    assert (new[4:, 6] == new[4:, :6].astype(np.float64).mean(1).astype(np.float32)).all() and new[4:].all()


def test_precedence():
    """Entry (i, j) of a table over all pairs of fills holds what the greater code says."""
    axis = AxisMap(1, 4, [0, -1, -1, -1], [OLD, FREE, MEAN, ZERO])
    new = recipe(axis, axis, free="gain", shift=1.0).evaluate(np.full((1, 1), 6, np.float32))
    assert (new == [[7, 7, 7, 0], [7, 7, 7, 0], [7, 7, 7, 0], [0, 0, 0, 0]]).all()
    new = recipe(axis, axis, free="zero").evaluate(np.full((1, 1), 6, np.float32))
    assert (new == [[6, 0, 6, 0], [0, 0, 0, 0], [6, 0, 6, 0], [0, 0, 0, 0]]).all()


def test_random_entries_have_the_standard_deviation_of_the_old_ones():
    old = 0.3 * normal(300, 400)
    axes = AxisMap.append(300, 600, FREE), AxisMap.append(400, 800, FREE)
    for options, expected in (({}, 0.3), ({"scale": 2.0}, 0.6), ({"std": 0.05}, 0.05)):
        free = recipe(*axes, **options).evaluate(old)[300:]
        assert free.std() == pytest.approx(expected, rel=0.01) and abs(free.mean()) < 0.01 * expected
        assert np.linalg.matrix_rank(free) == 300


def test_random_entries_depend_on_seed_name_and_position_only():
    axes = AxisMap.append(8, 16, FREE), AxisMap.identity(32)
    first = recipe(*axes, std=1.0).evaluate(normal(8, 32))
    assert (recipe(*axes, std=1.0).evaluate(normal(8, 32, seed=1))[8:] == first[8:]).all()
    assert not np.isin(recipe(*axes, std=1.0, seed=1).evaluate(normal(8, 32))[8:], first).any()
    other = recipe(*axes, std=1.0, name="v").evaluate(normal(8, 32))[8:]
    assert (other != first[8:]).all()
    assert np.unique(first[8:]).size == 8 * 32


def test_gain_is_the_mean_of_the_old_values():
    old = normal(100) + 1
    new = recipe(AxisMap.append(100, 130, FREE), free="gain", scale=0.5).evaluate(old)
    assert np.allclose(new[100:], 0.5 * old.astype(np.float64).mean()) and np.ptp(new[100:]) == 0


@pytest.mark.parametrize(
    "old, expected",
    [
        (10000.0 ** (-np.arange(8) / 8), 10000.0 ** (-np.arange(8, 12) / 8)),
        (np.arange(5.0), np.arange(5.0, 9)),
        (np.array([3.0, 3.0, 3.0]), np.full(4, 3.0)),
        (np.array([1.0, 5.0, 2.0, 0.0]), np.full(4, 2.0)),
        (np.array([7.0]), np.full(4, 7.0)),
    ],
)
@pytest.mark.parametrize("shape", [(-1,), (1, -1), (-1, 1), (1, -1, 1)])
def test_continue(old, expected, shape):
    values = old.astype(np.float32).reshape(shape)
    axes = [AxisMap.identity(1) if n == 1 else AxisMap.append(n, n + 4, FREE) for n in values.shape]
    if len(old) == 1:
        axes[shape.index(-1)] = AxisMap.append(1, 5, FREE)
    made = recipe(*axes, free="continue")
    new = made.evaluate(values)
    assert np.allclose(new.ravel()[len(old) :], expected, rtol=1e-4)
    assert streamed(made, values, 8) == new.tobytes()


def test_continue_fills_gaps_in_order():
    axis = AxisMap(4, 8, [0, 1, -1, -1, 2, 3, -1, -1], [OLD, OLD, FREE, FREE] * 2)
    new = recipe(axis, free="continue").evaluate(2.0 ** np.arange(4, dtype=np.float32))
    assert new.tolist() == [1, 2, 16, 32, 4, 8, 64, 128]


def test_continue_counts_on_in_integers():
    new = recipe(AxisMap.append(5, 7, FREE), dtype=TensorProto.INT64, free="continue").evaluate(np.arange(5))
    assert new.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_given_values_fill_gaps_in_order():
    axis = AxisMap(2, 4, [0, -1, 1, -1], [OLD, FREE, OLD, FREE])
    made = recipe(AxisMap.identity(1), axis, free="given", given=np.array([8.0, 9.0]))
    old = np.array([[1, 2]], np.float32)
    assert made.evaluate(old).tolist() == [[1, 8, 2, 9]] and streamed(made, old, 1) == made.evaluate(old).tobytes()
    with pytest.raises(ValueError, match="2 values must be given"):
        recipe(axis, free="given", given=np.array([8.0]))
    with pytest.raises(ValueError, match="values must be given"):
        recipe(AxisMap.identity(2), axis, free="given", given=np.array([8.0, 9.0]))


def test_integers_and_booleans_are_padded_with_zero():
    for dtype in (TensorProto.INT8, TensorProto.BOOL):
        old = np.ones(3, helper.tensor_dtype_to_np_dtype(dtype))
        assert recipe(AxisMap.append(3, 5, FREE), dtype=dtype).evaluate(old).tolist() == [1, 1, 1, 0, 0]


def test_sample_ignores_what_is_not_finite():
    values = normal(1 << 20)
    values[::1000] = np.nan
    assert sample_std(values) == pytest.approx(1, abs=0.01)
    assert sample_std(np.array([np.inf])) == 0


def test_rounded_steps_go_on_and_what_has_no_rule_does_not():
    steps = (np.arange(10) * 0.1).astype(np.float32)
    assert continuation(steps, 3, otherwise=9.0) == pytest.approx([1.0, 1.1, 1.2], rel=1e-5)
    assert continuation(np.array([1.0, 2, 4], np.float32), 2, otherwise=9.0) == pytest.approx([8, 16])
    assert continuation(steps + np.float32(0.01) * (np.arange(10) == 4), 3, otherwise=9.0) == 9.0


def test_small_steps_that_are_alike_are_no_ratio():
    np.testing.assert_allclose(continuation(np.array([0.1, 0.2, 0.3, 0.4]), 2, otherwise=7.0), [0.5, 0.6])
    np.testing.assert_allclose(continuation(np.array([1e-3, 2e-3, 4e-3]), 1, otherwise=7.0), [8e-3])
    assert continuation(np.array([0.1, 0.2, 0.4, 0.5]), 1, otherwise=7.0) == 7.0


def test_continuation_refuses_what_is_not_finite():
    assert continuation(np.array([1.0, np.inf]), 2, otherwise=5.0) == 5.0


# Noise


@given(st.integers(0, 1 << 22), st.integers(1, 40), st.integers(1, 200_000), st.data())
@settings(max_examples=50, deadline=None)
def test_pieces_are_the_definition(row, rows, columns, data):
    numbers = Noise(0, "w", columns)
    first = data.draw(st.integers(0, columns - 1))
    last = data.draw(st.integers(first + 1, min(columns, first + 70_000)))
    out = np.full((rows, last - first), np.nan, np.float32)
    for r, c, view in numbers.pieces(numbers.table, row, rows, first, last):
        assert np.isnan(out[r, c]).all(), "no piece twice"
        out[r, c] = view
    assert (out == numbers.at(np.arange(row, row + rows), np.arange(first, last))).all()


@pytest.mark.parametrize("columns", [1, 7, 1024, 70_000])
def test_rows_do_not_share_windows(columns):
    numbers = Noise(3, "w", columns)
    rows = min(100_000, noise.TABLE)
    starts = (numbers.base + np.arange(rows) * numbers.windows * numbers.stride) % noise.TABLE
    assert np.unique(starts).size == rows
    assert numbers.stride % 2 == 1 and numbers.stride >= min(columns, noise.WINDOW)


def test_large_matrices_are_as_independent_numbers():
    """Rows overlap in the table once a matrix is larger; its singular values do not show it (Marchenko-Pastur)."""
    matrix = Noise(0, "w", 1600).at(np.arange(1600), np.arange(1600)).astype(np.float64) / 40
    assert matrix.size > 2 * noise.TABLE
    values = np.linalg.svd(matrix, compute_uv=False)
    assert values[0] == pytest.approx(2, abs=0.03) and np.median(values) == pytest.approx(0.806, abs=0.01)
    assert np.quantile(values, 0.1) == pytest.approx(0.157, abs=0.01) and values[-1] > 1e-6


def test_the_table_is_normal():
    table = noise.normals(0)[: noise.TABLE].astype(np.float64)
    assert abs(table.mean()) < 0.002 and abs(table.std() - 1) < 0.002
    assert abs((table**4).mean() - 3) < 0.02 and abs((table[1:] * table[:-1]).mean()) < 0.002


# Drawn entries


def test_drawn_rows_are_the_mean_and_noise():
    old = normal(500, 64)
    new = recipe(AxisMap.append(500, 900, DRAWN, Draw(True, 0.02, "d")), AxisMap.identity(64)).evaluate(old)
    noise = new[500:] - old.mean(axis=0)
    assert (new[:500] == old).all() and noise.std() == pytest.approx(0.02, rel=0.05) and abs(noise.mean()) < 0.001
    assert len(np.unique(new[500:], axis=0)) == 400
    bare = recipe(AxisMap.append(500, 600, DRAWN, Draw(False, 1.0, "d")), AxisMap.identity(64)).evaluate(old)
    np.testing.assert_allclose(bare[500:] * 0.02, noise[:100], atol=1e-6)
    flat = recipe(AxisMap.append(500, 502, DRAWN, Draw(True, 0, "d"))).evaluate(old[:, 0])
    np.testing.assert_allclose(flat[500:], old[:, 0].mean(), rtol=1e-6)


def test_the_noise_of_drawn_entries_depends_on_seed_and_key():
    def new(key: str, seed: int) -> np.ndarray:
        return recipe(AxisMap.append(5, 9, DRAWN, Draw(True, 1, key)), AxisMap.identity(6), seed=seed).evaluate(normal(5, 6))[5:]

    assert (new("a", 0) == new("a", 0)).all()
    assert (new("a", 0) != new("b", 0)).all() and (new("a", 0) != new("a", 1)).all()


def test_a_transposed_copy_draws_the_same():
    rows, columns, old = AxisMap.append(50, 90, DRAWN, Draw(True, 0.1, "d")), AxisMap.append(6, 9, MEAN), normal(50, 6)
    table, head = recipe(rows, columns, name="t"), recipe(columns, rows, name="h")
    np.testing.assert_allclose(table.evaluate(old), head.evaluate(old.T).T, rtol=1e-6, atol=1e-7)


def test_drawn_rows_hold_what_the_other_axis_wants():
    """Means are of the new row itself, copies are alike, zero is zero, and shares sum to one entry with one noise."""
    rows, old = AxisMap.append(50, 90, DRAWN, Draw(True, 0.1, "d")), normal(50, 6)
    plain = recipe(rows, AxisMap.identity(6)).evaluate(old)
    mean = recipe(rows, AxisMap.append(6, 9, MEAN)).evaluate(old)
    np.testing.assert_allclose(mean[:, 6:], np.repeat(mean[:, :6].mean(axis=1)[:, None], 3, axis=1), atol=1e-6)
    assert not recipe(rows, AxisMap.append(6, 9, ZERO)).evaluate(old)[:, 6:].any()
    copies = recipe(rows, AxisMap(6, 12, np.arange(12) % 6, np.zeros(12))).evaluate(old)
    assert (copies[:, :6] == copies[:, 6:]).all()
    shares = recipe(rows, AxisMap(6, 12, np.arange(12) % 6, np.zeros(12), share=True)).evaluate(old)
    np.testing.assert_allclose((shares[:, :6] + shares[:, 6:] - plain)[:50], 0, atol=1e-6)
    spread = [made[50:].std(axis=0).mean() for made in (shares[:, :6] + shares[:, 6:], plain)]
    assert spread[0] == pytest.approx(spread[1], rel=0.2)


# Streaming


@st.composite
def axis_maps(draw, old: int, floats: bool, share: bool, drawn: bool) -> AxisMap:
    """Any map: copies, gaps and every fill in any order, or runs as plans have them."""
    new = draw(st.integers(1, old + 6))
    fill = draw(st.lists(st.sampled_from([OLD, OLD, FREE, ZERO] + [MEAN] * floats + [DRAWN] * drawn), min_size=new, max_size=new))
    fill[draw(st.integers(0, new - 1))] = OLD
    start, step = draw(st.integers(0, old - 1)), draw(st.sampled_from([0, 1, 1, 1, 2]))
    source = (start + step * np.arange(new)) % old
    mixes, pattern = None, None
    if draw(st.integers(0, 3)) == 0:
        mixes, pattern = normal(4, old, dtype=TensorProto.DOUBLE), np.array(draw(st.permutations(range(new)))) % 4
    wanted = Draw(draw(st.booleans()), draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from("ab"))) if drawn else None
    return AxisMap(old, new, np.where(np.array(fill) == OLD, source, -1), np.array(fill), share, mixes, pattern, wanted)


@st.composite
def cases(draw) -> tuple[Recipe, np.ndarray]:
    dtype = draw(st.sampled_from([*FLOATS, TensorProto.INT64, TensorProto.BOOL]))
    floats = dtype in FLOATS
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    shared = draw(st.integers(-2, len(shape) - 1)) if floats else -1
    drawn = draw(st.integers(-1, len(shape) - 1)) if floats else -1
    axes = [draw(axis_maps(n, floats, k == shared, k == drawn)) for k, n in enumerate(shape)]
    made = recipe(
        *axes,
        dtype=dtype,
        scale=draw(st.sampled_from([1.0, 1.0, 1.37])) if floats else 1.0,
        shift=draw(st.sampled_from([0.0, 0.0, 0.2])) if floats else 0.0,
        std=draw(st.sampled_from([None, 0.5])),
        free=draw(st.sampled_from(["random", "random", "zero", "continue"] + ["gain"] * floats)),
        name=draw(st.sampled_from("abc")),
    )
    return made, (10 * normal(*shape, seed=draw(st.integers(0, 9)))).astype(made.numpy_dtype)


@given(cases(), st.integers(1, 200))
@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_blocks_are_the_specification(case, block_bytes):
    made, old = case
    assert streamed(made, old, block_bytes) == made.evaluate(old).tobytes()


@given(cases(), st.data())
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_any_rows_in_any_order(case, data):
    made, old = case
    stream = Stream(made, old)
    rows = np.array(data.draw(st.lists(st.integers(0, stream.rows - 1), max_size=8)), np.int64)
    out = np.empty((len(rows), stream.columns), made.numpy_dtype)
    stream.fill(rows, out)
    assert out.tobytes() == made.evaluate(old).reshape(stream.rows, stream.columns)[rows].tobytes()


def halves(n: int, old: int, new: int, fill: Fill) -> AxisMap:
    """n parts of `old`, each grown to `new` at its end: heads, or rotary halves."""
    part = AxisMap.append(old, new, fill)
    source = np.concatenate([np.where(part.fill == OLD, part.source + i * old, -1) for i in range(n)])
    return AxisMap(n * old, n * new, source, np.tile(part.fill, n))


def weighted(old: int, new: int) -> AxisMap:
    """New entries by five weighted means."""
    axis, mixes = AxisMap.append(old, new, MEAN), 1 / old + normal(9, old, dtype=TensorProto.DOUBLE)
    return AxisMap(old, new, axis.source, axis.fill, mixes=mixes, pattern=np.arange(new) % 5 + 2)


WORDS = Draw(True, 0.02, "words")
LARGE = {
    "appended": (AxisMap.append(300, 450, FREE), AxisMap.append(400, 600, FREE)),
    "writer": (AxisMap.identity(300), AxisMap.append(400, 600, MEAN)),
    "transposed writer": (AxisMap.append(300, 450, MEAN), AxisMap.append(400, 600, FREE)),
    "halves": (halves(10, 30, 40, FREE), halves(20, 20, 30, FREE)),
    "scattered": (halves(100, 3, 5, ZERO), halves(200, 2, 3, FREE)),
    "weighted columns": (AxisMap.append(300, 450, FREE), weighted(400, 600)),
    "weighted rows": (weighted(300, 450), AxisMap.append(400, 600, FREE)),
    "shares": (AxisMap(300, 600, np.arange(600) % 300, np.zeros(600), True), AxisMap.append(400, 500, ZERO)),
    "scattered shares": (AxisMap.identity(300), AxisMap(400, 800, np.arange(800) // 2, np.zeros(800), True)),
    "experts": (AxisMap.identity(3), AxisMap.append(100, 130, MEAN), AxisMap.append(400, 500, FREE)),
    "wide": (AxisMap.append(1, 2, MEAN), AxisMap.append(150_000, 200_000, FREE)),
    "words": (AxisMap.append(3000, 3500, DRAWN, WORDS), AxisMap.append(400, 600, MEAN)),
    "head": (AxisMap.append(300, 450, FREE), AxisMap.append(4000, 4500, DRAWN, WORDS)),
    "copied words": (AxisMap.append(300, 450, DRAWN, WORDS), AxisMap(400, 800, np.arange(800) % 400, np.zeros(800))),
    "shared head": (AxisMap(300, 600, np.arange(600) % 300, np.zeros(600), True), AxisMap.append(400, 500, DRAWN, WORDS)),
    "tables": (weighted(30, 45), AxisMap.append(100, 130, DRAWN, WORDS), AxisMap.append(40, 50, MEAN)),
    "long words": (AxisMap.append(1, 2, FREE), AxisMap.append(150_000, 200_000, DRAWN, WORDS)),
    "long": (AxisMap.append(150_000, 200_000, FREE),),
    "narrow": (AxisMap.append(70_000, 90_000, MEAN), AxisMap.append(1, 3, FREE)),
}


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.BFLOAT16])
@pytest.mark.parametrize("axes", LARGE.values(), ids=LARGE)
def test_large_tensors_do_not_depend_on_the_block_size(axes, dtype):
    """Large enough for sums in several steps, windows that wrap, and the gathering of scattered columns."""
    made = recipe(*axes, dtype=dtype, scale=0.7)
    old = normal(*made.old_shape, dtype=dtype)
    whole = made.evaluate(old).tobytes()
    for block_bytes in (1 << 12, 1 << 18, 1 << 30):
        assert streamed(made, old, block_bytes) == whole


def test_unaligned_source():
    """Weights embedded in a file start at any byte."""
    old = normal(40, 50)
    shifted = np.frombuffer(b"x" + old.tobytes(), np.uint8)[1:].view(np.float32).reshape(40, 50)
    assert not shifted.flags.aligned
    for options in ({}, {"scale": 0.5}):
        for axes in ((halves(4, 10, 12, MEAN), AxisMap.append(50, 60, FREE)), LARGE["scattered"][:0]):
            made = recipe(*(axes or (AxisMap.identity(40), halves(25, 2, 3, ZERO))), **options)
            assert streamed(made, shifted, 1000) == made.evaluate(old).tobytes()


def test_blocks_keep_to_their_size():
    made = recipe(AxisMap.append(300, 450, FREE), AxisMap.append(400, 600, FREE))
    assert max(block.nbytes for _, block in made.blocks(normal(300, 400), 10_000)) <= 10_000
