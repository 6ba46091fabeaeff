"""The compiled loops of statistics against plain references, and what they hold on to."""
import numpy as np
import pytest

from cocoseg.shepherd import shape_kernels, stats_kernels
from cocoseg.shepherd.band_stats import Distributions, Moments, SegmentPixels, as_values
from cocoseg.shepherd.shape_stats import ShapeStats
from cocoseg.shepherd.statspec import UserStat, parse_stats

from .segment_models import SHAPES, make_segments, model_shape, model_value

EDGES = [0, 1, 2, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 63, 2 ** 64 - 1]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize('a', EDGES)
@pytest.mark.parametrize('b', EDGES)
def test_wide_products(a, b):
    high, low = stats_kernels._multiply_wide(np.uint64(a), np.uint64(b))
    assert (int(high) << 64) + int(low) == a * b


def test_mask():
    values = np.array([1, 7, np.nan, np.inf, -np.inf, -7])
    stats_kernels._kernel_mask(values, 7.0)
    np.testing.assert_array_equal(values, [1, np.nan, np.nan, np.nan, np.nan, -7])


def test_values_are_new_and_contiguous(rng):
    block = rng.integers(0, 9, (4, 5, 3)).astype(np.uint8)
    values = as_values(block[:, :, 1], nodata=3)
    assert values.flags.c_contiguous and values.dtype == np.float64
    np.testing.assert_array_equal(values, np.where(block[:, :, 1] == 3, np.nan, block[:, :, 1]))


@pytest.mark.parametrize('is_whole', [True, False])
def test_moments(rng, is_whole):
    segments = make_segments(rng, (12, 9), n_labels=4)
    values = rng.integers(-2 ** 31, 2 ** 32, (12, 9)).astype(float)
    if not is_whole:
        values += rng.random(values.shape)
    values[rng.random(values.shape) < 0.3] = np.nan
    moments = Moments(5, is_whole)
    for first in (0, 5, 6):
        stop = {0: 5, 5: 6, 6: 12}[first]
        moments.add(segments[first:stop], values[first:stop])
    found = moments.finish()
    for label in range(1, 6):
        valid = values[(segments == label) & ~np.isnan(values)]
        for name, column in found.items():
            expected = model_value(valid, name)
            assert column[label] == pytest.approx(expected, rel=1e-12, nan_ok=True), name
    assert found['count'][[0, 5]].tolist() == [0, 0] and np.isnan(found['std'][5])


def reference_runs(values):
    found, counts = np.unique(values, return_counts=True)
    return found.tolist(), counts.tolist()


VALUES = {
    'counted': lambda rng: rng.integers(-5, 60, 40).astype(float),
    'wide': lambda rng: rng.integers(0, 10 ** 6, 40).astype(float),
    'equal': lambda rng: np.full(7, 3.5),
    'one': lambda rng: np.array([2.5]),
    'none': lambda rng: np.empty(0),
    'smooth': lambda rng: rng.random(500),
    'repeated': lambda rng: rng.integers(0, 10, 300) / 7,
    # All but one in the same bin.
    'outlier': lambda rng: np.append(rng.random(200), 1e12),
    'huge range': lambda rng: np.array([-1.7e308, 1.7e308, 0, 5]),
    'tiny range': lambda rng: np.array([0, 5e-324, 0]),
}


@pytest.mark.parametrize('kind', VALUES)
@pytest.mark.parametrize('is_whole', [True, False])
def test_runs(rng, kind, is_whole):
    values = VALUES[kind](rng)
    if is_whole and kind not in ('counted', 'wide', 'none'):
        return
    size = len(values)
    run_values, run_counts = np.empty(size), np.empty(size, np.int64)
    n_runs = stats_kernels._make_runs(
        values.copy(), is_whole, np.empty(4 * size + 1, np.int64), np.empty(size), run_values,
        run_counts)
    assert (run_values[:n_runs].tolist(), run_counts[:n_runs].tolist()) == reference_runs(values)


def test_runs_of_more_values_than_bins(rng, monkeypatch):
    """More than the scratch has room for: sorted, not out of bounds."""
    size = stats_kernels._MAX_BINS + 5
    values = rng.integers(0, 10 ** 6, size) / 3
    found = Distributions(np.array([-1, 0]), [50], True, is_whole=False)
    found.add(np.ones((1, size), np.uint32), values[None], 1)
    result = found.finish(1)[1]
    assert result.tolist() == [model_value(values, 'median'), model_value(values, 'mode')]


@pytest.mark.parametrize('old', [[], [1, 1, 4], [0, 9, 9, 9, 10]])
@pytest.mark.parametrize('new', [[], [4, 1], [2, 3, 9, 9]])
def test_merging_of_runs(old, new):
    parts = [np.unique(np.array(part, float), return_counts=True) for part in (new, old)]
    out_values, out_counts = np.empty(12), np.empty(12, np.int64)
    end = stats_kernels._merge_runs(*parts[0], len(parts[0][0]), *parts[1], out_values,
                                    out_counts, 2)
    assert (out_values[2:end].tolist(), out_counts[2:end].tolist()) == reference_runs(old + new)


