"""
Outlines of segments as a GeoPackage, for rasters of any size.

GDAL's polygonizer streams the raster and writes the 4-connected parts of
segments to a file of their own; that is read back in the order of the ids, and
each segment becomes one feature. Memory does not depend on the raster.
"""
from __future__ import annotations

import math
import os
import tempfile
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cocoseg.errors import AssetWriteError, LabelOverflowError, OptionError
from cocoseg.io.commit import atomic_write, check_writable, refusing
from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal
from cocoseg.io.label_dataset import open_labels
from cocoseg.io.strips import Source, choose_strip_rows, iter_strips
from cocoseg.protocols import PathLike

# Features per transaction.
_BATCH = 20_000
# Columns that every file has.
_OWN = ('segment', 'fid', 'geom')
# What old versions of the polygonizer make of larger labels.
_INT32_MAX = 2 ** 31 - 1


def write_segment_polygons(segments: PathLike | np.ndarray, fpath: PathLike, table: Any = None, *,
                           crs: int | str | None = None, transform: ArrayLike | None = None,
                           layer: str = 'segments') -> int:
    """
    Write one feature per segment, with its figures, to a GeoPackage.

    Outlines follow the edges of pixels. Each is a MultiPolygon, with a part for
    each set of pixels that touch at their edges. Coordinates are those of the
    world where there is a geotransform, else pixels, y downward. A NaN becomes
    NULL. The file appears when it is complete; one that exists is replaced.

    Args:
        segments (str | PathLike | ndarray): a path that GDAL opens, or (H, W)
            whole numbers; 0, and the nodata value of a file, has no outline.
        fpath (str | PathLike): path that ends with '.gpkg'; its folder must exist.
        table (SegmentTable | None): columns to add; has a row for each segment.
        crs, transform: of an array, as for :func:`cocoseg.write_cog`.
        layer (str): name of the layer.

    Returns:
        int: number of features.

    Raises:
        OptionError: for another suffix, wrong labels, names of columns that
            a GeoPackage cannot hold together, or a segment without a row.
        LabelOverflowError: if a label is negative, or more than GDAL's
            polygonizer can take.
        AssetWriteError: if another program has the file open.
        OSError: if GDAL or the system cannot read or write.

    Example:
        >>> from cocoseg.io.vector import write_segment_polygons
        >>> import numpy as np, tempfile
        >>> segments = np.array([[1, 1, 2], [2, 0, 2]])
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     n_features = write_segment_polygons(segments, os.path.join(folder, 'a.gpkg'))
        >>> n_features
        2
    """
    source = Source.open(segments, 'segments', crs=crs, transform=transform).as_label_source()
    columns = _check_target(fpath, table, layer)
    counts = []

    def verify(temp):
        found = _count_features(temp, layer)
        if found != counts[0]:
            raise OSError(f'{found} of {counts[0]} features can be read back')

    if source.dtype.kind == 'i':
        # The polygonizer would pass over what is negative.
        for first, stop in iter_strips(source.shape[0], choose_strip_rows([source])):
            source.read_labels(first, stop)
    folder = os.path.dirname(os.path.abspath(fpath))
    with tempfile.TemporaryDirectory(dir=folder, prefix='.cocoseg-polygons-') as work:
        parts, done = (os.path.join(work, name) for name in ('parts.gpkg', 'done.gpkg'))
        _write_parts(source, parts)
        counts.append(_merge_parts(parts, done, layer, table, columns, source.nodata[0]))
        with atomic_write(fpath, verify=refusing(os.fspath(fpath), verify)) as temp:
            os.replace(done, temp)
    return counts[0]


def check_polygon_path(fpath):
    """
    Raise unless polygons could be written to a path; nothing is written.

    Args:
        fpath (str | PathLike): that :func:`write_segment_polygons` will get.

    Raises:
        OptionError: if it does not end with '.gpkg'.
        AssetWriteError: if there is no such folder, it cannot be written to,
            or another program has the file open.

    Example:
        >>> from cocoseg.io.vector import check_polygon_path
        >>> check_polygon_path('a.shp')
        Traceback (most recent call last):
            ...
        cocoseg.errors.OptionError: 'a.shp' does not end with '.gpkg'; polygons are written as \
GeoPackage only
    """
    path = os.fspath(fpath)
    if not path.lower().endswith('.gpkg'):
        raise OptionError(f'{path!r} does not end with \'.gpkg\'; polygons are written as '
                          'GeoPackage only')
    check_writable(path)
    for suffix in ('-wal', '-journal'):
        if os.path.exists(path + suffix):
            raise AssetWriteError(f'{path}{suffix} exists: another program has {path} open, or '
                                  'crashed with it. Close it there, or choose another name',
                                  path=path)


def _check_target(fpath, table, layer):
    """Return the columns as pairs of name and GDAL's type."""
    require_gdal()
    from osgeo import ogr
    check_polygon_path(fpath)
    if not layer or not isinstance(layer, str):
        raise OptionError(f'layer={layer!r} must be a name')
    columns = {} if table is None else dict(table.columns)
    folded = [name.casefold() for name in [*_OWN, *columns]]
    twice = sorted({name for name in columns if folded.count(name.casefold()) > 1})
    if twice:
        raise OptionError(f'columns {twice} cannot be beside each other or {_OWN} in a '
                          'GeoPackage, where case does not count; name them otherwise')
    types = []
    for name, column in columns.items():
        is_small = column.dtype.kind == 'b' or column.dtype.itemsize < 4 or column.dtype == 'int32'
        types.append((name, ogr.OFTReal if column.dtype.kind == 'f'
                      else ogr.OFTInteger if is_small else ogr.OFTInteger64))
    return types


