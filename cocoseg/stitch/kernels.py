"""
Compiled inner loops of stitching.

Each ``_kernel_*`` is private: :mod:`cocoseg.stitch.canvas`,
:mod:`cocoseg.stitch.products` and :mod:`cocoseg.stitch.quantize` are the API,
and the unit tests hold a plain numpy reference of each kernel. This module is
imported when first needed, since numba takes most of a second to load.

Layout: a canvas row is flat, ``(W * C,)``, so that the innermost loops are
plain vector multiply-adds whatever the number of bands. The data of a window
comes as ``planes`` of shape (P, h, n): one plane of flat rows (1, h, w * C),
or, with the bands first as torch has them, C planes (C, h, w), whose rows are
interleaved on the fly. Every kernel releases the GIL and allocates at most a
few rows.
"""
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Sums may be reordered where only "is it finite" is asked of them. The test
# `check += v - v` must survive optimisation: no 'nnan' or 'ninf', and no
# 'nsz', which together with 'reassoc' lets v - v cancel. What goes into a
# canvas is plain IEEE arithmetic: the same however a window is cut into blocks.
_FAST = {'contract', 'reassoc'}
_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}
# Rows ahead that are asked for while one is done. Windows and blocks come from
# memory in short rows, whose beginning the processor does not guess by itself.
_AHEAD = 2
# Entries of a flat array that are done at a time.
_CHUNK = 1024


@intrinsic
def _prefetch(typingctx, array, index):
    """Ask for the cache line of an entry of a 1-D array; nothing waits for it."""
    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
            'llvm.prefetch.p0i8')
        address = builder.bitcast(builder.gep(data, [args[1]]), byte)
        # For reading, to be kept in all levels, data.
        builder.call(function, [address, *(ir.Constant(number, value) for value in (0, 3, 1))])
        return context.get_dummy_value()
    return types.void(array, types.intp), generate


