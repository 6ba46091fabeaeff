"""Extra layers of a stitcher, and NaN judged band by band, against a float64 reference."""
import math

import numpy as np
import pytest

from cocoseg import BlendPlan, BlockGrid, Quantization, SoftStitcher, Window, WindowGrid
from cocoseg.errors import OptionError
from cocoseg.protocols import FailingSink, MemorySink
from cocoseg.stitch.layers import ClassMap, Disagreement, LayerFormat, ThresholdMask

from ..strategies import blend_model, spoil

GRID = WindowGrid((35, 41), window=14, overlap=6)
BLOCKS = BlockGrid(GRID.shape, 9)
BANDS = 3
# A float32 mean of values up to 1, from at most 9 windows.
TOLERANCE = 2e-6
# The largest deviation from the mean that the documentation allows to be rounding.
ROUNDING = 2 * (9 + 2) * float(np.finfo('f4').eps)


def make_parts(seed=0, *, fraction=0.0, weighted=(), missing=(), order=None):
    """Return (window, data, weights or None) of the windows that come."""
    rng = np.random.RandomState(seed)
    parts = []
    for index, window in enumerate(GRID):
        data = spoil(rng.rand(*window.shape, BANDS).astype('f4'), rng, fraction)
        weights = rng.rand(*window.shape) + 0.1 if index in weighted else None
        parts.append((window, data, weights))
    order = range(len(parts)) if order is None else order
    return [parts[index] for index in order if index not in missing]


CASES = {
    'plain': {},
    'reversed': {'order': range(len(GRID))[::-1]},
    'holes': {'fraction': 0.05},
    'many holes': {'fraction': 0.6},
    'weights': {'weighted': (0, 7, 8)},
    'missing': {'missing': (3, 4, 5, 12)},
    'late holes': {'fraction': 0.02, 'weighted': (9,), 'order': [*range(9), *range(9, 20)[::-1]]},
}


class Reference:
    """What should come out of some windows, in float64."""

    def __init__(self, parts, per_band=False):
        plan = BlendPlan(GRID)
        shape = (len(parts), *GRID.shape, BANDS)
        values, weights = np.zeros(shape), np.zeros(shape)
        for value, weight, (window, data, given) in zip(values, weights, parts):
            valid = np.isfinite(data)
            if not per_band:
                valid = np.broadcast_to(valid.all(axis=2, keepdims=True), valid.shape)
            if given is None:
                given = np.outer(*plan.get_weights(window)).astype('f8')
            value[window.slices] = np.where(valid, data, 0)
            weight[window.slices] = valid * given[..., None]
        with np.errstate(invalid='ignore'):
            self.mean = (values * weights).sum(axis=0) / weights.sum(axis=0)
            self.spread = np.sqrt((weights * (values - self.mean) ** 2).sum(axis=0)
                                  / weights.sum(axis=0))
        self.is_nodata = np.isnan(self.mean)

    def check_mean(self, actual, codec=None):
        if codec is None:
            np.testing.assert_allclose(actual, self.mean, rtol=0, atol=TOLERANCE)
            return
        codes, _ = codec.encode(self.mean)
        assert actual.dtype == codec.dtype
        assert np.array_equal(actual == codec.nodata, self.is_nodata)
        limit = max(1, math.ceil(TOLERANCE / codec.step))
        assert np.abs(actual.astype(int) - codes).max() <= limit

    def check_classes(self, actual):
        """Compare a class map, except where two bands are as good as the same."""
        assert actual.dtype == 'uint8' and actual.shape[2] == 1
        values = np.where(self.is_nodata, -np.inf, self.mean)
        classes = np.where(self.is_nodata.all(axis=2), 255, values.argmax(axis=2))
        first, second = np.sort(values, axis=2)[..., :-3:-1].transpose(2, 0, 1)
        with np.errstate(invalid='ignore'):
            is_tie = first - second < 2 * TOLERANCE
        assert np.array_equal(actual[..., 0][~is_tie], classes[~is_tie])
        assert np.array_equal(actual[..., 0] == 255, classes == 255)
        assert is_tie.mean() < 0.01

    def check_mask(self, actual, threshold):
        assert actual.dtype == 'uint8' and actual.shape == self.mean.shape
        assert np.array_equal(actual == 255, self.is_nodata)
        with np.errstate(invalid='ignore'):
            is_clear = np.abs(self.mean - threshold) > TOLERANCE
            expected = self.mean > threshold
        assert np.array_equal(actual[is_clear], expected[is_clear])
        assert is_clear.sum() > 0.99 * (~self.is_nodata).sum()

    def check_spread(self, actual, codec=None):
        tolerance = ROUNDING
        if codec is not None:
            assert actual.dtype == codec.dtype
            actual, tolerance = codec.decode(actual), tolerance + codec.step / 2
        assert actual.dtype == 'float32'
        np.testing.assert_allclose(actual, self.spread, rtol=0, atol=tolerance)
        assert np.nanmax(self.spread) > 0.3


