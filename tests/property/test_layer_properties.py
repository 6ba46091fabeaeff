"""Extra layers: the disagreement of any windows in any order, and what layers promise."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoseg import Quantization
from cocoseg.stitch import layer_kernels
from cocoseg.stitch.layers import ClassMap, Disagreement, ThresholdMask

from ..strategies import SEEDS, spoil, window_lists

SHAPE = (12, 14)
LISTS = window_lists(SHAPE, max_windows=9)
DTYPES = st.sampled_from(['float32', 'float64'])
# From a probability to a projected coordinate: (spread, offset).
SCALES = st.sampled_from([(1.0, 0.0), (1e-3, 1.0), (1e4, 1e6), (1e-6, -255.0), (1e6, -1e3)])


def make_parts(windows, n_bands, scale, seed, dtype):
    """Return (place, data, rows, columns) per window, clipped to the canvas."""
    rng = np.random.RandomState(seed)
    parts = []
    for window in windows:
        inside = window.clip(SHAPE)
        data = scale[1] + scale[0] * rng.uniform(-1, 1, (*inside.shape, n_bands))
        # A weight of zero, and weights that differ by far, as at the end of a ramp.
        axes = [rng.choice([0, 2.0 ** -20, 0.3, 1], size, p=[0.1, 0.1, 0.4, 0.4])
                for size in inside.shape]
        parts.append((inside, spoil(data.astype(dtype), rng, 0.05),
                      *(axis.astype(dtype) for axis in axes)))
    return parts


def find_valid(data, per_band):
    valid = np.isfinite(data)
    return valid if per_band else np.broadcast_to(valid.all(axis=2, keepdims=True), data.shape)


def accumulate(parts, n_bands, dtype, per_band=False):
    """Return (deviations, weights, mean) of windows as they come, from the kernels."""
    height, width = SHAPE
    sums = np.zeros((height, width * n_bands), dtype)
    weights = np.zeros((height, width * n_bands) if per_band else SHAPE, dtype)
    squares = np.zeros_like(sums)
    for window, data, rows, columns in parts:
        layer_kernels._kernel_add_deviation(
            squares, sums, weights, window.y0, window.x0, data.reshape(1, len(data), -1), 0, 0,
            *window.shape, rows, columns)
        used = find_valid(data, per_band) * (rows[:, None] * columns)[..., None]
        image = sums.reshape(height, width, n_bands)
        image[window.slices] += np.where(used > 0, data, 0) * used.astype(dtype)
        if per_band:
            weights.reshape(image.shape)[window.slices] += used.astype(dtype)
        else:
            weights[window.slices] += used[..., 0].astype(dtype)
    shape = (height, width, n_bands)
    weights = weights.reshape(shape if per_band else SHAPE)
    with np.errstate(invalid='ignore'):
        mean = sums.reshape(shape) / np.atleast_3d(weights)
    return squares.reshape(shape), weights, mean


def two_pass(parts, n_bands, per_band=False):
    """Return (std, number of windows, largest magnitude) per sample, in float64."""
    values = np.zeros((len(parts), *SHAPE, n_bands))
    weights = np.zeros_like(values)
    for value, weight, (window, data, rows, columns) in zip(values, weights, parts):
        used = find_valid(data, per_band) * (rows[:, None] * columns)[..., None]
        value[window.slices] = np.where(used > 0, data, 0)
        weight[window.slices] = used
    with np.errstate(invalid='ignore'):
        mean = (weights * values).sum(axis=0) / weights.sum(axis=0)
        variance = (weights * (values - mean) ** 2).sum(axis=0) / weights.sum(axis=0)
    return np.sqrt(variance), (weights > 0).sum(axis=0), np.abs(values).max(axis=0)


def disagree(parts, n_bands, dtype, per_band=False):
    squares, weights, mean = accumulate(parts, n_bands, dtype, per_band)
    return Disagreement().compute(mean, weights, squares)


def get_bound(count, magnitude, dtype):
    """Return the error that the documentation allows, and that of the float32 raster."""
    eps = np.finfo(dtype).eps
    return 2 * (count + 2) * eps * magnitude + np.finfo('f4').eps * magnitude


@pytest.mark.parametrize('per_band', [False, True])
@given(LISTS, st.integers(1, 3), SCALES, SEEDS, DTYPES)
def test_disagreement_is_the_weighted_deviation(per_band, windows, n_bands, scale, seed, dtype):
    parts = make_parts(windows, n_bands, scale, seed, dtype)
    actual = disagree(parts, n_bands, dtype, per_band)
    expected, count, magnitude = two_pass(parts, n_bands, per_band)
    assert np.array_equal(np.isnan(actual), count == 0)
    assert (actual[count == 1] == 0).all()
    several = count > 1
    error = np.abs(actual - expected)[several]
    assert (error <= get_bound(count, magnitude, dtype)[several]).all()


@given(LISTS, SCALES, SEEDS, DTYPES)
def test_any_order_of_windows_disagrees_the_same(windows, scale, seed, dtype):
    parts = make_parts(windows, 2, scale, seed, dtype)
    order = np.random.RandomState(seed).permutation(len(parts))
    ordered = disagree(parts, 2, dtype)
    shuffled = disagree([parts[index] for index in order], 2, dtype)
    _, count, magnitude = two_pass(parts, 2)
    assert np.array_equal(np.isnan(ordered), np.isnan(shuffled))
    valid = count > 0
    error = np.abs(ordered.astype('f8') - shuffled)[valid]
    assert (error <= 2 * get_bound(count, magnitude, dtype)[valid]).all()


@given(LISTS, SEEDS)
def test_a_large_offset_leaves_four_digits(windows, seed):
    rng = np.random.RandomState(seed)
    parts = [(window, 1e6 + rng.uniform(-1e4, 1e4, (*window.shape, 1)).astype('f4'),
              *(np.ones(size, 'f4') for size in window.shape))
             for window in (window.clip(SHAPE) for window in windows)]
    expected, _, _ = two_pass(parts, 1)
    # Where the windows differ by a good part of the spread.
    clear = np.nan_to_num(expected) > 3e3
    actual = disagree(parts, 1, 'float32')
    np.testing.assert_allclose(actual[clear], expected[clear], rtol=1e-4)


@given(LISTS, SEEDS, DTYPES, st.floats(-1e6, 1e6, width=32))
def test_windows_that_agree_differ_by_rounding_only(windows, seed, dtype, value):
    parts = [(window, np.where(np.isfinite(data), np.array(value, dtype), data), *axes)
             for window, data, *axes in make_parts(windows, 2, (1.0, 0.0), seed, dtype)]
    actual = disagree(parts, 2, dtype)
    _, count, _ = two_pass(parts, 2)
    assert (actual[count == 1] == 0).all()
    bound = get_bound(count, abs(value), dtype)
    assert (actual[count > 0] <= bound[count > 0]).all()


@given(LISTS, SEEDS, st.sampled_from(['uint8', 'int16', 'uint16']))
def test_the_limit_of_a_value_range_is_never_exceeded(windows, seed, quantize_dtype):
    parts = make_parts(windows, 2, (0.5, 0.5), seed, 'float64')
    # The largest deviation there can be: values at both ends.
    parts = [(window, np.where(np.isfinite(data), np.rint(data), data), *axes)
             for window, data, *axes in parts]
    squares, weights, mean = accumulate(parts, 2, 'float64')
    mean_codec = Quantization(0, 1, quantize_dtype)
    codec = Disagreement().describe(2, mean_codec).codec
    codes = Disagreement().compute(mean, weights, squares, mean_codec)
    exact = Disagreement().compute(mean, weights, squares)
    assert not (exact > 0.5 * (1 + 1e-6)).any()
    decoded = codec.decode(codes)
    assert np.array_equal(np.isnan(decoded), np.isnan(exact))
    assert (np.abs(decoded - exact)[~np.isnan(exact)] <= codec.step * 0.501).all()


@given(SEEDS, st.integers(2, 6), DTYPES)
def test_a_class_is_the_band_that_is_largest(seed, n_bands, dtype):
    rng = np.random.RandomState(seed)
    mean = spoil(rng.randint(0, 3, (6, 7, n_bands)).astype(dtype), rng, 0.4)
    classes = ClassMap().compute(mean)[..., 0]
    valid = np.isfinite(mean)
    assert np.array_equal(classes == 255, ~valid.any(axis=2))
    for y, x in zip(*np.nonzero(classes != 255)):
        values, chosen = mean[y, x], classes[y, x]
        others = values[valid[y, x]]
        assert valid[y, x, chosen] and values[chosen] == others.max()
        assert not (values[:chosen] == values[chosen]).any()


@given(SEEDS, st.integers(1, 4), DTYPES)
def test_a_mask_has_the_nodata_of_the_mean(seed, n_bands, dtype):
    rng = np.random.RandomState(seed)
    mean = spoil(rng.rand(6, 7, n_bands).astype(dtype), rng, 0.3)
    thresholds = tuple(rng.rand(n_bands))
    mask = ThresholdMask(thresholds).compute(mean)
    assert np.array_equal(mask == 255, ~np.isfinite(mean))
    for band, threshold in enumerate(thresholds):
        valid = np.isfinite(mean[..., band])
        expected = mean[..., band][valid] > np.array(threshold, dtype)
        assert np.array_equal(mask[..., band][valid], expected)
