"""Blend weights: profiles, chains, irregular lists, the seam bound, edge weights."""
import numpy as np
import pytest

from cocoseg import BlendPlan, SoftStitcher, Window, WindowGrid, edge_weights
from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.windows import FITS
from cocoseg.stitch.blend import FLOOR, PROFILES, compute_handovers, get_profile

from ..strategies import compute_step, crop_padded


@pytest.mark.parametrize('name', ['linear', 'cosine', 'gaussian'])
def test_profiles_rise_and_are_symmetric(name):
    t = np.linspace(0, 1, 101)[1:-1]
    share = get_profile(name)(t)
    assert (np.diff(share) > 0).all()
    assert np.allclose(share + share[::-1], 1)
    assert share.min() > 0 and share.max() < 1


@pytest.mark.parametrize('profile', [
    'hann', None, 3,
    lambda t: 1 - t, lambda t: 2 * t, lambda t: t - 1, lambda t: t * np.nan, lambda t: 0.5,
])
def test_wrong_profiles_are_refused(profile):
    with pytest.raises(OptionError, match='profile'):
        get_profile(profile)
    with pytest.raises(OptionError, match='profile'):
        BlendPlan(WindowGrid((8, 8), 4), profile)
    with pytest.raises(OptionError, match='profile'):
        SoftStitcher((8, 8), profile=profile)


def test_a_plan_needs_windows():
    with pytest.raises(OptionError, match='at least one window'):
        BlendPlan([])


@pytest.mark.parametrize('intervals, ramp, expected', [
    ([(0, 3)], 2, [[1, 1, 1]]),
    ([(0, 3), (3, 5)], None, [[1, 1, 1], [1, 1]]),                   # neighbours that only meet
    ([(0, 2), (5, 7)], None, [[1, 1], [1, 1]]),                      # a gap
    ([(0, 4), (1, 5)], None, [[1, 3 / 4, 2 / 4, 1 / 4], [1 / 4, 2 / 4, 3 / 4, 1]]),
    ([(0, 4), (1, 5)], 1, [[1, 1, 1 / 2, 0], [0, 1 / 2, 1, 1]]),     # in the middle of three
    ([(0, 4), (1, 5)], 2, [[1, 2 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 1, 1]]),   # rounded down
    ([(0, 4), (1, 5)], 9, [[1, 3 / 4, 2 / 4, 1 / 4], [1 / 4, 2 / 4, 3 / 4, 1]]),
])
def test_handovers(intervals, ramp, expected):
    weights = compute_handovers(intervals, ramp, get_profile('linear'))
    for weight, row in zip(weights, expected):
        assert weight.dtype == np.float32
        np.testing.assert_allclose(weight, np.maximum(row, FLOOR), rtol=1e-6)


def test_constant_is_the_plain_mean():
    plan = BlendPlan(WindowGrid((9, 9), 4, 2), 'constant')
    assert all((wy == 1).all() and (wx == 1).all()
               for wy, wx in map(plan.get_weights, plan.windows))


@pytest.mark.parametrize('profile', sorted(PROFILES))
def test_image_borders_keep_full_weight(profile):
    grid = WindowGrid((20, 20), 8, 3)
    wy, wx = BlendPlan(grid, profile).get_weights(next(iter(grid)))
    assert wy[0] == wx[0] == 1
    wy, wx = BlendPlan(grid, profile).get_weights(list(grid)[-1])
    assert wy[-1] == wx[-1] == 1


# ---- the seam bound ---------------------------------------------------------

@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('window, overlap', [
    (4, 1), (8, 1), (8, 3), (8, 4), (8, 7), (13, 5), (16, 4), (16, 11), (20, 15), (32, 8),
    (32, 24), (64, 16)])
def test_seam_bound_for_every_image_size(window, overlap, fit):
    steps = [compute_step(size, window, overlap, fit) for size in range(1, 4 * window + 1)]
    assert max(steps) <= 1 / overlap
    # A ramp of `overlap` pixels cannot do with less; without this a constant would pass.
    assert max(steps) >= 1 / (overlap + 1) - 1e-6


@pytest.mark.parametrize('extra', [0, 1, 8, 20, 100, 191])
def test_seam_bound_at_the_usual_size(extra):
    for fit in FITS:
        step = compute_step(6 * 192 + 64 + extra, 256, 64, fit)
        assert step == pytest.approx(1 / 65, rel=1e-3)


@pytest.mark.parametrize('fit', FITS)
def test_the_worst_predictions_step_no_more_than_the_bound(fit):
    # Every window predicts 0 or 1, so that each seam is as visible as it can be.
    overlap = 6
    grid = WindowGrid((70, 75), window=16, overlap=overlap, fit=fit)
    rng = np.random.RandomState(0)
    for _ in range(20):
        stitcher = SoftStitcher(grid.shape, grid)
        for window in grid:
            stitcher.add(window, np.full(window.shape, rng.randint(2)))
        result = stitcher.finalize()[..., 0]
        for axis in (0, 1):
            assert np.abs(np.diff(result, axis=axis)).max() <= 1 / overlap + 1e-6


# ---- lists of windows that are no WindowGrid --------------------------------

GRID = list(WindowGrid((40, 44), window=16, overlap=6))
STAGGERED = [Window(y, x, y + 12, x + 12) for row, y in enumerate((0, 9, 18, 28))
             for x in range(-4 * (row % 3), 40, 9)]
