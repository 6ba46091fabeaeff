"""Cover: every pixel in a window, every pixel in exactly one core."""
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cocoseg import BlockGrid, Window, WindowGrid
from cocoseg.grid.windows import FITS, compute_starts

from ..strategies import axes, window_grids, windows_near

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(window_grids())
def test_every_pixel_is_in_a_window(grid):
    hits = np.zeros(grid.shape, int)
    for window in grid:
        assert window.shape == grid.window
        inside = window.clip(grid.shape)
        assert not inside.is_empty
        hits[inside.slices] += 1
    assert hits.min() >= 1
    assert len(set(grid)) == len(grid)
    assert sorted(grid) == list(grid)


@given(window_grids())
def test_only_a_window_larger_than_the_image_overhangs(grid):
    frame = Window(0, 0, *np.maximum(grid.shape, grid.window))
    assert all(frame.contains(window) for window in grid)


@given(axes())
def test_both_fits_use_equally_many_windows(axis):
    balanced, flush = (compute_starts(*axis, fit) for fit in FITS)
    assert len(balanced) == len(flush)


@given(axes())
def test_no_fit_uses_more_windows_than_the_overlap_needs(axis):
    size, window, overlap = axis
    starts = compute_starts(*axis)
    # One window fewer, each overlapping by no more than asked, would not reach the end.
    reach = window + (len(starts) - 2) * (window - overlap)
    assert len(starts) == 1 or reach < size


@given(axes(), st.sampled_from(FITS))
def test_neighbours_overlap_by_at_least_what_was_asked(axis, fit):
    size, window, overlap = axis
    starts = compute_starts(*axis, fit)
    strides = np.diff(starts)
    assert starts[0] == 0
    assert starts[-1] + window == max(size, window)
    assert (strides > 0).all()
    assert (window - strides >= overlap).all()


@given(axes())
def test_balanced_strides_differ_by_one_at_most(axis):
    strides = np.diff(compute_starts(*axis))
    assert np.ptp(strides) <= 1 if len(strides) else True


@given(axes())
def test_flush_overlaps_exactly_but_for_the_last(axis):
    size, window, overlap = axis
    strides = np.diff(compute_starts(*axis, 'flush'))
    assert (window - strides[:-1] == overlap).all()


def test_large_axes_are_exact():
    window = 2 ** 53 + 2
    # The last start, 2 ** 53 + 1, is no float64.
    assert compute_starts(2 * window - 1, window, 0) == [0, 2 ** 53 + 1]


@given(SHAPES, SHAPES, SHAPES)
def test_cores_partition_the_image(shape, block, halo):
    grid = BlockGrid(shape, block, halo)
    hits = np.zeros(shape, int)
    for part in grid:
        hits[part.core.slices] += 1
        assert part == grid.get(part.index)
        assert part.read == part.core.pad(halo).clip(shape)
    assert (hits == 1).all()
    assert len(list(grid)) == len(grid)


@given(st.data(), SHAPES, SHAPES)
def test_touched_by_agrees_with_brute_force(data, shape, block):
    grid = BlockGrid(shape, block)
    window = data.draw(windows_near(shape)).clip(shape)
    rows, columns = grid.touched_by(window)
    found = {(row, column) for row in range(rows.start, rows.stop)
             for column in range(columns.start, columns.stop)}
    assert found == {part.index for part in grid if not part.core.intersect(window).is_empty}


@given(st.data(), SHAPES)
def test_clipping_equals_indexing_of_a_padded_image(data, shape):
    window = data.draw(windows_near(shape))
    mask = np.zeros((shape[0] + 64, shape[1] + 64), bool)
    mask[window.shift(32, 32).slices] = True
    inside = np.zeros(shape, bool)
    inside[window.clip(shape).slices] = True
    assert (inside == mask[32:32 + shape[0], 32:32 + shape[1]]).all()


@given(window_grids())
def test_windows_survive_slices(grid):
    assert [Window.from_slices(window.slices) for window in grid] == list(grid)


def test_a_grid_is_iterated_without_arrays():
    # A million windows cost no memory until they are asked for.
    grid = WindowGrid((10 ** 6, 10 ** 6), window=1024, overlap=24)
    assert len(grid) == 10 ** 6
    assert next(iter(grid)) == Window(0, 0, 1024, 1024)
