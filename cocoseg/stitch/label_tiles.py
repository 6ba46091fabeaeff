"""
Label tiles: which pixels of an image each tile decides, and what it tells others.

Where tiles overlap, each pixel is decided by the one tile that sees it best:
the one with the largest weight in the blend plan of all tiles. In a lattice of
tiles that is a rectangle per tile, up to the middle of each overlap; its core.
Nothing here knows the order in which tiles come.
"""
from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np

from cocoseg.errors import WindowShapeError
from cocoseg.grid.window import Window
from cocoseg.labels.components import label_components
from cocoseg.labels.relabel import as_labels, densify
from cocoseg.labels.seams import list_contacts
from cocoseg.stitch.blend import BlendPlan


@dataclass(frozen=True)
class LabelTile:
    """
    One tile, ready to be put beside others. It can be pickled.

    A piece is what one label has in the pixels that the tile decides, or a
    connected part of that.

    Attributes:
        window (Window): the tile, inside the image, px.
        core (Window): around the pixels that it decides.
        pieces (ndarray): uint32, shape of ``core``: 1..n, 0 where no label is,
            or where another tile decides.
        labels_of (ndarray): int64 (n,), the label of each piece.
        sizes (ndarray): int64 (n,), px.
        first_pixels (ndarray): int64 (n,), index in the image, row by row.
        n_labels (int): labels are 1..n_labels.
        strips (dict[Window, ndarray]): by tile beside it, uint32, the labels of
            the pixels that both see.
        contacts (ndarray): int64 (k, 2), pieces that touch inside of the core,
            at least those with one below the least size.
        sums (ndarray | None): float64 (n, B), of the values of each piece.
    """

    window: Window
    core: Window
    pieces: np.ndarray
    labels_of: np.ndarray
    sizes: np.ndarray
    first_pixels: np.ndarray
    n_labels: int
    strips: dict
    contacts: np.ndarray
    sums: np.ndarray | None


@dataclass(frozen=True)
class TileLayout:
    """
    How the tiles of an image share its pixels.

    Args:
        shape (tuple[int, int]): (H, W) of the image, px.
        windows (WindowGrid | Sequence[Window]): all tiles, distinct; what
            overhangs the image is left out.

    Raises:
        OptionError: if there are no windows.

    Example:
        >>> from cocoseg.stitch.label_tiles import TileLayout
        >>> layout = TileLayout((6, 4), [Window(0, 0, 4, 4), Window(2, 0, 6, 4)])
        >>> layout.find_core(Window(0, 0, 4, 4)), layout.find_neighbors(Window(2, 0, 6, 4))
        (Window(y=0:3, x=0:4), [Window(y=0:4, x=0:4)])
    """

    shape: tuple[int, int]
    windows: tuple
    _plan: BlendPlan = field(init=False, repr=False)
    _cores: dict | None = field(init=False, repr=False)
    _edges: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        put = object.__setattr__
        windows = tuple(sorted({window.clip(self.shape) for window in self.windows}))
        put(self, 'windows', windows)
        put(self, '_plan', BlendPlan(windows))
        put(self, '_cores', None)
        if self._plan.lattice is not None:
            rows, columns = map(_find_cuts, self._plan.lattice)
            put(self, '_cores', {
                window: Window(rows[window.y0, window.y1][0], columns[window.x0, window.x1][0],
                               rows[window.y0, window.y1][1], columns[window.x0, window.x1][1])
                for window in windows})
        # Beside each tile what it may touch: tiles of a lattice further away may
        # overlap it, too, but decide nothing next to it.
        reach = windows if self._cores is None else [core.pad(1) for core in self._cores.values()]
        put(self, '_edges', np.array([(*_list_edges(window), *_list_edges(outer))
                                      for window, outer in zip(windows, reach)]))

    def __contains__(self, window):
        index = bisect.bisect_left(self.windows, window)
        return index < len(self.windows) and self.windows[index] == window

    def find_core(self, window):
        """Return the rectangle around the pixels that a tile decides."""
        return window if self._cores is None else self._cores[window]

    def find_neighbors(self, window):
        """Return the other tiles that see pixels of a tile; of a lattice, those beside it."""
        return self._find_around(window, self.find_core(window))

    def _find_around(self, window, core):
        """Return the other tiles that meet a window, and whose reach meets a core."""
        y0, x0, y1, x1, *reach = self._edges.T
        found = ((y0 < window.y1) & (y1 > window.y0) & (x0 < window.x1) & (x1 > window.x0)
                 & (reach[0] < core.y1) & (reach[2] > core.y0)
                 & (reach[1] < core.x1) & (reach[3] > core.x0))
        return [self.windows[index] for index in np.flatnonzero(found)
                if self.windows[index] != window]

    def find_owned(self, window):
        """
        Return which pixels a tile decides.

        Returns:
            ndarray | None: bool, shape of the tile; None for all of its core.
        """
        if self._cores is not None:
            return None
        owned = np.ones(window.shape, bool)
        ours = np.multiply.outer(*self._plan.get_weights(window))
        for other in self.find_neighbors(window):
            common = window.intersect(other)
            theirs = np.multiply.outer(*self._plan.get_weights(other))
            here, there = ours[common.within(window).slices], theirs[common.within(other).slices]
            # On a tie the first in row-major order decides.
            owned[common.within(window).slices] &= here >= there if window < other else here > there
        return owned

    def list_borders(self):
        """Return windows that hold every two pixels next to each other of different tiles."""
        height, width = self.shape
        if self._cores is None:
            # Also of tiles that touch and do not overlap.
            outer = [(window, window.pad(1)) for window in self.windows]
            return sorted({reach.intersect(other.pad(1)).clip(self.shape)
                           for window, reach in outer
                           for other in self._find_around(reach, reach) if other != window})
        cores = self._cores.values()
        rows, columns = ({core.y0 for core in cores}, {core.x0 for core in cores})
        return ([Window(y - 1, 0, y + 1, width) for y in sorted(rows) if y]
                + [Window(0, x - 1, height, x + 1) for x in sorted(columns) if x])


