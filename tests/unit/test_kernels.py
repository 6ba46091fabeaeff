"""Each compiled kernel against a plain numpy reference."""
import numpy as np
import pytest

from cocoseg.stitch import kernels

from ..strategies import spoil

BANDS = (1, 2, 3, 4, 5, 6)
DTYPES = ('float32', 'float64')
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


def make_planes(data, layout):
    """Return data (h, w, C) as the kernels take it, bands last or first."""
    if layout == 'first':
        return np.ascontiguousarray(data.transpose(2, 0, 1))
    return np.ascontiguousarray(data).reshape(1, data.shape[0], -1)


def reference_add(sums, weights, y0, x0, data, window_weights):
    """
    Add in place, plain numpy of one dtype; return the pixels without a valid sample.

    sums (H, W, C); weights (H, W), or (H, W, C) to count each band for itself.
    """
    height, width = window_weights.shape
    valid = np.isfinite(data)
    if weights.ndim == 2:
        valid = valid.all(axis=2, keepdims=True)
    part = (slice(y0, y0 + height), slice(x0, x0 + width))
    zero = sums.dtype.type(0)
    with np.errstate(invalid='ignore'):
        sums[part] += np.where(valid, data * window_weights[..., None], zero)
    used = np.where(valid, window_weights[..., None], zero)
    weights[part] += used if weights.ndim == 3 else used[..., 0]
    return int((~valid.any(axis=2)).sum())


def start_canvas(rng, n_bands, dtype, per_band=False, shape=(24, 40)):
    """Return the same half-filled canvas for a kernel, flat, and for its reference."""
    sums = rng.rand(*shape, n_bands).astype(dtype)
    weights = rng.rand(*sums.shape if per_band else shape).astype(dtype)
    return ((sums.copy().reshape(shape[0], -1), weights.copy().reshape(shape[0], -1)),
            (sums, weights))


def iter_cases(n_bands, dtype, pattern, n_cases=8):
    """Yield (rng, data, its crop, place): parts of windows of all layouts, for the canvas."""
    rng = np.random.RandomState(n_bands)
    for turn in range(n_cases):
        height, width = rng.randint(1, 20), rng.randint(1, 33)
        y0, x0 = rng.randint(0, 24 - height + 1), rng.randint(0, 40 - width + 1)
        dy, dx, below, right = rng.randint(0, 4, 4)
        data = make_data(rng, (dy + height + below, dx + width + right, n_bands), dtype, pattern)
        planes = make_planes(data, ('last', 'first')[turn % 2])
        place = (y0, x0, planes, dy, dx, height, width)
        yield rng, data, (slice(dy, dy + height), slice(dx, dx + width)), place


def make_axes(rng, data, dtype):
    """Return weights (h,) and (w,) of a whole window, some of them 0."""
    return tuple((rng.rand(size) * (rng.rand(size) > 0.1)).astype(dtype)
                 for size in data.shape[:2])


def assert_same_bits(actual, expected):
    for found, wanted in zip(actual, expected):
        assert np.array_equal(found, wanted.reshape(found.shape))


# ---- adding ----------------------------------------------------------------

@pytest.mark.parametrize('pattern', PATTERNS)
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_add_separable(dtype, n_bands, pattern):
    for rng, data, crop, place in iter_cases(n_bands, dtype, pattern):
        actual, expected = start_canvas(rng, n_bands, dtype)
        rows, columns = make_axes(rng, data, dtype)
        invalid = kernels._kernel_add(*actual, *place, rows, columns)
        dense = rows[:, None] * columns
        assert invalid == reference_add(*expected, *place[:2], data[crop], dense[crop])
        assert_same_bits(actual, expected)


@pytest.mark.parametrize('pattern', PATTERNS)
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_add_dense(dtype, n_bands, pattern):
    for rng, data, crop, place in iter_cases(n_bands, dtype, pattern):
        actual, expected = start_canvas(rng, n_bands, dtype)
        weights = rng.rand(*data.shape[:2]).astype(dtype) * (rng.rand(*data.shape[:2]) > 0.1)
        invalid = add_dense(*actual, *place, weights)
        assert invalid == reference_add(*expected, *place[:2], data[crop], weights[crop])
        assert_same_bits(actual, expected)


