"""Area: which notations of polygons are read, which are refused, and what they touch."""
import copy
import pickle

import numpy as np
import pytest
import shapely
from shapely.geometry import mapping

from cocoseg import Window
from cocoseg.errors import OptionError
from cocoseg.grid.area import Area

SQUARE = shapely.box(2, 4, 10, 8)                                   # x 2..10, y 4..8
HOLED = shapely.Polygon(shapely.box(0, 0, 12, 12).exterior,
                        [shapely.box(4, 4, 8, 8).exterior])
PARTS = shapely.MultiPolygon([shapely.box(0, 0, 3, 3), shapely.box(5, 5, 9, 9)])
RING = [[2, 4], [10, 4], [10, 8], [2, 8], [2, 4]]
GEOJSON = {'type': 'Polygon', 'coordinates': [RING]}


with np.errstate(invalid='ignore'):
    WITH_NAN = shapely.Polygon([(0, 0), (4, np.nan), (4, 4)])
    WITH_INF = shapely.Polygon([(0, 0), (np.inf, 0), (4, 4)])


class WithGeoInterface:
    __geo_interface__ = GEOJSON

    def __repr__(self):
        # The name of its test, the same in every process.
        return 'WithGeoInterface()'


# ---- notations --------------------------------------------------------------

@pytest.mark.parametrize('notation', [
    SQUARE,
    Area(SQUARE),
    shapely.MultiPolygon([SQUARE]),
    shapely.MultiPolygon([shapely.Polygon(), SQUARE]),
    shapely.Polygon(RING[::-1]),
    shapely.Polygon(RING[2:] + RING[1:3]),                           # starts elsewhere
    shapely.Polygon([(x, y, 7) for x, y in RING]),                   # heights are dropped
    shapely.GeometryCollection([SQUARE]),
    shapely.GeometryCollection([shapely.GeometryCollection([SQUARE]), shapely.Polygon()]),
    shapely.GeometryCollection([shapely.box(2, 4, 7, 8), shapely.box(5, 4, 10, 8)]),
    GEOJSON,
    {'type': 'Feature', 'properties': {}, 'geometry': GEOJSON},
    {'type': 'FeatureCollection', 'features': [{'type': 'Feature', 'geometry': GEOJSON}]},
    {'type': 'GeometryCollection', 'geometries': [GEOJSON]},
    WithGeoInterface(),
], ids=str)
def test_every_notation_is_the_same_area(notation):
    area = Area.coerce(notation)
    assert area.geometry.area == 32
    assert area.select([Window(0, 0, 5, 3), Window(0, 0, 4, 2)]) == [Window(0, 0, 5, 3)]
    assert not area.geometry.has_z
    if shapely.get_num_coordinates(area.geometry) == 5:              # a union may have more
        assert area == Area(SQUARE) and hash(area) == hash(Area(SQUARE))


@pytest.mark.parametrize('multi', [False, True])
def test_kwimage_polygons(multi):
    kwimage = pytest.importorskip('kwimage')
    polygon = kwimage.Polygon(exterior=np.array(RING[:-1]),
                              interiors=[np.array([[4, 5], [6, 5], [6, 7], [4, 7]])])
    data = polygon.to_multi_polygon() if multi else polygon
    area = Area.coerce(data)
    assert area.geometry.area == 28
    assert not area.touches(Window(5, 4, 7, 6)), 'the hole'
    assert area.contains(Window(4, 2, 5, 10))


def test_an_area_stays_itself():
    area = Area(SQUARE)
    assert Area.coerce(area) is area


