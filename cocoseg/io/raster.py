"""
Read rasters: pixels and facts of any file that GDAL opens.

Each call opens its own dataset and closes it, so all functions may be called
from any number of threads. Nothing here writes.
"""
from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.window import Window
from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal


@dataclass(frozen=True)
class RasterInfo:
    """
    The facts about a raster that do not need its pixels.

    Attributes:
        shape (tuple[int, int, int]): (H, W, C) in px.
        dtype (str): numpy name of the type that :func:`read_raster` returns.
        nodata (int | float | None): of the first band; may be NaN.
        crs_wkt (str | None): coordinate system as WKT.
        epsg (int | None): its EPSG code, if it names one.
        geotransform (tuple | None): 6 numbers in GDAL's order; None if the
            file has none (GDAL cannot tell the identity from none).
        channels (tuple[str | None, ...]): band descriptions.
        scales (tuple[float | None, ...]): per band, true = stored * scale + offset.
        offsets (tuple[float | None, ...]): per band.
        overview_count (int): levels below the full image, of the first band.
        blocksize (tuple[int, int]): (h, w) of a stored tile or strip, px.
        metadata (dict[str, str]): GDAL's default metadata domain.
    """

    shape: tuple[int, int, int]
    dtype: str
    nodata: int | float | None
    crs_wkt: str | None
    epsg: int | None
    geotransform: tuple[float, ...] | None
    channels: tuple[str | None, ...]
    scales: tuple[float | None, ...]
    offsets: tuple[float | None, ...]
    overview_count: int
    blocksize: tuple[int, int]
    metadata: dict[str, str]


@contextmanager
def open_dataset(fpath):
    """
    Open a raster for reading and close it again.

    Args:
        fpath (str | PathLike): a path, or any string that GDAL opens.

    Yields:
        gdal.Dataset: valid inside the block and in this thread only.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if GDAL cannot open it, or reports any failure in the block.
    """
    gdal = require_gdal()
    name = os.fspath(fpath)
    with gdal_errors_as_exceptions(f'reading {name}') as errors:
        try:
            dataset = gdal.OpenEx(os.fsencode(name), gdal.OF_RASTER | gdal.OF_READONLY)
        except RuntimeError as ex:
            errors.messages.append(str(ex))
            dataset = None
        if dataset is None and not os.path.exists(name):
            raise FileNotFoundError(
                2, 'no such raster file, and no dataset that GDAL can open', name)
        errors.check(f'opening {name} as a raster', dataset)
        try:
            yield dataset
        finally:
            close_dataset(dataset)


def _numpy_dtype(dataset):
    """Return the smallest numpy dtype that holds every band."""
    from osgeo import gdal_array
    dtypes = set()
    for i in range(dataset.RasterCount):
        band = dataset.GetRasterBand(i + 1)
        # How GDAL before 3.7 spells int8.
        if band.GetMetadataItem('PIXELTYPE', 'IMAGE_STRUCTURE') == 'SIGNEDBYTE':
            dtypes.add(np.dtype(np.int8))
        else:
            dtypes.add(np.dtype(gdal_array.GDALTypeCodeToNumericTypeCode(band.DataType)))
    return np.result_type(*dtypes)


def _as_number(value, dtype):
    """Return a GDAL double as an int where the pixels are ints."""
    if value is None:
        return None
    if dtype.kind in 'iu' and float(value).is_integer():
        return int(value)
    return float(value)


