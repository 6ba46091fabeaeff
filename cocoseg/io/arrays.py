"""
The two doors of a block run: what can be read, and where results can go.

:func:`open_source` and :func:`open_sink` take what people have at hand (paths,
arrays, Zarr arrays, images of a dataset) and give the small ports that all
block code works with. kwcoco and zarr are known here by how they look, not
imported.
"""
from __future__ import annotations

import os
import sys

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.grid.window import as_int
from cocoseg.io.array_sinks import (
    ArraySink, CogSink, OutputSink, PassingSink, ZarrSink, check_array)
from cocoseg.io.array_sources import (
    CocoSource, DelayedSource, MappedPlace, MappedSource, VolumeSource, check_pixels)
from cocoseg.io.cog import CogWriter
from cocoseg.io.commit import check_writable
from cocoseg.io.dataset import check_mask
from cocoseg.io.exactness import check_holds
from cocoseg.io.strips import Source
from cocoseg.io.zarr_array import ZarrArray
from cocoseg.io.zarr_layout import CHANNEL_AXIS, SPATIAL_AXES, VolumeLayout
from cocoseg.io.zarr_place import (
    ArrayIdentifier, check_place, check_temporary, find_format, is_zarr_path, require_zarr)
from cocoseg.io.zarr_store import open_zarr
from cocoseg.protocols import BlockSink, BlockSource

__all__ = ['OutputSink', 'check_sink', 'open_sink', 'open_source']

_SOURCES = ('a path that GDAL opens, a path of a Zarr array, an array, a memory map, a zarr '
            'array, a CocoImage, a delayed image, or a BlockSource')
_SINKS = ("None, a path that ends with '.tif', a path with '.zarr' in it, an array, a memory "
          'map, a zarr array, or a BlockSink')
_TIF = ('.tif', '.tiff')
_DEFAULT_CHUNKS = {2: 1024, 3: 128}


def open_source(obj, ndim=2, name='source', *, channels=None, space='image'):
    """
    Return what gives the pixels of windows, or of boxes.

    Args:
        obj (object): a path that GDAL opens (an image), a path of a Zarr array
            such as 'a.zarr/volumes/raw', an array, memory map or zarr array
            of ``ndim`` axes, with or without a last axis of channels (a zarr
            array may name its axes otherwise), a ``kwcoco.CocoImage``, a
            delayed image, or a BlockSource, which is returned as it is.
            Nothing is copied or modified.
        ndim (int): axes of space, 2 or 3.
        name (str): what it is, for messages.
        channels (str | None): of a CocoImage; None is all.
        space (str): of a CocoImage, 'image' or 'video'. Its pixels are floats,
            NaN where there is no data.

    Returns:
        BlockSource: shape (H, W, C) or (D, H, W, C). True and False stay so.

    Raises:
        OptionError: if it is none of these, or has other axes.
        OSError: if it cannot be opened.
        MissingDependencyError: without zarr, or GDAL, where it is needed.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.arrays import open_source
        >>> source = open_source(np.arange(12).reshape(3, 4))
        >>> source.shape, source.read(Window(1, 1, 2, 3)).ravel().tolist()
        ((3, 4, 1), [5, 6])
        >>> open_source(np.zeros((2, 3, 4, 5)), ndim=3).shape
        (2, 3, 4, 5)
    """
    _check_ndim(ndim)
    if hasattr(obj, 'imdelay'):
        name = f'{name} {obj.img.get("name") or obj.img.get("id")}'
        _check_image(ndim, name)
        return CocoSource(obj, channels, space, name)
    if channels is not None or space != 'image':
        raise OptionError(f'{name}: channels={channels!r} and space={space!r} are for a CocoImage, '
                          f'not for {_describe(obj)}; leave them out')
    source = _open_plain(obj, ndim, name)
    if len(source.shape) != ndim + 1:
        raise OptionError(f'{name} has shape {tuple(source.shape)}, which is not {ndim} axes of '
                          'space and one of channels')
    return source


def _open_plain(obj, ndim, name):
    if isinstance(obj, BlockSource):
        return obj
    if _is_zarr_place(obj):
        identifier = ArrayIdentifier.parse(obj)
        return _wrap_zarr(open_zarr(identifier), ndim, f'{name} {identifier}', identifier)
    if isinstance(obj, (str, os.PathLike)):
        _check_image(ndim, f'{name} {os.fspath(obj)}')
        return Source.open(obj, name)
    if _is_zarr(obj):
        return _wrap_zarr(obj, ndim, name)
    if isinstance(obj, np.ndarray):
        return _open_array(obj, ndim, name)
    if hasattr(obj, 'finalize') and hasattr(obj, 'dsize'):
        _check_image(ndim, name)
        return DelayedSource(obj, name)
    raise OptionError(f'{name} is {_describe(obj)}; give {_SOURCES}')


