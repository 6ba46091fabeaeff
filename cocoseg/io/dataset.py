"""
Describe an array to GDAL: checked options, and an in-memory dataset over it.

:class:`RasterMeta` holds all that a file says about its pixels, checked once
before anything is written. :func:`memory_dataset` puts a GDAL dataset over the
caller's array without copying it.
"""
from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import BandCountError, OptionError
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.raster import srs_wkt

_GDAL_TYPES = {
    'uint8': 'GDT_Byte', 'int8': 'GDT_Int8', 'uint16': 'GDT_UInt16',
    'int16': 'GDT_Int16', 'uint32': 'GDT_UInt32', 'int32': 'GDT_Int32',
    'float32': 'GDT_Float32', 'float64': 'GDT_Float64'}


def gdal_type(dtype):
    """
    Return GDAL's code of a numpy dtype that we write.

    Args:
        dtype (np.dtype): of the pixels.

    Raises:
        OptionError: if it is not one that a file can hold here.

    Example:
        >>> from cocoseg.io.dataset import gdal_type
        >>> import numpy as np
        >>> gdal_type(np.dtype('int16'))
        3
    """
    gdal = require_gdal()
    name = np.dtype(dtype).name
    code = getattr(gdal, _GDAL_TYPES.get(name, ''), None)
    if code is None:
        known = [key for key, value in _GDAL_TYPES.items() if hasattr(gdal, value)]
        raise OptionError(
            f'pixels of type {name} cannot be written with GDAL {gdal.__version__}; '
            f'convert them first, to one of {known}')
    return code


def check_dtype(dtype):
    """
    Raise OptionError unless pixels of a type can be written.

    Example:
        >>> from cocoseg.io.dataset import check_dtype
        >>> check_dtype('int8')
    """
    if np.dtype(dtype).name not in _GDAL_TYPES:
        raise OptionError(f'pixels of type {np.dtype(dtype).name} cannot be written; convert '
                          f'them first, to one of {list(_GDAL_TYPES)}')


def check_mask(data):
    """
    Raise OptionError for a masked array, whose mask would be lost.

    Example:
        >>> from cocoseg.io.dataset import check_mask
        >>> check_mask(np.zeros(3))
    """
    if isinstance(data, np.ma.MaskedArray):
        raise OptionError(
            'data is a masked array; fill the masked pixels with the nodata value first')


def as_bands(data):
    """
    Return pixels as (H, W, C), without a copy.

    Args:
        data (array_like): int or float, shape (H, W) or (H, W, C).

    Raises:
        OptionError: for another number of axes, an empty axis, a masked
            array, or a type that cannot be written.

    Example:
        >>> from cocoseg.io.dataset import as_bands
        >>> as_bands(np.zeros((4, 5), np.int8)).shape
        (4, 5, 1)
    """
    check_mask(data)
    pixels = np.asarray(data)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise OptionError(
            f'data has shape {np.shape(data)}; give (H, W) or (H, W, C), nothing empty')
    check_dtype(pixels.dtype)
    return pixels


def as_pixels(data):
    """
    Return pixels as (H, W, C), in a layout that GDAL reads in place.

    A copy is made only for a layout that GDAL cannot address: a foreign byte
    order or a reversed axis.

    Args:
        data (array_like): int or float, shape (H, W) or (H, W, C).

    Returns:
        ndarray: shape (H, W, C), usually a view of ``data``.

    Raises:
        OptionError: for another number of axes, an empty axis, a masked
            array, or a type that cannot be written.

    Example:
        >>> from cocoseg.io.dataset import as_pixels
        >>> import numpy as np
        >>> data = np.zeros((4, 5), np.uint8)
        >>> pixels = as_pixels(data)
        >>> assert pixels.shape == (4, 5, 1) and np.shares_memory(pixels, data)
    """
    pixels = as_bands(data)
    gdal_type(pixels.dtype)
    addressable = (pixels.dtype.isnative and pixels.flags.aligned
                   and min(_steps(pixels)) > 0)
    if not addressable:
        pixels = np.array(pixels, dtype=pixels.dtype.newbyteorder('='), order='C')
    return pixels


def _steps(pixels):
    """Return the strides in bytes; an axis of length 1 has none of its own."""
    return tuple(stride if size > 1 else pixels.itemsize
                 for stride, size in zip(pixels.strides, pixels.shape))