@pytest.mark.parametrize('pattern', PATTERNS)
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_add_bands(dtype, n_bands, pattern):
    for rng, data, crop, place in iter_cases(n_bands, dtype, pattern):
        actual, expected = start_canvas(rng, n_bands, dtype, per_band=True)
        weights = rng.rand(*data.shape[:2]).astype(dtype) * (rng.rand(*data.shape[:2]) > 0.1)
        invalid = kernels._kernel_add_bands(*actual, *place, weights)
        assert invalid == reference_add(*expected, *place[:2], data[crop], weights[crop])
        assert_same_bits(actual, expected)


@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_sums_and_weights_apart(dtype, n_bands):
    for rng, data, crop, place in iter_cases(n_bands, dtype, 'clean'):
        (sums, weights), expected = start_canvas(rng, n_bands, dtype)
        before = weights.copy()
        rows, columns = make_axes(rng, data, dtype)
        kernels._kernel_add_sums(sums, *place, rows, columns)
        reference_add(*expected, *place[:2], data[crop], (rows[:, None] * columns)[crop])
        assert_same_bits([sums], expected[:1])
        # The weights, when they are asked for.
        assert np.array_equal(weights, before)
        y0, x0, _, dy, dx, height, width = place
        kernels._kernel_add_weights(weights, y0, x0, dy, dx, height, width, rows, columns)
        assert_same_bits([weights], expected[1:])


