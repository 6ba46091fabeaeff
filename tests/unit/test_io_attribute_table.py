"""Attribute tables of label rasters: what is written is read back, page by page."""
import numpy as np
import pytest

from cocoseg import write_cog
from cocoseg.errors import AssetWriteError, MissingDependencyError, OptionError
from cocoseg.io import attribute_table as module
from cocoseg.io.attribute_table import (
    check_attribute_table_driver, check_attribute_table_file, copy_labels, estimate_statistics,
    random_colors, write_attribute_table, write_label_raster_attributes)
from cocoseg.io.gdal_gate import close_dataset, require_gdal
from cocoseg.io.images import write_tif
from cocoseg.io.raster import open_dataset, raster_info, read_raster
from cocoseg.shepherd.segment_table import SegmentTable
from cocoseg.shepherd.stats import segment_stats

from .segment_models import make_segments

GEO = {'crs': 'EPSG:32618', 'transform': (500_000, 10, 0, 4_000_000, 0, -20)}


@pytest.fixture
def segments():
    return make_segments(np.random.default_rng(0), (40, 31), n_labels=12)


@pytest.fixture
def raster(segments, tmp_path):
    copy_labels(segments, tmp_path / 'a.img')
    return tmp_path / 'a.img'


def read_table(fpath):
    """Return {name: (column, usage)} of the table, and the metadata of the band."""
    with open_dataset(fpath) as dataset:
        band = dataset.GetRasterBand(1)
        rat = band.GetDefaultRAT()
        columns = {rat.GetNameOfCol(place): (rat.ReadAsArray(place), rat.GetUsageOfCol(place))
                   for place in range(rat.GetColumnCount())}
        return columns, dict(band.GetMetadata())


@pytest.mark.parametrize('page', [1, 5, 13, 14, 100_000])
def test_figures(raster, segments, monkeypatch, page):
    """Also where the last page is full, or has one row."""
    monkeypatch.setattr(module, 'PAGE_ROWS', page)
    image = np.random.default_rng(1).normal(size=segments.shape).astype(np.float32)
    image[segments == 2] = np.nan
    table = segment_stats(image, segments, 'mean,area,bbox')
    write_attribute_table(raster, table.take(table.ids[::-1]))
    columns, _ = read_table(raster)
    assert list(columns) == list(table.columns)
    for name, (column, _) in columns.items():
        assert column.dtype.kind == table[name].dtype.kind and len(column) == 13
        np.testing.assert_array_equal(column[1:], table[name])
        assert column[0] == 0
    np.testing.assert_array_equal(read_raster(raster)[:, :, 0], segments)


@pytest.mark.parametrize('label', [1, 5, 10, 100])
@pytest.mark.parametrize('page', [5, 10])
def test_a_single_segment(tmp_path, monkeypatch, label, page):
    """Wherever its row is on a page, it is written, and no other."""
    monkeypatch.setattr(module, 'PAGE_ROWS', page)
    copy_labels(np.full((2, 3), label), tmp_path / 'a.img')
    write_attribute_table(tmp_path / 'a.img', SegmentTable(np.array([label]),
                                                           {'area': np.array([6])}))
    column = read_table(tmp_path / 'a.img')[0]['area'][0]
    assert column.tolist() == [0] * label + [6]


def test_columns_again(raster):
    """A second write replaces; what does not fit in 32 bits is a real."""
    ids = np.array([1, 2])
    for values in ([3, 4], [5, 6]):
        write_attribute_table(raster, SegmentTable(ids, {
            'a': np.array(values), 'b': np.array(values) * 2 ** 33, 'c': np.array([True, False])}))
    columns, _ = read_table(raster)
    assert {name: column[1:3].tolist() for name, (column, _) in columns.items()} == {
        'a': [5, 6], 'b': [5 * 2 ** 33, 6 * 2 ** 33], 'c': [1, 0]}
    write_attribute_table(raster, SegmentTable(ids, {'b': np.array([1, 2])}))
    assert read_table(raster)[0]['b'][0][1:3].tolist() == [1, 2]
    with pytest.raises(OptionError, match='another name'):
        write_attribute_table(raster, SegmentTable(ids, {'d': ids, 'a': np.array([0.5, 1])}))
    assert 'd' not in read_table(raster)[0]


