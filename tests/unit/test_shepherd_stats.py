"""Statistics of segments: equal to whole-image numpy, however they are read."""
import functools
import pickle

import numpy as np
import pytest

from cocoseg import Timings, write_cog
from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.io import strips
from cocoseg.io.images import write_tif
from cocoseg.shepherd.stats import segment_stats
from cocoseg.shepherd.statspec import UserStat, parse_stat, parse_stats

from .segment_models import NAMES, SHAPES, make_segments, model_shape, model_values

SHAPE = (23, 17)
GEO = {'crs': 'EPSG:32618', 'transform': (500_000, 10, 0, 4_000_000, 0, -20)}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_image(rng, dtype, shape=SHAPE):
    """Return an image with many equal values, negative ones where there can be."""
    if np.dtype(dtype).kind == 'f':
        return (rng.integers(-40, 40, shape) / 8 + 1000).astype(dtype)
    low = 0 if np.dtype(dtype).kind == 'u' else -20
    return rng.integers(low, 40, shape).astype(dtype)


def check_values(table, image, segments, nodata=None, suffix='', names=NAMES):
    """Compare the columns of a band with the model; segments without values are apart."""
    ids, expected = model_values(image, segments, names, nodata)
    assert table.ids.tolist() == ids.tolist()
    for name in names:
        found = table[name + suffix]
        is_empty = np.isnan(expected[name])
        if name in ('mean', 'std'):
            np.testing.assert_allclose(found, expected[name], rtol=1e-12, atol=1e-10)
        else:
            assert found[~is_empty].tolist() == expected[name][~is_empty].tolist(), name
        if is_empty.any():
            empty = found[is_empty]
            assert np.isnan(empty).all() if found.dtype.kind == 'f' else (empty == -9999).all()


@pytest.mark.parametrize('rows', [1, 2, 7, 23, None])
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'int32', 'float32', 'float64'])
def test_equals_whole_image_numpy(rng, dtype, rows):
    segments, image = make_segments(rng, SHAPE), make_image(rng, dtype)
    check_values(segment_stats(image, segments, NAMES, block_rows=rows), image, segments)


@pytest.mark.parametrize('rows', [1, 5, None])
@pytest.mark.parametrize('threads', [1, 3])
def test_bands_with_nodata_of_their_own(rng, rows, threads):
    segments = make_segments(rng, SHAPE)
    image = make_image(rng, 'int16', (*SHAPE, 3))
    nodata = (5, None, -3)
    image[segments == 4] = nodata[0]
    table = segment_stats(image, segments, NAMES, nodata=nodata, block_rows=rows,
                          num_threads=threads)
    assert list(table.columns)[:4] == ['count_b0', 'count_b1', 'count_b2', 'min_b0']
    for band, value in enumerate(nodata):
        check_values(table, image[:, :, band], segments, value, f'_b{band}')
    assert table['count_b0'][3] == 0 and table['median_b0'][3] == -9999


@pytest.mark.parametrize('rows', [1, 4, None])
def test_floats_with_gaps(rng, rows):
    segments, image = make_segments(rng, SHAPE), make_image(rng, 'float32')
    image[rng.random(SHAPE) < 0.2] = np.nan
    image[rng.random(SHAPE) < 0.1] = np.inf
    image[rng.random(SHAPE) < 0.1] = -9999
    image[segments == 2] = np.nan
    table = segment_stats(image, segments, NAMES, nodata=-9999, block_rows=rows)
    check_values(table, image, segments, np.float32(-9999))
    assert np.isnan(table['mean'][1]) and table['median'].dtype == np.float32


def test_nodata_of_floats_is_compared_in_their_type(rng):
    """The nodata of a float32 file comes as a double that no pixel equals exactly."""
    image = np.full((2, 2), -3.4e38, np.float32)
    image[0, 0] = 7
    table = segment_stats(image, np.ones((2, 2), int), 'count,mean', nodata=-3.4e38)
    assert (table['count'][0], table['mean'][0]) == (1, 7)


def test_results_do_not_depend_on_the_strips(rng):
    """Not even in the last bit."""
    segments = make_segments(rng, (40, 30), n_labels=3)
    image = rng.normal(1e6, 1, (40, 30, 2))
    tables = [segment_stats(image, segments, NAMES, block_rows=rows, num_threads=threads)
              for rows, threads in ((1, 1), (7, 2), (40, 1))]
    for table in tables[1:]:
        for name, column in table.columns.items():
            assert column.tobytes() == tables[0][name].tobytes(), name


