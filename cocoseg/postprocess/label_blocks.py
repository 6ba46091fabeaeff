"""
Label a raster or a volume of any size: block by block, then joined.

Each block is labeled by itself and its labels kept in a folder. Then
neighboring blocks are compared, all labels that are one object are joined,
and each block is written with the ids that its labels have in the end. What
is held in memory are a few blocks, and some bytes per label.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from cocoseg.engine.blockmap import run_blocks
from cocoseg.errors import WindowShapeError
from cocoseg.labels.relabel import rank_groups
from cocoseg.labels.unionfind import DisjointSets
from cocoseg.postprocess.links import LabeledBlock

# Per label of a block, counted in its core: px; the flat index of the first of
# them in the image, -1 without any; the sum of values, and of how many px; and
# the value that pixels of one component share.
FACTS = np.dtype([('size', 'i8'), ('first', 'i8'), ('sum', 'f8'), ('n_values', 'i8'),
                  ('value', 'i8')])


@dataclass(frozen=True)
class Labeled:
    """
    What a labeler finds in one block.

    Attributes:
        labels (ndarray): uint32 of the shape of what the block reads; 1..n, 0
            for background.
        n (int): the highest label.
        pixel_values (ndarray | None): float32 of the same shape; the mean over
            an object is its score.
        label_values (ndarray | None): int64 (n + 1,); only labels with equal ones
            are joined by contact.
    """

    labels: np.ndarray
    n: int
    pixel_values: np.ndarray | None = None
    label_values: np.ndarray | None = None


@dataclass(frozen=True)
class LabelPlan:
    """
    What is to be labeled and how blocks are joined.

    Attributes:
        grid (BlockGrid): the blocks.
        label (Callable[[Block], Labeled]): labels one block; called by workers.
        linker (Linker): compares two blocks.
        keep (Callable[[ndarray, ndarray], ndarray] | None): called with sizes,
            int64 (n,), and mean values, float64 (n,), of all objects; returns
            which stay, bool (n,). None keeps all.
        name (str): for messages.
    """

    grid: Any
    label: Callable
    linker: Any
    keep: Callable | None = None
    name: str = 'labels'


@dataclass(frozen=True)
class LabelTable:
    """
    The objects of all blocks.

    Attributes:
        n_labels (int): ids are 1..n_labels, by first pixel.
        sizes (ndarray): int64 (n_labels + 1,), px by id; 0 for id 0.
        scores (ndarray): float64 (n_labels + 1,), mean value by id; NaN where
            there are no values.
        seams (list[Seam]): how well blocks agree.
    """

    n_labels: int
    sizes: np.ndarray
    scores: np.ndarray
    seams: list


def find_labels(plan, store, run, timings):
    """
    Label all blocks into a store, and join them.

    Args:
        plan (LabelPlan): what to do.
        store (BlockStore): gets ``labels`` and ``facts`` of each block, and
            in the end ``ids``, which its labels are called.
        run (BlockRun): how blocks are run.
        timings (Timings): gets the seconds of the stages.

    Returns:
        LabelTable: what the labels of the blocks are in the end.

    Raises:
        TaskError: if a block fails; from its error, with the block.
        LabelOverflowError: if ids do not fit in 32 bits.
    """
    for _ in run_blocks(_LabelWork(plan), plan.grid, run, name=f'label {plan.name}',
                        store=store, timings=timings):
        pass
    with timings.interval('joining'):
        offsets, facts = _gather_facts(plan.grid, store.files)
    pairs, seams = _link_blocks(plan, store.files, offsets, run, timings)
    with timings.interval('joining'):
        table, ids = _join(plan, facts, pairs, seams)
        bounds = [*offsets.values(), len(facts)]
        for index, first, stop in zip(offsets, bounds, bounds[1:]):
            lut = np.concatenate([[0], ids[first:stop]]).astype(np.uint32)
            store.files.save(index, {'ids': lut})
    return table


def write_labels(plan, store, sink, run, timings):
    """
    Write all blocks with their final ids.

    Args:
        plan, store, run, timings: as for :func:`find_labels`, which is done.
        sink (BlockSink): gets uint32 blocks with a last axis of extent 1.
    """
    work = _RelabelWork(store.files)
    # Looking up ids takes less than sending them.
    for outcome in run_blocks(work, plan.grid, run.stay_here(), name=f'write {plan.name}',
                              timings=timings):
        with timings.interval('writing'):
            sink.write_block(outcome.block.core, outcome.result[..., None])


@dataclass(frozen=True)
class _RelabelWork:
    """Give the labels of one core their final ids."""

    files: Any

    def __call__(self, block, timings):
        with timings.interval('relabeling'):
            labels = self.files.load(block.index, 'labels')
            return relabel(labels[block.core.within(block.read).slices],
                           self.files.load(block.index, 'ids'))


def relabel(labels, lut):
    """
    Return the entries of a table for labels.

    Args:
        labels (ndarray): unsigned, two or three axes, each below len(lut).
        lut (ndarray): uint32 (n,).

    Returns:
        ndarray: uint32, the shape of ``labels``.

    Example:
        >>> from cocoseg.postprocess.label_blocks import relabel
        >>> relabel(np.array([[0, 2]], np.uint16), np.array([0, 9, 4], np.uint32)).tolist()
        [[0, 4]]
    """
    from cocoseg.postprocess.label_kernels import _kernel_relabel
    out = np.empty(labels.shape, np.uint32)
    _kernel_relabel(_as_volume(labels), lut, _as_volume(out))
    return out


@dataclass(frozen=True)
class _LabelWork:
    """Label one block and measure its labels."""

    plan: LabelPlan

    def __call__(self, block, timings):
        found = self.plan.label(block, timings)
        if found.labels.shape != block.read.shape:
            raise WindowShapeError(f'labels of {block.read} have shape {found.labels.shape}')
        with timings.interval('measuring'):
            core = block.core.within(block.read).slices
            values = None if found.pixel_values is None else found.pixel_values[core]
            facts = measure_labels(found.labels[core], found.n, block.core, self.plan.grid.shape,
                                   values)
            if found.label_values is not None:
                facts['value'] = found.label_values
        # Half of the bytes in nearly all cases.
        dtype = np.uint16 if found.n < 1 << 16 else np.uint32
        return {'labels': found.labels.astype(dtype), 'facts': facts}


def measure_labels(labels, n, core, shape, values=None):
    """
    Return facts of the labels of a core.

    Args:
        labels (ndarray): unsigned, of the shape of ``core``.
        n (int): the highest label.
        core (Window | Box): where it is in the image.
        shape (tuple[int, ...]): of the image.
        values (ndarray | None): float32 of the same shape, to add up.

    Returns:
        ndarray: :data:`FACTS` (n + 1,).

    Example:
        >>> from cocoseg import Window
        >>> labels = np.array([[0, 2], [2, 1]], np.uint32)
        >>> facts = measure_labels(labels, 2, Window(4, 1, 6, 3), (10, 10))
        >>> facts['size'].tolist(), facts['first'].tolist()
        ([0, 1, 2], [-1, 52, 42])
    """
    from cocoseg.postprocess.label_kernels import _kernel_measure
    facts = np.zeros(n + 1, FACTS)
    sizes, n_values = np.zeros((2, n + 1), np.int64)
    firsts, sums = np.full(n + 1, -1), np.zeros(n + 1)
    missing = 3 - len(shape)
    origin = np.array((0,) * missing + tuple(part.start for part in core.slices), np.int64)
    extent = np.array((1,) * missing + tuple(shape), np.int64)
    has_values = values is not None
    values = np.zeros((1, 1, 1), np.float32) if values is None else _as_volume(values)
    _kernel_measure(_as_volume(labels), values, has_values, origin, extent, sizes, firsts, sums,
                    n_values)
    facts['size'], facts['first'], facts['sum'] = sizes, firsts, sums
    facts['n_values'] = n_values
    facts['value'] = 1
    # Background is no object.
    facts[0] = (0, -1, 0, 0, 0)
    return facts


def _as_volume(array):
    """Return an array with a first axis of extent 1 if it has two."""
    return array[None] if array.ndim == 2 else array


def _gather_facts(grid, files):
    """Return where the labels of each block begin among all, and the facts of all."""
    offsets, facts, total = {}, [], 0
    for block in grid:
        offsets[block.index] = total
        facts.append(np.array(files.load(block.index, 'facts'))[1:])
        total += len(facts[-1])
    return offsets, np.concatenate(facts)


def _link_blocks(plan, files, offsets, run, timings):
    """Return pairs of labels, numbered among all, and the seams, in the order of blocks."""
    work = _LinkWork(plan.grid, plan.linker, files)
    by_block = {outcome.block.index: outcome.result for outcome in
                run_blocks(work, plan.grid, run, name=f'join {plan.name}', timings=timings)}
    all_pairs, seams = [np.empty((0, 2), np.int64)], []
    for block in plan.grid:
        for index, pairs, seam in by_block[block.index]:
            all_pairs.append(pairs - 1 + np.array([offsets[block.index], offsets[index]]))
            seams.append(seam)
    return np.concatenate(all_pairs), seams


@dataclass(frozen=True)
class _LinkWork:
    """Compare one block with those of its neighbors that come after it."""

    grid: Any
    linker: Any
    files: Any

    def __call__(self, block, timings):
        with timings.interval('linking'):
            first, found = _load(self.files, block), []
            for direction in self.linker.directions(len(self.grid.grid_shape)):
                index = tuple(map(sum, zip(block.index, direction)))
                if all(0 <= place < n for place, n in zip(index, self.grid.grid_shape)):
                    second = _load(self.files, self.grid.get(index))
                    found.append((index, *self.linker.link(first, second, direction)))
        return found


def _load(files, block):
    return LabeledBlock(block, files.load(block.index, 'labels'), files.load(block.index, 'facts'))


def _join(plan, facts, pairs, seams):
    """Return the objects that the labels of all blocks form, and the id of each label."""
    sets = DisjointSets(len(facts))
    sets.join(pairs[:, 0], pairs[:, 1])
    roots = sets.roots
    sizes, n_values, sums = (np.bincount(roots, facts[name], minlength=len(facts))
                             for name in ('size', 'n_values', 'sum'))
    sizes = sizes.astype(np.int64)
    with np.errstate(invalid='ignore'):
        means = sums / n_values
    firsts = facts['first']
    if plan.keep is not None:
        is_kept = np.zeros(len(facts), bool)
        # Labels that no core has are no objects.
        exist = np.flatnonzero(sizes)
        is_kept[exist] = plan.keep(sizes[exist], means[exist])
        firsts = np.where(is_kept[roots], firsts, -1)
    ids, n_labels = rank_groups(roots, firsts)
    final_sizes, scores = np.zeros(n_labels + 1, np.int64), np.full(n_labels + 1, math.nan)
    final_sizes[ids], scores[ids] = sizes[roots], means[roots]
    final_sizes[0], scores[0] = 0, math.nan
    return LabelTable(n_labels, final_sizes, scores, seams), ids
