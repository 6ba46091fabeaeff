"""
Label groups: the pieces of all tiles, put together to the labels of an image.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.labels.merge import merge_small_groups
from cocoseg.labels.relabel import rank_groups
from cocoseg.labels.seams import unique_pairs
from cocoseg.labels.unionfind import DisjointSets


@dataclass(frozen=True)
class LabelGroups:
    """
    What becomes of the pieces.

    Attributes:
        lut (ndarray): uint32 (n + 1,): the final id of each piece, 0 for 0.
        sizes (ndarray): int64 (m + 1,): px of each final id; 0 for id 0.
        n_merged (int): labels that were below the least size and joined another.
    """

    lut: np.ndarray
    sizes: np.ndarray
    n_merged: int


@dataclass(frozen=True)
class PieceTable:
    """
    All pieces of an image, numbered through in the order of the tiles.

    Attributes:
        labels_of (ndarray): int64 (n,): the label of each piece, numbered
            through over all tiles, from 0.
        sizes, first_pixels (ndarray): int64 (n,).
        sums (ndarray | None): float64 (n, B).
        n_labels (int): labels of all tiles.
    """

    labels_of: np.ndarray
    sizes: np.ndarray
    first_pixels: np.ndarray
    sums: np.ndarray | None
    n_labels: int


def group_pieces(table, links, crossings, contacts, *, connected, min_size, max_difference):
    """
    Decide which pieces become one label.

    Args:
        table (PieceTable): the pieces.
        links (ndarray): int64 (k, 2): labels of different tiles that are one object.
        crossings (ndarray): int64 (k, 2): pieces of different tiles that touch.
        contacts (ndarray): int64 (k, 2): pieces of one tile that touch, at
            least those with a small one.
        connected (bool): pieces of linked labels become one only where they touch.
        min_size (int): px; below it, groups join the neighbor that is most
            alike. 0 for none.
        max_difference (float): see :func:`~cocoseg.labels.merge.merge_small_groups`.

    Returns:
        LabelGroups: the same whatever the order of tiles, links and contacts.

    Example:
        >>> from cocoseg.stitch.label_groups import PieceTable, group_pieces
        >>> table = PieceTable(np.array([0, 1, 2]), np.array([4, 4, 2]), np.array([9, 0, 1]),
        ...                    None, 3)
        >>> none = np.empty((0, 2), np.int64)
        >>> groups = group_pieces(table, np.array([[0, 2]]), none, none, connected=False,
        ...                       min_size=0, max_difference=0)
        >>> groups.lut.tolist(), groups.sizes.tolist()
        ([0, 2, 1, 2], [0, 4, 6])
    """
    n = len(table.sizes)
    objects = DisjointSets(table.n_labels)
    objects.join(links[:, 0], links[:, 1])
    object_of = objects.roots[table.labels_of]
    if connected:
        pieces = DisjointSets(n)
        same = crossings[object_of[crossings[:, 0]] == object_of[crossings[:, 1]]]
        pieces.join(same[:, 0], same[:, 1])
        roots = pieces.roots
    else:
        # A label stands for its pieces; any of them may stand for the label.
        stands = np.full(table.n_labels, n, np.int64)
        np.minimum.at(stands, object_of, np.arange(n))
        roots = stands[object_of]
    ranks, n_groups = rank_groups(roots, table.first_pixels)
    n_merged = 0
    if min_size > 1 and n_groups:
        ranks, n_merged = _merge_small(table, ranks - 1, n_groups,
                                       np.concatenate([crossings, contacts]),
                                       min_size, max_difference)
        n_groups -= n_merged
    sizes = np.zeros(n_groups + 1, np.int64)
    np.add.at(sizes, ranks, table.sizes)
    return LabelGroups(np.concatenate([[0], ranks]).astype(np.uint32), sizes, n_merged)


def _merge_small(table, groups, n_groups, contacts, min_size, max_difference):
    """Return the ranks of the pieces after small groups were merged, and the number of merges."""
    sizes = np.zeros(n_groups, np.int64)
    np.add.at(sizes, groups, table.sizes)
    sums = np.zeros((n_groups, table.sums.shape[1]))
    # By first pixel, as the last bit of a sum depends on the order of its terms.
    order = np.argsort(table.first_pixels)
    np.add.at(sums, groups[order], table.sums[order])
    pairs = groups[contacts]
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    is_small = (sizes[pairs] < min_size).any(axis=1)
    pairs = unique_pairs(np.sort(pairs[is_small], axis=1))
    merged, n_merged = merge_small_groups(pairs, sizes, sums, min_size, max_difference)
    # A group is merged into a lower one, so the order by first pixels stays.
    ranks = np.zeros(n_groups, np.int64)
    kept = np.unique(merged)
    ranks[kept] = np.arange(1, len(kept) + 1)
    return ranks[merged[groups]], n_merged
