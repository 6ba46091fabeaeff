"""
The mutex watershed: instances from affinities of pixels, without seeds.

Of all edges, from the heaviest to the lightest, attractive ones join the sets of
their ends unless these exclude each other, and repulsive ones make them exclude each
other. Here the sets that are certain are joined first, in the order of memory, and
what remains is sorted in bands; the result is that of the plain algorithm, see
``docs/explanation/mutex_watershed.rst``. Works on arrays; knows no blocks or files.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.postprocess.parameters import as_offsets

# Nodes and links have 31 bits in the kernels.
MAX_PIXELS = MAX_LINKS = 2 ** 31 - 1
# Joining certain sets goes on while it leaves at most this share of them.
_WORTHWHILE = 2 / 3
# So many edges are sorted at once, of more the heaviest part.
_LEAST_BAND = 1 << 18
_BAND_SHARE = 1 / 3
_LEAST_TABLE = 1 << 10


def mutex_watershed(affinities: np.ndarray, offsets: Sequence[Sequence[int]], bias: float = 0.5, *,
                    mask: np.ndarray | None = None) -> np.ndarray:
    """
    Segment an image or a volume by the mutex watershed of affinities.

    Channel i at pixel p tells whether p and p + offset i are one object: what
    is above ``bias`` attracts, what is not repels, the heavier the further
    away [Wolf]_. Heavier edges are decided before lighter ones, equal ones in
    the order of the channels, then of the pixels p, row by row. The weight
    is the float32 difference of affinity and bias.

    An edge that leaves the array or the mask, or is NaN, does not exist; those
    that are infinite are the heaviest. A pixel without any attractive edge is
    background.

    Args:
        affinities (ndarray): float16, float32 or float64, channels first:
            shape (C, h, w) or (C, d, h, w). Never modified.
        offsets (Sequence[Sequence[int]]): C different vectors (y, x) or
            (z, y, x), px, of any sign and length.
        bias (float): where attraction begins, in the units of affinities.
        mask (ndarray | None): bool, shape (h, w) or (d, h, w), True where
            pixels take part; elsewhere is background. None: all do.

    Returns:
        ndarray: uint32, shape (h, w) or (d, h, w): labels 1..n in the order of
        their first pixels, row by row, and 0 for background.

    Raises:
        OptionError: for affinities that are no floats, have another number of
            channels or axes than the offsets, or no pixels; for offsets, a
            bias or a mask that do not fit.
        LabelOverflowError: for more than 2^31 - 1 px, or mutexes.

    Note:
        O(E log E) for E edges, about C per pixel; one core, without the GIL, so
        that threads may each segment an array. Memory: up to 20 bytes per edge
        and 50 per pixel, and a float32 copy of affinities that are anything
        else, or not contiguous.

    References:
        .. [Wolf] Wolf et al., The Mutex Watershed and its Objective: Efficient,
           Parameter-Free Graph Partitioning, 2021.
           <https://arxiv.org/abs/1904.12654>

    Example:
        >>> from cocoseg.postprocess.mutex import mutex_watershed
        >>> offsets = [(0, 1), (0, 2)]
        >>> to_next = [[0.9, 0.8, 0.7, 0.1, 0.1, 0.0]]
        >>> to_second = [[0.6, 0.05, 0.4, 0.4, 0.0, 0.0]]
        >>> mutex_watershed(np.array([to_next, to_second]), offsets).tolist()
        [[1, 1, 1, 2, 0, 0]]
    """
    affinities, offsets, bias = _check_affinities(affinities, offsets, bias)
    shape = affinities.shape[1:]
    valid = _check_mask(mask, shape)
    edges, attracted = _list_edges(affinities, offsets, bias, valid)
    edges, sets, n_sets = _contract(edges, len(attracted))
    partition = _Partition(n_sets)
    for band in _iter_bands(edges, partition):
        partition.run(band)
    return partition.number(sets, attracted).reshape(shape)


class _Edges(NamedTuple):
    """Edges as the kernels take them, which see each array by itself."""

    ranks: np.ndarray
    heads: np.ndarray
    tails: np.ndarray

    @classmethod
    def empty(cls, n_edges):
        return cls(np.empty(n_edges, np.uint32), np.empty(n_edges, np.int32),
                   np.empty(n_edges, np.int32))

    def first(self, n_edges):
        return _Edges(*(values[:n_edges] for values in self))

    def __len__(self):
        return len(self.ranks)


class _Partition:
    """
    Sets of nodes, and which of them exclude each other.

    Owns the forest and the mutexes of ``mutex_kernels``, and makes room for them.
    """

    def __init__(self, n_nodes):
        self.nodes = np.empty((n_nodes, 3), np.int32)
        self.nodes[:] = (0, -1, 0)
        self.nodes[:, 0] = np.arange(n_nodes, dtype=np.int32)
        self.table = np.zeros(_round_up(max(n_nodes, _LEAST_TABLE)), np.uint64)
        self.links = np.empty((max(n_nodes, _LEAST_TABLE), 2), np.int32)
        self._state = np.zeros(4, np.int64)

    def run(self, edges):
        """Treat sorted edges, all lighter than those before."""
        from cocoseg.postprocess import mutex_kernels as kernels
        done = 0
        while True:
            done = kernels._kernel_run(*edges, done, self.nodes, self.links, self.table,
                                       self._state)
            if done == len(edges):
                break
            self._make_room()
        kernels._kernel_flatten(self.nodes)

    def _make_room(self):
        """Double the links if they are used up, else renew the table without stale pairs."""
        from cocoseg.postprocess import mutex_kernels as kernels
        n_links, n_wanted = int(self._state[1]), int(self._state[2])
        if n_links + 2 > len(self.links):
            if n_links + 2 > MAX_LINKS:
                raise LabelOverflowError(f'there are more than {MAX_LINKS // 2} mutexes between '
                                         'sets of pixels; segment the image block by block')
            links = np.empty((min(2 * len(self.links), MAX_LINKS), 2), np.int32)
            links[:n_links] = self.links[:n_links]
            self.links = links
            return
        live = self.table[:kernels._kernel_keep_live(self.table, self.nodes)]
        table = np.zeros(_round_up(4 * (len(live) + n_wanted)), np.uint64)
        kernels._kernel_insert(live, table)
        self.table, self._state[0] = table, len(live)

    def number(self, sets, attracted):
        """Return labels uint32 (P,) of pixels by their nodes, 0 for those not attracted."""
        from cocoseg.postprocess import mutex_kernels as kernels
        labels = np.empty(len(sets), np.uint32)
        kernels._kernel_number_labels(sets, attracted, self.nodes,
                                      np.zeros(len(self.nodes), np.uint32), labels)
        return labels


def _round_up(size):
    """Return the power of two that is at least so large."""
    return max(_LEAST_TABLE, 1 << (size - 1).bit_length())


def _list_edges(affinities, offsets, bias, valid):
    """Return the edges between pixels, and which pixels bool (P,) an attractive one touches."""
    from cocoseg.postprocess import mutex_kernels as kernels
    shape = (1,) * (4 - affinities.ndim) + affinities.shape[1:]
    steps, spans = [], []
    for offset in offsets:
        offset = (0,) * (3 - len(offset)) + offset
        steps.append((offset[0] * shape[1] + offset[1]) * shape[2] + offset[2])
        spans.append([bound for step, size in zip(offset, shape)
                      for bound in (min(max(-step, 0), size), max(size - max(step, 0), 0))])
    spans, steps = np.array(spans, np.int64), np.array(steps, np.int64)
    extents = np.maximum(spans[:, 1::2] - spans[:, ::2], 0)
    edges = _Edges.empty(int(extents.prod(axis=1).sum()))
    attracted = np.zeros(math.prod(shape), bool)
    n_edges = kernels._kernel_list_edges(affinities.reshape(-1, *shape), bias, valid, spans, steps,
                                         *edges, attracted)
    return edges.first(n_edges), attracted


def _contract(edges, n_nodes):
    """
    Join sets as long as that is certain and worth it.

    Returns (edges between sets, in the same arrays; the set int32 (N,) of each
    node; number of sets).
    """
    from cocoseg.postprocess import mutex_kernels as kernels
    sets, n_sets = np.arange(n_nodes, dtype=np.int32), n_nodes
    while True:
        n_before = n_sets
        best, others = np.zeros(n_sets, np.uint32), np.empty(n_sets, np.int32)
        kernels._kernel_find_heaviest(*edges, best, others)
        numbers = np.arange(n_sets, dtype=np.int32)
        n_sets = kernels._kernel_join_heaviest(best, others, numbers)
        edges = edges.first(kernels._kernel_contract_edges(*edges, numbers))
        sets = numbers if n_before == n_nodes else numbers[sets]
        if n_sets > _WORTHWHILE * n_before:
            return edges, sets, n_sets


def _iter_bands(edges, partition):
    """
    Yield edges in bands, sorted, the heaviest first; each is run before the next is made.

    So edges that the heavier ones have settled are dropped before they are sorted.
    """
    from cocoseg.postprocess import mutex_kernels as kernels
    while len(edges):
        cut, most = 0, len(edges)
        if most > _LEAST_BAND:
            counts = np.zeros(kernels.HISTOGRAM_SIZE, np.int64)
            kernels._kernel_count_ranks(edges.ranks, counts)
            at_least = counts[::-1].cumsum()[::-1]
            # The highest cut that takes enough.
            cut = int(np.flatnonzero(at_least >= _BAND_SHARE * most)[-1])
            most = int(at_least[cut])
        # One more, where the kernel writes what does not count.
        band = _Edges.empty(most + 1)
        n_kept, n_moved = kernels._kernel_split_edges(
            *edges, np.uint32(cut << int(kernels.HISTOGRAM_SHIFT)), partition.nodes,
            partition.table, *band)
        edges = edges.first(n_kept)
        if n_moved:
            yield _sort(band.first(n_moved))


def _sort(edges):
    """Return the edges by descending weight; equal ones stay in their order."""
    from cocoseg.postprocess import mutex_kernels as kernels
    lowest, highest = int(edges.ranks.min()) >> 1, int(edges.ranks.max()) >> 1
    n_digits = -(-(highest - lowest).bit_length() // kernels._DIGIT_BITS)
    if n_digits == 0:
        return edges
    other = _Edges.empty(len(edges))
    kernels._kernel_sort_edges(*edges, *other, np.uint32(lowest), n_digits)
    return other if n_digits % 2 else edges


def _check_affinities(affinities, offsets, bias):
    """Return affinities as contiguous float32, offsets as tuples, and bias as float32."""
    offsets = as_offsets(offsets)
    affinities = np.asarray(affinities)
    if affinities.dtype.kind != 'f':
        raise OptionError(f'affinities are {affinities.dtype}, and must be floats; scale them so '
                          'that what is above the bias attracts')
    ndim = len(offsets[0])
    if affinities.ndim != ndim + 1 or len(affinities) != len(offsets):
        axes = ', '.join('dhw'[-ndim:])
        raise OptionError(f'affinities have shape {affinities.shape}, and {len(offsets)} offsets '
                          f'of {ndim} entries need ({len(offsets)}, {axes}), channels first')
    n_pixels = math.prod(affinities.shape[1:])
    if n_pixels == 0:
        raise OptionError(f'affinities have shape {affinities.shape}, which has no pixels')
    if n_pixels > MAX_PIXELS:
        raise LabelOverflowError(f'affinities of shape {affinities.shape} have more than '
                                 f'{MAX_PIXELS} px; segment them block by block')
    if not np.isscalar(bias) or isinstance(bias, (str, bool)) or not np.isfinite(bias):
        raise OptionError(f'bias={bias!r} must be a finite number')
    # Too much for float32 is infinite, which has a meaning.
    with np.errstate(over='ignore'):
        return np.ascontiguousarray(affinities, np.float32), offsets, np.float32(bias)


def _check_mask(mask, shape):
    """Return a flat mask, empty if there is none."""
    if mask is None:
        return np.empty(0, bool)
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != shape:
        raise OptionError(f'mask is {mask.dtype} of shape {mask.shape}, and must be bool of shape '
                          f'{shape}')
    return np.ascontiguousarray(mask).reshape(-1)
