"""
Which labels of two neighboring blocks are one object.

A linker looks at the labels of two blocks and returns the pairs that belong
together. There are two: where both blocks look at the same pixels the majority
decides (:class:`OverlapLinker`); where cores only touch, the pixels at the
border do (:class:`ContactLinker`).
"""
from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cocoseg.labels.seams import match_labels, unique_pairs
from cocoseg.stitch.label import Seam


@dataclass(frozen=True)
class LabeledBlock:
    """
    A block and its labels.

    Attributes:
        block (Block): where it is.
        labels (ndarray): unsigned, of ``block.read``; 0 is background.
        facts (ndarray): structured, per label, with an entry for 0; see
            :data:`cocoseg.postprocess.label_blocks.FACTS`.
    """

    block: Any
    labels: np.ndarray
    facts: np.ndarray

    def get(self, window):
        """Return the labels of a window of the image that the block reads."""
        return self.labels[window.within(self.block.read).slices]


class Linker(Protocol):
    """
    Tell which labels of two blocks are one object.

    ``directions`` are the neighbors that a block is compared with, as steps in
    the grid. ``link`` returns pairs int64 (k, 2), the first block's label
    first, and how well the blocks agree.
    """

    def directions(self, ndim: int) -> list[tuple[int, ...]]: ...

    def link(self, first: LabeledBlock, second: LabeledBlock,
             direction: tuple[int, ...]) -> tuple[np.ndarray, Seam]: ...


def iter_directions(ndim):
    """
    Return the steps to half of all neighbors, so that each pair comes once.

    Example:
        >>> from cocoseg.postprocess.links import iter_directions
        >>> iter_directions(2)
        [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    return [step for step in itertools.product((-1, 0, 1), repeat=ndim) if step > (0,) * ndim]


@dataclass(frozen=True)
class OverlapLinker:
    """
    Link labels that have more than half of each other where both blocks look.

    Labels that a block sees in its halo only are left out: whether they go on
    is for the blocks to say whose core they are in.

    Example:
        >>> from cocoseg.postprocess.links import OverlapLinker
        >>> OverlapLinker().directions(2)
        [(0, 1), (1, -1), (1, 0), (1, 1)]
    """

    def directions(self, ndim):
        """Return the steps to all neighbors, also those at corners."""
        return iter_directions(ndim)

    def link(self, first, second, direction):
        """Return pairs of labels, and the seam."""
        common = first.block.read.intersect(second.block.read)
        if common.is_empty:
            return np.empty((0, 2), np.int64), Seam(first.block.core, second.block.core, 0, 0, 0)
        ours, theirs = (_as_plane(one.get(common)) for one in (first, second))
        match = match_labels(ours, theirs, len(first.facts) - 1, len(second.facts) - 1)
        is_core = ((first.facts['size'][match.ours] > 0)
                   & (second.facts['size'][match.theirs] > 0))
        pairs = np.stack([match.ours, match.theirs], axis=1)[is_core]
        return pairs, Seam(first.block.core, second.block.core, len(pairs), match.n_common,
                           match.n_labeled)


def _as_plane(labels):
    """Return labels as uint32 with two axes; where pixels are does not matter."""
    return np.ascontiguousarray(labels, np.uint32).reshape(-1, labels.shape[-1])


@dataclass(frozen=True)
class ContactLinker:
    """
    Link labels that touch across the border of two cores and have one value.

    Args:
        reach (int): how many axes neighboring pixels may differ in: 1 is 4- and
            6-connected, 2 is 8- and 18-connected, 3 is 26-connected.

    Example:
        >>> from cocoseg.postprocess.links import ContactLinker
        >>> ContactLinker(1).directions(2), len(ContactLinker(2).directions(3))
        ([(0, 1), (1, 0)], 9)
    """

    reach: int

    def directions(self, ndim):
        """Return the steps to the neighbors that can hold a touching pixel."""
        return [step for step in iter_directions(ndim) if _count_steps(step) <= self.reach]

    def link(self, first, second, direction):
        """Return pairs of labels, and the seam, where nothing can disagree."""
        ours = first.get(first.block.core)[_select_border(direction, 1)]
        theirs = second.get(second.block.core)[_select_border(direction, -1)]
        pairs = []
        for shift in self._iter_shifts(direction):
            a, b = _shift_apart(ours, theirs, shift)
            is_link = (a != 0) & (b != 0)
            a, b = a[is_link].astype(np.int64), b[is_link].astype(np.int64)
            is_same = first.facts['value'][a] == second.facts['value'][b]
            pairs.append(np.stack([a[is_same], b[is_same]], axis=1))
        pairs = unique_pairs(np.concatenate(pairs))
        n_labeled = int(np.count_nonzero(ours) + np.count_nonzero(theirs))
        return pairs, Seam(first.block.core, second.block.core, len(pairs), n_labeled, n_labeled)

    def _iter_shifts(self, direction):
        """Yield how far the other pixel may be off along the border."""
        choices = [(0,) if step else (-1, 0, 1) for step in direction]
        for shift in itertools.product(*choices):
            if _count_steps(direction) + _count_steps(shift) <= self.reach:
                yield shift


def _count_steps(step):
    return sum(map(abs, step))


def _select_border(direction, sign):
    """Return slices of the pixels of a core nearest to the neighbor in a direction."""
    return tuple(slice(None) if not step else slice(-1, None) if step * sign > 0 else slice(0, 1)
                 for step in direction)


def _shift_apart(ours, theirs, shift):
    """Return the parts of two arrays where p of ours lies beside p + shift of theirs."""
    first = tuple(slice(max(-step, 0), size - max(step, 0))
                  for step, size in zip(shift, ours.shape))
    second = tuple(slice(max(step, 0), size - max(-step, 0))
                   for step, size in zip(shift, ours.shape))
    return ours[first], theirs[second]
