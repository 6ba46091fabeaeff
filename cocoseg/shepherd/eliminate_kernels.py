"""
Compiled loops that merge single pixels and small segments.

Each ``_kernel_*`` is private: :mod:`cocoseg.shepherd.eliminate` is the API.

Labels come flat. The pixels of the small segments are listed segment by
segment; merging puts the list of one segment behind that of the other, as a
chain: ``following`` leads from a segment to the one whose own pixels come
next, 0 at the end, and ``last`` is the end of the chain. A segment that has
reached the least size needs no list any more.
"""
import numpy as np
from numba import njit

from cocoseg.stitch.kernels import _prefetch

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}
# Pixels of a segment whose neighbors are listed all at once.
MAX_LISTED = 512
# Segments ahead whose pixels are asked for: they lie anywhere in the image.
_AHEAD = 12


@njit(inline='always', **_COMMON)
def _measure_pixels(flat, place, other, n_bands, band_step, zero):
    """Return the squared distance of two pixels, in the dtype of ``zero``."""
    kind = zero.dtype.type
    total = kind(0)
    for band in range(n_bands):
        a = flat[np.uint64(place + band * band_step)]
        b = flat[np.uint64(other + band * band_step)]
        difference = kind(kind(a) - kind(b))
        total = kind(total + kind(difference * difference))
    return total


@njit(**_COMMON)
def _kernel_find_singles(sizes, firsts, out):
    """Write the pixels of segments of size 1, from id 1, to out int32 (n,)."""
    count = 0
    for s in range(1, sizes.shape[0]):
        if sizes[s] == 1:
            out[count] = firsts[s]
            count += 1


@njit(inline='always', **_COMMON)
def _compare(flat, layout, place, other, label, sizes, least, zero, chosen):
    """
    Return the better (distance, label) of the one chosen so far and a neighbor.

    Without branches: what they would depend on is noise.
    """
    n_bands, band_step = layout
    best, target = chosen
    distance = _measure_pixels(flat, place, other, n_bands, band_step, zero)
    # A negative one has overflowed, and gives way to any other; NaN is never chosen.
    is_better = (target < 0) | (best < 0) | (distance < best)
    is_better &= (sizes[label] > 1) & (label >= least) & (distance == distance)
    return (distance if is_better else best), (np.int64(label) if is_better else target)


@njit(**_COMMON)
def _kernel_choose_singles(flat, steps, n_bands, labels, width, sizes, null_counts, four_connected,
                           zero, pixels, first, stop, targets):
    """
    Write what segment each single pixel goes to, or -1, to targets int64 (n,).

    That of the neighbor of least distance, the first of equal ones, among
    those whose segments have more than one pixel; those of id 0 only if
    ``null_counts``. Distances have the dtype of ``zero`` (1,).
    """
    row_step, column_step, band_step = steps
    least = np.uint32(0 if null_counts else 1)
    layout = (n_bands, band_step)
    for k in range(first, stop):
        p = pixels[k]
        y = p // width
        x = p - y * width
        place = y * row_step + x * column_step
        is_left, is_right = x > 0, x < width - 1
        chosen = (zero[0], np.int64(-1))
        for row in range(-1, 2):
            q, other = p + row * width, place + row * row_step
            if q < 0 or q >= labels.shape[0]:
                continue
            for side in range(-1, 2):
                is_corner = side != 0 and row != 0
                if (side == 0 and row == 0) or (is_corner and four_connected):
                    continue
                if (side < 0 and not is_left) or (side > 0 and not is_right):
                    continue
                label = labels[np.uint64(q + side)]
                chosen = _compare(flat, layout, place, other + side * column_step, label, sizes,
                                  least, zero, chosen)
        targets[k] = chosen[1]


