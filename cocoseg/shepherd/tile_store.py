"""
Tiles on their way between processes: by files beside the output, not by pipes.

A worker cuts its tile and saves the arrays; what it returns is small, and
tells the process that puts the tiles together where they are. There the
largest array is mapped, and the files are removed once it was used.
"""
from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass

import numpy as np

from cocoseg.engine.block_store import BlockFiles
from cocoseg.errors import OptionError
from cocoseg.grid.window import Window
from cocoseg.io.commit import temporary_folder
from cocoseg.shepherd.tiles import TilePlan
from cocoseg.stitch.label_tiles import LabelTile, TileLayout, cut_tile

# Arrays that may be sent to workers with each task, bytes.
MAX_SENT_NBYTES = 16 << 20
_COLUMNS = ('labels_of', 'sizes', 'first_pixels', 'contacts')


def shares_memory(executor):
    """Return True if an executor runs its tasks in this process."""
    return getattr(executor, 'shares_memory', True)


def check_sent(executor, sources):
    """
    Raise OptionError if arrays are too large to be sent to the workers.

    Args:
        executor (Executor): that runs the tasks.
        sources (Iterable[Source]): that go with each task.

    Example:
        >>> from cocoseg import get_executor
        >>> from cocoseg.io.strips import Source
        >>> from cocoseg.shepherd.tile_store import check_sent
        >>> check_sent(get_executor('threads:2'), [Source.open(np.zeros((5000, 5000)))])
    """
    arrays = [source for source in sources if source.pixels is not None]
    nbytes = sum(source.pixels.nbytes for source in arrays)
    if nbytes > MAX_SENT_NBYTES and not shares_memory(executor):
        names = ' and '.join(source.name for source in arrays)
        raise OptionError(
            f'{names} in memory take {nbytes} bytes, and workers of other processes would get '
            f'them with each task, at most {MAX_SENT_NBYTES} bytes; give a path that the workers '
            "can read, or use executor='threads'")


@dataclass(frozen=True)
class TileCut:
    """
    Cut tiles for a :class:`~cocoseg.LabelStitcher`, in any process.

    Attributes:
        shape (tuple[int, int]): (H, W) of the raster, px.
        plan (TilePlan): of all tiles.
        connectivity (int): 4 or 8.
        min_size (int): px.

    Example:
        >>> from cocoseg.shepherd.tile_store import TileCut
        >>> from cocoseg.shepherd.tiles import TilePlan
        >>> plan = TilePlan(((0, 1),), ((0, 4), (2, 6)), (0, 2))
        >>> cut = TileCut((1, 6), plan, connectivity=4, min_size=1)
        >>> tile = cut(Window(0, 0, 1, 4), np.array([[1, 1, 2, 2]]), np.zeros((1, 4, 1)))
        >>> tile.pieces.tolist()
        [[1, 1, 2]]
    """

    shape: tuple[int, int]
    plan: TilePlan
    connectivity: int
    min_size: int

    def __call__(self, window, labels, image):
        """Return the :class:`~cocoseg.stitch.label_tiles.LabelTile` of a tile."""
        return cut_tile(_make_layout(self.shape, self.plan), window, labels, image,
                        connectivity=self.connectivity, min_size=self.min_size)


@functools.lru_cache(maxsize=1)
def _make_layout(shape, plan):
    """Return the layout of a plan, made once per process."""
    return TileLayout(shape, tuple(plan))


def keep_labels(window, labels, image):
    """Return the labels of a tile, for those who need them as they are."""
    return labels


@dataclass(frozen=True)
class StoredTile:
    """
    What is known of a tile whose arrays are in files.

    Attributes:
        index (tuple[int, int]): row and column of the tile.
        names (tuple[str, ...]): of its arrays.
        window, core, n_labels: of a LabelTile; None of plain labels.
        others (tuple[Window, ...]): the tiles beside it, in the order of the strips.
    """

    index: tuple[int, int]
    names: tuple[str, ...]
    window: Window | None = None
    core: Window | None = None
    n_labels: int | None = None
    others: tuple[Window, ...] = ()


class TileStore:
    """
    A folder of tiles that are done and not yet put together. Can be pickled.

    Args:
        folder (str): must exist, and be seen by all workers under this name.
        plan (TilePlan): of all tiles.

    Thread-safety: any thread or process may save and load, each tile by one
    at a time.

    Example:
        >>> import tempfile
        >>> from cocoseg.shepherd.tile_store import TileStore
        >>> from cocoseg.shepherd.tiles import TilePlan
        >>> plan = TilePlan(((0, 1),), ((0, 2),), (0, 0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = TileStore(folder, plan)
        ...     stored = store.save(Window(0, 0, 1, 2), np.array([[7, 8]], np.uint32))
        ...     labels = store.load(stored).tolist()
        ...     store.remove(stored)
        ...     labels, stored.names, os.listdir(folder)
        ([[7, 8]], ('labels',), [])
    """

    def __init__(self, folder, plan):
        self._files, self._plan = BlockFiles(folder), plan

    @classmethod
    @contextlib.contextmanager
    def open_beside(cls, path, plan):
        """Yield a store in a hidden folder beside a file; it is removed afterwards."""
        with temporary_folder(path) as folder:
            yield cls(folder, plan)

    def save(self, window, found):
        """
        Write the arrays of a tile.

        Args:
            window (Window): the tile.
            found (LabelTile | ndarray): a tile that was cut, or its labels.

        Returns:
            StoredTile: small, for :meth:`load`.
        """
        index = self._plan.locate(window)
        if isinstance(found, np.ndarray):
            self._files.save(index, {'labels': found})
            return StoredTile(index, ('labels',))
        arrays = {'pieces': found.pieces, **{name: getattr(found, name) for name in _COLUMNS}}
        if found.sums is not None:
            arrays['sums'] = found.sums
        arrays.update((f'strip{place}', strip)
                      for place, strip in enumerate(found.strips.values()))
        self._files.save(index, arrays)
        return StoredTile(index, tuple(arrays), found.window, found.core, found.n_labels,
                          tuple(found.strips))

    def load(self, stored):
        """
        Return what was saved; pieces and labels are mapped, not to be written to.

        The others are copies, as a stitcher keeps them.
        """
        if stored.window is None:
            return self._files.load(stored.index, 'labels')
        columns = {name: self._read(stored, name) for name in _COLUMNS}
        strips = {other: self._read(stored, f'strip{place}')
                  for place, other in enumerate(stored.others)}
        sums = self._read(stored, 'sums') if 'sums' in stored.names else None
        return LabelTile(window=stored.window, core=stored.core, n_labels=stored.n_labels,
                         pieces=self._files.load(stored.index, 'pieces'), strips=strips,
                         sums=sums, **columns)

    def _read(self, stored, name):
        return np.array(self._files.load(stored.index, name))

    def iter_loaded(self, tiles):
        """Yield (window, what was saved) for pairs with a StoredTile; then remove its files."""
        for window, stored in tiles:
            yield window, self.load(stored)
            self.remove(stored)

    def remove(self, stored):
        """Remove the files of a tile; nobody may use what is mapped any more."""
        for name in stored.names:
            os.unlink(self._files.get_path(stored.index, name))