def stitch(parts, layers, sink=None, **options):
    """Return (stitcher, mean, layer sinks) after the end."""
    sinks = {layer: MemorySink() for layer in layers}
    sink = MemorySink() if sink is None else sink
    stitcher = SoftStitcher((*GRID.shape, BANDS), GRID, sink=sink, layers=sinks, blocksize=9,
                            **options)
    for part in parts:
        stitcher.add(*part)
    stitcher.finalize()
    every = {block.core for block in BLOCKS}
    assert set(sink.blocks) == every
    assert all(set(one.blocks) == every for one in sinks.values())
    return stitcher, sink.as_array(), {layer: one.as_array() for layer, one in sinks.items()}


# ---- all layers together ---------------------------------------------------------

@pytest.mark.parametrize('minmax', [None, (0, 1), (-1, 2)])
@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('engine', ['auto', 'general'])
def test_layers_of_the_mean(engine, name, minmax):
    parts = make_parts(**CASES[name])
    masks = ThresholdMask(), ThresholdMask((0.3, 0.5, 0.7))
    stitcher, mean, found = stitch(parts, ['class', *masks], expected_minmax=minmax, engine=engine)
    assert stitcher.engine == ('carry' if (engine, name) == ('auto', 'plain') else 'general')
    reference = Reference(parts)
    reference.check_mean(mean, None if minmax is None else Quantization(*minmax))
    reference.check_classes(found['class'])
    reference.check_mask(found[masks[0]], 0.5)
    reference.check_mask(found[masks[1]], [0.3, 0.5, 0.7])


@pytest.mark.parametrize('minmax', [None, (0, 1)])
@pytest.mark.parametrize('nan_policy', ['pixel', 'band'])
@pytest.mark.parametrize('name', CASES)
def test_layers_with_the_spread(name, nan_policy, minmax):
    parts = make_parts(**CASES[name])
    layer = Disagreement()
    stitcher, mean, found = stitch(parts, ['class', 'mask', layer], expected_minmax=minmax,
                                   nan_policy=nan_policy)
    assert stitcher.engine == 'general'
    reference = Reference(parts, nan_policy == 'band')
    codec = None if minmax is None else Quantization(*minmax)
    reference.check_mean(mean, codec)
    reference.check_classes(found['class'])
    reference.check_mask(found['mask'], 0.5)
    reference.check_spread(found[layer], layer.describe(BANDS, codec).codec)


@pytest.mark.parametrize('options', [
    {'num_threads': 3}, {'memory_budget': 2000}, {'memory_budget': 0, 'num_threads': 2},
    {'dtype': 'float64'}, {'memmap': True}])
def test_layers_with_other_options(options):
    parts = make_parts(**CASES['late holes'])
    _, mean, found = stitch(parts, ['class', 'mask', 'disagreement'], **options)
    reference = Reference(parts)
    reference.check_mean(mean)
    reference.check_classes(found['class'])
    reference.check_mask(found['mask'], 0.5)
    reference.check_spread(found['disagreement'])


@pytest.mark.parametrize('codec', [Quantization(0, 1, 'uint8'), Quantization(-2, 3, 'int32')])
def test_the_spread_as_codes_of_other_dtypes(codec):
    parts = make_parts()
    limits = {'expected_minmax': (codec.orig_min, codec.orig_max), 'quantize_dtype': codec.dtype}
    layers = Disagreement(), Disagreement(0.5)
    _, mean, found = stitch(parts, layers, **limits)
    reference = Reference(parts)
    reference.check_mean(mean, codec)
    for layer in layers:
        reference.check_spread(found[layer], layer.describe(BANDS, codec).codec)


def test_values_clipped_with_layers_are_counted_once():
    parts, minmax = make_parts(), (0.3, 0.6)
    expected = Quantization(*minmax).encode(Reference(parts).mean)[1]
    for layers in ([], ['class'], ['class', 'disagreement']):
        stitcher, _, _ = stitch(parts, layers, expected_minmax=minmax)
        assert abs(stitcher.n_clipped - expected) <= 2 and expected > 100


def test_layers_leave_as_soon_as_a_block_is_final():
    sinks = {name: MemorySink() for name in ('class', 'mask', 'disagreement')}
    sink = MemorySink()
    stitcher = SoftStitcher((*GRID.shape, BANDS), GRID, sink=sink, layers=sinks, blocksize=9)
    parts = make_parts()
    for number, part in enumerate(parts, 1):
        stitcher.add(*part)
        final = {block.core for block in BLOCKS if all(
            block.core.intersect(window).is_empty for window, _, _ in parts[number:])}
        assert set(sink.blocks) == final
        assert all(set(one.blocks) == final for one in sinks.values())


