"""Blend weights: profiles, chains, irregular lists, the seam bound, edge weights."""
import numpy as np
import pytest
import shapely

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
        np.testing.assert_allclose(weight, np.maximum(row, FLOOR), rtol=2e-6)


def test_many_windows_over_a_pixel_sum_to_one():
    # 64 windows over most pixels, of which all but one or two have been taken over.
    intervals = [(start, start + 64) for start in range(-7, 200)]
    weights = compute_handovers(intervals, 1, get_profile('linear'))
    total = np.zeros(400)
    for (start, stop), weight in zip(intervals, weights):
        total[start + 7:stop + 7] += weight.astype(float)
        assert set(weight[weight < 0.4]) == {FLOOR}
    covered = total > 0
    assert covered.sum() == 206 + 64
    assert np.abs(total[covered] - 1).max() <= 2e-7
    assert weights[0][0] == weights[-1][-1] == 1


def test_a_far_gap_costs_no_memory():
    intervals = [(-10 ** 15, 5 - 10 ** 15), (0, 4), (3, 7), (10 ** 15, 10 ** 15 + 3)]
    weights = compute_handovers(intervals, None, get_profile('linear'))
    assert [weight.tolist() for weight in weights] == [
        [1] * 5, [1, 1, 1, 0.5], [0.5, 1, 1, 1], [1] * 3]


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


# ---- one odd window in a lattice --------------------------------------------

LATTICE = WindowGrid((66, 66), window=16, overlap=6)        # 6 x 6, strides of 10


def measure_steps(windows, shape):
    """Return the largest steps that blending adds along the axes, as (2, H, W) arrays."""
    plan = BlendPlan(windows)
    weights = np.zeros((len(windows), *shape))
    for plane, window in zip(weights, windows):
        plane[window.slices] = np.outer(*(part.astype(float)
                                          for part in plan.get_weights(window)))
    weights /= weights.sum(axis=0)
    steps = np.zeros((2, *shape))
    steps[0, 1:] = np.abs(np.diff(weights, axis=1)).sum(axis=0) / 2
    steps[1, :, 1:] = np.abs(np.diff(weights, axis=2)).sum(axis=0) / 2
    return steps


@pytest.mark.parametrize('offset', [(3, 3), (1, 9), (-3, -3), (5, 0)])
def test_an_odd_window_changes_nothing_away_from_it(offset):
    # Fresh windows around the middle of the image, on no row and column of the others.
    odd = Window(20, 20, 36, 36).shift(*offset)
    clean, plan = BlendPlan(list(LATTICE)), BlendPlan([*LATTICE, odd])
    near = [window for window in LATTICE if not window.intersect(odd).is_empty]
    assert 4 <= len(near) < len(LATTICE)
    for window in set(LATTICE) - set(near):
        for actual, expected in zip(plan.get_weights(window), clean.get_weights(window)):
            np.testing.assert_allclose(actual, expected, rtol=1e-6)
    steps = measure_steps([*LATTICE, odd], LATTICE.shape)
    away = np.ones(LATTICE.shape, bool)
    for window in near:
        away[window.y0:window.y1 + 1, window.x0:window.x1 + 1] = False
    assert away.sum() > 900
    assert steps[:, away].max() <= 1 / (6 + 1) + 1e-6
    # No bound is claimed beside the odd one; it shall be no cut, either.
    assert steps.max() <= 2 / 6


@pytest.mark.parametrize('shift', [(3, 3), (0, 3), (-5, 20), (35, 35)])
def test_with_an_odd_window_a_constant_stays_constant(shift):
    windows = [*LATTICE, Window(20, 20, 36, 36).shift(*shift)]
    stitcher = SoftStitcher(LATTICE.shape, windows)
    for window in windows:
        stitcher.add(window, np.full(window.shape, 0.7, 'f4'))
    np.testing.assert_allclose(stitcher.finalize(), np.float32(0.7), rtol=1e-6)


