"""
Statistics of segments, for rasters of any size.

The labels are read twice, strip by strip from the top: once for the shapes of
the segments and the last row of each, and once beside the image, all bands of
it in that one pass. A segment's values are held only until its last row.
"""
from __future__ import annotations

import numbers
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from cocoseg.engine.timings import Timings
from cocoseg.errors import OptionError
from cocoseg.io.cog import check_num_threads
from cocoseg.io.strips import (
    Source, check_same_grid, choose_strip_rows, iter_strips, read_ahead)
from cocoseg.shepherd.band_stats import Distributions, Moments, SegmentPixels, as_values
from cocoseg.shepherd.segment_table import SegmentTable
from cocoseg.shepherd.shape_stats import ShapeStats
from cocoseg.shepherd.statspec import MOMENTS, ORDERS, check_distinct, parse_stats

DEFAULT_STATS = ('count', 'mean', 'std')
# Stands for no valid pixel where a column is of whole numbers.
MISSING = -9999


def segment_stats(image, segments, stats=DEFAULT_STATS, *, bands=None, nodata='file',
                  missing=None, transform=None, block_rows=None, num_threads=1, timings=None,
                  progress=None):
    """
    Measure every segment: its shape, and its values in each band.

    Of the valid pixels of a band:

    * 'count', 'min', 'max', 'mean', 'std' (of the population);
    * 'percentile:P' or 'pP', the least value up to which there are at least
      count * P / 100 values, without interpolation; 'median' is 'p50';
    * 'mode', the most frequent value, the least of several;
    * 'variogram:D', see :func:`cocoseg.shepherd.user_stats.variogram`.

    Of the labels, also without an image: 'area' (px), 'bbox' (px, half-open),
    'centroid' (px), 'perimeter' (edges of pixels to other labels, null, or the
    outside), 'n_edge_pixels' (pixels with another label, null or the outside
    among their 8 neighbors), 'n_edge_pixels:4', and in units of the coordinate
    system 'area_crs' and 'centroid_crs'. Coordinates count from the top-left
    corner of the image; the center of its first pixel is (0.5, 0.5).

    Whole numbers are summed exactly, and mean and std are rounded once or
    twice; those of floats are good to about 1e-12 of the largest value. All
    others are exact. Nothing depends on ``block_rows`` or ``num_threads``.

    Args:
        image (str | PathLike | ndarray | None): a path that GDAL opens, or
            (H, W) or (H, W, B), whole numbers or floats. None if no values are
            wanted.
        segments (str | PathLike | ndarray): a path, or (H, W) whole numbers; 0,
            and the nodata value of a file, is null. Of the same size as
            ``image``, and where both are files at the same place.
        stats (str | Sequence): names, or pairs of a name for the column and a
            statistic or a :class:`~cocoseg.shepherd.statspec.UserStat`; names
            may come in one string with commas.
        bands (Sequence[int] | None): of the image, counted from 0; None is all.
            Where there are several, the columns of a statistic end with the
            band's name, as in 'mean_red', or its number, as in 'mean_b0'.
        nodata (float | Sequence[float | None] | str | None): value of invalid
            pixels: one, or one for each of ``bands``; None is none. 'file' is
            each band's own, of a file. Pixels that are not finite are always
            invalid.
        missing (float | None): goes where a segment has no valid pixel. None
            is NaN in columns of floats, and -9999 in those of whole numbers,
            which are as wide as that needs; 'count' tells it from a value.
        transform (array_like | None): pixel corners to world, if ``segments``
            is an array; as for :func:`cocoseg.write_cog`.
        block_rows (int | None): rows that are read at a time. None is about 4
            million samples, whole tiles of the files.
        num_threads (int): threads that share the bands, and above 1 one that
            reads ahead.
        timings (Timings | None): gets 'walltime', and what of it was 'reading',
            'shapes', 'accumulation' and 'completion' (s).
        progress (Callable | None): wraps an iterable; called with it,
            ``total=`` and ``desc=`` for each pass.

    Returns:
        SegmentTable: a row for each id that occurs.

    Raises:
        OptionError: if something cannot be honoured; nothing was read yet but
            for a segment id that is far too large, or 64-bit values that do not
            fit in 32 bits.
        LabelOverflowError: if a label is negative, or above 2**32 - 1.
        OSError: if GDAL cannot read a file.

    Note:
        Memory holds a few strips, about 60 bytes and the columns per segment,
        and 16 bytes per distinct value of the segments that reach across the
        strip, if percentiles or modes are asked for; functions of users need 24
        per pixel of these.

    Example:
        >>> from cocoseg.shepherd.stats import segment_stats
        >>> image = np.array([[1, 2, 8], [3, 2, 9]], np.uint8)
        >>> segments = np.array([[1, 1, 2], [1, 1, 0]])
        >>> table = segment_stats(image, segments, ['area', 'mean', 'median', 'p100'])
        >>> {name: column.tolist() for name, column in table.columns.items()}
        {'area': [4, 1], 'mean': [2.0, 8.0], 'median': [2, 8], 'p100': [3, 8]}
    """
    stats = parse_stats(stats)
    timings = Timings() if timings is None else timings
    with timings.interval('walltime'):
        job = _Job(image, segments, stats, bands=bands, nodata=nodata, missing=missing,
                   transform=transform, block_rows=block_rows, num_threads=num_threads,
                   timings=timings, progress=progress)
        return job.run()


