"""
Validity masks and selectors of rasters and volumes, block by block.

A mask is True (255 in a file) where data is valid, False (0) where it is
masked. Blocks are read and judged by an executor; memory holds a few of them,
and the result where that is an array.
"""
from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

from cocoseg.engine.blockmap import BlockRun
from cocoseg.engine.executors import Executor
from cocoseg.errors import OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.io.mask_file import (
    InternalMaskWriter, check_internal, check_sidecar, get_block_shape, sidecar_metadata)
from cocoseg.io.strips import Source
from cocoseg.postprocess.blocks import BlockMapResult, map_blocks, open_sources
from cocoseg.postprocess.mask_sources import CommonMask, FlagSource, MaskSource
from cocoseg.postprocess.workspace import identify
from cocoseg.protocols import BlockSource

# Pixels of a block, and bytes that are read for it, at most, unless a tile is larger: small
# enough for caches, large enough that a block is more work than its bookkeeping.
_BLOCK_PIXELS, _BLOCK_NBYTES = 1 << 20, 16 << 20
# Masks compress in no time: one thread does, beside those that read.
_COG_OPTIONS = {'overviews': 'nearest', 'blocksize': 512, 'channels': ['valid'], 'num_threads': 1}
# Where a mask of a file may go, beside paths.
PLACES = ('sidecar', 'internal')


@overload
def compute_mask(source: Any, dst: None = None, *,
                 nodata: str | float | Set | Sequence | None = 'file',
                 logic: str | int | Callable = 'all', bands: int | Sequence[int] | None = None,
                 extra_mask: Any = None, block_shape: int | tuple[int, ...] | None = None,
                 executor: str | Executor = 'serial', overwrite: bool = False,
                 **options: Any) -> np.ndarray: ...


@overload
def compute_mask(source: Any, dst: Any, *, nodata: str | float | Set | Sequence | None = 'file',
                 logic: str | int | Callable = 'all', bands: int | Sequence[int] | None = None,
                 extra_mask: Any = None, block_shape: int | tuple[int, ...] | None = None,
                 executor: str | Executor = 'serial', overwrite: bool = False,
                 **options: Any) -> BlockMapResult: ...


def compute_mask(source: Any, dst: Any = None, *,
                 nodata: str | float | Set | Sequence | None = 'file',
                 logic: str | int | Callable = 'all', bands: int | Sequence[int] | None = None,
                 extra_mask: Any = None, block_shape: int | tuple[int, ...] | None = None,
                 executor: str | Executor = 'serial', overwrite: bool = False,
                 **options: Any) -> np.ndarray | BlockMapResult:
    """
    Compute where a raster is valid, from its nodata.

    Args:
        source (object): a path, an array, or whatever :func:`cocoseg.map_blocks`
            reads. Never modified.
        dst (object): None: return the mask as an array. 'sidecar': write it to
            ``<file>.msk``, where GDAL finds the mask of a file, which stays as
            it is. 'internal': write it into the GeoTIFF that was read, by a
            copy that takes its place when it is whole; refused for files with
            overviews, and so for Cloud-Optimized ones. Else a path ('.tif',
            '.zarr'), an array of bool or uint8 that is filled, or a
            :class:`~cocoseg.protocols.BlockSink`.
        nodata (str | float | Set | Sequence | None): what is nodata in a band.
            'file': the nodata value of the file. A number, or a set of
            numbers, for every band. A list with one of these (or None) per
            chosen band. None: nothing but NaN. NaN always is. 'masks': where
            the masks of the bands are 0: internal, sidecar, alpha or nodata,
            as GDAL finds them.
        logic (str | int | Callable): when a pixel is masked: 'any' or 'all'
            bands are nodata, at least so many are, or a function of the
            nodata, bool (B, h, w), that returns what is masked, bool (h, w).
        bands (int | Sequence[int] | None): that count, from 0; None is all.
        extra_mask (object): a raster of one band on the same grid, or
            (raster, band), that masks where it is 0 or NaN. Its own nodata is
            not looked at.
        block_shape (int | tuple[int, ...] | None): px of a block; None chooses
            whole tiles of the file.
        executor (str | Executor): see :func:`cocoseg.get_executor`.
        overwrite (bool): replace an output that exists.
        **options: of :func:`cocoseg.map_blocks`, such as ``max_retries``,
            ``resume``, ``progress``; and those of the output.

    Returns:
        ndarray | BlockMapResult: without ``dst``, bool (H, W), or (D, H, W);
        else what :func:`cocoseg.map_blocks` returns.

    Raises:
        OptionError: for options that have no meaning, an output that exists,
            or grids that differ; before any block is read.
        NodataError: for a nodata value that no pixel can have.
        TaskError: if a block fails; from its error.
        AssetWriteError: if the output cannot be written.

    Note:
        Reads what decides first: with 'all', where the first band is valid no
        other is read, if bands are stored apart.

    Example:
        >>> from cocoseg import compute_mask
        >>> image = np.array([[[0, 0], [0, 5], [7, 5]]], np.uint8)
        >>> compute_mask(image, nodata=0).tolist()
        [[False, True, True]]
        >>> compute_mask(image, nodata=0, logic='any').tolist()
        [[False, False, True]]
    """
    base, = open_sources(source, _count_axes(source, block_shape))
    mask = MaskSource.open(base, nodata=nodata, logic=logic, bands=bands)
    masks = [mask] if extra_mask is None else [open_flags(extra_mask, base.shape), mask]
    return write_mask(CommonMask.open(masks), dst, block_shape=block_shape, executor=executor,
                      overwrite=overwrite, **options)


