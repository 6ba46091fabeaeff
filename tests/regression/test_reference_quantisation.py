"""
What the reference did wrong when it quantised: items 27 to 30.

The judge is the function that kwcoco decodes with,
``delayed_image.helpers.dequantize``.
"""
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from delayed_image.helpers import dequantize

from cocoseg import quantize_image
from cocoseg.errors import OptionError
from cocoseg.io.gdal_gate import require_gdal

NAN, INF = float('nan'), float('inf')
INTEGERS = ['int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32']


def n_codes(dtype):
    """Return how many steps lie between the lowest and the highest code."""
    quantization = quantize_image(None, 0, 1, dtype)
    return quantization['quant_max'] - quantization['quant_min']


# ---- 27 --------------------------------------------------------------------

@pytest.mark.parametrize('dtype', INTEGERS)
@pytest.mark.parametrize('value', [0, 1, -5, 0.3, 1e30, -1e-30, 5e-324, 255, NAN])
def test_27_constant_arrays(value, dtype):
    """A constant was a division by zero; it must decode to itself, NaN to NaN."""
    imdata = np.full((4, 5, 2), value, np.float64)
    imdata[0, 0] = NAN
    ints, quantization = quantize_image(imdata, quantize_dtype=dtype)
    assert ints.dtype == dtype
    found = dequantize(ints, quantization)
    assert np.array_equal(found, imdata, equal_nan=True)


@pytest.mark.parametrize('options', [
    {}, {'prob_format': 'tif'}, {'prob_format': 'png'}, {'quantize': False},
    {'dtype': 'float64'}], ids=str)
@pytest.mark.parametrize('value', [0, 1, -5, 0.3, 1e30, -1e-30])
def test_27_constant_images(make_dataset, make_manager, read, options, value):
    """A constant image could not be written without a range; it must be, and exactly."""
    dset = make_dataset()
    manager = make_manager(dset, expected_minmax=None, **options)
    data = np.full((64, 64), value, np.float64)
    data[0, 0] = NAN
    manager.accumulate_image(1, None, data)
    manager.finalize_image(1)
    found = read(dset, 1)[..., 0]
    assert np.isnan(found[0, 0])
    assert (found.ravel()[1:] == found.dtype.type(value)).all()


@pytest.mark.parametrize('minmax', [(0, 0), (1, 1), (0.5, 0.5)])
def test_27_empty_range(make_dataset, make_manager, read, minmax):
    """A range of one value was a division by zero; it must clip everything to it."""
    dset = make_dataset()
    manager = make_manager(dset, expected_minmax=minmax)
    manager.accumulate_image(1, None, np.linspace(-1, 2, 64 * 64).reshape(64, 64))
    info = manager.finalize_image(1)
    assert info['n_clipped'] >= 64 * 64 - 1
    assert (read(dset, 1) == minmax[0]).all()


@pytest.mark.parametrize('low, high', [(0, 1e-4), (5, 5 + 1e-4), (-1e20, 1e20), (0.1, 0.9)])
def test_27_every_range_uses_all_codes(make_dataset, make_manager, read, low, high):
    """A range of 1e-4 got three levels of 32767; codes must span the true range."""
    imdata = np.linspace(low, high, 64 * 64)
    ints, quantization = quantize_image(imdata)
    assert (ints.min(), ints.max()) == (0, 32767)
    assert len(np.unique(ints)) == imdata.size
    assert abs(dequantize(ints, quantization) - imdata).max() <= (high - low) / 32767 * 0.51
    dset = make_dataset()
    manager = make_manager(dset, expected_minmax=None, dtype='float64')
    manager.accumulate_image(1, None, imdata.reshape(64, 64))
    manager.finalize_image(1)
    found = read(dset, 1).ravel()
    assert abs(found - imdata).max() <= (high - low) / 32767 * 0.51


def test_27_infinities_do_not_set_the_range():
    """Infinity was an OverflowError; it must become nodata and not be in the range."""
    imdata = np.array([[0.0, 0.25, INF], [-INF, NAN, 1.0]])
    ints, quantization = quantize_image(imdata)
    assert (quantization['orig_min'], quantization['orig_max']) == (0, 1)
    found = dequantize(ints, quantization)
    assert np.allclose(found, [[0, 0.25, NAN], [NAN, NAN, 1]], atol=1e-4, equal_nan=True)


