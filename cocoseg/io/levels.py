"""
The levels of a pyramid: which tiles there are, in which order, and where.
"""
from __future__ import annotations

import numpy as np

from cocoseg.grid.blocks import BlockGrid

MARK = 4  # bytes of the leader before a tile, and of the trailer behind it


class Level:
    """
    Where the tiles of one level are: its geometry, offsets and sizes.

    Attributes:
        grid (BlockGrid): of its tiles.
        offsets (ndarray): int64, shape (planes, rows, columns), of the marks
            before each tile in the spool.
        counts (ndarray): int64, the same shape: bytes of each tile without
            its marks; 0 where it did not come yet.
        is_done (ndarray): bool, shape (rows, columns): tiles that have handed
            their half on.
    """

    def __init__(self, shape, blocksize, n_planes):
        self.grid = BlockGrid(shape, blocksize)
        self.offsets = np.zeros((n_planes, *self.grid.grid_shape), np.int64)
        self.counts = np.zeros((n_planes, *self.grid.grid_shape), np.int64)
        self.is_done = np.zeros(self.grid.grid_shape, bool)

    @property
    def shape(self):
        """(h, w) of the level, px."""
        return self.grid.shape

    def iter_pieces(self):
        """Yield (offset, bytes) of each tile with its marks, in the order of the file."""
        # Row by row, because numbers of Python take more memory than those of numpy.
        rows = (-1, self.offsets.shape[2])
        for offsets, counts in zip(self.offsets.reshape(rows), self.counts.reshape(rows)):
            for offset, count in zip(offsets.tolist(), counts.tolist()):
                yield offset, count + 2 * MARK


def iter_z_order(grid_shape):
    """
    Yield the tiles of a grid so that those of a 2 x 2 square follow each other.

    Example:
        >>> from cocoseg.io.levels import iter_z_order
        >>> list(iter_z_order((2, 3)))
        [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2)]
    """
    rows, columns = grid_shape
    size = 1
    while size < max(rows, columns):
        size *= 2
    stack = [(0, 0, size)]
    while stack:
        row, column, size = stack.pop()
        if row >= rows or column >= columns:
            continue
        if size == 1:
            yield row, column
            continue
        half = size // 2
        stack += [(row + half, column + half, half), (row + half, column, half),
                  (row, column + half, half), (row, column, half)]