@njit(**_COMMON)
def _kernel_merge_singles(labels, sizes, firsts, pixels, targets):
    """Give the pixels (n,) their new labels; keep those without in front, return how many."""
    n_left = 0
    for k in range(pixels.shape[0]):
        p, target = pixels[k], targets[k]
        if target < 0:
            pixels[n_left] = p
            n_left += 1
            continue
        sizes[labels[p]] = 0
        sizes[target] += 1
        firsts[target] = min(firsts[target], p)
        labels[p] = target
    return n_left


@njit(**_COMMON)
def _kernel_close_gaps(sizes, firsts, new_ids):
    """
    Move the entries of ids that have pixels to the front; return the highest id.

    Writes what becomes of each id to new_ids uint32 (N + 1,).
    """
    count = 0
    for s in range(1, sizes.shape[0]):
        if sizes[s] > 0:
            count += 1
            sizes[count], firsts[count], new_ids[s] = sizes[s], firsts[s], count
    return count


@njit(**_COMMON)
def _kernel_sort_by_size(sizes, min_size, bounds, order):
    """
    Write the ids of segments below min_size to order, by size, ascending ones of each.

    Those of a size are at ``bounds[size]`` to ``bounds[size + 1]``; bounds
    int64 (min_size + 1,), all 0 before.
    """
    for s in range(1, sizes.shape[0]):
        if 0 < sizes[s] < min_size:
            bounds[sizes[s]] += 1
    total = np.int64(0)
    for size in range(min_size):
        total += bounds[size]
        bounds[size] = total
    bounds[min_size] = total
    # From the end of each part backward, so that the bounds are then right.
    for s in range(sizes.shape[0] - 1, 0, -1):
        if 0 < sizes[s] < min_size:
            bounds[sizes[s]] -= 1
            order[bounds[sizes[s]]] = s


@njit(inline='always', **_COMMON)
def _sort_in(s, size, sizes, min_size, heads, nexts, out, count):
    """Add an id to out, if it is of the size, or to the list of the size it has grown to."""
    if sizes[s] == size:
        out[count] = s
        return count + 1
    if 0 < sizes[s] < min_size:
        nexts[s] = heads[sizes[s]]
        heads[sizes[s]] = s
    return count


@njit(**_COMMON)
def _kernel_take_size(sizes, min_size, start, bounds, order, heads, nexts, out):
    """
    Write the ids of the least size from ``start`` on to out; return (size, count).

    Of the segments that had a size at first, and of those in the list of it
    (heads (min_size,), nexts (N + 1,)); those that have grown since move on.
    """
    for size in range(start, min_size):
        count = 0
        for k in range(bounds[size], bounds[size + 1]):
            count = _sort_in(order[k], size, sizes, min_size, heads, nexts, out, count)
        s = heads[size]
        while s != 0:
            after = nexts[s]
            count = _sort_in(s, size, sizes, min_size, heads, nexts, out, count)
            s = after
        if count > 0:
            return size, count
    return min_size, 0


@njit(**_COMMON)
def _kernel_means(sums, sizes, means):
    """Write sums (N + 1, B) / sizes to means, each rounded once to their dtype."""
    for s in range(1, sizes.shape[0]):
        _update_mean(sums, sizes, means, s)


@njit(inline='always', **_COMMON)
def _update_mean(sums, sizes, means, s):
    size = sums.dtype.type(sizes[s])
    for band in range(sums.shape[1]):
        means[s, band] = sums[s, band] / size


@njit(inline='always', **_COMMON)
def _measure_segments(means, a, b):
    """Return the squared distance of two segments, each step in the dtype of means."""
    kind = means.dtype.type
    total = kind(0)
    for band in range(means.shape[1]):
        difference = kind(means[a, band] - means[b, band])
        total = kind(total + kind(difference * difference))
    return total


@njit(inline='always', **_COMMON)
def _prefetch_around(s, labels, width, starts, pixels):
    """Ask for the labels around the pixels that are listed for a segment alone."""
    first, stop = starts[s], starts[s + 1]
    _prefetch(labels, max(pixels[first] - width, 0))
    for k in range(first, stop):
        _prefetch(labels, pixels[k])
    _prefetch(labels, min(pixels[stop - 1] + width, labels.shape[0] - 1))


