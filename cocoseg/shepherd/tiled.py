"""
Segment rasters of any size: tile by tile, put together without seams.

The clusters are fitted once, to a sample of the whole raster, so that all
tiles see the same ones. Each tile is read and segmented by itself, in any
order; the tiles are put together and written by the caller's thread.
"""
from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cocoseg.engine.executors import get_executor
from cocoseg.engine.timings import Timings, format_timings
from cocoseg.errors import OptionError
from cocoseg.io.cog import CogWriter
from cocoseg.machine import count_cpus
from cocoseg.shepherd.assign import find_valid
from cocoseg.shepherd.clusters import (as_centres, as_kmeans, fit_lazily,
                                       resolve_max_spectral_diff)
from cocoseg.shepherd.config import ShepherdConfig
from cocoseg.shepherd.output import LabelOutput
from cocoseg.shepherd.raster import SegmentSource
from cocoseg.shepherd.recode import TileRecoder
from cocoseg.shepherd.sampling import sample_raster
from cocoseg.shepherd.segment import segment_pixels
from cocoseg.shepherd.tiles import TilePlan
from cocoseg.stitch.label import LabelStitcher

logger = logging.getLogger(__name__)

RECODES = ('overlap', 'simple')


@dataclass(frozen=True)
class TiledShepherdResult:
    """
    What came of a tiled segmentation.

    Attributes:
        path (str): the label raster.
        n_segments (int): largest id; ids are 1..n_segments.
        sizes (ndarray): int64 (n_segments + 1,), px by id; entry 0 is 0.
        grid_shape (tuple[int, int]): (rows, columns) of segment tiles.
        clusters (object): what :attr:`kmeans` is made of.
        max_spectral_diff (float): the limit that was used, in units of the
            raster; NaN if no pixel is valid.
        sample_percent (float | None): see
            :class:`~cocoseg.shepherd.sampling.RasterSample`; None if the
            clusters were given.
        has_empty_segments (bool): ids without a pixel; only with ``compat``.
        seams (list[Seam]): how well neighboring tiles agree; empty with ``compat``.
        timings (Timings): seconds by stage.
    """

    path: str
    n_segments: int
    sizes: np.ndarray
    grid_shape: tuple[int, int]
    clusters: Any
    max_spectral_diff: float
    sample_percent: float | None
    has_empty_segments: bool
    seams: list
    timings: Timings

    @property
    def kmeans(self):
        """The clusters, to be used for other rasters; None if no pixel is valid."""
        return as_kmeans(self.clusters)

    def format_timings(self):
        """Return the timings as a table for people."""
        return format_timings(self.timings.summary(), 'Segmentation timings (s)')


