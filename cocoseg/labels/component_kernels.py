"""
Compiled loops that find connected pixels of equal value.

Each ``_kernel_*`` is private: :mod:`cocoseg.labels.components` is the API.

The label image itself is the forest of a union-find: an entry is 1 + the flat
index of another pixel of its set, never a later one, or of itself for a root;
0 is no set. Sets are joined so that the root stays the first pixel. Thus one
more pass in raster order replaces each entry by the number of its root, in
place. Parts of the rows are done by threads, and joined along the seams
between them; an entry with the top bit set is an index into a table of the
sets that began above a seam.
"""
import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}
FOREIGN = np.uint32(1 << 31)


@njit(inline='always', **_COMMON)
def _find_root(parents, p):
    """Return the root of a pixel; let those on the way point to the one after the next."""
    q = np.int64(parents[p]) - 1
    while q != p:
        parents[p] = parents[q]
        p, q = q, np.int64(parents[q]) - 1
    return p


@njit(inline='always', **_COMMON)
def _join_above(flat, parents, p0, p1, q0, q1):
    """
    Join the run of pixels p0 to p1, not yet in the forest, with equal ones of q0 to q1.

    Returns its root and what the number of sets grows by.
    """
    value = flat[p0]
    root, n_sets = np.int64(-1), 1
    is_before = False
    for q in range(np.uint64(q0), np.uint64(q1)):
        is_equal = flat[q] == value
        # The rest of a run above is joined already.
        if is_equal and not is_before:
            other = _find_root(parents, np.int64(q))
            if root < 0:
                root, n_sets = other, 0
            elif other != root:
                n_sets -= 1
                parents[max(root, other)] = min(root, other) + 1
                root = min(root, other)
        is_before = is_equal
    return (p0 if root < 0 else root), n_sets


@njit(**_COMMON)
def _kernel_join_part(flat, width, four_connected, first, stop, parents):
    """
    Build the forest of rows first to stop; return the number of its sets.

    flat unsigned (H * W,), 0 is no set; parents uint32 (H * W,).
    """
    n_sets = 0
    reach = 0 if four_connected else 1
    for y in range(first, stop):
        p0 = y * width
        end = p0 + width
        while p0 < end:
            value = flat[np.uint64(p0)]
            p1 = p0 + 1
            while p1 < end and flat[np.uint64(p1)] == value:
                p1 += 1
            entry = np.uint32(0)
            if value != 0:
                root, n_new = p0, 1
                if y > first:
                    q0 = max(p0 - reach, end - width) - width
                    q1 = min(p1 + reach, end) - width
                    root, n_new = _join_above(flat, parents, p0, p1, q0, q1)
                n_sets += n_new
                entry = np.uint32(root + 1)
            for p in range(np.uint64(p0), np.uint64(p1)):
                parents[p] = entry
            p0 = p1
    return n_sets


@njit(inline='always', **_COMMON)
def _join_across(parents, a, b, joined, count):
    """
    Join sets and note the root that is none any more; return the new count.

    The ways to the roots are left as they are, so that only former roots
    point across a seam.
    """
    while parents[a] != a + 1:
        a = np.int64(parents[a]) - 1
    while parents[b] != b + 1:
        b = np.int64(parents[b]) - 1
    if a == b:
        return count
    parents[max(a, b)] = min(a, b) + 1
    joined[count] = max(a, b)
    return count + 1


@njit(**_COMMON)
def _kernel_join_seam(values, four_connected, y, parents, joined, count):
    """
    Join the sets of row y - 1 with those of row y.

    Former roots go to joined int64 from ``count`` on, at most W of them;
    returns their new count.
    """
    width = values.shape[1]
    for x in range(width):
        value = values[y, x]
        if value == 0:
            continue
        p = y * width + x
        if values[y - 1, x] == value:
            count = _join_across(parents, p - width, p, joined, count)
        elif not four_connected:
            if x > 0 and values[y - 1, x - 1] == value:
                count = _join_across(parents, p - width - 1, p, joined, count)
            if x + 1 < width and values[y - 1, x + 1] == value:
                count = _join_across(parents, p - width + 1, p, joined, count)
    return count


@njit(**_COMMON)
def _kernel_mark_foreign(parents, joined, starts, roots, n_lost):
    """
    Mark former roots whose root is in an earlier part by their place in a table.

    joined int64 (n,), ascending; starts int64 (n_parts,), first pixels. Writes
    the root of each marked one to roots int64 (n,), and how many roots each
    part has lost to n_lost int64 (n_parts,); returns how many are marked.
    """
    count = 0
    for j in range(joined.shape[0]):
        p = joined[j]
        part = np.searchsorted(starts, p, side='right') - 1
        n_lost[part] += 1
        # Earlier ones are done, so that this is the root, or what points to it.
        entry = parents[np.int64(parents[p]) - 1]
        if not entry & FOREIGN and entry <= starts[part]:
            roots[count] = np.int64(entry) - 1
            entry = FOREIGN | np.uint32(count)
            count += 1
        parents[p] = entry
    return count


@njit(**_COMMON)
def _kernel_number_part(labels, first, stop, number, sizes, firsts, n_foreign):
    """
    Replace the forest in pixels first to stop by numbers from ``number`` + 1.

    Counts pixels in sizes uint32 and writes the first pixel of each set to
    firsts int32 (N + 1,), and counts those of foreign sets in n_foreign int64,
    whose marks it leaves; returns the number of pixels in no set.
    """
    n_empty = 0
    for p in range(first, stop):
        parent = labels[p]
        if parent == 0:
            n_empty += 1
            continue
        if parent == p + 1:
            number += 1
            labels[p] = number
            sizes[number] = 1
            firsts[number] = p
            continue
        if not parent & FOREIGN:
            parent = labels[parent - 1]
            labels[p] = parent
        if parent & FOREIGN:
            n_foreign[parent & ~FOREIGN] += 1
        else:
            sizes[parent] += 1
    return n_empty


@njit(**_COMMON)
def _kernel_resolve_foreign(labels, first, stop, table):
    """Replace marks in pixels first to stop by entries of table uint32."""
    for p in range(first, stop):
        if labels[p] & FOREIGN:
            labels[p] = table[labels[p] & ~FOREIGN]
