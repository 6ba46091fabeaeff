"""
The label stitcher: ids that mean something in one tile only become ids of an image.

It owns the state of ONE image: a canvas of pieces, what neighboring tiles say
about the pixels that both see, and what is still to come. Tiles come in any
order and from any thread; the result is the same.
"""
from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cocoseg.errors import (CoverageError, ImageClosedError, LabelOverflowError,
                            NothingAccumulatedError, OptionError)
from cocoseg.grid.window import Window, WindowLike
from cocoseg.grid.windows import WindowGrid
from cocoseg.labels.components import check_connectivity
from cocoseg.labels.relabel import MAX_ID, apply_lut, as_labels
from cocoseg.labels.seams import list_contacts, match_labels, unique_pairs
from cocoseg.protocols import BlockSink, PathLike
from cocoseg.stitch.arena import FileArena
from cocoseg.stitch.coverage import Coverage, Covered
from cocoseg.stitch.intake import check_shape
from cocoseg.stitch.label_groups import PieceTable, group_pieces
from cocoseg.stitch.label_tiles import LabelTile, TileLayout, check_tile_shape, cut_tile

MATCHES = ('overlap', 'none')
# A canvas of at most so many bytes stays in RAM; below that, a file costs more than it saves.
_RAM_NBYTES = 64 << 20
_STRIP_PIXELS = 1 << 20


@dataclass(frozen=True, order=True)
class Seam:
    """
    How well two tiles agree where both look.

    Attributes:
        first, second (Window): the tiles, in row-major order.
        n_links (int): pairs of labels that are one object.
        n_common (int): px that both tiles give to such a pair.
        n_labeled (int): px that either tile gives to any label.

    Example:
        >>> from cocoseg import Seam
        >>> seam = Seam(Window(0, 0, 4, 4), Window(0, 2, 4, 6), 2, n_common=6, n_labeled=8)
        >>> seam.agreement
        0.75
    """

    first: Window
    second: Window
    n_links: int
    n_common: int
    n_labeled: int

    @property
    def agreement(self) -> float:
        """Share of the labeled px that linked labels share, 0..1; 1 if nothing is labeled."""
        return self.n_common / self.n_labeled if self.n_labeled else 1.0