def _list_edges(window):
    return window.y0, window.x0, window.y1, window.x1


def _find_cuts(chain):
    """Return {(start, stop): (first, last + 1)} of the pixels that each interval decides."""
    middles = [(before[1] + after[0]) // 2 for before, after in zip(chain, chain[1:])]
    firsts, lasts = [chain[0][0], *middles], [*middles, chain[-1][1]]
    return {(start, stop): (max(start, first), min(stop, last))
            for (start, stop), first, last in zip(chain, firsts, lasts)}


def cut_tile(layout, window, labels, values=None, *, connectivity=None, min_size=0):
    """
    Prepare a tile for being put beside others.

    Args:
        layout (TileLayout): of all tiles.
        window (Window): where the labels belong; may overhang the image.
        labels (ndarray): int >= 0, shape of ``window``, ids that mean
            something in this tile only; 0 is for nothing. Never modified.
        values (ndarray | None): shape of ``window`` and bands: what decides
            which pieces are alike.
        connectivity (int | None): 4 or 8: each connected part is a piece of
            its own. None: a piece may have several parts.
        min_size (int): px; contacts of pieces below it are listed.

    Returns:
        LabelTile: copies, no views of the arguments.

    Raises:
        OptionError: for labels that are no whole numbers of at least 0.
        WindowShapeError: if labels or values disagree with the window.

    Note:
        Thread-safe, and free of the GIL for most of its time.

    Example:
        >>> from cocoseg.stitch.label_tiles import TileLayout, cut_tile
        >>> left, right = Window(0, 0, 1, 4), Window(0, 2, 1, 6)
        >>> tile = cut_tile(TileLayout((1, 6), (left, right)), left, np.array([[5, 5, 9, 9]]))
        >>> tile.core, tile.pieces.tolist(), tile.labels_of.tolist(), tile.strips[right].tolist()
        (Window(y=0:1, x=0:3), [[1, 1, 2]], [1, 2], [[2, 2]])
    """
    full, window = window, window.clip(layout.shape)
    labels = as_labels(labels)
    check_tile_shape('labels', labels, full)
    dense, ids = densify(labels[window.within(full).slices])
    core = layout.find_core(window)
    inside = np.ascontiguousarray(dense[core.within(window).slices])
    owned = layout.find_owned(window)
    if owned is not None:
        inside = np.where(owned, inside, 0)
    if connectivity is None:
        pieces, sizes, firsts = _keep_present(inside, len(ids))
    else:
        found = label_components(inside, connectivity)
        pieces, sizes, firsts = found.labels, found.sizes[1:].astype(np.int64), found.firsts[1:]
    rows, columns = np.divmod(firsts.astype(np.int64), max(core.shape[1], 1))
    first_pixels = (rows + core.y0) * layout.shape[1] + columns + core.x0
    labels_of = inside.reshape(-1)[firsts].astype(np.int64)
    strips = {other: dense[window.intersect(other).within(window).slices].copy()
              for other in layout.find_neighbors(window)}
    contacts = np.empty((0, 2), np.int64)
    if min_size > 1:
        contacts = list_contacts(pieces, connectivity, np.append(False, sizes < min_size))
    return LabelTile(window, core, pieces, labels_of, sizes, first_pixels, len(ids), strips,
                     contacts, _sum_values(pieces, len(sizes), values, core, full))


def check_tile_shape(what, array, window):
    """
    Raise WindowShapeError unless an array has the height and width of a window.

    Example:
        >>> from cocoseg.stitch.label_tiles import check_tile_shape
        >>> check_tile_shape('labels', np.zeros((2, 3)), Window(0, 0, 2, 3))
    """
    if array.shape[:2] != window.shape:
        raise WindowShapeError(f'{what} have shape {array.shape} but {window} needs '
                               f'{window.shape}; give one per pixel of the window')


def _keep_present(inside, n_labels):
    """
    Return pieces that are whole labels, dense again, as some labels are elsewhere only.

    With them the sizes and the first pixels, as flat indices.
    """
    ids, firsts, sizes = np.unique(inside, return_index=True, return_counts=True)
    present = ids > 0
    lut = np.zeros(n_labels + 1, np.uint32)
    lut[ids[present]] = np.arange(1, present.sum() + 1)
    return lut[inside], sizes[present], firsts[present]


def _sum_values(pieces, n_pieces, values, core, full):
    """Return the sums of the values of each piece, float64 (n, B), or None."""
    if values is None:
        return None
    from cocoseg.labels.kernels import _kernel_sum_values
    values = np.asarray(values)
    values = values[..., None] if values.ndim == 2 else values
    check_tile_shape('values', values, full)
    values = np.ascontiguousarray(values[core.within(full).slices])
    sums = np.zeros((n_pieces + 1, values.shape[2]))
    _kernel_sum_values(pieces, values, sums)
    return sums[1:]
