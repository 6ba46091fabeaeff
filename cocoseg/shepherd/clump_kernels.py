"""
Compiled loops that split clumps of more pixels than they may have.

Each ``_kernel_*`` is private: :mod:`cocoseg.shepherd.clumps` is the API.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(**_COMMON)
def _kernel_split(labels, width, sizes, max_size, four_connected, start, number, firsts, counts,
                  n_pieces):
    """
    Split sets of more than max_size + 1 pixels in place, from pixel ``start`` on.

    Each is grown again from its first pixel, depth first, until ``max_size``
    pixels were added; those left begin others at their turn in raster order.
    Pieces are numbered from ``number`` + ``n_pieces`` + 1; their first pixels
    and sizes go to firsts int32 and counts uint32 (n,). Returns the number of
    pieces, and where to go on when these are full, or the end.

    labels uint32 (H * W,), sizes uint32 (number + 1,).
    """
    height = labels.shape[0] // width
    stack = np.empty(max_size + 9, np.int64)
    for p in range(start, labels.shape[0]):
        old = labels[p]
        if old == 0 or old > number or sizes[old] <= max_size + 1:
            continue
        if n_pieces == firsts.shape[0]:
            return n_pieces, p
        firsts[n_pieces] = p
        n_pieces += 1
        counts[n_pieces - 1] = _grow(labels, height, width, p, np.uint32(number + n_pieces),
                                     max_size, four_connected, stack)
    return n_pieces, labels.shape[0]


@njit(**_COMMON)
def _grow(labels, height, width, seed, new, max_size, four_connected, stack):
    """
    Give a new label to connected pixels of the label of a seed, up to the limit.

    Columns before rows. Returns how many, with the seed.
    """
    old = labels[seed]
    labels[seed] = new
    stack[0] = seed
    n_waiting, n_added = 1, 0
    while n_waiting > 0 and n_added < max_size:
        n_waiting -= 1
        y = stack[n_waiting] // width
        x = stack[n_waiting] - y * width
        for nx in range(max(x - 1, 0), min(x + 2, width)):
            for ny in range(max(y - 1, 0), min(y + 2, height)):
                if four_connected and nx != x and ny != y:
                    continue
                q = ny * width + nx
                if labels[q] == old:
                    labels[q] = new
                    stack[n_waiting] = q
                    n_waiting += 1
                    n_added += 1
    return n_added + 1


@njit(**_COMMON)
def _kernel_measure(labels, sizes, firsts):
    """Write the size and the first pixel of each label of (n,) to (N + 1,), all 0 before."""
    for p in range(labels.shape[0]):
        label = labels[p]
        if sizes[label] == 0:
            firsts[label] = p
        sizes[label] += 1