@njit(inline='always', **_COMMON)
def _add_label(labels, q, s, before, found, n):
    """Put the label of a pixel to found at n, if it counts; return (n, before) as they are then."""
    label = labels[np.uint64(q)]
    found[n] = label
    is_new = (label != s) & (label != 0) & (label != before)
    return n + is_new, (label if is_new else before)


@njit(inline='always', **_COMMON)
def _list_neighbors(s, p, labels, width, four_connected, found, n):
    """
    Add the labels around a pixel of segment s to found, from n on; return the new n.

    Not its own, not null, and not the one added before. There must be room for
    nine. In raster order; written out, because loops of one to three steps take
    far longer than what is in them.
    """
    x = p % width
    is_left, is_right = x > 0, x < width - 1
    up, down = p - width, p + width
    before = s
    if up >= 0:
        if is_left and not four_connected:
            n, before = _add_label(labels, up - 1, s, before, found, n)
        n, before = _add_label(labels, up, s, before, found, n)
        if is_right and not four_connected:
            n, before = _add_label(labels, up + 1, s, before, found, n)
    if is_left:
        n, before = _add_label(labels, p - 1, s, before, found, n)
    if is_right:
        n, before = _add_label(labels, p + 1, s, before, found, n)
    if down < labels.shape[0]:
        if is_left and not four_connected:
            n, before = _add_label(labels, down - 1, s, before, found, n)
        n, before = _add_label(labels, down, s, before, found, n)
        if is_right and not four_connected:
            n, before = _add_label(labels, down + 1, s, before, found, n)
    return n


@njit(inline='always', **_COMMON)
def _find_nearest(s, above, labels, width, sizes, means, starts, pixels, following, four_connected,
                  low_first, found):
    """
    Return the nearest neighbor of a segment that is larger than ``above``, and its distance.

    The first met of equally near ones, or with ``low_first`` that of the lowest
    id; 0 if there is none. The distance is squared. ``found`` uint32 (9,) is
    scratch.
    """
    best, target = means.dtype.type(0), np.uint32(0)
    part = s
    while part != 0:
        for k in range(starts[part], starts[part + 1]):
            n = _list_neighbors(s, pixels[k], labels, width, four_connected, found, 0)
            for j in range(n):
                label = found[j]
                if label == target or sizes[label] <= above:
                    continue
                distance = _measure_segments(means, s, label)
                if target == 0 or distance < best or (
                        low_first and distance == best and label < target):
                    best, target = distance, label
        part = following[part]
    return target, best


@njit(**_COMMON)
def _kernel_choose_large(candidates, first, stop, labels, width, sizes, means, starts, pixels,
                         following, four_connected, limit, targets):
    """Do the same as :func:`_kernel_choose_targets` for segments of any size."""
    found = np.empty(9, np.uint32)
    for k in range(first, stop):
        s = candidates[k]
        target, distance = _find_nearest(s, sizes[s], labels, width, sizes, means, starts, pixels,
                                         following, four_connected, False, found)
        targets[k] = 0 if np.float64(distance) > limit else target


