"""
Overviews: half an image against plain Python, for all types and their extremes.

The reference takes one square at a time, with exact fractions for integers.
"""
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.io.overviews import METHODS, compute_overview_shapes, reduce_by_two

from ..strategies import SEEDS

INTEGERS = ('int8', 'int16', 'int32', 'uint8', 'uint16', 'uint32')
FLOATS = ('float32', 'float64')
BIGGEST = float(np.finfo('float64').max)
SOME = settings(max_examples=40)


@st.composite
def images(draw, dtypes=INTEGERS + FLOATS):
    """Draw (image, nodata): few different values, so that they meet, and extremes."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    if dtype.kind == 'f':
        limits, low, high = np.finfo(dtype), -np.inf, np.inf
        values = [0.0, 1.0, -1.5, 2.25, 1e6, 5.0, np.nan, np.inf, -np.inf, float(limits.tiny),
                  float(limits.max) / 4, -float(limits.max) / 4, 1 / 3]
        nodata = draw(st.sampled_from(
            [None, np.nan, 0.0, 5.0, np.inf, float(limits.max), float(limits.min)]))
        values.append(0.0 if nodata is None else nodata)
    else:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        values = [low, low + 1, low + 2, high - 2, high - 1, high, 0, 1, 2, 5, (low + high) // 2]
        nodata = draw(st.sampled_from([None, low, low + 1, 0, 1, 5, high - 1, high]))
    # Few of them in one image: equal neighbours, and means that hit nodata.
    few = draw(st.lists(st.sampled_from(values), min_size=1, max_size=4))
    if nodata is not None and draw(st.booleans()):
        few = few[:1] + [value for value in (nodata - 1, nodata, nodata + 1)
                         if low <= value <= high]
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)))
    rng = np.random.RandomState(draw(SEEDS))
    return rng.choice(np.array(few, dtype), shape), nodata


def list_squares(data, nodata):
    """Yield (place, rows of pixels, rows of valid pixels) of each pixel of the half."""
    height, width, n_bands = data.shape

    def is_valid(value):
        return value == value and (nodata is None or value != nodata)
    for y, x, c in np.ndindex((height + 1) // 2, (width + 1) // 2, n_bands):
        square = data[2 * y:2 * y + 2, 2 * x:2 * x + 2, c]
        flat = [value for row in square for value in row]
        yield (y, x, c), square, [value for value in flat if is_valid(value)], is_valid


def make_invalid(dtype, nodata):
    """Return what a square without a valid pixel becomes."""
    return dtype.type(np.nan if nodata is None else nodata)


def step_aside(dtype, nodata):
    """Return the neighbour of nodata: above it, or below at the top of the range."""
    if dtype.kind != 'f':
        return dtype.type(nodata + 1 if nodata < np.iinfo(dtype).max else nodata - 1)
    is_top = nodata >= np.finfo(dtype).max
    return np.nextafter(dtype.type(nodata), dtype.type(-np.inf if is_top else np.inf))


def compute_mean(dtype, square, valid, is_valid):
    """Return the mean of the valid pixels: exact, or summed by columns in double precision."""
    if dtype.kind != 'f':
        return dtype.type(int((sum(Fraction(int(value)) for value in valid) / len(valid)
                               + Fraction(1, 2)).__floor__()))
    with np.errstate(invalid='ignore', over='ignore'):
        columns = [sum((np.float64(value) for value in column if is_valid(value)),
                       np.float64(0)) for column in square.T]
        return dtype.type(sum(columns, np.float64(0)) / len(valid))


@SOME
@given(images())
def test_an_average_is_that_of_the_valid_pixels(case):
    data, nodata = case
    found = reduce_by_two(data, 'average', nodata)
    expected = np.empty_like(found)
    for place, square, valid, is_valid in list_squares(data, nodata):
        if not valid:
            expected[place] = make_invalid(data.dtype, nodata)
            continue
        mean = compute_mean(data.dtype, square, valid, is_valid)
        expected[place] = step_aside(data.dtype, nodata) if mean == nodata else mean
    assert found.dtype == data.dtype
    np.testing.assert_array_equal(found, expected)


@SOME
@given(images())
def test_the_mode_is_the_most_frequent_valid_pixel(case):
    data, nodata = case
    found = reduce_by_two(data, 'mode', nodata)
    expected = np.empty_like(found)
    for place, _, valid, _ in list_squares(data, nodata):
        expected[place] = max(
            valid, key=lambda value: (valid.count(value), -valid.index(value)),
            default=None) if valid else make_invalid(data.dtype, nodata)
    assert found.dtype == data.dtype
    np.testing.assert_array_equal(found, expected)


@SOME
@given(images())
def test_nearest_is_the_top_left_pixel(case):
    data, nodata = case
    found = reduce_by_two(data, 'nearest', nodata)
    for place, square, _, _ in list_squares(data, nodata):
        np.testing.assert_array_equal(found[place], square[0, 0])
    assert found.dtype == data.dtype and not np.shares_memory(found, data)


@SOME
@given(images(), st.sampled_from(['average', 'mode']))
def test_valid_pixels_stay_valid_and_others_do_not_come_back(case, method):
    data, nodata = case
    found = reduce_by_two(data, method, nodata)
    for place, _, valid, is_valid in list_squares(data, nodata):
        opposite = {float(np.inf), float(-np.inf)} <= {float(value) for value in valid}
        # Only infinities of both signs have no mean.
        assert is_valid(found[place]) == bool(valid) or (opposite and method == 'average')


@SOME
@given(images(), st.sampled_from(METHODS))
def test_a_constant_image_stays_constant(case, method):
    data, nodata = case
    value = data[0, 0, 0]
    constant = np.full_like(data, value)
    # Where all is NaN, the mark of invalid pixels takes its place.
    is_marked = value != value and nodata is not None and method != 'nearest'
    for _ in range(4):
        constant = reduce_by_two(constant, method, nodata)
        np.testing.assert_array_equal(constant, nodata if is_marked else value)


@SOME
@given(images(), st.sampled_from(METHODS), st.sampled_from([
    np.asfortranarray, lambda data: data[::-1, ::-1].copy()[::-1, ::-1],
    lambda data: np.repeat(data, 2, axis=1)[:, ::2],
    lambda data: np.ascontiguousarray(data.transpose(2, 0, 1)).transpose(1, 2, 0)]))
def test_the_layout_does_not_matter_and_nothing_is_changed(case, method, change):
    data, nodata = case
    other = change(data)
    other.flags.writeable = False
    np.testing.assert_array_equal(
        reduce_by_two(other, method, nodata), reduce_by_two(data, method, nodata))
    np.testing.assert_array_equal(other, data)


@SOME
@given(images(), st.sampled_from(METHODS))
def test_parts_at_even_places_can_be_halved_alone(case, method):
    # What lets tiles be halved as they come.
    data, nodata = case
    whole = reduce_by_two(data, method, nodata)
    for y in range(0, data.shape[0], 4):
        for x in range(0, data.shape[1], 2):
            part = reduce_by_two(data[y:y + 4, x:x + 2], method, nodata)
            np.testing.assert_array_equal(part, whole[y // 2:y // 2 + 2, x // 2:x // 2 + 1])


@SOME
@given(images(), st.sampled_from(METHODS))
def test_bands_do_not_mix(case, method):
    data, nodata = case
    whole = reduce_by_two(data, method, nodata)
    for band in range(data.shape[2]):
        np.testing.assert_array_equal(
            reduce_by_two(data[:, :, band:band + 1], method, nodata), whole[:, :, band:band + 1])


@SOME
@given(images(INTEGERS))
def test_an_average_of_integers_stays_between_its_pixels(case):
    data, nodata = case
    found = reduce_by_two(data, 'average', nodata)
    for place, _, valid, _ in list_squares(data, nodata):
        if valid:
            # Beside nodata it may be one off: it stepped aside.
            slack = nodata is not None and found[place] == step_aside(data.dtype, nodata)
            assert int(min(valid)) - slack <= int(found[place]) <= int(max(valid)) + slack


@SOME
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(4, 256))
def test_levels_halve_until_one_fits_in_a_tile(height, width, sixteenths):
    blocksize = 16 * sixteenths
    shapes = [(height, width), *compute_overview_shapes((height, width), blocksize)]
    for (h0, w0), (h1, w1) in zip(shapes, shapes[1:]):
        assert (h1, w1) == ((h0 + 1) // 2, (w0 + 1) // 2)
        # Validators want an overview of what is larger than 512 px.
        is_first = (h0, w0) == (height, width)
        assert max(h0, w0) > (min(blocksize, 512) if is_first else blocksize)
    assert max(shapes[-1]) <= blocksize


@pytest.mark.parametrize('dtype, values, nodata, expected', [
    ('int32', [-2 ** 31, -2 ** 31, -2 ** 31, -2 ** 31 + 1], None, -2 ** 31),
    ('int32', [2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 2], None, 2 ** 31 - 1),
    ('int32', [-2 ** 31, 2 ** 31 - 1, -2 ** 31, 2 ** 31 - 1], None, 0),
    ('uint32', [2 ** 32 - 1] * 4, None, 2 ** 32 - 1),
    ('uint32', [2 ** 32 - 1, 0, 2 ** 32 - 1, 2 ** 32 - 2], 0, 2 ** 32 - 1),
    ('int8', [-128, -128, -127, -127], None, -127),
    ('int8', [-128, 127, 127, -128], 0, 1),
    ('int8', [-128, -128, -128, 5], -128, 5),
    ('uint8', [254, 255, 255, 255], 255, 254),
    ('uint8', [254, 254, 0, 0], 127, 128),
    ('uint16', [65534, 65534, 65535, 65534], 65535, 65534),
    ('int16', [-3, -2, 7, 7], 7, -2),
    ('float32', [np.inf, 1, np.nan, 2], None, np.inf),
    ('float32', [np.inf, -np.inf, 0, 0], None, np.nan),
    ('float64', [np.nan, np.nan, -9999, np.nan], -9999, -9999),
    ('float64', [BIGGEST] * 4, None, BIGGEST), ('float64', [-BIGGEST] * 4, 0, -BIGGEST),
    ('float64', [BIGGEST, np.nan, BIGGEST, BIGGEST], None, BIGGEST),
    ('float64', [BIGGEST, 0, BIGGEST, np.inf], 0, np.inf),
    ('float64', [5e-324] * 4, None, 5e-324), ('float64', [5e-324, 1.5e-323] * 2, 0, 1e-323),
    ('float32', [3.4028234663852886e38] * 4, None, 3.4028234663852886e38)])
def test_what_the_extremes_become(dtype, values, nodata, expected):
    data = np.array(values, dtype).reshape(2, 2, 1)
    np.testing.assert_array_equal(reduce_by_two(data, 'average', nodata).item(), expected)
