"""
The plainer image files: tiled TIFF and PNG, and one door to all formats.

Same promises as :mod:`cocoseg.io.cog`: atomic, flushed, and read back before
the file gets its name.
"""
from __future__ import annotations

import os

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.grid.window import Window
from cocoseg.io.codecs import Codec
from cocoseg.io.cog import check_blocksize, check_num_threads, write_cog
from cocoseg.io.commit import as_write_error, atomic_write, refusing
from cocoseg.io.dataset import RasterMeta, as_pixels, memory_dataset
from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal
from cocoseg.io.raster import read_raster

_PNG_END = b'IEND\xaeB`\x82'


def write_image(fpath, data, *, fmt='cog', **options):
    """
    Write an array as an image file of a chosen format, atomically.

    Args:
        fpath (str | PathLike): path of the file; its folder must exist.
        data (ndarray): shape (H, W) or (H, W, C).
        fmt (str): 'cog', 'tif' or 'png'.
        **options: of :func:`cocoseg.io.cog.write_cog`, :func:`write_tif` or
            :func:`write_png`.

    Returns:
        int: size of the file in bytes.

    Raises:
        OptionError: if the format or an option is unknown, or does not fit.
        OSError: if the file cannot be written; nothing of it is kept.

    Example:
        >>> from cocoseg.io.images import write_image
        >>> import numpy as np, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.png')
        >>>     nbytes = write_image(fpath, np.zeros((4, 5, 3), np.uint8), fmt='png')
        >>>     assert nbytes == os.path.getsize(fpath)
    """
    writers = {'cog': write_cog, 'tif': write_tif, 'png': write_png}
    if fmt not in writers:
        raise OptionError(f'fmt={fmt!r} is unknown; use one of {list(writers)}')
    known = writers[fmt].__kwdefaults__ or {}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(
            f'{fmt} files have no option {unknown}; they have {sorted(known)}')
    writers[fmt](fpath, data, **options)
    return os.path.getsize(fpath)


def write_tif(fpath, data, *, nodata=None, crs=None, transform=None, compress='ZSTD',
              level=None, predictor='auto', blocksize=256, channels=None, scale=None,
              offset=None, metadata=None, num_threads=2, colors=None):
    """
    Write an array as a plain tiled TIFF without overviews, atomically.

    Args:
        fpath (str | PathLike): path of the file; its folder must exist.
        data (ndarray): shape (H, W) or (H, W, C), types as for
            :func:`cocoseg.io.cog.write_cog`. Never modified.
        nodata, crs, transform, compress, level, predictor: as for
            :func:`cocoseg.io.cog.write_cog`.
        blocksize (int): side of a tile, px: a multiple of 16 in 64..4096.
        channels, scale, offset, metadata, num_threads, colors: as for
            :func:`cocoseg.io.cog.write_cog`.

    Raises:
        OptionError: if an option cannot be honoured; nothing was touched.
        AssetWriteError: if GDAL fails, or other pixels are read back.
        OSError: as the system reports it, for example for a missing folder.

    Example:
        >>> from cocoseg.io.images import write_tif
        >>> from cocoseg.io.raster import raster_info
        >>> import numpy as np, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     write_tif(fpath, np.zeros((70, 80), np.float32), blocksize=64)
        >>>     info = raster_info(fpath)
        >>> info.blocksize
        (64, 64)
    """
    pixels = as_pixels(data)
    meta = RasterMeta.coerce(
        pixels.dtype, pixels.shape[2], nodata=nodata, crs=crs, transform=transform,
        channels=channels, scale=scale, offset=offset, metadata=metadata, colors=colors)
    codec = Codec.coerce(compress, level, predictor, pixels.dtype, driver='GTiff')
    check_blocksize(blocksize)
    check_num_threads(num_threads)
    options = [
        *codec.gtiff_options(), 'TILED=YES', f'BLOCKXSIZE={blocksize}',
        f'BLOCKYSIZE={blocksize}', 'INTERLEAVE=PIXEL', 'BIGTIFF=IF_SAFER',
        'SPARSE_OK=NO', f'NUM_THREADS={num_threads}']
    write_with_driver(
        'GTiff', fpath, pixels, meta, options=options,
        verify=lambda temp: _read_back(temp, pixels))


