"""
Clumps: connected pixels of one cluster, the first segments.

The third step of a segmentation: cluster numbers in, labels out, which the
next steps merge. Along with the labels go the sizes and first pixels of the
segments, which later steps would otherwise have to count again.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.engine.rows import share_rows, split_rows
from cocoseg.errors import LabelOverflowError, OptionError, WindowShapeError

# What pyshepseg lets a clump grow by, px.
COMPAT_MAX_SIZE = 10000
# Parts of fewer rows are not worth a thread.
_LEAST_ROWS = 64
_LEAST_PIXELS = 1 << 16


@dataclass
class Segments:
    """
    A label image and what is known of its segments; one function at a time owns it.

    Attributes:
        labels (ndarray): uint32 (H, W), C-contiguous, 0 where null.
        sizes (ndarray): uint32 (N + 1,), px of each id; of id 0, of null.
        firsts (ndarray): int32 (N + 1,), flat index of the first pixel of
            each id from 1 that has any.
    """

    labels: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray

    @property
    def n_segments(self):
        """Highest id."""
        return len(self.sizes) - 1

    @classmethod
    def from_labels(cls, labels, n_segments=None):
        """
        Measure the segments of a label image, which is kept, not copied.

        Args:
            labels (ndarray): see :func:`check_labels`.
            n_segments (int | None): highest id; None finds it.
        """
        from cocoseg.shepherd.clump_kernels import _kernel_measure
        n_segments = check_labels(labels, n_segments)
        sizes = np.zeros(n_segments + 1, np.uint32)
        firsts = np.zeros(n_segments + 1, np.int32)
        _kernel_measure(labels.reshape(-1), sizes, firsts)
        return cls(labels, sizes, firsts)


def check_labels(labels, n_segments=None, shape=None):
    """
    Raise unless an array is a label image; return its highest id.

    Args:
        labels (ndarray): is to be uint32 (H, W) and C-contiguous.
        n_segments (int | None): highest id that is allowed, and returned.
        shape (tuple[int, int] | None): that it needs.

    Raises:
        OptionError, WindowShapeError, LabelOverflowError: saying what is wrong.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint32:
        raise OptionError(f'labels are {getattr(labels, "dtype", type(labels).__name__)}; they '
                          'need to be a uint32 array')
    if labels.ndim != 2 or labels.size == 0 or (shape is not None and labels.shape != shape):
        raise WindowShapeError(f'labels have shape {labels.shape}; they need to be '
                               f'{"(H, W), none of them 0" if shape is None else shape}')
    if not labels.flags.c_contiguous:
        raise OptionError('labels are not contiguous; pass numpy.ascontiguousarray(labels)')
    check_size(labels.shape)
    highest = int(labels.max())
    # More ids than a few per pixel would only be memory for nothing.
    if highest >= 2 ** 31 or (n_segments is not None and highest > n_segments):
        raise LabelOverflowError(f'the highest label is {highest}, and the limit is '
                                 f'{2 ** 31 - 1 if n_segments is None else n_segments}; '
                                 'renumber the labels, or count them all')
    return highest if n_segments is None else int(n_segments)


def check_size(shape):
    """Raise unless the pixels of an image can be numbered in 31 bits."""
    height, width = shape[:2]
    if height * width >= 2 ** 31:
        raise LabelOverflowError(f'an image of {height} x {width} px is too large to segment at '
                                 f'once; the limit is {2 ** 31 - 1} px: use segment_raster(), '
                                 'which does it in tiles')


def find_clumps(clusters, four_connected=True, max_size=None, *, num_threads=1):
    """
    Label connected pixels that have the same cluster number.

    Args:
        clusters (ndarray): uint16 (H, W), 0 is null.
        four_connected (bool): pixels touch at edges; False: also at corners.
        max_size (int | None): px that a clump may grow by from its first
            pixel. It grows depth first, the last pixel found before the
            others, and stops when it has that many more, or a few: all of the
            neighbors of a pixel are added at once. The pixels that are left
            make further clumps. 10000 gives the clumps of pyshepseg; None has
            no limit.
        num_threads (int): that share the rows.

    Returns:
        tuple[ndarray, int]: labels, uint32 (H, W), 0 where null, numbered from
        1 in raster order of their first pixels; and the highest of them.

    Raises:
        OptionError: for another dtype, or ``max_size`` below 1.
        WindowShapeError: for another number of axes, or an axis of 0.
        LabelOverflowError: for more than 2^31 - 1 px.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.clumps import find_clumps
        >>> clusters = np.array([[3, 3, 0], [5, 5, 3], [3, 5, 3]], np.uint16)
        >>> find_clumps(clusters)
        (array([[1, 1, 0],
               [2, 2, 3],
               [4, 2, 3]], dtype=uint32), 4)
        >>> find_clumps(clusters, four_connected=False)[0]
        array([[1, 1, 0],
               [2, 2, 1],
               [3, 2, 1]], dtype=uint32)
    """
    segments = find_clump_segments(clusters, four_connected, max_size, num_threads=num_threads)
    return segments.labels, segments.n_segments


def find_clump_segments(clusters, four_connected=True, max_size=None, *, num_threads=1):
    """
    Do the same as :func:`find_clumps`, and count.

    Returns:
        Segments: with new arrays.
    """
    _check_clusters(clusters, max_size)
    clusters = np.ascontiguousarray(clusters)
    segments = _find_components(clusters, bool(four_connected), num_threads)
    if max_size is None or int(segments.sizes[1:].max(initial=0)) <= max_size + 1:
        return segments
    return _split(segments, int(max_size), bool(four_connected), num_threads)


