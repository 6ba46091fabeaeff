"""
Compiled inner loops of the carry strip; see :mod:`cocoseg.stitch.carry`.

The kernels make values of a rectangle of one window, or of all of it: its data
by its weights, plus what the windows to the left and above have left behind. Inputs
and outputs never overlap, so that rectangles can be done in any order and at
the same time, and a window can be given up half-way.
"""
import numpy as np
from numba import njit

from cocoseg.stitch.kernels import _AHEAD, _all_finite, _get_row, _prefetch_row

# As in stitch/kernels.py: no 'nnan', 'ninf' or 'nsz'.
_FAST = {'contract', 'reassoc'}
_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}
# Innermost loops go by unsigned offsets of flat arrays, see stitch/kernels.py.
_NONE = np.uint64(0)


@njit(inline='always', **_COMMON)
def _combine_at(data, start, scale, columns, left, left_start, n_left, carry, carry_start,
                n_carry, size, out):
    """
    Write a row of data times its weights to out, plus what was left for it.

    The first n_left values get left, the first n_carry get carry; all arrays
    are flat, and read from an offset.
    """
    for k in range(n_left):
        out[k] = data[start + k] * (scale * columns[k]) + left[left_start + k]
    for k in range(n_left, size):
        out[k] = data[start + k] * (scale * columns[k])
    for k in range(n_carry):
        out[k] += carry[carry_start + k]


@njit(inline='always', **_COMMON)
def _encode_at(values, start, size, out, out_start, low, high, scale, first_code, margin):
    """
    Write values as codes; return True if one was clipped or is not finite.

    The same arithmetic as :func:`cocoseg.stitch.kernels._kernel_encode`, for
    codes of at most 16 bits: all is done as if it were in the range.
    """
    is_odd = False
    for k in range(size):
        value = np.float64(values[start + k])
        # Also true of NaN.
        is_odd |= not ((low - value <= margin) & (value - high <= margin))
        value = min(max(value, low), high)
        out[out_start + k] = np.int32(np.rint((value - low) * scale)) + first_code
    return is_odd


@njit(inline='always', **_COMMON)
def _move_at(values, start, size, out, out_start):
    """Copy values; return True unless one is not finite."""
    check = values.dtype.type(0)
    for k in range(size):
        value = values[start + k]
        check += value - value
        out[out_start + k] = value
    return check == 0


@njit(**_COMMON)
def _count_clipped(values, low, high, margin):
    """Return how many values were clipped, -1 if one is not finite."""
    if not _all_finite(values):
        return -1
    clipped = 0
    for k in range(values.shape[0]):
        value = np.float64(values[k])
        clipped += (low - value > margin) | (value - high > margin)
    return clipped


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
    n_left, length = np.uint64(max(min(xb, x_shared) - xa, 0) * n_bands), np.uint64(size)
    for y in range(ya, yb):
        _prefetch_row(planes, y + _AHEAD, xa, xb, n_bands)
        row = _get_row(planes, y, xa, xb, n_bands, scratch)
        if not _all_finite(row):
            return False
        _combine_at(row, _NONE, row_weights[y], columns, left[y, xa * n_bands:], _NONE, n_left,
                    carry[y % carry.shape[0], (carry_start + xa) * n_bands:], _NONE,
                    length if y < y_shared else _NONE, length,
                    out[out_y + y - ya, out_x * n_bands:])
    return True


@njit(fastmath=_FAST, **_COMMON)
def _kernel_carry_encode(planes, n_bands, row_weights, column_weights, left, x_shared, carry,
                         y_shared, carry_start, ya, xa, yb, xb, out, out_y, out_x, code):
    """
    As :func:`_kernel_carry`, as integer codes; return the clipped values, or -1.

    code: (low, high, scale, quant_min), see :func:`_encode_at`.
    """
    low, high, scale, quant_min = code
    margin = 0.5 / scale if scale > 0 else 0.0
    first_code = np.int32(quant_min)
    size = (xb - xa) * n_bands
    scratch, values = np.empty(size, planes.dtype), np.empty(size, planes.dtype)
    columns = column_weights[xa * n_bands:xb * n_bands]
    n_left, length = np.uint64(max(min(xb, x_shared) - xa, 0) * n_bands), np.uint64(size)
    clipped = 0
    for y in range(ya, yb):
        _prefetch_row(planes, y + _AHEAD, xa, xb, n_bands)
        row = _get_row(planes, y, xa, xb, n_bands, scratch)
        _combine_at(row, _NONE, row_weights[y], columns, left[y, xa * n_bands:], _NONE, n_left,
                    carry[y % carry.shape[0], (carry_start + xa) * n_bands:], _NONE,
                    length if y < y_shared else _NONE, length, values)
        if _encode_at(values, _NONE, length, out[out_y + y - ya, out_x * n_bands:], _NONE, low,
                      high, scale, first_code, margin):
            done = _count_clipped(values, low, high, margin)
            if done < 0:
                return -1
            clipped += done
    return clipped


