"""
The pixel loops of ``cocoseg/io``, compiled with numba.

Private: the API and the rules are in :mod:`cocoseg.io.overviews`, which
imports this module when first used. Kernels release the GIL and are cached on
the disk. They write only to ``out`` and to the scratch arrays.
"""
import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model='numpy', inline='always')
def _is_valid(value, has_nodata, nodata):
    """Return False for nodata and for NaN (an integer is never NaN)."""
    return value == value and not (has_nodata and value == nodata)


@njit(nogil=True, cache=True, error_model='numpy')
def _kernel_mean(src, has_nodata, nodata, substitute, round_half, sums, counts, out):
    """Halve ``src`` by the mean of the valid pixels of each 2 x 2 square."""
    height, width, n_bands = src.shape
    n_values = width * n_bands
    for y in range(out.shape[0]):
        # Down the columns first: whole rows, which the compiler vectorises.
        row = src[2 * y].reshape(n_values)
        for i in range(n_values):
            value = row[i]
            ok = _is_valid(value, has_nodata, nodata)
            sums[i] = value if ok else 0
            counts[i] = 1 if ok else 0
        if 2 * y + 1 < height:
            row = src[2 * y + 1].reshape(n_values)
            for i in range(n_values):
                value = row[i]
                ok = _is_valid(value, has_nodata, nodata)
                sums[i] += value if ok else 0
                counts[i] += 1 if ok else 0
        for x in range(out.shape[1]):
            for c in range(n_bands):
                i = 2 * x * n_bands + c
                total = sums[i]
                count = counts[i]
                if 2 * x + 1 < width:
                    total += sums[i + n_bands]
                    count += counts[i + n_bands]
                if count == 0:
                    out[y, x, c] = nodata
                    continue
                mean = total / count
                if round_half:
                    mean = np.floor(mean + 0.5)
                out[y, x, c] = mean
                if has_nodata and out[y, x, c] == nodata:
                    out[y, x, c] = substitute


@njit(nogil=True, cache=True, error_model='numpy')
def _kernel_mode(src, has_nodata, nodata, out):
    """Halve ``src`` by the most frequent valid pixel of each 2 x 2 square."""
    height, width, n_bands = src.shape
    for y in range(out.shape[0]):
        y_stop = min(2 * y + 2, height)
        for x in range(out.shape[1]):
            x_stop = min(2 * x + 2, width)
            for c in range(n_bands):
                best = nodata
                best_count = 0
                for yy in range(2 * y, y_stop):
                    for xx in range(2 * x, x_stop):
                        value = src[yy, xx, c]
                        if not _is_valid(value, has_nodata, nodata):
                            continue
                        count = 0
                        for y2 in range(2 * y, y_stop):
                            for x2 in range(2 * x, x_stop):
                                if src[y2, x2, c] == value:
                                    count += 1
                        if count > best_count:
                            best = value
                            best_count = count
                out[y, x, c] = best
