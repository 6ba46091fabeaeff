"""
Write one array as one Cloud-Optimized GeoTIFF.

The overviews are computed here, on an exact grid and without the nodata
pixels, and handed to GDAL, which then writes the file in one pass. The file
appears under its name only when it is complete, on the disk and verified.
"""
from __future__ import annotations

import dataclasses
import os

import numpy as np

from cocoseg.errors import AssetWriteError, CogError, OptionError
from cocoseg.io.codecs import Codec
from cocoseg.io.commit import atomic_write
from cocoseg.io.dataset import RasterMeta, as_pixels, fill_overviews, memory_dataset
from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal
from cocoseg.io.overviews import check_method, compute_overview_shapes
from cocoseg.io.verify import CogReport, verify_cog

__all__ = ['CogReport', 'write_cog']


def write_cog(fpath, data, *, nodata=None, crs=None, transform=None, compress='ZSTD',
              level=None, predictor='auto', blocksize=256, overviews='average',
              channels=None, scale=None, offset=None, metadata=None, num_threads=2):
    """
    Write an array as a Cloud-Optimized GeoTIFF, atomically.

    The file is written under a temporary name in the same folder, flushed to
    the disk, checked with :func:`cocoseg.io.verify.verify_cog` and renamed. If
    anything fails, nothing of it stays and an older file is untouched. Every
    tile is stored, also where all pixels are nodata.

    Args:
        fpath (str | PathLike): path of the file; its folder must exist.
        data (ndarray): shape (H, W) or (H, W, C), of type uint8, int16,
            uint16, int32, uint32, float32 or float64 (int8 with GDAL >= 3.7).
            Never modified, and not copied if its byte order is native.
        nodata (int | float | None): value of invalid pixels, stored for all
            bands. NaN pixels are invalid whatever it is.
        crs (int | str | None): an EPSG code, 'EPSG:n', or WKT.
        transform (array_like | None): pixel corners to world. A (3, 3) matrix
            ``world_from_pixel`` on (x, y, 1), or a plain tuple of 6 numbers
            in GDAL's order; see :func:`cocoseg.io.dataset.as_geotransform`.
        compress (str | None): a lossless codec of this GDAL, any case: 'ZSTD',
            'DEFLATE', 'LZW', 'LERC', ...; 'NONE', 'RAW' or None for none.
        level (int | None): effort of the codec. None is 1 for ZSTD, and
            GDAL's own default for others.
        predictor (str | int | None): 'auto' takes 2 for integers and 3 for
            floats where the codec has predictors; or 1, 2, 3.
        blocksize (int): side of a tile, px: a multiple of 16 in 64..4096.
        overviews (str | None): 'average' (mean of the valid pixels, half
            rounded up), 'mode' (most frequent; for labels), 'nearest'
            (top-left), or None for no overviews. Levels are exact halves,
            until one fits in a tile.
        channels (Sequence[str] | str | None): band names; a string is split
            at '|'.
        scale, offset (float | Sequence[float] | None): true value = stored *
            scale + offset; one number, or one per band.
        metadata (dict[str, str] | None): for GDAL's default domain.
        num_threads (int): threads that compress.

    Returns:
        CogReport: what the file holds, as verified.

    Raises:
        OptionError: if an option cannot be honoured; nothing was touched.
        BandCountError: if a sequence does not have one entry per band.
        AssetWriteError: if GDAL fails, or the written file is not complete;
            an OSError that holds GDAL's reason, ``path`` and the target.
        OSError: as the system reports it, for example for a missing folder.
        MissingDependencyError: without GDAL.

    Note:
        Thread-safe on different paths. Beside ``data``, memory holds the
        overviews (a third of its size) and some tiles.

    Example:
        >>> from cocoseg.io.cog import write_cog
        >>> import numpy as np, os, tempfile
        >>> probs = np.linspace(0, 1, 300 * 400 * 2).reshape(300, 400, 2)
        >>> data = np.rint(probs * 32767).astype(np.int16)
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'probs.tif')
        >>>     report = write_cog(fpath, data, nodata=-9999, scale=1 / 32767,
        >>>                        channels=['water', 'land'])
        >>>     assert report.nbytes == os.path.getsize(fpath)
        >>> report.shape, report.overview_shapes, report.compression, report.channels
        ((300, 400, 2), ((150, 200),), 'ZSTD', ('water', 'land'))
    """
    pixels = as_pixels(data)
    meta = RasterMeta.coerce(
        pixels, nodata=nodata, crs=crs, transform=transform, channels=channels,
        scale=scale, offset=offset, metadata=metadata)
    codec = Codec.coerce(compress, level, predictor, pixels.dtype)
    check_blocksize(blocksize)
    check_num_threads(num_threads)
    shapes = []
    if overviews is not None:
        check_method(overviews)
        shapes = compute_overview_shapes(pixels.shape, blocksize)
    options = [
        *codec.cog_options(), f'BLOCKSIZE={blocksize}', 'BIGTIFF=IF_SAFER',
        f'NUM_THREADS={num_threads}', 'OVERVIEW_RESAMPLING=NEAREST',
        f'OVERVIEWS={"FORCE_USE_EXISTING" if shapes else "NONE"}', 'SPARSE_OK=NO']

    def prepare(dataset):
        fill_overviews(dataset, pixels, shapes, overviews, meta.nodata)

    reports = []

    def verify(temp):
        # libtiff's LERC can write NaN tiles that it cannot read: decode them.
        report = verify_cog(temp, full=codec.name.startswith('LERC'))
        _check_report(report, pixels, meta, shapes)
        reports.append(report)

    write_with_driver(
        'COG', fpath, pixels, meta, options=options,
        prepare=prepare if shapes else None, verify=verify)
    return dataclasses.replace(reports[0], path=os.fspath(fpath))


