"""An area of interest in a stitcher: what it leaves out, of pixels, windows and products."""
import numpy as np
import pytest
import shapely

from cocoseg import BlendPlan, BlockGrid, Quantization, SoftStitcher, Window, WindowGrid
from cocoseg.errors import CoverageError, NothingAccumulatedError, OptionError
from cocoseg.grid.area import Area
from cocoseg.protocols import FailingSink, MemorySink
from cocoseg.stitch.layers import Disagreement

from ..strategies import blend_model, crop_padded, spoil

SHAPE = (60, 50)
GRID = WindowGrid(SHAPE, window=14, overlap=5)
# No vertex is on a pixel centre, no edge passes through one.
AREAS = {
    'triangle': shapely.Polygon([(3.1, 2.3), (40.2, 9.7), (11.4, 44.9)]),
    'ring': shapely.Polygon([(5.2, 5.1), (44.3, 6.2), (43.1, 55.4), (4.9, 50.3)],
                            [[(15.2, 16.1), (15.4, 40.2), (33.1, 38.7), (31.9, 17.3)]]),
    'two parts': shapely.union_all([shapely.box(1.2, 1.3, 9.1, 8.7),
                                    shapely.box(35.3, 41.2, 48.8, 58.9)]),
    'over the border': shapely.Polygon([(-20.3, -9.1), (30.2, 12.7), (-7.8, 90.3)]),
    'smaller than a pixel': shapely.box(20.1, 30.1, 20.9, 30.9),
    'all': shapely.box(-3.3, -3.3, 70.7, 70.7),
}
ALL_AREAS = pytest.mark.parametrize('name', AREAS)


def find_inside(area, shape=SHAPE):
    """Return bool (H, W), True where the centre of a pixel is in the area."""
    y, x = np.mgrid[:shape[0], :shape[1]] + 0.5
    return shapely.contains_xy(area, x, y)


def touches(area, window):
    """Return True if a window has pixels inside the image that the area reaches."""
    part = window.clip(SHAPE)
    return shapely.box(part.x0, part.y0, part.x1, part.y1).intersection(area).area > 0


def make_data(windows, seed=0, n_bands=2, fraction=0.0):
    rng = np.random.RandomState(seed)
    return {window: spoil(rng.rand(*window.shape, n_bands).astype('f4'), rng, fraction)
            for window in windows}


def compute_mean(data, plan, area):
    """Return the float64 mean of windows, NaN outside of the area."""
    weights = {window: np.outer(*plan.get_weights(window)).astype('f8') for window in data}
    n_bands = next(iter(data.values())).shape[2]
    mean = blend_model((*SHAPE, n_bands), [
        (window, part, weights[window]) for window, part in data.items()])
    mean[~find_inside(area)] = np.nan
    return mean


def stitch(data, windows, **options):
    """Return (stitcher, sink) after the end; all data are offered, also what is left out."""
    sink = MemorySink()
    n_bands = next(iter(data.values())).shape[2]
    stitcher = SoftStitcher((*SHAPE, n_bands), windows, sink=sink, blocksize=11, **options)
    for window, part in data.items():
        stitcher.add(window, part)
    stitcher.finalize()
    assert set(sink.blocks) == {block.core for block in BlockGrid(SHAPE, 11)}
    return stitcher, sink


# ---- pixels -----------------------------------------------------------------------

@pytest.mark.parametrize('minmax', [None, (0.2, 0.8)])
@ALL_AREAS
def test_pixels_outside_are_nodata(name, minmax):
    area, data = AREAS[name], make_data(GRID)
    expected = compute_mean(data, BlendPlan(GRID), area)
    stitcher, sink = stitch(data, GRID, area=area, expected_minmax=minmax)
    actual = sink.as_array()
    if minmax is None:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)
        return
    codes, n_clipped = Quantization(*minmax).encode(expected)
    assert np.array_equal(actual == -9999, np.isnan(expected))
    assert np.abs(actual.astype(int) - codes).max() <= 1
    # Only what is inside counts.
    assert abs(stitcher.n_clipped - n_clipped) <= 2