def test_sums_of_whole_numbers_are_exact():
    """Values whose squares do not fit in 64 bits, in a segment of any length."""
    high, low = 2 ** 32 - 1, -2 ** 31
    for dtype, values in (('uint32', [high, high, high - 1, high - 2] * 900),
                          ('int32', [low, low + 1, low + 5] * 1000),
                          ('uint32', [0, high] * 2000)):
        image = np.array(values, dtype).reshape(-1, 4)
        table = segment_stats(image, np.ones(image.shape, int), 'mean,std')
        n, total = len(values), sum(values)
        assert table['mean'][0] == total / n
        spread = n * sum(value * value for value in values) - total * total
        assert table['std'][0] == pytest.approx(spread ** 0.5 / n, rel=1e-15)


def test_floats_that_hardly_differ(rng):
    image = 1e9 + rng.normal(0, 1e-3, (200, 50))
    table = segment_stats(image, np.ones(image.shape, int), 'mean,std', block_rows=3)
    base = image - 1e9
    assert table['mean'][0] - 1e9 == pytest.approx(base.mean(), abs=1e-6)
    assert table['std'][0] == pytest.approx(base.std(), rel=1e-9)
    constant = segment_stats(np.full((9, 9), 0.1), np.ones((9, 9), int), 'std', block_rows=1)
    assert constant['std'][0] == 0


def test_percentile_zero_is_the_least_value(rng):
    image = rng.permutation(200).reshape(10, 20).astype(np.uint8)
    table = segment_stats(image, np.ones(image.shape, int), ['percentile:0', 'p100', 'min'])
    assert table['p0'][0] == table['min'][0] == 0 and table['p100'][0] == 199


def test_mode_takes_the_least_of_several():
    image = np.array([[7, 3, 9, 3, 7]])
    assert segment_stats(image, np.ones((1, 5), int), ['mode'])['mode'].tolist() == [3]


@pytest.mark.parametrize('rows', [1, 2, 5, None])
def test_shapes(rng, rows):
    segments = make_segments(rng, SHAPE, n_labels=5)
    table = segment_stats(None, segments, SHAPES, block_rows=rows)
    for row, label in enumerate(table.ids):
        found = {name: column[row] for name, column in table.columns.items()}
        assert found == pytest.approx(model_shape(segments, label))


@pytest.mark.parametrize('turn', [lambda a: a, np.fliplr, np.flipud, np.rot90, np.transpose])
def test_edge_pixels_see_all_neighbors(rng, turn):
    """Equal however the image is turned: none of the 8 neighbors is forgotten."""
    from cocoseg.shepherd.user_stats import edge_pixels
    segments = make_segments(rng, SHAPE, n_labels=4, size=5)
    turned = np.ascontiguousarray(turn(segments))
    expected = [model_shape(segments, label)['n_edge_pixels'] for label in (1, 2, 3, 4)]
    stats = ['n_edge_pixels', ('own', edge_pixels(8)), ('own4', edge_pixels(4))]
    table = segment_stats(turned, turned, stats, block_rows=4)
    assert table['n_edge_pixels'].tolist() == table['own'].tolist() == expected
    expected = [model_shape(segments, label)['n_edge_pixels4'] for label in (1, 2, 3, 4)]
    assert table['own4'].tolist() == expected


