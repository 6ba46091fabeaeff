"""The extra layers: each kernel against plain numpy, formats, and refusals."""
import json
import logging
import math

import numpy as np
import pytest

from cocoseg import Quantization
from cocoseg.errors import BandCountError, OptionError, WindowShapeError
from cocoseg.stitch import layer_kernels
from cocoseg.stitch.layers import (ClassMap, Disagreement, Layer, LayerFormat, ThresholdMask,
                                   get_layer)

from ..strategies import spoil

BANDS = (1, 2, 3, 5)
DTYPES = ('float32', 'float64')
NAN, INF = np.nan, np.inf


# ---- formats and options ---------------------------------------------------

@pytest.mark.parametrize('n_bands, expected', [
    (2, ('uint8', 255)), (255, ('uint8', 255)), (256, ('uint16', 65535)),
    (65535, ('uint16', 65535))])
def test_the_format_of_a_class_map(n_bands, expected):
    assert ClassMap().describe(n_bands) == LayerFormat(expected[0], 1, expected[1])


@pytest.mark.parametrize('n_bands, text', [(1, 'at least 2 bands'), (65536, 'at most 65535')])
def test_a_class_map_refuses_what_it_cannot_tell(n_bands, text):
    with pytest.raises(OptionError, match=text):
        ClassMap().describe(n_bands)


def test_a_class_map_of_one_band_is_refused_with_the_data_too():
    with pytest.raises(OptionError, match='at least 2 bands'):
        ClassMap().compute(np.zeros((2, 2, 1)))


@pytest.mark.parametrize('threshold, expected', [
    (1, 1.0), (np.float32(0.5), 0.5), (np.array(2), 2.0), ([1, 2], (1.0, 2.0)),
    (np.array([0.5, 0.25], 'f4'), (0.5, 0.25)), ((3,), (3.0,))])
def test_thresholds_are_kept_as_plain_numbers(threshold, expected):
    layer = ThresholdMask(threshold)
    assert layer == ThresholdMask(expected) and hash(layer) == hash(ThresholdMask(expected))
    assert json.dumps(layer.threshold) == json.dumps(expected)


@pytest.mark.parametrize('threshold', [
    NAN, INF, None, '0.5', 'x', 1j, (), [], (0.5, NAN), [[1, 2]], 10 ** 400])
def test_wrong_thresholds_are_refused(threshold):
    with pytest.raises(OptionError, match='threshold'):
        ThresholdMask(threshold)


def test_thresholds_per_band_are_counted():
    assert ThresholdMask((0.1, 0.2)).describe(2) == LayerFormat('uint8', 2, 255)
    assert ThresholdMask(0.1).describe(7) == LayerFormat('uint8', 7, 255)
    for threshold in [(0.1, 0.2), (0.1,)]:
        with pytest.raises(OptionError, match='3 bands'):
            ThresholdMask(threshold).describe(3)


@pytest.mark.parametrize('max_value', [0, -1, NAN, INF, '1', [1]])
def test_wrong_limits_of_disagreement_are_refused(max_value):
    with pytest.raises(OptionError, match='max_value'):
        Disagreement(max_value)


@pytest.mark.parametrize('max_value, codec, expected', [
    (None, Quantization(-1, 3, 'uint8'), Quantization(0.0, 2.0, 'uint8')),
    (0.5, Quantization(-1, 3, 'uint16'), Quantization(0.0, 0.5, 'uint16')),
    (4, None, Quantization(0.0, 4.0, 'int16')),
    (None, Quantization(7, 7), Quantization(0.0, 0.0, 'int16')),
])
def test_the_code_of_disagreement(max_value, codec, expected):
    form = Disagreement(max_value).describe(3, codec)
    assert form == LayerFormat(expected.dtype, 3, expected.nodata, expected)
    assert form.quantization == expected.as_dict()


def test_disagreement_without_a_limit_is_float():
    form = Disagreement().describe(3)
    assert (form.dtype, form.n_bands, form.quantization) == ('float32', 3, None)
    assert math.isnan(form.nodata)


