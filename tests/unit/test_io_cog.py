"""Writing COGs, judged by GDAL's own reader and by rio-cogeo."""
import importlib.util
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocoseg.errors import AssetWriteError, BandCountError, OptionError
from cocoseg.io.codecs import list_codecs
from cocoseg.io.cog import write_cog
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.overviews import compute_overview_shapes, reduce_by_two
from cocoseg.io.raster import raster_info, read_raster
from cocoseg.io.verify import verify_cog

gdal = require_gdal()

# The GDAL inside rasterio must never share a process with osgeo.
RIO_VALIDATE = '''
import json, sys
from rio_cogeo.cogeo import cog_validate
print(json.dumps({path: cog_validate(path, strict=True, quiet=True) for path in sys.argv[1:]}))
'''


def assert_rio_valid(paths):
    """Let rio-cogeo judge files in a process of its own, if it is installed."""
    if importlib.util.find_spec('rio_cogeo') is None:
        return
    result = subprocess.run(
        [sys.executable, '-c', RIO_VALIDATE, *map(str, paths)],
        capture_output=True, text=True, check=True, timeout=120)
    verdicts = json.loads(result.stdout)
    assert len(verdicts) == len(paths)
    assert {path: verdict for path, verdict in verdicts.items() if verdict != [True, [], []]} == {}