@njit(fastmath=_FAST, **_COMMON)
def _kernel_carry_window(inputs, y_shared, carry_start, rows, columns, blocks, corner, carry_out,
                         left_out, code):
    """
    Do rows of a whole window, of which up to 2 x 2 blocks get the final pixels.

    The same values as those of the two kernels above, rectangle by rectangle,
    but each row of the window is gone through once. inputs: the first
    arguments of :func:`_kernel_carry`, up to carry. rows: (first, last, split,
    ready), what to do, where the lower blocks begin, and how many rows become
    final; columns: (split, ready, stop) likewise. blocks: above left, above
    right, below left, below right; corner: where the window begins in the
    first; code: see :func:`_kernel_carry_encode`. Returns the clipped values of each
    block; -1 first if a value is not finite.
    """
    planes, n_bands, row_weights, column_weights, left, x_shared, carry = inputs
    first, last, y_split, y_ready = rows
    low, high, scale, quant_min = code
    margin = 0.5 / scale if scale > 0 else 0.0
    first_code = np.int32(quant_min)
    split, ready, size = [np.uint64(x * n_bands) for x in columns]
    n_left = np.uint64(x_shared * n_bands)
    data, flat_left, flat_carry = planes.reshape(-1), left.reshape(-1), carry.reshape(-1)
    flat_left_out, flat_carry_out = left_out.reshape(-1), carry_out.reshape(-1)
    above0, above1, below0, below1 = blocks
    top0, top1 = above0.reshape(-1), above1.reshape(-1)
    bottom0, bottom1 = below0.reshape(-1), below1.reshape(-1)
    scratch, values = np.empty(size, planes.dtype), np.empty(size, planes.dtype)
    clipped = np.zeros(4, np.int64)
    for y in range(first, last):
        _prefetch_row(planes, y + _AHEAD, 0, columns[2], n_bands)
        left_row = np.uint64(y * left.shape[1])
        carry_row = np.uint64(y * carry.shape[1] + carry_start * n_bands)
        # What is left for the window on the right gets the carry there.
        n_carry = ready if y < y_shared else _NONE
        if planes.shape[0] == 1:
            _combine_at(data, np.uint64(y) * size, row_weights[y], column_weights, flat_left,
                        left_row, n_left, flat_carry, carry_row, n_carry, size, values)
        else:
            row = _get_row(planes, y, 0, columns[2], n_bands, scratch)
            _combine_at(row, _NONE, row_weights[y], column_weights, flat_left, left_row, n_left,
                        flat_carry, carry_row, n_carry, size, values)
        if not _move_at(values, ready, size - ready, flat_left_out, left_row):
            return (-1, 0, 0, 0)
        if y >= y_ready:
            carry_row = np.uint64((y - y_ready) * carry.shape[1] + carry_start * n_bands)
            if not _move_at(values, _NONE, ready, flat_carry_out, carry_row):
                return (-1, 0, 0, 0)
            continue
        if y < y_split:
            start0 = np.uint64((corner[0] + y) * above0.shape[1] + corner[1] * n_bands)
            start1 = np.uint64((corner[0] + y) * above1.shape[1])
            is_odd = _encode_at(values, _NONE, split, top0, start0, low, high, scale, first_code,
                                margin)
            is_odd |= _encode_at(values, split, ready - split, top1, start1, low, high, scale,
                                 first_code, margin)
        else:
            start0 = np.uint64((y - y_split) * below0.shape[1] + corner[1] * n_bands)
            start1 = np.uint64((y - y_split) * below1.shape[1])
            is_odd = _encode_at(values, _NONE, split, bottom0, start0, low, high, scale, first_code,
                                margin)
            is_odd |= _encode_at(values, split, ready - split, bottom1, start1, low, high, scale,
                                 first_code, margin)
        if is_odd:
            for number, part in enumerate((values[:split], values[split:ready])):
                done = _count_clipped(part, low, high, margin)
                if done < 0:
                    return (-1, 0, 0, 0)
                clipped[number + 2 * (y >= y_split)] += done
    return (clipped[0], clipped[1], clipped[2], clipped[3])
