"""
Compiled inner loops of stitching.

Each ``_kernel_*`` is private: :mod:`cocoseg.stitch.canvas` and
:mod:`cocoseg.stitch.quantize` are the API, and the unit tests hold a plain
numpy reference of each kernel. This module is imported when first needed,
since numba takes most of a second to load.

Layout: a canvas row is flat, ``(W * C,)``, so that the innermost loops are
plain vector multiply-adds whatever the number of bands. Every kernel releases
the GIL and allocates at most one row.
"""
import numpy as np
from numba import njit

# Sums may be reordered where only "is it finite" is asked of them. The test
# `check += v - v` must survive optimisation: no 'nnan' or 'ninf', and no
# 'nsz', which together with 'reassoc' lets v - v cancel. What goes into a
# canvas is plain IEEE arithmetic: the same however a window is cut into blocks.
_FAST = {'contract', 'reassoc'}
_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(fastmath=_FAST, **_COMMON)
def _all_finite(row):
    """Return True unless a value of a flat row is NaN or infinite."""
    check = row.dtype.type(0)
    for k in range(row.shape[0]):
        check += row[k] - row[k]
    return check == 0


@njit(**_COMMON)
def _kernel_add(sums, weights, y0, x0, data, dx, row_weights, column_weights):
    """
    Add columns of one window with separable weights; return (added, invalid) pixels.

    sums (H, W*C), weights (H, W), data (h, w'*C), of which the w columns from
    dx are added at (y0, x0), row_weights (h,), column_weights (w,). A pixel
    with NaN or inf in any band is invalid and contributes nothing.
    """
    height, width = data.shape[0], column_weights.shape[0]
    n_bands = sums.shape[1] // weights.shape[1]
    expanded = np.empty(width * n_bands, sums.dtype)
    for x in range(width):
        for band in range(n_bands):
            expanded[x * n_bands + band] = column_weights[x]
    invalid = 0
    for y in range(height):
        scale = row_weights[y]
        sum_row = sums[y0 + y, x0 * n_bands:x0 * n_bands + width * n_bands]
        weight_row = weights[y0 + y, x0:x0 + width]
        data_row = data[y, dx * n_bands:(dx + width) * n_bands]
        if _all_finite(data_row):
            for k in range(data_row.shape[0]):
                weight = scale * expanded[k]
                sum_row[k] += data_row[k] * weight
            for x in range(width):
                weight_row[x] += scale * column_weights[x]
        else:
            for x in range(width):
                weight = scale * column_weights[x]
                invalid += _add_pixel(sum_row, weight_row, data_row, x, n_bands, weight)
    return height * width - invalid, invalid


@njit(**_COMMON)
def _kernel_expand(weights, n_bands, out):
    """Repeat each weight of (h, w) for every band, to out (h, w*C)."""
    for y in range(weights.shape[0]):
        for x in range(weights.shape[1]):
            for band in range(n_bands):
                out[y, x * n_bands + band] = weights[y, x]


@njit(**_COMMON)
def _kernel_add_dense(sums, weights, y0, x0, data, dx, width, window_weights, expanded):
    """
    As :func:`_kernel_add`, with one weight per pixel.

    window_weights (h, w'), expanded (h, w'*C): the same, from
    :func:`_kernel_expand`. The columns dx to dx + width are added.
    """
    height = data.shape[0]
    n_bands = sums.shape[1] // weights.shape[1]
    invalid = 0
    for y in range(height):
        sum_row = sums[y0 + y, x0 * n_bands:x0 * n_bands + width * n_bands]
        weight_row = weights[y0 + y, x0:x0 + width]
        data_row = data[y, dx * n_bands:(dx + width) * n_bands]
        factors = window_weights[y, dx:dx + width]
        expanded_row = expanded[y, dx * n_bands:(dx + width) * n_bands]
        if _all_finite(data_row):
            for k in range(data_row.shape[0]):
                sum_row[k] += data_row[k] * expanded_row[k]
            for x in range(width):
                weight_row[x] += factors[x]
        else:
            for x in range(width):
                invalid += _add_pixel(sum_row, weight_row, data_row, x, n_bands, factors[x])
    return height * width - invalid, invalid


