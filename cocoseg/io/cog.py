"""
Write Cloud-Optimized GeoTIFFs: block by block, or from an array.

:class:`CogWriter` takes finished blocks in any order and compresses them as
they come (:mod:`cocoseg.io.pyramid`); when all are there, the file is put
together from its parts (:mod:`cocoseg.io.tiff`), flushed, verified, and only
then gets its name. GDAL judges such files, it does not write them.
"""
from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cocoseg.errors import CocosegError, CogError, ImageClosedError, OptionError
from cocoseg.grid.window import Window, WindowLike
from cocoseg.io.codecs import Codec
from cocoseg.io.commit import as_write_error, atomic_write, refusing
from cocoseg.io.dataset import RasterMeta, as_bands, check_dtype, check_mask
from cocoseg.io.overviews import check_method
from cocoseg.io.pyramid import PyramidEncoder
from cocoseg.io.tile_spool import write_all
from cocoseg.io.verify import CogReport, verify_cog
from cocoseg.machine import count_cpus
from cocoseg.protocols import PathLike

__all__ = ['CogReport', 'CogWriter', 'write_cog']

_INTERLEAVES = ('pixel', 'band')
# Limits of TIFF, and of GDAL.
_MAX_SIDE, _MAX_BANDS = 2 ** 31 - 1, 2 ** 16 - 1


@dataclasses.dataclass(frozen=True)
class CogOptions:
    """
    How a file is laid out, checked.

    Attributes:
        codec (Codec): compression.
        blocksize (int): side of a tile, px.
        overviews (str | None): how they are made; None for none.
        interleave (str): 'pixel' or 'band'.
        bigtiff (bool | None): None where it is needed.
        num_threads (int): threads that compress.
    """

    codec: Codec
    blocksize: int = 256
    overviews: str | None = 'average'
    interleave: str = 'pixel'
    bigtiff: bool | None = None
    num_threads: int = 1

    @classmethod
    def coerce(cls, dtype, *, compress='ZSTD', level=None, predictor='auto', blocksize=256,
               overviews='average', interleave='pixel', bigtiff=None, num_threads=None):
        """
        Check options of :func:`write_cog`, which are described there.

        Raises:
            OptionError: if one cannot be honoured.

        Example:
            >>> from cocoseg.io.cog import CogOptions
            >>> CogOptions.coerce('float32', num_threads=2).codec
            Codec(name='ZSTD', level=1, predictor=3)
        """
        check_dtype(dtype)
        codec = Codec.coerce(compress, level, predictor, np.dtype(dtype))
        check_blocksize(blocksize)
        if overviews is not None:
            check_method(overviews)
        if interleave not in _INTERLEAVES:
            raise OptionError(f'interleave={interleave!r} is unknown; use one of {_INTERLEAVES}')
        if bigtiff is not None and not isinstance(bigtiff, bool):
            raise OptionError(f'bigtiff={bigtiff!r} must be True, False, or None (as needed)')
        if num_threads is None:
            num_threads = count_cpus()
        check_num_threads(num_threads)
        return cls(codec, int(blocksize), overviews, interleave, bigtiff, int(num_threads))

    def make_encoder(self, shape, dtype, folder, nodata, executor, waiting_nbytes=None):
        """Return a :class:`~cocoseg.io.pyramid.PyramidEncoder` for one image."""
        return PyramidEncoder(
            shape, dtype, self.codec, folder, blocksize=self.blocksize,
            overviews=self.overviews, nodata=nodata, interleave=self.interleave,
            executor=executor, num_threads=self.num_threads, waiting_nbytes=waiting_nbytes)


