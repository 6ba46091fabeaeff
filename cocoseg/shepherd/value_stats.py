"""
Statistics of the values of all bands, of the whole image or a part of its segments.

The strips of a part are read once, from the first row of its segments to the
last, and only its own segments are measured. What comes of a segment does not
depend on the part: it sees the same pixels in the same order.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from cocoseg.engine.timings import Timings
from cocoseg.io.strips import Source, iter_strips, read_ahead
from cocoseg.labels.relabel import apply_lut
from cocoseg.machine import split_rows
from cocoseg.shepherd.band_stats import Distributions, Moments, SegmentPixels, as_values
from cocoseg.shepherd.statspec import MOMENTS

# More parts than workers, so that none waits long at the end.
_PARTS_PER_WORKER = 2
# What is sent to a worker, and comes back, is some MB for so many.
_MAX_SEGMENTS = 1 << 18
_MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class ValueResults:
    """
    What was measured, by id or by place in the ids of a part; entry 0 is null.

    Attributes:
        bands (list[dict[str, ndarray]]): arrays (n + 1,) by column, per band.
        joint (dict[str, ndarray]): of all bands together.
    """

    bands: list
    joint: dict


@dataclass(frozen=True)
class SegmentPart:
    """
    Some segments, and the rows that they are in.

    Attributes:
        first, stop (int): rows.
        n_labels (int): largest id of the image.
        ids (ndarray): uint32 (n,), of the segments, ascending.
        last_rows (ndarray): int32 (n,), of each.
    """

    first: int
    stop: int
    n_labels: int
    ids: np.ndarray
    last_rows: np.ndarray


@dataclass(frozen=True)
class ValueStats:
    """
    How values of segments are measured. Can be pickled, if functions of users can.

    Attributes:
        segments, image (Source): of the same size.
        bands (tuple[int, ...]): of the image.
        nodata (tuple[float | None, ...]): of each of them.
        stats (tuple[Stat, ...]): none of the shape.
        rows (int): that are read at a time.
        num_threads (int): see :func:`cocoseg.segment_stats`.

    Example:
        >>> from cocoseg.shepherd.statspec import parse_stats
        >>> from cocoseg.shepherd.value_stats import SegmentPart, ValueStats
        >>> sources = Source.open(np.array([[1], [4], [4]])), Source.open(np.array([[7], [8], [6]]))
        >>> measure = ValueStats(*sources, (0,), (None,), parse_stats('mean'), rows=2)
        >>> part = SegmentPart(0, 3, 4, np.array([4], np.uint32), np.array([2], np.int32))
        >>> measure(part)[0].bands[0]['mean'].tolist()
        [nan, 7.0]
    """

    segments: Source
    image: Source
    bands: tuple
    nodata: tuple
    stats: tuple
    rows: int
    num_threads: int = 1

    def __call__(self, part):
        """Measure the segments of a part; return ValueResults by place, and Timings."""
        timings = Timings()
        lut = np.zeros(part.n_labels + 1, np.uint32)
        lut[part.ids] = np.arange(1, len(part.ids) + 1)
        last_rows = np.concatenate([np.array([-1], np.int32), part.last_rows])
        return self.measure(last_rows, timings, part.first, part.stop, lut), timings

    def measure(self, last_rows, timings, first=0, stop=None, lut=None, progress=None):
        """
        Measure segments from the top.

        Args:
            last_rows (ndarray): int32 (n + 1,), last row of each.
            timings (Timings): gets 'reading', 'accumulation' and 'completion'.
            first, stop (int | None): rows; None is all.
            lut (ndarray | None): uint32, by label, that is measured in its
                place, 0 for none.
            progress (Callable | None): see :func:`cocoseg.segment_stats`.

        Returns:
            ValueResults: by id.
        """
        stop = self.segments.shape[0] if stop is None else stop
        # Those of the whole image, which suit its tiles, but for the first and the last.
        begin = first // self.rows * self.rows
        strips = [(max(begin + top, first), begin + bottom)
                  for top, bottom in iter_strips(stop - begin, self.rows)]
        is_whole = self.image.dtype.kind in 'biu'
        bands = [_Band(self.stats, last_rows, is_whole) for _ in self.bands]
        joint = _Joint(self.stats, last_rows, len(self.bands))

        def read(top, bottom):
            with timings.interval('reading'):
                labels = self.segments.read_labels(top, bottom)
                if lut is not None:
                    # What was read may be a view of the caller's array.
                    labels = labels.copy()
                    apply_lut(lut, labels)
                return labels, self.image.read_rows(top, bottom, self.bands)

        found = read_ahead(read, strips, ahead=self.num_threads > 1)
        if progress is not None:
            found = progress(found, total=len(strips), desc='values')
        with ExitStack() as stack:
            n_threads = min(self.num_threads, len(bands))
            share = (stack.enter_context(ThreadPoolExecutor(n_threads, 'cocoseg-stats')).map
                     if n_threads > 1 else map)
            for (top, bottom), (labels, block) in found:
                with timings.interval('accumulation'):
                    self._add(bands, joint, share, (labels, block, top, bottom))
            with timings.interval('completion'):
                list(share(lambda band: band.finish(stop), bands))
                joint.finish(stop)
        return ValueResults([band.results for band in bands], joint.results)

    def _add(self, bands, joint, share, strip):
        labels, block, top, bottom = strip

        def add(place):
            values = as_values(block[:, :, place], self.nodata[place], self.image.name)
            bands[place].add(labels, values, top, bottom)
            return values if joint.is_wanted else None

        joint.add(labels, list(share(add, range(len(bands)))), top, bottom)


def count_parts(n_workers, shape):
    """
    Return how many parts of an image are measured alone.

    Example:
        >>> from cocoseg.shepherd.value_stats import count_parts
        >>> count_parts(2, (1000, 1000)), count_parts(2, (100_000, 100_000))
        (4, 150)
    """
    return max(_PARTS_PER_WORKER * n_workers, -(-shape[0] * shape[1] // _MAX_PIXELS))


def divide_rows(height, rows, n_parts):
    """
    Divide rows into at most so many spans of whole strips, as even as that can be.

    Returns:
        list[tuple[int, int]]: first row and row after the last of each.

    Example:
        >>> from cocoseg.shepherd.value_stats import divide_rows
        >>> divide_rows(55, rows=10, n_parts=4)
        [(0, 10), (10, 30), (30, 40), (40, 55)]
    """
    strips = list(iter_strips(height, rows))
    return [(strips[first][0], strips[stop - 1][1])
            for first, stop in split_rows(len(strips), n_parts)]


def divide_segments(ids, first_rows, last_rows, rows, n_parts):
    """
    Divide segments into parts that are measured alone.

    A part has those that end in some of the rows. Those that are higher than
    that have a part of their own, for which all rows may be read once more.

    Args:
        ids (ndarray): uint32, that occur.
        first_rows, last_rows (ndarray): int32 (N + 1,), by id.
        rows (int): of a strip.
        n_parts (int): about so many.

    Returns:
        list[SegmentPart]: none empty; each id is in one.

    Example:
        >>> from cocoseg.shepherd.value_stats import divide_segments
        >>> first, last = np.array([0, 0, 3, 0], np.int32), np.array([-1, 1, 3, 3], np.int32)
        >>> parts = divide_segments(np.array([1, 2, 3], np.uint32), first, last, 1, 2)
        >>> [(part.first, part.stop, part.ids.tolist()) for part in parts]
        [(0, 4, [3]), (0, 2, [1]), (3, 4, [2])]
    """
    if not len(ids):
        return []
    firsts, lasts = first_rows[ids], last_rows[ids]
    spans = divide_rows(int(lasts.max()) + 1, rows, n_parts)
    keys = np.searchsorted([stop for _, stop in spans], lasts, side='right') + 1
    keys[lasts - firsts >= max(stop - first for first, stop in spans)] = 0
    order = np.argsort(keys, kind='stable')
    groups = [piece for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
              for piece in np.array_split(group, -(-len(group) // _MAX_SEGMENTS))]
    return [SegmentPart(int(firsts[group].min()), int(lasts[group].max()) + 1,
                        len(last_rows) - 1, ids[group], lasts[group]) for group in groups]


def join_parts(parts, n_labels):
    """
    Return the results of all segments, from those of parts.

    Args:
        parts (Iterable[tuple[SegmentPart, ValueResults]]): at least one.
        n_labels (int): largest id.

    Returns:
        ValueResults: by id; 0 or NaN where an id is in no part.
    """
    whole = None
    for part, results in parts:
        if whole is None:
            whole = ValueResults([_allocate(columns, n_labels) for columns in results.bands],
                                 _allocate(results.joint, n_labels))
        for out, columns in zip([*whole.bands, whole.joint], [*results.bands, results.joint]):
            for name, values in columns.items():
                out[name][part.ids] = values[1:]
    return whole


def _allocate(columns, n_labels):
    return {name: np.full(n_labels + 1, 0 if values.dtype.kind == 'i' else np.nan, values.dtype)
            for name, values in columns.items()}


class _Band:
    """What is collected of one band."""

    def __init__(self, stats, last_rows, is_whole):
        self._stats = stats
        kinds = {stat.kind for stat in stats}
        self._percents = [stat.percent for stat in stats if stat.percent is not None]
        self._wants_mode = 'mode' in kinds
        self._users = [stat for stat in stats if stat.user is not None and not stat.is_joint]
        self._moments = (Moments(len(last_rows) - 1, is_whole) if kinds & set(MOMENTS) else None)
        self._distributions = (
            Distributions(last_rows, self._percents, self._wants_mode, is_whole)
            if self._percents or self._wants_mode else None)
        self._pixels = (SegmentPixels(last_rows, [stat.user for stat in self._users])
                        if self._users else None)
        self.results = {}

    def add(self, labels, values, first, stop):
        if self._moments is not None:
            self._moments.add(labels, values)
        if self._distributions is not None:
            self._distributions.add(labels, values, stop)
        if self._pixels is not None:
            self._pixels.add(labels, values[None], first, stop)

    def finish(self, height):
        if self._pixels is not None:
            self.results.update(zip([stat.column for stat in self._users],
                                    self._pixels.finish(height)))
        moments = self._moments.finish() if self._moments is not None else {}
        orders = (self._distributions.finish(height) if self._distributions is not None
                  else None)
        place = 0
        for stat in self._stats:
            if stat.kind in MOMENTS:
                self.results[stat.column] = moments[stat.kind]
            elif stat.percent is not None:
                self.results[stat.column] = orders[:, place]
                place += 1
            elif stat.kind == 'mode':
                self.results[stat.column] = orders[:, -1]


class _Joint:
    """What is collected of all bands together."""

    def __init__(self, stats, last_rows, n_bands):
        users = [stat for stat in stats if stat.is_joint]
        self._columns = [stat.column for stat in users]
        self._pixels = (SegmentPixels(last_rows, [stat.user for stat in users], n_bands)
                        if users else None)
        self.results = {}

    @property
    def is_wanted(self):
        return self._pixels is not None

    def add(self, labels, values, first, stop):
        if self.is_wanted:
            self._pixels.add(labels, np.stack(values), first, stop)

    def finish(self, height):
        if self.is_wanted:
            self.results = dict(zip(self._columns, self._pixels.finish(height)))
