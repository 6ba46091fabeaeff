"""
Masks beside and inside of rasters, as GDAL keeps them.

A sidecar ``a.tif.msk`` holds the mask of all bands of ``a.tif``; an internal
mask is a directory of the TIFF itself, which wins over a sidecar. Reads the
masks of bands, whatever GDAL makes them of, and says what can be written where.
"""
from __future__ import annotations

import logging
import os
import shutil
import threading
import zlib
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import AssetWriteError, OptionError
from cocoseg.grid.window import Window
from cocoseg.io.commit import as_write_error, check_writable, fsync_folder, make_suffix
from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal
from cocoseg.io.raster import open_dataset, read_into

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BandGroup:
    """
    Bands whose validity is told by the same samples.

    Attributes:
        number (int): of the band to read, counted from 1 as GDAL does.
        bands (tuple[int, ...]): which of the chosen bands it stands for.
        kind (str): 'values', the band itself; 'mask', its mask; 'valid', no
            need to read.
    """

    number: int
    bands: tuple
    kind: str = 'values'


class BandReader:
    """
    Read bands, or their masks, of a file that stays open.

    Made by :func:`open_bands`; for one thread.
    """

    def __init__(self, dataset, dtype):
        self._dataset, self._dtype = dataset, dtype

    def read(self, group, window):
        """Return a window of one band, or of its mask (0 is masked), (h, w)."""
        if group.kind == 'values':
            out = np.empty((*window.shape, 1), self._dtype)
            read_into(self._dataset, window, [group.number], out)
            return out[:, :, 0]
        mask = self._dataset.GetRasterBand(group.number).GetMaskBand()
        found = mask.ReadAsArray(window.x0, window.y0, *window.dsize)
        if found is None:
            raise RuntimeError(f'cannot read the mask of band {group.number} in {window}')
        return found

    def read_planes(self, groups, window):
        """Return a window of several bands, one after the other, (n, h, w)."""
        planes = np.empty((len(groups), *window.shape), self._dtype)
        # In one call, by which tiles of all bands are decoded once.
        found = self._dataset.ReadAsArray(
            window.x0, window.y0, *window.dsize, buf_obj=planes if len(groups) > 1 else planes[0],
            band_list=[group.number for group in groups])
        if found is None:
            raise RuntimeError(f'cannot read {len(groups)} bands in {window}')
        return planes


@contextmanager
def open_bands(fpath, dtype):
    """
    Open a file to read band after band.

    Args:
        fpath (str | PathLike): a path, or any string that GDAL opens.
        dtype (dtype): of the samples of bands.

    Yields:
        BandReader: for this thread, inside of the block.

    Example:
        >>> from cocoseg import Window, write_cog
        >>> from cocoseg.io.mask_file import group_bands, open_bands
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     report = write_cog(fpath, np.array([[0, 5]], np.uint8), nodata=0)
        >>>     group, = group_bands(fpath, [0], from_masks=True)
        >>>     with open_bands(fpath, 'uint8') as reader:
        >>>         found = reader.read(group, Window(0, 0, 1, 2)).tolist()
        >>> found
        [[0, 255]]
    """
    with open_dataset(fpath) as dataset:
        yield BandReader(dataset, np.dtype(dtype))


def group_bands(fpath, bands, from_masks=False):
    """
    Return what to read to know the validity of bands.

    Args:
        fpath (str | PathLike): a path, or any string that GDAL opens.
        bands (Sequence[int]): counted from 0.
        from_masks (bool): by the masks of the bands, not by their values. A
            mask or alpha of the whole file is read once; a band without any
            mask is not read.

    Returns:
        tuple[BandGroup, ...]: each place of ``bands`` is in one of them.
    """
    if not from_masks:
        return tuple(BandGroup(band + 1, (place,)) for place, band in enumerate(bands))
    gdal, shared, groups = require_gdal(), {}, []
    with open_dataset(fpath) as dataset:
        for place, number in enumerate(band + 1 for band in bands):
            flags = dataset.GetRasterBand(number).GetMaskFlags()
            if flags & gdal.GMF_ALL_VALID:
                shared.setdefault('valid', (number, []))[1].append(place)
            elif flags & gdal.GMF_PER_DATASET:
                shared.setdefault('mask', (number, []))[1].append(place)
            else:
                groups.append(BandGroup(number, (place,), 'mask'))
    groups += [BandGroup(number, tuple(places), kind)
               for kind, (number, places) in shared.items()]
    # What decides most for the least reading goes first.
    return tuple(sorted(groups, key=lambda group: (group.kind != 'valid', -len(group.bands))))


