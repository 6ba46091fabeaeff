"""
Statistics of the values of one band, built up strip by strip from the top.

Three collectors, each for what it alone can do: :class:`Moments` keeps sums,
:class:`Distributions` the values of segments that are not complete yet, and
:class:`SegmentPixels` their pixels, for functions of users. A segment is
complete when its last row has been seen; its values are forgotten then. The
results do not depend on how high the strips are.
"""
from __future__ import annotations

import numpy as np

from cocoseg.errors import OptionError

# A whole number beyond these would not be exact in all the sums.
_LEAST, _MOST = -2 ** 31, 2 ** 32 - 1


def as_values(block, nodata=None, name='image'):
    """
    Return pixels as float64, with NaN where they are not valid.

    Args:
        block (ndarray): one band, shape (h, w). Never modified.
        nodata (float | None): value of invalid pixels; those that are not
            finite are invalid, too.
        name (str): what it is, for messages.

    Returns:
        ndarray: float64, shape (h, w), new.

    Raises:
        OptionError: if 64-bit whole numbers do not fit in 32 bits.

    Example:
        >>> from cocoseg.shepherd.band_stats import as_values
        >>> as_values(np.array([[7, 0]], np.uint8), nodata=0).tolist()
        [[7.0, nan]]
    """
    if block.dtype.kind in 'iu' and block.dtype.itemsize == 8:
        # What is nodata may be any number.
        checked = block if nodata is None else block[block != nodata]
        low, high = int(checked.min(initial=0)), int(checked.max(initial=0))
        if low < _LEAST or high > _MOST:
            raise OptionError(f'{name} holds values {low}..{high}; whole numbers must be in '
                              f'{_LEAST}..{_MOST}: convert them to float64')
    values = np.array(block, np.float64, order='C')
    if nodata is not None and block.dtype.kind == 'f':
        with np.errstate(over='ignore'):
            nodata = float(block.dtype.type(nodata))
    if nodata is not None or block.dtype.kind == 'f':
        from cocoseg.shepherd.stats_kernels import _kernel_mask
        _kernel_mask(values.reshape(-1), np.nan if nodata is None else float(nodata))
    return values


class Moments:
    """
    Count, extremes, mean and standard deviation of every segment.

    Sums of whole numbers are exact. Of floats the mean and the deviation from it
    are kept up to date, good to about 1e-12.

    Args:
        n_labels (int): largest id.
        is_whole (bool): all values are whole numbers of up to 32 bits.

    Example:
        >>> from cocoseg.shepherd.band_stats import Moments
        >>> moments = Moments(1, is_whole=True)
        >>> moments.add(np.array([[1, 1, 0]], np.uint32), np.array([[2.0, 4.0, 9.0]]))
        >>> {name: values[1].item() for name, values in moments.finish().items()}
        {'count': 2, 'min': 2.0, 'max': 4.0, 'mean': 3.0, 'std': 1.0}
    """

    def __init__(self, n_labels, is_whole):
        size = n_labels + 1
        self._is_whole = is_whole
        self._count = np.zeros(size, np.int64)
        self._low, self._high = np.full(size, np.inf), np.full(size, -np.inf)
        if is_whole:
            self._sums = (np.zeros(size, np.int64), np.zeros(size, np.uint64),
                          np.zeros(size, np.uint64))
        else:
            self._sums = np.zeros(size), np.zeros(size), np.zeros(size)

    def add(self, labels, values):
        """Add a strip: labels uint32 (h, w), values of :func:`as_values`."""
        from cocoseg.shepherd.stats_kernels import _kernel_add_real, _kernel_add_whole
        kernel = _kernel_add_whole if self._is_whole else _kernel_add_real
        kernel(labels, values, self._count, self._low, self._high, *self._sums)

    def finish(self):
        """Return float64 (N + 1,) by name, NaN where nothing is valid; counts are int64."""
        from cocoseg.shepherd.stats_kernels import _kernel_finish_whole
        if self._is_whole:
            mean, std = np.empty(len(self._count)), np.empty(len(self._count))
            _kernel_finish_whole(self._count, *self._sums, mean, std)
        else:
            base, mean, spread = self._sums
            mean += base
            is_empty = self._count == 0
            std = np.sqrt(spread / np.maximum(self._count, 1))
            mean[is_empty] = std[is_empty] = np.nan
        for bound in (self._low, self._high):
            bound[self._count == 0] = np.nan
        return {'count': self._count, 'min': self._low, 'max': self._high, 'mean': mean,
                'std': std}


