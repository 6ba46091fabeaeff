"""
Statistics of segments, for rasters of any size.

The labels are read twice, strip by strip from the top: once for the shapes of
the segments and the last row of each, and once beside the image, all bands of
it in that one pass. A segment's values are held only until its last row.
"""
from __future__ import annotations

import numbers
from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import ArrayLike

from cocoseg.engine.executors import Executor, SerialExecutor, get_executor
from cocoseg.engine.payload import pack
from cocoseg.engine.timings import Timings
from cocoseg.errors import OptionError
from cocoseg.io.cog import check_num_threads
from cocoseg.io.strips import (
    Source, check_same_grid, choose_strip_rows, iter_strips, read_ahead)
from cocoseg.protocols import PathLike, Progress
from cocoseg.shepherd.segment_table import SegmentTable
from cocoseg.shepherd.shape_stats import ShapeStats, ShapeTask
from cocoseg.shepherd.statspec import ORDERS, check_distinct, parse_stats
from cocoseg.shepherd.tile_store import check_sent, shares_memory
from cocoseg.shepherd.value_stats import (
    ValueResults, ValueStats, count_parts, divide_rows, divide_segments, join_parts)

DEFAULT_STATS = ('count', 'mean', 'std')
# Stands for no valid pixel where a column is of whole numbers.
MISSING = -9999


def segment_stats(image: PathLike | np.ndarray | None, segments: PathLike | np.ndarray,
                  stats: str | Sequence = DEFAULT_STATS, *, bands: Sequence[int] | None = None,
                  nodata: float | Sequence[float | None] | str | None = 'file',
                  missing: float | None = None, transform: ArrayLike | None = None,
                  block_rows: int | None = None, num_threads: int = 1,
                  executor: str | Executor = 'serial', timings: Timings | None = None,
                  progress: Progress | None = None) -> SegmentTable:
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
    others are exact. Nothing depends on ``block_rows``, ``num_threads`` or
    ``executor``.

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
            reads ahead; of each worker.
        executor (str | Executor): what measures parts of the image:
            'serial', 'threads:N', 'processes:N', 'dask', or an executor; see
            :func:`cocoseg.get_executor`. Workers of other processes read files
            by their paths, and are sent 8 bytes per segment.
        timings (Timings | None): gets 'walltime', and what of it was 'reading',
            'shapes', 'accumulation' and 'completion' (s).
        progress (Callable | None): wraps an iterable; called with it,
            ``total=`` and ``desc=`` for each pass, of strips or of parts.

    Returns:
        SegmentTable: a row for each id that occurs.

    Raises:
        OptionError: if something cannot be honoured; nothing was read yet but
            for a segment id that is far too large, or 64-bit values that do not
            fit in 32 bits. Also for arrays of more than 16 MiB, or functions
            that cannot be sent to them, and workers of other processes.
        TaskError: if a part fails, with an executor that is not serial; from
            its error.
        LabelOverflowError: if a label is negative, or above 2**32 - 1.
        OSError: if GDAL cannot read a file.

    Note:
        Memory holds a few strips, about 60 bytes and the columns per segment,
        and 16 bytes per distinct value of the segments that reach across the
        strip, if percentiles or modes are asked for; functions of users need 24
        per pixel of these. Each worker of an ``executor`` holds as much for its
        part, but 60 bytes for each segment of the image.

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
                   executor=get_executor(executor), timings=timings, progress=progress)
        return job.run()


class _Job:
    """One call of :func:`segment_stats`, checked."""

    def __init__(self, image, segments, stats, *, bands, nodata, missing, transform, block_rows,
                 num_threads, executor, timings, progress):
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
        self._executor = executor
        self._is_serial = isinstance(executor, SerialExecutor)
        self._n_parts = count_parts(executor.n_workers, self._segments.shape)
        self._check_sent(sources)

    def _check_sent(self, sources):
        """Raise OptionError for what cannot be sent to workers of other processes."""
        if shares_memory(self._executor):
            return
        check_sent(self._executor, sources)
        for stat in self._value_stats:
            pack(stat, f'the function of {stat.column!r}')

    def run(self):
        """Return the table."""
        shapes = self._measure_shapes()
        values = self._measure_values(shapes) if self._value_stats else ValueResults([], {})
        with self._timings.interval('completion'):
            return SegmentTable(shapes.ids, self._make_columns(shapes, values))

    def _iter_strips(self, desc, read):
        def timed(first, stop):
            with self._timings.interval('reading'):
                return read(first, stop)

        strips = list(iter_strips(self._segments.shape[0], self._rows))
        found = read_ahead(timed, strips, ahead=self._num_threads > 1)
        if self._progress is not None:
            found = self._progress(found, total=len(strips), desc=desc)
        return found

    def _measure_shapes(self):
        """Return the ShapeStats of all segments, finished."""
        shapes = ShapeStats(self._segments.shape, self._shape_stats)
        if self._is_serial:
            for (first, _), labels in self._iter_strips('shapes', self._segments.read_labels):
                with self._timings.interval('shapes'):
                    shapes.add(labels, first)
            shapes.finish()
            return shapes
        task = ShapeTask(self._segments, tuple(self._shape_stats), self._rows,
                         self._num_threads > 1)
        spans = divide_rows(self._segments.shape[0], self._rows, self._n_parts)
        rows = {}
        with closing(self._run_parts('shapes', task, spans, lambda span: (
                f'measuring shapes in the rows {span[0]} to {span[1]} of '
                f'{self._segments.name}'))) as found:
            for _, (ids, columns, edges) in found:
                shapes.merge(ids, columns)
                rows.update(edges)
        if shapes.looks_around:
            shapes.join(rows, [first for first, _ in spans[1:]])
        shapes.trim()
        return shapes

    def _run_parts(self, desc, task, parts, describe):
        """Yield (part, result) of a task whose results come with their timings."""
        with closing(self._executor.run(task, parts, describe=describe)) as found:
            steps = found if self._progress is None else self._progress(
                found, total=len(parts), desc=desc)
            for part, (result, timings) in steps:
                self._timings.merge(timings)
                yield part, result

    def _measure_values(self, shapes):
        """Return the ValueResults of all segments."""
        measure = ValueStats(self._segments, self._image, self._bands, self._nodata,
                             tuple(self._value_stats), self._rows, self._num_threads)
        parts = [] if self._is_serial else divide_segments(
            shapes.ids, shapes.first_rows, shapes.last_rows, self._rows, self._n_parts)
        if not parts:
            return measure.measure(shapes.last_rows, self._timings, progress=self._progress)
        with closing(self._run_parts('values', measure, parts, lambda part: (
                f'measuring {len(part.ids)} segments in the rows {part.first} to {part.stop} of '
                f'{self._image.name}'))) as found:
            return join_parts(found, shapes.n_labels)

    def _list_names(self, stat):
        """Return the names of the columns of one statistic."""
        if stat.is_shape:
            return stat.shape_columns
        return [stat.column + suffix for suffix in ([''] if stat.is_joint else self._suffixes)]

    def _make_columns(self, shapes, values):
        """Return the columns by name, in the wanted order."""
        columns = {}
        for stat in self._stats:
            if stat.is_shape:
                columns.update(shapes.make_columns(stat, self._geotransform))
                continue
            for name, part in zip(self._list_names(stat),
                                  [values.joint] if stat.is_joint else values.bands):
                columns[name] = self._fill(part[stat.column], stat, shapes.ids)
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
