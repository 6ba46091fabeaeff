"""
The region of interest: a box in world units, such as nanometers.

A :class:`Roi` says where a volume lies in the world, a
:class:`~cocoseg.grid.box.Box` which voxels of an array are meant; the voxel size
and the origin of the array lead from one to the other. Nothing is rounded
unless :meth:`Roi.snap_to_grid` is called.
"""
from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.box import Box
from cocoseg.grid.window import Window, as_int

SNAP_MODES = ('grow', 'shrink', 'closest')


@dataclass(frozen=True, order=True, repr=False)
class Roi:
    """
    A half-open box in whole world units, ``[offset, offset + shape)``.

    The offset may be negative. Values are immutable and hashable.

    Args:
        offset (tuple[int, ...]): first corner, slowest axis first, world units.
        shape (tuple[int, ...]): extent per axis, world units, at least 0.

    Raises:
        CoverageError: if an entry is no whole number, the axes differ in
            number, or an extent is negative.

    Example:
        >>> from cocoseg.grid.roi import Roi
        >>> roi = Roi((0, 40, 80), (400, 120, 80))
        >>> roi.end, roi.intersect(Roi((0, 100, 0), (40, 400, 400)))
        ((400, 160, 160), Roi(0:40, 100:160, 80:160))
        >>> roi.to_box((40, 4, 4))
        Box(0:10, 10:40, 20:40)
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    if TYPE_CHECKING:
        # The fields say what is kept; this, what may be given.
        def __init__(self, offset: Sequence[int], shape: Sequence[int]) -> None: ...

    def __post_init__(self):
        for name in ('offset', 'shape'):
            entries = tuple(as_int(entry, name) for entry in getattr(self, name))
            object.__setattr__(self, name, entries)
        if len(self.offset) != len(self.shape) or not self.offset:
            raise CoverageError(f'offset={self.offset} and shape={self.shape} must have one entry '
                                'per axis, at least one')
        if min(self.shape) < 0:
            raise CoverageError(f'shape={self.shape} has a negative extent; give it as end - '
                                'offset, with offset <= end')

    def __repr__(self):
        parts = ', '.join(f'{start}:{stop}' for start, stop in zip(self.offset, self.end))
        return f'Roi({parts})'

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.offset)

    @property
    def end(self) -> tuple[int, ...]:
        """The corner after the last, world units."""
        return tuple(map(operator.add, self.offset, self.shape))

    @property
    def size(self) -> int:
        """Product of the extents, world units."""
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        """True if nothing is inside."""
        return self.size == 0

    @classmethod
    def coerce(cls, data: Any) -> Roi:
        """
        Return a region, also of another library that has ``offset`` and ``shape``.

        Raises:
            OptionError: for anything else.

        Example:
            >>> from cocoseg.grid.roi import Roi
            >>> Roi.coerce(Roi((0, 0), (4, 4)))
            Roi(0:4, 0:4)
        """
        if isinstance(data, cls):
            return data
        if not (hasattr(data, 'offset') and hasattr(data, 'shape')):
            raise OptionError(f'{data!r} is no region; give a Roi(offset, shape) in world units')
        return cls(tuple(data.offset), tuple(data.shape))

    @classmethod
    def from_ends(cls, offset: Sequence[int], end: Sequence[int]) -> Roi:
        """
        Build a region from its two corners.

        Example:
            >>> from cocoseg.grid.roi import Roi
            >>> Roi.from_ends((10, 20), (30, 30)).shape
            (20, 10)
        """
        return cls(tuple(offset), tuple(
            stop - start for start, stop in zip(offset, end, strict=True)))

    @classmethod
    def from_box(cls, box: Box | Window, voxel_size: int | Sequence[int],
                 origin: Sequence[int] | None = None) -> Roi:
        """
        Build the region that voxels of an array cover.

        Args:
            box (Box | Window): voxels.
            voxel_size (int | tuple[int, ...]): extent of a voxel, world units.
            origin (tuple[int, ...] | None): where voxel 0 begins; None is 0.

        Example:
            >>> from cocoseg import Box
            >>> from cocoseg.grid.roi import Roi
            >>> Roi.from_box(Box((1, 2), (3, 4)), voxel_size=(40, 4), origin=(100, 0))
            Roi(140:220, 8:16)
        """
        slices = box.slices
        size = as_voxel_size(voxel_size, len(slices))
        origin = _as_origin(origin, len(slices))
        return cls.from_ends(*(
            tuple(zero + edge * step for zero, edge, step in zip(origin, edges, size))
            for edges in (tuple(part.start for part in slices),
                          tuple(part.stop for part in slices))))

    def to_box(self, voxel_size: int | Sequence[int], origin: Sequence[int] | None = None) -> Box:
        """
        Return the voxels that lie in the region.

        Args:
            voxel_size (int | tuple[int, ...]): extent of a voxel, world units.
            origin (tuple[int, ...] | None): where voxel 0 begins; None is 0.

        Returns:
            Box: of an array whose first voxel begins at ``origin``.

        Raises:
            CoverageError: if a side of the region lies inside a voxel.

        Example:
            >>> from cocoseg.grid.roi import Roi
            >>> Roi((140, 8), (80, 8)).to_box((40, 4), origin=(100, 0))
            Box(1:3, 2:4)
        """
        size = as_voxel_size(voxel_size, self.ndim)
        origin = _as_origin(origin, self.ndim)
        if not self._is_aligned(size, origin):
            raise CoverageError(
                f'{self} does not begin and end between voxels of {size}, the first of which is '
                f'at {origin}; call its snap_to_grid(voxel_size, mode, origin) first')
        return Box(*(tuple((edge - zero) // step
                           for edge, zero, step in zip(edges, origin, size))
                     for edges in (self.offset, self.end)))

    def snap_to_grid(self, voxel_size: int | Sequence[int], mode: str = 'grow',
                     origin: Sequence[int] | None = None) -> Roi:
        """
        Return the region with its sides moved to where voxels begin and end.

        Args:
            voxel_size (int | tuple[int, ...]): extent of a voxel, world units.
            mode (str): 'grow' outward, 'shrink' inward, or 'closest' (halves
                go up).
            origin (tuple[int, ...] | None): where a voxel begins; None is 0.

        Raises:
            CoverageError: if nothing is left, or the region is empty.
            OptionError: for another mode.

        Example:
            >>> from cocoseg.grid.roi import Roi
            >>> roi = Roi((3, 5), (10, 10))
            >>> for mode in ('grow', 'shrink', 'closest'):
            ...     print(mode, roi.snap_to_grid(4, mode))
            grow Roi(0:16, 4:16)
            shrink Roi(4:12, 8:12)
            closest Roi(4:12, 4:16)
        """
        if mode not in SNAP_MODES:
            raise OptionError(f'mode={mode!r} is unknown; use one of {SNAP_MODES}')
        self.check_filled('snapped to a grid')
        size, origin = as_voxel_size(voxel_size, self.ndim), _as_origin(origin, self.ndim)
        low, high = {'grow': ('down', 'up'), 'shrink': ('up', 'down'),
                     'closest': ('closest', 'closest')}[mode]
        starts = tuple(_snap(*edge, low) for edge in zip(self.offset, origin, size))
        stops = tuple(_snap(*edge, high) for edge in zip(self.end, origin, size))
        if any(stop <= start for start, stop in zip(starts, stops)):
            raise CoverageError(f'{self} holds no whole voxel of {size} with mode={mode!r}; use '
                                "mode='grow', or a larger region")
        return Roi.from_ends(starts, stops)

    def intersect(self, other: Roi) -> Roi:
        """Return the common part of two regions; empty if there is none."""
        starts = tuple(map(max, zip(self.offset, other.offset, strict=True)))
        stops = tuple(map(min, zip(self.end, other.end, strict=True)))
        return Roi.from_ends(starts, tuple(map(max, zip(starts, stops))))

    def contains(self, other: Roi | Sequence[int]) -> bool:
        """
        Return True if a region, or a point, lies inside.

        Args:
            other (Roi | tuple[int, ...]): world units.

        Example:
            >>> from cocoseg.grid.roi import Roi
            >>> roi = Roi((0, 0), (10, 10))
            >>> roi.contains((9, 9)), roi.contains((10, 9)), roi.contains(Roi((1, 1), (9, 9)))
            (True, False, True)
        """
        if isinstance(other, Roi):
            return self.intersect(other) == other
        return all(start <= place < stop for start, place, stop in zip(
            self.offset, other, self.end, strict=True))

    def grow(self, before: int | Sequence[int], after: int | Sequence[int] | None = None) -> Roi:
        """
        Return the region with its sides moved outward.

        Args:
            before (int | tuple[int, ...]): at the first corner, world units;
                negative moves inward.
            after (int | tuple[int, ...] | None): at the last; None is ``before``.

        Raises:
            CoverageError: if the sides would pass each other.

        Example:
            >>> from cocoseg.grid.roi import Roi
            >>> Roi((0, 0), (10, 10)).grow((4, 0)), Roi((0, 0), (10, 10)).grow(0, -3)
            (Roi(-4:14, 0:10), Roi(0:7, 0:7))
        """
        before = _per_axis(before, self.ndim, 'before')
        after = before if after is None else _per_axis(after, self.ndim, 'after')
        return Roi(tuple(map(operator.sub, self.offset, before)),
                   tuple(map(sum, zip(self.shape, before, after))))

    def shift(self, *steps: int) -> Roi:
        """Return the region moved by one step per axis, world units."""
        return Roi(tuple(map(sum, zip(self.offset, steps, strict=True))), self.shape)

    def check_filled(self, purpose: str) -> None:
        """
        Raise CoverageError if the region is empty.

        Args:
            purpose (str): what an empty one cannot be, for the message.
        """
        if self.is_empty:
            raise CoverageError(f'{self} is empty and cannot be {purpose}; give every axis an '
                                'extent')

    def _is_aligned(self, size, origin):
        return all((edge - zero) % step == 0 for edges in (self.offset, self.end)
                   for edge, zero, step in zip(edges, origin, size))


def as_voxel_size(voxel_size, ndim):
    """
    Return a voxel size as one whole number per axis.

    Args:
        voxel_size (int | Sequence[int]): world units, at least 1.
        ndim (int): number of axes.

    Raises:
        OptionError: if it is anything else.

    Example:
        >>> from cocoseg.grid.roi import as_voxel_size
        >>> as_voxel_size(4, 3), as_voxel_size([40.0, 4, 4], 3)
        ((4, 4, 4), (40, 4, 4))
    """
    try:
        sizes = _per_axis(voxel_size, ndim, 'voxel_size')
    except CoverageError as ex:
        raise OptionError(f'voxel_size={voxel_size!r} must be whole world units, an int or one '
                          f'for each of {ndim} axes; choose a smaller unit for fractions') from ex
    if min(sizes) < 1:
        raise OptionError(f'voxel_size={sizes} must be at least 1 world unit')
    return sizes


def _as_origin(origin, ndim):
    return _per_axis(0 if origin is None else origin, ndim, 'origin')


def _per_axis(value, ndim, name):
    """Return an int, or one per axis, as a tuple of ints."""
    entries = tuple(value) if hasattr(value, '__len__') else (value,) * ndim
    entries = tuple(as_int(entry, name) for entry in entries)
    if len(entries) != ndim:
        raise CoverageError(f'{name}={value!r} must have one entry per axis, of which there are '
                            f'{ndim}')
    return entries


def _snap(edge, zero, step, way):
    """Return an edge on the grid that begins at ``zero``."""
    # Added before rounding down; none moves an edge that is on the grid already.
    extra = {'down': 0, 'closest': step // 2, 'up': step - 1}[way]
    return zero + (edge - zero + extra) // step * step
