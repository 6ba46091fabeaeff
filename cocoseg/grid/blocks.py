"""
Blocks: the partition of an image into units of work and of storage.

Where windows overlap, the cores of blocks do not: every pixel belongs to
exactly one. A block may read a halo around its core.
"""
from __future__ import annotations

from dataclasses import dataclass

from cocoseg.errors import OptionError
from cocoseg.grid.window import Window, as_pair


@dataclass(frozen=True)
class Block:
    """
    One unit of work.

    Attributes:
        index (tuple[int, int]): (row, column) in the grid.
        core (Window): the pixels that only this block may write.
        read (Window): the core with its halo, clipped to the image.
    """

    index: tuple[int, int]
    core: Window
    read: Window


@dataclass(frozen=True)
class BlockGrid:
    """
    A partition of an image into blocks of one size, smaller at the far edges.

    Iterating gives :class:`Block` in row-major order.

    Args:
        shape (tuple[int, int]): (H, W) of the image, px; a third entry is ignored.
        block (int | tuple[int, int]): (h, w) of a core, px, at least 1.
        halo (int | tuple[int, int]): margin that a block reads around its
            core, px, at least 0.

    Raises:
        OptionError: for sizes below these limits.

    Example:
        >>> from cocoseg import BlockGrid
        >>> grid = BlockGrid((5, 7), block=4, halo=1)
        >>> [block.core for block in grid][-1], grid.grid_shape
        (Window(y=4:5, x=4:7), (2, 2))
        >>> grid.get((0, 1)).read
        Window(y=0:5, x=3:7)
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    halo: tuple[int, int] = (0, 0)

    def __post_init__(self):
        put = object.__setattr__
        put(self, 'shape', as_pair(tuple(self.shape)[:2], 'shape'))
        put(self, 'block', as_pair(self.block, 'block'))
        put(self, 'halo', as_pair(self.halo, 'halo'))
        if min(self.shape) < 1 or min(self.block) < 1 or min(self.halo) < 0:
            raise OptionError(
                f'shape={self.shape} and block={self.block} must be at least 1 px, '
                f'halo={self.halo} at least 0')

    @property
    def grid_shape(self):
        """(rows, columns) of blocks."""
        return tuple(-(-size // block) for size, block in zip(self.shape, self.block))

    def __len__(self):
        rows, columns = self.grid_shape
        return rows * columns

    def get(self, index):
        """Return the block at (row, column)."""
        (row, column), (height, width) = index, self.block
        core = Window(row * height, column * width, min((row + 1) * height, self.shape[0]),
                      min((column + 1) * width, self.shape[1]))
        read = core.pad(self.halo).clip(self.shape) if any(self.halo) else core
        return Block((row, column), core, read)

    def __iter__(self):
        rows, columns = self.grid_shape
        for row in range(rows):
            for column in range(columns):
                yield self.get((row, column))

    def touched_by(self, window):
        """
        Return the (rows, columns) slices of the grid that a window touches.

        The window must lie inside the image and not be empty.
        """
        height, width = self.block
        return (slice(window.y0 // height, -(-window.y1 // height)),
                slice(window.x0 // width, -(-window.x1 // width)))

    def iter_parts(self, y0, x0, y1, x1):
        """
        Yield the common part of a rectangle with each block that it touches.

        Plain numbers instead of windows, because stitchers call this for every
        window. The rectangle must lie inside the image.

        Yields:
            tuple: index of the block, the part (y0, x0, y1, x1), and the
            origin of the block (y, x); all but the index in image px.

        Example:
            >>> grid = BlockGrid((5, 7), block=4)
            >>> list(grid.iter_parts(1, 2, 3, 6))
            [((0, 0), (1, 2, 3, 4), (0, 0)), ((0, 1), (1, 4, 3, 6), (0, 4))]
        """
        height, width = self.block
        for row in range(y0 // height, -(-y1 // height)):
            by = row * height
            ya, yb = max(y0, by), min(y1, by + height)
            for column in range(x0 // width, -(-x1 // width)):
                bx = column * width
                yield ((row, column), (ya, max(x0, bx), yb, min(x1, bx + width)), (by, bx))

    def iter_slices(self, window):
        """
        Yield where a window inside the image meets each block that it touches.

        Yields:
            tuple: index of the block, the common part as slices of the block,
            and the same as slices of the window.

        Example:
            >>> for found in BlockGrid((5, 7), block=4).iter_slices(Window(1, 3, 2, 5)):
            ...     print(*found)
            (0, 0) (slice(1, 2, None), slice(3, 4, None)) (slice(0, 1, None), slice(0, 1, None))
            (0, 1) (slice(1, 2, None), slice(0, 1, None)) (slice(0, 1, None), slice(1, 2, None))
        """
        for index, part, (y, x) in self.iter_parts(window.y0, window.x0, window.y1, window.x1):
            common = Window(*part)
            yield index, common.shift(-y, -x).slices, common.within(window).slices