@ALL_AREAS
def test_pixels_inside_are_as_without_it(name):
    data, inside = make_data(GRID), find_inside(AREAS[name])
    _, plain = stitch(data, GRID, engine='general')
    _, masked = stitch(data, GRID, area=AREAS[name])
    np.testing.assert_allclose(masked.as_array()[inside], plain.as_array()[inside], atol=2e-6)
    assert np.isnan(masked.as_array()[~inside]).all()


@pytest.mark.parametrize('nan_policy', ['pixel', 'band'])
@pytest.mark.parametrize('minmax', [None, (0, 1)])
@pytest.mark.parametrize('name', ['ring', 'two parts', 'over the border'])
def test_all_products_are_nodata_outside(name, minmax, nan_policy):
    area, data = AREAS[name], make_data(GRID, fraction=0.3)
    layers = {'class': MemorySink(), 'mask': MemorySink(), Disagreement(): MemorySink()}
    _, sink = stitch(data, GRID, area=area, layers=layers, expected_minmax=minmax,
                     nan_policy=nan_policy)
    others = {'class': MemorySink(), 'mask': MemorySink(), Disagreement(): MemorySink()}
    _, whole = stitch(data, GRID, layers=others, expected_minmax=minmax, nan_policy=nan_policy)
    inside = find_inside(area)
    nodata = [np.nan if minmax is None else -9999, 255, 255, np.nan if minmax is None else -9999]
    for one, other, value in zip([sink, *layers.values()], [whole, *others.values()], nodata):
        found, wanted = one.as_array(), other.as_array()
        assert set(one.blocks) == {block.core for block in BlockGrid(SHAPE, 11)}
        assert found.dtype == wanted.dtype
        assert np.array_equal(found[inside], wanted[inside], equal_nan=True)
        outside = np.full_like(found[~inside], value)
        assert np.array_equal(found[~inside], outside, equal_nan=True)
        assert (found[inside] != value).any()


def test_without_a_sink():
    area, data = AREAS['ring'], make_data(GRID)
    expected = compute_mean(data, BlendPlan(GRID), area)
    stitcher = SoftStitcher((*SHAPE, 2), GRID, area=area)
    for window, part in data.items():
        stitcher.add(window, part)
    part = Window(3, 7, 41, 38)
    np.testing.assert_allclose(stitcher.read(part), expected[part.slices], atol=2e-6)
    codes, n_clipped = stitcher.encode(Quantization(0, 1), part)
    assert np.array_equal(codes == -9999, np.isnan(expected[part.slices])) and n_clipped == 0
    np.testing.assert_allclose(stitcher.finalize(), expected, atol=2e-6)


def test_a_block_that_a_sink_refused_is_masked_too():
    area, data = AREAS['triangle'], make_data(GRID)
    sink = FailingSink(4)
    stitcher = SoftStitcher((*SHAPE, 2), GRID, sink=sink, area=area, blocksize=11)
    n_failed = 0
    for window, part in data.items():
        try:
            stitcher.add(window, part)
        except OSError:
            n_failed += 1
    stitcher.finalize()
    assert n_failed == 4
    np.testing.assert_allclose(sink.as_array(), compute_mean(data, BlendPlan(GRID), area),
                               atol=2e-6)


# ---- windows ------------------------------------------------------------------------

@pytest.mark.parametrize('as_list', [False, True])
@ALL_AREAS
def test_windows_outside_are_left_out(name, as_list):
    area, data = AREAS[name], make_data(GRID)
    chosen = [window for window in GRID if touches(area, window)]
    stitcher = SoftStitcher((*SHAPE, 2), list(GRID) if as_list else GRID, sink=MemorySink(),
                            area=area)
    assert stitcher.pending == chosen
    for window, part in data.items():
        n_windows, pending = stitcher.n_windows, len(stitcher.pending)
        is_chosen = window in chosen
        assert stitcher.add(window, part) == (14 * 14 if is_chosen else 0)
        assert stitcher.n_windows == n_windows + is_chosen
        assert len(stitcher.pending) == pending - is_chosen
    assert stitcher.is_complete and stitcher.engine == 'general'
    assert stitcher.received == set(chosen)
    # They may come as often as they like.
    for window in set(GRID) - set(chosen):
        assert stitcher.add(window, data[window]) == 0
    stitcher.finalize()