@dataclass(frozen=True)
class RasterMeta:
    """
    What a file says about its pixels, checked.

    Make it with :meth:`coerce`.

    Attributes:
        nodata (int | float | None): exactly representable in the pixel type.
        crs_wkt (str | None): coordinate system.
        geotransform (tuple | None): 6 numbers in GDAL's order.
        channels (tuple[str, ...] | None): one name per band.
        scales, offsets (tuple[float, ...] | None): one per band.
        metadata (tuple[tuple[str, str], ...]): default domain.
        colors (tuple[tuple[int, int, int], ...] | None): RGB of the values 0, 1, …
    """

    nodata: int | float | None = None
    crs_wkt: str | None = None
    geotransform: tuple[float, ...] | None = None
    channels: tuple[str, ...] | None = None
    scales: tuple[float, ...] | None = None
    offsets: tuple[float, ...] | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    colors: tuple[tuple[int, int, int], ...] | None = None

    @classmethod
    def coerce(cls, dtype, n_bands, *, nodata=None, crs=None, transform=None, channels=None,
               scale=None, offset=None, metadata=None, colors=None):
        """
        Check the arguments of ``write_cog``, which are described there.

        Args:
            dtype (dtype): of the pixels.
            n_bands (int): bands.
            **kwargs: see :func:`cocoseg.io.cog.write_cog`.

        Returns:
            RasterMeta: the checked values.

        Raises:
            OptionError: if a value cannot be stored as given.
            BandCountError: if a sequence does not have one entry per band.

        Example:
            >>> from cocoseg.io.dataset import RasterMeta
            >>> meta = RasterMeta.coerce('int16', 2, channels='a|b', scale=0.5)
            >>> meta.channels, meta.scales
            (('a', 'b'), (0.5, 0.5))
        """
        return cls(
            nodata=_coerce_nodata(nodata, np.dtype(dtype)),
            crs_wkt=srs_wkt(crs),
            geotransform=as_geotransform(transform),
            channels=_coerce_channels(channels, n_bands),
            scales=_coerce_per_band('scale', scale, n_bands),
            offsets=_coerce_per_band('offset', offset, n_bands),
            metadata=_coerce_metadata(metadata),
            colors=_coerce_colors(colors, np.dtype(dtype), n_bands),
        )


def _coerce_colors(colors, dtype, n_bands):
    """Return a color table as tuples; TIFF has one for a single band of 8 bits, or of 16."""
    if colors is None:
        return None
    table = np.asarray(colors)
    if (table.ndim != 2 or table.shape[1] != 3 or table.dtype.kind not in 'iu' or not len(table)
            or table.min() < 0 or table.max() > 255):
        raise OptionError(f'colors must be whole numbers 0..255, shape (n, 3), not {table.dtype} '
                          f'{table.shape}')
    if dtype not in (np.uint8, np.uint16) or n_bands != 1 or len(table) > 256 ** dtype.itemsize:
        raise OptionError(f'{len(table)} colors are for one band of uint8 or uint16 that has '
                          f'as many values, not for {n_bands} of {dtype}')
    return tuple(map(tuple, table.tolist()))


def _coerce_nodata(nodata, dtype):
    """Return nodata as the very value that a pixel would hold."""
    if nodata is None:
        return None
    if isinstance(nodata, (bool, np.bool_)) or not isinstance(nodata, numbers.Real):
        raise OptionError(f'nodata={nodata!r} must be a number')
    if dtype.kind == 'f':
        with np.errstate(over='ignore'):
            value = float(dtype.type(nodata))
        if math.isinf(value) and not math.isinf(nodata):
            raise OptionError(f'nodata={nodata!r} does not fit in pixels of type {dtype}')
        return value
    limits = np.iinfo(dtype)
    if not (limits.min <= nodata <= limits.max and int(nodata) == nodata):
        raise OptionError(
            f'nodata={nodata!r} is no value of pixels of type {dtype}, whose range is '
            f'{limits.min}..{limits.max}')
    return int(nodata)


def as_geotransform(transform):
    """
    Return a pixel-to-world transform as GDAL's 6 numbers.

    Pixel coordinates (x, y) are those of pixel corners: (0, 0) is the top-left
    corner of the top-left pixel. World coordinates are (east, north) or
    (longitude, latitude), whatever the axis order of the coordinate system.

    Args:
        transform (array_like | None): a matrix ``world_from_pixel`` of shape
            (3, 3) (or its 9 numbers row by row, as ``affine.Affine`` is), or
            6 numbers in GDAL's order (x0, dx_dcol, dx_drow, y0, dy_dcol,
            dy_drow). Rotation and shear are kept.

    Returns:
        tuple[float, ...] | None: GDAL's order; None for None.

    Raises:
        OptionError: if it is neither, not affine, not finite or not invertible.

    Example:
        >>> from cocoseg.io.dataset import as_geotransform
        >>> as_geotransform([[20, 0, 500000], [0, -20, 4000000], [0, 0, 1]])
        (500000.0, 20.0, 0.0, 4000000.0, 0.0, -20.0)
    """
    if transform is None:
        return None
    try:
        numbers = np.asarray(transform, dtype=np.float64)
    except (TypeError, ValueError) as ex:
        raise OptionError(f'transform={transform!r} is not a matrix of numbers: {ex}') from ex
    if numbers.shape in ((3, 3), (9,)):
        matrix = numbers.reshape(3, 3)
        if matrix[2].tolist() != [0, 0, 1]:
            raise OptionError(
                f'transform has last row {matrix[2].tolist()}; only an affine one, with '
                '[0, 0, 1], can be stored')
        (a, b, x0), (d, e, y0) = matrix[:2].tolist()
    elif numbers.shape == (6,):
        x0, a, b, y0, d, e = numbers.tolist()
    else:
        raise OptionError(
            f'transform has shape {numbers.shape}; give a (3, 3) world_from_pixel matrix, '
            "or 6 numbers in GDAL's order")
    if not np.isfinite(numbers).all() or a * e - b * d == 0:
        raise OptionError(
            f'transform={numbers.tolist()} is not finite or not invertible')
    return (x0, a, b, y0, d, e)


