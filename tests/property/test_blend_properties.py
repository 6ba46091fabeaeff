"""Partition of unity and the seam bound, for any grid."""
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cocoseg import BlendPlan, SoftStitcher, Window, WindowGrid
from cocoseg.grid.windows import FITS
from cocoseg.stitch.blend import FLOOR, PROFILES

from ..strategies import (SEEDS, axes, compute_step, crop_padded, get_axis_weights,
                          window_grids, window_lists)

HANDOVERS = sorted(set(PROFILES) - {'constant'})
ANY_PROFILE = st.sampled_from([*sorted(PROFILES), np.square])


@given(axes(max_window=64), st.sampled_from(FITS), st.sampled_from([*HANDOVERS, np.square]))
def test_weights_of_an_axis_sum_to_one(axis, fit, profile):
    weights = get_axis_weights(*axis, fit, profile)
    assert np.abs(weights.sum(axis=0) - 1).max() <= 2e-7
    alone = (weights > 0).sum(axis=0) == 1
    assert (weights.max(axis=0)[alone] == 1).all()


@given(axes(max_window=64), st.sampled_from(FITS))
def test_weights_of_what_was_taken_over_are_the_floor(axis, fit):
    weights = get_axis_weights(*axis, fit)
    # The least of a ramp of 64 px, if 64 windows are there.
    small = weights[(weights > 0) & (weights < 1 / 66)]
    assert (small == FLOOR).all()


@given(st.integers(1, 64), st.sets(st.integers(-80, 80), min_size=1, max_size=64), ANY_PROFILE)
def test_weights_of_a_list_sum_to_one(window, starts, profile):
    # With gaps, with uneven overlaps, and up to 64 windows over a pixel.
    windows = [Window(0, start, 1, start + window) for start in starts]
    plan = BlendPlan(windows, profile)
    total, count = np.zeros(256), np.zeros(256, int)
    for part in windows:
        total[part.x0 + 80:part.x1 + 80] += plan.get_weights(part)[1].astype(float)
        count[part.x0 + 80:part.x1 + 80] += 1
    assert (total[count == 1] == 1).all()
    assert plan.is_unity == (profile != 'constant' or count.max() <= 1)
    if plan.is_unity:
        assert np.abs(total[count > 0] - 1).max() <= 2e-7
    assert plan.lattice == (((0, 1),), tuple(sorted((part.x0, part.x1) for part in windows)))


@given(window_grids(), ANY_PROFILE, st.data())
def test_a_lattice_is_what_it_says(grid, profile, data):
    windows = data.draw(st.permutations(list(grid)))
    for plan in (BlendPlan(grid, profile), BlendPlan(windows, profile)):
        rows, columns = plan.lattice
        assert [Window(y0, x0, y1, x1) for y0, y1 in rows for x0, x1 in columns] == list(grid)
    if len(windows) > 1:
        assert BlendPlan(windows[1:], profile).lattice is None or 1 in grid.grid_shape
    twice = BlendPlan([*windows, windows[0]], profile)
    assert twice.lattice is None and not twice.is_unity


@given(window_grids(), ANY_PROFILE)
def test_unity_is_what_it_says(grid, profile):
    plan = BlendPlan(grid, profile)
    total = np.zeros(np.maximum(grid.shape, grid.window))
    for window in grid:
        total[window.slices] += np.outer(*(weights.astype(float)
                                           for weights in plan.get_weights(window)))
    assert plan.is_unity == bool(np.abs(total - 1).max() <= 4e-7)


@given(window_grids(), ANY_PROFILE)
def test_weights_are_positive_and_at_most_one(grid, profile):
    plan = BlendPlan(grid, profile)
    for window in grid:
        for weights, size in zip(plan.get_weights(window), window.shape):
            assert weights.shape == (size,) and weights.dtype == np.float32
            assert FLOOR <= weights.min() and weights.max() <= 1


@given(axes(max_window=64), st.sampled_from(FITS))
def test_seam_bound(axis, fit):
    step = compute_step(*axis, fit)
    overlap = axis[2]
    assert step <= (1 / overlap if overlap else 1) + 1e-7


@given(axes(max_window=32), st.sampled_from(FITS), st.sampled_from(HANDOVERS))
def test_no_profile_cuts_where_windows_overlap(axis, fit, profile):
    # The steepest handover, the gaussian, has a slope of 2.25 / overlap, and two
    # of them may be active at a pixel.
    size, window, overlap = axis
    weights = get_axis_weights(*axis, fit, profile)
    weights /= weights.sum(axis=0)
    step = (np.abs(np.diff(weights, axis=1)).sum(axis=0) / 2).max(initial=0)
    assert step <= min(1, 4.5 / max(overlap, 1)) + 1e-6


@given(window_grids(), ANY_PROFILE, SEEDS)
def test_crops_of_an_image_give_the_image(grid, profile, seed):
    image = np.random.RandomState(seed).randn(*grid.shape, 2).astype('f4')
    stitcher = SoftStitcher(image.shape, grid, profile=profile)
    for window in grid:
        stitcher.add(window, crop_padded(image, window))
    assert stitcher.is_complete
    np.testing.assert_allclose(stitcher.finalize(), image, rtol=8e-6, atol=8e-6)


