from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlscope_lab.errors import InputError
from mlscope_lab.numerics import measures
from mlscope_lab.numerics.bins import ERROR_EDGES, REFERENCE_EDGES
from mlscope_lab.numerics.layout import PIECE
from mlscope_lab.numerics.measures import QUANTILES, PairAccumulator
from tests.numerics.reference import assert_equal_measures, reference_measures

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=7)
FLOATS = st.one_of(
    st.floats(-10, 10, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-23, 6.0, math.nan, math.inf, -math.inf, 1e-45, 3e38, -3e38, 2.0**-33]),
)


@st.composite
def pairs(draw, dtypes=("float32",), elements=FLOATS):
    shape = draw(SHAPES)
    types = [np.dtype(draw(st.sampled_from(dtypes))) for _ in range(2)]
    a, b = (draw(hnp.arrays(np.float64, shape, elements=elements)) for _ in range(2))
    b = np.where(draw(hnp.arrays(np.bool_, shape)), a, b)  # much is equal
    axis = draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1))) if shape else None
    with np.errstate(all="ignore"):
        return a.astype(types[0]), b.astype(types[1]), axis


def measured(a, b, *, channel_axis=None, **options):
    pair = PairAccumulator(channel_axis=channel_axis, **options)
    pair.add(a, b)
    return pair.result()


@given(pairs())
def test_float32_is_measured_as_defined(given_):
    a, b, axis = given_
    assert_equal_measures(measured(a, b, channel_axis=axis), reference_measures(a, b, axis))


@given(pairs(dtypes=("float16", "float32", "float64"), elements=st.floats(-1e4, 1e4, width=16)))
def test_types_may_differ(given_):
    a, b, axis = given_
    assert_equal_measures(measured(a, b, channel_axis=axis), reference_measures(a, b, axis))


@given(pairs(dtypes=("int8", "uint8", "int16", "int32", "int64", "bool"), elements=st.integers(0, 100)))
def test_integers_and_bool_are_numbers(given_):
    a, b, axis = given_
    assert_equal_measures(measured(a, b, channel_axis=axis), reference_measures(a, b, axis))


@given(pairs(dtypes=("float64",), elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_any_float64_is_counted_and_bounded(given_):
    a, b, axis = given_
    found, wanted = measured(a, b, channel_axis=axis), reference_measures(a, b, axis)
    for name in ("count", "nan_a", "nan_b", "inf_a", "inf_b", "min_a", "max_a", "min_b", "max_b"):
        assert getattr(found, name) == wanted[name] or math.isnan(wanted[name])
    assert found.max_abs_error == wanted["max_abs_error"]
    assert not math.isnan(found.mean_abs_error) or not np.isfinite(found.max_abs_error)
    assert found.joint.sum() == a.size


def test_decibels_of_ratios_beyond_a_float_are_finite():
    tiny, huge = np.array([0.0, 2.2e-313]), np.array([9e10, 9e10])
    assert measured(tiny, huge).psnr_db == pytest.approx(20 * (math.log10(2.2e-313) - math.log10(9e10)), rel=1e-3)
    assert measured(huge * [1.0, 2.0], huge * [1.0, 2.0] * (1 + 1e-15)).sqnr_db > 200


@given(st.integers(0, 2**32 - 1))
def test_tensors_of_many_pieces_are_measured_as_defined(seed):
    random = np.random.default_rng(seed)
    shape = ((3, 5, 70, 71), (2, 1, 300, 301), (1, 700, 130), (90_000,), (2, 33, 3000), (40, 2001))[seed % 6]
    a = random.standard_normal(shape, dtype=np.float32) * np.float32(10.0 ** random.integers(-6, 6))
    if seed % 2:
        a = np.maximum(a, 0)
    b = a * (1 + np.float32(1e-6) * random.standard_normal(shape, dtype=np.float32))
    axis = (1, -1, None, 0)[seed % 4] if len(shape) > 1 else None
    assert a.size > PIECE // 2
    found = measured(a, b, channel_axis=axis)
    assert_equal_measures(found, reference_measures(a, b, axis))
    assert found.joint.sum() == a.size


def test_threads_may_measure_at_once():
    random = np.random.default_rng(0)
    a = random.standard_normal((6, 4, 16, 60, 60), dtype=np.float32)
    b = a + np.float32(1e-5) * random.standard_normal(a.shape, dtype=np.float32)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda x, y: measured(x, y, channel_axis=1), a, b))
    for one, x, y in zip(found, a, b, strict=True):
        assert_equal_measures(one, reference_measures(x, y, 1))


