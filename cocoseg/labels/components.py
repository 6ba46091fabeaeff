"""
Connected components: pixels of one value that hang together.
"""
from __future__ import annotations

import numpy as np

from cocoseg.errors import OptionError

# Flat indices of pixels are int32 in the kernels.
MAX_PIXELS = 2 ** 31 - 1


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


def label_components(values, connectivity=4):
    """
    Number the connected components of equal values.

    Args:
        values (ndarray): unsigned integers, shape (h, w); 0 is background.
            Never modified.
        connectivity (int): 4 or 8.

    Returns:
        tuple[ndarray, int]: int32 (h, w), 0 where ``values`` is, else 1..n in
        the order of their first pixels, row by row; and n.

    Raises:
        OptionError: for another connectivity, or more than 2^31 - 1 px.

    Example:
        >>> from cocoseg.labels.components import label_components
        >>> values = np.array([[7, 0, 7], [7, 7, 0], [0, 2, 7]], np.uint32)
        >>> label_components(values)[0].tolist()
        [[1, 0, 2], [1, 1, 0], [0, 3, 4]]
        >>> label_components(values, connectivity=8)[0].tolist()
        [[1, 0, 1], [1, 1, 0], [0, 2, 1]]
    """
    from cocoseg.labels.kernels import _kernel_components
    check_connectivity(connectivity)
    values = np.ascontiguousarray(values)
    if values.size > MAX_PIXELS:
        raise OptionError(f'an image of shape {values.shape} has more than {MAX_PIXELS} px; label '
                          'it tile by tile')
    out = np.empty(values.shape, np.int32)
    return out, int(_kernel_components(values, connectivity == 4, out))
