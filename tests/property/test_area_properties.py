"""Areas of interest: what they touch, which windows they keep, how they blend."""
import numpy as np
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st

from cocoseg import BlendPlan, WindowGrid
from cocoseg.grid.area import Area
from cocoseg.stitch.masking import mask_outside

from ..strategies import SEEDS, axes, window_grids, windows_near

# Quarters lie on centres and edges of pixels, and leave no sliver that rounding hides.
QUARTERS = st.integers(-40, 200).map(lambda n: n / 4)
NEAR_QUARTERS = st.builds(lambda n, nudge: n + nudge, QUARTERS,
                          st.sampled_from([0, 1e-15, -1e-15, 1e-12, 5e-17]))
FLOATS = st.floats(-10, 50)


@st.composite
def areas(draw, numbers=QUARTERS):
    """Draw polygons, also with holes, with several parts, and in tangles."""
    def draw_shape():
        points = draw(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=7))
        shape = shapely.make_valid(shapely.Polygon(points))
        parts = [part for part in shapely.get_parts(shape)
                 if isinstance(part, (shapely.Polygon, shapely.MultiPolygon))]
        return shapely.union_all(parts)

    combine = draw(st.sampled_from([lambda a, b: a, shapely.union, shapely.difference,
                                    shapely.symmetric_difference]))
    shape = combine(draw_shape(), draw_shape())
    assume(not shape.is_empty and shape.is_valid)
    assume(isinstance(shape, (shapely.Polygon, shapely.MultiPolygon)))
    return Area(shape)


def get_centres(window):
    """Return the (x, y) of the centres of the pixels of a window, each (h, w)."""
    return np.meshgrid(np.arange(window.x0, window.x1) + 0.5,
                       np.arange(window.y0, window.y1) + 0.5)


@given(areas(), st.lists(windows_near((24, 30)), max_size=12))
def test_select_is_a_common_area(area, windows):
    boxes = [shapely.box(window.x0, window.y0, window.x1, window.y1) for window in windows]
    # Corners on quarters, within 50 px: no common area is nearly as small as this.
    common = [shapely.intersection(area.geometry, box).area > 1e-9 for box in boxes]
    expected = [window for window, found in zip(windows, common) if found]
    assert area.select(windows) == expected
    assert [window for window in windows if area.touches(window)] == expected


@given(areas(), windows_near((24, 30)))
def test_contains_is_no_area_outside(area, window):
    box = shapely.box(window.x0, window.y0, window.x1, window.y1)
    outside = shapely.difference(box, area.geometry).area
    assert area.contains(window) == (outside <= 1e-9)


@given(st.one_of(areas(), areas(NEAR_QUARTERS), areas(FLOATS)), windows_near((24, 30), 40))
def test_masks_are_exact(area, window):
    expected = ~shapely.contains_xy(area.geometry, *get_centres(window))
    mask = mask_outside(area, window)
    if mask is None:
        assert not expected.any()
    else:
        assert mask.dtype == bool and np.array_equal(mask, expected)


@given(areas(), windows_near((24, 30), 30), st.integers(1, 12), st.integers(1, 12))
def test_masks_of_parts_are_parts_of_the_mask(area, window, height, width):
    whole = mask_outside(area, window)
    whole = np.zeros(window.shape, bool) if whole is None else whole
    part = window.intersect(type(window)(window.y0 + 1, window.x0 + 2,
                                         window.y0 + 1 + height, window.x0 + 2 + width))
    mask = mask_outside(area, part)
    expected = whole[part.within(window).slices]
    assert not expected.any() if mask is None else np.array_equal(mask, expected)


def make_part(grid, area):
    """Return a grid with an area, and which pixels of the image are in the area."""
    image = shapely.box(0, 0, grid.shape[1], grid.shape[0])
    assume(shapely.intersection(area.geometry, image).area > 1e-9)
    part = WindowGrid(grid.shape, grid.window, grid.overlap, grid.fit, area=area)
    x, y = np.meshgrid(np.arange(grid.shape[1]) + 0.5, np.arange(grid.shape[0]) + 0.5)
    return part, shapely.contains_xy(area.geometry, x, y)


@given(window_grids(), st.one_of(areas(), areas(FLOATS)))
def test_pixels_of_the_area_are_in_the_same_windows_as_without_it(grid, area):
    part, inside = make_part(grid, area)
    chosen = list(part)
    assert chosen == [window for window in grid if window in part]
    assert len(chosen) == len(part) >= 1
    assert part.grid_shape == grid.grid_shape
    for window in set(grid) - set(chosen):
        assert not inside[window.clip(grid.shape).slices].any()


@given(window_grids(), areas(), st.sampled_from(['linear', 'cosine', 'gaussian', np.square]))
def test_weights_in_an_area_are_those_of_the_full_grid(grid, area, profile):
    part, inside = make_part(grid, area)
    plan, full = BlendPlan(part, profile), BlendPlan(grid, profile)
    total = np.zeros(np.maximum(grid.shape, grid.window))
    for window in part:
        weights = plan.get_weights(window)
        assert all(np.array_equal(*pair) for pair in zip(weights, full.get_weights(window)))
        total[window.slices] += np.outer(*(weight.astype(float) for weight in weights))
    assert np.abs(total[:grid.shape[0], :grid.shape[1]][inside] - 1).max(initial=0) <= 4e-7


@given(axes(max_window=24), axes(max_window=24), areas(), SEEDS)
def test_seam_bound_in_an_area(rows, columns, area, seed):
    grid = WindowGrid(*zip(rows, columns))
    part, inside = make_part(grid, area)
    plan = BlendPlan(part)
    rng = np.random.RandomState(seed)
    result = np.zeros(np.maximum(grid.shape, grid.window))
    for window in part:
        wy, wx = plan.get_weights(window)
        result[window.slices] += rng.randint(2) * np.outer(wy.astype(float), wx)
    result = np.where(inside, result[:grid.shape[0], :grid.shape[1]], np.nan)
    for axis in (0, 1):
        steps = np.abs(np.diff(result, axis=axis))
        bound = 1 / (grid.overlap[axis] or 1)
        assert (steps[np.isfinite(steps)] <= bound + 1e-6).all()