@pytest.mark.parametrize('spec, expected', [
    ('class', ClassMap()), ('mask', ThresholdMask(0.5)), ('disagreement', Disagreement()),
    (ThresholdMask(2), ThresholdMask(2))])
def test_get_layer(spec, expected):
    layer = get_layer(spec)
    assert layer == expected and isinstance(layer, Layer)
    assert layer.needs_deviations == (layer.name == 'disagreement')
    assert layer.overviews == ('average' if layer.needs_deviations else 'nearest')


@pytest.mark.parametrize('spec', ['mean', '', None, 3, ClassMap, ('class',)])
def test_get_layer_names_what_there_is(spec):
    with pytest.raises(OptionError, match='class.*disagreement.*mask'):
        get_layer(spec)


def test_a_layer_of_the_user_is_taken_as_it_is():
    class Half:
        name, needs_deviations, overviews = 'half', False, 'average'

        def describe(self, n_bands, codec=None):
            return LayerFormat('float32', n_bands, math.nan)

        def compute(self, mean, weights=None, deviations=None, codec=None):
            return mean / 2
    layer = Half()
    assert get_layer(layer) is layer


# ---- from a finished block -------------------------------------------------

def make_mean(shape, dtype, seed=0):
    """Return a mean with ties, bands and whole pixels without data."""
    rng = np.random.RandomState(seed)
    mean = spoil(rng.randint(-3, 4, shape).astype(dtype), rng, 0.2)
    mean[rng.rand(*shape[:2]) < 0.1] = np.nan
    return mean


@pytest.mark.parametrize('n_bands', [2, 3, 5, 300])
@pytest.mark.parametrize('dtype', DTYPES)
def test_class_map(dtype, n_bands):
    mean = make_mean((13, 17, n_bands), dtype, n_bands)
    valid = np.isfinite(mean)
    form = ClassMap().describe(n_bands)
    expected = np.where(valid, mean, -INF).argmax(axis=2)
    expected = np.where(valid.any(axis=2), expected, form.nodata)
    actual = ClassMap().compute(mean)
    assert actual.dtype == form.dtype and actual.shape == (13, 17, 1)
    assert np.array_equal(actual[..., 0], expected)


@pytest.mark.parametrize('dtype', DTYPES)
def test_classes_of_extreme_values(dtype):
    info = np.finfo(dtype)
    mean = np.array([[[-INF, -info.max], [info.max, INF], [-INF, INF], [-0.0, 0.0],
                      [0.0, info.smallest_subnormal], [NAN, -1]]], dtype)
    assert ClassMap().compute(mean)[0, :, 0].tolist() == [1, 0, 255, 0, 1, 1]


@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_threshold_mask(dtype, n_bands):
    mean = make_mean((13, 17, n_bands), dtype, n_bands)
    for threshold in (1.0, tuple(range(-1, n_bands - 1))):
        expected = np.where(np.isfinite(mean), mean > np.array(threshold, dtype), 255)
        actual = ThresholdMask(threshold).compute(mean)
        assert actual.dtype == 'uint8'
        assert np.array_equal(actual, expected)


def test_a_threshold_is_rounded_as_numpy_does():
    # The float32 next to 0.1 is larger than the float64 next to 0.1.
    mean = np.full((1, 1, 1), 0.1, 'f4')
    assert ThresholdMask(0.1).compute(mean).item() == int((mean > 0.1).item()) == 0
    assert ThresholdMask(1e300).compute(mean).item() == 0
    assert ThresholdMask(-1e300).compute(mean).item() == 1


def make_deviations(n_bands, dtype, per_band):
    """Return (deviations, weights) with samples that no window covered."""
    rng = np.random.RandomState(n_bands)
    shape = (11, 19, n_bands)
    weights = rng.uniform(0.1, 3, shape if per_band else shape[:2])
    weights *= rng.rand(*weights.shape) > 0.2
    deviations = rng.rand(*shape) * (np.atleast_3d(weights) > 0)
    return deviations.astype(dtype), weights.astype(dtype)


