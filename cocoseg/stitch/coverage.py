"""
Coverage: which windows are still to come, and which blocks are final.

Completion is counted, never guessed from the order in which windows arrive.
"""
from __future__ import annotations

from collections import Counter

import numpy as np

from cocoseg.errors import CoverageError
from cocoseg.grid.window import Window


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
        self.received = set()
        self._pending = None
        self._declared = {}
        self._remaining = None
        if windows is not None:
            self._declare(windows)

    def _declare(self, windows):
        self._pending = Counter()
        if self.blocks is not None:
            self._remaining = np.zeros(self.blocks.grid_shape, np.int64)
        for window in windows:
            window = Window.coerce(window, self.shape)
            inside = self.clip(window)
            self._pending[inside] += 1
            self._declared.setdefault(inside, []).append(window)
            if self._remaining is not None:
                self._remaining[self.blocks.touched_by(inside)] += 1

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
    def is_declared(self):
        """True if the windows to come are known."""
        return self._pending is not None

    @property
    def is_complete(self):
        """True if every declared window came; False if none were declared."""
        return self._pending is not None and not self._pending

    @property
    def pending(self):
        """Declared windows (clipped) that did not come yet, in row-major order."""
        return sorted(self._pending.elements()) if self._pending else []

    def find_declared(self, window, inside):
        """Return the declared window that is this one, at least inside the image."""
        same = self._declared.get(inside)
        if same is None:
            self.check_expected(inside)
        return same[0] if len(same) == 1 or window not in same else window

    def check_expected(self, inside):
        """
        Raise unless this clipped window may come now.

        Raises:
            CoverageError: if it was not declared, came already, or reaches
                above the rows that are final.
        """
        if inside.y0 < self.low_water:
            raise CoverageError(f'{inside} reaches above row {self.low_water}, which was declared '
                                'final; advance only past rows that no window will touch')
        if self._pending is not None and inside not in self._pending:
            raise CoverageError(
                f'{inside} was not declared or was already received '
                f'({sum(self._pending.values())} windows are pending); declare each window '
                'as often as it will come')

    def receive(self, inside):
        """
        Count one clipped window.

        Returns:
            list[tuple[int, int]]: indices of the blocks that became final.

        Raises:
            CoverageError: see :meth:`check_expected`.
        """
        self.check_expected(inside)
        return self.count(inside)

    def count(self, inside):
        """Count one clipped window that was just checked; see :meth:`receive`."""
        self.n_received += 1
        self.received.add(inside)
        if self._pending is None:
            return []
        self._pending[inside] -= 1
        if not self._pending[inside]:
            del self._pending[inside]
        if self._remaining is None:
            return []
        touched = self.blocks.touched_by(inside)
        self._remaining[touched] -= 1
        rows, columns = np.nonzero(self._remaining[touched] == 0)
        return [(int(row) + touched[0].start, int(column) + touched[1].start)
                for row, column in zip(rows, columns)]