@pytest.mark.parametrize('is_whole', [True, False])
def test_distributions_forget_what_is_complete(rng, is_whole):
    """At most the distinct values of segments that go on, and a batch as large as these."""
    height, width = 60, 20
    segments = np.kron(np.arange(1, 41).reshape(20, 2), np.ones((3, 10), int)).astype(np.uint32)
    values = rng.integers(0, 5, (height, width)).astype(float)
    last_rows = np.array([-1] + [np.nonzero(segments == label)[0].max()
                                 for label in range(1, 41)], np.int32)
    found = Distributions(last_rows, [25, 75], True, is_whole)
    for y in range(height):
        found.add(segments[y:y + 1], values[y:y + 1], y + 1)
        assert found.n_runs <= 2 * 5
    results = found.finish(height)
    for label in range(1, 41):
        part = values[segments == label]
        assert results[label].tolist() == [model_value(part, name)
                                           for name in ('p25', 'p75', 'mode')]


def test_a_segment_as_large_as_the_image_is_compact(rng):
    """Whole numbers that occur often cost no more the more often they occur."""
    found = Distributions(np.array([-1, 199], np.int32), [50], False, is_whole=True)
    values = rng.integers(0, 256, (200, 1000)).astype(float)
    for y in range(200):
        found.add(np.ones((1, 1000), np.uint32), values[y:y + 1], y + 1)
        assert found.n_runs <= 256
    assert found.finish(200)[1, 0] == model_value(values.ravel(), 'median')


def test_few_merges_of_a_segment_that_stays(rng, monkeypatch):
    """The values held are gone through again only when as many new ones came."""
    merges = []
    merge = Distributions._merge
    monkeypatch.setattr(Distributions, '_merge',
                        lambda self, stop: (merges.append(stop), merge(self, stop)))
    values = rng.random((256, 10))
    found = Distributions(np.array([-1, 255], np.int32), [50], False, is_whole=False)
    for y in range(256):
        found.add(np.ones((1, 10), np.uint32), values[y:y + 1], y + 1)
    assert found.finish(256)[1, 0] == model_value(values.ravel(), 'median')
    assert len(merges) <= 10


def test_pixels_are_forgotten_with_their_segment(rng):
    calls = []

    def record(x, y, values, param):
        calls.append((y.tolist(), x.tolist(), values.tolist()))
        return len(x)

    segments = np.kron(np.array([[1], [2], [3]]), np.ones((2, 4), int)).astype(np.uint32)
    values = rng.random(segments.shape)
    pixels = SegmentPixels(np.array([-1, 1, 3, 5], np.int32), [UserStat(record)])
    for y in range(6):
        pixels.add(segments[y:y + 1], values[None, y:y + 1], y, y + 1)
        assert len(pixels._pixels[0]) <= 4
        assert len(calls) == (y + 1) // 2
    assert pixels.finish(6)[0].tolist()[1:] == [8, 8, 8]
    for label, call in enumerate(calls, 1):
        y, x = np.nonzero(segments == label)
        assert call == (y.tolist(), x.tolist(), values[y, x].tolist())


@pytest.mark.parametrize('heights', [[9], [1] * 9, [4, 1, 4]])
def test_shapes(rng, heights):
    segments = make_segments(rng, (9, 11), n_labels=4)
    shapes = ShapeStats(segments.shape, parse_stats(SHAPES))
    first = 0
    for height in heights:
        shapes.add(segments[first:first + height], first)
        first += height
    shapes.finish()
    columns = {}
    for stat in parse_stats(SHAPES):
        columns.update(shapes.make_columns(stat))
    for row, label in enumerate(shapes.ids):
        found = {name: column[row] for name, column in columns.items()}
        assert found == pytest.approx(model_shape(segments, label))
        assert shapes.last_rows[label] == found['bbox_y1'] - 1


def test_perimeter_of_one_column():
    """Both sides of the image are outside, also where they are the same pixel."""
    perimeter = np.zeros(3, np.int64)
    labels = np.array([[1], [1], [2]], np.uint32)
    shape_kernels._kernel_add_perimeter(np.zeros(1, np.uint32), labels, perimeter)
    shape_kernels._kernel_add_perimeter(labels[-1], np.zeros((1, 1), np.uint32), perimeter)
    assert perimeter[1:].tolist() == [6, 4]


def test_arrays_grow_with_ids():
    shapes = ShapeStats((4, 3))
    for y, label in enumerate((1, 5, 2, 100)):
        shapes.add(np.full((1, 3), label, np.uint32), y)
    shapes.finish()
    assert shapes.ids.tolist() == [1, 2, 5, 100] and shapes.area[[1, 2, 5, 100]].tolist() == [3] * 4
    assert shapes.area.shape == shapes.last_rows.shape == (101,)