@pytest.mark.parametrize('corner', [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_edge_pixels_see_each_corner(corner):
    """One other pixel at a corner makes the center of 3 x 3 an edge pixel."""
    segments = np.ones((5, 5), int)
    segments[corner[0] + 1, corner[1] + 1] = 2
    table = segment_stats(None, segments, ['n_edge_pixels', 'n_edge_pixels:4'])
    # The border of 16, and the other pixel's neighbors inside: of 3, or of 2 without the center.
    assert table['n_edge_pixels'][0] == 19
    assert table['n_edge_pixels4'][0] == 18


def test_shapes_in_world_coordinates(tmp_path):
    segments = np.array([[1, 1, 2], [1, 1, 2]], np.uint32)
    write_tif(tmp_path / 'segments.tif', segments, nodata=0, **GEO)
    for table in (segment_stats(None, tmp_path / 'segments.tif', 'area_crs,centroid_crs'),
                  segment_stats(None, segments, 'area_crs,centroid_crs',
                                transform=GEO['transform'])):
        assert table['area_crs'].tolist() == [800, 400]
        assert table['centroid_crs_x'].tolist() == [500_010, 500_025]
        assert table['centroid_crs_y'].tolist() == [3_999_980] * 2
    with pytest.raises(OptionError, match='need a geotransform'):
        segment_stats(None, segments, ['area_crs'])


def test_files(rng, tmp_path, monkeypatch):
    """Tiles of different sizes, strips of whole tiles, names and nodata of the file."""
    segments = make_segments(rng, (300, 150), size=20)
    image = make_image(rng, 'uint16', (300, 150, 2))
    write_cog(tmp_path / 'image.tif', image, nodata=3, blocksize=64, channels='red|nir', **GEO)
    write_cog(tmp_path / 'segments.tif', segments, nodata=0, blocksize=128,
              overviews='nearest', **GEO)
    monkeypatch.setattr(strips, 'STRIP_SAMPLES', 1)
    timings = Timings()
    seen = []

    def show(items, total, desc):
        seen.append((desc, total))
        return items

    table = segment_stats(tmp_path / 'image.tif', str(tmp_path / 'segments.tif'), NAMES,
                          num_threads=2, timings=timings, progress=show)
    assert seen == [('shapes', 3), ('values', 3)]
    for band, name in enumerate(['red', 'nir']):
        check_values(table, image[:, :, band], segments, 3, f'_{name}')
    assert set(timings.durations) == {'walltime', 'reading', 'shapes', 'accumulation',
                                      'completion'}
    one = segment_stats(tmp_path / 'image.tif', segments, ['mean'], bands=[1])
    assert one['mean'].tolist() == table['mean_nir'].tolist()
    # The nodata of the file can be turned off.
    table = segment_stats(tmp_path / 'image.tif', segments, 'count,area', bands=1, nodata=None)
    assert table['count'].tolist() == table['area'].tolist()


def test_bands_of_a_file_may_differ_in_nodata(tmp_path):
    band = ('<VRTRasterBand dataType="Byte" band="{0}"><NoDataValue>{0}</NoDataValue>'
            '<SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
            '</SimpleSource></VRTRasterBand>')
    write_tif(tmp_path / 'a.tif', np.array([[1, 2, 3]], np.uint8))
    (tmp_path / 'a.vrt').write_text('<VRTDataset rasterXSize="3" rasterYSize="1">'
                                    + band.format(1) + band.format(2) + '</VRTDataset>')
    table = segment_stats(tmp_path / 'a.vrt', np.ones((1, 3), int), 'mean')
    assert (table['mean_b0'][0], table['mean_b1'][0]) == (2.5, 2)


def test_nodata_of_labels_is_null(tmp_path):
    write_tif(tmp_path / 'a.tif', np.array([[-1, 2, 0, 2]], np.int32), nodata=-1)
    assert segment_stats(None, tmp_path / 'a.tif', ['area'])['area'].tolist() == [2]


def test_ids_with_gaps_have_no_row(rng):
    segments = np.array([[5, 5, 70_000], [0, 5, 1]], np.int64)
    table = segment_stats(segments, segments, ['area', 'max'])
    assert table.ids.tolist() == [1, 5, 70_000] and table['area'].tolist() == [1, 3, 1]
    assert table['max'].tolist() == [1, 5, 70_000]


def test_nothing_but_null():
    table = segment_stats(np.ones((3, 4)), np.zeros((3, 4), int), [*NAMES, *SHAPES])
    assert len(table) == 0 and table['mean'].shape == (0,)


@pytest.mark.parametrize('missing, dtype, expected', [
    (None, 'uint8', -9999), (None, 'int32', -9999), (0, 'uint8', 0), (300, 'uint8', 300),
    (-1, 'uint32', -1), (0.5, 'uint8', 0.5), (np.nan, 'int16', np.nan), (-1, 'float32', -1),
    (2 ** 70, 'uint8', 2.0 ** 70)])
def test_missing(missing, dtype, expected):
    image, segments = np.array([[9, 0]], dtype), np.array([[1, 2]])
    table = segment_stats(image, segments, 'median,mean', nodata=0, missing=missing)
    np.testing.assert_equal(table['median'].tolist(), [9, expected])
    np.testing.assert_equal(table['mean'].tolist(), [9, np.nan if missing is None else missing])


def test_wide_integers_that_fit():
    image = np.array([[2 ** 32 - 1, -5]], np.int64)
    table = segment_stats(image, np.ones((1, 2), int), 'min,max')
    assert (table['min'][0], table['max'][0]) == (-5, 2 ** 32 - 1)
    for value in (2 ** 32, -2 ** 31 - 1):
        with pytest.raises(OptionError, match='convert them to float64'):
            segment_stats(np.array([[value]]), np.ones((1, 1), int), 'min')
    table = segment_stats(np.array([[2 ** 60, 4]]), np.ones((1, 2), int), 'max', nodata=2 ** 60)
    assert table['max'][0] == 4


# ---- functions of users

def spread(x, y, values, param):
    return values.max() - values.min() + param * (x[0] + 100 * y[-1])


def correlate(x, y, values, param):
    return float((values[:, 0] * values[:, 1]).sum())


@functools.lru_cache(maxsize=None)
def compile_once(func):
    from numba import njit
    return njit(func)


@pytest.mark.parametrize('rows', [1, 6, None])
def test_functions_of_users(rng, rows):
    """Compiled or not, a function gets the pixels of a segment in raster order."""
    segments, image = make_segments(rng, SHAPE), make_image(rng, 'float64', (*SHAPE, 2))
    image[rng.random(image.shape) < 0.2] = np.nan
    image[segments == 3, 1] = np.nan
    stats = [('plain', UserStat(spread, 0.5)), ('fast', UserStat(compile_once(spread), 0.5)),
             ('joint', UserStat(correlate, is_joint=True)),
             ('joint_fast', UserStat(compile_once(correlate), is_joint=True))]
    table = segment_stats(image, segments, stats, block_rows=rows)
    assert list(table.columns) == ['plain_b0', 'plain_b1', 'fast_b0', 'fast_b1', 'joint',
                                   'joint_fast']
    for row, label in enumerate(table.ids):
        for band in range(2):
            y, x = np.nonzero((segments == label) & ~np.isnan(image[:, :, band]))
            expected = spread(x, y, image[y, x, band], 0.5) if len(y) else np.nan
            for name in ('plain', 'fast'):
                np.testing.assert_equal(table[f'{name}_b{band}'][row], expected)
        y, x = np.nonzero((segments == label) & ~np.isnan(image).any(axis=2))
        expected = correlate(x, y, image[y, x], None) if len(y) else np.nan
        np.testing.assert_allclose([table['joint'][row], table['joint_fast'][row]], expected,
                                   rtol=1e-12)


@pytest.mark.parametrize('distance', [1, 2, 3])
def test_variogram(rng, distance):
    segments, image = make_segments(rng, SHAPE), make_image(rng, 'int16')
    table = segment_stats(image, segments, [f'variogram:{distance}'], block_rows=3)
    for label, found in zip(table.ids, table[f'variogram{distance}']):
        y, x = np.nonzero(segments == label)
        values = image[y, x].astype(float)
        apart = np.hypot(x[:, None] - x, y[:, None] - y)
        pairs = (np.floor(apart) == distance)
        squares = (values[:, None] - values)[pairs] ** 2
        assert found == pytest.approx(np.sqrt(squares.mean()))


def test_mean_coordinate(rng):
    from cocoseg.shepherd.user_stats import mean_coordinate
    segments, image = make_segments(rng, SHAPE), make_image(rng, 'float32')
    image[::3] = np.nan
    stats = [('x', mean_coordinate('x')), ('y', mean_coordinate('y')),
             ('world', mean_coordinate('y', GEO['transform']))]
    table = segment_stats(image, segments, stats)
    y, x = np.nonzero((segments == 1) & ~np.isnan(image))
    assert table['x'][0] == pytest.approx(x.mean() + 0.5)
    assert table['y'][0] == pytest.approx(y.mean() + 0.5)
    assert table['world'][0] == pytest.approx(4_000_000 - 20 * (y.mean() + 0.5))


def test_an_error_of_a_function_is_its_own():
    def fail(x, y, values, param):
        raise ZeroDivisionError('mine')
    with pytest.raises(ZeroDivisionError, match='mine'):
        segment_stats(np.ones((2, 2)), np.ones((2, 2), int), [('a', UserStat(fail))])


# ---- what is refused

ONES = np.ones((4, 5), int)


@pytest.mark.parametrize('stats, match', [
    ([], 'asks for nothing'), (['average'], "'average' is unknown"), (['p101'], 'in 0..100'),
    (['percentile'], 'in 0..100'), (['percentile:-1'], 'in 0..100'), ('p1.2.3', 'in 0..100'),
    (['mean:3'], 'unknown'), (['mean', 'mean'], 'twice'), (['p50', ('P50', 'std')], 'twice'),
    ([('segment', 'mean')], 'twice'), (['n_edge_pixels:6'], '4 or 8'),
    (['variogram:0.5'], 'at least 1'), (['variogram'], 'at least 1'), ([('', 'mean')], 'empty'),
    ([3], 'neither a name'), ([('a', 3)], 'neither a name'),
    ([('bbox_y0', 'mean'), 'bbox'], 'twice')])
def test_wrong_statistics(stats, match):
    with pytest.raises(OptionError, match=match):
        segment_stats(ONES, ONES, stats)


@pytest.mark.parametrize('options, match', [
    ({'image': np.ones((4, 6))}, r'\(4, 6\).*\(4, 5\)'),
    ({'image': None}, 'need an image'), ({'bands': [1]}, r'0\.\.0'), ({'bands': []}, r'0\.\.0'),
    ({'bands': [0, 0]}, 'each once'), ({'nodata': [1, 2]}, '2 values for 1 bands'),
    ({'nodata': 'x'}, 'must be numbers'), ({'missing': 'x'}, 'must be a number'),
    ({'block_rows': 0}, 'at least 1'), ({'num_threads': 0}, 'at least 1'),
    ({'segments': np.ones((4, 5, 2), int)}, 'one band'), ({'segments': np.ones((4, 5))},
                                                          'convert it to uint32'),
    ({'image': np.ones((4, 5), complex)}, 'whole numbers or floats'),
    ({'image': np.ma.ones((4, 5))}, 'masked array'), ({'segments': np.ones(4, int)}, 'shape'),
    ({'segments': np.full((4, 5), 2 ** 31)}, 'subset_segments')])
def test_wrong_arguments(options, match):
    given = {'image': ONES, 'segments': ONES, **options}
    with pytest.raises(OptionError, match=match):
        segment_stats(given.pop('image'), given.pop('segments'), ['mean'], **given)


@pytest.mark.parametrize('value, dtype', [(-1, 'int8'), (-7, 'int64'), (2 ** 32, 'int64'),
                                          (2 ** 63, 'uint64')])
def test_wrong_labels(value, dtype):
    segments = np.ones((4, 5), dtype)
    segments[3, 3] = value
    with pytest.raises(LabelOverflowError, match=r'0\.\.4294967295'):
        segment_stats(ONES, segments, ['mean'])


@pytest.mark.parametrize('geo, match', [
    ({'transform': (500_010, 10, 0, 4_000_000, 0, -20)}, r'500010.*500000.*1 px'),
    ({'transform': (500_000, 10.1, 0, 4_000_000, 0, -20)}, r'10\.1'),
    ({'crs': 'EPSG:32619'}, '19N.*18N')])
def test_grids_that_differ(tmp_path, geo, match):
    write_tif(tmp_path / 'segments.tif', ONES.astype(np.uint16), **GEO)
    write_tif(tmp_path / 'image.tif', ONES.astype(np.uint16), **{**GEO, **geo})
    with pytest.raises(OptionError, match=match):
        segment_stats(tmp_path / 'image.tif', tmp_path / 'segments.tif', ['mean'])
    # Arrays have no place.
    assert len(segment_stats(ONES, tmp_path / 'segments.tif', ['mean'])) == 1


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        segment_stats(tmp_path / 'no.tif', ONES, ['mean'])


def test_caller_keeps_its_arrays(rng):
    image, segments = make_image(rng, 'float64'), make_segments(rng, SHAPE)
    image[0, :3] = np.nan
    copies = image.copy(), segments.copy()
    table = segment_stats(image, segments, [*NAMES, 'variogram:1'], nodata=1001.0)
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(segments, copies[1])
    with pytest.raises(ValueError):
        table['mean'][0] = 1


def test_stats_are_values():
    assert parse_stat('percentile:50') == parse_stat('p50') != parse_stat('median')
    assert parse_stats('mean') == parse_stats(['mean'])
    assert pickle.loads(pickle.dumps(parse_stats('mean,variogram:2'))) == parse_stats(
        'mean,variogram:2')
    with pytest.raises(OptionError, match='no function'):
        UserStat(3)
