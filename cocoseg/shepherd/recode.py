"""
pyshepseg's way to put segment tiles together, one after the other, row by row.

Kept for labels that must be the same as those of pyshepseg; its flaws with
them: an id may end up without a pixel, and a valid pixel may become null where
most of its segment is null in the neighbor. :class:`cocoseg.LabelStitcher` is
the default.
"""
from __future__ import annotations

import numpy as np

from cocoseg.errors import LabelOverflowError
from cocoseg.grid.window import Window
from cocoseg.labels.relabel import MAX_ID, apply_lut


class TileRecoder:
    """
    Give the segments of tiles, which come in row-major order, ids of the image.

    A segment that crosses the middle of the overlap with the tile above, or
    else with the tile to the left, takes the id that most of its pixels there
    have in that tile; the left overrides the one above. All others get new ids.

    Args:
        plan (TilePlan): of all tiles.
        is_simple (bool): no segments are matched; each tile's ids go on where
            those of the tiles before have ended.

    Thread-safety: none.

    Example:
        >>> from cocoseg.shepherd.recode import TileRecoder
        >>> from cocoseg.shepherd.tiles import TilePlan
        >>> recoder = TileRecoder(TilePlan(((0, 1),), ((0, 4), (2, 6)), (0, 2)))
        >>> for window in recoder.plan:
        ...     core, ids = recoder.recode(window, np.array([[1, 1, 2, 2]], np.uint32))
        ...     print(core, ids.tolist())
        Window(y=0:1, x=0:3) [[1, 1, 2]]
        Window(y=0:1, x=3:6) [[2, 3, 3]]
    """

    def __init__(self, plan, is_simple=False):
        self.plan, self._is_simple = plan, is_simple
        self.max_id = 0
        self._bottoms, self._rights = {}, {}

    def recode(self, window, labels):
        """
        Give a tile its ids.

        Args:
            window (Window): the tile that is next.
            labels (ndarray): uint32, shape of ``window``, 0 is null. Not modified.

        Returns:
            tuple[Window, ndarray]: the pixels that this tile decides, and
            their ids, uint32.

        Raises:
            LabelOverflowError: if the ids do not fit in 32 bits.
        """
        row, column = self.plan.locate(window)
        core = self._find_core(window, row, column)
        inside = core.within(window)
        n_labels = int(labels.max(initial=0))
        if self.max_id + n_labels > MAX_ID:
            raise LabelOverflowError(f'there are more than {MAX_ID} segments; divide the raster')
        if self._is_simple:
            lut = np.arange(n_labels + 1, dtype=np.uint32) + np.uint32(self.max_id)
            lut[0] = 0
        else:
            lut = self._make_lut(labels, n_labels, row, column, inside)
        ids = np.array(labels, np.uint32, order='C')
        apply_lut(lut, ids)
        if not self._is_simple:
            self._keep_strips(ids, row, column)
        written = ids[inside.slices]
        # Over what is written only, so that an id beyond it is used again.
        self.max_id = max(self.max_id, int(written.max(initial=0)))
        return core, written

    def _find_core(self, window, row, column):
        rows, columns = self.plan.grid_shape
        dy, dx = (overlap // 2 for overlap in self.plan.overlap)
        return Window(window.y0 + dy * (row > 0), window.x0 + dx * (column > 0),
                      window.y1 - dy * (row < rows - 1), window.x1 - dx * (column < columns - 1))

    def _make_lut(self, labels, n_labels, row, column, inside):
        """Return the id of each segment of a tile."""
        lut = np.zeros(n_labels + 1, np.int64)
        shared = np.zeros(n_labels + 1, bool)
        above, left = self._bottoms.pop(column, None), self._rights.pop(row, None)
        if above is not None:
            _take_over(lut, shared, labels[:len(above)], above, axis=0)
        if left is not None:
            _take_over(lut, shared, labels[:, :left.shape[1]], left, axis=1)
        top, first_column = _find_corners(labels, n_labels)
        is_new = (~shared & (top >= inside.y0) & (top < inside.y1)
                  & (first_column >= inside.x0) & (first_column < inside.x1))
        is_new[0] = False
        lut[is_new] = self.max_id + np.arange(1, is_new.sum() + 1)
        return lut.astype(np.uint32)

    def _keep_strips(self, ids, row, column):
        """Keep what the next tiles see of this one."""
        (rows, columns), (dy, dx) = self.plan.grid_shape, self.plan.overlap
        if row < rows - 1 and dy:
            self._bottoms[column] = ids[-dy:].copy()
        if column < columns - 1 and dx:
            self._rights[row] = ids[:, -dx:].copy()


def _take_over(lut, shared, ours, theirs, axis):
    """Let segments that cross the middle of a strip take the ids of the neighbor, in place."""
    middle = ours.shape[axis] // 2
    before, after = np.split(ours, [middle], axis=axis)
    crossing = _find_present(before, len(lut)) & _find_present(after, len(lut))
    crossing[0] = False
    ids, modes = find_modes(ours, theirs, crossing)
    lut[ids] = modes
    shared[ids] = True


def _find_present(labels, n):
    present = np.zeros(n, bool)
    present[labels.ravel()] = True
    return present


def find_modes(ours, theirs, chosen):
    """
    Find the most frequent value of theirs under each label of ours.

    Args:
        ours, theirs (ndarray): uint32, shape (h, w).
        chosen (ndarray): bool, by label of ours: those to look at.

    Returns:
        tuple[ndarray, ndarray]: the chosen labels that occur, ascending, and
        their modes; on a tie the lowest. 0 counts like any other value.

    Example:
        >>> from cocoseg.shepherd.recode import find_modes
        >>> ours = np.array([[1, 1, 1, 2, 2]], np.uint32)
        >>> theirs = np.array([[7, 7, 5, 9, 0]], np.uint32)
        >>> [found.tolist() for found in find_modes(ours, theirs, np.array([0, 1, 1], bool))]
        [[1, 2], [7, 0]]
    """
    here = chosen[ours]
    keys = (ours[here].astype(np.uint64) << np.uint64(32)) | theirs[here].astype(np.uint64)
    pairs, counts = np.unique(keys, return_counts=True)
    labels = (pairs >> np.uint64(32)).astype(np.int64)
    # Most frequent first per label; among equals the lowest value, as it was.
    order = np.lexsort((-counts, labels))
    ids, first = np.unique(labels[order], return_index=True)
    return ids, (pairs[order][first] & np.uint64(MAX_ID)).astype(np.int64)


def _find_corners(labels, n_labels):
    """Return the first row and the first column of each label."""
    from cocoseg.shepherd.recode_kernels import _kernel_find_corners
    top, left = np.full((2, n_labels + 1), np.iinfo(np.int64).max, np.int64)
    _kernel_find_corners(np.ascontiguousarray(labels, np.uint32), top, left)
    return top, left
