"""
The window: a half-open rectangle of pixels.

Everything that moves through cocoseg (predictions, blocks, tiles) is placed by
a :class:`Window`. Clipping lives here and only here, always in global
coordinates: a negative start is outside the image, never "from the end".
"""
from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from cocoseg.errors import CoverageError, OptionError

if TYPE_CHECKING:
    import kwimage

#: A rectangle of pixels, as :meth:`Window.coerce` takes it.
WindowLike = Union['Window', tuple[slice, slice], 'kwimage.Box']


def as_int(value, name):
    """
    Return a pixel coordinate as a Python int, without truncating.

    Raises:
        CoverageError: if it is no whole number.

    Example:
        >>> as_int(4.0, 'y0')
        4
    """
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        whole = int(value)
        is_whole = whole == value
    except (TypeError, ValueError, OverflowError):
        is_whole = False
    if not is_whole:
        raise CoverageError(f'window edge {name}={value!r} is not a whole number of pixels; '
                            'round it to the pixel grid of the asset first')
    return whole


def as_pair(value, name):
    """
    Return ``value`` (an int or (y, x)) as two ints.

    Raises:
        OptionError: if a number is no integer (a fraction is not pixels).

    Example:
        >>> as_pair(3, 'overlap'), as_pair((2, 5), 'overlap')
        ((3, 3), (2, 5))
    """
    try:
        try:
            return (operator.index(value),) * 2
        except TypeError:
            y, x = value
            return (operator.index(y), operator.index(x))
    except (TypeError, ValueError):
        raise OptionError(
            f'{name}={value!r} must be whole pixels, an int or (y, x)') from None


@dataclass(frozen=True, order=True, repr=False)
class Window:
    """
    A half-open pixel rectangle ``[y0, y1) x [x0, x1)``.

    Edges are integers in pixels and may lie outside the image. Values are
    immutable, hashable and ordered row-major.

    Args:
        y0 (int): first row.
        x0 (int): first column.
        y1 (int): row after the last.
        x1 (int): column after the last.

    Raises:
        CoverageError: if an edge is no integer, or the end is before the start.

    Example:
        >>> from cocoseg.grid.window import Window
        >>> window = Window(y0=-2, x0=3, y1=4, x1=8)
        >>> window.shape, window.dsize, window.clip((10, 6))
        ((6, 5), (5, 6), Window(y=0:4, x=3:6))
        >>> Window.from_slices((slice(-16, 48), slice(0, 8)))
        Window(y=-16:48, x=0:8)
    """

    y0: int
    x0: int
    y1: int
    x1: int

    def __post_init__(self):
        if not (type(self.y0) is type(self.x0) is type(self.y1) is type(self.x1) is int):
            for name in ('y0', 'x0', 'y1', 'x1'):
                object.__setattr__(self, name, as_int(getattr(self, name), name))
        if self.y1 < self.y0 or self.x1 < self.x0:
            raise CoverageError(
                f'{self} ends before it starts; give it as start <= stop')

    def __repr__(self):
        return f'Window(y={self.y0}:{self.y1}, x={self.x0}:{self.x1})'

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return (self.y1 - self.y0, self.x1 - self.x0)

    @property
    def dsize(self) -> tuple[int, int]:
        """(w, h) in pixels."""
        return (self.x1 - self.x0, self.y1 - self.y0)

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    @property
    def is_empty(self) -> bool:
        """True if the window holds no pixel."""
        return self.area == 0

    @property
    def slices(self) -> tuple[slice, slice]:
        """
        The (row, column) slices that index an array.

        Only meaningful once clipped: numpy reads a negative start from the end.
        """
        return (slice(self.y0, self.y1), slice(self.x0, self.x1))

    @classmethod
    def from_shape(cls, shape: tuple[int, ...]) -> Window:
        """Return the window over a whole (H, W, ...) image."""
        return cls(0, 0, shape[0], shape[1])

    @classmethod
    def from_slices(cls, slices: tuple[slice, slice],
                    shape: tuple[int, ...] | None = None) -> Window:
        """
        Build a window from two slices.

        Args:
            slices (tuple[slice, slice]): rows and columns. A missing start is
                0. Negative numbers are outside the image, not from the end.
            shape (tuple[int, int] | None): (H, W) for missing stops.

        Raises:
            CoverageError: for a step, or a missing stop without ``shape``.
        """
        edges = []
        for axis, part in enumerate(slices[:2]):
            if part.step not in (None, 1):
                raise CoverageError(
                    f'slice {part} has a step; a window has no gaps')
            stop = part.stop
            if stop is None:
                if shape is None:
                    raise CoverageError(
                        f'slice {part} has no stop; give one, or the image shape')
                stop = shape[axis]
            edges.append((0 if part.start is None else part.start, stop))
        (y0, y1), (x0, x1) = edges
        return cls(y0, x0, y1, x1)

    @classmethod
    def coerce(cls, data: WindowLike, shape: tuple[int, ...] | None = None) -> Window:
        """
        Build a window from a Window, two slices, or a ``kwimage.Box``.

        Args:
            data (Window | tuple[slice, slice] | kwimage.Box): rectangle.
            shape (tuple[int, int] | None): (H, W), for slices without a stop.

        Raises:
            CoverageError: if ``data`` is none of these.
        """
        if isinstance(data, cls):
            return data
        if (isinstance(data, (tuple, list)) and len(data) >= 2
                and all(isinstance(part, slice) for part in data[:2])):
            return cls.from_slices(data, shape)
        if hasattr(data, 'to_slice') and hasattr(data, 'to_ltrb'):
            x0, y0, x1, y1 = data.to_ltrb().data
            return cls(y0, x0, y1, x1)
        raise CoverageError(
            f'cannot read a window from {data!r}; give a Window, a pair of '
            'slices (rows, columns), or a kwimage.Box')

    def as_box(self) -> kwimage.Box:
        """Return this rectangle as a ``kwimage.Box`` (ltrb)."""
        import kwimage
        return kwimage.Box.coerce([self.x0, self.y0, self.x1, self.y1], format='ltrb')

    def shift(self, dy: int, dx: int) -> Window:
        """Return the window moved by (dy, dx) pixels."""
        return Window(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def pad(self, margin: int | tuple[int, int]) -> Window:
        """Return the window grown by ``margin`` pixels on each side; an int or (y, x)."""
        my, mx = as_pair(margin, 'margin')
        return Window(self.y0 - my, self.x0 - mx, self.y1 + my, self.x1 + mx)

    def intersect(self, other: Window) -> Window:
        """Return the common part of two windows; empty if there is none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1, x1 = min(self.y1, other.y1), min(self.x1, other.x1)
        return Window(y0, x0, max(y0, y1), max(x0, x1))

    def clip(self, shape: tuple[int, ...]) -> Window:
        """Return the part inside an image of ``shape`` (H, W); empty if none."""
        return self.intersect(Window.from_shape(shape))

    def within(self, outer: Window) -> Window:
        """Return this window in the coordinates of ``outer``'s top-left pixel."""
        return self.shift(-outer.y0, -outer.x0)

    def contains(self, other: Window) -> bool:
        """Return True if ``other`` lies inside this window."""
        return self.intersect(other) == other