class Distributions:
    """
    Percentiles and mode of every segment.

    Keeps, of each segment that is not complete, the distinct values and how
    often each occurs; and a batch of pixels, at most as many as these. So the
    merging of batches stays cheap, even for a segment that is nearly the image.

    Args:
        last_rows (ndarray): int32, shape (N + 1,), last row of each segment.
        percents (Sequence[float]): in 0..100.
        wants_mode (bool): the most frequent value, too.
        is_whole (bool): all values are whole numbers.

    Example:
        >>> from cocoseg.shepherd.band_stats import Distributions
        >>> found = Distributions(np.array([-1, 0]), [0, 50], True, is_whole=True)
        >>> found.add(np.array([[1, 1, 1]], np.uint32), np.array([[2.0, 4.0, 4.0]]), stop=1)
        >>> found.finish(1)[1].tolist()
        [2.0, 4.0, 4.0]
    """

    def __init__(self, last_rows, percents, wants_mode, is_whole):
        self._last_rows, self._is_whole = last_rows, is_whole
        self._percents, self._wants_mode = np.array(percents, np.float64), wants_mode
        self._results = np.full((len(last_rows), len(percents) + wants_mode), np.nan)
        self._slots = np.full(len(last_rows), -1, np.int32)
        # The runs so far: those of ids[k] are from starts[k] to starts[k + 1].
        self._ids, self._starts = np.empty(0, np.uint32), np.zeros(1, np.int64)
        self._values, self._counts = np.empty(0), np.empty(0, np.int64)
        self._batch, self._n_waiting = [], 0

    @property
    def n_runs(self):
        """How many distinct values of segments are held."""
        return len(self._values)

    def add(self, labels, values, stop):
        """Add a strip, as for :meth:`Moments.add`, that ends before the row ``stop``."""
        self._batch.append((labels.reshape(-1), values.reshape(-1)))
        self._n_waiting += labels.size
        if self._n_waiting >= self.n_runs:
            self._merge(stop)

    def _merge(self, stop):
        from cocoseg.shepherd.stats_kernels import (
            _kernel_bucket, _kernel_index, _kernel_merge)
        n_ids, capacity = len(self._ids), min(self._n_waiting, len(self._slots))
        ids = np.concatenate([self._ids, np.empty(capacity, np.uint32)])
        sizes = np.zeros(len(ids), np.int64)
        self._slots[self._ids] = np.arange(n_ids, dtype=np.int32)
        for labels, values in self._batch:
            n_ids = _kernel_index(labels, values, self._slots, ids, sizes, n_ids)
        ids, starts = ids[:n_ids].copy(), _make_starts(sizes[:n_ids])
        fresh, cursors = np.empty(starts[-1]), starts[:-1].copy()
        for labels, values in self._batch:
            _kernel_bucket(labels, values, self._slots, cursors, fresh)
        self._slots[ids] = -1
        self._batch, self._n_waiting = [], 0
        values = np.empty(len(fresh) + self.n_runs)
        counts, new_starts = np.empty(len(values), np.int64), np.empty(n_ids + 1, np.int64)
        n_left = _kernel_merge(ids, starts, fresh, self._last_rows, stop, self._is_whole,
                               self._percents, self._wants_mode, self._results, self._starts,
                               self._values, self._counts, values, counts, new_starts)
        self._ids, self._starts = ids[:n_left].copy(), new_starts[:n_left + 1].copy()
        n_runs = self._starts[-1]
        self._values, self._counts = values[:n_runs].copy(), counts[:n_runs].copy()

    def finish(self, stop):
        """Return float64 (N + 1, P): percentiles, then the mode; NaN where nothing is valid."""
        self._merge(stop)
        return self._results


