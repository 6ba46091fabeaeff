"""
Compiled inner loops of label arithmetic.

Each ``_kernel_*`` is private: the modules beside this one are the API, and the
unit tests hold a plain numpy reference of each kernel. Imported when first
needed, since numba takes most of a second to load. All release the GIL.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}


@njit(inline='always', **_COMMON)
def _find_root(parents, node):
    """Return the root of a node, and shorten the way to it."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@njit(inline='always', **_COMMON)
def _join(parents, a, b):
    """Join two trees; the lower root stays."""
    a, b = _find_root(parents, a), _find_root(parents, b)
    if a < b:
        parents[b] = a
    elif b < a:
        parents[a] = b


@njit(**_COMMON)
def _kernel_join_pairs(parents, first, second):
    """Join the trees of each pair of nodes."""
    for k in range(first.shape[0]):
        _join(parents, first[k], second[k])


@njit(**_COMMON)
def _kernel_flatten(parents):
    """Let every node point to its root. Roots are the lowest of their trees."""
    for node in range(parents.shape[0]):
        parents[node] = parents[parents[node]]


@njit(**_COMMON)
def _kernel_vote(ours, theirs, partners, votes, sizes):
    """
    Find, per label of ours, the only label of theirs that can have most of it.

    The majority vote of Boyer and Moore: 0 votes like any other. All per-label
    arrays are zeroed and have an entry for 0.
    """
    rows, columns = ours.shape
    for r in range(rows):
        for c in range(columns):
            a, b = ours[r, c], theirs[r, c]
            sizes[a] += 1
            if votes[a] == 0:
                partners[a] = b
                votes[a] = 1
            elif partners[a] == b:
                votes[a] += 1
            else:
                votes[a] -= 1


@njit(**_COMMON)
def _kernel_count_common(ours, theirs, partners, common):
    """Count the pixels that each label of ours shares with its partner; ``common`` is zeroed."""
    rows, columns = ours.shape
    n_either = 0
    for r in range(rows):
        for c in range(columns):
            a, b = ours[r, c], theirs[r, c]
            n_either += (a != 0) | (b != 0)
            common[a] += partners[a] == b
    return n_either


@njit(**_COMMON)
def _kernel_list_contacts(pieces, eligible, use_eligible, four_connected, out):
    """
    List pairs of different pieces that touch, lower first, with repetitions.

    Only pairs with an eligible piece are listed, or all. A pair that comes
    again at once is left out. ``out`` is (n, 2); what does not fit is counted
    but not stored. Returns how many there are.
    """
    rows, columns = pieces.shape
    n, last_a, last_b = 0, 0, 0
    for r in range(rows):
        for c in range(columns):
            p = pieces[r, c]
            if p == 0:
                continue
            for k in range(2 if four_connected else 4):
                # East, south, south-west, south-east.
                y = r if k == 0 else r + 1
                x = c + 1 if k == 0 or k == 3 else c - 1 if k == 2 else c
                if y >= rows or x < 0 or x >= columns:
                    continue
                q = pieces[y, x]
                if q == 0 or q == p:
                    continue
                if use_eligible and not (eligible[p] or eligible[q]):
                    continue
                a, b = min(p, q), max(p, q)
                if a == last_a and b == last_b:
                    continue
                last_a, last_b = a, b
                if n < out.shape[0]:
                    out[n, 0] = a
                    out[n, 1] = b
                n += 1
    return n


@njit(**_COMMON)
def _kernel_sum_values(pieces, values, sums):
    """
    Add the values of each piece, in raster order.

    ``pieces`` (h, w), ``values`` (h, w, B), ``sums`` float64 (n + 1, B), zeroed.
    """
    rows, columns, bands = values.shape
    for r in range(rows):
        for c in range(columns):
            piece = pieces[r, c]
            if piece:
                for b in range(bands):
                    sums[piece, b] += values[r, c, b]


@njit(**_COMMON)
def _kernel_apply(lut, ids, first, stop):
    """Replace ids first to stop by their entries of a table, in place."""
    # Unsigned, so that no index is looked at as one from the end.
    for k in range(np.uint64(first), np.uint64(stop)):
        ids[k] = lut[ids[k]]


@njit(**_COMMON)
def _find_nearest(group, parents, heads, tails, following, targets, sizes, sums, means):
    """
    Find the neighbor of a group whose mean is nearest, the lowest on a tie.

    Goes through the list of its neighbors, and cuts out those that have become
    members of the group. Returns (neighbor or -1, squared distance).
    """
    bands = sums.shape[1]
    for b in range(bands):
        means[b] = sums[group, b] / sizes[group]
    best, best_distance = -1, np.inf
    before, edge = -1, heads[group]
    while edge >= 0:
        other = _find_root(parents, targets[edge])
        after = following[edge]
        if other == group:
            if before < 0:
                heads[group] = after
            else:
                following[before] = after
            if after < 0:
                tails[group] = before
        else:
            distance = 0.0
            for b in range(bands):
                difference = means[b] - sums[other, b] / sizes[other]
                distance += difference * difference
            if distance < best_distance or (distance == best_distance and other < best):
                best, best_distance = other, distance
            before = edge
        edge = after
    return best, best_distance


@njit(**_COMMON)
def _kernel_merge_small(parents, heads, tails, following, targets, sizes, sums, min_size,
                        limit_squared):
    """
    Merge small groups into the neighbor that is most alike, until none can be.

    Groups are visited by ascending number, again and again, each in the state
    that the one before left. ``parents`` says who was merged into whom; the
    list of neighbors of a group begins at its head. Modified in place. Returns
    how many were merged.
    """
    n = parents.shape[0]
    means = np.empty(sums.shape[1])
    small = np.empty(n, np.int64)
    n_small = 0
    for group in range(n):
        if 0 < sizes[group] < min_size:
            small[n_small] = group
            n_small += 1
    merged, before = 0, -1
    while merged != before:
        before = merged
        kept = 0
        for k in range(n_small):
            group = small[k]
            if parents[group] != group or sizes[group] >= min_size:
                continue
            target, distance = _find_nearest(
                group, parents, heads, tails, following, targets, sizes, sums, means)
            if target < 0 or distance > limit_squared:
                small[kept] = group
                kept += 1
                continue
            # The lower number stays, as groups are numbered by first pixel.
            stays, goes = min(group, target), max(group, target)
            parents[goes] = stays
            sizes[stays] += sizes[goes]
            for b in range(sums.shape[1]):
                sums[stays, b] += sums[goes, b]
            if heads[goes] >= 0:
                if heads[stays] < 0:
                    heads[stays] = heads[goes]
                else:
                    following[tails[stays]] = heads[goes]
                tails[stays] = tails[goes]
            merged += 1
            if sizes[stays] < min_size:
                small[kept] = stays
                kept += 1
        n_small = kept
    return merged
