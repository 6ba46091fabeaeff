"""The commands ``cocoseg stats`` and ``cocoseg subset``: results, output and exit codes."""
import numpy as np
import pytest

from cocoseg import write_cog
from cocoseg.cli.stats import StatsConfig
from cocoseg.cli.subset import SubsetConfig
from cocoseg.io.attribute_table import copy_labels
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.raster import open_dataset, raster_info, read_raster
from cocoseg.shepherd.segment_table import SegmentTable
from cocoseg.shepherd.stats import segment_stats

from ..unit.segment_models import make_segments

GEO = {'crs': 'EPSG:32618', 'transform': (500_000, 10, 0, 4_000_000, 0, -20)}


@pytest.fixture
def folder(tmp_path):
    """An image and its segments."""
    rng = np.random.default_rng(0)
    segments = make_segments(rng, (70, 90), n_labels=20, size=8)
    image = rng.integers(0, 200, (70, 90, 2)).astype(np.uint8)
    write_cog(tmp_path / 'segments.tif', segments, nodata=0, overviews='nearest', **GEO)
    write_cog(tmp_path / 'image.tif', image, nodata=9, channels='red|nir', **GEO)
    return tmp_path


def run(capsys, command, *words):
    """Return the exit code, and what was printed."""
    code = command.main(argv=[str(word) for word in words])
    found = capsys.readouterr()
    return code, found.out, found.err


def check_table(found, expected):
    assert found.ids.tolist() == expected.ids.tolist()
    assert list(found.columns) == list(expected.columns)
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(found[name], column)


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_stats(folder, capsys, suffix):
    if suffix == 'parquet':
        pytest.importorskip('pyarrow')
    code, out, err = run(capsys, StatsConfig, folder / 'segments.tif', '--image',
                         folder / 'image.tif', '--stats', 'mean,std,p90,area', '--dst',
                         folder / f'a.{suffix}')
    # Nothing but how far it is.
    assert code == 0 and 'cocoseg' not in err
    assert 'segments  20\n' in out and f'table     {folder}/a.{suffix}\n' in out
    check_table(SegmentTable.read(folder / f'a.{suffix}'), segment_stats(
        folder / 'image.tif', folder / 'segments.tif', ['mean', 'std', 'p90', 'area']))


def test_options_reach_the_function(folder, capsys):
    run(capsys, StatsConfig, folder / 'segments.tif', '--image', folder / 'image.tif', '--stats',
        'count,median,mean', '--dst', folder / 'a.csv', '--bands', 1, '--nodata', 3, '--missing',
        -1, '--block_rows', 5, '--num_threads', 1)
    check_table(SegmentTable.read(folder / 'a.csv'), segment_stats(
        folder / 'image.tif', folder / 'segments.tif', 'count,median,mean', bands=[1], nodata=3,
        missing=-1))


def test_polygons_and_attributes(folder, capsys):
    copy_labels(folder / 'segments.tif', folder / 'segments.img')
    code, out, _ = run(capsys, StatsConfig, folder / 'segments.img', '--stats', 'area,centroid',
                       '--polygons', folder / 'a.gpkg', '--rat')
    assert code == 0 and f'polygons  {folder}/a.gpkg\n' in out
    table = segment_stats(None, folder / 'segments.tif', 'area')
    with open_dataset(folder / 'segments.img') as dataset:
        rat = dataset.GetRasterBand(1).GetDefaultRAT()
        assert rat.GetColumnCount() == 3
        assert rat.ReadAsArray(0)[1:].tolist() == table['area'].tolist()
    require_gdal()
    from osgeo import ogr
    # A layer must not outlive its dataset.
    dataset = ogr.Open(str(folder / 'a.gpkg'))
    assert {feature['segment']: feature['area'] for feature in dataset.GetLayer(0)} == dict(
        zip(table.ids.tolist(), table['area'].tolist()))


