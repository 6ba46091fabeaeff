"""
Merge what is too small: first single pixels, then small segments.

The fourth and fifth step of a segmentation: clumps in, segments out. Single
pixels, which are most clumps of a noisy image, join the neighbor that is most
like them, pixel against pixel; small segments join the neighbor whose mean is
nearest, the smallest segments first.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.labels.relabel import apply_lut
from cocoseg.machine import share_rows
from cocoseg.shepherd.assign import as_pixels
from cocoseg.shepherd.clumps import Segments, check_labels
from cocoseg.shepherd.locations import add_bands

# How often segments of one size are looked at, as in pyshepseg.
_MAX_PASSES = 10
# Fewer segments, or pixels, than these are not worth a thread.
_LEAST_CANDIDATES = 1024
_LEAST_PIXELS = 1 << 16


class Elimination(NamedTuple):
    """
    What an elimination left.

    Attributes:
        labels (ndarray): uint32 (H, W), 0 where null, ids from 1 without gaps.
        n_segments (int): highest id.
        n_eliminated (int): segments that were merged into others.
    """

    labels: np.ndarray
    n_segments: int
    n_eliminated: int


def eliminate_singles(image, labels, n_segments=None, *, four_connected=True, compat=False,
                      num_threads=1):
    """
    Merge segments of one pixel into that of the neighbor most like it.

    In each pass all the single pixels choose, and then all are merged: a pixel
    takes the label of the neighboring pixel of least spectral distance, the
    first in raster order of equal ones, among those whose segments have more
    than one pixel. Passes go on until nothing changes.

    Args:
        image (ndarray): int or float, (H, W, B) or (H, W).
        labels (ndarray): uint32 (H, W), C-contiguous, 0 where null. Never
            modified.
        n_segments (int | None): highest label; None finds it.
        four_connected (bool): pixels touch at edges; False: also at corners.
        compat (bool): treat null as pyshepseg does, as a segment like others:
            a single pixel may become null, and a single null pixel gets a label.
        num_threads (int): that share the work.

    Returns:
        Elimination: with new labels; ids keep their order.

    Raises:
        OptionError, WindowShapeError, LabelOverflowError: for labels of
            another dtype, or that do not fit the image.

    Note:
        Squared distances are exact for whole numbers of up to 16 bits and
        float64 for wider ones, and have the dtype of a float image. With
        ``compat`` they are int64 for whole numbers of any width but uint64.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.eliminate import eliminate_singles
        >>> image = np.array([[1, 1, 7, 9, 9]], np.uint8)
        >>> labels = np.array([[1, 1, 2, 3, 3]], np.uint32)
        >>> eliminate_singles(image, labels).labels
        array([[1, 1, 2, 2, 2]], dtype=uint32)
    """
    pixels = as_pixels(image)
    n_segments = check_labels(labels, n_segments, pixels.shape[:2])
    segments = Segments.from_labels(labels.copy(), n_segments)
    n_used = _count_used(segments)
    segments = merge_singles(pixels, segments, four_connected, compat, num_threads)
    return Elimination(segments.labels, segments.n_segments, n_used - segments.n_segments)


def eliminate_small(image, labels, min_size, max_spectral_diff, n_segments=None, *,
                    four_connected=True, compat=False, num_threads=1):
    """
    Merge segments below a size into the neighbor whose mean is nearest.

    From size 1 up to ``min_size`` - 1: all the segments of that size choose the
    nearest of their strictly larger neighbors, and then all are merged, unless
    it is farther than the limit; this up to ten times, or until nothing
    changes. Then, but for ``compat``, those that are still below ``min_size``
    are merged one by one, ascending, into the nearest neighbor of any size
    within the limit, the lowest id of equally near ones, until each is beyond
    the limit of all its neighbors. Null is no neighbor.

    Args:
        image (ndarray): int or float, (H, W, B) or (H, W).
        labels (ndarray): uint32 (H, W), C-contiguous, 0 where null. Never
            modified.
        min_size (int): px, at least 1.
        max_spectral_diff (float): the limit; largest distance between the
            means of segments that are merged, in units of the image.
        n_segments (int | None): highest label; None finds it.
        four_connected (bool): pixels touch at edges; False: also at corners.
        compat (bool): give the labels of pyshepseg. Sums, means and distances
            are float32 then, and float64 otherwise.
        num_threads (int): that share the work.

    Returns:
        Elimination: with new labels, numbered by first pixel in raster order;
        with ``compat`` ids keep their order.

    Raises:
        OptionError: for a size below 1, or a limit that is not 0 or more.
        WindowShapeError, LabelOverflowError: for labels that do not fit.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.eliminate import eliminate_small
        >>> image = np.array([[1, 1, 1, 4, 4, 9, 9, 9]], np.uint8)
        >>> labels = np.array([[1, 1, 1, 2, 2, 3, 3, 3]], np.uint32)
        >>> eliminate_small(image, labels, min_size=3, max_spectral_diff=3).labels
        array([[1, 1, 1, 1, 1, 2, 2, 2]], dtype=uint32)
        >>> eliminate_small(image, labels, min_size=3, max_spectral_diff=2.9).n_eliminated
        0
    """
    pixels = as_pixels(image)
    n_segments = check_labels(labels, n_segments, pixels.shape[:2])
    if min_size < 1 or min_size != int(min_size) or not max_spectral_diff >= 0:
        raise OptionError(f'min_size={min_size} must be a whole number of at least 1, and '
                          f'max_spectral_diff={max_spectral_diff} a number of at least 0')
    segments = Segments.from_labels(labels.copy(), n_segments)
    segments, n_merged = merge_small(pixels, segments, min_size, max_spectral_diff,
                                     four_connected, compat, num_threads)
    return Elimination(segments.labels, segments.n_segments, n_merged)


def _count_used(segments):
    return int(np.count_nonzero(segments.sizes[1:]))


def merge_singles(pixels, segments, four_connected, compat, num_threads=1):
    """
    Do :func:`eliminate_singles` on segments, which are modified and returned.

    Args:
        pixels (Pixels): of the image.
        segments (Segments): owned by the caller, who is to go on with what is
            returned.
        four_connected, compat, num_threads: as for :func:`eliminate_singles`.

    Returns:
        Segments: in the same label array.
    """
    from cocoseg.shepherd.eliminate_kernels import _kernel_merge_singles
    labels = segments.labels.reshape(-1)
    singles = _find_singles(segments, compat)
    n_before = None
    while len(singles) not in (0, n_before):
        n_before = len(singles)
        targets = _choose_singles(pixels, segments, singles, four_connected, compat, num_threads)
        n_left = _kernel_merge_singles(labels, segments.sizes, segments.firsts, singles, targets)
        singles = singles[:n_left]
    return _close_gaps(segments, num_threads)


def _choose_singles(pixels, segments, singles, four_connected, compat, num_threads):
    """Return the label that each single pixel is to get, or -1, int64 (n,)."""
    from cocoseg.shepherd.eliminate_kernels import _kernel_choose_singles
    labels, width = segments.labels.reshape(-1), pixels.shape[1]
    zero = _find_zero(pixels.flat.dtype, compat)
    targets = np.empty(len(singles), np.int64)

    def choose(first, stop):
        _kernel_choose_singles(pixels.flat, pixels.steps, pixels.shape[2], labels, width,
                               segments.sizes, compat, four_connected, zero, singles, first, stop,
                               targets)
    share_rows(choose, len(singles), _limit_threads(len(singles), num_threads))
    return targets


def _find_singles(segments, compat):
    """Return the flat indices of single pixels, int32; all choose before any is merged."""
    from cocoseg.shepherd.eliminate_kernels import _kernel_find_singles
    singles = np.empty(np.count_nonzero(segments.sizes[1:] == 1), np.int32)
    _kernel_find_singles(segments.sizes, segments.firsts, singles)
    if compat and segments.sizes[0] == 1:
        null = np.flatnonzero(segments.labels.reshape(-1) == 0)
        singles = np.append(singles, null.astype(np.int32))
    return singles


def _find_zero(dtype, compat):
    """Return a 0 of the dtype that distances of pixels are calculated in, (1,)."""
    if dtype.kind != 'f':
        is_wide = dtype.itemsize > 2 if not compat else dtype == np.uint64
        dtype = np.float64 if is_wide else np.int64
    return np.zeros(1, dtype)


def _limit_threads(n_candidates, num_threads):
    return max(min(num_threads, n_candidates // _LEAST_CANDIDATES), 1)


def _close_gaps(segments, num_threads, canonical=False):
    """
    Renumber segments in place, so that no id is without pixels; return them.

    Ids keep their order, or are by first pixel if ``canonical``.
    """
    from cocoseg.shepherd.eliminate_kernels import _kernel_close_gaps
    sizes, firsts = segments.sizes, segments.firsts
    new_ids = np.zeros(len(sizes), np.uint32)
    n_segments = _kernel_close_gaps(sizes, firsts, new_ids)
    sizes, firsts = sizes[:n_segments + 1].copy(), firsts[:n_segments + 1].copy()
    is_sorted = not canonical or bool((firsts[2:] > firsts[1:-1]).all())
    if n_segments == segments.n_segments and is_sorted:
        return segments
    if not is_sorted:
        order = np.argsort(firsts[1:])
        ranks = np.zeros(n_segments + 1, np.uint32)
        ranks[order + 1] = np.arange(1, n_segments + 1)
        new_ids = ranks[new_ids]
        sizes[1:], firsts[1:] = sizes[1:][order], firsts[1:][order]
    apply_lut(new_ids, segments.labels, num_threads)
    return Segments(segments.labels, sizes, firsts)


def merge_small(pixels, segments, min_size, max_spectral_diff, four_connected, compat,
                num_threads=1):
    """
    Do :func:`eliminate_small` on segments, which are modified and returned.

    Args:
        pixels (Pixels): of the image.
        segments (Segments): owned by the caller, who is to go on with what is
            returned.
        min_size, max_spectral_diff, four_connected, compat, num_threads: as
            for :func:`eliminate_small`.

    Returns:
        tuple[Segments, int]: in the same label array; and how many segments
        were merged.
    """
    n_merged = 0
    if (segments.sizes[1:] < min_size).any():
        merger = _SmallMerger(pixels, segments, min_size, max_spectral_diff, four_connected,
                              compat, num_threads)
        n_merged = merger.merge_by_size()
        if not compat:
            n_merged += merger.settle()
    return _close_gaps(segments, num_threads, canonical=not compat), n_merged


class _SmallMerger:
    """
    The state of the merging of small segments.

    See :mod:`cocoseg.shepherd.eliminate_kernels` for the lists of pixels.
    """

    def __init__(self, pixels, segments, min_size, max_spectral_diff, four_connected, compat,
                 num_threads):
        n_ids = segments.n_segments + 1
        # No segment is larger than the image: a higher minimum is the same.
        self.min_size = min(int(min_size), pixels.shape[0] * pixels.shape[1] + 1)
        # A float32 is squared as such.
        with np.errstate(over='ignore'):
            self.limit = np.float64(max_spectral_diff * max_spectral_diff)
        self.four_connected, self.num_threads = bool(four_connected), num_threads
        self.segments = segments
        self.width = pixels.shape[1]
        self.labels = segments.labels.reshape(-1)
        self.sums = np.zeros((n_ids, pixels.shape[2]), np.float32 if compat else np.float64)
        self.means = np.empty_like(self.sums)
        self.following = np.zeros(n_ids, np.uint32)
        self.last = np.arange(n_ids, dtype=np.uint32)
        self._prepare(pixels)

    def _prepare(self, pixels):
        """Sum up the bands, and list the pixels of small segments, side by side."""
        from cocoseg.shepherd.eliminate_kernels import _kernel_means
        from cocoseg.shepherd.location_kernels import _kernel_list_pixels
        sizes = self.segments.sizes
        is_small = sizes < self.min_size
        is_small[0] = False
        counts = np.where(is_small, sizes, 0)
        self.starts = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(counts, out=self.starts[1:])
        self.pixels = np.empty(self.starts[-1], np.int32)

        def prepare(first, stop):
            if first == 0:
                add_bands(pixels, self.labels, self.sums)
                _kernel_means(self.sums, sizes, self.means)
            if stop == 2:
                places = np.where(is_small, self.starts[:-1], np.int32(-1))
                _kernel_list_pixels(self.labels, places, self.pixels)
        share_rows(prepare, 2, self.num_threads if len(self.labels) >= _LEAST_PIXELS else 1)

    @property
    def _lists(self):
        return self.starts, self.pixels, self.following

    def merge_by_size(self):
        """Merge segments of each size into larger neighbors; return how many."""
        from cocoseg.shepherd import eliminate_kernels as kernels
        sizes = self.segments.sizes
        bounds = np.zeros(self.min_size + 1, np.int64)
        order = np.empty(np.count_nonzero(sizes[1:] < self.min_size), np.uint32)
        kernels._kernel_sort_by_size(sizes, self.min_size, bounds, order)
        heads = np.zeros(self.min_size, np.uint32)
        nexts, out = np.zeros(len(sizes), np.uint32), np.empty_like(order)
        n_merged, size = 0, 0
        while True:
            size, count = kernels._kernel_take_size(sizes, self.min_size, size + 1, bounds, order,
                                                    heads, nexts, out)
            if count == 0:
                return n_merged
            candidates = out[:count]
            candidates.sort()
            n_merged += self._merge_candidates(candidates)

    def _merge_candidates(self, candidates):
        """Merge segments of one size, in passes; return how many."""
        from cocoseg.shepherd import eliminate_kernels as kernels
        segments = self.segments
        targets = np.empty(len(candidates), np.uint32)
        is_large = segments.sizes[candidates[0]] > kernels.MAX_LISTED
        kernel = kernels._kernel_choose_large if is_large else kernels._kernel_choose_targets
        n_all = n_before = len(candidates)
        for _ in range(_MAX_PASSES):
            def choose(first, stop):
                kernel(
                    candidates, first, stop, self.labels, self.width, segments.sizes, self.means,
                    *self._lists, self.four_connected, self.limit, targets)
            share_rows(choose, n_before, _limit_threads(n_before, self.num_threads))
            n_left = kernels._kernel_merge_targets(
                candidates[:n_before], targets, self.min_size, self.labels, self.width,
                segments.sizes, segments.firsts, self.sums, self.means, *self._lists, self.last)
            if n_left in (0, n_before):
                return n_all - n_left
            n_before = n_left
        return n_all - n_before

    def settle(self):
        """Merge what is still small into neighbors of any size; return how many."""
        from cocoseg.shepherd.eliminate_kernels import _kernel_settle
        segments = self.segments
        is_small = (segments.sizes > 0) & (segments.sizes < self.min_size)
        is_small[0] = False
        return _kernel_settle(
            np.flatnonzero(is_small).astype(np.uint32), self.min_size, self.labels, self.width,
            segments.sizes, segments.firsts, self.sums, self.means, *self._lists, self.last,
            self.four_connected, self.limit)