@pytest.mark.parametrize('per_band', [False, True])
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_disagreement(dtype, n_bands, per_band):
    deviations, weights = make_deviations(n_bands, dtype, per_band)
    mean = np.zeros(deviations.shape, dtype)
    totals = np.atleast_3d(weights).astype('f8')
    with np.errstate(invalid='ignore'):
        expected = np.sqrt(deviations.astype('f8') / totals)
    actual = Disagreement().compute(mean, weights, deviations)
    assert actual.dtype == 'float32'
    assert np.array_equal(np.isnan(actual), np.broadcast_to(totals == 0, actual.shape))
    np.testing.assert_allclose(actual, expected, rtol=3e-7)
    form = Disagreement().describe(n_bands, Quantization(0, 4, 'uint16'))
    codes = Disagreement().compute(mean, weights, deviations, Quantization(0, 4, 'uint16'))
    assert codes.dtype == form.dtype
    assert np.array_equal(codes == form.nodata, np.isnan(expected))
    assert np.nanmax(expected) > 2
    np.testing.assert_allclose(form.codec.decode(codes), np.minimum(expected, 2),
                               atol=form.codec.step * 0.5001, rtol=1e-6)


def test_deviations_that_overflowed_are_nodata():
    deviations = np.array([[[INF], [NAN], [0], [1e60]]])
    actual = Disagreement().compute(np.zeros((1, 4, 1)), np.ones((1, 4)), deviations)
    assert np.isnan(actual.ravel()).tolist() == [True, True, False, False]
    # An area of interest takes weights away, not deviations.
    assert np.isnan(Disagreement().compute(np.ones((1, 1, 1)), np.zeros((1, 1)),
                                           np.ones((1, 1, 1))))
    deviations = np.array([[[1e300]]])
    # More than the float32 of the raster can hold.
    assert np.isnan(Disagreement().compute(deviations, np.ones((1, 1)), deviations))
    codes = Disagreement(1).compute(deviations, np.ones((1, 1)), deviations)
    assert codes.item() == 32767


def test_disagreements_beyond_the_limit_are_logged(caplog):
    ones = np.ones((1, 2, 1))
    with caplog.at_level(logging.INFO, 'cocoseg'):
        codes = Disagreement(0.5).compute(ones, ones, ones)
        Disagreement(1).compute(ones, ones, ones)
    assert (codes == 32767).all()
    assert [record.getMessage() for record in caplog.records] == [
        'clipped 2 of 2 disagreements to 0.5']


@pytest.mark.parametrize('options, error, text', [
    ({}, OptionError, 'needs weights and deviations'),
    ({'weights': np.ones((2, 3))}, OptionError, 'needs weights and deviations'),
    ({'weights': np.ones((2, 3)), 'deviations': np.ones((2, 3, 2))}, WindowShapeError,
     'deviations'),
    ({'weights': np.ones((2, 3)), 'deviations': np.ones((2, 3, 4), int)}, WindowShapeError,
     'deviations'),
    ({'weights': np.ones((3, 2)), 'deviations': np.ones((2, 3, 4))}, WindowShapeError, 'weights'),
    ({'weights': np.ones((2, 3, 1)), 'deviations': np.ones((2, 3, 4))}, WindowShapeError,
     'weights')])
def test_disagreement_checks_what_it_gets(options, error, text):
    with pytest.raises(error, match=text):
        Disagreement().compute(np.ones((2, 3, 4)), **options)


@pytest.mark.parametrize('layer', [ClassMap(), ThresholdMask(), Disagreement()])
@pytest.mark.parametrize('mean, error', [
    (np.zeros((2, 2)), WindowShapeError), (np.zeros((2, 2, 2), int), WindowShapeError),
    (np.zeros((2, 2, 2), 'f2'), WindowShapeError), (np.zeros((2, 2, 0)), BandCountError)])
def test_a_wrong_mean_is_refused(layer, mean, error):
    with pytest.raises(error):
        layer.compute(mean, np.ones((2, 2)), mean)