@overload
def prepare_selector(*rasters: Any, dst: None = None, bands: int | Sequence[int] | None = None,
                     nodata: str | float | Set | Sequence | None = 'masks',
                     extra_masking_band: Any = None,
                     block_shape: int | tuple[int, ...] | None = None,
                     executor: str | Executor = 'serial', lazy: Literal[False] = False,
                     overwrite: bool = False, **options: Any) -> np.ndarray: ...


@overload
def prepare_selector(*rasters: Any, lazy: Literal[True], dst: None = None,
                     bands: int | Sequence[int] | None = None,
                     nodata: str | float | Set | Sequence | None = 'masks',
                     extra_masking_band: Any = None,
                     block_shape: int | tuple[int, ...] | None = None,
                     executor: str | Executor = 'serial',
                     overwrite: bool = False, **options: Any) -> BlockSource: ...


@overload
def prepare_selector(*rasters: Any, dst: Any, bands: int | Sequence[int] | None = None,
                     nodata: str | float | Set | Sequence | None = 'masks',
                     extra_masking_band: Any = None,
                     block_shape: int | tuple[int, ...] | None = None,
                     executor: str | Executor = 'serial', lazy: Literal[False] = False,
                     overwrite: bool = False, **options: Any) -> BlockMapResult: ...


def prepare_selector(*rasters: Any, dst: Any = None, bands: int | Sequence[int] | None = None,
                     nodata: str | float | Set | Sequence | None = 'masks',
                     extra_masking_band: Any = None,
                     block_shape: int | tuple[int, ...] | None = None,
                     executor: str | Executor = 'serial', lazy: bool = False,
                     overwrite: bool = False,
                     **options: Any) -> np.ndarray | BlockMapResult | BlockSource:
    """
    Select the pixels that are valid in all bands of all rasters.

    Args:
        *rasters (object): as ``source`` of :func:`compute_mask`, on one grid;
            or (raster, bands), where ``bands`` are counted from 0.
        dst (object): as for :func:`compute_mask`, but 'sidecar' and 'internal'.
        bands (int | Sequence[int] | None): of each raster; None is all.
        nodata (str | float | Set | Sequence | None): as for
            :func:`compute_mask`. With 'masks', what is no file is valid where
            it is not NaN.
        extra_masking_band (object): ``extra_mask`` of :func:`compute_mask`.
        block_shape, executor, overwrite: as for :func:`compute_mask`.
        **options: as for :func:`compute_mask`.
        lazy (bool): return a :class:`~cocoseg.protocols.BlockSource` of uint8
            (h, w, 1), 255 where selected, that reads when it is read.

    Returns:
        ndarray | BlockMapResult | BlockSource: without ``dst``, bool (H, W),
        True where selected.

    Raises:
        OptionError, NodataError, TaskError, AssetWriteError: as
            :func:`compute_mask`.

    Example:
        >>> from cocoseg import prepare_selector
        >>> first, second = np.array([[1.0, np.nan, 1.0]]), np.array([[np.nan, 2.0, 2.0]])
        >>> prepare_selector(first, second).tolist()
        [[False, False, True]]
        >>> prepare_selector(first, extra_masking_band=np.array([[1, 1, 0]])).tolist()
        [[True, False, False]]
    """
    if not rasters:
        raise OptionError('there are no rasters to select from; give at least one')
    if lazy and (dst is not None or options):
        raise OptionError(f'lazy=True computes nothing yet: leave out dst and {sorted(options)}')
    if isinstance(dst, str) and dst in PLACES:
        raise OptionError(f'dst={dst!r} is for the mask of one file; give a path, or use '
                          'compute_mask')
    masks = [_open_all_valid(raster, bands, nodata, block_shape) for raster in rasters]
    if extra_masking_band is not None:
        masks.insert(0, open_flags(extra_masking_band, masks[0].shape))
    mask = CommonMask.open(masks)
    if lazy:
        return mask
    return write_mask(mask, dst, block_shape=block_shape, executor=executor, overwrite=overwrite,
                      **options)