@pytest.mark.parametrize('bad, message', [
    (None, 'NoneType is no polygon'),
    ('POLYGON ((0 0, 1 0, 1 1, 0 0))', 'str is no polygon'),
    ([(0, 0), (1, 0), (1, 1)], 'list is no polygon'),
    (Window(0, 0, 2, 2), 'Window is no polygon'),
    (shapely.Point(1, 1), 'holds Point'),
    (shapely.LineString([(0, 0), (5, 5)]), 'holds LineString'),
    (SQUARE.exterior, 'holds LinearRing'),
    (shapely.GeometryCollection([SQUARE, shapely.Point(1, 1)]), 'holds Point'),
    (shapely.GeometryCollection([shapely.GeometryCollection([shapely.MultiPoint([(1, 1)])])]),
     'holds MultiPoint'),
    (shapely.Polygon(), 'POLYGON EMPTY is empty'),
    (shapely.MultiPolygon(), 'is empty'),
    (shapely.GeometryCollection(), 'is empty'),
    (shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)]), 'Self-intersection'),
    (shapely.Polygon([(0, 0), (4, 0), (0, 0)]), 'no valid Polygon: Too few points'),
    (shapely.MultiPolygon([SQUARE, SQUARE.buffer(1)]), 'no valid MultiPolygon.*union_all'),
    (shapely.Polygon(RING, [[(20, 20), (21, 20), (21, 21)]]), 'Hole lies outside shell'),
    (shapely.GeometryCollection([shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])]),
     'Self-intersection'),
    (WITH_NAN, r'1 vertices.*\(4\.0, nan\)'),
    (WITH_INF, r'\(inf, 0\.0\).*finite'),
    (shapely.Polygon([(0, 0), (1e200, 0), (4, 4)]), r'1e\+200'),
    ({}, 'cannot be read as a polygon'),
    ({'type': 'Polygon'}, 'cannot be read as a polygon'),
    ({'type': 'Polygon', 'coordinates': [[[0, 0], [1, 1]]]}, 'cannot be read as a polygon'),
    ({'type': 'Polygon', 'coordinates': 'abc'}, 'cannot be read as a polygon'),
    ({'type': 'Feature', 'geometry': None}, 'cannot be read as a polygon'),
    ({'type': 'Feature'}, 'cannot be read as a polygon'),
    ({'type': 'Point', 'coordinates': [1, 2]}, 'holds Point'),
    ({'type': 'FeatureCollection', 'features': []}, 'is empty'),
])
def test_what_is_no_area_is_refused(bad, message):
    for make in (Area, Area.coerce):
        with pytest.raises(OptionError, match=message) as caught:
            make(bad)
        assert 'give' in str(caught.value) or 'repair' in str(caught.value)


def test_kwimage_polygons_that_enclose_nothing_are_refused():
    kwimage = pytest.importorskip('kwimage')
    with pytest.raises(OptionError, match='cannot be read as a polygon'):
        Area.coerce(kwimage.Polygon(exterior=np.array([[0, 0], [1, 1]])))
    with pytest.raises(OptionError):
        Area.coerce(kwimage.Boxes([[0, 0, 4, 4]], 'ltrb'))


# ---- values -----------------------------------------------------------------

def test_areas_are_values():
    area = Area(HOLED)
    assert area == Area(shapely.Polygon(HOLED.exterior.coords[::-1], HOLED.interiors))
    assert area != Area(SQUARE) and area != HOLED
    assert len({area, Area(HOLED), Area(SQUARE)}) == 2
    with pytest.raises(AttributeError):
        area.geometry = SQUARE
    assert repr(area) == 'Area(Polygon, y=0:12, x=0:12, 128 px)'


def test_negative_zero_is_zero():
    area = Area(shapely.box(-0.0, -0.0, 3, 3))
    assert area == Area(shapely.box(0, 0, 3, 3))
    assert hash(area) == hash(Area(shapely.box(0, 0, 3, 3)))


@pytest.mark.parametrize('duplicate', [
    copy.copy, copy.deepcopy, lambda area: pickle.loads(pickle.dumps(area))])
def test_copies_are_equal_and_work(duplicate):
    area = Area(PARTS)
    twin = duplicate(area)
    assert twin == area and hash(twin) == hash(area)
    assert twin.touches(Window(0, 0, 1, 1)) and not twin.touches(Window(3, 3, 5, 5))
    assert shapely.is_prepared(twin.geometry)


def test_the_geometry_of_the_caller_is_not_kept():
    mine = shapely.Polygon(RING)
    area = Area(mine)
    assert area.geometry is not mine
    assert not shapely.is_prepared(mine)
    data = mapping(mine)
    Area.coerce(data)
    assert data == mapping(mine)


