"""
New ids for old: dense, in an order that does not depend on how they came about.
"""
from __future__ import annotations

import numpy as np

from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.machine import share_rows

MAX_ID = 2 ** 32 - 1
# Fewer are not worth a thread.
_LEAST_PIXELS = 1 << 16


def as_labels(labels, what='labels'):
    """
    Return labels as whole numbers of at least 0, without a copy where possible.

    Args:
        labels (array_like): int, shape (h, w) or (h, w, 1).
        what (str): their name in messages.

    Raises:
        OptionError: for another shape, for numbers that are not int, or
            negative ones.

    Example:
        >>> from cocoseg.labels.relabel import as_labels
        >>> as_labels([[0, 3]]).shape
        (1, 2)
    """
    if hasattr(labels, 'detach'):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.ndim == 3 and labels.shape[2] == 1:
        labels = labels[..., 0]
    if labels.ndim != 2 or labels.dtype.kind not in 'iu':
        raise OptionError(f'{what} have shape {labels.shape} and dtype {labels.dtype}; give whole '
                          'numbers of shape (h, w), 0 where there is nothing')
    if labels.dtype.kind == 'i' and labels.size and labels.min() < 0:
        raise OptionError(f'{what} hold {labels.min()}; ids begin at 1, and 0 is for nothing')
    return labels


def densify(labels):
    """
    Replace ids by dense ones, in the order of the ids.

    Args:
        labels (ndarray): int >= 0, shape (h, w). Never modified.

    Returns:
        tuple[ndarray, ndarray]: uint32 (h, w) of 0..n, and the n ids that
        1..n stand for, ascending.

    Raises:
        LabelOverflowError: if there are 2^31 ids or more.

    Example:
        >>> from cocoseg.labels.relabel import densify
        >>> dense, ids = densify(np.array([[0, 900], [40, 900]]))
        >>> dense.tolist(), ids.tolist()
        ([[0, 2], [1, 2]], [40, 900])
    """
    highest = int(labels.max(initial=0))
    if highest <= max(4 * labels.size, 1 << 16):
        # Much faster than sorting the pixels.
        present = np.zeros(highest + 1, bool)
        present[labels.ravel()] = True
        present[0] = False
        ids = np.flatnonzero(present)
        lut = np.zeros(highest + 1, np.uint32)
        lut[ids] = np.arange(1, len(ids) + 1)
        return lut[labels], ids.astype(labels.dtype)
    ids, inverse = np.unique(labels, return_inverse=True)
    has_none = ids[0] == 0
    if len(ids) > 2 ** 31 - 1:
        raise LabelOverflowError(f'one tile holds {len(ids)} ids; use smaller tiles')
    dense = inverse.reshape(labels.shape).astype(np.uint32)
    return (dense, ids[1:]) if has_none else (dense + 1, ids)


def rank_groups(roots, first_pixels):
    """
    Number groups of nodes by the first pixel of any of their nodes.

    Args:
        roots (ndarray): int64 (n,): a node that stands for the group of each.
        first_pixels (ndarray): int64 (n,): index of the first pixel of each
            node, row by row; -1 if it has none.

    Returns:
        tuple[ndarray, int]: int64 (n,), 1..m by first pixel, 0 for groups
        without a pixel; and m.

    Raises:
        LabelOverflowError: if m does not fit in 32 bits.

    Example:
        >>> from cocoseg.labels.relabel import rank_groups
        >>> rank_groups(np.array([0, 1, 0, 3]), np.array([50, 7, 2, -1]))[0].tolist()
        [1, 2, 1, 0]
    """
    n = len(roots)
    nowhere = np.iinfo(np.int64).max
    earliest = np.full(n, nowhere, np.int64)
    np.minimum.at(earliest, roots, np.where(first_pixels < 0, nowhere, first_pixels))
    order = np.argsort(earliest, kind='stable')
    n_groups = int(np.count_nonzero(earliest < nowhere))
    if n_groups > MAX_ID:
        raise LabelOverflowError(f'there are {n_groups} labels, more than 32 bits can tell apart; '
                                 'divide the image')
    ranks = np.zeros(n, np.int64)
    ranks[order[:n_groups]] = np.arange(1, n_groups + 1)
    return ranks[roots], n_groups


def apply_lut(lut, ids, num_threads=1):
    """
    Replace ids by their entries in a table, in place.

    Args:
        lut (ndarray): uint32 (n,).
        ids (ndarray): uint32, any shape, C-contiguous, each below n. Modified.
        num_threads (int): that share the ids.

    Raises:
        OptionError: if they are not contiguous.

    Example:
        >>> from cocoseg.labels.relabel import apply_lut
        >>> ids = np.array([[0, 2], [1, 2]], np.uint32)
        >>> apply_lut(np.array([0, 9, 5], np.uint32), ids)
        >>> ids.tolist()
        [[0, 5], [9, 5]]
    """
    from cocoseg.labels.kernels import _kernel_apply
    if not ids.flags.c_contiguous:
        raise OptionError('ids must be C-contiguous to be replaced in place')
    flat = ids.reshape(-1)

    def apply(first, stop):
        _kernel_apply(lut, flat, first, stop)
    share_rows(apply, len(flat), num_threads if len(flat) >= _LEAST_PIXELS else 1)