@pytest.mark.parametrize('pattern', PATTERNS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_all_finite(dtype, pattern):
    for _, data, _, place in iter_cases(3, dtype, pattern):
        assert kernels._kernel_all_finite(place[2]) == np.isfinite(data).all()


def add_dense(sums, weights, *args):
    """Add with one weight per pixel, also expanded."""
    expanded = np.repeat(args[-1], sums.shape[1] // weights.shape[1], axis=1)
    return kernels._kernel_add_dense(sums, weights, *args, expanded)


ADDERS = {
    'separable': (kernels._kernel_add, lambda rows, columns: (rows, columns)),
    'dense': (add_dense, lambda rows, columns: (rows[:, None] * columns,)),
    'bands': (kernels._kernel_add_bands, lambda rows, columns: (rows[:, None] * columns,)),
}


@pytest.mark.parametrize('layout', ['last', 'first'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', DTYPES)
def test_one_bad_value_is_found_wherever_it_is(dtype, value, layout):
    # A compiler that takes v - v for zero would let it through.
    for width, n_bands in [(1, 1), (3, 1), (8, 2), (17, 3), (70, 1)]:
        rows, columns = np.ones(1, dtype), np.ones(width, dtype)
        for position in range(width * n_bands):
            data = np.ones((1, width, n_bands), dtype)
            data.reshape(-1)[position] = value
            planes = make_planes(data, layout)
            assert not kernels._kernel_all_finite(planes)
            for name, (kernel, make_weights) in ADDERS.items():
                bad = ~np.isfinite(data[0]) if name == 'bands' else (
                    np.arange(width)[:, None] == position // n_bands)
                sums = np.zeros((1, width * n_bands), dtype)
                totals = np.zeros((1, bad.size), dtype)
                n_invalid = kernel(sums, totals, 0, 0, planes, 0, 0, 1, width,
                                   *make_weights(rows, columns))
                assert n_invalid == bad.all(axis=1).sum()
                assert np.array_equal(totals, ~bad.reshape(1, -1))
                assert np.array_equal(sums.reshape(data.shape)[0], ~bad * np.ones_like(data[0]))


@pytest.mark.parametrize('name', ADDERS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_huge_and_tiny_values_are_not_invalid(dtype, name):
    info = np.finfo(dtype)
    kernel, make_weights = ADDERS[name]
    data = np.array([[[info.max, -info.max, info.tiny, info.smallest_subnormal, -0.0]]], dtype)
    for shape in [(1, 5), (5, 1)]:
        planes, rows, columns = data.reshape(1, *shape), *(np.ones(size, dtype) for size in shape)
        sums, weights = np.zeros(shape, dtype), np.zeros(shape, dtype)
        assert kernels._kernel_all_finite(planes)
        assert kernel(sums, weights, 0, 0, planes, 0, 0, *shape, *make_weights(rows, columns)) == 0
        assert np.array_equal(sums, planes[0]) and (weights == 1).all()
        sums = np.zeros(shape, dtype)
        kernels._kernel_add_sums(sums, 0, 0, planes, 0, 0, *shape, rows, columns)
        assert np.array_equal(sums, planes[0])


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_value_that_its_weight_makes_infinite_is_not_invalid(dtype):
    # It is the sum that overflows; the mean is nodata then, not the window.
    planes = np.full((1, 1, 2), np.finfo(dtype).max)
    sums, weights = np.zeros((1, 2), dtype), np.zeros((1, 2), dtype)
    weight = np.full(1, 2, dtype), np.ones(2, dtype)
    assert kernels._kernel_add(sums, weights, 0, 0, planes, 0, 0, 1, 2, *weight) == 0
    assert (sums == np.inf).all() and (weights == 2).all()


@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_expand(dtype, n_bands):
    weights = np.random.RandomState(0).rand(7).astype(dtype)
    assert np.array_equal(kernels._expand(weights, n_bands), np.repeat(weights, n_bands))
    dense = np.random.RandomState(1).rand(4, 7).astype(dtype)
    out = np.empty((4, 7 * n_bands), dtype)
    kernels._kernel_expand(dense, n_bands, out)
    assert np.array_equal(out, np.repeat(dense, n_bands, axis=1))


@pytest.mark.parametrize('layout', ['last', 'first'])
@pytest.mark.parametrize('n_bands', BANDS)
def test_a_row_is_the_same_in_any_layout(n_bands, layout):
    data = np.random.RandomState(0).rand(4, 9, n_bands).astype('f4')
    planes, scratch = make_planes(data, layout), np.empty(9 * n_bands, 'f4')
    for y, x0, x1 in [(0, 0, 9), (3, 2, 5), (1, 8, 9), (2, 4, 4)]:
        row = kernels._get_row(planes, y, x0, x1, n_bands, scratch)
        assert np.array_equal(row, data[y, x0:x1].reshape(-1))


def test_nothing_around_a_part_is_touched():
    data = np.ones((3, 4, 2), 'f4')
    rows, columns = np.ones(3, 'f4'), np.ones(4, 'f4')
    for layout in ('last', 'first'):
        place = (1, 2, make_planes(data, layout), 1, 2, 2, 1)
        sums, weights = np.zeros((5, 6 * 2), 'f4'), np.zeros((5, 6), 'f4')
        assert kernels._kernel_add(sums, weights, *place, rows, columns) == 0
        expected = np.zeros((5, 6), 'f4')
        expected[1:3, 2] = 1
        assert np.array_equal(weights, expected)
        assert np.array_equal(sums.reshape(5, 6, 2), np.repeat(expected[..., None], 2, axis=2))


# ---- finishing -------------------------------------------------------------

def reference_normalize(sums, weights):
    weights = weights.reshape(*sums.shape[:2], -1)
    with np.errstate(invalid='ignore', divide='ignore'):
        mean = sums / weights
    return np.where(weights > 0, mean, np.array(np.nan, sums.dtype))


def make_sums(rng, shape, dtype, per_band=False):
    """Return sums (h, w, C) and weights (h, w) or (h, w, C) with samples that are empty."""
    weights = rng.rand(*shape) * (rng.rand(*shape) > 0.2)
    weights = (weights if per_band else weights[..., 0]).astype(dtype)
    sums = rng.randn(*shape).astype(dtype)
    return (sums * (weights.reshape(*shape[:2], -1) > 0)).astype(dtype), weights


def flatten(array):
    return array.reshape(len(array), -1)


@pytest.mark.parametrize('per_band', [False, True])
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_normalize(dtype, n_bands, per_band):
    rng = np.random.RandomState(n_bands)
    for shape in [(1, 1), (7, 33), (16, 16)]:
        sums, weights = make_sums(rng, (*shape, n_bands), dtype, per_band)
        out = np.empty_like(sums)
        kernels._kernel_normalize(flatten(sums), flatten(weights), flatten(out))
        assert np.array_equal(out, reference_normalize(sums, weights), equal_nan=True)


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


@pytest.mark.parametrize('size', [1, 15, 16, 17, 999, 5000])
@pytest.mark.parametrize('quantize_dtype', sorted(CODES))
@pytest.mark.parametrize('dtype', DTYPES)
def test_encode(dtype, quantize_dtype, size):
    quant_min, quant_max, nodata = CODES[quantize_dtype]
    low, high = -1.5, 1.25
    args = (low, high, (quant_max - quant_min) / (high - low), quant_min, nodata)
    rng = np.random.RandomState(0)
    # Valid and in the range is another path than not.
    inside = rng.uniform(low, high, size).astype(dtype)
    for values in (inside, inside * 2, spoil(inside, rng), spoil(inside * 2, rng),
                   np.full(size, np.nan, dtype)):
        out = np.empty(size, quantize_dtype)
        n_clipped = kernels._kernel_encode(values, *args, out)
        expected, expected_clipped = reference_encode(values, *args, quantize_dtype)
        assert np.array_equal(out, expected) and n_clipped == expected_clipped
        assert (out.min() >= quant_min or nodata < quant_min) and out.max() <= quant_max


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize('dtype', DTYPES)
def test_one_odd_value_is_found_wherever_it_is(dtype, value):
    args = (0.0, 1.0, 100.0, 0, -9999)
    for size in (1, 3, 16, 33, 1500):
        for position in {0, size // 2, size - 1}:
            values = np.full(size, 0.5, dtype)
            values[position] = value
            expected, n_expected = reference_encode(values, *args, 'int16')
            for weights in (None, np.ones((1, size), dtype)):
                out = np.empty((1, size), 'int16')
                if weights is None:
                    n_clipped = kernels._kernel_encode(values, *args, out[0])
                else:
                    n_clipped = kernels._kernel_normalize_encode(
                        values[None], weights, *args, out)
                assert np.array_equal(out[0], expected) and n_clipped == n_expected


@pytest.mark.parametrize('quantize_dtype', sorted(CODES))
@pytest.mark.parametrize('per_band', [False, True])
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_normalize_encode_is_both_in_one(dtype, n_bands, per_band, quantize_dtype):
    quant_min, quant_max, nodata = CODES[quantize_dtype]
    args = (-1.0, 2.0, (quant_max - quant_min) / 3, quant_min, nodata)
    rng = np.random.RandomState(n_bands)
    sums, weights = make_sums(rng, (21, 30, n_bands), dtype, per_band)
    # Rows without a gap take another path.
    sums[::3], weights[::3] = rng.randn(7, 30, n_bands), 0.7
    mean, expected = np.empty_like(sums), np.empty(sums.shape, quantize_dtype)
    kernels._kernel_normalize(flatten(sums), flatten(weights), flatten(mean))
    expected_clipped = kernels._kernel_encode(mean.reshape(-1), *args, expected.reshape(-1))
    out = np.empty(sums.shape, quantize_dtype)
    n_clipped = kernels._kernel_normalize_encode(
        flatten(sums), flatten(weights), *args, flatten(out))
    assert np.array_equal(out, expected)
    assert n_clipped == expected_clipped > 0


@pytest.mark.parametrize('per_band', [False, True])
def test_normalize_encode_of_sums_that_overflowed(per_band):
    # Finite values can sum to infinity; both ways must call that nodata.
    sums = np.array([[np.inf, -np.inf, np.nan, 3, 3]], 'f4')
    weights = np.array([[1, 1, 1, 1, 0]], 'f4')
    if per_band:
        sums, weights = np.repeat(sums, 2, axis=1), np.repeat(weights, 2, axis=1)
    args = (0.0, 4.0, 1.0, 0, -9999)
    out = np.empty(sums.shape, 'int16')
    assert kernels._kernel_normalize_encode(sums, weights, *args, out) == 0
    times = 2 if per_band else 1
    assert out.ravel().tolist() == np.repeat([-9999, -9999, -9999, 3, -9999], times).tolist()


@pytest.mark.parametrize('dtype', DTYPES)
def test_means_whose_sum_overflows_are_valid(dtype):
    large = np.finfo(dtype).max
    sums, weights = np.full((1, 4), large), np.ones((1, 4), dtype)
    out = np.empty((1, 4), 'int16')
    n_clipped = kernels._kernel_normalize_encode(sums, weights, 0.0, 4.0, 1.0, 0, -9999, out)
    assert (out == 4).all() and n_clipped == 4


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_constant_has_the_lowest_code(dtype):
    sums, weights = np.array([[6.0, 6.0, 8.0]], dtype), np.array([[2, 0, 2]], dtype)
    out = np.empty((1, 3), 'uint8')
    assert kernels._kernel_normalize_encode(sums, weights, 3.0, 3.0, 0.0, 1, 0, out) == 1
    assert out.tolist() == [[1, 0, 1]]
