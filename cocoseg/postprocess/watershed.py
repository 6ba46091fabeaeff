"""
Instances of rasters and volumes of any size, by watersheds of blocks.

What a watershed does far away can change what it does here, so no halo makes
blocks agree in all cases. They see a context around their core, and labels
of two blocks are one object if each has more than half of the other where both
look. How well that went is told for each seam.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cocoseg.engine.blockmap import BlockRun
from cocoseg.errors import BandCountError, OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.box import Box
from cocoseg.postprocess.blocks import open_sources
from cocoseg.postprocess.label_blocks import Labeled, LabelPlan
from cocoseg.postprocess.links import OverlapLinker
from cocoseg.postprocess.mutex import mutex_watershed
from cocoseg.postprocess.parameters import WatershedParameters
from cocoseg.postprocess.result import LabelResult, label_all
from cocoseg.postprocess.seeded import least_context, seeded_watershed
from cocoseg.postprocess.smoothing import count_reach, smooth
from cocoseg.postprocess.workspace import identify

# Extent of a block by number of axes, px.
_BLOCK_SHAPES = {2: (512, 512), 3: (128, 128, 128)}


def blockwise_watershed(source: Any, parameters: WatershedParameters, dst: Any = None, *,
                        foreground: Any = None, ndim: int | None = None,
                        block_shape: int | tuple[int, ...] | None = None, roi: Any = None,
                        overwrite: bool = False, **options: Any) -> LabelResult:
    """
    Find instances with a watershed, block by block.

    Args:
        source (object): predictions, float, a channel per offset for the method
            'mutex', else one: a raster, array, memory map, Zarr array or kwcoco
            image; see :func:`cocoseg.map_blocks`. NaN is no data, and so is
            the nodata value of a raster.
        parameters (WatershedParameters): how predictions become instances.
        dst (object): where ids go, uint32, 0 for background; see ``sink`` of
            :func:`cocoseg.map_blocks`. None returns an array.
        foreground (object | None): of method 'mutex': a source with one
            channel that is compared with the threshold, instead of the mean of
            the affinities.
        ndim (int | None): 2 or 3 axes; None: as many as the offsets or
            ``block_shape`` have, else two.
        block_shape (int | tuple[int, ...] | None): extent of a block, px, at
            least the context. None is 512 in images and 128 in volumes.
        roi (object): the part to do; see :func:`cocoseg.map_blocks`.
        overwrite (bool): replace an output that exists.
        **options: of :class:`~cocoseg.engine.blockmap.BlockRun`, such as
            ``executor`` and ``resume``; others are of the output, such as
            ``compress``.

    Returns:
        LabelResult: with canonical ids 1..n by first pixel; how well blocks
        agree at each seam is in ``seams``.

    Raises:
        OptionError: for options that contradict each other or the data, or an
            output that exists.
        BandCountError: if the source has another number of channels.
        TaskError: if a block fails; from its error, with the block.
        LabelOverflowError: if ids do not fit in 32 bits.
        MissingDependencyError: for a seeded method without scikit-image.

    Note:
        The result depends on ``block_shape`` and the context, where blocks
        do not agree; not on the executor or the order of blocks.

    Example:
        >>> from cocoseg import WatershedParameters, blockwise_watershed
        >>> truth = np.kron([[1, 2], [3, 3]], np.ones((20, 20), int))
        >>> right = np.pad(truth[:, :-1] == truth[:, 1:], ((0, 0), (0, 1)))
        >>> below = np.pad(truth[:-1] == truth[1:], ((0, 1), (0, 0)))
        >>> affinities = np.stack([right, below], axis=2).astype(np.float32)
        >>> parameters = WatershedParameters([(0, 1), (1, 0)], context=4)
        >>> result = blockwise_watershed(affinities, parameters, block_shape=16)
        >>> assert np.array_equal(result.output, truth)
        >>> result.n_labels, result.agreement
        (3, 1.0)
    """
    run, sink_options = BlockRun.split(options)
    ndim = _find_ndim(parameters, ndim, block_shape)
    sources = open_sources([source] if foreground is None else [source, foreground],
                           ndim, roi)
    _check_channels(sources, parameters)
    block_shape = _BLOCK_SHAPES[ndim] if block_shape is None else block_shape
    block_shape = block_shape if isinstance(block_shape, (tuple, list)) else (block_shape,) * ndim
    grid = BlockGrid(sources[0].shape, block_shape, _check_context(parameters, block_shape))
    plan = LabelPlan(grid, WatershedLabeler(sources, parameters, grid.shape), OverlapLinker(),
                     _KeepInstances.make(parameters), name=sources[0].name)

    def make_key():
        # What is filtered in the end does not change the labels of blocks.
        return {'kind': 'watershed', 'sources': [*map(identify, sources)], 'block': grid.block,
                'parameters': parameters.patch(min_size=0, filter_fragments=False).as_dict()}
    return label_all(plan, dst, sources[0], run, make_key, overwrite=overwrite,
                     sink_options=sink_options)


def _find_ndim(parameters, ndim, block_shape):
    """Return the number of axes, on which all must agree."""
    if not isinstance(parameters, WatershedParameters):
        raise OptionError(f'parameters={parameters!r} must be WatershedParameters')
    found = {'ndim': ndim, 'offsets': len(parameters.offsets[0]) if parameters.offsets else None,
             'block_shape': len(block_shape) if isinstance(block_shape, (tuple, list)) else None}
    known = {name: value for name, value in found.items() if value is not None}
    if len(set(known.values())) > 1 or not set(known.values()) <= {2, 3}:
        raise OptionError(f'the number of axes is {known}; they must be equal, and 2 or 3')
    return next(iter(known.values()), 2)


def _check_channels(sources, parameters):
    n_needed = len(parameters.offsets) or 1
    if sources[0].shape[-1] != n_needed:
        what = f'{n_needed} offsets' if parameters.offsets else f'method={parameters.method!r}'
        raise BandCountError(f'{sources[0].name} has {sources[0].shape[-1]} channels and {what} '
                             f'need {n_needed}; choose channels, or give other offsets')
    for source in sources:
        if source.dtype.kind != 'f' and parameters.method == 'mutex':
            raise OptionError(f'{source.name} has pixels of type {source.dtype}; affinities are '
                              'floats in 0..1: dequantize it')
    if len(sources) > 1:
        if parameters.method != 'mutex' or parameters.threshold is None:
            raise OptionError('foreground is for method="mutex" with a threshold, here '
                              f'{parameters.method!r} with {parameters.threshold}')
        if sources[1].shape[-1] != 1:
            raise BandCountError(f'{sources[1].name} has {sources[1].shape[-1]} channels; '
                                 'foreground has one')


def _check_context(parameters, block_shape):
    """Return the halo of blocks, px per axis."""
    context = parameters.as_context(len(block_shape))
    if min(context) < 1:
        raise OptionError(f'context={context} must be at least 1 px, or blocks have no pixel in '
                          'common by which their labels could be joined')
    if any(extent < halo for extent, halo in zip(block_shape, context)):
        raise OptionError(f'block_shape={tuple(block_shape)} is smaller than the context '
                          f'{context}; blocks would mostly read what others write. Use larger '
                          'blocks')
    if parameters.method != 'mutex' and min(context) < least_context(parameters):
        raise OptionError(f'context={context} is less than the {least_context(parameters)} px that '
                          f'method={parameters.method!r} looks around for seeds')
    return context


@dataclass(frozen=True)
class _KeepInstances:
    """Keep objects that are large enough and hold together."""

    min_size: int
    least_mean: float

    @classmethod
    def make(cls, parameters):
        is_filtered = parameters.method == 'mutex' and parameters.filter_fragments
        return cls(parameters.min_size, parameters.bias if is_filtered else -math.inf)

    def __call__(self, sizes, means):
        return (sizes >= self.min_size) & ~(means < self.least_mean)


@dataclass(frozen=True)
class WatershedLabeler:
    """
    Find the instances in what a block reads.

    Attributes:
        sources (tuple[BlockSource, ...]): predictions, and perhaps foreground.
        parameters (WatershedParameters): how.
        shape (tuple[int, ...]): of the image, px.
    """

    sources: tuple
    parameters: WatershedParameters
    shape: tuple

    def __call__(self, block, timings):
        """Read a block, smooth it, and run the watershed."""
        # The seeded ones smooth by themselves, more than once.
        sigma = self.parameters.sigma if self.parameters.method == 'mutex' else 0
        margin = count_reach(sigma)
        around = block.read.pad(margin).clip(self.shape)
        with timings.interval('reading'):
            pixels = [_read_valid(source, around) for source in self.sources]
        with timings.interval('labeling'):
            pixels = [_smooth_channels(one, sigma)[block.read.within(around).slices]
                      for one in pixels]
            return label_instances(pixels[0], self.parameters,
                                   pixels[1][..., 0] if len(pixels) > 1 else None,
                                   place=(block.read, self.shape))


def _read_valid(source, window):
    """Return pixels, floats with NaN where a raster has its nodata value."""
    pixels = source.read(window)
    values = dict(enumerate(getattr(source, 'nodata', None) or ()))
    values = {band: value for band, value in values.items()
              if value is not None and not math.isnan(value)}
    if not values:
        return pixels
    out = pixels.astype(pixels.dtype if pixels.dtype.kind == 'f' else np.float32)
    for band, value in values.items():
        out[..., band][pixels[..., band] == value] = np.nan
    return out


def label_instances(predictions, parameters, foreground=None, place=None):
    """
    Find the instances in one array, without filtering them.

    Args:
        predictions (ndarray): float, (h, w, C) or (d, h, w, C); for a mutex
            watershed smoothed before.
        parameters (WatershedParameters): how.
        foreground (ndarray | None): float (h, w) or (d, h, w).
        place (tuple | None): window or box of the array, and the shape of the
            image; None: it is the image.

    Returns:
        Labeled: with what the score of an instance is the mean of.

    Example:
        >>> from cocoseg import WatershedParameters
        >>> from cocoseg.postprocess.watershed import label_instances
        >>> affinities = np.array([[[0.9], [0.1], [0.8], [0.2]]])
        >>> label_instances(affinities, WatershedParameters([(0, 1)])).labels.tolist()
        [[1, 1, 2, 2]]
    """
    if parameters.method != 'mutex':
        surface = np.ascontiguousarray(predictions[..., 0], np.float32)
        labels = seeded_watershed(surface, parameters)
        values = 1 - surface if parameters.method == 'boundary' else surface
        return Labeled(labels, int(labels.max(initial=0)), values)
    affinities = np.ascontiguousarray(np.moveaxis(predictions, -1, 0), np.float32)
    # Edges of other pixels may end where no data is.
    mask = ~np.isnan(affinities).all(axis=0)
    means = compute_means(affinities, parameters.offsets, place)
    if parameters.threshold is not None:
        mask &= (means if foreground is None else foreground) >= parameters.threshold
    labels = mutex_watershed(affinities, parameters.offsets, parameters.bias, mask=mask)
    return Labeled(labels, int(labels.max(initial=0)), means)


def compute_means(affinities, offsets, place=None):
    """
    Return the mean affinity of each pixel, over the edges that exist.

    Args:
        affinities (ndarray): float32 (C, h, w) or (C, d, h, w).
        offsets (Sequence[tuple[int, ...]]): C; edges that leave the image do
            not exist.
        place (tuple | None): as for :func:`label_instances`.

    Returns:
        ndarray: float32 (h, w) or (d, h, w); NaN without an edge.

    Example:
        >>> from cocoseg.postprocess.watershed import compute_means
        >>> affinities = np.array([[[1, np.nan, 1]], [[0, np.nan, 1]]], np.float32)
        >>> compute_means(affinities, [(0, 1), (0, -1)]).tolist()
        [[1.0, nan, 1.0]]
    """
    shape = affinities.shape[1:]
    box, image = (Box.from_shape(shape), shape) if place is None else place
    exists = ~np.isnan(affinities)
    for channel, offset in enumerate(offsets):
        for axis, step in enumerate(offset):
            part = box.slices[axis]
            inside = np.arange(part.start, part.stop) + step
            leaves = (inside < 0) | (inside >= image[axis])
            exists[channel][(slice(None),) * axis + (leaves,)] = False
    with np.errstate(invalid='ignore'):
        return (np.where(exists, affinities, 0).sum(axis=0, dtype=np.float32)
                / exists.sum(axis=0, dtype=np.float32))


def _smooth_channels(pixels, sigma):
    """Return float32 pixels (..., C), smoothed each channel by itself; gaps are NaN."""
    if sigma == 0:
        return pixels
    out = np.empty(pixels.shape, np.float32)
    for channel in range(pixels.shape[-1]):
        smoothed, is_valid = smooth(np.asarray(pixels[..., channel], np.float32), sigma)
        out[..., channel] = np.where(is_valid, smoothed, np.nan)
    return out
