"""
How well labels agree with the truth: objects found, splits, merges, pairs of pixels.

All scores come from one table of overlaps: how many pixels each object of the
truth has in common with each label. Tables of the blocks of an image add up,
so that neither image need be in memory at once.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cocoseg.errors import OptionError
from cocoseg.labels.relabel import densify

# Pixels whose pairs of ids are sorted at a time: few enough for the caches of a CPU.
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class OverlapTable:
    """
    Pixels in common, for each pair of ids that has any.

    Make it with :func:`count_overlaps`. ``a + b`` is the table of two blocks of
    one image, :meth:`of_images` that of several images.

    Attributes:
        ids_truth (ndarray): uint64 (n,), ascending; 0 for background.
        ids_labels (ndarray): uint64 (n,), ascending for each id of the truth.
        counts (ndarray): int64 (n,), px, at least 1.

    Example:
        >>> from cocoseg.postprocess.scores import count_overlaps
        >>> left = count_overlaps(np.array([[0, 1]]), np.array([[0, 7]]))
        >>> right = count_overlaps(np.array([[1, 1]]), np.array([[7, 8]]))
        >>> table = left + right
        >>> table.ids_truth.tolist(), table.ids_labels.tolist(), table.counts.tolist()
        ([0, 1, 1], [0, 7, 8], [1, 2, 1])
    """

    ids_truth: np.ndarray
    ids_labels: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls) -> OverlapTable:
        """Return the table of no pixels, to add others to."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))

    @classmethod
    def of_images(cls, tables: Iterable[OverlapTable]) -> OverlapTable:
        """
        Return one table for several images, in each of which ids have a meaning of their own.

        The ids are replaced by others; 0 remains background.

        Args:
            tables (Iterable[OverlapTable]): one per image.

        Example:
            >>> from cocoseg.postprocess.scores import OverlapTable, count_overlaps
            >>> one = count_overlaps(np.array([[0, 9]]), np.array([[0, 4]]))
            >>> both = OverlapTable.of_images([one, one])
            >>> both.ids_truth.tolist(), both.ids_labels.tolist(), both.counts.tolist()
            ([0, 1, 2], [0, 1, 2], [2, 1, 1])
        """
        total, n_truth, n_labels = cls.empty(), 0, 0
        parts = []
        for table in tables:
            truth, n_truth = _shift_ids(table.ids_truth, n_truth)
            labels, n_labels = _shift_ids(table.ids_labels, n_labels)
            parts.append(cls(truth, labels, table.counts))
        return total._add(*parts)

    @property
    def n_pixels(self) -> int:
        """Pixels that were counted."""
        return int(self.counts.sum())

    def __add__(self, other: OverlapTable) -> OverlapTable:
        if not isinstance(other, OverlapTable):
            return NotImplemented
        return self._add(other)

    def _add(self, *others):
        columns = [np.concatenate([getattr(table, name) for table in (self, *others)])
                   for name in ('ids_truth', 'ids_labels', 'counts')]
        return OverlapTable(*_sum_pairs(*columns))


@dataclass(frozen=True)
class LabelScores:
    """
    What :func:`score_labels` finds.

    Attributes:
        n_truth, n_labels (int): objects of each side.
        n_matched (int): pairs of them whose IoU is at least the limit.
        precision (float): share of the labels that are matched; 1 if there are
            none.
        recall (float): share of the true objects that are matched; 1 if there
            are none.
        f1 (float): 2 n_matched / (n_truth + n_labels); 1 if both have none.
        mean_iou (float): of the matched pairs, 0 without any; 1 if both sides
            have no objects.
        vi_split (float): bits that tell which label a pixel of a known true
            object has; 0 if no object is split.
        vi_merge (float): bits that tell which true object a pixel of a known
            label has; 0 if none are merged.
        rand_precision (float): of the pairs of pixels that one label has, the
            share that is in one true object; low where objects are merged.
        rand_recall (float): of the pairs of pixels in one true object, the
            share that one label has; low where objects are split.
        rand_error (float): adapted Rand error: 1 minus the harmonic mean of
            the two.

    Example:
        >>> from cocoseg import score_labels
        >>> scores = score_labels(np.array([[1, 1, 2, 2]]), np.array([[7, 7, 7, 7]]))
        >>> scores.n_matched, scores.vi_split, scores.vi_merge
        (1, 0.0, 1.0)
    """

    n_truth: int
    n_labels: int
    n_matched: int
    precision: float
    recall: float
    f1: float
    mean_iou: float
    vi_split: float
    vi_merge: float
    rand_precision: float
    rand_recall: float
    rand_error: float

    @property
    def vi(self) -> float:
        """Variation of information, bits: what is split and what is merged."""
        return self.vi_split + self.vi_merge

    @property
    def panoptic_quality(self) -> float:
        """F1 times the mean IoU of the matched [PQ]_."""
        return self.f1 * self.mean_iou

    def as_dict(self) -> dict[str, float]:
        """Return all scores by name, with ``vi`` and ``panoptic_quality``."""
        return {**dataclasses.asdict(self), 'vi': self.vi,
                'panoptic_quality': self.panoptic_quality}


