"""
The loops that bring a tile into the form that is compressed, compiled with numba.

Private: the API and the rules are in :mod:`cocoseg.io.packing`, which imports
this module when first used. Kernels release the GIL and are cached on the
disk. They write only to ``out`` and to the scratch arrays.

Pixels are looked at as unsigned integers of their size: differences wrap, and
one compiled loop serves integers and floats.
"""
import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model='numpy')
def _kernel_is_constant(values):
    """Return True if all values are the first one."""
    first = values[0]
    # In runs: a loop without a way out is one that the compiler vectorises.
    for start in range(0, values.size, 1024):
        same = True
        for value in values[start:start + 1024]:
            same &= value == first
        if not same:
            return False
    return True


@njit(nogil=True, cache=True, error_model='numpy')
def _copy_row(row, n_bands, out):
    """Copy a row, and repeat its last pixel to the end of ``out``."""
    n_values = row.size
    out[:n_values] = row
    for i in range(n_values, out.size):
        out[i] = out[i - n_bands]


@njit(nogil=True, cache=True, error_model='numpy')
def _kernel_copy(tile, out):
    """Copy a tile; beyond it, its edge is repeated."""
    height, width, n_bands = tile.shape
    side = out.shape[0]
    for y in range(height):
        _copy_row(tile[y].reshape(width * n_bands), n_bands, out[y])
    for y in range(height, side):
        out[y] = out[height - 1]


@njit(nogil=True, cache=True, error_model='numpy')
def _kernel_differences(tile, out):
    """Predictor 2: each value minus that of the same band one pixel to the left."""
    height, width, n_bands = tile.shape
    side = out.shape[0]
    n_values = width * n_bands
    for y in range(height):
        row = tile[y].reshape(n_values)
        out_row = out[y]
        out_row[:n_bands] = row[:n_bands]
        # Slices of one length: no index can be negative, so this vectorises.
        left, right, found = row[:n_values - n_bands], row[n_bands:], out_row[n_bands:n_values]
        for i in range(found.size):
            found[i] = right[i] - left[i]
        # Beyond the edge its pixel is repeated: no difference.
        out_row[n_values:] = 0
    for y in range(height, side):
        out[y] = out[height - 1]


@njit(nogil=True, cache=True, error_model='numpy')
def _kernel_float_differences(tile, row, planes, out):
    """
    Predictor 3: the bytes of a row by significance, then their differences.

    See Adobe Photoshop TIFF Technical Note 3 (2005). ``row`` holds one padded
    row of values and ``planes`` its bytes.
    """
    height, width, n_bands = tile.shape
    side, n_bytes = out.shape
    n_values = row.size
    size = n_bytes // n_values
    for y in range(height):
        _copy_row(tile[y].reshape(width * n_bands), n_bands, row)
        for k in range(size):
            plane = planes[k * n_values:(k + 1) * n_values]
            shift = row.dtype.type(8 * (size - 1 - k))
            for i in range(n_values):
                plane[i] = np.uint8((row[i] >> shift) & row.dtype.type(255))
        out_row = out[y]
        out_row[:n_bands] = planes[:n_bands]
        left, right, found = planes[:n_bytes - n_bands], planes[n_bands:], out_row[n_bands:]
        for i in range(found.size):
            found[i] = right[i] - left[i]
    for y in range(height, side):
        out[y] = out[height - 1]
