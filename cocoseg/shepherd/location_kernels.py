"""
Compiled loops over the pixels of segments.

Each ``_kernel_*`` is private: :mod:`cocoseg.shepherd.locations` and
:mod:`cocoseg.shepherd.eliminate` are the API. Labels come flat, in raster
order; images as for :mod:`cocoseg.shepherd.assign_kernels`.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(**_COMMON)
def _kernel_band_sums(flat, steps, labels, width, zero, sums):
    """
    Add the bands of each pixel to sums (N + 1, B) of its label, in raster order.

    Each addition is done in the dtype of ``zero`` (1,), and rounded once to
    that of sums.
    """
    row_step, column_step, band_step = steps
    n_bands = sums.shape[1]
    wide, kind = zero.dtype.type, sums.dtype.type
    p = np.uint64(0)
    for y in range(labels.shape[0] // width):
        for x in range(width):
            label = labels[p]
            p += np.uint64(1)
            place = y * row_step + x * column_step
            for band in range(n_bands):
                value = wide(flat[np.uint64(place + band * band_step)])
                sums[label, band] = kind(wide(wide(sums[label, band]) + value))


@njit(**_COMMON)
def _kernel_list_pixels(labels, places, pixels):
    """
    Write the flat index of each pixel to pixels at the place of its label.

    places (N + 1,), where each label's pixels begin, or -1 to leave them out;
    after the call, where they end.
    """
    for p in range(labels.shape[0]):
        label = labels[p]
        if places[label] >= 0:
            pixels[places[label]] = p
            places[label] += 1


@njit(**_COMMON)
def _kernel_list_locations(labels, width, places, rows, columns):
    """Do the same for rows and columns, int32, of all labels from 1."""
    p = 0
    for y in range(labels.shape[0] // width):
        for x in range(width):
            label = labels[p]
            p += 1
            if label != 0:
                place = places[label]
                places[label] = place + 1
                rows[place] = y
                columns[place] = x