def test_layers_of_windows_that_were_not_declared():
    parts = make_parts(fraction=0.05)
    sinks = {name: MemorySink() for name in ('class', 'disagreement')}
    sink = MemorySink()
    stitcher = SoftStitcher((*GRID.shape, BANDS), sink=sink, layers=sinks, blocksize=9)
    for window, data, _ in parts:
        stitcher.add(window, data)
        stitcher.advance(window.y0)
    stitcher.finalize()
    ones = [(window, data, np.ones(window.shape)) for window, data, _ in parts]
    reference = Reference(ones)
    reference.check_mean(sink.as_array())
    reference.check_classes(sinks['class'].as_array())
    reference.check_spread(sinks['disagreement'].as_array())


# ---- failures -----------------------------------------------------------------------

@pytest.mark.parametrize('engine', ['carry', 'general'])
@pytest.mark.parametrize('failures', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 3, 4), (0, 9, 2)])
def test_a_block_goes_once_to_each_sink_whatever_fails(engine, failures):
    parts = make_parts()
    names = ['class', 'mask' if engine == 'carry' else 'disagreement']
    # These sinks refuse a block that comes twice.
    mean, *others = [FailingSink(number) for number in failures]
    stitcher = SoftStitcher((*GRID.shape, BANDS), GRID, sink=mean,
                            layers=dict(zip(names, others)), blocksize=9)
    n_failed = 0
    for part in parts:
        try:
            stitcher.add(*part)
        except OSError:
            n_failed += 1
        # A block reaches the sinks in their order.
        assert set(mean.blocks) >= set(others[0].blocks) >= set(others[1].blocks)
        assert stitcher.engine == engine
    assert stitcher.is_complete
    while any(len(sink.blocks) < len(BLOCKS) for sink in (mean, *others)):
        try:
            stitcher.finalize()
        except OSError:
            n_failed += 1
    assert n_failed == sum(failures)
    assert stitcher.nbytes == 0
    reference = Reference(parts)
    reference.check_mean(mean.as_array())
    reference.check_classes(others[0].as_array())
    if engine == 'carry':
        reference.check_mask(others[1].as_array(), 0.5)
    else:
        reference.check_spread(others[1].as_array())


@pytest.mark.parametrize('engine', ['auto', 'general'])
@pytest.mark.parametrize('minmax', [None, (0.4, 0.6)])
def test_clipped_values_of_refused_blocks_are_counted_once(engine, minmax):
    parts = make_parts()
    counts = []
    for failures in ((0, 0), (5, 3)):
        sinks = [FailingSink(number) for number in failures]
        stitcher = SoftStitcher((*GRID.shape, BANDS), GRID, sink=sinks[0], engine=engine,
                                layers={'mask': sinks[1]}, blocksize=9, expected_minmax=minmax)
        for part in parts:
            try:
                stitcher.add(*part)
            except OSError:
                assert sum(failures)
        while len(sinks[1].blocks) < len(BLOCKS):
            try:
                stitcher.finalize()
            except OSError:
                assert sum(failures)
        counts.append(stitcher.n_clipped)
    assert counts[0] == counts[1]
    assert (counts[0] > 0) == (minmax is not None)


class Range:
    """A layer of a user: the largest band minus the smallest, and what it was given."""

    name, needs_deviations, overviews = 'range', False, 'average'

    def __init__(self, n_failures=0):
        self.given, self.n_failures = [], n_failures

    def describe(self, n_bands, codec=None):
        return LayerFormat('float32', 1, math.nan)

    def compute(self, mean, weights=None, deviations=None, codec=None):
        if self.n_failures:
            self.n_failures -= 1
            raise ArithmeticError('cannot be made now')
        self.given.append((mean.copy(), weights, deviations, codec))
        return np.ptp(mean, axis=2, keepdims=True)


@pytest.mark.parametrize('engine', ['auto', 'general'])
def test_a_layer_of_the_user(engine):
    parts, layer = make_parts(), Range()
    codec = Quantization(0, 1)
    _, mean, found = stitch(parts, [layer], engine=engine, expected_minmax=(0, 1))
    np.testing.assert_allclose(found[layer][..., 0], np.ptp(Reference(parts).mean, axis=2),
                               atol=2 * TOLERANCE)
    assert len(layer.given) == len(BLOCKS)
    for values, weights, deviations, given_codec in layer.given:
        assert values.dtype == np.float32 and values.shape[2] == BANDS
        assert weights is None or weights.shape == values.shape[:2]
        assert deviations is None and given_codec == codec