def is_pixel_interleaved(fpath):
    """
    Return True if the bands of a file are stored together, so that all are decoded at once.

    Example:
        >>> from cocoseg import write_cog
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     report = write_cog(fpath, np.zeros((2, 2, 3), np.uint8), interleave='band')
        >>>     found = is_pixel_interleaved(fpath)
        >>> found
        False
    """
    with open_dataset(fpath) as dataset:
        return dataset.RasterCount > 1 and dataset.GetMetadataItem(
            'INTERLEAVE', 'IMAGE_STRUCTURE') in ('PIXEL', 'LINE')


def get_block_shape(fpath):
    """Return (h, w) of a stored tile or strip of the first band, px."""
    with open_dataset(fpath) as dataset:
        return tuple(dataset.GetRasterBand(1).GetBlockSize()[::-1])


# ---- beside a file ---------------------------------------------------------

def sidecar_path(fpath):
    """
    Return where GDAL looks for the mask of a file.

    Example:
        >>> from cocoseg.io.mask_file import sidecar_path
        >>> sidecar_path('a/b.tif')
        'a/b.tif.msk'
    """
    return f'{os.fspath(fpath)}.msk'


def sidecar_metadata(n_bands):
    """
    Return the metadata by which GDAL takes a raster as the mask of so many bands.

    Example:
        >>> from cocoseg.io.mask_file import sidecar_metadata
        >>> sidecar_metadata(2)
        {'INTERNAL_MASK_FLAGS_1': '2', 'INTERNAL_MASK_FLAGS_2': '2'}
    """
    # 2 is GMF_PER_DATASET.
    return {f'INTERNAL_MASK_FLAGS_{number + 1}': '2' for number in range(n_bands)}


def check_sidecar(fpath, overwrite=False):
    """
    Return the path of the sidecar, checked to be writable and to be heard.

    Args:
        fpath (str | PathLike): the raster.
        overwrite (bool): a sidecar that exists may go.

    Raises:
        OptionError: if the raster is no file, has an internal mask (which
            would win), or has a sidecar already.
        AssetWriteError: if its folder cannot be written to.
    """
    _check_is_file(fpath, 'sidecar')
    if _facts(fpath)['has_internal']:
        raise OptionError(f"{fpath} has a mask inside, which would hide a sidecar; use "
                          "dst='internal', or a path")
    path = sidecar_path(fpath)
    if os.path.exists(path) and not overwrite:
        raise OptionError(f'{path} exists; pass overwrite=True to replace it')
    check_writable(path)
    return path


def _check_is_file(fpath, dst):
    if fpath is None or not os.path.isfile(fpath):
        raise OptionError(f'dst={dst!r} is for files, and {fpath!r} is none; give a path')


def _facts(fpath):
    """Return what decides where a mask of a file can be written."""
    gdal = require_gdal()
    name = os.path.basename(fpath)
    with gdal_errors_as_exceptions(f'reading {fpath}') as errors:
        # Without its siblings, so that a mask can only be inside.
        dataset = gdal.OpenEx(os.fsencode(os.fspath(fpath)), gdal.OF_RASTER | gdal.OF_READONLY,
                              sibling_files=[name])
        errors.check(f'opening {fpath} as a raster', dataset)
        try:
            band = dataset.GetRasterBand(1)
            flags = band.GetMaskFlags()
            return {
                'driver': dataset.GetDriver().ShortName,
                'has_internal': bool(flags & gdal.GMF_PER_DATASET and not flags & gdal.GMF_ALPHA),
                'is_cog': dataset.GetMetadataItem('LAYOUT', 'IMAGE_STRUCTURE') == 'COG',
                'n_overviews': band.GetOverviewCount(),
                'shape': (dataset.RasterYSize, dataset.RasterXSize),
            }
        finally:
            band = None
            close_dataset(dataset)


# ---- inside of a file ------------------------------------------------------