def make(shape, dtype, seed=0):
    """Return an image with nodata patches; code 1 is nodata."""
    rng = np.random.default_rng(seed)
    data = rng.integers(2, 120, shape).astype(dtype)
    data[:shape[0] // 3] = 1
    data[rng.random(shape) < 0.1] = 1
    return data


def read_levels(fpath):
    """Read the full image and all overviews with GDAL, as (h, w, C)."""
    levels = [read_raster(fpath)]
    for index in range(raster_info(fpath).overview_count):
        dataset = gdal.OpenEx(str(fpath), open_options=[f'OVERVIEW_LEVEL={index}'])
        levels.append(np.atleast_3d(dataset.ReadAsArray(interleave='pixel')))
        del dataset
    return levels


def expected_levels(data, method, nodata, blocksize):
    """Compute what the levels must be."""
    levels = [np.atleast_3d(data)]
    for _ in compute_overview_shapes(data.shape, blocksize):
        levels.append(reduce_by_two(levels[-1], method, nodata))
    return levels


SHAPES = [(1, 1), (1, 700), (700, 1), (129, 257, 2), (255, 130, 3), (300, 301, 4), (500, 333, 5),
          (90, 70, 40), (513, 511)]


def test_shapes_round_trip_and_are_valid(tmp_path):
    paths = []
    for index, shape in enumerate(SHAPES):
        data = make(shape, np.int16, seed=index)
        data.flags.writeable = False
        fpath = tmp_path / f'{index}.tif'
        report = write_cog(fpath, data, nodata=1, blocksize=128)
        expected = expected_levels(data, 'average', 1, 128)
        found = read_levels(fpath)
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            np.testing.assert_array_equal(one, other)
        assert report == verify_cog(fpath, full=True)
        assert report.shape == expected[0].shape and report.path == str(fpath)
        assert report.overview_shapes == tuple(level.shape[:2] for level in expected[1:])
        assert raster_info(fpath).nodata == report.nodata == 1
        if data.shape[1] > 1:
            # rio-cogeo takes the factors of overviews from the width alone, so it
            # refuses any image that is one pixel wide, also GDAL's own.
            paths.append(fpath)
    assert_rio_valid(paths)
    assert sorted(os.listdir(tmp_path)) == [f'{i}.tif' for i in range(len(SHAPES))]


@pytest.mark.parametrize('dtype', [
    'uint8', 'uint16', 'int16', 'uint32', 'int32', 'float32', 'float64'])
def test_types_round_trip(tmp_path, dtype):
    data = make((200, 150, 2), dtype)
    limits = np.finfo(dtype) if data.dtype.kind == 'f' else np.iinfo(dtype)
    data[-1, -2:, 0] = limits.min, limits.max
    report = write_cog(tmp_path / 'a.tif', data, nodata=1, blocksize=64)
    for one, other in zip(read_levels(tmp_path / 'a.tif'), expected_levels(data, 'average', 1, 64)):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == data.dtype
    assert report.dtype == dtype and report.nodata == 1
    with tifffile.TiffFile(tmp_path / 'a.tif') as tif:
        predictors = [page.predictor for page in tif.pages]
        codecs = {int(page.compression) for page in tif.pages}
    assert predictors == [3 if data.dtype.kind == 'f' else 2] * 3
    assert codecs == {50000}


@pytest.mark.parametrize('nodata', [None, np.nan, -9999])
def test_nan_is_invalid_in_averages(tmp_path, nodata):
    data = np.full((130, 130, 1), 2, np.float32)
    data[:65] = np.nan
    data[:, ::2] = np.nan
    if nodata == -9999:
        data[0, :20] = nodata
    write_cog(tmp_path / 'a.tif', data, nodata=nodata, blocksize=128)
    full, half = read_levels(tmp_path / 'a.tif')
    np.testing.assert_array_equal(full, data)
    assert (half[33:] == 2).all()
    fill = half[:32]
    assert (fill == nodata).all() if nodata == -9999 else np.isnan(fill).all()


@pytest.mark.parametrize('method', ['mode', 'nearest', None])
def test_overview_methods(tmp_path, method):
    data = make((300, 170), np.uint32)
    report = write_cog(tmp_path / 'a.tif', data, overviews=method, blocksize=64, nodata=1)
    expected = expected_levels(data, method, 1, 64) if method else [np.atleast_3d(data)]
    found = read_levels(tmp_path / 'a.tif')
    assert len(found) == len(expected) == 1 + len(report.overview_shapes)
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('nodata', [0, -9999, None])
def test_empty_image_has_real_tiles(tmp_path, nodata):
    data = np.full((300, 300, 2), nodata or 0, np.int16)
    report = write_cog(tmp_path / 'a.tif', data, nodata=nodata, blocksize=128)
    assert report.n_tiles == 9 + 4 + 1
    with tifffile.TiffFile(tmp_path / 'a.tif') as tif:
        for page in tif.pages:
            assert min(page.databytecounts) > 0 and min(page.dataoffsets) > 0
    for level in read_levels(tmp_path / 'a.tif'):
        assert (level == (nodata or 0)).all()


def test_every_listed_codec_is_lossless(tmp_path):
    paths = []
    for name in list_codecs():
        for dtype in ('int16', 'float32'):
            data = make((150, 200, 3), dtype)
            if dtype == 'float32' and 'LERC' not in name:
                data[40:60, 10:90] = np.nan
            fpath = tmp_path / f'{name}-{dtype}.tif'
            report = write_cog(fpath, data, compress=name.lower(), nodata=1, blocksize=128)
            np.testing.assert_array_equal(read_raster(fpath), data)
            assert report.compression == name.split('_')[0]
            paths.append(fpath)
    assert_rio_valid(paths)


@pytest.mark.parametrize('n_bands', [1, 3])
def test_nan_in_lerc_is_right_or_refused(tmp_path, n_bands):
    """LERC has one mask for all bands of a pixel."""
    data = np.random.default_rng(0).random((150, 200, n_bands)).astype(np.float32)
    data[40:60, 10:90] = np.nan
    data[100, 100, 0] = np.nan
    try:
        write_cog(tmp_path / 'a.tif', data, compress='LERC')
    except AssetWriteError as ex:
        assert n_bands > 1 and 'NaN in some of its bands' in str(ex)
        assert os.listdir(tmp_path) == []
    else:
        np.testing.assert_array_equal(read_raster(tmp_path / 'a.tif'), data)


@pytest.mark.parametrize('options, expected', [
    ({'compress': 'raw'}, ('NONE', 1)), ({'compress': None}, ('NONE', 1)),
    ({'compress': 'Deflate', 'level': 9}, ('DEFLATE', 2)),
    ({'compress': 'lzw', 'predictor': 1}, ('LZW', 1)),
    ({'compress': 'zstd', 'predictor': None, 'level': 15}, ('ZSTD', 1)),
    ({'predictor': 2}, ('ZSTD', 2))])
def test_compression_options(tmp_path, options, expected):
    data = make((150, 200), np.int16)
    report = write_cog(tmp_path / 'a.tif', data, blocksize=128, **options)
    np.testing.assert_array_equal(read_raster(tmp_path / 'a.tif')[:, :, 0], data)
    with tifffile.TiffFile(tmp_path / 'a.tif') as tif:
        assert {page.predictor for page in tif.pages} == {expected[1]}
    assert report.compression == expected[0]


def test_level_matters(tmp_path):
    data = np.add.outer(np.arange(500) ** 2 // 50, np.arange(500) // 3).astype(np.int16)
    sizes = [write_cog(tmp_path / 'a.tif', data, level=level).nbytes for level in (None, 1, 19)]
    assert sizes[0] == sizes[1] > sizes[2]


@pytest.mark.parametrize('view', [
    lambda data: data.transpose(1, 0, 2), lambda data: data[::-1], lambda data: data[:, ::3],
    lambda data: data[5:, 3:, 1:], lambda data: data.astype('>i2'), lambda data: data[:, :, 0],
    lambda data: np.asfortranarray(data), lambda data: np.broadcast_to(data[:1], data.shape),
    lambda data: data[:1], lambda data: data[:, :1, ::-1]])
def test_any_memory_layout(tmp_path, view):
    data = make((190, 150, 3), np.int16)
    data.flags.writeable = False
    part = view(data)
    write_cog(tmp_path / 'a.tif', part, blocksize=64)
    for one, other in zip(read_levels(tmp_path / 'a.tif'), expected_levels(
            part.astype('i2'), 'average', None, 64)):
        np.testing.assert_array_equal(one, other)


def test_all_that_is_said_about_pixels_comes_back(tmp_path):
    meta = {'quantization': json.dumps({'orig_min': 0, 'note': '<a & "b"> &amp;'}),
            'lines': 'one\ntwo'}
    write_cog(tmp_path / 'a.tif', make((300, 200, 2), np.int16), nodata=-9999, crs=32618,
              transform=[[20, 0, 5e5], [0, -20, 4e6], [0, 0, 1]], channels='a.0|b <&> "c" &lt;',
              scale=[1 / 32767, 2], offset=0.5, metadata=meta, blocksize=128)
    info = raster_info(tmp_path / 'a.tif')
    assert info.nodata == -9999 and info.epsg == 32618
    assert info.geotransform == (5e5, 20, 0, 4e6, 0, -20)
    assert info.channels == ('a.0', 'b <&> "c" &lt;')
    assert info.scales == (1 / 32767, 2.0) and info.offsets == (0.5, 0.5)
    assert {key: info.metadata[key] for key in meta} == meta
    report = verify_cog(tmp_path / 'a.tif')
    assert report.channels == ('a.0', 'b <&> "c" &lt;') and report.nodata == -9999
    dataset = gdal.Open(str(tmp_path / 'a.tif'))
    for number in (1, 2):
        assert dataset.GetRasterBand(number).GetNoDataValue() == -9999
        assert dataset.GetRasterBand(number).GetOverview(0).GetNoDataValue() == -9999
    del dataset
    assert_rio_valid([tmp_path / 'a.tif'])
    assert os.listdir(tmp_path) == ['a.tif']


TEXTS = st.text(max_size=12) | st.text('&<>"\'=:; \t\n\r\x7f\x85\ufeff0aA', max_size=12)


COLORS = [(1, 2, 3), (255, 0, 7), (9, 9, 9)]


@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
def test_a_color_table_is_in_all_levels(tmp_path, dtype):
    fpath, data = tmp_path / 'a.tif', np.indices((300, 280)).sum(axis=0) % 3
    write_cog(fpath, data.astype(dtype), nodata=3, overviews='mode', colors=COLORS)
    verify_cog(fpath, full=True)
    assert_rio_valid([fpath])
    assert np.array_equal(read_raster(fpath)[..., 0], data)
    dataset = gdal.Open(str(fpath))
    band = dataset.GetRasterBand(1)
    for level in (band, band.GetOverview(0)):
        table = level.GetColorTable()
        assert [table.GetColorEntry(value)[:3] for value in range(3)] == COLORS


@pytest.mark.parametrize('dtype, n_bands, options', [
    ('uint8', 1, {'colors': COLORS, 'overviews': 'average'}),
    ('uint8', 1, {'colors': [(0, 0, 256)]}), ('uint8', 1, {'colors': [(0, 0)]}),
    ('uint8', 1, {'colors': []}), ('uint8', 1, {'colors': [(0, 0, 0.5)]}),
    ('uint8', 1, {'colors': [(0, 0, 0)] * 257}), ('int16', 1, {'colors': COLORS}),
    ('uint8', 2, {'colors': COLORS})],
    ids=['average', '256', 'pairs', 'none', 'floats', '257', 'int16', 'bands'])
def test_color_tables_that_cannot_be(tmp_path, dtype, n_bands, options):
    with pytest.raises(OptionError, match='color'):
        write_cog(tmp_path / 'a.tif', np.zeros((20, 20, n_bands), dtype),
                  **{'overviews': 'mode', **options})
    assert os.listdir(tmp_path) == []


@given(name=TEXTS, key=TEXTS, value=TEXTS)
@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_come_back_or_are_refused(tmp_path, name, key, value):
    try:
        report = write_cog(tmp_path / 'a.tif', np.zeros((2, 2), np.uint8), channels=[name],
                           metadata={key: value})
    except OptionError:
        return
    info = raster_info(tmp_path / 'a.tif')
    assert report.channels == info.channels == (name,)
    assert info.metadata[key] == value


class MatrixLike:
    """An object that only converts to a matrix, as ``kwimage.Affine`` does."""

    def __array__(self, dtype=None, copy=None):
        return np.array([[2, 0.5, 7], [0.25, -3, 9], [0, 0, 1]], dtype)


@pytest.mark.parametrize('transform', [
    MatrixLike(), (7, 2, 0.5, 9, 0.25, -3), [2, 0.5, 7, 0.25, -3, 9, 0, 0, 1]])
def test_spellings_of_a_transform(tmp_path, transform):
    write_cog(tmp_path / 'a.tif', np.zeros((9, 9), np.uint8), transform=transform)
    assert raster_info(tmp_path / 'a.tif').geotransform == (7, 2, 0.5, 9, 0.25, -3)


BAD_OPTIONS = [
    {'compress': 'zstdd'}, {'compress': 'JPEG'}, {'compress': 7}, {'compress': 'PACKBITS'},
    {'level': 0}, {'level': 23}, {'level': 'high'}, {'level': 1.5}, {'level': True},
    {'compress': 'LZW', 'level': 3}, {'predictor': 3}, {'predictor': 4}, {'predictor': 'yes'},
    {'compress': 'NONE', 'predictor': 2}, {'blocksize': 0}, {'blocksize': 100},
    {'blocksize': 32}, {'blocksize': 8192}, {'blocksize': '256'}, {'blocksize': 256.0},
    {'overviews': 'cubic'}, {'overviews': True}, {'nodata': 40000}, {'nodata': 0.5},
    {'nodata': np.nan}, {'crs': 'nowhere'}, {'crs': 999999}, {'transform': np.eye(2)},
    {'transform': np.zeros((3, 3))}, {'transform': [[1, 0, 0], [0, 1, 0], [0, 1, 1]]},
    {'transform': (0, 1, 0, 0, 0, np.inf)}, {'transform': 'north'}, {'channels': ['a', '']},
    {'channels': ['a', 3]}, {'channels': ['a', 'b\0']}, {'channels': 'a| b'}, {'scale': 0},
    {'scale': np.inf}, {'offset': np.nan}, {'metadata': {'a': 1}}, {'metadata': {'a=b': 'c'}},
    {'metadata': {'': 'c'}},
    {'metadata': {'a': ''}}, {'metadata': {'a': ' c'}}, {'metadata': {'a': '\x01'}},
    {'metadata': {'a': '\ud800'}},
    {'num_threads': 0}, {'num_threads': 1.5}]


@pytest.mark.parametrize('options', BAD_OPTIONS, ids=str)
def test_bad_options_touch_nothing(tmp_path, options):
    (tmp_path / 'a.tif').write_bytes(b'old')
    with pytest.raises(OptionError) as caught:
        write_cog(tmp_path / 'a.tif', np.zeros((9, 9, 2), np.int16), **options)
    assert repr(next(iter(options))).strip("'").split('_')[0][:4] in str(caught.value)
    assert (tmp_path / 'a.tif').read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['a.tif']


def test_unknown_codec_lists_the_known(tmp_path):
    with pytest.raises(OptionError, match="'DEFLATE'"):
        write_cog(tmp_path / 'a.tif', np.zeros((9, 9), np.uint8), compress='zip9')


@pytest.mark.parametrize('options', [
    {'channels': ['a']}, {'channels': 'a|b|c'}, {'scale': [1, 2, 3]}, {'offset': [[1, 2]]}])
def test_wrong_number_of_bands(tmp_path, options):
    with pytest.raises(BandCountError):
        write_cog(tmp_path / 'a.tif', np.zeros((9, 9, 2), np.int16), **options)


@pytest.mark.parametrize('data', [
    np.zeros((4, 4), bool), np.zeros((4, 4), np.int64), np.zeros((4, 4), np.float16),
    np.zeros((4, 4), complex), np.zeros((4, 4), object), np.zeros((0, 4), np.uint8), np.zeros(4),
    np.zeros((2, 2, 2, 2), np.uint8), np.ma.zeros((4, 4)), [['a']]])
def test_bad_data_is_refused(tmp_path, data):
    with pytest.raises(OptionError):
        write_cog(tmp_path / 'a.tif', data)
    assert os.listdir(tmp_path) == []


def test_int8_is_written_with_any_gdal(tmp_path):
    data = np.arange(-60, 60, dtype=np.int8).reshape(10, 12)
    write_cog(tmp_path / 'a.tif', data)
    # GDAL before 3.7 reads such pixels by a sign that is told apart from their type.
    np.testing.assert_array_equal(read_raster(tmp_path / 'a.tif')[:, :, 0], data)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / 'a.tif'), data)