@pytest.mark.parametrize("shape", [(2, 48, 31, 33), (1, 200, 17, 18), (3, 5, 4)])
def test_transposed_tensors_are_measured_in_the_layout_of_a(shape):
    random = np.random.default_rng(1)
    a = random.standard_normal(shape, dtype=np.float32)
    b = a + np.float32(1e-3) * random.standard_normal(shape, dtype=np.float32)
    last = np.ascontiguousarray(np.moveaxis(b, 1, -1))
    seen = np.moveaxis(last, -1, 1)
    assert not seen.flags.c_contiguous
    assert_equal_measures(measured(a, seen, channel_axis=1), reference_measures(a, b, 1))
    assert_equal_measures(measured(seen, a, channel_axis=1), reference_measures(b, a, 1))
    assert_equal_measures(measured(np.moveaxis(a, 1, -1), last, channel_axis=-1),
                          reference_measures(np.moveaxis(a, 1, -1), last, -1))  # fmt: skip


@given(pairs(), st.data())
def test_parts_add_up_to_the_whole(given_, data):
    a, b, axis = given_
    if not a.ndim or (axis is not None and axis % a.ndim == 0):
        return
    cut = data.draw(st.integers(0, a.shape[0]))
    pair = PairAccumulator(low=-10.0, high=10.0, channel_axis=axis)
    for part in (np.s_[:cut], np.s_[cut:]):
        pair.add(a[part], b[part])
    found, whole = pair.result(), measured(a, b, channel_axis=axis, low=-10.0, high=10.0)
    wanted = reference_measures(a, b, axis)
    # the place is one in its own part, and of equal errors the first part's counts
    wanted |= {name: getattr(found, name) for name in ("worst_position", "worst_a", "worst_b")}
    worst = reference_measures(np.asarray(found.worst_a), np.asarray(found.worst_b))
    assert worst["max_abs_error"] == found.max_abs_error
    assert_equal_measures(found, wanted)
    for name in ("joint", "histogram_a", "histogram_b", "error_quantiles"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    for name in ("kl_divergence", "js_divergence", "hellinger"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=1e-12, nan_ok=True)


def test_sums_lose_nothing_however_many_are_added():
    pair = PairAccumulator(low=0.0, high=1.0)
    a, b = np.full(1000, 0.1), np.full(1000, 0.1 + 1e-9)
    for _ in range(500):
        pair.add(a, b)
    found = pair.result()
    assert found.count == 500_000
    assert found.mean_a == pytest.approx(0.1, rel=1e-14)
    assert found.mean_abs_error == pytest.approx((0.1 + 1e-9) - 0.1, rel=1e-13)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1.7e308, 1e160])
def test_squares_beyond_float64_are_no_obstacle(scale):
    a = np.array([1.0, -0.5, 0.25, 1.0]) * scale
    b = np.array([1.0, -0.5, 0.375, 0.5]) * scale
    found = measured(a, b)
    assert found.rms_a / scale == pytest.approx(math.sqrt((1 + 0.25 + 0.0625 + 1) / 4))
    assert found.rms_error / scale == pytest.approx(math.sqrt((0.015625 + 0.25) / 4))
    assert found.l2_relative == pytest.approx(math.sqrt(0.265625 / 2.3125))
    assert found.mean_abs_error / scale == pytest.approx(0.625 / 4)
    assert found.cosine == pytest.approx(np.dot(a / scale, b / scale) / np.linalg.norm(a / scale)
                                         / np.linalg.norm(b / scale))  # fmt: skip
    assert found.sqnr_db == pytest.approx(10 * math.log10(2.3125 / 0.265625))
    assert found.max_rel_error == pytest.approx(0.5)
    assert found.psnr_db == pytest.approx(10 * math.log10(1.5**2 / (0.265625 / 4)))


def test_huge_and_small_samples_add_up():
    pair = PairAccumulator(channel_axis=0)
    for scale in (1e-300, 1.0, 1e300, 1.0):
        pair.add(np.array([1.0]) * scale, np.array([1.5]) * scale)
    found = pair.result()
    assert found.rms_error == pytest.approx(0.25e300)
    assert found.max_rel_error == pytest.approx(0.5)
    assert found.mean_rel_error == pytest.approx(0.5)
    assert found.channel_rms_error.shape == (1,)


def test_values_further_apart_than_float64_can_say():
    found = measured(np.array([1.7e308, 1.0]), np.array([-1.7e308, 1.0]))
    assert found.max_abs_error == math.inf
    assert found.max_rel_error == 2.0
    assert found.mean_abs_error == pytest.approx(1.7e308)
    assert found.l2_relative == pytest.approx(2.0)