@pytest.mark.parametrize('layer', [ClassMap(), ThresholdMask((0, 1, 2)), Disagreement()])
def test_any_layout_is_read_and_none_is_modified(layer):
    rng = np.random.RandomState(0)
    mean, deviations = rng.rand(2, 8, 6, 6)
    weights = rng.rand(8, 6)
    views = [array[::2, ::-1, ::2] for array in (mean, deviations)]
    views.insert(1, weights[::2, ::-1])
    plain = [array.copy() for array in views]
    for array in (mean, deviations, weights, *plain):
        array.flags.writeable = False
    expected = layer.compute(*plain)
    assert expected.flags.c_contiguous and expected.flags.writeable
    for other in (views, [np.asfortranarray(array) for array in plain],
                  [array.astype('>f8') for array in plain]):
        assert np.array_equal(layer.compute(*other), expected)


@pytest.mark.parametrize('layer', [ClassMap(), ThresholdMask(), Disagreement()])
def test_an_empty_block_gives_an_empty_layer(layer):
    empty = np.zeros((0, 3, 2))
    actual = layer.compute(empty, empty[..., 0], empty)
    assert actual.shape == (0, 3, layer.describe(2).n_bands)


# ---- while windows come ----------------------------------------------------

# Who is left out where a value is not finite; the weights; the layout of the data.
KINDS = ('pixel', 'pixel-dense', 'pixel-first', 'band', 'band-dense', 'band-dense-first')


class Canvas:
    """A half-filled canvas of random sums, weights and squares, and a window for it."""

    shape = (24, 90)

    def __init__(self, rng, n_bands, dtype, per_band=False):
        height, width = self.shape
        self.n_bands = n_bands
        plane = (height, width * (n_bands if per_band else 1))
        weights = rng.uniform(0.1, 1, plane) * (rng.rand(*plane) > 0.2)
        totals = weights if per_band else np.repeat(weights, n_bands, axis=1)
        self.weights = weights.astype(dtype)
        self.sums = (rng.randn(height, width * n_bands) * totals).astype(dtype)
        self.squares = rng.rand(height, width * n_bands).astype(dtype)

    def add(self, kind, place, data, part, weights):
        """Run the kernel of a kind; ``part`` is (dy, dx, height, width) of the window."""
        flat = data.reshape(1, len(data), -1)
        if kind.endswith('first'):
            flat = np.ascontiguousarray(data.transpose(2, 0, 1))
        arguments = (self.squares, self.sums, self.weights, *place, flat, *part)
        if 'dense' in kind:
            rows, columns = weights
            layer_kernels._kernel_add_deviation_dense(*arguments, rows[:, None] * columns)
        else:
            layer_kernels._kernel_add_deviation(*arguments, *weights)

    def copy(self):
        """Return float64 (squares, sums, totals) of shape (H, W, C)."""
        shape = (*self.shape, self.n_bands)
        totals = self.weights
        if totals.shape != self.sums.shape:
            totals = np.repeat(totals, self.n_bands, axis=1)
        return [array.astype('f8').reshape(shape) for array in (self.squares, self.sums, totals)]


