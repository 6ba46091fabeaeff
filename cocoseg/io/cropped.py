"""
A part of a source, as a source of its own.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.box import Box
from cocoseg.grid.roi import Roi
from cocoseg.grid.window import Window
from cocoseg.io.strips import apply_geotransform


@dataclass(frozen=True)
class CroppedSource:
    """
    The pixels of a window of another source. Make it with :func:`crop_source`.

    Attributes:
        source (BlockSource): the whole.
        window (Window | Box): the part.
    """

    source: Any
    window: Any

    @property
    def name(self):
        """What it is, for messages."""
        return f'{self.source.name} in {self.window}'

    @property
    def shape(self):
        """(H, W, C) or (D, H, W, C), px."""
        return (*self.window.shape, self.source.shape[-1])

    @property
    def dtype(self):
        """Of what :meth:`read` returns."""
        return self.source.dtype

    @property
    def nodata(self):
        """Per band; None for none."""
        return getattr(self.source, 'nodata', (None,) * self.source.shape[-1])

    @property
    def crs_wkt(self):
        """Coordinate system of a raster, or None."""
        return getattr(self.source, 'crs_wkt', None)

    @property
    def geotransform(self):
        """Of a raster, 6 numbers in GDAL's order, or None."""
        whole = getattr(self.source, 'geotransform', None)
        if whole is None:
            return None
        x, y = apply_geotransform(whole, self.window.x0, self.window.y0)
        return (x, *whole[1:3], y, *whole[4:])

    @property
    def layout(self):
        """Axes, voxel size and offset of a Zarr array, or None."""
        whole = getattr(self.source, 'layout', None)
        if whole is None:
            return None
        part = Roi.from_box(self.window, whole.voxel_size, whole.offset)
        return replace(whole, offset=part.offset)

    def read(self, window):
        """Read a window, counted from the first pixel of the part."""
        starts = (part.start for part in self.window.slices)
        return self.source.read(window.shift(*starts))


def crop_source(source, roi):
    """
    Return a part of a source.

    Args:
        source (BlockSource): the whole.
        roi (Window | Box | Roi | tuple | None): pixels: a window, a box, or
            slices; or a :class:`~cocoseg.grid.roi.Roi` in world units, of a
            Zarr array. None is all.

    Returns:
        BlockSource: the source itself if it is all.

    Raises:
        OptionError: for anything else, or world units where nothing tells them.
        CoverageError: if the part is empty, leaves the source, or does not
            begin and end between voxels.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.cropped import crop_source
        >>> from cocoseg.io.strips import Source
        >>> import numpy as np
        >>> part = crop_source(Source.open(np.arange(12).reshape(3, 4)), Window(1, 1, 3, 4))
        >>> part.shape, part.read(Window(1, 0, 2, 2)).ravel().tolist()
        ((2, 3, 1), [9, 10])
    """
    if roi is None:
        return source
    ndim = len(source.shape) - 1
    box = _as_box(source, roi, ndim)
    whole = Box.from_shape(source.shape[:-1])
    if box.is_empty or not whole.contains(box):
        raise CoverageError(f'roi={roi} is {"empty" if box.is_empty else "not inside"} '
                            f'{source.name} with {whole}; give a part of it')
    if box == whole:
        return source
    return CroppedSource(source, Window.from_slices(box.slices) if ndim == 2 else box)


def _as_box(source, roi, ndim):
    if isinstance(roi, Roi):
        layout = getattr(source, 'layout', None)
        if layout is None:
            raise OptionError(f'roi={roi} is in world units, and {source.name} has no voxel size; '
                              'give pixels, a Window or a Box')
        roi.check_filled('processed')
        box = roi.to_box(layout.voxel_size, layout.offset) if roi.ndim == layout.ndim else None
    elif isinstance(roi, tuple) and all(isinstance(part, slice) for part in roi):
        box = Box.from_slices(roi)
    else:
        box = Box.from_slices(roi.slices) if hasattr(roi, 'slices') else None
    if box is None or box.ndim != ndim:
        raise OptionError(f'roi={roi!r} must be a Window, a Box or slices of {ndim} axes, or a '
                          f'Roi of {ndim} axes of a Zarr array')
    return box
