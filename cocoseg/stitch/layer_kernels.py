"""
Compiled inner loops of the extra layers: class map, threshold, disagreement.

:mod:`cocoseg.stitch.layers` and the canvases are the API; the unit tests hold
a plain numpy reference of each kernel. The layout of a canvas and of a window
is that of :mod:`cocoseg.stitch.kernels`, and like there, what is accumulated
is plain IEEE arithmetic, the same however a window is cut into blocks.

The sum of squared deviations of a pixel follows D. H. D. West, "Updating mean
and variance estimates", Communications of the ACM 22 (1979): a value v of
weight w, on top of values of mean m and weight W, adds
``w * W / (W + w) * (v - m) ** 2``. Nothing large is subtracted from anything
large, so an offset of the values does not eat the result, as it does with
``mean(v ** 2) - mean(v) ** 2``.
"""
import numpy as np
from numba import njit

from cocoseg.stitch.kernels import _COMMON, _all_finite, _get_row

# ---- a finished block ------------------------------------------------------


@njit(**_COMMON)
def _kernel_argmax(mean, nodata, out):
    """
    Write the band of the largest finite value of mean (h, w, C) to out (h, w).

    Ties go to the lowest band; ``nodata`` where no band is finite.
    """
    infinity = mean.dtype.type(np.inf)
    for y in range(mean.shape[0]):
        for x in range(mean.shape[1]):
            best, index = -infinity, nodata
            for band in range(mean.shape[2]):
                value = mean[y, x, band]
                # Selects, not jumps: which band wins cannot be predicted.
                is_better = (value > best) & (value < infinity)
                best = value if is_better else best
                index = band if is_better else index
            out[y, x] = index


@njit(**_COMMON)
def _kernel_threshold(mean, thresholds, nodata, out):
    """
    Write where mean exceeds its band's threshold: 1, 0, or ``nodata``.

    mean and out (h, w, C), C-contiguous; thresholds (C,), which are rounded to
    the dtype of mean. ``nodata`` where a value is not finite.
    """
    height, width, n_bands = mean.shape
    size = width * n_bands
    limits = np.empty(size, mean.dtype)
    for k in range(size):
        limits[k] = thresholds[k % n_bands]
    missing = out.dtype.type(nodata)
    for y in range(height):
        row, out_row = mean[y].reshape(size), out[y].reshape(size)
        for k in range(size):
            value = row[k]
            is_above = out.dtype.type(value > limits[k])
            out_row[k] = is_above if value - value == 0 else missing


@njit(**_COMMON)
def _kernel_deviation(deviations, weights, out):
    """
    Write sqrt(deviations / weights) to out, NaN where no weight or overflown.

    deviations and out (h, w, C), weights (h, w, C) or (h, w, 1); C-contiguous.
    """
    height, width, n_bands = deviations.shape
    size = width * n_bands
    divisors = np.empty(size, weights.dtype)
    for y in range(height):
        row, out_row = deviations[y].reshape(size), out[y].reshape(size)
        _repeat(weights[y].reshape(-1), n_bands // weights.shape[2], divisors)
        for k in range(size):
            value = out.dtype.type(np.sqrt(row[k] / divisors[k]))
            # Without weight it is infinite or NaN.
            out_row[k] = value if value < np.inf else np.nan


# ---- while windows come ----------------------------------------------------


@njit(**_COMMON)
def _kernel_add_deviation(squares, sums, weights, y0, x0, planes, dy, dx, height, width,
                          row_weights, column_weights):
    """
    Add the squared deviations of a part of a window, right BEFORE its ordinary add.

    squares and sums (H, W*C) and weights are the canvas without the window;
    only squares change. The rest is as for ``kernels._kernel_add``, all of one
    dtype. With weights (H, W), a pixel with NaN or infinity in any band
    contributes nothing; with weights (H, W*C), a sample that is not finite
    contributes nothing to its band.
    """
    n_bands = planes.shape[2] * planes.shape[0] // column_weights.shape[0]
    size = width * n_bands
    totals, factors = np.empty(size, sums.dtype), np.empty(size, sums.dtype)
    scratch = np.empty(size, planes.dtype)
    _repeat(column_weights[dx:dx + width], n_bands, factors)
    for y in range(height):
        row = _get_row(planes, dy + y, dx, dx + width, n_bands, scratch)
        _get_old_weights(weights[y0 + y], x0, row, n_bands, sums.shape[1], totals)
        _add_row(squares[y0 + y], sums[y0 + y], x0 * n_bands, row, totals, row_weights[dy + y],
                 factors)


@njit(**_COMMON)
def _kernel_add_deviation_dense(squares, sums, weights, y0, x0, planes, dy, dx, height, width,
                                window_weights):
    """As :func:`_kernel_add_deviation`, with one weight per pixel, window_weights (h, w)."""
    n_bands = planes.shape[2] * planes.shape[0] // window_weights.shape[1]
    size = width * n_bands
    totals, factors = np.empty(size, sums.dtype), np.empty(size, sums.dtype)
    scratch = np.empty(size, planes.dtype)
    one = sums.dtype.type(1)
    for y in range(height):
        row = _get_row(planes, dy + y, dx, dx + width, n_bands, scratch)
        _repeat(window_weights[dy + y, dx:dx + width], n_bands, factors)
        _get_old_weights(weights[y0 + y], x0, row, n_bands, sums.shape[1], totals)
        _add_row(squares[y0 + y], sums[y0 + y], x0 * n_bands, row, totals, one, factors)


@njit(**_COMMON)
def _repeat(values, count, out):
    """Repeat each entry of a flat array ``count`` times, to out."""
    for x in range(values.shape[0]):
        for k in range(x * count, (x + 1) * count):
            out[k] = values[x]


@njit(**_COMMON)
def _get_old_weights(weight_row, x0, row, n_bands, size, totals):
    """
    Write the old weight of every sample of a row to totals, 0 where it is invalid.

    weight_row (W,) or, of the ``size`` of a row of sums, (W*C,).
    """
    if weight_row.shape[0] == size:
        zero = totals.dtype.type(0)
        old = weight_row[x0 * n_bands:x0 * n_bands + row.shape[0]]
        for k in range(row.shape[0]):
            totals[k] = old[k] if row[k] - row[k] == 0 else zero
        return
    width = row.shape[0] // n_bands
    _repeat(weight_row[x0:x0 + width], n_bands, totals)
    if _all_finite(row):
        return
    for x in range(width):
        check = row.dtype.type(0)
        for k in range(x * n_bands, (x + 1) * n_bands):
            check += row[k] - row[k]
        if check != 0:
            for k in range(x * n_bands, (x + 1) * n_bands):
                totals[k] = 0


@njit(**_COMMON)
def _add_row(square_row, sum_row, first, row, totals, scale, factors):
    """
    Add one row of squared deviations, from column ``first`` of the canvas.

    totals: old weights, 0 where nothing is to be added; scale * factors:
    weights of the window.
    """
    size = totals.shape[0]
    square_part = square_row[first:first + size]
    sum_part = sum_row[first:first + size]
    zero = totals.dtype.type(0)
    for k in range(size):
        old, new = totals[k], scale * factors[k]
        distance = row[k] - sum_part[k] / old
        # As new * (old / …): the product of two small weights would underflow.
        term = new * (old / (old + new)) * distance * distance
        square_part[k] += term if (old > 0) & (new > 0) else zero