@pytest.mark.parametrize('low, high', [(1, 0), (0, INF), (NAN, 1), (-1.7e308, 1.7e308)])
def test_27_impossible_ranges_are_refused(low, high):
    """A range that cannot be coded must be refused with its values."""
    with pytest.raises(OptionError, match='range'):
        quantize_image(np.zeros((2, 2)), low, high)


@pytest.mark.parametrize('minmax', [
    np.array([0, 1]), np.array([0, 1.0]), (np.float32(0), np.float32(1)), [0, 1],
    (np.int64(0), np.float64(1)), (0, np.uint8(1))], ids=repr)
def test_27_range_may_be_of_any_number_type(make_dataset, make_manager, read, noise, minmax):
    """A range that numpy computed must do as well as one that was typed in."""
    dset = make_dataset()
    manager = make_manager(dset, expected_minmax=minmax)
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)
    manager.dump()
    entry = json.loads(Path(dset.fpath).read_text())['images'][0]['auxiliary'][0]
    assert (entry['quantization']['orig_min'], entry['quantization']['orig_max']) == (0, 1)


# ---- 28 --------------------------------------------------------------------

@pytest.mark.parametrize('dtype', INTEGERS)
@pytest.mark.parametrize('float_dtype', ['f4', 'f8'])
def test_28_codes_are_rounded(dtype, float_dtype):
    """Truncation was biased by half a code; rounding must be within half, without bias."""
    imdata = np.random.RandomState(0).rand(200_000).astype(float_dtype)
    ints, quantization = quantize_image(imdata, 0, 1, dtype)
    exact = imdata.astype('f8') * n_codes(dtype) + quantization['quant_min']
    error = ints.astype('f8') - exact
    assert np.abs(error).max() <= 0.5 + 1e-6
    assert abs(error.mean()) <= 0.01


@pytest.mark.parametrize('options, n_steps', [({}, 32767), ({'prob_format': 'png'}, 254)])
def test_28_written_values_are_rounded(make_dataset, make_manager, read, options, n_steps):
    """The same through the manager: no bias, and at most half a step."""
    dset = make_dataset(dsize=(256, 256))
    manager = make_manager(dset, **options)
    data = np.random.RandomState(0).rand(256, 256).astype('f4')
    manager.accumulate_image(1, None, data)
    manager.finalize_image(1)
    error = (read(dset, 1)[..., 0].astype('f8') - data) * n_steps
    # The last digits of float32 are worth 0.004 codes of int16.
    assert np.abs(error).max() <= 0.505
    assert abs(error.mean()) <= 0.01


@pytest.mark.parametrize('value', [0, 0.5, 1])
def test_28_ends_of_the_range_are_exact(value):
    """.5 came back as .49998; the ends must be exact, and .5 as near as a code is."""
    ints, quantization = quantize_image(np.array([value, 0, 1.0]), 0, 1)
    assert abs(dequantize(ints, quantization)[0] - value) <= (0.5 / 32767 if value == 0.5 else 0)


# ---- 29 --------------------------------------------------------------------

@pytest.mark.parametrize('dtype', INTEGERS)
@pytest.mark.parametrize('source', ['f2', 'f4', 'f8', 'u1', 'i2', 'i8', 'bool'])
def test_29_all_integer_types(source, dtype):
    """int32 overflowed to the other end and float16 to nodata; all types must be right."""
    rng = np.random.RandomState(0)
    imdata = rng.randint(0, 2 if source == 'bool' else 100, (50, 40)).astype(source)
    if imdata.dtype.kind == 'f':
        imdata += rng.rand(50, 40).astype(source)
    low, high = float(imdata.min()), float(imdata.max())
    ints, quantization = quantize_image(imdata, quantize_dtype=dtype)
    assert ints.dtype == dtype
    assert (ints.min(), ints.max()) == (quantization['quant_min'], quantization['quant_max'])
    found = dequantize(ints, quantization)
    # Decoding is in float32 unless the data was finer; that has its own error.
    precision = np.finfo(found.dtype).eps * high * 2
    assert np.abs(found - imdata.astype('f8')).max() <= (
        (high - low) / n_codes(dtype) / 2 * 1.001 + precision)


