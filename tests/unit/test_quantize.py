"""The float <-> integer codec: ranges, refusals, and the dictionary form."""
import json
import logging

import numpy as np
import pytest

from cocoseg import Quantization, quantize_image
from cocoseg.errors import OptionError
from cocoseg.stitch.quantize import compute_range

from ..strategies import QUANTIZE_DTYPES

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize('dtype, expected', [
    ('int8', (0, 127, -128)), ('uint8', (1, 255, 0)), ('int16', (0, 32767, -9999)),
    ('uint16', (1, 65535, 0)), ('int32', (0, 2 ** 31 - 1, -9999)), ('uint32', (1, 2 ** 32 - 1, 0))])
def test_code_ranges(dtype, expected):
    code = Quantization(0, 1, dtype)
    assert (code.quant_min, code.quant_max, code.nodata) == expected
    ints, n_clipped = code.encode(np.array([0, 1, NAN, -INF]))
    assert ints.dtype == dtype and n_clipped == 0
    assert ints.tolist() == [expected[0], expected[1], expected[2], expected[2]]


@pytest.mark.parametrize('options', [
    {'quantize_dtype': 'int64'}, {'quantize_dtype': 'uint64'}, {'quantize_dtype': 'float32'},
    {'quantize_dtype': bool}, {'old_min': 2, 'old_max': 1}, {'old_min': NAN, 'old_max': 1},
    {'old_min': 0, 'old_max': INF}, {'old_max': NAN}, {'old_min': -1e308, 'old_max': 1e308},
])
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionError):
        quantize_image(np.zeros(3), **options)


@pytest.mark.parametrize('imdata', [np.zeros(3, complex), np.array(['a']), np.array([None])])
def test_data_that_is_not_real_is_refused(imdata):
    with pytest.raises(OptionError, match='real numbers'):
        quantize_image(imdata)


def test_without_data_the_range_must_be_given():
    expected = quantize_image(np.zeros(1), 0, 1)[1]
    assert quantize_image(None, 0, 1)['quant_max'] == expected['quant_max'] == 32767
    for limits in [(), (0,), (None, 1)]:
        with pytest.raises(OptionError, match='old_min and old_max'):
            quantize_image(None, *limits)


@pytest.mark.parametrize('values, expected', [
    ([1.0, 3.0, 2.0], (1, 3)), ([NAN, 3.0, INF, -INF], (3, 3)), ([NAN, INF], (0, 1)), ([], (0, 1))])
def test_compute_range(values, expected):
    for dtype in ('float16', 'float32', 'float64'):
        assert compute_range(np.array(values, dtype)) == expected


@pytest.mark.parametrize('old_min, old_max, expected', [
    (None, None, (-1, 2)), (0, None, (0, 2)), (None, 1, (-1, 1)), (0, 1, (0, 1)),
    (5, None, (5, 5)), (None, -5, (-5, -5)),  # all the data is beyond the only limit
])
def test_limits_that_are_not_given_come_from_the_data(old_min, old_max, expected):
    imdata = np.array([-1.0, 0.5, 2.0])
    ints, quantization = quantize_image(imdata, old_min, old_max)
    assert (quantization['orig_min'], quantization['orig_max']) == expected
    decoded = Quantization(*expected, orig_dtype='float64').decode(ints)
    assert np.allclose(decoded, np.clip(imdata, *expected), atol=1e-4)


def test_clipped_values_are_counted_and_logged(caplog):
    code = Quantization(0, 1)
    values = np.array([-1, 0, 1, 2, INF, NAN])
    assert code.encode(values)[1] == 2
    # Half a step beyond the range is no more than rounding does.
    assert code.encode(np.array([1 + 0.4 * code.step, -0.4 * code.step]))[1] == 0
    assert code.encode(np.array([1 + 0.6 * code.step, -0.6 * code.step]))[1] == 2
    with caplog.at_level(logging.INFO, 'cocoseg'):
        quantize_image(values, 0, 1)
    assert 'clipped 2 of 6 values' in caplog.text


