"""
Compiled inner loops of statistics of segments.

Each ``_kernel_*`` is private: :mod:`cocoseg.shepherd.band_stats` is the API, and
the unit tests hold a plain reference of each. There is one form of input:
labels are uint32, values are float64 with NaN where a pixel is not valid.
Whole numbers of up to 32 bits are exact in it, so that whole and real numbers
share their code, and each kernel compiles once.

Layout: results per segment are arrays by id, of length N + 1; entry 0 (null) is
never touched. "Runs" of a segment are its distinct values in ascending order,
with how often each occurs.
"""
import math

import numpy as np
from numba import njit

_COMMON = {'nogil': True, 'cache': True, 'error_model': 'numpy'}
# More values in one bin, and more bins, are better sorted by comparisons.
_MAX_BIN, _MAX_BINS = 32, 1 << 18
_HALF = np.uint64(32)
_LOW = np.uint64(0xffffffff)


@njit(**_COMMON)
def _kernel_mask(values, nodata):
    """Make what is nodata or not finite NaN, in a flat array."""
    for k in range(values.shape[0]):
        value = values[k]
        if value == nodata or not math.isfinite(value):
            values[k] = np.nan


# -- running sums. A run of pixels of one segment in a row is summed first, which
# saves most of the traffic with memory. Rows are never cut, so that the order of
# additions, and with it the result to the last bit, does not depend on the strips.

@njit(**_COMMON)
def _kernel_add_whole(labels, values, count, low, high, total, square_low, square_high):
    """
    Add a strip of whole numbers, below 2**32 in magnitude, to exact sums.

    labels, values (h, w). By id: count int64, low and high float64, total
    int64, and the sum of squares in two halves of 64 bits.
    """
    width = labels.shape[1]
    zero, one = np.uint64(0), np.uint64(1)
    for y in range(labels.shape[0]):
        x = 0
        while x < width:
            label = labels[y, x]
            if label == 0:
                x += 1
                continue
            n_run, run_total, run_low, run_high = 0, 0, np.inf, -np.inf
            squares, carry = zero, zero
            while x < width and labels[y, x] == label:
                value = values[y, x]
                x += 1
                if math.isnan(value):
                    continue
                number = np.int64(value)
                square = np.uint64(number) * np.uint64(number)
                squares += square
                if squares < square:
                    carry += one
                n_run += 1
                run_total += number
                run_low, run_high = min(run_low, value), max(run_high, value)
            if n_run == 0:
                continue
            count[label] += n_run
            total[label] += run_total
            low[label] = min(low[label], run_low)
            high[label] = max(high[label], run_high)
            square_low[label] += squares
            if square_low[label] < squares:
                carry += one
            square_high[label] += carry


@njit(**_COMMON)
def _multiply_wide(a, b):
    """Return the product of two uint64 in two halves, (high, low)."""
    a0, a1, b0, b1 = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    first, second, third = a0 * b0, a1 * b0, a0 * b1
    middle = (first >> _HALF) + (second & _LOW) + third
    high = a1 * b1 + (second >> _HALF) + (middle >> _HALF)
    return high, (middle << _HALF) | (first & _LOW)


@njit(**_COMMON)
def _kernel_finish_whole(count, total, square_low, square_high, mean, std):
    """Turn exact sums into the mean and the population's standard deviation."""
    for k in range(count.shape[0]):
        if count[k] == 0:
            mean[k] = std[k] = np.nan
            continue
        mean[k] = total[k] / count[k]
        n_pixels = np.uint64(count[k])
        # n * sum(v * v) - sum(v) ** 2 is exact in 128 bits, and n * n times the variance.
        high, low = _multiply_wide(square_low[k], n_pixels)
        high += square_high[k] * n_pixels
        other_high, other_low = _multiply_wide(np.uint64(abs(total[k])),
                                               np.uint64(abs(total[k])))
        borrow = np.uint64(low < other_low)
        low, high = low - other_low, high - other_high - borrow
        spread = np.float64(high) * 2.0 ** 64 + np.float64(low)
        std[k] = math.sqrt(spread) / count[k]