def _open_all_valid(raster, bands, nodata, block_shape):
    """Return the mask of a raster, or of (raster, bands): valid where all bands are."""
    if isinstance(raster, tuple) and len(raster) == 2:
        raster, own = raster
        if bands is not None:
            raise OptionError(f'bands={bands} and (raster, {own}) both choose bands; use one')
        bands = own
    base, = open_sources(raster, _count_axes(raster, block_shape))
    is_file = isinstance(base, Source) and base.fpath is not None
    if isinstance(nodata, str) and nodata == 'masks' and not is_file:
        nodata = 'file'
    return MaskSource.open(base, nodata=nodata, logic='any', bands=bands)


def open_flags(extra_mask, shape):
    """
    Return the mask that a raster is itself.

    Args:
        extra_mask (object): a raster of one band, or (raster, band).
        shape (tuple[int, ...]): of what it masks, for the number of axes.

    Raises:
        OptionError: if it has more bands and none is chosen.
    """
    raster, band = (extra_mask if isinstance(extra_mask, tuple) and len(extra_mask) == 2
                    else (extra_mask, None))
    base, = open_sources(raster, len(shape) - 1)
    if band is None and base.shape[-1] != 1:
        raise OptionError(f'the extra mask {base.name} has {base.shape[-1]} bands; give one, as '
                          '(raster, band)')
    if band is not None and not 0 <= band < base.shape[-1]:
        raise OptionError(f'the extra mask {base.name} has no band {band}, only '
                          f'0..{base.shape[-1] - 1}')
    return FlagSource(base, band or 0)


def write_mask(mask, dst=None, *, block_shape=None, executor='serial', overwrite=False, **options):
    """
    Compute a lazy mask, block by block.

    Args:
        mask (BlockSource): of uint8, such as ``prepare_selector(..., lazy=True)``.
        dst, block_shape, executor, overwrite: as for :func:`compute_mask`.
        **options: as for :func:`compute_mask`.

    Returns:
        ndarray | BlockMapResult: as for :func:`compute_mask`.
    """
    block_shape = choose_block_shape(mask) if block_shape is None else block_shape
    run = {'block_shape': block_shape, 'executor': executor, **options}
    is_place = isinstance(dst, str) and dst in PLACES
    is_file = is_place or (isinstance(dst, (str, os.PathLike)) and '.zarr' not in os.fspath(dst))
    cog = {**_COG_OPTIONS, **_find_sink_options(options, dst, is_file)}
    is_bool = dst is None or getattr(dst, 'dtype', None) == np.dtype(bool)
    # Arrays are told apart by all their bytes, which takes time.
    rasters = map(identify, mask.rasters) if options.get('resume') else ()
    func = _Emit(is_bool, (*mask.describe(), *rasters))
    if dst is None:
        return map_blocks(func, mask, **run).output[..., 0]
    if is_place:
        run = {name: value for name, value in run.items() if name not in cog}
        return _write_in_place(func, mask, dst, overwrite, run, cog)
    return map_blocks(func, mask, dst, overwrite=overwrite, **{**run, **(cog if is_file else {})})