def _split(segments, max_size, four_connected, num_threads):
    """Split what is larger than ``max_size`` + 1; number all by first pixel again."""
    from cocoseg.shepherd.clump_kernels import _kernel_split
    labels, width = segments.labels.reshape(-1), segments.labels.shape[1]
    sizes, number = segments.sizes, segments.n_segments
    firsts, counts = np.empty(256, np.int32), np.empty(256, np.uint32)
    n_pieces, p = 0, int(segments.firsts[1:][sizes[1:] > max_size + 1].min())
    while p < len(labels):
        if n_pieces == len(firsts):
            firsts, counts = np.resize(firsts, 2 * n_pieces), np.resize(counts, 2 * n_pieces)
        n_pieces, p = _kernel_split(labels, width, sizes, max_size, four_connected, p, number,
                                    firsts, counts, n_pieces)
    firsts = np.concatenate([segments.firsts, firsts[:n_pieces]])
    sizes = np.concatenate([np.where(sizes > max_size + 1, np.uint32(0), sizes),
                            counts[:n_pieces]])
    sizes[0] = segments.sizes[0]
    ids = np.flatnonzero(sizes[1:]) + 1
    ids = np.concatenate([[0], ids[np.argsort(firsts[ids], kind='stable')]])
    new_ids = np.zeros(len(sizes), np.uint32)
    new_ids[ids] = np.arange(len(ids), dtype=np.uint32)
    renumber(segments.labels, new_ids, num_threads)
    return Segments(segments.labels, sizes[ids], firsts[ids])


def renumber(labels, new_ids, num_threads=1):
    """
    Replace labels in place.

    Args:
        labels (ndarray): uint32 (H, W), C-contiguous. Modified in place.
        new_ids (ndarray): uint32 (N + 1,), by label.
        num_threads (int): that share the pixels.
    """
    from cocoseg.shepherd.clump_kernels import _kernel_renumber
    flat = labels.reshape(-1)

    def replace(first, stop):
        _kernel_renumber(flat, new_ids, first, stop)
    share_rows(replace, len(flat), num_threads if len(flat) >= _LEAST_PIXELS else 1)


def _check_clusters(clusters, max_size):
    if not isinstance(clusters, np.ndarray) or clusters.dtype != np.uint16:
        raise OptionError(f'clusters are {getattr(clusters, "dtype", type(clusters).__name__)}; '
                          'they need to be a uint16 array')
    if clusters.ndim != 2 or clusters.size == 0:
        raise WindowShapeError(f'clusters have shape {clusters.shape}; they need to be (H, W), '
                               'with no axis of 0')
    check_size(clusters.shape)
    if max_size is not None and not 1 <= max_size < 2 ** 31:
        raise OptionError(f'max_size={max_size} must be in 1..{2 ** 31 - 1}, or None')


def _find_components(clusters, four_connected, num_threads):
    """Return the connected components as segments."""
    from cocoseg.shepherd import clump_kernels as kernels
    height, width = clusters.shape
    labels = np.empty(clusters.shape, np.uint32)
    flat = labels.reshape(-1)
    num_threads = max(min(num_threads, height // _LEAST_ROWS), 1)
    parts = split_rows(height, num_threads)
    starts = np.array([width * first for first, _ in parts], np.int64)

    def join(first, stop):
        return kernels._kernel_join_part(clusters.reshape(-1), width, four_connected, first, stop,
                                         flat)
    counts = np.array(share_rows(join, height, num_threads), np.int64)
    roots, n_foreign = _join_parts(clusters, four_connected, flat, starts, counts)
    numbers = np.concatenate([[0], np.cumsum(counts)])
    sizes = np.zeros(numbers[-1] + 1, np.uint32)
    firsts = np.zeros(numbers[-1] + 1, np.int32)

    def number(first, stop):
        part = np.searchsorted(starts, width * first)
        return kernels._kernel_number_part(flat, width * first, width * stop, numbers[part],
                                           sizes, firsts, n_foreign[part])
    sizes[0] = sum(share_rows(number, height, num_threads))
    if len(roots):
        table = flat[roots]
        np.add.at(sizes, table, n_foreign.sum(axis=0).astype(np.uint32))
        below = len(flat) - int(starts[1])

        def resolve(first, stop):
            kernels._kernel_resolve_foreign(flat, starts[1] + first, starts[1] + stop, table)
        share_rows(resolve, below, num_threads)
    return Segments(labels, sizes, firsts)


def _join_parts(clusters, four_connected, parents, starts, counts):
    """
    Join the forests of the parts along their seams, and lower their counts.

    Returns (roots (n,), of the sets that are marked in parts below their own;
    zeros (n_parts, n), to count their pixels in).
    """
    from cocoseg.shepherd import clump_kernels as kernels
    width = clusters.shape[1]
    joined = np.empty(width * (len(starts) - 1), np.int64)
    count = 0
    for start in starts[1:]:
        count = kernels._kernel_join_seam(clusters, four_connected, int(start) // width, parents,
                                          joined, count)
    joined = np.sort(joined[:count])
    roots, n_lost = np.empty(count, np.int64), np.zeros(len(starts), np.int64)
    n_marked = kernels._kernel_mark_foreign(parents, joined, starts, roots, n_lost)
    counts -= n_lost
    return roots[:n_marked], np.zeros((len(starts), n_marked), np.int64)