class CogWriter:
    """
    Write a Cloud-Optimized GeoTIFF from blocks that come in any order.

    Memory holds the tiles that are being compressed and the overview tiles
    that wait for a neighbour, whatever the height of the image; all else waits
    in a file without a name in the folder of ``fpath``. That and the final
    file need room at the same time. Nothing is visible before :meth:`close`.

    Leaving a ``with`` block closes the file, or drops it after an exception.
    Satisfies :class:`cocoseg.protocols.BlockSink`.

    Args:
        fpath (str | PathLike): path of the file; its folder must exist.
        shape (tuple[int, int] | tuple[int, int, int]): (H, W) or (H, W, C), px.
        dtype (dtype): of the pixels; as for :func:`write_cog`.
        nodata, crs, transform, channels, scale, offset, metadata, colors: what the
            file says about its pixels; as for :func:`write_cog`.
        **options: ``compress``, ``level``, ``predictor``, ``blocksize``,
            ``overviews``, ``interleave``, ``bigtiff`` and ``num_threads`` of
            :func:`write_cog`.

    Raises:
        OptionError: if an option cannot be honoured; nothing was touched.
        BandCountError: if a sequence does not have one entry per band.
        FileNotFoundError: if the folder does not exist.
        MissingDependencyError: without GDAL.

    Thread-safety: ``write_block`` may be called from any thread.

    Example:
        >>> from cocoseg import CogWriter, Window
        >>> import numpy as np, tempfile, os
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     with CogWriter(fpath, (300, 200), 'uint8', nodata=0) as writer:
        >>>         writer.write_block(Window(200, 0, 300, 200), np.ones((100, 200), np.uint8))
        >>>         writer.write_block(Window(0, 0, 200, 200), np.ones((200, 200), np.uint8))
        >>>         assert not os.path.exists(fpath)
        >>>     assert os.path.getsize(fpath) == writer.report.nbytes
        >>> writer.report.overview_shapes
        ((150, 100),)
    """

    def __init__(self, fpath: PathLike, shape: tuple[int, ...], dtype: DTypeLike, *,
                 nodata: float | None = None, crs: int | str | None = None,
                 transform: ArrayLike | None = None, channels: Sequence[str] | str | None = None,
                 scale: float | Sequence[float] | None = None,
                 offset: float | Sequence[float] | None = None,
                 metadata: dict[str, str] | None = None, colors: ArrayLike | None = None,
                 **options: Any) -> None:
        self.fpath = os.fspath(fpath)
        # Stays there if the process goes to another folder meanwhile.
        self._target = os.path.abspath(self.fpath)
        self.shape: tuple[int, int, int] = _coerce_shape(shape)
        self.dtype: np.dtype = _coerce_dtype(dtype)
        known = CogOptions.coerce.__kwdefaults__
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise OptionError(f'CogWriter has no options {unknown}; beside those of the pixels '
                              f'it has {sorted(known)}')
        self._options = CogOptions.coerce(self.dtype, **options)
        self._meta = RasterMeta.coerce(
            self.dtype, self.shape[2], nodata=nodata, crs=crs, transform=transform,
            channels=channels, scale=scale, offset=offset, metadata=metadata, colors=colors)
        if colors is not None and self._options.overviews == 'average':
            raise OptionError("values with colors cannot be averaged; give overviews='mode', "
                              "'nearest' or None")
        self._pool = (ThreadPoolExecutor(self._options.num_threads, 'cocoseg-cog')
                      if self._options.num_threads > 1 else None)
        folder = os.path.dirname(self._target)
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, 'no such folder', folder)
        self._encoder = self._options.make_encoder(
            self.shape, self.dtype, folder, self._meta.nodata, self._pool)
        self.report: CogReport | None = None
        self._is_aborted = False

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""
        return self._encoder.nbytes

    def write_block(self, window: WindowLike, block: np.ndarray) -> None:
        """
        Take one block; it is copied.

        Waits while the threads are busy compressing.

        Args:
            window (Window | tuple[slice, slice] | kwimage.Box): where it
                belongs, inside the image.
            block (ndarray): of the file's dtype, shape (h, w, C), or (h, w)
                for one band, with (h, w) == ``window.shape``.

        Raises:
            WindowShapeError: for another shape or dtype.
            CoverageError: if the window leaves the image, or a pixel of it was
                written before.
            ImageClosedError: after :meth:`close` or :meth:`abort`.
            AssetWriteError: if an earlier block could not be stored; this one
                was not taken. Mend the cause and give it again.
        """
        window = Window.coerce(window, self.shape)
        check_mask(block)
        block = np.asarray(block)
        if block.ndim == 2 and self.shape[2] == 1:
            block = block[:, :, None]
        try:
            self._encoder.write_block(window, block)
        except CocosegError:
            raise
        except Exception as ex:
            raise as_write_error(self.fpath, ex) from ex

    def close(self, fill_missing: bool = False) -> CogReport:
        """
        Finish the file: put it together, flush, verify, rename.

        May be called again after an error, and does nothing after success.

        Args:
            fill_missing (bool): pixels that were not written become nodata
                (NaN where floats have none).

        Returns:
            CogReport: what the file holds, as verified.

        Raises:
            CoverageError: if pixels are missing.
            AssetWriteError: if the file cannot be written; nothing of it is
                visible and no block is lost.
            OSError: as the system reports it, for example for a missing folder.
            ImageClosedError: after :meth:`abort`.
        """
        if self._is_aborted:
            raise ImageClosedError(f'the writer of {self.fpath} was aborted; make a new one')
        if self.report is None:
            finish(self._encoder, self.fpath, fill_missing)
            report = write_encoded(self._target, self._encoder, self._meta,
                                   self._options.bigtiff)
            self.report = dataclasses.replace(report, path=self.fpath)
            self._release()
        return self.report

    def abort(self) -> None:
        """Drop the file; nothing of it stays. Does nothing after :meth:`close`."""
        if self.report is None:
            self._is_aborted = True
            self._release()

    def _release(self):
        self._encoder.close()
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> CogWriter:
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        try:
            if exc_type is None and not self._is_aborted:
                self.close()
        finally:
            self.abort()