def count_overlaps(truth, labels):
    """
    Count the pixels that each object of the truth has in common with each label.

    Args:
        truth, labels (array_like): whole numbers of at least 0, of one shape
            with any number of axes; 0 is background. Either may have a last
            axis of one channel more. Never modified.

    Returns:
        OverlapTable: of all pixels, also those of background.

    Raises:
        OptionError: for other shapes or numbers.

    Note:
        Runs of pixels are sorted, not pixels: labels of large objects take
        much less time than noise.

    Example:
        >>> from cocoseg.postprocess.scores import count_overlaps
        >>> table = count_overlaps(np.array([[0, 1, 1]]), np.array([[5, 5, 9]]))
        >>> table.ids_truth.tolist(), table.ids_labels.tolist(), table.counts.tolist()
        ([0, 1, 1], [5, 5, 9], [1, 1, 1])
    """
    truth, labels = _as_ids(truth, 'truth'), _as_ids(labels, 'labels')
    short, long = sorted((truth.shape, labels.shape), key=len)
    if long not in (short, (*short, 1)):
        raise OptionError(f'truth has shape {truth.shape} and labels have {labels.shape}; give '
                          'labels of the same pixels')
    truth, labels = truth.reshape(-1), labels.reshape(-1)
    parts = [slice(start, start + _CHUNK) for start in range(0, len(truth), _CHUNK)]
    tables = [_count_part(truth[part], labels[part]) for part in parts]
    return OverlapTable.empty()._add(*tables)


def score_labels(truth: ArrayLike, labels: ArrayLike, *, matching_iou: float = 0.5,
                 ignore_background: bool = True) -> LabelScores:
    """
    Compare labels with the truth.

    Args:
        truth, labels (array_like): whole numbers of at least 0, of one shape,
            2-D or 3-D; 0 is background. Which ids they have does not matter.
        matching_iou (float): an object is found if the intersection with a
            label is at least this share of their union; 0.5 to 1, so that a
            label cannot find two objects [PQ]_.
        ignore_background (bool): leave pixels where truth is 0 out of the
            variation of information and the Rand scores, as is usual where
            only objects were annotated [ARE]_. Matches always count them.

    Returns:
        LabelScores: see there for each.

    Raises:
        OptionError: for labels of another shape or kind, or a
            ``matching_iou`` outside of 0.5 to 1.

    Note:
        In the variation of information and the Rand scores, pixels of true
        objects that no label has count as one label more. Where no pixel
        counts, as if all were right.

    References:
        .. [PQ] Kirillov et al., Panoptic Segmentation, 2019.
           <https://arxiv.org/abs/1801.00868>
        .. [VI] Meila, Comparing clusterings, 2007.
           <https://doi.org/10.1016/j.jmva.2006.11.013>
        .. [ARE] Arganda-Carreras et al., Crowdsourcing the creation of image
           segmentation algorithms for connectomics, 2015.
           <https://doi.org/10.3389/fnana.2015.00142>

    Example:
        >>> from cocoseg.postprocess.scores import score_labels
        >>> truth = np.array([[1, 1, 1, 1, 0, 2, 2]])
        >>> labels = np.array([[4, 4, 4, 9, 0, 9, 9]])
        >>> scores = score_labels(truth, labels)
        >>> scores.n_matched, scores.f1, round(scores.mean_iou, 4)
        (2, 1.0, 0.7083)
        >>> round(scores.vi_split, 4), round(scores.vi_merge, 4)
        (0.5409, 0.4591)
    """
    check_matching_iou(matching_iou)
    return score_overlaps(count_overlaps(truth, labels), matching_iou=matching_iou,
                          ignore_background=ignore_background)