def raster_info(fpath):
    """
    Read the facts about a raster, without its pixels.

    Args:
        fpath (str | PathLike): a path, or any string that GDAL opens.

    Returns:
        RasterInfo: immutable facts.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if GDAL cannot read it.

    Example:
        >>> from cocoseg.io.cog import write_cog
        >>> from cocoseg.io.raster import raster_info
        >>> import numpy as np, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     report = write_cog(fpath, np.ones((30, 40), np.int16), nodata=-9999,
        >>>                        crs=32618, channels=['salient'])
        >>>     info = raster_info(fpath)
        >>> info.shape, info.dtype, info.nodata, info.epsg, info.channels
        ((30, 40, 1), 'int16', -9999, 32618, ('salient',))
    """
    with open_dataset(fpath) as dataset:
        if dataset.RasterCount == 0:
            raise OSError(
                f'{os.fspath(fpath)} has no raster bands of its own; open one of its '
                f'subdatasets: {[name for name, _ in dataset.GetSubDatasets()]}')
        bands = [dataset.GetRasterBand(i + 1) for i in range(dataset.RasterCount)]
        dtype = _numpy_dtype(dataset)
        width, height = bands[0].GetBlockSize()
        geotransform = dataset.GetGeoTransform(can_return_null=True)
        info = RasterInfo(
            shape=(dataset.RasterYSize, dataset.RasterXSize, len(bands)),
            dtype=dtype.name,
            nodata=_as_number(bands[0].GetNoDataValue(), dtype),
            crs_wkt=dataset.GetProjection() or None,
            epsg=_epsg_of(dataset.GetSpatialRef()),
            geotransform=None if geotransform is None else tuple(geotransform),
            channels=tuple(band.GetDescription() or None for band in bands),
            scales=tuple(band.GetScale() for band in bands),
            offsets=tuple(band.GetOffset() for band in bands),
            overview_count=bands[0].GetOverviewCount(),
            blocksize=(height, width),
            metadata=dict(dataset.GetMetadata()),
        )
        # A band must not outlive its dataset.
        del bands
    return info


def _epsg_of(srs):
    """Return the EPSG code of a spatial reference, or None."""
    if srs is None or srs.GetAuthorityName(None) != 'EPSG':
        return None
    return int(srs.GetAuthorityCode(None))


def read_raster(fpath, window=None, bands=None):
    """
    Read pixels of a raster.

    Args:
        fpath (str | PathLike): a path, or any string that GDAL opens.
        window (Window | tuple[slice, slice] | None): rectangle to read, px,
            inside the image; None reads all of it.
        bands (Sequence[int] | None): channels to read, counted from 0 along
            the last axis, in the wanted order; None reads all.

    Returns:
        ndarray: shape (h, w, C), C-contiguous, the dtype of the file, nodata
            and scale not applied.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if GDAL cannot read it, or a stored tile is damaged.
        CoverageError: if the window is empty or leaves the image.
        OptionError: if a band does not exist.

    Example:
        >>> from cocoseg.io.cog import write_cog
        >>> from cocoseg.io.raster import read_raster
        >>> import numpy as np, os, tempfile
        >>> data = np.arange(24, dtype=np.uint8).reshape(3, 4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     report = write_cog(fpath, data)
        >>>     part = read_raster(fpath, (slice(1, 3), slice(0, 4)), bands=[1])
        >>> assert np.array_equal(part, data[1:3, :, 1:])
    """
    with open_dataset(fpath) as dataset:
        shape = (dataset.RasterYSize, dataset.RasterXSize)
        window = _checked_window(fpath, window, shape)
        numbers = _checked_bands(fpath, bands, dataset.RasterCount)
        out = np.empty((*window.shape, len(numbers)), _numpy_dtype(dataset))
        read_into(dataset, window, numbers, out)
    return out


