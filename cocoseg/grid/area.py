"""
Areas of interest: polygons in pixels that say which windows matter.

Coordinates are those of shapely, x first: pixel (row i, column j) covers the
square ``[j, j + 1) x [i, i + 1)``, and its centre is ``(j + 0.5, i + 0.5)``.
What is asked here is where a window lies; :mod:`cocoseg.stitch.masking` asks
the same of single pixels.
"""
from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.grid.window import Window

# Beyond this, neighbouring pixels have the same coordinates.
_MAX_COORDINATE = 2.0 ** 52
_NOTATIONS = ('a shapely (Multi)Polygon, a kwimage Polygon or MultiPolygon, '
              'or GeoJSON, in pixels (x, y)')


def _iter_parts(geometry):
    """Yield the members of nested collections, or the geometry itself."""
    if geometry.geom_type != 'GeometryCollection':
        yield geometry
        return
    for part in geometry.geoms:
        yield from _iter_parts(part)


def _check_geometry(geometry):
    """Raise OptionError unless a shapely geometry encloses pixels."""
    import shapely
    kinds = {part.geom_type for part in _iter_parts(geometry)}
    others = sorted(kinds - {'Polygon', 'MultiPolygon'})
    if others:
        raise OptionError(f'area of kind {geometry.geom_type} holds {", ".join(others)}, which '
                          f'enclose no pixels; give polygons only: {_NOTATIONS}')
    if geometry.is_empty:
        raise OptionError(f'area {geometry.wkt} is empty; give a polygon, or no area at all '
                          'for the whole image')
    coordinates = shapely.get_coordinates(geometry)
    # NaN fails the comparison.
    wrong = coordinates[~(np.abs(coordinates) <= _MAX_COORDINATE).all(axis=1)]
    if len(wrong):
        raise OptionError(f'area has {len(wrong)} vertices that are no place in pixels, the first '
                          f'is (x, y) = {tuple(wrong[0].tolist())}; give finite coordinates '
                          'within ±2**52')
    if not shapely.is_valid(geometry):
        raise OptionError(f'area is no valid {geometry.geom_type}: '
                          f'{shapely.is_valid_reason(geometry)}; repair it, for example with '
                          'shapely.make_valid, or join its parts with shapely.union_all')


def _canonize(geometry):
    """Return the 2-D (Multi)Polygon of a geometry, the same for equal point sets."""
    import shapely
    if geometry.geom_type == 'GeometryCollection':
        # A collection means all of its members; they may overlap.
        geometry = shapely.union_all(list(_iter_parts(geometry)))
    parts = [part for part in shapely.get_parts(shapely.force_2d(geometry)) if not part.is_empty]
    geometry = shapely.normalize(parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts))
    # -0.0 equals 0.0 but has another hash.
    return shapely.transform(geometry, lambda coordinates: coordinates + 0.0)


def _from_mapping(data):
    """Build a shapely geometry from a GeoJSON geometry, feature or collection."""
    import shapely.geometry
    if data.get('type') == 'Feature':
        return _from_mapping(data['geometry'])
    if data.get('type') == 'FeatureCollection':
        return shapely.GeometryCollection([_from_mapping(part) for part in data['features']])
    return shapely.geometry.shape(data)


def _as_geometry(data):
    """Return what :meth:`Area.coerce` takes as a shapely geometry; None if it cannot."""
    import shapely
    if isinstance(data, shapely.Geometry):
        return data
    try:
        if hasattr(data, 'to_shapely'):
            data = data.to_shapely()
        elif hasattr(data, '__geo_interface__'):
            data = _from_mapping(data.__geo_interface__)
        elif isinstance(data, Mapping):
            data = _from_mapping(data)
    except (shapely.errors.ShapelyError, LookupError, TypeError, ValueError,
            AttributeError) as ex:
        raise OptionError(f'area={data!r:.200} cannot be read as a polygon: {ex}; '
                          f'give {_NOTATIONS}') from ex
    return data if isinstance(data, shapely.Geometry) else None


