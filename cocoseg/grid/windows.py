"""
Window grids: where a sliding-window predictor looks.

A :class:`WindowGrid` covers an image with overlapping windows of one size.
It is a plan, made before any pixel is read.
"""
from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.area import Area
from cocoseg.grid.window import Window, as_pair

FITS = ('balanced', 'flush')


def compute_starts(size, window, overlap, fit='balanced'):
    """
    Place windows along one axis so that every pixel is covered.

    ::

        balanced   |--w--|              every neighbour pair overlaps by at
                       |--w--|          least ``overlap``, evenly; the same
                           |--w--|      number of windows as flush
        flush      |--w--|              exactly ``overlap`` each, the last
                      |--w--|           window moved back to end at the border
                           |--w--|

    Args:
        size (int): pixels on the axis, >= 1.
        window (int): pixels per window, >= 1.
        overlap (int): least pixels shared by neighbours, 0 <= overlap < window.
        fit (str): 'balanced' or 'flush'.

    Returns:
        list[int]: ascending first pixels. One window starting at 0, which may
        overhang, when the image is not larger than the window.

    Example:
        >>> from cocoseg.grid.windows import compute_starts
        >>> compute_starts(10, 4, 1), compute_starts(9, 4, 1, 'flush')
        ([0, 3, 6], [0, 3, 5])
        >>> compute_starts(9, 4, 1)     # the slack is shared
        [0, 3, 5]
        >>> compute_starts(3, 4, 1)
        [0]
    """
    if size <= window:
        return [0]
    stride = window - overlap
    count = -(-(size - overlap) // stride)
    room = size - window
    if fit == 'flush':
        return [min(index * stride, room) for index in range(count)]
    # Nearest integer of index * room / (count - 1), in exact arithmetic.
    steps = count - 1
    return [(2 * index * room + steps) // (2 * steps) for index in range(count)]


@dataclass(frozen=True)
class WindowGrid:
    """
    Overlapping windows of one size that cover an image.

    Iterating gives :class:`Window` in row-major order. An image smaller than
    the window gets one window that overhangs it: readers pad, stitchers clip.

    With an area of interest the windows that do not touch it are left out. The
    others stay where they are, and every pixel of the area is in the same
    windows as without it. Rows, columns and ``grid_shape`` are always those of
    the full grid.

    Args:
        shape (tuple[int, int]): (H, W) of the image, px; a third entry is ignored.
        window (int | tuple[int, int]): (h, w) of a window, px.
        overlap (int | tuple[int, int]): least shared width of neighbours, px,
            0 <= overlap < window.
        fit (str): 'balanced' spreads the windows evenly, so that no two nearly
            coincide at the border; 'flush' moves only the last one back.
        area (Area | shapely.Polygon | kwimage.Polygon | dict | None): an area
            of interest in pixels, see :meth:`Area.coerce
            <cocoseg.grid.area.Area.coerce>`. None is the whole image.

    Raises:
        OptionError: for a size below 1, an overlap outside [0, window), or an
            area that is no valid polygon.
        CoverageError: if the area touches no pixel of the image.

    Example:
        >>> from cocoseg import WindowGrid
        >>> grid = WindowGrid((100, 90), window=(40, 64), overlap=8)
        >>> len(grid), grid.grid_shape
        (6, (3, 2))
        >>> list(grid)[:2]
        [Window(y=0:40, x=0:64), Window(y=0:40, x=26:90)]
        >>> import shapely
        >>> corner = shapely.Polygon([(90, 0), (90, 35), (70, 0)])      # x, y
        >>> part = WindowGrid((100, 90), window=(40, 64), overlap=8, area=corner)
        >>> list(part), list(grid)[0] in part
        ([Window(y=0:40, x=26:90), Window(y=30:70, x=26:90)], False)
    """

    shape: tuple[int, int]
    window: tuple[int, int]
    overlap: tuple[int, int] = (0, 0)
    fit: str = 'balanced'
    area: Area | None = None

    if TYPE_CHECKING:
        # The fields say what is kept; this, what may be given.
        def __init__(self, shape: Sequence[int], window: int | tuple[int, int],
                     overlap: int | tuple[int, int] = (0, 0), fit: str = 'balanced',
                     area: Any = None) -> None: ...

    def __post_init__(self):
        put = object.__setattr__
        put(self, 'shape', as_pair(tuple(self.shape)[:2], 'shape'))
        put(self, 'window', as_pair(self.window, 'window'))
        put(self, 'overlap', as_pair(self.overlap, 'overlap'))
        if min(self.shape) < 1 or min(self.window) < 1:
            raise OptionError(
                f'shape={self.shape} and window={self.window} must be at least 1 px')
        for overlap, window in zip(self.overlap, self.window):
            if not 0 <= overlap < window:
                raise OptionError(
                    f'overlap={self.overlap} must be 0 or more and below '
                    f'window={self.window}, per axis, in pixels')
        if self.fit not in FITS:
            raise OptionError(f'fit={self.fit!r} is unknown; use one of {FITS}')
        if self.area is not None:
            put(self, 'area', Area.coerce(self.area))
            if not self.area.touches(Window.from_shape(self.shape)):
                height, width = self.shape
                raise CoverageError(
                    f'{self.area} touches no pixel of the image of height {height} and width '
                    f'{width}; give it in pixels of this image, x first')

    def __getstate__(self):
        # Without what was computed on the way, so that equal grids pickle alike.
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    @property
    def row_starts(self) -> list[int]:
        """First rows of the windows of the full grid, ascending."""
        return compute_starts(self.shape[0], self.window[0], self.overlap[0], self.fit)

    @property
    def column_starts(self) -> list[int]:
        """First columns of the windows of the full grid, ascending."""
        return compute_starts(self.shape[1], self.window[1], self.overlap[1], self.fit)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, columns) of windows of the full grid."""
        return (len(self.row_starts), len(self.column_starts))

    @functools.cached_property
    def _chosen(self):
        """The windows that touch the area, as a tuple; None without an area."""
        if self.area is None:
            return None
        starts = np.meshgrid(self.row_starts, self.column_starts, indexing='ij')
        y, x = (start.ravel() for start in starts)
        (height, width), (bottom, right) = self.window, self.shape
        # What a window sees beyond the image is no reason to keep it.
        edges = [y, x, np.minimum(y + height, bottom), np.minimum(x + width, right)]
        found = self.area.find(np.stack(edges, axis=1))
        return tuple(Window(y, x, y + height, x + width)
                     for y, x in zip(y[found].tolist(), x[found].tolist()))

    def __len__(self) -> int:
        if self._chosen is not None:
            return len(self._chosen)
        rows, columns = self.grid_shape
        return rows * columns

    def __iter__(self) -> Iterator[Window]:
        if self._chosen is not None:
            return iter(self._chosen)
        (height, width), columns = self.window, self.column_starts
        return (Window(y, x, y + height, x + width) for y in self.row_starts for x in columns)

    def __contains__(self, window: object) -> bool:
        return (isinstance(window, Window) and window.shape == self.window
                and window.y0 in self.row_starts and window.x0 in self.column_starts
                and (self.area is None or self.area.touches(window.clip(self.shape))))