@njit(**_COMMON)
def _kernel_add_real(labels, values, count, low, high, base, mean, spread):
    """
    Add a strip of any numbers to running means and sums of squared deviations.

    As :func:`_kernel_add_whole`; base is the first value of each segment, and mean
    counts from there. A run is summed as differences from its own first value, and
    merged by the formula of Chan, Golub and LeVeque: little is lost where values
    are large and alike.
    """
    width = labels.shape[1]
    for y in range(labels.shape[0]):
        x = 0
        while x < width:
            label = labels[y, x]
            if label == 0:
                x += 1
                continue
            n_run, run_low, run_high = 0, np.inf, -np.inf
            run_base, first_sum, second_sum = 0.0, 0.0, 0.0
            while x < width and labels[y, x] == label:
                value = values[y, x]
                x += 1
                if math.isnan(value):
                    continue
                if n_run == 0:
                    run_base = value
                difference = value - run_base
                first_sum += difference
                second_sum += difference * difference
                n_run += 1
                run_low, run_high = min(run_low, value), max(run_high, value)
            if n_run == 0:
                continue
            before = count[label]
            n_all = before + n_run
            if before == 0:
                base[label] = run_base
            step = run_base - base[label] + first_sum / n_run - mean[label]
            count[label] = n_all
            low[label] = min(low[label], run_low)
            high[label] = max(high[label], run_high)
            spread[label] += max(second_sum - first_sum * first_sum / n_run, 0.0)
            if before == 0:
                mean[label] += step
            else:
                mean[label] += step * (n_run / n_all)
                spread[label] += step * step * (before * (n_run / n_all))


# -- distributions. A batch of pixels is brought into the order of its segments,
# each segment's new values are sorted (or counted) and merged with its runs so
# far. Segments that are complete are measured and forgotten.

@njit(**_COMMON)
def _kernel_index(labels, values, slots, ids, sizes, n_ids):
    """
    Give each segment with a valid value in a batch a slot; return how many there are.

    labels, values (n,). slots (N + 1,) int32 is -1 where there is none yet,
    ids[slot] is the segment and sizes[slot] counts its valid values; the first
    ``n_ids`` are there already.
    """
    for k in range(labels.shape[0]):
        label = labels[k]
        if label == 0 or math.isnan(values[k]):
            continue
        slot = slots[label]
        if slot < 0:
            slot = slots[label] = n_ids
            ids[n_ids] = label
            n_ids += 1
        sizes[slot] += 1
    return n_ids


@njit(**_COMMON)
def _kernel_bucket(labels, values, slots, cursors, out):
    """Bring the valid values of a batch into the order of slots; moves the cursors."""
    for k in range(labels.shape[0]):
        label, value = labels[k], values[k]
        if label == 0 or math.isnan(value):
            continue
        slot = slots[label]
        out[cursors[slot]] = value
        cursors[slot] += 1


@njit(**_COMMON)
def _spread_values(part, low, high, tally, scratch):
    """
    Sort values, not all equal: into as many bins as there are, and on from there.

    tally has room for one entry more than there are values, or _MAX_BINS.
    """
    n_values = part.shape[0]
    scale = (n_values - 1) / (high - low)
    # Not where the difference of the two is next to nothing, or infinite.
    if not 0 < scale < np.inf or n_values >= _MAX_BINS:
        part.sort()
        return
    starts = tally[:n_values + 1]
    starts[:] = 0
    for k in range(n_values):
        starts[np.int64((part[k] - low) * scale) + 1] += 1
    fullest = 0
    for k in range(n_values):
        fullest = max(fullest, starts[k + 1])
        starts[k + 1] += starts[k]
    if fullest > _MAX_BIN:
        part.sort()
        return
    for k in range(n_values):
        place = np.int64((part[k] - low) * scale)
        scratch[starts[place]] = part[k]
        starts[place] += 1
    # What is out of place is so within its bin, by few steps.
    for k in range(n_values):
        value, place = scratch[k], k
        while place > 0 and part[place - 1] > value:
            part[place] = part[place - 1]
            place -= 1
        part[place] = value


@njit(**_COMMON)
def _make_runs(part, is_whole, tally, scratch, run_values, run_counts):
    """Find the runs of some values, which are left in any order; return how many."""
    n_values, n_runs = part.shape[0], 0
    if n_values == 0:
        return 0
    low = high = part[0]
    for k in range(n_values):
        low, high = min(low, part[k]), max(high, part[k])
    if is_whole and high - low < min(4 * n_values, _MAX_BINS):
        size = np.int64(high - low) + 1
        tally[:size] = 0
        for k in range(n_values):
            tally[np.int64(part[k] - low)] += 1
        for k in range(size):
            if tally[k]:
                run_values[n_runs], run_counts[n_runs] = low + k, tally[k]
                n_runs += 1
        return n_runs
    if low < high:
        _spread_values(part, low, high, tally, scratch)
    last = part[0]
    run_values[0] = last
    count = 0
    for k in range(n_values):
        if part[k] != last:
            run_counts[n_runs] = count
            last, count = part[k], 0
            n_runs += 1
            run_values[n_runs] = last
        count += 1
    run_counts[n_runs] = count
    return n_runs + 1


