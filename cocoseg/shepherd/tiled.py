"""
Segment rasters of any size: tile by tile, put together without seams.

The clusters are fitted once, to a sample of the whole raster, so that all
tiles see the same ones. Each tile is read and segmented by itself, in any
order, thread or process; the caller's thread puts them together and writes.
"""
from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Callable

import numpy as np

from cocoseg.engine.executors import Executor, get_executor
from cocoseg.engine.timings import Timings, format_timings
from cocoseg.errors import OptionError
from cocoseg.io.cog import CogWriter
from cocoseg.machine import count_cpus
from cocoseg.protocols import PathLike, Progress
from cocoseg.shepherd.assign import find_valid
from cocoseg.shepherd.clusters import (as_centres, as_kmeans, fit_lazily,
                                       resolve_max_spectral_diff)
from cocoseg.shepherd.config import ShepherdConfig
from cocoseg.shepherd.output import LabelOutput
from cocoseg.shepherd.raster import SegmentSource
from cocoseg.shepherd.recode import TileRecoder
from cocoseg.shepherd.sampling import sample_raster
from cocoseg.shepherd.segment import segment_pixels
from cocoseg.shepherd.tile_store import (
    TileCut, TileStore, check_sent, keep_labels, shares_memory)
from cocoseg.shepherd.tiles import TilePlan
from cocoseg.stitch.label import LabelStitcher, Seam

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

    Example:
        >>> import tempfile
        >>> from cocoseg import ShepherdConfig, segment_raster
        >>> image = np.kron(np.array([[10, 90], [50, 30]]), np.ones((40, 40)))[..., None]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = segment_raster(image, f'{folder}/ids.tif', ShepherdConfig(n_clusters=4),
        ...                             tile_size=64, overlap=16)
        >>> result.n_segments, result.sizes.tolist(), result.grid_shape
        (4, [0, 1600, 1600, 1600, 1600], (2, 2))
    """

    path: str
    n_segments: int
    sizes: np.ndarray
    grid_shape: tuple[int, int]
    clusters: Any
    max_spectral_diff: float
    sample_percent: float | None
    has_empty_segments: bool
    seams: list[Seam]
    timings: Timings

    @property
    def kmeans(self) -> Any:
        """The clusters, to be used for other rasters; None if no pixel is valid."""
        return as_kmeans(self.clusters)

    def format_timings(self) -> str:
        """Return the timings as a table for people."""
        return format_timings(self.timings.summary(), 'Segmentation timings (s)')


def segment_raster(src: PathLike | np.ndarray, dst: PathLike, config: ShepherdConfig | None = None,
                   tile_size: int | tuple[int, int] = 4096, overlap: int | tuple[int, int] = 1024,
                   executor: str | Executor = 'serial', kmeans: Any = None, *,
                   bands: Sequence[int] | None = None, nodata: float | str | None = 'file',
                   recode: str = 'overlap', driver: str = 'COG',
                   creation_options: Sequence[str] = (), table: PathLike | None = None,
                   colors: int | None = None, compress: str = 'ZSTD', blocksize: int = 512,
                   max_concurrent_reads: int = 20, tile_timeout: float | None = None,
                   num_threads: int | None = None,
                   progress: Progress | None = None) -> TiledShepherdResult:
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
        executor (str | Executor): 'serial', 'threads', 'threads:N',
            'processes:N', 'dask', or an executor; see
            :func:`cocoseg.get_executor`. Workers of other processes read
            ``src`` by its path, and leave their tiles in a hidden folder beside
            ``dst``, which all of them must see; it is removed at the end.
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
        max_concurrent_reads (int): tiles that are read at a time, by threads of
            this process. Each worker of another process reads one at a time.
        tile_timeout (float | None): seconds that one tile may take.
        num_threads (int | None): threads that share the work within a tile;
            None is all CPUs over the workers of the executor, and 1 where
            these are other processes.
        progress (Callable | None): wraps an iterable, called with ``total``
            and ``desc``; for example ``ubelt.ProgIter``.

    Returns:
        TiledShepherdResult: facts, statistics and timings.

    Raises:
        OptionError: for an option that cannot be used, such as a tile that is
            not larger than the overlap, fewer distinct pixels than clusters, or
            an array of more than 16 MiB for workers of other processes.
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
        run = TiledRun(config, timings, get_executor(executor), num_threads, max_concurrent_reads,
                   tile_timeout, progress)
        if recode not in RECODES:
            raise OptionError(f'recode={recode!r} is unknown; use one of {RECODES}')
        source = SegmentSource.open(src, bands, nodata)
        check_sent(run.executor, [source.source])
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


@dataclass(frozen=True)
class _TileTask:
    """
    What a worker does with one tile. Can be pickled.

    ``cut`` is called with window, labels and image; what it returns is saved
    in ``store``, if there is one. Returns that, and the timings.
    """

    source: SegmentSource
    centres: np.ndarray
    limit: Any
    config: ShepherdConfig
    predict: Callable | None
    num_threads: int
    cut: Callable
    store: TileStore | None = None

    def __call__(self, window, reads=None):
        timings = Timings()
        with timings.interval('reading'), reads or contextlib.nullcontext():
            image = self.source.read(window)
        with timings.interval('segmentation'):
            valid = find_valid(image, self.source.nodata, num_threads=self.num_threads)
            labels = segment_pixels(image, valid, self.centres, self.limit, self.config,
                                    num_threads=self.num_threads, predict=self.predict)[0]
            found = self.cut(window, labels, image)
        if self.store is not None:
            with timings.interval('storing'):
                found = self.store.save(window, found)
        return found, timings


class TiledRun:
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
        self.shares_memory = shares_memory(executor)
        self.num_threads = num_threads or (
            max(count_cpus() // executor.n_workers, 1) if self.shares_memory else 1)
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

    def iter_tiles(self, source, plan, centres, limit, kmeans, writer, cut, ordered):
        """Yield (window, what ``cut`` makes of its labels and pixels), to be let go of soon."""
        with contextlib.ExitStack() as stack:
            store = None if self.shares_memory else stack.enter_context(
                TileStore.open_beside(writer.fpath, plan))
            task = _TileTask(source, centres, limit, self.config, self._find_predict(kmeans),
                             self.num_threads, cut, store)
            tiles = stack.enter_context(contextlib.closing(self.executor.run(
                functools.partial(task, reads=self.reads) if self.shares_memory else task,
                plan, ordered=ordered, timeout=self.tile_timeout,
                describe=lambda window: f'tile {plan.locate(window)} at {window} of '
                                        f'{source.name}')))
            steps = self._time_waits(tiles)
            if self.progress is not None:
                steps = self.progress(steps, total=len(plan), desc='segment')
            # Nothing here holds a tile that was handed out.
            tiles = map(self._take, steps)
            yield from tiles if store is None else store.iter_loaded(tiles)

    def _take(self, step):
        window, (found, timings) = step
        self.timings.merge(timings)
        return window, found

    def _find_predict(self, kmeans):
        """Return what decides between centres that are equally near, with ``compat``."""
        if not self.config.is_compat or not hasattr(kmeans, 'predict'):
            return None
        if not self.shares_memory and hasattr(kmeans, 'labels_'):
            # It goes with each task, and needs no clusters of samples.
            kmeans = copy.copy(kmeans)
            del kmeans.labels_
        return kmeans.predict

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
        connectivity = 4 if self.config.four_connected else 8
        min_size = self.config.min_segment_size
        stitcher = LabelStitcher(
            source.shape, list(plan), sink=writer, connectivity=connectivity,
            match='overlap' if recode == 'overlap' else 'none',
            min_size=min_size, max_difference=float(limit),
            spill_dir=os.path.dirname(os.path.abspath(writer.fpath)))
        cut = TileCut(source.shape, plan, connectivity, min_size)
        with contextlib.closing(stitcher), contextlib.closing(self.iter_tiles(
                source, plan, centres, limit, kmeans, writer, cut, ordered=False)) as tiles:
            for _, tile in tiles:
                with self.timings.interval('stitchtiles'):
                    stitcher.insert(tile)
                # The file of its pieces may be removed.
                del tile
            with self.timings.interval('stitchtiles'):
                stitcher.finalize()
        return {'n_segments': stitcher.n_labels, 'sizes': stitcher.sizes,
                'seams': stitcher.seams}

    def recode(self, source, plan, centres, limit, kmeans, writer, recode):
        """Put tiles together as pyshepseg does, row by row."""
        recoder = TileRecoder(plan, is_simple=recode == 'simple')
        sizes = np.zeros(1, np.int64)
        with contextlib.closing(self.iter_tiles(source, plan, centres, limit, kmeans, writer,
                                                keep_labels, ordered=True)) as tiles:
            for window, labels in tiles:
                with self.timings.interval('stitchtiles'):
                    core, ids = recoder.recode(window, labels)
                    del labels
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