class LabelStitcher(Covered):
    """
    Put label tiles together to one image of ids.

    Each pixel is decided by the tile that sees it best; in a lattice of tiles,
    the border is the middle of the overlap. Labels of two tiles are one object
    if each has more than half of the other, counted where both tiles look.
    Ids are dense and canonical: 1..n by first pixel, row by row. No id is
    without a pixel, and no labeled pixel is lost: 0 is where the deciding tile
    has 0.

    Without declared windows all tiles are held until :meth:`finalize`. With
    them, only what a tile shares with neighbors that are still to come.

    Args:
        shape (tuple[int, int]): (H, W) of the image, px.
        windows (WindowGrid | Iterable[Window] | None): all tiles that will come.
        sink (BlockSink | None): receives the finished image in :meth:`finalize`,
            in strips of uint32 (h, W, 1).
        connectivity (int | None): 4 or 8: every label of the result hangs
            together; parts of an object that do not touch get ids of their
            own. None: they share an id.
        match (str): 'overlap', or 'none' to keep the objects of every tile apart.
        min_size (int): px. Labels below it, such as what a seam has cut off,
            join the neighbor whose mean value is nearest. Needs
            ``connectivity``, and the values with each tile. 0: none.
        max_difference (float): labels whose means are further apart are not
            joined because of ``min_size``.
        spill_dir (PathLike | None): with a sink, large images wait in a file
            without a name in this folder; None is the system's temporary folder.

    Raises:
        OptionError: for an option that is unknown or contradicts another.
        CoverageError: if a declared window lies outside the image, or is
            declared twice.

    Thread-safety: ``add``, ``cut`` and ``insert`` may be called from many threads.

    Example:
        >>> from cocoseg import LabelStitcher, WindowGrid
        >>> truth = np.array([[1, 1, 0, 2, 2, 2, 0, 3]] * 4)
        >>> grid = WindowGrid(truth.shape, window=(4, 5), overlap=(0, 2))
        >>> stitcher = LabelStitcher(truth.shape, grid)
        >>> for k, window in enumerate(reversed(list(grid))):
        ...     tile = truth[window.slices]
        ...     n_pixels = stitcher.add(window, np.where(tile, tile + 100 * k, 0))
        >>> assert np.array_equal(stitcher.finalize(), truth)
        >>> [seam.agreement for seam in stitcher.seams]
        [1.0]
    """

    def __init__(self, shape: tuple[int, ...],
                 windows: WindowGrid | Iterable[WindowLike] | None = None, *,
                 sink: BlockSink | None = None, connectivity: int | None = None,
                 match: str = 'overlap', min_size: int = 0, max_difference: float = math.inf,
                 spill_dir: PathLike | None = None) -> None:
        self.shape: tuple[int, int] = check_shape(tuple(shape)[:2])[0]
        if connectivity is not None:
            check_connectivity(connectivity)
        if match not in MATCHES:
            raise OptionError(f'match={match!r} is unknown; use one of {MATCHES}')
        if min_size > 1 and connectivity is None:
            raise OptionError(f'min_size={min_size} needs connectivity 4 or 8: what is merged is '
                              'what touches')
        self._connectivity, self._match = connectivity, match
        self._min_size, self._max_difference = min_size, max_difference
        self._sink, self._spill_dir = sink, spill_dir
        windows = None if windows is None else [Window.coerce(window) for window in windows]
        self._coverage = Coverage(self.shape, windows)
        self._layout = None if windows is None else _make_layout(self.shape, windows)
        self._held = {}           # tiles without declared windows
        self._tiles = []          # what is known of each inserted tile, without its pixels
        self._strips = {}         # (tile, neighbor) -> (labels, their number, first label)
        self._links, self._seams = [], []
        self._n_pieces = self._n_labels = 0
        self._canvas = None
        self._groups = None
        self._n_rows_done = 0
        self._is_closed = False
        self._lock = threading.Lock()

    def __repr__(self):
        state = 'closed' if self._is_closed else 'open'
        return f'<LabelStitcher(h={self.shape[0]}, w={self.shape[1]}, {state})>'

    # ---- what callers read -------------------------------------------------

    @property
    def seams(self) -> list[Seam]:
        """How well neighboring tiles agree, a sorted list of :class:`Seam`."""
        with self._lock:
            return sorted(self._seams)

    @property
    def nbytes(self) -> int:
        """Bytes of RAM that the canvas, held tiles and strips take."""
        with self._lock:
            arrays = [array for parts in (self._strips.values(), self._held.values())
                      for part in parts for array in part if isinstance(array, np.ndarray)]
            canvas = self._canvas
            in_ram = canvas is not None and not isinstance(canvas, np.memmap)
            return sum(array.nbytes for array in arrays) + (canvas.nbytes if in_ram else 0)

    @property
    def n_labels(self) -> int:
        """Number of ids in the finished image."""
        return len(self._get_groups().sizes) - 1

    @property
    def sizes(self) -> np.ndarray:
        """Pixels of each id of the finished image, int64 (n_labels + 1,), entry 0 is 0."""
        return self._get_groups().sizes.copy()

    @property
    def n_merged(self) -> int:
        """Labels below ``min_size`` that joined a neighbor."""
        return self._get_groups().n_merged

    def _get_groups(self):
        if self._groups is None:
            raise NothingAccumulatedError(f'{self!r} has no labels yet; finalize it first')
        return self._groups

    # ---- tiles come --------------------------------------------------------

    def add(self, window: WindowLike | None, labels: ArrayLike,
            values: np.ndarray | None = None) -> int:
        """
        Add one tile.

        Args:
            window (Window | tuple[slice, slice] | kwimage.Box | None): where
                it belongs, px; may overhang the image. None is the whole image.
            labels (ndarray | Tensor): int >= 0, shape (h, w) == ``window.shape``;
                ids mean something in this tile only. Never modified.
            values (ndarray | None): shape (h, w, B): what tells which labels
                are alike, for ``min_size``.

        Returns:
            int: labeled pixels that this tile decides; with undeclared tiles,
            all its labeled pixels, as nobody knows yet.

        Raises:
            WindowShapeError: if labels or values disagree with the window.
            OptionError: for labels that are no whole numbers of at least 0, or
                values that are missing.
            CoverageError: if the window is outside the image, was not
                declared, or came before.
            ImageClosedError: if the image was finalized.
        """
        window = Window.from_shape(self.shape) if window is None else Window.coerce(
            window, self.shape)
        if self._layout is not None:
            return self.insert(self.cut(window, labels, values))
        return self._hold(window, labels, values)

    def _hold(self, window, labels, values):
        """Keep an undeclared tile, checked, until all of them are here."""
        inside = self._coverage.clip(window)
        self._check_values(values)
        labels = as_labels(labels).copy()
        check_tile_shape('labels', labels, window)
        if values is not None:
            values = np.array(values)
            check_tile_shape('values', values, window)
        with self._lock:
            self._check_open(window)
            if inside in self._coverage.received:
                raise CoverageError(f'{window} came before; give each tile once')
            self._coverage.receive(inside)
            self._held[window] = (labels, values)
        return int(np.count_nonzero(labels[inside.within(window).slices]))

    def cut(self, window: WindowLike | None, labels: ArrayLike,
            values: np.ndarray | None = None) -> LabelTile:
        """
        Prepare a declared tile, for :meth:`insert`: the larger part of the work.

        Touches nothing of the stitcher, so that others may do it elsewhere.

        Args:
            window, labels, values: as for :meth:`add`.

        Returns:
            LabelTile: can be pickled.
        """
        if self._layout is None:
            raise OptionError('cut is for declared tiles; give windows, or use add')
        window = Window.coerce(window, self.shape)
        inside = self._coverage.clip(window)
        if inside not in self._layout:
            raise CoverageError(f'{window} was not declared; declare all tiles')
        self._check_values(values)
        return cut_tile(self._layout, window, labels, values,
                        connectivity=self._connectivity, min_size=self._min_size)

    def insert(self, tile: LabelTile) -> int:
        """
        Put a tile of :meth:`cut` beside the others.

        Returns:
            int: labeled pixels that this tile decides.

        Raises:
            CoverageError, ImageClosedError, LabelOverflowError: see :meth:`add`.
        """
        with self._lock:
            self._check_open(tile.window)
            expected = self._coverage.check_expected(tile.window)
            piece_base, label_base = self._n_pieces, self._n_labels
            if max(piece_base + len(tile.sizes), label_base + tile.n_labels) > MAX_ID:
                raise LabelOverflowError(f'the tiles hold more than {MAX_ID} labels; divide the '
                                         'image')
            # What can fail comes before the first change.
            canvas = self._ensure_canvas()
            self._coverage.count(tile.window, expected)
            self._n_pieces += len(tile.sizes)
            self._n_labels += tile.n_labels
            self._tiles.append((piece_base, label_base, tile.labels_of, tile.sizes,
                                tile.first_pixels, tile.contacts, tile.sums))
            meetings = self._exchange_strips(tile, label_base)
        self._paint(canvas, tile, piece_base)
        for other, ours, theirs in meetings:
            self._match_tiles(tile.window, other, ours, theirs)
        return int(tile.sizes.sum())

    def _check_values(self, values):
        if self._min_size > 1 and values is None:
            raise OptionError(f'min_size={self._min_size} needs the values of each tile, which '
                              'tell what is alike; give values')

    def _check_open(self, window):
        if self._is_closed:
            raise ImageClosedError(f'labels for {window} came after the image was finalized')

    def _ensure_canvas(self):
        if self._canvas is None:
            n_pixels = self.shape[0] * self.shape[1]
            if self._sink is None or 4 * n_pixels <= _RAM_NBYTES:
                self._canvas = np.zeros(self.shape, np.uint32)
            else:
                arena = FileArena(n_pixels, np.uint32, self._spill_dir)
                self._canvas = arena.take().reshape(self.shape)
        return self._canvas

    def _paint(self, canvas, tile, piece_base):
        """Write the pieces of a tile, numbered through, where it decides."""
        owned = self._layout.find_owned(tile.window)
        place = canvas[tile.core.slices]
        if owned is None:
            np.add(tile.pieces, np.uint32(piece_base), out=place, where=tile.pieces > 0)
        else:
            labeled = tile.pieces > 0
            place[labeled] = tile.pieces[labeled] + np.uint32(piece_base)

    def _exchange_strips(self, tile, label_base):
        """Leave strips for neighbors to come; return those of neighbors that came."""
        meetings = []
        if self._match == 'none':
            return meetings
        for other, strip in tile.strips.items():
            ours = (strip, tile.n_labels, label_base)
            theirs = self._strips.pop((other, tile.window), None)
            if theirs is None:
                self._strips[tile.window, other] = ours
            else:
                meetings.append((other, ours, theirs))
        return meetings

    def _match_tiles(self, window, other, ours, theirs):
        (labels, n_labels, base), (their_labels, n_theirs, their_base) = ours, theirs
        match = match_labels(labels, their_labels, n_labels, n_theirs)
        links = np.stack([match.ours - 1 + base, match.theirs - 1 + their_base], axis=1)
        first, second = sorted([window, other])
        seam = Seam(first, second, len(links), match.n_common, match.n_labeled)
        with self._lock:
            self._links.append(links)
            self._seams.append(seam)

    # ---- the end -----------------------------------------------------------

    def finalize(self) -> np.ndarray | Any:
        """
        End the image.

        Pixels of declared tiles that did not come are 0.

        Returns:
            ndarray | None: uint32, shape (H, W). None with a sink, which has
            received every strip then.

        Raises:
            NothingAccumulatedError: if no tile was ever added.
            ImageClosedError: on a second call.
            Exception: whatever the sink raises; then call again, to go on with
                the strip that it did not take.
        """
        self._resolve()
        canvas = self._canvas
        rows = max(_STRIP_PIXELS // self.shape[1], 1)
        while self._n_rows_done < self.shape[0]:
            y = self._n_rows_done
            window = Window(y, 0, min(y + rows, self.shape[0]), self.shape[1])
            if self._sink is None:
                apply_lut(self._groups.lut, canvas[window.slices])
            else:
                strip = np.array(canvas[window.slices])
                apply_lut(self._groups.lut, strip)
                self._sink.write_block(window, strip[..., None])
            self._n_rows_done = window.y1
        self.close()
        return canvas if self._sink is None else None

    def seal(self) -> None:
        """Refuse tiles from now on. May be called again."""
        with self._lock:
            self._is_closed = True

    def _resolve(self):
        """Decide the final ids, once."""
        if self._groups is not None and self._canvas is not None:
            return
        if self._groups is not None:
            raise ImageClosedError(f'{self!r} was already finalized')
        if self._held:
            # A full disk is told while the tiles are still held.
            self._ensure_canvas()
            self._release_held()
        if not self._tiles:
            raise NothingAccumulatedError(f'{self!r} has received no tile')
        self.seal()
        table, contacts = self._make_table()
        links = np.concatenate([np.empty((0, 2), np.int64), *self._links])
        connected = self._connectivity is not None
        self._groups = group_pieces(
            table, links, self._find_crossings(table) if connected else np.empty((0, 2), np.int64),
            contacts, connected=connected, min_size=self._min_size,
            max_difference=self._max_difference)
        self._tiles, self._links = [], []

    def _release_held(self):
        """Insert tiles that were not declared, now that all are known."""
        held, self._held = self._held, {}
        self._coverage = Coverage(self.shape, list(held))
        self._layout = _make_layout(self.shape, list(held))
        for window in sorted(held):
            self.insert(self.cut(window, *held[window]))

    def _make_table(self):
        """Return the PieceTable, and the contacts of all tiles."""
        columns = list(zip(*self._tiles))
        piece_bases, label_bases, labels_of, sizes, first_pixels, contacts, sums = columns
        table = PieceTable(
            np.concatenate([of - 1 + base
                            for of, base in zip(labels_of, label_bases)]),
            np.concatenate(sizes), np.concatenate(first_pixels),
            None if sums[0] is None else np.concatenate(sums), self._n_labels)
        return table, np.concatenate([pairs - 1 + base
                                      for pairs, base in zip(contacts, piece_bases)])

    def _find_crossings(self, table):
        """Return the pieces of different tiles that touch, int64 (k, 2)."""
        bases = np.sort([tile[0] for tile in self._tiles])
        found = [np.empty((0, 2), np.int64)]
        for region in self._layout.list_borders():
            pairs = list_contacts(self._canvas[region.slices], self._connectivity) - 1
            tiles = np.searchsorted(bases, pairs, side='right')
            found.append(pairs[tiles[:, 0] != tiles[:, 1]])
        return unique_pairs(np.concatenate(found))

    def close(self) -> None:
        """Free the memory and the file, finished or not. May be called twice."""
        with self._lock:
            self._is_closed = True
            self._canvas = None
            self._strips, self._held = {}, {}


def _make_layout(shape, windows):
    clipped = [window.clip(shape) for window in windows]
    if len(set(clipped)) != len(clipped):
        raise CoverageError('a tile is declared twice; labels of one place come once')
    return TileLayout(tuple(shape), tuple(windows))