def _find_sink_options(options, dst, is_file):
    """Return the options of the output, checked before any block is read."""
    from cocoseg.io.cog import CogOptions
    _, others = BlockRun.split(options)
    layout = {*CogOptions.coerce.__kwdefaults__}
    if is_file:
        unknown = sorted(set(others) - layout - {'channels', 'metadata', 'nodata'})
        CogOptions.coerce(np.uint8, **{name: others[name] for name in layout & set(others)})
    else:
        # Only a new Zarr array has any, and checks them.
        is_array = dst is None or hasattr(dst, 'dtype') or hasattr(dst, 'write_block')
        unknown = sorted(others) if is_array else []
    if unknown:
        raise OptionError(f'there are no options {unknown} for this output; a file has '
                          f'{sorted(layout)}, channels, metadata and nodata')
    return others


def _write_in_place(func, mask, dst, overwrite, run, cog):
    """Write beside or into the file that was read."""
    from cocoseg.io.cog import CogWriter
    with contextlib.ExitStack() as stack:
        if dst == 'internal':
            if cog != _COG_OPTIONS:
                raise OptionError(f"dst='internal' has no options {sorted(cog)} of a file of its "
                                  'own; leave them out')
            check_internal(mask.fpath, overwrite)
            path, sink = mask.fpath, stack.enter_context(InternalMaskWriter(mask.fpath, overwrite))
        else:
            path = check_sidecar(mask.fpath, overwrite)
            metadata = {**cog.pop('metadata', {}), **sidecar_metadata(mask.base.shape[-1])}
            sink = stack.enter_context(CogWriter(
                path, mask.shape, np.uint8, metadata=metadata, crs=mask.crs_wkt,
                transform=mask.geotransform, **cog))
        result = map_blocks(func, mask, sink, **run)
    return dataclasses.replace(result, output=path)


@dataclass(frozen=True)
class _Emit:
    """Pass the blocks of a mask on; its repr tells one mask from another."""

    is_bool: bool
    description: tuple

    def __call__(self, valid):
        return valid != 0 if self.is_bool else valid


def count_valid(fpath, is_inside=False):
    """
    Count the valid pixels of a mask that was written.

    Args:
        fpath (str | PathLike): a mask of :func:`compute_mask`, or a file.
        is_inside (bool): count by the mask inside of the file.

    Returns:
        tuple[int, int]: valid pixels, and all.

    Example:
        >>> import os, tempfile
        >>> from cocoseg import compute_mask
        >>> from cocoseg.postprocess.masks import count_valid
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'valid.tif')
        >>>     result = compute_mask(np.array([[0, 4, 4]]), fpath, nodata=0)
        >>>     found = count_valid(fpath)
        >>> found
        (2, 3)
    """
    base = Source.open(fpath)
    mask = MaskSource.open(base, nodata='masks', bands=0) if is_inside else FlagSource(base)
    blocks = BlockGrid(base.shape, choose_block_shape(mask))
    return (sum(int(np.count_nonzero(mask.read(block.core))) for block in blocks),
            base.shape[0] * base.shape[1])


def choose_block_shape(mask):
    """
    Return the block that is read well: whole tiles of a file, not many.

    Args:
        mask (BlockSource): any.

    Example:
        >>> from cocoseg.io.strips import Source
        >>> from cocoseg.postprocess.masks import choose_block_shape
        >>> choose_block_shape(FlagSource(Source.open(np.ones((5, 7)))))
        (5, 7)
    """
    base = mask.base
    if len(base.shape) == 4:
        return tuple(min(size, most) for size, most in zip(base.shape, (32, 256, 256)))
    height, width, n_bands = base.shape
    is_file = isinstance(base, Source) and base.fpath is not None
    tile = get_block_shape(base.fpath) if is_file else (256, 256)
    area = min(_BLOCK_PIXELS, _BLOCK_NBYTES // (n_bands * np.dtype(base.dtype).itemsize))
    if tile[1] >= width:
        # Strips: whole rows.
        return (min(_round_up(area // width, tile[0]), height), width)
    side = math.isqrt(area)
    return (min(_round_up(side, tile[0]), height), min(_round_up(side, tile[1]), width))


def _round_up(size, unit):
    """Return at least one unit, and a multiple of it."""
    return max(-(-size // unit), 1) * unit


def _count_axes(source, block_shape):
    """Return 3 for a volume, else 2."""
    if isinstance(block_shape, (tuple, list)):
        return len(block_shape)
    return 3 if len(getattr(source, 'shape', ())) == 4 else 2
