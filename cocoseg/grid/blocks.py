"""
Blocks: the partition of an image or a volume into units of work and of storage.

Where windows overlap, the cores of blocks do not: every pixel belongs to
exactly one. A block may read a halo around its core.
"""
from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cocoseg.errors import OptionError
from cocoseg.grid.box import Box
from cocoseg.grid.window import Window


@dataclass(frozen=True)
class Block:
    """
    One unit of work.

    Attributes:
        index (tuple[int, ...]): place in the grid, (row, column) in two axes.
        core (Window | Box): the pixels that only this block may write; a Window
            in two axes.
        read (Window | Box): the core with its halo, clipped to the image.

    Example:
        >>> from cocoseg import BlockGrid
        >>> first, second = BlockGrid((4, 6), (4, 3), halo=1)
        >>> second.index, second.core, second.read
        ((0, 1), Window(y=0:4, x=3:6), Window(y=0:4, x=2:6))
    """

    index: tuple[int, ...]
    core: Window | Box
    read: Window | Box


@dataclass(frozen=True)
class BlockGrid:
    """
    A partition of an image or a volume into blocks.

    They are smaller at the far edges.

    Iterating gives :class:`Block` in row-major order. As many axes are divided
    as ``block`` has entries; an int means two, an image.

    Args:
        shape (tuple[int, ...]): extent per axis, px; (H, W) of an image. Entries
            beyond those of ``block`` are ignored.
        block (int | tuple[int, ...]): extent of a core, px, at least 1.
        halo (int | tuple[int, ...]): margin that a block reads around its
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
        >>> BlockGrid((5, 7, 9), block=(4, 4, 4), halo=1).get((0, 1, 2)).read
        Box(0:5, 3:7, 7:9)
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    halo: tuple[int, ...] = 0  # type: ignore[assignment]

    if TYPE_CHECKING:
        # The fields say what is kept; this, what may be given.
        def __init__(self, shape: Sequence[int], block: int | tuple[int, ...],
                     halo: int | tuple[int, ...] = 0) -> None: ...

    def __post_init__(self):
        put = object.__setattr__
        ndim = len(self.block) if isinstance(self.block, (tuple, list)) else 2
        put(self, 'shape', _as_extents(tuple(self.shape)[:ndim], 'shape', ndim))
        put(self, 'block', _as_extents(self.block, 'block', ndim))
        put(self, 'halo', _as_extents(self.halo, 'halo', ndim))
        if min(self.shape) < 1 or min(self.block) < 1 or min(self.halo) < 0:
            raise OptionError(
                f'shape={self.shape} and block={self.block} must be at least 1 px, '
                f'halo={self.halo} at least 0')

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Blocks per axis, (rows, columns) in two axes."""
        return tuple(-(-size // block) for size, block in zip(self.shape, self.block))

    def __len__(self) -> int:
        return math.prod(self.grid_shape)

    def get(self, index: tuple[int, ...]) -> Block:
        """Return the block at a place of the grid, (row, column) in two axes."""
        if len(self.shape) != 2:
            return self._get_box(tuple(index))
        (row, column), (height, width) = index, self.block
        core = Window(row * height, column * width, min((row + 1) * height, self.shape[0]),
                      min((column + 1) * width, self.shape[1]))
        read = core.pad(self.halo).clip(self.shape) if any(self.halo) else core
        return Block((row, column), core, read)

    def _get_box(self, index):
        starts = tuple(map(operator.mul, index, self.block))
        core = Box(starts, tuple(map(operator.add, starts, self.block))).clip(self.shape)
        return Block(index, core, core.pad(self.halo).clip(self.shape))

    def __iter__(self) -> Iterator[Block]:
        for index in itertools.product(*map(range, self.grid_shape)):
            yield self.get(index)

    def touched_by(self, window: Window) -> tuple[slice, slice]:
        """
        Return the (rows, columns) slices of the grid that a window touches.

        For grids of two axes, like what follows. The window must lie inside the
        image and not be empty.
        """
        height, width = self.block
        return (slice(window.y0 // height, -(-window.y1 // height)),
                slice(window.x0 // width, -(-window.x1 // width)))

    def iter_parts(self, y0: int, x0: int, y1: int, x1: int) -> Iterator[tuple]:
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

    def iter_slices(self, window: Window) -> Iterator[tuple]:
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


def _as_extents(value, name, ndim):
    """Return an int, or one per axis, as a tuple of ints."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * ndim
    try:
        values = tuple(operator.index(extent) for extent in values)
    except TypeError:
        values = ()
    if len(values) != ndim:
        raise OptionError(f'{name}={value!r} must be whole pixels, an int or one per axis, of '
                          f'which there are {ndim}')
    return values
