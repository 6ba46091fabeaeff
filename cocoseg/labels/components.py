"""
Connected components: pixels of one value that hang together.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.machine import share_rows, split_rows

# Flat indices of pixels have 31 bits in the kernels.
MAX_PIXELS = 2 ** 31 - 1
# Parts of fewer rows are not worth a thread.
_LEAST_ROWS = 64


@dataclass(frozen=True)
class Components:
    """
    Connected components, numbered 1..n in the order of their first pixels, row by row.

    Attributes:
        labels (ndarray): uint32 (h, w), 0 for background.
        sizes (ndarray): uint32 (n + 1,), px of each number; of 0, of the background.
        firsts (ndarray): int32 (n + 1,), flat index of the first pixel of each
            number from 1.
    """

    labels: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray

    @property
    def n(self):
        """Number of components."""
        return len(self.sizes) - 1


def check_connectivity(connectivity):
    """
    Raise OptionError unless pixels touch at edges (4), or also at corners (8).

    Example:
        >>> from cocoseg.labels.components import check_connectivity
        >>> check_connectivity(4)
    """
    if isinstance(connectivity, bool) or connectivity not in (4, 8):
        raise OptionError(f'connectivity={connectivity!r} must be 4 (pixels touch at edges) or 8 '
                          '(also at corners)')


def label_components(values, connectivity=4, *, num_threads=1):
    """
    Number the connected components of equal values.

    Args:
        values (ndarray): unsigned integers, shape (h, w); 0 is background.
            Never modified.
        connectivity (int): 4 or 8.
        num_threads (int): that share the rows; the result is the same.

    Returns:
        Components: with new arrays.

    Raises:
        OptionError: for another connectivity.
        LabelOverflowError: for more than 2^31 - 1 px.

    Example:
        >>> from cocoseg.labels.components import label_components
        >>> values = np.array([[7, 0, 7], [7, 7, 0], [0, 2, 7]], np.uint32)
        >>> label_components(values).labels.tolist()
        [[1, 0, 2], [1, 1, 0], [0, 3, 4]]
        >>> found = label_components(values, connectivity=8)
        >>> found.labels.tolist(), found.sizes.tolist(), found.firsts[1:].tolist()
        ([[1, 0, 1], [1, 1, 0], [0, 2, 1]], [3, 5, 1], [0, 7])
    """
    from cocoseg.labels import component_kernels as kernels
    check_connectivity(connectivity)
    values = np.ascontiguousarray(values)
    if values.size > MAX_PIXELS:
        raise LabelOverflowError(f'an image of shape {values.shape} has more than {MAX_PIXELS} '
                                 'px; label it tile by tile')
    four_connected = connectivity == 4
    height, width = values.shape
    labels = np.empty(values.shape, np.uint32)
    flat = labels.reshape(-1)
    num_threads = max(min(num_threads, height // _LEAST_ROWS), 1)
    parts = split_rows(height, num_threads)
    starts = np.array([width * first for first, _ in parts], np.int64)

    def join(first, stop):
        return kernels._kernel_join_part(values.reshape(-1), width, four_connected, first, stop,
                                         flat)
    counts = np.array(share_rows(join, height, num_threads), np.int64)
    roots, n_foreign = _join_parts(values, four_connected, flat, starts, counts)
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
    return Components(labels, sizes, firsts)


def _join_parts(values, four_connected, parents, starts, counts):
    """
    Join the forests of the parts along their seams, and lower their counts.

    Returns (roots (n,), of the sets that are marked in parts below their own;
    zeros (n_parts, n), to count their pixels in).
    """
    from cocoseg.labels import component_kernels as kernels
    width = values.shape[1]
    joined = np.empty(width * (len(starts) - 1), np.int64)
    count = 0
    for start in starts[1:]:
        count = kernels._kernel_join_seam(values, four_connected, int(start) // width, parents,
                                          joined, count)
    joined = np.sort(joined[:count])
    roots, n_lost = np.empty(count, np.int64), np.zeros(len(starts), np.int64)
    n_marked = kernels._kernel_mark_foreign(parents, joined, starts, roots, n_lost)
    counts -= n_lost
    return roots[:n_marked], np.zeros((len(starts), n_marked), np.int64)