def _check_report(report, pixels, meta, shapes):
    """Raise CogError unless a file holds what it was asked to hold."""
    wanted = (pixels.shape, pixels.dtype.name, tuple(shapes), meta.channels or report.channels)
    found = (report.shape, report.dtype, report.overview_shapes, report.channels)
    if wanted != found:
        raise CogError(f'{report.path} holds {found} instead of {wanted}')


def write_with_driver(driver, fpath, pixels, meta, *, options=(), prepare=None, verify=None):
    """
    Write pixels with a GDAL driver, atomically.

    Args:
        driver (str): short name of a GDAL driver with CreateCopy.
        fpath (str | PathLike): final path.
        pixels (ndarray): shape (H, W, C), of :func:`cocoseg.io.dataset.as_pixels`.
        meta (RasterMeta): what the file says about its pixels.
        options (Sequence[str]): creation options of the driver.
        prepare (Callable[[gdal.Dataset], None] | None): called with the
            in-memory dataset before it is written.
        verify (Callable[[Path], object] | None): called with the temporary
            file; raises ValueError or OSError to refuse it.

    Raises:
        AssetWriteError: if GDAL fails or the file is refused.
        OSError: as the system reports it.
    """
    path = os.fspath(fpath)
    with atomic_write(path, verify=_as_write_error(path, verify)) as temp:
        try:
            _create_copy(driver, temp, pixels, meta, options=options, prepare=prepare)
        except OSError as ex:
            raise _write_error(path, ex) from ex


def _create_copy(driver, temp, pixels, meta, *, options, prepare):
    """Run GDAL's CreateCopy and close the file, with every error raised."""
    gdal = require_gdal()
    with gdal_errors_as_exceptions(f'writing with the {driver} driver') as errors:
        source = memory_dataset(pixels, meta)
        if prepare is not None:
            prepare(source)
        errors.check('describing the pixels')
        target = gdal.GetDriverByName(driver).CreateCopy(
            os.fsencode(temp), source, 0, list(options))
        try:
            errors.check('writing the file', target)
        finally:
            close_dataset(target)


def _as_write_error(path, verify):
    """Return ``verify`` with its refusals turned into AssetWriteError."""
    if verify is None:
        return None

    def checked(temp):
        try:
            verify(temp)
        except (OSError, ValueError) as ex:
            raise _write_error(path, ex) from ex

    return checked


def _write_error(path, cause):
    """Return the error for a file that could not be written."""
    return AssetWriteError(
        f'could not write {path}: {cause}. Nothing of it was kept; check the free space '
        'and the permissions of its folder, then write it again', path=path)


def check_blocksize(blocksize):
    """Raise OptionError unless a tile side is a multiple of 16 in 64..4096 px."""
    if not (_is_whole(blocksize) and blocksize % 16 == 0 and 64 <= blocksize <= 4096):
        raise OptionError(f'blocksize={blocksize!r} is not a multiple of 16 in 64..4096 px')


def check_num_threads(num_threads):
    """Raise OptionError unless it is a whole number of at least 1."""
    if not (_is_whole(num_threads) and num_threads >= 1):
        raise OptionError(f'num_threads={num_threads!r} is not a whole number of at least 1')


def _is_whole(value):
    """Return True for an int of Python or numpy, but not for a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
