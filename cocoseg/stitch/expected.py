"""
The declared windows of an image, and which of them are still to come.

Two forms with one interface: a grid is known by its rows and columns, and
costs two bytes per window; any other list is a table.
"""
from __future__ import annotations

from cocoseg.grid.window import Window
from cocoseg.grid.windows import WindowGrid


def make_expected(windows, shape, clip):
    """
    Make the record of declared windows.

    Args:
        windows (WindowGrid | Iterable[Window]): each as often as it will come.
        shape (tuple[int, int]): (H, W) of the image, px.
        clip (Callable[[Window], Window]): the part inside the image; raises
            CoverageError if there is none.

    Example:
        >>> expected = make_expected(WindowGrid((8, 8), 4), (8, 8), None)
        >>> expected.take(expected.find(Window(0, 4, 4, 8)))
        >>> len(expected), expected.n_left
        (4, 3)
    """
    if isinstance(windows, WindowGrid) and windows.shape == shape:
        return ExpectedGrid(windows)
    return ExpectedList(windows, shape, clip)


class ExpectedGrid:
    """
    The windows of a grid over the image.

    Args:
        grid (WindowGrid): the windows.

    Attributes:
        n_left (int): windows that did not come yet.

    Thread-safety: none; the owner holds a lock.
    """

    def __init__(self, grid):
        self._shape, self._window = grid.shape, grid.window
        self._starts = grid.row_starts, grid.column_starts
        self._rows, self._columns = ({start: number for number, start in enumerate(starts)}
                                     for starts in self._starts)
        size = len(self._rows) * len(self._columns)
        if grid.area is None:
            self._declared = bytes(b'\1' * size)
        else:
            declared = bytearray(size)
            for window in grid:
                declared[self._get_key(window)] = 1
            self._declared = bytes(declared)
        self._left = bytearray(self._declared)
        self.n_left = len(self)

    def __len__(self):
        return sum(self._declared)

    def __iter__(self):
        """Iterate over the parts of the windows inside the image, in row-major order."""
        return self._select(self._declared)

    def _get_key(self, window):
        return self._rows[window.y0] * len(self._columns) + self._columns[window.x0]

    def _get_window(self, key):
        row, column = divmod(key, len(self._columns))
        y, x = self._starts[0][row], self._starts[1][column]
        return Window(y, x, y + self._window[0], x + self._window[1])

    def _select(self, flags):
        return (self._get_window(key).clip(self._shape) for key, flag in enumerate(flags) if flag)

    def find(self, inside):
        """Return the key of a clipped window, or None if it was not declared."""
        row, column = self._rows.get(inside.y0), self._columns.get(inside.x0)
        if row is None or column is None:
            return None
        (height, width), (bottom, right) = self._window, self._shape
        if (inside.y1 != min(inside.y0 + height, bottom)
                or inside.x1 != min(inside.x0 + width, right)):
            return None
        key = row * len(self._columns) + column
        return key if self._declared[key] else None

    def count_left(self, key):
        """Return how often a window is still to come."""
        return self._left[key]

    def take(self, key):
        """Note that a window came."""
        self._left[key] -= 1
        self.n_left -= 1

    def get_declared(self, key, window):
        """Return the window as it was declared, before it was clipped."""
        return self._get_window(key)

    @property
    def pending(self):
        """Clipped windows that did not come yet, in row-major order."""
        return list(self._select(self._left))

    @property
    def received(self):
        """Clipped windows that came, a new set."""
        return set(self._select(flag and not left
                                for flag, left in zip(self._declared, self._left)))


class ExpectedList:
    """
    The same as :class:`ExpectedGrid` for windows of any kind, also several times.

    Args: see :func:`make_expected`.
    """

    def __init__(self, windows, shape, clip):
        # Clipped window -> [how often it is to come, its declarations ...]
        self._entries = {}
        self.n_left = 0
        for window in windows:
            window = Window.coerce(window, shape)
            entry = self._entries.setdefault(clip(window), [0])
            entry[0] += 1
            entry.append(window)
            self.n_left += 1

    def __len__(self):
        return sum(len(entry) - 1 for entry in self._entries.values())

    def __iter__(self):
        return (inside for inside, entry in self._entries.items() for _ in entry[1:])

    def find(self, inside):
        """Return the key of a clipped window, or None if it was not declared."""
        return self._entries.get(inside)

    def count_left(self, key):
        """Return how often a window is still to come."""
        return key[0]

    def take(self, key):
        """Note that a window came."""
        key[0] -= 1
        self.n_left -= 1

    def get_declared(self, key, window):
        """Return the window as it was declared, before it was clipped."""
        return window if len(key) > 2 and window in key[2:] else key[1]

    @property
    def pending(self):
        """Clipped windows that did not come yet, in row-major order."""
        return sorted(inside for inside, entry in self._entries.items() for _ in range(entry[0]))

    @property
    def received(self):
        """Clipped windows that came, a new set."""
        return {inside for inside, entry in self._entries.items() if entry[0] < len(entry) - 1}