def test_attributes(raster, segments):
    histogram, colors = np.bincount(segments.ravel()), random_colors(12, seed=3)
    write_label_raster_attributes(raster, histogram, colors)
    gdal = require_gdal()
    columns, metadata = read_table(raster)
    counts, usage = columns['Histogram']
    assert counts[1:].tolist() == histogram[1:].tolist() and counts[0] == 0
    assert usage == gdal.GFU_PixelCount
    for band, (name, usage) in enumerate([('Red', gdal.GFU_Red), ('Green', gdal.GFU_Green),
                                          ('Blue', gdal.GFU_Blue), ('Opacity', gdal.GFU_Alpha)]):
        assert columns[name][0].tolist() == colors[:, band].tolist()
        assert columns[name][1] == usage
    assert metadata['LAYER_TYPE'] == 'thematic'
    expected = estimate_statistics(histogram)
    assert {key: float(metadata[key]) for key in expected if 'BINF' not in key} == pytest.approx(
        {key: float(value) for key, value in expected.items() if 'BINF' not in key})
    # Without the fourth column the labels are opaque.
    write_label_raster_attributes(raster, histogram, colors[:, :3])
    assert read_table(raster)[0]['Opacity'][0].tolist() == [0] + [255] * 12


def test_statistics_of_labels():
    labels = np.random.default_rng(0).integers(3, 40, 501)
    found = estimate_statistics(np.concatenate([np.bincount(labels), [0, 0]]))
    histogram = np.bincount(labels)
    assert float(found['STATISTICS_MEAN']) == pytest.approx(labels.mean())
    assert float(found['STATISTICS_STDDEV']) == pytest.approx(labels.std())
    assert int(found['STATISTICS_MINIMUM']) == labels.min()
    assert int(found['STATISTICS_MAXIMUM']) == labels.max()
    assert int(found['STATISTICS_MEDIAN']) == np.median(labels)
    assert int(found['STATISTICS_MODE']) == histogram.argmax()
    assert found['STATISTICS_SKIPFACTORX'] == found['STATISTICS_SKIPFACTORY'] == '1'
    assert found['STATISTICS_HISTOBINFUNCTION'] == 'direct'
    assert estimate_statistics(np.array([7])) == estimate_statistics(np.zeros(4)) == {}


def test_colors_are_seeded():
    assert random_colors(9).tolist() == random_colors(9).tolist() != random_colors(9, 1).tolist()
    assert random_colors(5).tolist() == random_colors(9)[:6].tolist()
    assert len(random_colors(0)) == 1


def test_copy_of_a_cog(segments, tmp_path):
    """Pixels, place, null and table, all there when the file appears."""
    write_cog(tmp_path / 'a.tif', segments, nodata=0, overviews='nearest', **GEO)
    (tmp_path / 'b.img').write_text('an older file')
    table = segment_stats(None, segments, ['area'])
    histogram = np.bincount(segments.ravel())
    copy_labels(tmp_path / 'a.tif', tmp_path / 'b.img', histogram=histogram, table=table,
                colors=random_colors(12))
    info = raster_info(tmp_path / 'b.img')
    assert (info.dtype, info.nodata, info.geotransform) == ('uint32', 0, GEO['transform'])
    assert 'UTM zone 18N' in info.crs_wkt.replace('UTM_Zone_18N', 'UTM zone 18N')
    np.testing.assert_array_equal(read_raster(tmp_path / 'b.img')[:, :, 0], segments)
    columns, metadata = read_table(tmp_path / 'b.img')
    assert columns['area'][0][1:].tolist() == histogram[1:].tolist()
    assert metadata['LAYER_TYPE'] == 'thematic' and len(columns) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.tif', 'b.img']


