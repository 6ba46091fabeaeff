"""
Which things belong together: disjoint sets of numbered nodes.
"""
from __future__ import annotations

import numpy as np


class DisjointSets:
    """
    Sets of nodes 0..n-1 that are joined pair by pair.

    A set is known by its lowest node, so the result does not depend on the
    order of the pairs.

    Args:
        n (int): number of nodes.

    Thread-safety: none.

    Example:
        >>> from cocoseg.labels.unionfind import DisjointSets
        >>> sets = DisjointSets(5)
        >>> sets.join([4, 2], [2, 1])
        >>> sets.roots.tolist()
        [0, 1, 1, 3, 1]
    """

    def __init__(self, n):
        self._parents = np.arange(n, dtype=np.int64)

    def join(self, first, second):
        """
        Join the sets of each pair of nodes.

        Args:
            first, second (array_like): int, shape (k,).
        """
        from cocoseg.labels.kernels import _kernel_join_pairs
        _kernel_join_pairs(self._parents, np.ascontiguousarray(first, np.int64),
                           np.ascontiguousarray(second, np.int64))

    @property
    def roots(self):
        """The lowest node of the set of each node, int64 (n,), a new array."""
        from cocoseg.labels.kernels import _kernel_flatten
        _kernel_flatten(self._parents)
        return self._parents.copy()