@dataclass(frozen=True, repr=False)
class Area:
    """
    An area of interest, in pixels.

    A frozen value: the same rings make equal areas, whatever vertex each of
    them starts from and which comes first. The caller's geometry is not kept.

    Args:
        geometry (shapely.Polygon | shapely.MultiPolygon): x first, may have
            holes and lie partly outside the image. A collection of polygons
            stands for their union. Heights (z) are dropped. See
            :meth:`coerce` for other notations.

    Raises:
        OptionError: if it is no polygon, is empty, is not valid, or has a
            vertex that is not finite.

    Thread-safety: may be asked from many threads; they take turns.

    Example:
        >>> import shapely
        >>> from cocoseg.grid.area import Area
        >>> from cocoseg.grid.window import Window
        >>> area = Area(shapely.Polygon([(2, 0), (9, 0), (2, 7)]))
        >>> windows = [Window(0, 0, 2, 2), Window(0, 0, 4, 4), Window(6, 6, 9, 9)]
        >>> area.select(windows)
        [Window(y=0:4, x=0:4)]
        >>> area.touches(windows[0]), area.contains(Window(1, 3, 3, 5))
        (False, True)
    """

    geometry: Any

    def __post_init__(self):
        import shapely
        geometry = _as_geometry(self.geometry)
        if geometry is None:
            raise OptionError(f'area={self.geometry!r:.200} of type '
                              f'{type(self.geometry).__name__} is no polygon; give {_NOTATIONS}')
        _check_geometry(geometry)
        geometry = _canonize(geometry)
        shapely.prepare(geometry)
        object.__setattr__(self, 'geometry', geometry)
        # A prepared geometry builds its indexes, and searches them, without the
        # GIL and without a lock of its own.
        object.__setattr__(self, '_lock', threading.Lock())

    def __repr__(self):
        x0, y0, x1, y1 = self.geometry.bounds
        return (f'Area({self.geometry.geom_type}, y={y0:g}:{y1:g}, x={x0:g}:{x1:g}, '
                f'{self.geometry.area:g} px)')

    def __reduce__(self):
        return (type(self), (self.geometry,))

    @classmethod
    def coerce(cls, data: Any) -> Area:
        """
        Build an area from any notation of polygons.

        Args:
            data (Area | shapely.Geometry | kwimage.Polygon | kwimage.MultiPolygon | dict):
                polygons with coordinates in pixels, x first. A dict is a
                GeoJSON geometry, feature or feature collection; anything with
                ``to_shapely()`` or ``__geo_interface__`` will do.

        Raises:
            OptionError: see the class.

        Example:
            >>> ring = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
            >>> Area.coerce({'type': 'Polygon', 'coordinates': [ring]})
            Area(Polygon, y=0:4, x=0:4, 16 px)
        """
        return data if isinstance(data, cls) else cls(data)

    @functools.cached_property
    def segments(self) -> np.ndarray:
        """The boundary, float64 (n, 4): (y0, x0, y1, x1) px, y0 <= y1; do not modify."""
        import shapely
        rings = shapely.get_rings(shapely.get_parts(self.geometry))
        points, index = shapely.get_coordinates(rings, return_index=True)
        ends = np.hstack([points[:-1, ::-1], points[1:, ::-1]])[index[:-1] == index[1:]]
        rises = ends[:, :1] <= ends[:, 2:3]
        return np.where(rises, ends, np.roll(ends, 2, axis=1))

    def find(self, edges: np.ndarray) -> np.ndarray:
        """
        Find the rectangles that share a positive area with this one.

        Args:
            edges (ndarray): integer, shape (n, 4), one (y0, x0, y1, x1) each.

        Returns:
            ndarray: int64, ascending indices of those that do; sharing a line
            or a point is not enough.
        """
        import shapely
        edges = np.asarray(edges).reshape(-1, 4)
        y0, x0, y1, x1 = edges.T
        left, top, right, bottom = self.geometry.bounds
        found = np.flatnonzero((y0 < bottom) & (y1 > top) & (x0 < right) & (x1 > left)
                               & (y0 < y1) & (x0 < x1))
        boxes = shapely.box(x0[found], y0[found], x1[found], y1[found])
        with self._lock:
            keep = shapely.intersects(self.geometry, boxes)
            found, boxes = found[keep], boxes[keep]
            # Most are inside; older GEOS is slow where they only may touch.
            doubtful = np.flatnonzero(~shapely.contains_properly(self.geometry, boxes))
            outside = doubtful[shapely.touches(self.geometry, boxes[doubtful])]
        return np.delete(found, outside)

    def select(self, windows: Iterable[Window]) -> list[Window]:
        """
        Return the windows that touch this area, in their order.

        Args:
            windows (Iterable[Window]): any windows.

        Returns:
            list[Window]: see :meth:`touches`.
        """
        windows = list(windows)
        edges = [(window.y0, window.x0, window.y1, window.x1) for window in windows]
        return [windows[index] for index in self.find(np.array(edges, np.int64))]

    def touches(self, window: Window) -> bool:
        """Return True if the window shares a positive area with this one."""
        return bool(self.select([window]))

    def contains(self, window: Window) -> bool:
        """Return True if no point of the window is outside; an empty window has none."""
        if window.is_empty:
            return True
        import shapely
        box = shapely.box(window.x0, window.y0, window.x1, window.y1)
        with self._lock:
            return bool(shapely.covers(self.geometry, box))

    def contains_points(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """
        Test points, exactly.

        Args:
            x (ndarray): float, px, of any shape that broadcasts with ``y``.
            y (ndarray): float, px.

        Returns:
            ndarray: bool, True inside. A point on the boundary is outside.

        Example:
            >>> import shapely
            >>> area = Area(shapely.box(0, 0, 2, 2))
            >>> area.contains_points(np.array([0.5, 2.0]), np.array([0.5, 1.0])).tolist()
            [True, False]
        """
        import shapely
        with self._lock:
            return shapely.contains_xy(self.geometry, x, y)
