"""
Connected components of volumes: voxels of one value that hang together.

What :mod:`cocoseg.labels.components` is for images, with the same contract.
"""
from __future__ import annotations

import numpy as np

from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.labels.components import Components

# 1 + the flat index of a voxel has 32 bits in the kernels.
MAX_VOXELS = 2 ** 32 - 2

# How far a run of voxels looks beyond its ends in the rows that share a face
# with it, and in those that share an edge; below 0, it does not look there.
_REACHES = {6: (0, -1), 18: (1, 0), 26: (1, 1)}


def check_volume_connectivity(connectivity):
    """
    Raise OptionError unless voxels touch at faces (6), also edges (18) or corners (26).

    Example:
        >>> from cocoseg.labels.volume_components import check_volume_connectivity
        >>> check_volume_connectivity(18)
    """
    if isinstance(connectivity, bool) or connectivity not in tuple(_REACHES):
        raise OptionError(f'connectivity={connectivity!r} must be 6 (voxels touch at faces), 18 '
                          '(also at edges) or 26 (also at corners)')


def label_volume(values, connectivity=6):
    """
    Number the connected components of equal values of a volume.

    They are numbered 1..n in the order of their first voxels, slab by slab and
    row by row. A volume of one slab is labeled as an image: 6 is then 4, and
    18 and 26 are 8.

    Args:
        values (ndarray): unsigned integers or bool, shape (d, h, w); 0 is
            background. Never modified.
        connectivity (int): 6, 18 or 26.

    Returns:
        Components: with new arrays: labels uint32 (d, h, w), sizes uint32
            (n + 1,) and firsts int64 (n + 1,), the flat index of the first
            voxel of each number from 1.

    Raises:
        OptionError: for another connectivity or number of axes.
        LabelOverflowError: for more than 2^32 - 2 voxels.

    Note:
        The GIL is released: blocks may be labeled in several threads.

    Example:
        >>> from cocoseg.labels.volume_components import label_volume
        >>> values = np.array([[[7, 0], [0, 7]], [[0, 7], [2, 0]]], np.uint32)
        >>> label_volume(values).labels.tolist()
        [[[1, 0], [0, 2]], [[0, 3], [4, 0]]]
        >>> found = label_volume(values, connectivity=18)
        >>> found.labels.tolist(), found.sizes.tolist(), found.firsts[1:].tolist()
        ([[[1, 0], [0, 1]], [[0, 1], [2, 0]]], [4, 3, 1], [0, 6])
    """
    from cocoseg.labels import volume_kernels as kernels
    check_volume_connectivity(connectivity)
    values = np.ascontiguousarray(values)
    if values.ndim != 3:
        raise OptionError(f'values have shape {values.shape}; give a volume (d, h, w), or label '
                          'an image by label_components')
    if values.size > MAX_VOXELS:
        raise LabelOverflowError(f'a volume of shape {values.shape} has more than {MAX_VOXELS} '
                                 'voxels; label it block by block')
    if values.dtype == bool:
        values = values.view(np.uint8)
    labels = np.empty(values.shape, np.uint32)
    flat = labels.reshape(-1)
    n = kernels._kernel_join_volume(values.reshape(-1), values.shape, _REACHES[connectivity], flat)
    sizes, firsts = np.zeros(n + 1, np.uint32), np.zeros(n + 1, np.int64)
    kernels._kernel_number_volume(flat, sizes, firsts)
    return Components(labels, sizes, firsts)
