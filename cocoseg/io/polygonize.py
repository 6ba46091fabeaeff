"""
Outlines of labelled regions, along the pixel edges.
"""
from __future__ import annotations

import os
from contextlib import contextmanager

import numpy as np

from cocoseg.io.raster import open_dataset


def polygonize_labels(labels):
    """
    Return the outline of every labelled region.

    Regions are 4-connected, so each outline is a valid polygon (with holes)
    whose vertices are pixel corners.

    Args:
        labels (ndarray | str | PathLike): int32, shape (H, W), or a file of one
            band of whole numbers, of which only a few rows are in memory; 0 is
            background.

    Returns:
        list[tuple[int, shapely.Polygon]]: label and outline (x, y), px; a
        label of several parts occurs once per part.

    Raises:
        MissingDependencyError: without GDAL.

    Example:
        >>> labels = np.zeros((4, 5), np.int32)
        >>> labels[1:3, 1:4] = 7
        >>> [(label, polygon.bounds) for label, polygon in polygonize_labels(labels)]
        [(7, (1.0, 1.0, 4.0, 3.0))]
    """
    import shapely
    from cocoseg.io.gdal_gate import gdal_errors_as_exceptions, require_gdal
    gdal = require_gdal()
    from osgeo import ogr
    with gdal_errors_as_exceptions(), _open_pixels(gdal, labels) as raster:
        band = raster.GetRasterBand(1)
        # The in-memory driver was renamed when GDAL merged it with MEM (3.11).
        driver = ogr.GetDriverByName('Memory') or ogr.GetDriverByName('MEM')
        vector = driver.CreateDataSource('')
        layer = vector.CreateLayer('regions', None, ogr.wkbPolygon)
        layer.CreateField(ogr.FieldDefn('label', ogr.OFTInteger64))
        # The band is its own mask: background makes no polygons.
        gdal.Polygonize(band, band, layer, 0)
        return [(feature.GetField(0),
                 shapely.from_wkb(bytes(feature.GetGeometryRef().ExportToWkb())))
                for feature in layer]


@contextmanager
def _open_pixels(gdal, labels):
    """Yield a dataset whose coordinates are those of pixels."""
    if isinstance(labels, (str, os.PathLike)):
        with open_dataset(labels) as dataset:
            raster = gdal.GetDriverByName('VRT').CreateCopy('', dataset)
            raster.SetGeoTransform((0, 1, 0, 0, 0, 1))
            yield raster
            del raster
        return
    labels = np.ascontiguousarray(labels, np.int32)
    height, width = labels.shape
    raster = gdal.GetDriverByName('MEM').Create('', width, height, 1, gdal.GDT_Int32)
    raster.GetRasterBand(1).WriteArray(labels)
    yield raster
