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
def _kernel_mean_integers(src, has_nodata, nodata, substitute, sums, out):
    """
    Halve ``src`` by the mean of the valid pixels, rounded half up.

    A missing last row or column is its neighbour once more, which changes no
    mean. ``sums`` has room for a row of values, and for the sum of four.
    """
    height, width, n_bands = src.shape
    n_values = width * n_bands
    for y in range(out.shape[0]):
        upper = src[2 * y].reshape(n_values)
        lower = src[min(2 * y + 1, height - 1)].reshape(n_values)
        if has_nodata:
            n_invalid = 0
            for i in range(n_values):
                n_invalid += (upper[i] == nodata) | (lower[i] == nodata)
            if n_invalid:
                _mean_row_with_nodata(upper, lower, n_bands, nodata, substitute, out[y])
                continue
        for i in range(n_values):
            sums[i] = np.int64(upper[i]) + np.int64(lower[i])
        out_row = out[y].reshape(out.shape[1] * n_bands)
        _mean_pairs(sums, n_bands, width // 2, out_row)
        if width % 2:
            for c in range(n_bands):
                out_row[out_row.size - n_bands + c] = (sums[n_values - n_bands + c] + 1) >> 1
        if has_nodata:
            for i in range(out_row.size):
                out_row[i] = substitute if out_row[i] == nodata else out_row[i]


@njit(nogil=True, cache=True, error_model='numpy', inline='always')
def _mean_pairs(sums, n_bands, n_pairs, out_row):
    """Halve a row of sums of two rows."""
    if n_bands == 1:
        # Apart, because the compiler vectorises it.
        for x in range(n_pairs):
            out_row[x] = (sums[2 * x] + sums[2 * x + 1] + 2) >> 2
        return
    for x in range(n_pairs):
        left = 2 * x * n_bands
        for c in range(n_bands):
            out_row[x * n_bands + c] = (sums[left + c] + sums[left + n_bands + c] + 2) >> 2


@njit(nogil=True, cache=True, error_model='numpy')
def _mean_row_with_nodata(upper, lower, n_bands, nodata, substitute, out):
    """Halve two rows, of which some values are nodata."""
    last = upper.size - n_bands
    for x in range(out.shape[0]):
        left = 2 * x * n_bands
        right = min(left + n_bands, last)
        for c in range(n_bands):
            total, count = 0, 0
            for value in (upper[left + c], upper[right + c], lower[left + c], lower[right + c]):
                is_valid = value != nodata
                total += np.int64(value) if is_valid else 0
                count += is_valid
            if count == 0:
                out[x, c] = nodata
                continue
            # floor(total / count + 1 / 2)
            mean = (2 * total + count) // (2 * count)
            out[x, c] = substitute if mean == nodata else mean


@njit(nogil=True, cache=True, error_model='numpy')
def _kernel_mean_floats(src, has_nodata, nodata, substitute, scale, sums, counts, out):
    """
    Halve ``src`` by the mean of the valid pixels of each 2 x 2 square.

    Sums are of values times ``scale``, a power of two.
    """
    height, width, n_bands = src.shape
    n_values = width * n_bands
    for y in range(out.shape[0]):
        # Down the columns first: whole rows, which the compiler vectorises.
        row = src[2 * y].reshape(n_values)
        for i in range(n_values):
            value = row[i]
            ok = _is_valid(value, has_nodata, nodata)
            sums[i] = value * scale if ok else 0
            counts[i] = 1 if ok else 0
        if 2 * y + 1 < height:
            row = src[2 * y + 1].reshape(n_values)
            for i in range(n_values):
                value = row[i]
                ok = _is_valid(value, has_nodata, nodata)
                sums[i] += value * scale if ok else 0
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
                out[y, x, c] = total / count / scale
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
                first = src[2 * y, 2 * x, c]
                if (src[y_stop - 1, 2 * x, c] == first and src[2 * y, x_stop - 1, c] == first
                        and src[y_stop - 1, x_stop - 1, c] == first):
                    # Inside of an object, which is nearly everywhere.
                    out[y, x, c] = first
                    continue
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