@ALL_AREAS
def test_windows_outside_are_left_out_of_a_batch(name):
    data = make_data(GRID)
    _, expected = stitch(data, GRID, area=AREAS[name])
    sink = MemorySink()
    stitcher = SoftStitcher((*SHAPE, 2), GRID, sink=sink, blocksize=11, area=AREAS[name])
    chosen = [window for window in GRID if touches(AREAS[name], window)]
    assert stitcher.add_batch(list(GRID), list(data.values())) == 14 * 14 * len(chosen)
    assert stitcher.n_windows == len(chosen)
    stitcher.finalize()
    assert np.array_equal(sink.as_array(), expected.as_array(), equal_nan=True)


@ALL_AREAS
def test_what_is_wrong_with_a_window_outside_is_still_told(name):
    area = AREAS[name]
    outside = [window for window in GRID if not touches(area, window)]
    stitcher = SoftStitcher((*SHAPE, 2), GRID, sink=MemorySink(), area=area)
    for window in outside[:3]:
        with pytest.raises(ValueError, match='shape'):
            stitcher.add(window, np.ones((14, 13, 2)))
        with pytest.raises(ValueError, match='bands'):
            stitcher.add(window, np.ones((14, 14, 3)))
    with pytest.raises(CoverageError, match='no pixel'):
        stitcher.add(Window(60, 0, 74, 14), np.ones((14, 14, 2)))


@ALL_AREAS
def test_blocks_that_no_window_touches_are_sent_as_nodata(name):
    area, data, sink = AREAS[name], make_data(GRID), MemorySink()
    stitcher = SoftStitcher((*SHAPE, 2), GRID, sink=sink, area=area, blocksize=11,
                            expected_minmax=(0, 1))
    for window, part in data.items():
        stitcher.add(window, part)
    reached = {block.core for block in BlockGrid(SHAPE, 11)
               if any(touches(area, window) and not block.core.intersect(window).is_empty
                      for window in GRID)}
    # All that windows reach is final; the rest has to wait for the end.
    assert set(sink.blocks) == reached
    stitcher.finalize()
    others = {block.core for block in BlockGrid(SHAPE, 11)} - reached
    assert all((sink.blocks[core] == -9999).all() for core in others)
    assert (len(others) > 0) == (name in ('triangle', 'two parts', 'smaller than a pixel',
                                          'over the border'))


def test_windows_that_were_not_declared():
    area, data = AREAS['ring'], make_data(GRID)
    sink = MemorySink()
    stitcher = SoftStitcher((*SHAPE, 2), sink=sink, area=area, blocksize=11)
    for window, part in data.items():
        assert stitcher.add(window, part) == (14 * 14 if touches(area, window) else 0)
    stitcher.finalize()
    expected = blend_model((*SHAPE, 2), [
        (window, part, np.ones(window.shape)) for window, part in data.items()])
    expected[~find_inside(area)] = np.nan
    np.testing.assert_allclose(sink.as_array(), expected, atol=2e-6)


def test_missing_windows_and_weights():
    area, data = AREAS['ring'], make_data(GRID, fraction=0.05)
    chosen = [window for window in GRID if touches(area, window)]
    plan, rng = BlendPlan(GRID), np.random.RandomState(3)
    sink = MemorySink()
    stitcher = SoftStitcher((*SHAPE, 2), GRID, sink=sink, area=area, blocksize=11)
    parts = []
    for number, window in enumerate(chosen):
        if number % 5 == 2:
            continue
        weights = rng.rand(14, 14) if number % 3 == 0 else None
        stitcher.add(window, data[window], weights)
        parts.append((window, data[window], np.outer(*plan.get_weights(window)).astype('f8')
                      if weights is None else weights))
    assert stitcher.pending == chosen[2::5]
    stitcher.finalize()
    expected = blend_model((*SHAPE, 2), parts)
    expected[~find_inside(area)] = np.nan
    np.testing.assert_allclose(sink.as_array(), expected, rtol=0, atol=2e-6)


