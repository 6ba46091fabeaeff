"""
Segment tiles: how a raster is divided into windows that are segmented alone.
"""
from __future__ import annotations

from dataclasses import dataclass

from cocoseg.errors import OptionError
from cocoseg.grid.window import Window, as_pair


@dataclass(frozen=True)
class TilePlan:
    """
    The segment tiles of a raster: rows and columns of overlapping windows.

    Iterating gives :class:`~cocoseg.grid.window.Window` in row-major order.

    Attributes:
        row_spans, column_spans (tuple[tuple[int, int], ...]): (start, stop)
            of each row and column of tiles, px.
        overlap (tuple[int, int]): pixels that neighbors share, (y, x).

    Example:
        >>> from cocoseg.shepherd.tiles import TilePlan
        >>> plan = TilePlan.make((3000, 3000), tile_size=1024, overlap=256)
        >>> plan.grid_shape, plan.row_spans[:2]
        ((4, 4), ((0, 942), (686, 1628)))
        >>> TilePlan.make((3000, 3000), 1024, 256, is_compat=True).row_spans
        ((0, 1024), (768, 1792), (1536, 3000))
    """

    row_spans: tuple[tuple[int, int], ...]
    column_spans: tuple[tuple[int, int], ...]
    overlap: tuple[int, int]

    @classmethod
    def make(cls, shape, tile_size, overlap, is_compat=False):
        """
        Plan the tiles of a raster.

        Args:
            shape (tuple[int, int]): (H, W) of the raster, px.
            tile_size (int | tuple[int, int]): most height and width of a tile, px.
            overlap (int | tuple[int, int]): px that neighbors share: even, so
                that its middle is a line between pixels, and below ``tile_size``.
            is_compat (bool): pyshepseg's tiles: the last of a row or column is
                between ``tile_size + overlap`` and twice ``tile_size``, also
                beyond ``tile_size``. Else all are as large, and no larger.

        Raises:
            OptionError: if no such tiles can be.
        """
        tile_size, overlap = as_pair(tile_size, 'tile_size'), as_pair(overlap, 'overlap')
        if min(tile_size) < 1:
            raise OptionError(f'tile_size={tile_size} must be at least 1 px')
        for tile, shared in zip(tile_size, overlap):
            if not 0 <= shared < tile:
                raise OptionError(f'overlap={shared} must be 0 or more and below '
                                  f'tile_size={tile} px; tiles advance by their difference')
            if shared % 2:
                raise OptionError(f'overlap={shared} px is odd; tiles are cut in the middle of '
                                  f'their overlap, so give {shared - 1} or {shared + 1}')
        place = _place_reference if is_compat else _place_evenly
        spans = [place(size, tile, shared)
                 for size, tile, shared in zip(shape, tile_size, overlap)]
        return cls(*spans, overlap)

    @property
    def grid_shape(self):
        """(rows, columns) of tiles."""
        return (len(self.row_spans), len(self.column_spans))

    def __len__(self):
        return len(self.row_spans) * len(self.column_spans)

    def __iter__(self):
        return (Window(y0, x0, y1, x1)
                for y0, y1 in self.row_spans for x0, x1 in self.column_spans)

    def locate(self, window):
        """Return (row, column) of a tile."""
        return (self.row_spans.index((window.y0, window.y1)),
                self.column_spans.index((window.x0, window.x1)))


def _place_evenly(size, tile, overlap):
    """Place as few tiles as can be, all as large, on one axis."""
    count = max(-(-(size - overlap) // (tile - overlap)), 1)
    length = min(-(-(size + (count - 1) * overlap) // count), size)
    # What rounding up gives too much goes off the last.
    starts = [index * (length - overlap) for index in range(count)]
    return tuple((start, min(start + length, size)) for start in starts)


def _place_reference(size, tile, overlap):
    """Place tiles on one axis as pyshepseg does."""
    spans, start = [], 0
    while start + 2 * tile <= size:
        spans.append((start, start + tile))
        start += tile - overlap
    return (*spans, (start, size))
