"""Outlines of segments: each pixel in one, each segment one feature, figures as given."""
import numpy as np
import pytest

from cocoseg.errors import AssetWriteError, LabelOverflowError, OptionError
from cocoseg.io import vector
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.images import write_tif
from cocoseg.io.vector import write_segment_polygons
from cocoseg.shepherd.segment_table import SegmentTable
from cocoseg.shepherd.stats import segment_stats

from .segment_models import make_segments

GEO = {'crs': 'EPSG:32618', 'transform': (500_000, 10, 0, 4_000_000, 0, -20)}


def read_features(fpath, layer='segments'):
    """Return {segment: (geometry, fields)}, and the coordinate system."""
    import shapely
    require_gdal()
    from osgeo import ogr
    dataset = ogr.Open(str(fpath))
    found = dataset.GetLayerByName(layer)
    features = {}
    for feature in found:
        geometry = shapely.from_wkb(bytes(feature.GetGeometryRef().ExportToWkb()))
        assert geometry.geom_type == 'MultiPolygon' and geometry.is_valid
        fields = feature.items()
        assert fields['segment'] == feature.GetFID() and fields['segment'] not in features
        features[fields['segment']] = geometry, fields
    return features, found.GetSpatialRef()


@pytest.fixture
def segments():
    return make_segments(np.random.default_rng(0), (40, 31), n_labels=12)


def check_cover(features, segments, pixel_area=1):
    """Compare areas with pixels, one by one and all together."""
    import shapely
    assert sorted(features) == np.unique(segments[segments > 0]).tolist()
    for label, (geometry, _) in features.items():
        assert geometry.area == pytest.approx((segments == label).sum() * pixel_area)
    union = shapely.union_all([geometry for geometry, _ in features.values()])
    assert union.area == pytest.approx((segments > 0).sum() * pixel_area)


def test_array(segments, tmp_path):
    """In pixels, y downward, and outlines exactly around their pixels."""
    import shapely
    assert write_segment_polygons(segments, tmp_path / 'a.gpkg') == 12
    features, srs = read_features(tmp_path / 'a.gpkg')
    check_cover(features, segments)
    for label, (geometry, _) in features.items():
        y, x = np.nonzero(segments == label)
        assert shapely.contains_xy(geometry, x + 0.5, y + 0.5).all()
    assert srs is None or srs.IsLocal() or 'Undefined' in srs.GetName()
    assert [path.name for path in tmp_path.iterdir()] == ['a.gpkg']


@pytest.mark.parametrize('from_file', [True, False])
def test_world(segments, tmp_path, from_file):
    given = {} if from_file else GEO
    if from_file:
        write_tif(tmp_path / 'a.tif', segments, nodata=0, **GEO)
    write_segment_polygons(tmp_path / 'a.tif' if from_file else segments, tmp_path / 'a.gpkg',
                           layer='fields', **given)
    features, srs = read_features(tmp_path / 'a.gpkg', 'fields')
    check_cover(features, segments, 200)
    assert srs.GetAuthorityCode(None) == '32618'
    y, x = np.nonzero(segments == 3)
    assert features[3][0].bounds == (500_000 + 10 * x.min(), 4_000_000 - 20 * (y.max() + 1),
                                     500_010 + 10 * x.max(), 4_000_000 - 20 * y.min())


def test_parts_of_a_segment(tmp_path):
    """Apart, at a corner, around a hole: one feature."""
    segments = np.zeros((6, 8), int)
    segments[0, :2] = segments[2:5, 2:5] = segments[5, 5] = segments[0, 7] = 4
    segments[3, 3] = 9
    assert write_segment_polygons(segments, tmp_path / 'a.gpkg') == 2
    features, _ = read_features(tmp_path / 'a.gpkg')
    check_cover(features, segments)
    assert len(features[4][0].geoms) == 4
    assert sum(len(part.interiors) for part in features[4][0].geoms) == 1


