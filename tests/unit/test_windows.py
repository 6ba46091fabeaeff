"""WindowGrid: where windows are placed, and which options are refused."""
import copy
import dataclasses
import pickle

import numpy as np
import pytest
import shapely
import shapely.geometry

from cocoseg import Window, WindowGrid
from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.area import Area
from cocoseg.grid.window import as_pair
from cocoseg.grid.windows import compute_starts


@pytest.mark.parametrize('size, window, overlap, balanced, flush', [
    (10, 4, 1, [0, 3, 6], [0, 3, 6]),        # fits: both are the same
    (11, 4, 1, [0, 2, 5, 7], [0, 3, 6, 7]),  # the slack is shared, or in the last pair
    (4, 4, 3, [0], [0]),                     # one window, exactly
    (3, 4, 3, [0], [0]),                     # one window that overhangs
    (5, 4, 3, [0, 1], [0, 1]),
    (5, 4, 0, [0, 1], [0, 1]),
    (8, 4, 0, [0, 4], [0, 4]),
    (3, 1, 0, [0, 1, 2], [0, 1, 2]),
])
def test_starts(size, window, overlap, balanced, flush):
    assert compute_starts(size, window, overlap) == balanced
    assert compute_starts(size, window, overlap, 'flush') == flush


def test_a_grid_is_the_product_of_its_starts():
    grid = WindowGrid((10, 7), window=(4, 5), overlap=(1, 2))
    assert grid.row_starts == [0, 3, 6]
    assert grid.column_starts == [0, 2]
    assert grid.grid_shape == (3, 2)
    assert list(grid) == [Window(y, x, y + 4, x + 5) for y in (0, 3, 6) for x in (0, 2)]
    assert len(grid) == len(list(grid)) == 6
    assert list(grid) == list(grid), 'a grid can be read again'


def test_a_small_image_gets_one_window_that_overhangs():
    assert list(WindowGrid((3, 9), window=4, overlap=2)) == [
        Window(0, 0, 4, 4), Window(0, 2, 4, 6), Window(0, 3, 4, 7), Window(0, 5, 4, 9)]


