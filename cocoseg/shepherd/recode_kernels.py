"""
Compiled inner loop of recoding; :mod:`cocoseg.shepherd.recode` is the API.
"""
from numba import njit


@njit(nogil=True, cache=True, error_model='numpy')
def _kernel_find_corners(labels, top, left):
    """Lower the first row and the first column of each label to what occurs."""
    rows, columns = labels.shape
    for r in range(rows):
        for c in range(columns):
            label = labels[r, c]
            if r < top[label]:
                top[label] = r
            if c < left[label]:
                left[label] = c
