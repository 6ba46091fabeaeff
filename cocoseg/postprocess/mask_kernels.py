"""
Compiled loops that count, per pixel, the bands that are nodata.

Each ``_kernel_*`` is private: :mod:`cocoseg.postprocess.mask_rules` is the API.
Whole numbers come as their unsigned bits, so that few types are compiled.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(inline='always', **_COMMON)
def _is_open(count, n_masked, n_left):
    """Return True if the bands that are left decide."""
    return (count < n_masked) & (count + n_left >= n_masked)


@njit(**_COMMON)
def _kernel_count_band(band, values, weight, n_masked, n_left, counts, y0, x0, box):
    """
    Count one band where it is nodata, and tell which pixels are still open.

    A pixel is masked from ``n_masked`` bands that are nodata, and valid once
    the bands that are left cannot make it so many; else it is open.

    band (h, w), unsigned or float; values (n,) of its type, distinct; NaN is
    nodata anyway. weight: bands that it stands for; n_left: bands after it.
    counts uint16, updated in place from (y0, x0), where the band begins. Writes
    the bounds of the open pixels into box, int64 (y0, x0, y1, x1), in px of
    counts; y1 is 0 for none.
    """
    height, width = band.shape
    box[0], box[1], box[2], box[3] = y0 + height, x0 + width, 0, 0
    step, goal, rest = np.uint16(weight), np.int32(n_masked), np.int32(n_left)
    # Loops without branches, which become vector code. Never true of whole
    # numbers is that one differs from itself: of them nothing is left.
    for y in range(height):
        row = counts[y0 + y, x0:x0 + width]
        for x in range(width):
            row[x] += step * (band[y, x] != band[y, x])
        for value in values:
            for x in range(width):
                row[x] += step * (band[y, x] == value)
        n_open = np.int32(0)
        for x in range(width):
            n_open += _is_open(np.int32(row[x]), goal, rest)
        if n_open:
            first, last = 0, width - 1
            while not _is_open(np.int32(row[first]), goal, rest):
                first += 1
            while not _is_open(np.int32(row[last]), goal, rest):
                last -= 1
            box[0], box[1] = min(box[0], y0 + y), min(box[1], x0 + first)
            box[2], box[3] = y0 + y + 1, max(box[3], x0 + last + 1)


@njit(**_COMMON)
def _kernel_count_all(data, values, counts_value, counts):
    """
    Count the bands of each pixel that are nodata, from all bands at once.

    data (h, w, B), unsigned or float; values (n, B) of its type, of each band
    distinct, where counts_value, uint8 (n, B), is 1. counts uint16 (h, w), written
    in place.
    """
    height, width, n_bands = data.shape
    for y in range(height):
        for x in range(width):
            count = np.uint16(0)
            for b in range(n_bands):
                count += np.uint16(data[y, x, b] != data[y, x, b])
            for row in range(len(values)):
                for b in range(n_bands):
                    count += np.uint16((data[y, x, b] == values[row, b])
                                       & counts_value[row, b])
            counts[y, x] = count
