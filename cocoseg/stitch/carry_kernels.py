"""
Compiled inner loops of the carry strip; see :mod:`cocoseg.stitch.carry`.

Both kernels make values of a rectangle of one window: its data by its
weights, plus what the windows to the left and above have left behind. Inputs
and outputs never overlap, so that rectangles can be done in any order and at
the same time, and a window can be given up half-way.
"""
import numpy as np
from numba import njit

from cocoseg.stitch.kernels import _AHEAD, _all_finite, _get_row, _prefetch_row

# As in stitch/kernels.py: no 'nnan', 'ninf' or 'nsz'.
_FAST = {'contract', 'reassoc'}
_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}

@njit(inline='always', **_COMMON)
def _combine_row(row, scale, columns, left, carry, out):
    """Write a flat row times its weights to out, plus left (its first values) and carry."""
    first, last = out[:left.shape[0]], out[left.shape[0]:]
    for k in range(first.shape[0]):
        first[k] = row[k] * (scale * columns[k]) + left[k]
    row, columns = row[left.shape[0]:], columns[left.shape[0]:]
    for k in range(last.shape[0]):
        last[k] = row[k] * (scale * columns[k])
    for k in range(carry.shape[0]):
        out[k] += carry[k]


@njit(fastmath=_FAST, **_COMMON)
def _kernel_carry(planes, n_bands, row_weights, column_weights, left, x_shared, carry, y_shared,
                  carry_start, ya, xa, yb, xb, out, out_y, out_x):
    """
    Write a rectangle of a window, rows ya to yb and columns xa to xb, to out.

    planes (P, h, n); row_weights (h,); column_weights (w*C,); left (h, n) whose
    first x_shared columns are added; carry (n, W*C) whose first y_shared rows
    are added, the window beginning at carry_start, px; out (n, m*C), from
    (out_y, out_x). Returns False, with part of it written, if a value is not
    finite.
    """
    size = (xb - xa) * n_bands
    scratch = np.empty(size, planes.dtype)
    columns = column_weights[xa * n_bands:xb * n_bands]
    n_left = max(min(xb, x_shared) - xa, 0) * n_bands
    for y in range(ya, yb):
        _prefetch_row(planes, y + _AHEAD, xa, xb, n_bands)
        row = _get_row(planes, y, xa, xb, n_bands, scratch)
        if not _all_finite(row):
            return False
        n_carry = size if y < y_shared else 0
        _combine_row(row, row_weights[y], columns, left[y, xa * n_bands:xa * n_bands + n_left],
                     carry[y % carry.shape[0], (carry_start + xa) * n_bands:][:n_carry],
                     out[out_y + y - ya, out_x * n_bands:out_x * n_bands + size])
    return True


@njit(fastmath=_FAST, **_COMMON)
def _kernel_carry_encode(planes, n_bands, row_weights, column_weights, left, x_shared, carry,
                         y_shared, carry_start, ya, xa, yb, xb, out, out_y, out_x, low, high,
                         scale, quant_min):
    """
    As :func:`_kernel_carry`, as integer codes; return the clipped values, or -1.

    The same arithmetic as :func:`cocoseg.stitch.kernels._kernel_encode`, for
    codes of at most 16 bits. Each row is done as if all of it were in the
    range, and looked at again only if it was not.
    """
    size = (xb - xa) * n_bands
    scratch, values = np.empty(size, planes.dtype), np.empty(size, planes.dtype)
    columns = column_weights[xa * n_bands:xb * n_bands]
    n_left = max(min(xb, x_shared) - xa, 0) * n_bands
    margin = 0.5 / scale if scale > 0 else 0.0
    first_code = np.int32(quant_min)
    clipped = 0
    for y in range(ya, yb):
        _prefetch_row(planes, y + _AHEAD, xa, xb, n_bands)
        row = _get_row(planes, y, xa, xb, n_bands, scratch)
        n_carry = size if y < y_shared else 0
        _combine_row(row, row_weights[y], columns, left[y, xa * n_bands:xa * n_bands + n_left],
                     carry[y % carry.shape[0], (carry_start + xa) * n_bands:][:n_carry], values)
        target = out[out_y + y - ya, out_x * n_bands:out_x * n_bands + size]
        is_odd = False
        for k in range(size):
            value = np.float64(values[k])
            # Also true of NaN.
            is_odd |= not ((low - value <= margin) & (value - high <= margin))
            value = min(max(value, low), high)
            target[k] = np.int32(np.rint((value - low) * scale)) + first_code
        if is_odd:
            if not _all_finite(row):
                return -1
            for k in range(size):
                value = np.float64(values[k])
                clipped += (low - value > margin) | (value - high > margin)
    return clipped