def write_cog(fpath: PathLike, data: np.ndarray, *, nodata: float | None = None,
              crs: int | str | None = None, transform: ArrayLike | None = None,
              compress: str | None = 'ZSTD', level: int | None = None,
              predictor: str | int | None = 'auto', blocksize: int = 256,
              overviews: str | None = 'average', channels: Sequence[str] | str | None = None,
              scale: float | Sequence[float] | None = None,
              offset: float | Sequence[float] | None = None, metadata: dict[str, str] | None = None,
              num_threads: int | None = None, interleave: str = 'pixel',
              bigtiff: bool | None = None, colors: ArrayLike | None = None) -> CogReport:
    """
    Write an array as a Cloud-Optimized GeoTIFF, atomically.

    The file is written under a temporary name in the same folder, flushed to
    the disk, checked with :func:`cocoseg.io.verify.verify_cog` and renamed. If
    anything fails, nothing of it stays and an older file is untouched. Every
    tile is stored, also where all pixels are nodata.

    Args:
        fpath (str | PathLike): path of the file; its folder must exist.
        data (ndarray): shape (H, W) or (H, W, C), of type int8, int16, int32,
            uint8, uint16, uint32, float32 or float64. Never modified; may be
            a memory map, which is read once.
        nodata (int | float | None): value of invalid pixels, stored for all
            bands. NaN pixels are invalid whatever it is.
        crs (int | str | None): an EPSG code, 'EPSG:n', or WKT.
        transform (array_like | None): pixel corners to world. A (3, 3) matrix
            ``world_from_pixel`` on (x, y, 1), or a plain tuple of 6 numbers
            in GDAL's order; see :func:`cocoseg.io.dataset.as_geotransform`.
        compress (str | None): a lossless codec, any case: 'ZSTD', 'DEFLATE',
            'LZW', 'LERC', 'LERC_ZSTD', 'LERC_DEFLATE', 'LZMA'; 'NONE', 'RAW'
            or None for none.
        level (int | None): effort of the codec. None is 1 for ZSTD, and the
            default of its library for others.
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
        num_threads (int | None): threads that compress; None is all CPUs that
            this process may use.
        interleave (str): 'pixel' stores all bands of a tile together, 'band'
            apart: for readers that want few of many bands.
        bigtiff (bool | None): offsets of 64 bits; None where 32 do not do.
        colors (array_like | None): RGB of the values 0, 1, …, whole numbers
            0..255, shape (n, 3): a color table, for one band of uint8 or
            uint16 that is not averaged.

    Returns:
        CogReport: what the file holds, as verified.

    Raises:
        OptionError: if an option cannot be honoured; nothing was touched.
        BandCountError: if a sequence does not have one entry per band.
        AssetWriteError: if the file cannot be written, or is not complete;
            an OSError that holds the reason, ``path`` and the target.
        OSError: as the system reports it, for example for a missing folder.
        MissingDependencyError: without GDAL.

    Note:
        Thread-safe on different paths. Beside ``data``, memory holds a few
        tiles. The bytes depend on the data and the options alone, not on the
        number of threads.

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
    pixels = as_bands(data)
    writer = CogWriter(
        fpath, pixels.shape, pixels.dtype, nodata=nodata, crs=crs, transform=transform,
        channels=channels, scale=scale, offset=offset, metadata=metadata, compress=compress,
        level=level, predictor=predictor, blocksize=blocksize, overviews=overviews,
        num_threads=num_threads, interleave=interleave, bigtiff=bigtiff, colors=colors)
    with writer:
        try:
            writer._encoder.write_image(pixels)
        except CocosegError:
            raise
        except Exception as ex:
            raise as_write_error(writer.fpath, ex) from ex
    return writer.report


def finish(encoder, fpath, fill_missing=False):
    """
    Wait for the tiles of a file, with the errors of writing it.

    Args:
        encoder (PyramidEncoder): that got all blocks.
        fpath (str): the file that is written, for messages.
        fill_missing (bool): see :meth:`CogWriter.close`.

    Raises:
        CoverageError: if pixels are missing.
        AssetWriteError: if a tile could not be stored; call again to retry.
    """
    try:
        encoder.finish(fill_missing)
    except CocosegError:
        raise
    except Exception as ex:
        raise as_write_error(fpath, ex) from ex


def write_encoded(fpath, encoder, meta, bigtiff=None):
    """
    Put a file together from encoded tiles, atomically.

    Args:
        fpath (str | PathLike): final path.
        encoder (PyramidEncoder): finished. It stays as it is: after an error,
            call again.
        meta (RasterMeta): what the file says about its pixels.
        bigtiff (bool | None): see :func:`write_cog`.

    Returns:
        CogReport: what the file holds, as verified.

    Raises:
        AssetWriteError: if the file cannot be written, or is not complete.
        OSError: as the system reports it, for example for a missing folder.
    """
    from cocoseg.io.template import harvest_tags
    from cocoseg.io.tiff import build_header
    path = os.fspath(fpath)
    reports = []

    def verify(temp):
        # A reader's LERC may refuse what another has written: decode it.
        report = verify_cog(temp, full=encoder.codec.name.startswith('LERC'))
        _check_report(report, encoder, meta)
        reports.append(report)

    try:
        main_tags, overview_tags = harvest_tags(
            encoder.dtype, encoder.shape[2], meta, encoder.interleave)
        header, _ = build_header(encoder.levels, encoder.codec, encoder.blocksize,
                                      main_tags, overview_tags, bigtiff)
    except (OSError, OverflowError) as ex:
        raise as_write_error(path, ex) from ex
    with atomic_write(path, verify=refusing(path, verify)) as temp:
        try:
            _write_parts(temp, header, encoder)
        except OSError as ex:
            raise as_write_error(path, ex) from ex
    return dataclasses.replace(reports[0], path=path)


def _write_parts(temp, header, encoder):
    """Write header and tiles."""
    descriptor = os.open(temp, os.O_WRONLY)
    try:
        write_all(descriptor, [header])
        encoder.copy_tiles(descriptor)
    finally:
        os.close(descriptor)


def _check_report(report, encoder, meta):
    """Raise CogError unless a file holds what it was asked to hold."""
    wanted = (encoder.shape, encoder.dtype.name,
              tuple(level.shape for level in encoder.levels[1:]),
              meta.channels or report.channels)
    found = (report.shape, report.dtype, report.overview_shapes, report.channels)
    if wanted != found:
        raise CogError(f'{report.path} holds {found} instead of {wanted}')


def _coerce_shape(shape):
    """Return (H, W, C)."""
    sizes = tuple(shape) if isinstance(shape, (tuple, list, np.ndarray)) else ()
    if len(sizes) == 2:
        sizes = (*sizes, 1)
    if (len(sizes) != 3 or not all(_is_whole(size) and size >= 1 for size in sizes)
            or max(sizes) > _MAX_SIDE or sizes[2] > _MAX_BANDS):
        raise OptionError(f'shape={shape!r} must be (H, W) or (H, W, C), each at least 1 and what '
                          f'a TIFF can hold: {_MAX_SIDE} px a side, {_MAX_BANDS} bands')
    return tuple(int(size) for size in sizes)


def _coerce_dtype(dtype):
    """Return the type of the pixels, in the byte order of this machine."""
    try:
        if dtype is None:
            raise TypeError('it is None')
        return np.dtype(dtype).newbyteorder('=')
    except TypeError as ex:
        raise OptionError(f'dtype={dtype!r} is no type of pixels ({ex})') from ex


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
