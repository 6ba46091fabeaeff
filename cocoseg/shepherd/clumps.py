"""
Clumps: connected pixels of one cluster, the first segments.

The third step of a segmentation: cluster numbers in, labels out, which the
next steps merge. Along with the labels go the sizes and first pixels of the
segments, which later steps would otherwise have to count again.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.errors import LabelOverflowError, OptionError, WindowShapeError
from cocoseg.labels.components import MAX_PIXELS, label_components
from cocoseg.labels.relabel import apply_lut

# What pyshepseg lets a clump grow by, px.
COMPAT_MAX_SIZE = 10000


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
    if height * width > MAX_PIXELS:
        raise LabelOverflowError(f'an image of {height} x {width} px is too large to segment at '
                                 f'once; the limit is {MAX_PIXELS} px: use segment_raster(), '
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
    found = label_components(clusters, 4 if four_connected else 8, num_threads=num_threads)
    segments = Segments(found.labels, found.sizes, found.firsts)
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
    apply_lut(new_ids, segments.labels, num_threads)
    return Segments(segments.labels, sizes[ids], firsts[ids])


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
