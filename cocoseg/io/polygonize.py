"""
Outlines of labelled regions, along the pixel edges.
"""
from __future__ import annotations

import numpy as np


def polygonize_labels(labels):
    """
    Return the outline of every labelled region.

    Regions are 4-connected, so each outline is a valid polygon (with holes)
    whose vertices are pixel corners.

    Args:
        labels (ndarray): int32, shape (H, W); 0 is background.

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
    labels = np.ascontiguousarray(labels, np.int32)
    height, width = labels.shape
    with gdal_errors_as_exceptions():
        raster = gdal.GetDriverByName('MEM').Create('', width, height, 1, gdal.GDT_Int32)
        band = raster.GetRasterBand(1)
        band.WriteArray(labels)
        # The in-memory driver was renamed when GDAL merged it with MEM (3.11).
        driver = ogr.GetDriverByName('Memory') or ogr.GetDriverByName('MEM')
        vector = driver.CreateDataSource('')
        layer = vector.CreateLayer('regions', None, ogr.wkbPolygon)
        layer.CreateField(ogr.FieldDefn('label', ogr.OFTInteger))
        # The band is its own mask: background makes no polygons.
        gdal.Polygonize(band, band, layer, 0)
        return [(feature.GetField(0),
                 shapely.from_wkb(bytes(feature.GetGeometryRef().ExportToWkb())))
                for feature in layer]
