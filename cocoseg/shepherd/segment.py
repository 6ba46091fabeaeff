"""
Shepherd segmentation of one image in memory.

The steps one after another: clusters of the colors, the nearest cluster of
each pixel, clumps of equal clusters, and the merging of what is too small.
Rasters of any size are in :mod:`cocoseg.shepherd.tiled`, on the same
:func:`segment_pixels`.

References:
    .. [Shepherd2019] Shepherd, Bunting and Dymond, Operational Large-Scale
       Segmentation of Imagery Based on Iterative Elimination, Remote Sensing
       11(6) 658, 2019. <https://doi.org/10.3390/rs11060658>
"""
from __future__ import annotations

import logging
import numbers
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cocoseg.engine.timings import Timings
from cocoseg.errors import OptionError
from cocoseg.machine import count_cpus
from cocoseg.shepherd.assign import as_image, as_pixels, assign_valid, check_mask, find_valid
from cocoseg.shepherd.clumps import COMPAT_MAX_SIZE, check_size, find_clump_segments
from cocoseg.shepherd.clusters import (as_centres, as_kmeans, draw_samples, fit_lazily,
                                       resolve_max_spectral_diff)
from cocoseg.shepherd.config import ShepherdConfig
from cocoseg.shepherd.eliminate import merge_singles, merge_small

log = logging.getLogger(__name__)


class SegmentedPixels(NamedTuple):
    """
    The segments of an image.

    Attributes:
        labels (ndarray): uint32 (H, W), 0 where null, ids 1..``n_segments``.
        n_segments (int): how many.
        n_singles (int): single pixels that were merged.
        n_small (int): small segments that were merged.
    """

    labels: np.ndarray
    n_segments: int
    n_singles: int
    n_small: int


@dataclass(frozen=True)
class ShepherdResult:
    """
    What a segmentation found.

    Attributes:
        labels (ndarray): uint32 (H, W), 0 where null, ids 1..``n_segments``.
        clusters (object): what :attr:`kmeans` is made of.
        max_spectral_diff (float | None): the limit that was used, in units of
            the image; None where there are no clusters and the limit is made
            from them.
        n_segments (int): how many there are.
        n_singles_eliminated (int): single pixels that were merged.
        n_small_eliminated (int): small segments that were merged.
        timings (Timings): seconds by name: ``spectralclusters``, ``assign``,
            ``clump``, ``singles``, ``small``, and ``walltime`` for all.

    Example:
        >>> from cocoseg import ShepherdConfig, shepherd_segment
        >>> image = np.kron(np.array([[10, 90], [50, 30]]), np.ones((8, 8)))[..., None]
        >>> result = shepherd_segment(image, ShepherdConfig(n_clusters=4, min_segment_size=5))
        >>> result.n_segments, result.labels[0, ::8].tolist()
        (4, [1, 2])
    """

    labels: np.ndarray
    clusters: Any
    max_spectral_diff: float | None
    n_segments: int
    n_singles_eliminated: int
    n_small_eliminated: int
    timings: Timings

    @property
    def kmeans(self) -> Any:
        """
        The clusters, which another image can be segmented with.

        A fitted ``sklearn.cluster.KMeans``, or what was given; None if no pixel
        is valid and none was given.
        """
        return as_kmeans(self.clusters)


def shepherd_segment(image: np.ndarray, config: ShepherdConfig | None = None,
                     nodata: float | None = None, kmeans: Any = None, *,
                     mask: np.ndarray | None = None, num_threads: int | None = None,
                     progress: Callable[[str], object] | None = None) -> ShepherdResult:
    """
    Segment an image in memory.

    Pixels are grouped by color with k-means; connected pixels of a group make
    a segment; those that are too small are merged into the neighbor most like
    them.

    Args:
        image (ndarray): int or float, (H, W, B) or (H, W), any layout in
            memory; bands first are passed as ``numpy.moveaxis(image, 0, -1)``.
            Never modified.
        config (ShepherdConfig | None): what to do; None is the default.
        nodata (float | None): a pixel is null if any band is equal to it.
            Pixels with NaN or infinity are null anyway, also with ``compat``,
            though pyshepseg cannot have them.
        kmeans (sklearn.cluster.KMeans | ndarray | None): fitted clusters, or
            their centres (K, B); None fits them to the image.
        mask (ndarray | None): bool (H, W), True where valid.
        num_threads (int | None): None is one per CPU. The labels are the same
            for any number.
        progress (Callable[[str], object] | None): called with a line for each
            step.

    Returns:
        ShepherdResult: labels, 0 where null, and how they came about. An image
        without a valid pixel has no segments.

    Raises:
        OptionError: for an image of another dtype, a mask that is not bool,
            clusters that are not fitted or have other bands, or fewer
            different pixels than clusters.
        WindowShapeError: for shapes that do not fit.
        NodataError: if ``nodata`` is not a number.
        LabelOverflowError: for more than 2^31 - 1 px; see
            :func:`~cocoseg.shepherd.tiled.segment_raster`.

    Note:
        Thread-safe. Memory beyond the image is 8 bytes per pixel, and up to 20
        where most clumps are single pixels.

    References:
        .. [Shepherd2019] Shepherd, Bunting and Dymond, Remote Sensing 11(6)
           658, 2019. <https://doi.org/10.3390/rs11060658>

    Example:
        >>> import numpy as np
        >>> from cocoseg import ShepherdConfig, shepherd_segment
        >>> image = np.full((20, 30, 2), 100, np.uint8)
        >>> image[:, 10:20] = 150
        >>> image[5:7, 3:5] = 110
        >>> image[:, 29:] = 0
        >>> config = ShepherdConfig(n_clusters=3, min_segment_size=8, max_spectral_diff=20)
        >>> result = shepherd_segment(image, config, nodata=0)
        >>> result.labels[5, [0, 3, 10, 20, 29]]
        array([1, 1, 2, 3, 0], dtype=uint32)
        >>> result.n_segments, result.n_small_eliminated
        (3, 1)
    """
    config = ShepherdConfig() if config is None else config
    num_threads = _checked_threads(num_threads)
    image = as_image(image)
    check_size(image.shape)
    check_mask(mask, image.shape)
    if kmeans is not None:
        as_centres(kmeans, image.shape[2])
    timings = Timings()
    report = _make_reporter(progress)
    with timings.interval('walltime'):
        valid = find_valid(image, nodata, mask, num_threads=num_threads)
        is_empty = valid is not None and not valid.any()
        if kmeans is None and not is_empty:
            kmeans = _fit(image, valid, config, num_threads, timings, report)
        centres, limit = _find_centres(kmeans, config, image.shape[2])
        if is_empty:
            found = SegmentedPixels(np.zeros(image.shape[:2], np.uint32), 0, 0, 0)
            report('no pixel is valid, so there are no segments')
        else:
            found = segment_pixels(
                image, valid, centres, limit, config, num_threads=num_threads, timings=timings,
                predict=getattr(kmeans, 'predict', None), report=report)
    return ShepherdResult(
        found.labels, kmeans, None if limit is None else float(limit), found.n_segments,
        found.n_singles, found.n_small, timings)