@njit(inline='always', **_COMMON)
def _prefetch_part(array, y, k0, k1):
    """Ask for entries k0 to k1 of a row of a 2-D array, if there is such a row."""
    if y < array.shape[0]:
        row = array[y]
        for k in range(k0, k1, 64 // array.itemsize):
            _prefetch(row, k)


@njit(inline='always', **_COMMON)
def _prefetch_row(planes, y, xa, xb, n_bands):
    """Ask for columns xa to xb of a row of a window, if there is such a row."""
    scale = n_bands if planes.shape[0] == 1 else 1
    for plane in range(planes.shape[0]):
        _prefetch_part(planes[plane], y, xa * scale, xb * scale)


@njit(fastmath=_FAST, **_COMMON)
def _all_finite(row):
    """Return True unless a value of a flat row is NaN or infinite."""
    check = row.dtype.type(0)
    for k in range(row.shape[0]):
        check += row[k] - row[k]
    return check == 0


@njit(**_COMMON)
def _kernel_all_finite(planes):
    """Return True unless a value of (P, h, n) is NaN or infinite."""
    for plane in range(planes.shape[0]):
        for y in range(planes.shape[1]):
            _prefetch_part(planes[plane], y + _AHEAD, 0, planes.shape[2])
            if not _all_finite(planes[plane, y]):
                return False
    return True


@njit(**_COMMON)
def _get_row(planes, y, x0, x1, n_bands, scratch):
    """Return columns x0 to x1 of one row, flat; ``scratch`` is used for bands first."""
    if planes.shape[0] == 1:
        return planes[0, y, x0 * n_bands:x1 * n_bands]
    row = scratch[:(x1 - x0) * n_bands]
    for band in range(n_bands):
        source = planes[band, y, x0:x1]
        for x in range(source.shape[0]):
            row[x * n_bands + band] = source[x]
    return row


@njit(**_COMMON)
def _expand(column_weights, n_bands):
    """Return weights (w,) repeated for every band, (w * C,)."""
    expanded = np.empty(column_weights.shape[0] * n_bands, column_weights.dtype)
    for x in range(column_weights.shape[0]):
        for band in range(n_bands):
            expanded[x * n_bands + band] = column_weights[x]
    return expanded


# Innermost loops do without slices: each costs an atomic count of references,
# which is a third of the time of a short row. Offsets are unsigned, because a
# signed index may count from the end, and testing for that keeps a loop from
# being vectorised.

@njit(inline='always', **_COMMON)
def _add_at(data, start, scale, expanded, size, sums, sum_start):
    """Add a row of data times its weights to sums, at offsets of flat arrays."""
    for k in range(size):
        weight = scale * expanded[k]
        sums[sum_start + k] += data[start + k] * weight


@njit(inline='always', **_COMMON)
def _weigh_at(scale, columns, size, weights, start):
    """Add a row of weights, at an offset of a flat array."""
    for x in range(size):
        weights[start + x] += scale * columns[x]


@njit(fastmath=_FAST, **_COMMON)
def _is_finite_at(data, start, size):
    """Do the same as :func:`_all_finite` at an offset of a flat array."""
    check = data.dtype.type(0)
    for k in range(size):
        value = data[start + k]
        check += value - value
    return check == 0


@njit(**_COMMON)
def _kernel_add_sums(sums, y0, x0, planes, dy, dx, height, width, row_weights, column_weights):
    """
    Add a part of a window to the sums alone; all its values are finite.

    sums (H, W*C), planes (P, h, n), row_weights (h,), column_weights (w,). The
    part of (height, width) px at (dy, dx) of the window goes to (y0, x0).
    """
    n_bands = planes.shape[2] * planes.shape[0] // column_weights.shape[0]
    expanded = _expand(column_weights[dx:dx + width], n_bands)
    scratch = np.empty(expanded.shape[0], planes.dtype)
    data, flat = planes.reshape(-1), sums.reshape(-1)
    size = np.uint64(width * n_bands)
    for y in range(height):
        _prefetch_row(planes, dy + y + _AHEAD, dx, dx + width, n_bands)
        _prefetch_part(sums, y0 + y + _AHEAD, x0 * n_bands, (x0 + width) * n_bands)
        start = np.uint64((y0 + y) * sums.shape[1] + x0 * n_bands)
        if planes.shape[0] == 1:
            source = np.uint64((dy + y) * planes.shape[2] + dx * n_bands)
            _add_at(data, source, row_weights[dy + y], expanded, size, flat, start)
        else:
            row = _get_row(planes, dy + y, dx, dx + width, n_bands, scratch)
            _add_at(row, np.uint64(0), row_weights[dy + y], expanded, size, flat, start)


@njit(**_COMMON)
def _kernel_add_weights(weights, y0, x0, dy, dx, height, width, row_weights, column_weights):
    """Add the weights of a part of a window to a plane (H, W)."""
    columns = column_weights[dx:dx + width]
    for y in range(height):
        scale = row_weights[dy + y]
        weight_row = weights[y0 + y, x0:x0 + width]
        for x in range(width):
            weight_row[x] += scale * columns[x]


@njit(**_COMMON)
def _kernel_add(sums, weights, y0, x0, planes, dy, dx, height, width, row_weights,
                column_weights):
    """
    Add a part of a window to sums and weights; return its invalid pixels.

    As :func:`_kernel_add_sums`, with weights (H, W). A pixel with NaN or
    infinity in any band is invalid and contributes nothing.
    """
    n_bands = planes.shape[2] * planes.shape[0] // column_weights.shape[0]
    columns = column_weights[dx:dx + width].copy()
    expanded = _expand(columns, n_bands)
    scratch = np.empty(expanded.shape[0], planes.dtype)
    flat_sums, flat_weights = sums.reshape(-1), weights.reshape(-1)
    size, n_pixels, none = np.uint64(width * n_bands), np.uint64(width), np.uint64(0)
    invalid = 0
    for y in range(height):
        _prefetch_row(planes, dy + y + _AHEAD, dx, dx + width, n_bands)
        _prefetch_part(sums, y0 + y + _AHEAD, x0 * n_bands, (x0 + width) * n_bands)
        _prefetch_part(weights, y0 + y + _AHEAD, x0, x0 + width)
        scale = row_weights[dy + y]
        start = np.uint64((y0 + y) * sums.shape[1] + x0 * n_bands)
        weight_start = np.uint64((y0 + y) * weights.shape[1] + x0)
        row = _get_row(planes, dy + y, dx, dx + width, n_bands, scratch)
        if _is_finite_at(row, none, size):
            _add_at(row, none, scale, expanded, size, flat_sums, start)
            _weigh_at(scale, columns, n_pixels, flat_weights, weight_start)
            continue
        # Pixel by pixel only from the first to the last that is not finite.
        first, last = 0, width * n_bands - 1
        while np.isfinite(row[first]):
            first += 1
        while np.isfinite(row[last]):
            last -= 1
        first, last = first // n_bands, last // n_bands + 1
        _add_at(row, none, scale, expanded, np.uint64(first * n_bands), flat_sums, start)
        _weigh_at(scale, columns, np.uint64(first), flat_weights, weight_start)
        sum_row = sums[y0 + y, x0 * n_bands:(x0 + width) * n_bands]
        weight_row = weights[y0 + y, x0:x0 + width]
        for x in range(first, last):
            weight = scale * columns[x]
            invalid += _add_pixel(sum_row, weight_row, row, x, n_bands, weight)
        done = np.uint64(last * n_bands)
        _add_at(row[last * n_bands:], none, scale, expanded[last * n_bands:], size - done,
                flat_sums, start + done)
        _weigh_at(scale, columns[last:], np.uint64(width - last), flat_weights,
                  weight_start + np.uint64(last))
    return invalid


@njit(**_COMMON)
def _kernel_expand(weights, n_bands, out):
    """Repeat each weight of (h, w) for every band, to out (h, w*C)."""
    for y in range(weights.shape[0]):
        for x in range(weights.shape[1]):
            for band in range(n_bands):
                out[y, x * n_bands + band] = weights[y, x]


@njit(**_COMMON)
def _kernel_add_dense(sums, weights, y0, x0, planes, dy, dx, height, width, window_weights,
                      expanded):
    """
    As :func:`_kernel_add`, with one weight per pixel.

    window_weights (h, w), and expanded (h, w*C), the same for every band.
    """
    n_bands = expanded.shape[1] // window_weights.shape[1]
    scratch = np.empty(width * n_bands, planes.dtype)
    flat_sums, flat_weights = sums.reshape(-1), weights.reshape(-1)
    flat_expanded, flat_factors = expanded.reshape(-1), window_weights.reshape(-1)
    size, n_pixels, none = np.uint64(width * n_bands), np.uint64(width), np.uint64(0)
    invalid = 0
    for y in range(height):
        _prefetch_row(planes, dy + y + _AHEAD, dx, dx + width, n_bands)
        _prefetch_part(sums, y0 + y + _AHEAD, x0 * n_bands, (x0 + width) * n_bands)
        row = _get_row(planes, dy + y, dx, dx + width, n_bands, scratch)
        if _is_finite_at(row, none, size):
            start = np.uint64((y0 + y) * sums.shape[1] + x0 * n_bands)
            source = np.uint64((dy + y) * expanded.shape[1] + dx * n_bands)
            for k in range(size):
                flat_sums[start + k] += row[k] * flat_expanded[source + k]
            start = np.uint64((y0 + y) * weights.shape[1] + x0)
            source = np.uint64((dy + y) * window_weights.shape[1] + dx)
            for x in range(n_pixels):
                flat_weights[start + x] += flat_factors[source + x]
        else:
            sum_row = sums[y0 + y, x0 * n_bands:(x0 + width) * n_bands]
            weight_row = weights[y0 + y, x0:x0 + width]
            for x in range(width):
                invalid += _add_pixel(sum_row, weight_row, row, x, n_bands,
                                      window_weights[dy + y, dx + x])
    return invalid


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
def _kernel_add_bands(sums, weights, y0, x0, planes, dy, dx, height, width, window_weights):
    """
    As :func:`_kernel_add_dense`, each band for itself; weights (H, W*C).

    A sample that is not finite contributes nothing to its band. Returns the
    pixels that have no finite band.
    """
    n_bands = planes.shape[2] * planes.shape[0] // window_weights.shape[1]
    scratch = np.empty(width * n_bands, planes.dtype)
    invalid = 0
    for y in range(height):
        sum_row = sums[y0 + y, x0 * n_bands:(x0 + width) * n_bands]
        weight_row = weights[y0 + y, x0 * n_bands:(x0 + width) * n_bands]
        row = _get_row(planes, dy + y, dx, dx + width, n_bands, scratch)
        for x in range(width):
            weight = window_weights[dy + y, dx + x]
            n_valid = 0
            for k in range(x * n_bands, (x + 1) * n_bands):
                if np.isfinite(row[k]):
                    sum_row[k] += row[k] * weight
                    weight_row[k] += weight
                    n_valid += 1
            invalid += n_valid == 0
    return invalid


@njit(**_COMMON)
def _kernel_normalize(sums, weights, out):
    """Write sums / weights to out, NaN where no weight; (h, w*C), weights also (h, w)."""
    height, size = sums.shape
    n_bands = size // weights.shape[1]
    for y in range(height):
        for x in range(weights.shape[1]):
            weight = weights[y, x]
            if weight > 0:
                for k in range(x * n_bands, (x + 1) * n_bands):
                    out[y, k] = sums[y, k] / weight
            else:
                for k in range(x * n_bands, (x + 1) * n_bands):
                    out[y, k] = np.nan


@njit(**_COMMON)
def _kernel_minmax(values):
    """Return (min, max, count) of the finite entries of a flat array."""
    low, high, count = np.inf, -np.inf, 0
    for k in range(values.shape[0]):
        value = values[k]
        if np.isfinite(value):
            low, high, count = min(low, value), max(high, value), count + 1
    return low, high, count


@njit(inline='always', **_COMMON)
def _encode_row(values, low, high, scale, quant_min, nodata, out):
    """
    Quantize a flat row; return the number of clipped entries.

    First without a branch, as if all were valid and in the range, and again
    only if that was not so.
    """
    margin = 0.5 / scale if scale > 0 else 0.0
    is_odd = False
    for k in range(values.shape[0]):
        value = np.float64(values[k])
        # Also true of NaN.
        is_odd |= not ((low - value <= margin) & (value - high <= margin))
        value = min(max(value, low), high)
        out[k] = np.int64(np.rint((value - low) * scale)) + quant_min
    if not is_odd:
        return 0
    clipped = 0
    for k in range(values.shape[0]):
        value = np.float64(values[k])
        if np.isfinite(value):
            clipped += (low - value > margin) | (value - high > margin)
        else:
            out[k] = nodata
    return clipped


@njit(fastmath=_FAST, **_COMMON)
def _kernel_encode(values, low, high, scale, quant_min, nodata, out):
    """
    Quantize a flat float array; return the number of clipped entries.

    ``rint((v - low) * scale) + quant_min`` with v clipped to [low, high], in
    float64, and ``nodata`` where v is not finite. An entry counts as clipped
    if that moves it by more than half a step, the error of any other entry: a
    mean of ones may be 1 + 1e-7.
    """
    clipped = 0
    for start in range(0, values.shape[0], _CHUNK):
        stop = start + _CHUNK
        for k in range(stop, min(stop + _CHUNK, values.shape[0]), 64 // values.itemsize):
            _prefetch(values, k)
        clipped += _encode_row(values[start:stop], low, high, scale, quant_min, nodata,
                               out[start:stop])
    return clipped


@njit(fastmath=_FAST, **_COMMON)
def _kernel_normalize_encode(sums, weights, low, high, scale, quant_min, nodata, out):
    """
    Fuse :func:`_kernel_normalize` and :func:`_kernel_encode`; return the clipped entries.

    sums and out (h, w*C), weights (h, w) or (h, w*C), all C-contiguous.
    """
    height, size = sums.shape
    n_bands = size // weights.shape[1]
    clipped = 0
    means, divisors = np.empty(size, sums.dtype), np.empty(size, sums.dtype)
    data, flat_weights = sums.reshape(-1), weights.reshape(-1)
    length = np.uint64(size)
    for y in range(height):
        _prefetch_part(sums, y + _AHEAD, 0, size)
        start = np.uint64(y * size)
        weight_start = np.uint64(y * weights.shape[1])
        _expand_at(flat_weights, weight_start, np.uint64(weights.shape[1]), np.uint64(n_bands),
                   divisors)
        # Rounded to the canvas dtype first, as when the mean is returned. 0 / 0
        # is NaN; a weight without a sum cannot be, nor the other way round.
        for k in range(length):
            means[k] = data[start + k] / divisors[k]
        clipped += _encode_row(means, low, high, scale, quant_min, nodata, out[y])
    return clipped


@njit(inline='always', **_COMMON)
def _expand_at(weights, start, width, n_bands, out):
    """Repeat weights at an offset for every band; out (w * C,)."""
    if n_bands == 1:
        for x in range(width):
            out[x] = weights[start + x]
    elif n_bands == 3:
        # A constant, which becomes shuffles of vectors.
        for x in range(width):
            weight, k = weights[start + x], x * np.uint64(3)
            out[k], out[k + np.uint64(1)], out[k + np.uint64(2)] = weight, weight, weight
    else:
        for x in range(width):
            for band in range(n_bands):
                out[x * n_bands + band] = weights[start + x]
