"""
The box: what a :class:`~cocoseg.grid.window.Window` is, in any number of axes.

Blocks of volumes are placed by boxes. Both answer the same questions (``shape``,
``slices``, ``clip`` …), so that what works on blocks does not ask which it has.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cocoseg.errors import CoverageError
from cocoseg.grid.window import as_int


@dataclass(frozen=True, order=True, repr=False)
class Box:
    """
    A half-open box of pixels or voxels, ``[start, stop)`` along each axis.

    Edges are integers and may lie outside the volume. Values are immutable,
    hashable and ordered row-major.

    Args:
        starts (tuple[int, ...]): first voxel per axis, slowest axis first.
        stops (tuple[int, ...]): voxel after the last per axis.

    Raises:
        CoverageError: if an edge is no integer, the axes differ in number, or
            an end is before its start.

    Example:
        >>> from cocoseg import Box
        >>> box = Box((-2, 3, 0), (4, 8, 5))
        >>> box.shape, box.clip((10, 6, 5)), box.size
        ((6, 5, 5), Box(0:4, 3:6, 0:5), 150)
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]

    if TYPE_CHECKING:
        # The fields say what is kept; this, what may be given.
        def __init__(self, starts: Sequence[int], stops: Sequence[int]) -> None: ...

    def __post_init__(self):
        for name in ('starts', 'stops'):
            edges = tuple(as_int(edge, name) for edge in getattr(self, name))
            object.__setattr__(self, name, edges)
        if len(self.starts) != len(self.stops) or not self.starts:
            raise CoverageError(f'starts={self.starts} and stops={self.stops} must have one entry '
                                'per axis, at least one')
        if any(stop < start for start, stop in zip(self.starts, self.stops)):
            raise CoverageError(f'{self} ends before it starts; give it as start <= stop')

    def __repr__(self):
        parts = ', '.join(f'{start}:{stop}' for start, stop in zip(self.starts, self.stops))
        return f'Box({parts})'

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.starts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per axis, px."""
        return tuple(stop - start for start, stop in zip(self.starts, self.stops))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        """True if the box holds no voxel."""
        return self.size == 0

    @property
    def slices(self) -> tuple[slice, ...]:
        """
        Slices that index an array.

        Only meaningful once clipped: numpy reads a negative start from the end.
        """
        return tuple(slice(start, stop) for start, stop in zip(self.starts, self.stops))

    @classmethod
    def from_shape(cls, shape: Sequence[int]) -> Box:
        """Return the box over a whole array."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def from_slices(cls, slices: Sequence[slice]) -> Box:
        """
        Build a box from slices with start and stop.

        A :class:`~cocoseg.grid.window.Window` goes by its ``slices``.

        Example:
            >>> from cocoseg import Box, Window
            >>> Box.from_slices(Window(0, 1, 2, 3).slices)
            Box(0:2, 1:3)
        """
        return cls(tuple(part.start for part in slices), tuple(part.stop for part in slices))

    def shift(self, *offsets: int) -> Box:
        """Return the box moved by one offset per axis, px."""
        return Box(tuple(map(sum, zip(self.starts, offsets, strict=True))),
                   tuple(map(sum, zip(self.stops, offsets, strict=True))))

    def pad(self, margin: int | Sequence[int]) -> Box:
        """Return the box grown on each side by ``margin`` px, an int or one per axis."""
        margins = (margin,) * self.ndim if isinstance(margin, int) else tuple(margin)
        return Box(tuple(start - m for start, m in zip(self.starts, margins, strict=True)),
                   tuple(stop + m for stop, m in zip(self.stops, margins, strict=True)))

    def intersect(self, other: Box) -> Box:
        """Return the common part of two boxes; empty if there is none."""
        starts = tuple(map(max, zip(self.starts, other.starts, strict=True)))
        stops = tuple(map(min, zip(self.stops, other.stops, strict=True)))
        return Box(starts, tuple(map(max, zip(starts, stops))))

    def clip(self, shape: Sequence[int]) -> Box:
        """Return the part inside an array of ``shape``; empty if none."""
        return self.intersect(Box.from_shape(shape))

    def within(self, outer: Box) -> Box:
        """Return this box in the coordinates of ``outer``'s first voxel."""
        return self.shift(*(-start for start in outer.starts))

    def contains(self, other: Box) -> bool:
        """Return True if ``other`` lies inside this box."""
        return self.intersect(other) == other
