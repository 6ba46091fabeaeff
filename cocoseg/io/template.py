"""
Let GDAL say in TIFF tags what a file says about its pixels.

How a coordinate system, a transform, band names, scales and metadata become
GeoTIFF keys and GDAL's XML is long and changes with its versions. So GDAL
writes a tiny file with all of that into memory, and its tags are taken over.
"""
from __future__ import annotations

import io
import itertools

import numpy as np

from cocoseg.io.dataset import describe, gdal_type
from cocoseg.io.gdal_gate import (close_dataset, gdal_errors_as_exceptions, read_memory_file,
                                  require_gdal)
from cocoseg.io.tiff import Tag

# BitsPerSample, Photometric, SamplesPerPixel, PlanarConfiguration, ExtraSamples, SampleFormat
_PIXEL_TAGS = (258, 262, 277, 284, 338, 339)
# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams,
# GeoAsciiParams, GDAL_METADATA
_IMAGE_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 42112)
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
        OSError: if GDAL cannot store something.

    Example:
        >>> from cocoseg.io.dataset import RasterMeta
        >>> from cocoseg.io.template import harvest_tags
        >>> main, overview = harvest_tags('int16', 2, RasterMeta.coerce('int16', 2, nodata=-1))
        >>> main[258].data, main[42113].data
        (b'\\x10\\x00\\x10\\x00', b'-1\\x00')
    """
    tags = _read_tags(_write_template(np.dtype(dtype), n_bands, meta, interleave))
    overview = {code: tags[code] for code in (*_PIXEL_TAGS, _NODATA_TAG) if code in tags}
    image = {code: tags[code] for code in _IMAGE_TAGS if code in tags}
    return {**overview, **image}, overview


def _write_template(dtype, n_bands, meta, interleave):
    """Return the bytes of a one-tile TIFF that GDAL wrote."""
    gdal = require_gdal()
    # Grey bands, also if there are 3 or 4 of 8 bits: none of them is red or opacity.
    options = ['TILED=YES', f'BLOCKXSIZE={_SIDE}', f'BLOCKYSIZE={_SIDE}', 'BIGTIFF=NO',
               'SPARSE_OK=TRUE', f'INTERLEAVE={interleave.upper()}', 'PHOTOMETRIC=MINISBLACK',
               'ALPHA=NO']
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
            return read_memory_file(name)
        finally:
            gdal.Unlink(name)


def _read_tags(content):
    """Return all tags of the first directory of a file."""
    import tifffile
    with tifffile.TiffFile(io.BytesIO(content)) as tif:
        return {tag.code: Tag(int(tag.dtype), tag.count,
                              content[tag.valueoffset:tag.valueoffset + tag.valuebytecount])
                for tag in tif.pages.first.tags}
