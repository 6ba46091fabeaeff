"""
Merge groups that are too small into the neighbor that is most like them.
"""
from __future__ import annotations

import numpy as np


def merge_small_groups(contacts, sizes, sums, min_size, max_difference):
    """
    Merge small groups until each that is left has no neighbor alike enough.

    Small groups are visited by ascending number, again and again. Each joins
    the neighbor of any size whose mean is nearest, in the state that the
    merges before have left, if that is not beyond ``max_difference``. So the
    result depends on the numbers of the groups alone.

    Args:
        contacts (ndarray): int (k, 2): pairs of groups that touch, at least
            all those with a small group.
        sizes (ndarray): int (n,): px of each group.
        sums (ndarray): float64 (n, B): sum of the values of each group.
        min_size (int): px; groups below it are small.
        max_difference (float): largest distance of the means of two groups
            that are merged, in units of the values.

    Returns:
        tuple[ndarray, int]: int64 (n,), the lowest group that each is merged
        with; and the number of merges.

    Example:
        >>> from cocoseg.labels.merge import merge_small_groups
        >>> chain = np.array([[0, 1], [1, 2]])
        >>> sums = np.array([[90.], [8.], [0.]])        # means 9, 8 and 0
        >>> merge_small_groups(chain, [10, 1, 10], sums, min_size=5, max_difference=2)
        (array([0, 0, 2]), 1)
        >>> merge_small_groups(chain, [10, 1, 10], sums, min_size=5, max_difference=0.5)
        (array([0, 1, 2]), 0)
    """
    from cocoseg.labels.kernels import _kernel_flatten, _kernel_merge_small
    n = len(sizes)
    parents = np.arange(n, dtype=np.int64)
    contacts = np.asarray(contacts, np.int64).reshape(-1, 2)
    heads, tails, following, targets = _list_neighbors(contacts, n)
    merged = _kernel_merge_small(
        parents, heads, tails, following, targets, np.array(sizes, np.int64),
        np.array(sums, np.float64), int(min_size), float(max_difference) ** 2)
    # Parents are lower than their children: one way up after the other.
    _kernel_flatten(parents)
    return parents, int(merged)


def _list_neighbors(contacts, n):
    """Return lists of neighbors: heads, tails per group, and following, targets per entry."""
    sources = np.concatenate([contacts[:, 0], contacts[:, 1]])
    targets = np.concatenate([contacts[:, 1], contacts[:, 0]])
    order = np.argsort(sources, kind='stable')
    sources, targets = sources[order], targets[order]
    heads, tails = np.full((2, n), -1, np.int64)
    following = np.full(len(targets), -1, np.int64)
    if len(targets):
        same = sources[1:] == sources[:-1]
        following[:-1][same] = np.flatnonzero(same) + 1
        is_first = np.concatenate([[True], ~same])
        heads[sources[is_first]] = np.flatnonzero(is_first)
        is_last = np.concatenate([~same, [True]])
        tails[sources[is_last]] = np.flatnonzero(is_last)
    return heads, tails, following, targets
