"""
Cut segments out of a label raster, and number them anew.
"""
from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.window import Window, WindowLike
from cocoseg.io.cog import CogReport, CogWriter
from cocoseg.io.strips import (
    Source, apply_geotransform, check_same_grid, choose_strip_rows, iter_strips, read_ahead)
from cocoseg.protocols import PathLike, Progress
from cocoseg.shepherd.segment_table import SegmentTable

# A bound this near to the edge of a pixel, px, is meant to be there.
_NEAR = 1e-6


@dataclass(frozen=True)
class SubsetResult:
    """
    What :func:`subset_segments` wrote.

    Attributes:
        path (str): the new label COG.
        window (Window): where it is in the source, px.
        table (SegmentTable): by new id, 'original_id' and 'area' (px).
        report (CogReport): what the file holds, as verified.

    Example:
        >>> import tempfile
        >>> from cocoseg import subset_segments
        >>> labels = np.array([[4, 4, 9], [0, 9, 9]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = subset_segments(labels, os.path.join(folder, 'part.tif'))
        >>> dict(result.table.columns)['original_id'].tolist(), result.window
        ([4, 9], Window(y=0:2, x=0:3))
    """

    path: str
    window: Window
    table: SegmentTable
    report: CogReport

    @property
    def n_segments(self) -> int:
        """How many segments there are."""
        return len(self.table)


def subset_segments(src: PathLike | np.ndarray, dst: PathLike, window: WindowLike | None = None, *,
                    bounds: Sequence[float] | None = None,
                    mask: PathLike | np.ndarray | None = None, crs: int | str | None = None,
                    transform: ArrayLike | None = None, blocksize: int = 256,
                    compress: str | None = 'ZSTD', num_threads: int | None = None,
                    block_rows: int | None = None,
                    progress: Progress | None = None) -> SubsetResult:
    """
    Write the segments of a part of a label raster, with new ids.

    Ids are from 1 on without gaps, in the order in which segments first occur,
    row by row. Segments at the edge of the part are cut there. Without a window,
    bounds and mask all segments are numbered anew, whatever their ids were.

    Args:
        src (str | PathLike | ndarray): a path that GDAL opens, or (H, W) whole
            numbers; 0, and the nodata value of a file, is null.
        dst (str | PathLike): path of the label COG (uint32, nodata 0) to write;
            its folder must exist.
        window (Window | tuple[slice, slice] | None): part to keep, px, clipped
            to the image; the new image is that large.
        bounds (Sequence[float] | None): instead of a window, (xmin, ymin, xmax,
            ymax) in world coordinates: the pixels that this touches.
        mask (str | PathLike | ndarray | None): a path or (H, W), as large as
            ``src`` and at its place: what is 0 (or False, or nodata) becomes
            null.
        crs, transform: of an array, as for :func:`cocoseg.write_cog`.
        blocksize, compress, num_threads: as for :func:`cocoseg.write_cog`.
        block_rows (int | None): rows that are read at a time; None is about 4
            million pixels.
        progress (Callable | None): wraps an iterable; called with it,
            ``total=`` and ``desc=``.

    Returns:
        SubsetResult: among others the ids that the segments had.

    Raises:
        OptionError: if something cannot be honoured; before anything is read.
        CoverageError: if the window or bounds miss the image.
        LabelOverflowError: if a label is negative, or above 2**32 - 1.
        AssetWriteError: if the file cannot be written; nothing of it is kept.
        OSError: if GDAL cannot read a file, or the folder is missing.

    Note:
        Memory holds a few strips, and 20 bytes per segment.

    Example:
        >>> from cocoseg.shepherd.subset import subset_segments
        >>> from cocoseg import Window
        >>> import tempfile
        >>> segments = np.array([[7, 7, 0, 9], [5, 7, 9, 9]])
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     result = subset_segments(segments, os.path.join(folder, 'part.tif'),
        >>>                              Window(0, 1, 2, 4))
        >>> result.n_segments, result.table['original_id'].tolist()
        (2, [7, 9])
    """
    source = Source.open(src, 'segments', crs=crs, transform=transform).as_label_source()
    window = choose_window(source, window, bounds)
    masking = open_mask(mask, source)
    sources = [source] if masking is None else [source, masking]
    if block_rows is None:
        block_rows = choose_strip_rows(sources)
    elif isinstance(block_rows, bool) or not (isinstance(block_rows, (int, np.integer))
                                              and block_rows >= 1):
        raise OptionError(f'block_rows={block_rows!r} must be a whole number of at least 1')
    numbering = _Numbering()

    def read(first, stop):
        columns = window.x0, window.x1
        labels = source.read_labels(first, stop, columns)
        if masking is None:
            return labels
        return np.where(_read_mask(masking, first, stop, columns), labels, np.uint32(0))

    writer = CogWriter(dst, window.shape, np.uint32, nodata=0, crs=source.crs_wkt,
                       transform=_shift(source.geotransform, window), overviews='nearest',
                       blocksize=blocksize, compress=compress, num_threads=num_threads)
    # Whole strips of the source, though the first and the last one are cut.
    strips = [(max(first, window.y0), min(stop, window.y1))
              for first, stop in iter_strips(source.shape[0], block_rows)
              if first < window.y1 and stop > window.y0]
    with writer:
        found = read_ahead(read, strips)
        if progress is not None:
            found = progress(found, total=len(strips), desc='subset')
        for (first, stop), labels in found:
            block = numbering.renumber(labels)
            writer.write_block(Window(first - window.y0, 0, stop - window.y0, window.shape[1]),
                               block[:, :, None])
    return SubsetResult(os.fspath(dst), window, numbering.make_table(), writer.report)