def _coerce_channels(channels, n_bands):
    """Return one storable name per band."""
    if channels is None:
        return None
    names = tuple(channels.split('|') if isinstance(channels, str) else channels)
    if len(names) != n_bands:
        raise BandCountError(
            f'channels={channels!r} names {len(names)} bands but data has {n_bands}')
    for name in names:
        _check_text('a channel name', name)
    return names


def _coerce_per_band(what, value, n_bands):
    """Return one finite float per band."""
    if value is None:
        return None
    numbers = np.asarray(value, dtype=np.float64)
    if numbers.ndim == 0:
        numbers = np.full(n_bands, numbers)
    if numbers.shape != (n_bands,):
        raise BandCountError(
            f'{what} has shape {numbers.shape}; give one number, or {n_bands}, one per band')
    if not np.isfinite(numbers).all() or (what == 'scale' and not numbers.all()):
        raise OptionError(
            f'{what}={numbers.tolist()} must be finite' + ', not 0' * (what == 'scale'))
    return tuple(numbers.tolist())


def _coerce_metadata(metadata):
    """Return metadata as pairs of storable texts."""
    pairs = tuple((metadata or {}).items())
    resolutions = {'TIFFTAG_XRESOLUTION', 'TIFFTAG_YRESOLUTION'} & set(metadata or ())
    if resolutions and 'TIFFTAG_RESOLUTIONUNIT' not in metadata:
        raise OptionError(f'metadata has {sorted(resolutions)}, which GDAL only stores with '
                          "TIFFTAG_RESOLUTIONUNIT; give it, too ('1' none, '2' inch, '3' cm)")
    for key, value in pairs:
        _check_text('a metadata key', key)
        _check_text(f'the metadata value of {key!r}', value)
        if '=' in key or ':' in key:
            raise OptionError(f'metadata key {key!r} holds "=" or ":", which GDAL splits at')
    return pairs


def _check_text(what, text):
    """Raise unless ``text`` comes back unchanged from GDAL's XML."""
    if not isinstance(text, str):
        raise OptionError(
            f'{what} is {text!r}, of type {type(text).__name__}; give a str '
            '(json.dumps makes one of a dict)')
    if not text or text != text.strip():
        raise OptionError(f'{what} is empty or has blanks at an end: {text!r}; strip it')
    if any((ord(char) < 32 and char not in '\t\n') or char in '\ufffe\uffff'
           or 0xd800 <= ord(char) < 0xe000 for char in text):
        raise OptionError(f'{what} holds a character that XML cannot: {text!r}; remove it')


def memory_dataset(pixels, meta):
    """
    Put a GDAL dataset over an array, without copying it.

    Call inside :func:`cocoseg.io.gdal_gate.gdal_errors_as_exceptions`. GDAL
    only reads the pixels; the array must live as long as the dataset.

    Args:
        pixels (ndarray): shape (H, W, C), of :func:`as_pixels`.
        meta (RasterMeta): stored on the dataset and its bands.

    Returns:
        gdal.Dataset: of the MEM driver.
    """
    gdal = require_gdal()
    height, width, n_bands = pixels.shape
    code = gdal_type(pixels.dtype)
    address = pixels.__array_interface__['data'][0]
    row_step, column_step, band_step = _steps(pixels)
    dataset = gdal.GetDriverByName('MEM').Create('', width, height, 0, code)
    for i in range(n_bands):
        dataset.AddBand(code, [
            f'DATAPOINTER={address + i * band_step}',
            f'PIXELOFFSET={column_step}', f'LINEOFFSET={row_step}'])
    describe(dataset, meta)
    return dataset


def describe(dataset, meta):
    """Store all that a :class:`RasterMeta` says on a GDAL dataset."""
    if meta.crs_wkt is not None:
        dataset.SetProjection(meta.crs_wkt)
    if meta.geotransform is not None:
        dataset.SetGeoTransform(meta.geotransform)
    if meta.metadata:
        dataset.SetMetadata(dict(meta.metadata))
    if meta.colors is not None:
        table = require_gdal().ColorTable()
        for value, color in enumerate(meta.colors):
            table.SetColorEntry(value, (*color, 255))
        dataset.GetRasterBand(1).SetColorTable(table)
    for i in range(dataset.RasterCount):
        band = dataset.GetRasterBand(i + 1)
        if meta.nodata is not None:
            band.SetNoDataValue(meta.nodata)
        if meta.channels is not None:
            band.SetDescription(meta.channels[i])
        if meta.scales is not None:
            band.SetScale(meta.scales[i])
        if meta.offsets is not None:
            band.SetOffset(meta.offsets[i])
