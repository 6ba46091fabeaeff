"""Each compiled kernel against a plain numpy reference."""
import numpy as np
import pytest

from cocoseg.stitch import kernels

from ..strategies import spoil

BANDS = (1, 2, 3, 4, 5, 6)
DTYPES = ('float32', 'float64')
TOLERANCE = {'float32': 2e-6, 'float64': 1e-14}
PATTERNS = ('clean', 'sparse', 'row', 'column', 'all')


def make_data(rng, shape, dtype, pattern):
    """Return random (h, w, C) data with NaN and infinities in a pattern."""
    data = rng.randn(*shape).astype(dtype)
    if pattern == 'sparse':
        return spoil(data, rng)
    if pattern == 'row':
        data[rng.randint(shape[0])] = np.nan
    if pattern == 'column':
        data[:, rng.randint(shape[1]), rng.randint(shape[2])] = -np.inf
    if pattern == 'all':
        data[...] = np.nan
    return data


def reference_add(sums, weights, y0, x0, data, window_weights):
    """Add in place, in float64; sums (H, W, C); return (added, invalid)."""
    height, width = window_weights.shape
    valid = np.isfinite(data).all(axis=2)
    part = (slice(y0, y0 + height), slice(x0, x0 + width))
    used = np.where(valid, window_weights.astype(np.float64), 0)
    sums[part] += np.where(valid[..., None], data, 0) * used[..., None]
    weights[part] += used
    return int(valid.sum()), int((~valid).sum())


def start_canvas(rng, n_bands, dtype, shape=(24, 90)):
    """Return the same half-filled canvas for a kernel and for its reference."""
    sums = rng.rand(*shape, n_bands).astype(dtype)
    weights = rng.rand(*shape).astype(dtype)
    return (sums.reshape(shape[0], -1), weights), (sums.astype('f8'), weights.astype('f8'))