def reference_add_deviation(canvas, kind, place, data, window_weights):
    """Return the squares after a window, in float64; data (h, w, C)."""
    squares, sums, totals = canvas.copy()
    valid = np.isfinite(data)
    if kind.startswith('pixel'):
        valid = np.broadcast_to(valid.all(axis=2, keepdims=True), data.shape)
    old, new = totals[place], window_weights[..., None].astype('f8')
    valid = valid & (old > 0) & (new > 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        distance = np.where(valid, data, 0) - sums[place] / old
        term = new * old / (old + new) * distance ** 2
    squares[place] += np.where(valid, term, 0)
    return squares


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_add_deviation(dtype, n_bands, kind):
    rng = np.random.RandomState(n_bands)
    tolerance = {'float32': 2e-5, 'float64': 1e-13}[dtype]
    for fraction in (0, 0, 0.02, 0.2, 1):
        canvas = Canvas(rng, n_bands, dtype, kind.startswith('band'))
        height, width = rng.randint(1, 20), rng.randint(1, 80)
        y0, x0 = rng.randint(0, 24 - height), rng.randint(0, 90 - width)
        dy, dx, below, right = rng.randint(0, 4, 4)
        shape = (dy + height + below, dx + width + right)
        data = spoil(rng.randn(*shape, n_bands).astype(dtype), rng, fraction)
        rows, columns = (rng.rand(size).astype(dtype) for size in shape)
        rows[rng.rand(shape[0]) < 0.1] = 0
        place = (slice(y0, y0 + height), slice(x0, x0 + width))
        part = (slice(dy, dy + height), slice(dx, dx + width))
        expected = reference_add_deviation(canvas, kind, place, data[part],
                                           (rows[:, None] * columns)[part])
        _, *before = canvas.copy()
        canvas.add(kind, (y0, x0), data, (dy, dx, height, width), (rows, columns))
        actual, *after = canvas.copy()
        assert np.array_equal(before, after)
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('value', [NAN, INF, -INF])
def test_one_bad_value_adds_no_deviation_wherever_it_is(value, kind):
    for width, n_bands in [(1, 1), (3, 1), (8, 2), (17, 3), (70, 1)]:
        canvas = Canvas(np.random.RandomState(0), n_bands, 'f4')
        ones = np.ones(1, 'f4'), np.ones(width, 'f4')
        canvas.weights = np.ones((24, 90 * (n_bands if kind.startswith('band') else 1)), 'f4')
        canvas.sums[...] = 0
        for position in range(width * n_bands):
            data = np.ones((1, width, n_bands), 'f4')
            data.reshape(-1)[position] = value
            canvas.squares[...] = 0
            canvas.add(kind, (0, 0), data, (0, 0, 1, width), ones)
            missing = np.zeros((width, n_bands), bool)
            missing.reshape(-1)[position] = True
            if kind.startswith('pixel'):
                missing |= missing.any(axis=1, keepdims=True)
            assert np.array_equal(canvas.squares[0, :missing.size], ~missing.reshape(-1) * 0.5)


@pytest.mark.parametrize('kind', KINDS)
def test_a_window_may_be_cut_into_blocks(kind):
    rng = np.random.RandomState(0)
    whole, cut = (Canvas(np.random.RandomState(1), 3, 'f4', kind.startswith('band'))
                  for _ in range(2))
    data = spoil(rng.randn(20, 70, 3).astype('f4'), rng, 0.01)
    rows, columns = rng.rand(20).astype('f4'), rng.rand(70).astype('f4')
    whole.add(kind, (2, 5), data, (0, 0, 20, 70), (rows, columns))
    for y, height in ((0, 7), (7, 13)):
        for x, width in ((0, 33), (33, 37)):
            cut.add(kind, (2 + y, 5 + x), data, (y, x, height, width), (rows, columns))
    assert np.array_equal(whole.squares, cut.squares)


@pytest.mark.parametrize('kind', KINDS)
def test_a_window_without_weight_adds_nothing_whatever_it_says(kind):
    canvas = Canvas(np.random.RandomState(0), 1, 'f4')
    before = canvas.squares.copy()
    canvas.weights[...], canvas.sums[...] = 1, -np.finfo('f4').max
    data = np.full((2, 3, 1), np.finfo('f4').max)
    canvas.add(kind, (0, 0), data, (0, 0, 2, 3), (np.zeros(2, 'f4'), np.ones(3, 'f4')))
    assert np.array_equal(canvas.squares, before)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_tiny_and_huge_weights_do_not_under_or_overflow(dtype, kind):
    canvas = Canvas(np.random.RandomState(0), 1, dtype)
    for weight in (np.finfo(dtype).tiny, 1, np.finfo(dtype).max / 4):
        canvas.squares[...] = 0
        canvas.weights[...] = weight
        canvas.sums[...] = weight
        canvas.add(kind, (0, 0), np.full((1, 1, 1), 2, dtype), (0, 0, 1, 1),
                   (np.ones(1, dtype), np.full(1, weight, dtype)))
        assert canvas.squares[0, 0] == np.array(weight, dtype) / 2
