"""
Compiled loops that find valid pixels and their nearest cluster centres.

Each ``_kernel_*`` is private: :mod:`cocoseg.shepherd.assign` is the API. An
image comes as a flat view of its memory and the ``steps`` (row, column, band)
between entries, so that one compiled loop serves bands first and bands last.
Kernels treat the rows that they are given, and release the GIL.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}
# Pixels are treated in blocks: small, so that few centres are near all of them,
# and a multiple of what a processor does at a time.
BLOCK_HEIGHT, BLOCK_WIDTH = 8, 16
_BLOCK_SIZE = BLOCK_HEIGHT * BLOCK_WIDTH
# Bands that are summed in registers; fewer are padded.
MIN_PLANES = 4


@njit(**_COMMON)
def _kernel_find_valid(flat, steps, n_bands, nodata, first, stop, valid):
    """
    Clear ``valid`` bool (H, W) where a band is nodata, NaN or infinite.

    ``nodata`` has the type of the image; NaN is no value.
    """
    row_step, column_step, band_step = steps
    for y in range(first, stop):
        row = valid[y]
        for band in range(n_bands):
            start = y * row_step + band * band_step
            for x in range(row.shape[0]):
                value = flat[np.uint64(start + x * column_step)]
                row[x] &= not ((value == nodata) | (value - value != 0))


@njit(inline='always', **_COMMON)
def _count_valid(valid, y0, y1, x0, x1):
    """Return how many pixels of a block are valid."""
    if valid.shape[0] == 0:
        return (y1 - y0) * (x1 - x0)
    n = 0
    for y in range(y0, y1):
        row = valid[y]
        for x in range(np.uint64(x0), np.uint64(x1)):
            n += row[x]
    return n


@njit(inline='always', **_COMMON)
def _copy_block(flat, steps, n_bands, y0, y1, x0, x1, planes):
    """Copy all the pixels of a block to planes (P, n)."""
    row_step, column_step, band_step = steps
    width = np.uint64(x1 - x0)
    for band in range(n_bands):
        plane = planes[band]
        for y in range(y0, y1):
            to = np.uint64((y - y0) * (x1 - x0))
            place = np.uint64(y * row_step + x0 * column_step + band * band_step)
            if column_step == 1:
                for i in range(width):
                    plane[to + i] = flat[place + i]
            else:
                step = np.uint64(column_step)
                for i in range(width):
                    plane[to + i] = flat[place + i * step]


@njit(inline='always', **_COMMON)
def _copy_valid(flat, steps, n_bands, valid, y0, y1, x0, x1, planes, places):
    """Copy the valid pixels of a block to planes (P, n)."""
    row_step, column_step, band_step = steps
    n = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            places[n] = y * row_step + x * column_step
            n += valid[y, x]
    for band in range(n_bands):
        plane = planes[band]
        for i in range(n):
            plane[i] = flat[np.uint64(places[i] + band * band_step)]


@njit(inline='always', **_COMMON)
def _find_near_centres(planes, n, n_bands, centres, slack, near, far, kept):
    """
    List the centres that may be nearest to a pixel of a block; return how many.

    A centre is left out if it is farther from all of the box around the pixels
    than another one is at most. ``near`` and ``far`` (K,) are scratch.
    """
    n_centres = centres.shape[1]
    for k in range(n_centres):
        near[k] = 0.0
        far[k] = 0.0
    for band in range(n_bands):
        plane, row = planes[band], centres[band]
        low, high = plane[0], plane[0]
        for i in range(n):
            low, high = min(low, plane[i]), max(high, plane[i])
        for k in range(n_centres):
            below, above = low - row[k], row[k] - high
            outside = max(max(below, above), 0.0)
            # From the middle of the box to its farther side.
            inside = max(row[k] - low, high - row[k])
            near[k] += outside * outside
            far[k] += inside * inside
    limit = far[0]
    for k in range(n_centres):
        limit = min(limit, far[k])
    limit = limit * (1 + 1e-9) + slack
    count = 0
    for k in range(n_centres):
        kept[count] = k
        count += near[k] <= limit
    return count


@njit(inline='always', **_COMMON)
def _sum_rest(planes, n, n_bands, centres, k, rest):
    """Write the squared distance in the bands beyond the first four to rest (n,)."""
    for i in range(n):
        rest[i] = 0.0
    for band in range(MIN_PLANES, n_bands):
        plane, centre = planes[band], centres[band, k]
        for i in range(n):
            difference = plane[i] - centre
            rest[i] += difference * difference


@njit(inline='always', **_COMMON)
def _search(planes, n, n_bands, centres, kept, n_kept, rest, best, second, index, track):
    """
    Find the nearest of the kept centres, the lowest on a tie, for n pixels.

    Writes the squared distance of it and of the second to ``best`` and
    ``second`` (the latter if ``track``) and its number to ``index``.
    """
    first, plane1, plane2, plane3 = planes[0], planes[1], planes[2], planes[3]
    for i in range(n):
        best[i] = np.inf
        second[i] = np.inf
        index[i] = 0
    for j in range(n_kept):
        k = kept[j]
        if n_bands > MIN_PLANES:
            _sum_rest(planes, n, n_bands, centres, k, rest)
        c0, c1, c2, c3 = centres[0, k], centres[1, k], centres[2, k], centres[3, k]
        if track:
            for i in range(n):
                e0, e1, e2, e3 = first[i] - c0, plane1[i] - c1, plane2[i] - c2, plane3[i] - c3
                distance = ((e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3)) + rest[i]
                loser = max(distance, best[i])
                second[i] = min(second[i], loser)
                index[i] = k if distance < best[i] else index[i]
                best[i] = min(distance, best[i])
        else:
            for i in range(n):
                e0, e1, e2, e3 = first[i] - c0, plane1[i] - c1, plane2[i] - c2, plane3[i] - c3
                distance = ((e0 * e0 + e1 * e1) + (e2 * e2 + e3 * e3)) + rest[i]
                index[i] = k if distance < best[i] else index[i]
                best[i] = min(distance, best[i])


@njit(inline='always', **_COMMON)
def _find_margin(planes, n, n_bands, largest, tolerance, margin):
    """Write how far distances may be off, (n,), to margin; return the largest."""
    widest = 0.0
    for i in range(n):
        square = largest
        for band in range(n_bands):
            square += planes[band, i] * planes[band, i]
        margin[i] = tolerance * square
        widest = max(widest, margin[i])
    return widest


@njit(**_COMMON)
def _kernel_assign(flat, steps, n_bands, valid, centres, largest, tolerance, first, stop, out,
                   doubtful):
    """
    Write 1 + the number of the nearest centre to out uint16 (H, W), if valid.

    valid bool (H, W), or (0, 0) if all are; centres float64 (P, K), P of at
    least four bands, those beyond the image's zero. With a ``tolerance`` above
    0, doubtful bool (H, W) is set where two centres are equally near within
    ``tolerance * (|pixel|^2 + largest)``.
    """
    n_centres, width = centres.shape[1], out.shape[1]
    planes = np.zeros((centres.shape[0], _BLOCK_SIZE))
    places = np.empty(_BLOCK_SIZE, np.int64)
    index = np.empty(_BLOCK_SIZE, np.int64)
    best, second, rest = np.empty(_BLOCK_SIZE), np.empty(_BLOCK_SIZE), np.zeros(_BLOCK_SIZE)
    margin = np.zeros(_BLOCK_SIZE)
    near, far = np.empty(n_centres), np.empty(n_centres)
    kept = np.empty(n_centres + 1, np.int64)
    track = tolerance > 0
    for y0 in range(first, stop, BLOCK_HEIGHT):
        y1 = min(y0 + BLOCK_HEIGHT, stop)
        for x0 in range(0, width, BLOCK_WIDTH):
            x1 = min(x0 + BLOCK_WIDTH, width)
            n = _count_valid(valid, y0, y1, x0, x1)
            if n == 0:
                continue
            is_full = n == (y1 - y0) * (x1 - x0)
            if is_full:
                _copy_block(flat, steps, n_bands, y0, y1, x0, x1, planes)
            else:
                _copy_valid(flat, steps, n_bands, valid, y0, y1, x0, x1, planes, places)
            slack = 0.0
            if track:
                slack = _find_margin(planes, n, n_bands, largest, tolerance, margin)
            n_kept = _find_near_centres(planes, n, n_bands, centres, slack, near, far, kept)
            _search(planes, n, n_bands, centres, kept, n_kept, rest, best, second, index, track)
            i = 0
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if is_full or valid[y, x]:
                        out[y, x] = index[i] + 1
                        if track:
                            doubtful[y, x] = second[i] - best[i] <= margin[i]
                        i += 1