@njit(inline='always', **_COMMON)
def _add_pixel(sum_row, weight_row, data_row, x, n_bands, weight):
    """Add one pixel if all its bands are finite; return 1 if it is invalid."""
    for k in range(x * n_bands, (x + 1) * n_bands):
        if not np.isfinite(data_row[k]):
            return 1
    for k in range(x * n_bands, (x + 1) * n_bands):
        sum_row[k] += data_row[k] * weight
    weight_row[x] += weight
    return 0


@njit(**_COMMON)
def _kernel_normalize(sums, weights, out):
    """Write sums / weights to out, NaN where no weight; all (h, w, C) / (h, w)."""
    for y in range(sums.shape[0]):
        for x in range(sums.shape[1]):
            weight = weights[y, x]
            if weight > 0:
                for band in range(sums.shape[2]):
                    out[y, x, band] = sums[y, x, band] / weight
            else:
                for band in range(sums.shape[2]):
                    out[y, x, band] = np.nan


@njit(**_COMMON)
def _kernel_minmax(values):
    """Return (min, max, count) of the finite entries of a flat array."""
    low, high, count = np.inf, -np.inf, 0
    for k in range(values.shape[0]):
        value = values[k]
        if np.isfinite(value):
            low, high, count = min(low, value), max(high, value), count + 1
    return low, high, count


@njit(**_COMMON)
def _kernel_encode(values, low, high, scale, quant_min, nodata, out):
    """
    Quantize a flat float array; return the number of clipped entries.

    ``rint((v - low) * scale) + quant_min`` with v clipped to [low, high], in
    float64, and ``nodata`` where v is not finite. An entry counts as clipped
    if that moves it by more than half a step, the error of any other entry: a
    mean of ones may be 1 + 1e-7.
    """
    clipped = 0
    margin = 0.5 / scale if scale > 0 else 0.0
    for k in range(values.shape[0]):
        value = np.float64(values[k])
        if np.isfinite(value):
            clipped += (low - value > margin) | (value - high > margin)
            value = min(max(value, low), high)
            out[k] = np.int64(np.rint((value - low) * scale)) + quant_min
        else:
            out[k] = nodata
    return clipped


@njit(fastmath=_FAST, **_COMMON)
def _kernel_normalize_encode(sums, weights, low, high, scale, quant_min, nodata, out):
    """
    Fuse :func:`_kernel_normalize` and :func:`_kernel_encode`, same result.

    Each row is first done without a branch, as if all of it were valid; its
    sum tells whether that was so. All arrays are C-contiguous.
    """
    height, width, n_bands = sums.shape
    size = width * n_bands
    clipped, total = 0, 0.0
    margin = 0.5 / scale if scale > 0 else 0.0
    divisors = np.empty(size, sums.dtype)
    for y in range(height):
        row, out_row = sums[y].reshape(size), out[y].reshape(size)
        for x in range(width):
            for band in range(n_bands):
                divisors[x * n_bands + band] = weights[y, x]
        row_total, row_clipped = 0.0, 0
        for k in range(size):
            # The mean is rounded to the canvas dtype first, as when it is returned.
            value = np.float64(row[k] / divisors[k])
            row_total += value
            row_clipped += (low - value > margin) | (value - high > margin)
            value = min(max(value, low), high)
            out_row[k] = np.int64(np.rint((value - low) * scale)) + quant_min
        if row_total - row_total == 0:
            clipped += row_clipped
            total += row_total
            continue
        for k in range(size):
            # Also sums of very large values that overflowed are no data.
            value = np.float64(row[k] / divisors[k])
            if divisors[k] > 0 and np.isfinite(value):
                clipped += (low - value > margin) | (value - high > margin)
                total += value
            else:
                out_row[k] = nodata
    return clipped, total
