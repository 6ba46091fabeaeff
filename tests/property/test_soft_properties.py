"""The soft stitcher against a plain model, in any order, from threads, with a sink."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoseg import BlendPlan, BlockGrid, Quantization, SoftStitcher
from cocoseg.protocols import MemorySink

from ..strategies import SEEDS, blend_model, spoil, window_grids, window_lists

SHAPE = (19, 23)
LISTS = window_lists(SHAPE, max_windows=10)


def make_data(windows, seed, n_bands=2, fraction=0.05):
    """Return a random prediction for each window, with NaN and infinities."""
    rng = np.random.RandomState(seed)
    return [spoil(rng.rand(*window.shape, n_bands).astype('f4'), rng, fraction)
            for window in windows]


def stitch(places, data, order=None, *, shape=SHAPE, **options):
    """Return the stitched data of some windows, added in an order."""
    stitcher = SoftStitcher(shape, **options)
    for index in range(len(places)) if order is None else order:
        stitcher.add(places[index], data[index])
    return stitcher.finalize()


@pytest.mark.parametrize('dtype, tolerance', [('float32', 2e-5), ('float64', 1e-12)])
@given(LISTS, st.integers(1, 4), SEEDS)
def test_dense_weights_agree_with_a_padded_model(dtype, tolerance, windows, n_bands, seed):
    data = make_data(windows, seed, n_bands)
    rng = np.random.RandomState(seed)
    weights = [rng.rand(*window.shape) + 0.01 for window in windows]
    stitcher = SoftStitcher(SHAPE, dtype=dtype)
    for window, part, weight in zip(windows, data, weights):
        inside = window.clip(SHAPE)
        valid = np.isfinite(part[inside.within(window).slices]).all(axis=2)
        assert stitcher.add(window, part, weight) == valid.sum()
    expected = blend_model((*SHAPE, n_bands), list(zip(windows, data, weights)))
    np.testing.assert_allclose(stitcher.finalize(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('declared', [False, True])
@given(LISTS, SEEDS)
def test_own_weights_agree_with_a_padded_model(declared, windows, seed):
    data = make_data(windows, seed)
    weights = [np.ones(window.shape) for window in windows]
    if declared:
        plan = BlendPlan(windows)
        weights = [np.outer(*plan.get_weights(window)) for window in windows]
    actual = stitch(windows, data, windows=windows if declared else None)
    expected = blend_model((*SHAPE, 2), list(zip(windows, data, weights)))
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('declared', [False, True])
@given(LISTS, SEEDS)
def test_any_order_gives_the_same(declared, windows, seed):
    data = make_data(windows, seed)
    order = np.random.RandomState(seed).permutation(len(windows))
    declare = windows if declared else None
    ordered = stitch(windows, data, windows=declare)
    shuffled = stitch(windows, data, order, windows=declare)
    np.testing.assert_allclose(shuffled, ordered, rtol=1e-6)
    codec = Quantization(0, 1)
    steps = codec.encode(ordered)[0].astype(int) - codec.encode(shuffled)[0]
    assert np.abs(steps).max() <= 1


@pytest.mark.parametrize('declared', [False, True])
@given(window_grids(), SEEDS)
def test_any_order_of_a_grid_gives_the_same(declared, grid, seed):
    windows = list(grid)
    data = make_data(windows, seed)
    order = np.random.RandomState(seed).permutation(len(windows))
    options = {'shape': grid.shape, 'windows': grid if declared else None, 'dtype': 'float64'}
    np.testing.assert_allclose(stitch(windows, data, order, **options),
                               stitch(windows, data, **options), rtol=1e-12)


@given(LISTS, SEEDS, st.booleans())
def test_four_threads_give_the_same(windows, seed, declared):
    data = make_data(windows, seed)
    declare = windows if declared else None
    stitcher = SoftStitcher(SHAPE, declare)
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(stitcher.add, windows, data))
    assert stitcher.n_windows == len(windows)
    assert all(0 <= count <= window.area for count, window in zip(counts, windows))
    np.testing.assert_allclose(stitcher.finalize(), stitch(windows, data, windows=declare),
                               rtol=1e-6)


@given(LISTS, SEEDS, st.integers(4, 25), st.booleans())
def test_each_block_is_written_once_and_as_soon_as_it_is_final(windows, seed, blocksize, declared):
    data = make_data(windows, seed)
    order = np.random.RandomState(seed).permutation(len(windows))
    declare = windows if declared else None
    # A MemorySink refuses a block that comes twice.
    sink, blocks = MemorySink(), list(BlockGrid(SHAPE, blocksize))
    stitcher = SoftStitcher(SHAPE, declare, sink=sink, blocksize=blocksize)
    for done, index in enumerate(order, 1):
        stitcher.add(windows[index], data[index])
        came, left = ([windows[other] for other in part] for part in (order[:done], order[done:]))
        final = {block.core for block in blocks
                 if any(not block.core.intersect(window).is_empty for window in came)
                 and all(block.core.intersect(window).is_empty for window in left)}
        assert set(sink.blocks) == (final if declared else set())
    stitcher.finalize()
    assert set(sink.blocks) == {block.core for block in blocks}
    expected = stitch(windows, data, order, windows=declare)
    assert np.array_equal(sink.as_array(), expected, equal_nan=True)


@given(LISTS, SEEDS)
def test_pending_windows_are_those_that_did_not_come(windows, seed):
    data = make_data(windows, seed)
    rng = np.random.RandomState(seed)
    order = list(rng.permutation(len(windows)))
    stitcher = SoftStitcher(SHAPE, windows)
    while order:
        assert stitcher.pending == sorted(windows[index].clip(SHAPE) for index in order)
        assert not stitcher.is_complete
        index = order.pop()
        stitcher.add(windows[index], data[index])
    assert stitcher.is_complete and stitcher.pending == []


@given(LISTS, SEEDS)
def test_nan_changes_no_other_pixel(windows, seed):
    clean = make_data(windows, seed, fraction=0)
    dirty = [spoil(part, np.random.RandomState(seed), 0.1) for part in clean]
    spoiled = [1.0 - np.isfinite(part).all(axis=2, keepdims=True) for part in dirty]
    missing = blend_model((*SHAPE, 1), [
        (window, part, np.ones(window.shape)) for window, part in zip(windows, spoiled)])[..., 0]
    untouched = missing == 0
    actual, expected = (stitch(windows, data, windows=windows) for data in (dirty, clean))
    np.testing.assert_allclose(actual[untouched], expected[untouched], rtol=1e-6)
    assert np.isnan(actual[missing == 1]).all()