class _Job:
    """One call of :func:`segment_stats`, checked."""

    def __init__(self, image, segments, stats, *, bands, nodata, missing, transform, block_rows,
                 num_threads, timings, progress):
        check_num_threads(num_threads)
        self._stats = stats
        self._shape_stats = [stat for stat in stats if stat.is_shape]
        self._value_stats = [stat for stat in stats if not stat.is_shape]
        self._segments = Source.open(segments, 'segments',
                                     transform=transform).as_label_source()
        self._image = None if image is None else Source.open(image, 'image')
        self._missing = _check_missing(missing)
        self._bands, self._nodata, self._suffixes = (), (), ()
        sources = [self._segments]
        if self._image is not None:
            check_same_grid(self._image, self._segments)
            self._bands = self._image.check_bands(bands)
            self._nodata = _check_nodata(nodata, self._image, self._bands)
            self._suffixes = _make_suffixes(self._image, self._bands)
            sources.append(self._image)
        elif self._value_stats:
            raise OptionError(f'{[stat.column for stat in self._value_stats]} need an image; '
                              'give one')
        self._geotransform = next((source.geotransform for source in sources
                                   if source.geotransform is not None), None)
        in_crs = [stat.column for stat in stats if stat.is_in_crs]
        if in_crs and self._geotransform is None:
            raise OptionError(f'{in_crs} need a geotransform, and there is none; give '
                              'transform, or a file that has one')
        check_distinct([name for stat in stats for name in self._list_names(stat)])
        self._rows = _check_rows(block_rows, sources, len(self._bands))
        self._num_threads, self._timings, self._progress = num_threads, timings, progress

    def run(self):
        """Return the table."""
        shapes = ShapeStats(self._segments.shape, self._shape_stats)
        for (first, _), labels in self._iter_strips('shapes', self._segments.read_labels):
            with self._timings.interval('shapes'):
                shapes.add(labels, first)
        shapes.finish()
        bands, joint = self._measure_values(shapes.last_rows) if self._value_stats else ([], None)
        with self._timings.interval('completion'):
            return SegmentTable(shapes.ids, self._make_columns(shapes, bands, joint))

    def _iter_strips(self, desc, read):
        def timed(first, stop):
            with self._timings.interval('reading'):
                return read(first, stop)

        strips = list(iter_strips(self._segments.shape[0], self._rows))
        found = read_ahead(timed, strips, ahead=self._num_threads > 1)
        if self._progress is not None:
            found = self._progress(found, total=len(strips), desc=desc)
        return found

    def _measure_values(self, last_rows):
        """Return the collectors of all bands, finished; and of all of them together."""
        is_whole = self._image.dtype.kind in 'biu'
        bands = [_Band(self._value_stats, last_rows, is_whole) for _ in self._bands]
        joint = _Joint(self._value_stats, last_rows, len(self._bands))
        height = self._segments.shape[0]

        def read(first, stop):
            return (self._segments.read_labels(first, stop),
                    self._image.read_rows(first, stop, self._bands))

        with ExitStack() as stack:
            n_threads = min(self._num_threads, len(bands))
            share = (stack.enter_context(ThreadPoolExecutor(n_threads, 'cocoseg-stats')).map
                     if n_threads > 1 else map)
            for (first, stop), (labels, block) in self._iter_strips('values', read):
                with self._timings.interval('accumulation'):
                    def add(place, strip=(labels, block, first, stop)):
                        labels, block, first, stop = strip
                        values = as_values(block[:, :, place], self._nodata[place],
                                           self._image.name)
                        bands[place].add(labels, values, first, stop)
                        return values if joint.is_wanted else None

                    values = list(share(add, range(len(bands))))
                    joint.add(labels, values, first, stop)
            with self._timings.interval('completion'):
                list(share(lambda band: band.finish(height), bands))
                joint.finish(height)
        return bands, joint

    def _list_names(self, stat):
        """Return the names of the columns of one statistic."""
        if stat.is_shape:
            return stat.shape_columns
        return [stat.column + suffix for suffix in ([''] if stat.is_joint else self._suffixes)]

    def _make_columns(self, shapes, bands, joint):
        """Return the columns by name, in the wanted order."""
        columns = {}
        for stat in self._stats:
            if stat.is_shape:
                columns.update(shapes.make_columns(stat, self._geotransform))
                continue
            for name, part in zip(self._list_names(stat), [joint] if stat.is_joint else bands):
                columns[name] = self._fill(part.results[stat.column], stat, shapes.ids)
        return columns

    def _fill(self, values, stat, ids):
        """Return one column: its own type, and what stands for no value."""
        column = values[ids]
        if stat.kind == 'count':
            return column
        keeps_type = stat.kind in ('min', 'max', *ORDERS)
        dtype = np.dtype(np.float64)
        if keeps_type:
            dtype = _choose_dtype(self._image.dtype, self._missing)
        fill = self._missing
        if fill is None:
            fill = MISSING if dtype.kind == 'i' else np.nan
        return np.where(np.isnan(column), fill, column).astype(dtype)


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