def assert_same_canvas(actual, expected, dtype):
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(actual[0].reshape(expected[0].shape), expected[0],
                               rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(actual[1], expected[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('pattern', PATTERNS)
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_add_separable(dtype, n_bands, pattern):
    rng = np.random.RandomState(n_bands)
    for _ in range(10):
        actual, expected = start_canvas(rng, n_bands, dtype)
        height, width = rng.randint(1, 20), rng.randint(1, 80)
        y0, x0 = rng.randint(0, 24 - height), rng.randint(0, 90 - width)
        dx, rest = rng.randint(0, 4, 2)
        data = make_data(rng, (height, dx + width + rest, n_bands), dtype, pattern)
        rows, columns = rng.rand(height).astype(dtype), rng.rand(width).astype(dtype)
        counts = kernels._kernel_add(*actual, y0, x0, data.reshape(height, -1), dx, rows, columns)
        part = data[:, dx:dx + width]
        assert counts == reference_add(*expected, y0, x0, part, rows[:, None] * columns)
        assert_same_canvas(actual, expected, dtype)


@pytest.mark.parametrize('pattern', PATTERNS)
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_add_dense(dtype, n_bands, pattern):
    rng = np.random.RandomState(n_bands)
    for _ in range(10):
        actual, expected = start_canvas(rng, n_bands, dtype)
        height, width = rng.randint(1, 20), rng.randint(1, 80)
        y0, x0 = rng.randint(0, 24 - height), rng.randint(0, 90 - width)
        dx, rest = rng.randint(0, 4, 2)
        data = make_data(rng, (height, dx + width + rest, n_bands), dtype, pattern)
        weights = rng.rand(*data.shape[:2]).astype(dtype) * (rng.rand(*data.shape[:2]) > 0.1)
        counts = kernels._kernel_add_dense(*actual, y0, x0, data.reshape(height, -1), dx, width,
                                           weights, np.repeat(weights, n_bands, axis=1))
        part = slice(dx, dx + width)
        assert counts == reference_add(*expected, y0, x0, data[:, part], weights[:, part])
        assert_same_canvas(actual, expected, dtype)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', DTYPES)
def test_one_bad_value_is_found_wherever_it_is(dtype, value):
    # A compiler that takes v - v for zero would let it through.
    for width, n_bands in [(1, 1), (3, 1), (8, 2), (17, 3), (70, 1)]:
        rows, columns = np.ones(1, dtype), np.ones(width, dtype)
        dense, expanded = np.ones((1, width), dtype), np.ones((1, width * n_bands), dtype)
        for position in range(width * n_bands):
            data = np.ones((1, width * n_bands), dtype)
            data[0, position] = value
            for kernel, weights in [(kernels._kernel_add, (0, rows, columns)),
                                    (kernels._kernel_add_dense, (0, width, dense, expanded))]:
                sums, totals = np.zeros_like(data), np.zeros((1, width), dtype)
                assert kernel(sums, totals, 0, 0, data, *weights) == (width - 1, 1)
                missing = np.arange(width) == position // n_bands
                assert np.array_equal(totals[0], ~missing)
                assert np.array_equal(sums[0], np.repeat(~missing, n_bands))


@pytest.mark.parametrize('dtype', DTYPES)
def test_huge_and_tiny_values_are_not_invalid(dtype):
    info = np.finfo(dtype)
    data = np.array([[info.max, -info.max, info.tiny, info.smallest_subnormal, -0.0]], dtype)
    sums, weights = np.zeros_like(data), np.zeros_like(data)
    counts = kernels._kernel_add(sums, weights, 0, 0, data, 0, np.ones(1, dtype), np.ones(5, dtype))
    assert counts == (5, 0)
    assert np.array_equal(sums, data)


@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_expand(dtype, n_bands):
    weights = np.random.RandomState(0).rand(5, 7).astype(dtype)
    out = np.empty((5, 7 * n_bands), dtype)
    kernels._kernel_expand(weights, n_bands, out)
    assert np.array_equal(out, np.repeat(weights, n_bands, axis=1))


def reference_normalize(sums, weights):
    with np.errstate(invalid='ignore', divide='ignore'):
        mean = sums / weights[..., None]
    return np.where(weights[..., None] > 0, mean, np.array(np.nan, sums.dtype))


def make_sums(rng, shape, dtype):
    """Return a canvas with empty pixels, as (sums (h, w, C), weights (h, w))."""
    weights = (rng.rand(*shape[:2]) * (rng.rand(*shape[:2]) > 0.2)).astype(dtype)
    return (rng.randn(*shape).astype(dtype) * (weights[..., None] > 0)).astype(dtype), weights


@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_normalize(dtype, n_bands):
    rng = np.random.RandomState(n_bands)
    for shape in [(1, 1), (7, 33), (16, 16)]:
        sums, weights = make_sums(rng, (*shape, n_bands), dtype)
        out = np.empty_like(sums)
        kernels._kernel_normalize(sums, weights, out)
        assert np.array_equal(out, reference_normalize(sums, weights), equal_nan=True)


def test_normalize_takes_views():
    sums, weights = make_sums(np.random.RandomState(0), (9, 9, 2), 'float32')
    out = np.empty((4, 5, 2), 'float32')
    kernels._kernel_normalize(sums[2:6, 3:8], weights[2:6, 3:8], out)
    expected = reference_normalize(sums, weights)[2:6, 3:8]
    assert np.array_equal(out, expected, equal_nan=True)


@pytest.mark.parametrize('dtype', DTYPES)
def test_minmax(dtype):
    rng = np.random.RandomState(0)
    for size in (1, 2, 7, 100, 1001):
        values = spoil(rng.randn(size).astype(dtype), rng, 0.5)
        values[rng.randint(size)] = -3
        finite = values[np.isfinite(values)]
        assert kernels._kernel_minmax(values) == (finite.min(), finite.max(), finite.size)
    low, high, count = kernels._kernel_minmax(np.full(3, np.nan, dtype))
    assert (low, high, count) == (np.inf, -np.inf, 0)


def reference_encode(values, low, high, scale, quant_min, nodata, dtype):
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    safe = np.where(finite, values, low)
    inside = np.clip(safe, low, high)
    codes = np.rint((inside - low) * scale) + quant_min
    # A move of half a step is no more than rounding does.
    n_clipped = int((np.abs(safe - inside) > 0.5 / scale).sum())
    return np.where(finite, codes, nodata).astype(dtype), n_clipped


CODES = {'int8': (0, 127, -128), 'uint8': (1, 255, 0), 'int16': (0, 32767, -9999),
         'uint16': (1, 65535, 0), 'int32': (0, 2 ** 31 - 1, -9999),
         'uint32': (1, 2 ** 32 - 1, 0)}


@pytest.mark.parametrize('quantize_dtype', sorted(CODES))
@pytest.mark.parametrize('dtype', DTYPES)
def test_encode(dtype, quantize_dtype):
    quant_min, quant_max, nodata = CODES[quantize_dtype]
    low, high = -1.5, 1.25
    args = (low, high, (quant_max - quant_min) / (high - low), quant_min, nodata)
    rng = np.random.RandomState(0)
    values = spoil(rng.randn(999).astype(dtype), rng)
    out = np.empty(999, quantize_dtype)
    n_clipped = kernels._kernel_encode(values, *args, out)
    expected, expected_clipped = reference_encode(values, *args, quantize_dtype)
    assert np.array_equal(out, expected)
    assert n_clipped == expected_clipped > 0
    assert (out.min() == quant_min or nodata < quant_min) and out.max() <= quant_max


@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_normalize_encode_is_both_in_one(dtype, n_bands):
    rng = np.random.RandomState(n_bands)
    sums, weights = make_sums(rng, (21, 30, n_bands), dtype)
    args = (-1.0, 2.0, 32767 / 3, 0, -9999)
    mean, expected = np.empty_like(sums), np.empty(sums.shape, 'int16')
    kernels._kernel_normalize(sums, weights, mean)
    expected_clipped = kernels._kernel_encode(mean.reshape(-1), *args, expected.reshape(-1))
    out = np.empty(sums.shape, 'int16')
    n_clipped, total = kernels._kernel_normalize_encode(sums, weights, *args, out)
    assert np.array_equal(out, expected)
    assert n_clipped == expected_clipped > 0
    assert np.isclose(total, np.nansum(mean, dtype='f8'), rtol=1e-12)


def test_normalize_encode_of_sums_that_overflowed():
    # Finite values can sum to infinity; both ways must call that nodata.
    sums = np.array([[[np.inf], [-np.inf], [np.nan], [3]]], 'f4')
    weights = np.ones((1, 4), 'f4')
    args = (0.0, 4.0, 1.0, 0, -9999)
    out = np.empty((1, 4, 1), 'int16')
    n_clipped, total = kernels._kernel_normalize_encode(sums, weights, *args, out)
    assert out.ravel().tolist() == [-9999, -9999, -9999, 3]
    assert (n_clipped, total) == (0, 3.0)
