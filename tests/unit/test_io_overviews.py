"""The overview kernels against a plain numpy reference, and against GDAL."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cocoseg.errors import OptionError
from cocoseg.io.gdal_gate import gdal_errors_as_exceptions, require_gdal
from cocoseg.io.overviews import compute_overview_shapes, reduce_by_two

DTYPES = ['uint8', 'int16', 'uint16', 'int32', 'uint32', 'float32', 'float64']


def squares(data, nodata):
    """Return the pixels of each 2 x 2 square as (h, w, C, 4), and which are valid."""
    height, width, n_bands = data.shape
    padded = np.pad(data, ((0, height % 2), (0, width % 2), (0, 0)))
    exists = np.pad(np.ones(data.shape, bool), ((0, height % 2), (0, width % 2), (0, 0)))
    valid = exists & (padded == padded)
    if nodata is not None and nodata == nodata:
        valid &= padded != nodata
    shape = (padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, n_bands)
    order = (0, 2, 4, 1, 3)
    flat = (*shape[::2], 4)
    return (padded.reshape(shape).transpose(order).reshape(flat),
            valid.reshape(shape).transpose(order).reshape(flat))


def reference_mean(data, nodata):
    """Average by Python arithmetic, one square at a time."""
    values, valid = squares(data, nodata)
    is_int = data.dtype.kind != 'f'
    fill = nodata if nodata is not None else (0 if is_int else np.nan)
    out = np.full(values.shape[:3], fill, data.dtype)
    for place in np.ndindex(*out.shape):
        good = values[place][valid[place]]
        if not len(good):
            continue
        if is_int:
            total, count = sum(int(value) for value in good), len(good)
            mean = (2 * total + count) // (2 * count)
            limit = np.iinfo(data.dtype).max
            if nodata is not None and mean == nodata:
                mean += 1 if nodata < limit else -1
        else:
            rows = [values[place][k].astype(float) if valid[place][k] else 0. for k in range(4)]
            mean = data.dtype.type(((rows[0] + rows[2]) + (rows[1] + rows[3])) / len(good))
            if nodata is not None and mean == nodata:
                mean = np.nextafter(mean, data.dtype.type(np.inf))
        out[place] = mean
    return out


def reference_mode(data, nodata):
    """Take the most frequent valid value, the first on a tie."""
    values, valid = squares(data, nodata)
    fill = nodata if nodata is not None else (0 if data.dtype.kind != 'f' else np.nan)
    out = np.full(values.shape[:3], fill, data.dtype)
    for place in np.ndindex(*out.shape):
        good = values[place][valid[place]].tolist()
        if good:
            out[place] = max(good, key=lambda value: (good.count(value), -good.index(value)))
    return out


@st.composite
def images(draw):
    """Small images with many repeated, extreme and nodata values."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3)))
    if dtype.kind == 'f':
        elements = st.sampled_from([0.0, 1.0, -1.5, 2.25, 1e6, float('nan'), -9999.0])
        nodata = draw(st.sampled_from([None, -9999.0, float('nan'), 0.0]))
    else:
        limits = np.iinfo(dtype)
        near_zero = st.integers(max(limits.min, -3), 3)
        elements = near_zero | st.sampled_from([int(limits.min), int(limits.max)])
        nodata = draw(st.sampled_from([None, 0, 1, int(limits.min), int(limits.max)]))
    return draw(hnp.arrays(dtype, shape, elements=elements)), nodata


@given(images())
@settings(max_examples=150, deadline=None)
def test_average_equals_reference(case):
    data, nodata = case
    before = data.copy()
    out = reduce_by_two(data, 'average', nodata)
    np.testing.assert_array_equal(out, reference_mean(data, nodata))
    assert out.dtype == data.dtype
    np.testing.assert_array_equal(data, before)


@given(images())
@settings(max_examples=150, deadline=None)
def test_mode_equals_reference(case):
    data, nodata = case
    np.testing.assert_array_equal(reduce_by_two(data, 'mode', nodata), reference_mode(data, nodata))


@given(images())
@settings(max_examples=60, deadline=None)
def test_average_is_invalid_only_where_all_is(case):
    data, nodata = case
    _, valid = squares(data, nodata)
    out = reduce_by_two(data, 'average', nodata)
    bad = out != out
    if nodata is not None:
        bad |= out == nodata
    if data.dtype.kind == 'f' or nodata is not None:
        np.testing.assert_array_equal(bad, ~valid.any(axis=-1))


def test_average_accepts_any_layout():
    base = np.arange(6 * 8 * 3, dtype=np.int32).reshape(3, 6, 8)
    view = base.transpose(1, 2, 0)[:, ::2]
    view.flags.writeable = False
    np.testing.assert_array_equal(
        reduce_by_two(view), reduce_by_two(np.ascontiguousarray(view)))


def test_nearest_takes_the_top_left_pixel():
    data = np.arange(15, dtype=np.uint16).reshape(3, 5, 1)
    assert reduce_by_two(data, 'nearest')[:, :, 0].tolist() == [[0, 2, 4], [10, 12, 14]]


@pytest.mark.parametrize('dtype, gdal_name', [
    ('uint8', 'GDT_Byte'), ('int16', 'GDT_Int16'), ('uint16', 'GDT_UInt16')])
def test_average_equals_gdal_on_even_sizes(dtype, gdal_name):
    gdal = require_gdal()
    rng = np.random.default_rng(3)
    data = rng.integers(0, 100, (64, 96)).astype(dtype)
    data[rng.random(data.shape) < 0.3] = 120  # a mean is never that
    with gdal_errors_as_exceptions():
        dataset = gdal.GetDriverByName('MEM').Create('', 96, 64, 1, getattr(gdal, gdal_name))
        band = dataset.GetRasterBand(1)
        band.WriteArray(data)
        band.SetNoDataValue(120)
        dataset.BuildOverviews('AVERAGE', [2])
        expected = band.GetOverview(0).ReadAsArray()
        del band
    found = reduce_by_two(data[:, :, None], 'average', 120)
    np.testing.assert_array_equal(found[:, :, 0], expected)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 256, 512]))
def test_shapes_halve_until_one_fits(height, width, blocksize):
    shapes = compute_overview_shapes((height, width), blocksize)
    for (h0, w0), (h1, w1) in zip([(height, width), *shapes], shapes):
        assert (h1, w1) == ((h0 + 1) // 2, (w0 + 1) // 2)
        assert max(h0, w0) > blocksize
    assert max(shapes[-1] if shapes else (height, width)) <= blocksize


def test_unknown_method_is_refused():
    with pytest.raises(OptionError, match='cubic'):
        reduce_by_two(np.zeros((2, 2, 1), np.uint8), 'cubic')
