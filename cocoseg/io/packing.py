"""
From pixels to the bytes of a tile: padding and predictor in one pass.

A stored tile is a full square. Where the image ends inside of it, its last
column and row are repeated, which compresses best. A predictor turns pixels
into small numbers before compression: differences to the left neighbour (2),
or the same for the bytes of floats, the most significant first (3). Arrays
only, no files.

References:
    .. [TIFF6] Adobe, TIFF Revision 6.0, 1992, section 14 (predictor 2).
    .. [TN3] Adobe, Photoshop TIFF Technical Note 3, 2005 (predictor 3).
"""
from __future__ import annotations

import numpy as np


def as_bits(pixels):
    """
    Look at pixels as unsigned integers of their size.

    Args:
        pixels (ndarray): C-contiguous, of 1, 2, 4 or 8 bytes a value.

    Returns:
        ndarray: a view of the same shape.

    Example:
        >>> from cocoseg.io.packing import as_bits
        >>> as_bits(np.array([-1, 1], np.int16)).tolist()
        [65535, 1]
    """
    return pixels.view(f'u{pixels.itemsize}')


def is_constant(tile):
    """
    Return True if all values of a tile have the same bits.

    Args:
        tile (ndarray): C-contiguous, not empty.

    Example:
        >>> from cocoseg.io.packing import is_constant
        >>> is_constant(np.full((4, 4, 2), np.nan)), is_constant(np.arange(3))
        (True, False)
    """
    from cocoseg.io import pack_kernels
    return bool(pack_kernels._kernel_is_constant(as_bits(tile).reshape(-1)))


class TilePacker:
    """
    Pad tiles and apply a predictor, in memory of its own that is used again.

    Args:
        blocksize (int): side of a tile, px.
        n_bands (int): bands that are stored together.
        dtype (dtype): of the pixels.
        predictor (int): TIFF's number: 1, 2 or 3.

    Thread-safety: one thread at a time; make one for each.

    Example:
        >>> from cocoseg.io.packing import TilePacker
        >>> pack = TilePacker(4, 1, 'int16', predictor=2)
        >>> pack(np.array([[[5], [7]]], np.int16))[0].ravel().tolist()
        [5, 2, 0, 0]
    """

    def __init__(self, blocksize, n_bands, dtype, predictor=1):
        self._predictor = predictor
        bits = np.dtype(f'u{np.dtype(dtype).itemsize}')
        n_values = blocksize * n_bands
        shape = (blocksize, n_values)
        if predictor == 3:
            self._row = np.empty(n_values, bits)
            self._planes = np.empty(n_values * bits.itemsize, np.uint8)
            self._out = np.empty((blocksize, n_values * bits.itemsize), np.uint8)
        else:
            self._out = np.empty(shape, bits)

    def __call__(self, tile):
        """
        Return a padded tile, as it is compressed.

        Args:
            tile (ndarray): C-contiguous, shape (h, w, C), at most a full tile.

        Returns:
            ndarray: unsigned, shape (B, n), one row per row of the tile; valid
            until the next call.
        """
        from cocoseg.io import pack_kernels
        bits = as_bits(tile)
        if self._predictor == 3:
            pack_kernels._kernel_float_differences(bits, self._row, self._planes, self._out)
        elif self._predictor == 2:
            pack_kernels._kernel_differences(bits, self._out)
        else:
            pack_kernels._kernel_copy(bits, self._out)
        return self._out
