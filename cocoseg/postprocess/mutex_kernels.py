"""
Compiled loops of the mutex watershed.

Each ``_kernel_*`` is private: :mod:`cocoseg.postprocess.mutex` is the API.

An edge is an entry of three arrays. ``ranks`` uint32 holds the bits of abs(weight)
shifted left by one, and 1 in the lowest bit if it attracts; so ranks are ordered as
the weights, with equal ones told apart by the lowest bit only, which no comparison
looks at. ``heads`` and ``tails`` int32 are the nodes it joins. Edges of equal weight
stay in the order in which they were listed.

A node has three entries in ``nodes`` int32 (N, 3), side by side because they are
needed together: its parent in a forest of sets, the first link of its list of
mutexes, and the length of that list; the latter two mean something for roots only.
A link is (next link, a node of the other set) in ``links`` int32 (L, 2); -1 ends a
list. ``table`` uint64, a power of two, is a hash set of pairs of roots with a mutex
between them. Pairs of what is no root any more stay until the table is made anew.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}
_ONE = np.uint32(1)
PARENT, FIRST, DEGREE = 0, 1, 2
# Of the radix sort; three of them are all bits of a weight.
_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS
# Of a histogram: the sign bit is gone, 8 bits of exponent and 5 of mantissa stay.
HISTOGRAM_SHIFT = np.uint32(19)
HISTOGRAM_SIZE = 1 << 13
# Edges whose memory is asked for at a time.
_FETCH = 64


# -- from pixels to edges

@njit(**_COMMON)
def _kernel_list_edges(affinities, bias, valid, spans, steps, ranks, heads, tails, attracted):
    """
    List the edges of all pixels, channel by channel; return how many.

    affinities float32 (C, D, H, W); valid bool (D H W,), or empty where all
    pixels are; spans int64 (C, 6): first and last + 1 of z, y and x of the
    pixels whose edge ends inside, steps int64 (C,): from their flat index to
    that of the other end. Marks ends of attractive edges in attracted bool.
    """
    height, width = affinities.shape[2], affinities.shape[3]
    n_edges = 0
    for c in range(spans.shape[0]):
        for z in range(spans[c, 0], spans[c, 1]):
            for y in range(spans[c, 2], spans[c, 3]):
                row = (z * height + y) * width
                for x in range(spans[c, 4], spans[c, 5]):
                    weight = np.float32(affinities[c, z, y, x] - bias)
                    p = row + x
                    q = p + steps[c]
                    # NaN is no data.
                    if weight != weight or valid.size and not (valid[p] and valid[q]):
                        continue
                    is_attractive = weight > 0
                    attracted[p] |= is_attractive
                    attracted[q] |= is_attractive
                    ranks[n_edges] = weight.view(np.uint32) << _ONE | np.uint32(is_attractive)
                    heads[n_edges] = p
                    tails[n_edges] = q
                    n_edges += 1
    return n_edges


# -- contraction

@njit(**_COMMON)
def _kernel_find_heaviest(ranks, heads, tails, best, others):
    """
    Find the heaviest edge of each node, of equal ones the first.

    Writes its rank to best uint32 (N,), zeros before, and its other end to
    others int32 (N,).
    """
    for i in range(ranks.shape[0]):
        rank, a, b = ranks[i], heads[i], tails[i]
        if rank >> _ONE > best[a] >> _ONE:
            best[a] = rank
            others[a] = b
        if rank >> _ONE > best[b] >> _ONE:
            best[b] = rank
            others[b] = a


@njit(inline='always', **_COMMON)
def _find_first(parents, p):
    q = parents[p]
    while q != p:
        parents[p] = parents[q]
        p, q = q, parents[q]
    return p


@njit(**_COMMON)
def _kernel_join_heaviest(best, others, numbers):
    """
    Join each node with the other end of its heaviest edge if that attracts.

    numbers int32 (N,) is 0..N - 1 before, and the number of each node's set
    after, in the order of their first nodes; returns how many there are.
    """
    for p in range(best.shape[0]):
        if best[p] & _ONE:
            a, b = _find_first(numbers, p), _find_first(numbers, others[p])
            if a != b:
                numbers[max(a, b)] = min(a, b)
    n_sets = 0
    for p in range(numbers.shape[0]):
        parent = numbers[p]
        if parent == p:
            numbers[p] = n_sets
            n_sets += 1
        else:
            # It comes first, and has its number.
            numbers[p] = numbers[parent]
    return n_sets


@njit(**_COMMON)
def _kernel_contract_edges(ranks, heads, tails, numbers):
    """Let edges join sets instead of nodes, drop those inside of one; return how many stay."""
    n_edges = 0
    for i in range(ranks.shape[0]):
        a, b = numbers[heads[i]], numbers[tails[i]]
        ranks[n_edges] = ranks[i]
        heads[n_edges] = a
        tails[n_edges] = b
        # Without a branch, which would often be guessed wrong.
        n_edges += a != b
    return n_edges


# -- order

@njit(**_COMMON)
def _kernel_count_ranks(ranks, counts):
    """Add a histogram of the ranks to counts int64."""
    for i in range(ranks.shape[0]):
        counts[ranks[i] >> HISTOGRAM_SHIFT] += 1


@njit(**_COMMON)
def _kernel_sort_edges(ranks, heads, tails, ranks_to, heads_to, tails_to, lowest, n_digits):
    """
    Sort by descending weight, stable, by so many digits of what weights are above the lowest.

    Both sets of arrays are used in turns; with an odd number of digits the
    result is in the second one.
    """
    counts = np.empty(_DIGITS, np.int64)
    for digit in range(n_digits):
        shift = np.uint32(_DIGIT_BITS * digit)
        counts[:] = 0
        for i in range(ranks.shape[0]):
            above = (ranks[i] >> _ONE) - lowest
            counts[_DIGITS - 1 - (above >> shift & np.uint32(_DIGITS - 1))] += 1
        start = 0
        for k in range(_DIGITS):
            size = counts[k]
            counts[k] = start
            start += size
        for i in range(ranks.shape[0]):
            above = (ranks[i] >> _ONE) - lowest
            k = _DIGITS - 1 - (above >> shift & np.uint32(_DIGITS - 1))
            j = counts[k]
            counts[k] = j + 1
            ranks_to[j] = ranks[i]
            heads_to[j] = heads[i]
            tails_to[j] = tails[i]
        ranks, ranks_to = ranks_to, ranks
        heads, heads_to = heads_to, heads
        tails, tails_to = tails_to, tails


# -- the algorithm

@njit(inline='always', **_COMMON)
def _make_key(a, b):
    return np.uint64(min(a, b)) << np.uint64(32) | np.uint64(max(a, b))


@njit(inline='always', **_COMMON)
def _hash(key, table):
    # Fibonacci hashing: a multiple of the golden ratio spreads what is close.
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    return mixed >> np.uint64(32) & np.uint64(table.shape[0] - 1)


@njit(inline='always', **_COMMON)
def _find_slot(key, table):
    """Return where the key is, or the free place where it would be."""
    slot = _hash(key, table)
    while table[slot] != 0 and table[slot] != key:
        slot = slot + np.uint64(1) & np.uint64(table.shape[0] - 1)
    return slot


@njit(inline='always', **_COMMON)
def _find_root(nodes, p):
    """Return the root of a node; let those on the way point to the one after the next."""
    q = nodes[p, PARENT]
    while q != p:
        after = nodes[q, PARENT]
        nodes[p, PARENT] = after
        p, q = q, after
    return p


@njit(inline='always', **_COMMON)
def _merge(a, b, nodes, links, table):
    """Join the set of root b to that of root a, with its mutexes; return how many are new."""
    n_new = 0
    nodes[b, PARENT] = a
    link = nodes[b, FIRST]
    while link >= 0:
        after = links[link, 0]
        c = _find_root(nodes, links[link, 1])
        key = _make_key(a, c)
        slot = _find_slot(key, table)
        if table[slot] == 0:
            table[slot] = key
            n_new += 1
            links[link, 0] = nodes[a, FIRST]
            links[link, 1] = c
            nodes[a, FIRST] = link
            nodes[a, DEGREE] += 1
        link = after
    return n_new


@njit(inline='always', **_COMMON)
def _add_link(a, b, link, nodes, links):
    links[link, 0] = nodes[a, FIRST]
    links[link, 1] = b
    nodes[a, FIRST] = link
    nodes[a, DEGREE] += 1


@njit(inline='always', **_COMMON)
def _fetch(heads, tails, first, stop, nodes, table):
    """Read what edges need, so that caches wait for all of it at once; any result will do."""
    seen = np.uint64(0)
    for i in range(first, stop):
        seen ^= np.uint64(nodes[heads[i], PARENT] ^ nodes[tails[i], PARENT])
    for i in range(first, stop):
        key = _make_key(nodes[heads[i], PARENT], nodes[tails[i], PARENT])
        seen ^= table[_hash(key, table)]
    return seen


@njit(**_COMMON)
def _kernel_run(ranks, heads, tails, first, nodes, links, table, state):
    """
    Treat sorted edges from ``first`` on; return where it stopped for want of room.

    state int64 (4,): slots of the table and links in use, and how many more
    slots are wanted; the last one is a place to write to. At most half of the
    table is used.
    """
    n_used, n_links = state[0], state[1]
    wanted, fetched = 0, first
    for i in range(first, ranks.shape[0]):
        if i == fetched:
            fetched = min(i + _FETCH, ranks.shape[0])
            state[3] = np.int64(_fetch(heads, tails, i, fetched, nodes, table))
        a, b = _find_root(nodes, heads[i]), _find_root(nodes, tails[i])
        if a == b:
            continue
        key = _make_key(a, b)
        slot = _find_slot(key, table)
        if table[slot] != 0:
            continue
        if nodes[a, DEGREE] < nodes[b, DEGREE]:
            a, b = b, a
        is_attractive = ranks[i] & _ONE
        wanted = nodes[b, DEGREE] if is_attractive else 1
        if 2 * (n_used + wanted) > table.shape[0] or n_links + 2 > links.shape[0]:
            state[0], state[1], state[2] = n_used, n_links, wanted
            return i
        if is_attractive:
            n_used += _merge(a, b, nodes, links, table)
        else:
            table[slot] = key
            n_used += 1
            _add_link(a, b, n_links, nodes, links)
            _add_link(b, a, n_links + 1, nodes, links)
            n_links += 2
    state[0], state[1], state[2] = n_used, n_links, 0
    return ranks.shape[0]


@njit(**_COMMON)
def _kernel_keep_live(table, nodes):
    """Move the pairs of roots to the front, and return how many there are."""
    n_live = 0
    for slot in range(table.shape[0]):
        key = table[slot]
        a, b = np.int64(key >> np.uint64(32)), np.int64(key & np.uint64(0xffffffff))
        if key != 0 and nodes[a, PARENT] == a and nodes[b, PARENT] == b:
            table[n_live] = key
            n_live += 1
    return n_live


@njit(**_COMMON)
def _kernel_insert(keys, table):
    """Put keys into a table that has none of them."""
    for key in keys:
        table[_find_slot(key, table)] = key


@njit(**_COMMON)
def _kernel_flatten(nodes):
    """Let all nodes point to their roots."""
    for p in range(nodes.shape[0]):
        nodes[p, PARENT] = _find_root(nodes, p)


@njit(**_COMMON)
def _kernel_split_edges(ranks, heads, tails, cut, nodes, table, ranks_to, heads_to, tails_to):
    """
    Drop edges that cannot change anything, and move ranks of at least ``cut`` to other arrays.

    Nodes point to their roots, and so do edges after. Returns how many stay,
    and how many were moved.
    """
    n_kept = n_moved = 0
    for i in range(ranks.shape[0]):
        rank = ranks[i]
        a, b = nodes[heads[i], PARENT], nodes[tails[i], PARENT]
        # No branches where a guess would often be wrong: all is written, and counts or not.
        differ = a != b
        key = _make_key(a, b)
        if differ and nodes[a, DEGREE] and nodes[b, DEGREE]:
            differ = table[_find_slot(key, table)] != key
        is_open = differ
        is_moved = is_open & (rank >= cut)
        ranks_to[n_moved] = ranks[n_kept] = rank
        heads_to[n_moved] = heads[n_kept] = a
        tails_to[n_moved] = tails[n_kept] = b
        n_moved += is_moved
        n_kept += is_open & ~is_moved
    return n_kept, n_moved


# -- from sets to labels

@njit(**_COMMON)
def _kernel_number_labels(sets, attracted, nodes, numbers, labels):
    """
    Number sets by their first pixel; 0 for pixels that nothing attracts.

    sets int32 (P,): the node of each pixel, which points to its root. numbers
    uint32 (N,), zeros before; writes labels uint32 (P,), returns their number.
    """
    n_labels = np.uint32(0)
    for p in range(sets.shape[0]):
        label = np.uint32(0)
        if attracted[p]:
            root = nodes[sets[p], PARENT]
            if numbers[root] == 0:
                n_labels += _ONE
                numbers[root] = n_labels
            label = numbers[root]
        labels[p] = label
    return n_labels