def score_overlaps(table, *, matching_iou=0.5, ignore_background=True):
    """
    Compare labels with the truth by their table of overlaps.

    Args:
        table (OverlapTable): of an image, or the sum of its blocks, or of
            several images.
        matching_iou, ignore_background: as for :func:`score_labels`.

    Returns:
        LabelScores: the same as for whole images.

    Raises:
        OptionError: for a ``matching_iou`` outside of 0.5 to 1.

    Example:
        >>> from cocoseg.postprocess.scores import count_overlaps, score_overlaps
        >>> truth, labels = np.array([[1, 1, 2, 2]]), np.array([[3, 3, 3, 3]])
        >>> blocks = [count_overlaps(truth[:, part], labels[:, part])
        ...           for part in (slice(0, 1), slice(1, 4))]
        >>> scores = score_overlaps(blocks[0] + blocks[1])
        >>> scores.vi_split, scores.vi_merge, scores.recall
        (0.0, 1.0, 0.5)
    """
    check_matching_iou(matching_iou)
    matches = _match_objects(table, matching_iou)
    is_counted = table.ids_truth > 0 if ignore_background else np.ones(len(table.counts), bool)
    pairs = table.counts[is_counted]
    by_truth = _sum_by_id(table.ids_truth[is_counted], pairs)
    by_labels = _sum_by_id(table.ids_labels[is_counted], pairs)
    return LabelScores(**matches, **_score_information(pairs, by_truth, by_labels),
                       **_score_rand(pairs, by_truth, by_labels))


def agree_objects(labels: ArrayLike, reference: ArrayLike) -> float:
    """
    Return the share of objects of a reference that labels have, too.

    Pixel by pixel; their ids may differ.

    Args:
        labels, reference (array_like): as for :func:`count_overlaps`.

    Returns:
        float: 0..1; 1 if the reference has no objects.

    Raises:
        OptionError: for other shapes or numbers.

    Example:
        >>> from cocoseg.postprocess.scores import agree_objects
        >>> agree_objects(np.array([[5, 5, 0, 7]]), np.array([[1, 1, 2, 2]]))
        0.5
    """
    return agree_overlaps(count_overlaps(reference, labels))


def agree_overlaps(table):
    """
    Return :func:`agree_objects` of a table whose truth is the reference.

    Args:
        table (OverlapTable): of an image, or the sum of its blocks.

    Returns:
        float: 0..1.

    Example:
        >>> from cocoseg.postprocess.scores import agree_overlaps, count_overlaps
        >>> agree_overlaps(count_overlaps(np.array([[1, 0, 2]]), np.array([[3, 3, 2]])))
        0.5
    """
    counts, truth_areas, label_areas, n_truth, _ = _list_pairs(table)
    n_same = np.count_nonzero((counts == truth_areas) & (counts == label_areas))
    return float(n_same / n_truth) if n_truth else 1.0


def check_matching_iou(matching_iou):
    """
    Raise OptionError unless matches by this IoU are unique.

    Example:
        >>> from cocoseg.postprocess.scores import check_matching_iou
        >>> check_matching_iou(0.75)
    """
    is_number = isinstance(matching_iou, (int, float)) or hasattr(matching_iou, 'dtype')
    if not is_number or not 0.5 <= matching_iou <= 1:
        raise OptionError(f'matching_iou={matching_iou!r} must be 0.5 to 1; below, a label could '
                          'match several objects')


def _as_ids(labels, what):
    labels = np.asarray(labels)
    if labels.dtype.kind not in 'iu' or labels.ndim == 0:
        raise OptionError(f'{what} have shape {labels.shape} and dtype {labels.dtype}; give an '
                          'array of whole numbers, 0 where there is nothing')
    if labels.dtype.kind == 'i' and labels.size and labels.min() < 0:
        raise OptionError(f'{what} hold {labels.min()}; ids begin at 1, and 0 is for nothing')
    return labels


def _count_part(truth, labels):
    """Return the table of two flat arrays that are not empty."""
    is_new = np.empty(len(truth), bool)
    is_new[0] = True
    np.not_equal(truth[1:], truth[:-1], out=is_new[1:])
    is_new[1:] |= labels[1:] != labels[:-1]
    starts = np.flatnonzero(is_new)
    lengths = np.diff(starts, append=len(truth))
    return OverlapTable(*_sum_pairs(truth[starts].astype(np.uint64),
                                    labels[starts].astype(np.uint64), lengths))