@njit(**_COMMON)
def _merge_runs(values, counts, n_runs, old_values, old_counts, out_values, out_counts, place):
    """Merge runs with older ones, written from ``place`` on; return where they end."""
    k, old = 0, 0
    n_old = old_values.shape[0]
    while k < n_runs or old < n_old:
        takes_old = old < n_old and (k == n_runs or old_values[old] <= values[k])
        takes_new = k < n_runs and (not takes_old or old_values[old] == values[k])
        out_values[place] = old_values[old] if takes_old else values[k]
        out_counts[place] = ((old_counts[old] if takes_old else 0)
                             + (counts[k] if takes_new else 0))
        old += takes_old
        k += takes_new
        place += 1
    return place


@njit(**_COMMON)
def _measure_runs(values, counts, percents, wants_mode, out):
    """
    Write percentiles, and the mode behind them, of the runs of a segment.

    A percentile is the least value up to which there are at least n * p / 100
    values; of several modes the least counts.
    """
    n_values, mode = 0, 0
    for k in range(counts.shape[0]):
        n_values += counts[k]
        if counts[k] > counts[mode]:
            mode = k
    for place in range(percents.shape[0]):
        wanted = n_values * percents[place] / 100.0
        k, reached = 0, counts[0]
        while reached < wanted and k < counts.shape[0] - 1:
            k += 1
            reached += counts[k]
        out[place] = values[k]
    if wants_mode:
        out[percents.shape[0]] = values[mode]


@njit(**_COMMON)
def _kernel_merge(ids, starts, fresh, last_rows, stop, is_whole, percents, wants_mode, results,
                  old_starts, old_values, old_counts, new_values, new_counts, new_starts):
    """
    Merge a batch into the runs of its segments, and measure those that are complete.

    Of slot k, fresh[starts[k]:starts[k + 1]] are the new values and
    old_values[old_starts[k]:old_starts[k + 1]] the runs so far, if k is among
    those. A segment whose last row is above ``stop`` is complete: results[id]
    gets its figures. The others are moved to the front: their ids, and their
    runs in new_values and new_counts. Returns how many these are.
    """
    n_ids, n_old, widest = ids.shape[0], old_starts.shape[0] - 1, 1
    for k in range(n_ids):
        widest = max(widest, starts[k + 1] - starts[k])
    tally = np.empty(min(4 * widest + 1, _MAX_BINS), np.int64)
    scratch = np.empty(widest, np.float64)
    run_values, run_counts = np.empty(widest, np.float64), np.empty(widest, np.int64)
    place, n_left = 0, 0
    for k in range(n_ids):
        part, label = fresh[starts[k]:starts[k + 1]], ids[k]
        if k < n_old:
            n_runs = _make_runs(part, is_whole, tally, scratch, run_values, run_counts)
            older = slice(old_starts[k], old_starts[k + 1])
            end = _merge_runs(run_values, run_counts, n_runs, old_values[older],
                              old_counts[older], new_values, new_counts, place)
        else:
            end = place + _make_runs(part, is_whole, tally, scratch, new_values[place:],
                                     new_counts[place:])
        if last_rows[label] < stop:
            _measure_runs(new_values[place:end], new_counts[place:end], percents, wants_mode,
                          results[label])
        else:
            ids[n_left], new_starts[n_left] = label, place
            n_left, place = n_left + 1, end
    new_starts[n_left] = place
    return n_left


# -- pixels, for functions of users

@njit(**_COMMON)
def _kernel_take_pixels(labels, values, slots, cursors, y0, out_x, out_y, out_values):
    """
    Bring the pixels of a strip that are valid in all bands into the order of slots.

    labels (h, w), values (B, h, w), out_values (n, B); the strip begins at row y0.
    """
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label == 0:
                continue
            is_valid = True
            for band in range(values.shape[0]):
                is_valid &= not math.isnan(values[band, y, x])
            if not is_valid:
                continue
            place = cursors[slots[label]]
            cursors[slots[label]] = place + 1
            out_x[place], out_y[place] = x, y0 + y
            for band in range(values.shape[0]):
                out_values[place, band] = values[band, y, x]


@njit(**_COMMON)
def _kernel_move_pixels(slots, begins, ends, xs, ys, values, cursors, out_x, out_y, out_values):
    """Copy the pixels of each k to where the cursor of slots[k] is; moves the cursors."""
    for k in range(slots.shape[0]):
        slot, begin, end = slots[k], begins[k], ends[k]
        place = cursors[slot]
        out_x[place:place + end - begin] = xs[begin:end]
        out_y[place:place + end - begin] = ys[begin:end]
        out_values[place:place + end - begin] = values[begin:end]
        cursors[slot] = place + end - begin