def check_internal(fpath, overwrite=False):
    """
    Raise unless a mask can be written into a file.

    Args:
        fpath (str | PathLike): the raster.
        overwrite (bool): a mask that it has may go.

    Raises:
        OptionError: if it is no plain GeoTIFF: a Cloud-Optimized one would stop
            being one, and overviews would have no mask; or if it has a mask
            already, inside or beside.
        AssetWriteError: if its folder cannot be written to.
    """
    _check_is_file(fpath, 'internal')
    facts = _facts(fpath)
    if facts['driver'] != 'GTiff':
        raise OptionError(f'{fpath} is of format {facts["driver"]}; only a GeoTIFF holds a mask '
                          "inside: use dst='sidecar', or a path")
    if facts['is_cog'] or facts['n_overviews'] or os.path.exists(f'{fpath}.ovr'):
        reason = ('is a Cloud-Optimized GeoTIFF, which would stop being one' if facts['is_cog']
                  else 'has overviews, which would have no mask')
        raise OptionError(f"{fpath} {reason} with a mask inside; use dst='sidecar', or a path")
    if os.path.exists(sidecar_path(fpath)):
        raise OptionError(f'{sidecar_path(fpath)} exists, and would be hidden by a mask inside; '
                          "remove it, or use dst='sidecar'")
    if facts['has_internal'] and not overwrite:
        raise OptionError(f'{fpath} has a mask inside; pass overwrite=True to replace it')
    check_writable(fpath)


class InternalMaskWriter:
    """
    Write the mask of a GeoTIFF into it, atomically.

    A copy beside the file gets the mask; :meth:`close` flushes it, reads the
    mask back, and gives it the name of the file, which is untouched until then.
    Leaving a ``with`` block closes it, or drops it after an exception.
    Satisfies :class:`cocoseg.protocols.BlockSink`.

    Args:
        fpath (str | PathLike): a file that :func:`check_internal` accepts.
        overwrite (bool): a mask that it has may go.

    Raises:
        OptionError: see :func:`check_internal`.
        AssetWriteError: if the copy cannot be made.

    Thread-safety: ``write_block`` may be called from any thread.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.images import write_tif
        >>> from cocoseg.io.mask_file import InternalMaskWriter, group_bands
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     write_tif(fpath, np.ones((2, 3), np.uint8))
        >>>     with InternalMaskWriter(fpath) as writer:
        >>>         writer.write_block(Window(0, 0, 2, 3), np.full((2, 3, 1), 255, np.uint8))
        >>>     kinds = [group.kind for group in group_bands(fpath, [0], from_masks=True)]
        >>>     assert os.listdir(folder) == ['a.tif']
        >>> kinds
        ['mask']
    """

    def __init__(self, fpath, overwrite=False):
        check_internal(fpath, overwrite)
        self.fpath = os.path.abspath(fpath)
        folder, name = os.path.split(self.fpath)
        tail = make_suffix()
        # Short, as names are limited; swept by later runs if we are killed.
        stem = os.fsencode(name)[:80].decode('utf-8', 'ignore')
        self._temp = os.path.join(folder, f'.{stem}{tail}')
        self._lock, self._checksums = threading.Lock(), {}
        self._dataset = None
        try:
            shutil.copyfile(self.fpath, self._temp)
            shutil.copymode(self.fpath, self._temp)
            self._dataset = self._open()
        except BaseException as ex:
            self.abort()
            if isinstance(ex, OSError):
                raise as_write_error(self.fpath, ex) from ex
            raise

    def _open(self):
        gdal = require_gdal()
        option = 'GDAL_TIFF_INTERNAL_MASK'
        before = gdal.GetThreadLocalConfigOption(option)
        gdal.SetThreadLocalConfigOption(option, 'YES')
        try:
            with gdal_errors_as_exceptions(f'writing the mask of {self.fpath}') as errors:
                dataset = gdal.OpenEx(os.fsencode(self._temp), gdal.OF_RASTER | gdal.OF_UPDATE,
                                      allowed_drivers=['GTiff'])
                errors.check(f'opening a copy of {self.fpath}', dataset)
                if not dataset.GetRasterBand(1).GetMaskFlags() & gdal.GMF_PER_DATASET:
                    dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
                return dataset
        finally:
            gdal.SetThreadLocalConfigOption(option, before)

    def write_block(self, window, block):
        """
        Write one block: uint8 (h, w, 1), 0 or 255.

        Raises:
            AssetWriteError: if it cannot be written.
        """
        pixels = np.ascontiguousarray(block[:, :, 0])
        try:
            with self._lock, gdal_errors_as_exceptions(f'writing the mask of {self.fpath}'):
                mask = self._dataset.GetRasterBand(1).GetMaskBand()
                mask.WriteArray(pixels, window.x0, window.y0)
                self._checksums[window] = zlib.crc32(pixels)
        except OSError as ex:
            raise as_write_error(self.fpath, ex) from ex

    def close(self):
        """
        Give the copy the name of the file; does nothing after that.

        Raises:
            AssetWriteError: if it cannot be written, or does not hold what was
                written; the file is as it was.
        """
        if self._temp is None:
            return
        try:
            with gdal_errors_as_exceptions(f'writing the mask of {self.fpath}'):
                close_dataset(self._dataset)
                self._dataset = None
            with open(self._temp, 'rb+') as file:
                os.fsync(file.fileno())
            self._verify()
            os.replace(self._temp, self.fpath)
            fsync_folder(os.path.dirname(self.fpath))
        except OSError as ex:
            self.abort()
            raise ex if isinstance(ex, AssetWriteError) else as_write_error(self.fpath, ex) from ex
        self.abort()

    def _verify(self):
        """Raise unless the copy holds all blocks, and nothing else is masked."""
        with open_dataset(self._temp) as dataset:
            shape = (dataset.RasterYSize, dataset.RasterXSize)
            area = sum(window.area for window in self._checksums)
            if area != Window.from_shape(shape).area:
                raise AssetWriteError(f'{area} px of the mask of {self.fpath} were written, it has '
                                      f'{shape}; write every block once', path=self.fpath)
            reader, group = BandReader(dataset, np.uint8), BandGroup(1, (0,), 'mask')
            for window, checksum in self._checksums.items():
                if zlib.crc32(np.ascontiguousarray(reader.read(group, window))) != checksum:
                    raise AssetWriteError(f'the mask of {self.fpath} reads back otherwise in '
                                          f'{window}; nothing was changed', path=self.fpath)

    def abort(self):
        """Drop the copy; does nothing after :meth:`close`."""
        dataset, temp, self._dataset, self._temp = self._dataset, self._temp, None, None
        if dataset is not None:
            try:
                with gdal_errors_as_exceptions('dropping a copy'):
                    close_dataset(dataset)
            except OSError as ex:
                logger.debug('dropping a copy: %s', ex)
        for path in [] if temp is None else [temp, f'{temp}.aux.xml']:
            if os.path.exists(path):
                os.unlink(path)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        try:
            if exc_type is None:
                self.close()
        finally:
            self.abort()