@given(window_grids(), st.floats(-1e6, 1e6, width=32))
def test_a_constant_stays_constant(grid, value):
    stitcher = SoftStitcher(grid.shape, grid)
    for window in grid:
        stitcher.add(window, np.full(window.shape, value, 'f4'))
    # Up to 144 windows over a pixel, each with a rounding of 6e-8.
    np.testing.assert_allclose(stitcher.finalize(), value, rtol=8e-6, atol=1e-37)


@given(window_grids(), SEEDS)
def test_where_one_window_is_alone_it_is_reproduced_bit_for_bit(grid, seed):
    rng = np.random.RandomState(seed)
    stitcher = SoftStitcher((*grid.shape, 3), grid)
    hits = np.zeros(grid.shape, int)
    expected = np.zeros((*grid.shape, 3), 'f4')
    for window in grid:
        data = (rng.randn(*window.shape, 3) * 10.0 ** rng.randint(-20, 20)).astype('f4')
        stitcher.add(window, data)
        inside = window.clip(grid.shape)
        hits[inside.slices] += 1
        expected[inside.slices] = data[inside.within(window).slices]
    alone = hits == 1
    assert np.array_equal(stitcher.finalize()[alone], expected[alone])


@pytest.mark.parametrize('declared', [False, True])
@given(st.data(), SEEDS)
def test_a_lone_window_is_reproduced_bit_for_bit(declared, data, seed):
    shape = (12, 13)
    (window,) = data.draw(window_lists(shape, max_windows=1))
    values = np.random.RandomState(seed).randn(*window.shape, 2).astype('f4')
    stitcher = SoftStitcher(shape, [window] if declared else None)
    stitcher.add(window, values)
    inside = window.clip(shape)
    result = stitcher.finalize()
    assert np.array_equal(result[inside.slices], values[inside.within(window).slices])
    assert np.isfinite(result).sum() == 2 * inside.area


@given(st.integers(2, 40), st.sets(st.integers(1, 80), min_size=1, max_size=12))
def test_seam_bound_of_a_list_with_uneven_overlaps(window, starts):
    # Ramps of several lengths at one pixel no longer cancel: twice the bound of a grid.
    starts = [0, *sorted(starts)]
    overlap = window - max(np.diff(starts))
    assume(overlap > 0)
    windows = [Window(0, start, 1, start + window) for start in starts]
    plan = BlendPlan(windows)
    weights = np.zeros((len(windows), starts[-1] + window))
    for row, part in zip(weights, windows):
        row[part.x0:part.x1] = plan.get_weights(part)[1]
    weights /= weights.sum(axis=0)
    step = np.abs(np.diff(weights, axis=1)).sum(axis=0).max() / 2
    assert step <= 2 / overlap + 1e-6


@given(window_lists((20, 24)), ANY_PROFILE)
def test_lists_of_windows_have_positive_weights(windows, profile):
    plan = BlendPlan(windows, profile)
    for window in windows:
        for weights, size in zip(plan.get_weights(window), window.shape):
            assert weights.shape == (size,)
            assert FLOOR <= weights.min() and weights.max() <= 1


@given(window_lists((20, 24)), SEEDS)
def test_lists_of_windows_give_the_image(windows, seed):
    image = np.random.RandomState(seed).rand(20, 24, 1).astype('f4')
    stitcher = SoftStitcher(image.shape, windows)
    for window in windows:
        stitcher.add(window, crop_padded(image, window))
    covered = np.zeros(image.shape[:2], bool)
    for window in windows:
        covered[window.clip(image.shape).slices] = True
    result = stitcher.finalize()
    np.testing.assert_allclose(result[covered], image[covered], rtol=2e-6)
    assert np.isnan(result[~covered]).all()


@given(window_grids(), SEEDS)
def test_without_its_neighbours_a_window_is_still_complete(grid, seed):
    # Missing windows, and pixels that others would have taken over.
    windows = list(grid)
    window = windows[seed % len(windows)]
    inside = window.clip(grid.shape)
    values = np.random.RandomState(seed).randn(*window.shape, 1).astype('f4')
    stitcher = SoftStitcher(grid.shape, grid)
    stitcher.add(window, values)
    result = stitcher.finalize()
    expected = values[inside.within(window).slices]
    np.testing.assert_allclose(result[inside.slices], expected, rtol=3e-7)
    assert np.isfinite(result).sum() == inside.area


def test_a_window_that_all_others_took_over_keeps_its_values_exactly():
    # FLOOR is a power of two, so that weighting and dividing again is exact.
    grid = WindowGrid((4, 50), window=(4, 40), overlap=(0, 4))
    first = next(iter(grid))
    values = np.random.RandomState(0).randn(4, 40, 1).astype('f4')
    stitcher = SoftStitcher(grid.shape, grid)
    stitcher.add(first, values)
    floor = BlendPlan(grid).get_weights(first)[1] == FLOOR
    assert floor.any()
    assert np.array_equal(stitcher.finalize()[:, :40][:, floor], values[:, floor])
