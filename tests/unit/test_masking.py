"""mask_outside: exactly the pixels whose centre is not in the area."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import shapely

from cocoseg import Window
from cocoseg.grid.area import Area
from cocoseg.stitch import masking
from cocoseg.stitch.masking import mask_outside

RING = shapely.Polygon(shapely.Point(50, 50).buffer(45).exterior,
                       [shapely.Point(55, 45).buffer(20).exterior])


def mask_slowly(area, window):
    """Ask for the centre of every pixel."""
    x, y = np.meshgrid(np.arange(window.x0, window.x1) + 0.5,
                       np.arange(window.y0, window.y1) + 0.5)
    return ~shapely.contains_xy(area.geometry, x, y)


def make_star(n_vertices, radius, centre, seed=0):
    """Return a jagged polygon."""
    angles = np.linspace(0, 2 * np.pi, n_vertices, endpoint=False)
    reach = radius * np.random.RandomState(seed).uniform(0.6, 1, n_vertices)
    return shapely.Polygon(np.c_[centre + reach * np.cos(angles),
                                 centre + reach * np.sin(angles)])


def test_three_answers():
    area = Area(shapely.box(0, 0, 8, 8))
    assert mask_outside(area, Window(0, 0, 8, 8)) is None
    assert mask_outside(area, Window(2, 2, 5, 5)) is None
    assert mask_outside(area, Window(8, 0, 9, 2)).tolist() == [[True, True]]
    crossed = mask_outside(area, Window(6, 6, 9, 10))
    assert crossed.dtype == bool and crossed.shape == (3, 4)
    assert crossed.astype(int).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]


def test_an_empty_window_has_nothing_to_mask():
    assert mask_outside(Area(shapely.box(0, 0, 8, 8)), Window(20, 20, 20, 30)) is None


@pytest.mark.parametrize('name, geometry', [
    ('through centres', shapely.box(1.5, 1.5, 6.5, 4.5)),
    ('to the last centre', shapely.box(0, 0, 7.5, 7.5)),
    ('one centre', shapely.box(2.4, 2.4, 2.6, 2.6)),
    ('no centre', shapely.box(2.6, 2.6, 3.4, 3.4)),
    ('corners on centres', shapely.Polygon([(0.5, 3.5), (3.5, 0.5), (6.5, 3.5), (3.5, 6.5)])),
    ('level and sharp', shapely.Polygon([(0.5, 2.5), (7.5, 2.5), (7.5, 2.6)])),
    ('nearly level', shapely.Polygon([(-9, 2.5), (19, 2.5 + 1e-15), (19, 5)])),
    ('nearly upright', shapely.Polygon([(2.5, -9), (2.5 + 1e-15, 19), (5, 19)])),
    ('needle', shapely.Polygon([(-50, 0), (50, 7.3), (50, 7.3000001)])),
    ('hole on centres', shapely.Polygon(shapely.box(0, 0, 8, 8).exterior,
                                        [shapely.box(2.5, 2.5, 4.5, 4.5).exterior])),
    ('hole that ends in a centre', shapely.Polygon(
        shapely.box(-1, -1, 9, 9).exterior, [[(1.5, 1.5), (5.5, 1.5), (3.5, 4.5)]])),
    ('hole that begins in a centre', shapely.Polygon(
        shapely.box(-1, -1, 9, 9).exterior, [[(3.5, 1.5), (5.5, 4.5), (1.5, 4.5)]])),
    ('parts that meet in a centre', shapely.MultiPolygon([
        shapely.box(0, 0, 3.5, 3.5), shapely.box(3.5, 3.5, 8, 8)])),
    ('stairs', shapely.union_all([shapely.box(i, i, i + 2, i + 1) for i in range(8)])),
    ('thin stairs', shapely.union_all([shapely.box(i / 2, i / 2, i / 2 + 1, i / 2 + 0.5)
                                       for i in range(16)])),
    ('far outside', shapely.box(-1e12, -1e12, 3.5, 1e12)),
    ('at the limit', shapely.Polygon([(-2.0 ** 52, 0), (2.0 ** 52, 8), (-2.0 ** 52, 9)])),
])
def test_edges_on_centres(name, geometry):
    area = Area(geometry)
    for window in (Window(0, 0, 8, 8), Window(-3, -2, 12, 5), Window(2, 3, 3, 4),
                   Window(0, 0, 1, 9), Window(0, 3, 8, 4)):
        mask = mask_outside(area, window)
        expected = mask_slowly(area, window)
        assert np.array_equal(np.zeros(window.shape, bool) if mask is None else mask, expected)


@pytest.mark.parametrize('offset', [0, 1, 12345, 2 ** 31, -10 ** 9])
def test_holes_anywhere(offset):
    area = Area(shapely.transform(RING, lambda points: points + offset))
    for window in (Window(0, 0, 100, 100), Window(-20, 40, 31, 140), Window(37, 41, 60, 70)):
        window = window.shift(offset, offset)
        assert np.array_equal(mask_outside(area, window), mask_slowly(area, window))


@pytest.mark.parametrize('n_vertices', [3, 40, 3000])
def test_jagged_polygons(n_vertices):
    area = Area(make_star(n_vertices, 60, 61.3))
    window = Window(1, 0, 120, 125)
    assert np.array_equal(mask_outside(area, window), mask_slowly(area, window))


@pytest.mark.parametrize('n_pixels', [1, 60, 1000])
def test_strips_make_no_difference(n_pixels, monkeypatch):
    area, window = Area(RING), Window(-3, 2, 98, 107)
    expected = mask_outside(area, window)
    monkeypatch.setattr(masking, '_STRIP_PIXELS', n_pixels)
    assert np.array_equal(mask_outside(area, window), expected)


def test_few_centres_are_tested_one_by_one(monkeypatch):
    area, asked = Area(make_star(100, 128, 128)), []
    ask = Area.contains_points
    monkeypatch.setattr(Area, 'contains_points', lambda self, x, y: (
        asked.append(np.broadcast(x, y).size), ask(self, x, y))[1])
    mask = mask_outside(area, Window(0, 0, 256, 256))
    assert 0 < mask.sum() < mask.size
    assert sum(asked) <= 8


def test_threads_may_share_an_area():
    area = Area(make_star(200, 128, 128))
    windows = [Window(y, x, y + 64, x + 64) for y in range(0, 256, 32) for x in range(0, 256, 32)]
    expected = [mask_outside(Area(area.geometry), window) for window in windows]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda window: mask_outside(area, window), windows))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected))