def test_grids_are_values():
    grid = WindowGrid((10, 7, 3), np.int64(4), overlap=[1, 2])
    assert grid == WindowGrid([10, 7], (4, 4), (1, 2))
    assert hash(grid) == hash(WindowGrid((10, 7), 4, (1, 2)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.window = (2, 2)


@pytest.mark.parametrize('options', [
    {'shape': (0, 5)}, {'shape': (5,)}, {'shape': (5.5, 5)},
    {'window': 0}, {'window': (4, -1)}, {'window': 4.5}, {'window': (1, 2, 3)}, {'window': 'ab'},
    {'overlap': -1}, {'overlap': 4}, {'overlap': (0, 5)}, {'overlap': 0.3}, {'overlap': None},
    {'fit': 'tight'}, {'fit': None},
])
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionError):
        WindowGrid(**{'shape': (9, 9), 'window': 4, 'overlap': 1, **options})


def test_a_refusal_names_the_value_and_the_choice():
    with pytest.raises(OptionError, match=r"fit='tight'.*balanced.*flush"):
        WindowGrid((9, 9), 4, fit='tight')
    with pytest.raises(OptionError, match=r'overlap=0\.3 must be whole pixels'):
        as_pair(0.3, 'overlap')


# ---- areas of interest ------------------------------------------------------

TRIANGLE = shapely.Polygon([(0, 0), (30, 0), (0, 20)])      # x, y


def test_an_area_leaves_windows_out():
    full = WindowGrid((40, 50), window=10, overlap=2)
    part = WindowGrid((40, 50), window=10, overlap=2, area=TRIANGLE)
    expected = [window for window in full
                if TRIANGLE.intersection(shapely.box(window.x0, window.y0, window.x1,
                                                     window.y1)).area > 0]
    assert list(part) == expected == list(part)
    assert len(part) == len(expected) == 4 + 3 + 1
    assert part.row_starts == full.row_starts
    assert part.column_starts == full.column_starts
    assert part.grid_shape == full.grid_shape
    assert [window for window in full if window in part] == expected


def test_membership():
    full = WindowGrid((40, 50), window=10, overlap=2)
    part = WindowGrid((40, 50), window=10, overlap=2, area=TRIANGLE)
    first, last = Window(0, 0, 10, 10), Window(30, 40, 40, 50)
    assert first in full and last in full
    assert first in part and last not in part
    for other in (Window(0, 1, 10, 11), Window(0, 0, 10, 11), Window(1, 0, 11, 10),
                  first.slices, (0, 0, 10, 10), None, 3):
        assert other not in full and other not in part


@pytest.mark.parametrize('area', [
    Area(TRIANGLE), shapely.MultiPolygon([TRIANGLE]), shapely.geometry.mapping(TRIANGLE)])
def test_an_area_is_given_in_any_notation(area):
    grid = WindowGrid((40, 50), 10, 2, 'balanced', area)
    assert isinstance(grid.area, Area)
    assert grid == WindowGrid((40, 50), 10, 2, area=TRIANGLE) and len(grid) == 8


def test_kwimage_polygons_are_areas():
    kwimage = pytest.importorskip('kwimage')
    polygon = kwimage.Polygon.from_shapely(TRIANGLE)
    for area in (polygon, polygon.to_multi_polygon()):
        assert list(WindowGrid((40, 50), 10, 2, area=area)) == list(
            WindowGrid((40, 50), 10, 2, area=TRIANGLE))


def test_grids_with_an_area_are_values():
    grid = WindowGrid((40, 50), 10, 2, area=TRIANGLE)
    fresh = pickle.dumps(grid)
    twin = WindowGrid((40, 50), 10, 2, area=shapely.Polygon(TRIANGLE.exterior.coords[::-1]))
    n_windows = len(grid)                                    # computes and keeps the windows
    assert grid == twin and hash(grid) == hash(twin)
    assert grid != WindowGrid((40, 50), 10, 2)
    assert grid != WindowGrid((40, 50), 10, 2, area=TRIANGLE.buffer(1))
    assert pickle.dumps(grid) == fresh
    for other in (pickle.loads(fresh), copy.copy(grid), copy.deepcopy(grid)):
        assert other == grid and list(other) == list(grid) and len(other) == n_windows
    wider = dataclasses.replace(grid, shape=(40, 60), overlap=0)
    assert list(wider) == list(WindowGrid((40, 60), 10, area=TRIANGLE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.area = None


@pytest.mark.parametrize('area', [
    shapely.box(50, 0, 60, 40),                              # a common side
    shapely.box(50, 40, 60, 60),                             # a common corner
    shapely.box(-9, -9, 0, 100),
    shapely.box(0, 1000, 10, 1010),
    # The image is in its hole.
    shapely.Polygon(shapely.box(-9, -9, 99, 99).exterior, [shapely.box(0, 0, 50, 40).exterior]),
])
def test_an_area_beside_the_image_is_refused(area):
    with pytest.raises(CoverageError, match='height 40 and width 50; give it in pixels'):
        WindowGrid((40, 50), 10, 2, area=area)


def test_an_area_partly_outside_the_image():
    area = shapely.MultiPolygon([shapely.box(-99, -99, 1, 1), shapely.box(45, 38, 900, 900),
                                 shapely.box(100, 0, 110, 5)])
    grid = WindowGrid((40, 50), window=10, overlap=2, area=area)
    assert list(grid) == [Window(0, 0, 10, 10), Window(30, 40, 40, 50)]


def test_wrong_areas_are_refused():
    for area in (shapely.Point(1, 1), 'everywhere', shapely.Polygon()):
        with pytest.raises(OptionError, match='area'):
            WindowGrid((40, 50), 10, area=area)


def test_one_pixel_images_have_areas():
    grid = WindowGrid((1, 1), 1, area=shapely.box(0.9, 0.9, 5, 5))
    assert list(grid) == [Window(0, 0, 1, 1)]
    with pytest.raises(CoverageError):
        WindowGrid((1, 1), 1, area=shapely.box(1, 0, 5, 5))


def test_what_a_window_sees_beyond_the_image_does_not_count():
    # Rows 3 … 7 of these windows are no pixels.
    area = shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(14, 3, 16, 8)])
    grid = WindowGrid((3, 16), window=8, overlap=0, area=area)
    assert list(grid) == [Window(0, 0, 8, 8)]
    assert Window(0, 8, 8, 16) not in grid
    assert list(WindowGrid((3, 5), 8, area=area)) == [Window(0, 0, 8, 8)]


def test_an_area_over_the_whole_image_changes_nothing():
    full = WindowGrid((40, 50), 10, 2)
    part = WindowGrid((40, 50), 10, 2, area=shapely.box(-1, -1, 51, 41))
    assert list(part) == list(full) and len(part) == len(full)
    assert part != full