IRREGULAR = {
    'lattice': GRID,
    'half of a lattice': GRID[::2],
    'a tenth of a lattice': GRID[::10],
    'lattice and one more': [*GRID, Window(7, 7, 23, 23)],
    'staggered rows': STAGGERED,
    'one window': [Window(3, 4, 9, 20)],
    'one that overhangs': [Window(-3, -4, 50, 60)],
    'nested': [Window(0, 0, 40, 44), Window(10, 10, 20, 20)],
    'same start': [Window(0, 0, 20, 20), Window(0, 0, 30, 40)],
    'crossing': [Window(0, 10, 40, 20), Window(10, 0, 20, 44)],
    'many sizes': [Window(y, x, y + 5 + y % 7, x + 9 + x % 5)
                   for y in range(-3, 40, 6) for x in range(-2, 44, 7)],
    'twice the same': [Window(0, 0, 20, 20)] * 2,
}


@pytest.mark.parametrize('profile', sorted(PROFILES))
@pytest.mark.parametrize('name', sorted(IRREGULAR))
def test_any_list_of_windows_has_positive_weights(name, profile):
    plan = BlendPlan(IRREGULAR[name], profile)
    for window in IRREGULAR[name]:
        wy, wx = plan.get_weights(window)
        assert (wy.shape, wx.shape) == ((window.shape[0],), (window.shape[1],))
        assert wy.dtype == wx.dtype == np.float32
        assert min(wy.min(), wx.min()) > 0
        assert max(wy.max(), wx.max()) <= 1


@pytest.mark.parametrize('axis', [0, 1])
def test_irregular_windows_taper_only_towards_sides_that_others_reach_over(axis):
    def place(start, stop):
        return Window(start, 0, stop, 9) if axis == 0 else Window(0, start, 9, stop)

    rise = np.arange(1, 4) / 4
    for small, large, expected in [
            (place(10, 16), place(0, 16), [*rise, 1, 1, 1]),
            (place(0, 6), place(0, 16), [1, 1, 1, *rise[::-1]]),
            (place(4, 10), place(0, 16), [*rise, *rise[::-1]])]:
        plan = BlendPlan([small, large])
        np.testing.assert_allclose(plan.get_weights(small)[axis], expected, rtol=1e-6)
        assert (plan.get_weights(small)[1 - axis] == 1).all()
        assert all((weights == 1).all() for weights in plan.get_weights(large))


@pytest.mark.parametrize('name', sorted(IRREGULAR))
def test_crops_of_an_image_give_the_image(name):
    windows = IRREGULAR[name]
    image = np.random.RandomState(0).rand(40, 44, 2).astype('f4')
    stitcher = SoftStitcher(image.shape, windows)
    covered = np.zeros((40, 44), bool)
    for window in windows:
        stitcher.add(window, crop_padded(image, window))
        covered[window.clip(image.shape).slices] = True
    result = stitcher.finalize()
    np.testing.assert_allclose(result[covered], image[covered], rtol=1e-6)
    assert np.isnan(result[~covered]).all()


def test_a_listed_grid_blends_like_a_grid():
    # Strides of 10 and windows of 16: every overlap is the requested one.
    grid = WindowGrid((36, 46), window=16, overlap=6)
    as_grid, as_list = BlendPlan(grid), BlendPlan(list(grid)[::-1])
    for window in grid:
        for a, b in zip(as_grid.get_weights(window), as_list.get_weights(window)):
            assert np.array_equal(a, b)


def test_windows_are_given_in_any_notation():
    windows = [Window(0, 0, 6, 6), Window(0, 4, 6, 10)]
    expected = BlendPlan(windows).get_weights(windows[1])
    for notation in ((window.slices for window in windows),
                     (window.as_box() for window in windows)):
        actual = BlendPlan(notation).get_weights(windows[1])
        assert all(np.array_equal(a, b) for a, b in zip(actual, expected))


@pytest.mark.parametrize('name', ['lattice', 'staggered rows', 'one window'])
def test_undeclared_windows_have_no_weights(name):
    plan = BlendPlan(IRREGULAR[name])
    for window in (Window(1, 2, 6, 9), Window(100, 0, 116, 16)):
        with pytest.raises(CoverageError, match='declare it, or pass weights'):
            plan.get_weights(window)


# ---- the convention of the reference ----------------------------------------

def test_edge_weights_follow_the_reference():
    kwimage = pytest.importorskip('kwimage')
    for size in (256, 128):
        patch = kwimage.gaussian_patch((size, size))
        kernel = max(size // 8, 3) | 1
        patch = kwimage.morphology(patch / patch.max(), 'dilate', kernel=kernel, element='rect')
        expected = np.maximum(patch, 0.001)
        assert np.abs(edge_weights((size, size)) - expected).max() <= 1e-3


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (2, 3), (7, 64), (33, 20)])
def test_edge_weights_of_any_shape(shape):
    weights = edge_weights(shape)
    assert weights.shape == shape and weights.dtype == np.float32
    assert weights.max() == 1 and weights.min() >= np.float32(0.001)
    assert np.array_equal(weights, weights[::-1, ::-1])
    middle = weights[:(shape[0] + 1) // 2, shape[1] // 2]
    assert (np.diff(middle) >= 0).all()


def test_edge_weights_are_shared_and_read_only():
    weights = edge_weights((8, 8))
    assert edge_weights((8, 8)) is weights
    with pytest.raises(ValueError, match='read-only'):
        weights[0, 0] = 1
