"""The codec: half a step, for every dtype, as delayed_image reads it."""
import numpy as np
import pytest
from delayed_image.helpers import dequantize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cocoseg import Quantization, SoftStitcher, WindowGrid, quantize_image
from cocoseg.protocols import MemorySink

from ..strategies import QUANTIZE_DTYPES, SEEDS, spoil

SMALL_CODES = ('int8', 'uint8', 'int16', 'uint16')


@st.composite
def images(draw):
    """Draw a float image of one magnitude, with NaN and infinities."""
    dtype = draw(st.sampled_from(['float32', 'float64']))
    limit = draw(st.sampled_from([1e-20, 1e-4, 1.0, 255.0, 1e20]))
    # The oracle computes in orig_dtype; near the denormals its step would be inexact.
    entry = (st.floats(-1, 1, width=32).map(lambda value: value if abs(value) > 1e-6 else 0.0)
             | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1.0]))
    shape = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)
    return draw(hnp.arrays(dtype, shape, elements=entry)) * np.array(limit, dtype)


def get_code(quantization, quantize_dtype):
    """Return the Quantization that a dictionary describes."""
    return Quantization(quantization['orig_min'], quantization['orig_max'], quantize_dtype,
                        quantization['orig_dtype'])


def get_ulp(code):
    """Return the spacing of ``orig_dtype`` at the largest value of a code."""
    largest = max(abs(code.orig_min), abs(code.orig_max), code.orig_max - code.orig_min)
    return float(np.spacing(np.array(largest, code.orig_dtype)))


@pytest.mark.parametrize('quantize_dtype', QUANTIZE_DTYPES)
@given(images())
def test_the_error_is_at_most_half_a_step(quantize_dtype, imdata):
    ints, quantization = quantize_image(imdata, quantize_dtype=quantize_dtype)
    code = get_code(quantization, quantize_dtype)
    finite = np.isfinite(imdata)
    for decoded, n_ulp in [(code.decode(ints), 1), (dequantize(ints, quantization), 4)]:
        assert decoded.shape == imdata.shape and decoded.dtype == imdata.dtype
        assert np.array_equal(np.isfinite(decoded), finite)
        assert np.isnan(decoded[~finite]).all()
        error = np.abs(decoded[finite].astype('f8') - imdata[finite])
        assert (error <= code.step / 2 * (1 + 1e-9) + n_ulp * get_ulp(code)).all()


@pytest.mark.parametrize('quantize_dtype', QUANTIZE_DTYPES)
@given(images(), st.floats(-2, 2), st.floats(1e-12, 3) | st.just(0.0))
def test_outside_a_given_range_values_are_clipped(quantize_dtype, imdata, low, extent):
    code = Quantization(low, low + extent, quantize_dtype, 'float64')
    ints, n_clipped = code.encode(imdata)
    finite = np.isfinite(imdata)
    inside = np.clip(imdata[finite].astype('f8'), code.orig_min, code.orig_max)
    moved = np.abs(imdata[finite] - inside)
    assert n_clipped == (moved > code.step / 2).sum()
    error = np.abs(code.decode(ints)[finite] - inside)
    assert (error <= code.step / 2 * (1 + 1e-9) + get_ulp(code)).all()
    assert (ints[~finite] == code.nodata).all()
    assert (ints[finite] >= code.quant_min).all() and (ints[finite] <= code.quant_max).all()


@given(images())
def test_codes_rise_with_values(imdata):
    ints, _ = quantize_image(imdata)
    values, codes = imdata[np.isfinite(imdata)], ints[np.isfinite(imdata)]
    assert (np.diff(codes[np.argsort(values)]) >= 0).all()


@given(images())
def test_encoding_what_was_decoded_changes_nothing(imdata):
    ints, quantization = quantize_image(imdata)
    code = get_code(quantization, 'int16')
    again, n_clipped = code.encode(code.decode(ints))
    if code.step > 4 * get_ulp(code):
        assert np.array_equal(again, ints)
        assert n_clipped == 0


@pytest.mark.parametrize('quantize_dtype', SMALL_CODES)
@pytest.mark.parametrize('extent', [1e-4, 1.0, 1e6])
def test_every_code_is_used(quantize_dtype, extent):
    code = Quantization(0.25, 0.25 + extent, quantize_dtype)
    n_codes = code.quant_max - code.quant_min + 1
    ints, quantization = quantize_image(0.25 + extent * np.linspace(0, 1, 4 * n_codes),
                                        quantize_dtype=quantize_dtype)
    assert np.array_equal(np.unique(ints), np.arange(code.quant_min, code.quant_max + 1))
    assert quantization['quant_max'] == code.quant_max


@pytest.mark.parametrize('quantize_dtype', SMALL_CODES)
def test_errors_cancel(quantize_dtype):
    # Truncation would be off by half a step on average.
    imdata = np.random.RandomState(0).rand(200_000)
    ints, quantization = quantize_image(imdata, 0, 1, quantize_dtype)
    code = get_code(quantization, quantize_dtype)
    for decoded in (code.decode(ints), dequantize(ints, quantization)):
        assert abs((decoded - imdata).mean()) <= 0.01 * code.step


@pytest.mark.parametrize('declared', [False, True])
@given(st.sampled_from(QUANTIZE_DTYPES), st.sampled_from(['float32', 'float64']), SEEDS)
def test_blocks_are_encoded_as_the_finished_image_would_be(declared, quantize_dtype, dtype, seed):
    rng = np.random.RandomState(seed)
    grid = WindowGrid(rng.randint(1, 40, 2), window=11, overlap=rng.randint(0, 11))
    limits = (-1.0, 0.75)
    sink = MemorySink()
    windows = grid if declared else None
    fused = SoftStitcher(grid.shape, windows, sink=sink, expected_minmax=limits, dtype=dtype,
                         quantize_dtype=quantize_dtype, blocksize=8)
    plain = SoftStitcher(grid.shape, windows, dtype=dtype)
    for window in grid:
        data = spoil(rng.randn(*window.shape, 2), rng, 0.05)
        for stitcher in (fused, plain):
            stitcher.add(window, data)
    assert fused.finalize() is None
    expected, _ = quantize_image(plain.finalize(), *limits, quantize_dtype)
    actual = sink.as_array()
    assert actual.dtype == quantize_dtype
    assert np.array_equal(actual, expected)