def _sum_pairs(ids_truth, ids_labels, counts):
    """Return pairs of ids in ascending order, each once, with the sums of their counts."""
    if not len(counts):
        return ids_truth, ids_labels, counts
    order = _sort_pairs(ids_truth, ids_labels)
    ids_truth, ids_labels = ids_truth[order], ids_labels[order]
    is_new = np.append(True, (np.diff(ids_truth) != 0) | (np.diff(ids_labels) != 0))
    starts = np.flatnonzero(is_new)
    return ids_truth[starts], ids_labels[starts], np.add.reduceat(counts[order], starts)


def _sort_pairs(ids_truth, ids_labels):
    if max(ids_truth.max(), ids_labels.max()) < 2 ** 32:
        # One key of both sorts much faster.
        return np.argsort((ids_truth << np.uint64(32)) | ids_labels)
    return np.lexsort((ids_labels, ids_truth))


def _shift_ids(ids, n_before):
    """Return ids 1..n instead, moved by those of the images before, and how many there are."""
    dense, present = densify(ids)
    shifted = np.where(ids > 0, dense.astype(np.uint64) + np.uint64(n_before), np.uint64(0))
    return shifted, n_before + len(present)


def _sum_by_id(ids, counts):
    """Return the sums of counts of each id that is there, in the order of the ids."""
    return _sum_pairs(np.zeros_like(ids), ids, counts)[2]


def _list_pairs(table):
    """
    Return the pairs of objects that have pixels in common.

    Returns (counts, areas of the true one, areas of the label, each (n,) in px;
    numbers of objects in the truth and in the labels).
    """
    areas, n_objects = [], []
    for ids in (table.ids_truth, table.ids_labels):
        present, places = np.unique(ids, return_inverse=True)
        sums = np.zeros(len(present), np.int64)
        np.add.at(sums, places, table.counts)
        areas.append(sums[places])
        n_objects.append(int(np.count_nonzero(present)))
    is_pair = (table.ids_truth > 0) & (table.ids_labels > 0)
    return table.counts[is_pair], areas[0][is_pair], areas[1][is_pair], *n_objects


def _match_objects(table, matching_iou):
    """Return the scores of matched objects by name."""
    counts, truth_areas, label_areas, n_truth, n_labels = _list_pairs(table)
    ious = counts / (truth_areas + label_areas - counts)
    is_match = ious >= matching_iou
    # An IoU of one half is the only one that two labels can have with one object,
    # or two objects with one label. Each such half holds, or is, the other side.
    ids_truth, ids_labels = _pair_ids(table)
    for ids in (ids_truth, ids_labels):
        is_match &= _is_first(ids, is_match)
    n_matched, n_objects = int(is_match.sum()), n_truth + n_labels
    return {
        'n_truth': n_truth, 'n_labels': n_labels, 'n_matched': n_matched,
        'precision': n_matched / n_labels if n_labels else 1.0,
        'recall': n_matched / n_truth if n_truth else 1.0,
        'f1': 2 * n_matched / n_objects if n_objects else 1.0,
        'mean_iou': math.fsum(ious[is_match]) / n_matched if n_matched else float(n_objects == 0),
    }


def _pair_ids(table):
    is_pair = (table.ids_truth > 0) & (table.ids_labels > 0)
    return table.ids_truth[is_pair], table.ids_labels[is_pair]


def _is_first(ids, is_wanted):
    """Return where an id occurs first among those that are wanted."""
    places = np.flatnonzero(is_wanted)
    _, firsts = np.unique(ids[places], return_index=True)
    is_first = np.zeros(len(ids), bool)
    is_first[places[firsts]] = True
    return is_first


def _score_information(pairs, by_truth, by_labels):
    """Return conditional entropies, bits, from numbers of pixels."""
    def measure(counts):
        # An exact sum: it does not depend on which ids the objects have.
        shares = counts / max(pairs.sum(), 1)
        return -math.fsum(shares * np.log2(shares))
    joint = measure(pairs)
    # Rounding may leave a little below 0.
    return {'vi_split': max(joint - measure(by_truth), 0.0),
            'vi_merge': max(joint - measure(by_labels), 0.0)}


def _score_rand(pairs, by_truth, by_labels):
    """Return the scores of pairs of pixels, from numbers of pixels."""
    def count_pairs(counts):
        # As floats, for squares that 64 bits cannot hold.
        return math.fsum(counts * (counts - 1.0))
    both, in_truth, in_labels = map(count_pairs, (pairs, by_truth, by_labels))
    total = in_truth + in_labels
    return {'rand_precision': both / in_labels if in_labels else 1.0,
            'rand_recall': both / in_truth if in_truth else 1.0,
            'rand_error': 1 - 2 * both / total if total else 0.0}
