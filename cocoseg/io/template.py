"""
Let GDAL say in TIFF tags what a file says about its pixels.

How a coordinate system, a transform, band names, scales and metadata become
GeoTIFF keys and GDAL's XML is long and changes with its versions. So GDAL
writes a tiny file with all of that into memory, and its tags are taken over.
"""
from __future__ import annotations

import itertools

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.io.dataset import RasterMeta, describe, gdal_type
from cocoseg.io.gdal_gate import (close_dataset, gdal_errors_as_exceptions,
                                  memory_file_exists, read_memory_file, require_gdal)
from cocoseg.io.tiff import Tag
from cocoseg.io.tiff_read import read_directories, read_layout

# BitsPerSample, Photometric, SamplesPerPixel, PlanarConfiguration, ColorMap, ExtraSamples,
# SampleFormat
_PIXEL_TAGS = (258, 262, 277, 284, 320, 338, 339)
# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams,
# GeoAsciiParams, GDAL_METADATA
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 42112)
# Metadata with tags of their own: DocumentName, ImageDescription, MinSampleValue,
# MaxSampleValue, XResolution, YResolution, ResolutionUnit, Software, DateTime, Artist,
# HostComputer, Copyright
_TEXT_TAGS = (269, 270, 280, 281, 282, 283, 296, 305, 306, 315, 316, 33432)
_NODATA_TAG = 42113
_SIDE = 16
_NUMBERS = itertools.count()


def harvest_tags(dtype, n_bands, meta, interleave='pixel'):
    """
    Return the tags that describe pixels.

    Args:
        dtype (dtype): of the pixels.
        n_bands (int): bands.
        meta (RasterMeta): what the file says about them.
        interleave (str): 'pixel' or 'band'.

    Returns:
        tuple[dict[int, Tag], dict[int, Tag]]: for the full image, and for an
        overview.

    Raises:
        OptionError: if a TIFF cannot hold something.
        OSError: if GDAL fails.

    Example:
        >>> from cocoseg.io.dataset import RasterMeta
        >>> from cocoseg.io.template import harvest_tags
        >>> main, overview = harvest_tags('int16', 2, RasterMeta.coerce('int16', 2, nodata=-1))
        >>> main[258].data, main[42113].data
        (b'\\x10\\x00\\x10\\x00', b'-1\\x00')
    """
    tags = _read_tags(_write_template(np.dtype(dtype), n_bands, meta, interleave))
    overview = {code: tags[code] for code in (*_PIXEL_TAGS, _NODATA_TAG) if code in tags}
    image = {code: tags[code] for code in (*_GEO_TAGS, *_TEXT_TAGS) if code in tags}
    return {**overview, **image}, overview


def check_crs(crs):
    """
    Raise OptionError unless a GeoTIFF can hold a coordinate system.

    Args:
        crs (int | str | None): an EPSG code, 'EPSG:n', or WKT.

    Raises:
        OptionError: if it cannot, or the coordinate system is not known.

    Example:
        >>> from cocoseg.io.template import check_crs
        >>> check_crs('EPSG:4326')
    """
    if crs is not None:
        _write_template(np.dtype('uint8'), 1, RasterMeta.coerce('uint8', 1, crs=crs), 'pixel')


def _write_template(dtype, n_bands, meta, interleave):
    """Return the bytes of a one-tile TIFF that GDAL wrote."""
    gdal = require_gdal()
    # Grey bands, also if there are 3 or 4 of 8 bits: none of them is red or opacity.
    options = ['TILED=YES', f'BLOCKXSIZE={_SIDE}', f'BLOCKYSIZE={_SIDE}', 'BIGTIFF=NO',
               'SPARSE_OK=TRUE', f'INTERLEAVE={interleave.upper()}', 'PHOTOMETRIC=MINISBLACK',
               'ALPHA=NO', 'ENDIANNESS=LITTLE']
    if dtype == np.int8 and not hasattr(gdal, 'GDT_Int8'):
        # How GDAL before 3.7 spells it.
        code = gdal.GDT_Byte
        options.append('PIXELTYPE=SIGNEDBYTE')
    else:
        code = gdal_type(dtype)
    name = f'/vsimem/cocoseg-template-{next(_NUMBERS)}.tif'
    with gdal_errors_as_exceptions('describing the pixels') as errors:
        try:
            dataset = gdal.GetDriverByName('GTiff').Create(
                name, _SIDE, _SIDE, n_bands, code, options)
            errors.check('describing the pixels', dataset)
            try:
                describe(dataset, meta)
            finally:
                close_dataset(dataset)
            if memory_file_exists(name + '.aux.xml'):
                raise OptionError('a GeoTIFF cannot hold this coordinate system or metadata; '
                                  f'leave it out, or give another (crs {meta.crs_wkt!r})')
            return read_memory_file(name)
        finally:
            for path in (name, name + '.aux.xml'):
                if memory_file_exists(path):
                    gdal.Unlink(path)


def _read_tags(content):
    """Return all tags of the first directory of a file."""
    source = _MemoryBytes(content)
    fields = read_directories(source, read_layout(source))[0].fields
    return {code: Tag(field.kind, field.count, source.read(field.position, field.nbytes))
            for code, field in fields.items()}


class _MemoryBytes:
    """What :class:`cocoseg.io.tiff_read.FileBytes` is, of bytes in memory."""

    def __init__(self, content):
        self._content, self.nbytes = content, len(content)

    def read(self, offset, length):
        """Return ``length`` bytes from ``offset`` on."""
        return self._content[offset:offset + length]
