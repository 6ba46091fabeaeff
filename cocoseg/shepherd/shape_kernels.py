"""
Compiled inner loops of the shapes of segments.

Labels are uint32 (h, w); what is counted is by id, as in
:mod:`cocoseg.shepherd.stats_kernels`. :mod:`cocoseg.shepherd.shape_stats` is
the API.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(**_COMMON)
def _kernel_add_shapes(labels, y0, area, top, left, bottom, right, sum_x, sum_y):
    """
    Add a strip that begins at row y0 to areas, boxes and sums of coordinates.

    area int64; the box [top, bottom) x [left, right) int32; the sums int64, or
    empty where they are not wanted. A run of equal pixels counts at once.
    """
    width = labels.shape[1]
    wants_sums = sum_x.shape[0] > 0
    for row in range(labels.shape[0]):
        y, x = y0 + row, 0
        while x < width:
            label, begin = labels[row, x], x
            x += 1
            while x < width and labels[row, x] == label:
                x += 1
            if label == 0:
                continue
            if area[label] == 0:
                top[label], left[label] = y, begin
            size = x - begin
            area[label] += size
            left[label] = min(left[label], begin)
            right[label] = max(right[label], x)
            bottom[label] = y + 1
            if wants_sums:
                sum_x[label] += size * begin + size * (size - 1) // 2
                sum_y[label] += size * y


@njit(**_COMMON)
def _kernel_add_perimeter(above, labels, perimeter):
    """
    Count the pixel edges between labels that differ, for both of them.

    ``above`` (w,) is the row before the strip. Left and right of the image is
    null; the edges below the last row are counted with the next strip.
    """
    width = labels.shape[1]
    for y in range(labels.shape[0]):
        left = np.uint32(0)
        for x in range(width):
            label = labels[y, x]
            upper = above[x] if y == 0 else labels[y - 1, x]
            if label != left:
                perimeter[label] += 1
                perimeter[left] += 1
            if label != upper:
                perimeter[label] += 1
                perimeter[upper] += 1
            left = label
        perimeter[left] += left != 0


@njit(**_COMMON)
def _kernel_add_edge_pixels(labels, neighbors, count):
    """
    Count pixels that differ from one of their neighbors, but of the first and last row.

    Left and right of the image is null. neighbors: 4 or 8.
    """
    height, width = labels.shape
    for y in range(1, height - 1):
        for x in range(width):
            label = labels[y, x]
            if label == 0:
                continue
            differs = (x == 0 or x == width - 1 or labels[y - 1, x] != label
                       or labels[y + 1, x] != label or labels[y, x - 1] != label
                       or labels[y, x + 1] != label)
            if not differs and neighbors == 8:
                differs = (labels[y - 1, x - 1] != label or labels[y - 1, x + 1] != label
                           or labels[y + 1, x - 1] != label or labels[y + 1, x + 1] != label)
            count[label] += differs