def segment_raster(src, dst, config=None, tile_size=4096, overlap=1024, executor='serial',
                   kmeans=None, *, bands=None, nodata='file', recode='overlap', driver='COG',
                   creation_options=(), table=None, colors=None, compress='ZSTD', blocksize=512,
                   max_concurrent_reads=20, tile_timeout=None, num_threads=None, progress=None):
    """
    Segment a raster of any size into a raster of segment ids.

    Ids are whole numbers from 1, without gaps; 0 is where a band has no data.
    By default they are canonical, in the order of first pixels row by row,
    each segment hangs together, and the result is the same for any executor.
    With ``config.compat``, tiles, ids and their flaws are those of pyshepseg.

    Args:
        src (str | PathLike | ndarray): a raster that GDAL opens, or an array
            (H, W, B) or (H, W).
        dst (str | PathLike): file to write, uint32; its folder must exist.
        config (ShepherdConfig | None): None is the default one.
        tile_size (int | tuple[int, int]): most height and width of a segment
            tile, px. Memory is about 30 bytes per pixel of a tile and worker,
            beside the tile itself.
        overlap (int | tuple[int, int]): px that neighboring tiles share; even.
        executor (str | Executor): 'serial', 'threads', 'threads:N', or an
            executor; see :func:`cocoseg.get_executor`.
        kmeans (KMeans | ndarray | None): fitted clusters, or their centres
            (K, B); None fits them.
        bands (Sequence[int] | None): to use, counted from 0; None is all.
        nodata (float | str | None): pixels with this value in any band are
            null; 'file' is that of the raster; None is none.
        recode (str): 'overlap': segments that neighboring tiles share get one
            id. 'simple': each tile has ids of its own.
        driver (str): 'COG', or a format of GDAL with attribute tables, such as
            'HFA' or 'KEA', to which histogram and colors are written, too.
        creation_options (Sequence[str]): for that format, 'NAME=VALUE'.
        table (str | PathLike | None): also write a table of the segments,
            .csv or .parquet.
        colors (int | None): seed of random colors, red, green and blue per
            segment, in the attribute table, or with 'COG' in ``table``.
        compress (str): codec of a COG; see :func:`cocoseg.write_cog`.
        blocksize (int): side of the tiles of a COG, px.
        max_concurrent_reads (int): tiles that are read at a time.
        tile_timeout (float | None): seconds that one tile may take.
        num_threads (int | None): threads that share the work within a tile;
            None is all CPUs over the workers of the executor.
        progress (Callable | None): wraps an iterable, called with ``total``
            and ``desc``; for example ``ubelt.ProgIter``.

    Returns:
        TiledShepherdResult: facts, statistics and timings.

    Raises:
        OptionError: for an option that cannot be used, such as a tile that is
            not larger than the overlap, or fewer distinct pixels than clusters.
        NodataError: if the bands differ in their nodata value.
        OSError: if the raster cannot be read.
        AssetWriteError: if ``dst`` cannot be written. All these are raised
            before anything takes long, but for a disk that fills up.
        TaskError: if a tile fails; from its error, with the tile.
        TaskTimeoutError: if a tile takes too long.

    Example:
        >>> from cocoseg import ShepherdConfig, segment_raster
        >>> import numpy as np, os, tempfile
        >>> image = np.kron(np.arange(1, 10).reshape(3, 3), np.ones((40, 40))).astype('u1')
        >>> config = ShepherdConfig(n_clusters=8, min_segment_size=20)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = segment_raster(image, os.path.join(folder, 'segments.tif'), config,
        ...                             tile_size=64, overlap=16, nodata=9)
        >>> result.n_segments, result.sizes[1:].tolist(), result.grid_shape
        (8, [1600, 1600, 1600, 1600, 1600, 1600, 1600, 1600], (3, 3))
    """
    timings = Timings()
    with timings.interval('walltime'):
        config = ShepherdConfig() if config is None else config
        run = _Run(config, timings, get_executor(executor), num_threads, max_concurrent_reads,
                   tile_timeout, progress)
        if recode not in RECODES:
            raise OptionError(f'recode={recode!r} is unknown; use one of {RECODES}')
        source = SegmentSource.open(src, bands, nodata)
        plan = TilePlan.make(source.shape, tile_size, overlap, config.is_compat)
        output = LabelOutput.make(dst, driver, creation_options, table, colors)
        centres = None if kmeans is None else as_centres(kmeans, source.n_bands)
        with output.writing() as path, CogWriter(
                path, source.shape, 'uint32', nodata=0, crs=source.crs_wkt,
                transform=source.geotransform, overviews='nearest', channels=['segments'],
                compress=compress, blocksize=blocksize) as writer:
            percent = None
            if centres is None:
                kmeans, percent = run.fit(source)
                centres = None if kmeans is None else as_centres(kmeans, source.n_bands)
            result = TiledShepherdResult(
                output.path, 0, np.zeros(1, np.int64), plan.grid_shape, kmeans, float('nan'),
                percent, False, [], timings)
            if centres is not None:
                limit = resolve_max_spectral_diff(config, kmeans)
                stitch = run.recode if config.is_compat else run.stitch
                found = stitch(source, plan, centres, limit, kmeans, writer, recode)
                result = replace(result, max_spectral_diff=float(limit), **found)
            with timings.interval('writing'):
                writer.close(fill_missing=True)
                output.finish(result.sizes)
    logger.info('%s', result.format_timings())
    return result