@pytest.mark.parametrize('words, match', [
    (['--stats', 'average', '--dst', 'a.csv'], "'average' is unknown"),
    (['--stats', 'mean', '--dst', 'a.csv'], 'need an image'),
    (['--stats', 'area'], 'nothing is to be written'),
    (['--stats', 'area', '--dst', 'a.xlsx'], 'does not end with'),
    (['--stats', 'area', '--polygons', 'a.shp'], 'gpkg'),
    (['--stats', 'area', '--rat'], 'holds no attribute table'),
    (['--stats', 'area', '--dst', 'no/a.csv'], 'No such file or directory'),
    (['--stats', 'mean', '--dst', 'a.csv', '--image', 'no.tif'], 'no such raster'),
    (['--stats', 'mean', '--dst', 'a.csv', '--image', 'image.tif', '--bands', '5'], r'0..1')])
def test_wrong_input(folder, capsys, monkeypatch, words, match):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    code, out, err = run(capsys, StatsConfig, 'segments.tif', *words)
    assert code == 1 and err.startswith('cocoseg: ') and match in err and err.count('\n') == 1
    assert out == '' and sorted(folder.iterdir()) == before


def test_outputs_are_checked_before_work(folder, capsys, monkeypatch):
    monkeypatch.setattr('cocoseg.shepherd.stats.segment_stats',
                        lambda *args, **options: pytest.fail('work began'))
    for words in (['--dst', folder / 'no' / 'a.csv'], ['--polygons', folder / 'no' / 'a.gpkg'],
                  ['--rat']):
        assert run(capsys, StatsConfig, folder / 'segments.tif', *words)[0] == 1


def test_subset(folder, capsys):
    code, out, err = run(capsys, SubsetConfig, folder / 'segments.tif', folder / 'a.tif',
                         '--window', 10, 20, 60, 50)
    assert code == 0 and 'cocoseg' not in err and f'labels    {folder}/a.tif\n' in out
    by_window = read_raster(folder / 'a.tif')
    assert by_window.shape == (50, 30, 1)
    assert f'segments  {by_window.max()}\n' in out
    code, _, _ = run(capsys, SubsetConfig, folder / 'segments.tif', folder / 'b.tif', '--bounds',
                     500_200, 3_998_800, 500_500, 3_999_800)
    assert code == 0
    np.testing.assert_array_equal(read_raster(folder / 'b.tif'), by_window)
    assert raster_info(folder / 'b.tif').geotransform[0] == 500_200


def test_subset_with_tables(folder, capsys):
    run(capsys, StatsConfig, folder / 'segments.tif', '--image', folder / 'image.tif', '--stats',
        'mean,area', '--bands', 0, '--dst', folder / 'all.csv')
    mask = (read_raster(folder / 'segments.tif')[:, :, 0] % 5 == 0).astype(np.uint8)
    write_cog(folder / 'mask.tif', mask, **GEO)
    code, out, _ = run(capsys, SubsetConfig, folder / 'segments.tif', folder / 'a.tif', '--mask',
                       folder / 'mask.tif', '--table', folder / 'all.csv', '--dst_table',
                       folder / 'part.csv')
    assert code == 0 and f'table     {folder}/part.csv\n' in out
    source, part = (SegmentTable.read(folder / f'{name}.csv') for name in ('all', 'part'))
    assert list(part.columns) == ['original_id', 'area', 'mean']
    assert sorted(part['original_id'].tolist()) == [5, 10, 15, 20]
    assert part['mean'].tolist() == source.take(part['original_id'])['mean'].tolist()
    assert part['area'].tolist() == source.take(part['original_id'])['area'].tolist()


@pytest.mark.parametrize('words, match', [
    (['--window', 100, 0, 120, 9], 'no pixel'), (['--table', 'all.csv'], 'give both'),
    (['--dst_table', 'no/a.csv'], 'No such file or directory'),
    (['--mask', 'no.tif'], 'no such raster'),
    (['--window', 0, 0, 9, 9, '--bounds', 0, 0, 1, 1], 'exclude')])
def test_wrong_subsets(folder, capsys, monkeypatch, words, match):
    monkeypatch.chdir(folder)
    code, _, err = run(capsys, SubsetConfig, 'segments.tif', 'a.tif', *words)
    assert code == 1 and match in err
    assert not (folder / 'a.tif').exists()


def test_wrong_arguments(capsys):
    assert run(capsys, StatsConfig)[0] == run(capsys, SubsetConfig, 'a.tif')[0] == 2
