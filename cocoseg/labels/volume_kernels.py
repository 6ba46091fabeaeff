"""
Compiled loops that find connected voxels of equal value.

Each ``_kernel_*`` is private: :mod:`cocoseg.labels.volume_components` is the
API. The label volume itself is the forest of a union-find, as in
:mod:`cocoseg.labels.component_kernels`: an entry is 1 + the flat index of
another voxel of its set, never a later one, or of itself for a root; 0 is no
set. Runs of equal voxels along x are joined with those of the rows before
that they touch, so that no voxel has more than four rows to look at.
"""
import numpy as np
from numba import njit

from cocoseg.labels.component_kernels import _find_root

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(**_COMMON)
def _join_row(flat, parents, value, q0, q1, root):
    """
    Join a run of ``value`` with equal runs among voxels q0 to q1 of an earlier row.

    ``root`` is that of the run so far, -1 for none. Returns its root, and how
    many sets became one with another.
    """
    n_joined = 0
    is_before = False
    for q in range(np.uint64(q0), np.uint64(q1)):
        is_equal = flat[q] == value
        # The rest of an earlier run is joined already.
        if is_equal and not is_before:
            other = _find_root(parents, np.int64(q))
            if root < 0:
                root = other
            elif other != root:
                n_joined += 1
                parents[max(root, other)] = min(root, other) + 1
                root = min(root, other)
        is_before = is_equal
    return root, n_joined


@njit(**_COMMON)
def _kernel_join_volume(flat, shape, reaches, parents):
    """
    Build the forest of a volume; return the number of its sets.

    flat unsigned (D * H * W,), 0 is no set; shape (D, H, W). reaches: by how
    many voxels a run looks beyond its ends in rows (z, y - 1) and (z - 1, y),
    and in rows (z - 1, y - 1) and (z - 1, y + 1); below 0, it does not look.
    Writes parents uint32 (D * H * W,).
    """
    depth, height, width = shape
    near, far = reaches
    slab = height * width
    n_sets = 0
    for row in range(depth * height):
        z, y = row // height, row % height
        start = row * width
        end = start + width
        p0 = start
        while p0 < end:
            value = flat[np.uint64(p0)]
            p1 = p0 + 1
            while p1 < end and flat[np.uint64(p1)] == value:
                p1 += 1
            entry = np.uint32(0)
            if value != 0:
                root, n_all = np.int64(-1), 0
                low, high = max(p0 - near, start), min(p1 + near, end)
                if y > 0:
                    root, n_joined = _join_row(flat, parents, value, low - width, high - width,
                                               root)
                    n_all += n_joined
                if z > 0:
                    root, n_joined = _join_row(flat, parents, value, low - slab, high - slab, root)
                    n_all += n_joined
                    if far >= 0:
                        low, high = max(p0 - far, start) - slab, min(p1 + far, end) - slab
                        if y > 0:
                            root, n_joined = _join_row(flat, parents, value, low - width,
                                                       high - width, root)
                            n_all += n_joined
                        if y + 1 < height:
                            root, n_joined = _join_row(flat, parents, value, low + width,
                                                       high + width, root)
                            n_all += n_joined
                n_sets += (1 if root < 0 else 0) - n_all
                entry = np.uint32((p0 if root < 0 else root) + 1)
            for p in range(np.uint64(p0), np.uint64(p1)):
                parents[p] = entry
            p0 = p1
    return n_sets


@njit(**_COMMON)
def _kernel_number_volume(labels, sizes, firsts):
    """
    Replace a forest by numbers from 1, in place.

    labels uint32 (N,). Counts voxels in sizes uint32 (n + 1,), those in no set
    at 0, and writes the first voxel of each number to firsts int64 (n + 1,).
    """
    number = np.uint32(0)
    n_empty = 0
    for p in range(labels.shape[0]):
        parent = labels[p]
        if parent == 0:
            n_empty += 1
        elif parent == p + 1:
            number += np.uint32(1)
            labels[p] = number
            sizes[number] = 1
            firsts[number] = p
        else:
            # What it points to is earlier, and so a number already.
            parent = labels[parent - 1]
            labels[p] = parent
            sizes[parent] += np.uint32(1)
    sizes[0] = n_empty
