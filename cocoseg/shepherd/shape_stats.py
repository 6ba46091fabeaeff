"""
The shapes of segments, from their labels alone, strip by strip from the top.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.engine.timings import Timings
from cocoseg.errors import OptionError
from cocoseg.io.strips import Source, apply_geotransform, iter_strips, read_ahead

# Ids up to this may have gaps: what is kept per id, some 60 bytes, then fits in memory.
MAX_SPARSE_ID = 1 << 26
_BOX = ('top', 'left', 'bottom', 'right')


class ShapeStats:
    """
    Area, box and more of every segment; also how many segments there are.

    Arrays grow with the largest id that was seen.

    Args:
        shape (tuple[int, int]): (H, W) of the labels, px.
        stats (Sequence[Stat]): what else than areas and boxes is wanted; those
            that are not of the shape are skipped.

    Example:
        >>> from cocoseg.shepherd.shape_stats import ShapeStats
        >>> shapes = ShapeStats((2, 2))
        >>> shapes.add(np.array([[0, 3], [3, 3]], np.uint32), 0)
        >>> shapes.finish()
        >>> shapes.ids.tolist(), shapes.area[3].item(), shapes.last_rows.tolist()
        ([3], 3, [-1, -1, -1, 1])
    """

    def __init__(self, shape, stats=()):
        self._shape = tuple(shape[:2])
        kinds = {stat.kind for stat in stats}
        self._sums = ('sum_x', 'sum_y') if kinds & {'centroid', 'centroid_crs'} else ()
        self._wants_perimeter = 'perimeter' in kinds
        self._neighbors = sorted({stat.neighbors for stat in stats if stat.neighbors})
        counts = [*self._sums, *['perimeter'] * self._wants_perimeter,
                  *map(_name_edges, self._neighbors)]
        dtypes = {'area': np.int64, **dict.fromkeys(_BOX, np.int32),
                  **dict.fromkeys(counts, np.int64)}
        self._by_id = {name: np.zeros(1, dtype) for name, dtype in dtypes.items()}
        self._n_labels = 0
        width = self._shape[1]
        self._above = np.zeros(width, np.uint32)
        # The rows whose lower neighbor was not seen yet, and the one above them.
        self._tail = np.zeros((1, width), np.uint32)

    @property
    def n_labels(self):
        """Largest id."""
        return self._n_labels

    @property
    def area(self):
        """int64, shape (N + 1,), px."""
        return self._by_id['area']

    @property
    def ids(self):
        """uint32, the ids that occur, ascending."""
        return np.flatnonzero(self.area[1:]).astype(np.uint32) + np.uint32(1)

    @property
    def first_rows(self):
        """int32, shape (N + 1,): first row of each segment; 0 for an id without a pixel."""
        return self._by_id['top']

    @property
    def last_rows(self):
        """int32, shape (N + 1,): last row of each segment; -1 for an id without a pixel."""
        return self._by_id['bottom'] - np.int32(1)

    def add(self, labels, first):
        """
        Add a strip of labels, uint32 (h, w), that begins at row ``first``.

        Raises:
            OptionError: if an id is far larger than the image has pixels.
        """
        from cocoseg.shepherd.shape_kernels import _kernel_add_perimeter, _kernel_add_shapes
        self._grow(int(labels.max(initial=0)))
        arrays = [self._by_id[name] for name in ('area', *_BOX)]
        sums = [self._by_id[name] for name in self._sums] or [np.empty(0, np.int64)] * 2
        _kernel_add_shapes(labels, first, *arrays, *sums)
        if self._wants_perimeter:
            _kernel_add_perimeter(self._above, labels, self._by_id['perimeter'])
            self._above = labels[-1].copy()
        self._add_edge_pixels(labels)

    def _add_edge_pixels(self, labels):
        from cocoseg.shepherd.shape_kernels import _kernel_add_edge_pixels
        if not self._neighbors:
            return
        rows = np.concatenate([self._tail, labels])
        for neighbors in self._neighbors:
            _kernel_add_edge_pixels(rows, neighbors, self._by_id[_name_edges(neighbors)])
        self._tail = rows[-2:].copy()

    def _grow(self, largest):
        if largest <= self._n_labels:
            return
        height, width = self._shape
        if largest > max(height * width, MAX_SPARSE_ID):
            raise OptionError(
                f'segments holds the id {largest}, in an image of {height * width} px; number '
                'the segments from 1 first, with subset_segments, which keeps their ids')
        self._n_labels = largest
        if largest >= len(self.area):
            # In big steps, but not beyond what there can be.
            size = max(largest, min(2 * len(self.area), height * width)) + 1
            self._by_id = {name: _enlarge(array, size) for name, array in self._by_id.items()}

    @property
    def looks_around(self):
        """True if the rows beside a part matter."""
        return self._wants_perimeter or bool(self._neighbors)

    def begin_apart(self, labels):
        """Begin at a strip of labels whose first row is left to :meth:`join`."""
        self._above, self._tail = labels[0].copy(), labels[:0].copy()

    def finish(self):
        """Account for what is below the image; no strip comes after it."""
        nothing = np.zeros((1, self._shape[1]), np.uint32)
        if self._wants_perimeter:
            from cocoseg.shepherd.shape_kernels import _kernel_add_perimeter
            _kernel_add_perimeter(self._above, nothing, self._by_id['perimeter'])
        self._add_edge_pixels(nothing)
        self.trim()

    def trim(self):
        """Forget the room for larger ids."""
        self._by_id = {name: array[:self._n_labels + 1] for name, array in self._by_id.items()}

    def get_present(self):
        """Return the ids that were seen, int64 (n,), and what is known of each, by name."""
        ids = np.flatnonzero(self.area)
        return ids, {name: array[ids] for name, array in self._by_id.items()}

    def merge(self, ids, columns):
        """Add what :meth:`get_present` has of another part of the image."""
        self._grow(int(ids.max(initial=0)))
        inside = columns['area'] > 0
        seen = ids[inside]
        is_fresh = self.area[seen] == 0
        for name in _BOX:
            values, array = columns[name][inside], self._by_id[name]
            pick = np.minimum if name in ('top', 'left') else np.maximum
            array[seen] = np.where(is_fresh, values, pick(array[seen], values))
        for name, values in columns.items():
            if name not in _BOX:
                self._by_id[name][ids] += values

    def join(self, rows, seams):
        """
        Account for what meets where parts do.

        Args:
            rows (dict[int, ndarray]): labels, uint32 (W,), by row: the two
                first and the two last of each part.
            seams (Sequence[int]): first rows of the parts below.
        """
        from cocoseg.shepherd.shape_kernels import _kernel_add_edge_pixels
        if self._wants_perimeter:
            for seam in seams:
                differs = rows[seam - 1] != rows[seam]
                for row in (seam - 1, seam):
                    np.add.at(self._by_id['perimeter'], rows[row][differs], 1)
        nothing = np.zeros(self._shape[1], np.uint32)
        for row in sorted({row for seam in seams for row in (seam - 1, seam)}):
            around = np.stack([rows.get(row - 1, nothing), rows[row], rows.get(row + 1, nothing)])
            for neighbors in self._neighbors:
                _kernel_add_edge_pixels(around, neighbors, self._by_id[_name_edges(neighbors)])

    def make_columns(self, stat, geotransform=None):
        """
        Return the columns of one statistic of the shape.

        Args:
            stat (Stat): that the constructor was told of.
            geotransform (tuple | None): for those in world coordinates.

        Returns:
            dict[str, ndarray]: one entry per segment that there is, by name.
        """
        ids, by_id = self.ids, self._by_id
        area = by_id['area'][ids]
        if stat.kind == 'area':
            parts = [area]
        elif stat.kind == 'area_crs':
            _, a, b, _, d, e = geotransform
            parts = [area * abs(a * e - b * d)]
        elif stat.kind == 'bbox':
            parts = [by_id[name][ids] for name in _BOX]
        elif stat.kind in ('centroid', 'centroid_crs'):
            # The center of a pixel is half a pixel from its corner.
            parts = [by_id[name][ids] / area + 0.5 for name in ('sum_x', 'sum_y')]
            if stat.kind == 'centroid_crs':
                parts = apply_geotransform(geotransform, *parts)
        elif stat.kind == 'n_edge_pixels':
            parts = [by_id[_name_edges(stat.neighbors)][ids]]
        else:
            parts = [by_id[stat.kind][ids]]
        return dict(zip(stat.shape_columns, parts))


@dataclass(frozen=True)
class ShapeTask:
    """
    Measure the shapes in some rows: a part of an image. Can be pickled.

    Attributes:
        segments (Source): of the whole image.
        stats (tuple[Stat, ...]): as for :class:`ShapeStats`.
        rows (int): that are read at a time.
        is_ahead (bool): read the next ones meanwhile.

    Example:
        >>> from cocoseg.shepherd.shape_stats import ShapeTask
        >>> task = ShapeTask(Source.open(np.array([[0, 3], [3, 3]])), (), rows=1)
        >>> (ids, columns, rows), timings = task((1, 2))
        >>> ids.tolist(), columns['area'].tolist(), columns['top'].tolist()
        ([3], [2], [1])
    """

    segments: Source
    stats: tuple
    rows: int
    is_ahead: bool = False

    def __call__(self, span):
        """
        Measure the rows (first, stop).

        Returns:
            tuple: ids and columns of :meth:`ShapeStats.get_present` and the
            rows for :meth:`ShapeStats.join`; and Timings.
        """
        timings, (first, stop) = Timings(), span
        shapes, rows = ShapeStats(self.segments.shape, self.stats), {}
        kept = (first, first + 1, stop - 2, stop - 1) if shapes.looks_around else ()

        def read(top, bottom):
            with timings.interval('reading'):
                return self.segments.read_labels(top, bottom)

        strips = [(first + top, first + bottom)
                  for top, bottom in iter_strips(stop - first, self.rows)]
        for (top, bottom), labels in read_ahead(read, strips, ahead=self.is_ahead):
            with timings.interval('shapes'):
                if top == first > 0:
                    shapes.begin_apart(labels)
                shapes.add(labels, top)
                rows.update((row, labels[row - top].copy()) for row in kept
                            if top <= row < bottom)
        if stop == self.segments.shape[0]:
            shapes.finish()
        return (*shapes.get_present(), rows), timings


def _name_edges(neighbors):
    return f'edge_pixels_{neighbors}'


def _enlarge(array, size):
    larger = np.zeros(size, array.dtype)
    larger[:len(array)] = array
    return larger