class SegmentPixels:
    """
    Gather the pixels of every segment, and call functions with them.

    A segment's pixels are held until it is complete, as they are: 16 bytes, and
    8 per band, for each.

    Args:
        last_rows (ndarray): as for :class:`Distributions`.
        users (Sequence[UserStat]): all joint, or none.
        n_bands (int): 1 unless they are joint.

    Example:
        >>> from cocoseg.shepherd.band_stats import SegmentPixels
        >>> from cocoseg.shepherd.statspec import UserStat
        >>> spread = UserStat(lambda x, y, values, param: np.ptp(values) * param, 10)
        >>> pixels = SegmentPixels(np.array([-1, 0]), [spread])
        >>> pixels.add(np.array([[1, 1]], np.uint32), np.array([[[2.0, 5.0]]]), 0, 1)
        >>> float(pixels.finish(1)[0][1])
        30.0
    """

    def __init__(self, last_rows, users, n_bands=1):
        from cocoseg.shepherd.user_stats import load_function
        self._last_rows, self._users = last_rows, users
        self._functions = [load_function(user.func) for user in users]
        self._results = [np.full(len(last_rows), np.nan) for _ in users]
        self._slots = np.full(len(last_rows), -1, np.int32)
        self._ids, self._starts = np.empty(0, np.uint32), np.zeros(1, np.int64)
        self._pixels = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, n_bands)))
        self._batch, self._n_waiting = [], 0

    def add(self, labels, values, first, stop):
        """Add a strip of rows ``first`` to ``stop``: labels (h, w), values (B, h, w)."""
        self._batch.append((labels, values, first))
        self._n_waiting += labels.size
        if self._n_waiting >= len(self._pixels[0]):
            self._gather(stop)

    def _gather(self, stop):
        from cocoseg.shepherd.stats_kernels import (
            _kernel_index, _kernel_move_pixels, _kernel_take_pixels)
        n_old = n_ids = len(self._ids)
        ids = np.concatenate([self._ids, np.empty(min(self._n_waiting, len(self._slots)),
                                                  np.uint32)])
        sizes = np.zeros(len(ids), np.int64)
        sizes[:n_old] = np.diff(self._starts)
        self._slots[self._ids] = np.arange(n_old, dtype=np.int32)
        for labels, values, _ in self._batch:
            valid = values[0] if len(values) == 1 else np.where(
                np.isnan(values).any(axis=0), np.nan, 0.0)
            n_ids = _kernel_index(labels.reshape(-1), valid.reshape(-1), self._slots, ids, sizes,
                                  n_ids)
        ids, starts = ids[:n_ids].copy(), _make_starts(sizes[:n_ids])
        pixels, cursors = self._allocate(starts[-1]), starts[:-1].copy()
        # The older ones first: they are above, and come first in raster order.
        _kernel_move_pixels(np.arange(n_old), self._starts[:-1], self._starts[1:], *self._pixels,
                            cursors, *pixels)
        for labels, values, first in self._batch:
            _kernel_take_pixels(labels, values, self._slots, cursors, first, *pixels)
        self._slots[ids] = -1
        self._batch, self._n_waiting = [], 0
        is_done = self._last_rows[ids] < stop
        begins, ends = starts[:-1], starts[1:]
        self._call(ids[is_done], begins[is_done], ends[is_done], pixels)
        begins, ends = begins[~is_done], ends[~is_done]
        self._ids, self._starts = ids[~is_done], _make_starts(ends - begins)
        self._pixels = self._allocate(self._starts[-1])
        _kernel_move_pixels(np.arange(len(begins)), begins, ends, *pixels,
                            self._starts[:-1].copy(), *self._pixels)

    def _allocate(self, n_pixels):
        return (np.empty(n_pixels, np.int64), np.empty(n_pixels, np.int64),
                np.empty((n_pixels, self._pixels[2].shape[1])))

    def _call(self, ids, begins, ends, pixels):
        from cocoseg.shepherd.user_stat_kernels import get_caller
        x, y, values = pixels
        for user, (function, is_compiled), out in zip(self._users, self._functions,
                                                      self._results):
            if is_compiled:
                get_caller(function, user.is_joint)(ids, begins, ends, x, y, values, user.param,
                                                    out)
                continue
            given = values if user.is_joint else values[:, 0]
            for label, begin, end in zip(ids.tolist(), begins.tolist(), ends.tolist()):
                part = slice(begin, end)
                out[label] = function(x[part], y[part], given[part], user.param)

    def finish(self, stop):
        """Return float64 (N + 1,) for each function; NaN where it was not called."""
        self._gather(stop)
        return self._results


def _make_starts(sizes):
    """Return where each of some parts begins, and where the last one ends."""
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts
