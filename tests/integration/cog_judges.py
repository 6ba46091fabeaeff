"""
Independent judges of COGs: validators and readers that are not ours.

Each judge takes paths and returns, for each path, plain facts that JSON can
hold: what its validator says, a fingerprint of every level, and what it reads
about the pixels. An exception of a judge becomes the fact ``error``. The GDAL
inside rasterio must never share a process with osgeo: that judge is a script,
``rasterio_judge.py``.
"""
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def fingerprint(levels):
    """
    Return (shape, dtype, digest) of each array, all shaped (h, w, C).

    Any NaN equals any other. Signed zeros differ in the full image, but not in
    overviews, where the sign of a mean of zeros has no meaning.
    """
    found = []
    for index, level in enumerate(levels):
        bits = np.ascontiguousarray(level)
        if bits.dtype.kind == 'f':
            bits = np.where(np.isnan(bits), bits.dtype.type(np.nan), bits + 0 if index else bits)
        found.append([list(bits.shape), bits.dtype.name, hashlib.sha1(bits).hexdigest()])
    return found


def judge_all(judge, paths):
    """Return the facts of one judge by path."""
    facts = {}
    for path in paths:
        try:
            facts[path] = judge(path)
        except Exception as ex:
            facts[path] = {'error': f'{type(ex).__name__}: {ex}'}
    return facts


def as_image(bands):
    """Return (C, h, w) or (h, w) as (h, w, C)."""
    return np.moveaxis(bands, 0, 2) if bands.ndim == 3 else bands[:, :, None]


# ---- GDAL -------------------------------------------------------------------

def judge_with_gdal(path):
    """Validate with GDAL's own checker, every tile, and read with its binding."""
    from osgeo import gdal
    from osgeo_utils.samples.validate_cloud_optimized_geotiff import validate
    warned, errors, _ = validate(path, full_check=True)
    dataset = gdal.OpenEx(path, gdal.OF_RASTER)
    bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
    levels = [_read_with_gdal(dataset, bands)]
    for index in range(bands[0].GetOverviewCount()):
        overview = gdal.OpenEx(path, gdal.OF_RASTER, open_options=[f'OVERVIEW_LEVEL={index}'])
        levels.append(_read_with_gdal(overview, bands))
        del overview
    facts = {
        'errors': errors, 'warnings': warned, 'levels': fingerprint(levels),
        'nodata': sorted({repr(level.GetNoDataValue()) for band in bands
                          for level in (band, *_overviews(band))}),
        'channels': [band.GetDescription() for band in bands],
        'scales': [band.GetScale() for band in bands],
        'offsets': [band.GetOffset() for band in bands],
        'crs': dataset.GetProjection(),
        'geotransform': dataset.GetGeoTransform(can_return_null=True),
        'metadata': without_pixel_is(dataset.GetMetadata()),
        'interleave': dataset.GetMetadataItem('INTERLEAVE', 'IMAGE_STRUCTURE'),
        'blocksizes': sorted({tuple(level.GetBlockSize()) for level in (
            bands[0], *_overviews(bands[0]))}),
    }
    # A band must not outlive its dataset.
    del bands
    return facts


def _overviews(band):
    return [band.GetOverview(index) for index in range(band.GetOverviewCount())]


def _read_with_gdal(dataset, bands):
    image = as_image(dataset.ReadAsArray())
    # How GDAL before 3.7 spells int8: the bits are those of int8.
    signed = bands[0].GetMetadataItem('PIXELTYPE', 'IMAGE_STRUCTURE') == 'SIGNEDBYTE'
    return image.view(np.int8) if signed else image


def without_pixel_is(metadata):
    """Return metadata without what GDAL adds to each georeferenced file."""
    return {key: value for key, value in metadata.items() if key != 'AREA_OR_POINT'}


def write_with_gdal(path, data, blocksize, overviews):
    """Write what GDAL itself makes of an image, of a type that any GDAL has."""
    from osgeo import gdal, gdal_array
    data = data.view(np.uint8) if data.dtype == np.int8 else data
    height, width, n_bands = data.shape
    code = gdal_array.NumericTypeCodeToGDALTypeCode(data.dtype)
    source = gdal.GetDriverByName('MEM').Create('', width, height, n_bands, code)
    for index in range(n_bands):
        source.GetRasterBand(index + 1).WriteArray(data[:, :, index])
    gdal.GetDriverByName('COG').CreateCopy(str(path), source, 0, [
        f'BLOCKSIZE={blocksize}', 'OVERVIEWS=' + ('AUTO' if overviews else 'NONE')])


def halve_with_gdal(data, nodata):
    """Halve (h, w) by GDAL's AVERAGE, without the pixels that are nodata."""
    from osgeo import gdal, gdal_array
    height, width = data.shape
    code = gdal_array.NumericTypeCodeToGDALTypeCode(data.dtype)
    dataset = gdal.GetDriverByName('MEM').Create('', width, height, 1, code)
    dataset.GetRasterBand(1).WriteArray(data)
    dataset.GetRasterBand(1).SetNoDataValue(nodata)
    dataset.BuildOverviews('AVERAGE', [2])
    return dataset.GetRasterBand(1).GetOverview(0).ReadAsArray()


def same_crs(one, other):
    """Return True if two texts in WKT describe the same coordinate system."""
    from osgeo import osr
    if not one or not other:
        return not one and not other
    first, second = osr.SpatialReference(one), osr.SpatialReference(other)
    return bool(first.IsSame(second, ['IGNORE_DATA_AXIS_TO_SRS_AXIS_MAPPING=YES']))


# ---- tifffile and kwimage ---------------------------------------------------

def judge_with_tifffile(path):
    """Read every page with tifffile, which decodes without GDAL and libtiff."""
    import tifffile
    with tifffile.TiffFile(path) as tif:
        levels, layouts = [], set()
        for page in tif.pages:
            pixels = page.asarray()
            levels.append(as_image(pixels) if page.planarconfig == 2 else (
                pixels.reshape(page.imagelength, page.imagewidth, -1)))
            lerc = page.tags.valueof(50674)
            layouts.add((int(page.compression), lerc and int(lerc[1]), int(page.predictor),
                         page.tilelength, page.tilewidth, int(page.planarconfig)))
        return {'levels': fingerprint(levels), 'layouts': sorted(layouts, key=repr),
                'is_bigtiff': tif.is_bigtiff,
                'n_series_levels': len(tif.series[0].levels)}


def judge_with_kwimage(path):
    """Read every level with kwimage's GDAL reader, and the image with its default."""
    import kwimage
    from osgeo import gdal
    dataset = gdal.Open(path)
    n_levels = 1 + dataset.GetRasterBand(1).GetOverviewCount()
    del dataset
    levels = [np.atleast_3d(kwimage.imread(path, backend='gdal', overview=index))
              for index in range(n_levels)]
    return {'levels': fingerprint(levels),
            'default': fingerprint([np.atleast_3d(kwimage.imread(path))])}


# ---- rasterio and rio-cogeo, in a process of their own ----------------------

def has_rasterio():
    """Return True if the judge of rasterio can run."""
    return importlib.util.find_spec('rio_cogeo') is not None


def judge_with_rasterio(paths):
    """Return the facts of rasterio and rio-cogeo for all paths, from one process."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name('rasterio_judge.py')],
        input=json.dumps(list(paths)), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