def segment_pixels(image, valid, centres, max_spectral_diff, config, *, num_threads=1,
                   timings=None, predict=None, report=None):
    """
    Segment an image whose cluster centres are known.

    Args:
        image (ndarray): int or float, (H, W, B) or (H, W). Null pixels keep
            their values, which ``compat`` compares with others.
        valid (ndarray | None): bool (H, W), of
            :func:`~cocoseg.shepherd.assign.find_valid`; None means all.
        centres (ndarray): float64 (K, B).
        max_spectral_diff (float): the limit, in units of the image; a float32
            is squared as such.
        config (ShepherdConfig): what to do.
        num_threads (int): that share the work.
        timings (Timings | None): gets ``assign``, ``clump``, ``singles`` and
            ``small``.
        predict (Callable | None): ``predict`` of the fitted KMeans, which
            with ``compat`` decides where two centres are equally near but for
            rounding; see :func:`~cocoseg.shepherd.assign.assign_clusters`.
        report (Callable[[str], object] | None): called with a line per step.

    Returns:
        SegmentedPixels: the labels and counts, a tuple.

    Raises:
        OptionError, WindowShapeError, BandCountError, LabelOverflowError: as
            for :func:`shepherd_segment`.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.config import ShepherdConfig
        >>> from cocoseg.shepherd.segment import segment_pixels
        >>> image = np.array([[1, 1, 9], [1, 2, 9]], np.float32)
        >>> config = ShepherdConfig(min_segment_size=2)
        >>> segment_pixels(image, None, np.array([[1.0], [9.0]]), 5.0, config)
        SegmentedPixels(labels=array([[1, 1, 2],
               [1, 1, 2]], dtype=uint32), n_segments=2, n_singles=0, n_small=0)
    """
    timings = Timings() if timings is None else timings
    report = report or log.debug
    four_connected, compat = config.four_connected, config.is_compat
    pixels = as_pixels(image)
    check_size(pixels.shape)
    with timings.interval('assign'):
        clusters = assign_valid(image, centres, valid, num_threads=num_threads,
                                predict=predict if compat else None)
    with timings.interval('clump'):
        segments = find_clump_segments(clusters, four_connected,
                                       COMPAT_MAX_SIZE if compat else None,
                                       num_threads=num_threads)
    del clusters
    n_clumps = segments.n_segments
    report(f'{n_clumps} clumps')
    with timings.interval('singles'):
        # A minimum of one pixel allows single ones; pyshepseg merges them anyway.
        if compat or config.min_segment_size > 1:
            segments = merge_singles(pixels, segments, four_connected, compat, num_threads)
    n_singles = n_clumps - segments.n_segments
    report(f'{n_singles} single pixels merged, {segments.n_segments} segments left')
    with timings.interval('small'):
        segments, n_small = merge_small(pixels, segments, config.min_segment_size,
                                        max_spectral_diff, four_connected, compat, num_threads)
    report(f'{n_small} small segments merged, {segments.n_segments} segments left')
    return SegmentedPixels(segments.labels, segments.n_segments, n_singles, n_small)


def _fit(image, valid, config, num_threads, timings, report):
    """Fit the clusters to the valid pixels."""
    start = time.perf_counter()
    with timings.interval('spectralclusters'):
        samples = draw_samples(image, valid, config)
        kmeans = fit_lazily(samples, config, num_threads)
    report(f'{config.n_clusters} clusters fitted to {len(samples)} pixels in '
           f'{time.perf_counter() - start:.1f} s')
    return kmeans


def _find_centres(kmeans, config, n_bands):
    """Return (centres, limit); None for what there is not without clusters."""
    if kmeans is None:
        limit = config.max_spectral_diff
        return None, None if limit == 'auto' else limit
    centres = as_centres(kmeans, n_bands)
    return centres, resolve_max_spectral_diff(config, kmeans)


def _checked_threads(num_threads):
    if num_threads is None:
        return count_cpus()
    is_whole = isinstance(num_threads, numbers.Integral) and not isinstance(num_threads, bool)
    if not is_whole or num_threads < 1:
        raise OptionError(f'num_threads={num_threads!r} must be a whole number of at least 1')
    return int(num_threads)


def _make_reporter(progress):
    def report(message):
        log.info('%s', message)
        if progress is not None:
            progress(message)
    return report