def _open_array(pixels, ndim, name):
    check_mask(pixels)
    if pixels.ndim not in (ndim, ndim + 1):
        raise OptionError(f'{name} has shape {pixels.shape}; give {ndim} axes of space, and one '
                          'of channels or none')
    if ndim == 3:
        return VolumeSource.open(pixels, name)
    kind = Source if MappedPlace.find(pixels) is None else MappedSource
    return kind.open(pixels, name)


def _wrap_zarr(data, ndim, name, identifier=None):
    """Return a zarr array; if it names no axes, the channels are last, as everywhere."""
    n_axes, spatial = len(data.shape), SPATIAL_AXES[ndim]
    default = {ndim: spatial, ndim + 1: (*spatial, CHANNEL_AXIS)}.get(n_axes)
    array = ZarrArray.wrap(data, name, default_axes=default, identifier=identifier)
    if array.dims != ndim:
        raise OptionError(f'{name} has the axes {list(array.axes)}, {array.dims} of space, where '
                          f'{ndim} are needed')
    check_pixels(array.dtype, name)
    if 0 in array.shape:
        raise OptionError(f'{name} has shape {array.shape}; give nothing empty')
    return array


def check_sink(dst, overwrite=False):
    """
    Raise unless an output could be opened, as far as that can be told before.

    For work that takes long before it writes; what depends on the pixels is
    checked by :func:`open_sink`. Leaves nothing behind.

    Args:
        dst (object): as for :func:`open_sink`.
        overwrite (bool): replace a file or Zarr array that exists.

    Raises:
        OptionError: if it is nothing to write to, or exists.
        OSError: if nothing can be written there.
        MissingDependencyError: without zarr, where it is needed.

    Example:
        >>> from cocoseg.io.arrays import check_sink
        >>> check_sink(None), check_sink(np.zeros((2, 3)))
        (None, None)
    """
    if _is_zarr_place(dst):
        require_zarr()
        identifier = ArrayIdentifier.parse(dst)
        if check_place(identifier) and not overwrite:
            raise _exists(identifier)
        check_temporary(identifier)
    elif isinstance(dst, (str, os.PathLike)):
        fpath = os.fspath(dst)
        if os.path.splitext(fpath)[1].lower() not in _TIF:
            raise OptionError(f'dst={fpath!r} does not end with .tif; give {_SINKS}')
        if os.path.isdir(fpath) or (os.path.lexists(fpath) and not overwrite):
            raise _exists(fpath)
        check_writable(fpath)
    elif isinstance(dst, np.ndarray):
        check_array(dst)
    elif isinstance(dst, ZarrArray) or _is_zarr(dst):
        if not (dst.writable if isinstance(dst, ZarrArray) else not dst.read_only):
            raise OptionError(f"{dst} is open for reading only; open it with mode='r+'")
    elif dst is not None and not isinstance(dst, BlockSink):
        raise OptionError(f'dst is {_describe(dst)}; give {_SINKS}')


def open_sink(dst, shape, dtype, *, overwrite=False, chunks=None, like=None, **options):
    """
    Return what takes the blocks of an output, each pixel once.

    Args:
        dst (object): None makes an array; an array, memory map or zarr array
            of that shape (or without channels, if there is one) is written in
            place; a path that ends with '.tif' becomes a Cloud-Optimized
            GeoTIFF, one with '.zarr' in it a Zarr array; a BlockSink gets the
            blocks as they are.
        shape (tuple[int, ...]): (H, W, C) or (D, H, W, C), px.
        dtype (dtype): of the blocks. A GeoTIFF holds bool as uint8, 0 and 1.
        overwrite (bool): replace a file or Zarr array that exists.
        chunks (int | tuple[int, ...] | None): of a new Zarr array, extent of
            the blocks that will be written, px: each becomes whole chunks, so
            that no two threads or processes write one chunk. None is 1024, or
            128 of volumes. Elsewhere blocks may be as they come.
        like (object | None): a source of the same size: a GeoTIFF takes the
            coordinate system and transform of a raster, a Zarr array the voxel
            size and offset of another. Others tell nothing.
        **options: of a GeoTIFF those of :class:`~cocoseg.io.cog.CogWriter`,
            such as ``nodata``, ``channels``, ``crs``, ``overviews``; of a new
            Zarr array ``voxel_size``, ``offset``, ``axes`` (channels are first
            if there are several, and without an axis if there is one),
            ``name`` and ``metadata``. They go before what ``like`` tells.

    Returns:
        OutputSink: with ``write_block``, ``commit()``, which returns the array
        or the path, and ``abort()``; one of them ends it, and nothing is
        visible before.

    Raises:
        OptionError: if it is none of these, exists, does not fit, or has no
            such options; nothing was touched.
        OSError: if it cannot be made there.
        MissingDependencyError: without zarr, or GDAL, where it is needed.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.arrays import open_sink
        >>> sink = open_sink(None, (2, 3, 1), 'uint8')
        >>> sink.write_block(Window(0, 0, 2, 3), np.ones((2, 3), 'uint8'))
        >>> sink.commit().shape
        (2, 3, 1)
    """
    check_sink(dst, overwrite)
    shape, dtype = _check_shape(shape), _as_dtype(dtype)
    if like is not None and tuple(like.shape[:-1]) != shape[:-1]:
        raise OptionError(f'like has shape {tuple(like.shape)}, the output {shape}; give a source '
                          'of the same size')
    if _is_zarr_place(dst):
        return _open_zarr_sink(ArrayIdentifier.parse(dst), shape, dtype, overwrite, chunks, like,
                               options)
    if isinstance(dst, (str, os.PathLike)):
        return _open_cog_sink(os.fspath(dst), shape, dtype, like, options)
    if options:
        raise OptionError(f'options {sorted(options)} are for files, not for {_describe(dst)}; '
                          'leave them out')
    if dst is None:
        return ArraySink(np.zeros(shape, dtype), shape, dtype)
    if isinstance(dst, np.ndarray):
        return ArraySink(dst, shape, dtype)
    if _is_zarr(dst) or isinstance(dst, ZarrArray):
        return _open_in_place(dst, shape, dtype)
    return PassingSink(dst, shape, dtype)