def test_long_integers_are_subtracted_exactly():
    a = np.array([2**62, -(2**62), 2**53, 7], dtype=np.int64)
    b = np.array([2**62 + 1, -(2**62) - 3, 2**53 + 1, 7], dtype=np.int64)
    found = measured(a, b)
    assert found.max_abs_error == 3.0
    assert found.mean_abs_error == 5 / 4
    assert found.worst_position == "1"
    unsigned = measured(np.array([2**64 - 1], dtype=np.uint64), np.array([2**64 - 3], dtype=np.uint64))
    assert unsigned.max_abs_error == 2.0
    assert measured(np.array([-1], dtype=np.int64), np.array([2**64 - 1], dtype=np.uint64)).max_abs_error == 2.0**64


def test_equal_nan_and_inf_agree():
    a = np.array([1.0, np.nan, np.inf, -np.inf, 2.0], dtype=np.float32)
    found = measured(a, a.copy())
    assert found.max_abs_error == found.mean_abs_error == found.rms_error == 0.0
    assert found.nan_a == found.nan_b == 1
    assert found.inf_a == found.inf_b == 2
    assert found.cosine == pytest.approx(1.0)
    assert found.sqnr_db == math.inf
    assert (found.error_quantiles == 0.0).all()
    assert found.joint[0].sum() == 5
    assert found.mean_a == 1.5


@pytest.mark.parametrize(("left", "right"), [(np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (np.inf, -np.inf),
                                             (np.nan, np.inf)])  # fmt: skip
def test_nan_or_inf_on_one_side_shows_and_poisons_nothing(left, right):
    a = np.array([[1.0, left], [2.0, 3.0]], dtype=np.float32)
    b = np.array([[1.5, right], [2.0, 3.0]], dtype=np.float32)
    found = measured(a, b, channel_axis=1)
    assert found.max_abs_error == math.inf
    assert found.worst_position == "0,1"
    assert found.mean_abs_error == pytest.approx(0.5 / 3)
    assert found.rms_error == pytest.approx(math.sqrt(0.25 / 3))
    assert found.l2_relative == pytest.approx(0.5 / math.sqrt(14))
    assert found.error_quantiles[-1] == math.inf
    assert found.error_quantiles[0] == 0.0
    assert found.joint[-1].sum() == 1
    assert list(found.channel_max_abs_error) == [0.5, math.inf]
    assert list(found.channel_rms_error) == [pytest.approx(math.sqrt(0.125)), 0.0]


@pytest.mark.parametrize("shape", [(0,), (3, 0, 4)])
def test_an_empty_tensor_has_no_measures(shape):
    found = measured(np.empty(shape, np.float32), np.empty(shape, np.float32), channel_axis=0)
    assert found.count == 0
    for name in ("max_abs_error", "mean_abs_error", "cosine", "sqnr_db", "min_a", "rms_b", "kl_divergence"):
        assert math.isnan(getattr(found, name)), name
    assert np.isnan(found.error_quantiles).all()
    assert found.joint.sum() == 0
    assert found.channel_max_abs_error.size == 0


def test_nothing_added_is_an_empty_tensor():
    found = PairAccumulator(low=0.0, high=1.0, channel_axis=1).result()
    assert found.count == 0
    assert found.worst_position == ""
    assert math.isnan(found.worst_a)


def test_a_scalar_is_a_tensor():
    found = measured(np.float32(1.0), np.float32(1.25), channel_axis=1)
    assert found.max_abs_error == found.max_rel_error == 0.25
    assert found.worst_position == ""
    assert found.count == 1


def test_zeros_alone():
    zero = np.zeros((2, 3), np.float32)
    same = measured(zero, zero)
    assert (same.l2_relative, same.cosine, same.sqnr_db) == (0.0, 1.0, math.inf)
    assert math.isnan(same.max_rel_error)
    other = measured(zero, zero + 1)
    assert (other.l2_relative, other.cosine, other.sqnr_db) == (math.inf, 0.0, -math.inf)
    assert math.isnan(other.mean_rel_error)


def test_relative_errors_leave_zero_references_out():
    a = np.array([0.0, 2.0, 0.0, 4.0], dtype=np.float32)
    b = np.array([9.0, 3.0, 0.0, 4.0], dtype=np.float32)
    found = measured(a, b)
    assert found.max_rel_error == 0.5
    assert found.mean_rel_error == 0.25
    only = measured(np.array([0.0, 5.0], np.float32), np.array([9.0, 5.0], np.float32))
    assert (only.max_rel_error, only.mean_rel_error) == (0.0, 0.0)


def test_negative_zero_is_zero():
    a = np.array([0.0, 1.0, -1.0], dtype=np.float32)
    b = np.array([-0.0, 1.0, -1.0], dtype=np.float32)
    found = measured(a, b)
    assert found.js_divergence == found.hellinger == found.kl_divergence == 0.0
    assert (found.histogram_a == found.histogram_b).all()


def test_complex_numbers_are_two_elements_each():
    found = measured(np.array([1 + 2j]), np.array([1 + 2.5j]))
    assert found.count == 2
    assert found.max_abs_error == 0.5
    assert found.worst_position == "0,1"


def test_bfloat16_is_float32():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    a = np.array([1.0, 2.0, 3.0], dtype=bfloat16)
    b = np.array([1.0, 2.5, 3.0], dtype=np.float32)
    assert measured(a, b).max_abs_error == 0.5


@given(pairs(elements=st.floats(-1e6, 1e6, width=32)))
def test_quantiles_are_within_a_ninth(given_):
    a, b, _ = given_
    found = measured(a, b)
    for estimate, exact in zip(found.error_quantiles, reference_measures(a, b)["error_quantiles"], strict=True):
        assert abs(estimate - exact) <= max(exact / 9 * (1 + 1e-6), 2.0**-64)
        assert estimate <= found.max_abs_error
    assert found.error_quantiles[QUANTILES.index(1.0)] == found.max_abs_error


@given(pairs())
def test_each_element_is_in_the_bin_of_its_error_and_reference(given_):
    a, b, _ = given_
    found = measured(a, b)
    with np.errstate(all="ignore"):
        size = np.abs(b.astype(np.float64) - a.astype(np.float64)).reshape(-1)
    both = (np.isfinite(a) & np.isfinite(b)).reshape(-1)
    agree = ((np.isnan(a) & np.isnan(b)) | ((a == b) & ~np.isfinite(a))).reshape(-1)
    size = np.where(both, size, np.where(agree, 0.0, np.inf))
    rows = np.minimum(np.searchsorted(ERROR_EDGES, size, "right") - 1, len(ERROR_EDGES) - 2)
    reference = np.where(np.isfinite(a), np.abs(a.astype(np.float64)), np.inf).reshape(-1)
    columns = np.minimum(np.searchsorted(REFERENCE_EDGES, reference, "right") - 1, len(REFERENCE_EDGES) - 2)
    wanted = np.zeros_like(found.joint)
    np.add.at(wanted, (rows, columns), 1)
    assert (found.joint == wanted).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([(-3.0, 5.0), (0.0, 6.0), (-0.4, 0.0), (100.0, 101.0), (-7.1, -7.0)]))