@njit(**_COMMON)
def _kernel_choose_targets(candidates, first, stop, labels, width, sizes, means, starts, pixels,
                           following, four_connected, limit, targets):
    """
    Write the segment that each candidate goes to, or 0, to targets uint32 (n,).

    That of the nearest mean among strictly larger neighbors, the first met of
    equally near ones, unless its squared distance is above the limit. All
    candidates have the same size, of at most MAX_LISTED pixels.

    Done for some candidates at a time in steps: list their neighbors, drop the
    small ones, measure, choose. Thus memory is waited for in parallel.
    """
    kind = means.dtype.type
    capacity = 8 * MAX_LISTED
    found, owners = np.empty(capacity + 1, np.uint32), np.empty(capacity + 1, np.int64)
    distances = np.empty(capacity, means.dtype)
    best = np.empty(capacity, means.dtype)
    size = sizes[candidates[first]] if first < stop else np.uint32(0)
    k = first
    while k < stop:
        begin = k
        n = 0
        while k < stop and k - begin < capacity and n + 8 * size <= capacity:
            if k + _AHEAD < stop:
                _prefetch_around(candidates[k + _AHEAD], labels, width, starts, pixels)
            s = candidates[k]
            part, before = s, n
            while part != 0:
                for j in range(starts[part], starts[part + 1]):
                    n = _list_neighbors(s, pixels[j], labels, width, four_connected, found, n)
                part = following[part]
            for j in range(before, n):
                owners[j] = k
            k += 1
        n_larger = 0
        for j in range(n):
            label = found[j]
            found[n_larger] = label
            owners[n_larger] = owners[j]
            n_larger += sizes[label] > size
        for j in range(n_larger):
            distances[j] = _measure_segments(means, candidates[owners[j]], found[j])
        for j in range(begin, k):
            targets[j] = 0
            best[j - begin] = kind(0)
        for j in range(n_larger):
            owner = owners[j]
            if targets[owner] == 0 or distances[j] < best[owner - begin]:
                best[owner - begin], targets[owner] = distances[j], found[j]
        for j in range(begin, k):
            if np.float64(best[j - begin]) > limit:
                targets[j] = 0


@njit(inline='always', **_COMMON)
def _merge(s, target, min_size, labels, sizes, firsts, sums, means, starts, pixels, following,
           last):
    """Merge a small segment into another one."""
    part = s
    while part != 0:
        for k in range(starts[part], starts[part + 1]):
            labels[pixels[k]] = target
        part = following[part]
    if sizes[target] < min_size:
        following[last[target]] = s
        last[target] = last[s]
    for band in range(sums.shape[1]):
        sums[target, band] += sums[s, band]
    sizes[target] += sizes[s]
    sizes[s] = 0
    firsts[target] = min(firsts[target], firsts[s])
    _update_mean(sums, sizes, means, target)


@njit(**_COMMON)
def _kernel_merge_targets(candidates, targets, min_size, labels, width, sizes, firsts, sums,
                          means, starts, pixels, following, last):
    """Merge the candidates that have a target; keep the others in front, return how many."""
    n_left = 0
    for k in range(candidates.shape[0]):
        if k + _AHEAD < candidates.shape[0]:
            _prefetch_around(candidates[k + _AHEAD], labels, width, starts, pixels)
            _prefetch(sizes, targets[k + _AHEAD])
        if targets[k] == 0:
            candidates[n_left] = candidates[k]
            n_left += 1
        else:
            _merge(candidates[k], targets[k], min_size, labels, sizes, firsts, sums, means,
                   starts, pixels, following, last)
    return n_left


@njit(**_COMMON)
def _kernel_settle(candidates, min_size, labels, width, sizes, firsts, sums, means, starts,
                   pixels, following, last, four_connected, limit):
    """
    Merge small segments into their nearest neighbors until none can be; return how many.

    candidates uint32 (n,), ascending. Each is looked at with all that was
    merged before it. A neighbor may have any size.
    """
    found = np.empty(9, np.uint32)
    n_merged = 0
    n_left = candidates.shape[0]
    while True:
        n_before = n_merged
        n_kept = 0
        for k in range(n_left):
            s = candidates[k]
            if sizes[s] == 0 or sizes[s] >= min_size:
                continue
            target, distance = _find_nearest(s, 0, labels, width, sizes, means, starts, pixels,
                                             following, four_connected, True, found)
            if target != 0 and not np.float64(distance) > limit:
                _merge(s, target, min_size, labels, sizes, firsts, sums, means, starts, pixels,
                       following, last)
                n_merged += 1
            else:
                candidates[n_kept] = s
                n_kept += 1
        n_left = n_kept
        if n_merged == n_before:
            return n_merged
