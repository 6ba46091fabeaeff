"""
Connected components of rasters and volumes of any size, block by block.

The result is that of labeling everything at once, bit for bit, whatever the
blocks are: pieces that touch across borders are joined, and ids are given by
the first pixel of each component.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cocoseg.engine.blockmap import BlockRun
from cocoseg.errors import OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.io.arrays import open_source
from cocoseg.io.cropped import crop_source
from cocoseg.labels.components import label_components
from cocoseg.labels.volume_components import label_volume
from cocoseg.postprocess.label_blocks import Labeled, LabelPlan
from cocoseg.postprocess.links import ContactLinker
from cocoseg.postprocess.result import LabelResult, label_all
from cocoseg.postprocess.workspace import identify

# By how many axes neighbors may differ: place + 1, per number of axes.
_CONNECTIVITIES = {2: (4, 8), 3: (6, 18, 26)}


def connected_components(source: Any, dst: Any = None, *, block_shape: int | tuple[int, ...] = 1024,
                         connectivity: int | None = None, threshold: float | None = None,
                         by_value: bool = False, band: int = 0, min_size: int = 0, roi: Any = None,
                         overwrite: bool = False, **options: Any) -> LabelResult:
    """
    Number connected components, block by block.

    Args:
        source (object): a raster, array, memory map, Zarr array or kwcoco
            image; see :func:`cocoseg.map_blocks`.
        dst (object): where labels go, uint32, 0 for background; see ``sink`` of
            :func:`cocoseg.map_blocks`. None returns an array.
        block_shape (int | tuple[int, ...]): extent of a block, px. Three
            entries mean a volume.
        connectivity (int | None): 4 or 8 in images, 6, 18 or 26 in volumes;
            None is the lowest.
        threshold (float | None): pixels of at least this value belong to
            components. None: all but 0. NaN and nodata never do.
        by_value (bool): components have one value each: of whole numbers, 0 is
            background.
        band (int): of the source, counted from 0.
        min_size (int): px that a component needs, counted over all blocks.
        roi (object): the part to do; see :func:`cocoseg.map_blocks`.
        overwrite (bool): replace an output that exists.
        **options: of :class:`~cocoseg.engine.blockmap.BlockRun`, such as
            ``executor`` and ``resume``; others are of the output, such as
            ``compress``.

    Returns:
        LabelResult: with canonical ids 1..n by first pixel, row by row.

    Raises:
        OptionError: for options that have no meaning, or an output that exists.
        TaskError: if a block fails; from its error, with the block.
        LabelOverflowError: if ids do not fit in 32 bits.

    Example:
        >>> from cocoseg import connected_components
        >>> image = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 0, 0]])
        >>> result = connected_components(image, block_shape=2)
        >>> result.output.tolist(), result.sizes.tolist()
        ([[1, 1, 0, 2], [0, 1, 0, 2], [3, 0, 0, 0]], [0, 3, 2, 1])
        >>> connected_components(image, block_shape=2, connectivity=8).n_labels
        2
    """
    run, sink_options = BlockRun.split(options)
    ndim = len(block_shape) if isinstance(block_shape, (tuple, list)) else 2
    source = crop_source(open_source(source, ndim), roi)
    grid = BlockGrid(source.shape, block_shape)
    label = ComponentLabeler.make(source, ndim, connectivity, threshold, by_value, band)
    if not isinstance(min_size, (int, np.integer)) or min_size < 0:
        raise OptionError(f'min_size={min_size!r} must be a whole number of at least 0')
    plan = LabelPlan(grid, label, ContactLinker(label.reach), _KeepLarge(int(min_size)),
                     name=source.name)

    def make_key():
        return {'kind': 'components', 'source': identify(source), 'block': grid.block,
                'band': band, 'threshold': threshold, 'by_value': by_value, 'reach': label.reach}
    return label_all(plan, dst, source, run, make_key, overwrite=overwrite,
                     sink_options=sink_options)


@dataclass(frozen=True)
class _KeepLarge:
    """Keep objects of at least so many px."""

    min_size: int

    def __call__(self, sizes, means):
        return sizes >= self.min_size


@dataclass(frozen=True)
class ComponentLabeler:
    """
    Label the components of the core of a block. Make it with :meth:`make`.

    Attributes:
        source (BlockSource): what is labeled.
        reach (int): by how many axes neighboring pixels may differ.
        threshold, by_value, band: of :func:`connected_components`.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.strips import Source
        >>> source = Source.open(np.array([[3, 3, 5, 0]]))
        >>> labeler = ComponentLabeler.make(source, 2, by_value=True)
        >>> labeler.label(source.read(Window(0, 0, 1, 4))[..., 0]).labels.tolist()
        [[1, 1, 2, 0]]
    """

    source: Any
    reach: int
    threshold: float | None = None
    by_value: bool = False
    band: int = 0

    @classmethod
    def make(cls, source, ndim, connectivity=None, threshold=None, by_value=False, band=0):
        """
        Check options.

        Raises:
            OptionError: for one that has no meaning for the source.
        """
        known = _CONNECTIVITIES[ndim]
        connectivity = known[0] if connectivity is None else connectivity
        if isinstance(connectivity, bool) or connectivity not in known:
            raise OptionError(f'connectivity={connectivity!r} must be one of {known} in {ndim} '
                              'axes')
        if threshold is not None and not math.isfinite(threshold):
            raise OptionError(f'threshold={threshold!r} must be a finite number, or None')
        if by_value and (threshold is not None or source.dtype.kind not in 'biu'):
            raise OptionError(f'by_value=True is for whole numbers without a threshold; '
                              f'{source.name} has {source.dtype}, and threshold={threshold}')
        n_bands = source.shape[-1]
        if not isinstance(band, (int, np.integer)) or not 0 <= band < n_bands:
            raise OptionError(f'band={band!r} of {source.name} does not exist; it has {n_bands}, '
                              'counted from 0')
        return cls(source, known.index(connectivity) + 1, threshold, by_value, int(band))

    def __call__(self, block, timings):
        """Read and label one block."""
        with timings.interval('reading'):
            pixels = self.source.read(block.read)[..., self.band]
        with timings.interval('labeling'):
            return self.label(pixels)

    def label(self, pixels):
        """
        Label an array.

        Args:
            pixels (ndarray): (h, w) or (d, h, w).

        Returns:
            Labeled: with the value of each component, if that matters.
        """
        values = self._find_values(pixels)
        connectivity = _CONNECTIVITIES[values.ndim][self.reach - 1]
        label = label_components if values.ndim == 2 else label_volume
        found = label(values, connectivity)
        label_values = None
        if self.by_value:
            label_values = values.reshape(-1)[found.firsts].astype(np.int64)
        return Labeled(found.labels, found.n, label_values=label_values)

    def _find_values(self, pixels):
        """Return unsigned integers, 0 for background, components of equal ones."""
        nodata = getattr(self.source, 'nodata', (None,) * (self.band + 1))[self.band]
        if self.by_value:
            values = pixels if nodata is None else np.where(pixels == nodata, 0, pixels)
            if values.dtype.kind == 'i' and values.min(initial=0) < 0:
                raise OptionError(f'{self.source.name} holds {values.min()}; by_value=True needs '
                                  'values of at least 0')
            return values.astype(f'u{values.dtype.itemsize}', copy=False)
        # Comparisons with NaN are false, but for this one.
        is_object = pixels != 0 if self.threshold is None else pixels >= self.threshold
        if self.threshold is None and pixels.dtype.kind == 'f':
            is_object &= ~np.isnan(pixels)
        if nodata is not None and not math.isnan(nodata):
            is_object &= pixels != nodata
        return is_object.view(np.uint8)