@pytest.mark.parametrize('engine', ['auto', 'general'])
def test_a_layer_that_cannot_be_made_now_is_made_later(engine):
    parts, layer = make_parts(), Range(n_failures=3)
    sink, other = MemorySink(), MemorySink()
    stitcher = SoftStitcher((*GRID.shape, BANDS), GRID, sink=sink, layers={layer: other},
                            blocksize=9, engine=engine)
    n_failed = 0
    for part in parts:
        try:
            stitcher.add(*part)
        except ArithmeticError:
            n_failed += 1
    stitcher.finalize()
    assert n_failed == 3 and len(layer.given) == len(BLOCKS)
    reference = Reference(parts)
    reference.check_mean(sink.as_array())
    np.testing.assert_allclose(other.as_array()[..., 0], np.ptp(reference.mean, axis=2),
                               atol=2 * TOLERANCE)


def test_layers_need_a_sink_of_the_mean():
    with pytest.raises(OptionError, match='sink'):
        SoftStitcher((4, 4), layers={'mask': MemorySink()})
    with pytest.raises(OptionError, match='unknown'):
        SoftStitcher((4, 4), sink=MemorySink(), layers={'edges': MemorySink()})


def test_no_layers_are_no_layers():
    for layers in (None, {}):
        sink = MemorySink()
        stitcher = SoftStitcher((4, 4), [Window(0, 0, 4, 4)], sink=sink, layers=layers)
        stitcher.add(None, np.ones((4, 4)))
        assert stitcher.engine == 'carry' and (sink.as_array() == 1).all()


# ---- NaN judged band by band ----------------------------------------------------------

@pytest.mark.parametrize('minmax', [None, (0, 1)])
@pytest.mark.parametrize('engine', ['auto', 'general'])
@pytest.mark.parametrize('name', ['holes', 'many holes', 'late holes', 'weights', 'missing'])
def test_a_band_may_be_missing_alone(name, engine, minmax):
    parts = make_parts(**CASES[name])
    stitcher, mean, _ = stitch(parts, [], nan_policy='band', engine=engine, expected_minmax=minmax)
    reference = Reference(parts, per_band=True)
    reference.check_mean(mean, None if minmax is None else Quantization(*minmax))
    # Each band is as if it were alone.
    for band in range(BANDS):
        alone = blend_model((*GRID.shape, 1), [
            (window, data[..., band:band + 1], np.outer(*BlendPlan(GRID).get_weights(window))
             if weights is None else weights) for window, data, weights in parts])
        np.testing.assert_allclose(reference.mean[..., band], alone[..., 0], atol=1e-6)
    # A pixel is invalid in a window only if all its bands are.
    n_invalid = sum(int((~np.isfinite(data)).all(axis=2).sum()) for _, data, _ in parts)
    assert stitcher.n_invalid == n_invalid
    assert name != 'many holes' or n_invalid > 100


def test_both_policies_agree_on_one_band():
    rng = np.random.RandomState(0)
    results = []
    for nan_policy in ('pixel', 'band'):
        sink = MemorySink()
        stitcher = SoftStitcher((*GRID.shape, 1), GRID, sink=sink, nan_policy=nan_policy)
        rng.seed(1)
        for window in GRID:
            stitcher.add(window, spoil(rng.rand(*window.shape, 1).astype('f4'), rng, 0.3))
        stitcher.finalize()
        results.append((sink.as_array(), stitcher.n_invalid))
    assert np.array_equal(results[0][0], results[1][0], equal_nan=True)
    assert results[0][1] == results[1][1] > 0


def test_policies_differ_where_they_should():
    data = np.ones((2, 2, 2), 'f4')
    data[0, 0, 0], data[1, 1] = np.nan, np.inf
    expected = {'pixel': [[0, 0], [1, 1], [1, 1], [0, 0]], 'band': [[0, 1], [1, 1], [1, 1], [0, 0]]}
    for nan_policy, valid in expected.items():
        stitcher = SoftStitcher((2, 2), nan_policy=nan_policy)
        assert stitcher.add(None, data) == (2 if nan_policy == 'pixel' else 3)
        result = stitcher.finalize()
        assert np.array_equal(np.isfinite(result).reshape(4, 2), np.array(valid, bool))


@pytest.mark.parametrize('layer, wanted', [
    (ClassMap(), [[2, 255]]), (ThresholdMask(0.5), [[255, 0, 1], [255, 255, 255]])])
def test_layers_see_which_bands_are_missing(layer, wanted):
    data = np.array([[[np.nan, 0.1, 0.9], [np.nan, np.inf, -np.inf]]], 'f4')
    sink, other = MemorySink(), MemorySink()
    stitcher = SoftStitcher((1, 2, 3), sink=sink, layers={layer: other}, nan_policy='band')
    stitcher.add(None, data)
    stitcher.finalize()
    assert other.as_array().reshape(np.shape(wanted)).tolist() == wanted
