"""
Compiled functions of the pixels of one segment, and what calls them.

Such a function takes (x, y, values, param): coordinates int64 (n,) in raster
order, values float64 (n,), and its parameter; it returns a float.
"""
import functools
import math

import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(**_COMMON)
def _find_shifted(x, y, dx, dy, index, other):
    """
    Return the first place from ``other`` on that is not before (x, y)[index] + (dx, dy).

    Pixels keep their order when all are shifted alike, so one walk finds them all.
    """
    row, column = y[index] + dy, x[index] + dx
    while other < x.shape[0] and (y[other] < row or (y[other] == row and x[other] < column)):
        other += 1
    return other


@njit(**_COMMON)
def _is_shifted(x, y, dx, dy, index, other):
    """Return True if a place holds (x, y)[index] + (dx, dy)."""
    return other < x.shape[0] and y[other] == y[index] + dy and x[other] == x[index] + dx


@njit(**_COMMON)
def variogram(x, y, values, param):
    """Return the root of the mean squared difference at a distance of ``param`` px."""
    total, count = 0.0, 0
    for dy in range(param + 1):
        for dx in range(-param, param + 1):
            # Each pair once: from the upper, or from the left one.
            if (dy == 0 and dx <= 0) or int(math.sqrt(dx * dx + dy * dy)) != param:
                continue
            other = 0
            for index in range(x.shape[0]):
                other = _find_shifted(x, y, dx, dy, index, other)
                if _is_shifted(x, y, dx, dy, index, other):
                    total += (values[index] - values[other]) ** 2
                    count += 1
    return math.sqrt(total / count) if count else np.nan


@njit(**_COMMON)
def mean_coordinate(x, y, values, param):
    """Return param[0] + param[1] * x + param[2] * y of the mean pixel center."""
    n_pixels = x.shape[0]
    return (param[0] + param[1] * (x.sum() / n_pixels + 0.5)
            + param[2] * (y.sum() / n_pixels + 0.5))


@njit(**_COMMON)
def edge_pixels(x, y, values, param):
    """Return how many pixels lack one of their ``param`` neighbors, 4 or 8."""
    n_found = np.zeros(x.shape[0], np.uint8)
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            if (dx == 0 and dy == 0) or (param == 4 and dx != 0 and dy != 0):
                continue
            other = 0
            for index in range(x.shape[0]):
                other = _find_shifted(x, y, dx, dy, index, other)
                if _is_shifted(x, y, dx, dy, index, other):
                    n_found[index] += 1
    return float((n_found < param).sum())


@functools.lru_cache(maxsize=64)
def get_caller(func, is_joint):
    """
    Return a compiled loop that calls a compiled function for each segment.

    The loop takes (ids, begins, ends, x, y, values, param, out): the pixels of
    segment ids[k] are those from begins[k] to ends[k]. values (n, B); the
    function gets them flat unless ``is_joint``. Results go to out[ids[k]].
    """
    # Two loops, as a branch would have to compile for both forms of values.
    if is_joint:
        @njit(nogil=True, error_model='numpy')
        def call(ids, begins, ends, x, y, values, param, out):
            for k in range(ids.shape[0]):
                part = slice(begins[k], ends[k])
                out[ids[k]] = func(x[part], y[part], values[part], param)
    else:
        @njit(nogil=True, error_model='numpy')
        def call(ids, begins, ends, x, y, values, param, out):
            flat = values.reshape(-1)
            for k in range(ids.shape[0]):
                part = slice(begins[k], ends[k])
                out[ids[k]] = func(x[part], y[part], flat[part], param)
    return call