@pytest.mark.parametrize('value', [0.0, 1.0, -3.25, 0.1, 1e30, 1e-40])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_constant_images_are_exact(value, dtype):
    imdata = np.full((3, 4), value, dtype)
    imdata[0, 0] = NAN
    for quantize_dtype in QUANTIZE_DTYPES:
        ints, quantization = quantize_image(imdata, quantize_dtype=quantize_dtype)
        code = Quantization(quantization['orig_min'], quantization['orig_max'], quantize_dtype,
                            quantization['orig_dtype'])
        decoded = code.decode(ints)
        assert decoded.dtype == dtype
        assert np.array_equal(decoded, imdata, equal_nan=True)


@pytest.mark.parametrize('imdata', [
    np.full((2, 2), NAN), np.full((2, 2), INF, 'f4'), np.zeros((0, 3)), np.array(NAN)])
def test_images_without_a_value_are_all_nodata(imdata):
    ints, quantization = quantize_image(imdata)
    assert ints.shape == imdata.shape
    assert (ints == quantization['nodata']).all()
    assert np.isfinite([quantization['orig_min'], quantization['orig_max']]).all()


@pytest.mark.parametrize('dtype', [
    'bool', 'uint8', 'int8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'float16', 'float32',
    'float64', '>f4', '>f8', '>i2', 'longdouble'])
def test_any_real_dtype_can_be_quantized(dtype):
    imdata = np.array([[0, 1], [1, 0]], dtype)
    ints, quantization = quantize_image(imdata)
    assert ints.tolist() == [[0, 32767], [32767, 0]]
    assert (quantization['orig_min'], quantization['orig_max']) == (0, 1)


def test_any_layout_can_be_quantized():
    imdata = np.random.RandomState(0).rand(6, 8, 3)
    for view in (imdata[::2, ::-1], imdata.T, np.asfortranarray(imdata), imdata[0, 0, 0]):
        expected, _ = quantize_image(np.array(view), 0, 1)
        assert np.array_equal(quantize_image(view, 0, 1)[0], expected)


def test_the_data_is_not_modified():
    imdata = np.array([NAN, INF, 5, -5, 0.5], 'f4')
    before = imdata.copy()
    imdata.flags.writeable = False
    quantize_image(imdata, 0, 1)
    assert np.array_equal(imdata, before, equal_nan=True)


@pytest.mark.parametrize('limits', [
    (0, 1), (0.0, 1.5), (np.float32(0), np.float32(1)), (np.float64(0), np.int64(3))])
def test_the_dictionary_can_be_written_as_json(limits):
    quantization = quantize_image(np.zeros((2, 2), 'f4'), *limits)[1]
    assert json.loads(json.dumps(quantization)) == {
        'orig_dtype': 'float32', 'orig_min': limits[0], 'orig_max': limits[1],
        'quant_min': 0, 'quant_max': 32767, 'nodata': -9999}
    json.dumps(quantize_image(np.eye(2, dtype='f4'))[1])


@pytest.mark.parametrize('dtype', QUANTIZE_DTYPES)
def test_scale_and_offset_as_gdal_uses_them(dtype):
    code = Quantization(-2.0, 3.0, dtype)
    scale, offset = code.scale_offset
    codes = np.array([code.quant_min, code.quant_max])
    assert np.allclose(codes * scale + offset, [-2, 3], rtol=1e-12)
    assert np.allclose(code.decode(codes.astype(dtype)), [-2, 3], rtol=1e-6)


def test_scale_and_offset_of_a_constant():
    scale, offset = Quantization(7.5, 7.5, 'uint8').scale_offset
    assert scale != 0
    assert 1 * scale + offset == 7.5


def test_a_range_of_denormals_is_not_an_overflow():
    ints, quantization = quantize_image(np.array([0, 5e-324]))
    decoded = Quantization(quantization['orig_min'], quantization['orig_max'],
                           orig_dtype='float64').decode(ints)
    assert np.abs(decoded - [0, 5e-324]).max() <= 1e-323