def read_into(dataset, window, numbers, out):
    """
    Read a window of an open dataset into ``out``, modified in place.

    Args:
        dataset (gdal.Dataset): open for reading.
        window (Window): rectangle inside the image, px.
        numbers (Sequence[int]): GDAL band numbers, counted from 1.
        out (ndarray): shape (h, w, C), C == len(numbers).

    Raises:
        RuntimeError: if GDAL returns nothing; call inside
            :func:`cocoseg.io.gdal_gate.gdal_errors_as_exceptions`, which
            makes it an OSError with GDAL's reason.
    """
    place = (window.x0, window.y0, *window.dsize)
    # All bands in one call: where they are stored interleaved, each tile is
    # then decoded once.
    if len(numbers) == 1:
        got = dataset.GetRasterBand(numbers[0]).ReadAsArray(*place, buf_obj=out[:, :, 0])
    else:
        got = dataset.ReadAsArray(*place, buf_obj=out, interleave='pixel', band_list=numbers)
    if got is None:
        raise RuntimeError(f'cannot read bands {numbers} in {window}')


def _checked_window(fpath, window, shape):
    """Return the window to read, which must lie inside the image."""
    if window is None:
        return Window.from_shape(shape)
    window = Window.coerce(window, shape)
    if window.is_empty or not Window.from_shape(shape).contains(window):
        raise CoverageError(
            f'cannot read {window} of {os.fspath(fpath)}, whose shape is {shape}: it is '
            'empty or leaves the image; clip it first')
    return window


def _checked_bands(fpath, bands, n_bands):
    """Return GDAL's band numbers, counted from 1."""
    if bands is None:
        return list(range(1, n_bands + 1))
    numbers = [int(band) + 1 for band in bands]
    if not numbers or min(numbers) < 1 or max(numbers) > n_bands:
        raise OptionError(
            f'bands={list(bands)} of {os.fspath(fpath)}, which has {n_bands}: give at '
            f'least one, each in 0..{n_bands - 1}')
    return numbers


def srs_wkt(crs):
    """
    Return a coordinate system as WKT.

    Args:
        crs (int | str | None): an EPSG code, 'EPSG:n', or WKT.

    Returns:
        str | None: WKT; None for None.

    Raises:
        OptionError: if it is none of these, or PROJ does not know it.

    Example:
        >>> from cocoseg.io.raster import srs_wkt
        >>> srs_wkt('EPSG:4326').split('"')[1]
        'WGS 84'
        >>> assert srs_wkt(4326) == srs_wkt('epsg:4326') == srs_wkt(srs_wkt(4326))
    """
    if crs is None:
        return None
    require_gdal()
    from osgeo import osr
    srs = osr.SpatialReference()
    code = _epsg_code(crs)
    try:
        with gdal_errors_as_exceptions(f'reading the coordinate system {crs!r}') as errors:
            status = srs.ImportFromWkt(crs) if code is None else srs.ImportFromEPSG(code)
            errors.check(f'reading the coordinate system {crs!r}', None if status else True)
            return srs.ExportToWkt()
    except (OSError, OverflowError) as ex:
        raise OptionError(
            f'crs={crs!r} is not known ({ex}); give an EPSG code, "EPSG:n", or WKT') from ex


def _epsg_code(crs):
    """Return the EPSG code that ``crs`` spells, or None if it may be WKT."""
    if isinstance(crs, (int, np.integer)) and not isinstance(crs, bool):
        return int(crs)
    if isinstance(crs, str):
        match = re.fullmatch(r'\s*EPSG:(\d+)\s*', crs, re.IGNORECASE)
        return int(match[1]) if match else None
    raise OptionError(
        f'crs={crs!r} has type {type(crs).__name__}; give an EPSG code, "EPSG:n", or WKT')


def axes_are_swapped(wkt):
    """
    Return True if the authority orders the axes of a CRS as (north, east).

    Args:
        wkt (str): of :func:`srs_wkt`.

    Example:
        >>> from cocoseg.io.raster import axes_are_swapped, srs_wkt
        >>> axes_are_swapped(srs_wkt(4326)), axes_are_swapped(srs_wkt(32618))
        (True, False)
    """
    require_gdal()
    from osgeo import osr
    srs = osr.SpatialReference()
    srs.ImportFromWkt(wkt)
    return bool(srs.EPSGTreatsAsLatLong() or srs.EPSGTreatsAsNorthingEasting())