# ---- where it is given -----------------------------------------------------------------

@pytest.mark.parametrize('minmax', [None, (0, 1)])
@ALL_AREAS
def test_the_grid_or_the_stitcher_may_have_it(name, minmax):
    area, data = AREAS[name], make_data(GRID, fraction=0.02)
    masked = WindowGrid(SHAPE, 14, 5, area=area)
    results = []
    for windows, option in ((GRID, area), (masked, None), (masked, Area(area)), (masked, area)):
        stitcher = SoftStitcher((*SHAPE, 2), windows, area=option)
        assert stitcher.pending == list(masked)
        _, sink = stitch(data, windows, area=option, expected_minmax=minmax)
        results.append(sink.as_array())
    for other in results[1:]:
        assert np.array_equal(other, results[0], equal_nan=True)


def test_two_areas_are_refused():
    masked = WindowGrid(SHAPE, 14, 5, area=AREAS['ring'])
    with pytest.raises(OptionError, match='area'):
        SoftStitcher(SHAPE, masked, area=AREAS['triangle'])
    with pytest.raises(OptionError, match='area'):
        SoftStitcher(SHAPE, GRID, area='everything')


def test_an_area_without_windows():
    with pytest.raises(CoverageError, match='touches no pixel'):
        SoftStitcher(SHAPE, GRID, area=shapely.box(100, 100, 110, 110))
    stitcher = SoftStitcher(SHAPE, area=AREAS['triangle'])
    assert stitcher.add(Window(46, 36, 60, 50), np.ones((14, 14))) == 0
    with pytest.raises(NothingAccumulatedError):
        stitcher.finalize()


# ---- windows that overhang ----------------------------------------------------------------

# The area reaches beyond the image on the right, where the second window is.
BEYOND = shapely.union_all([shapely.box(0, 0, 4, 4), shapely.box(51.2, 0, 60, 60)])


@pytest.mark.parametrize('window', [Window(0, 36, 60, 66), Window(-5, 40, 70, 80)])
def test_what_a_window_sees_beyond_the_image_does_not_count(window):
    windows = [Window(0, 0, 60, 40), window]
    sink = MemorySink()
    stitcher = SoftStitcher((*SHAPE, 1), windows, sink=sink, area=BEYOND)
    assert stitcher.pending == windows[:1]
    assert stitcher.add(window, np.ones(window.shape)) == 0
    assert stitcher.add(windows[0], np.ones((60, 40))) == 2400
    assert stitcher.is_complete and stitcher.pending == []
    stitcher.finalize()
    assert (sink.as_array() == 1).sum() == 16


@ALL_AREAS
def test_lists_of_windows_that_overhang(name):
    rows, columns = [(-6, 14), (9, 40), (31, 64)], [(-2, 20), (15, 33), (26, 59)]
    windows = [Window(y0, x0, y1, x1) for y0, y1 in rows for x0, x1 in columns]
    image = np.random.RandomState(0).rand(*SHAPE, 2).astype('f4')
    rng = np.random.RandomState(1)
    data = {window: crop_padded(image, window) + rng.rand() for window in windows}
    area = AREAS[name]
    chosen = [window for window in windows if touches(area, window)]
    stitcher, sink = stitch(data, windows, area=area)
    assert stitcher.is_complete and stitcher.received == {
        window.clip(SHAPE) for window in chosen}
    expected = compute_mean({window: data[window] for window in chosen}, BlendPlan(chosen), area)
    np.testing.assert_allclose(sink.as_array(), expected, rtol=0, atol=4e-6)
