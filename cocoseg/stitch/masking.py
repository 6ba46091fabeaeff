"""
Masks of an area of interest: which pixels of a window it leaves out.

A pixel belongs to an area if its centre does. The centres of a row are
told apart by where the boundary of the area crosses the row, in plain float
arithmetic; the few centres that lie so close to the boundary that rounding
might decide are tested exactly, one by one.
"""
from __future__ import annotations

import numpy as np

from cocoseg.grid.window import Window

# Pixels that are scanned at a time: a few MB of scratch memory.
_STRIP_PIXELS = 1 << 18
# What a coordinate may be off after a few roundings (2 ** -53 each), relative
# to the largest one, with plenty to spare.
_SLACK = 2.0 ** -48


def mask_outside(area, window):
    """
    Mark the pixels of a window whose centre is outside an area.

    Args:
        area (Area): the area of interest, px.
        window (Window): may overhang the image.

    Returns:
        ndarray | None: bool, shape (h, w) == ``window.shape``, True where the
        centre is outside, or exactly on the boundary. None if the whole window
        lies inside, so that there is nothing to do.

    Thread-safety: none needed, see :class:`~cocoseg.grid.area.Area`.

    Example:
        >>> import shapely
        >>> from cocoseg.grid.area import Area
        >>> area = Area(shapely.Polygon([(0, 0), (3, 0), (0, 3)]))
        >>> mask_outside(area, Window(0, 0, 3, 4)).astype(int)
        array([[0, 0, 1, 1],
               [0, 1, 1, 1],
               [1, 1, 1, 1]])
        >>> mask_outside(area, Window(0, 0, 1, 1)) is None
        True
    """
    if area.contains(window):
        return None
    mask = np.ones(window.shape, bool)
    if area.touches(window):
        rows = max(1, _STRIP_PIXELS // window.shape[1])
        for y in range(window.y0, window.y1, rows):
            strip = Window(y, window.x0, min(y + rows, window.y1), window.x1)
            mask[strip.within(window).slices] = ~_find_inside(area, strip)
    return mask


def _find_inside(area, window):
    """Return bool (h, w), True where the centre of a pixel is inside the area."""
    height, width = window.shape
    rows, columns, spans = _cross_rows(area.segments, window)
    # A centre is inside if the boundary is crossed an odd number of times to its left.
    crossed = columns >= 0
    flips = _count(rows[crossed], columns[crossed], window.shape)
    inside = (np.cumsum(flips, axis=1)[:, :width] & 1).astype(bool)
    near = spans[1] > spans[0]
    if near.any():
        starts, stops = (_count(rows[near], span[near], window.shape) for span in spans)
        y, x = np.nonzero(np.cumsum(starts - stops, axis=1)[:, :width])
        inside[y, x] = area.contains_points(x + (window.x0 + 0.5), y + (window.y0 + 0.5))
    return inside


def _count(rows, columns, shape):
    """Count how often each (row, column) occurs; columns go up to the width, included."""
    height, width = shape
    counts = np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1))
    return counts.reshape(height, width + 1)


def _cross_rows(segments, window):
    """
    Cross the rows of a window with segments.

    Args:
        segments (ndarray): float64, shape (n, 4), (y0, x0, y1, x1), y0 <= y1.
        window (Window): (h, w) px.

    Returns:
        tuple: int arrays, one entry per segment and row near it: the row; the
        first column whose centre is right of the crossing, 0 … w, or -1 if
        there is none; and a pair (start, stop) of the columns whose centres
        are too close to the segment to be sure.
    """
    height, width = window.shape
    segments = segments[(segments[:, 0] < window.y1 + 1) & (segments[:, 2] > window.y0 - 1)]
    slack = _SLACK * max(1, np.abs(segments).max(initial=0), abs(window.y0), abs(window.y1),
                         abs(window.x0), abs(window.x1))
    # From here on centres have whole numbers, (0, 0) is that of the first pixel.
    origin = np.array([window.y0 + 0.5, window.x0 + 0.5])
    y0, x0, y1, x1 = (segments - np.tile(origin, 2)).T
    near = ((y0 <= height - 1 + slack) & (y1 >= -slack)
            & (np.minimum(x0, x1) <= width - 1 + slack))
    y0, x0, y1, x1 = (values[near] for values in (y0, x0, y1, x1))
    first = np.ceil(np.clip(y0 - slack, 0, height)).astype(np.int64)
    stop = np.floor(np.clip(y1 + slack, -1, height - 1)).astype(np.int64) + 1
    counts = np.maximum(stop - first, 0)
    rows = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
    y0, x0, y1, x1 = (np.repeat(values, counts) for values in (y0, x0, y1, x1))
    # A level segment lies on a row, or close to it, with all its length.
    rise = np.maximum(y1 - y0, 1e-300)

    def place(y):
        return x0 + np.clip((y - y0) / rise, 0, 1) * (x1 - x0)

    columns = np.floor(np.clip(place(rows), -1, width - 1)).astype(np.int64) + 1
    # Half-open, so that a vertex on a row counts for one of its two segments.
    columns[(rows < y0) | (rows >= y1)] = -1
    ends = np.sort([place(rows - slack), place(rows + slack)], axis=0)
    starts = np.ceil(np.clip(ends[0] - slack, 0, width)).astype(np.int64)
    stops = np.floor(np.clip(ends[1] + slack, -1, width - 1)).astype(np.int64) + 1
    return rows, columns, (starts, stops)