# ---- windows ----------------------------------------------------------------

@pytest.mark.parametrize('geometry, window, touches, contains', [
    (SQUARE, Window(4, 2, 8, 10), True, True),                       # the same rectangle
    (SQUARE, Window(5, 3, 6, 4), True, True),
    (SQUARE, Window(0, 0, 20, 20), True, False),                     # around it
    (SQUARE, Window(7, 9, 20, 20), True, False),                     # one pixel in common
    (SQUARE, Window(8, 2, 9, 10), False, False),                     # a common side
    (SQUARE, Window(0, 0, 4, 2), False, False),                      # a common corner
    (SQUARE, Window(4, 10, 8, 12), False, False),
    (SQUARE, Window(-9, -9, -1, -1), False, False),
    (SQUARE, Window(5, 5, 5, 9), False, True),                       # no pixel
    (HOLED, Window(4, 4, 8, 8), False, False),                       # fills the hole
    (HOLED, Window(5, 5, 7, 7), False, False),                       # inside the hole
    (HOLED, Window(4, 4, 8, 9), True, False),
    (HOLED, Window(0, 0, 12, 12), True, False),
    (HOLED, Window(0, 0, 4, 12), True, True),
    (PARTS, Window(3, 3, 5, 5), False, False),                       # between the parts
    (PARTS, Window(2, 2, 6, 6), True, False),
    (PARTS, Window(6, 6, 7, 7), True, True),
    (shapely.box(3.2, 3.2, 3.4, 3.4), Window(3, 3, 4, 4), True, False),     # within a pixel
    (shapely.box(0, 0, 3.001, 3), Window(0, 3, 3, 6), True, False),  # a sliver
    (shapely.box(0, 0, np.nextafter(3, 4), 3), Window(0, 3, 3, 6), True, False),
    (shapely.box(0, 0, np.nextafter(3, 2), 3), Window(0, 2, 3, 3), True, False),
    (shapely.Polygon([(3, 0), (6, 3), (3, 6), (0, 3)]), Window(0, 0, 1, 1), False, False),
    (shapely.Polygon([(3, 0), (6, 3), (3, 6), (0, 3)]), Window(0, 0, 2, 2), True, False),
    (shapely.Polygon([(2, 0), (0, 2), (4, 2)]), Window(0, 0, 1, 1), False, False),  # by a corner
])
def test_touching_is_a_common_area(geometry, window, touches, contains):
    area = Area(geometry)
    assert area.touches(window) is touches
    assert area.contains(window) is contains
    assert area.select([window]) == ([window] if touches else [])


def test_select_keeps_the_order_and_repeats():
    windows = [Window(7, 7, 9, 9), Window(3, 3, 5, 5), Window(0, 0, 2, 2), Window(7, 7, 9, 9)]
    assert Area(PARTS).select(iter(windows)) == [windows[0], windows[2], windows[3]]
    assert Area(PARTS).select([]) == []


def test_find_takes_any_integers():
    edges = np.array([[0, 0, 2, 2], [3, 3, 5, 5], [5, 5, 6, 6]], np.int32)
    assert Area(PARTS).find(edges).tolist() == [0, 2]
    assert Area(PARTS).find(np.zeros((0, 4), int)).tolist() == []


def test_segments_are_the_boundary_of_all_rings():
    for geometry in (SQUARE, HOLED, PARTS):
        area = Area(geometry)
        y0, x0, y1, x1 = area.segments.T
        assert (y0 <= y1).all()
        assert np.hypot(y1 - y0, x1 - x0).sum() == pytest.approx(geometry.length)
        assert len(area.segments) == sum(len(ring.coords) - 1
                                         for part in getattr(geometry, 'geoms', [geometry])
                                         for ring in [part.exterior, *part.interiors])


def test_points_on_the_boundary_are_outside():
    area = Area(HOLED)
    x = np.array([0, 6, 4, 4, 12, 2, 3.999999999])
    y = np.array([0, 0, 4, 6, 12, 2, 6])
    assert area.contains_points(x, y).tolist() == [False] * 5 + [True, True]
    assert area.contains_points(x[:, None], y).shape == (7, 7)
