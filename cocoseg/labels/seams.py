"""
Seams: what two tiles that look at the same pixels say about each other.

Two labels are one object if most of each is the other, counted where both
tiles look. Most is more than half, so a label has at most one partner, there
are no ties, and the rule is the same from either side.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SeamMatch:
    """
    The labels of two tiles that are one object, and how well the tiles agree.

    Attributes:
        ours (ndarray): int64 (k,), labels of the first tile, ascending.
        theirs (ndarray): int64 (k,), their partners in the second.
        n_common (int): px that both tiles give to partners.
        n_labeled (int): px that either tile gives to any label.
    """

    ours: np.ndarray
    theirs: np.ndarray
    n_common: int
    n_labeled: int

    @property
    def agreement(self):
        """Share of the labeled px that partners share, 0..1; 1 if nothing is labeled."""
        return self.n_common / self.n_labeled if self.n_labeled else 1.0


def match_labels(ours, theirs, n_ours, n_theirs):
    """
    Find the labels of two tiles that are one object.

    Args:
        ours, theirs (ndarray): uint32 (h, w), the same pixels as two tiles see
            them; 0 is for nothing. Never modified.
        n_ours, n_theirs (int): the largest labels that may occur.

    Returns:
        SeamMatch: symmetric: the other way round, the pairs are swapped.

    Example:
        >>> from cocoseg.labels.seams import match_labels
        >>> ours = np.array([[1, 1, 1, 2, 2, 0]], np.uint32)
        >>> theirs = np.array([[3, 3, 1, 1, 2, 2]], np.uint32)
        >>> match = match_labels(ours, theirs, 2, 3)
        >>> match.ours.tolist(), match.theirs.tolist(), round(match.agreement, 2)
        ([1], [3], 0.33)
    """
    ours, partners, common, is_most, n_labeled = _vote(ours, theirs, n_ours)
    theirs, back, _, is_most_back, _ = _vote(theirs, ours, n_theirs)
    labels = np.flatnonzero(is_most)
    mutual = is_most_back[partners[labels]] & (back[partners[labels]] == labels)
    found = labels[mutual]
    return SeamMatch(found.astype(np.int64), partners[found].astype(np.int64),
                     int(common[found].sum()), int(n_labeled))


def _vote(ours, theirs, n_ours):
    """Return, per label of ours, whom most of its pixels are for, and whether they are most."""
    from cocoseg.labels.kernels import _kernel_count_common, _kernel_vote
    ours, theirs = np.ascontiguousarray(ours), np.ascontiguousarray(theirs)
    partners = np.zeros(n_ours + 1, np.uint32)
    votes, sizes, common = (np.zeros(n_ours + 1, np.int64) for _ in range(3))
    _kernel_vote(ours, theirs, partners, votes, sizes)
    n_labeled = _kernel_count_common(ours, theirs, partners, common)
    is_most = 2 * common > sizes
    # Nothing is no object, on either side.
    is_most[0] = False
    is_most &= partners != 0
    return ours, partners, common, is_most, n_labeled


def list_contacts(pieces, connectivity=4, eligible=None):
    """
    List the pieces that touch each other.

    Args:
        pieces (ndarray): uint32 (h, w), 0 is for none.
        connectivity (int): 4: at edges; 8: also at corners.
        eligible (ndarray | None): bool, per piece, an entry for 0 first: only
            pairs with at least one eligible piece.

    Returns:
        ndarray: int64 (k, 2), distinct pairs, the lower piece first, sorted.

    Example:
        >>> from cocoseg.labels.seams import list_contacts
        >>> pieces = np.array([[1, 1, 2], [3, 0, 2]], np.uint32)
        >>> list_contacts(pieces).tolist(), list_contacts(pieces, 8)[-1].tolist()
        ([[1, 2], [1, 3]], [1, 3])
    """
    from cocoseg.labels.kernels import _kernel_list_contacts
    pieces = np.ascontiguousarray(pieces)
    use_eligible = eligible is not None
    eligible = np.zeros(1, bool) if eligible is None else np.ascontiguousarray(eligible, bool)
    out = np.empty((max(pieces.size // 8, 64), 2), np.int64)
    while True:
        n = _kernel_list_contacts(pieces, eligible, use_eligible, connectivity == 4, out)
        if n <= len(out):
            break
        out = np.empty((n, 2), np.int64)
    return unique_pairs(out[:n])


def unique_pairs(pairs):
    """
    Return distinct pairs of numbers below 2^32, sorted.

    Args:
        pairs (ndarray): int64 (k, 2).

    Example:
        >>> from cocoseg.labels.seams import unique_pairs
        >>> unique_pairs(np.array([[2, 3], [1, 9], [2, 3]])).tolist()
        [[1, 9], [2, 3]]
    """
    keys = np.unique((pairs[:, 0].astype(np.uint64) << np.uint64(32))
                     | pairs[:, 1].astype(np.uint64))
    return np.stack([keys >> np.uint64(32), keys & np.uint64(0xffffffff)], axis=1).astype(np.int64)