@pytest.mark.parametrize('name, windows, regular', [
    ('full', GRID, True),
    ('half of every row and column', [w for w in GRID if (w.y0 + w.x0) % 4 == 0], True),
    ('one hole', GRID[1:], True),
    ('one odd window', [*GRID, Window(3, 3, 19, 19)], False),
    ('one odd row', [*GRID, Window(0, 3, 16, 19)], False),
    ('one odd window, declared often', [*GRID, *[Window(3, 3, 19, 19)] * 9], False),
    ('a diagonal', [Window(n, n, n + 9, n + 9) for n in range(0, 40, 6)], False),
    ('staggered', STAGGERED, False),
    ('nested', [Window(0, 0, 40, 44), Window(10, 10, 20, 20)], False),
])
def test_only_lists_on_rows_and_columns_share_ramps(name, windows, regular):
    plan = BlendPlan(windows)
    assert plan.is_unity == regular
    by_row = {}
    for window in windows:
        by_row.setdefault((window.y0, window.y1), []).append(plan.get_weights(window)[0])
    shared = all(np.array_equal(part, parts[0]) for parts in by_row.values() for part in parts)
    assert shared or not regular


# ---- lattice and unity ------------------------------------------------------

@pytest.mark.parametrize('windows, lattice', [
    (WindowGrid((9, 4), (5, 4), (1, 0)), (((0, 5), (4, 9)), ((0, 4),))),
    (WindowGrid((3, 3), 8), (((0, 8),), ((0, 8),))),                   # overhangs
    ([Window(-2, 1, 3, 4)], (((-2, 3),), ((1, 4),))),
    ([Window(0, 4, 2, 7), Window(0, 0, 2, 5)], (((0, 2),), ((0, 5), (4, 7)))),
    ([Window(0, 0, 2, 2)] * 2, None),
    ([Window(0, 0, 4, 4), Window(2, 2, 6, 6)], None),
    ([Window(0, 0, 4, 4), Window(0, 2, 4, 3)], None),                  # inside the other
    (GRID[1:], None),
    (WindowGrid((40, 44), 16, 6, area=shapely.box(0, 0, 5, 5)), None),
    (WindowGrid((9, 4), (5, 4), (1, 0), area=shapely.box(1, 0, 2, 9)),
     (((0, 5), (4, 9)), ((0, 4),))),                                   # leaves out nothing
])
@pytest.mark.parametrize('profile', ['linear', 'constant'])
def test_lattice(windows, lattice, profile):
    assert BlendPlan(windows, profile).lattice == lattice


@pytest.mark.parametrize('windows, profile, is_unity', [
    (WindowGrid((40, 44), 16, 6), 'linear', True),
    (WindowGrid((40, 44), 16, 6), 'constant', False),
    (WindowGrid((40, 40), (16, 10), (6, 0)), 'constant', False),       # on one axis
    (WindowGrid((40, 40), 10), 'constant', True),                      # side by side
    (WindowGrid((41, 40), 10), 'constant', False),                     # overlaps by chance
    (WindowGrid((4, 4), 10, 9), 'constant', True),                     # one window
    (WindowGrid((40, 44), 16, 6, area=shapely.box(0, 0, 9, 9)), 'cosine', True),
    (GRID[1:], 'linear', True),
    ([*GRID, GRID[3]], 'linear', False),                               # comes twice
    (STAGGERED, 'linear', False),
    (STAGGERED, 'constant', False),
])
def test_unity(windows, profile, is_unity):
    assert BlendPlan(windows, profile).is_unity is is_unity


def test_large_grids_are_planned_without_their_windows(monkeypatch):
    def refuse(grid):
        raise AssertionError('43 264 windows were made')

    monkeypatch.setattr(WindowGrid, '__iter__', refuse)
    plan = BlendPlan(WindowGrid((40_000, 40_000), 256, 64))
    assert [len(chain) for chain in plan.lattice] == [208, 208]
    wy, wx = plan.get_weights(Window(0, 39_744, 256, 40_000))
    assert wy[0] == wx[-1] == 1 and len(wy) == len(wx) == 256


@pytest.mark.parametrize('windows', [
    GRID[1:], WindowGrid((40, 44), 16, 6, area=shapely.box(20, 20, 44, 40))])
def test_windows_that_were_left_out_have_no_weights(windows):
    plan = BlendPlan(windows)
    assert GRID[0] not in windows and GRID[-1] in windows
    plan.get_weights(GRID[-1])
    with pytest.raises(CoverageError, match=f'one of the {len(windows)} windows'):
        plan.get_weights(GRID[0])


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