@example(1805671, (-0.4, 0.0))  # draws a negative value that is exactly an edge
def test_histograms_are_those_of_numpy(seed, ends):
    low, high = ends
    random = np.random.default_rng(seed)
    a = random.uniform(low + 1e-3, high, 500).astype(np.float32)
    # what `PairMeasures` says otherwise of: no value within a millionth of zero, and no negative one on an edge
    laid_out = measured(a, a, low=low, high=high)
    edges = np.linspace(laid_out.bin_low, laid_out.bin_high, 65)
    a = a[(np.abs(a) > 1e-3) & ~((a < 0) & np.isin(a, edges))]
    found = measured(a, a[::-1].copy(), low=low, high=high)
    assert found.bin_low <= low
    assert found.bin_high >= high
    wanted, _ = np.histogram(a.astype(np.float64), bins=64, range=(found.bin_low, found.bin_high))
    assert (found.histogram_a == wanted).all()
    assert (found.histogram_b == wanted).all()
    assert (found.histogram_a > 0).sum() >= 24


def test_values_out_of_the_expected_range_are_in_the_end_bins():
    found = measured(np.array([-9.0, 0.5, 9.0]), np.array([0.5, 0.5, 0.5]), low=0.0, high=1.0)
    assert found.histogram_a[0] == 1
    assert found.histogram_a[-1] == 1
    assert found.histogram_a.sum() == found.histogram_b.sum() == 3


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match=r"shapes \(2,\) and \(3,\)"):
        measured(np.zeros(2), np.zeros(3))
    with pytest.raises(InputError, match="Numbers can be measured"):
        measured(np.array(["a"]), np.array(["a"]))
    pair = PairAccumulator(channel_axis=1)
    pair.add(np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(InputError, match="4 channels, and had 3"):
        pair.add(np.zeros((1, 4)), np.zeros((1, 4)))


def test_measures_are_the_columns_of_a_comparison():
    from mlscope_lab.divergence import schema

    fields = set(measures.PairMeasures.__dataclass_fields__)
    columns = [*schema.GROUPS[schema.PAIRS]]
    own = columns[columns.index("count") : columns.index("error_quantiles") + 1]
    assert set(own) <= fields
    assert set(schema.GROUPS[schema.SKETCHES]) <= fields
    assert set(schema.GROUPS[schema.HISTOGRAMS]) <= fields
    assert {"channel_max_abs_error", "channel_rms_error"} <= fields
