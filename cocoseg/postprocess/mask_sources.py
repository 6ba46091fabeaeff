"""
Masks that are computed when they are read: block sources of 0 and 255.

A mask is 255 where data is valid. What decides a block is read first, and only
the pixels that are still open are read of the rest: where one valid band is
enough, the others are not touched.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.grid.window import Window
from cocoseg.io.mask_file import group_bands, is_pixel_interleaved, open_bands
from cocoseg.io.strips import Source, check_same_grid
from cocoseg.postprocess.mask_rules import (
    BandCounter, as_mask, call_logic, coerce_logic, coerce_nodata, count_nodata, find_box,
    find_nodata)

_MASKED = (0,)


class _MaskFace:
    """What all masks answer as sources of blocks; ``base`` is where they lie."""

    dtype = np.dtype(np.uint8)
    nodata, channels = (None,), ('valid',)

    @property
    def shape(self):
        """(H, W, 1), or (D, H, W, 1)."""
        return (*self.base.shape[:-1], 1)

    @property
    def geotransform(self):
        """Of the raster, as for :class:`~cocoseg.io.strips.Source`."""
        return getattr(self.base, 'geotransform', None)

    @property
    def crs_wkt(self):
        """Of the raster, as for :class:`~cocoseg.io.strips.Source`."""
        return getattr(self.base, 'crs_wkt', None)

    @property
    def rasters(self):
        """All rasters that are read, in order."""
        return (self.base,)

    @property
    def fpath(self):
        """File that is masked, if it is one."""
        return getattr(self.base, 'fpath', None)


@dataclass(frozen=True)
class MaskSource(_MaskFace):
    """
    The validity of a raster by its nodata, a source of uint8 blocks.

    Make it with :meth:`open`. A pixel is 255 where valid, 0 where masked.

    Attributes:
        base (BlockSource): the raster.
        bands (tuple[int, ...]): that count, from 0.
        values (tuple[tuple[float, ...], ...] | None): nodata values per band;
            None: the masks of the bands tell.
        logic (int | Callable): so many bands that are nodata mask a pixel; or
            a function of the nodata of all bands.
        groups (tuple | None): what is read of a file, in this order.
        is_together (bool): bands of the file are stored pixel by pixel.

    Thread-safety: any number of threads may read.
    """

    base: Any
    bands: tuple
    values: tuple | None
    logic: Any
    groups: tuple | None = None
    is_together: bool = False

    @classmethod
    def open(cls, base, *, nodata='file', logic='all', bands=None):
        """
        Return the mask of a source, without reading pixels.

        Args:
            base (BlockSource): such as :meth:`cocoseg.io.strips.Source.open`
                returns.
            nodata, logic, bands: as for :func:`cocoseg.compute_mask`.

        Raises:
            OptionError: for options that have no meaning.
            NodataError: for a nodata value that no pixel can have.

        Example:
            >>> from cocoseg import Window
            >>> from cocoseg.io.strips import Source
            >>> from cocoseg.postprocess.mask_sources import MaskSource
            >>> mask = MaskSource.open(Source.open(np.array([[[0, 7], [0, 0]]])), nodata=0)
            >>> mask.shape, mask.read(Window(0, 0, 1, 2)).ravel().tolist()
            ((1, 2, 1), [255, 0])
        """
        bands = check_bands(base, bands)
        logic = coerce_logic(logic, len(bands))
        is_file = isinstance(base, Source) and base.fpath is not None
        from_masks = isinstance(nodata, str) and nodata == 'masks'
        if from_masks and not is_file:
            raise OptionError(f"nodata='masks' is for files, and {base.name} is none; give the "
                              'nodata values')
        values = None
        if not from_masks:
            known = tuple(getattr(base, 'nodata', None) or (None,) * base.shape[-1])
            values = coerce_nodata(nodata, [known[band] for band in bands], base.dtype)
        if not is_file:
            return cls(base, bands, values, logic)
        return cls(base, bands, values, logic, group_bands(base.fpath, bands, from_masks),
                   not from_masks and len(bands) > 1 and is_pixel_interleaved(base.fpath))

    @property
    def name(self):
        """What it is, for messages."""
        return f'mask of {self.base.name}'

    def describe(self):
        """Return what the mask depends on beside its rasters, for the key of a run."""
        logic = self.logic
        if callable(logic):
            logic = getattr(logic, '__qualname__', type(logic).__qualname__)
        return ('mask', self.bands, self.values, logic)

    def read(self, window):
        """Return uint8 (h, w, 1) of a window, or (d, h, w, 1) of a box."""
        if self.groups is None:
            valid = self._judge(select_bands(self.base.read(window), self.bands))
        else:
            with open_bands(self.fpath, self.base.dtype) as reader:
                valid = self._read_file(reader, window)
        return valid[..., None]

    def _read_file(self, reader, window):
        if callable(self.logic):
            return self._call(self._find_stack(reader, window))
        counter, groups = BandCounter(window.shape, self.logic, len(self.bands)), self.groups
        if self.is_together:
            # Where all must be nodata and the first is not, the answer is known.
            n_alone = int(self.logic == len(self.bands))
            self._add_bands(counter, reader, window, groups[:n_alone])
            self._add_planes(counter, reader, window, groups[n_alone:])
        else:
            self._add_bands(counter, reader, window, groups)
        return counter.find_valid()

    def _add_bands(self, counter, reader, window, groups):
        """Count band after band, as long as that matters."""
        for group in groups:
            if counter.open_box is None:
                return
            self._add(counter, reader, window, group)

    def _add_planes(self, counter, reader, window, groups):
        """Count bands that are read together."""
        if counter.open_box is None:
            return
        box = Window(*counter.open_box)
        planes = reader.read_planes(groups, box.shift(window.y0, window.x0))
        for group, plane in zip(groups, planes):
            if counter.open_box is None:
                return
            part = plane[Window(*counter.open_box).within(box).slices]
            counter.add(part, self.values[group.bands[0]])

    def _add(self, counter, reader, window, group):
        if group.kind == 'valid':
            counter.skip(len(group.bands))
            return
        place = Window(*counter.open_box).shift(window.y0, window.x0)
        values = _MASKED if group.kind == 'mask' else self.values[group.bands[0]]
        counter.add(reader.read(group, place), values, len(group.bands))

    def _find_stack(self, reader, window):
        """Return bool (B, h, w), True where a band is nodata."""
        if self.values is not None:
            planes = reader.read_planes(self.groups, window)
            return find_nodata(np.moveaxis(planes, 0, -1), self.values)
        stack = np.zeros((len(self.bands), *window.shape), bool)
        for group in self.groups:
            if group.kind == 'mask':
                stack[list(group.bands)] = reader.read(group, window) == 0
        return stack

    def _judge(self, data):
        """Return uint8 (h, w) from all bands at once."""
        if callable(self.logic):
            return self._call(find_nodata(data, self.values))
        return as_mask(count_nodata(data, self.values) < self.logic)

    def _call(self, stack):
        return as_mask(~call_logic(self.logic, stack))


@dataclass(frozen=True)
class FlagSource(_MaskFace):
    """
    A raster that is a mask itself: masked where it is 0 or NaN.

    Its own nodata value, alpha or mask band do not matter.

    Attributes:
        base (BlockSource): the raster.
        band (int): from 0.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.strips import Source
        >>> from cocoseg.postprocess.mask_sources import FlagSource
        >>> flags = FlagSource(Source.open(np.array([[0.0, 3.0, np.nan]])))
        >>> flags.read(Window(0, 0, 1, 3)).ravel().tolist()
        [0, 255, 0]
    """

    base: Any
    band: int = 0

    @property
    def name(self):
        """What it is, for messages."""
        return self.base.name

    def describe(self):
        """Return what the mask depends on beside its rasters, for the key of a run."""
        return ('flags', self.band)

    def read(self, window):
        """Return uint8 (h, w, 1) of a window, or (d, h, w, 1) of a box."""
        data = (self.base.read(window, [self.band]) if isinstance(self.base, Source) else
                select_bands(self.base.read(window), (self.band,)))
        valid = data != 0
        if data.dtype.kind == 'f':
            valid &= ~np.isnan(data)
        return as_mask(valid)


@dataclass(frozen=True)
class CommonMask(_MaskFace):
    """
    Where several masks are valid.

    Of the later ones only the part is read in which all before are valid
    somewhere.

    Attributes:
        masks (tuple[BlockSource, ...]): at least one, on the same grid.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.strips import Source
        >>> from cocoseg.postprocess.mask_sources import CommonMask, FlagSource
        >>> masks = [FlagSource(Source.open(np.array(row))) for row in ([[0, 1]], [[1, 1]])]
        >>> CommonMask.open(masks).read(Window(0, 0, 1, 2)).ravel().tolist()
        [0, 255]
    """

    masks: tuple

    @classmethod
    def open(cls, masks):
        """
        Return the mask, or the only one.

        Raises:
            OptionError: if they do not lie on each other.
        """
        masks = tuple(masks)
        for other in masks[1:]:
            check_same_place(masks[0].base, other.base)
        return masks[0] if len(masks) == 1 else cls(masks)

    @property
    def base(self):
        """The raster that says where it lies: the last, which is what is masked."""
        return self.masks[-1].base

    @property
    def rasters(self):
        """All rasters that are read, in order."""
        return tuple(raster for mask in self.masks for raster in mask.rasters)

    @property
    def name(self):
        """What it is, for messages."""
        return f'common {self.masks[-1].name}'

    def describe(self):
        """Return what the mask depends on beside its rasters, for the key of a run."""
        return ('common', *(mask.describe() for mask in self.masks))

    def read(self, window):
        """Return uint8 (h, w, 1) of a window, or (d, h, w, 1) of a box."""
        found = None
        for mask in self.masks:
            if found is None:
                # Masks make new arrays.
                found = mask.read(window)
                continue
            box = find_box(found[..., 0])
            if box is None:
                break
            part = found[box]
            part &= mask.read(_crop(window, box))
        return found


def _crop(window, slices):
    """Return a part of a window or box, by slices of what it holds."""
    if isinstance(window, Window):
        return Window.from_slices(slices).shift(window.y0, window.x0)
    return type(window).from_slices(slices).shift(*window.starts)


def select_bands(data, bands):
    """Return some bands of pixels, the same array where they are all."""
    return data if bands == tuple(range(data.shape[-1])) else data[..., list(bands)]


def check_bands(base, bands):
    """
    Return the bands of any source, counted from 0.

    Raises:
        OptionError: see :meth:`cocoseg.io.strips.Source.check_bands`.
    """
    if isinstance(base, Source):
        return base.check_bands(bands)
    # Only its shape and name matter.
    return Source(base.name, (1, 1, base.shape[-1]), base.dtype, (), ()).check_bands(bands)


def check_same_place(first, second):
    """Raise OptionError unless two sources lie on each other, as far as they tell."""
    if isinstance(first, Source) and isinstance(second, Source):
        check_same_grid(first, second)
    elif first.shape[:-1] != second.shape[:-1]:
        raise OptionError(f'{first.name} has the shape {first.shape[:-1]} and {second.name} '
                          f'{second.shape[:-1]}; they must be equal')