def test_figures(segments, tmp_path, monkeypatch):
    """Those of the table, whatever its order; NaN is NULL; in several transactions."""
    monkeypatch.setattr(vector, '_BATCH', 5)
    image = np.random.default_rng(1).normal(size=segments.shape)
    image[segments == 2] = np.nan
    table = segment_stats(image, segments, 'mean,area,count,bbox')
    table = table.take(table.ids[::-1]).join(SegmentTable(table.ids, {
        'wide': table.ids.astype(np.int64) * 2 ** 40, 'unsigned': table.ids + 4_000_000_000,
        'flag': table.ids > 5, 'single': np.full(12, 0.5, np.float32)}))
    write_segment_polygons(segments, tmp_path / 'a.gpkg', table)
    features, _ = read_features(tmp_path / 'a.gpkg')
    for row, label in enumerate(table.ids.tolist()):
        fields = features[label][1]
        assert list(fields) == ['segment', *table.columns]
        for name, column in table.columns.items():
            if label == 2 and name == 'mean':
                assert fields[name] is None
            else:
                assert fields[name] == column[row], name
    # A table with more segments is fine, one with fewer is not.
    write_segment_polygons(np.where(segments == 3, 0, segments), tmp_path / 'b.gpkg', table)
    before = (tmp_path / 'b.gpkg').read_bytes()
    with pytest.raises(OptionError, match='no row for segment 3'):
        write_segment_polygons(segments, tmp_path / 'b.gpkg', table.take([1, 2]))
    assert (tmp_path / 'b.gpkg').read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.gpkg', 'b.gpkg']


def test_large_labels(tmp_path):
    labels = np.array([[2 ** 31, 2 ** 31, 0, 2 ** 32 - 1, 2 ** 31 - 1]], np.uint32)
    if not vector._takes_wide_labels():
        pytest.skip('this GDAL outlines labels of 31 bits only')
    assert write_segment_polygons(labels, tmp_path / 'a.gpkg') == 3
    check_cover(read_features(tmp_path / 'a.gpkg')[0], labels)


def test_large_labels_that_gdal_cannot_tell_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(vector, '_takes_wide_labels', lambda: False)
    with pytest.raises(LabelOverflowError, match='number the segments'):
        write_segment_polygons(np.array([[2 ** 31 - 1]]), tmp_path / 'a.gpkg')
    assert write_segment_polygons(np.array([[2 ** 31 - 2]]), tmp_path / 'a.gpkg') == 1


def test_nodata_and_negative_labels(tmp_path):
    write_tif(tmp_path / 'a.tif', np.array([[7, 255, 0, 7]], np.uint8), nodata=255)
    assert write_segment_polygons(tmp_path / 'a.tif', tmp_path / 'a.gpkg') == 1
    assert read_features(tmp_path / 'a.gpkg')[0][7][0].area == 2
    write_tif(tmp_path / 'b.tif', np.array([[7, -3]], np.int32))
    with pytest.raises(LabelOverflowError):
        write_segment_polygons(tmp_path / 'b.tif', tmp_path / 'b.gpkg')
    assert not (tmp_path / 'b.gpkg').exists()


def test_nothing_but_null(tmp_path):
    assert write_segment_polygons(np.zeros((3, 4), int), tmp_path / 'a.gpkg') == 0
    assert read_features(tmp_path / 'a.gpkg')[0] == {}


def test_wrong_input_before_work(segments, tmp_path, monkeypatch):
    monkeypatch.setattr(vector, '_write_parts', lambda *args: pytest.fail('work began'))
    with pytest.raises(OptionError, match='gpkg'):
        write_segment_polygons(segments, tmp_path / 'a.shp')
    with pytest.raises(AssetWriteError):
        write_segment_polygons(segments, tmp_path / 'no' / 'a.gpkg')
    with pytest.raises(OptionError, match='one band'):
        write_segment_polygons(np.ones((2, 2, 2), int), tmp_path / 'a.gpkg')
    with pytest.raises(OptionError, match='layer'):
        write_segment_polygons(segments, tmp_path / 'a.gpkg', layer='')
    for names in (['a', 'A'], ['FID'], ['geom']):
        table = SegmentTable(np.array([1]), {name: np.ones(1) for name in names})
        with pytest.raises(OptionError, match='case does not count'):
            write_segment_polygons(segments, tmp_path / 'a.gpkg', table)
    (tmp_path / 'a.gpkg-wal').touch()
    with pytest.raises(AssetWriteError, match='another program'):
        write_segment_polygons(segments, tmp_path / 'a.gpkg')


def test_lost_features_are_noticed(segments, tmp_path, monkeypatch):
    monkeypatch.setattr(vector, '_count_features', lambda *args: 3)
    with pytest.raises(AssetWriteError, match='3 of 12 features'):
        write_segment_polygons(segments, tmp_path / 'a.gpkg')
    assert list(tmp_path.iterdir()) == []