class _Run:
    """What the stages of one segmentation share."""

    def __init__(self, config, timings, executor, num_threads, max_concurrent_reads,
                 tile_timeout, progress):
        for name, value in (('max_concurrent_reads', max_concurrent_reads),
                            ('num_threads', 1 if num_threads is None else num_threads)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise OptionError(f'{name}={value!r} must be a whole number of at least 1')
        if tile_timeout is not None and not tile_timeout > 0:
            raise OptionError(f'tile_timeout={tile_timeout!r} must be seconds, above 0, or None')
        self.config, self.timings, self.executor = config, timings, executor
        self.num_threads = num_threads or max(count_cpus() // executor.n_workers, 1)
        self.reads = threading.BoundedSemaphore(max_concurrent_reads)
        self.tile_timeout, self.progress = tile_timeout, progress

    def fit(self, source):
        """Return the clusters of a sample, None if no pixel is valid, and its percentage."""
        with self.timings.interval('sampling'):
            with ThreadPoolExecutor(count_cpus(), 'cocoseg-sample') as pool:
                sample = sample_raster(self._limit_reads(source.read), source.shape,
                                       source.n_bands, source.dtype, self.config, source.nodata,
                                       run=pool.map)
        if not len(sample.pixels):
            logger.warning('no pixel of %s is valid', source.name)
            return None, sample.percent
        with self.timings.interval('spectralclusters'):
            kmeans = fit_lazily(sample.pixels, self.config, num_threads=count_cpus())
        return kmeans, sample.percent

    def _limit_reads(self, read):
        def limited(window):
            with self.reads:
                return read(window)
        return limited

    def iter_tiles(self, source, plan, centres, limit, kmeans, cut, ordered):
        """Yield (window, what ``cut`` makes of its labels and pixels)."""
        predict = getattr(kmeans, 'predict', None) if self.config.is_compat else None

        def segment(window):
            with self.timings.interval('reading'):
                with self.reads:
                    image = source.read(window)
            with self.timings.interval('segmentation'):
                valid = find_valid(image, source.nodata, num_threads=self.num_threads)
                labels = segment_pixels(image, valid, centres, limit, self.config,
                                        num_threads=self.num_threads, predict=predict)[0]
                return cut(window, labels, image)

        tiles = self.executor.run(
            segment, plan, ordered=ordered, timeout=self.tile_timeout,
            describe=lambda window: f'tile {plan.locate(window)} at {window} of {source.name}')
        with contextlib.closing(tiles):
            steps = self._time_waits(tiles)
            if self.progress is not None:
                steps = self.progress(steps, total=len(plan), desc='segment')
            yield from steps

    def _time_waits(self, tiles):
        """Count the seconds that the stitching waits for tiles, where others make them."""
        while True:
            start = time.perf_counter()
            step = next(tiles, None)
            if self.executor.n_workers > 1:
                self.timings.add('waiting', time.perf_counter() - start)
            if step is None:
                return
            yield step

    def stitch(self, source, plan, centres, limit, kmeans, writer, recode):
        """Put tiles together whose segments are matched where they overlap."""
        stitcher = LabelStitcher(
            source.shape, list(plan), sink=writer,
            connectivity=4 if self.config.four_connected else 8,
            match='overlap' if recode == 'overlap' else 'none',
            min_size=self.config.min_segment_size, max_difference=float(limit),
            spill_dir=os.path.dirname(os.path.abspath(writer.fpath)))
        with contextlib.closing(stitcher):
            for _, tile in self.iter_tiles(source, plan, centres, limit, kmeans, stitcher.cut,
                                           ordered=False):
                with self.timings.interval('stitchtiles'):
                    stitcher.insert(tile)
            with self.timings.interval('stitchtiles'):
                stitcher.finalize()
        return {'n_segments': stitcher.n_labels, 'sizes': stitcher.sizes,
                'seams': stitcher.seams}

    def recode(self, source, plan, centres, limit, kmeans, writer, recode):
        """Put tiles together as pyshepseg does, row by row."""
        recoder = TileRecoder(plan, is_simple=recode == 'simple')
        sizes = np.zeros(1, np.int64)
        for window, labels in self.iter_tiles(source, plan, centres, limit, kmeans,
                                              lambda window, labels, image: labels, ordered=True):
            with self.timings.interval('stitchtiles'):
                core, ids = recoder.recode(window, labels)
                writer.write_block(core, ids[..., None])
                counts = np.bincount(ids.ravel(), minlength=len(sizes))
                counts[:len(sizes)] += sizes
                sizes = counts
        sizes[0] = 0
        is_empty = bool((sizes[1:] == 0).any())
        if is_empty:
            logger.warning('%d segment ids have no pixel, as pyshepseg would have it; compat=None '
                           'leaves none', int((sizes[1:] == 0).sum()))
        return {'n_segments': len(sizes) - 1, 'sizes': sizes, 'has_empty_segments': is_empty}