def _open_in_place(dst, shape, dtype):
    ndim = len(shape) - 1
    array = dst if isinstance(dst, ZarrArray) else _wrap_zarr(dst, ndim, 'the zarr array')
    if array.shape != shape:
        raise OptionError(f'{array.name} has shape {array.shape}, the blocks are of {shape}; give '
                          'an array of that shape')
    check_holds(array.dtype, dtype, array.name)
    return PassingSink(array, shape, dtype, output=dst)


def _open_zarr_sink(identifier, shape, dtype, overwrite, chunks, like, options):
    known = ('axes', 'voxel_size', 'offset', 'name', 'metadata')
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(f'a Zarr array has no options {unknown}; it has {list(known)}')
    options = dict(options)
    layout, ndim = _make_layout(options, shape, like), len(shape) - 1
    return ZarrSink(identifier, layout, shape, dtype, overwrite=overwrite,
                    block=_DEFAULT_CHUNKS[ndim] if chunks is None else chunks,
                    zarr_format=find_format(identifier), **options)


def _make_layout(options, shape, like):
    """Return the layout of a new Zarr array, and take its options out."""
    spatial = SPATIAL_AXES[len(shape) - 1]
    axes = options.pop('axes', None)
    if axes is None:
        axes = spatial if shape[-1] == 1 else (CHANNEL_AXIS, *spatial)
    layout = VolumeLayout(axes)
    if layout.spatial_axes != spatial or (layout.channel_axis is None and shape[-1] != 1):
        raise OptionError(f'axes={list(layout.axes)} do not fit the shape {shape}, which is '
                          f'{len(spatial)} axes of space and {shape[-1]} channels')
    told = getattr(like, 'layout', None) or VolumeLayout(spatial)
    return VolumeLayout(axes, options.pop('voxel_size', told.voxel_size),
                        options.pop('offset', told.offset))


def _open_cog_sink(fpath, shape, dtype, like, options):
    if len(shape) != 3:
        raise OptionError(f'dst={fpath!r}: a GeoTIFF holds images, not volumes of shape {shape}; '
                          'give a .zarr path')
    options = dict(options)
    for option, attribute in (('crs', 'crs_wkt'), ('transform', 'geotransform')):
        options.setdefault(option, getattr(like, attribute, None))
    writer = CogWriter(fpath, shape, np.uint8 if dtype.kind == 'b' else dtype, **options)
    return CogSink(writer, dtype)


def _exists(place):
    return OptionError(f'{place} exists; choose another name, or overwrite=True to replace a file '
                       'or an array')


def _check_ndim(ndim):
    if ndim not in SPATIAL_AXES:
        raise OptionError(f'ndim={ndim!r} must be 2 or 3')


def _check_image(ndim, name):
    if ndim != 2:
        raise OptionError(f'{name} is an image, of two axes; a volume is an array or a Zarr array')


def _check_shape(shape):
    sizes = tuple(as_int(size, 'shape') for size in shape)
    if len(sizes) not in (3, 4) or min(sizes) < 1:
        raise OptionError(f'shape={shape} must be (H, W, C) or (D, H, W, C), each at least 1')
    return sizes


def _as_dtype(dtype):
    found = np.dtype(dtype).newbyteorder('=')
    check_pixels(found, 'the output')
    return found


def _is_zarr_place(obj):
    return isinstance(obj, ArrayIdentifier) or is_zarr_path(obj)


def _is_zarr(obj):
    """Return True for an array of zarr, which is loaded if there is one."""
    zarr = sys.modules.get('zarr')
    return zarr is not None and isinstance(obj, zarr.Array)


def _describe(obj):
    kind = type(obj)
    return 'None' if obj is None else f'of type {kind.__module__}.{kind.__qualname__}'