class _Numbering:
    """Ids in the order in which they first come; any ids, also with large gaps."""

    def __init__(self):
        # Ascending, and the new id of each.
        self._known, self._new = np.empty(0, np.uint32), np.empty(0, np.uint32)
        self._areas = np.empty(0, np.int64)

    def renumber(self, labels):
        """Return new ids for a strip, uint32 of the same shape."""
        flat = labels.reshape(-1)
        # Runs of equal pixels are looked up once.
        starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
        sizes = np.diff(np.append(starts, flat.size))
        ids, firsts, inverse, = np.unique(flat[starts], return_index=True, return_inverse=True)
        self._learn(ids, firsts)
        new = np.zeros(len(ids), np.uint32)
        present = ids > 0
        new[present] = self._new[np.searchsorted(self._known, ids[present])]
        per_run = new[inverse.reshape(-1)]
        self._areas += np.bincount(per_run, sizes, len(self._known) + 1).astype(np.int64)[1:]
        return np.repeat(per_run, sizes).reshape(labels.shape)

    def _learn(self, ids, firsts):
        """Give the ids that are new the next numbers, in the order of their first places."""
        is_new = (ids > 0) & ~np.isin(ids, self._known, assume_unique=True)
        ids, firsts = ids[is_new], firsts[is_new]
        numbers = np.empty(len(ids), np.uint32)
        numbers[np.argsort(firsts)] = np.arange(1, len(ids) + 1) + len(self._known)
        places = np.searchsorted(self._known, ids)
        self._known = np.insert(self._known, places, ids)
        self._new = np.insert(self._new, places, numbers)
        self._areas = np.append(self._areas, np.zeros(len(ids), np.int64))

    def make_table(self):
        """Return the table by new id."""
        originals = np.empty(len(self._known), np.uint32)
        originals[self._new.astype(np.int64) - 1] = self._known
        return SegmentTable(np.arange(1, len(originals) + 1, dtype=np.uint32),
                            {'original_id': originals, 'area': self._areas})


def choose_window(source, window, bounds):
    """Return the part of the image to keep, inside of it."""
    image = Window.from_shape(source.shape)
    if window is not None and bounds is not None:
        raise OptionError('window and bounds exclude each other; give one of them')
    if bounds is not None:
        wanted = _find_window(source, bounds)
    elif window is not None:
        wanted = Window.coerce(window, source.shape)
    else:
        return image
    part = wanted.intersect(image)
    if part.is_empty:
        raise CoverageError(f'{wanted} holds no pixel of {source.name}, whose shape is '
                            f'{source.shape[:2]}')
    return part


def _find_window(source, bounds):
    """Return the pixels that a box in world coordinates touches."""
    corners = np.asarray(bounds, np.float64) if np.shape(bounds) == (4,) else None
    if corners is None or not np.isfinite(corners).all() or not (
            corners[0] < corners[2] and corners[1] < corners[3]):
        raise OptionError(f'bounds={bounds!r} must be (xmin, ymin, xmax, ymax), not empty')
    if source.geotransform is None:
        raise OptionError(f'{source.name} has no geotransform, so that bounds mean nothing; give '
                          'window, px')
    x0, a, b, y0, d, e = source.geotransform
    determinant = a * e - b * d
    dx = np.array([corners[0], corners[2], corners[0], corners[2]]) - x0
    dy = np.array([corners[1], corners[1], corners[3], corners[3]]) - y0
    columns, rows = (e * dx - b * dy) / determinant, (a * dy - d * dx) / determinant
    return Window(math.floor(rows.min() + _NEAR), math.floor(columns.min() + _NEAR),
                  math.ceil(rows.max() - _NEAR), math.ceil(columns.max() - _NEAR))


def _shift(geotransform, window):
    """Return the geotransform of a window."""
    if geotransform is None:
        return None
    x0, y0 = apply_geotransform(geotransform, window.x0, window.y0)
    return (x0, *geotransform[1:3], y0, *geotransform[4:])


def open_mask(mask, source):
    """Return the source of a mask of the same size, or None."""
    if mask is None:
        return None
    masking = Source.open(mask, 'mask')
    if masking.shape[2] != 1:
        raise OptionError(f'{masking.name} has {masking.shape[2]} bands; a mask is one band')
    check_same_grid(masking, source)
    return masking


def _read_mask(masking, first, stop, columns):
    """Return True where pixels are kept."""
    block = masking.read_rows(first, stop, columns=columns)[:, :, 0]
    nodata = masking.nodata[0]
    keeps = block != 0
    if nodata is not None and not math.isnan(nodata):
        keeps &= block != nodata
    return keeps & np.isfinite(block) if block.dtype.kind == 'f' else keeps
