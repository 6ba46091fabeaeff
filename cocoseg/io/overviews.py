"""
The overview pyramid: what an image looks like at half size, again and again.

Each level halves the one before on an exact grid: its pixel (y, x) stands for
rows 2y, 2y+1 and columns 2x, 2x+1, as far as they exist. So level k covers
2^k x 2^k squares of the full image whatever its size. Arrays only, no files.
"""
from __future__ import annotations

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.io.packing import is_constant

# px; of an image that may do without overviews.
_MAX_BARE_SIDE = 512

METHODS = ('average', 'nearest', 'mode')


def compute_overview_shapes(shape, blocksize):
    """
    List the sizes of the levels until one fits in a tile.

    An image of more than 512 px has at least one, also if it is a single tile:
    GDAL's validator and rio-cogeo's want that.

    Args:
        shape (tuple[int, int]): (H, W) of the full image, px; more entries
            are ignored.
        blocksize (int): side of a tile, px.

    Returns:
        list[tuple[int, int]]: (h, w) of each level, fine to coarse; each is
            the half of the one before, rounded up.

    Example:
        >>> from cocoseg.io.overviews import compute_overview_shapes
        >>> compute_overview_shapes((700, 1025), 256)
        [(350, 513), (175, 257), (88, 129)]
        >>> compute_overview_shapes((256, 256), 256)
        []
    """
    height, width = shape[:2]
    shapes = []
    while max(height, width) > (blocksize if shapes else min(blocksize, _MAX_BARE_SIDE)):
        height, width = -(-height // 2), -(-width // 2)
        shapes.append((height, width))
    return shapes


def _substitute(dtype, nodata):
    """Return the neighbour of ``nodata`` for a mean that happens to equal it."""
    if dtype.kind == 'f':
        top = dtype.type(np.finfo(dtype).max)
        return np.nextafter(nodata, top if nodata < top else -top, dtype=dtype)
    return dtype.type(int(nodata) + (1 if nodata < np.iinfo(dtype).max else -1))


def _find_scale(src):
    """Return what keeps the sum of four values within a double."""
    if src.dtype.itemsize < 8:
        return 1.0
    top = np.finfo(src.dtype).max
    return 0.25 if (np.isfinite(src) & (np.abs(src) > top / 4)).any() else 1.0


def reduce_by_two(data, method='average', nodata=None):
    """
    Halve an image.

    A pixel is invalid where it equals ``nodata`` or is NaN. The result is
    invalid only where all the pixels it stands for are. A mean that happens to
    equal ``nodata`` becomes its neighbouring value, so that it stays valid.

    Args:
        data (ndarray): int or float, shape (H, W, C). Never modified.
        method (str): 'average': mean of the valid pixels, integers rounded
            half up. 'mode': the most frequent valid pixel, on a tie the first
            in row-major order; for labels. 'nearest': the top-left pixel,
            valid or not.
        nodata (int | float | None): value of invalid pixels, representable
            in the dtype of ``data``.

    Returns:
        ndarray: shape (ceil(H / 2), ceil(W / 2), C), the dtype of ``data``.

    Raises:
        OptionError: if the method is unknown.

    Note:
        Thread-safe, and without the GIL.

    Example:
        >>> from cocoseg.io.overviews import reduce_by_two
        >>> import numpy as np
        >>> data = np.array([[1, 2, 9], [4, -1, 9], [-1, -1, 5]], np.int16)[:, :, None]
        >>> reduce_by_two(data, 'average', nodata=-1)[:, :, 0].tolist()
        [[2, 9], [-1, 5]]
    """
    check_method(method)
    if method == 'nearest':
        return data[::2, ::2].copy()
    from cocoseg.io import kernels
    src = np.ascontiguousarray(data)
    height, width, n_bands = src.shape
    dtype = src.dtype
    out = np.empty((-(-height // 2), -(-width // 2), n_bands), dtype)
    # NaN is invalid anyway, and is what an all-NaN square becomes.
    has_nodata = nodata is not None and nodata == nodata
    fill = dtype.type(nodata if has_nodata else np.nan if dtype.kind == 'f' else 0)
    if is_constant(src):
        value = src[0, 0, 0]
        out[...] = value if value == value else fill
        return out
    if method == 'mode':
        kernels._kernel_mode(src, has_nodata, fill, out)
        return out
    substitute = _substitute(dtype, fill) if has_nodata else fill
    if dtype.kind == 'f':
        sums = np.empty(width * n_bands, np.float64)
        counts = np.empty(width * n_bands, np.uint8)
        kernels._kernel_mean_floats(
            src, has_nodata, fill, substitute, _find_scale(src), sums, counts, out)
    else:
        # Four values of 16 bits have a sum of 18.
        sums = np.empty(width * n_bands, np.int32 if dtype.itemsize <= 2 else np.int64)
        kernels._kernel_mean_integers(src, has_nodata, fill, substitute, sums, out)
    return out


def check_method(method):
    """Raise OptionError unless ``method`` is one of :data:`METHODS`."""
    if method not in METHODS:
        raise OptionError(
            f'overview method {method!r} is unknown; use one of {METHODS}, or None '
            'for a file without overviews')