def _check_missing(missing):
    if missing is None:
        return None
    if isinstance(missing, bool) or not isinstance(missing, numbers.Real):
        raise OptionError(f'missing={missing!r} must be a number, or None')
    return missing


def _choose_dtype(dtype, missing):
    """Return the type of a column of pixel values: floats stay, whole numbers get room."""
    if dtype.kind == 'f':
        return np.result_type(dtype, np.float32)
    fill = MISSING if missing is None else missing
    if not abs(fill) < 2 ** 53 or int(fill) != fill:
        # NaN, or a fraction: only floats have room for it.
        return np.dtype(np.float64)
    wide = np.dtype(np.int64) if dtype.itemsize == 8 else dtype
    return np.result_type(wide, np.min_scalar_type(int(fill)))


def _check_nodata(nodata, image, bands):
    """Return the nodata value of each band that is read."""
    if isinstance(nodata, str) and nodata == 'file':
        return tuple(image.nodata[band] for band in bands)
    given = list(nodata) if np.iterable(nodata) and not isinstance(nodata, str) else [nodata]
    if len(given) == 1:
        given *= len(bands)
    if len(given) != len(bands):
        raise OptionError(f'nodata={nodata!r} has {len(given)} values for {len(bands)} bands; '
                          'give one, or one for each')
    for value in given:
        if value is not None and (isinstance(value, bool)
                                  or not isinstance(value, numbers.Real)):
            raise OptionError(f"nodata={nodata!r} must be numbers, None for none, or 'file'")
    return tuple(given)


def _make_suffixes(image, bands):
    """Return what is appended to the names of columns, for each band."""
    if len(bands) == 1:
        return ('',)
    names = [image.channels[band] for band in bands]
    if None in names or len({name.casefold() for name in names}) < len(names):
        names = [f'b{band}' for band in bands]
    return tuple(f'_{name}' for name in names)


def _check_rows(block_rows, sources, n_bands):
    if block_rows is None:
        return choose_strip_rows(sources, max(n_bands, 1))
    is_whole = isinstance(block_rows, (int, np.integer)) and not isinstance(block_rows, bool)
    if not is_whole or block_rows < 1:
        raise OptionError(f'block_rows={block_rows!r} must be a whole number of at least 1')
    return int(block_rows)