@contextmanager
def _closing(dataset):
    """Yield a dataset, which must be one, and close it also after an error."""
    if dataset is None:
        raise RuntimeError('there is no dataset')
    try:
        yield dataset
    finally:
        close_dataset(dataset)


def _write_parts(source, parts):
    """Write a polygon for every 4-connected part of a segment."""
    gdal = require_gdal()
    from osgeo import ogr
    with gdal_errors_as_exceptions(f'outlining {source.name}') as errors:
        with open_labels(source) as dataset, _closing(
                ogr.GetDriverByName('GPKG').CreateDataSource(parts)) as vector:
            layer = _require(vector.CreateLayer('parts', dataset.GetSpatialRef(), ogr.wkbPolygon,
                                                ['SPATIAL_INDEX=NO']))
            layer.CreateField(ogr.FieldDefn('segment', ogr.OFTInteger64))
            vector.StartTransaction()
            band = dataset.GetRasterBand(1)
            # The band is its own mask: null makes no polygons.
            status = gdal.Polygonize(band, band, layer, 0)
            vector.CommitTransaction()
            errors.check(f'outlining {source.name}', None if status else True)
            # Neither may outlive its dataset.
            del layer, band


def _require(result):
    """Return what GDAL returned; a RuntimeError, which the gate translates, for None."""
    if result is None:
        raise RuntimeError('nothing was created')
    return result


def _merge_parts(parts, done, name, table, columns, nodata):
    """Write one feature per segment from its parts; return how many there are."""
    from osgeo import ogr
    with gdal_errors_as_exceptions(f'writing the layer {name!r}'):
        with _closing(ogr.Open(parts)) as reader, _closing(
                ogr.GetDriverByName('GPKG').CreateDataSource(done)) as writer:
            layer = _require(writer.CreateLayer(name, reader.GetLayer(0).GetSpatialRef(),
                                                ogr.wkbMultiPolygon, ['FID=fid']))
            layer.CreateField(ogr.FieldDefn('segment', ogr.OFTInteger64))
            for column, kind in columns:
                layer.CreateField(ogr.FieldDefn(column, kind))
            rows = reader.ExecuteSQL('SELECT segment, geom FROM parts ORDER BY segment')
            count = _write_features(layer, _iter_segments(rows, nodata), _RowFinder(table))
            reader.ReleaseResultSet(rows)
            del rows, layer
    return count


def _write_features(layer, segments, finder):
    """Write a feature for each label and its geometry; return how many there are."""
    from osgeo import ogr
    definition, count = layer.GetLayerDefn(), 0
    layer.StartTransaction()
    for label, geometry in segments:
        feature = ogr.Feature(definition)
        feature.SetFID(label)
        feature.SetField(0, label)
        for place, value in enumerate(finder.get_values(label), 1):
            if value is not None:
                feature.SetField(place, value)
        feature.SetGeometryDirectly(geometry)
        layer.CreateFeature(feature)
        count += 1
        if count % _BATCH == 0:
            layer.CommitTransaction()
            layer.StartTransaction()
    layer.CommitTransaction()
    return count


def _iter_segments(rows, nodata):
    """Yield each label with the union of its parts, which come one after the other."""
    from osgeo import ogr
    current, geometry = None, None
    for feature in rows:
        label = feature.GetField(0)
        if label == nodata:
            continue
        if label == _INT32_MAX and not _takes_wide_labels():
            raise LabelOverflowError(
                "segments holds a label that is too large for this version of GDAL's "
                f'polygonizer, which reads up to {label}; number the segments from 1')
        if label != current:
            if geometry is not None:
                yield current, geometry
            current, geometry = label, ogr.Geometry(ogr.wkbMultiPolygon)
        geometry.AddGeometry(feature.GetGeometryRef())
    if geometry is not None:
        yield current, geometry


def _takes_wide_labels():
    """Return True if GDAL's polygonizer keeps labels above 2**31, tried out."""
    gdal = require_gdal()
    from osgeo import ogr
    raster = gdal.GetDriverByName('MEM').Create('', 1, 1, 1, gdal.GDT_UInt32)
    band = raster.GetRasterBand(1)
    band.Fill(2 ** 32 - 1)
    # The in-memory driver was renamed when GDAL merged it with MEM (3.11).
    driver = ogr.GetDriverByName('Memory') or ogr.GetDriverByName('MEM')
    vector = driver.CreateDataSource('')
    layer = vector.CreateLayer('a', None, ogr.wkbPolygon)
    layer.CreateField(ogr.FieldDefn('segment', ogr.OFTInteger64))
    gdal.Polygonize(band, band, layer, 0)
    return layer.GetNextFeature().GetField(0) == 2 ** 32 - 1


class _RowFinder:
    """The figures of segments, asked for by ascending id, as values of Python."""

    def __init__(self, table):
        self._columns = None if table is None else list(table.columns.values())
        self._order = None if table is None else np.argsort(table.ids)
        self._ids = None if table is None else table.ids[self._order]
        self._place = 0

    def get_values(self, label):
        """Return a value per column; None where there is none."""
        if self._columns is None:
            return []
        while self._place < len(self._ids) and self._ids[self._place] < label:
            self._place += 1
        if self._place == len(self._ids) or self._ids[self._place] != label:
            raise OptionError(f'the table has no row for segment {label}; make it from the same '
                              'raster')
        values = [column[self._order[self._place]].item() for column in self._columns]
        return [None if isinstance(value, float) and math.isnan(value) else value
                for value in values]


def _count_features(fpath, layer):
    from osgeo import ogr
    with gdal_errors_as_exceptions(f'reading {fpath} back'):
        with _closing(ogr.Open(os.fspath(fpath))) as dataset:
            return _require(dataset.GetLayerByName(layer)).GetFeatureCount()