def write_png(fpath, data):
    """
    Write an array as a PNG, atomically.

    PNG has no place for band names or a coordinate system, and its nodata is
    read as transparency by many programs, so none of them is stored.

    Args:
        fpath (str | PathLike): path of the file; its folder must exist.
        data (ndarray): uint8 or uint16, shape (H, W) or (H, W, C) with C in
            1..4: grey, grey + alpha, RGB, RGB + alpha. Never modified.

    Raises:
        OptionError: for another type or number of bands.
        AssetWriteError: if GDAL fails, or other pixels are read back.
        OSError: as the system reports it, for example for a missing folder.

    Example:
        >>> from cocoseg.io.images import write_png
        >>> from cocoseg.io.raster import read_raster
        >>> import numpy as np, os, tempfile
        >>> data = np.arange(40, dtype=np.uint8).reshape(4, 5, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.png')
        >>>     write_png(fpath, data)
        >>>     assert np.array_equal(read_raster(fpath), data)
    """
    pixels = as_pixels(data)
    if pixels.dtype.name not in ('uint8', 'uint16') or pixels.shape[2] > 4:
        raise OptionError(
            f'data of shape {np.shape(data)} and type {pixels.dtype} does not fit in a PNG, '
            "which holds 1 to 4 bands of uint8 or uint16; write fmt='cog' or 'tif'")
    write_with_driver(
        'PNG', fpath, pixels, RasterMeta(), verify=lambda temp: _read_back_png(temp, pixels))


def write_with_driver(driver, fpath, pixels, meta, *, options=(), verify=None):
    """
    Write pixels with a GDAL driver, atomically.

    Args:
        driver (str): short name of a GDAL driver with CreateCopy.
        fpath (str | PathLike): final path.
        pixels (ndarray): shape (H, W, C), of :func:`cocoseg.io.dataset.as_pixels`.
        meta (RasterMeta): what the file says about its pixels.
        options (Sequence[str]): creation options of the driver.
        verify (Callable[[Path], object] | None): called with the temporary
            file; raises ValueError or OSError to refuse it.

    Raises:
        AssetWriteError: if GDAL fails or the file is refused.
        OSError: as the system reports it.
    """
    path = os.fspath(fpath)
    with atomic_write(path, verify=refusing(path, verify)) as temp:
        try:
            _create_copy(driver, temp, pixels, meta, options)
        except OSError as ex:
            raise as_write_error(path, ex) from ex


def _create_copy(driver, temp, pixels, meta, options):
    """Run GDAL's CreateCopy and close the file, with every error raised."""
    gdal = require_gdal()
    with gdal_errors_as_exceptions(f'writing with the {driver} driver') as errors:
        source = memory_dataset(pixels, meta)
        errors.check('describing the pixels')
        target = gdal.GetDriverByName(driver).CreateCopy(
            os.fsencode(temp), source, 0, list(options))
        try:
            errors.check('writing the file', target)
        finally:
            close_dataset(target)


def _read_back(temp, pixels):
    """Read a written file again; ValueError unless it holds the same pixels."""
    height, width, _ = pixels.shape
    # About 4 million pixels at a time, so that a check costs little memory.
    step = max(1, 2 ** 22 // width)
    for y0 in range(0, height, step):
        window = Window(y0, 0, min(y0 + step, height), width)
        part = pixels[window.slices]
        found = read_raster(temp, window)
        is_float = pixels.dtype.kind == 'f'
        if found.dtype != part.dtype or not np.array_equal(found, part, equal_nan=is_float):
            raise ValueError(f'other pixels were read back in {window}')


def _read_back_png(temp, pixels):
    """Check the end mark of a PNG, which decoders do not miss, and its pixels."""
    with open(temp, 'rb') as file:
        file.seek(-min(8, os.path.getsize(temp)), os.SEEK_END)
        if file.read(8) != _PNG_END:
            raise ValueError('the end of the file is missing')
    _read_back(temp, pixels)
