"""
Compiled loops over the labels of one block.

Each ``_kernel_*`` is private: :mod:`cocoseg.postprocess.label_blocks` is the
API. Arrays have three axes; images have a first one of extent 1.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(**_COMMON)
def _kernel_measure(labels, values, has_values, origin, shape, sizes, firsts, sums, n_values):
    """
    Measure each label of a core.

    labels unsigned (d, h, w); values float32 (d, h, w), or anything if not
    has_values; origin and shape (3,) place the core in the volume. Counts
    voxels in sizes int64, notes the flat index of the first voxel in the
    volume in firsts int64 (-1 before), adds values other than NaN to sums
    float64, and counts them in n_values int64.
    """
    depth, height, width = labels.shape
    for z in range(depth):
        for y in range(height):
            start = ((z + origin[0]) * shape[1] + y + origin[1]) * shape[2] + origin[2]
            for x in range(width):
                label = labels[z, y, x]
                if firsts[label] < 0:
                    firsts[label] = start + x
                sizes[label] += 1
                if has_values and not np.isnan(values[z, y, x]):
                    sums[label] += values[z, y, x]
                    n_values[label] += 1


@njit(**_COMMON)
def _kernel_relabel(labels, lut, out):
    """Write the entries of a table for labels, unsigned (d, h, w), to out uint32 (d, h, w)."""
    depth, height, width = labels.shape
    for z in range(depth):
        for y in range(height):
            for x in range(np.uint64(width)):
                out[z, y, x] = lut[labels[z, y, x]]