def test_copy_in_two_files(segments, tmp_path):
    """What is too large for one file of this format finds its second one."""
    copy_labels(segments, tmp_path / 'a.img', options=['USE_SPILL=YES'],
                table=SegmentTable(np.array([3]), {'x': np.array([4])}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.ige', 'a.img']
    np.testing.assert_array_equal(read_raster(tmp_path / 'a.img')[:, :, 0], segments)
    assert read_table(tmp_path / 'a.img')[0]['x'][0].tolist() == [0, 0, 0, 4]


def test_formats_are_checked_before_work(segments, tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_create_copy', lambda *args: pytest.fail('work began'))
    write_tif(tmp_path / 'a.tif', segments)
    before = (tmp_path / 'a.tif').read_bytes()
    table = SegmentTable(np.array([1]), {'a': np.array([1])})
    for function, args in ((write_attribute_table, (tmp_path / 'a.tif', table)),
                           (write_label_raster_attributes, (tmp_path / 'a.tif', np.ones(3))),
                           (check_attribute_table_file, (tmp_path / 'a.tif',)),
                           (copy_labels, (segments, tmp_path / 'b.tif', 'GTiff')),
                           (check_attribute_table_driver, ('COG',))):
        with pytest.raises(OptionError, match='holds no attribute table'):
            function(*args)
    assert (tmp_path / 'a.tif').read_bytes() == before
    with pytest.raises(AssetWriteError):
        copy_labels(segments, tmp_path / 'no' / 'a.img')
    with pytest.raises(FileNotFoundError):
        write_attribute_table(tmp_path / 'no.img', table)
    with pytest.raises(OptionError, match='one band'):
        copy_labels(np.ones((2, 2, 2), int), tmp_path / 'a.img')
    with pytest.raises(OptionError, match='1..63'):
        copy_labels(segments, tmp_path / 'a.img', table=SegmentTable(
            np.array([1]), {'é' * 32: np.array([1])}))
    if require_gdal().GetDriverByName('KEA') is None:
        with pytest.raises(MissingDependencyError, match='KEA'):
            copy_labels(segments, tmp_path / 'a.kea', 'KEA')


@pytest.mark.parametrize('histogram, colors, match', [
    (np.ones((2, 2)), None, 'histogram'), (np.array(['x']), None, 'histogram'),
    (np.empty(0), None, 'histogram'), (np.ones(3), np.zeros((4, 4), np.uint8), 'colors'),
    (np.ones(3), np.zeros((3, 4)), 'colors'), (np.ones(3), np.zeros((3, 2), np.uint8), 'colors')])
def test_wrong_attributes(raster, segments, histogram, colors, match):
    with pytest.raises(OptionError, match=match):
        write_label_raster_attributes(raster, histogram, colors)
    with pytest.raises(OptionError, match=match):
        copy_labels(segments, raster, histogram=histogram, colors=colors)
    assert read_table(raster)[0] == {}


def fail_to_close(dataset):
    """A full disk, which GDAL notices when it closes a file."""
    close_dataset(dataset)
    raise RuntimeError('no space left')


def test_a_failed_copy_leaves_the_old_file(segments, tmp_path, monkeypatch):
    (tmp_path / 'a.img').write_text('old')
    with monkeypatch.context() as patch:
        patch.setattr(module, '_write_columns', lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copy_labels(segments, tmp_path / 'a.img', table=SegmentTable(np.array([1]), {}))
    with pytest.raises(OSError, match='GDAL failed.*no space'):
        with monkeypatch.context() as patch:
            patch.setattr(module, 'close_dataset', fail_to_close)
            copy_labels(segments, tmp_path / 'a.img')
    monkeypatch.setattr(module, '_make_check', lambda source: lambda temp: open_dataset(
        tmp_path / 'a.img').__enter__())
    with pytest.raises(AssetWriteError):
        copy_labels(segments, tmp_path / 'a.img')
    assert (tmp_path / 'a.img').read_text() == 'old'
    assert len(list(tmp_path.iterdir())) == 1
