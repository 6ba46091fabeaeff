"""
From blocks to tiles: which pixels of an image came, and which tiles are whole.

Blocks may have any size and place. What they hold of a tile that is not whole
yet waits here; a block that is a tile goes past. Arrays only, no files.
"""
from __future__ import annotations

import numpy as np

from cocoseg.errors import CoverageError


class TileIntake:
    """
    Watch that each pixel comes once, and collect the parts of tiles.

    Args:
        grid (BlockGrid): of the tiles.
        n_bands (int): bands. dtype (dtype): of the pixels.
        lock (Condition): held while anything here changes.

    Thread-safety: all methods may be called from any thread.

    Example:
        >>> import threading
        >>> from cocoseg.grid.blocks import BlockGrid
        >>> from cocoseg.grid.window import Window
        >>> from cocoseg.io.tile_intake import TileIntake
        >>> intake = TileIntake(BlockGrid((2, 4), 2), 1, 'uint8', threading.Condition())
        >>> for window in (Window(0, 0, 1, 2), Window(1, 0, 2, 2)):
        >>>     [(index, in_tile, in_block)] = intake.reserve(window)
        >>>     found = intake.fill(index, in_tile, np.ones((1, 2, 1), 'uint8'))
        >>> found[..., 0].tolist(), intake.list_missing()
        ([[1, 1], [1, 1]], [(0, 1)])
    """

    def __init__(self, grid, n_bands, dtype, lock):
        self._grid, self._n_bands, self._dtype = grid, n_bands, dtype
        self._lock = lock
        self._whole = np.zeros(grid.grid_shape, bool)
        self._parts = {}
        # Blocks that were taken in part: what is left of each.
        self._interrupted = {}

    @property
    def nbytes(self):
        """Bytes of tiles that are not whole."""
        with self._lock:
            return sum(part.nbytes for part in self._parts.values())

    def reserve(self, window):
        """
        Note that a block comes: all of it, or nothing if a pixel came before.

        Args:
            window (Window): inside the image, not empty.

        Returns:
            list[tuple]: of each tile that it meets, the index, the place in
            the tile (None for all of it), and the place in the block. Of a
            block that was interrupted, those that are left.

        Raises:
            CoverageError: if a pixel came before.
        """
        found, new = [], {}
        with self._lock:
            if window in self._interrupted:
                return self._interrupted.pop(window)
            for index, in_tile, in_block in self._grid.iter_slices(window):
                shape = self._grid.get(index).core.shape
                part = self._parts.get(index)
                if self._whole[index] or part is not None and part.states[in_tile].any():
                    raise CoverageError(f'{window} meets pixels that were written before; give '
                                        'each pixel once')
                if shape == tuple(place.stop - place.start for place in in_tile):
                    in_tile = None
                elif part is None:
                    new[index] = _PartialTile((*shape, self._n_bands), self._dtype)
                found.append((index, in_tile, in_block))
            self._parts.update(new)
            for index, in_tile, _ in found:
                if in_tile is not None:
                    self._parts[index].states[in_tile] = 1
                self._whole[index] = in_tile is None or self._parts[index].states.all()
        return found

    def interrupt(self, window, parts):
        """Note what is left of a block that was not taken to its end."""
        with self._lock:
            self._interrupted[window] = parts

    def fill(self, index, in_tile, data):
        """
        Copy a part of a tile.

        Returns:
            ndarray | None: the tile, to the one who copied the last part; it
            stays here until :meth:`forget`.
        """
        with self._lock:
            part = self._parts[index]
        part.pixels[in_tile] = data
        with self._lock:
            part.states[in_tile] = 2
            return part.pixels if (part.states == 2).all() else None

    def forget(self, index):
        """Let go of a tile that was taken on."""
        with self._lock:
            self._whole[index] = True
            self._parts.pop(index, None)

    def mark_all(self):
        """Note that all pixels come."""
        with self._lock:
            self._whole[...] = True

    def check_interrupted(self):
        """Raise CoverageError if a block was taken in part."""
        for window, parts in self._interrupted.items():
            if parts:
                raise CoverageError(f'the block for {window} was taken in part only, as its '
                                    'writing was interrupted; give it again')

    def list_missing(self):
        """Return the indices of tiles of which pixels did not come."""
        with self._lock:
            return [tuple(index) for index in np.argwhere(~self._whole).tolist()]

    def complete(self, index, value):
        """Return a tile whose missing pixels are a value; see :meth:`forget`."""
        part = self._parts.get(index)
        if part is None:
            shape = (*self._grid.get(index).core.shape, self._n_bands)
            return np.full(shape, value, self._dtype)
        part.pixels[part.states == 0] = value
        return part.pixels

    def clear(self):
        """Let go of everything."""
        with self._lock:
            self._parts, self._interrupted = {}, {}


class _PartialTile:
    """A tile of which some pixels came, and which: 1 is promised, 2 is here."""

    def __init__(self, shape, dtype):
        self.pixels = np.empty(shape, dtype)
        self.states = np.zeros(shape[:2], np.uint8)
        self.nbytes = self.pixels.nbytes + self.states.nbytes
