"""
Compiled inner loops of the k-means fit: a tree of samples, and a walk over it.

:mod:`cocoseg.shepherd.lloyd` is the API. The tree splits the samples by their
values; a node knows the box around its samples, and their sums. One walk is one
assignment of all samples to the nearest of K centres. On the way down it drops
centres that are farther than another one from every point of a box; where one
is left, all samples of the node are its own, and are counted without a look at
them. What is left of the centres at a leaf is compared sample by sample. So a
walk gives what a comparison of every sample with every centre would give.

Arrays: ``columns`` (B, N) float64 are the samples in the order of the tree, a
node is ``starts[node]:stops[node]`` of them. Its left child is the next node,
its right one ``rights[node]``, or -1 for a leaf. ``boxes`` (M, 2, B) hold the
least and the largest values of a node, ``node_sums`` (M, B) its sums.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}
# Samples that a leaf is compared by at a time; leaves are not larger, unless
# all their samples are the same.
_CHUNK = 64
# A node leaves at least 1/8 to each child, so that 2**32 samples in leaves of
# 8 are less than 160 levels deep.
_N_LEVELS = 160
_SHARE = 8


@njit(**_COMMON)
def _swap(rows, order, i, j):
    for band in range(rows.shape[1]):
        rows[i, band], rows[j, band] = rows[j, band], rows[i, band]
    order[i], order[j] = order[j], order[i]


@njit(**_COMMON)
def _split_at_value(rows, order, axis, start, stop, value):
    """Bring samples that are not above a value to the front; return where others begin."""
    i, j = start, stop - 1
    while True:
        while i <= j and rows[i, axis] <= value:
            i += 1
        while i <= j and rows[j, axis] > value:
            j -= 1
        if i > j:
            return i
        _swap(rows, order, i, j)
        i += 1
        j -= 1


@njit(**_COMMON)
def _split_at_rank(rows, order, axis, start, stop, rank):
    """Bring the least samples to the front, up to a place; none behind it is less."""
    low, high = start, stop - 1
    while low < high:
        pivot = rows[(low + high) // 2, axis]
        i, j = low, high
        while i <= j:
            while rows[i, axis] < pivot:
                i += 1
            while rows[j, axis] > pivot:
                j -= 1
            if i <= j:
                _swap(rows, order, i, j)
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            return


@njit(**_COMMON)
def _split(rows, order, axis, start, stop, middle):
    """Split at the middle of the box, or nearer to where the samples are."""
    place = _split_at_value(rows, order, axis, start, stop, middle)
    least = (stop - start) // _SHARE
    if least <= place - start and least <= stop - place:
        return place
    place = start + least if place - start < least else stop - least
    _split_at_rank(rows, order, axis, start, stop, place)
    return place


@njit(**_COMMON)
def _measure(rows, start, stop, box, total):
    """Set the box and the sums of some samples; return the longest axis and its length."""
    longest, length = 0, 0.0
    for band in range(rows.shape[1]):
        low, high, value_sum = rows[start, band], rows[start, band], 0.0
        for i in range(start, stop):
            value = rows[i, band]
            low, high = min(low, value), max(high, value)
            value_sum += value
        box[0, band], box[1, band], total[band] = low, high, value_sum
        if high - low > length:
            longest, length = band, high - low
    return longest, length


@njit(**_COMMON)
def _kernel_build(rows, order, leaf_size, starts, stops, rights, boxes, node_sums):
    """
    Sort samples into a tree, in place, and describe its nodes; return how many.

    rows (N, B) float64 and order (N,) are permuted alike. ``leaf_size`` is at
    least _SHARE; then the nodes are at most 2 * _SHARE * N / leaf_size + 1.
    """
    pending = np.empty((_N_LEVELS, 3), np.int64)
    pending[0] = (0, rows.shape[0], -1)
    n_pending, n_nodes = 1, 0
    while n_pending:
        n_pending -= 1
        start, stop, parent = pending[n_pending]
        node = n_nodes
        n_nodes += 1
        if parent >= 0:
            rights[parent] = node
        starts[node], stops[node], rights[node] = start, stop, -1
        axis, length = _measure(rows, start, stop, boxes[node], node_sums[node])
        if stop - start <= leaf_size or length == 0:
            continue
        middle = 0.5 * (boxes[node, 0, axis] + boxes[node, 1, axis])
        place = _split(rows, order, axis, start, stop, middle)
        pending[n_pending] = (place, stop, node)
        pending[n_pending + 1] = (start, place, -1)
        n_pending += 2
    return n_nodes


@njit(**_COMMON)
def _find_nearest(boxes, node, centres, candidates, n_candidates):
    """Return which of some centres is nearest to the middle of a box."""
    nearest, least = candidates[0], np.inf
    for k in range(n_candidates):
        centre, distance = candidates[k], 0.0
        for band in range(centres.shape[1]):
            offset = 0.5 * (boxes[node, 0, band] + boxes[node, 1, band]) - centres[centre, band]
            distance += offset * offset
        if distance < least:
            nearest, least = centre, distance
    return nearest


@njit(**_COMMON)
def _prune(boxes, node, centres, candidates, n_candidates, guard, kept):
    """
    Keep the centres that may be nearest to a point of a box; return how many.

    The difference of the squared distances of a point to two centres is linear
    in the point, so that it is least at the corner of the box that is farthest
    towards the one centre. Above ``guard`` there, it is above it in the box.
    """
    nearest = _find_nearest(boxes, node, centres, candidates, n_candidates)
    n_kept = 0
    for k in range(n_candidates):
        centre, excess = candidates[k], 0.0
        for band in range(centres.shape[1]):
            near, far = centres[nearest, band], centres[centre, band]
            corner = boxes[node, 0, band] if near > far else boxes[node, 1, band]
            excess += (near - far) * ((corner - far) + (corner - near))
        # True also of NaN.
        if not excess > guard:
            kept[n_kept] = centre
            n_kept += 1
    return n_kept


@njit(**_COMMON)
def _compare(columns, first, size, centres, candidates, n_candidates, scratch, owners):
    """
    Find the nearest of some centres to at most _CHUNK samples.

    Sets ``owners`` (_CHUNK,); the first centre wins where distances are equal.
    ``scratch`` (3, _CHUNK) gets the squared distances to the nearest centre and
    to the next.
    """
    best, second, distances = scratch[0], scratch[1], scratch[2]
    for k in range(n_candidates):
        centre = candidates[k]
        for band in range(centres.shape[1]):
            value = centres[centre, band]
            if band == 0:
                for i in range(size):
                    distances[i] = (columns[0, first + i] - value) ** 2
            else:
                for i in range(size):
                    distances[i] += (columns[band, first + i] - value) ** 2
        if k == 0:
            for i in range(size):
                best[i], second[i], owners[i] = distances[i], np.inf, centre
            continue
        for i in range(size):
            distance, least = distances[i], best[i]
            owners[i] = centre if distance < least else owners[i]
            second[i] = min(second[i], max(distance, least))
            best[i] = min(distance, least)


@njit(**_COMMON)
def _assign_leaf(columns, start, stop, centres, candidates, n_candidates, margin, sums, counts,
                 labels, scratch, owners):
    """Add the samples of a leaf to their centres; return the ties and the inertia."""
    n_ties, inertia = 0, 0.0
    for begin in range(start, stop, _CHUNK):
        first, size = np.uint64(begin), np.uint64(min(_CHUNK, stop - begin))
        _compare(columns, first, size, centres, candidates, n_candidates, scratch, owners)
        for i in range(size):
            n_ties += scratch[1, i] - scratch[0, i] <= margin
        for i in range(size):
            owner = owners[i]
            counts[owner] += 1
            for band in range(columns.shape[0]):
                sums[owner, band] += columns[band, first + i]
        if labels.shape[0]:
            for i in range(size):
                labels[first + i] = owners[i]
                inertia += scratch[0, i]
    return n_ties, inertia


@njit(**_COMMON)
def _kernel_assign(columns, starts, stops, rights, boxes, node_sums, root, centres, guard,
                   margin, sums, counts, labels):
    """
    Assign the samples below a node to the nearest of the centres (K, B).

    Adds them to ``sums`` (K, B) and ``counts`` (K,). With ``labels`` (N,) int32,
    not empty, sets their centres, too, and computes the inertia. Returns how
    many samples have two centres whose squared distances differ by no more than
    ``margin``, and the inertia. ``guard`` is above ``margin`` by the rounding
    errors of squared distances.
    """
    candidates = np.empty((_N_LEVELS + 1, centres.shape[0]), np.int64)
    n_candidates = np.empty(_N_LEVELS + 1, np.int64)
    candidates[0] = np.arange(centres.shape[0])
    n_candidates[0] = centres.shape[0]
    scratch, owners = np.empty((3, _CHUNK)), np.empty(_CHUNK, np.int64)
    pending = np.empty((_N_LEVELS, 2), np.int64)
    pending[0] = (root, 0)
    n_pending, n_ties, inertia = 1, 0, 0.0
    while n_pending:
        n_pending -= 1
        node, level = pending[n_pending]
        kept = candidates[level + 1]
        n_kept = _prune(boxes, node, centres, candidates[level], n_candidates[level], guard, kept)
        if n_kept == 1 and not labels.shape[0]:
            counts[kept[0]] += stops[node] - starts[node]
            for band in range(centres.shape[1]):
                sums[kept[0], band] += node_sums[node, band]
        elif rights[node] >= 0:
            n_candidates[level + 1] = n_kept
            pending[n_pending] = (rights[node], level + 1)
            pending[n_pending + 1] = (node + 1, level + 1)
            n_pending += 2
        else:
            leaf_ties, leaf_inertia = _assign_leaf(
                columns, starts[node], stops[node], centres, kept, n_kept, margin, sums, counts,
                labels, scratch, owners)
            n_ties += leaf_ties
            inertia += leaf_inertia
    return n_ties, inertia