@pytest.mark.parametrize('dtype', INTEGERS)
def test_29_nodata_is_no_code(dtype):
    """NaN must be told from every valid value in every type."""
    imdata = np.linspace(0, 1, 100_000)
    imdata[::7] = NAN
    ints, quantization = quantize_image(imdata, quantize_dtype=dtype)
    assert ((ints == quantization['nodata']) == np.isnan(imdata)).all()
    assert not quantization['quant_min'] <= quantization['nodata'] <= quantization['quant_max']
    assert (np.isnan(dequantize(ints, quantization)) == np.isnan(imdata)).all()


@pytest.mark.parametrize('dtype', ['int64', 'uint64', 'float32', 'bool', 'complex64'])
def test_29_other_types_are_refused(dtype):
    """Types that float64 cannot fill, or that are no integers, must be refused."""
    with pytest.raises(OptionError, match='quantize_dtype'):
        quantize_image(np.zeros((2, 2)), 0, 1, dtype)


# ---- 30 --------------------------------------------------------------------

@pytest.mark.parametrize('options', [
    {}, {'quantize': False}, {'prob_format': 'png'}, {'prob_format': 'tif'}], ids=str)
def test_30_clipped_values_are_counted(make_dataset, make_manager, read, caplog, options):
    """Values outside the range were clipped silently; how many must be told."""
    dset = make_dataset()
    manager = make_manager(dset, 'x|y', **options)
    data = np.full((64, 64, 2), 0.5)
    data[:3, :10, 0], data[5, :7, 1], data[6, 0], data[7, 0] = 1.5, -0.25, NAN, INF
    data[8, :, 0], data[9, :, 0] = 0, 1
    manager.accumulate_image(1, None, data)
    with caplog.at_level(logging.WARNING, logger='cocoseg'):
        info = manager.finalize_image(1)
    assert info['n_clipped'] == 37 and info['n_invalid'] == 2
    assert any('37 values were clipped' in record.message for record in caplog.records)
    expected = np.clip(data, 0, 1)
    expected[6:8, 0] = NAN
    assert np.allclose(read(dset, 1, 'x|y'), expected, atol=1 / 254, equal_nan=True)


def test_30_rounding_is_not_clipping(make_dataset, make_manager, caplog):
    """A mean that passes 1 by a rounding error must not be reported."""
    dset = make_dataset()
    manager = make_manager(dset)
    for weight in (0.1, 0.7, 0.3, 1 / 3):
        manager.accumulate_image(1, None, np.ones((64, 64)),
                                 weights=np.random.RandomState(0).rand(64, 64) + weight)
    with caplog.at_level(logging.WARNING, logger='cocoseg'):
        assert manager.finalize_image(1)['n_clipped'] == 0
    assert caplog.records == []


def test_30_quantize_image_tells(caplog):
    """The bare function must tell as well."""
    with caplog.at_level(logging.INFO, logger='cocoseg'):
        quantize_image(np.array([0, 0.5, 2, NAN]), 0, 1)
    assert any('clipped 1 of 4' in record.message for record in caplog.records)


def test_30_stored_scale_decodes_like_kwcoco(make_dataset, make_manager, read, noise):
    """Scale and offset in the file must mean what the manifest entry means."""
    gdal, dset = require_gdal(), make_dataset()
    manager = make_manager(dset, expected_minmax=(-3, 9))
    manager.accumulate_image(1, None, noise() * 12 - 3)
    manager.finalize_image(1)
    # A band is gone with its dataset.
    dataset = gdal.Open(f'{manager.prob_dpath}/img1_x.tif')
    band = dataset.GetRasterBand(1)
    values = band.ReadAsArray() * band.GetScale() + band.GetOffset()
    assert np.allclose(values, read(dset, 1)[..., 0], atol=1e-5)