# ---- outlines --------------------------------------------------------------

def outline_mask(fpath):
    """
    Return the outline of the pixels of a raster that are not 0.

    Reads row by row: memory depends on the outline, not on the raster.

    Args:
        fpath (str | PathLike): a raster of one band.

    Returns:
        shapely.geometry.base.BaseGeometry: a polygon or several, x and y in px,
        along the pixel edges; empty if all pixels are 0.

    Raises:
        OSError: if GDAL cannot read it.

    Example:
        >>> from cocoseg import write_cog
        >>> from cocoseg.io.mask_file import outline_mask
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     report = write_cog(fpath, np.array([[0, 255, 255], [0, 255, 255]], np.uint8))
        >>>     found = outline_mask(fpath)
        >>> found.bounds
        (1.0, 0.0, 3.0, 2.0)
    """
    import shapely
    gdal = require_gdal()
    from osgeo import ogr
    with open_dataset(fpath) as dataset:
        # Polygons come in world coordinates; these are those of pixels.
        pixels = gdal.GetDriverByName('VRT').CreateCopy('', dataset)
        pixels.SetGeoTransform((0, 1, 0, 0, 0, 1))
        driver = ogr.GetDriverByName('Memory') or ogr.GetDriverByName('MEM')
        vector = driver.CreateDataSource('')
        layer = vector.CreateLayer('regions', None, ogr.wkbPolygon)
        band = pixels.GetRasterBand(1)
        gdal.Polygonize(band, band, layer, -1)
        parts = [shapely.from_wkb(bytes(feature.GetGeometryRef().ExportToWkb()))
                 for feature in layer]
        del band
        close_dataset(pixels)
    return shapely.union_all(parts)