def test_nodata_is_stored_as_a_pixel_holds_it(tmp_path):
    data = np.full((9, 9), np.float32(0.1))
    assert write_cog(tmp_path / 'a.tif', data, nodata=0.1).nodata == float(np.float32(0.1))
    assert raster_info(tmp_path / 'a.tif').nodata == float(np.float32(0.1))
    with pytest.raises(OptionError, match='1e\\+300'):
        write_cog(tmp_path / 'a.tif', data, nodata=1e300)


def test_same_input_gives_same_bytes(tmp_path):
    data = make((400, 300, 3), np.int16)
    for threads in (1, 2, 4):
        write_cog(tmp_path / f'{threads}.tif', data, blocksize=64, num_threads=threads)
    contents = {(tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert len(contents) == 1


def test_threads_write_different_files(tmp_path):
    errors = []

    def work(k):
        try:
            for i in range(4):
                data = make((200, 150, 2), np.int16, seed=10 * k + i)
                write_cog(tmp_path / f'{k}-{i}.tif', data, blocksize=64)
                np.testing.assert_array_equal(read_raster(tmp_path / f'{k}-{i}.tif'), data)
        except BaseException as ex:
            errors.append(ex)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert len(os.listdir(tmp_path)) == 16


def test_threads_write_one_file(tmp_path):
    images = [np.full((200, 150), k, np.int16) for k in range(4)]
    threads = [threading.Thread(target=write_cog, args=(tmp_path / 'a.tif', image))
               for image in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    found = read_raster(tmp_path / 'a.tif')[:, :, 0]
    assert any(np.array_equal(found, image) for image in images)
    assert os.listdir(tmp_path) == ['a.tif']


def test_odd_names(tmp_path):
    for name in ('a b.tif', 'ünï 語.tif', 'x' * 251 + '.tif', 'no-extension', b'\xff.tif'.decode(
            'utf-8', 'surrogateescape')):
        write_cog(tmp_path / name, np.full((5, 5), 3, np.uint8))
        assert (read_raster(tmp_path / name) == 3).all()
        verify_cog(tmp_path / name, full=True)
    assert len(os.listdir(tmp_path)) == 5


@pytest.mark.parametrize('exceptions', [False, True])
def test_works_in_both_gdal_moods(tmp_path, exceptions):
    before = gdal.GetUseExceptions()
    (gdal.UseExceptions if exceptions else gdal.DontUseExceptions)()
    try:
        write_cog(tmp_path / 'a.tif', make((300, 200), np.int16), crs=4326, nodata=1)
        assert verify_cog(tmp_path / 'a.tif', full=True).shape == (300, 200, 1)
        with pytest.raises(OptionError):
            write_cog(tmp_path / 'a.tif', np.zeros((3, 3), np.uint8), crs='nowhere')
    finally:
        (gdal.UseExceptions if before else gdal.DontUseExceptions)()
