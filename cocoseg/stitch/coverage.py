"""
Coverage: which windows are still to come, and which blocks are final.

Completion is counted, never guessed from the order in which windows arrive.
"""
from __future__ import annotations

from collections import Counter

from cocoseg.errors import CoverageError
from cocoseg.grid.window import Window
from cocoseg.stitch.expected import make_expected


class Coverage:
    """
    Count declared windows down to zero, per image and per block.

    Windows are compared by the part of them that lies inside the image. A
    window declared n times is expected n times. Without a declaration nothing
    is ever final before the caller says so.

    Args:
        shape (tuple[int, int]): (H, W) of the image, px.
        windows (Iterable[Window] | None): all windows that will come.
        blocks (BlockGrid | None): output blocks to track; None tracks none.

    Raises:
        CoverageError: if a declared window lies outside the image.

    Thread-safety: none; the owner holds a lock.

    Example:
        >>> from cocoseg import BlockGrid, WindowGrid
        >>> cover = Coverage((4, 8), WindowGrid((4, 8), (4, 4)), BlockGrid((4, 8), 4))
        >>> cover.receive(Window(0, 0, 4, 4)), cover.is_complete
        ([(0, 0)], False)
        >>> cover.pending
        [Window(y=0:4, x=4:8)]
    """

    def __init__(self, shape, windows=None, blocks=None):
        self.shape = tuple(shape[:2])
        self.blocks = blocks
        self.low_water = 0
        self.n_received = 0
        self._received = set()
        self._expected = None
        self._remaining = None
        if windows is not None:
            self._declare(windows)

    def _declare(self, windows):
        self._expected = make_expected(windows, self.shape, self.clip)
        if self.blocks is None:
            return
        rows, columns = self.blocks.grid_shape
        # Lists: a window touches few blocks, for which arrays are slower.
        self._remaining = [[0] * columns for _ in range(rows)]
        for inside in self._expected:
            self._change_remaining(inside, 1)

    def clip(self, window):
        """
        Return the part of a window inside the image.

        Raises:
            CoverageError: if there is none.
        """
        window = Window.coerce(window, self.shape)
        height, width = self.shape
        # Nearly every window; the general way costs more than a small add.
        if 0 <= window.y0 < window.y1 <= height and 0 <= window.x0 < window.x1 <= width:
            return window
        inside = window.clip(self.shape)
        if inside.is_empty:
            raise CoverageError(
                f'{window} has no pixel in the image of height {height} and width {width}; '
                'windows are in pixels of the stitched asset, negative means outside')
        return inside

    def advance(self, row):
        """Note that windows only touch ``row`` and below from now on; it never goes back."""
        self.low_water = max(self.low_water, row)

    @property
    def is_declared(self) -> bool:
        """True if the windows to come are known."""
        return self._expected is not None

    @property
    def is_complete(self) -> bool:
        """True if every declared window came; False if none were declared."""
        return self._expected is not None and self._expected.n_left == 0

    @property
    def pending(self) -> list[Window]:
        """Declared windows (clipped) that did not come yet, in row-major order."""
        return [] if self._expected is None else self._expected.pending

    @property
    def received(self) -> set[Window]:
        """The parts of the image that windows covered, a new set of Windows."""
        return set(self._received) if self._expected is None else self._expected.received

    def find_declared(self, window, inside):
        """Return the declared window that is this one, at least inside the image."""
        return self._expected.get_declared(self.check_expected(inside, 0), window)

    def check_expected(self, inside, n_times=1):
        """
        Raise unless this clipped window may come now.

        Returns:
            object: to be given to :meth:`count`.

        Raises:
            CoverageError: if it was not declared, came already, or reaches
                above the rows that are final.
        """
        if inside.y0 < self.low_water:
            raise CoverageError(f'{inside} reaches above row {self.low_water}, which was declared '
                                'final; advance only past rows that no window will touch')
        if self._expected is None:
            return None
        expected = self._expected.find(inside)
        if expected is None or self._expected.count_left(expected) < n_times:
            raise CoverageError(
                f'{inside} was not declared or was already received '
                f'({self._expected.n_left} windows are pending); declare each window '
                'as often as it will come')
        return expected

    def check_all(self, windows):
        """
        Raise unless these clipped windows may all come now.

        Returns:
            list: what :meth:`check_expected` returns of each.

        Raises:
            CoverageError: see :meth:`check_expected`.
        """
        if len(windows) == 1:
            return [self.check_expected(windows[0])]
        times = Counter(windows)
        return [self.check_expected(inside, times[inside]) for inside in windows]

    def receive(self, inside):
        """
        Count one clipped window.

        Returns:
            list[tuple[int, int]]: indices of the blocks that became final.

        Raises:
            CoverageError: see :meth:`check_expected`.
        """
        return self.count(inside, self.check_expected(inside))

    def count(self, inside, expected):
        """Count one clipped window that was just checked; see :meth:`receive`."""
        self.n_received += 1
        if expected is None:
            self._received.add(inside)
            return []
        self._expected.take(expected)
        return [] if self._remaining is None else self._change_remaining(inside, -1)

    def _change_remaining(self, inside, change):
        """Count a window up or down in its blocks; return those that it leaves at 0."""
        rows, columns = self.blocks.touched_by(inside)
        final = []
        for row in range(rows.start, rows.stop):
            counts = self._remaining[row]
            for column in range(columns.start, columns.stop):
                counts[column] += change
                if not counts[column]:
                    final.append((row, column))
        return final


class Covered:
    """
    What a stitcher tells about its windows, from its ``_coverage``, under its ``_lock``.

    Example:
        >>> import threading
        >>> class Stitcher(Covered):
        ...     _coverage, _lock = Coverage((2, 4), [Window(0, 0, 2, 4)]), threading.Lock()
        >>> Stitcher().is_declared, Stitcher().is_complete, Stitcher().pending
        (True, False, [Window(y=0:2, x=0:4)])
    """

    @property
    def n_windows(self) -> int:
        """Number of windows received."""
        return self._coverage.n_received

    @property
    def received(self) -> set[Window]:
        """The parts of the image that windows covered, a new set of Windows."""
        with self._lock:
            return set(self._coverage.received)

    @property
    def is_declared(self) -> bool:
        """True if the windows to come are known."""
        return self._coverage.is_declared

    @property
    def is_complete(self) -> bool:
        """True if windows were declared and all of them came."""
        return self._coverage.is_complete

    @property
    def pending(self) -> list[Window]:
        """Declared windows (clipped to the image) that did not come yet."""
        with self._lock:
            return self._coverage.pending
